"""What must happen: tasks on serial streams, with dependencies, durations and memory, as arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from placement.schedules.play import Floats, Ints, topological_order

COMPUTE = "compute"  # the name of the stream whose time a rank's breakdown tiles


class ProgramError(ValueError):
    """A program that cannot be played: a cycle, an index out of range, an impossible number."""


@dataclass(frozen=True)
class Stream:
    """A serial executor of one rank; `weight` is how many identical ranks it stands for."""

    rank: int
    name: str
    weight: float


@dataclass(frozen=True)
class Link:
    """A resource that the tasks naming it share."""

    name: str
    bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class MemoryColumns:
    """Changes of memory, one per entry, signed. `task` -1 marks what is there from time 0."""

    task: Ints
    at_end: Ints  # 1 at the task's end, 0 at its start
    place: Ints  # into Program.places
    state: Ints  # into Program.states
    size_bytes: Floats


@dataclass(frozen=True, eq=False)
class Program:
    """Tasks as columns, each [tasks] unless said. Built by ProgramBuilder, which validates it."""

    streams: tuple[Stream, ...]
    profiles: tuple[Mapping[str, float], ...]  # category -> fraction of the duration; each sums to 1
    links: tuple[Link, ...]
    label: list[str]
    stream: Ints
    profile: Ints
    duration_s: Floats
    link: Ints  # -1 for none
    work_bytes: Floats
    stream_offsets: Ints  # [streams + 1]; stream s runs stream_tasks[offsets[s] : offsets[s + 1]], in order
    stream_tasks: Ints
    previous: Ints  # the task before on the same stream, -1 for the first
    dependency_offsets: Ints  # [tasks + 1]
    dependency_task: Ints  # [dependencies]
    dependency_lag_s: Floats  # [dependencies]
    order: Ints  # topological
    memory: MemoryColumns
    places: tuple[tuple[int, str], ...]  # (rank, tier) of the memory changes
    states: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def ranks(self) -> list[int]:
        return sorted({stream.rank for stream in self.streams})

    def tasks_of(self, stream: int) -> Ints:
        """The stream's tasks in the order in which it runs them."""
        return self.stream_tasks[self.stream_offsets[stream] : self.stream_offsets[stream + 1]]


class ProgramBuilder:
    """Collects a program piece by piece. Every method that adds something returns its index."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, str], int] = {}
        self._weights: list[float] = []
        self._profiles: dict[tuple[tuple[str, float], ...], int] = {}
        self._links: list[Link] = []
        self._labels: list[str] = []
        self._task_streams, self._task_profiles, self._task_links = array("q"), array("q"), array("q")
        self._durations_s, self._work_bytes = array("d"), array("d")
        self._waiting, self._sources, self._lags_s = array("q"), array("q"), array("d")
        self._places: dict[tuple[int, str], int] = {}
        self._states: dict[str, int] = {}
        self._memory_tasks, self._memory_at_end = array("q"), array("q")
        self._memory_places, self._memory_states, self._memory_bytes = array("q"), array("q"), array("d")

    def stream(self, rank: int, name: str, weight: float = 1.0) -> int:
        """A serial executor of `rank`; tasks run in the order in which they are added to it.

        The same rank and name give the same stream again; ProgramError if the weight then differs.
        """
        if not weight > 0:
            raise ProgramError(f"stream {name!r} of rank {rank}: the weight must be positive (got {weight})")
        index = self._streams.setdefault((rank, name), len(self._weights))
        if index == len(self._weights):
            self._weights.append(weight)
        if self._weights[index] != weight:
            raise ProgramError(f"stream {name!r} of rank {rank}: weight {self._weights[index]}, not {weight}")
        return index

    def profile(self, seconds: Mapping[str, float]) -> int:
        """How a task's duration divides into categories, from any multiple of it; the same shares once.

        With all seconds zero the first category takes everything. ProgramError if empty or negative.
        """
        total = sum(seconds.values())
        if not seconds or min(seconds.values()) < 0 or not np.isfinite(total):
            raise ProgramError(f"a profile needs categories with seconds >= 0 (got {dict(seconds)})")
        if total == 0:
            shares = {next(iter(seconds)): 1.0}
        else:
            shares = {name: value / total for name, value in seconds.items() if value > 0}
        return self._profiles.setdefault(tuple(shares.items()), len(self._profiles))

    def link(self, name: str, bandwidth_bytes_per_s: float) -> int:
        """A bandwidth that the tasks on it share when the program is played with contention."""
        if not bandwidth_bytes_per_s > 0:
            raise ProgramError(f"link {name!r}: the bandwidth must be positive (got {bandwidth_bytes_per_s})")
        self._links.append(Link(name, bandwidth_bytes_per_s))
        return len(self._links) - 1

    def task(
        self, stream: int, label: str, profile: int, duration_s: float, after: Iterable[int] = (),
        lag_s: float = 0.0, link: int = -1, work_bytes: float = 0.0,
    ) -> int:
        """A task at the end of `stream`, starting at the earliest `lag_s` after the end of each of `after`.

        On a link the task moves `work_bytes` and takes `duration_s` when alone; it can never move faster than
        work_bytes / duration_s, so a part that no neighbour slows down (latency) belongs into a lag.
        """
        index = len(self._labels)
        self._labels.append(label)
        self._task_streams.append(stream)
        self._task_profiles.append(profile)
        self._durations_s.append(duration_s)
        self._task_links.append(link)
        self._work_bytes.append(work_bytes)
        for source in after:
            self.add_dependency(index, source, lag_s)
        return index

    def add_dependency(self, task: int, on: int, lag_s: float = 0.0) -> None:
        """`task` starts `lag_s` after the end of `on` at the earliest; either may have been added first."""
        self._waiting.append(task)
        self._sources.append(on)
        self._lags_s.append(lag_s)

    def memory(self, task: int, when: str, rank: int, tier: str, state: str, size_bytes: float) -> None:
        """Take (positive) or give back (negative) memory at the task's "start" or "end"."""
        if when not in ("start", "end"):
            raise ProgramError(f"memory of task {task}: when must be 'start' or 'end' (got {when!r})")
        if task < 0:
            raise ProgramError(f"memory of task {task}: no such task")
        self._change(task, when == "end", rank, tier, state, size_bytes)

    def resident(self, rank: int, tier: str, state: str, size_bytes: float) -> None:
        """Memory that is taken from time 0."""
        self._change(-1, False, rank, tier, state, size_bytes)

    def _change(self, task: int, at_end: bool, rank: int, tier: str, state: str, size_bytes: float) -> None:
        self._memory_tasks.append(task)
        self._memory_at_end.append(at_end)
        self._memory_places.append(self._places.setdefault((rank, tier), len(self._places)))
        self._memory_states.append(self._states.setdefault(state, len(self._states)))
        self._memory_bytes.append(size_bytes)

    def build(self) -> Program:
        """The program; ProgramError names what is out of range, or some tasks of a cycle."""
        stream, waiting, sources = _ints(self._task_streams), _ints(self._waiting), _ints(self._sources)
        self._check(stream, waiting, sources)
        tasks = len(self._labels)
        stream_tasks = np.argsort(stream, kind="stable")
        previous = np.full(tasks, -1, dtype=np.int64)
        same = stream[stream_tasks[1:]] == stream[stream_tasks[:-1]]
        previous[stream_tasks[1:][same]] = stream_tasks[:-1][same]
        by_task = np.argsort(waiting, kind="stable")
        offsets = _offsets(waiting, tasks)
        order = topological_order(previous, offsets, sources[by_task])
        if len(order) < tasks:
            cycle = _cycle(previous, offsets, sources[by_task], order)
            raise ProgramError("tasks wait for each other in a circle: "
                               + " <- ".join(f"{self._labels[task]!r}" for task in cycle))
        return Program(
            streams=tuple(Stream(*key, self._weights[index]) for key, index in self._streams.items()),
            profiles=tuple(dict(shares) for shares in self._profiles),
            links=tuple(self._links), label=list(self._labels), stream=stream,
            profile=_ints(self._task_profiles), duration_s=_floats(self._durations_s),
            link=_ints(self._task_links), work_bytes=_floats(self._work_bytes),
            stream_offsets=_offsets(stream, len(self._weights)), stream_tasks=stream_tasks, previous=previous,
            dependency_offsets=offsets, dependency_task=sources[by_task],
            dependency_lag_s=_floats(self._lags_s)[by_task], order=order,
            memory=MemoryColumns(
                _ints(self._memory_tasks), _ints(self._memory_at_end), _ints(self._memory_places),
                _ints(self._memory_states), _floats(self._memory_bytes)),
            places=tuple(self._places), states=tuple(self._states),
        )

    def _check(self, stream: Ints, waiting: Ints, sources: Ints) -> None:
        tasks = len(self._labels)
        link, duration_s = _ints(self._task_links), _floats(self._durations_s)
        for name, index, size, least in (
            ("stream of a task", stream, len(self._weights), 0),
            ("profile of a task", _ints(self._task_profiles), len(self._profiles), 0),
            ("link of a task", link, len(self._links), -1),
            ("waiting task of a dependency", waiting, tasks, 0),
            ("source task of a dependency", sources, tasks, 0),
            ("task of a memory change", _ints(self._memory_tasks), tasks, -1),
        ):
            wrong = index[(index < least) | (index >= size)]
            if len(wrong):
                raise ProgramError(f"{name}: there is no index {wrong[0]}; it must be below {size}")
        for name, values in (("duration_s", duration_s), ("lag_s", _floats(self._lags_s)),
                             ("work_bytes", _floats(self._work_bytes))):
            bad = values[~(np.isfinite(values) & (values >= 0))]
            if len(bad):
                raise ProgramError(f"{name} must be finite and not negative (got {bad[0]})")
        if not np.isfinite(_floats(self._memory_bytes)).all():
            raise ProgramError("size_bytes of a memory change must be finite")
        self._check_links(link, duration_s)

    def _check_links(self, link: Ints, duration_s: Floats) -> None:
        on_link = np.flatnonzero(link >= 0)
        bandwidth = np.array([one.bandwidth_bytes_per_s for one in self._links])[link[on_link]]
        least_s = _floats(self._work_bytes)[on_link] / bandwidth
        too_fast = on_link[duration_s[on_link] < least_s * (1 - 1e-9)]
        if len(too_fast):
            task = int(too_fast[0])
            raise ProgramError(f"task {self._labels[task]!r} takes {duration_s[task]} s alone, too short for "
                               f"{self._work_bytes[task]} bytes on link {self._links[link[task]].name!r}")


def _ints(values: array[int]) -> Ints:
    return np.array(values, dtype=np.int64)


def _floats(values: array[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _offsets(keys: Ints, size: int) -> Ints:
    return np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=size))]).astype(np.int64)


def _cycle(previous: Ints, offsets: Ints, source: Ints, played: Ints, shown: int = 6) -> list[int]:
    """Some tasks of a cycle, each waiting for the next; cut to `shown`."""
    left = set(range(len(previous))) - set(played.tolist())
    path, seen, task = [], set[int](), min(left)
    while task not in seen:
        seen.add(task)
        path.append(task)
        waits_for = [int(previous[task]), *source[offsets[task] : offsets[task + 1]].tolist()]
        task = next(one for one in waits_for if one in left)
    cycle = [*path[path.index(task):], task]
    return cycle[:shown]
