"""1F1B, one forward then one backward in turn (PipeDream-flush, arXiv 2006.09503; DAPPLE, arXiv 2007.01045),
and eager 1F1B, which runs twice as many forwards ahead.

Bubble law: (p - 1)(forward + backward), and with a latency c that nothing hides, 1F1B pays it in its steady
state too (a period is forward + backward + 2 c (p - 1)/p), eager 1F1B only in its ramps.
Memory law: rank r holds min(m, p - r) micro-batches, eager min(m, 2 (p - 1 - r) + 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule


def one_f_one_b(micro_batches: int, warm_up: int) -> list[Pass]:
    """`warm_up` forwards, then forward and backward in turn, then the backwards that are left."""
    warm_up = min(warm_up, micro_batches)
    passes = [Pass("F", 0, j) for j in range(warm_up)]
    for j in range(micro_batches - warm_up):
        passes += [Pass("F", 0, warm_up + j), Pass("B", 0, j)]
    return passes + [Pass("B", 0, j) for j in range(micro_batches - warm_up, micro_batches)]


def order(request: Request) -> Orders:
    p, m = request.pipeline, request.micro_batches
    return [one_f_one_b(m, p - 1 - rank) for rank in range(p)]


def eager_order(request: Request) -> Orders:
    p, m = request.pipeline, request.micro_batches
    return [one_f_one_b(m, 2 * (p - 1 - rank)) for rank in range(p)]


def bubble_s(p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0) -> Any:
    """Seconds; exact for every m and latency. Shapes broadcast.

    The latency is paid 2 (m + p - 2 - floor((m + p - 2)/p)) times, which is 2 ((p - 1) m/p + p - 2) where p
    divides m (found by sweeping the played order; the tests repeat the sweep).
    """
    paid = m + p - 2 - (m + p - 2) // p
    return (p - 1) * (forward_s + backward_s) + 2 * latency_s * paid + 0.0 * (v + weight_s)


def eager_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Seconds; exact while 2 latency <= forward + backward, a lower bound beyond. Shapes broadcast."""
    return (p - 1) * (forward_s + backward_s + 2 * latency_s) + 0.0 * (m * v + weight_s)


def peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches; exact. Shapes broadcast."""
    return np.minimum(m, p - rank) + 0 * v


def eager_peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches; exact. Shapes broadcast."""
    return np.minimum(m, 2 * (p - 1 - rank) + 1) + 0 * v


ONE_F_ONE_B = Schedule("1f1b", "1F1B", "arXiv 2006.09503, arXiv 2007.01045", order, bubble_s, peak_in_flight,
                       most_chunks=1,
                       law="bubble (p - 1)(F + BW) + 2 c ((p - 1) m/p + p - 2); peak p")
EAGER_ONE_F_ONE_B = Schedule("eager-1f1b", "Eager 1F1B", "1F1B with 2 (p - 1 - rank) warm-up forwards",
                             eager_order, eager_bubble_s, eager_peak_in_flight, most_chunks=1,
                             law="bubble (p - 1)(F + BW + 2 c); peak 2 p - 1")
