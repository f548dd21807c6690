"""What the model is: layers, widths, heads, experts, vocabulary, and its exact parameter count.

Built by hand, from the catalogue, or from a Hugging Face `config.json` (`costmodel.huggingface`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attention:
    """One self-attention block.

    `kind` is "gqa" (covers MHA with kv_heads == heads and MQA with kv_heads == 1) or "mla".
    For MLA `head_dim` is the query/key head dimension without the rotary part, `rope_head_dim` the rotary
    part, `value_head_dim` the value's; `query_rank` 0 means queries are not compressed.
    `window` is the sliding-window length in tokens, None for full causal attention.
    """

    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    value_head_dim: int
    window: int | None = None
    query_bias: bool = False
    key_bias: bool = False
    value_bias: bool = False
    output_bias: bool = False
    query_key_norm: str | None = None  # None, "per_head" (head_dim weights each), "full" (all heads at once)
    sinks: bool = False  # one learned logit a head (gpt-oss)
    rope_head_dim: int = 0
    query_rank: int = 0
    key_value_rank: int = 0


@dataclass(frozen=True)
class ProductKeys:
    """A memory layer in place of an MLP: `keys`^2 values as wide as the model, found by product keys
    (`costmodel.product_keys`). Each of `heads` queries of `key_width` chooses `neighbours` values; `gated` adds a
    gate and an output projection; layers that share values have one owner (`owns_values`)."""

    keys: int = 1024
    heads: int = 4
    neighbours: int = 32
    key_width: int = 512
    gated: bool = True
    sharers: int = 1  # layers that read the values
    owns_values: bool = True


@dataclass(frozen=True)
class FeedForward:
    """A dense MLP (`experts` == 0), a mixture of experts of the same shape, or a memory layer.

    `width` is the inner width of the dense MLP or of one expert; `gated` adds the gate projection (SwiGLU,
    GeGLU). `shared_width` is the total inner width of the always-used experts beside the routed ones.
    """

    width: int
    gated: bool
    bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    shared_width: int = 0
    shared_gate: bool = False  # one scalar gate (hidden weights) on the shared expert (Qwen2-MoE)
    router_bias: bool = False
    memory: ProductKeys | None = None  # in place of all else (width 0)


@dataclass(frozen=True)
class Layer:
    attention: Attention
    feed_forward: FeedForward
    norms: int = 2  # norms over the hidden width: 2 pre-norm; 4 in Gemma 2/3; 1 in Falcon-7B parallel blocks


@dataclass(frozen=True)
class Model:
    """A decoder-only transformer. `layers` has one entry per layer, equal layers being the same object."""

    name: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    tied_embeddings: bool
    norm: str = "rms"  # "rms" (weight), "layer" (weight and bias) or "layer-no-bias" (MPT)
    positions: int = 0  # learned position embeddings (GPT-2, OPT); 0 with rotary
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_width: int | None = None  # OPT-350M projects 512 -> hidden; None means hidden
    head_bias: bool = False
    mtp_layers: tuple[Layer, ...] = ()  # multi-token prediction modules (DeepSeek-V3)
    dropout: bool = False
    source: str = ""
    assumed: tuple[str, ...] = ()  # fields of the config that were not stated and were taken from the family's code

    @property
    def rotary(self) -> bool:
        """Whether positions rotate queries and keys: where they are not learned."""
        return self.positions == 0
