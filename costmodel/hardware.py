"""What the machines are: accelerators, memory tiers, links, nodes, clusters.

All figures are SI (bytes, seconds, FLOP/s, watts, US dollars) and describe the part as its maker or a
measurement states it; what a kernel reaches of it is `costmodel.kernels`' business. Entries are read from
`costmodel/catalog/`, one YAML file each, every figure with its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class MemoryTier:
    """A place where bytes can lie. Bandwidths are per accelerator for HBM, per node otherwise."""

    name: str  # "hbm", "host", "cxl", "nvme"
    capacity_bytes: float
    read_bandwidth_bytes_per_s: float
    write_bandwidth_bytes_per_s: float
    latency_s: float
    source: str


@dataclass(frozen=True)
class Link:
    """One port of one accelerator into a network, one direction."""

    name: str
    bandwidth_bytes_per_s: float
    latency_s: float
    source: str
    in_switch_reduction: bool = False
    topology: str = "switch"  # switch | mesh | hybrid-cube | torus | pcie
    peer_bandwidth_bytes_per_s: float | None = None  # what a single pair gets; None: the whole port


@dataclass(frozen=True)
class Accelerator:
    """One schedulable device (for MI250X one of its two dies; the entry says so)."""

    name: str
    title: str
    vendor: str
    generation: str  # "volta", "ampere", "ada", "hopper", "blackwell", "cdna3", "tpu-v5", ...
    memory: MemoryTier
    peak_flops_per_s: Mapping[str, float]  # dense, by type: fp32 tf32 fp16 bf16 fp8 fp4 int8
    host_link: Link | None
    compute_units: int | None = None
    cache_bytes: float | None = None
    power_w: float | None = None
    price_usd_per_hour: float | None = None
    aliases: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)  # figure -> source, also price date and basis


@dataclass(frozen=True)
class Node:
    """A host with its accelerators, and the two networks they sit on."""

    name: str
    title: str
    accelerator: Accelerator
    accelerators: int
    scale_up: Link  # NVLink, xGMI, ICI, or PCIe where there is nothing else
    scale_up_domain: int  # accelerators that reach one another over scale_up (72 for NVL72)
    scale_out: Link  # per accelerator, its share of the node's network cards
    tiers: tuple[MemoryTier, ...] = ()  # host, cxl, nvme of the whole node
    overhead_power_w: float | None = None  # host, fans, network: all that is not an accelerator
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """Equal nodes behind one fabric; or, with `groups`, unequal ones (`joined`), of which `node` is then the mean."""

    node: Node
    nodes: int
    accelerators: int  # used by the run; at most nodes * node.accelerators
    power_limit_w: float | None = None  # cap set on every accelerator; None: the part's own limit
    groups: tuple[Cluster, ...] = ()  # the groups of equal nodes that unequal ones consist of

    @property
    def accelerator(self) -> Accelerator:
        return self.node.accelerator


def joined(groups: Sequence[Cluster]) -> Cluster:
    """Groups of equal nodes as one cluster. Its node and accelerator stand for the mean: peaks, power and price are of
    an accelerator on average (None where one of them has none), memory and links those of the poorest."""
    counts = [group.accelerators for group in groups]
    parts = [capped(group.accelerator, group.power_limit_w) for group in groups]

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        return sum(count * value for count, value in zip(counts, known, strict=True)) / sum(counts)

    common = [kind for kind in parts[0].peak_flops_per_s if all(kind in part.peak_flops_per_s for part in parts)]
    peaks = {kind: mean([part.peak_flops_per_s[kind] for part in parts]) or 0.0 for kind in common}
    accelerator = replace(
        parts[0], name="+".join(part.name for part in parts), title=" and ".join(part.title for part in parts),
        memory=min((part.memory for part in parts), key=lambda tier: tier.capacity_bytes),
        peak_flops_per_s=peaks, power_w=mean([part.power_w for part in parts]),
        price_usd_per_hour=mean([part.price_usd_per_hour for part in parts]), aliases=(),
    )
    nodes = [group.node for group in groups]
    overheads = [None if node.overhead_power_w is None else node.overhead_power_w / node.accelerators for node in nodes]
    overhead_w = mean(overheads)
    node = replace(
        nodes[0], name="+".join(node.name for node in nodes), title=" and ".join(node.title for node in nodes),
        accelerator=accelerator, scale_up=min((node.scale_up for node in nodes), key=_rate),
        scale_up_domain=min(node.scale_up_domain for node in nodes),
        scale_out=min((node.scale_out for node in nodes), key=_rate),
        overhead_power_w=None if overhead_w is None else overhead_w * nodes[0].accelerators,
    )
    return Cluster(node, sum(group.nodes for group in groups), sum(counts), groups=tuple(groups))


def _rate(link: Link) -> float:
    return link.bandwidth_bytes_per_s


# Speed of compute-bound work goes as power^0.87 within a generation (accuracy_notes, decision 4; +-0.09).
POWER_EXPONENT = 0.87


def capped(accelerator: Accelerator, power_limit_w: float | None) -> Accelerator:
    """The part under a power cap: peak rates scaled by (cap / limit)^0.87, never above its own.

    >>> from costmodel import catalog
    >>> h100 = catalog.accelerator("h100-sxm-80gb")
    >>> round(capped(h100, 500.0).peak_flops_per_s["bf16"] / h100.peak_flops_per_s["bf16"], 3)
    0.746
    """
    if power_limit_w is None or accelerator.power_w is None or power_limit_w >= accelerator.power_w:
        return accelerator
    share = (power_limit_w / accelerator.power_w) ** POWER_EXPONENT
    peaks = {kind: rate * share for kind, rate in accelerator.peak_flops_per_s.items()}
    return replace(accelerator, peak_flops_per_s=peaks, power_w=power_limit_w)
