"""What happened when: start and end of every task, and what follows from them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from placement.schedules.play import Floats
from simulator.program import COMPUTE, Program

BUBBLE = "bubble"  # waiting for another rank's computation
LATENCY = "latency"  # waiting for the lag of a dependency


@dataclass(frozen=True, eq=False)
class Timeline:
    """A played program. `start_s`, `end_s`: seconds, [tasks]."""

    program: Program
    start_s: Floats
    end_s: Floats

    @cached_property
    def makespan_s(self) -> float:
        return float(self.end_s.max(initial=0.0))

    def busy_s(self, stream: int) -> float:
        """Seconds in which the stream runs a task."""
        tasks = self.program.tasks_of(stream)
        return math.fsum((self.end_s[tasks] - self.start_s[tasks]).tolist())

    def compute_stream(self, rank: int) -> int:
        """The index of the rank's compute stream."""
        return next(
            i for i, one in enumerate(self.program.streams) if one.rank == rank and one.name == COMPUTE
        )

    def span_s(self, stream: int) -> float:
        """Seconds from the start of the stream's first task to the end of its last."""
        tasks = self.program.tasks_of(stream)
        return float(self.end_s[tasks[-1]] - self.start_s[tasks[0]]) if len(tasks) else 0.0

    @property
    def bubble_fraction(self) -> float:
        """Share of the makespan that the mean rank waits for other ranks' computation."""
        return self.mean_breakdown().get(BUBBLE, 0.0) / self.makespan_s if self.makespan_s else 0.0

    def breakdown(self, rank: int) -> dict[str, float]:
        """Seconds by category of this rank's step; the sum is the makespan.

        The tasks of the rank's "compute" stream count to the categories of their profiles. A gap before a
        task is walked back along what the task waited for, the dependency or stream predecessor with the
        latest end plus lag (a dependency where both tie), then along what that one waited for, and so on
        until the gap is covered: a lag is "latency", a task on another rank's compute stream "bubble", a task
        on any other stream (exposed communication) counts to its own categories, a rest is "bubble". The time
        after the rank's last compute task is walked back from the task that ends last in the program.
        Raises KeyError for a rank without streams.
        """
        return dict(self._breakdowns[rank])

    def mean_breakdown(self) -> dict[str, float]:
        """The breakdown of the mean rank, each rank class weighted by the ranks it stands for."""
        weights: dict[int, float] = {}
        for stream in self.program.streams:
            if stream.rank not in weights or stream.name == COMPUTE:
                weights[stream.rank] = stream.weight
        total = math.fsum(weights.values())
        parts: defaultdict[str, list[float]] = defaultdict(list)
        for rank, weight in weights.items():
            for category, seconds in self._breakdowns[rank].items():
                parts[category].append(seconds * weight / total)
        return {category: math.fsum(seconds) for category, seconds in parts.items()}

    @cached_property
    def _breakdowns(self) -> dict[int, dict[str, float]]:
        walk = _Walk(self)
        return {rank: walk.breakdown(rank) for rank in self.program.ranks}

    def memory_series(self, rank: int, tier: str) -> tuple[Floats, dict[str, Floats]]:
        """(times_s, {state: bytes}) of one rank's tier: the bytes from each time on, a step function.

        It starts at time 0 with what is resident. At one instant, changes at the "end" of tasks come before
        changes at the "start" of tasks, so a task may take what another has just given back; a time stands
        twice where both happen. Changes of the same kind at the same instant are one step. So what a task
        of no duration takes and gives back shows as a dip, never as a peak.
        """
        program, memory = self.program, self.program.memory
        place = program.places.index((rank, tier)) if (rank, tier) in program.places else -1
        chosen = np.flatnonzero(memory.place == place)
        task, at_end = memory.task[chosen], memory.at_end[chosen]
        starts_s, ends_s = np.append(self.start_s, 0.0), np.append(self.end_s, 0.0)  # task -1 is at time 0
        when = np.where(at_end == 1, ends_s[task], starts_s[task])
        phase = np.where(task < 0, -1, 1 - at_end)
        keys, step = np.unique(
            np.concatenate([[(0.0, -1.0)], np.stack([when, phase], axis=1)]), axis=0, return_inverse=True)
        step = step.ravel()[1:]
        series = {}
        for state in np.unique(memory.state[chosen]):
            mine = memory.state[chosen] == state
            changes = np.bincount(step[mine], memory.size_bytes[chosen][mine], minlength=len(keys))
            series[program.states[state]] = changes.cumsum()
        return keys[:, 0], series

    def peak(self, rank: int, tier: str) -> tuple[float, dict[str, float], float]:
        """(bytes, {state: bytes then}, first time_s) at which the rank's tier holds the most."""
        times_s, series = self.memory_series(rank, tier)
        total = np.sum(list(series.values()), axis=0) if series else np.zeros(len(times_s))
        top = int(total.argmax())
        by_state = {state: float(part[top]) for state, part in series.items()}
        return float(total[top]), by_state, float(times_s[top])


class _Walk:
    """Charges the gaps of compute streams to causes. Columns are lists here: faster to read one by one."""

    def __init__(self, timeline: Timeline) -> None:
        program = timeline.program
        self.program, self.makespan_s = program, timeline.makespan_s
        self.start_s: list[float] = timeline.start_s.tolist()
        self.end_s: list[float] = timeline.end_s.tolist()
        self.previous, self.offsets = program.previous.tolist(), program.dependency_offsets.tolist()
        self.source, self.lag_s = program.dependency_task.tolist(), program.dependency_lag_s.tolist()
        self.profile = program.profile.tolist()
        computes = np.array([stream.name == COMPUTE for stream in program.streams], dtype=bool)
        self.computes = computes[program.stream].tolist()
        self.last = int(timeline.end_s.argmax()) if len(program) else -1

    def breakdown(self, rank: int) -> dict[str, float]:
        own = [i for i, one in enumerate(self.program.streams) if one.rank == rank and one.name == COMPUTE]
        by_profile: defaultdict[int, list[float]] = defaultdict(list)
        waits: defaultdict[str, list[float]] = defaultdict(list)
        free_s = 0.0
        for task in self.program.tasks_of(own[0]).tolist() if own else []:
            if self.start_s[task] > free_s:
                self._charge_wait(task, free_s, by_profile, waits)
            by_profile[self.profile[task]].append(self.end_s[task] - self.start_s[task])
            free_s = self.end_s[task]
        if self.makespan_s > free_s:
            rest_s = self._charge_task(self.last, free_s, self.makespan_s, by_profile, waits)
            self._charge_wait(self.last, free_s, by_profile, waits, until_s=rest_s)
        for profile, seconds in by_profile.items():
            for category, share in self.program.profiles[profile].items():
                waits[category].append(share * math.fsum(seconds))
        return {category: math.fsum(seconds) for category, seconds in waits.items()}

    def _charge_wait(
        self, task: int, since_s: float, by_profile: dict[int, list[float]], waits: dict[str, list[float]],
        until_s: float | None = None,
    ) -> None:
        """Charge [since_s, until_s), until_s being the start of `task` by default, to what it waited for."""
        at_s = self.start_s[task] if until_s is None else until_s
        while at_s > since_s:
            task, ready_s = self._binding(task)
            if task < 0:
                break
            if at_s > ready_s:  # waited for nothing that the program knows
                waits[BUBBLE].append(at_s - max(ready_s, since_s))
                at_s = max(ready_s, since_s)
            lag_from_s = max(self.end_s[task], since_s)
            if at_s > lag_from_s:
                waits[LATENCY].append(at_s - lag_from_s)
                at_s = lag_from_s
            at_s = self._charge_task(task, since_s, at_s, by_profile, waits)
        if at_s > since_s:
            waits[BUBBLE].append(at_s - since_s)

    def _charge_task(
        self, task: int, since_s: float, until_s: float, by_profile: dict[int, list[float]],
        waits: dict[str, list[float]],
    ) -> float:
        """Charge the part of [since_s, until_s) after the task's start to the task; the new until_s."""
        from_s = max(self.start_s[task], since_s)
        if from_s < until_s:
            charged = waits[BUBBLE] if self.computes[task] else by_profile[self.profile[task]]
            charged.append(until_s - from_s)
        return min(from_s, until_s)

    def _binding(self, task: int) -> tuple[int, float]:
        """(task waited for, when it let this one start); -1 where it waited for none."""
        best, ready_s = self.previous[task], 0.0
        if best >= 0:
            ready_s = self.end_s[best]
        for edge in range(self.offsets[task], self.offsets[task + 1]):
            candidate_s = self.end_s[self.source[edge]] + self.lag_s[edge]
            if best < 0 or candidate_s >= ready_s:
                best, ready_s = self.source[edge], candidate_s
        return best, ready_s


