"""InternEvo / Buff (arXiv 2401.09149; tables in InternLM/InternEvo, doc/en/train_performance.md).

Mechanism: each state is sharded over its own, possibly smaller, group; the optimizer inside a node (`zero1=8`), so
that fewer ranks take part in its collectives. Gradients are all-reduced over all ranks beside the last backward pass;
every owner of a part of the optimizer then broadcasts its parameters, one after another, with nothing beside it
(HybridZeroOptimizer of July 2023, when the speed tables were published: broadcast_params(overlap=False)).
Answered: tokens per GPU and second of hybrid ZeRO-1 (strategy internevo, plan.shard_group) against ZeRO-1 over
all ranks, TFLOPS per GPU, and device memory of pipeline, tensor and FSDP plans, each by the closed-form step of the
simulator on the cluster that the row states. `zero1` is read from setting and baseline (-1: all ranks); the system's
own group is a node's ranks unless the row states it. Not stated by rows and taken from the source's text: 4
micro-batches, micro-batch 2 x tp without recomputation, sequence 2,048 in the speed tables. Sequence and unit of
the memory table are not published anywhere: its answers are spans over 2,048 to 8,192 tokens, GB or GiB,
allocator's peak or whole device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from costmodel import catalog
from costmodel.architecture import Model
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from placement.plan import Plan, PlanError
from placement.schedules import ScheduleError
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim
from simulator.inputs import TrainingInputs
from simulator.predict import Played, play

MODELS = {7: "internlm-7b", 20: "internlm-20b"}
NODES = {"A100": "hgx-a100", "A800": "hgx-a800", "H100": "hgx-h100", "H800": "hgx-h800"}
SPEED_SEQUENCE, MEMORY_SEQUENCES = 2048, (2048, 8192)
MICRO_BATCHES = 4
NETWORK = 4 * 12.5e9  # bytes/s of a node: 4 x 100 Gb/s RoCE, the source's cluster
KERNELS = "the kernel efficiency of InternEvo's release"
SLOW_AT_SCALE = ("the rest of a term that grows with the ranks of ZeRO-1's exchange (about 3 ms an owner in the "
                 "source's curve; N broadcasts over N ranks, priced as NCCL's chains, give a part of it), and why the "
                 "exchange over 16 and 32 ranks costs the source less than its network needs to carry the parameters")
STACK_MEMORY = ("what InternEvo holds beside 16 to 18 bytes a parameter: its FSDP rows fall with the number of GPUs as "
                "if there were 27 to 30 (buckets, copies, reserved memory)")


@dataclass(frozen=True)
class Setting:
    """What a row states, with the source's own values where it does not."""

    model: Model
    cluster: Cluster
    tensor: int
    pipeline: int
    fsdp: bool
    zero1: int  # ranks that share one copy of the optimizer; -1: all
    recompute: str
    micro_batch: int
    micro_batches: int
    sequence: int | None

    @property
    def data(self) -> int:
        return max(self.cluster.accelerators // (self.tensor * self.pipeline), 1)


def setting_of(text: str) -> Setting:
    """Raises NotCheckable for a model or GPU count that is not stated, NotMapped for one that is not known."""
    size, count = settings.parameters(text), settings.gpus(text)
    if size is None or count is None or re.search(r"\d+B\s*-\s*\d+B", text):
        raise NotCheckable("the model and the number of GPUs")
    name = MODELS.get(round(size / 1e9))
    if name is None:
        raise NotMapped(f"a {size / 1e9:g}B model of the InternLM family")
    tensor = settings.degree(text, "tp") or 1
    off = re.search(r"(no|without) (act\w* )?(ckpt|checkpoint|recompute)|ckpt off", text)
    recomputed = not off and re.search(r"ckpt|checkpoint|recompute", text)
    return Setting(
        catalog_model(name), cluster_of(text, count), tensor, settings.degree(text, "pp") or 1,
        bool(re.search(r"fsdp\s*=\s*T", text)), settings.degree(text, "zero1") or -1,
        "full" if recomputed else "none", settings.degree(text, "micro_bsz") or 2 * tensor,
        settings.degree(text, "micro_num") or MICRO_BATCHES, settings.tokens(text),
    )


@cache
def cluster_of(text: str, count: int) -> Cluster:
    """The GPUs that the text names (A100 where none), on the network it states. Raises NotMapped."""
    found = re.search(r"\b([AHBV]\d{2,3})\b", text)
    if (named := found[1] if found else "A100") not in NODES:
        raise NotMapped(f"a node of {named}")
    node = catalog.node(NODES[named])
    stated = re.search(r"(?:(\d+)x)?(\d+) ?Gb", text)
    per_node = float(stated[1] or 1) * float(stated[2]) * 1e9 / 8 if stated else NETWORK
    port = replace(node.scale_out, bandwidth_bytes_per_s=per_node / node.accelerators, source="the claim's setting")
    return Cluster(replace(node, scale_out=port), -(-count // node.accelerators), count)


def played(of: Setting, sequence: int, zero1: int) -> Played:
    """The step of a setting. Raises NotMapped where the plan cannot be laid."""
    group = None if zero1 < 0 or zero1 >= of.data else zero1
    sharding = "fsdp" if of.fsdp else "internevo"
    plan = Plan(tensor=of.tensor, sequence_parallel=of.tensor > 1, pipeline=of.pipeline, data=of.data,
                micro_batch=of.micro_batch, recompute=of.recompute, sharding=sharding, shard_group=group)
    batch = of.data * of.micro_batch * of.micro_batches
    inputs = TrainingInputs("claim", "", "", {}, of.model, of.cluster, plan, sequence, batch,
                            stack={"name": "internevo"}, fidelity="analytic")
    try:
        return play(inputs)
    except (PlanError, ScheduleError) as error:
        raise NotMapped(str(error)) from None


def tokens_per_s_per_gpu(of: Setting, zero1: int) -> float:
    sequence = of.sequence or SPEED_SEQUENCE
    tokens = sequence * of.data * of.micro_batch * of.micro_batches / of.cluster.accelerators
    return tokens / played(of, sequence, zero1).step.step_time_s


def counted_flops_per_token(of: Setting) -> float:
    """As the source counts: 96 l h^2 (1 + s/6h + V/16lh) with recomputation, 72 without (arXiv 2104.04473, eq. 3)."""
    layers, hidden, vocabulary = len(of.model.layers), of.model.hidden, of.model.vocabulary
    sequence = of.sequence or SPEED_SEQUENCE
    whole = 1 + sequence / (6 * hidden) + vocabulary / (16 * layers * hidden)
    return (96 if of.recompute == "full" else 72) * layers * hidden**2 * whole


def answer(claim: Claim) -> Answer:
    metric = claim.metric.lower()
    if "gain" in metric or "strong" in claim.baseline_name:
        raise NotCheckable("which baselines and plans stand behind 'strong baselines', and InternEvo's own plan")
    of = setting_of(claim.setting)
    if "memory" in metric:
        return _memory(of, claim.unit)
    if "tokens" in metric or "tgs" in metric:
        return _hybrid(claim, of)
    if "flops" in metric:
        speed = tokens_per_s_per_gpu(of, of.zero1) * counted_flops_per_token(of) / 1e12
        return Answer(Span.of(speed), missing={"": KERNELS},
                      how="closed-form step, counted as the source does (recomputation included)")
    raise NotMapped(f"metric {claim.metric!r}: tokens/GPU/s, TFLOPS per GPU and GPU memory are read")


def _hybrid(claim: Claim, of: Setting) -> Answer:
    """Hybrid ZeRO-1 against what the baseline's name says."""
    inside = of.zero1 if of.zero1 > 0 else max(of.cluster.node.accelerators // of.tensor, 1)
    named = settings.degree(claim.baseline_name, "zero1")
    ours = tokens_per_s_per_gpu(of, inside)
    theirs = None if named is None else tokens_per_s_per_gpu(of, named)
    return Answer(Span.of(ours), None if theirs is None else Span.of(theirs),
                  None if theirs is None else Span.of(ours / theirs), missing={"": KERNELS, "ratio": SLOW_AT_SCALE},
                  how=f"closed-form step, optimizer sharded over {min(inside, of.data)} of {of.data} ranks")


def _memory(of: Setting, unit: str) -> Answer:
    """The span from the allocator's peak in GiB to the whole device in GB, over the sequences left open."""
    sequences = (of.sequence,) if of.sequence else MEMORY_SEQUENCES
    units: Mapping[str, tuple[float, ...]] = {"GiB": (2.0**30,)}
    found = list[float]()
    for sequence in sequences:
        step = played(of, sequence, of.zero1)
        peak = max(step.step.peak_bytes)
        found += [size / one for size in (peak, step.needed_bytes) for one in units.get(unit, (1e9, 2.0**30))]
    left = "" if of.sequence else "sequence length (2,048 to 8,192), "
    return Answer(Span.of(found), missing={"": STACK_MEMORY}, how="fullest stage of the closed-form step",
                  open=f"{left}GB or GiB, allocator's peak or whole device")
