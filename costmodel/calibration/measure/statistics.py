"""Repeats of one measurement become the columns of its row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work over its repeats.

    `seconds` is the median, `low_s` the 20 % quantile, `least_s` the least; `spread` is (p75 - p25) / median. A
    `wall_over_cpu` well above 1 says that other work took the processor away. None: not known.
    """

    seconds: float
    low_s: float
    least_s: float
    spread: float | None
    repeats: int
    wall_over_cpu: float | None = None


def timing(seconds: Sequence[float], wall_over_cpu: float | None = None) -> Timing:
    """The statistics of at least one repeat.

    >>> timing([1.0, 2.0, 3.0, 4.0, 5.0])
    Timing(seconds=3.0, low_s=1.8, least_s=1.0, spread=0.6666666666666666, repeats=5, wall_over_cpu=None)
    """
    low, first, median, third = (float(value) for value in np.quantile(seconds, [0.2, 0.25, 0.5, 0.75]))
    spread = (third - first) / median if median > 0 else 0.0
    return Timing(median, low, float(min(seconds)), spread, len(seconds), wall_over_cpu)
