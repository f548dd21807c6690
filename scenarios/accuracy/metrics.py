"""Measures of agreement, over arrays of numbers; nothing here knows what a row is.

error = predicted / measured - 1: positive means predicted too fast (or, for memory, too large).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


def statistics(errors: Sequence[float], absolute: Sequence[float] | None = None) -> dict[str, Any]:
    """mape, median_ape, p90_ape and bias (mean error) as fractions; None where there is nothing.

    `absolute` stands in for |errors| where a unit is a mean over rows (a vTrain cell).

    >>> statistics([0.1, -0.3])["mape"], statistics([0.1, -0.3])["bias"]
    (0.2, -0.09999999999999999)
    """
    if not len(errors):
        return {"mape": None, "median_ape": None, "p90_ape": None, "bias": None}
    sizes = np.abs(np.asarray(errors, float)) if absolute is None else np.asarray(absolute, float)
    return {
        "mape": float(sizes.mean()),
        "median_ape": float(np.median(sizes)),
        "p90_ape": float(np.percentile(sizes, 90)),
        "bias": float(np.mean(errors)),
    }


def _pairs(count: int) -> Pairs:
    first, second = np.triu_indices(count, 1)
    return first, second


def kendall_tau(measured: ArrayLike, predicted: ArrayLike) -> float | None:
    """Kendall's tau-b: concordant less discordant pairs over sqrt(pairs untied in each). None where one is all ties.

    >>> kendall_tau([1, 2, 3], [10, 30, 20])
    0.3333333333333333
    """
    a, b = np.asarray(measured, float), np.asarray(predicted, float)
    first, second = _pairs(len(a))
    da, db = np.sign(a[first] - a[second]), np.sign(b[first] - b[second])
    untied = float(np.count_nonzero(da)) * float(np.count_nonzero(db))
    return float((da * db).sum() / np.sqrt(untied)) if untied else None


def ordered_pairs(
    measured: ArrayLike, predicted: ArrayLike, least: float = 0.03, most: float = 0.35
) -> tuple[int, int]:
    """(pairs whose measured values differ by `least` to `most`, relative to the smaller; those ordered right)."""
    a, b = np.asarray(measured, float), np.asarray(predicted, float)
    first, second = _pairs(len(a))
    apart = np.maximum(a[first], a[second]) / np.minimum(a[first], a[second]) - 1.0
    counted = (apart >= least) & (apart <= most)
    right = (a[first] - a[second]) * (b[first] - b[second]) > 0
    return int(counted.sum()), int((counted & right).sum())


def loss_of_choice(measured: ArrayLike, predicted: ArrayLike) -> float:
    """Speed lost by running the plan predicted fastest: 1 - measured of it / best measured."""
    a = np.asarray(measured, float)
    return float(1.0 - a[int(np.argmax(np.asarray(predicted, float)))] / a.max())
