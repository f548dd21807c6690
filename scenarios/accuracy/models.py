"""The model of a published row, built from its columns.

The columns give the shape; what they do not hold (gating, norm, biases, ties, positions) is fixed by the model's
family in `STYLES`, with its source, or stands in the notes of the row (Megatron-CI).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache

from costmodel.architecture import Attention, FeedForward, Layer, Model
from scenarios.accuracy.rows import Row


class NotExpressible(ValueError):
    """A row that no scenario can be made of; the message is the reason."""


@dataclass(frozen=True)
class Style:
    """What a family of models has beside its shape."""

    gated: bool
    norm: str  # as in costmodel.architecture.Model
    bias: bool
    tied: bool
    learned_positions: bool
    source: str
    query_key_norm: str | None = None
    attention_bias: bool | None = None  # None: as `bias`
    sinks: bool = False
    window: int | None = None  # of every other layer
    dropout: bool = False
    embedding_norm: bool = False


_GPT = Style(False, "layer", True, True, True, "GPT-2, GPT-3 (arXiv 2005.14165); Megatron-LM")
_LLAMA = Style(True, "rms", False, False, False, "Llama (arXiv 2302.13971, 2407.21783)")

# name of the model -> style; the first pattern that matches counts
STYLES: tuple[tuple[str, Style], ...] = (
    ("mpt", replace(_GPT, source="mosaicml/llm-foundry scripts/train/benchmarking; biases and positions: from the "
                                 "parameters printed with every row")),
    (r"gpt-oss", Style(True, "rms", True, False, False, "openai/gpt-oss-120b config.json",
                       sinks=True, window=128)),
    (r"gpt-neo", replace(_GPT, attention_bias=False, window=256, source="EleutherAI/gpt-neo-2.7B config.json")),
    (r"opt-", replace(_GPT, source="facebook/opt-350m config.json, pre-norm as in the planner's GPT modules")),
    (r"gpt-[\d.]+b$", _GPT),
    (r"gpt3_7b_tp1_pp4", replace(_LLAMA, source="the parameters printed with the case")),
    (r"gpt3_", replace(_GPT, dropout=True, learned_positions=False,
                       source="Megatron-LM functional tests; rotary: the printed parameters hold no positions")),
    (r"gpt|mt-nlg", replace(_GPT, dropout=True)),
    (r"internlm", replace(_LLAMA, attention_bias=True, source="internlm/internlm-7b config.json")),
    (r"qwen3", replace(_LLAMA, query_key_norm="per_head", source="Qwen3 (arXiv 2505.09388)")),
    (r"llama|mi[sx]tral|qwen2", _LLAMA),
)
UNTIED = {"Megatron-README"}  # GPT sizes as printed (177B, 314B, 462B) only come out with a head of its own


def style_of(row: Row) -> Style:
    """Raises NotExpressible for a model of no known style."""
    name = row.text("model").lower()
    for pattern, style in STYLES:
        if re.search(pattern, name):
            return _with_flags(style, row)
    raise NotExpressible(f"model {row.text('model')}: no style known (norm, gating, biases are no columns)")


def _with_flags(style: Style, row: Row) -> Style:
    """The style with what the row's notes say about the model."""
    notes = row.text("notes")
    if "disable-bias-linear" in notes:
        style = replace(style, bias=False)
    if "untie-embeddings" in notes or row.family in UNTIED:
        style = replace(style, tied=False)
    return style


def model_of(row: Row) -> Model:
    """The model of a row. Raises NotExpressible naming a column that is needed and blank."""
    style, sequence = style_of(row), row.integer("seq") or 0
    key = tuple(row.integer(column) for column in
                ("layers", "hidden", "ffn_hidden", "heads", "vocab", "experts", "topk", "kv_heads", "head_dim"))
    for column, value in zip(("layers", "hidden", "ffn_hidden", "heads", "vocab"), key, strict=False):
        if value is None:
            raise NotExpressible(f"column {column} is blank")
    found = re.search(r"expert ffn (\d+)", row.text("notes"))
    shared = re.search(r"shared expert ffn (\d+)", row.text("notes"))
    widths = (int(found[1]) if found else None, int(shared[1]) if shared else 0)
    positions = sequence if style.learned_positions else 0
    return _built(row.text("model"), style, key, widths, positions)


@cache
def _built(name: str, style: Style, shape: tuple[int | None, ...], widths: tuple[int | None, int],
           positions: int) -> Model:
    """Equal rows share one object, so that caches by model are cheap."""
    layers, hidden, width, heads, vocabulary = (int(value or 0) for value in shape[:5])
    experts, top, kv_heads, head_dim = shape[5:]
    if experts and not top:
        raise NotExpressible("column topk is blank")
    size = head_dim or hidden // heads
    bias = style.bias if style.attention_bias is None else style.attention_bias
    attention = Attention(
        "gqa", heads, kv_heads or heads, size, size, query_bias=bias, key_bias=bias, value_bias=bias,
        output_bias=bias or style.bias, query_key_norm=style.query_key_norm, sinks=style.sinks,
    )
    feed_forward = FeedForward(
        int(widths[0] or width) if experts else width, style.gated, style.bias, experts or 0, top or 0,
        shared_width=widths[1] if experts else 0, router_bias=style.sinks,
    )
    full = Layer(attention, feed_forward)
    other = Layer(replace(attention, window=style.window), feed_forward) if style.window else full
    return Model(
        name, hidden, vocabulary, tuple(other if index % 2 == 0 else full for index in range(layers)), style.tied,
        style.norm, positions, dropout=style.dropout, source=style.source,
    )
