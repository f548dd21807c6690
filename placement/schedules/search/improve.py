"""A better order from a good one: passes moved along the critical path, with a memory of the orders seen.

The longest span (or the makespan) is a chain of passes, each of which started when the one before it ended. It gets
shorter only if a pass leaves a run of passes on one rank: a pass of the run goes behind its end or before its start, or
its first or last two change places (the neighbourhood N6 of job-shop search; Balas and Vazacopoulos 1998, Management
Science 44). The best neighbour not seen before is taken, better or not; orders of equal cost are told apart by the
sum of the ranks' ends. Work is counted in passes played, never by a clock, so results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.schedules.play import call
from placement.schedules.search.problem import ROUNDING, Problem, Words, peaks

WORK = 4_000_000  # passes played at the most, a few seconds in plain Python
SHIFTS = 6  # passes next to either end of a run that may leave it
PATIENCE = 60  # steps without a better order until the search goes back to the best one
Score = tuple[float, float]


class Player:
    """Plays words of codes as early as possible; the arrays that never change are made once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        stages, ranks = problem.stages, problem.rank_of_stage
        hops = [problem.hop_s(stage) for stage in range(stages - 1)]
        source, lag_s, own = [-1] * (3 * stages), [0.0] * (3 * stages), [-1] * (3 * stages)
        for stage in range(stages):
            forward, backward, weight = stage, stages + stage, 2 * stages + stage
            if stage > 0:
                source[forward], lag_s[forward] = forward - 1, hops[stage - 1]
            if stage < stages - 1:
                source[backward], lag_s[backward] = backward + 1, hops[stage]
            own[backward], own[weight] = forward, backward
        self.source, self.own = (np.array(column, dtype=np.int64) for column in (source, own))
        self.lag_s = np.array(lag_s)
        self.duration_s = np.array([time for of_kind in problem.times for time in of_kind])
        v = problem.chunks
        self.node_of = [[code // v * stages + problem.stage_of_rank[rank][code % v] for code in range(3 * v)]
                        for rank in range(len(set(ranks)))]
        sizes = [3 * v * problem.micro_batches] * problem.pipeline
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.count = np.array([problem.micro_batches], dtype=np.int64)
        self.passes = int(self.offsets[-1])

    def play(self, words: Words) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
        """(starts, ends, place of what each pass waited for last), the words laid end to end; None for a deadlock."""
        nodes = np.array([of_rank[code] for of_rank, word in zip(self.node_of, words, strict=True) for code in word],
                         dtype=np.int64)
        size = len(self.source) * int(self.count[0])
        outputs = (np.zeros(self.passes), np.zeros(self.passes), np.full(self.passes, -1, dtype=np.int64),
                   np.full(size, -1, dtype=np.int64))
        inputs = (nodes, self.offsets, self.source, self.own, self.lag_s, self.duration_s, self.count)
        (start_s, end_s, cause, _), played = call(_play, inputs, outputs, None)
        return (start_s, end_s, cause) if played == self.passes else None

    def score(self, start_s: NDArray[Any], end_s: NDArray[Any]) -> Score:
        """(cost, mean of the ranks' ends): what is to be small, and what tells equal costs apart."""
        last_s = end_s[self.offsets[1:] - 1]
        span = last_s - start_s[self.offsets[:-1]] if self.problem.objective == "span" else last_s
        return float(span.max()), float(span.mean())


def _play(
    nodes: Any, offsets: Any, source: Any, own: Any, lag_s: Any, duration_s: Any, count: Any,
    start_s: Any, end_s: Any, cause: Any, place: Any,
) -> int:
    """Ranks in turn run on until what they need is not there; `place` is where each node's passes stand."""
    m = count[0]
    ranks = len(offsets) - 1
    head = [0] * ranks
    done = [0] * len(source)
    for rank in range(ranks):
        head[rank] = offsets[rank]
    played, went_on = 0, True
    while went_on:
        went_on = False
        for rank in range(ranks):
            at = head[rank]
            while at < offsets[rank + 1]:
                node = nodes[at]
                j = done[node]
                begin_s, why = 0.0, -1
                if at > offsets[rank]:
                    begin_s, why = end_s[at - 1], at - 1
                before = own[node]
                if before >= 0:
                    where = place[before * m + j]
                    if where < 0:
                        break
                before = source[node]
                if before >= 0:
                    where = place[before * m + j]
                    if where < 0:
                        break
                    ready_s = end_s[where] + lag_s[node]
                    if ready_s > begin_s:
                        begin_s, why = ready_s, where
                start_s[at], end_s[at], cause[at] = begin_s, begin_s + duration_s[node], why
                place[node * m + j] = at
                done[node] = j + 1
                at += 1
                played += 1
                went_on = True
            head[rank] = at
    return played


def improved(words: Words, problem: Problem, target_s: float, work: int = WORK) -> Words:
    """The best order found from `words`, never worse; stops at `target_s` or after playing `work` passes."""
    player = Player(problem)
    present = [list(word) for word in words]
    played = player.play(present)
    if played is None:
        return words
    best, best_score = [list(word) for word in present], player.score(*played[:2])
    seen = {_key(present)}
    left, waited = work - player.passes, 0
    frontier: list[tuple[Score, Words, Any]] = []
    while left > 0 and best_score[0] > target_s * (1 + ROUNDING):
        options: list[tuple[Score, Words, Any]] = []
        for moved in _neighbours(present, played, player):
            key = _key(moved)
            if key in seen:
                continue
            seen.add(key)
            left -= player.passes
            after = player.play(moved)
            if after is not None:
                options.append((player.score(*after[:2]), moved, after))
            if left <= 0:
                break
        options.sort(key=lambda one: one[0])
        frontier = sorted(frontier + options[1:4], key=lambda one: one[0])[:200]
        if not options or waited >= PATIENCE:
            if not frontier:
                break
            options, waited = [frontier.pop(0)], 0
        score, present, played = options[0]
        waited += 1
        if score < best_score:
            if score[0] < best_score[0] * (1 - ROUNDING):
                waited = 0
            best, best_score = [list(word) for word in present], score
    return best


def _key(words: Words) -> bytes:
    return b"|".join(bytes(word) for word in words)


def _neighbours(words: Words, played: Any, player: Player) -> Iterator[Words]:
    start_s, end_s, cause = played
    problem, offsets = player.problem, player.offsets
    last_s = end_s[offsets[1:] - 1]
    span = last_s - start_s[offsets[:-1]] if problem.objective == "span" else last_s
    rank = int(span.argmax())
    path = _path(int(offsets[rank + 1]) - 1, cause)
    for first, last in _runs(path, offsets):
        rank = int(np.searchsorted(offsets, first, side="right")) - 1
        low, high = first - int(offsets[rank]), last - int(offsets[rank])
        done = set()
        for place in range(low, high + 1):
            targets = []
            if place > low and (place - low <= SHIFTS or high - place <= SHIFTS):
                targets.append(low)
            if place < high and (place - low <= SHIFTS or high - place <= SHIFTS):
                targets.append(high)
            if place == low + 1 or place == high:
                targets.append(place - 1)
            for target in targets:
                word = _moved(words[rank], place, target, problem, rank)
                if word is not None and tuple(word) not in done:
                    done.add(tuple(word))
                    yield [word if other == rank else words[other] for other in range(len(words))]


def _path(at: int, cause: NDArray[Any]) -> list[int]:
    path = [at]
    while cause[path[-1]] >= 0:
        path.append(int(cause[path[-1]]))
    return path[::-1]


def _runs(path: list[int], offsets: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """(first, last) places of the stretches of a path that stay on one rank, of two passes or more."""
    first = 0
    starts = set(offsets.tolist())
    for i in range(1, len(path) + 1):
        if i == len(path) or path[i] != path[i - 1] + 1 or path[i] in starts:
            if i - first > 1:
                yield path[first], path[i - 1]
            first = i


def _moved(word: list[int], place: int, target: int, problem: Problem, rank: int) -> list[int] | None:
    """The word with one pass as far towards `target` as its chunk's F, B and W allow; None for no move or no room."""
    v, code = problem.chunks, word[place]
    step = 1 if target > place else -1
    end = place
    before = word[:place]
    ahead = {kind: before.count(kind * v + code % v) for kind in range(3)}
    kind = code // v
    while end != target:
        other = word[end + step]
        if other == code:
            break
        if other % v == code % v:
            ahead[other // v] += step
            if step < 0 and kind > 0 and ahead[kind - 1] <= ahead[kind]:
                break
            if step > 0 and kind < 2 and ahead[kind + 1] > ahead[kind]:
                break
        end += step
    if end == place:
        return None
    new = word[:place] + word[place + 1:]
    new.insert(end, code)
    return new if _within(new, problem, rank) else None


def _within(word: list[int], problem: Problem, rank: int) -> bool:
    return peaks([word], problem)[0] <= problem.limit[rank] + ROUNDING
