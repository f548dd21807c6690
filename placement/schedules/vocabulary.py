"""Vocabulary parallelism (Yeung et al. 2024, arXiv 2411.05288): the output layer is split over all ranks.

Every rank holds a share of the vocabulary and runs, for each micro-batch, S (logits and local softmax) and T (gradients
of its share). The last stage's output goes to all ranks before S. With two barriers (*Vocab-1*) all ranks meet behind S
and behind T, and the last stage's B waits for both; with one (*Vocab-2*) the input gradient is ready with S, so B waits
for S alone and T only for itself. Every order here is one period, repeated: its passes, and how many micro-batches each
lags behind F. The lags leave each meeting a part of a period, so that it hides behind passes.

Period: F + B + S + T of every rank, no bubble per micro-batch, without latency where B (with W) >= F; on V-Half where
F = B = W, else nearly. S and T may take any time. Interlaced periods hold the broadcast and both meetings besides, and
the ramps cost (p - 1)(F + B) as in 1F1B.
*On 1F1B.* S and T stand between F and the next B or behind B, so that they run on all ranks within one B of each other
(section 5). Memory law: rank r holds min(m, p - r + barriers) micro-batches, p + 2 and p + 1 on rank 0.
*On V-Half.* S and T of all ranks stand at the same tick of V-Half's building block, its backwards one period later a
barrier. Memory law: at most V-Half's 2 floor((p + 2)/2) chunk activations and 2 a barrier more.
*Interlaced* (nnScaler, the paper's baseline): all ranks run S and T at once and wait for both meetings. A period then
holds one F and one B whole, so that forwards go two ranks a period and backwards one: rank r holds
min(m, floor(3 (p - r)/2)) micro-batches, 1.5 p on rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule, v_shaped
from placement.schedules.v_shape import v_half_peak, v_half_ticks

TICKS = 6  # of V-Half's period: F, B and W of two chunks
MIDDLE = 3  # ticks from the last forward to S: half a period for the broadcast, half for the meeting


class Repeated(NamedTuple):
    """A pass that runs once a period: in period n for micro-batch n - lag."""

    kind: str
    chunk: int
    lag: int


def repeated(period: Sequence[Repeated], micro_batches: int) -> list[Pass]:
    """Period after period, without the passes of micro-batches that do not exist."""
    lags = [one.lag for one in period]
    return [
        Pass(kind, chunk, n - lag)
        for n in range(min(lags), micro_batches + max(lags))
        for kind, chunk, lag in period
        if 0 <= n - lag < micro_batches
    ]


class Place(NamedTuple):
    """Where S and T stand on a rank: behind F, or behind F and B; and how many micro-batches S lags behind F."""

    behind_backward: bool
    lag: int


def places(pipeline: int, forward_s: float, backward_s: float, latency_s: float) -> list[Place]:
    """Places of S and T on every rank such that all run within one backward pass of each other.

    From the last rank up, F (and with it S and T) starts a forward and a hop earlier than on the rank below. Where that
    would be too early for the last stage's output, S and T stay when the rank below runs them, which is before B there,
    and the next rank runs them behind B again. Exact for backward >= forward.
    """
    backward_s = max(backward_s, forward_s)
    found, earlier_s = [Place(True, 0)], 0.0
    while len(found) < pipeline:
        if earlier_s + forward_s + latency_s < backward_s - latency_s:
            earlier_s += forward_s + latency_s
            found.append(Place(True, found[-1].lag))
        else:
            lag = found[-1].lag + 1
            found += [Place(False, lag), Place(True, lag)]
            earlier_s -= backward_s - forward_s
    return found[:pipeline][::-1]


def _on_one_f_one_b(request: Request, barriers: int) -> Orders:
    p, times = request.pipeline, request.times
    orders = []
    for rank, place in enumerate(places(p, times.forward_s, times.backward_s + times.weight_s, times.latency_s)):
        forward, backward = Repeated("F", 0, 0), Repeated("B", 0, p - 1 - rank + barriers)
        output = [Repeated("S", 0, place.lag), Repeated("T", 0, place.lag + 1)]
        period = [forward, backward, *output] if place.behind_backward else [forward, *output, backward]
        orders.append(repeated(period, request.micro_batches))
    return orders


def two_barriers_order(request: Request) -> Orders:
    return _on_one_f_one_b(request, 2)


def one_barrier_order(request: Request) -> Orders:
    return _on_one_f_one_b(request, 1)


def interlaced_order(request: Request) -> Orders:
    orders = []
    for rank in range(request.pipeline):
        behind = request.pipeline - 1 - rank
        forward = Repeated("F", 0, -(behind // 2))
        backward = Repeated("B", 0, behind + 1)
        output = [Repeated("S", 0, 0), Repeated("T", 0, 0)]
        passes = [forward, backward] if behind % 2 else [backward, forward]
        orders.append(repeated([*passes, *output], request.micro_batches))
    return orders


def _on_v_half(request: Request, barriers: int) -> Orders:
    p = request.pipeline
    output = v_half_ticks(p)[0][1] + 1 + MIDDLE - 0.5  # between two ticks, the same on all ranks
    orders = []
    for first, second, back_second, back_first in v_half_ticks(p):
        ticks: dict[tuple[str, int], float] = {
            ("F", 0): first, ("F", 1): second,
            ("B", 1): back_second + barriers * TICKS, ("B", 0): back_first + barriers * TICKS}
        for chunk in (1, 0):
            taken = {tick % TICKS for tick in ticks.values()}
            behind = int(ticks["B", chunk]) + 1
            ticks["W", chunk] = next(t for t in range(behind, behind + TICKS) if t % TICKS not in taken)
        ticks["S", 0], ticks["T", 0] = output, output + TICKS + 0.25
        starts = [(tick + TICKS * j, kind, chunk, j)
                  for (kind, chunk), tick in ticks.items() for j in range(request.micro_batches)]
        orders.append([Pass(kind, chunk, j) for _, kind, chunk, j in sorted(starts)])
    return orders


def v_half_two_barriers_order(request: Request) -> Orders:
    return _on_v_half(request, 2)


def v_half_one_barrier_order(request: Request) -> Orders:
    return _on_v_half(request, 1)


def two_barriers_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches; exact. Shapes broadcast."""
    return np.minimum(m, p - rank + 2) + 0 * v


def one_barrier_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches; exact. Shapes broadcast."""
    return np.minimum(m, p - rank + 1) + 0 * v


def interlaced_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Micro-batches; exact. Shapes broadcast."""
    return np.minimum(m, 3 * (p - rank) // 2) + 0 * v


def v_half_two_barriers_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations that a rank may hold. Shapes broadcast."""
    return np.minimum(2 * m, v_half_peak(p, rank, m, v) + 4)


def v_half_one_barrier_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations that a rank may hold. Shapes broadcast."""
    return np.minimum(2 * m, v_half_peak(p, rank, m, v) + 2)


def _v_half(name: str, title: str, order: Any, peak: Any, barriers: int) -> Schedule:
    return Schedule(name, title, "arXiv 2411.05288 on arXiv 2405.15362", order, None, peak, stage_of=v_shaped,
                    splits_backward=True, least_chunks=2, most_chunks=2, barriers=barriers)


ONE_F_ONE_B_VOCAB_1 = Schedule("1f1b-vocab-1", "1F1B, split vocabulary, two barriers", "arXiv 2411.05288",
                               two_barriers_order, None, two_barriers_peak, most_chunks=1, barriers=2)
ONE_F_ONE_B_VOCAB_2 = Schedule("1f1b-vocab-2", "1F1B, split vocabulary, one barrier", "arXiv 2411.05288",
                               one_barrier_order, None, one_barrier_peak, most_chunks=1, barriers=1)
ONE_F_ONE_B_INTERLACED = Schedule("1f1b-interlaced", "1F1B, split vocabulary, all ranks at once",
                                  "nnScaler, in arXiv 2411.05288", interlaced_order, None, interlaced_peak,
                                  most_chunks=1, barriers=2)
V_HALF_VOCAB_1 = _v_half("v-half-vocab-1", "V-Half, split vocabulary, two barriers", v_half_two_barriers_order,
                         v_half_two_barriers_peak, 2)
V_HALF_VOCAB_2 = _v_half("v-half-vocab-2", "V-Half, split vocabulary, one barrier", v_half_one_barrier_order,
                         v_half_one_barrier_peak, 1)
