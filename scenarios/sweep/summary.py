"""What a sweep found, in short: how many variants of each kind, the best few, what makes others invalid."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any

from scenarios.sweep.columns import INVALID, OK, RESULTS, STATUSES, Row
from scenarios.sweep.grid import Grid

BEST = 5
BY: dict[str, str] = {"time": "step_time_s", "cost": "cost_usd_per_million_tokens"}


class Summary:
    """Takes rows in any order, each once; what it says does not depend on the order."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter(dict.fromkeys(STATUSES, 0))
        self.invalid_by_key: Counter[str] = Counter()  # the key that the first reason of each names
        self._best: dict[str, list[tuple[float, int, Row]]] = {name: [] for name in BY}

    def add(self, row: Row) -> None:
        self.statuses[row.status] += 1
        if row.status == INVALID:
            self.invalid_by_key[row.reason.partition(":")[0]] += 1
        if row.status != OK:
            return
        for name, column in BY.items():
            value, held = row.number(column), self._best[name]
            if value is not None:
                entry = (-value, -row.index, row)
                if len(held) < BEST:
                    heapq.heappush(held, entry)
                else:
                    heapq.heappushpop(held, entry)

    def best(self, by: str) -> list[Row]:
        """The few that fit and are best, ties in the order of the variants."""
        return [row for _, _, row in sorted(self._best[by], key=lambda entry: entry[:2], reverse=True)]

    def document(self, grid: Grid) -> dict[str, Any]:
        """The summary in plain values."""
        keys = sorted(self.invalid_by_key.items(), key=lambda pair: (-pair[1], pair[0]))
        return {
            "variants": len(grid),
            "statuses": dict(self.statuses),
            "invalid_by_key": dict(keys),
            **{f"best_by_{by}": [_plain(grid, row) for row in self.best(by)] for by in BY},
        }


def _plain(grid: Grid, row: Row) -> dict[str, Any]:
    return {"variant": grid.name(row.index), "set": grid.settings(row.index),
            **dict(zip(RESULTS, row.numbers, strict=True))}
