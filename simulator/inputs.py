"""What a training prediction is asked about: everything it may depend on, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel import constants
from costmodel.architecture import Model
from costmodel.constants import Constants
from costmodel.hardware import Cluster
from placement.plan import Plan
from placement.sequences import Law


@dataclass(frozen=True)
class TrainingInputs:
    """One training step to predict. `plan` has `data` filled in; `raw` is the scenario as written."""

    name: str
    description: str
    file: str
    raw: Mapping[str, Any]
    model: Model
    cluster: Cluster
    plan: Plan
    sequence: int  # tokens of one sequence
    global_batch: int  # sequences per step
    lengths: Law | None = None  # of unequal sequences: `sequence` is the longest, sequence x global_batch the tokens
    total_tokens: float | None = None  # of the whole run
    stack: Mapping[str, Any] = field(default_factory=dict)  # execution, attention, overlap
    price_usd_per_gpu_hour: float | None = None  # None: the catalogue's price
    published: tuple[Mapping[str, Any], ...] = ()  # {metric, value, source}, values in SI
    assumptions: tuple[Mapping[str, Any], ...] = ()  # {key, text, source}: the author's notes on plan choices
    seed: int = 0
    fidelity: str = "events"  # events | analytic
    constants: Constants = field(default_factory=constants.default)
