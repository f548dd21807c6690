"""A schedule alone: its order played with given pass times, without a model or a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from placement.schedules.layout import CODE, Layout, durations, layout
from placement.schedules.order import COPIES, Orders, Schedule
from placement.schedules.play import Floats, earliest_times


@dataclass(frozen=True)
class Evaluation:
    """What an order of passes takes.

    Two costs of a step are in use: `makespan_s`, the last end over all ranks, holds with a global barrier at
    the step's end (gradient norm, all-reduce); `span_s`, the longest time from a rank's first start to its
    last end, holds without one (the "cost" of the Zero Bubble papers, arXiv 2401.10241).
    """

    makespan_s: float
    span_s: float
    busy_s: Floats  # [ranks], of passes, without copies
    peak: Floats  # [ranks], the most memory in flight, in the unit of `memory` (chunk activations by default)
    start_s: list[Floats]  # per rank, in the order of its passes
    end_s: list[Floats]
    memory: list[tuple[Floats, Floats]]  # per rank: times, and what is held from each of them on

    @property
    def bubble_fraction(self) -> float:
        """Share of the makespan in which a rank, on average, computes nothing."""
        return float(1 - self.busy_s.mean() / self.makespan_s)

    @property
    def span_bubble_fraction(self) -> float:
        """The same of the longest span: the bubble rate that the Zero Bubble papers print."""
        return float(1 - self.busy_s.mean() / self.span_s)


def evaluate(
    orders: Orders,
    schedule: Schedule,
    forward_s: Any,
    backward_s: Any,
    weight_s: Any = 0.0,
    latency_s: float = 0.0,
    memory: Mapping[str, Any] | None = None,
    other_s: Mapping[str, Any] | None = None,
    barrier_s: float = 0.0,
    transfer_s: float = 0.0,
) -> Evaluation:
    """Play `orders`, one list of passes per rank, as early as possible.

    `forward_s`, `backward_s` (for the input) and `weight_s` are seconds of one chunk's pass: a scalar, [stages]
    in model order or [stages, micro_batches]. Where the schedule does not split the backward, its "B" takes
    both. `other_s`: seconds of the other kinds of pass. `latency_s` is one way between stages on two ranks;
    stages on one rank hand over at once. `transfer_s` is how long one hop keeps the wire between two ranks busy.
    `barrier_s` is one broadcast to, or meeting of, all ranks.
    `memory` is the change that each kind of pass makes (a scalar or [stages]); by default a forward takes 1
    and the last backward pass of the chunk gives it back; what is copied to the host is free until it returns,
    and what is computed again was never kept. What a pass gives back it holds until its end.
    Raises ScheduleError when a pass is missing, stands twice, or the order can never be played.
    """
    found = layout(orders, schedule, sends=transfer_s > 0)
    whole = np.add(backward_s, 0.0 if schedule.splits_backward else weight_s)
    seconds = {"F": forward_s, "B": whole, "W": weight_s, **(other_s or {})}
    return play(found, schedule, seconds, latency_s, memory, barrier_s, transfer_s)


def play(
    found: Layout,
    schedule: Schedule,
    seconds: Mapping[str, Any],
    latency_s: float = 0.0,
    memory: Mapping[str, Any] | None = None,
    barrier_s: float = 0.0,
    transfer_s: float = 0.0,
) -> Evaluation:
    """`evaluate` of a layout, which can be played many times; `seconds` by kind of pass, "B" as it is run."""
    pass_s = durations(found, dict(seconds))
    task_s = np.concatenate([
        np.bincount(found.task, pass_s, minlength=found.slots),
        np.full(found.meetings, float(barrier_s)), np.full(found.sends, float(transfer_s))])
    lag_s = found.hop * float(latency_s) + found.meeting * float(barrier_s)
    start_s, end_s = earliest_times(
        found.order, found.previous, found.dependency_offsets, found.dependency_task, lag_s, task_s)
    cuts = found.offsets[1:-1]
    starts, ends = np.split(start_s[found.task], cuts), np.split(end_s[found.task], cuts)
    computes = ~np.isin(found.kind, [CODE[kind] for kind in COPIES])
    series = _memory(found, schedule, memory, starts, ends)
    return Evaluation(
        makespan_s=float(max(end.max() for end in ends)),
        span_s=float(max(end.max() - start.min() for start, end in zip(starts, ends, strict=True))),
        busy_s=np.array([part.sum() for part in np.split(pass_s * computes, cuts)]),
        peak=np.array([max(float(held.max()), 0.0) for _, held in series]),
        start_s=starts,
        end_s=ends,
        memory=series,
    )



def _memory(
    found: Layout, schedule: Schedule, memory: Mapping[str, Any] | None, starts: list[Floats], ends: list[Floats]
) -> list[tuple[Floats, Floats]]:
    """(times, held) of every rank; at one moment what is given back goes first."""
    change = _changes(found, schedule) if memory is None else durations(found, dict(memory))
    result = []
    for part, start, end in zip(np.split(change, found.offsets[1:-1]), starts, ends, strict=True):
        when = np.where(part > 0, start, end)
        order = np.lexsort((part > 0, when))
        result.append((when[order], part[order].cumsum()))
    return result


def _changes(found: Layout, schedule: Schedule) -> Floats:
    """[passes]: 1 held from the forward to the last backward of a chunk, less what lies on the host or is not kept."""
    last = "W" if schedule.splits_backward else "B"
    change = durations(found, {"F": 1.0, last: -1.0, "O": -1.0, "L": 1.0})
    if "R" in found.index:
        again = found.index["R"] >= 0
        change[found.index["F"][again]] = 0.0
        change[found.index["R"][again]] = 1.0
    return change
