"""The variants of a sweep, by number: a product of axes that never stands in memory as a whole.

Variants are counted with the last axis varying fastest. They are evaluated in an order of their own (`chunk`), in
which the keys that `placement.search` prices as arrays vary fastest.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from placement.search.space import MESH, SIZES, STATES, WORK
from scenarios.document import plain
from scenarios.errors import Place, ScenarioError

MOST_VARIANTS = 100_000_000
_PRICED_TOGETHER = frozenset((*MESH, *SIZES, *WORK, *STATES))


@dataclass(frozen=True)
class Axis:
    """Keys that vary together. Row r gives `keys[k]` the value `values[k][rows[k][r]]`; None keeps the scenario's.

    `places[k]`: where each of the distinct `values[k]` was written first.
    """

    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]
    rows: tuple[array[int], ...]
    places: tuple[tuple[Place, ...], ...]

    def __len__(self) -> int:
        return len(self.rows[0])

    @property
    def is_priced_together(self) -> bool:
        return _PRICED_TOGETHER.issuperset(self.keys)


@dataclass(frozen=True)
class Grid:
    """All combinations of some axes. Raises ScenarioError where two axes set the same key, or one inside another."""

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        seen: list[str] = []
        for axis in self.axes:
            for key, places in zip(axis.keys, axis.places, strict=True):
                for other in seen:
                    if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
                        what = "is varied twice" if other == key else f"and {other} are varied, one inside the other"
                        raise ScenarioError.at(places[0], f"{key} {what}; write each key once")
                seen.append(key)
        if len(self) > MOST_VARIANTS:
            sizes = " x ".join(f"{len(axis):,}" for axis in self.axes)
            place = self.axes[0].places[0][0]
            raise ScenarioError.at(place, f"{sizes} = {math.prod(map(len, self.axes)):,} variants are more than "
                                          f"{MOST_VARIANTS:,}; vary fewer values")

    def __len__(self) -> int:
        return min(math.prod(len(axis) for axis in self.axes), MOST_VARIANTS + 1)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for axis in self.axes for key in axis.keys)

    def values(self, index: int) -> tuple[Any, ...]:
        """The value of every key in a variant, in the order of `keys`; None where the scenario's is kept."""
        found: list[tuple[Any, ...]] = []
        for axis in reversed(self.axes):
            index, row = divmod(index, len(axis))
            found.append(tuple(of[rows[row]] for of, rows in zip(axis.values, axis.rows, strict=True)))
        return tuple(value for values in reversed(found) for value in values)

    def settings(self, index: int) -> dict[str, Any]:
        """Dotted key -> value of a variant."""
        pairs = zip(self.keys, self.values(index), strict=True)
        return {key: value for key, value in pairs if value is not None}

    def name(self, index: int) -> str:
        """The variant's key: `plan.tensor=4;plan.recompute=full`."""
        return ";".join(f"{key}={text(value)}" for key, value in self.settings(index).items())

    def chunks(self, size: int) -> int:
        return -(-len(self) // size)

    def chunk(self, number: int, size: int) -> list[int]:
        """The variants of a chunk: they depend on its number and size alone, so that results do not depend on who
        evaluates how many at a time."""
        return [self._at(place) for place in range(number * size, min((number + 1) * size, len(self)))]

    def _at(self, place: int) -> int:
        """The variant at a place in the order of evaluation."""
        index = 0
        for axis, stride in self._order:
            place, row = divmod(place, len(axis))
            index += row * stride
        return index

    @cached_property
    def _order(self) -> tuple[tuple[Axis, int], ...]:
        """Axes with what one step along them adds to a variant's number, those that vary fastest first."""
        strides, stride = [], 1
        for axis in reversed(self.axes):
            strides.append((axis, stride))
            stride *= len(axis)
        return tuple(sorted(strides, key=lambda pair: not pair[0].is_priced_together))

    @cached_property
    def sha256(self) -> str:
        """Of keys, values and how they combine."""
        digest = hashlib.sha256()
        for axis in self.axes:
            digest.update(json.dumps([axis.keys, axis.values]).encode())
            for rows in axis.rows:
                digest.update(array("Q", rows).tobytes())
        return digest.hexdigest()


def text(value: Any) -> str:
    """A value as YAML on one line, always the same way.

    >>> text([True, 400, "400 W", "true", {"a": 0.5}])
    '[true,400,400 W,"true",{a: 0.5}]'
    """
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{text(str(key))}: {text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        bare = plain(value) == (value, "") and value.isprintable() and not set(value) & set("[]{},;:#'\"&*!|>%@`\\")
        quoted = json.dumps(value, ensure_ascii=False)
        escaped = "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)
        return value if bare and value == value.strip() else escaped
    return "true" if value is True else "false" if value is False else repr(value)


def axis_of(keys: Sequence[str], rows: Iterable[tuple[Sequence[Any], Sequence[Place]]]) -> Axis:
    """An axis from its rows: a value for each key, and where each was written.

    Raises ScenarioError for a row given twice.
    """
    numbers: list[dict[str, int]] = [{} for _ in keys]
    values: list[list[Any]] = [[] for _ in keys]
    first: list[list[Place]] = [[] for _ in keys]
    taken: tuple[array[int], ...] = tuple(array("L") for _ in keys)
    seen: set[bytes] = set()
    for row, places in rows:
        for column, (value, place) in enumerate(zip(row, places, strict=True)):
            number = numbers[column].setdefault(json.dumps(value), len(values[column]))
            if number == len(values[column]):
                values[column].append(value)
                first[column].append(place)
            taken[column].append(number)
        combination = array("L", (of[-1] for of in taken)).tobytes()
        if combination in seen:
            raise ScenarioError.at(places[0], f"{', '.join(map(text, row))} is given twice for {', '.join(keys)}")
        seen.add(combination)
    return Axis(tuple(keys), tuple(map(tuple, values)), taken, tuple(map(tuple, first)))
