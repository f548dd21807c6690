"""LoRA: low-rank adapters on the projections of attention, everything else frozen (arXiv 2106.09685).

A frozen linear layer has no weight gradient, so that its input is not kept, no gradient and no optimizer. An adapter
of rank r on a layer n -> m adds r (n + m) weights and 2 tokens r (n + m) FLOPs forward, and keeps its input and the
r-wide vector between its two matrices. Adapters stay in bf16 and lie on every tensor rank.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from costmodel.activations import Kept
from costmodel.architecture import Attention
from costmodel.operators import (
    ACTIVATION_BYTES,
    FORWARD,
    INPUT,
    Operator,
    Shard,
    gemm,
    memory_bound,
    only,
    query_width,
)
from costmodel.techniques.base import Technique, parameter
from costmodel.work import Case, Work

ATTENTION = ("attention", "attention_output")  # what the kept tensors that adapters read feed


@dataclass(frozen=True)
class Lora(Technique):
    rank: int = parameter(16, "rank of the adapters", ge=1, le=1_000_000)

    title: ClassVar[str] = "LoRA: low-rank adapters on the attention projections, the rest frozen"
    source: ClassVar[str] = "arXiv 2106.09685"
    law: ClassVar[str] = "r (n + m) trained weights a projection; no weight gradients and no kept inputs elsewhere"
    freezes: ClassVar[bool] = True

    def layer(self, work: Work, case: Case) -> Work:
        attention, hidden = case.layer.attention, case.model.hidden
        kept = read_by(work.kept, ATTENTION)
        if case.recompute != "full":
            kept = (*kept, Kept("adapters", 2 * ACTIVATION_BYTES * case.shard.tokens * self.rank))
        return replace(
            frozen(work),
            operators=(*frozen(work).operators, *adapter_operators(attention, hidden, case.shard, self.rank)),
            dense=work.dense.frozen().with_trained(adapter_parameters(attention, hidden, self.rank)),
            kept=kept,
        )

    def end(self, work: Work) -> Work:
        return frozen(work)


def of_trainable(trainable: str, rank: int) -> tuple[Technique, ...]:
    """The technique that `plan.trainable` stands for."""
    return (Lora(rank),) if trainable == "lora" else ()


def frozen(work: Work) -> Work:
    """The work without weight gradients."""
    operators = tuple(only(one, FORWARD, INPUT) if one.category == "gemm" else one for one in work.operators)
    return replace(work, operators=operators, dense=work.dense.frozen(), sparse=work.sparse.frozen())


def read_by(kept: tuple[Kept, ...], readers: Collection[str]) -> tuple[Kept, ...]:
    """Kept tensors without those inputs of frozen layers that no adapter reads either."""
    return tuple(one for one in kept if not one.feeds or one.feeds in readers)


def adapter_parameters(attention: Attention, hidden: int, rank: int) -> int:
    """Adapters on the input and output projections of one attention block."""
    inputs = query_width(attention) + attention.kv_heads * (attention.head_dim + attention.value_head_dim)
    return rank * (hidden + inputs) + rank * (attention.heads * attention.value_head_dim + hidden)


def adapter_operators(attention: Attention, hidden: int, shard: Shard, rank: int) -> tuple[Operator, ...]:
    """Adapters on the input and output projections of attention, with the addition of their results."""
    tokens, t = shard.tokens, shard.tensor
    inputs = (query_width(attention) + attention.kv_heads * (attention.head_dim + attention.value_head_dim)) / t
    output = attention.heads * attention.value_head_dim / t
    added = 3 * ACTIVATION_BYTES * tokens * (inputs + hidden)
    return (
        gemm("adapter_input_down", tokens, rank, hidden, narrow=False),
        gemm("adapter_input_up", tokens, inputs, rank, narrow=False),
        gemm("adapter_output_down", tokens, rank, output, narrow=False),
        gemm("adapter_output_up", tokens, hidden, rank, narrow=False),
        memory_bound("adapter_add", added, 0.0 * added),
    )
