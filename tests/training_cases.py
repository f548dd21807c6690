"""Settings of real training runs that several test modules use."""

from __future__ import annotations

from dataclasses import replace

from costmodel import catalog
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from costmodel.stack import Stack
from placement.passes import Setting
from placement.plan import Plan


def setting(
    model: str = "llama-3.1-8b", node: str = "hgx-h100", nodes: int = 1, sequence: int = 8192,
    stack: Stack | None = None, layers: int | None = None, **plan: object,
) -> Setting:
    """A setting by names; `layers` cuts the model to that many."""
    found = catalog_model(model)
    if layers is not None:
        found = replace(found, layers=found.layers[:layers])
    host = catalog.node(node)
    cluster = Cluster(host, nodes, nodes * host.accelerators)
    return Setting(found, Plan(**plan), cluster, stack or Stack("fused", "flash-3", ("data", "pipeline")), sequence)
