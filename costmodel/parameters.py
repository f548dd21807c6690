"""Exact parameter counts of a model, of its parts, and of what one token uses. Unit: parameters.

The shapes are those of the published code of each family (`costmodel.huggingface` names it). Two numbers
are kept apart everywhere: all parameters (memory, optimizer, communication), and those of matrix
multiplications (FLOPs: 2 a parameter and token forward, 6 with backward; Kaplan et al., arXiv:2001.08361).

Multi-token prediction modules (DeepSeek-V3) are no part of the main model: they are left out of the totals
unless `mtp=True`. Stored block scales of fp8 checkpoints are no parameters and are never counted.
"""

from __future__ import annotations

from collections.abc import Callable

from costmodel import product_keys
from costmodel.architecture import Attention, FeedForward, Layer, Model


def attention_matmul_parameters(attention: Attention, hidden: int) -> int:
    """Parameters of the projections of one attention block, without biases and norms."""
    if attention.kind == "mla":
        return _latent_matmul_parameters(attention, hidden)
    queries = attention.heads * attention.head_dim
    keys_values = attention.kv_heads * (attention.head_dim + attention.value_head_dim)
    return hidden * (queries + keys_values) + attention.heads * attention.value_head_dim * hidden


def _latent_matmul_parameters(a: Attention, hidden: int) -> int:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""
    queries = a.heads * (a.head_dim + a.rope_head_dim)
    query = a.query_rank * (hidden + queries) if a.query_rank else hidden * queries
    down = hidden * (a.key_value_rank + a.rope_head_dim)
    up = a.key_value_rank * a.heads * (a.head_dim + a.value_head_dim)
    return query + down + up + a.heads * a.value_head_dim * hidden


def attention_parameters(attention: Attention, hidden: int) -> int:
    """All parameters of one attention block: projections, biases, inner norms, sinks."""
    return (attention_matmul_parameters(attention, hidden) + attention_bias_parameters(attention, hidden)
            + _inner_norm_parameters(attention) + attention.heads * attention.sinks)


def attention_bias_parameters(attention: Attention, hidden: int) -> int:
    """Biases of one attention block. In MLA the query and key biases sit on the compressing projections."""
    a = attention
    output = hidden * a.output_bias
    if a.kind == "mla":
        return a.query_rank * a.query_bias + (a.key_value_rank + a.rope_head_dim) * a.key_bias + output
    queries, keys = a.heads * a.head_dim * a.query_bias, a.kv_heads * a.head_dim * a.key_bias
    return queries + keys + a.kv_heads * a.value_head_dim * a.value_bias + output


def _inner_norm_parameters(a: Attention) -> int:
    """Norms on queries and keys, or on MLA's compressed vectors; all are weights without bias."""
    if a.kind == "mla":
        return a.query_rank + a.key_value_rank
    widths = {None: 0, "per_head": 2, "full": a.heads + a.kv_heads}
    return widths[a.query_key_norm] * a.head_dim


def _mlp_matmul_parameters(width: int, gated: bool, hidden: int) -> int:
    return (3 if gated else 2) * hidden * width


def expert_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """One routed expert, or the dense MLP: the two are of the same shape."""
    matrices = _mlp_matmul_parameters(feed_forward.width, feed_forward.gated, hidden)
    inner = (2 if feed_forward.gated else 1) * feed_forward.width
    return matrices + (inner + hidden) * feed_forward.bias


def dense_feed_forward_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """The dense MLP of a layer with its biases, 0 where the layer has experts; of a memory all but its values."""
    if feed_forward.memory:
        return product_keys.dense_parameters(feed_forward.memory, hidden)
    return 0 if feed_forward.experts else expert_parameters(feed_forward, hidden)


def memory_value_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """The values of a memory layer that owns some, 0 otherwise."""
    return product_keys.value_parameters(feed_forward.memory, hidden) if feed_forward.memory else 0


def routed_expert_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """All routed experts of a layer together, 0 in a dense layer."""
    return feed_forward.experts * expert_parameters(feed_forward, hidden)


def shared_expert_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """The shared experts of a layer together, with their scalar gate where there is one."""
    matrices = _mlp_matmul_parameters(feed_forward.shared_width, feed_forward.gated, hidden)
    return matrices + hidden * feed_forward.shared_gate


def router_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """The router's matrix and its bias (for DeepSeek-V3 the balancing bias stored with the weights)."""
    return feed_forward.experts * (hidden + feed_forward.router_bias)


def norm_parameters(norm: str, hidden: int) -> int:
    """One norm over the hidden width: weight and bias for "layer", weight alone otherwise."""
    return (2 if norm == "layer" else 1) * hidden


def sparse_parameters(feed_forward: FeedForward, hidden: int) -> int:
    """What expert parallelism spreads over its ranks: routed experts, and the values of a memory layer."""
    return routed_expert_parameters(feed_forward, hidden) + memory_value_parameters(feed_forward, hidden)


def layer_parameters(layer: Layer, hidden: int, norm: str = "rms") -> int:
    """All parameters of one transformer layer."""
    ffn = layer.feed_forward
    return (attention_parameters(layer.attention, hidden) + dense_feed_forward_parameters(ffn, hidden)
            + sparse_parameters(ffn, hidden) + shared_expert_parameters(ffn, hidden)
            + router_parameters(ffn, hidden)
            + layer.norms * norm_parameters(norm, hidden))


def idle_parameters(layer: Layer, hidden: int) -> int:
    """Parameters of the routed experts, or values, of a layer that one token does not visit."""
    ffn = layer.feed_forward
    if ffn.memory:
        return product_keys.idle_parameters(ffn.memory, hidden)
    return (ffn.experts - ffn.experts_per_token) * expert_parameters(ffn, hidden)


def feed_forward_matmul_parameters_per_token(feed_forward: FeedForward, hidden: int) -> int:
    """Matrix parameters one token passes: dense MLP, or top-k and shared experts, shared gate and router; those of a
    memory layer."""
    if feed_forward.memory:
        return product_keys.matmul_parameters(feed_forward.memory, hidden)
    visits = feed_forward.experts_per_token if feed_forward.experts else 1
    routed = visits * _mlp_matmul_parameters(feed_forward.width, feed_forward.gated, hidden)
    return routed + shared_expert_parameters(feed_forward, hidden) + feed_forward.experts * hidden


def layer_matmul_parameters_per_token(layer: Layer, hidden: int) -> int:
    """Matrix parameters of one layer that one token passes."""
    return (attention_matmul_parameters(layer.attention, hidden)
            + feed_forward_matmul_parameters_per_token(layer.feed_forward, hidden))


def embedding_parameters(model: Model) -> int:
    """The token embedding table, with OPT-350M's projection to the hidden width."""
    return model.vocabulary * _embedding_width(model) + _projection_parameters(model)


def head_parameters(model: Model) -> int:
    """What the output head adds: nothing of its own matrix where it is tied to the embedding."""
    matrix = 0 if model.tied_embeddings else model.vocabulary * _embedding_width(model)
    return matrix + _projection_parameters(model) + model.vocabulary * model.head_bias


def head_matmul_parameters(model: Model) -> int:
    """The output head's matrix multiplications, tied or not."""
    return model.vocabulary * _embedding_width(model) + _projection_parameters(model)


def _embedding_width(model: Model) -> int:
    return model.embedding_width or model.hidden


def _projection_parameters(model: Model) -> int:
    return (model.embedding_width or 0) * model.hidden


def mtp_parameters(model: Model) -> int:
    """Multi-token prediction modules: each a layer, a 2h x h projection and three norms.

    Embedding and head are the main model's (arXiv:2412.19437, section 2.2).
    """
    h = model.hidden
    extra = 2 * h * h + 3 * norm_parameters(model.norm, h)
    return sum(layer_parameters(layer, h, model.norm) + extra for layer in model.mtp_layers)


def by_component(model: Model) -> dict[str, int]:
    """Parameters by part of the model; the values add up to count(model, mtp=True)."""
    h = model.hidden

    def over_layers(part: Callable[[FeedForward, int], int]) -> int:
        return sum(part(layer.feed_forward, h) for layer in model.layers)

    norms = sum(layer.norms for layer in model.layers) + model.final_norm + model.embedding_norm
    return {
        "embedding": embedding_parameters(model),
        "positions": model.positions * h,
        "attention": sum(attention_parameters(layer.attention, h) for layer in model.layers),
        "feed_forward": over_layers(dense_feed_forward_parameters),
        "routed_experts": over_layers(routed_expert_parameters),
        "memory_values": over_layers(memory_value_parameters),
        "shared_experts": over_layers(shared_expert_parameters),
        "router": over_layers(router_parameters),
        "norms": norms * norm_parameters(model.norm, h),
        "head": head_parameters(model),
        "mtp": mtp_parameters(model),
    }


def count(model: Model, *, mtp: bool = False) -> int:
    """All parameters of the model, shared tensors once; multi-token prediction modules on request."""
    return sum(by_component(model).values()) - (0 if mtp else mtp_parameters(model))


def active(model: Model, *, mtp: bool = False) -> int:
    """Parameters one token uses: all but the routed experts it does not visit; the whole embedding counts."""
    layers = (*model.layers, *(model.mtp_layers if mtp else ()))
    return count(model, mtp=mtp) - sum(idle_parameters(layer, model.hidden) for layer in layers)


def matmul_parameters_per_token(model: Model, *, mtp: bool = False) -> int:
    """N of the 6N FLOP convention: matrix parameters a token passes, top-k experts, head included.

    Left out: the input embedding (a lookup; OPT-350M's projection after it counts), norms, biases.
    Each multi-token prediction module adds its layer, its projection and another pass of the head.
    """
    h = model.hidden
    main = sum(layer_matmul_parameters_per_token(layer, h) for layer in model.layers)
    total = main + _projection_parameters(model) + head_matmul_parameters(model)
    if not mtp:
        return total
    module = 2 * h * h + head_matmul_parameters(model)
    return total + sum(layer_matmul_parameters_per_token(layer, h) + module for layer in model.mtp_layers)
