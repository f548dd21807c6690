"""DualPipe and DualPipeV (deepseek-ai/DualPipe, orders of `step()`; DeepSeek-V3, arXiv 2412.19437, section 3.2.1).

*DualPipe* sends half of the micro-batches each way through two copies of the model, *DualPipeV* cuts one copy into
2 p chunks laid out as a V. A forward and a whole backward of the other direction (chunk) run interleaved in one slot,
so that each hides the other's communication; what a slot makes leaves at its end, as in the code (a copy of the
schedule with `early` lets each result leave when its pass ends). Some backwards at the ends are for the input only,
their W comes later.

Bubble law: with n = p/2 - 1 (DualPipe) or p - 1 (DualPipeV) and times of a chunk, B for the input alone,
max(n (2 F + B - W), n (F + 2 B - W) - F): found by sweeping the played order, exact for W <= B whatever m and F are.
The README's n (F&B + B - 3 W), with B the whole backward, is n (F + 2 B - W) (`readme_bubble_s`): it is exact where
F = B only, too high by up to F where B is longer and too low where F is.
Memory law, chunk activations from F to W: p + 1 (DualPipe), 2 p + 1 (DualPipeV).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError, mirrored, v_shaped


def slots(place: int, half: int, pairs: int) -> list[str]:
    """The slots of the rank `place` steps from where its first direction enters, of `half` steps to the turn.

    Of the letters, F0 is a forward of the first direction (chunk), B1 a whole backward of the second, I a backward for
    the input only, W the oldest weight gradient that is left. `pairs` is how often the main step runs.
    """
    ahead = half - place - 1
    main = ["F0&B1", "F1&B0"] * pairs
    if ahead == 0:  # at the turn the first pair does not overlap, which makes the bubble smaller
        main = ["F0", "B1", *main[1:]]
    ends = ["B1", "B0"] * (place + 1)
    whole = place + 1  # the second half of these backwards is for the input only
    return [
        *["F0"] * (2 * ahead),
        *["F0", "F1"] * (place + 1),
        *["I1", "W", "F1"] * ahead,
        *main,
        *["B1", "F1&B0"] * ahead,
        *ends[:whole], *[one.replace("B", "I") for one in ends[whole:]],
        *["W", "I0"] * ahead,
        *["W"] * (place + 1),
    ]


def passes(of_slots: list[str], chunks: tuple[int, int]) -> list[Pass]:
    """The passes of a rank with their micro-batches; `chunks` are those of its first and second direction."""
    done = {(letter, direction): 0 for letter in "FB" for direction in "01"}
    waiting: deque[Pass] = deque()
    result = []
    for slot in of_slots:
        if slot == "W":
            result.append(waiting.popleft())
            continue
        for place, part in enumerate(slot.split("&")):
            kind, direction = part[0].replace("I", "B"), part[1]
            chunk, number = chunks[int(direction)], done[kind, direction]
            done[kind, direction] += 1
            result.append(Pass(kind, chunk, number, joined=place > 0))
            if part[0] == "B":
                result.append(Pass("W", chunk, number, joined=True))
            elif part[0] == "I":
                waiting.append(Pass("W", chunk, number))
    return result


def dual_pipe_order(request: Request) -> Orders:
    p, m = request.pipeline, request.micro_batches
    if p % 2:
        raise ScheduleError(f"dualpipe: ranks meet in pairs, one from each end, so pipeline must be even (got {p}; "
                            f"{p + 1} would do)")
    if m % 2 or m < 2 * p:
        least = max(2 * p, m + m % 2)
        raise ScheduleError(f"dualpipe: half of the micro-batches enter at each end, and rank 0 runs {p - 1} forwards "
                            f"of its own before the first forward and backward meet, so it needs an even number of "
                            f"at least 2 x {p} (got {m}; {least} would do)")
    result = []
    for rank in range(p):
        place = min(rank, p - 1 - rank)
        chunks = (0, 1) if rank == place else (1, 0)
        result.append(passes(slots(place, p // 2, m // 2 - p + place + 1), chunks))
    return result


def dual_pipe_v_order(request: Request) -> Orders:
    p, m = request.pipeline, request.micro_batches
    if m < 2 * p:
        raise ScheduleError(f"dualpipe-v: rank 0 runs {2 * p - 1} forwards of its first chunk before the first forward "
                            f"and backward meet, so it needs at least 2 x {p} = {2 * p} micro-batches (got {m})")
    return [passes(slots(rank, p, m - 2 * p + rank + 1), (0, 1)) for rank in range(p)]


def readme_bubble_s(stages: Any, forward_s: Any, backward_s: Any, weight_s: Any) -> Any:
    """Seconds, of chunk passes; `backward_s` is with the weight's, `stages` 2 p for DualPipeV. Exact for F = B >= W
    (deepseek-ai/DualPipe, README). Shapes broadcast."""
    return (stages / 2 - 1) * (forward_s + 2 * backward_s - 3 * weight_s)


def _bubble_s(turn: Any, forward_s: Any, backward_s: Any, weight_s: Any) -> Any:
    """Seconds, of chunk passes with `turn` steps to the turn; exact for W <= B, a lower bound beyond."""
    readme_s = readme_bubble_s(2 * turn + 2, forward_s, backward_s, weight_s)
    return np.maximum(turn * (2 * forward_s + backward_s - 2 * weight_s), readme_s - forward_s)


def dual_pipe_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Seconds, times of one micro-batch on a rank, which is one of its two chunks; exact without latency where W is no
    longer than B for the input, a lower bound beyond. Shapes broadcast."""
    return _bubble_s(p / 2 - 1, forward_s, backward_s, weight_s) + 0.0 * (m * v + latency_s)


def dual_pipe_v_bubble_s(
    p: Any, m: Any, v: Any, forward_s: Any, backward_s: Any, latency_s: Any = 0.0, weight_s: Any = 0.0
) -> Any:
    """Seconds, times of one micro-batch over both chunks of a rank; exact without latency where W is no longer than B
    for the input, a lower bound beyond. Shapes broadcast."""
    return _bubble_s(p - 1, forward_s / 2, backward_s / 2, weight_s / 2) + 0.0 * (m * v + latency_s)


def dual_pipe_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations; exact. Shapes broadcast."""
    return p + 1 + 0 * (rank + m + v)


def dual_pipe_v_peak(p: Any, rank: Any, m: Any, v: Any) -> Any:
    """Chunk activations; exact. Shapes broadcast."""
    return 2 * p + 1 + 0 * (rank + m + v)


SOURCE = "deepseek-ai/DualPipe, arXiv 2412.19437"
DUAL_PIPE = Schedule("dualpipe", "DualPipe", SOURCE, dual_pipe_order, dual_pipe_bubble_s, dual_pipe_peak,
                     mirrored, splits_backward=True, least_chunks=2, most_chunks=2, routes=2,
                     law="bubble max(n (2 F + B - W), n (F + 2 B - W) - F), n = p/2 - 1; peak p + 1")
DUAL_PIPE_V = Schedule("dualpipe-v", "DualPipeV", SOURCE, dual_pipe_v_order, dual_pipe_v_bubble_s, dual_pipe_v_peak,
                       v_shaped, splits_backward=True, least_chunks=2, most_chunks=2,
                       law="bubble half of DualPipe's with n = p - 1; peak p + 1/2")
