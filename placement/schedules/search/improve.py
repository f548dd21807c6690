"""A better order from a good one: passes moved a few places at a time while the step gets no longer.

Late acceptance hill climbing (Burke and Bykov 2017, EJOR 258): a move is kept where the new length is no longer than
the present one or than the one that held a fixed number of moves ago. It needs no temperature, only compares and adds,
so compiled and plain Python give the same bits. The number of moves follows from the number of passes and a fixed
budget of work, never from a clock. (Against a tabu search along critical paths, on V-shaped orders of eight ranks at
unequal times: as long or up to 4 % shorter steps in a fifth of the time, compiled.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.schedules.layout import durations, layout
from placement.schedules.play import call, compiles
from placement.schedules.search.problem import ROUNDING, Problem, Words, orders_of, schedule_of

WORK = 240_000_000  # passes played at the most, under a second compiled, since most moves are given up early
MOST_MOVES = 200_000
LEAST_MOVES = 20_000  # below, a search finds little: the order stays as it is
KEPT = 0.2  # of a rank's passes around its middle, where a run is to be lengthened there
FARTHEST = 6  # places that a pass moves at once
MEMORY = 100  # moves ago; from 50 to 200 the V-shaped orders of eight ranks come out alike, beyond worse


def improved(
    words: Words, problem: Problem, target_s: float, work: int = WORK, kept: float = 0.0, seed: int = 1,
    compiled: bool | None = None,
) -> Words:
    """The best order found from `words`, never worse; stops at `target_s` or when `work` passes may have been played.

    `kept`: the share of each rank's passes, around its middle, that stay in place, for orders that are to be
    lengthened there. `compiled` None takes numba where it is installed. Words too long for the work come back as they
    are.
    """
    passes = sum(len(word) for word in words)
    moves = min(MOST_MOVES, work // passes)
    if moves < LEAST_MOVES:
        return words
    found = layout(orders_of(words, problem), schedule_of(problem, "improved", ""))
    share = problem.weight_share
    seconds = dict(zip("FBW", (np.array(of_kind) for of_kind in problem.times), strict=True))
    change = durations(found, {"F": 1.0, "B": share - 1.0, "W": -share})
    group = (found.kind * len(found.rank_of_node) + found.node).astype(np.int64)
    inputs = (
        found.offsets, found.dependency_offsets, found.dependency_task, found.hop * float(problem.latency_s),
        durations(found, dict(seconds)), change, group, np.array(problem.limit) + ROUNDING,
        np.array([target_s * (1 + ROUNDING), kept]),
        np.array([moves, seed, FARTHEST, MEMORY, problem.objective == "span"], dtype=np.int64),
    )
    flat = np.arange(passes, dtype=np.int64)
    (best, _), _ = call(_climb, inputs, (flat, flat.copy()), compiles() if compiled is None else compiled)
    codes = [code for word in words for code in word]
    moved = iter(best.tolist())
    return [[codes[next(moved)] for _ in word] for word in words]


def _climb(
    offsets: Any, waits_at: Any, waits_for: Any, lag_s: Any, duration_s: Any, change: Any, group: Any, limit: Any,
    target: Any, settings: Any, best: Any, order: Any,
) -> int:
    """Fills `best` with the places of the passes in the best order found. One function, since a compiled one can only
    call others that are compiled; `settings` are moves, seed, farthest, memory and 1 for the
    longest span, 0 for the makespan; `target` a length that is good enough and the share kept."""
    moves, state, farthest, memory, by_span = settings[0], settings[1], settings[2], settings[3], settings[4]
    ranks, count, target_s, kept = len(offsets) - 1, len(order), target[0], target[1]
    start_s, end_s = [0.0] * count, [0.0] * count
    new_start_s, new_end_s = [0.0] * count, [0.0] * count
    played = [-1] * count  # the move that last played a pass
    held, elapsed_s = [0.0] * count, [0.0] * count  # after each place of a rank, as the order stands
    rank_of, busy_s = [0] * count, [0.0] * ranks
    head, clock_s, done_s = [0] * ranks, [0.0] * ranks, [0.0] * ranks
    first_s = [0.0] * ranks
    for rank in range(ranks):
        total, sum_s = 0.0, 0.0
        for place in range(offsets[rank], offsets[rank + 1]):
            total += change[order[place]]
            sum_s += duration_s[order[place]]
            held[place], elapsed_s[place], rank_of[place] = total, sum_s, rank
        busy_s[rank] = sum_s
    present_s = best_s = 1e300
    ago_s = [1e300] * memory
    for move in range(moves + 1):
        i = j = 0
        rank = 0
        from_s = -1.0
        fine = True
        if move > 0:  # another place for one pass
            state = (state * 16807) % 2147483647
            i = state % count
            rank = rank_of[i]
            state = (state * 16807) % 2147483647
            j = i + 1 + state % farthest if state % (2 * farthest) < farthest else i - 1 - state % farthest
            if j < offsets[rank] or j >= offsets[rank + 1]:
                continue
            ends = offsets[rank] + offsets[rank + 1]  # twice the middle place
            reach = kept * (offsets[rank + 1] - offsets[rank])
            if min(i, j) * 2 < ends + reach and max(i, j) * 2 > ends - reach:
                continue
            one = order[i]
            step = 1 if j > i else -1
            place = i
            while fine and place != j:
                place += step
                other = order[place]
                fine = group[other] != group[one]
                later, earlier = (one, other) if step < 0 else (other, one)
                for edge in range(waits_at[later], waits_at[later + 1]):
                    fine = fine and waits_for[edge] != earlier
                if step < 0:
                    before = held[place - 1] if place > offsets[rank] else 0.0
                    fine = fine and before + change[one] <= limit[rank] and held[place] + change[one] <= limit[rank]
                else:
                    fine = fine and held[place] - change[one] <= limit[rank]
            if not fine:
                continue
            from_s = start_s[order[min(i, j)]]
            place = i
            while place != j:
                order[place] = order[place + step]
                place += step
            order[j] = one
        threshold_s = max(present_s, ago_s[move % memory]) * (1 + 1e-12)
        left = 0
        for r in range(ranks):  # what starts before the first pass that moved stays as it was
            low, high = offsets[r], offsets[r + 1]
            if r == rank and move > 0:
                low = high = min(i, j)
            while low < high:
                middle = (low + high) // 2
                if start_s[order[middle]] < from_s:
                    low = middle + 1
                else:
                    high = middle
            head[r] = low
            left += offsets[r + 1] - low
            clock_s[r] = end_s[order[low - 1]] if low > offsets[r] else 0.0
            done_s[r] = elapsed_s[low - 1] if low > offsets[r] else 0.0
            first_s[r] = start_s[order[offsets[r]]] * by_span
            for place in range(low, offsets[r + 1]):
                played[order[place]] = -2 - move
        length_s = 0.0
        while fine and left > 0:
            went_on = False
            for r in range(ranks):
                while fine and head[r] < offsets[r + 1]:
                    task = order[head[r]]
                    begin_s = clock_s[r]
                    ready = True
                    for edge in range(waits_at[task], waits_at[task + 1]):
                        source = waits_for[edge]
                        if played[source] == -2 - move:
                            ready = False
                            break
                        source_s = (new_end_s[source] if played[source] == move else end_s[source]) + lag_s[edge]
                        begin_s = max(begin_s, source_s)
                    if not ready:
                        break
                    if head[r] == offsets[r]:
                        first_s[r] = begin_s * by_span
                    new_start_s[task] = begin_s
                    clock_s[r] = begin_s + duration_s[task]
                    new_end_s[task] = clock_s[r]
                    played[task] = move
                    done_s[r] += duration_s[task]
                    head[r] += 1
                    left -= 1
                    went_on = True
                    fine = clock_s[r] - first_s[r] + busy_s[r] - done_s[r] <= threshold_s
            fine = fine and went_on
        if fine:
            for r in range(ranks):
                length_s = max(length_s, clock_s[r] - first_s[r])
            fine = length_s <= threshold_s
        if fine:
            for task in range(count):
                if played[task] == move:
                    start_s[task], end_s[task] = new_start_s[task], new_end_s[task]
            for place in range(min(i, j), max(i, j) + 1):
                before = place > offsets[rank]
                held[place] = (held[place - 1] if before else 0.0) + change[order[place]]
                elapsed_s[place] = (elapsed_s[place - 1] if before else 0.0) + duration_s[order[place]]
            present_s = length_s
            if length_s < best_s:
                best_s = length_s
                for place in range(count):
                    best[place] = order[place]
                if best_s <= target_s:
                    break
        elif move > 0:
            one, place = order[j], j
            step = 1 if j > i else -1
            while place != i:
                order[place] = order[place - step]
                place -= step
            order[i] = one
        if move == 0:
            for place in range(memory):
                ago_s[place] = present_s
        ago_s[move % memory] = present_s
    return int(moves)
