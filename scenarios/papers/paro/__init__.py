"""PaRO (arXiv 2310.06003): partial redundancy of the training states.

Mechanism: parameters, gradients and optimizer are each replicated (N), sharded inside a group (I) or over all
ranks (G); the triple that is fastest and fits is chosen. Redundant memory inside a group saves traffic between
groups, most where it is paid once a step and not once a micro-batch.
Answered: throughput of the best triple over that of the named baseline (GGG = ZeRO-3, NGG = ZeRO-2, NNG = ZeRO-1,
III = MiCS and FSDP's hybrid), each triple a strategy (`paro-nig`, placement.paro) timed by the closed-form step; of
the 27 those are timed that none other beats in memory at no more traffic. The testbed's
links, batch and accumulation were not published: the span goes over LLaMA-7B and 65B, 16 to 128 A100, 100 to 1,600
Gb/s a node and 1 to 8 micro-batches, as far as a row does not state them. Trainable shares below 1 are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product

from costmodel import catalog
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from placement import paro
from placement.plan import Plan
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotMapped, Span
from scenarios.papers.claims import Claim
from simulator.inputs import TrainingInputs
from simulator.predict import play

NAMED = (("zero-?3|fsdp(?!.*hybrid)|sota|state of the art", "GGG"), ("zero-?2", "NGG"), ("zero-?1", "NNG"),
         ("mics|hybrid", "III"), ("zero", "GGG"))
MODELS = {7: "llama-2-7b", 13: "llama-2-13b", 65: "llama-65b", 70: "llama-2-70b"}
GPUS = (16, 64, 128)
NODE_BANDWIDTHS = (12.5e9, 100e9, 200e9)  # bytes/s
MICRO_BATCHES = (1, 8)
SEQUENCE = 2048


@cache
def step_time_s(triple: str, model: str, gpus: int, node_bytes_per_s: float, micro_batches: int) -> float | None:
    """Seconds of a step; None where it does not fit the device."""
    node = catalog.node("hgx-a100")
    port = replace(node.scale_out, bandwidth_bytes_per_s=node_bytes_per_s / node.accelerators, source="assumed")
    cluster = Cluster(replace(node, scale_out=port), gpus // node.accelerators, gpus)
    plan = Plan(data=gpus, sharding=paro.placement(triple), shard_group=node.accelerators, recompute="full")
    inputs = TrainingInputs("claim", "", "", {}, catalog_model(model), cluster, plan, SEQUENCE, gpus * micro_batches,
                            fidelity="analytic")
    found = play(inputs)
    return found.step.step_time_s if found.fits else None


def speedups(baseline: str, models: tuple[str, ...], counts: tuple[int, ...], links: tuple[float, ...],
             batches: tuple[int, ...]) -> Iterator[float]:
    """The best triple's speed over the baseline's, in every setting in which the baseline fits."""
    for case in product(models, counts, links, batches):
        theirs = step_time_s(baseline, *case)
        times = [time for triple in paro.worth_trying() if (time := step_time_s(triple, *case)) is not None]
        if theirs is not None and times:
            yield theirs / min(times)


def answer(claim: Claim) -> Answer:
    if not re.search(r"throughput|speed|time", claim.metric):
        raise NotMapped(f"metric {claim.metric!r}: training throughput is read")
    name = claim.baseline_name.lower()
    baseline = next((triple for pattern, triple in NAMED if re.search(pattern, name)), None)
    if baseline is None:
        raise NotMapped(f"baseline {claim.baseline_name!r} is no triple of replicated, group and global states")
    size, count = settings.parameters(claim.setting), settings.gpus(claim.setting)
    rates, batches = settings.bandwidths_bytes_per_s(claim.setting), settings.degree(claim.setting, "a")
    models: tuple[str, ...] = ("llama-2-7b", "llama-65b")
    if size is not None:
        if round(size / 1e9) not in MODELS:
            raise NotMapped(f"a {size / 1e9:g}B LLaMA")
        models = (MODELS[round(size / 1e9)],)
    found = list(speedups(baseline, models, (count,) if count else GPUS, tuple(rates[-1:]) or NODE_BANDWIDTHS,
                          (batches,) if batches else MICRO_BATCHES))
    if not found:
        raise NotMapped(f"{baseline} fits none of the settings on 80 GB")
    left = [text for text, known in (("model", size), ("GPUs", count), ("links", rates), ("accumulation", batches))
            if not known]
    tried = f"best of {len(paro.worth_trying())} of 27 triples over {baseline}"
    return Answer(ratio=Span.of(found), open=", ".join(left), how=tried,
                  missing={"": "kernels and overlap of PaRO's own implementation"})
