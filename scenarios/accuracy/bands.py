"""Residual statistics of published runs for `simulator.bands`, and whether its bands hold for families left out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median, pvariance
from typing import Any

from costmodel.constants import Constants
from scenarios.accuracy.fit import Case, Floats, left_out_errors
from scenarios.accuracy.predict import Outcome
from scenarios.accuracy.score import SPEED, Scored
from simulator.bands import LEVEL, Band, Cell, Residuals, Statistics, cell_of, kernel_variance, memory_band, time_band
from simulator.predict import setting_of

Named = tuple[Cell, str]  # cell and family
Error = tuple[float, float, float]  # log error, what leaving its family out added, variance of unmeasured kernels


def statistics(found: Sequence[Case], constants: Constants, outcomes: Iterable[Outcome], scored: Iterable[Scored]
               ) -> Statistics:
    """Residuals of the cases' time and of the scored rows' allocated memory; the variance that a blank makes."""
    if not found:
        return Statistics((), memory_residuals(scored), unknown_variance(outcomes))
    errors, apart = left_out_errors(found, constants)
    time = time_residuals(found, errors, apart)
    return Statistics(time, memory_residuals(scored), unknown_variance(outcomes))


def time_residuals(found: Sequence[Case], errors: Floats, apart: Floats) -> tuple[Residuals, ...]:
    """Of cases with their errors as they are and without their own family (`fit.left_out_errors`)."""
    groups = defaultdict[Named, list[Error]](list)
    for case, error, alone in zip(found, errors, apart, strict=True):
        kernels = kernel_variance(setting_of(case.inputs).pricer.band)
        groups[cell_of(case.inputs), case.family].append((float(alone), float(alone - error), kernels))
    return _residuals(groups)


def memory_residuals(scored: Iterable[Scored]) -> tuple[Residuals, ...]:
    """Of allocated peaks, equal configurations once. No constant is fitted to memory: nothing is left out."""
    once: dict[Any, Scored] = {}
    for one in scored:
        if one.metric == "allocated_bytes" and one.exception is None and one.specified:
            once.setdefault(one.key, one)
    groups = defaultdict[Named, list[Error]](list)
    for one in once.values():
        cell = cell_of(one.typical.inputs)[:1]
        groups[cell, one.row.family].append((math.log(one.predicted / one.measured), 0.0, 0.0))
    return _residuals(groups)


def _residuals(groups: Mapping[Named, Sequence[Error]]) -> tuple[Residuals, ...]:
    return tuple(
        Residuals(cell, family, len(of), round(fmean(error for error, _, _ in of), 4),
                  round(fmean(error**2 for error, _, _ in of), 6), round(fmean(moved for _, moved, _ in of), 4),
                  round(fmean(kernels for _, _, kernels in of), 6))
        for (cell, family), of in sorted(groups.items())
    )


def unknown_variance(outcomes: Iterable[Outcome]) -> float:
    """Variance of log time per blank: over the alternatives of rows with blanks, of the median family."""
    families = defaultdict[str, list[float]](list)
    for one in outcomes:
        if one.imported is not None and one.imported.blanks and len(one.range) > 1:
            logs = [math.log(alternative.step_time_s) for alternative in one.range]
            families[one.row.family].append(pvariance(logs) / len(one.imported.blanks))
    return round(median(fmean(of) for of in families.values()), 4) if families else 0.0


# Bands of rows ---------------------------------------------------------------------------------------


def of_row(one: Scored, known: Statistics) -> Band | None:
    """The band of a scored value, from families other than the row's. What a row leaves blank is in its range, so
    that nothing is added for it here."""
    inputs, family = one.typical.inputs, one.row.family
    cell = cell_of(inputs)
    if one.memory:
        return memory_band(cell, known, without=family)
    return time_band(cell, setting_of(inputs).pricer.band, 0, known, without=family)


def ends(one: Scored, known: Statistics) -> list[float] | None:
    """[low, high] of the metric, about the range that blanks leave."""
    found = of_row(one, known)
    return None if found is None else found.around(one.low, one.high)


def held(scored: Iterable[Scored], known: Statistics) -> dict[str, Any]:
    """How often the 80 % bands of speed hold for rows left out by family: fully specified rows count, families
    alike; rows with blanks and allocated memory apart."""
    moved: dict[Named, float] = {(one.cell, one.family): one.moved for one in known.time}
    speed, blank, memory = (defaultdict[str, list[bool]](list) for _ in range(3))
    for one in scored:
        found = of_row(one, known)
        if one.exception is not None or found is None:
            continue
        low, high = found.around(one.low, one.high)
        if one.metric == "allocated_bytes" and one.specified:
            memory[one.row.family].append(low <= one.measured <= high)
        elif one.metric == SPEED:
            factor = math.exp(moved.get((cell_of(one.typical.inputs), one.row.family), 0.0))
            into = speed if one.specified else blank
            into[one.row.family].append(low * factor <= one.measured <= high * factor)
    return {**_shares(speed), "ranges": _shares(blank), "memory": _shares(memory)}


def _shares(families: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """held: the mean over families of the share of rows inside their band."""
    shares = {name: {"rows": len(of), "held": fmean(of)} for name, of in sorted(families.items())}
    rows = sum(len(of) for of in families.values())
    return {"level": LEVEL, "held": fmean(one["held"] for one in shares.values()) if shares else None, "rows": rows,
            "families": shares}


# The file --------------------------------------------------------------------------------------------


def yaml_text(found: Statistics, constants: Constants) -> str:
    """costmodel/calibration/residuals.yaml, stamped with how it was made."""
    families = sorted({one.family for one in found.time})
    lines = [
        "# Generated by `whatif accuracy CSV... --update-bands`. Do not edit.",
        "source: >-",
        f"  log(predicted / measured) speed of {sum(one.rows for one in found.time)} distinct fully specified runs "
        f"of {len(families)} families,",
        "  each family with constants fitted to the others; allocated memory of "
        f"{sum(one.rows for one in found.memory)} distinct configurations",
        f"families: [{', '.join(families)}]",
        f"constants: {{{', '.join(f'{name}: {value:g}' for name, value in asdict(constants).items())}}}",
        f"unknown_variance: {found.unknown_variance:g}",
    ]
    for part, residuals in (("time", found.time), ("memory", found.memory)):
        lines.append(f"{part}:" if residuals else f"{part}: []")
        lines += [
            f"- {{cell: [{', '.join(one.cell)}], family: {one.family}, rows: {one.rows}, mean: {one.mean:g}, "
            f"mean_square: {one.mean_square:g}, moved: {one.moved:g}, "
            f"kernels: {one.kernels:g}}}"
            for one in residuals
        ]
    return "\n".join(lines) + "\n"
