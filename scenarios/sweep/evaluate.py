"""A batch of variants to its rows: what a worker does, wherever it runs.

`evaluate` is a function of its arguments alone, which can be pickled; a worker remembers the scenario of the last ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from costmodel.constants import Constants
from costmodel.units import show
from placement.plan import PlanError
from placement.schedules import ScheduleError
from scenarios.build import training_inputs
from scenarios.errors import ScenarioError
from scenarios.load import LoadedScenario
from scenarios.sweep.columns import DIGITS, DOES_NOT_FIT, INVALID, OK, RESULTS, Row, rounded
from scenarios.sweep.together import played_together
from scenarios.sweep.variants import Variants
from simulator.inputs import TrainingInputs
from simulator.predict import Played, play, summary

MOST_REASON = 300  # characters


@dataclass(frozen=True)
class Base:
    """The scenario that is varied and how it is predicted; two of them are the same where `digest` is."""

    digest: str
    loaded: LoadedScenario = field(compare=False)
    fidelity: str = field(compare=False)
    constants: Constants | None = field(compare=False, default=None)  # moved to the scenario's own measured runs


@dataclass(frozen=True)
class Variant:
    """One point of the grid."""

    index: int
    settings: Mapping[str, Any]  # dotted key -> value


def evaluate(base: Base, batch: Sequence[Variant]) -> list[Row]:
    """The rows of some variants, in their order."""
    variants = _variants(base)
    rows: dict[int, Row] = {}
    sound: dict[int, TrainingInputs] = {}
    for variant in batch:
        try:
            sound[variant.index] = _inputs(base, variants, variant)
        except ScenarioError as error:
            rows[variant.index] = _invalid(variant.index, error)
    known = played_together(list(sound.values())) if base.fidelity == "analytic" else {}
    for place, (index, inputs) in enumerate(sound.items()):
        try:
            rows[index] = _row(index, inputs, known[place] if place in known else play(inputs))
        except (PlanError, ScheduleError) as error:
            rows[index] = _invalid(index, error)
    return [rows[variant.index] for variant in batch]


@lru_cache(maxsize=2)
def _variants(base: Base) -> Variants:
    return Variants(base.loaded)


def _inputs(base: Base, variants: Variants, variant: Variant) -> TrainingInputs:
    """Raises ScenarioError where the variant is not sound."""
    inputs = training_inputs(variants.loaded(variant.settings), base.fidelity)
    return replace(inputs, constants=base.constants) if base.constants else inputs


def _row(index: int, inputs: TrainingInputs, played: Played) -> Row:
    numbers, _ = summary(inputs, played)
    numbers["peak_memory_bytes"] = played.needed_bytes
    numbers["bubble_fraction"] = abs(round(numbers["bubble_fraction"], DIGITS))  # what is left of a difference
    values = tuple(rounded(numbers[name]) for name in RESULTS)
    if played.fits:
        return Row(index, OK, "", values)
    memory = inputs.cluster.accelerator.memory.capacity_bytes
    reason = f"needs {show(played.needed_bytes, 'B')} of the {show(memory, 'B')} of {inputs.cluster.accelerator.title}"
    return Row(index, DOES_NOT_FIT, reason, values)


def _invalid(index: int, error: Exception) -> Row:
    """What is wrong with a variant, on one line."""
    if isinstance(error, ScenarioError):
        text = "; ".join(dict.fromkeys(problem.message for problem in error.problems))
    else:
        text = f"plan: {error}"
    text = " ".join(text.split())
    return Row(index, INVALID, text if len(text) <= MOST_REASON else f"{text[:MOST_REASON - 3]}...")
