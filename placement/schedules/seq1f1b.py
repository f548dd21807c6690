"""Seq1F1B, 1F1B over parts of sequences (Sun et al. 2024, arXiv 2406.03488).

A sequence of a micro-batch goes through the pipeline in k segments. Attention is causal: the forward of a segment
needs the keys and values of those before it, the backward gives them gradients, so backwards of a micro-batch run in
reverse order. Both hold on a rank by the order of its passes alone. Rank r runs p - 2 - r + k forwards ahead; with
k = 1 this is 1F1B. Segments are cut so that their work is equal, not their tokens (`balanced_segments`).
Bubble law: (p - 1)(forward + backward)/k of a whole micro-batch. Memory law: rank r holds min(m k, p - 1 - r + k)
segments.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError


def order(request: Request) -> Orders:
    p, m, k = request.pipeline, request.micro_batches, request.segments
    if k < 1:
        raise ScheduleError(f"seq1f1b: segments must be at least 1 (got {k})")
    forwards = [Pass("F", 0, unit) for unit in range(m * k)]
    backwards = [Pass("B", 0, j * k + segment) for j in range(m) for segment in reversed(range(k))]
    result = []
    for rank in range(p):
        ahead = min(p - 2 - rank + k, m * k)
        steady = [one for pair in zip(forwards[ahead:], backwards, strict=False) for one in pair]
        result.append([*forwards[:ahead], *steady, *backwards[m * k - ahead:]])
    return result


def bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0,
    segments: Any = 2,
) -> Any:
    """Seconds, times of a whole micro-batch; exact for segments of equal time, every m and latency. Shapes broadcast.

    Latency is paid as 1F1B pays it with (m - 1) k + 1 micro-batches (found by sweeping the played order).
    """
    behind = (m - 1) * segments + p - 1
    paid = behind - behind // p
    return (p - 1) * (forward_s + backward_s) / segments + 2 * latency_s * paid + 0.0 * (v + weight_s)


def peak_in_flight(p: Any, rank: Any, m: Any, v: Any, segments: Any = 2) -> Any:
    """Segments, each a k-th of a micro-batch; exact. Shapes broadcast."""
    return np.minimum(m * segments, p - 1 - rank + segments) + 0 * v


def balanced_segments(sequence: int, segments: int, work: Callable[[float], float]) -> tuple[int, ...]:
    """Tokens of each segment such that their work is equal to within a token (arXiv 2406.03488, section 3.3).

    `work(n)` is the cumulated work of the first n tokens, which grows with n: for causal attention L n + A n^2/2 with
    L FLOPs a token and A a query-key pair. (The paper counts the pairs of a segment with itself in full; kernels skip
    the masked half.) Raises ScheduleError where there are more segments than tokens.
    """
    if not 1 <= segments <= sequence:
        raise ScheduleError(f"seq1f1b: {sequence} tokens cannot be cut into {segments} segments; 1 to {sequence} can")
    whole, cuts = work(sequence), [0]
    for segment in range(1, segments):
        target = whole * segment / segments
        above = bisect_left(range(sequence), target, key=work)
        nearest = above if work(above) - target <= target - work(max(above - 1, 0)) else above - 1
        cuts.append(min(max(nearest, cuts[-1] + 1), sequence - (segments - segment)))
    return tuple(int(size) for size in np.diff([*cuts, sequence]))


SEQ1F1B = Schedule("seq1f1b", "Seq1F1B", "arXiv 2406.03488", order, bubble_s, peak_in_flight, most_chunks=1,
                   takes_segments=True,
                   law="bubble (p - 1)(F + BW)/k without latency; peak (p - 1 + k)/k")
