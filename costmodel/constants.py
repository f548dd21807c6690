"""The few constants that only whole runs can tell: what a kernel or a collective takes longer inside a step.

One set for every model, plan and family, kept in `calibration/constants.yaml` with how it was made; refitted by
`whatif calibrate fit --end-to-end`. A user's own measured run may move them within their physical range
(`RANGES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from costmodel import profiles
from costmodel.hardware import Accelerator

FILE = Path(__file__).parent / "calibration" / "constants.yaml"


@dataclass(frozen=True)
class Constants:
    """Factors of 1 would mean: as measured alone.

    ampere, hopper, blackwell, other: time of a kernel inside a step over its time alone, by generation (clock,
    power, neighbours). narrow: further factor of fp8 and fp4 products (training kernels and recipes are not those
    of the inference tables; accuracy_notes found 0.885). attention: as for kernels, of attention kernels on any
    generation, whose curves are sustained runs at full power already. communication: as for kernels, of
    collectives (rank skew, shared links). overlap_cost: compute seconds added per second of communication beside
    it. eager_traffic: bytes moved by eager pointwise operators over the ideally fused count. host: host times over
    those of the stack.
    """

    ampere: float
    hopper: float
    blackwell: float
    other: float
    narrow: float
    attention: float
    communication: float
    overlap_cost: float
    eager_traffic: float
    host: float

    def in_situ(self, generation: str) -> float:
        return float(getattr(self, generation, self.other)) if generation in GENERATIONS else self.other

    def traffic(self, execution: str) -> float:
        """Bytes of memory-bound operators over the ideally fused count (accuracy_notes, decision 2)."""
        return self.eager_traffic if execution in ("eager", "torch") else 1.0


GENERATIONS = ("ampere", "hopper", "blackwell")

# What the physics allows: a kernel is not faster beside others than alone, and clocks do not fall by half.
RANGES: Mapping[str, tuple[float, float]] = {
    "ampere": (1.0, 1.5),
    "hopper": (1.0, 1.5),
    "blackwell": (1.0, 1.6),
    "other": (1.0, 1.6),
    "narrow": (0.7, 1.3),
    "attention": (1.0, 1.5),
    "communication": (1.0, 2.5),
    "overlap_cost": (0.0, 1.0),
    "eager_traffic": (1.0, 6.0),
    "host": (0.3, 3.0),
}


@cache
def _file() -> Mapping[str, Any]:
    raw: Mapping[str, Any] = YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))
    return raw


@cache
def default() -> Constants:
    """The constants that ship."""
    values = _file()["values"]
    return Constants(**{field.name: float(values[field.name]) for field in fields(Constants)})


def of(part: Accelerator) -> Constants:
    """Those of a part: the shipped ones; 1 each for a part of the user's own, whose profile was measured as a step
    runs, and no cost of overlap on a processor, but for the corrections that the user kept (`whatif validate
    --update-profile`)."""
    measured = profiles.own(part.name)
    if measured is None:
        return default()
    shipped, names = default(), [one.name for one in fields(Constants)]
    overlap = 0.0 if part.generation == "cpu" else shipped.overlap_cost
    alone = Constants(**{**dict.fromkeys(names, 1.0), "overlap_cost": overlap})
    return replace(alone, **{name: value for name, value in measured.constants.items() if name in names})


def source() -> str:
    """How the shipped constants were made."""
    return str(_file()["source"])


def fit_errors() -> Mapping[str, Mapping[str, float]]:
    """Family of published runs -> mean absolute error in_sample, and left_out (fitted on the other families)."""
    errors: Mapping[str, Mapping[str, float]] = _file().get("errors", {})
    return errors
