"""Fits the constants that only whole runs can tell (`costmodel.constants`) to published runs.

Every family counts equally (vTrain as its cells), so that a long table does not outvote a short one. The loss is
the mean absolute log error, by iteratively reweighted least squares on a linearised model (finite differences of
log time), weakly held to the starting point, within the physical range of each constant. One set serves every row;
leaving a family out refits on the others and predicts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from costmodel.constants import RANGES, Constants
from scenarios.accuracy.exceptions import exception_of
from scenarios.accuracy.importer import import_row
from scenarios.accuracy.measured import tokens_per_s_per_gpu
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.predict import configuration, evaluate
from scenarios.accuracy.rows import Row
from simulator.inputs import TrainingInputs

Floats = NDArray[np.float64]
NAMES = tuple(RANGES)
STEP = 0.05  # of a constant, for the finite difference
HOLD = 0.02  # weight of staying at the starting point, in units of the mean loss per unit log change
ROUNDS = 3
WEIGHTING_ROUNDS = 30
SMALLEST = 0.01  # residuals below count as this when reweighting


@dataclass(frozen=True)
class Case:
    """One distinct published configuration that is fully specified, with its measured speed."""

    family: str
    inputs: TrainingInputs
    measured: float  # tokens/s per accelerator
    weight: float = 1.0


@dataclass(frozen=True)
class Fit:
    constants: Constants
    in_sample: Mapping[str, float]  # family -> mean absolute error, all families fitted
    left_out: Mapping[str, float]  # family -> mean absolute error, fitted on the other families


def cases(rows: Sequence[Row]) -> list[Case]:
    """Scored, fully specified rows without a named exception; equal configurations and cells share one weight."""
    found: dict[object, list[Case]] = {}
    for row in rows:
        measured = tokens_per_s_per_gpu(row)
        if not (row.fully_specified and row.scores_time and measured) or exception_of(row):
            continue
        try:
            imported = import_row(row)
        except NotExpressible:
            continue
        if len(imported.alternatives) != 1:
            continue
        inputs = imported.alternatives[0]
        key: object = configuration(inputs)
        if row.family.startswith("vTrain"):
            key = (row.family, inputs.model.hidden, inputs.plan.tensor, inputs.plan.micro_batch)
        found.setdefault(key, []).append(Case(row.family, inputs, measured))
    kept = []
    for group in found.values():
        typical = float(np.exp(np.mean([np.log(case.measured) for case in group])))
        middle = min(group, key=lambda case: abs(np.log(case.measured / typical)))
        kept.append(middle)
    sizes = {family: sum(case.family == family for case in kept) for family in {case.family for case in kept}}
    return [replace(case, weight=1.0 / sizes[case.family]) for case in kept]


def log_errors(found: Sequence[Case], constants: Constants) -> Floats:
    """log(predicted / measured) speed of every case."""
    values = [evaluate(replace(case.inputs, constants=constants)).tokens_per_s_per_gpu for case in found]
    errors: Floats = np.log(np.array(values) / np.array([case.measured for case in found]))
    return errors


def _sensitivity(found: Sequence[Case], constants: Constants, errors: Floats) -> Floats:
    """d log speed / d constant, [cases, constants]."""
    columns = []
    for name in NAMES:
        moved = replace(constants, **{name: getattr(constants, name) + STEP})
        columns.append((log_errors(found, moved) - errors) / STEP)
    return np.stack(columns, axis=1)


def solve(errors: Floats, slopes: Floats, weights: Floats, start: Floats) -> Floats:
    """The constants that minimise the weighted mean absolute error of errors + slopes (x - start)."""
    low, high = (np.array([RANGES[name][end] for name in NAMES]) for end in (0, 1))
    x = start.copy()
    share = weights / weights.sum()
    for _ in range(WEIGHTING_ROUNDS):
        residual = errors + slopes @ (x - start)
        w = share / np.maximum(np.abs(residual), SMALLEST)
        normal = slopes.T @ (slopes * w[:, None]) + HOLD * np.eye(len(NAMES))
        x = np.clip(start - np.linalg.solve(normal, slopes.T @ (errors * w)), low, high)
    return x


def fit(found: Sequence[Case], start: Constants, tell: Callable[[str], None] = lambda _: None) -> Fit:
    """Constants fitted to all families, with errors in sample and for each family left out."""
    weights = np.array([case.weight for case in found])
    constants, best = start, float("inf")
    for number in range(ROUNDS):
        errors = log_errors(found, constants)
        loss = float(np.average(np.abs(errors), weights=weights))
        tell(f"round {number + 1}: mean absolute error {loss:.4f}")
        slopes = _sensitivity(found, constants, errors)
        x = solve(errors, slopes, weights, _vector(constants))
        constants, best = _constants(x), min(best, loss)
    errors = log_errors(found, constants)
    slopes = _sensitivity(found, constants, errors)
    families = sorted({case.family for case in found})
    apart = _without_own_family(found, errors, slopes, constants)
    in_sample, left_out = (
        {family: float(np.mean(np.abs(np.exp(of[[case.family == family for case in found]]) - 1)))
         for family in families}
        for of in (errors, apart)
    )
    return Fit(constants, in_sample, left_out)


def left_out_errors(found: Sequence[Case], constants: Constants) -> tuple[Floats, Floats]:
    """log(predicted / measured) speed of every case: as it is, and with the constants refitted to the families
    other than its own (linearised about `constants`)."""
    errors = log_errors(found, constants)
    return errors, _without_own_family(found, errors, _sensitivity(found, constants, errors), constants)


def _without_own_family(found: Sequence[Case], errors: Floats, slopes: Floats, constants: Constants) -> Floats:
    weights = np.array([case.weight for case in found])
    apart, start = errors.copy(), _vector(constants)
    for family in {case.family for case in found}:
        inside = np.array([case.family == family for case in found])
        x = solve(errors[~inside], slopes[~inside], weights[~inside], start)
        apart[inside] += slopes[inside] @ (x - start)
    return apart


def _vector(constants: Constants) -> Floats:
    return np.array([asdict(constants)[name] for name in NAMES], dtype=float)


def _constants(values: Floats) -> Constants:
    return Constants(**{name: round(float(value), 3) for name, value in zip(NAMES, values, strict=True)})
