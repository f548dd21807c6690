"""Collectives over ranks of this machine: one launch for all points of a number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from costmodel.calibration import ranks as real_ranks
from costmodel.calibration.measure.statistics import Timing

WORKER = "costmodel.calibration.measure.collectives_worker"
_STARTING_S = 120.0  # torch is imported in each rank, all on the same processors


def measure(points: Sequence[dict[str, Any]], device: str, ranks: int, budget_s: float,
            add: Callable[[dict[str, Any], Timing], None]) -> None:
    """Measures all points with one launch of so many ranks; `add` gets each row as soon as it is known.

    Raises RanksError where a rank dies, or all take more than a generous limit.
    """
    def tell(line: str) -> None:
        if line.startswith("{"):
            row = json.loads(line)
            add(row["point"], Timing(**row["timing"]))

    job = {"device": device, "points": list(points), "budget_s": budget_s}
    timeout_s = _STARTING_S + len(points) * (20 * budget_s + 5.0)
    real_ranks.launch(WORKER, job, ranks, timeout_s=timeout_s, tell=tell)
