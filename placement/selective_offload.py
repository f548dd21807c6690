"""Selective offloading (ByteScale, arXiv 2502.21231, equation 3): fewer ranks for a long sequence by putting a share
of its activations on the host while it computes.

Attention grows with the square of a sequence and its activations only linearly, so from some length on the copies of
a layer's activations hide behind its forward pass. A sequence then needs fewer ranks, and fewer ranks mean fewer ring
steps. Two layers stay on the device: the first to be needed backward, and the one that computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodel.operators import Number

KEPT_LAYERS = 2
_SLACK = 1e-9  # rounding of a quotient that should be whole


@dataclass(frozen=True)
class Offloads:
    """What one layer of a sequence does on one rank alone: T(s) seconds forward, Act(s) bytes; `capacity_bytes` is
    Act(C), `layers` those of a rank. `host_bytes`: what a rank may keep on the host (infinite in the paper)."""

    layer_s: Number
    layer_bytes: Number
    capacity_bytes: float
    layers: int
    bandwidth_bytes_per_s: float  # the slower direction of the host link
    host_bytes: float = np.inf

    def hidden_share(self) -> Number:
        """The largest r whose copies hide: T(s) >= r Act(s) / B."""
        return np.minimum(1.0, self.layer_s * self.bandwidth_bytes_per_s / self.layer_bytes)

    def least_share(self) -> Number:
        """The smallest r worth it: what is offloaded must be a rank's worth, l Act(C)."""
        inner = max(self.layers - KEPT_LAYERS, 0)
        if inner == 0:
            return np.full(np.shape(self.layer_bytes), np.inf)
        return np.minimum(1.0, self.layers * self.capacity_bytes / (inner * np.asarray(self.layer_bytes, dtype=float)))

    def ranks(self, share: Number) -> Number:
        """D(s) = ceil((2 Act(s) + (1 - r)(l - 2) Act(s)) / (l Act(C)))."""
        kept = KEPT_LAYERS + (1.0 - np.asarray(share)) * (self.layers - KEPT_LAYERS)
        return np.ceil(kept * self.layer_bytes / (self.layers * self.capacity_bytes) - _SLACK)


def without(layer_bytes: Number, capacity_bytes: float) -> NDArray[np.int64]:
    """Ranks of sequences that keep all on the device: ceil(Act(s) / Act(C)) (Act is linear in the tokens)."""
    return np.maximum(np.ceil(np.asarray(layer_bytes) / capacity_bytes - _SLACK), 1).astype(np.int64)


def choose(of: Offloads, at_least: Number = 1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(D, r), [sequences] each: the fewest ranks that equation 3 allows, then the smallest share that reaches them.

    D falls with r, so the largest r that hides gives the fewest ranks; what a rank may keep on the host bounds D from
    below, and so does `at_least`. Where no r is both hidden and worth it nothing is offloaded.
    """
    size = np.asarray(of.layer_bytes, dtype=float)
    plain = without(size, of.capacity_bytes)
    none = np.zeros(size.shape)
    inner = of.layers - KEPT_LAYERS
    if inner <= 0:
        return plain, none
    hidden, least = of.hidden_share(), of.least_share()
    # on the host a rank keeps r inner Act(s) / D; with r as the device needs it for D ranks that is a bound on D
    on_host = np.maximum(
        of.layers * size / (of.layers * of.capacity_bytes + of.host_bytes), least * inner * size / of.host_bytes
    )
    ranks = np.maximum(np.maximum(of.ranks(hidden), np.ceil(on_host - _SLACK)), at_least)
    needed = (of.layers - ranks * of.layers * of.capacity_bytes / size) / inner
    share = np.clip(np.maximum(needed, least), 0.0, 1.0)
    taken = (least <= hidden) & (share <= hidden + _SLACK) & (ranks < plain)
    return np.where(taken, ranks, plain).astype(np.int64), np.where(taken, np.minimum(share, hidden), 0.0)
