"""Copies of memory, on the device and between it and the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Bench, Budget, sample


def measure(bench: Bench, point: dict[str, Any], budget: Budget) -> Timing:
    """`size_bytes` are copied, so twice as many are moved; the host's memory is pinned. From and to memory in turn."""
    import torch

    size, kind = point["size_bytes"], point["kind"]
    pairs = max(2, min(64, bench.pool_bytes // (2 * size)))

    def block(on_host: bool) -> Any:
        if on_host:
            return torch.ones(size, dtype=torch.int8, pin_memory=True)
        return torch.ones(size, dtype=torch.int8, device=bench.device)

    sources = [block(kind == "host-to-device") for _ in range(pairs)]
    targets = [block(kind == "device-to-host") for _ in range(pairs)]
    turns = itertools.cycle(zip(sources, targets, strict=True))

    def prepare(count: int) -> Callable[[], object]:
        chosen = list(itertools.islice(turns, count))
        return lambda: [target.copy_(source, non_blocking=True) for source, target in chosen]

    return sample(prepare, bench.clock, budget)
