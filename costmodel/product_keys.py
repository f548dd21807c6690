"""Memory layers: product keys choose few of very many values (arXiv 2412.09764; product keys: arXiv 1907.05242).

A query of each head is cut in two; each half is scored against n keys, and the best of the n^2 sums name the values
whose weighted sum replaces the MLP's output. So FLOPs grow with n, parameters with n^2, and a token reads
heads x neighbours values. Defaults and shapes: the authors' configuration and module (ProductKeyArgs, HashingMemory).
Parameters of one layer of width d: query d h k + h k; keys h n k; gate and output 2 (d^2 + d); values n^2 d.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodel.architecture import FeedForward, Model, ProductKeys

Number = Any  # float or NumPy array
VALUE_BYTES = 2.0
SELECTED_BYTES = 6.0  # a 4-byte index and a 2-byte score


class MemoryLayerError(ValueError):
    """Memory layers that a model cannot have; `key` is the setting to blame."""

    def __init__(self, key: str, message: str) -> None:
        self.key = key
        super().__init__(message)


@dataclass(frozen=True)
class MemoryLayers:
    """Which layers of a model become memories (counted from 0), and of what shape."""

    layers: tuple[int, ...]
    keys: int = 1024
    heads: int = 4
    neighbours: int = 32
    key_width: int = 512
    gated: bool = True
    shared: bool = True  # one table of values for all of them


def with_memory(model: Model, asked: MemoryLayers) -> Model:
    """The model with memories in place of some MLPs. Raises MemoryLayerError."""
    last = len(model.layers) - 1
    for number in asked.layers:
        if not 0 <= number <= last:
            told = f"{number} is no layer of {model.name}; layers are counted from 0 to {last}"
            raise MemoryLayerError("layers", told)
    if len(set(asked.layers)) < len(asked.layers):
        raise MemoryLayerError("layers", f"a layer is named twice in {list(asked.layers)}")
    if asked.key_width % 2:
        raise MemoryLayerError("key_width", f"{asked.key_width} cannot be cut in two halves; an even width can")
    if asked.neighbours > asked.keys:
        raise MemoryLayerError("neighbours", f"{asked.neighbours} are more than the {asked.keys} keys of a half")
    sharers = len(asked.layers) if asked.shared else 1
    memory = ProductKeys(asked.keys, asked.heads, asked.neighbours, asked.key_width, asked.gated, sharers)
    owner = min(asked.layers)

    def made(number: int) -> FeedForward:
        return FeedForward(0, True, memory=replace(memory, owns_values=number == owner or not asked.shared))

    layers = [replace(layer, feed_forward=made(number)) if number in asked.layers else layer
              for number, layer in enumerate(model.layers)]
    return replace(model, layers=tuple(layers))


def value_parameters(memory: ProductKeys, hidden: int) -> int:
    """Values that a layer holds; 0 where another one owns them."""
    return memory.keys**2 * hidden * memory.owns_values


def matmul_parameters(memory: ProductKeys, hidden: int) -> int:
    """Matrices that a token passes: queries, keys, gate and output; the values are looked up, not multiplied."""
    queries = hidden * memory.heads * memory.key_width
    return queries + memory.heads * memory.keys * memory.key_width + 2 * hidden**2 * memory.gated


def dense_parameters(memory: ProductKeys, hidden: int) -> int:
    """All parameters of a layer but the values."""
    return matmul_parameters(memory, hidden) + memory.heads * memory.key_width + 2 * hidden * memory.gated


def idle_parameters(memory: ProductKeys, hidden: int) -> int:
    """Values held that one token does not read; negative where it reads those of another layer."""
    return value_parameters(memory, hidden) - memory.heads * memory.neighbours * hidden


def read_bytes(memory: ProductKeys, hidden: int) -> float:
    """Bytes of values that a token reads in one layer: 4 x 32 d 2 B of the defaults.

    >>> read_bytes(ProductKeys(), 4096) / 2**20
    1.0
    """
    return memory.heads * memory.neighbours * hidden * VALUE_BYTES


def selected_bytes(memory: ProductKeys) -> float:
    """Indices and scores of the values that a token has chosen."""
    return memory.heads * memory.neighbours * SELECTED_BYTES


def touched_share(memory: ProductKeys, tokens: Number) -> Number:
    """Share of the values that a micro-batch of so many tokens reads at least once, and so has gradients for; the
    choices of all sharing layers counted as uniform: 1 - (1 - 1/n^2)^choices.

    >>> round(float(touched_share(ProductKeys(), 1024)), 4), round(float(touched_share(ProductKeys(), 65536)), 4)
    (0.1175, 0.9997)
    """
    choices = np.asarray(tokens, dtype=float) * memory.heads * memory.neighbours * memory.sharers
    return -np.expm1(choices * np.log1p(-1.0 / memory.keys**2))


def kept_bytes(memory: ProductKeys, hidden: int, tokens: Number) -> Number:
    """Bytes kept for the backward pass beside the layer's input: queries, what was chosen with its scores, the sum,
    and of a gate its two factors' projections and their product."""
    width = memory.heads * memory.key_width + hidden * (3 if memory.gated else 1)
    return tokens * (2.0 * width + selected_bytes(memory))
