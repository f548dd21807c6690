"""What the families share: grouped-query attention, window patterns, routed experts, final assembly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.huggingface.fields import Fields, short

SLIDING, FULL = "sliding_attention", "full_attention"


def grouped_attention(
    f: Fields, *, derive_kv_heads: bool = False, derive_head_dim: bool = True, **features: Any
) -> Attention:
    """Grouped-query attention. `derive_*`: the family's own code computes that size where it is missing."""
    heads = f.size("num_attention_heads")
    why_kv = "num_attention_heads: no grouping stated"
    kv_heads = f.size("num_key_value_heads", heads if derive_kv_heads else None, why_kv)
    head_dim = _head_dim(f, heads) if derive_head_dim else f.size("head_dim")
    return multi_head(f, heads, kv_heads, head_dim, **features)


def _head_dim(f: Fields, heads: int) -> int:
    hidden = f.size("hidden_size")
    if f.raw("head_dim") is None and hidden % heads:
        raise f.error(f"hidden_size {hidden} is not divisible by num_attention_heads {heads}, and "
                      "head_dim is missing")
    return f.size("head_dim", hidden // heads, "hidden_size / num_attention_heads")


def classic_attention(f: Fields, kv_heads: int | None = None, **features: Any) -> Attention:
    """Attention of families whose code fixes head_dim = hidden / heads, and by default kv_heads = heads."""
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    if hidden % heads:
        raise f.error(f"hidden_size {hidden} is not divisible by num_attention_heads {heads}")
    return multi_head(f, heads, kv_heads or heads, hidden // heads, **features)


def multi_head(f: Fields, heads: int, kv_heads: int, head_dim: int, **features: Any) -> Attention:
    """Grouped-query attention from checked sizes; raises ConfigError unless kv_heads divides heads."""
    if heads % kv_heads:
        raise f.error(f"num_attention_heads {heads} is not divisible by num_key_value_heads {kv_heads}")
    return Attention("gqa", heads, kv_heads, head_dim, head_dim, **features)


def biased(query_key_value: bool, output: bool) -> dict[str, bool]:
    """The bias switches of an attention block."""
    return {
        "query_bias": query_key_value, "key_bias": query_key_value, "value_bias": query_key_value,
        "output_bias": output,
    }


def windows(
    f: Fields, window: int | None, is_sliding: Callable[[int], bool], rule: str
) -> list[int | None]:
    """Each layer's window: by `layer_types` where stated, else by the family's rule (noted as `rule`)."""
    layers, kinds = f.size("num_hidden_layers"), f.sequence("layer_types")
    if kinds is None:
        kinds = [SLIDING if is_sliding(i) else FULL for i in range(layers)]
        if window is not None:
            f.assume("layer_types", rule, f"default of {f.family}")
    if len(kinds) != layers:
        raise f.error(f"layer_types has {len(kinds)} entries for {layers} layers")
    unknown = [kind for kind in kinds if kind not in (SLIDING, FULL)]
    if unknown:
        raise f.error(f"layer_types may hold {SLIDING} and {FULL}, not {short(unknown[0])}")
    if SLIDING in kinds and window is None:
        raise f.error("layer_types names sliding_attention but sliding_window is missing")
    return [window if kind == SLIDING else None for kind in kinds]


def stated_window(f: Fields) -> int | None:
    """sliding_window of a family whose code would fill in a number: it must be stated, and may be null."""
    if not f.has("sliding_window"):
        f.need("sliding_window")
    return None if f.raw("sliding_window") is None else f.size("sliding_window")


def routed_experts(f: Fields, width_field: str, **features: Any) -> FeedForward:
    """A gated mixture of experts whose inner width stands under `width_field`."""
    experts, per_token = f.size("num_experts"), f.size("num_experts_per_tok")
    if per_token > experts:
        raise f.error(f"num_experts_per_tok {per_token} is more than the {experts} experts")
    return FeedForward(f.size(width_field), True, experts=experts, experts_per_token=per_token, **features)


def has_dropout(f: Fields, default: bool, *names: str) -> bool:
    """Whether any of the dropout probabilities is above zero; the family's default if none is stated."""
    stated = f.positive(*names)
    if stated is None:
        f.assume("dropout", default, f"default of {f.family}")
    return default if stated is None else stated


def layers_of(
    attention: Attention, windows: Sequence[int | None], feed_forwards: Sequence[FeedForward], norms: int = 2
) -> tuple[Layer, ...]:
    """One layer per entry, equal layers being the same object."""
    pairs = zip(windows, feed_forwards, strict=True)
    return interned(Layer(replace(attention, window=w), ffn, norms) for w, ffn in pairs)


def interned(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The same layers, equal ones being the same object."""
    seen: dict[Layer, Layer] = {}
    return tuple(seen.setdefault(layer, layer) for layer in layers)


def assemble(f: Fields, layers: tuple[Layer, ...], *, tied: bool, **rest: Any) -> Model:
    """The model around its layers; `tied` is the family's default for tie_word_embeddings."""
    return Model(
        name=f.family,
        hidden=f.size("hidden_size"),
        vocabulary=f.size("vocab_size"),
        layers=layers,
        tied_embeddings=f.flag("tie_word_embeddings", tied),
        assumed=tuple(dict.fromkeys(f.assumed)),
        **rest,
    )
