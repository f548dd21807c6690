"""A step of sequences of unequal length: micro-batches cut and placed by a policy, and what each of them costs.

The prices are those of any other step (`placement.passes`); three things are of a micro-batch here. Its attention is
the sum over its sequences, s^2 / 2 pairs each. Its ring passes keys and values once around, whatever the sequences
are, so that a ring step takes the longer of attention and send: packed short sequences on a wide ring leave the sends
bare. And the share that is offloaded leaves for the host beside the forward pass and comes back beside the backward
pass (ByteScale, arXiv 2502.21231).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from costmodel import collectives, network
from costmodel.activations import total_bytes
from costmodel.architecture import Attention, Layer
from costmodel.operators import Shard, layer_operators
from costmodel.stack import waiting_for_host_s
from placement import context_groups
from placement.context_groups import Floats, Ints, Mesh, MicroBatch, Placed
from placement.memory import host_capacity_bytes
from placement.passes import (
    WHOLE_SQUARE,
    Seconds,
    Setting,
    add,
    end_prices,
    layer_price,
    layer_work,
    overlapped,
    total,
)
from placement.pipeline import host_bandwidth_bytes_per_s
from placement.plan import Plan, PlanError, layers_of_chunks
from placement.selective_offload import KEPT_LAYERS, Offloads, choose, without
from placement.units import Unit, chunk_units, merged

Categories = dict[str, Floats]  # breakdown category -> seconds, [micro-batches]
ANEW = ("attention", "context_communication", "contention", "launch")  # priced anew for unequal sequences


@dataclass(frozen=True)
class StageCost:
    """What every micro-batch costs on each of its ranks at one pipeline stage, [micro-batches]."""

    forward: Categories
    backward: Categories
    held_bytes: Floats  # of activations on the device, from forward to backward
    working_bytes: Floats  # more during the backward pass (a recomputed layer)
    host_bytes: Floats  # of activations on the host meanwhile
    ring_s: Floats  # of sends around the ring, forward and backward, hidden or not

    @cached_property
    def forward_s(self) -> Floats:
        return np.asarray(total(self.forward))

    @cached_property
    def backward_s(self) -> Floats:
        return np.asarray(total(self.backward))

    def of(self, part: slice) -> StageCost:
        """The same of some of the micro-batches."""
        forward, backward = (
            {name: value[part] for name, value in one.items()} for one in (self.forward, self.backward)
        )
        return StageCost(forward, backward, self.held_bytes[part], self.working_bytes[part], self.host_bytes[part],
                         self.ring_s[part])

    @cached_property
    def compute_s(self) -> Floats:
        """Of both passes, without bare sends."""
        bare = self.forward["context_communication"] + self.backward["context_communication"]
        return np.asarray(self.forward_s + self.backward_s - bare)


@dataclass(frozen=True)
class Cut:
    """The micro-batches of a step, where they run and what they cost. `placed` is in starting order, `costs` holds a
    stage each, `units` what a stage holds (for one capacity of tokens)."""

    mesh: Mesh
    micro_batches: tuple[MicroBatch, ...]
    placed: tuple[Placed, ...]
    costs: tuple[StageCost, ...]
    units: tuple[Unit, ...]


def mesh_of(setting: Setting, lengths: Sequence[int], offload: bool) -> Mesh:
    """The mesh of a plan: a sequence of `setting.sequence` tokens takes plan.context ranks.

    With `offload`, long sequences take fewer ranks, by equation 3, but so many that one takes no longer, through all
    stages, than the mean rank's work of the whole step: that bound is not in the paper; without it a step waits for
    its longest sequence. Raises PlanError where such a plan is not played.
    """
    plan = setting.plan
    for key, message in problems(plan):
        raise PlanError(f"{key}: {message}")
    if setting.stack.attention == "unfused":
        raise PlanError("attention unfused keeps all scores; sequences of unequal length need a flash kernel")
    ranks, context = int(plan.data * plan.context), int(plan.context)
    capacity = int(setting.sequence) // context
    domain = max(int(setting.cluster.node.scale_up_domain // plan.tensor), 1)

    def rings(long: Ints) -> tuple[Ints, Floats]:
        sizes = long.astype(float)
        if not offload:
            return without(sizes, capacity), np.zeros(len(long))
        rest_s = beside_attention_s(setting, capacity)
        work_s = float(sequence_s(setting, np.array(lengths, dtype=float), rest_s).sum())
        longest_s = work_s / ranks / int(plan.pipeline)
        return choose(offloads(setting, sizes, capacity), np.ceil(sequence_s(setting, sizes, rest_s) / longest_s))

    return Mesh(ranks, context, capacity, domain, rings)


def problems(plan: Plan) -> Iterator[tuple[str, str]]:
    """(key, message) of what such a step cannot be played with."""
    told = "sequences of unequal length"
    if plan.schedule != "1f1b":
        yield "schedule", f"{told} run in schedule 1f1b (it is {plan.schedule})"
    if plan.virtual > 1:
        yield "virtual", f"{told} run with one chunk a rank (virtual is {plan.virtual})"
    if plan.recompute_chunks is not None:
        yield "recompute_chunks", f"{told} are recomputed inside the backward pass; leave it out"
    if plan.offload_chunks:
        yield "offload_chunks", f"copies whole chunks; {told} have selective_offload"
    if plan.context_method != "ring":
        yield "context_method", f"{told} pass keys and values around a ring; set it to ring ({plan.context_method})"
    if plan.micro_batch != 1:
        yield "micro_batch", f"{told} are packed by tokens; set it to 1 (it is {plan.micro_batch})"
    if plan.expert > 1:
        yield "expert", f"ranks that run {told} do not meet in every layer; set it to 1 (it is {plan.expert})"


def one_by_one(setting: Setting, tokens: Floats) -> Setting:
    """The setting in which one rank runs passes of so many tokens, [micro-batches]; hops are added where it plays."""
    plan = replace(setting.plan, context=1, data=setting.plan.data * setting.plan.context)
    stack = replace(setting.stack, overlap=(*setting.stack.overlap, "pipeline"))
    return replace(setting, plan=plan, stack=stack, sequence=tokens)


def attention_s(setting: Setting, layer: Layer, lengths: Floats, ranks: Ints) -> tuple[Floats, Floats]:
    """Seconds (forward, backward) of each sequence's attention on each rank of its ring, [sequences]."""
    plan, pricer = setting.plan, setting.pricer
    shard = Shard(1, lengths, plan.tensor, plan.sequence_parallel, context=ranks)
    core = next(one for one in layer_operators(setting.model, layer, shard) if one.category == "attention")
    squared = WHOLE_SQUARE if setting.stack.attention_backward == "whole" else 1.0
    return (np.asarray(pricer.forward_s(core)["attention"]),
            np.asarray(pricer.backward_s(core)["attention"]) * squared)


def beside_attention_s(setting: Setting, capacity: int) -> float:
    """Seconds a token of both passes of the most frequent layer without attention, in passes of a full rank's share,
    since short sequences are packed."""
    layer = most_frequent_layer(setting)
    full = one_by_one(setting, np.array([float(capacity)]))
    price = layer_price(replace(full, plan=replace(full.plan, recompute="none")), layer)
    rest_s = sum(float(value[0]) for seconds in (price.forward, price.backward) for name, value in
                 ((name, np.atleast_1d(value)) for name, value in seconds.items()) if name not in ANEW)
    return rest_s / capacity


def sequence_s(setting: Setting, lengths: Floats, rest_s: float) -> Floats:
    """Work of each sequence: seconds of both passes of the most frequent layer on one rank alone, without sends.
    `rest_s`: of a token, beside attention."""
    cores = attention_s(setting, most_frequent_layer(setting), lengths, np.ones(len(lengths), dtype=np.int64))
    return np.asarray(rest_s * lengths + cores[0] + cores[1])


def most_frequent_layer(setting: Setting) -> Layer:
    counted = Counter(setting.model.layers)
    return max(counted, key=lambda one: counted[one])


def key_value_bytes(setting: Setting, attention: Attention, tokens: Floats) -> Floats:
    """Keys and values of these tokens on one tensor rank: what a ring step sends on."""
    if attention.kind == "mla":
        width = float(attention.key_value_rank + attention.rope_head_dim)
    else:
        heads = max(attention.kv_heads / setting.plan.tensor, 1.0)
        width = heads * (attention.head_dim + attention.value_head_dim)
    return np.asarray(2.0 * setting.widening * tokens * width)


def ring_s(setting: Setting, attention: Attention, tokens: Floats, degrees: Ints, crosses: NDArray[np.bool_]) -> Floats:
    """Seconds of one time around the ring, degree - 1 sends of a rank's keys and values, [micro-batches].

    A rank sends to one neighbour, so the slowest hop, one network card, sets the pace; a collective would spread over
    all cards of a node.
    """
    size = key_value_bytes(setting, attention, tokens)
    hop_s = collectives.point_to_point_s(size, crosses, network.paths(setting.cluster))
    return np.asarray((degrees - 1) * hop_s * setting.constants.communication)


def offloads(setting: Setting, lengths: Floats, capacity: int) -> Offloads:
    """The terms of equation 3 for these sequences, each on one rank alone; the layer is the model's most frequent."""
    plan = setting.plan
    layer = most_frequent_layer(setting)
    layers = max(layers_of_chunks(len(setting.model.layers), plan))
    alone = one_by_one(setting, lengths)
    price = layer_price(replace(alone, plan=replace(alone.plan, recompute="none")), layer)
    size = _layer_bytes(setting, np.append(lengths, capacity), layer)
    link = host_bandwidth_bytes_per_s(setting)
    on_host = host_capacity_bytes(setting.cluster)
    return Offloads(np.asarray(total(price.forward)), size[:-1], float(size[-1]), layers, link, on_host)


def _layer_bytes(setting: Setting, tokens: Floats, layer: Layer) -> Floats:
    """What one layer keeps of so many tokens on one rank."""
    kept = total_bytes(layer_work(one_by_one(setting, tokens), layer).kept)
    return np.asarray(setting.widening * kept + 0.0 * tokens)


@dataclass(frozen=True)
class _Flat:
    """The sequences of all micro-batches, one after another: length, ring and micro-batch of each."""

    lengths: Floats
    degrees: Ints
    owner: Ints

    @classmethod
    def of(cls, micro_batches: Sequence[MicroBatch]) -> _Flat:
        counts = [len(one.lengths) for one in micro_batches]
        owner = np.repeat(np.arange(len(micro_batches)), counts)
        lengths = np.array([length for one in micro_batches for length in one.lengths], dtype=float)
        return cls(lengths, np.array([one.degree for one in micro_batches])[owner], owner)

    def summed(self, values: Floats, count: int) -> Floats:
        return np.asarray(np.bincount(self.owner, weights=values, minlength=count), dtype=float)


def layer_cost(
    setting: Setting, layer: Layer, micro_batches: Sequence[MicroBatch], crosses: NDArray[np.bool_]
) -> tuple[Categories, Categories, Floats]:
    """(forward, backward, ring_s) of one layer for every micro-batch on each of its ranks."""
    flat, count = _Flat.of(micro_batches), len(micro_batches)
    degrees = np.array([one.degree for one in micro_batches], dtype=np.int64)
    tokens = np.array([one.tokens for one in micro_batches], dtype=float) / degrees
    alone = one_by_one(setting, tokens)
    price = layer_price(replace(alone, plan=replace(alone.plan, recompute="none")), layer)
    once_s = ring_s(setting, layer.attention, tokens, degrees, crosses)
    cost, moe = setting.constants.overlap_cost, bool(layer.feed_forward.experts)
    host_s = setting.stack.host_s(moe, setting.plan.tensor) * setting.constants.host
    found: list[Categories] = []
    sent = (once_s, 2.0 * once_s)  # backward, keys and values go around once more and their gradients with them
    cores = attention_s(setting, layer, flat.lengths, flat.degrees)
    for given, core_s, sent_s in zip((price.forward, price.backward), cores, sent, strict=True):
        seconds = {name: np.asarray(value) + np.zeros(count) for name, value in given.items() if name not in ANEW}
        seconds["attention"] = flat.summed(core_s, count)
        exposed, contention = overlapped(sent_s, seconds["attention"], cost)
        seconds["context_communication"] = np.asarray(exposed)
        # what is priced is of tensor and expert communication: one rank alone has no ring
        seconds["contention"] = np.asarray(contention) + np.asarray(given.get("contention", 0.0))
        seconds["launch"] = np.asarray(waiting_for_host_s(total(seconds), host_s))
        found.append(seconds)
    forward, backward = found
    backward["recompute"] = _repeated_s(setting, forward)
    return forward, backward, 3.0 * once_s


def _repeated_s(setting: Setting, forward: Categories) -> Floats:
    """What recomputation runs again, as `placement.passes.repeated_s` for equal sequences."""
    level = setting.plan.recompute
    whole = np.asarray(total(forward))
    repeated = {"full": whole, "selective": forward["attention"], "pointwise": forward["memory_bound"]}
    return repeated.get(level, 0.0 * whole)


def _copies_s(setting: Setting, seconds: Categories, leaving_bytes: Floats, layers: int) -> Floats:
    """What a layer's copies to the host take beyond its pass, for all of a stage's layers but those kept."""
    beside_s = leaving_bytes / host_bandwidth_bytes_per_s(setting)
    return np.asarray(np.maximum(beside_s - np.asarray(total(seconds)), 0.0) * max(layers - KEPT_LAYERS, 0))


def stage_costs(
    setting: Setting, micro_batches: Sequence[MicroBatch], crosses: NDArray[np.bool_]
) -> tuple[StageCost, ...]:
    """Every stage's costs. Embedding and head stand at the ends of the pipeline."""
    count = len(micro_batches)
    tokens = np.array([one.tokens / one.degree for one in micro_batches])
    shares = np.array([one.offloaded for one in micro_batches])
    alone = one_by_one(setting, tokens)
    of_layer = {layer: layer_cost(setting, layer, micro_batches, crosses) for layer in set(setting.model.layers)}
    kept_bytes = {layer: _layer_bytes(setting, tokens, layer) for layer in of_layer}
    ends = end_prices(alone)
    sizes = layers_of_chunks(len(setting.model.layers), setting.plan)
    units = [merged(chunk) for chunk in chunk_units(alone)]
    result, first = [], 0
    for stage, size in enumerate(sizes):
        layers = Counter(setting.model.layers[first : first + size])
        forward: Seconds = {}
        backward: Seconds = {}
        sent_s, leaving = np.zeros(count), np.zeros(count)
        for layer, times in layers.items():
            ahead, back, around_s = of_layer[layer]
            add(forward, ahead, times)
            add(backward, back, times)
            sent_s += times * around_s
            share = shares * times / size
            leaving += share * kept_bytes[layer] * max(size - KEPT_LAYERS, 0)
            for seconds, one in ((forward, ahead), (backward, back)):
                copies_s = _copies_s(setting, one, shares * kept_bytes[layer], size)
                add(seconds, {"offload": copies_s}, times / size)
        for at, end in ((0, ends[0]), (len(sizes) - 1, ends[1])):
            if at == stage:
                add(forward, end.forward)
                add(backward, end.backward)
        unit, none = units[stage], np.zeros(count)
        ahead, back = ({name: np.asarray(value) + none for name, value in one.items()} for one in (forward, backward))
        held = np.asarray(unit.saved_bytes) - leaving
        result.append(StageCost(ahead, back, held, np.asarray(unit.working_bytes) + none, leaving, sent_s))
        first += size
    return tuple(result)


def cut(setting: Setting, lengths: Sequence[int], policy: str, offload: bool) -> Cut:
    """The global batch cut, placed and priced. Raises PlanError where the plan is not played."""
    return cuts(setting, [lengths], policy, offload)[0]


def cuts(setting: Setting, batches: Sequence[Sequence[int]], policy: str, offload: bool) -> list[Cut]:
    """Several global batches of the same plan, each cut and placed by itself, all priced together. Raises PlanError."""
    chosen, meshes = context_groups.get(policy), [mesh_of(setting, lengths, offload) for lengths in batches]
    capacity, domain = float(meshes[0].capacity), meshes[0].domain
    of_batch = [chosen.cut(lengths, mesh) for lengths, mesh in zip(batches, meshes, strict=True)]
    every = [one for micro_batches in of_batch for one in micro_batches]
    ends = np.cumsum([len(micro_batches) for micro_batches in of_batch]).tolist()
    parts = [slice(end - len(one), end) for end, one in zip(ends, of_batch, strict=True)]
    wide = np.array([one.degree > domain for one in every])
    guess = stage_costs(setting, every, wide)
    work_s = np.max([one.forward_s + one.backward_s for one in guess], axis=0)
    placed = [chosen.place(micro_batches, work_s[part], mesh)
              for micro_batches, part, mesh in zip(of_batch, parts, meshes, strict=True)]
    crosses = np.zeros(len(every), dtype=bool)
    for part, one in zip(parts, placed, strict=True):
        crosses[part][[each.micro_batch for each in one]] = context_groups.spans_domains(one, domain)
    costs = guess if np.array_equal(crosses, wide) else stage_costs(setting, every, crosses)
    units = tuple(merged(chunk) for chunk in chunk_units(one_by_one(setting, np.array([capacity]))))
    return [Cut(mesh, tuple(micro_batches), tuple(one), tuple(cost.of(part) for cost in costs), units)
            for mesh, micro_batches, one, part in zip(meshes, of_batch, placed, parts, strict=True)]


def rank_seconds(of: Cut, stage: int) -> Mapping[str, Floats]:
    """Seconds of all passes by category and rank at a stage, [ranks] each; what is missing to the step is waiting."""
    totals: dict[str, Floats] = {}
    owner = np.concatenate([np.array(one.ranks, dtype=np.int64) for one in of.placed])
    number = np.concatenate([np.full(len(one.ranks), one.micro_batch) for one in of.placed])
    for part in (of.costs[stage].forward, of.costs[stage].backward):
        for category, seconds in part.items():
            found = np.bincount(owner, weights=seconds[number], minlength=of.mesh.ranks)
            totals[category] = np.asarray(totals.get(category, 0.0) + found, dtype=float)
    return totals
