"""GPipe: every forward, then every backward (Huang et al. 2019, arXiv 1811.06965).

Bubble law: (p - 1)(forward + backward) + 2 (p - 1) latency. Memory law: all m micro-batches on every rank.
"""

from __future__ import annotations

from typing import Any

from placement.schedules.order import Orders, Pass, Request, Schedule


def order(request: Request) -> Orders:
    passes = [Pass(kind, 0, j) for kind in "FB" for j in range(request.micro_batches)]
    return [list(passes) for _ in range(request.pipeline)]


def bubble_s(p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0) -> Any:
    """Seconds; exact. Shapes broadcast."""
    return (p - 1) * (forward_s + backward_s + 2 * latency_s) + 0.0 * (m * v + weight_s)


def peak_in_flight(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches; exact. Shapes broadcast."""
    return m + 0 * (p + rank + v)


GPIPE = Schedule("gpipe", "GPipe", "arXiv 1811.06965", order, bubble_s, peak_in_flight, most_chunks=1,
                 law="bubble (p - 1)(F + BW + 2 c); peak m")
