"""Vocabulary parallelism (Yeung et al. 2024, arXiv 2411.05288): the output layer is split over all ranks.

Every rank holds a share of the vocabulary and runs, for each micro-batch, S (logits and local softmax) and T (gradients
of its share). The last stage's output goes to all ranks before S. With two barriers (*Vocab-1*) all ranks meet behind S
and behind T, and the last stage's B waits for both; with one (*Vocab-2*) the input gradient is ready with S, so B waits
for S alone and T only for itself. On 1F1B an order is one period, repeated: its passes, and how many micro-batches each
lags behind F. The lags leave each meeting a part of a period, so that it hides behind passes.

Period: F + B + S + T of every rank, no bubble per micro-batch, without latency and whatever S and T take: on 1F1B where
B (with W) >= F, on V-Half where W + 2 B >= 2 F and W + 2 F >= 2 B, as V-Half itself. Interlaced periods hold the
broadcast and both meetings besides, and the ramps cost (p - 1)(F + B) as in 1F1B.
*On 1F1B.* S and T stand between F and the next B or behind B, so that they run on all ranks within one B of each other
(section 5). Memory law: rank r holds min(m, p - r + barriers) micro-batches, p + 2 and p + 1 on rank 0.
*On V-Half.* Backwards of V-Half's building block come one period later a barrier, the block is squeezed as V-Half is,
and all ranks stop for S and T at the same moments of it. Memory law: V-Half's 2 floor((p + 2)/2) chunk activations,
and 2 a barrier more.
*Interlaced* (nnScaler, the paper's baseline): all ranks run S and T at once and wait for both meetings. A period then
holds one F and one B whole, so that forwards go two ranks a period and backwards one: rank r holds
min(m, floor(3 (p - r)/2)) micro-batches, 1.5 p on rank 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from placement.schedules.building_block import (
    PERIOD,
    ROUNDING,
    TRIAL,
    block_words,
    lengthened,
    span_bubble_s,
    squeeze,
)
from placement.schedules.evaluate import evaluate
from placement.schedules.order import Orders, Pass, Request, Schedule, v_shaped
from placement.schedules.play import Floats
from placement.schedules.v_shape import V_HALF, v_half_peak, v_half_ticks


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
    """A short run, its period repeated where that makes the bubble no longer; else the whole run is squeezed."""
    p, m = request.pipeline, request.micro_batches
    schedule = V_HALF_VOCAB_1 if barriers == 2 else V_HALF_VOCAB_2
    trial = min(m, TRIAL * p)
    short = replace(request, micro_batches=trial)
    orders = _squeezed_v_half(short, barriers)
    if trial == m:
        return orders
    longer = lengthened(orders, m - trial)
    if longer is not None:
        bubbles_s = span_bubble_s(orders, short, schedule), span_bubble_s(longer, request, schedule)
        if bubbles_s[1] <= bubbles_s[0] * (1 + ROUNDING):
            return longer
    return _squeezed_v_half(request, barriers)


def _squeezed_v_half(request: Request, barriers: int) -> Orders:
    """V-Half's block with its backwards later, squeezed without the output layer, then cut where S and T go."""
    p, m = request.pipeline, request.micro_batches
    ticks = [(first, second, back_second + barriers * PERIOD, back_first + barriers * PERIOD)
             for first, second, back_second, back_first in v_half_ticks(p)]
    limit = float(min(2 * m, v_half_peak(p, 0, m, 2) + 2 * barriers))
    whole = replace(request, weight_share=1.0)
    orders = squeeze(block_words(ticks, m), whole, V_HALF, limit, early="F", early_tail="B")
    times = request.times
    played = evaluate(orders, V_HALF, times.forward_s, times.backward_s, times.weight_s, times.latency_s)
    stops = _stops(orders[0], played.start_s[0], played.end_s[0], request, barriers)
    return [_with_output(passes, start_s, stops) for passes, start_s in zip(orders, played.start_s, strict=True)]


def _stops(
    first: list[Pass], start_s: Floats, end_s: Floats, request: Request, barriers: int
) -> list[tuple[float, str, int]]:
    """(seconds, S or T, micro-batch), in order: the moments at which all ranks stop for a pass of the output layer.

    S half a period behind the last stage's forward, which rank 0 runs, so that the broadcast and the meeting have half
    of one each, and T a period later; sooner where the last stage's backward would wait.
    """
    place = {(one.kind, one.micro_batch): number for number, one in enumerate(first) if one.chunk == 1}
    times, stops = request.times, []
    half_s = times.forward_s + times.backward_s + times.weight_s
    for j in range(request.micro_batches):
        back_s = float(start_s[place["B", j]])
        logits_s = min(float(end_s[place["F", j]]) + half_s, back_s)
        later_s = logits_s + 2 * half_s
        stops += [(logits_s, "S", j), (min(later_s, back_s) if barriers == 2 else later_s, "T", j)]
    return sorted(stops)


def _with_output(passes: list[Pass], start_s: Floats, stops: list[tuple[float, str, int]]) -> list[Pass]:
    """S and T behind the passes that have started when all ranks stop for them."""
    result: list[Pass] = []
    done = 0
    for number, (_, kind, j) in zip(
        np.searchsorted(start_s, np.array([when for when, _, _ in stops]) - ROUNDING).tolist(), stops, strict=True
    ):
        result += [*passes[done:number], Pass(kind, 0, j)]
        done = number
    return result + passes[done:]


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


def _v_half(name: str, title: str, order: Any, peak: Any, barriers: int, law: str) -> Schedule:
    return Schedule(name, title, "arXiv 2411.05288 on arXiv 2405.15362", order, None, peak, stage_of=v_shaped,
                    splits_backward=True, least_chunks=2, most_chunks=2, barriers=barriers, law=law)


ONE_F_ONE_B_VOCAB_1 = Schedule("1f1b-vocab-1", "1F1B, split vocabulary, two barriers", "arXiv 2411.05288",
                               two_barriers_order, None, two_barriers_peak, most_chunks=1, barriers=2,
                               law="1F1B's bubble and two meetings; peak p + 2")
ONE_F_ONE_B_VOCAB_2 = Schedule("1f1b-vocab-2", "1F1B, split vocabulary, one barrier", "arXiv 2411.05288",
                               one_barrier_order, None, one_barrier_peak, most_chunks=1, barriers=1,
                               law="1F1B's bubble and one meeting; peak p + 1")
ONE_F_ONE_B_INTERLACED = Schedule("1f1b-interlaced", "1F1B, split vocabulary, all ranks at once",
                                  "nnScaler, in arXiv 2411.05288", interlaced_order, None, interlaced_peak,
                                  most_chunks=1, barriers=2,
                                  law="1F1B's bubble, two meetings a micro-batch; peak 1.5 p")
V_HALF_VOCAB_1 = _v_half("v-half-vocab-1", "V-Half, split vocabulary, two barriers", v_half_two_barriers_order,
                         v_half_two_barriers_peak, 2,
                         law="V-Half's bubble and two meetings; peak V-Half's + 2")
V_HALF_VOCAB_2 = _v_half("v-half-vocab-2", "V-Half, split vocabulary, one barrier", v_half_one_barrier_order,
                         v_half_one_barrier_peak, 1,
                         law="V-Half's bubble and one meeting; peak V-Half's + 1")
