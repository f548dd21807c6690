"""The band about a prediction: how far published runs lay from theirs, learned without their own family.

`costmodel/calibration/residuals.yaml` (made by `whatif accuracy --update-bands`) holds, by cell of features and
by family, the count, mean and mean square of log(predicted / measured) speed, each family predicted with
constants fitted to the others. The band is that of a run of a family never seen, in a random-effects model
(Higgins, Thompson & Spiegelhalter 2009, eq. 12): every family counts once, so that the spread between families
is in it; Student's t with families - 1 degrees of freedom and the factor 1 + 1 / families stand for their small
number. A cell with few families leans on the coarser one around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from costmodel.constants import GENERATIONS
from costmodel.kernels import PEAK_OF_PRECISION
from costmodel.profiles import BAND, HERE
from simulator.inputs import TrainingInputs

FILE = Path(__file__).parents[1] / "costmodel" / "calibration" / "residuals.yaml"
LEVEL = 0.8
LEAN = 2.0  # families that the coarser cell counts as in the finer one
GEMMS = {"fp8": "fp8", "fp4": "fp4", "fp32": "32-bit", "tf32": "32-bit"}  # by peak of the data sheet
SCALES = ((16, "up to 16 GPUs"), (256, "17 to 256 GPUs"))
LIKE = 2  # families that a cell needs to be named as what the band rests on
ASSUMABLE = ("plan", "stack", "cluster")  # blocks of a scenario whose assumed inputs widen the band
NORMAL = 1.2815515655446004  # 90 % quantile of the normal distribution: 10 % lie beyond either end of the band

Cell = tuple[str, ...]  # (kind, generation, gemm, parallelism, scale), the coarsest first; or a beginning of it


def cell_of(inputs: TrainingInputs) -> Cell:
    """What runs are alike in. Context parallelism splits a layer's work as tensor parallelism does."""
    plan, generation = inputs.plan, inputs.cluster.accelerator.generation
    return (
        "MoE" if any(layer.feed_forward.experts for layer in inputs.model.layers) else "dense",
        generation if generation in GENERATIONS else "other",
        GEMMS.get(PEAK_OF_PRECISION[plan.precision], "16-bit"),
        "pipeline" if plan.pipeline > 1 else "tensor" if plan.tensor * plan.context > 1 else "data only",
        next((name for most, name in SCALES if inputs.cluster.accelerators <= most), "more than 256 GPUs"),
    )


@dataclass(frozen=True)
class Residuals:
    """log(predicted / measured) of one family in one cell. `moved`: what leaving the family out of the fitted
    constants added to the mean. `kernels`: the part of the mean square that kernels not measured put there."""

    cell: Cell
    family: str
    rows: int
    mean: float
    mean_square: float
    moved: float = 0.0
    kernels: float = 0.0


@dataclass(frozen=True)
class Statistics:
    """The residual file. `unknown_variance`: of log time, for each input that is not known."""

    time: tuple[Residuals, ...] = ()
    memory: tuple[Residuals, ...] = ()  # allocated; cells of the kind alone
    unknown_variance: float = 0.0


@dataclass(frozen=True)
class Band:
    """Ends of the measured over the predicted value. `rows` and `families`: of the runs like it."""

    low: float
    high: float
    level: float
    basis: str
    rows: int
    families: int

    def around(self, low: float, high: float | None = None) -> list[float]:
        """About a value, or about a range of values."""
        return [low * self.low, (low if high is None else high) * self.high]


@cache
def shipped() -> Statistics:
    """The residuals that ship; none where there is no file."""
    if not FILE.exists():
        return Statistics()
    raw: Mapping[str, Any] = YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))
    time, memory = (
        tuple(Residuals(**{**one, "cell": tuple(one["cell"])}) for one in raw[part]) for part in ("time", "memory")
    )
    return Statistics(time, memory, float(raw["unknown_variance"]))


def band(
    cell: Cell, residuals: Sequence[Residuals], *, variance: float = 0.0, kernels: float = 0.0, without: str = ""
) -> Band | None:
    """The 80 % band of a run in `cell`, from the residuals of every family but `without`; None where there are none.

    `variance` (of the log) is added for inputs that are not known; of `kernels`, for kernels that were not measured,
    what the runs like it do not have already.
    """
    known = [one for one in residuals if one.family != without]
    if not known:
        return None
    moments = _moments(known)
    families, moment, alike = len(moments), moments.mean(axis=0), known
    like, rows, named = "all kinds", _rows(known), families
    for depth in range(1, len(cell) + 1):
        alike = [one for one in alike if one.cell[:depth] == cell[:depth]]
        moments = _moments(alike)
        moment = (moments.sum(axis=0) + LEAN * moment) / (len(moments) + LEAN)
        if len(moments) >= LIKE:
            like, rows, named = ", ".join(cell[:depth]), _rows(alike), len(moments)
    square, shared = (float(one) for one in moment)
    variance += max(kernels - shared, 0.0)
    half = student_t(max(families - 1, 1)) * math.sqrt(square * (1 + 1 / families) + variance)
    basis = f"{rows} published runs of {named} families ({like}), {_rows(known)} of {families} in all"
    return Band(math.exp(-half), math.exp(half), LEVEL, basis, rows, named)


def _rows(residuals: Sequence[Residuals]) -> int:
    return sum(one.rows for one in residuals)


def _moments(residuals: Sequence[Residuals]) -> NDArray[np.float64]:
    """[families, 2]: mean square and the part of kernels, of each family over its cells."""
    sums: dict[str, NDArray[np.float64]] = {}
    for one in residuals:
        more = one.rows * np.array([1.0, one.mean_square, one.kernels])
        sums[one.family] = sums[one.family] + more if one.family in sums else more
    found = np.array(list(sums.values())).reshape(-1, 3)
    means: NDArray[np.float64] = found[:, 1:] / found[:, :1]
    return means


def student_t(freedom: int) -> float:
    """90 % quantile of Student's t by its expansion about the normal one (Abramowitz & Stegun 26.7.5).

    >>> [round(student_t(freedom), 2) for freedom in (2, 4, 7, 30)]
    [1.88, 1.53, 1.41, 1.31]
    """
    z: float = NORMAL
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom ** (order + 1) for order, term in enumerate(terms))


def kernel_variance(error: float) -> float:
    """Of log time, beyond what measured kernels have; `error` is the 80 % error of kernels (Pricer.band)."""
    return max(error**2 - BAND["measured"] ** 2, 0.0) / NORMAL**2


def unknown_inputs(assumed: Sequence[str]) -> int:
    """Assumed inputs of plan, stack or cluster; a part of a block that is assumed as a whole counts with it.

    >>> unknown_inputs(["plan.virtual", "stack", "stack.overlap", "workload.tokens"])
    2
    """
    keys = {key for key in assumed if key.split(".")[0] in ASSUMABLE}
    return sum(not any(key.startswith(f"{other}.") for other in keys) for key in keys)


def widened(basis: str, unknown: int) -> list[str]:
    """Why a band is wider than those of runs like it, in words. `basis`: of the kernels (Pricer.basis)."""
    kernels = [] if basis in ("measured", HERE) else [f"; wider: kernels of this part are {basis}, not measured"]
    return kernels + ([f"; wider: assumed inputs of plan, stack or cluster: {unknown}"] if unknown else [])


def time_band(cell: Cell, kernels: float, unknown: int, statistics: Statistics, without: str = "") -> Band | None:
    """Of the step time, widened for kernels with the error `kernels` and for `unknown` inputs."""
    variance = unknown * statistics.unknown_variance
    return band(cell, statistics.time, variance=variance, kernels=kernel_variance(kernels), without=without)


def memory_band(cell: Cell, statistics: Statistics, without: str = "") -> Band | None:
    """Of the allocated peak; runs are alike where both are dense or both MoE."""
    return band(cell[:1], statistics.memory, without=without)
