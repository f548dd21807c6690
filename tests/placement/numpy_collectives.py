"""Ring collectives between the ranks of a mesh, as explicit exchanges of NumPy arrays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product

import numpy as np

from placement.semantics import Communication
from placement.states import AXIS_ORDER, Axis

Vectors = dict[int, np.ndarray]  # by rank


class World:
    """Ranks of a mesh, and ring collectives between them that count what each rank sends."""

    def __init__(self, degrees: dict[Axis, int]) -> None:
        self.degrees = {axis: degrees.get(axis, 1) for axis in AXIS_ORDER if axis is not Axis.MEMORY}
        grid = product(*(range(n) for n in self.degrees.values()))
        self.coordinates = [dict(zip(self.degrees, place, strict=True)) for place in grid]
        self.ranks = range(len(self.coordinates))
        self.sent: dict[Communication, np.ndarray] = {}

    def groups(self, axes: Sequence[Axis], among: Sequence[int]) -> list[list[int]]:
        """Ranks that differ on `axes` only, ordered with the inner axis most significant."""
        found: dict[tuple, list[int]] = defaultdict(list)
        for rank in among:
            found[tuple(n for a, n in self.coordinates[rank].items() if a not in axes)].append(rank)
        place = self.coordinates
        return [sorted(group, key=lambda r: [place[r][a] for a in axes]) for group in found.values()]

    def count(self, one: Communication, rank: int, nbytes: int) -> None:
        self.sent.setdefault(one, np.zeros(len(self.ranks)))[rank] += nbytes

    def reduce_scatter(self, one: Communication, arrays: Vectors, axis: int = 0) -> Vectors:
        """Rank i of a group gets chunk i of the sum."""
        result = {}
        for group in self.groups(one.axes, list(arrays)):
            n = len(group)
            held = [np.split(arrays[rank].copy(), n, axis) for rank in group]
            for step in range(n - 1):
                moving = [held[i][(i - step - 1) % n].copy() for i in range(n)]
                for i, rank in enumerate(group):
                    self.count(one, rank, moving[i].nbytes)
                    held[(i + 1) % n][(i - step - 1) % n] += moving[i]
            result |= {rank: held[i][i] for i, rank in enumerate(group)}
        return result

    def all_gather(self, one: Communication, arrays: Vectors) -> dict[int, list[np.ndarray]]:
        """Every rank gets the chunks of its group, in group order."""
        result = {}
        for group in self.groups(one.axes, list(arrays)):
            n = len(group)
            held: list[dict[int, np.ndarray]] = [{i: arrays[rank]} for i, rank in enumerate(group)]
            for step in range(n - 1):
                for i, rank in enumerate(group):
                    chunk = held[i][(i - step) % n]
                    self.count(one, rank, chunk.nbytes)
                    held[(i + 1) % n][(i - step) % n] = chunk
            result |= {rank: [held[i][j] for j in range(n)] for i, rank in enumerate(group)}
        return result

    def all_to_all_sum(self, one: Communication, arrays: Vectors) -> Vectors:
        """Every rank sends each chunk to its owner, who sums what it got."""
        result = {}
        for group in self.groups(one.axes, list(arrays)):
            n = len(group)
            held = [np.split(arrays[rank], n) for rank in group]
            for i, rank in enumerate(group):
                result[rank] = np.sum([held[j][i] for j in range(n)], axis=0)
                self.count(one, rank, sum(held[i][j].nbytes for j in range(n) if j != i))
        return result

    def broadcasts(self, one: Communication, arrays: Vectors) -> dict[int, list[np.ndarray]]:
        """The ranks of a group send their chunk one after another, each along a chain of the others."""
        result = {}
        for group in self.groups(one.axes, list(arrays)):
            n = len(group)
            for root in range(n):
                for step in range(n - 1):
                    self.count(one, group[(root + step) % n], arrays[group[root]].nbytes)
            result |= {rank: [arrays[member].copy() for member in group] for rank in group}
        return result

    def all_reduce(self, one: Communication, arrays: Vectors) -> Vectors:
        """A ring reduce-scatter followed by a ring all-gather of the flat arrays."""
        flat = {rank: array.ravel() for rank, array in arrays.items()}
        whole = self.all_gather(one, self.reduce_scatter(one, flat))
        return {rank: np.concatenate(whole[rank]).reshape(arrays[rank].shape) for rank in arrays}
