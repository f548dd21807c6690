"""Bytes a layer keeps from its forward to its backward pass, tensor by tensor.

Source of the tensor lists: memory_notes A3 (read in Megatron-LM's modules, checked against measured peaks;
its GPT sum is the 34 h of Korthikanti et al., arXiv 2205.05198, with flash attention). Three ways of running
the same modules keep different tensors:

- "fused" (Megatron-Core with Transformer Engine): the table as it stands.
- "eager" (plain PyTorch modules): the gated activation also keeps silu(gate).
- "compiled" (torch.compile): the partitioner rebuilds pointwise results (norm outputs, activation products,
  pre-rotary queries and keys) in the backward pass instead of keeping them.

Under an fp8 or fp4 recipe Transformer Engine keeps the quantised input of a linear layer (`input_bytes` an
element, 1 for fp8) for the weight gradient in place of the 2-byte one; attention keeps its own 2-byte tensors.

All functions broadcast over arrays in the shard and give bytes per micro-batch on one accelerator.
"""

from __future__ import annotations

import numpy as np

from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.operators import Number, Shard, query_width

EXECUTIONS = ("eager", "fused", "compiled")


def attention_bytes(
    attention: Attention, shard: Shard, execution: str, kernel: str, input_bytes: float = 2.0, rotary: bool = True,
    dropout: bool = True,
) -> Number:
    """Queries, keys, values, attention output and what the attention kernel itself keeps. The output is also
    the projection's input: one tensor in 2 bytes, a further narrow copy where the input is quantised."""
    tokens, t = shard.tokens, shard.tensor
    heads, queries = attention.heads, query_width(attention)
    output = (2.0 + (input_bytes if input_bytes < 2.0 else 0.0)) * heads * attention.value_head_dim
    if attention.kind == "mla":
        keys = heads * (attention.head_dim + attention.rope_head_dim)
        latent = 2.0 * (attention.query_rank + attention.key_value_rank + attention.rope_head_dim)
        latent = latent * (1.0 if execution == "compiled" else 2.0)  # before and after the latent norm
        kept = tokens * (latent + (2.0 * (queries + keys) + 2 * output) / t)
    else:
        keys = np.maximum(attention.kv_heads, t) * attention.head_dim
        values = np.maximum(attention.kv_heads, t) * attention.value_head_dim
        projected = 2.0 * (queries + keys + values)
        rotated = 2.0 * (queries + keys) if rotary and execution != "compiled" else 0.0
        normed = 0.0
        if attention.query_key_norm and execution != "compiled":
            normed = 2.0 * (queries + keys) + 2.0 * keys
        kept = tokens * (projected + rotated + normed + output) / t
    return kept + score_bytes(attention, shard, kernel, dropout)


def score_bytes(attention: Attention, shard: Shard, kernel: str, dropout: bool = True) -> Number:
    """Row statistics of a flash kernel (fp32), or of unfused attention the softmax and, with dropout, its mask
    and the dropped scores."""
    if kernel == "unfused":
        per_score = 5.0 if dropout else 2.0
        return per_score * attention.heads * shard.keys / shard.context * shard.tokens / shard.tensor
    return 4.0 * attention.heads * shard.tokens / shard.tensor


def feed_forward_bytes(
    feed_forward: FeedForward,
    hidden: int,
    shard: Shard,
    execution: str,
    input_bytes: float = 2.0,
    dispatcher: str = "all-to-all",
    rebuilt: bool = False,
) -> Number:
    """Inner tensors of the MLP, or permuted inputs, inner tensors and outputs of balanced experts. The last
    inner tensor is the input of the down projection; `rebuilt` where the activation is recomputed.

    The all-to-all dispatcher keeps its buffer and the experts' outputs; the "flex" one (DeepEP, HybridEP; arXiv
    2412.19437, 3.2) weights the rows inside the experts and keeps the permuted input alone.
    """
    product = 0.0 if execution == "compiled" or rebuilt else input_bytes
    before = {"eager": 6.0, "fused": 4.0, "compiled": 4.0} if feed_forward.gated else dict.fromkeys(EXECUTIONS, 2.0)
    per_width = before[execution] + product
    if not feed_forward.experts:
        return per_width * shard.tokens * feed_forward.width / shard.tensor
    rows = shard.routed_rows(feed_forward)
    # fc1 out, activation and (GELU) the probability-weighted product: 6 bytes a width either way when fused
    inner = {"eager": 6.0, "fused": 4.0, "compiled": 4.0}[execution] + product
    experts = rows * (input_bytes * hidden + inner * feed_forward.width / shard.expert_tensor)
    dispatch = {"all-to-all": 6.0, "flex": 0.0}[dispatcher] * hidden * rows
    router = 12.0 * feed_forward.experts * shard.norm_tokens
    shared = per_width * shard.tokens * feed_forward.shared_width / shard.tensor
    return experts + dispatch + router + shared


def layer_bytes(
    model: Model,
    layer: Layer,
    shard: Shard,
    execution: str,
    kernel: str,
    recompute: str = "none",
    input_bytes: float = 2.0,
    dispatcher: str = "all-to-all",
) -> Number:
    """Bytes kept for one layer and micro-batch; `input_bytes` an element of what linear layers keep.

    recompute "pointwise" rebuilds norms and activation products (Megatron's modules layernorm and moe_act);
    recompute "full" keeps only the layer's input; "selective" (Korthikanti) rebuilds the attention core.
    """
    if recompute == "full":
        return 2.0 * model.hidden * shard.norm_tokens
    rebuilt = recompute == "pointwise"
    per_norm = 2.0 if execution == "compiled" or rebuilt else 2.0 + input_bytes
    norms = per_norm * model.hidden * shard.norm_tokens * layer.norms
    masks = 2.0 * model.hidden * shard.norm_tokens if model.dropout else 0.0
    attention = attention_bytes(layer.attention, shard, execution, kernel, input_bytes, model.rotary, model.dropout)
    if recompute == "selective":
        attention = attention - score_bytes(layer.attention, shard, kernel, model.dropout)
    feed_forward = feed_forward_bytes(
        layer.feed_forward, model.hidden, shard, execution, input_bytes, dispatcher, rebuilt
    )
    return norms + masks + attention + feed_forward


def head_bytes(model: Model, shard: Shard, execution: str) -> Number:
    """Logits and softmax on the last stage: 2-byte logits and an fp32 softmax (3u), u alone when fused
    cross-entropy rebuilds it (compiled), plus the head's input."""
    logits = 2.0 * shard.tokens * model.vocabulary / shard.tensor
    copies = 1.0 if execution == "compiled" else 3.0
    return copies * logits + 4.0 * model.hidden * shard.norm_tokens
