"""Families after Llama: RMS norm before each block, rotary positions, gated MLP or experts, GQA or MLA.

llama, internlm, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe, gpt_oss, gemma, gemma2, gemma3_text,
deepseek_v2, deepseek_v3, kimi_k2, glm4_moe, minimax_m2, llama4_text. Shapes are those of the published code
of each (`modeling_<family>.py` in Hugging Face transformers; DeepSeek-V3 also arXiv:2412.19437 section 2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from costmodel.architecture import Attention, FeedForward, Model
from costmodel.huggingface.fields import Fields, short
from costmodel.huggingface.parts import (
    assemble,
    biased,
    grouped_attention,
    has_dropout,
    layers_of,
    routed_experts,
    stated_window,
    windows,
)

_CORE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_DENSE = (*_CORE, "intermediate_size")
_EXPERTS = ("num_experts", "num_experts_per_tok")
_MOE = (*_EXPERTS, "moe_intermediate_size")
_GATES = ("noaux_tc", "greedy", "group_limited_greedy")


def llama(f: Fields) -> Model:
    """Llama 1 to 3.3, and InternLM, whose `bias` is the same switch as attention_bias."""
    f.need(*_DENSE)
    bias = f.flag("attention_bias", f.family == "internlm")
    attention = grouped_attention(f, derive_kv_heads=True, **biased(bias, bias))
    return _uniform(f, attention, _gated(f, bias=f.flag("mlp_bias", False)), None)


def mistral(f: Fields) -> Model:
    """Mistral 7B and Nemo: Llama with an optional sliding window over every layer."""
    f.need(*_DENSE, "num_key_value_heads")
    return _uniform(f, grouped_attention(f), _gated(f), stated_window(f))


def mixtral(f: Fields) -> Model:
    """Mixtral: Mistral with experts in every layer."""
    f.need(*_DENSE, "num_key_value_heads", *_EXPERTS)
    window = None if f.raw("sliding_window") is None else f.size("sliding_window")
    return _uniform(f, grouped_attention(f), routed_experts(f, "intermediate_size"), window)


def qwen2(f: Fields) -> Model:
    """Qwen 2 and 2.5: biases on query, key and value only."""
    f.need(*_DENSE, "num_key_value_heads")
    attention = grouped_attention(f, **biased(True, False))
    return _mixed(f, attention, [_gated(f)] * f.size("num_hidden_layers"), _qwen_windows(f))


def qwen2_moe(f: Fields) -> Model:
    """Qwen 1.5 and 2 MoE: routed experts plus one gated shared expert."""
    f.need(*_CORE, "num_key_value_heads", *_MOE, "shared_expert_intermediate_size")
    attention = grouped_attention(f, **biased(f.flag("qkv_bias", True), False))
    shared = f.size("shared_expert_intermediate_size", least=0)
    moe = routed_experts(f, "moe_intermediate_size", shared_width=shared, shared_gate=shared > 0)
    return _mixed(f, attention, _qwen_feed_forwards(f, moe), _qwen_windows(f))


def qwen3(f: Fields) -> Model:
    """Qwen 3 dense: stated head_dim, a norm per head on queries and keys."""
    f.need(*_DENSE, "num_key_value_heads", "head_dim")
    return _mixed(f, _qwen3_attention(f), [_gated(f)] * f.size("num_hidden_layers"), _qwen_windows(f))


def qwen3_moe(f: Fields) -> Model:
    """Qwen 3 MoE: as qwen3, routed experts without a shared one."""
    f.need(*_CORE, "num_key_value_heads", "head_dim", *_MOE)
    moe = routed_experts(f, "moe_intermediate_size")
    return _mixed(f, _qwen3_attention(f), _qwen_feed_forwards(f, moe), _qwen_windows(f))


def gpt_oss(f: Fields) -> Model:
    """gpt-oss: alternating windows, sink logits, biases everywhere (arXiv:2508.10925)."""
    f.need(*_DENSE, "num_key_value_heads", "head_dim", *_EXPERTS, "sliding_window")
    bias = f.flag("attention_bias", True)
    attention = grouped_attention(f, derive_head_dim=False, sinks=True, **biased(bias, bias))
    moe = routed_experts(f, "intermediate_size", bias=True, router_bias=True)
    where = windows(f, f.size("sliding_window"), lambda i: i % 2 == 0, "sliding, full, alternating")
    return _mixed(f, attention, [moe] * f.size("num_hidden_layers"), where)


def gemma(f: Fields) -> Model:
    """Gemma 1: GeGLU, stated head_dim, tied embeddings."""
    f.need(*_DENSE, "num_key_value_heads", "head_dim")
    return _uniform(f, _gemma_attention(f), _gated(f), None, tied=True)


def gemma2(f: Fields) -> Model:
    """Gemma 2: norms before and after each block, every other layer with a window."""
    f.need(*_DENSE, "num_key_value_heads", "head_dim", "sliding_window")
    where = windows(f, f.size("sliding_window"), lambda i: i % 2 == 0, "sliding, full, alternating")
    dense = [_gated(f)] * f.size("num_hidden_layers")
    return _mixed(f, _gemma_attention(f), dense, where, norms=4, tied=True)


def gemma3(f: Fields) -> Model:
    """Gemma 3 text: five windowed layers to one full, norms on queries and keys; only the language model."""
    f.need(*_DENSE, "num_key_value_heads", "head_dim", "sliding_window")
    attention = replace(_gemma_attention(f), query_key_norm="per_head")
    stated = f.raw("layer_types") is not None
    every = 1 if stated else f.size("sliding_window_pattern", 6, "default of gemma3_text")
    rule = f"every {every}th layer full"
    where = windows(f, f.size("sliding_window"), lambda i: (i + 1) % every != 0, rule)
    dense = [_gated(f)] * f.size("num_hidden_layers")
    return _mixed(f, attention, dense, where, norms=4, tied=True)


def deepseek(f: Fields) -> Model:
    """DeepSeek V2, V3, R1 and Kimi K2: multi-head latent attention, shared and routed experts.

    V3's router carries a balancing bias per expert (topk_method "noaux_tc"), stored with the weights.
    """
    f.need(*_CORE, *_MOE, "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
           "first_k_dense_replace")
    default = "greedy" if f.family == "deepseek_v2" else "noaux_tc"
    router_bias = f.word("topk_method", default, _GATES) == "noaux_tc"
    feed_forwards = _leading_dense(f, _with_shared(f, router_bias))
    return _with_mtp(f, _mixed(f, _latent_attention(f), feed_forwards))


def glm4_moe(f: Fields) -> Model:
    """GLM 4.5 and 4.6: grouped-query attention with DeepSeek-V3's experts."""
    f.need(*_CORE, "num_key_value_heads", "head_dim", *_MOE, "first_k_dense_replace")
    norm = "per_head" if f.flag("use_qk_norm", False) else None
    bias = biased(f.flag("attention_bias", False), False)
    attention = grouped_attention(f, query_key_norm=norm, **bias)
    return _with_mtp(f, _mixed(f, attention, _leading_dense(f, _with_shared(f, True))))


def minimax_m2(f: Fields) -> Model:
    """MiniMax M2 and M2.5: one norm over all query heads and one over all key heads, experts everywhere."""
    f.need(*_DENSE, "num_key_value_heads", "head_dim", *_EXPERTS)
    norm = "full" if f.flag("use_qk_norm", True) else None
    attention = grouped_attention(f, query_key_norm=norm)
    moe = routed_experts(f, "intermediate_size", router_bias=f.flag("use_routing_bias", True))
    return _mixed(f, attention, [moe] * f.size("num_hidden_layers"))


def llama4(f: Fields) -> Model:
    """Llama 4 text: one shared expert beside the routed ones, chunked attention in the layers with rotary.

    A chunk is read as a sliding window of its length: the same up to attention_chunk_size tokens, and above
    it a query sees the whole window instead of half a chunk on average.
    """
    f.need(*_DENSE, "num_key_value_heads", "head_dim", *_EXPERTS, "attention_chunk_size",
           "interleave_moe_layer_step")
    layers, every = f.size("num_hidden_layers"), f.size("interleave_moe_layer_step")
    bias = f.flag("attention_bias", False)
    attention = grouped_attention(f, **biased(bias, bias))
    moe = routed_experts(f, "intermediate_size", shared_width=f.size("intermediate_size"))
    sparse = [(i + 1) % every == 0 for i in range(layers)]
    dense = moe if all(sparse) else FeedForward(f.size("intermediate_size_mlp"), True)
    f.assume("sliding_window", f.size("attention_chunk_size"), "a chunk is read as a sliding window")
    rotary = f.sequence("no_rope_layers") or [int((i + 1) % 4 != 0) for i in range(layers)]
    if len(rotary) != layers or any(flag not in (0, 1) for flag in rotary):
        raise f.error(f"no_rope_layers must hold one 0 or 1 for each of the {layers} layers")
    where = [f.size("attention_chunk_size") if flag else None for flag in rotary]
    return _mixed(f, attention, [moe if is_sparse else dense for is_sparse in sparse], where)


def _latent_attention(f: Fields) -> Attention:
    heads = f.size("num_attention_heads")
    if not f.has("q_lora_rank"):
        raise f.error("missing q_lora_rank; write null where queries are not compressed")
    bias = f.flag("attention_bias", False)
    return Attention(
        "mla", heads, heads, f.size("qk_nope_head_dim"), f.size("v_head_dim"),
        query_bias=bias, key_bias=bias, output_bias=bias,
        rope_head_dim=f.size("qk_rope_head_dim"), key_value_rank=f.size("kv_lora_rank"),
        query_rank=0 if f.raw("q_lora_rank") is None else f.size("q_lora_rank"),
    )


def _with_shared(f: Fields, router_bias: bool) -> FeedForward:
    shared = f.size("n_shared_experts", 0, "no shared experts stated", least=0)
    width = shared * f.size("moe_intermediate_size")
    return routed_experts(f, "moe_intermediate_size", shared_width=width, router_bias=router_bias)


def _leading_dense(f: Fields, moe: FeedForward) -> list[FeedForward]:
    """The first `first_k_dense_replace` layers dense, then experts every `moe_layer_freq`-th layer."""
    first, layers = f.size("first_k_dense_replace", least=0), f.size("num_hidden_layers")
    every = f.size("moe_layer_freq") if f.has("moe_layer_freq") else 1
    return _dense_or(f, moe, [i >= first and i % every == 0 for i in range(layers)])


def _qwen_feed_forwards(f: Fields, moe: FeedForward) -> list[FeedForward]:
    every = f.size("decoder_sparse_step", 1, "experts in every layer")
    dense = _layer_numbers(f, "mlp_only_layers")
    layers = range(f.size("num_hidden_layers"))
    return _dense_or(f, moe, [(i + 1) % every == 0 and i not in dense for i in layers])


def _layer_numbers(f: Fields, name: str) -> set[int]:
    values = f.sequence(name) or []
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)]
    if wrong:
        raise f.error(f"{name} must hold layer numbers, not {short(wrong[0])}")
    return set(values)


def _dense_or(f: Fields, moe: FeedForward, sparse: list[bool]) -> list[FeedForward]:
    dense = moe if all(sparse) else _gated(f)
    return [moe if is_sparse else dense for is_sparse in sparse]


def _with_mtp(f: Fields, model: Model) -> Model:
    """Multi-token prediction modules repeat the last layer's shape (arXiv:2412.19437, section 2.2)."""
    modules = f.size("num_nextn_predict_layers", 0, "no multi-token prediction stated", least=0)
    if modules > len(model.layers):
        raise f.error(f"num_nextn_predict_layers {modules} is more than the {len(model.layers)} layers")
    return replace(model, mtp_layers=(model.layers[-1],) * modules, assumed=tuple(dict.fromkeys(f.assumed)))


def _qwen3_attention(f: Fields) -> Attention:
    bias = f.flag("attention_bias", False)
    return grouped_attention(f, derive_head_dim=False, query_key_norm="per_head", **biased(bias, bias))


def _gemma_attention(f: Fields) -> Attention:
    bias = f.flag("attention_bias", False)
    return grouped_attention(f, derive_head_dim=False, **biased(bias, bias))


def _qwen_windows(f: Fields) -> list[int | None]:
    """Qwen's files state a sliding_window that only counts with use_sliding_window."""
    if not f.flag("use_sliding_window", False):
        return [None] * f.size("num_hidden_layers")
    f.need("sliding_window")
    first = 0 if f.raw("layer_types") is not None else f.size("max_window_layers", least=0)
    return windows(f, f.size("sliding_window"), lambda i: i >= first, f"sliding from layer {first}")


def _gated(f: Fields, bias: bool = False) -> FeedForward:
    return FeedForward(f.size("intermediate_size"), True, bias=bias)


def _uniform(
    f: Fields, attention: Attention, ffn: FeedForward, window: int | None, tied: bool = False
) -> Model:
    """A model whose layers are alike but for `layer_types`, if stated."""
    layers = f.size("num_hidden_layers")
    stated = f.raw("layer_types") is not None
    where = windows(f, window, lambda _: False, "") if stated else [window] * layers
    return _mixed(f, attention, [ffn] * layers, where, tied=tied)


def _mixed(
    f: Fields, attention: Attention, feed_forwards: list[FeedForward], where: list[int | None] | None = None,
    norms: int = 2, tied: bool = False, **rest: Any,
) -> Model:
    layers = layers_of(attention, where or [None] * len(feed_forwards), feed_forwards, norms)
    dropout = has_dropout(f, False, "attention_dropout", "hidden_dropout", "resid_pdrop")
    return assemble(f, layers, tied=tied, dropout=dropout, **rest)
