"""Which of many points no other point betters in every respect."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def front(points: ArrayLike) -> NDArray[np.intp]:
    """Indices of the points (rows, all columns to be small) that no other row is as small as everywhere; of equal rows
    the first. Sorted by the first column.

    >>> front([[1, 5], [2, 4], [2, 6], [3, 4], [1, 5]]).tolist()
    [0, 1]
    """
    rows = np.asarray(points, dtype=float)
    left = np.lexsort(rows.T[::-1])  # by the first column, then the next: what betters a row stands before it
    kept = []
    while len(left):
        pivot, left = left[0], left[1:]
        kept.append(pivot)
        left = left[(rows[left] < rows[pivot]).any(axis=1)]
    return np.array(kept, dtype=np.intp)
