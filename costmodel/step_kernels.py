"""The parts of a training step as they were measured on the user's own machine (`whatif calibrate fit --measured`).

Shipped profiles have products alone; an own one also has surfaces of training attention, of every memory-bound
operator by direction, of the optimizer, of copies and of collectives. Names of the surfaces and their coordinates:

| surface | coordinates | law |
|---|---|---|
| attend/TYPE/DIRECTION | sequence, rows (batch x heads), head width | causal FLOPs, 5 products backward against 2 |
| operator/NAME/DIRECTION/TYPE | bytes as `costmodel.operators` counts them | bytes at memory bandwidth |
| optimizer | bytes of one tensor, as `placement.state_traffic.optimizer_s` counts | the same |
| copy/KIND | bytes copied, each read and written | the same, twice the bytes |
| collective/NAME/BACKEND | bytes of the full tensor of a rank, ranks | what a rank sends at the best measured rate |

Functions give None where the profile has no such surface; the laws of `costmodel.kernels` hold there. They broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from costmodel import collectives
from costmodel.network import Group
from costmodel.operators import Number, Operator, attended_pairs
from costmodel.profiles import Kernels, Measured, Rates, Surface

BACKWARD = 2.5  # FLOPs of attention's backward pass over those of its forward pass (FlashAttention-2, 3.1)


def attention_law_s(rates: Rates, kind: str, flops: Number) -> Number:
    """Attention at the peak of its type."""
    return np.asarray(flops) / rates.flops_per_s[kind]


def attention_s(kernels: Kernels, kind: str, operator: Operator, direction: str) -> Number | None:
    """The rows are those whose causal pairs make the operator's FLOPs; a window, a share of a context or a part of a
    sequence has as many fewer."""
    surface = kernels.measured.surfaces.get(f"attend/{kind}/{direction}")
    if surface is None:
        return None
    flops = operator.forward_flops if direction == "forward" else operator.backward_flops
    of_row = 4.0 * attended_pairs(np.asarray(operator.sequence, dtype=float), None) * operator.head_dim
    rows = operator.forward_flops / of_row
    law = attention_law_s(kernels.rates, kind, flops)
    return surface.seconds(law, operator.sequence, rows, operator.head_dim)


def operator_s(kernels: Kernels, kind: str, operator: Operator, direction: str, size_bytes: Number) -> Number | None:
    """`size_bytes` in `operator.kernels` equal parts. An operator without a surface of its own is a copy: as many
    bytes read as written."""
    name = operator.measured_as or operator.name
    surfaces = kernels.measured.surfaces
    surface = surfaces.get(f"operator/{name}/{direction}/{kind}") or surfaces.get(f"operator/{name}/step/{kind}")
    if surface is None:
        return copy_s(kernels, np.asarray(size_bytes) / 2.0)
    return operator.kernels * by_bytes(surface, kernels.rates, np.asarray(size_bytes) / operator.kernels)


def by_bytes(surface: Surface, rates: Rates, size_bytes: Number, moved: float = 1.0) -> Number:
    """Seconds of a surface over bytes; nothing takes no time. `moved`: bytes moved a byte of the coordinate."""
    law = moved * np.asarray(size_bytes) / rates.bytes_per_s
    return np.where(np.asarray(size_bytes) > 0, surface.seconds(law, size_bytes), 0.0)


def copy_s(kernels: Kernels, size_bytes: Number) -> Number | None:
    """A copy on the device; `size_bytes` are read and as many written."""
    surface = kernels.measured.surfaces.get("copy/device")
    return None if surface is None else by_bytes(surface, kernels.rates, size_bytes, 2.0)


def optimizer_s(kernels: Kernels, size_bytes: Number, tensors: Number) -> Number | None:
    """Adam over `tensors` equal tensors that take `size_bytes` together."""
    surface = kernels.measured.surfaces.get("optimizer")
    if surface is None:
        return None
    each = np.asarray(size_bytes) / np.maximum(tensors, 1.0)
    return np.maximum(tensors, 1.0) * by_bytes(surface, kernels.rates, each)


def collective_s(measured: Measured, name: str, size_bytes: Number, group: Group, link_bytes_per_s: float,
                 ) -> Number | None:
    """A collective inside one node, by the surface of the first backend that has it; a group of one takes no time."""
    surface = next((one for key, one in measured.surfaces.items() if key.startswith(f"collective/{name}/")), None)
    if surface is None or np.any(np.greater(group.domains, 1)):
        return None
    law = collective_law_s(name, size_bytes, group.size, link_bytes_per_s)
    seconds = np.where(np.greater(group.size, 1), surface.seconds(law, size_bytes, group.size), 0.0)
    return seconds if seconds.ndim else float(seconds)


def collective_law_s(name: str, size_bytes: Number, ranks: Number, link_bytes_per_s: float) -> Number:
    """What a rank must send, at the link's rate."""
    return collectives.sent_bytes(name, size_bytes, ranks) / link_bytes_per_s


def name_of(price: Callable[..., Any]) -> str:
    """The collective that a pricing function of `costmodel.collectives` prices."""
    return price.__name__.removesuffix("_s")
