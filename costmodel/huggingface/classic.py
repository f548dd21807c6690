"""Families before Llama: LayerNorm, plain two-matrix MLPs, biases, learned or ALiBi positions.

gpt2, gpt_neo, gpt_neox, gptj, opt, bloom, falcon, mpt. Shapes are those of `modeling_<family>.py` in Hugging
Face transformers; MPT's also of MosaicML's llm-foundry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.architecture import Attention, FeedForward, Model
from costmodel.huggingface.fields import MOST_LAYERS, Fields, short
from costmodel.huggingface.parts import assemble, biased, classic_attention, has_dropout, layers_of

_CORE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_FOUR = "4 x hidden_size"


def gpt2(f: Fields) -> Model:
    """GPT-2 and GPT-3 shapes: biases everywhere, learned positions, tied embeddings."""
    f.need(*_CORE, "max_position_embeddings")
    attention = classic_attention(f, **biased(True, True))
    return _alike(f, attention, _four_wide(f, True), tied=True, positions=f.size("max_position_embeddings"),
                  dropout=has_dropout(f, True, "resid_pdrop", "embd_pdrop", "attn_pdrop"))


def gpt_neo(f: Fields) -> Model:
    """GPT-Neo: global and local (windowed) layers by `attention_layers` or `attention_types`."""
    f.need(*_CORE, "max_position_embeddings")
    attention = classic_attention(f, **biased(False, True))
    local = [kind == "local" for kind in _neo_kinds(f)]
    window = f.size("window_size") if any(local) else None
    return _alike(f, attention, _four_wide(f, True), [window if is_local else None for is_local in local],
                  tied=True, positions=f.size("max_position_embeddings"),
                  dropout=has_dropout(f, False, "resid_dropout", "embed_dropout", "attention_dropout"))


def gpt_neox(f: Fields) -> Model:
    """GPT-NeoX-20B and Pythia: rotary, attention and MLP side by side but each with its norm."""
    f.need(*_CORE, "intermediate_size")
    bias = f.flag("attention_bias", True)
    ffn = FeedForward(f.size("intermediate_size"), False, bias=True)
    return _alike(f, classic_attention(f, **biased(bias, bias)), ffn, tied=False,
                  dropout=has_dropout(f, False, "attention_dropout", "hidden_dropout"))


def gptj(f: Fields) -> Model:
    """GPT-J: one norm for attention and MLP side by side, a bias on the head."""
    f.need(*_CORE)
    return _alike(f, classic_attention(f), _four_wide(f, True), norms=1, tied=False, head_bias=True,
                  dropout=has_dropout(f, False, "resid_pdrop", "embd_pdrop", "attn_pdrop"))


def opt(f: Fields) -> Model:
    """OPT: learned positions with an offset of 2; the 350M is post-norm with narrower embeddings."""
    f.need(*_CORE, "intermediate_size", "max_position_embeddings")
    if not f.flag("layer_norm_elementwise_affine", True):
        raise f.error("layer_norm_elementwise_affine = false (norms without weights) is not supported")
    bias = f.flag("enable_bias", True)
    hidden = f.size("hidden_size")
    width = f.size("word_embed_proj_dim", hidden, "hidden_size")
    ffn = FeedForward(f.size("intermediate_size"), False, bias=bias)
    final_norm = f.flag("do_layer_norm_before", True) and not f.flag("_remove_final_layer_norm", False)
    return _alike(f, classic_attention(f, **biased(bias, bias)), ffn, tied=True, final_norm=final_norm,
                  positions=f.size("max_position_embeddings") + 2,
                  embedding_width=None if width == hidden else width,
                  dropout=has_dropout(f, True, "dropout", "attention_dropout"))


def bloom(f: Fields) -> Model:
    """BLOOM: ALiBi, biases everywhere, a norm after the embedding."""
    f.need(*_CORE)
    return _alike(f, classic_attention(f, **biased(True, True)), _four_wide(f, True), tied=True,
                  embedding_norm=True, dropout=has_dropout(f, False, "hidden_dropout", "attention_dropout"))


def falcon(f: Fields) -> Model:
    """Falcon: 7B multi-query with one norm; 40B and 180B grouped with two; 11B grouped with one."""
    f.need(*_CORE)
    bias, new = f.flag("bias", False), f.flag("new_decoder_architecture", False)
    parallel = f.flag("parallel_attn", True)
    heads = f.size("num_attention_heads")
    if new:
        kv_heads = f.size("num_key_value_heads")
        norms = f.size("num_ln_in_parallel_attn", 2, "default of the new decoder architecture")
    else:
        kv_heads, norms = 1 if f.flag("multi_query", True) else heads, 1
    two_norms = norms == 2 or not parallel
    attention = classic_attention(f, kv_heads, **biased(bias, bias))
    return _alike(f, attention, _four_wide(f, bias), norms=2 if two_norms else 1, tied=True,
                  dropout=has_dropout(f, False, "attention_dropout", "hidden_dropout"))


_MPT_KV = {"multihead_attention": None, "multiquery_attention": 1}


def mpt(f: Fields) -> Model:
    """MPT: no biases at all, not even in the norms, unless `no_bias` is false; ALiBi or learned positions."""
    f.need(*_CORE)
    inner = f.section("attn_config")
    bias = not f.flag("no_bias", True)
    kind = inner.word("attn_type", "multihead_attention", (*_MPT_KV, "grouped_query_attention"))
    kv_heads = _MPT_KV[kind] if kind in _MPT_KV else inner.size("num_key_value_heads")
    norm = "full" if inner.flag("qk_ln", False) else None
    attention = classic_attention(f, kv_heads, query_key_norm=norm, **biased(bias, bias))
    width = f.size("hidden_size") * f.size("expansion_ratio")
    learned = not inner.flag("alibi", True) and f.flag("learned_pos_emb", True)
    return _alike(f, attention, FeedForward(width, False, bias=bias), tied=True,
                  norm="layer" if bias else "layer-no-bias",
                  positions=f.size("max_position_embeddings") if learned else 0,
                  dropout=has_dropout(f, False, "resid_pdrop", "emb_pdrop"))


def _neo_kinds(f: Fields) -> list[str]:
    """"global" or "local" for each layer; `attention_types` is a list of [kinds, how often]."""
    layers, kinds = f.size("num_hidden_layers"), f.sequence("attention_layers")
    if kinds is None:
        f.need("attention_types")
        kinds = []
        for entry in f.sequence("attention_types") or []:
            kinds += _repeated(f, entry)
    if len(kinds) != layers:
        raise f.error(f"attention_layers or attention_types describe {len(kinds)} layers of {layers}")
    unknown = [kind for kind in kinds if kind not in ("global", "local")]
    if unknown:
        raise f.error(f"attention layers are 'global' or 'local', not {short(unknown[0])}")
    return [str(kind) for kind in kinds]


def _repeated(f: Fields, entry: object) -> list[Any]:
    match entry:
        case [[*kinds], int(times)] if 0 <= times * len(kinds) <= MOST_LAYERS:
            return kinds * times
    raise f.error(f"attention_types must hold [[kinds...], times], not {short(entry)}")


def _four_wide(f: Fields, bias: bool) -> FeedForward:
    return FeedForward(f.size("intermediate_size", 4 * f.size("hidden_size"), _FOUR), False, bias=bias)


def _alike(
    f: Fields, attention: Attention, ffn: FeedForward, windows: Sequence[int | None] | None = None, *,
    norms: int = 2, tied: bool, norm: str = "layer", **rest: Any,
) -> Model:
    layers = f.size("num_hidden_layers")
    blocks = layers_of(attention, windows or [None] * layers, [ffn] * layers, norms)
    return assemble(f, blocks, tied=tied, norm=norm, **rest)
