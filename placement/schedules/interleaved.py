"""Interleaved schedules: v chunks of layers per rank, stage c p + r on rank r.

*Depth first* (interleaved 1F1B, Megatron: Narayanan et al. 2021, arXiv 2104.04473, section 2.2; the table of
passes and the warm-up as in Megatron-LM `core/pipeline_parallel/schedules.py`): micro-batches go in groups
(of p unless said) through chunk 0, chunk 1, ...; backwards take the chunks in reverse; rank r runs
(v - 1) group + 2 (p - 1 - r) forwards ahead.
Bubble law: (p - 1)(forward + backward)/v + 2 (p v - 1) latency. Memory law: (v - 1) p + 2 (p - 1 - r) + 1
chunk activations, at most v m.

*Breadth first* (Lamy-Poirier 2022, arXiv 2211.05953): all micro-batches through chunk 0, then chunk 1, ...;
backwards in reverse of it, micro-batches too (as torch's LoopedBFS).
Bubble law: the same where m >= p and nothing waits for the latency. Memory law: v m chunk activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError


def depth_first_table(micro_batches: int, chunks: int, group: int) -> list[tuple[int, int]]:
    """(chunk, micro-batch) in the order of the forwards: groups of micro-batches, chunk after chunk."""
    return [
        (chunk, j)
        for first in range(0, micro_batches, group)
        for chunk in range(chunks)
        for j in range(first, min(first + group, micro_batches))
    ]


def order(request: Request) -> Orders:
    """Raises ScheduleError for a group size or a last group that Megatron refuses."""
    pipeline, micro_batches, chunks, group = request.pipeline, request.micro_batches, request.chunks, request.group
    rest = micro_batches % group
    if not pipeline <= group <= micro_batches:
        raise ScheduleError(f"interleaved-1f1b: the group of micro-batches must be between the pipeline size "
                            f"{pipeline} and the number of micro-batches {micro_batches} (got {group})")
    if 0 < rest < pipeline:
        raise ScheduleError(f"interleaved-1f1b: {micro_batches} micro-batches in groups of {group} leave "
                            f"{rest}, less than the pipeline size {pipeline}; "
                            f"{_fitting_group(pipeline, micro_batches)}")
    table = depth_first_table(micro_batches, chunks, group)
    forwards = [Pass("F", chunk, j) for chunk, j in table]
    backwards = [Pass("B", chunks - 1 - chunk, j) for chunk, j in table]
    return [
        _in_turn(forwards, backwards, (chunks - 1) * group + 2 * (pipeline - 1 - rank))
        for rank in range(pipeline)
    ]


def _fitting_group(pipeline: int, micro_batches: int) -> str:
    fitting = next(g for g in range(pipeline, micro_batches + 1) if not 0 < micro_batches % g < pipeline)
    return f"a group of {fitting} would do"


def _in_turn(forwards: list[Pass], backwards: list[Pass], warm_up: int) -> list[Pass]:
    warm_up = min(warm_up, len(forwards))
    passes = forwards[:warm_up]
    steady = len(forwards) - warm_up
    for forward, backward in zip(forwards[warm_up:], backwards[:steady], strict=True):
        passes += [forward, backward]
    return passes + backwards[steady:]


def breadth_first_order(request: Request) -> Orders:
    table = [(chunk, j) for chunk in range(request.chunks) for j in range(request.micro_batches)]
    forwards = [Pass("F", chunk, j) for chunk, j in table]
    backwards = [Pass("B", chunk, j) for chunk, j in reversed(table)]
    return [forwards + backwards for _ in range(request.pipeline)]


def bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Depth first, seconds; the same for every group size without latency. Shapes broadcast.

    Exact with the latency for groups of p (p divides m) while a hop is no longer than a chunk's pass,
    latency <= min(forward, backward)/v; a lower bound beyond (swept by playing the order).
    """
    return (p - 1) * (forward_s + backward_s) / v + 2 * np.where(p > 1, p * v - 1, 0) * latency_s + 0.0 * (m + weight_s)


def peak_in_flight(p: Any, rank: Any, m: Any, v: Any, group: Any = None) -> Any:
    """Depth first, chunk activations; exact. `group` None is p. Shapes broadcast."""
    return np.minimum(m * v, (v - 1) * (p if group is None else group) + 2 * (p - 1 - rank) + 1)


def breadth_first_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Breadth first, seconds; exact for every m and latency. Shapes broadcast.

    A chunk's turn takes the longer of its m passes and one micro-batch's way round all p ranks.
    """
    hop_s = np.where(p > 1, latency_s, 0.0)
    waits = sum(np.maximum(p * (t / v + hop_s) - m * t / v, 0.0) for t in (forward_s, backward_s))
    return (p - 1) * ((forward_s + backward_s) / v + 2 * hop_s) + (v - 1) * waits + 0.0 * weight_s


def breadth_first_peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Breadth first, chunk activations; exact. Shapes broadcast."""
    return m * v + 0 * (p + rank)


INTERLEAVED_1F1B = Schedule("interleaved-1f1b", "Interleaved 1F1B", "arXiv 2104.04473", order, bubble_s,
                            peak_in_flight, least_chunks=2, takes_group=True,
                            law="bubble (p - 1)(F + BW)/v + 2 (p v - 1) c; peak p + (p - 1)/v")
INTERLEAVED_BFS = Schedule("interleaved-bfs", "Looped BFS", "arXiv 2211.05953", breadth_first_order,
                           breadth_first_bubble_s, breadth_first_peak_in_flight, least_chunks=2,
                           law="bubble (p - 1)((F + BW)/v + 2 c); peak m")
