"""What the values of a scenario must be to one another: degrees and GPUs, batch and micro-batch, heads.

Each check is a generator of (key path, message); a message shows every number it judges by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from costmodel import techniques
from costmodel.architecture import Attention, FeedForward, Model
from costmodel.hardware import Cluster
from costmodel.kernels import PEAK_OF_PRECISION
from placement import divisibility, hybrid_data, schedules, strategies, unequal
from placement.plan import Plan, PlanError, layers_of_chunks
from placement.sequences import LengthsError, expected_sequences
from scenarios.build import build_lengths, build_plan
from scenarios.schema import Scenario, WorkloadBlock

KeyPath = tuple[str, ...]
Found = Iterator[tuple[KeyPath, str]]
MOST_LAYERS = 1_000
MOST_SEQUENCES = 500_000  # of unequal length in a step
MOST_PASSES = 5_000_000  # forward passes of one pipeline: stages x chunks x micro-batches


@dataclass(frozen=True)
class _Case:
    """What is checked. `plan` has its data-parallel degree filled in."""

    plan: Plan
    model: Model
    cluster: Cluster
    workload: WorkloadBlock

    @property
    def sequence(self) -> int:
        return self.workload.sequence

    @property
    def batch(self) -> int:
        return self.workload.global_batch

    @property
    def attentions(self) -> list[Attention]:
        return list(dict.fromkeys(layer.attention for layer in divisibility.layers(self.model)))

    @property
    def feed_forwards(self) -> list[FeedForward]:
        return divisibility.feed_forwards(self.model)


def relations(scenario: Scenario, model: Model, cluster: Cluster) -> list[tuple[KeyPath, str]]:
    """Everything that does not go together, as (key path, message); empty where all does."""
    plan = build_plan(scenario.plan, cluster)
    case = _Case(plan, model, cluster, scenario.workload)
    if cluster.groups:
        return [problem for check in (_unequal, _layers, _sequence, _lengths, _precision) for problem in check(case)]
    found = [*_degrees(scenario, cluster), *_shares(scenario)]
    # The checks that need the data-parallel degree would mislead where the product is wrong.
    checks = _CHECKS if found else _CHECKS + _SIZED_CHECKS
    return found + [problem for check in checks for problem in check(case)]


def unsearchable(cluster: Cluster) -> list[tuple[KeyPath, str]]:
    """What keeps plans from being searched on a cluster."""
    if not cluster.groups:
        return []
    return [(("cluster", "beside"), "plans are searched for equal accelerators; leave it out (`whatif run` divides the "
             "work over unequal ones)")]


def _product(factors: Mapping[str, int]) -> str:
    """The factors and their product: 'tensor 8 x pipeline 16 = 128'."""
    terms = " x ".join(f"{name} {size:,}" for name, size in factors.items())
    return f"{terms} = {math.prod(factors.values()):,}" if len(factors) > 1 else terms


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, min(number, 10_000) + 1) if number % n == 0]
    return ", ".join(found[:12])


def _degrees(scenario: Scenario, cluster: Cluster) -> Found:
    plan, gpus = scenario.plan, cluster.accelerators
    others = {"tensor": plan.tensor, "pipeline": plan.pipeline, "context": plan.context}
    rest = math.prod(others.values())
    if plan.data is None:
        if gpus % rest:
            yield ("plan",), f"{_product(others)} does not divide the cluster's {gpus:,} GPUs"
    elif rest * plan.data != gpus:
        hint = f"; data {gpus // rest:,} would fit" if gpus % rest == 0 else ""
        product = _product({**others, "data": plan.data})
        yield ("plan", "data"), f"{product} GPUs, but the cluster has {gpus:,}{hint}"


def _shares(scenario: Scenario) -> Found:
    if "shares" in scenario.plan.model_fields_set:
        yield ("plan", "shares"), ("says how unequal accelerators share the work; these are equal: leave it out, or "
                                   "give nodes of other kinds in cluster.beside")


def _unequal(case: _Case) -> Found:
    """What a plan on unequal accelerators must be."""
    plan, ranks = case.plan, case.cluster.accelerators
    placement = strategies.get(plan.sharding) if isinstance(plan.sharding, str) else plan.sharding
    if plan.gpus != ranks and plan.data > 1:
        yield ("plan", "data"), f"unequal accelerators share by sharding alone, over all {ranks:,}; leave it out"
    if case.workload.lengths is not None:
        yield ("workload", "lengths"), "sequences of unequal length are not dealt to unequal accelerators; leave it out"
    for key, reason in unequal.faults(plan, placement, ranks, case.batch):
        yield ({"global_batch": "workload", "beside": "cluster"}.get(key, "plan"), key), reason


def _batch(case: _Case) -> Found:
    plan, batch = case.plan, case.batch
    if case.workload.lengths is not None:  # a batch of tokens, which sequences fill
        return
    per_step = plan.data * plan.micro_batch
    factors = _product({"data": plan.data, "micro_batch": plan.micro_batch})
    if not divisibility.batch_divides(plan, batch):
        fitting = max(1, round(batch / per_step)) * per_step
        yield ("workload", "global_batch"), f"{batch:,} does not divide by {factors}; {fitting:,} would"
        return
    micro_batches = batch // per_step
    if not divisibility.groups_divide(plan, batch):
        yield ("plan", "schedule"), (
            f"{plan.schedule} needs micro-batches in whole groups of pipeline {plan.pipeline:,}; a step has "
            f"global_batch {batch:,} / ({factors}) = {micro_batches:,}"
        )
    passes = {"pipeline": plan.pipeline, "virtual": plan.virtual, "micro-batches": micro_batches}
    passes |= {"segments": plan.segments} if plan.segments > 1 else {}
    if math.prod(passes.values()) > MOST_PASSES:
        yield ("workload", "global_batch"), (
            f"{_product(passes)} passes in a step are more than the {MOST_PASSES:,} that can be played"
        )


def _heads(case: _Case) -> Found:
    tensor, name = case.plan.tensor, case.model.name
    for attention in case.attentions:
        heads, kv_heads = attention.heads, attention.kv_heads
        if not divisibility.heads_divide(attention, tensor):
            yield ("plan", "tensor"), (
                f"{tensor:,} does not divide the {heads} attention heads of {name}; {_divisors(heads)} do"
            )
        elif not divisibility.key_value_heads_divide(attention, tensor):
            yield ("plan", "tensor"), (
                f"{tensor:,} neither divides the {kv_heads} key/value heads of {name} nor the other way round"
            )
        elif case.plan.context_method == "ulysses" and not divisibility.ulysses_heads_divide(
            attention, tensor, case.plan.context
        ):
            yield ("plan", "context"), (
                f"{case.plan.context:,} does not divide the {heads} heads / tensor {tensor:,} = "
                f"{heads // tensor} that ulysses spreads over the context ranks"
            )


def _widths(case: _Case) -> Found:
    tensor, expert_tensor = case.plan.tensor, case.plan.expert_tensor
    for part in case.feed_forwards:
        if divisibility.width_divides(part, tensor, expert_tensor):
            continue
        if not part.experts:
            yield ("plan", "tensor"), f"{tensor:,} does not divide feed-forward width {part.width:,}"
        else:
            yield ("plan", "expert_tensor"), f"{expert_tensor:,} does not divide expert width {part.width:,}"


def _experts(case: _Case) -> Found:
    sparse = [part for part in case.feed_forwards if part.experts]
    degrees = {"expert_tensor": case.plan.expert_tensor}
    if not any(part.memory for part in case.feed_forwards):  # whose values lie on the expert ranks
        degrees = {"expert": case.plan.expert, **degrees}
    for key, degree in degrees.items():
        if not sparse and degree > 1:
            yield ("plan", key), f"{case.model.name} has no experts to spread; leave {key} out"
    for part in sparse:
        if not divisibility.experts_divide(part, case.plan.expert):
            yield ("plan", "expert"), (
                f"{case.plan.expert:,} does not divide the {part.experts} experts of {case.model.name}; "
                f"{_divisors(part.experts)} do"
            )


def _memory_layers(case: _Case) -> Found:
    """A memory layer is whole on every rank but for its values, which the expert ranks hold by columns."""
    memories = [part.memory for part in case.feed_forwards if part.memory]
    plan, hidden = case.plan, case.model.hidden
    if not memories:
        return
    if plan.tensor > 1:
        yield ("plan", "tensor"), (
            f"memory layers are not split by tensor ranks, so tensor must be 1 (it is {plan.tensor:,}); expert spreads "
            "their values"
        )
    if plan.pipeline > 1 and any(memory.sharers > 1 for memory in memories):
        yield ("plan", "pipeline"), (
            f"layers that share their values must lie on one stage, so pipeline must be 1 (it is {plan.pipeline:,}); "
            "or set model.memory_layers.shared to false"
        )
    if hidden % plan.expert:
        yield ("plan", "expert"), (
            f"{plan.expert:,} does not divide the {hidden:,} columns of the values; {_divisors(hidden)} do"
        )


def _techniques(case: _Case) -> Found:
    for name, message in techniques.problems(case.plan.changes, case.model):
        asked = any(type(one) is techniques.TECHNIQUES[name] for one in case.plan.techniques)
        yield (("plan", "techniques", name) if asked else ("plan", "trainable")), message


def _expert_ranks(case: _Case) -> Found:
    plan = case.plan
    wanted = {"expert": plan.expert, "expert_tensor": plan.expert_tensor}
    ranks = {"data": plan.data, "context": plan.context, "tensor": plan.tensor}
    if not divisibility.expert_ranks_divide(plan):
        yield ("plan", "expert"), f"{_product(wanted)} does not divide {_product(ranks)} ranks of a stage"


def _layers(case: _Case) -> Found:
    plan, layers = case.plan, len(case.model.layers)
    if layers > MOST_LAYERS:
        yield ("model",), f"{layers:,} layers are more than the {MOST_LAYERS:,} that can be predicted"
        return
    listed = isinstance(plan.stage_layers, tuple)
    if not listed and plan.chunks > layers + 2:  # before lists of that length are made
        chunks = _product({"pipeline": plan.pipeline, "virtual": plan.virtual})
        yield ("plan", "pipeline"), f"{chunks} chunks are more than the {layers} layers of {case.model.name}"
        return
    try:
        layers_of_chunks(layers, plan)
    except PlanError as error:
        yield ("plan", "stage_layers" if listed else "pipeline"), str(error)


def _schedule(case: _Case) -> Found:
    virtual, name = case.plan.virtual, case.plan.schedule
    if case.plan.pipeline == 1:
        if virtual > 1:
            yield ("plan", "virtual"), f"{virtual:,} chunks per rank need a pipeline; pipeline is 1"
    elif not schedules.get(name).accepts_chunks(virtual * schedules.get(name).routes):
        takers = [n for n in schedules.names()
                  if schedules.get(n).accepts_chunks(virtual * schedules.get(n).routes)]
        key = "virtual" if virtual > 1 else "schedule"
        yield ("plan", key), (
            f"schedule {name} does not run {virtual:,} chunk{'s' * (virtual > 1)} per rank (plan.virtual); "
            f"these do: {', '.join(takers) or 'none'}"
        )


def _segments(case: _Case) -> Found:
    plan, key = case.plan, ("plan", "segments")
    if plan.segments == 1:
        return
    if not schedules.get(plan.schedule).takes_segments:
        takers = [name for name in schedules.names() if schedules.get(name).takes_segments]
        yield key, (
            f"schedule {plan.schedule} does not cut sequences, so segments must be 1 (it is {plan.segments:,}); these "
            f"do: {', '.join(takers)}"
        )
    if plan.segments > case.sequence:
        yield key, f"{plan.segments:,} segments are more than the {case.sequence:,} tokens of a sequence"
    if plan.context > 1:
        yield key, (
            f"{plan.segments:,} segments cut a sequence that context {plan.context:,} splits already; set one of them "
            "to 1"
        )


def _recompute(case: _Case) -> Found:
    plan, key = case.plan, ("plan", "recompute_chunks")
    if plan.recompute_chunks is None:
        return
    if plan.recompute == "none":
        yield key, "what is recomputed of these chunks? set recompute to full, selective or pointwise (it is none)"
    if plan.recompute_chunks > plan.virtual:
        held = f"a rank holds virtual {plan.virtual:,}"
        yield key, f"{plan.recompute_chunks:,} chunks cannot be recomputed, {held}; 0 to {plan.virtual:,} can"


def _offload(case: _Case) -> Found:
    plan, key = case.plan, ("plan", "offload_chunks")
    if plan.offload_chunks > plan.virtual:
        held = f"a rank holds virtual {plan.virtual:,}"
        yield key, f"{plan.offload_chunks:,} chunks cannot be copied to the host, {held}; 0 to {plan.virtual:,} can"
    if plan.offload_chunks and plan.recompute_chunks:
        yield key, (f"the first {plan.recompute_chunks:,} chunks are recomputed and the first {plan.offload_chunks:,} "
                    "copied to the host; set one of them to 0")


def _sequence(case: _Case) -> Found:
    plan, sequence, key = case.plan, case.sequence, ("workload", "sequence")
    if case.model.positions and sequence > case.model.positions:
        learned = f"{case.model.positions:,} learned positions of {case.model.name}"
        yield key, f"{sequence:,} is more than the {learned}"
    if not divisibility.sequence_divides(plan, sequence):
        parts = {name: int(part) for name, part in divisibility.sequence_parts(plan).items() if part > 1}
        yield key, f"{sequence:,} does not divide by {_product(parts)}"


def _lengths(case: _Case) -> Found:
    """Sequences of unequal length: a law that exists, a plan that runs them, a step that is not too long to play."""
    plan, key = case.plan, ("workload", "lengths")
    if case.workload.lengths is None:
        for name, value in {"context_groups": "static", "selective_offload": False}.items():
            if getattr(plan, name) != value:
                told = "is for sequences of unequal length"
                yield ("plan", name), f"{told}; write workload.lengths, or leave {name} out"
        return
    if case.cluster.groups:
        yield key, "sequences of unequal length need equal accelerators; leave it out, or cluster.beside"
        return
    try:
        law = build_lengths(case.workload)
    except LengthsError as error:
        yield key, str(error)
        return
    tokens = case.sequence * case.batch
    if law is not None and (count := expected_sequences(law, tokens)) > MOST_SEQUENCES:
        yield key, f"{count:,.0f} sequences in a step of {tokens:,} tokens are more than the {MOST_SEQUENCES:,} played"
    yield from ((("plan", name), message) for name, message in hybrid_data.problems(plan))
    passes = {"tokens": tokens, "context": plan.context, "pipeline": plan.pipeline}
    if (tasks := math.prod(passes.values()) / case.sequence) > MOST_PASSES:
        yield ("workload", "global_batch"), (
            f"{_product(passes)} over {case.sequence:,} tokens of a sequence = {tasks:,.0f} passes in a step are more "
            f"than the {MOST_PASSES:,} that can be played"
        )


def _precision(case: _Case) -> Found:
    accelerator = case.cluster.accelerator
    supported = [p for p in PEAK_OF_PRECISION if _supports(accelerator.peak_flops_per_s, p)]
    if case.plan.precision not in supported:
        yield ("plan", "precision"), (
            f"{accelerator.name} does not compute in {case.plan.precision}; it does in {', '.join(supported)}"
        )


def _supports(peaks: Mapping[str, float], precision: str) -> bool:
    """Block-scaled formats (mxfp8, nvfp4) came with the generations that have fp4."""
    needed = [PEAK_OF_PRECISION[precision], *(["fp4"] if precision in ("mxfp8", "nvfp4") else [])]
    return all(peaks.get(kind) for kind in needed)


_Check = Callable[[_Case], Found]
_CHECKS: tuple[_Check, ...] = (_heads, _widths, _experts, _memory_layers, _techniques, _layers, _schedule, _segments,
                             _recompute, _offload, _sequence, _lengths, _precision)
_SIZED_CHECKS: tuple[_Check, ...] = (_batch, _expert_ranks)
