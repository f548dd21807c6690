"""Which ranks share a sequence, and in which order every rank runs its micro-batches: policies, registered by name.

The data and context ranks of one pipeline stage and tensor rank are the `ranks` of a mesh; each holds at most
`capacity` tokens a micro-batch. A policy first cuts the sequences of a global batch into micro-batches, each of a ring
of `degree` ranks, and then says which ranks run each of them.

    static       one mesh for all: every micro-batch packs sequences up to the longest one's tokens and is split over
                 the same number of ranks (the data x context mesh of Megatron and MegaScale, with packing)
    naive        hybrid data parallelism: a sequence takes as many ranks as its tokens need, short ones are packed;
                 in the order of the data to the ranks with the fewest tokens, so that all have equal tokens
    dp-balance   the same micro-batches, the longest first, each to the ranks that lag the most (no pipeline)
    pp-balance   the same by levels: a pipeline runs micro-batches of like length, so that its stages do not wait

Hybrid data parallelism and both balances: ByteScale, arXiv 2502.21231, section 4 and algorithms 1 and 2.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rings = Callable[[Ints], tuple[Ints, Floats]]  # lengths -> (ranks, share offloaded)


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that a ring of `degree` ranks runs in one pass, each of them split over all of the ring."""

    lengths: tuple[int, ...]
    degree: int
    offloaded: float = 0.0  # share of the activations of the inner layers that lies on the host meanwhile

    @cached_property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Mesh:
    """`ranks` data x context ranks, `context` of them a sequence of the longest length, which has context x capacity
    tokens; `domain` neighbours reach one another inside a node. `rings` says how many ranks a sequence takes."""

    ranks: int
    context: int
    capacity: int
    domain: int
    rings: Rings


@dataclass(frozen=True)
class Placed:
    """A micro-batch (its number) on its ranks, ascending. A list of these is in the order in which they start."""

    micro_batch: int
    ranks: tuple[int, ...]


class Policy(Protocol):
    """How sequences are cut into micro-batches, and where these run."""

    @property
    def text(self) -> str: ...

    def cut(self, lengths: Sequence[int], mesh: Mesh) -> list[MicroBatch]: ...

    def place(self, micro_batches: Sequence[MicroBatch], work_s: Floats, mesh: Mesh) -> list[Placed]:
        """`work_s`: seconds of each micro-batch on each of its ranks, [micro-batches]."""
        ...


def pack(lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Best fit, longest first: each sequence goes where it leaves the least room. In the order in which the packs
    were opened.

    >>> pack([3, 5, 2, 4], 7)
    [(5, 2), (4, 3)]
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), ascending
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(room, (length, -1))
        if at == len(room):
            packs.append([length])
            left, where = capacity - length, len(packs) - 1
        else:
            left, where = room.pop(at)
            packs[where].append(length)
            left -= length
        bisect.insort(room, (left, where))
    return [tuple(one) for one in packs]


@lru_cache(maxsize=64)  # policies and plans that are compared cut the same batches
def _of_one_rank(lengths: tuple[int, ...], capacity: int) -> tuple[MicroBatch, ...]:
    return tuple(MicroBatch(one, 1) for one in pack(lengths, capacity))


def hybrid_cut(lengths: Sequence[int], mesh: Mesh) -> list[MicroBatch]:
    """Each long sequence on its own ring, short ones packed to the capacity of one rank.

    Long sequences keep the order of the data; packs are spread evenly between them, as packing a stream would.
    """
    long = np.array([one for one in lengths if one > mesh.capacity], dtype=np.int64)
    packs = _of_one_rank(tuple(sorted(one for one in lengths if one <= mesh.capacity)), mesh.capacity)
    degrees, shares = mesh.rings(long) if len(long) else (long, np.zeros(0))
    degrees = np.minimum(degrees, mesh.ranks)
    rings = [MicroBatch((int(s),), int(d), float(r)) for s, d, r in zip(long, degrees, shares, strict=True)]
    every = [*rings, *packs]
    keys = np.concatenate([(np.arange(len(some)) + 0.5) / max(len(some), 1) for some in (rings, packs)])
    return [every[i] for i in np.argsort(keys, kind="stable").tolist()]


@dataclass(frozen=True)
class Static:
    """The mesh that a plan's degrees data x context say."""

    text: str = "one data x context mesh for every micro-batch, sequences packed to the longest one's tokens"

    def cut(self, lengths: Sequence[int], mesh: Mesh) -> list[MicroBatch]:
        return [MicroBatch(one, mesh.context) for one in pack(lengths, mesh.context * mesh.capacity)]

    def place(self, micro_batches: Sequence[MicroBatch], work_s: Floats, mesh: Mesh) -> list[Placed]:
        replicas = mesh.ranks // mesh.context
        return [
            Placed(number, _consecutive(number % replicas * mesh.context, mesh.context))
            for number in range(len(micro_batches))
        ]


@dataclass(frozen=True)
class Naive:
    """Equal tokens a rank, whatever they cost: each micro-batch, in the order of the data, to the ranks that have the
    fewest tokens so far."""

    text: str = "as many ranks a sequence as its tokens need, in the order of the data, equal tokens a rank"

    def cut(self, lengths: Sequence[int], mesh: Mesh) -> list[MicroBatch]:
        return hybrid_cut(lengths, mesh)

    def place(self, micro_batches: Sequence[MicroBatch], work_s: Floats, mesh: Mesh) -> list[Placed]:
        held, placed = np.zeros(mesh.ranks), []
        for number, one in enumerate(micro_batches):
            ranks = lagging(held, one.degree, mesh.domain)
            held[ranks] += one.tokens / one.degree
            placed.append(Placed(number, tuple(ranks.tolist())))
        return placed


@dataclass(frozen=True)
class DataBalance:
    """Algorithm 2 without a pipeline: the costliest micro-batches first, each to the ranks that lag the most.

    With micro-batches of one rank this is Graham's longest-processing-time rule, whose step is at most 4/3 - 1/(3 n)
    of the optimum. A ring that fits into a node stays in one.
    """

    text: str = "the costliest sequences first, each to the ranks that lag the most"

    def cut(self, lengths: Sequence[int], mesh: Mesh) -> list[MicroBatch]:
        return hybrid_cut(lengths, mesh)

    def place(self, micro_batches: Sequence[MicroBatch], work_s: Floats, mesh: Mesh) -> list[Placed]:
        ready_s, placed = np.zeros(mesh.ranks), []
        for number in _costliest_first(work_s):
            ranks = _given(ready_s, micro_batches[number].degree, mesh.domain, work_s[number])
            placed.append(Placed(number, ranks))
        return placed


@dataclass(frozen=True)
class PipelineBalance:
    """Algorithm 2 under a pipeline: micro-batches in buckets of equal work, each served by ranks of its own, which
    hence run pipelines of one level; numbers of micro-batches differ from rank to rank. The ranks that lag the most
    take from their bucket, from the fullest one where theirs is empty."""

    text: str = "ranks by levels of length, each with an equal part of the work; laggards take from all levels"

    def cut(self, lengths: Sequence[int], mesh: Mesh) -> list[MicroBatch]:
        return hybrid_cut(lengths, mesh)

    def place(self, micro_batches: Sequence[MicroBatch], work_s: Floats, mesh: Mesh) -> list[Placed]:
        degrees = np.array([one.degree for one in micro_batches])
        area = work_s * degrees
        levels = max(mesh.ranks // int(degrees.max()), 1)
        buckets = equal_buckets(_costliest_first(work_s), area, levels)
        bounds = [mesh.ranks * level // levels for level in range(levels + 1)]
        ready_s, placed = np.zeros(mesh.ranks), []
        for _ in micro_batches:
            level = bisect.bisect_right(bounds, int(ready_s.argmin())) - 1
            if buckets[level]:
                number, first, last = buckets[level].popleft(), bounds[level], bounds[level + 1]
            else:
                fullest = max(buckets, key=lambda bucket: sum(area[one] for one in bucket))
                number, first, last = fullest.popleft(), 0, mesh.ranks
            ranks = _given(ready_s[first:last], int(degrees[number]), mesh.domain, work_s[number])
            placed.append(Placed(number, tuple(first + rank for rank in ranks)))
        return placed


def equal_buckets(order: Sequence[int], area: Floats, count: int) -> list[deque[int]]:
    """The micro-batches in their order, split where so many equal parts of the whole work end."""
    buckets: list[deque[int]] = [deque() for _ in range(count)]
    before, whole = 0.0, float(area.sum())
    for number in order:
        middle = before + float(area[number]) / 2
        buckets[min(int(middle / whole * count), count - 1)].append(number)
        before += float(area[number])
    return buckets


POLICIES: Mapping[str, Policy] = {
    "static": Static(), "naive": Naive(), "dp-balance": DataBalance(), "pp-balance": PipelineBalance(),
}


def get(name: str) -> Policy:
    """Raises KeyError for a name that is not registered."""
    return POLICIES[name]


def lagging(ready_s: Floats, degree: int, domain: int) -> Ints:
    """The `degree` ranks that are ready first, ascending; inside one node where they fit and whole nodes exist."""
    if degree == 1:
        return np.array([ready_s.argmin()])
    if degree <= domain and len(ready_s) % domain == 0:
        nodes = np.sort(ready_s.reshape(-1, domain), axis=1)[:, degree - 1]
        node = int(nodes.argmin())
        inside = np.argsort(ready_s[node * domain : (node + 1) * domain], kind="stable")[:degree]
        return np.asarray(np.sort(node * domain + inside))
    return np.asarray(np.sort(np.argsort(ready_s, kind="stable")[:degree]))


def _given(ready_s: Floats, degree: int, domain: int, work_s: float) -> tuple[int, ...]:
    """The ranks that are ready first take so much work and start it together; `ready_s` is changed."""
    if degree == 1:
        rank = int(ready_s.argmin())
        ready_s[rank] += work_s
        return (rank,)
    ranks = lagging(ready_s, degree, domain)
    ready_s[ranks] = ready_s[ranks].max() + work_s
    return tuple(ranks.tolist())


def spans_domains(placed: Sequence[Placed], domain: int) -> NDArray[np.bool_]:
    """[placed]: whether a ring over these ranks leaves a node."""
    return np.array([one.ranks[0] // domain != one.ranks[-1] // domain for one in placed], dtype=bool)


def slots(placed: Sequence[Placed], ranks: int) -> Ints:
    """[placed]: the turn of each micro-batch, the same on all of its ranks and later than all that they run before."""
    following, found = [0] * ranks, []
    for one in placed:
        turn = max(following[rank] for rank in one.ranks)
        for rank in one.ranks:
            following[rank] = turn + 1
        found.append(turn)
    return np.array(found, dtype=np.int64)


def _consecutive(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def _costliest_first(work_s: Floats) -> list[int]:
    return [int(one) for one in np.argsort(-work_s, kind="stable")]
