"""Bytes that a layer of plain torch modules (execution "torch") keeps, and what its backward pass needs beside them.

The modules are those of `simulator.real.model`; which tensors autograd keeps is read off their code and held to
torch's MemTracker by tests. Against "eager": an rms norm without a fused kernel (torch's on CPU) works in fp32 and
keeps its input, in fp32, and the normalised product beside its output; statistics are fp32 whatever the type;
cross-entropy keeps an fp32 log-softmax and no logits, and two gradients of its size meet it in the backward pass.

`widening` is the bytes of an activation over 2; callers multiply all sizes by it, so that what is fp32 in any case is
given here divided by it. All functions broadcast over arrays in the shard.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from costmodel.activations import Kept, attention_tensors, feed_forward_tensors
from costmodel.architecture import Attention, Layer, Model
from costmodel.operators import Number, Shard, query_width

FP32 = 4.0


def norm_bytes(norm: str, elements: Number, widening: float) -> Number:
    """Kept by one norm beside its output: rms an fp32 input and product, layer norm its input as it is."""
    return 2.0 * FP32 * elements / widening if norm == "rms" else 2.0 * elements


def norm_tensors(model: Model, layer: Layer, shard: Shard, widening: float) -> tuple[Kept, ...]:
    """Norms of a layer: what they work on, their outputs, row statistics (one, or mean and deviation)."""
    width, rows = model.hidden * shard.norm_tokens, shard.norm_tokens
    statistics = FP32 * rows * (1.0 if model.norm == "rms" else 2.0)
    feeds = ("attention", "feed_forward", *[""] * layer.norms)[: min(layer.norms, 2)]
    # norms behind the blocks (4 a layer) feed a residual addition, which keeps nothing
    return (Kept("norm_inputs", norm_bytes(model.norm, width, widening) * layer.norms),
            Kept("norm_statistics", statistics * layer.norms / widening),
            *(Kept("norm_output", 2.0 * width, name) for name in feeds))


def _query_key_norms(model: Model, layer: Layer, shard: Shard, widening: float) -> tuple[Kept, ...]:
    """Queries and keys normed before they are rotated: in fp32 the projections themselves are the input."""
    a = layer.attention
    if a.kind == "mla" or not a.query_key_norm:
        return ()
    elements = shard.tokens * (query_width(a) + a.kv_heads * a.head_dim) / shard.tensor
    copy = FP32 * elements if widening < 2.0 else 0.0
    rows = shard.tokens * (2.0 if a.query_key_norm == "full" else (a.heads + a.kv_heads) / shard.tensor)
    normed = 0.0 if model.rotary else 2.0 * widening * elements
    return (Kept("query_key_norm", (copy + normed + FP32 * (elements + rows)) / widening),)


def _attention(model: Model, layer: Layer, shard: Shard, kernel: str, widening: float) -> tuple[Kept, ...]:
    """Queries, keys, values and the output; the statistics of a flash kernel are fp32 in any case."""
    a = layer.attention
    if a.kind == "mla":
        return _latent_attention(a, shard, widening)
    tensors = attention_tensors(replace(a, query_key_norm=None), shard, "eager", kernel, 2.0, model.rotary)
    fixed = 1.0 if kernel == "unfused" else widening
    return (*(replace(one, size_bytes=one.size_bytes / fixed) if one.name == "scores" else one for one in tensors),
            *_query_key_norms(model, layer, shard, widening))


def _latent_attention(a: Attention, shard: Shard, widening: float) -> tuple[Kept, ...]:
    """MLA: the compressed vectors with their norms, queries, keys and values as wide as keys (a fused kernel takes
    no narrower ones), the output at that width and without what was added."""
    wide = a.heads * (a.head_dim + a.rope_head_dim) / shard.tensor
    ranks = a.query_rank + a.key_value_rank
    # in fp32 the norm of keys and values works on a view of the projection, rotary part included
    view = a.rope_head_dim if widening == 2.0 else 0
    latent = 2.0 * ranks + (2.0 * FP32 * ranks + FP32 * view + FP32 * (1 + (a.query_rank > 0))) / widening
    narrow = a.value_head_dim < a.head_dim + a.rope_head_dim
    output = a.heads * a.value_head_dim / shard.tensor
    return (Kept("latent", shard.tokens * latent), Kept("queries_keys", 4.0 * shard.tokens * wide),
            Kept("values", 2.0 * shard.tokens * wide), Kept("wide_output", 2.0 * shard.tokens * wide * narrow),
            Kept("attention_output", 2.0 * shard.tokens * output, "attention_output"),
            Kept("scores", FP32 * a.heads * shard.tokens / shard.tensor / widening))


def _feed_forward(layer: Layer, hidden: int, shard: Shard, widening: float) -> tuple[Kept, ...]:
    """As eager; experts by sorted rows: inputs, results and weighted results, the chances, and where each row goes."""
    f = layer.feed_forward
    tensors = feed_forward_tensors(f, hidden, shard, "eager", 2.0)
    if not f.experts:
        return tensors
    rows = shard.routed_rows(f)
    indices = 3.0 * 8.0 + FP32  # chosen experts, order and token (int64) of a row, its weight
    routed = {"dispatch": 4.0 * hidden * rows + indices * rows / widening,
              "router": FP32 * f.experts * shard.norm_tokens / widening}
    return tuple(replace(one, size_bytes=routed.get(one.name, one.size_bytes)) for one in tensors)


def layer_tensors(
    model: Model, layer: Layer, shard: Shard, kernel: str, recompute: str, widening: float
) -> tuple[Kept, ...]:
    """What autograd keeps for one layer and micro-batch (recompute "none", or "full": the input alone)."""
    if recompute == "full":
        return (Kept("layer_input", 2.0 * model.hidden * shard.norm_tokens),)
    attention = _attention(model, layer, shard, kernel, widening)
    return (*norm_tensors(model, layer, shard, widening),
            *(one for one in attention if recompute != "selective" or one.name != "scores"),
            *_feed_forward(layer, model.hidden, shard, widening))


def layer_working_bytes(layer: Layer, hidden: int, shard: Shard, widening: float) -> Number:
    """What the backward pass of a layer holds at most beside what was kept.

    It begins with the feed-forward block. There, the gradients of the residual stream and of the activation's result
    stand beside those of its inputs, while the kept result has just been given back (2 widths gated, 1 otherwise);
    later the matrix gradients of both linear layers do, when all but the up projection's input has been given back.
    """
    f, element = layer.feed_forward, 2.0 * widening
    inner = 2.0 if f.gated else 1.0
    rows, width = shard.tokens, f.width / shard.tensor
    if f.experts:
        rows, width = shard.routed_rows(f), f.width / shard.expert_tensor
    shared = hidden * shard.tokens * (1.0 if not f.experts else 2.0 + f.experts_per_token)
    activated = inner * rows * width + shared
    matrices = inner * width * hidden - inner * rows * width + shared
    return element * np.maximum(activated, matrices)


def head_bytes(model: Model, shard: Shard, widening: float) -> Number:
    """Final norm with its output, and the fp32 log-softmax."""
    width = model.hidden * shard.norm_tokens
    norm = norm_bytes(model.norm, width, widening) if model.final_norm else 0.0
    return norm + 2.0 * width + FP32 * shard.tokens * model.vocabulary / shard.tensor / widening


def head_working_bytes(model: Model, shard: Shard, widening: float) -> Number:
    """Gradients of the chosen log-probabilities and of the logits, both fp32, beside the log-softmax; or, once both
    and the log-softmax are gone, that of the logits in their own type with those of the matrix and of its input."""
    logits = shard.tokens * model.vocabulary / shard.tensor
    matrix = model.hidden * (model.vocabulary / shard.tensor + shard.norm_tokens)
    return np.maximum(2.0 * FP32 * logits, 2.0 * widening * (logits + matrix) - FP32 * logits)


def update_working_bytes(elements: Number, largest: Number, element_bytes: float, foreach: bool) -> Number:
    """AdamW's temporaries: the root of the second moments, of all tensors at once (foreach, torch's default on GPUs);
    tensor by tensor the root and its quotient."""
    return element_bytes * (elements if foreach else 2.0 * largest)
