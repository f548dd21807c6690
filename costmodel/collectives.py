"""How long a collective takes, and how many bytes a rank sends in it.

`size_bytes` is the full tensor of one rank, gathered or reduced (for all-to-all: the bytes each rank holds,
of which 1/n goes to each of the n ranks, itself included). With n ranks in k domains of m, S = size_bytes,
B and b the scale-up and scale-out bandwidth of one accelerator, the time in one lane (`network.Lane`) is

    launch + up_hops * scale_up_hop + out_hops * scale_out_hop + transfer [+ own_shard * S / (n B)]

| algorithm (all-gather, reduce-scatter; all-reduce is twice it) | up hops | out hops | transfer |
|---|---|---|---|
| ring: one flat ring, leaves a domain over its m network cards | n - k | k - 1 | (n-1)/n S / min(B, m b) |
| hierarchical: inside and between domains, pipelined | m - 1 | k - 1 | max((m-1)/m S/B, (k-1)/k S/(m b)) |
| ho-ring (PaRO, arXiv 2310.06003): both kinds of rings at the same time | m - 1 | k - 1 | as hierarchical |
| hierarchical-sequential: one after the other | m - 1 | k - 1 | the sum of the two |
| recursive-doubling between domains, rings inside | m - 1 | ceil(log2 k) | as hierarchical |
| pat: the same where m = 1 (NCCL's parallel aggregated trees) | 0 | ceil(log2 k) | as hierarchical |
| tree (all-reduce): chain in a domain, double tree outside | 2(m-1) | 2 ceil(log2 k) | 2S / min(B, m b) |
| in-switch: one domain whose switch reduces (NVLS) | 1; all-reduce 2 | - | S/B; all-reduce (1+1/n) S/B |
| one-shot; two-shot (all-reduce in a domain, engines' kernels) | 1; 2 | - | (n-1) S/B; 2(n-1)/n S/B |

Step counts of ring and tree follow NCCL's tuning model (src/graph/tuning.cc); ring and recursive doubling are
in Thakur, Rabenseifner and Gropp (2005). "auto" is the fastest of all but the last row, so what a well-tuned
library can reach; "nccl" the fastest of what NCCL has: over several domains of several ranks its all-gather
and reduce-scatter are the flat ring, whose latency grows with the number of ranks, and its broadcast is a flat chain
(enqueue.cc: rings alone); "custom" the faster of
one-shot and two-shot. An algorithm that cannot serve a group costs infinity there. A group of one costs
exactly 0. Everything broadcasts over `size_bytes` and the fields of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np

from costmodel.network import Group, Lane, Number, Paths

Algorithm = Callable[[Number, Group, Paths], Number]


def ring_share(ranks: Number) -> Number:
    """(n-1)/n: the part of a tensor that a rank must get from, or give to, the others."""
    return np.subtract(1.0, np.divide(1.0, ranks))


def _doublings(count: Number) -> Number:
    """Rounds of doubling from 1 to at least `count`."""
    return np.ceil(np.log2(count))


def _fastest(times: list[Number]) -> Number:
    return reduce(np.minimum, times)


def _as_given(time_s: Number) -> Number:
    """Scalars in, a float out."""
    return time_s if np.ndim(time_s) else float(time_s)


def _latency_s(lane: Lane, up_hops: Number, out_hops: Number) -> Number:
    return lane.launch_s + up_hops * lane.scale_up_hop_s + out_hops * lane.scale_out_hop_s


def _ring_bandwidth(group: Group, lane: Lane) -> Number:
    """Rate of a flat ring: what a rank passes inside a domain, or its network cards together."""
    up, out = lane.scale_up_bandwidth_bytes_per_s, lane.scale_out_bandwidth_bytes_per_s
    between = np.where(np.greater(group.domains, 1), group.per_domain * out, np.inf)
    inside = np.where(np.greater(group.per_domain, 1), up, np.inf)
    # the last case is a group of one, whose time `_collective` sets to 0
    return np.where(np.greater(group.size, 1), np.minimum(inside, between), up)


def _inside_and_between_s(size_bytes: Number, group: Group, lane: Lane) -> tuple[Number, Number]:
    """Seconds on the scale-up and the scale-out links when each byte crosses each network once."""
    inside = ring_share(group.per_domain) * size_bytes / lane.scale_up_bandwidth_bytes_per_s
    shard = size_bytes / group.per_domain
    return inside, ring_share(group.domains) * shard / lane.scale_out_bandwidth_bytes_per_s


def _own_shard_s(size_bytes: Number, group: Group, lane: Lane, paths: Paths) -> Number:
    """The copy of a rank's own shard, which the kernel makes beside the transfers."""
    return paths.own_shard * size_bytes / group.size / lane.scale_up_bandwidth_bytes_per_s


def _ring(phases: int) -> Algorithm:
    """A flat ring, once around (all-gather, reduce-scatter) or twice (all-reduce)."""

    def time_s(size_bytes: Number, group: Group, paths: Paths) -> Number:
        up_hops, out_hops = group.size - group.domains, group.domains - 1
        return _fastest(
            [
                _latency_s(lane, phases * up_hops, phases * out_hops)
                + phases * ring_share(group.size) * size_bytes / _ring_bandwidth(group, lane)
                + _own_shard_s(size_bytes, group, lane, paths)
                for lane in paths.lanes
            ]
        )

    return time_s


def _two_level(phases: int, rounds: Callable[[Number], Number], pipelined: bool = True) -> Algorithm:
    """Rings inside the domains and, between them, an exchange of `rounds(domains)` steps."""
    combine = np.maximum if pipelined else np.add

    def time_s(size_bytes: Number, group: Group, paths: Paths) -> Number:
        up_hops, out_hops = group.per_domain - 1, rounds(group.domains)
        return _fastest(
            [
                _latency_s(lane, phases * up_hops, phases * out_hops)
                + phases * combine(*_inside_and_between_s(size_bytes, group, lane))
                + _own_shard_s(size_bytes, group, lane, paths)
                for lane in paths.lanes
            ]
        )

    return time_s


def _parallel_aggregated_trees(size_bytes: Number, group: Group, paths: Paths) -> Number:
    """NCCL's recursive doubling, which needs every rank in a domain of its own."""
    time = _two_level(1, _doublings)(size_bytes, group, paths)
    return np.where(np.greater(group.per_domain, 1), np.inf, time)


def _tree_all_reduce(size_bytes: Number, group: Group, paths: Paths) -> Number:
    """Chains inside the domains, double binary tree between them: all bytes go up once and down once."""
    up_hops, out_hops = 2 * (group.per_domain - 1), 2 * _doublings(group.domains)
    return _fastest(
        [
            _latency_s(lane, up_hops, out_hops)
            + 2 * np.asarray(size_bytes) / _ring_bandwidth(group, lane)
            + _own_shard_s(size_bytes, group, lane, paths)
            for lane in paths.lanes
        ]
    )


def _in_switch(hops: int, multicast: bool) -> Algorithm:
    """The switch reduces or multicasts: a rank sends its tensor once, in an all-reduce one shard more."""

    def time_s(size_bytes: Number, group: Group, paths: Paths) -> Number:
        lane = paths.in_switch
        if lane is None:
            return np.inf
        copies = np.add(1.0, np.divide(1.0, group.size)) if multicast else 1.0
        time = _latency_s(lane, hops, 0) + copies * size_bytes / lane.scale_up_bandwidth_bytes_per_s
        return np.where(np.greater(group.domains, 1), np.inf, time)

    return time_s


def _direct(hops: int, sent: Callable[[Number], Number]) -> Algorithm:
    """Kernels that read the peers' memory: `sent(ranks)` tensors cross the link in `hops` rounds."""

    def time_s(size_bytes: Number, group: Group, paths: Paths) -> Number:
        lane = paths.direct
        transfer = sent(group.size) * size_bytes / lane.scale_up_bandwidth_bytes_per_s
        return np.where(np.greater(group.domains, 1), np.inf, _latency_s(lane, hops, 0) + transfer)

    return time_s


def _pairwise(size_bytes: Number, group: Group, paths: Paths) -> Number:
    """All-to-all: every rank sends to every other; the two networks work at the same time.

    The latency, one hop plus one per doubling of the peers, is what measurements in one node show.
    """
    share = size_bytes / group.size
    inside, between = share * (group.per_domain - 1), share * (group.size - group.per_domain)
    up_hops = np.where(np.greater(group.per_domain, 1), 1 + _doublings(group.per_domain), 0)
    out_hops = np.where(np.greater(group.domains, 1), 1 + _doublings(group.domains), 0)
    return _fastest(
        [
            _latency_s(lane, up_hops, out_hops)
            + np.maximum(
                inside / lane.scale_up_bandwidth_bytes_per_s, between / lane.scale_out_bandwidth_bytes_per_s
            )
            + _own_shard_s(size_bytes, group, lane, paths)
            for lane in paths.lanes
        ]
    )


def _broadcast_over(up_hops: Callable[[Group], Number], out_hops: Callable[[Group], Number]) -> Algorithm:
    """A pipelined chain or tree: the whole tensor crosses each link once."""

    def time_s(size_bytes: Number, group: Group, paths: Paths) -> Number:
        return _fastest(
            [
                _latency_s(lane, up_hops(group), out_hops(group))
                + np.asarray(size_bytes) / _ring_bandwidth(group, lane)
                for lane in paths.lanes
            ]
        )

    return time_s


def _steps(count: Number) -> Number:
    return count - 1


_HO_RING = "ho-ring"
_GATHER: Mapping[str, Algorithm] = {
    _HO_RING: _two_level(1, _steps),
    "ring": _ring(1),
    "recursive-doubling": _two_level(1, _doublings),
    "pat": _parallel_aggregated_trees,
    "hierarchical": _two_level(1, _steps),
    "hierarchical-sequential": _two_level(1, _steps, pipelined=False),
    "in-switch": _in_switch(1, multicast=False),
}
_REDUCE: Mapping[str, Algorithm] = {
    _HO_RING: _two_level(2, _steps),
    "ring": _ring(2),
    "tree": _tree_all_reduce,
    "recursive-doubling": _two_level(2, _doublings),
    "hierarchical": _two_level(2, _steps),
    "hierarchical-sequential": _two_level(2, _steps, pipelined=False),
    "in-switch": _in_switch(2, multicast=True),
    "one-shot": _direct(1, _steps),
    "two-shot": _direct(2, lambda ranks: 2 * ring_share(ranks)),
}
_chain = _broadcast_over(lambda g: g.size - g.domains, lambda g: g.domains - 1)
_BROADCAST: Mapping[str, Algorithm] = {
    "ring": _chain,
    _HO_RING: _chain,
    "broadcast-tree": _broadcast_over(lambda g: g.per_domain - 1, lambda g: _doublings(g.domains)),
    "in-switch": _in_switch(1, multicast=False),
}
_PAIRWISE: Mapping[str, Algorithm] = {"pairwise": _pairwise, _HO_RING: _pairwise}  # HO-Ring leaves these as they are

ALGORITHMS: Mapping[str, Mapping[str, Algorithm]] = {
    "all_gather": _GATHER,
    "reduce_scatter": _GATHER,
    "all_reduce": _REDUCE,
    "all_to_all": _PAIRWISE,
    "broadcast": _BROADCAST,
}
CHOICES: Mapping[str, tuple[str, ...]] = {  # names that stand for the fastest of several
    "auto": ("ring", "tree", "broadcast-tree", "recursive-doubling", "hierarchical", "in-switch", "pairwise"),
    "nccl": ("ring", "tree", "pat", "in-switch", "pairwise"),
    "custom": ("one-shot", "two-shot"),
}


def _collective(collective: str, size_bytes: Number, group: Group, paths: Paths, algorithm: str) -> Number:
    """Seconds of a collective by a named algorithm, or by the fastest of a named choice."""
    known = ALGORITHMS[collective]
    names = [name for name in CHOICES.get(algorithm, (algorithm,)) if name in known]
    if not names:
        choices = ", ".join([*CHOICES, *known])
        raise ValueError(f"{collective} has no algorithm {algorithm!r}: choose of {choices}")
    times = [known[name](size_bytes, group, paths) for name in names]
    return _as_given(np.where(np.greater(group.size, 1), _fastest(times), 0.0))


def all_gather_s(size_bytes: Number, group: Group, paths: Paths, algorithm: str = "auto") -> Number:
    """Seconds until every rank holds the `size_bytes` of which it had 1/n."""
    return _collective("all_gather", size_bytes, group, paths, algorithm)


def reduce_scatter_s(size_bytes: Number, group: Group, paths: Paths, algorithm: str = "auto") -> Number:
    """Seconds until every rank holds its 1/n of the sum of tensors of `size_bytes`."""
    return _collective("reduce_scatter", size_bytes, group, paths, algorithm)


def all_reduce_s(size_bytes: Number, group: Group, paths: Paths, algorithm: str = "auto") -> Number:
    """Seconds until every rank holds the whole sum of tensors of `size_bytes`."""
    return _collective("all_reduce", size_bytes, group, paths, algorithm)


def all_to_all_s(size_bytes: Number, group: Group, paths: Paths, algorithm: str = "auto") -> Number:
    """Seconds until every rank has sent 1/n of its `size_bytes` to each rank."""
    return _collective("all_to_all", size_bytes, group, paths, algorithm)


def broadcast_s(size_bytes: Number, group: Group, paths: Paths, algorithm: str = "auto") -> Number:
    """Seconds until every rank holds the `size_bytes` of one."""
    return _collective("broadcast", size_bytes, group, paths, algorithm)


def point_to_point_s(size_bytes: Number, crosses_domain: Number, paths: Paths) -> Number:
    """Seconds to send `size_bytes` to one rank, over scale-out links where `crosses_domain` is true."""
    size = np.asarray(size_bytes, dtype=float)
    inside = [_latency_s(lane, 1, 0) + size / lane.scale_up_bandwidth_bytes_per_s for lane in paths.lanes]
    between = [_latency_s(lane, 0, 1) + size / lane.scale_out_bandwidth_bytes_per_s for lane in paths.lanes]
    return _as_given(np.where(crosses_domain, _fastest(between), _fastest(inside)))


def sent_bytes(collective: str, size_bytes: Number, ranks: Number) -> Number:
    """Bytes one rank sends in a ring (all-to-all: pairwise; point_to_point: the message). Broadcasts.

    The mean over ranks for a broadcast, whose last rank sends nothing. Raises ValueError for an unknown name.
    """
    tensors = {
        "all_gather": ring_share(ranks),
        "reduce_scatter": ring_share(ranks),
        "all_reduce": 2 * ring_share(ranks),
        "all_to_all": ring_share(ranks),
        "broadcast": ring_share(ranks),
        "point_to_point": 1.0,
    }
    if collective not in tensors:
        raise ValueError(f"no collective {collective!r}: choose {', '.join(tensors)}")
    return tensors[collective] * size_bytes
