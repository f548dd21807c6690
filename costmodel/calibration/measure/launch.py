"""What a kernel and a node of the gradient graph cost beside their work: operands of a few bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Bench, Budget, sample, wall_clock

_TIMES = 200  # a repeat


def measure(bench: Bench, point: dict[str, Any], budget: Budget) -> Timing:
    """One call of small-op (an addition) or small-linear (8 x 8), from Python; or autograd-node, one step of the engine
    through a view. On a GPU by the wall, with all of a repeat's launches waited for: the slower of host and device."""
    found = sample(_WORKS[point["kind"]](bench), _clock(bench), budget, 1)
    return Timing(found.seconds / _TIMES, found.low_s / _TIMES, found.least_s / _TIMES, found.spread, found.repeats,
                  found.wall_over_cpu)


def _clock(bench: Bench) -> Any:
    if bench.device != "cuda":
        return bench.clock
    import torch

    def clock(call: Callable[[], object]) -> tuple[float, float]:
        def whole() -> None:
            call()
            torch.cuda.synchronize()

        torch.cuda.synchronize()
        return wall_clock(whole)

    return clock


def _small_op(bench: Bench) -> Callable[[int], Callable[[], object]]:
    import torch

    x = torch.ones(8, device=bench.device)

    def call() -> None:
        for _ in range(_TIMES):
            torch.add(x, x)

    return lambda _: call


def _small_linear(bench: Bench) -> Callable[[int], Callable[[], object]]:
    import torch
    from torch.nn import functional

    x, weight = torch.ones(8, 8, device=bench.device), torch.ones(8, 8, device=bench.device)

    def call() -> None:
        for _ in range(_TIMES):
            functional.linear(x, weight)

    return lambda _: call


def _autograd_node(bench: Bench) -> Callable[[int], Callable[[], object]]:
    import torch

    x = torch.ones(8, device=bench.device, requires_grad=True)
    gradient = torch.ones(8, device=bench.device)

    def prepare(_: int) -> Callable[[], object]:
        chain = x
        for _ in range(_TIMES):
            chain = chain.view(8)
        return lambda: torch.autograd.grad(chain, x, gradient)

    return prepare


_WORKS = {"small-op": _small_op, "small-linear": _small_linear, "autograd-node": _autograd_node}
