"""Who gets how much of a batch and of the training states, where accelerators are unequal: a solver, and the rules.

Each accelerator takes samples b = m l (l micro-batches of m) and a share r of the states; the shares of both add up to
the whole (Cephalo, arXiv 2411.01075). What limits a step is the slowest accelerator in each pass and, since a gather
waits for its longest piece, the largest share of the states. `solved` finds the division with the least step time:

- a dynamic programme over accelerators and samples says, for given bounds on a forward pass, on a backward pass and on
  the largest share, whether the batch can be dealt so that the states find room (sum of min(room, largest) >= 1);
- the least largest share under given bounds on the passes is found by bisection;
- the bounds on the passes are those of single choices, so a branch and bound over pairs of them is exact, up to the
  tolerance of the bisection.

Everything here is numbers; where they come from stands in `placement.unequal`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Columns = tuple[NDArray[np.int64], Floats, Floats, Floats]  # samples, forward_s, backward_s, room of choices
SHARE_TOLERANCE = 1e-4  # relative, of the bisection for the largest share of the states
TIME_TOLERANCE = 1e-6  # relative, below which a better division is not looked for
MOST_SAMPLES = 1024  # the programme grows with the square of the batch
MOST_RANKS = 16_384  # a division remembers a line of the programme for each
WHOLE, LAYERED = "whole", "layered"


@dataclass(frozen=True)
class Kind:
    """`count` equal accelerators. Arrays hold a value for every micro-batch from 0 (which costs nothing) samples up."""

    name: str
    count: int
    forward_s: Floats
    backward_s: Floats
    kept_bytes: Floats  # of activations from forward to backward
    once_bytes: Floats  # of activations that only one micro-batch at a time needs
    room_bytes: float  # for activations and states


@dataclass(frozen=True)
class Problem:
    """A batch and the states to be divided.

    traffic: the largest share of the states -> seconds of all gathers of a forward pass, of all gathers and reductions
    of a backward pass, and of the update. overlap_cost: what communication beside compute costs of its length;
    None where it does not run beside compute.
    """

    kinds: tuple[Kind, ...]
    batch: int
    state_bytes: float
    traffic: Callable[[float], tuple[float, float, float]]
    overlap_cost: float | None

    @property
    def ranks(self) -> int:
        return sum(kind.count for kind in self.kinds)

    def pass_s(self, compute_s: float, traffic_s: float) -> float:
        """A pass with its traffic, hidden as far as compute lasts."""
        if self.overlap_cost is None:
            return compute_s + traffic_s
        hidden = min(compute_s, traffic_s)
        return compute_s + traffic_s - hidden + self.overlap_cost * hidden

    def step_s(self, forward_s: float, backward_s: float, largest: float, passes: int) -> float:
        """The step of which the slowest forward and backward and the largest share of states are known."""
        gather_s, back_s, update_s = self.traffic(largest)
        return passes * (self.pass_s(forward_s, gather_s) + self.pass_s(backward_s, back_s)) + update_s


@dataclass(frozen=True)
class Choice:
    """What one accelerator runs: `micro_batches` of `micro_batch` samples, with so much compute a pass and so much
    memory; `room` is the share of the states that fits beside it (negative: not even the activations fit)."""

    micro_batch: int
    micro_batches: int
    forward_s: float
    backward_s: float
    activation_bytes: float
    room: float

    @property
    def samples(self) -> int:
        return self.micro_batch * self.micro_batches


@dataclass(frozen=True)
class Group:
    """Equal accelerators with equal choices and shares."""

    kind: int
    count: int
    choice: Choice
    state_share: float


@dataclass(frozen=True)
class Division:
    """Who gets what. `passes`: micro-batches that go through the whole model one after another (1 where a layer runs
    all of them before the next)."""

    groups: tuple[Group, ...]
    passes: int
    step_s: float

    @property
    def lacking(self) -> float:
        """The largest share of the states for which an accelerator has no room; 0 where everything fits."""
        return max(0.0, *(group.state_share - group.choice.room for group in self.groups))

    @property
    def fits(self) -> bool:
        return self.lacking <= 1e-9

    @property
    def accumulation(self) -> str:
        """How micro-batches follow one another, where there are several."""
        return WHOLE if self.passes > 1 else LAYERED

    @property
    def largest_share(self) -> float:
        return max(group.state_share for group in self.groups)

    @property
    def forward_s(self) -> float:
        """Compute of the slowest forward pass."""
        return max(group.choice.forward_s for group in self.groups)

    @property
    def backward_s(self) -> float:
        return max(group.choice.backward_s for group in self.groups)


class Policy(Protocol):
    """How a problem is divided; always an answer, which says whether it fits."""

    def __call__(self, problem: Problem) -> Division: ...


@dataclass(frozen=True)
class Rules:
    """A policy by what it may choose: how many samples each takes, how much of the states each holds, and whether a
    layer may run all its micro-batches before the next layer begins."""

    free_batch: bool
    free_states: bool
    layered: bool
    text: str
    source: str

    def __call__(self, problem: Problem) -> Division:
        found: Division | None = None
        for passes in self.passes(problem):
            found = solved(problem, self, passes, found.step_s if found else np.inf) or found
        if found is not None:
            return found
        nearest = (closest(problem, self, passes) for passes in self.passes(problem))
        return min(nearest, key=lambda one: (one.lacking, one.step_s))

    def passes(self, problem: Problem) -> list[int]:
        """How often micro-batches may go through the whole model in a step."""
        batch = problem.batch if self.free_batch else problem.batch // problem.ranks
        return [passes for passes in range(1, batch + 1) if batch % passes == 0]


POLICIES: Mapping[str, Rules] = {
    "equal": Rules(False, False, False, "equal batches and equal shards, as on equal accelerators", "arXiv 2304.11277"),
    "by-speed": Rules(True, False, False, "batches by speed, equal shards", "arXiv 2411.01075, its baselines"),
    "by-memory": Rules(False, True, False, "equal batches, shards by the memory that is left", "arXiv 2411.01075"),
    "decoupled": Rules(True, True, True, "batches by speed, shards by the memory that is left", "arXiv 2411.01075"),
}


def get(name: str) -> Rules:
    """Raises KeyError."""
    return POLICIES[name]


def choices(problem: Problem, rules: Rules, passes: int, kind: Kind) -> list[Choice]:
    """What an accelerator of a kind may run in each of `passes` passes; none that is worse in every respect than
    another with as many samples."""
    most = min(len(kind.forward_s) - 1, problem.batch // passes)
    found = [Choice(0, 0, 0.0, 0.0, 0.0, kind.room_bytes / problem.state_bytes)]
    for micro_batch in range(1, most + 1):
        for count in range(1, (problem.batch // micro_batch if rules.layered and passes == 1 else 1) + 1):
            held = count * kind.kept_bytes[micro_batch] + kind.once_bytes[micro_batch]
            found.append(Choice(micro_batch, count, count * float(kind.forward_s[micro_batch]),
                                count * float(kind.backward_s[micro_batch]), float(held),
                                float(kind.room_bytes - held) / problem.state_bytes))
    if not rules.free_batch:
        found = [one for one in found if one.samples * problem.ranks * passes == problem.batch]
    return [one for one in _undominated(found) if one.samples * passes <= problem.batch]


def _undominated(found: Iterable[Choice]) -> Iterator[Choice]:
    """The choices that no other with as many samples beats in time, both ways, and in room."""
    def order(one: Choice) -> tuple[int, float, float, float]:
        return one.samples, one.forward_s, one.backward_s, -one.room

    for _, group in groupby(sorted(found, key=order), key=lambda one: one.samples):
        kept: list[Choice] = []
        for one in group:
            if not any(other.backward_s <= one.backward_s and other.room >= one.room for other in kept):
                kept.append(one)
        yield from kept


def solved(problem: Problem, rules: Rules, passes: int, below_s: float = np.inf) -> Division | None:
    """The fastest division in which everything fits, None where none takes less than `below_s`."""
    return _Search(problem, rules, passes).fastest(below_s)


def closest(problem: Problem, rules: Rules, passes: int) -> Division:
    """Where nothing fits: the fastest division of equal shards among the choices that need the least memory."""
    true = [choices(problem, rules, passes, kind) for kind in problem.kinds]
    lean = []
    for of_kind in true:
        by_samples = groupby(of_kind, key=lambda one: one.samples)
        lean.append([replace(max(group, key=lambda one: one.room), room=1.0) for _, group in by_samples])
    found = _Search(problem, replace(rules, free_states=False), passes, lean).fastest()
    assert found is not None, "without limits of memory every batch can be dealt"
    known = [{(one.micro_batch, one.micro_batches): one for one in of_kind} for of_kind in true]
    groups = tuple(replace(group, choice=known[group.kind][group.choice.micro_batch, group.choice.micro_batches])
                   for group in found.groups)
    return replace(found, groups=groups)


class _Search:
    """Branch and bound over the slowest forward and backward pass."""

    def __init__(
        self, problem: Problem, rules: Rules, passes: int, dealt: list[list[Choice]] | None = None
    ) -> None:
        self.problem, self.rules, self.passes = problem, rules, passes
        self.samples = problem.batch // passes
        self.choices = [choices(problem, rules, passes, kind) for kind in problem.kinds] if dealt is None else dealt
        self.columns = [_columns(of_kind) for of_kind in self.choices]

    def fastest(self, below_s: float = np.inf) -> Division | None:
        forwards = sorted({one.forward_s for of_kind in self.choices for one in of_kind})
        backwards = sorted({one.backward_s for of_kind in self.choices for one in of_kind})
        if not forwards:
            return None
        best, best_s = None, below_s
        boxes = [(0.0, (0, len(forwards) - 1, 0, len(backwards) - 1))]
        while boxes:
            least_s, (low, high, early, late) = heapq.heappop(boxes)
            if least_s >= best_s * (1.0 - TIME_TOLERANCE):
                break
            largest = self.least_largest(forwards[high], backwards[late])
            if largest is None:
                continue
            reached_s = self.problem.step_s(forwards[high], backwards[late], largest, self.passes)
            if reached_s < best_s:
                best, best_s = (forwards[high], backwards[late], largest), reached_s
            for box in _halves((low, high, early, late)):
                bound_s = self.problem.step_s(forwards[box[0]], backwards[box[2]], largest, self.passes)
                if bound_s < best_s * (1.0 - TIME_TOLERANCE):
                    heapq.heappush(boxes, (bound_s, box))
        return None if best is None else self.division(*best)

    def least_largest(self, forward_s: float, backward_s: float) -> float | None:
        """The least largest share of the states under bounds on the passes, None where they leave no division."""
        low, high = 1.0 / self.problem.ranks, 1.0
        if self.holds(forward_s, backward_s, low):
            return low
        if not self.rules.free_states or not self.holds(forward_s, backward_s, high):
            return None
        while high - low > SHARE_TOLERANCE * low:
            middle = (low + high) / 2.0
            low, high = (low, middle) if self.holds(forward_s, backward_s, middle) else (middle, high)
        return high

    def holds(self, forward_s: float, backward_s: float, largest: float) -> bool:
        """Whether the batch can be dealt so that the states find room."""
        total = np.array([0.0] + [-np.inf] * self.samples)
        for kind, of_kind in zip(self.problem.kinds, self.columns, strict=True):
            one = self.held(of_kind, forward_s, backward_s, largest)
            total = _joined(total, _repeated(one, kind.count))
        return bool(total[self.samples] >= 1.0 - 1e-9)

    def held(self, of_kind: Columns, forward_s: float, backward_s: float, largest: float) -> Floats:
        """[samples + 1]: most of the states that one accelerator can hold beside so many samples; -inf: not possible.

        Where the shards are equal it must have room for an equal one.
        """
        best = np.full(self.samples + 1, -np.inf)
        needed = 0.0 if self.rules.free_states else largest * (1.0 - 1e-9)
        samples, forward, backward, room = of_kind
        allowed = (forward <= forward_s) & (backward <= backward_s) & (room >= needed)
        np.maximum.at(best, samples[allowed], np.minimum(room[allowed], largest))
        return best

    def division(self, forward_s: float, backward_s: float, largest: float) -> Division:
        """The division behind bounds that hold: samples dealt one accelerator at a time, then states filled up to one
        level."""
        owners = [index for index, kind in enumerate(self.problem.kinds) for _ in range(kind.count)]
        ones = [self.held(of_kind, forward_s, backward_s, largest) for of_kind in self.columns]
        totals = [np.array([0.0] + [-np.inf] * self.samples)]
        for owner in owners:
            totals.append(_joined(totals[-1], ones[owner]))
        dealt: list[tuple[int, Choice]] = []
        left = self.samples
        for owner, before in zip(reversed(owners), reversed(totals[:-1]), strict=True):
            taken = int(np.argmax(before[left::-1] + ones[owner][: left + 1]))
            allowed = [one for one in self.choices[owner] if one.samples == taken and one.forward_s <= forward_s
                       and one.backward_s <= backward_s]
            dealt.append((owner, max(allowed, key=lambda one: one.room)))
            left -= taken
        level = _level([choice.room for _, choice in dealt])
        counted = sorted(Counter(dealt).items(), key=lambda item: (item[0][0], -item[0][1].samples))
        groups = tuple(Group(kind, count, choice, min(choice.room, level)) for (kind, choice), count in counted)
        found = Division(groups, self.passes, 0.0)
        time_s = self.problem.step_s(found.forward_s, found.backward_s, found.largest_share, self.passes)
        return replace(found, step_s=time_s)


def _columns(of_kind: Sequence[Choice]) -> Columns:
    found = np.array([(one.samples, one.forward_s, one.backward_s, one.room) for one in of_kind]).reshape(-1, 4)
    return found[:, 0].astype(np.int64), found[:, 1], found[:, 2], found[:, 3]


def _halves(box: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """A box of bounds cut across its longer side; none where it holds one pair."""
    low, high, early, late = box
    if high - low >= late - early and high > low:
        middle = (low + high) // 2
        return [(low, middle, early, late), (middle + 1, high, early, late)]
    if late > early:
        middle = (early + late) // 2
        return [(low, high, early, middle), (low, high, middle + 1, late)]
    return []


def _joined(first: Floats, second: Floats) -> Floats:
    """[n]: the most that two together hold beside so many samples: max over i of first[i] + second[n - i]."""
    some, other = (first, second) if np.isfinite(first).sum() <= np.isfinite(second).sum() else (second, first)
    result = np.full(len(first), -np.inf)
    for index in np.flatnonzero(np.isfinite(some)):
        np.maximum(result[index:], some[index] + other[: len(other) - index], out=result[index:])
    return result


def _repeated(one: Floats, count: int) -> Floats:
    """`count` equal ones together, by doubling."""
    total = np.array([0.0] + [-np.inf] * (len(one) - 1))
    while count:
        if count % 2:
            total = _joined(total, one)
        count //= 2
        one = _joined(one, one) if count else one
    return total


def _level(rooms: Sequence[float]) -> float:
    """The least level to which rooms can be filled so that one whole is held: sum of min(room, level) = 1.

    >>> round(_level([0.1, 2.0, 2.0]), 3), round(_level([1.0, 1.0]), 3)
    (0.45, 0.5)
    """
    ordered = sorted(rooms)
    filled = 0.0
    for index, room in enumerate(ordered):
        level = (1.0 - filled) / (len(ordered) - index)
        if level <= room:
            return level
        filled += room
    return ordered[-1]
