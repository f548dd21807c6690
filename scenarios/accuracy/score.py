"""Rows against predictions: errors by row, by family and other groups, ranking inside sweeps, memory apart.

A row with blanks is scored by the median of its range; width and hit rate of the ranges stand beside. Families
are averaged after each is reduced by itself; vTrain counts as its 32 cells of hidden width, tensor degree and
micro-batch, since its rows are composed of them (reference/memory_notes.md B2).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from placement.memory import DEVICE_OVERHEAD_BYTES
from scenarios.accuracy import measured, metrics, schedule_score
from scenarios.accuracy.exceptions import FILTERS, exception_of
from scenarios.accuracy.papers import SPEEDS
from scenarios.accuracy.predict import Outcome, Predicted, configuration
from scenarios.accuracy.rows import Row

SPEED = "tokens_per_s_per_gpu"
# Reserved over allocated memory of the caching allocator: 1.03 to 1.08 on eight points (memory_notes.md A4).
RESERVED_OVER_ALLOCATED = (1.03, 1.08)
LEAST_SWEEP = 3
SWEEP_COLUMNS = ("family", "model", "accelerator", "gpus", "precision", "framework", "seq")
SCALES = ((8, "1-8"), (64, "9-64"), (512, "65-512"), (4096, "513-4,096"))


@dataclass(frozen=True)
class Scored:
    """One measured value against its prediction (the median of a range, with its ends)."""

    row: Row
    metric: str  # tokens_per_s_per_gpu, converted_..., allocated_bytes, ...; of a schedule: as its paper names it
    measured: float
    predicted: float
    low: float
    high: float
    exception: str | None
    specified: bool
    key: tuple[Any, ...]  # equal keys: the same configuration
    typical: Predicted

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1.0

    @property
    def memory(self) -> str:
        """Which peak it is: "allocated", "reserved" or "device"; "" for a speed."""
        if self.metric == schedule_score.MEMORY:
            return self.row.text("memory_basis")
        return self.metric.removesuffix("_bytes") if self.metric.endswith("_bytes") else ""

    @property
    def is_speed(self) -> bool:
        return self.metric == SPEED or self.metric in SPEEDS

    @property
    def hit(self) -> bool:
        return self.low <= self.measured <= self.high


def score(outcome: Outcome) -> list[Scored]:
    """Every measured value of a row that has a prediction."""
    row, imported = outcome.row, outcome.imported
    if imported is None or not outcome.range:
        return []
    if row.of_schedule:
        return _of_schedule(outcome, imported.best)
    speeds = [one.tokens_per_s_per_gpu for one in outcome.range]
    found = list[Scored]()
    speed = measured.tokens_per_s_per_gpu(row)
    if row.scores_time and speed is not None:
        found.append(_scored(outcome, SPEED, speed, speeds))
    elif not row.scores_time and not row.scores_memory:
        speed = speed or measured.converted_tokens_per_s_per_gpu(row, outcome.range[0].inputs.model)
        if speed is not None:
            found.append(_scored(outcome, f"converted_{SPEED}", speed, speeds))
    if row.scores_memory:
        found += _memory(outcome)
    return found


def _of_schedule(outcome: Outcome, best: bool) -> list[Scored]:
    """The one value of a row of pipeline.csv, in its own unit; none where it printed no number (out of memory)."""
    row, value = outcome.row, outcome.row.number("value")
    convert = schedule_score.converter_of(row)
    if value is None or convert is None:
        return []
    found = [convert(one) for one in outcome.range]
    found = [max(found)] if best else found
    if row.scores_memory and row.text("memory_basis") == "reserved":
        low, high = RESERVED_OVER_ALLOCATED
        found = [one * factor for one in found for factor in (low, (low + high) / 2, high)]
    return [_scored(outcome, row.text("metric"), value, found)]


def _memory(outcome: Outcome) -> list[Scored]:
    """Allocated (or device-level) and reserved peaks, of the rank that the row names."""
    row = outcome.row
    last = row.text("memory_rank") == "last"
    peaks = [one.allocated_bytes[-1] if last else max(one.allocated_bytes) for one in outcome.range]
    found = list[Scored]()
    if (peak := measured.allocated_bytes(row)) is not None:
        device = row.text("memory_basis") == "unknown"
        beside = DEVICE_OVERHEAD_BYTES if device else 0.0
        metric = "device_bytes" if device else "allocated_bytes"
        found.append(_scored(outcome, metric, peak, [one + beside for one in peaks]))
    if (peak := measured.reserved_bytes(row)) is not None:
        low, high = RESERVED_OVER_ALLOCATED
        wide = [one * factor for one in peaks for factor in (low, (low + high) / 2, high)]
        found.append(_scored(outcome, "reserved_bytes", peak, wide))
    return found


def _scored(outcome: Outcome, metric: str, value: float, predictions: Sequence[float]) -> Scored:
    row = outcome.row
    middle = median(predictions)
    typical = min(outcome.range, key=lambda one: abs(one.tokens_per_s_per_gpu
                                                     - median(p.tokens_per_s_per_gpu for p in outcome.range)))
    excepted = exception_of(row, memory=metric.endswith("_bytes") or metric == schedule_score.MEMORY)
    first = outcome.range[0].inputs
    key = (row.family, metric, configuration(first)[:2], first.sequence, first.global_batch, str(first.stack))
    return Scored(row, metric, value, middle, min(predictions), max(predictions), excepted.name if excepted else None,
                  row.fully_specified, key, typical)


# Groups ----------------------------------------------------------------------------------------------


def scale_of(row: Row) -> str:
    gpus = row.integer("gpus") or 0
    return next((name for most, name in SCALES if gpus <= most), "above 4,096")


GROUPS: dict[str, Callable[[Row], str]] = {
    "family": lambda row: row.family,
    "gpu": lambda row: row.text("accelerator"),
    "scale": scale_of,
    "precision": lambda row: row.text("precision") or "not stated",
    "release": lambda row: row.text("framework") or "not stated",
}


def _unit(one: Scored) -> tuple[Any, ...]:
    """What counts once: a vTrain cell, otherwise a row."""
    row = one.row
    if row.family.startswith("vTrain"):
        return (row.family, row.integer("hidden"), row.integer("tp"), row.integer("micro_batch"))
    return (row.id,)


def summary(scored: Sequence[Scored], unit: Callable[[Scored], tuple[Any, ...]] = _unit) -> dict[str, Any]:
    """Statistics over units; a unit's error and absolute error are means over its rows."""
    units = defaultdict[tuple[Any, ...], list[Scored]](list)
    for one in scored:
        units[unit(one)].append(one)
    errors = [sum(one.error for one in of) / len(of) for of in units.values()]
    absolute = [sum(abs(one.error) for one in of) / len(of) for of in units.values()]
    return {"rows": len(scored), "units": len(units), **metrics.statistics(errors, absolute)}


def group_summary(scored: Sequence[Scored]) -> dict[str, Any]:
    """`summary` with its fully specified part, its ranges and its ranking."""
    ranged = [one for one in scored if not one.specified]
    return {
        **summary(scored),
        "kendall_tau": ranking(scored)["kendall_tau_median"],
        "specified": summary([one for one in scored if one.specified]),
        "ranges": {
            **summary(ranged),
            "width": median((one.high - one.low) / one.predicted for one in ranged) if ranged else None,
            "hit_rate": sum(one.hit for one in ranged) / len(ranged) if ranged else None,
        },
    }


def grouped(scored: Iterable[Scored], by: str) -> dict[str, dict[str, Any]]:
    """`group_summary` by a key of GROUPS, sorted by name."""
    found = defaultdict[str, list[Scored]](list)
    for one in scored:
        found[GROUPS[by](one.row)].append(one)
    return {name: group_summary(found[name]) for name in sorted(found)}


def averaged(families: dict[str, dict[str, Any]], part: str | None = None) -> dict[str, Any]:
    """The mean over families of each statistic (of their fully specified part with part="specified")."""
    chosen = [of if part is None else of[part] for of in families.values()]
    chosen = [of for of in chosen if of["rows"]]
    keys = ("mape", "median_ape", "p90_ape", "bias")
    means = {key: sum(of[key] for of in chosen) / len(chosen) if chosen else None for key in keys}
    return {"families": len(chosen), "rows": sum(of["rows"] for of in chosen), **means}


# Ranking ---------------------------------------------------------------------------------------------


def sweeps(scored: Iterable[Scored]) -> list[list[Scored]]:
    """Rows that share family, model, GPU, GPU count, precision, release and sequence; at least three."""
    found = defaultdict[tuple[str, ...], list[Scored]](list)
    for one in scored:
        found[tuple(one.row.text(column) for column in SWEEP_COLUMNS)].append(one)
    return [group for group in found.values() if len(group) >= LEAST_SWEEP]


def ranking(scored: Iterable[Scored]) -> dict[str, Any]:
    """Kendall's tau, ordering of pairs that differ by 3-35 %, and the loss of the chosen plan, over sweeps."""
    taus, losses, pairs, right = list[float](), list[float](), 0, 0
    for sweep in sweeps(scored):
        actual, predicted = [one.measured for one in sweep], [one.predicted for one in sweep]
        tau = metrics.kendall_tau(actual, predicted)
        taus += [] if tau is None else [tau]
        counted, ordered = metrics.ordered_pairs(actual, predicted)
        pairs, right = pairs + counted, right + ordered
        losses.append(metrics.loss_of_choice(actual, predicted))
    return {
        "sweeps": len(losses),
        "kendall_tau_median": median(taus) if taus else None,
        "pairs": pairs,
        "pairs_ordered_right": right / pairs if pairs else None,
        "loss_of_chosen_plan_median": median(losses) if losses else None,
    }


# The whole -------------------------------------------------------------------------------------------


def memory_summary(scored: Iterable[Scored]) -> dict[str, Any]:
    """allocated, reserved and device-level peaks by distinct configuration, with the families beneath each."""
    found: dict[str, Any] = {}
    for name in ("allocated", "reserved", "device"):
        chosen = [one for one in scored if one.memory == name and one.exception is None]
        families = sorted({one.row.family for one in chosen})
        found[name] = {
            **summary(chosen, lambda one: one.key),
            "hit_rate": sum(one.hit for one in chosen) / len(chosen) if chosen and name == "reserved" else None,
            "families": {family: summary([one for one in chosen if one.row.family == family], lambda one: one.key)
                         for family in families},
        }
    return found


def out_of_memory(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Fully specified rows that ran and are called out of memory. Rows that offload activations are not judged:
    the core has no input for it yet."""
    ran = [one for one in outcomes if one.range and one.row.fully_specified and not _offloads(one)
           and (one.row.scores_time or not one.row.of_schedule)]
    wrong = [one.row.id for one in ran if not one.range[0].fits]
    return {"rows": len(ran), "called_out_of_memory": len(wrong), "share": len(wrong) / len(ran) if ran else None,
            "ids": wrong}


def printed_out_of_memory(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Rows of pipeline.csv that printed OOM in place of a number, and how many are called so."""
    printed = [one for one in outcomes if one.range and one.row.of_schedule and "value" not in one.row.values]
    missed = [one.row.id for one in printed if one.range[0].fits]
    return {"rows": len(printed), "called_out_of_memory": len(printed) - len(missed), "missed": missed}


def _offloads(one: Outcome) -> bool:
    return one.imported is not None and "offloaded activations" in one.imported.approximated


def exception_summary(scored: Iterable[Scored]) -> list[dict[str, Any]]:
    """Every filter that caught a row, with what the rows would have given."""
    found = []
    for one in FILTERS:
        caught = [item for item in scored if item.exception == one.name]
        if caught:
            found.append({"name": one.name, "reason": one.reason, "memory": one.memory, **summary(caught)})
    return found


def counts(outcomes: Iterable[Outcome]) -> dict[str, dict[str, int]]:
    """Rows by blank column that made a range, and by stated thing that the core has no input for."""
    blanks, approximated = Counter[str](), Counter[str]()
    for one in outcomes:
        if one.imported is not None:
            blanks.update(one.imported.blanks)
            approximated.update(one.imported.approximated)
    return {"blanks": dict(blanks.most_common()), "approximated": dict(approximated.most_common())}
