"""Plays words of codes many times: what an order costs, and which order of two equal ones leaves more room."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.schedules.play import call
from placement.schedules.search.problem import Problem, Words

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

    def play(self, words: Words) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """(starts, ends), the words laid end to end; None for a deadlock."""
        nodes = np.array([of_rank[code] for of_rank, word in zip(self.node_of, words, strict=True) for code in word],
                         dtype=np.int64)
        size = len(self.source) * int(self.count[0])
        outputs = (np.zeros(self.passes), np.zeros(self.passes), np.full(size, -1, dtype=np.int64))
        inputs = (nodes, self.offsets, self.source, self.own, self.lag_s, self.duration_s, self.count)
        (start_s, end_s, _), played = call(_play, inputs, outputs, None)
        return (start_s, end_s) if played == self.passes else None

    def score(self, start_s: NDArray[Any], end_s: NDArray[Any]) -> Score:
        """(cost, mean of the ranks' ends): what is to be small, and what tells equal costs apart."""
        last_s = end_s[self.offsets[1:] - 1]
        span = last_s - start_s[self.offsets[:-1]] if self.problem.objective == "span" else last_s
        return float(span.max()), float(span.mean())


def _play(
    nodes: Any, offsets: Any, source: Any, own: Any, lag_s: Any, duration_s: Any, count: Any,
    start_s: Any, end_s: Any, place: Any,
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
                begin_s = 0.0
                if at > offsets[rank]:
                    begin_s = end_s[at - 1]
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
                    begin_s = max(begin_s, end_s[where] + lag_s[node])
                start_s[at], end_s[at] = begin_s, begin_s + duration_s[node]
                place[node * m + j] = at
                done[node] = j + 1
                at += 1
                played += 1
                went_on = True
            head[rank] = at
    return played
