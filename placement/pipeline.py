"""What a plan's schedule is asked for: the pass times and bytes of its chunks, and the order that follows.

The closed form and the event player share it, so that a schedule that looks at times (ZB-1p, V-Half, ...) is the
same order in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodel import collectives, network
from costmodel.operators import Shard, layer_operators
from placement import schedules
from placement.hops import hop_s
from placement.passes import Seconds, Setting, add, end_prices, sent_bytes, total
from placement.schedules import Evaluation, Orders, Times
from placement.schedules.evaluate import play
from placement.schedules.layout import layout
from placement.schedules.offload import with_offload
from placement.schedules.recompute import with_recompute
from placement.schedules.seq1f1b import balanced_segments
from placement.state_traffic import ChunkTraffic
from placement.units import Unit, vocabulary_share

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StagePasses:
    """One chunk of each stage, [stages]: seconds of its passes and bytes that it keeps.

    `held_bytes` from F to B, `weight_bytes` from B to W; without a split backward the latter do not count.
    """

    forward_s: Floats
    backward_s: Floats  # for the input alone
    weight_s: Floats
    held_bytes: Floats
    weight_bytes: Floats


def stage_passes(chunks: Sequence[ChunkTraffic]) -> StagePasses:
    units = [chunk.whole for chunk in chunks]
    weight_s = np.array([float(total(unit.price.weight)) for unit in units])
    return StagePasses(
        np.array([float(total(unit.price.forward)) for unit in units]),
        np.array([float(total(unit.price.backward)) for unit in units]) - weight_s,
        weight_s,
        np.array([float(unit.saved_bytes) for unit in units]),
        np.array([float(unit.weight_bytes) for unit in units]),
    )


def recomputed_chunks(setting: Setting) -> int:
    """How many of a rank's chunks run forward once more in a pass of their own; both copies where there are two."""
    return (setting.plan.recompute_chunks or 0) * schedules.get(setting.plan.schedule).routes


def recomputed_stages(setting: Setting) -> frozenset[int]:
    """The stages of these chunks in model order."""
    count = recomputed_chunks(setting)
    return frozenset(
        stage for rank in range(int(setting.plan.pipeline)) for stage in stages_of_rank(setting, rank)[:count]
    )


def dropped_share(setting: Setting, chunks: Sequence[ChunkTraffic]) -> Floats:
    """[stages]: share of a chunk's bytes but logits that go after its forward pass and come again with its R.

    Of a full recomputation all but the chunk's one input goes, of the others what each layer makes again. Embedding and
    head lie outside of what is recomputed, as in Megatron: the embedding's output is the input of the first chunk, and
    logits stay.
    """
    input_bytes = 2.0 * setting.widening * setting.model.hidden * float(setting.shard.norm_tokens)
    again, shares = recomputed_stages(setting), np.zeros(len(chunks))
    for stage in again:
        whole = chunks[stage].whole
        size = float(whole.saved_bytes - whole.head_bytes)
        made = size - input_bytes if setting.plan.recompute == "full" else float(whole.again_bytes)
        shares[stage] = max(made, 0.0) / size if size else 0.0
    return shares


def segment_shares(setting: Setting) -> Floats:
    """[segments]: tokens of each part of a sequence over their mean.

    Parts are cut to equal forward FLOPs of all layers (arXiv 2406.03488, section 3.3). So a pass is priced as the mean
    part, of s/k tokens and a k-th of the causal pairs, and holds bytes by its own tokens. Simplifications: sends are
    those of the mean part, kernels lose efficiency by the mean part's rows, and the gradients of keys and values that
    gather over the backwards of a sequence are not counted.
    """
    count = int(setting.plan.segments)
    if count == 1:
        return np.ones(1)
    layers = Counter(setting.model.layers)

    def work(tokens: float) -> float:
        shard = Shard(1, tokens)
        return sum(
            times * float(sum(one.forward_flops for one in layer_operators(setting.model, layer, shard)))
            for layer, times in layers.items()
        )

    sizes = np.array(balanced_segments(int(setting.sequence), count, work), dtype=float)
    return np.asarray(sizes / sizes.mean())


def chunks_per_rank(setting: Setting) -> int:
    """Chunks that a rank holds; a schedule with two routes holds every stage twice."""
    return int(setting.plan.virtual) * schedules.get(setting.plan.schedule).routes


def stages_of_rank(setting: Setting, rank: int) -> list[int]:
    """The stage, in model order, of each chunk of a rank."""
    schedule, chunks = schedules.get(setting.plan.schedule), chunks_per_rank(setting)
    return [schedule.stage_of(rank, chunk, int(setting.plan.pipeline), chunks) for chunk in range(chunks)]


def ranks_of_nodes(setting: Setting) -> list[int]:
    """The rank of every stage in model order; the stages of a second route follow the first's."""
    ranks, routes = int(setting.plan.pipeline), schedules.get(setting.plan.schedule).routes
    stages = int(setting.plan.chunks)
    result = [0] * (stages * routes)
    for rank in range(ranks):
        for chunk, stage in enumerate(stages_of_rank(setting, rank)):
            result[stage + (chunk * stages if routes > 1 else 0)] = rank
    return result


def orders_of(setting: Setting, passes: StagePasses, micro_batches: int) -> Orders:
    """The order of passes on every rank, made for the mean times of these chunks where the schedule looks at them.

    Raises ScheduleError where the schedule does not run this many ranks, chunks or micro-batches.
    """
    plan = setting.plan
    schedule = schedules.get(plan.schedule)
    hops = [hop_s(setting, stage) for stage in range(int(plan.pipeline))]
    times = Times(
        float(passes.forward_s.mean()), float(passes.backward_s.mean()), float(passes.weight_s.mean()), max(hops)
    )
    held = float(passes.held_bytes.sum())
    share = float(np.clip(passes.weight_bytes.sum() / held, 0.0, 1.0)) if held else 0.0
    chunks = chunks_per_rank(setting)
    limit = None if plan.in_flight_limit is None else plan.in_flight_limit * chunks / schedule.routes
    segments = int(plan.segments) if schedule.takes_segments else None
    orders = schedule.generate(
        int(plan.pipeline), micro_batches, chunks, segments=segments, times=times, memory_limit=limit,
        weight_share=share,
    )
    again, away = recomputed_chunks(setting), plan.offload_chunks * schedule.routes
    orders = with_recompute(orders, again) if again else orders
    return with_offload(orders, away) if away else orders


@dataclass(frozen=True)
class OutputLayer:
    """What a rank does and holds of the output layer and the embedding where both are split over all pipeline ranks
    (arXiv 2411.05288, sections 4 and 5), per micro-batch.

    With one meeting the input gradient is part of S and of what the ranks add up, with two it is part of T.
    """

    unit: Unit
    logits: Seconds  # S
    gradients: Seconds  # T
    held_bytes: float  # from S to T: logits and the copy of the last stage's output
    broadcast_s: float  # of the last stage's output
    meeting_s: float  # all-reduce of maxima and sums, and of the input gradient


def output_layer(setting: Setting) -> OutputLayer:
    plan, schedule = setting.plan, schedules.get(setting.plan.schedule)
    share = vocabulary_share(setting)
    logits, gradients = dict(share.price.forward), dict(share.price.backward)
    if schedule.barriers == 1:
        for category, seconds in share.price.weight.items():
            gradients[category] -= seconds
        logits, gradients = add(logits, gradients), dict(share.price.weight)
    embedding, _ = end_prices(setting)
    hidden_bytes = float(sent_bytes(setting) * plan.tensor)
    group = network.group(setting.cluster, plan.pipeline, plan.tensor * plan.context * plan.data)
    rows_bytes = 8.0 * float(setting.shard.tokens)  # fp32 maximum and sum of each token
    meeting_s = float(
        setting.collective_s(collectives.all_reduce_s, rows_bytes, group)
        + setting.collective_s(collectives.all_reduce_s, hidden_bytes / plan.tensor, group)
    )
    broadcast_s = float(setting.collective_s(collectives.all_gather_s, hidden_bytes / plan.tensor, group))
    # the embedding's lookup and gradient go with S and T; each starts behind a meeting, with nothing queued
    gap_s = setting.stack.host_head_s / 2.0 * setting.constants.host
    hidden_s = 2.0 * (broadcast_s + meeting_s)  # of the output layer, and as much of the embedding
    for seconds, of_embedding in ((logits, embedding.forward), (gradients, embedding.backward)):
        add(seconds, of_embedding)
        add(seconds, {"launch": 2.0 * gap_s, "contention": setting.constants.overlap_cost * hidden_s / 2.0})
    return OutputLayer(share, logits, gradients, float(share.saved_bytes) + hidden_bytes, broadcast_s, meeting_s)


def played(
    setting: Setting, chunks: Sequence[ChunkTraffic], micro_batches: int
) -> tuple[Evaluation, Floats]:
    """The order alone, played with these chunks' times and bytes (memory in bytes of activations); and the most that
    each rank has on the host."""
    passes, schedule = stage_passes(chunks), schedules.get(setting.plan.schedule)
    logits = np.array([float(chunk.whole.head_bytes) for chunk in chunks])
    dropped = dropped_share(setting, chunks) * (passes.held_bytes - logits)
    orders = orders_of(setting, passes, micro_batches)
    if schedule.splits_backward:
        memory = {
            "F": passes.held_bytes - dropped, "R": dropped, "B": passes.weight_bytes - passes.held_bytes,
            "W": -passes.weight_bytes,
        }
    else:
        memory = {"F": passes.held_bytes - dropped, "R": dropped, "B": -passes.held_bytes}
    memory |= {"O": -passes.held_bytes, "L": passes.held_bytes}
    if schedule.takes_segments:
        shares = np.tile(segment_shares(setting), micro_batches)
        memory = {kind: change[:, None] * shares for kind, change in memory.items()}
    host = {"O": -memory["O"], "L": -memory["L"]}
    copy_s = memory["L"] / host_bandwidth_bytes_per_s(setting)
    again_s = np.array([float(chunk.whole.again_s) for chunk in chunks])
    other_s: dict[str, object] = {"O": copy_s, "L": copy_s, "R": again_s}
    barrier_s = 0.0
    if schedule.barriers:
        output = output_layer(setting)
        other_s |= {"S": float(total(output.logits)), "T": float(total(output.gradients))}
        memory |= {"S": np.array([output.held_bytes]), "T": np.array([-output.held_bytes])}
        barrier_s = output.meeting_s / schedule.barriers
    found = layout(orders, schedule)
    latency_s = max(hop_s(setting, stage) for stage in range(int(setting.plan.pipeline)))
    whole_s = passes.backward_s + (0.0 if schedule.splits_backward else passes.weight_s)
    seconds = {"F": passes.forward_s, "B": whole_s, "W": passes.weight_s, **other_s}
    device = play(found, schedule, seconds, latency_s, memory, barrier_s)
    on_host = play(found, schedule, seconds, latency_s, host, barrier_s).peak if found.copies else np.zeros(found.ranks)
    return device, on_host


def host_bandwidth_bytes_per_s(setting: Setting) -> float:
    """Of one direction of the accelerator's host link; infinite where the catalogue knows none (memory in common).

    Copies of a rank take turns on it, out and back, so that two ranks behind one switch can use a direction each.
    """
    link = setting.cluster.accelerator.host_link
    return float(link.bandwidth_bytes_per_s) if link else float("inf")


def copies_reduction_s(setting: Setting, held: Sequence[Unit]) -> float:
    """Seconds in which two ranks add up the gradients of stages that both hold, where micro-batches go both ways."""
    if schedules.get(setting.plan.schedule).routes == 1:
        return 0.0
    size_bytes = 4.0 * float(sum(unit.trainable_dense + unit.trainable_experts for unit in held))
    group = network.group(setting.cluster, 2, int(setting.plan.tensor * setting.plan.data * setting.plan.context))
    return float(setting.collective_s(collectives.all_reduce_s, size_bytes, group))
