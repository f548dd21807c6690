"""MixLoRA: experts that are adapters of one frozen MLP, chosen by a router (arXiv 2404.15159).

Each of E experts is the frozen gated MLP (W1 gate, W3 up, W2 down) with LoRA adapters of its own; a token visits k of
them. Attention has LoRA adapters beside. Since W1 x and W3 x are the same for every expert, `share_base` computes them
once a token (the authors' optimised forward pass); without it each expert computes them for its tokens.

    FLOPs of the frozen MLP, shared : not    (2 h f + k h f) : 3 k h f          (2/3 at k = 2)
    trained weights                          E r (3 h + 3 f) + router h E + attention's adapters
    kept                                     gate, up, (silu) and product of every token-expert pair: k times the MLP's
Defaults as in TUDB-Labs/MixLoRA: 8 experts, top-2, rank 8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from costmodel.activations import Kept
from costmodel.architecture import Model
from costmodel.operators import ACTIVATION_BYTES, FORWARD, INPUT, Number, Operator, gemm, memory_bound, only
from costmodel.techniques.base import Technique, parameter
from costmodel.techniques.lora import ATTENTION, Lora, frozen, read_by
from costmodel.work import Case, Work


@dataclass(frozen=True)
class MixLora(Technique):
    experts: int = parameter(8, "experts", ge=1, le=10_000)
    experts_per_token: int = parameter(2, "experts that a token visits", ge=1, le=10_000)
    rank: int = parameter(8, "rank of the adapters", ge=1, le=1_000_000)
    share_base: bool = parameter(True, "gate and up of the frozen MLP computed once a token")

    title: ClassVar[str] = "MixLoRA: LoRA experts that share one frozen MLP"
    source: ClassVar[str] = "arXiv 2404.15159; defaults: TUDB-Labs/MixLoRA"
    law: ClassVar[str] = "frozen MLP (2 h f + k h f) in place of 3 k h f; E r (3 h + 3 f) trained weights a layer"
    freezes: ClassVar[bool] = True
    rebuilds_mlp: ClassVar[bool] = True

    def problems(self, model: Model) -> Iterator[str]:
        parts = {layer.feed_forward for layer in model.layers}
        if not all(part.gated and not part.experts and not part.memory for part in parts):
            yield f"experts are adapters of a dense gated MLP, which {model.name} does not have everywhere"
        if self.experts_per_token > self.experts:
            yield f"a token cannot visit {self.experts_per_token} of {self.experts} experts"

    def layer(self, work: Work, case: Case) -> Work:
        width, hidden = case.layer.feed_forward.width, case.model.hidden
        attention = Lora(self.rank).layer(work, case)
        operators = [one for one in attention.operators if not one.name.startswith("mlp_")]
        trained = self.experts * (3 * self.rank * (hidden + width) + hidden)
        kept = read_by(work.kept, (*ATTENTION, "feed_forward", "mlp_down"))
        if case.recompute != "full":
            kept = (*self._routed(kept), *self._adapter_tensors(case))
        return replace(
            attention,
            operators=(*operators, *self._feed_forward(case)),
            dense=attention.dense.with_trained(trained),
            kept=kept,
        )

    def end(self, work: Work) -> Work:
        return frozen(work)

    def _routed(self, kept: tuple[Kept, ...]) -> tuple[Kept, ...]:
        """Inner tensors of every token-expert pair."""
        return tuple(replace(one, size_bytes=one.size_bytes * self.experts_per_token) if one.part else one
                     for one in kept)

    def _adapter_tensors(self, case: Case) -> tuple[Kept, ...]:
        """The vectors between two matrices of an adapter (3 of the experts, 2 of attention); a pair's input is that
        of the token, read where it lies."""
        rows = case.shard.tokens * self.experts_per_token
        between = 2 * case.shard.tokens + 3 * rows
        router = 12.0 * self.experts * case.shard.tokens
        return Kept("adapters", ACTIVATION_BYTES * between * self.rank), Kept("router", router)

    def _feed_forward(self, case: Case) -> Iterator[Operator]:
        tokens, hidden = case.shard.tokens, case.model.hidden
        width = case.layer.feed_forward.width / case.shard.tensor
        rows, each = tokens * self.experts_per_token, tokens * self.experts_per_token / self.experts
        yield gemm("router", tokens / case.shard.tensor, self.experts, hidden, narrow=False)
        yield _moved("permute", rows * hidden)
        yield only(gemm("mlp_up", tokens if self.share_base else rows, 2 * width, hidden), FORWARD, INPUT)
        yield gemm("expert_adapters_down", each, 2 * self.rank, hidden, self.experts, narrow=False)
        yield gemm("expert_adapters_up", each, width, self.rank, 2 * self.experts, narrow=False)
        yield _moved("expert_adapters_add", 2 * rows * width, 3.0)
        yield memory_bound("mlp_activation", 3 * ACTIVATION_BYTES * rows * width, 5 * ACTIVATION_BYTES * rows * width)
        yield only(gemm("mlp_down", rows, hidden, width), FORWARD, INPUT)
        yield gemm("expert_output_down", each, self.rank, width, self.experts, narrow=False)
        yield gemm("expert_output_up", each, hidden, self.rank, self.experts, narrow=False)
        yield _moved("unpermute", rows * hidden)


def _moved(name: str, elements: Number, times: float = 2.0) -> Operator:
    """Elements read and written once, forward and backward; `times` counts both."""
    return memory_bound(name, times * ACTIVATION_BYTES * elements, times * ACTIVATION_BYTES * elements)
