"""Cephalo (arXiv 2411.01075): compute share and state share decoupled on unequal GPUs.

Mechanism: every GPU gets as many samples as it is fast, and as much of the sharded states as it has memory left, with a
layer running all its micro-batches before the next, so that states are gathered once a step.
Answered: throughput of that division (`placement.shares`, policy decoupled) over the named baseline: FSDP with equal
batches and shards, batches by speed with equal shards, or, where a row says no more than "state of the art", each of
those that fits. Pipelines over unequal GPUs (Megatron-Het, FlashFlex) are not among the baselines here. GPUs, links,
models and batches were not published with the row: the span goes over pairs of nodes of the catalogue (two of each) and
models of 7B to 33B, as far as a row does not state them; 256 samples of 2,048 tokens, full recomputation, torch FSDP's
bytes, plain attention and fp16, which every generation has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import product

from costmodel import catalog
from costmodel.hardware import Cluster, joined
from costmodel.huggingface import catalog_model
from placement.plan import Plan
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotMapped, Span
from scenarios.papers.claims import Claim
from simulator.inputs import TrainingInputs
from simulator.predict import play

SYSTEM = "decoupled"
BASELINES = ((r"fsdp|equal|even|homogeneous", ("equal",)), (r"whale|hap\b|batch|speed|compute", ("by-speed",)),
             (r"memory", ("by-memory",)), (r"sota|state of the art|heterogeneous|baseline", ("equal", "by-speed")))
MODELS = {7: "llama-2-7b", 13: "llama-2-13b", 20: "gpt-neox-20b", 33: "qwen2.5-32b"}
PAIRS = (("hgx-a100", "dgx-v100"), ("dgx-v100", "a10g-8"), ("hgx-a100", "a10g-8"), ("hgx-h100", "hgx-a100-40"),
         ("hgx-a100-40", "a40-8"))
NODES = 2  # of each of a pair
BATCH = 256
SEQUENCE = 2048


@cache
def step_time_s(shares: str, model: str, pair: tuple[str, str]) -> float | None:
    """Seconds of a step; None where it does not fit."""
    groups = [Cluster(node, NODES, NODES * node.accelerators) for node in map(catalog.node, pair)]
    cluster = joined(groups)
    plan = Plan(data=cluster.accelerators, sharding="fsdp", shares=shares, recompute="full", precision="fp16")
    stack = {"execution": "eager", "attention": "unfused", "overlap": ["data"]}
    found = play(TrainingInputs("claim", "", "", {}, catalog_model(model), cluster, plan, SEQUENCE, BATCH, stack=stack))
    return found.step.step_time_s if found.fits else None


def speedups(baselines: tuple[str, ...], models: tuple[str, ...]) -> Iterator[float]:
    """The decoupled division's speed over each baseline that fits."""
    for case in product(models, PAIRS):
        ours = step_time_s(SYSTEM, *case)
        for baseline in baselines if ours is not None else ():
            theirs = step_time_s(baseline, *case)
            if ours is not None and theirs is not None:
                yield theirs / ours


def answer(claim: Claim) -> Answer:
    if not re.search(r"throughput|speed|time", claim.metric):
        raise NotMapped(f"metric {claim.metric!r}: training throughput is read")
    name = claim.baseline_name.lower()
    baselines = next((policies for pattern, policies in BASELINES if re.search(pattern, name)), None)
    if baselines is None:
        raise NotMapped(f"baseline {claim.baseline_name!r}: FSDP, and batches by speed with equal shards, are read")
    size = settings.parameters(claim.setting)
    models = tuple(MODELS.values())
    if size is not None:
        if round(size / 1e9) not in MODELS:
            raise NotMapped(f"a model of {size / 1e9:g}B")
        models = (MODELS[round(size / 1e9)],)
    found = list(speedups(baselines, models))
    if not found:
        raise NotMapped("no setting in which a baseline fits")
    left = ["GPUs", "links", "batch"] + (["model"] if size is None else [])
    return Answer(ratio=Span.of(found), open=", ".join(left),
                  how=f"decoupled over {' and '.join(baselines)}, {len(found)} cases in which the baseline fits",
                  missing={"": "pipelines over unequal GPUs as baselines, and the authors' kernels"})
