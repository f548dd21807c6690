"""A plain torch decoder from `costmodel.architecture.Model`: the same linear layers that the cost model prices.

Query, key and value are one linear layer, gate and up another. Shapes: b sequences of s tokens, h hidden, n heads.
A `Decoder` may be a contiguous part of the model (a pipeline stage). Each parameter is drawn from a seed and its name
in the whole model, so that any part of any layout starts from the same numbers (`initialise`).
"""

# mypy checks without torch: its modules are Any there
# mypy: disable-error-code="misc, untyped-decorator"
from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from costmodel import architecture as arch
from costmodel.calibration import pieces
from simulator.real.buildable import check

DEVIATION = 0.02  # of drawn weights, as GPT-2 has it; training speed and memory do not depend on it


class Norm(nn.Module):
    """Over the last dimension: kind "rms", "layer" or "layer-no-bias" (`Model.norm`)."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rms":
            return pieces.rms_norm(x, self.weight)
        return pieces.layer_norm(x, self.weight, self.bias)


class Attention(nn.Module):
    """Grouped-query attention. The heads of a tensor rank are read off the width that `qkv` gives: its rows are
    queries, keys, values of that rank (`rows_by_rank` orders the whole matrix so)."""

    def __init__(self, attention: arch.Attention, hidden: int) -> None:
        super().__init__()
        a = self.attention = attention
        self.widths = (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.value_head_dim)
        biased = (a.query_bias, a.key_bias, a.value_bias)
        self.qkv = nn.Linear(hidden, sum(self.widths), bias=all(biased))
        # a family that leaves some of the three out (Whisper's keys) gets a bias a part
        self.part_biases = nn.ParameterDict({
            name: nn.Parameter(torch.empty(width))
            for name, width, has in zip(("query", "key", "value"), self.widths, biased, strict=True)
            if has and not all(biased)})
        spans = {None: (0, 0), "per_head": (a.head_dim, a.head_dim), "full": self.widths[:2]}[a.query_key_norm]
        self.query_norm = Norm("rms", spans[0]) if spans[0] else None
        self.key_norm = Norm("rms", spans[1]) if spans[1] else None
        self.output = nn.Linear(a.heads * a.value_head_dim, hidden, bias=a.output_bias)

    def forward(self, x: Tensor, table: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """(b, s, h) to the same; `table` of `pieces.rotary_table` or None where positions are learned."""
        a, made = self.attention, self.qkv(x)
        ranks = sum(self.widths) // made.shape[-1]
        parts = list(made.split([width // ranks for width in self.widths], dim=-1))
        for index, name in enumerate(("query", "key", "value")):
            if name in self.part_biases:
                parts[index] = parts[index] + self.part_biases[name]
        if a.query_key_norm == "full" and self.query_norm and self.key_norm:
            parts[0], parts[1] = self.query_norm(parts[0]), self.key_norm(parts[1])
        query, key = (part.unflatten(-1, (-1, a.head_dim)) for part in parts[:2])
        value = parts[2].unflatten(-1, (-1, a.value_head_dim))
        if a.query_key_norm == "per_head" and self.query_norm and self.key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        if table is not None:
            query, key = pieces.rotate(query, table), pieces.rotate(key, table)
        return self.output(pieces.attend(query, key, value, mask).flatten(-2))


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    def __init__(self, attention: arch.Attention, hidden: int) -> None:
        super().__init__()
        a = self.attention = attention
        queries = a.heads * (a.head_dim + a.rope_head_dim)
        if a.query_rank:
            self.query_down = nn.Linear(hidden, a.query_rank, bias=a.query_bias)
            self.query_norm = Norm("rms", a.query_rank)
        self.query_up = nn.Linear(a.query_rank or hidden, queries, bias=False)
        self.key_value_down = nn.Linear(hidden, a.key_value_rank + a.rope_head_dim, bias=a.key_bias)
        self.key_value_norm = Norm("rms", a.key_value_rank)
        self.key_value_up = nn.Linear(a.key_value_rank, a.heads * (a.head_dim + a.value_head_dim), bias=False)
        self.output = nn.Linear(a.heads * a.value_head_dim, hidden, bias=a.output_bias)

    def forward(self, x: Tensor, table: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """(b, s, h) to the same; the rotary part of the keys is one head that all share."""
        a = self.attention
        low = self.query_norm(self.query_down(x)) if a.query_rank else x
        query = self.query_up(low).unflatten(-1, (-1, a.head_dim + a.rope_head_dim))
        latent, turned_key = self.key_value_down(x).split([a.key_value_rank, a.rope_head_dim], dim=-1)
        key, value = self.key_value_up(self.key_value_norm(latent)).unflatten(
            -1, (-1, a.head_dim + a.value_head_dim)).split([a.head_dim, a.value_head_dim], dim=-1)
        plain, turned = query.split([a.head_dim, a.rope_head_dim], dim=-1)
        turned_key = turned_key.unsqueeze(-2)
        if table is not None:
            turned, turned_key = pieces.rotate(turned, table), pieces.rotate(turned_key, table)
        query = torch.cat((plain, turned), dim=-1)
        key = torch.cat((key, turned_key.expand(*key.shape[:-1], -1)), dim=-1)
        # fused attention takes values of the keys' width alone; else torch keeps whole score matrices
        added = max(key.shape[-1] - a.value_head_dim, 0)
        out = pieces.attend(query, key, functional.pad(value, (0, added)) if added else value, mask)
        return self.output(out[..., : a.value_head_dim].flatten(-2))


class Mlp(nn.Module):
    """up (gate before up where gated), activation, down: (..., h) to the same."""

    def __init__(self, hidden: int, width: int, gated: bool, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, (2 if gated else 1) * width, bias=bias)
        self.down = nn.Linear(width, hidden, bias=bias)
        self.activation: Callable[[Tensor], Tensor] = pieces.gated if gated else pieces.plain

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Experts(nn.Module):
    """Routed experts on one rank. Expert parallelism puts a module of the same call in its place."""

    def __init__(self, members: Sequence[Mlp]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows (r, h) sorted by expert, `counts` of each expert (sum r); results in the same order."""
        parts = rows.split(list(counts))
        return torch.cat([expert(part) for expert, part in zip(self.members, parts, strict=True)])


class MixtureOfExperts(nn.Module):
    """Softmax router, top-k, rows sorted by expert, experts, weighted sum; shared experts beside.

    balanced: token i of a sequence goes to experts i k .. i k + k - 1 (modulo their number) with the router's weights,
    so that the load is the even one that the simulator takes, and the same in every layout; False: the router's top k.
    """

    def __init__(self, feed_forward: arch.FeedForward, hidden: int, balanced: bool = True) -> None:
        super().__init__()
        f = self.feed_forward = feed_forward
        self.balanced = balanced
        self.router = nn.Linear(hidden, f.experts, bias=f.router_bias)
        self.experts: nn.Module = Experts([Mlp(hidden, f.width, f.gated, f.bias) for _ in range(f.experts)])
        self.shared = Mlp(hidden, f.shared_width, f.gated, bias=False) if f.shared_width else None
        self.shared_gate = nn.Linear(hidden, 1, bias=False) if f.shared_gate else None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Weights (b s, k), chosen experts (b s, k) and the rows of each expert."""
        f = self.feed_forward
        chances = functional.softmax(self.router(x).flatten(0, -2), dim=-1, dtype=torch.float32)
        if not self.balanced:
            weights, chosen = chances.topk(f.experts_per_token)
            return weights.to(x.dtype), chosen, torch.bincount(chosen.flatten(), minlength=f.experts).tolist()
        batch, sequence = x.shape[0], x.shape[1]
        pairs = sequence * f.experts_per_token
        chosen = torch.arange(pairs, device=x.device).remainder(f.experts).view(sequence, -1).repeat(batch, 1)
        counts = [batch * len(range(expert, pairs, f.experts)) for expert in range(f.experts)]
        return chances.gather(1, chosen).to(x.dtype), chosen, counts

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen, counts = self.route(x)
        order = chosen.flatten().argsort(stable=True)
        tokens = order // self.feed_forward.experts_per_token
        made = self.experts(flat[tokens], counts) * weights.flatten()[order].unsqueeze(-1)
        out = torch.zeros_like(flat).index_add(0, tokens, made)
        if self.shared is not None:
            beside = self.shared(flat)
            out = out + (beside * torch.sigmoid(self.shared_gate(flat)) if self.shared_gate is not None else beside)
        return out.view_as(x)


class Layer(nn.Module):
    """Norm, attention, norm, feed-forward with residuals. 4 norms: also behind both blocks (Gemma 2); 1: both blocks
    beside one another behind one norm (Falcon 7B)."""

    def __init__(self, layer: arch.Layer, hidden: int, norm: str) -> None:
        super().__init__()
        attention = LatentAttention if layer.attention.kind == "mla" else Attention
        ffn = layer.feed_forward
        self.attention_norm = Norm(norm, hidden)
        self.attention = attention(layer.attention, hidden)
        self.attention_post_norm = Norm(norm, hidden) if layer.norms == 4 else None
        self.feed_forward_norm = Norm(norm, hidden) if layer.norms > 1 else None
        dense = () if ffn.experts else (hidden, ffn.width, ffn.gated, ffn.bias)
        self.feed_forward = Mlp(*dense) if dense else MixtureOfExperts(ffn, hidden)
        self.feed_forward_post_norm = Norm(norm, hidden) if layer.norms == 4 else None

    def forward(self, x: Tensor, table: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        normed = self.attention_norm(x)
        attended = self.attention(normed, table, mask)
        if self.feed_forward_norm is None:
            return x + attended + self.feed_forward(normed)
        if self.attention_post_norm is not None:
            attended = self.attention_post_norm(attended)
        x = x + attended
        made = self.feed_forward(self.feed_forward_norm(x))
        if self.feed_forward_post_norm is not None:
            made = self.feed_forward_post_norm(made)
        return x + made


class Decoder(nn.Module):
    """Layers first .. last - 1 of a model, the embedding before layer 0 and the head behind the last one.

    `layers` is keyed by the layer's number in the model, so that names are those of the whole model. Tables of
    positions are made for `sequence` tokens. On the meta device under `torch.device("meta")`.
    Raises NotBuildable; ValueError for a part that has one end of tied embeddings alone.
    """

    def __init__(self, model: arch.Model, sequence: int, first: int = 0, last: int | None = None) -> None:
        super().__init__()
        check(model)
        last = len(model.layers) if last is None else last
        self.model, h = model, model.hidden
        starts, ends = first == 0, last == len(model.layers)
        if model.tied_embeddings and starts != ends:
            raise ValueError("tied embeddings: a part of the model must have both embedding and head, or neither")
        inner = model.embedding_width
        width = inner or h
        self.embedding = nn.Embedding(model.vocabulary, width) if starts else None
        self.embedding_projection = nn.Linear(inner, h, bias=False) if starts and inner else None
        self.positions = nn.Embedding(model.positions, h) if starts and model.positions else None
        self.embedding_norm = Norm(model.norm, h) if starts and model.embedding_norm else None
        self.layers = nn.ModuleDict({str(i): Layer(model.layers[i], h, model.norm) for i in range(first, last)})
        self.final_norm = Norm(model.norm, h) if ends and model.final_norm else None
        self.head_projection = nn.Linear(h, inner, bias=False) if ends and inner else None
        self.head = nn.Linear(width, model.vocabulary, bias=model.head_bias) if ends else None
        if self.head is not None and self.embedding is not None and model.tied_embeddings:
            self.head.weight = self.embedding.weight
        self._make_tables(sequence, model.layers[first:last])

    def _make_tables(self, sequence: int, layers: Sequence[arch.Layer]) -> None:
        """One rotary table a head width and one mask a window: buffers that no state dict holds."""
        for layer in dict.fromkeys(layers):
            a = layer.attention
            width, window = a.rope_head_dim or a.head_dim, a.window
            if self.model.rotary and not hasattr(self, f"rotary_{width}"):
                table = pieces.rotary_table(sequence, width, torch.get_default_dtype())
                self.register_buffer(f"rotary_{width}", table, persistent=False)
            if window and window < sequence and not hasattr(self, f"window_{window}"):
                mask = torch.ones(sequence, sequence, dtype=torch.bool).tril()
                self.register_buffer(f"window_{window}", mask.triu(1 - window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (b, s) where the part has the embedding, hidden states (b, s, h) otherwise, to logits (b, s, V) where
        it has the head, hidden states otherwise."""
        if self.embedding is not None:
            x = self._embedded(x)
        for number, layer in self.layers.items():
            a = self.model.layers[int(number)].attention
            table = getattr(self, f"rotary_{a.rope_head_dim or a.head_dim}", None)
            mask = getattr(self, f"window_{a.window}", None)
            x = layer(x, table, mask)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.head_projection is not None:
            x = self.head_projection(x)
        return x if self.head is None else self.head(x)

    def _embedded(self, tokens: Tensor) -> Tensor:
        assert self.embedding is not None
        x: Tensor = self.embedding(tokens)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return x if self.embedding_norm is None else self.embedding_norm(x)


@torch.no_grad()
def initialise(decoder: nn.Module, seed: int) -> None:
    """Fills every parameter: norm weights 1, biases 0, all else normal, drawn from (seed, name) alone.

    Drawn on the CPU, so that a GPU starts from the same numbers."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias") or ".part_biases." in name:
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            generator = torch.Generator().manual_seed(seed * 2**32 + zlib.crc32(name.encode()))
            parameter.copy_(DEVIATION * torch.randn(parameter.shape, generator=generator))


def rows_by_rank(sizes: Sequence[int], ranks: int) -> Tensor:
    """The order of rows of a fused matrix in which equal contiguous parts hold, for each rank, its share of every
    piece: for `qkv` sizes (queries, keys, values), for a gated `up` (width, width).

    >>> rows_by_rank((4, 2), 2).tolist()
    [0, 1, 4, 2, 3, 5]
    """
    if any(size % ranks for size in sizes):
        raise ValueError(f"rows {tuple(sizes)} do not divide by {ranks} ranks")
    pieces_of_rows = torch.arange(sum(sizes)).split(list(sizes))
    return torch.cat([piece.chunk(ranks)[rank] for rank in range(ranks) for piece in pieces_of_rows])
