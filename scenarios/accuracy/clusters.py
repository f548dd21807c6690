"""The cluster of a published row: the catalogue's node of its accelerator, with the network the row states."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from costmodel import catalog
from costmodel.hardware import Cluster, Node
from costmodel.units import parse
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.rows import Row

PREFERRED = ("hgx-h100", "gh200-quad")  # where several nodes of the catalogue carry the same accelerator


@cache
def node_of(accelerator: str) -> Node | None:
    """The node whose accelerator it is; workstations and CXL boxes only where there is nothing else."""
    found = [name for name in catalog.names("nodes") if catalog.node(name).accelerator.name == accelerator]
    found.sort(key=lambda name: (name not in PREFERRED, "cxl" in name or "workstation" in name, name))
    return catalog.node(found[0]) if found else None


def cluster_of(row: Row) -> Cluster:
    """Raises NotExpressible for an accelerator, or a mix of them, that no node of the catalogue carries."""
    name, gpus = row.text("accelerator"), row.integer("gpus")
    if gpus is None:
        raise NotExpressible("column gpus is blank")
    if name == "mixed":
        raise NotExpressible("stages on different accelerators (stage_gpus) have no input in the core yet")
    node = node_of(name)
    if node is None:
        raise NotExpressible(f"accelerator {name or '(blank)'} is in no node of the catalogue")
    bandwidth = stated_bandwidth(row.text("inter_node_link"), node.accelerators)
    if bandwidth is not None:
        port = replace(node.scale_out, bandwidth_bytes_per_s=bandwidth, source=f"row {row.id}: inter_node_link")
        node = replace(node, scale_out=port)
    return Cluster(node, -(-gpus // node.accelerators), gpus)


def stated_bandwidth(text: str, accelerators: int) -> float | None:
    """Bytes/s of one accelerator's share of the node's network, as the row prints it; None where it does not.

    >>> stated_bandwidth("4x100 Gb/s RoCE per node", 8), stated_bandwidth("1600 Gb/s per node RoCE", 8)
    (6250000000.0, 25000000000.0)
    >>> stated_bandwidth("RoCE 400 Gb/s per GPU, 3-layer Clos", 8)
    50000000000.0
    """
    if per_gpu := re.search(r"(\d+) Gb/s per GPU", text):
        return parse(f"{per_gpu[1]} Gb/s", "bytes/s")
    if per_node := re.search(r"(?:(\d+)x)?(\d+) Gb/s(?: \w+)? per node", text):
        return int(per_node[1] or 1) * parse(f"{per_node[2]} Gb/s", "bytes/s") / accelerators
    return None
