"""What one layer computes: its operators with FLOPs and bytes, forward and backward, on one accelerator.

A `Shard` says which part of the layer one accelerator holds; every figure broadcasts over arrays of shards.
FLOPs count multiply and add as two. Attention is counted as the causal (or windowed) half. Bytes of the
memory-bound operators are those of an ideally fused kernel (each input read once, each output written once,
2-byte activations); what an eager framework moves more is a property of the stack (`costmodel.stack`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodel import product_keys
from costmodel.architecture import Attention, FeedForward, Layer, Model, ProductKeys

Number = Any  # float or NumPy array; all arithmetic below broadcasts

ACTIVATION_BYTES = 2.0
FORWARD, INPUT, WEIGHT = "forward", "input", "weight"  # the products of a linear layer: result and two gradients


@dataclass(frozen=True)
class Shard:
    """The share of a layer on one accelerator.

    `batch` sequences of `sequence` tokens pass at once; `context` splits the tokens, `tensor` the heads and
    widths; `sequence_parallel` (bool) also splits norms and residuals by `tensor`; `expert` ranks share the
    experts, each expert split by `expert_tensor`. With `segments` a pass runs one of so many parts of each sequence;
    it is the mean part, with its share of the tokens and of the causal pairs.
    """

    batch: Number
    sequence: Number
    tensor: Number = 1
    sequence_parallel: Number = False
    context: Number = 1
    expert: Number = 1
    expert_tensor: Number = 1
    segments: Number = 1

    @property
    def tokens(self) -> Number:
        """Tokens of one pass on this rank before tensor parallelism."""
        return self.batch * self.sequence / self.context / self.segments

    @property
    def keys(self) -> Number:
        """Keys that lie before the end of the mean part of a sequence, which every query of it may score."""
        return self.sequence * (self.segments + 1) / (2 * self.segments)

    @property
    def norm_tokens(self) -> Number:
        """Tokens whose norms and residuals this rank computes."""
        return self.tokens / np.where(self.sequence_parallel, self.tensor, 1)

    def routed_rows(self, feed_forward: FeedForward) -> Number:
        """Token-expert pairs on this rank when experts are balanced (memory_notes A3: T/g x top-k x etp)."""
        per_rank = self.tokens / self.tensor
        return per_rank * feed_forward.experts_per_token * self.expert_tensor


@dataclass(frozen=True)
class Operator:
    """One kernel of a layer on one accelerator.

    category: "gemm" (m, n, k, with `groups` equal problems: experts), "attention", or "memory_bound".
    `backward_flops` holds the input gradient and `weight_flops` the weight gradient (zero without a weight).
    `products`: which of the three products of a gemm run (`only`); `routed`: its weights are those of experts;
    `once`: its result is kept, so that recomputation of single modules does not run it again; `as_moved`: its bytes
    are those that separate kernels move, whatever the execution, not the ideally fused count; `measured_as`: the
    operator of an own profile that prices it (`costmodel.step_kernels`), `kernels` how many of those share its bytes.
    """

    name: str
    category: str
    forward_flops: Number = 0.0
    backward_flops: Number = 0.0
    weight_flops: Number = 0.0
    forward_bytes: Number = 0.0
    backward_bytes: Number = 0.0
    m: Number = 0
    n: Number = 0
    k: Number = 0
    groups: Number = 1
    head_dim: int = 0
    sequence: Number = 0
    narrow: bool = True  # follows an fp8 or fp4 recipe; the head and the router stay in bf16
    products: tuple[str, ...] = (FORWARD, INPUT, WEIGHT)
    routed: bool = False
    once: bool = False
    as_moved: bool = False
    measured_as: str = ""
    kernels: Number = 1


def gemm(name: str, m: Number, n: Number, k: Number, groups: Number = 1, narrow: bool = True) -> Operator:
    """A linear layer: (m x k) . (k x n), `groups` of them; bytes are operands and result at 2 bytes."""
    flops = 2.0 * m * n * k * groups
    size = ACTIVATION_BYTES * (m * k + k * n + m * n) * groups
    return Operator(
        name,
        "gemm",
        flops,
        flops,
        flops,
        forward_bytes=size,
        backward_bytes=2 * size,
        m=m,
        n=n,
        k=k,
        groups=groups,
        narrow=narrow,
    )


def only(operator: Operator, *products: str) -> Operator:
    """The operator with some of its products alone: a frozen weight has no WEIGHT, what is made for the backward
    pass to use neither gradient."""
    kept = tuple(one for one in operator.products if one in products)
    return replace(
        operator,
        products=kept,
        forward_flops=operator.forward_flops * (FORWARD in kept),
        forward_bytes=operator.forward_bytes * (FORWARD in kept),
        backward_flops=operator.backward_flops * (INPUT in kept),
        weight_flops=operator.weight_flops * (WEIGHT in kept),
        backward_bytes=operator.backward_bytes * ((INPUT in kept) + (WEIGHT in kept)) / 2.0,
    )


def memory_bound(
    name: str, forward_bytes: Number, backward_bytes: Number, measured_as: str = "", kernels: Number = 1
) -> Operator:
    return Operator(name, "memory_bound", forward_bytes=forward_bytes, backward_bytes=backward_bytes,
                    measured_as=measured_as, kernels=kernels)


def attended_pairs(sequence: Number, window: int | None) -> Number:
    """Query-key pairs of one causal sequence, s^2/2, or of a sliding window w: s w - w^2/2.

    >>> float(attended_pairs(8192, None)), float(attended_pairs(8192, 8192)), float(attended_pairs(8192, 1024))
    (33554432.0, 33554432.0, 7864320.0)
    """
    width = np.minimum(sequence, window) if window else sequence
    return sequence * width - width * width / 2.0


def query_width(attention: Attention) -> int:
    return attention.heads * (attention.head_dim + attention.rope_head_dim)


def _attention_core(attention: Attention, shard: Shard) -> Operator:
    """Scores and values; the backward pass is 5 matrix products against 2 (FlashAttention-2, 3.1)."""
    key_dim, value_dim = attention.head_dim + attention.rope_head_dim, attention.value_head_dim
    pairs = attended_pairs(shard.sequence, attention.window) * shard.batch / shard.context / shard.segments
    heads = attention.heads / shard.tensor
    forward = 2.0 * pairs * heads * (key_dim + value_dim)
    kv_heads = np.maximum(attention.kv_heads / shard.tensor, 1.0) if attention.kind == "gqa" else heads
    moved = ACTIVATION_BYTES * shard.tokens * (heads + kv_heads) * (key_dim + value_dim)
    return Operator(
        "attention",
        "attention",
        forward,
        2.5 * forward,
        forward_bytes=moved,
        backward_bytes=2.5 * moved,
        head_dim=max(key_dim, value_dim),
        sequence=shard.sequence,
    )


def attention_operators(attention: Attention, hidden: int, shard: Shard) -> tuple[Operator, ...]:
    """Projections, rotary and norms of queries and keys, and the attention itself."""
    tokens, t = shard.tokens, shard.tensor
    queries = query_width(attention)
    out = gemm("attention_output", tokens, hidden, attention.heads * attention.value_head_dim / t)
    if attention.kind == "mla":
        return (*_mla_projections(attention, hidden, shard), _attention_core(attention, shard), out)
    keys = np.maximum(attention.kv_heads, t) * attention.head_dim  # replicated where kv_heads < tensor
    values = np.maximum(attention.kv_heads, t) * attention.value_head_dim
    operators = [gemm("query_key_value", tokens, (queries + keys + values) / t, hidden)]
    rotary_bytes = 2 * ACTIVATION_BYTES * tokens * (queries + keys) / t
    operators.append(memory_bound("rotary", rotary_bytes, rotary_bytes))
    if attention.query_key_norm:
        operators.append(memory_bound("query_key_norm", rotary_bytes, 1.5 * rotary_bytes))
    return (*operators, _attention_core(attention, shard), out)


def _mla_projections(attention: Attention, hidden: int, shard: Shard) -> tuple[Operator, ...]:
    """DeepSeek-V2 (arXiv 2405.04434, 2.1): compress to ranks, norm, expand to heads."""
    tokens, t, queries = shard.tokens, shard.tensor, query_width(attention)
    rank, rope = attention.key_value_rank, attention.rope_head_dim
    expanded = attention.heads * (attention.head_dim + attention.value_head_dim)
    query: tuple[Operator, ...]
    if attention.query_rank:
        query = (
            gemm("query_down", tokens, attention.query_rank, hidden),
            gemm("query_up", tokens, queries / t, attention.query_rank),
        )
    else:
        query = (gemm("query", tokens, queries / t, hidden),)
    rotary_bytes = 2 * ACTIVATION_BYTES * tokens * (queries + rope) / t
    norm_bytes = 2 * ACTIVATION_BYTES * tokens * (attention.query_rank + rank)
    return (
        *query,
        gemm("key_value_down", tokens, rank + rope, hidden),
        gemm("key_value_up", tokens, expanded / t, rank),
        memory_bound("latent_norm", norm_bytes, 1.5 * norm_bytes),
        memory_bound("rotary", rotary_bytes, rotary_bytes),
    )


def _activation(name: str, rows: Number, width: Number, gated: bool) -> Operator:
    reads, writes = (2.0, 1.0) if gated else (1.0, 1.0)
    forward = ACTIVATION_BYTES * rows * width * (reads + writes)
    backward = ACTIVATION_BYTES * rows * width * (reads + writes + reads)
    return memory_bound(name, forward, backward, "mlp_activation_gated" if gated else "mlp_activation")


def feed_forward_operators(feed_forward: FeedForward, hidden: int, shard: Shard) -> tuple[Operator, ...]:
    """The dense MLP, or router, permutation, routed and shared experts (balanced load)."""
    inner = 2 if feed_forward.gated else 1
    tokens, t = shard.tokens, shard.tensor
    if feed_forward.memory:
        return lookup_operators(feed_forward.memory, hidden, shard)
    if not feed_forward.experts:
        width = feed_forward.width / t
        return (
            gemm("mlp_up", tokens, inner * width, hidden),
            _activation("mlp_activation", tokens, width, feed_forward.gated),
            gemm("mlp_down", tokens, hidden, width),
        )
    rows = shard.routed_rows(feed_forward)
    local = feed_forward.experts / shard.expert
    width = feed_forward.width / shard.expert_tensor
    moved = 2 * ACTIVATION_BYTES * rows * hidden
    operators = [
        gemm("router", tokens / t, feed_forward.experts, hidden, narrow=False),
        memory_bound("permute", moved, moved),
        replace(gemm("experts_up", rows / local, inner * width, hidden, groups=local), routed=True),
        _activation("expert_activation", rows, width, feed_forward.gated),
        replace(gemm("experts_down", rows / local, hidden, width, groups=local), routed=True),
        memory_bound("unpermute", moved, moved),
    ]
    if feed_forward.shared_width:
        shared = feed_forward.shared_width / t
        operators += [
            gemm("shared_up", tokens, inner * shared, hidden),
            _activation("shared_activation", tokens, shared, feed_forward.gated),
            gemm("shared_down", tokens, hidden, shared),
        ]
    return tuple(operators)


def lookup_operators(memory: ProductKeys, hidden: int, shard: Shard) -> tuple[Operator, ...]:
    """A product-key memory (`costmodel.product_keys`): queries, scores of both half keys, selection, the weighted sum
    of the chosen values, and the gate with its two projections."""
    tokens, half = shard.tokens, memory.key_width // 2
    scores = ACTIVATION_BYTES * tokens * 2 * memory.heads * memory.keys
    read = product_keys.read_bytes(memory, hidden) * tokens
    operators = [
        gemm("memory_query", tokens, memory.heads * memory.key_width, hidden),
        gemm("memory_scores", tokens, memory.keys, half, groups=2 * memory.heads, narrow=False),
        memory_bound("memory_selection", scores, scores),
        # backward: the rows again for the gradient of the scores, and their gradients read and written
        memory_bound("memory_lookup", read, 3.0 * read),
    ]
    if memory.gated:
        operators += [
            gemm("memory_gate", tokens, hidden, hidden),
            _activation("memory_activation", tokens, hidden, True),
            gemm("memory_output", tokens, hidden, hidden),
        ]
    return tuple(operators)


def layer_operators(model: Model, layer: Layer, shard: Shard) -> tuple[Operator, ...]:
    """All operators of one layer, with norms and residual additions (and dropout where the model has it)."""
    residual = ACTIVATION_BYTES * shard.norm_tokens * model.hidden * 4.0 * layer.norms
    dropout = 3.0 * shard.norm_tokens * model.hidden * 2 if model.dropout else 0.0
    return (
        memory_bound("norm_residual", residual + dropout, residual + dropout,
                     "norm_residual_rms" if model.norm == "rms" else "norm_residual_layer", layer.norms),
        *(
            one
            for one in attention_operators(layer.attention, model.hidden, shard)
            if model.rotary or one.name != "rotary"
        ),
        *feed_forward_operators(layer.feed_forward, model.hidden, shard),
    )


def embedding_operators(model: Model, shard: Shard) -> tuple[Operator, ...]:
    moved = 2 * ACTIVATION_BYTES * shard.tokens * model.hidden
    return (memory_bound("embedding", moved, 1.5 * moved),)


def head_operators(
    model: Model, shard: Shard, logit_bytes: tuple[Number, Number] = (2.0, 4.0)
) -> tuple[Operator, ...]:
    """Final norm, vocabulary projection and cross-entropy, which moves `logit_bytes` a logit forward and backward
    (fused, 2 bytes are read, then 2 read and 2 written back)."""
    logits = shard.tokens * model.vocabulary / shard.tensor
    norm = 2 * ACTIVATION_BYTES * shard.norm_tokens * model.hidden
    return (
        memory_bound("final_norm", norm, 1.5 * norm),
        gemm("head", shard.tokens, model.vocabulary / shard.tensor, model.hidden, narrow=False),
        memory_bound("cross_entropy", logit_bytes[0] * logits, logit_bytes[1] * logits),
    )


def model_flops_per_token(model: Model, sequence: Number) -> Number:
    """Training FLOPs a token in the project's convention (DESIGN.md): 6 x matmul parameters (input embedding
    excluded, head included) + causal-half attention, forward and backward, no recompute. Multi-token
    prediction modules are not counted.
    """
    whole = Shard(batch=1, sequence=sequence)
    forward: Number = gemm("head", 1, model.vocabulary, model.hidden).forward_flops
    for layer, times in Counter(model.layers).items():
        operators = layer_operators(model, layer, whole)
        forward = forward + times * sum(operator.forward_flops for operator in operators) / sequence
    return 3.0 * forward
