"""The passes of an order as arrays: tasks on serial streams, and what each waits for.

    F waits for F one stage before; B for its own F (and R, L) and for B one stage after; W for its B; R for F;
    O for F, L for its O and for the pass before it in the order; with an output layer split over all ranks
    (`Schedule.barriers`) S for F of the last stage, T and the last stage's B for the meetings of all ranks.

Passes joined in a slot are one task; with `Schedule.early` each is one, and the slot's first waits for what any of
them needs. A meeting of all ranks is a task of its own on no stream, and so is a send
where the wires take time.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from placement.schedules.order import COPIES, KINDS, SHARED, Orders, Pass, Schedule, ScheduleError
from placement.schedules.play import Floats, Ints, topological_order

CODE = {kind: code for code, kind in enumerate(KINDS)}
LETTERS = "".join(KINDS)


@dataclass(frozen=True)
class Edges:
    """`target` starts after `source`, both [edges] of tasks; `hop` 1 where a latency lies between, `meeting` 1
    where a broadcast does; `sender` is the pass whose result travels, -1 where nothing does."""

    target: Ints
    source: Ints
    hop: Ints
    meeting: Ints
    sender: Ints


@dataclass(frozen=True)
class Layout:
    """Passes as columns, rank after rank in their order, and the tasks that they make up.

    `node` is the stage (a second route's stages follow the first's; for S and T it is the rank); `index[kind]`
    [nodes, micro_batches] finds a pass, -1 for none. Tasks: the slots first, then meetings, then sends.
    """

    ranks: int
    stages: int  # of one route
    micro_batches: int
    kind: Ints
    node: Ints
    micro_batch: Ints
    rank: Ints
    offsets: Ints  # [ranks + 1], passes
    task: Ints  # of each pass
    opens: Ints  # first task of the slot of each pass
    index: dict[str, Ints]
    rank_of_node: Ints
    slots: int
    meetings: int
    sends: int
    previous: Ints  # [tasks], the task before on the same stream, -1 for the first
    dependency_offsets: Ints
    dependency_task: Ints
    hop: Ints  # [dependencies]
    meeting: Ints
    order: Ints  # topological

    @property
    def copies(self) -> bool:
        return "O" in self.index or "L" in self.index


def layout(orders: Orders, schedule: Schedule, sends: bool = False) -> Layout:
    """The tasks of `orders`, one list of passes per rank; with `sends`, each hop is a task on its wire.

    Raises ScheduleError when a pass is missing, stands twice, or the order can never be played.
    """
    columns = _columns(orders, schedule)
    edges = _edges(columns, schedule)
    found = _tasks(columns, edges, sends)
    if len(found.order) < len(found.previous):
        raise ScheduleError(_deadlock(found, schedule, orders))
    return found


def _columns(orders: Orders, schedule: Schedule) -> Layout:
    name, ranks = schedule.name, len(orders)
    sizes = [len(passes) for passes in orders]
    if ranks == 0 or 0 in sizes:
        raise ScheduleError(f"{name}: every rank needs at least one pass (rank {sizes.index(0) if sizes else 0})")
    flat = [one for passes in orders for one in passes]
    unknown = sorted({one.kind for one in flat} - set(KINDS))
    if unknown:
        raise ScheduleError(f"{name}: no pass of kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    table = np.array([(CODE[one.kind], one.chunk, one.micro_batch, one.joined) for one in flat], dtype=np.int64)
    kind, chunk, micro_batch, joined = table.T
    if min(chunk.min(), micro_batch.min()) < 0:
        raise ScheduleError(f"{name}: chunks and micro-batches count from 0")
    chunks, rank = int(chunk.max()) + 1, np.repeat(np.arange(ranks), sizes)
    stages = ranks * chunks // schedule.routes
    node_of = np.array([[schedule.stage_of(r, c, ranks, chunks) + (c * stages if schedule.routes > 1 else 0)
                         for c in range(chunks)] for r in range(ranks)])
    rank_of_node = np.empty(ranks * chunks, dtype=np.int64)
    rank_of_node[node_of] = np.arange(ranks)[:, None]
    shared = np.isin(kind, [CODE[one] for one in SHARED])
    node = np.where(shared, rank, node_of[rank, chunk])
    count, index = int(micro_batch.max()) + 1, {}
    for code in np.unique(kind):
        letter = LETTERS[code]
        of_kind = np.flatnonzero(kind == code)
        place = np.full((ranks if letter in SHARED else ranks * chunks, count), -1, dtype=np.int64)
        place[node[of_kind], micro_batch[of_kind]] = of_kind
        if (place >= 0).sum() != len(of_kind):
            raise ScheduleError(_twice(name, flat, of_kind, place, node, micro_batch, rank))
        index[letter] = place
    _complete(schedule, index, rank_of_node)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    joined[offsets[:-1]] = 0
    task = np.arange(len(flat)) if schedule.early else np.cumsum(joined == 0) - 1
    opens = np.maximum.accumulate(np.where(joined == 0, task, 0))
    none = np.empty(0, dtype=np.int64)
    return Layout(ranks, stages, count, kind, node, micro_batch, rank, offsets, task, opens, index, rank_of_node,
                  int(task[-1]) + 1, 0, 0, none, none, none, none, none, none)


def _twice(name: str, flat: list[Pass], of_kind: Ints, place: Ints, node: Ints, micro_batch: Ints, rank: Ints) -> str:
    lost = next(int(i) for i in of_kind if place[node[i], micro_batch[i]] != i)
    one = flat[lost]
    return f"{name}: rank {rank[lost]} runs {one.kind}{one.micro_batch} of chunk {one.chunk} twice"


def _complete(schedule: Schedule, index: dict[str, Ints], rank_of_node: Ints) -> None:
    """Every stage runs each needed kind once a micro-batch; what may be left out comes in whole."""
    needed = "FBW" if schedule.splits_backward else "FB"
    needed += "ST" if schedule.barriers else ""
    for letter in needed:
        if letter not in index:
            raise ScheduleError(f"{schedule.name}: there is no {letter} pass; it runs {', '.join(needed)}")
    for letter in set(index) - set(needed):
        if letter in "WST":
            raise ScheduleError(f"{schedule.name} has no {letter} passes (found some); it runs {', '.join(needed)}")
    for letter in needed:
        missing = np.argwhere(index[letter] < 0)
        if len(missing):
            node, micro_batch = missing[0]
            where = f"rank {node}" if letter in SHARED else f"stage {node} (rank {rank_of_node[node]})"
            raise ScheduleError(f"{schedule.name}: {letter} of micro-batch {micro_batch} is missing on {where}; each "
                                f"runs each of {', '.join(needed)} once a micro-batch")
    if ("L" in index) != ("O" in index) or ("L" in index and ((index["L"] < 0) != (index["O"] < 0)).any()):
        raise ScheduleError(f"{schedule.name}: a chunk that leaves for the host (O) must come back (L), and only it")


class _Edges:
    """Collects edges between passes (or, from `base` on, other tasks)."""

    def __init__(self, columns: Layout) -> None:
        self.task, self.opens = columns.task, columns.opens
        self.parts: list[tuple[Ints, Ints, Ints, int, Ints]] = []

    def add(self, after: Ints, before: Ints, crossing: Ints | None = None, meeting: int = 0) -> None:
        """Pairs of passes of equal shape; pairs with a -1 are left out. `crossing` broadcasts to them."""
        hop = np.broadcast_to(np.zeros(1, dtype=np.int64) if crossing is None else crossing, after.shape)
        there = (after >= 0) & (before >= 0) & (self.opens[after] != self.opens[before])  # a slot keeps its order
        sender = np.where(hop > 0, before, -1)[there]
        self.parts.append((self.opens[after[there]], self.task[before[there]], hop[there], meeting, sender))

    def add_tasks(self, after: Ints, before: Ints, meeting: int = 0) -> None:
        none = np.zeros(len(after), dtype=np.int64)
        self.parts.append((after, before, none, meeting, none - 1))

    def all(self) -> Edges:
        target, source, hop, sender = (np.concatenate([part[i] for part in self.parts]) for i in (0, 1, 2, 4))
        meeting = np.concatenate([np.full(len(part[0]), part[3]) for part in self.parts])
        return Edges(target, source, hop, meeting, sender)


def _edges(columns: Layout, schedule: Schedule) -> Edges:
    found = _Edges(columns)
    forward, backward = columns.index["F"], columns.index["B"]
    for route in range(schedule.routes):
        part = slice(route * columns.stages, (route + 1) * columns.stages)
        crossing = (np.diff(columns.rank_of_node[part]) != 0).astype(np.int64)[:, None]
        found.add(forward[part][1:], forward[part][:-1], crossing)
        found.add(backward[part][:-1], backward[part][1:], crossing)
    found.add(backward, forward)
    for after, before in (("W", "B"), ("R", "F"), ("B", "R"), ("O", "F"), ("L", "O"), ("B", "L"), ("R", "L")):
        if after in columns.index and before in columns.index:
            found.add(columns.index[after], columns.index[before])
    if "L" in columns.index:
        _issue(columns, found)
    if schedule.barriers:
        _meet(columns, schedule, found)
    return found.all()


def _issue(columns: Layout, found: _Edges) -> None:
    """A copy back waits for the pass that stands before it in the order of its rank."""
    copies = np.isin(columns.kind, [CODE[one] for one in COPIES])
    passes = np.arange(len(columns.kind))
    last = np.maximum.accumulate(np.where(copies, -1, passes))
    back = np.flatnonzero(columns.kind == CODE["L"])
    before = np.where(last[back] >= columns.offsets[columns.rank[back]], last[back], -1)
    found.add(back, before)


def _meet(columns: Layout, schedule: Schedule, found: _Edges) -> None:
    """Meetings of all ranks: task slots + j behind the S of micro-batch j, slots + m + j behind its T."""
    count, task = columns.micro_batches, columns.task
    logits, gradients = columns.index["S"], columns.index["T"]
    last = np.broadcast_to(columns.index["F"][columns.stages - 1], logits.shape)
    found.add(logits, last, meeting=1)
    meets = columns.slots + np.arange(count)
    every = np.broadcast_to(meets, logits.shape).ravel()
    final = task[columns.index["B"][columns.stages - 1]]
    found.add_tasks(every, task[logits].ravel())
    found.add_tasks(task[gradients].ravel(), every)
    if schedule.barriers == 2:
        found.add_tasks(every + count, task[gradients].ravel())
        found.add_tasks(final, meets + count)
    else:
        found.add_tasks(final, meets)


def _tasks(columns: Layout, edges: Edges, sends: bool) -> Layout:
    """Streams of the slots (copies on their own) and, with `sends`, of the wires."""
    count = columns.slots
    first = np.concatenate([[True], np.diff(columns.task) > 0])
    copies = np.isin(columns.kind[first], [CODE[one] for one in COPIES])
    stream = columns.rank[first] * 2 + copies
    previous = np.full(count, -1, dtype=np.int64)
    _chain(previous, np.arange(count), stream)
    meetings = int(edges.target.max(initial=count - 1)) + 1 - count
    meetings = max(meetings, int(edges.source.max(initial=count - 1)) + 1 - count)
    previous = np.concatenate([previous, np.full(meetings, -1, dtype=np.int64)])
    target, source, hop, meeting = edges.target, edges.source, edges.hop, edges.meeting
    wires = np.flatnonzero(edges.sender >= 0) if sends else np.empty(0, dtype=np.int64)
    if len(wires):
        wires = wires[np.argsort(edges.sender[wires], kind="stable")]
        to = columns.rank[first][target[wires]]
        numbers = count + meetings + np.arange(len(wires))
        previous = np.concatenate([previous, np.full(len(wires), -1, dtype=np.int64)])
        _chain(previous, numbers, columns.rank[edges.sender[wires]] * columns.ranks + to)
        rest = np.ones(len(target), dtype=bool)
        rest[wires] = False
        none = np.zeros(len(wires), dtype=np.int64)
        target, source, hop, meeting = (
            np.concatenate(parts) for parts in (
                (target[rest], numbers, target[wires]), (source[rest], source[wires], numbers),
                (hop[rest], none, none + 1), (meeting[rest], none, none)))
    by_target = np.argsort(target, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(target, minlength=len(previous)))])
    order = topological_order(previous, offsets, source[by_target])
    return replace(columns, meetings=meetings, sends=len(wires), previous=previous, dependency_offsets=offsets,
                   dependency_task=source[by_target], hop=hop[by_target], meeting=meeting[by_target], order=order)


def _chain(previous: Ints, tasks: Ints, stream: Ints) -> None:
    """Tasks of one stream run in the order in which they stand."""
    sorted_by = np.argsort(stream, kind="stable")
    same = stream[sorted_by[1:]] == stream[sorted_by[:-1]]
    previous[tasks[sorted_by[1:][same]]] = tasks[sorted_by[:-1][same]]


def _deadlock(found: Layout, schedule: Schedule, orders: Orders) -> str:
    """Names a pass of the ring of tasks that wait for each other and the pass whose result it needs."""
    played = np.zeros(len(found.previous), dtype=bool)
    played[found.order] = True
    task, ring = int(np.flatnonzero(~played)[0]), dict[int, bool]()  # whether the next task's result is needed
    while task not in ring:
        waits = found.dependency_task[found.dependency_offsets[task]:found.dependency_offsets[task + 1]]
        needed = [int(one) for one in waits if not played[one]]
        ring[task] = bool(needed)
        task = needed[0] if needed else int(found.previous[task])
    tasks = list(ring)
    around = [*tasks[tasks.index(task):], task]
    waiting, source = next(((one, other) for one, other in itertools.pairwise(around)
                            if ring[one] and max(one, other) < found.slots), (around[0], around[0]))
    pass_of = [int(np.flatnonzero(found.task == min(one, found.slots - 1))[-1]) for one in (waiting, source)]
    return (f"{schedule.name}: the order can never be played, ranks wait for each other: "
            f"{_named(found, orders, pass_of[0])} waits for {_named(found, orders, pass_of[1])}, which can never come "
            f"before it")


def _named(found: Layout, orders: Orders, number: int) -> str:
    rank = int(found.rank[number])
    place = number - int(found.offsets[rank])
    one = orders[rank][place]
    return (f"{one.kind} of micro-batch {one.micro_batch} on stage {found.node[number] % found.stages} "
            f"(rank {rank}, pass {place})")


def durations(found: Layout, seconds: dict[str, object]) -> Floats:
    """[passes] from seconds by kind: scalars, [stages] or [stages, micro_batches] (of the rank for S and T)."""
    result = np.zeros(len(found.kind))
    for letter, index in found.index.items():
        value = np.asarray(seconds.get(letter, 0.0), dtype=float)
        nodes = found.ranks if letter in SHARED else found.stages
        if value.ndim == 1:
            value = value[:, None]
        if value.ndim and value.shape[0] not in (1, nodes):
            raise ScheduleError(f"times of {letter} passes are for {value.shape[0]} stages; there are {nodes}")
        routes = len(index) // nodes
        table = np.tile(np.broadcast_to(value, (nodes, found.micro_batches)), (routes, 1))
        there = index >= 0
        result[index[there]] = table[there]
    return result
