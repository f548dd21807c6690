"""The dynamic player: the same program on SimPy, where tasks on a link share its bandwidth.

Sharing is max-min fair (progressive filling; Bertsekas and Gallager, Data Networks, section 6.5.2): the
active tasks of a link get equal rates, except that none moves faster than it would alone
(work_bytes / duration_s); what such a task leaves goes to the others. Rates change when a task comes or goes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import simpy

from simulator.program import Program
from simulator.timeline import Timeline

_SAME_INSTANT = 1e-12  # relative: transfers that end this close together end together


def fair_rates(limits: Sequence[float], bandwidth: float) -> list[float]:
    """Max-min fair rates of transfers that go at most at their `limits` and share `bandwidth`.

    >>> fair_rates([100.0, 10.0, 100.0], 100.0)
    [45.0, 10.0, 45.0]
    """
    rates = [0.0] * len(limits)
    left = bandwidth
    by_limit = sorted(range(len(limits)), key=lambda i: limits[i])
    for served, i in enumerate(by_limit):
        rates[i] = min(limits[i], left / (len(limits) - served))
        left -= rates[i]
    return rates


class _Transfer:
    def __init__(self, env: simpy.Environment, work_bytes: float, limit: float) -> None:
        self.left_bytes, self.limit, self.rate = work_bytes, limit, 0.0
        self.done = env.event()

    @property
    def left_s(self) -> float:
        return self.left_bytes / self.rate


class SharedLink:
    """A bandwidth shared max-min fairly by the transfers now on it."""

    def __init__(self, env: simpy.Environment, bandwidth_bytes_per_s: float) -> None:
        self._env, self._bandwidth = env, bandwidth_bytes_per_s
        self._active: list[_Transfer] = []
        self._since_s = 0.0
        self._round = 0  # of rates; a wake-up from an earlier round is void

    def move(self, work_bytes: float, alone_s: float) -> simpy.Event:
        """An event that happens when `work_bytes` have moved: `alone_s` from now if none shares the link."""
        transfer = _Transfer(self._env, work_bytes, work_bytes / alone_s)
        self._progress()
        self._active.append(transfer)
        self._share()
        return transfer.done

    def _progress(self) -> None:
        elapsed_s = self._env.now - self._since_s
        self._since_s = self._env.now
        for transfer in self._active:
            transfer.left_bytes = max(transfer.left_bytes - transfer.rate * elapsed_s, 0.0)

    def _share(self) -> None:
        self._round += 1
        if not self._active:
            return
        rates = fair_rates([transfer.limit for transfer in self._active], self._bandwidth)
        for transfer, rate in zip(self._active, rates, strict=True):
            transfer.rate = rate
        next_s = min(transfer.left_s for transfer in self._active)
        horizon_s = next_s + _SAME_INSTANT * (self._env.now + next_s)
        finishing = [transfer for transfer in self._active if transfer.left_s <= horizon_s]
        wake = self._env.timeout(next_s)
        current = self._round
        wake.callbacks.append(lambda _: self._finish(finishing) if self._round == current else None)

    def _finish(self, finishing: list[_Transfer]) -> None:
        self._progress()
        self._active = [transfer for transfer in self._active if transfer not in finishing]
        for transfer in finishing:
            transfer.done.succeed()
        self._share()


def play(program: Program) -> Timeline:
    """Each stream is a process that runs its tasks in order; the static player's times without sharing."""
    env = simpy.Environment()
    links = [SharedLink(env, link.bandwidth_bytes_per_s) for link in program.links]
    done = [env.event() for _ in range(len(program))]
    start_s, end_s = np.zeros(len(program)), np.zeros(len(program))
    for stream in range(len(program.streams)):
        env.process(_run(env, program, program.tasks_of(stream).tolist(), links, done, start_s, end_s))
    env.run()
    return Timeline(program, start_s, end_s)


def _run(
    env: simpy.Environment, program: Program, tasks: list[int], links: list[SharedLink],
    done: list[simpy.Event], start_s: Any, end_s: Any,
) -> Generator[simpy.Event, Any, None]:
    for task in tasks:
        edges = slice(program.dependency_offsets[task], program.dependency_offsets[task + 1])
        ready_s = 0.0
        for source, lag_s in zip(program.dependency_task[edges].tolist(),
                                 program.dependency_lag_s[edges].tolist(), strict=True):
            if not done[source].processed:
                yield done[source]
            ready_s = max(ready_s, end_s[source] + lag_s)
        if ready_s > env.now:
            yield env.timeout(ready_s - env.now)
        start_s[task] = env.now
        duration_s, work_bytes, link = program.duration_s[task], program.work_bytes[task], program.link[task]
        if link >= 0 and work_bytes > 0:
            yield links[link].move(float(work_bytes), float(duration_s))
        elif duration_s > 0:
            yield env.timeout(float(duration_s))
        end_s[task] = env.now
        done[task].succeed()
