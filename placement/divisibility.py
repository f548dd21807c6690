"""What must divide what, so that a plan can be laid over a model: the rules, for one plan or for arrays of plans.

`scenarios.checks` puts the same rules into words for one scenario.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from costmodel.architecture import Attention, FeedForward, Layer, Model
from placement import schedules
from placement.plan import Plan, PlanError, layers_of_chunks

Number = Any  # an integer or an array of integers; results are bool of the same shape


def feed_forwards(model: Model) -> list[FeedForward]:
    """The distinct feed-forward blocks of a model."""
    return list(dict.fromkeys(layer.feed_forward for layer in layers(model)))


def layers(model: Model) -> list[Layer]:
    """The layers once each; equal ones are mostly one object, and hashing a hundred of them takes long."""
    return list({id(layer): layer for layer in model.layers}.values())


def heads_divide(attention: Attention, tensor: Number) -> Number:
    return np.equal(attention.heads % np.asarray(tensor), 0)


def key_value_heads_divide(attention: Attention, tensor: Number) -> Number:
    """Grouped key and value heads are dealt to the tensor ranks, or several ranks hold the same ones."""
    if attention.kind != "gqa":
        return np.ones_like(tensor, dtype=bool)
    return np.equal(attention.kv_heads % np.asarray(tensor), 0) | np.equal(np.asarray(tensor) % attention.kv_heads, 0)


def ulysses_heads_divide(attention: Attention, tensor: Number, context: Number) -> Number:
    """Ulysses (arXiv 2309.14509) deals the heads of a tensor rank to the context ranks."""
    return np.equal(attention.heads // np.asarray(tensor) % context, 0)


def width_divides(part: FeedForward, tensor: Number, expert_tensor: Number) -> Number:
    return np.equal(part.width % np.asarray(expert_tensor if part.experts else tensor), 0)


def experts_divide(part: FeedForward, expert: Number) -> Number:
    """A dense feed-forward block has nothing to deal out, and says nothing about the degree."""
    return np.equal(part.experts % np.asarray(expert), 0) if part.experts else np.ones_like(expert, dtype=bool)


def expert_ranks_divide(plan: Plan) -> Number:
    """The ranks that share a stage are dealt to the groups of experts."""
    ranks = np.asarray(plan.data * plan.context * plan.tensor)
    return np.equal(ranks % (plan.expert * plan.expert_tensor), 0)


def shard_group_divides(plan: Plan) -> Number:
    """The data and context ranks are dealt to the groups that share one copy of the states."""
    replicas = np.asarray(plan.data * plan.context)
    group = replicas if plan.shard_group is None else np.minimum(plan.shard_group, replicas)
    return np.equal(replicas % group, 0)


def batch_divides(plan: Plan, global_batch: int) -> Number:
    return np.equal(global_batch % np.asarray(plan.data * plan.micro_batch), 0)


def groups_divide(plan: Plan, global_batch: int) -> Number:
    """Schedules that take micro-batches in groups of the pipeline's length need whole groups."""
    takes = schedules.get(plan.schedule).takes_group and int(plan.pipeline) > 1
    count = np.maximum(global_batch // np.asarray(plan.data * plan.micro_batch), 1)
    return np.equal(count % plan.pipeline, 0) if takes else np.ones_like(count, dtype=bool)


def sequence_parts(plan: Plan) -> dict[str, Number]:
    """The parts that a sequence is cut into, by what cuts it."""
    parts: dict[str, Number] = {"context": plan.context}
    if plan.context_method != "ulysses":  # causal attention is balanced by an early and a late half
        parts["halves of a rank's share"] = np.where(np.greater(plan.context, 1), 2, 1)
    parts["tensor (sequence_parallel)"] = np.where(plan.sequence_parallel, plan.tensor, 1)
    return parts


def sequence_divides(plan: Plan, sequence: int) -> Number:
    pieces: Number = 1
    for part in sequence_parts(plan).values():
        pieces = pieces * part
    return np.equal(sequence % np.asarray(pieces), 0)


def layout_fits(model: Model, plan: Plan) -> str:
    """Why the layers cannot be dealt to the pipeline's chunks, or the schedule does not run these; "" where it can.
    `pipeline`, `virtual` and what is named must be single values."""
    schedule = schedules.get(plan.schedule)
    pipeline, virtual = int(plan.pipeline), int(plan.virtual)
    if pipeline == 1 and virtual > 1:
        return "chunks per rank without a pipeline"
    if pipeline > 1 and any(part.memory and part.memory.sharers > 1 for part in feed_forwards(model)):
        return "memory layers that share their values on several stages"
    if pipeline > 1 and not schedule.accepts_chunks(virtual * schedule.routes):
        return "chunks per rank that the schedule does not run"
    try:
        layers_of_chunks(len(model.layers), plan)
    except PlanError:
        return "layers do not fill the chunks of the pipeline"
    if int(plan.segments) > 1 and not schedule.takes_segments:
        return "segments in a schedule that does not cut sequences"
    if plan.recompute_chunks is not None and (plan.recompute == "none" or plan.recompute_chunks > virtual):
        return "chunks recomputed that a rank does not have"
    if plan.offload_chunks > virtual or (plan.offload_chunks and plan.recompute_chunks):
        return "chunks copied to the host that a rank does not have or recomputes"
    return ""


def rules(model: Model, plan: Plan, sequence: int, global_batch: int) -> Iterator[tuple[str, Number]]:
    """(what does not divide, where it does) for every rule that looks at degrees and batch. Broadcasts."""
    attentions = dict.fromkeys(layer.attention for layer in layers(model))
    parts = feed_forwards(model)
    for attention in attentions:
        yield "attention heads by tensor", heads_divide(attention, plan.tensor)
        yield "key/value heads and tensor", key_value_heads_divide(attention, plan.tensor)
        if plan.context_method == "ulysses":
            yield "heads by context (ulysses)", ulysses_heads_divide(attention, plan.tensor, plan.context)
    for part in parts:
        yield "feed-forward width by tensor", width_divides(part, plan.tensor, plan.expert_tensor)
        yield "experts by expert", experts_divide(part, plan.expert)
    memories = [part.memory for part in parts if part.memory]
    if not any(part.experts for part in parts):
        spread = plan.expert_tensor if memories else plan.expert * plan.expert_tensor
        yield "expert degrees of a model without experts", np.equal(spread, 1)
    if memories:
        yield "memory layers beside tensor ranks", np.equal(plan.tensor, 1)
        yield "columns of memory values by expert", np.equal(model.hidden % np.asarray(plan.expert), 0)
    yield "ranks of a stage by expert x expert_tensor", expert_ranks_divide(plan)
    yield "sequence by its parts", sequence_divides(plan, sequence)
    yield "global batch by data x micro_batch", batch_divides(plan, global_batch)
    yield "micro-batches by groups of the pipeline", groups_divide(plan, global_batch)
    if int(plan.segments) > 1:
        yield "segments beside context ranks", np.equal(plan.context, 1) & (plan.segments <= sequence)
