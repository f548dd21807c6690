"""Causal attention, forward and backward, as the layer calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from costmodel.calibration.measure import passes
from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Bench, Budget


def measure(bench: Bench, point: dict[str, Any], budget: Budget) -> Timing:
    """Queries (batch, sequence, heads, head_dim) and as many keys and values, of kv_heads heads."""
    from costmodel.calibration import pieces

    batch, sequence, dim = point["batch"], point["sequence"], point["head_dim"]
    heads, few = point["heads"], point["kv_heads"]
    whole = bench.turns((batch, sequence, heads + 2 * few, dim), point["type"])

    def build(turn: int) -> tuple[Sequence[Any], Callable[..., Any]]:
        query, key, value = whole[turn % len(whole)].split((heads, few, few), dim=2)
        return [passes.leaf(query), passes.leaf(key), passes.leaf(value)], pieces.attend

    held = 2.0 * whole[0].nelement() * whole[0].element_size()
    if point["direction"] == "forward":
        return passes.forward(bench, build, budget, held)
    return passes.backward(bench, build, budget, held)
