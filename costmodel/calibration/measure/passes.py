"""Forward and backward of one piece of a layer, timed as a step runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Bench, Budget, sample

Build = Callable[[int], tuple[Sequence[Any], Callable[..., Any]]]  # turn -> (inputs with gradients, the piece)
_MOST_HELD_BYTES = 1 << 30  # graphs that wait for their backward pass


def forward(bench: Bench, build: Build, budget: Budget, held_bytes: float) -> Timing:
    """The piece with its graph recorded. Inputs were just made: each repeat reads the same; what it makes, about
    `held_bytes`, is kept for a while as a step keeps it, so that results go to memory and not to the cache."""
    inputs, piece = build(0)
    kept = bench.kept(held_bytes)

    def prepare(count: int) -> Callable[[], object]:
        def call() -> None:
            for _ in range(count):
                kept.append(piece(*inputs))

        return call

    return sample(prepare, bench.clock, budget)


def backward(bench: Bench, build: Build, budget: Budget, held_bytes: float) -> Timing:
    """Gradients of all inputs for gradients of the results that were just made.

    Graphs are recorded before, one for each of the `count` and with inputs in turn, so that what they hold
    (`held_bytes` each) comes from memory; one call of the engine runs all of them.
    """
    import torch

    turn = 0
    first = _results(build(0))
    gradients = [torch.randn_like(one) for one in first]
    del first

    def prepare(count: int) -> Callable[[], object]:
        nonlocal turn
        outputs: list[Any] = []
        inputs: list[Any] = []
        for _ in range(count):
            built = build(turn)
            turn += 1
            inputs += built[0]
            outputs += _results(built)
        return lambda: torch.autograd.grad(outputs, inputs, gradients * count)

    most = max(1, min(16, int(_MOST_HELD_BYTES / max(held_bytes, 1.0))))
    return sample(prepare, bench.clock, budget, most)


def _results(built: tuple[Sequence[Any], Callable[..., Any]]) -> list[Any]:
    """What the piece gives, always as a list."""
    inputs, piece = built
    made = piece(*inputs)
    return list(made) if isinstance(made, tuple) else [made]


def leaf(tensor: Any) -> Any:
    """The same memory as a tensor that wants its gradient."""
    return tensor.detach().requires_grad_()
