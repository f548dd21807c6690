"""Mixture-of-Channels: of a gated MLP only the top-K channels by their gate are used (arXiv 2511.09323).

The products stay dense (repository xiaohuangji/MoC: cuBLAS on tensors that are zero outside the chosen channels), so
training saves memory, not FLOPs. Kept of gate, up, silu(gate) and their product: K of f channels each, and a 2-byte
index of each channel.

    kept, plain modules   (4 f -> 5 K) elements a token: 4 b s f -> b s f at K = 0.2 f
    `rebuild` (GCP)       (2 f -> 3 K): gate, up and index; silu and product are made again: 0.6 b s f
    forward               selection: torch.topk reads a row once a digit of 2 bits of its 2-byte keys and twice to
                          write out (ATen, SortingRadixSelect.cuh: RADIX_BITS), values and 8-byte indices written and
                          packed; chosen channels gathered, computed and scattered into a zeroed dense row
    backward              product scattered again; gradient gathered, two sparse gradients scattered into zeroed rows
The activation is counted as fused, like that of the dense MLP. The selection is one kernel whatever the execution, and
its row is counted at memory bandwidth each time it is read, although part of it comes from caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from costmodel.activations import Kept
from costmodel.architecture import Model
from costmodel.operators import Number, Operator, memory_bound
from costmodel.techniques.base import Technique, parameter
from costmodel.work import Case, Work

INDEX_BYTES = 2.0  # kept; torch.topk writes 8
SELECTION_READS = 16 / 2 + 2  # digits of a 2-byte key, and the passes that write the chosen out


@dataclass(frozen=True)
class MixtureOfChannels(Technique):
    keep: float = parameter(0.2, "share of the inner channels that are used", gt=0, le=1)
    rebuild: bool = parameter(False, "silu(gate) and the product are made again in the backward pass")

    title: ClassVar[str] = "Mixture-of-Channels: the top-K inner channels of each token"
    source: ClassVar[str] = "arXiv 2511.09323; kernels: xiaohuangji/MoC"
    law: ClassVar[str] = "inner tensors kept x K/f, and a 2-byte index each; dense products; selection at bandwidth"
    rebuilds_mlp: ClassVar[bool] = True

    def problems(self, model: Model) -> Iterator[str]:
        parts = {layer.feed_forward for layer in model.layers}
        if not all(part.gated and not part.experts and not part.memory for part in parts):
            yield f"channels are chosen by the gate of a dense gated MLP, which {model.name} does not have everywhere"

    def layer(self, work: Work, case: Case) -> Work:
        inner = case.shard.tokens * case.layer.feed_forward.width / case.shard.tensor
        operators = [self._activation(inner) if one.name == "mlp_activation" else one for one in work.operators]
        kept = tuple(self._kept(one, inner) for one in work.kept)
        if any(one.part == "feed_forward" for one in work.kept):
            kept = (*kept, Kept("channel_index", INDEX_BYTES * self.keep * inner, part="feed_forward"))
        return replace(work, operators=(selection(inner, self.keep), *operators), kept=kept)

    def _kept(self, one: Kept, inner: Number) -> Kept:
        """An inner tensor at the chosen channels; rebuilt, only gate and up are left of silu, product and these."""
        if one.part != "feed_forward":
            return one
        whole = one.size_bytes
        if self.rebuild:
            whole = 0.0 * inner if one.feeds else 2 * 2.0 * inner
        return replace(one, size_bytes=whole * self.keep)

    def _activation(self, inner: Number) -> Operator:
        """The activation with its gathers and scatters, over `inner` channels of all tokens."""
        chosen = self.keep * inner
        forward = 2.0 * inner + chosen * (2.0 * 2 + INDEX_BYTES + 2.0 * 3 + 2.0)  # zeroed row; two read, three kept
        product = 2.0 * inner + chosen * (2.0 + INDEX_BYTES + 2.0)
        gradients = 2 * 2.0 * inner + chosen * (2.0 * 4 + INDEX_BYTES + 2 * 2.0)  # gradient, three kept; two scattered
        rebuilt = chosen * 2.0 * 4 * self.rebuild  # gate and up read, silu and product written
        return memory_bound("mlp_activation", forward, product + gradients + rebuilt)


def selection(inner: Number, keep: float) -> Operator:
    """Choosing `keep` of the channels: nothing of it runs backward."""
    written = keep * inner * (2.0 + 8.0 + 8.0 + INDEX_BYTES)  # values, indices, indices read again and packed
    moved = SELECTION_READS * 2.0 * inner + written
    return replace(memory_bound("channel_selection", moved, 0.0 * moved), once=True, as_moved=True)
