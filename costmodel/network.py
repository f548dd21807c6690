"""Where a communication group lies on the cluster, and what the two networks give it.

A cluster has a fast network inside a scale-up domain (NVLink, xGMI, or PCIe) and a slower one between domains
(the network cards). A message takes one of several *lanes*, after NCCL's protocols: one with a short latency
and part of the bandwidth (LL, LL128), one with a long latency and nearly all of it (Simple). The faster lane
for the message is used, so the achieved bandwidth ramps up with the size as it does in measurements; a single
latency-bandwidth line cannot do that (12 % mean and up to 70 % error at the worst size of one sweep).

Origin of the constants
-----------------------
`CONSTANTS`, by accelerator generation: fitted to NCCL all-reduce, all-gather, reduce-scatter and all-to-all
(half precision, newest NCCL) of ai-dynamo/aiconfigurator at 095f58a, groups of 2 and 8 GPUs, 512 B to
512 MiB, by the mean absolute logarithm of predicted over measured. Ampere is A100 SXM (300 GB/s per
direction), Hopper H100 SXM (450), Blackwell B200 SXM (900). `direct` is fitted to the median of the
graph-captured all-reduce kernels of vLLM, SGLang and TensorRT-LLM in the same source, 256 B to 2 MiB. Held
out: groups of 4 of the same GPUs, and all of H200, GB200 and GB300. `tests/costmodel/test_collectives.py`
repeats the fit and measures both parts. Median absolute error in percent:

| | A100 | H100 | B200 | H200 | GB200 | GB300 |
|---|---|---|---|---|---|---|
| NCCL, fitted (2 and 8 GPUs) | 5.8 | 5.9 | 4.6 | | | |
| NCCL, held out (4 GPUs; all) | 5.8 | 5.3 | 5.9 | 5.7 | 5.5 | 5.3 |
| direct, held out (4 GPUs; all) | 2.3 | 3.1 | 4.0 | 8.7 | 14.5 | 15.1 |

Middle sizes are the weak spot (single sizes are up to 50 % off in all-to-all). `BULK_HOP_S` is not identified
by groups of 8 and decides long rings, so it is NCCL's own constant (src/graph/tuning.cc, hwLat, NVLINK, Ring,
Simple: 3.4 us). In-switch launch times lie above NCCL's 25 us because the fit puts its size ramp there.

Between domains there is no measured sweep on current machines, so: 85 % of the network card's rate
(reference/accuracy_notes.md, constants found); 4.0 us and 14.0 us per hop, and 120/128 of the bandwidth in
the short lane (same NCCL table, NET, Ring, LL128 and Simple). These, and groups of more than 8 GPUs in one
domain, are extrapolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from costmodel.hardware import Cluster

Number: TypeAlias = Any  # float or NumPy array; all functions broadcast


@dataclass(frozen=True)
class Group:
    """Ranks that communicate. Fields may be arrays that broadcast.

    A last, partly filled domain is treated like a full one: per_domain need not divide size.
    """

    size: Number
    per_domain: Number  # ranks of the group inside one scale-up domain; 1 = every hop leaves the domain

    @property
    def domains(self) -> Number:
        """Scale-up domains the group spans."""
        return np.ceil(np.divide(self.size, self.per_domain))


@dataclass(frozen=True)
class Lane:
    """One way of sending: launch once, then per hop a latency and per byte a bandwidth (per accelerator)."""

    launch_s: float
    scale_up_bandwidth_bytes_per_s: float
    scale_up_hop_s: float
    scale_out_bandwidth_bytes_per_s: float
    scale_out_hop_s: float


@dataclass(frozen=True)
class Paths:
    """What a cluster's networks give a collective. Bandwidths are achieved, not of the data sheet."""

    lanes: tuple[Lane, ...]  # the faster one is taken
    in_switch: Lane | None  # reduction and multicast in the scale-up switch (NVLS); None where it has none
    direct: Lane  # all-reduce kernels of serving engines that read their peers' memory
    own_shard: float  # link time, per byte, of copying the rank's own shard

    @property
    def in_switch_reduction(self) -> bool:
        return self.in_switch is not None

    @property
    def scale_up_bandwidth_bytes_per_s(self) -> float:
        return max(lane.scale_up_bandwidth_bytes_per_s for lane in self.lanes)

    @property
    def scale_out_bandwidth_bytes_per_s(self) -> float:
        return max(lane.scale_out_bandwidth_bytes_per_s for lane in self.lanes)

    @property
    def scale_up_latency_s(self) -> float:
        return min(lane.launch_s + lane.scale_up_hop_s for lane in self.lanes)

    @property
    def scale_out_latency_s(self) -> float:
        return min(lane.launch_s + lane.scale_out_hop_s for lane in self.lanes)


@dataclass(frozen=True)
class LaneConstants:
    """A lane before it meets a link: `fraction` is of the scale-up link's specified bandwidth."""

    launch_s: float
    hop_s: float
    fraction: float


@dataclass(frozen=True)
class Constants:
    """What one accelerator generation reaches with its scale-up link."""

    short: LaneConstants
    bulk: LaneConstants
    in_switch: LaneConstants | None  # used only where the link reduces in its switch
    direct: LaneConstants
    own_shard: float


BULK_HOP_S = 3.4e-6

CONSTANTS: Mapping[str, Constants] = {
    "ampere": Constants(
        short=LaneConstants(9.9e-6, 0.82e-6, 0.264),
        bulk=LaneConstants(26.5e-6, BULK_HOP_S, 0.735),
        in_switch=None,
        direct=LaneConstants(3.0e-6, 2.2e-6, 0.574),
        own_shard=0.38,
    ),
    "hopper": Constants(
        short=LaneConstants(5.2e-6, 0.77e-6, 0.380),
        bulk=LaneConstants(11.8e-6, BULK_HOP_S, 0.811),
        in_switch=LaneConstants(55e-6, 0.77e-6, 0.643),
        direct=LaneConstants(2.9e-6, 1.1e-6, 0.517),
        own_shard=0.51,
    ),
    "blackwell": Constants(
        short=LaneConstants(7.9e-6, 1.30e-6, 0.330),
        bulk=LaneConstants(14.8e-6, BULK_HOP_S, 0.780),
        in_switch=LaneConstants(86e-6, 1.30e-6, 0.540),
        direct=LaneConstants(5.0e-6, 0.9e-6, 0.204),
        own_shard=0.66,
    ),
}
DEFAULT_GENERATION = "ampere"  # slowest of the measured ones: stands in for every generation not listed

SCALE_OUT_FRACTION = 0.85
SCALE_OUT_SHORT_FRACTION = SCALE_OUT_FRACTION * 120 / 128
SCALE_OUT_SHORT_HOP_S = 4.0e-6
SCALE_OUT_BULK_HOP_S = 14.0e-6


def group(cluster: Cluster, size: Number, stride: Number) -> Group:
    """The group of ranks r, r + stride, r + 2 stride, ... in a machine filled in order.

    `stride` is the product of the inner parallel degrees. Broadcasts.
    Raises ValueError if a size or stride is below 1.
    """
    if np.any(np.less(size, 1)) or np.any(np.less(stride, 1)):
        raise ValueError(f"group size {size} and stride {stride} must be at least 1")
    return Group(size, np.clip(np.floor_divide(cluster.node.scale_up_domain, stride), 1, size))


def paths(cluster: Cluster) -> Paths:
    """Lanes of a cluster from its links and the constants of its accelerator's generation.

    A link slower in latency than the measured hop (a long-distance fabric, say) sets the hop's latency.
    """
    node = cluster.node
    constants = CONSTANTS.get(node.accelerator.generation, CONSTANTS[DEFAULT_GENERATION])

    def lane(part: LaneConstants, out_fraction: float, out_hop_s: float) -> Lane:
        return Lane(
            part.launch_s,
            node.scale_up.bandwidth_bytes_per_s * part.fraction,
            max(part.hop_s, node.scale_up.latency_s),
            node.scale_out.bandwidth_bytes_per_s * out_fraction,
            max(out_hop_s, node.scale_out.latency_s),
        )

    short = SCALE_OUT_SHORT_FRACTION, SCALE_OUT_SHORT_HOP_S
    bulk = SCALE_OUT_FRACTION, SCALE_OUT_BULK_HOP_S
    switch = constants.in_switch if node.scale_up.in_switch_reduction else None
    return Paths(
        lanes=(lane(constants.short, *short), lane(constants.bulk, *bulk)),
        in_switch=lane(switch, *bulk) if switch else None,
        direct=lane(constants.direct, *short),
        own_shard=constants.own_shard,
    )


def uniform_paths(
    scale_up_bandwidth_bytes_per_s: float,
    scale_out_bandwidth_bytes_per_s: float,
    *,
    launch_s: float = 0.0,
    scale_up_hop_s: float = 0.0,
    scale_out_hop_s: float = 0.0,
    in_switch_reduction: bool = False,
) -> Paths:
    """Textbook alpha-beta networks: one lane, no copy of the own shard. Latency 0 unless given."""
    lane = Lane(
        launch_s,
        scale_up_bandwidth_bytes_per_s,
        scale_up_hop_s,
        scale_out_bandwidth_bytes_per_s,
        scale_out_hop_s,
    )
    return Paths((lane,), lane if in_switch_reduction else None, lane, 0.0)
