"""Matrix products as torch's linear layers run them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Bench, Budget, sample


def measure(bench: Bench, point: dict[str, Any], budget: Budget) -> Timing:
    """(m x k) . (k x n): rows just made, so always the same; weights come in turn from memory, results go there."""
    import torch
    from torch.nn import functional

    m, n, k, type_name = point["m"], point["n"], point["k"], point["type"]
    rows = bench.one((m, k), type_name)
    weights = itertools.cycle(bench.turns((n, k), type_name))

    kept = bench.kept(m * n * rows.element_size())

    def prepare(count: int) -> Callable[[], object]:
        chosen = list(itertools.islice(weights, count))

        def call() -> None:
            for weight in chosen:
                kept.append(functional.linear(rows, weight))

        return call

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if type_name == "tf32" else "highest")
    try:
        with torch.no_grad():
            return sample(prepare, bench.clock, budget)
    finally:
        torch.set_float32_matmul_precision(before)
