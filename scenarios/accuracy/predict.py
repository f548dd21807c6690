"""Evaluates imported rows by the closed form; equal inputs are evaluated once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from placement.plan import PlanError
from placement.schedules import ScheduleError
from scenarios.accuracy.importer import Imported, import_row
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.rows import Row
from simulator.inputs import TrainingInputs
from simulator.predict import Played, play


@dataclass(frozen=True)
class Predicted:
    """One evaluated scenario: what its row can be compared with."""

    inputs: TrainingInputs
    tokens_per_s_per_gpu: float
    step_time_s: float
    allocated_bytes: tuple[float, ...]  # peak by pipeline stage, as the framework's allocator counts it
    needed_bytes: float  # of the fullest stage with what lies beside the allocator
    fits: bool
    breakdown_s: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """A row with its predictions: one, or the range that its blanks leave; the reason where there is none."""

    row: Row
    imported: Imported | None
    range: tuple[Predicted, ...]
    reason: str = ""


def evaluate(inputs: TrainingInputs) -> Predicted:
    """Raises PlanError or ScheduleError where the plan cannot be laid over the model, ValueError for a part of
    the scenario that hardware or stack do not know."""
    played: Played = play(inputs)
    step = played.step
    tokens = inputs.sequence * inputs.global_batch / inputs.cluster.accelerators
    return Predicted(inputs, tokens / step.step_time_s, step.step_time_s, tuple(step.peak_bytes),
                     played.needed_bytes, played.fits, step.breakdown_s)


def configuration(inputs: TrainingInputs) -> tuple[Any, ...]:
    """What makes two inputs equal (the model by identity: the importer shares equal ones)."""
    cluster, stack = inputs.cluster, tuple(sorted(inputs.stack.items()))
    network = (cluster.node.name, cluster.node.scale_out.bandwidth_bytes_per_s, cluster.accelerators)
    return (id(inputs.model), inputs.plan, *network, stack, inputs.sequence, inputs.global_batch)


def outcomes(rows: Iterable[Row], progress: Callable[[str], None] | None = None) -> list[Outcome]:
    """Every row imported and evaluated, in order. `progress` is told once a second what is being done."""
    known: dict[tuple[Any, ...], Predicted | str] = {}
    found, rows, told = list[Outcome](), list(rows), time.monotonic() + 1.0
    for number, row in enumerate(rows, 1):
        if progress and time.monotonic() > told:
            told += 1.0
            progress(f"row {number} of {len(rows)}")
        try:
            imported = import_row(row)
        except NotExpressible as error:
            found.append(Outcome(row, None, (), str(error)))
            continue
        results = [_cached(known, inputs) for inputs in imported.alternatives]
        good = [result for result in results if isinstance(result, Predicted)]
        reason = "" if good else next(result for result in results if isinstance(result, str))
        found.append(Outcome(row, imported, _that_ran(good), reason))
    return found


def _cached(known: dict[tuple[Any, ...], Predicted | str], inputs: TrainingInputs) -> Predicted | str:
    """The prediction, or why there is none."""
    key = configuration(inputs)
    if key not in known:
        try:
            known[key] = evaluate(inputs)
        except (PlanError, ScheduleError, ValueError) as error:
            known[key] = str(error)
    return known[key]


def _that_ran(range_: list[Predicted]) -> tuple[Predicted, ...]:
    """The alternatives of a range that fit the device: the row did run. All, where none fits."""
    fitting = tuple(one for one in range_ if one.fits)
    return fitting or tuple(range_)
