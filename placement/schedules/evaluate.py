"""A schedule alone: its order played with given pass times, without a model or a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.schedules.order import Orders, Schedule, ScheduleError
from placement.schedules.play import Floats, Ints, earliest_times, topological_order

_KINDS = {"F": 0, "B": 1, "W": 2}


@dataclass(frozen=True)
class Evaluation:
    """What an order of passes takes.

    Two costs of a step are in use: `makespan_s`, the last end over all ranks, holds with a global barrier at
    the step's end (gradient norm, all-reduce); `span_s`, the longest time from a rank's first start to its
    last end, holds without one (the "cost" of the Zero Bubble papers, arXiv 2401.10241).
    """

    makespan_s: float
    span_s: float
    busy_s: Floats  # [ranks]
    peak: Floats  # [ranks], the most memory in flight, in the unit of `memory` (chunk activations by default)
    start_s: list[Floats]  # per rank, in the order of its passes
    end_s: list[Floats]

    @property
    def bubble_fraction(self) -> float:
        """Share of the makespan in which a rank, on average, computes nothing."""
        return float(1 - self.busy_s.mean() / self.makespan_s)

    @property
    def span_bubble_fraction(self) -> float:
        """The same of the longest span: the bubble rate that the Zero Bubble papers print."""
        return float(1 - self.busy_s.mean() / self.span_s)


@dataclass(frozen=True)
class _Passes:
    """All passes, rank after rank, as columns; `index[kind, stage, micro_batch]` is the pass, -1 for none."""

    rank: Ints
    kind: Ints
    stage: Ints
    micro_batch: Ints
    index: Ints
    offsets: Ints
    rank_of_stage: Ints


def evaluate(
    orders: Orders,
    schedule: Schedule,
    forward_s: Any,
    backward_s: Any,
    weight_s: Any = 0.0,
    latency_s: float = 0.0,
    memory: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Play `orders`, one list of passes per rank, as early as possible.

    `forward_s`, `backward_s` (for the input) and `weight_s` are seconds of one chunk's pass: a scalar, or
    [stages] in model order. Where the schedule does not split the backward, its "B" takes both.
    `latency_s` is one way between stages on two ranks; stages on one rank hand over at once.
    `memory` is the change that each kind of pass makes (a scalar or [stages]); by default a forward takes 1
    and the last backward pass of the chunk gives it back. What a pass gives back it holds until its end.
    Raises ScheduleError when a pass is missing, stands twice, or the order can never be played.
    """
    passes = _passes(orders, schedule)
    dependency_offsets, source, lag_s = _dependencies(passes, schedule.splits_backward, latency_s)
    joint = {"F": forward_s, "B": np.add(backward_s, weight_s)}
    split = {"F": forward_s, "B": backward_s, "W": weight_s}
    duration_s = _by_pass(passes, split if schedule.splits_backward else joint)
    previous = np.arange(-1, len(passes.rank) - 1)
    previous[passes.offsets[:-1]] = -1
    order = topological_order(previous, dependency_offsets, source)
    if len(order) < len(previous):
        raise ScheduleError(f"{schedule.name}: the order can never be played, the ranks wait for each other "
                            f"from {_stuck(passes, order)} on")
    start_s, end_s = earliest_times(order, previous, dependency_offsets, source, lag_s, duration_s)
    last = "W" if schedule.splits_backward else "B"
    change = _by_pass(passes, memory if memory is not None else {"F": 1.0, last: -1.0})
    cuts = passes.offsets[1:-1]
    starts, ends = np.split(start_s, cuts), np.split(end_s, cuts)
    return Evaluation(
        makespan_s=float(end_s.max()),
        span_s=float(max(end[-1] - start[0] for start, end in zip(starts, ends, strict=True))),
        busy_s=np.array([part.sum() for part in np.split(duration_s, cuts)]),
        peak=np.array([max(part.cumsum().max(), 0.0) for part in np.split(change, cuts)]),
        start_s=starts,
        end_s=ends,
    )


def _passes(orders: Orders, schedule: Schedule) -> _Passes:
    ranks, sizes = len(orders), [len(passes) for passes in orders]
    if 0 in sizes or ranks == 0:
        raise ScheduleError(f"{schedule.name}: every rank needs at least one pass")
    rank = np.repeat(np.arange(ranks), sizes)
    kinds = "FBW" if schedule.splits_backward else "FB"
    unknown = {one.kind for passes in orders for one in passes} - set(kinds)
    if unknown:
        raise ScheduleError(f"{schedule.name} runs {kinds}, not {sorted(unknown)}")
    columns = [(_KINDS[one.kind], one.chunk, one.micro_batch) for passes in orders for one in passes]
    kind, chunk, micro_batch = np.array(columns, dtype=np.int64).T
    if min(chunk.min(), micro_batch.min()) < 0:
        raise ScheduleError(f"{schedule.name}: chunks and micro-batches count from 0")
    chunks = int(chunk.max()) + 1
    stage_of = np.array([[schedule.stage_of(r, c, ranks, chunks) for c in range(chunks)]
                         for r in range(ranks)])
    rank_of_stage = np.empty(ranks * chunks, dtype=np.int64)
    rank_of_stage[stage_of] = np.arange(ranks)[:, None]
    stage = stage_of[rank, chunk]
    index = np.full((len(kinds), ranks * chunks, int(micro_batch.max()) + 1), -1, dtype=np.int64)
    index[kind, stage, micro_batch] = np.arange(len(rank))
    if (index < 0).any() or index.size != len(rank):
        distinct = int((index >= 0).sum())
        raise ScheduleError(f"{schedule.name}: each stage runs each of {kinds} once a micro-batch; "
                            f"expected {index.size} passes, got {len(rank)}, {distinct} distinct")
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return _Passes(rank, kind, stage, micro_batch, index, offsets, rank_of_stage)


def _dependencies(passes: _Passes, split: bool, latency_s: float) -> tuple[Ints, Ints, Floats]:
    """(offsets, source, lag_s): F waits for F a stage before, B for its F and B a stage after, W for B."""
    forward, backward = passes.index[0], passes.index[1]
    crossing_s = np.where(np.diff(passes.rank_of_stage) != 0, latency_s, 0.0)[:, None]
    edges: list[tuple[Ints, Ints, Any]] = [
        (forward[1:], forward[:-1], crossing_s),
        (backward, forward, 0.0),
        (backward[:-1], backward[1:], crossing_s),
    ]
    if split:
        edges.append((passes.index[2], backward, 0.0))
    target = np.concatenate([after.ravel() for after, _, _ in edges])
    source = np.concatenate([before.ravel() for _, before, _ in edges])
    lag_s = np.concatenate([np.broadcast_to(lag, after.shape).ravel() for after, _, lag in edges])
    by_target = np.argsort(target, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=len(passes.rank)))])
    return offsets, source[by_target], lag_s[by_target]


def _by_pass(passes: _Passes, by_kind: Mapping[str, Any]) -> NDArray[np.float64]:
    """[passes]: the value of each pass's kind at its stage; 0 for kinds not named."""
    table = np.zeros((len(_KINDS), len(passes.rank_of_stage)))
    for kind, value in by_kind.items():
        table[_KINDS[kind]] = value
    return table[passes.kind, passes.stage]


def _stuck(passes: _Passes, order: Ints) -> str:
    played = np.zeros(len(passes.rank), dtype=bool)
    played[order] = True
    first = int(np.flatnonzero(~played)[0])
    return (f"{'FBW'[passes.kind[first]]} of micro-batch {passes.micro_batch[first]} on stage "
            f"{passes.stage[first]} (rank {passes.rank[first]})")
