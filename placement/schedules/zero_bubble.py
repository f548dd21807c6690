"""ZB-H1 and ZB-H2, the hand-made zero-bubble orders (Qi et al. 2023, arXiv 2401.10241, section 2).

The backward pass is split: B for the input, which the stage before waits for, and W for the weight, which fills
gaps. *H1* keeps the 1F1B order of F and B; rank s runs one W behind each B from the (s + 1)-th on. *H2* runs
2 (p - 1 - s) forwards ahead, and W from the (2 s + 1)-th B on.
Bubble law: H1 (p - 1)(F + B - W); the *span* of H2 has (p - 1)(F + B - 2 W) (`h2_span_bubble_s`), its makespan
(p - 1) F + max more, since the ranks start one after another. Memory law, from F to W: H1 p micro-batches, H2 2 p - 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError


def split_order(micro_batches: int, warm_up: int, first_weight: int) -> list[Pass]:
    """`warm_up` forwards, then F and B in turn, with one W behind each B from the `first_weight`-th (from 0) on."""
    warm_up = min(warm_up, micro_batches)
    passes = [Pass("F", 0, j) for j in range(warm_up)]
    weights = 0
    for j in range(micro_batches):
        if warm_up + j < micro_batches:
            passes.append(Pass("F", 0, warm_up + j))
        passes.append(Pass("B", 0, j))
        if j >= first_weight:
            passes.append(Pass("W", 0, weights))
            weights += 1
    return passes + [Pass("W", 0, j) for j in range(weights, micro_batches)]


def h1_order(request: Request) -> Orders:
    p = request.pipeline
    return [split_order(request.micro_batches, p - 1 - rank, rank) for rank in range(p)]


def h2_order(request: Request) -> Orders:
    p, m = request.pipeline, request.micro_batches
    if m < 2 * p - 1:
        raise ScheduleError(f"zb-h2: rank 0 runs 2 p - 1 forwards before its first backward, so it needs at least "
                            f"2 x {p} - 1 = {2 * p - 1} micro-batches (got {m})")
    return [split_order(m, 2 * (p - 1 - rank), 2 * rank) for rank in range(p)]


def h1_peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches from F to W; exact. Shapes broadcast."""
    return np.minimum(m, p) + 0 * (rank + v)


def h2_peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches from F to W; exact. Shapes broadcast."""
    return np.minimum(m, 2 * p - 1) + 0 * (rank + v)


def h1_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Seconds; exact without latency for m >= p where W is no longer than B and F (arXiv 2401.10241, table 2); with
    m <= p the whole run takes (m + p - 1)(F + B) + W (appendix H). Shapes broadcast."""
    ramp_s = forward_s + backward_s - weight_s
    few = (m + p - 1) * ramp_s + weight_s - m * (forward_s + backward_s)
    return np.where(np.less(m, p), few, (p - 1) * (ramp_s - weight_s)) + 0.0 * (v + latency_s)


def h2_span_bubble_s(p: Any, forward_s: Any, backward_s: Any, weight_s: Any) -> Any:
    """Seconds of the longest span less its busy time; `backward_s` is with the weight's. Exact without latency where
    F + B >= 2 W (arXiv 2401.10241, table 2). Shapes broadcast."""
    return (p - 1) * (forward_s + backward_s - 3 * weight_s)


ZB_H1 = Schedule("zb-h1", "ZB-H1", "arXiv 2401.10241", h1_order, h1_bubble_s, h1_peak_in_flight,
                 splits_backward=True, most_chunks=1,
                 law="bubble (p - 1)(F + B - W) without latency; peak p")
ZB_H2 = Schedule("zb-h2", "ZB-H2", "arXiv 2401.10241", h2_order, None, h2_peak_in_flight,
                 splits_backward=True, most_chunks=1,
                 law="bubble of the span (p - 1)(F + B - 2 W); peak 2 p - 1")
