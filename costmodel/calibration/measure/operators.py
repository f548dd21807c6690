"""Memory-bound pieces of a layer, the optimizer, and sums of gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from costmodel.calibration.measure import passes
from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import DTYPES, Bench, Budget, sample

HEAD_DIM = 64  # of rotary embeddings and norms of queries and keys
SEQUENCE = 256  # the rotary table is shared by sequences of this length
EXPERTS = 8  # whose results are joined
TOKENS_PER_WORD = 8  # of the embedding table, so that its gradient is mostly made of sums, not of zeros (`zero_fill`)


def measure(bench: Bench, point: dict[str, Any], budget: Budget) -> Timing:
    """One row of the table of operators."""
    operator = point["operator"]
    if operator in _STEPS:
        return sample(_STEPS[operator](bench, point), bench.clock, budget, 64)
    build = _BUILDS[operator](bench, point)
    if point["direction"] == "forward":
        return passes.forward(bench, build, budget, point["size_bytes"])
    return passes.backward(bench, build, budget, point["size_bytes"])


def _leaves(bench: Bench, point: dict[str, Any], parts: int, piece: Callable[..., Any],
            *weights: Any) -> passes.Build:
    """Inputs (rows, width), `parts` of them; then weights, which want gradients too."""
    turns = bench.turns((parts, point["rows"], point["width"]), point["type"])
    own = [passes.leaf(weight) for weight in weights]

    def build(turn: int) -> tuple[Sequence[Any], Callable[..., Any]]:
        return [*(passes.leaf(part) for part in turns[turn % len(turns)]), *own], piece

    return build


def _norm_residual(kind: str) -> Callable[[Bench, dict[str, Any]], passes.Build]:
    """The addition, whose result goes on beside the norm: its gradient is a sum of two."""

    def make(bench: Bench, point: dict[str, Any]) -> passes.Build:
        from costmodel.calibration import pieces

        def piece(x: Any, residual: Any, *weights: Any) -> Any:
            stream = x + residual
            norm = pieces.rms_norm if kind == "rms" else pieces.layer_norm
            return norm(stream, *weights), stream

        weights = [bench.one((point["width"],), point["type"]) for _ in range(1 if kind == "rms" else 2)]
        return _leaves(bench, point, 2, piece, *weights)

    return make


def _final_norm(bench: Bench, point: dict[str, Any]) -> passes.Build:
    from costmodel.calibration import pieces

    return _leaves(bench, point, 1, pieces.rms_norm, bench.one((point["width"],), point["type"]))


def _heads(bench: Bench, point: dict[str, Any], piece: Callable[..., Any], *weights: Any) -> passes.Build:
    """Queries and keys, half of the width each, as they lie in a product with the values."""
    dim = min(HEAD_DIM, point["width"] // 2)
    heads, sequence = point["width"] // 2 // dim, min(SEQUENCE, point["rows"])
    whole = bench.turns((point["rows"] // sequence, sequence, 3 * heads, dim), point["type"])
    own = [passes.leaf(weight) for weight in weights]

    def build(turn: int) -> tuple[Sequence[Any], Callable[..., Any]]:
        query, key, _ = whole[turn % len(whole)].split(heads, dim=2)
        return [passes.leaf(query), passes.leaf(key), *own], piece

    return build


def _rotary(bench: Bench, point: dict[str, Any]) -> passes.Build:
    import torch

    from costmodel.calibration import pieces

    table = pieces.rotary_table(min(SEQUENCE, point["rows"]), min(HEAD_DIM, point["width"] // 2),
                                getattr(torch, DTYPES[point["type"]]), bench.device)
    return _heads(bench, point, lambda query, key: (pieces.rotate(query, table), pieces.rotate(key, table)))


def _query_key_norm(bench: Bench, point: dict[str, Any]) -> passes.Build:
    from costmodel.calibration import pieces

    weights = [bench.one((min(HEAD_DIM, point["width"] // 2),), point["type"]) for _ in range(2)]

    def piece(query: Any, key: Any, first: Any, second: Any) -> Any:
        return pieces.rms_norm(query, first), pieces.rms_norm(key, second)

    return _heads(bench, point, piece, *weights)


def _gated(bench: Bench, point: dict[str, Any]) -> passes.Build:
    from costmodel.calibration import pieces

    return _leaves(bench, {**point, "width": 2 * point["width"]}, 1, pieces.gated)


def _plain(bench: Bench, point: dict[str, Any]) -> passes.Build:
    from costmodel.calibration import pieces

    return _leaves(bench, point, 1, pieces.plain)


def _permute(bench: Bench, point: dict[str, Any]) -> passes.Build:
    import torch

    order = torch.randperm(point["rows"], device=bench.device)
    return _leaves(bench, point, 1, lambda x: x[order])


def _unpermute(bench: Bench, point: dict[str, Any]) -> passes.Build:
    """Results of experts are joined, weighted and summed up for their tokens, two experts a token."""
    import torch

    rows, width = point["rows"], point["width"]
    tokens = torch.randperm(rows, device=bench.device) // 2

    def piece(made: Any, weights: Any) -> Any:
        joined = torch.cat(made.split(-(-rows // EXPERTS)))
        return torch.zeros(-(-rows // 2), width, dtype=made.dtype, device=made.device).index_add(
            0, tokens, joined * weights.unsqueeze(-1))

    return _leaves(bench, point, 1, piece, bench.one((rows,), point["type"]))


def _embedding(bench: Bench, point: dict[str, Any]) -> passes.Build:
    import torch

    from costmodel.calibration import pieces

    words = max(point["rows"] // TOKENS_PER_WORD, 1)
    tokens = torch.randint(words, (1, point["rows"]), device=bench.device)
    tables = bench.turns((words, point["width"]), point["type"])
    return lambda turn: ([passes.leaf(tables[turn % len(tables)])], lambda table: pieces.embed(tokens, table))


def _cross_entropy(bench: Bench, point: dict[str, Any]) -> passes.Build:
    import torch

    from costmodel.calibration import pieces

    targets = torch.randint(point["width"], (1, point["rows"]), device=bench.device)
    return _leaves(bench, point, 1, lambda logits: pieces.loss(logits.unsqueeze(0), targets))


def _optimizer(bench: Bench, point: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    """AdamW as torch makes it by default, over tensors that are new to every cache."""
    import torch

    rows, width = point["rows"], point["width"]
    sets = max(1, min(16, bench.pool_bytes // (16 * rows * width)))  # weight, gradient and two moments in fp32
    optimizers = []
    for _ in range(sets):
        weights = [torch.zeros(width, device=bench.device, requires_grad=True) for _ in range(rows)]
        for weight in weights:
            weight.grad = torch.full_like(weight, 1e-3)
        optimizers.append(torch.optim.AdamW(weights))
        optimizers[-1].step()  # makes the moments
    turns = itertools.cycle(optimizers)

    def prepare(count: int) -> Callable[[], object]:
        chosen = list(itertools.islice(turns, count))
        return lambda: [one.step() for one in chosen]

    return prepare


def _accumulate(bench: Bench, point: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    """A gradient that was just made is added to one that was not."""
    import torch

    new = bench.one((point["width"],), point["type"])
    count = max(2, min(64, bench.pool_bytes // (new.nelement() * new.element_size())))
    sums = itertools.cycle([torch.zeros_like(new) for _ in range(count)])

    def prepare(count: int) -> Callable[[], object]:
        chosen = list(itertools.islice(sums, count))
        return lambda: [one.add_(new) for one in chosen]

    return prepare


def _zero_fill(bench: Bench, point: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    import torch

    like = bench.one((point["width"],), point["type"])
    return lambda count: lambda: [torch.zeros_like(like) for _ in range(count)]


_STEPS: dict[str, Callable[[Bench, dict[str, Any]], Callable[[int], Callable[[], object]]]] = {
    "optimizer": _optimizer, "accumulate": _accumulate, "zero_fill": _zero_fill}
_BUILDS: dict[str, Callable[[Bench, dict[str, Any]], passes.Build]] = {
    "norm_residual_rms": _norm_residual("rms"), "norm_residual_layer": _norm_residual("layer"),
    "rotary": _rotary, "query_key_norm": _query_key_norm, "mlp_activation_gated": _gated, "mlp_activation": _plain,
    "permute": _permute, "unpermute": _unpermute, "embedding": _embedding, "final_norm": _final_norm,
    "cross_entropy": _cross_entropy}
