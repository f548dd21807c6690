"""What torch's autograd does beside the gradients of the operators, as operators of the backward pass.

Plain torch modules (execution "torch") add every gradient of a later micro-batch to the sum of those before it, make
the gradient of the embedding table dense, sum the gradient of a bias over the rows, and put the gradients of queries,
keys and values together again. Bytes at 2 an element, as in `costmodel.operators`; callers widen them. Everything
broadcasts. Stacks whose weight gradients are added where they are made (Megatron's main gradients) have none of it.
"""

from __future__ import annotations

import numpy as np

from costmodel.architecture import Layer, Model
from costmodel.operators import ACTIVATION_BYTES, Number, Operator, Shard, memory_bound, query_width


def sums(gradients: Number, micro_batches: Number) -> Operator:
    """Read the sum and the new gradient, write the sum: in all micro-batches but the first, here in the mean one."""
    later = 1.0 - 1.0 / np.asarray(micro_batches, dtype=float)
    return _backward("accumulate", 3.0 * ACTIVATION_BYTES * gradients * later)


def dense_table(elements: Number) -> Operator:
    """The table's gradient begins as zeros (torch's embedding_dense_backward)."""
    return _backward("zero_fill", ACTIVATION_BYTES * np.asarray(elements))


def joined_gradients(layer: Layer, shard: Shard) -> Operator:
    """Gradients of queries, keys and values are copied side by side: their projection is one linear layer."""
    a = layer.attention
    width = query_width(a) + a.kv_heads * (a.head_dim + a.value_head_dim)
    return _backward("copy", 2.0 * ACTIVATION_BYTES * shard.tokens * width / shard.tensor * (a.kind != "mla"))


def bias_gradients(model: Model, layer: Layer, shard: Shard) -> Operator:
    """Gradients of the results of linear layers with a bias are read once more and summed over the rows."""
    a, f = layer.attention, layer.feed_forward
    width = 0.0
    if a.query_bias and a.kind != "mla":
        width += query_width(a) + a.kv_heads * (a.head_dim + a.value_head_dim)
    width += model.hidden * a.output_bias * shard.tensor
    if f.bias and not f.experts:
        width += (2 if f.gated else 1) * f.width + model.hidden * shard.tensor
    return _backward("bias_gradient", ACTIVATION_BYTES * shard.tokens * width / shard.tensor)


def layer_operators(model: Model, layer: Layer, shard: Shard, trained: Number, micro_batches: Number,
                    ) -> tuple[Operator, ...]:
    """All of it for a layer with so many trained parameters on this rank."""
    return (sums(trained, micro_batches), joined_gradients(layer, shard), bias_gradients(model, layer, shard))


def tensors(model: Model, layer: Layer, shard: Shard) -> Number:
    """Parameter tensors of a layer on one rank: what a per-tensor optimizer launches its kernels for."""
    a, f = layer.attention, layer.feed_forward
    attention = 2 + (1 if a.query_bias else 0) + (1 if a.output_bias else 0)
    if a.kind == "mla":
        attention += 4
    if a.query_key_norm:
        attention += 2
    norms = layer.norms * (2 if model.norm == "layer" else 1)
    if f.experts:
        routed = 2 * f.experts / shard.expert * (2 if f.bias else 1)
        return attention + norms + 1 + routed + (2 if f.shared_width else 0)
    return attention + norms + 2 * (2 if f.bias else 1)


def end_tensors(model: Model) -> tuple[int, int]:
    """Those of (embedding, head)."""
    first = 1 + (1 if model.positions else 0)
    return first, (0 if model.tied_embeddings else 1) + (2 if model.norm == "layer" else 1)


def _backward(name: str, size_bytes: Number) -> Operator:
    return memory_bound(name, 0.0, size_bytes)
