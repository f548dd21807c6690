"""Units whose numbers are arrays of plans: laid side by side along a dimension, and cut to some places of it.

A number has as many dimensions as a block (placement.search.space), with length 1 along those it does not depend on;
plain numbers stay plain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar, cast

import numpy as np

from placement.passes import PassPrice
from placement.step import BUSY

Number = Any
Tree = TypeVar("Tree")
DIMENSIONS = 5


def along(values: Sequence[Any], dimension: int) -> Number:
    """Values of a dimension, as an array that broadcasts over the others."""
    shape = [1] * DIMENSIONS
    shape[dimension] = len(values)
    return np.array(values).reshape(shape)


def mapped(trees: Sequence[Tree], change: Callable[[Sequence[Number]], Number]) -> Tree:
    """One structure (a number, a mapping, or a dataclass of these) from several equal ones, number by number.

    Keys that one of several mappings lacks count as 0.
    """
    first: Any = trees[0]
    of: Sequence[Any] = trees
    changed: Any
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for tree in of for key in tree)
        changed = {key: mapped([tree.get(key, 0.0) for tree in of], change) for key in keys}
    elif hasattr(first, "__dataclass_fields__"):
        parts = {f.name: mapped([getattr(tree, f.name) for tree in of], change) for f in fields(first)}
        changed = replace(first, **parts)
    else:
        changed = change(of)
    return cast(Tree, changed)


def stacked(trees: Sequence[Tree], dimension: int) -> Tree:
    """Structures side by side along a dimension in which each of them has length 1."""

    def change(values: Sequence[Number]) -> Number:
        arrays = [np.asarray(value) for value in values]
        if all(array is arrays[0] or np.array_equal(array, arrays[0]) for array in arrays[1:]):
            return values[0]
        shape = np.broadcast_shapes((1,) * DIMENSIONS, *(array.shape for array in arrays))
        return np.concatenate([np.broadcast_to(array, shape) for array in arrays], axis=dimension)

    return mapped(trees, change)


def taken(tree: Tree, places: Mapping[int, Sequence[int]]) -> Tree:
    """The structure cut to some places along dimensions; numbers of length 1 there do not depend on it."""

    def change(values: Sequence[Number]) -> Number:
        (value,) = values
        if np.ndim(value) < DIMENSIONS:
            return value
        for dimension, where in places.items():
            if value.shape[dimension] > 1:
                value = np.take(value, where, axis=dimension)
        return value

    return mapped([tree], change)


def collapsed(price: PassPrice) -> PassPrice:
    """The price with its categories added up to two: the accelerator works, or it waits."""

    def sums(seconds: Mapping[str, Number]) -> dict[str, Number]:
        busy = sum(value for category, value in seconds.items() if category in BUSY)
        return {"gemm": busy, "launch": sum(value for key, value in seconds.items() if key not in BUSY)}

    return PassPrice(sums(price.forward), sums(price.backward))
