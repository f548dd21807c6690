"""Recomputation as passes: chunks that kept their input only run forward once more (R) before their backward.

Full recomputation does so for every chunk, chunk recomputation (sail-sg/zero-bubble-pipeline-parallelism) for the first
ones of each rank, which hold their activations longest. An R stands directly before its B and waits for no other rank,
so that it fills waiting time where there is some.
Law: R adds m forward passes of its chunks to a rank's busy time, and the bubble stays the schedule's own `bubble_s`:
exact without latency for 1F1B, eager 1F1B, GPipe and interleaved BFS, and for interleaved 1F1B where all chunks are
recomputed. A recomputation inside B makes it (p - 1)(2 forward + backward) instead.
Memory law: a rank holds the inputs of what is in flight, and one chunk's activations where R and B stand together.
"""

from __future__ import annotations

from placement.schedules.order import Orders, Pass, ScheduleError


def with_recompute(orders: Orders, chunks: int) -> Orders:
    """`orders` with an R directly before the B of the first `chunks` chunks of each rank.

    Where the B stands inside a slot of joined passes, its R runs before the slot. Raises ScheduleError for a number of
    chunks that the ranks do not hold, and for orders that copy activations to the host or recompute already.
    """
    held = 1 + max(one.chunk for order in orders for one in order)
    if not 0 <= chunks <= held:
        raise ScheduleError(f"recompute: {chunks} chunks cannot be recomputed, a rank holds {held}; 0 to {held} can")
    taken = {one.kind for order in orders for one in order} & set("ROL")
    if taken:
        raise ScheduleError(f"recompute: the order has passes {', '.join(sorted(taken))} already; chunks that leave "
                            f"for the host or are recomputed cannot be recomputed again")
    return [_with_recompute(order, chunks) for order in orders]


def _with_recompute(order: list[Pass], chunks: int) -> list[Pass]:
    result: list[Pass] = []
    opens = 0  # where the slot of the pass begins in `result`
    for one in order:
        if not one.joined:
            opens = len(result)
        if one.kind == "B" and one.chunk < chunks:
            result.insert(opens, Pass("R", one.chunk, one.micro_batch))
            opens += 1
        result.append(one)
    return result
