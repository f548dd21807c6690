"""Activations on the host as copies beside the passes (PipeOffload; Wan et al. 2025, arXiv 2503.01328).

The first chunks of a rank live longest, so they leave for the host behind their forward (O) and come back before their
backward (L). Copies of a rank take turns on one stream, out and back, each at the host link's bandwidth of one
direction. Ranks in pairs behind one switch then use both directions in turn (section 4.3), so that what a pair shares
is counted once and nothing more is lost to sharing.
L is issued with the backward pass a round before its own, and a round before the next L; a round is as many turns (of
F, B and W) as one copied chunk has on average, v/x where x of v chunks go. A chunk that would be back within three
rounds stays, as in sail-sg/zero-bubble-pipeline-parallelism.
Time law: copies are free while k = (O + L)/(turns of a round) <= 1; beyond, each turn takes k times as long.
Memory law: chunks that stay as in the schedule below, and of each kind of copied chunk only what is being made, copied
or used, a number that does not grow with ranks or micro-batches while k <= 1.
*PO-H* copies half of the chunks of uniform repeating (rounded up), *PO-F* all.
"""

from __future__ import annotations

import math
from itertools import groupby

from placement.schedules.grouped import uniform_order
from placement.schedules.order import COPIES, Orders, Pass, Request, Schedule, ScheduleError

STAY_ROUNDS = 3
EARLIEST_ROUNDS = 2  # before its backward that a chunk comes back; else what queues at the end is held from the start


def with_offload(orders: Orders, chunks: int) -> Orders:
    """`orders` with copies out and back of the first `chunks` chunks of every rank.

    Raises ScheduleError for a number of chunks that the ranks do not hold, and for orders that have copies already.
    """
    held = 1 + max(one.chunk for order in orders for one in order)
    if not 0 <= chunks <= held:
        raise ScheduleError(f"offload: {chunks} chunks cannot be copied to the host, a rank holds {held}; 0 to {held} "
                            f"can")
    if any(one.kind in COPIES for order in orders for one in order):
        raise ScheduleError("offload: the order has copies to the host already")
    return [_with_offload(order, chunks, held / chunks) for order in orders] if chunks else orders


def _with_offload(order: list[Pass], chunks: int, round_turns: float) -> list[Pass]:
    """Copies stand between the slots of `order`, of passes joined or alone."""
    backwards = [(one.chunk, one.micro_batch) for one in order if one.kind == "B"]
    turn = {key: number for number, key in enumerate(backwards)}
    away = _leaving(order, turn, chunks, STAY_ROUNDS * round_turns)
    back: dict[int, list[tuple[int, int]]] = {}  # turn -> what returns with its backward
    issue = float(len(backwards))
    for key in reversed(backwards):
        if key in away:
            issue = max(min(turn[key], issue) - round_turns, turn[key] - EARLIEST_ROUNDS * round_turns)
            back.setdefault(max(math.floor(issue), 0), []).insert(0, key)
    result = []
    for slot in _slots(order):
        turns = [turn[one.chunk, one.micro_batch] for one in slot if one.kind == "B"]
        result += [Pass("L", *key) for number in turns for key in back.get(number, [])]
        result += slot
        result += [Pass("O", one.chunk, one.micro_batch) for one in slot
                   if one.kind == "F" and (one.chunk, one.micro_batch) in away]
    return result


def _leaving(
    order: list[Pass], turn: dict[tuple[int, int], int], chunks: int, least_turns: float
) -> set[tuple[int, int]]:
    """(chunk, micro-batch) of the first `chunks` chunks whose backward is `least_turns` or more away."""
    found, done = set(), 0
    for one in order:
        key = (one.chunk, one.micro_batch)
        if one.kind == "F" and one.chunk < chunks and turn[key] - done >= least_turns:
            found.add(key)
        done += one.kind == "B"
    return found


def _slots(order: list[Pass]) -> list[list[Pass]]:
    number, numbers = 0, []
    for one in order:
        number += not one.joined
        numbers.append(number)
    return [[one for one, _ in slot] for _, slot in groupby(zip(order, numbers, strict=True), key=lambda pair: pair[1])]


def half_order(request: Request) -> Orders:
    return with_offload(uniform_order(request), -(-request.chunks // 2))


def full_order(request: Request) -> Orders:
    return with_offload(uniform_order(request), request.chunks)


PO_H = Schedule("po-h", "PipeOffload, half of the chunks", "arXiv 2503.01328", half_order, splits_backward=True,
                least_chunks=2,
                law="uniform repeating's time while copies keep up; peak of the chunks that stay")
PO_F = Schedule("po-f", "PipeOffload, all chunks", "arXiv 2503.01328", full_order, splits_backward=True,
                least_chunks=2,
                law="uniform repeating's time while copies keep up; peak that does not grow with p or m")
