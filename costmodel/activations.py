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

`layer_tensors` names the tensors, so that a technique (`costmodel.techniques`) can drop, shrink or add some;
`layer_bytes` is their sum.

All functions broadcast over arrays in the shard and give bytes per micro-batch on one accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodel import product_keys
from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.operators import Number, Shard, query_width

EXECUTIONS = ("eager", "fused", "compiled", "torch")  # "torch": costmodel.plain_torch
BEFORE = {"eager": 6.0, "fused": 4.0, "compiled": 4.0}  # gate, up and (eager) silu(gate): bytes an inner element


@dataclass(frozen=True)
class Kept:
    """A tensor kept for the backward pass. `feeds`: the linear layer (an operator's name) that it is the input of,
    where nothing but that layer's weight gradient needs it; `part` "feed_forward" where it has the inner width of a
    dense MLP."""

    name: str
    size_bytes: Number
    feeds: str = ""
    part: str = ""


def total_bytes(tensors: tuple[Kept, ...]) -> Number:
    return sum((one.size_bytes for one in tensors), 0.0)


def attention_tensors(
    attention: Attention, shard: Shard, execution: str, kernel: str, input_bytes: float = 2.0, rotary: bool = True,
    dropout: bool = True,
) -> tuple[Kept, ...]:
    """Queries, keys, values, attention output and what the attention kernel itself keeps. The output is also
    the projection's input: one tensor in 2 bytes, a further narrow copy where the input is quantised. A flash kernel
    needs the output for its own backward pass; unfused attention does not."""
    tokens, t = shard.tokens, shard.tensor
    heads, queries = attention.heads, query_width(attention)
    width = heads * attention.value_head_dim / t
    output = Kept("attention_output", 2.0 * tokens * width, "attention_output" if kernel == "unfused" else "")
    narrow = (Kept("narrow_output", input_bytes * tokens * width, "attention_output"),) if input_bytes < 2.0 else ()
    scores = Kept("scores", score_bytes(attention, shard, kernel, dropout))
    if attention.kind == "mla":
        keys = heads * (attention.head_dim + attention.rope_head_dim)
        latent = 2.0 * (attention.query_rank + attention.key_value_rank + attention.rope_head_dim)
        latent = latent * (1.0 if execution == "compiled" else 2.0)  # before and after the latent norm
        values = Kept("values", 2.0 * tokens * width)
        return (Kept("latent", tokens * latent), Kept("queries_keys", 2.0 * tokens * (queries + keys) / t), values,
                *narrow, output, *narrow, scores)
    keys = np.maximum(attention.kv_heads, t) * attention.head_dim
    values_width = np.maximum(attention.kv_heads, t) * attention.value_head_dim
    rotated = 2.0 * (queries + keys) if rotary and execution != "compiled" else 0.0
    normed = 0.0
    if attention.query_key_norm and execution != "compiled":
        normed = 2.0 * (queries + keys) + 2.0 * keys
    projected = tokens * (2.0 * (queries + keys + values_width) + rotated + normed) / t
    return Kept("queries_keys_values", projected), output, *narrow, scores


def score_bytes(attention: Attention, shard: Shard, kernel: str, dropout: bool = True) -> Number:
    """Row statistics of a flash kernel (fp32), or of unfused attention the softmax and, with dropout, its mask
    and the dropped scores."""
    if kernel == "unfused":
        per_score = 5.0 if dropout else 2.0
        return per_score * attention.heads * shard.keys / shard.context * shard.tokens / shard.tensor
    return 4.0 * attention.heads * shard.tokens / shard.tensor


def feed_forward_tensors(
    feed_forward: FeedForward,
    hidden: int,
    shard: Shard,
    execution: str,
    input_bytes: float = 2.0,
    dispatcher: str = "all-to-all",
    rebuilt: bool = False,
) -> tuple[Kept, ...]:
    """Inner tensors of the MLP, or permuted inputs, inner tensors and outputs of balanced experts. The last
    inner tensor is the input of the down projection; `rebuilt` where the activation is recomputed from what it
    reads, so that neither its result nor silu(gate) is kept.

    The all-to-all dispatcher keeps its buffer and the experts' outputs; the "flex" one (DeepEP, HybridEP; arXiv
    2412.19437, 3.2) weights the rows inside the experts and keeps the permuted input alone.
    """
    if feed_forward.memory:
        return (Kept("memory", product_keys.kept_bytes(feed_forward.memory, hidden, shard.tokens)),)
    product = 0.0 if execution == "compiled" or rebuilt else input_bytes
    before = 2.0 if not feed_forward.gated else 4.0 if rebuilt else BEFORE[execution]
    if not feed_forward.experts:
        inner = shard.tokens * feed_forward.width / shard.tensor
        return (Kept("mlp_inner", before * inner, part="feed_forward"),
                Kept("mlp_product", product * inner, "mlp_down", "feed_forward"))
    rows = shard.routed_rows(feed_forward)
    # fc1 out, activation and (GELU) the probability-weighted product: 6 bytes a width either way when fused
    width = rows * feed_forward.width / shard.expert_tensor
    shared = shard.tokens * feed_forward.shared_width / shard.tensor
    return (
        Kept("expert_inputs", rows * input_bytes * hidden, "experts_up"),
        Kept("expert_inner", (4.0 if rebuilt else BEFORE[execution]) * width),
        Kept("expert_product", product * width, "experts_down"),
        Kept("dispatch", {"all-to-all": 6.0, "flex": 0.0}[dispatcher] * hidden * rows),
        Kept("router", 12.0 * feed_forward.experts * shard.norm_tokens),
        Kept("shared_inner", before * shared),
        Kept("shared_product", product * shared, "shared_down"),
    )


def norm_tensors(model: Model, layer: Layer, shard: Shard, execution: str, input_bytes: float, rebuilt: bool
                 ) -> tuple[Kept, ...]:
    """Inputs of the norms and their outputs, which are rebuilt where the execution or the plan says so. The first
    output feeds attention, the second the feed-forward block; further norms stand behind the blocks."""
    width = model.hidden * shard.norm_tokens
    inputs = Kept("norm_inputs", 2.0 * width * layer.norms)
    if execution == "compiled" or rebuilt:
        return (inputs,)
    feeds = ("attention", "feed_forward", *[""] * layer.norms)[: layer.norms]
    return inputs, *(Kept("norm_output", input_bytes * width, name) for name in feeds)


def layer_tensors(
    model: Model,
    layer: Layer,
    shard: Shard,
    execution: str,
    kernel: str,
    recompute: str = "none",
    input_bytes: float = 2.0,
    dispatcher: str = "all-to-all",
) -> tuple[Kept, ...]:
    """What is kept for one layer and micro-batch; `input_bytes` an element of what linear layers keep.

    recompute "pointwise" rebuilds norms and activation products (Megatron's modules layernorm and moe_act);
    recompute "full" keeps only the layer's input; "selective" (Korthikanti) rebuilds the attention core.
    """
    if recompute == "full":
        return (Kept("layer_input", 2.0 * model.hidden * shard.norm_tokens),)
    rebuilt = recompute == "pointwise"
    masks = (Kept("dropout_masks", 2.0 * model.hidden * shard.norm_tokens),) if model.dropout else ()
    attention = attention_tensors(layer.attention, shard, execution, kernel, input_bytes, model.rotary, model.dropout)
    return (
        *norm_tensors(model, layer, shard, execution, input_bytes, rebuilt),
        *masks,
        *(one for one in attention if recompute != "selective" or one.name != "scores"),
        *feed_forward_tensors(layer.feed_forward, model.hidden, shard, execution, input_bytes, dispatcher, rebuilt),
    )


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
    """Bytes of `layer_tensors`."""
    return total_bytes(layer_tensors(model, layer, shard, execution, kernel, recompute, input_bytes, dispatcher))


def head_bytes(model: Model, shard: Shard, execution: str) -> Number:
    """Logits and softmax on the last stage: 2-byte logits and an fp32 softmax (3u), u alone when fused
    cross-entropy rebuilds it (compiled), plus the head's input."""
    logits = 2.0 * shard.tokens * model.vocabulary / shard.tensor
    copies = 1.0 if execution == "compiled" else 3.0
    return copies * logits + 4.0 * model.hidden * shard.norm_tokens
