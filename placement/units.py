"""Units: the pieces of a chunk whose parameters are gathered, whose gradients are reduced, as one.

A unit is a whole chunk where nothing is gathered within a pass, and a single layer where it is (FSDP). It
carries what one accelerator pays for it: prices of its passes, parameters it holds, bytes it keeps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from costmodel import autograd, parameters
from costmodel.activations import total_bytes
from costmodel.architecture import Layer
from costmodel.operators import WEIGHT, Number
from costmodel.work import Weights, head_bytes, layer_working_bytes
from placement import hops, schedules
from placement.passes import (
    PassPrice,
    Seconds,
    Setting,
    add,
    end_prices,
    end_work,
    layer_price,
    layer_work,
    repeated_s,
    update_s,
)
from placement.plan import layers_of_chunks
from placement.states import State, StateBytes

MOMENT_BYTES = 8.0  # Adam's two moments in fp32; a preset with fewer optimizer bytes has nothing but moments


@dataclass(frozen=True)
class Spared:
    """What trainable weights need less than a gradient and Adam's two moments each, in parameters' worth."""

    gradients: Number = 0.0
    moments: Number = 0.0

    @classmethod
    def of(cls, weights: Weights) -> Spared:
        return cls(weights.trainable - weights.gradients, weights.trainable - weights.moments)

    @property
    def nothing(self) -> bool:
        return not np.any(self.gradients) and not np.any(self.moments)

    def left(self, trainable: Number, state: State, sizes: StateBytes) -> Number:
        """As many weights as would take the bytes of a state that `trainable` ones take."""
        if state is State.GRADIENTS:
            return trainable - self.gradients
        if state is State.OPTIMIZER:
            return trainable - self.moments * min(MOMENT_BYTES, sizes.optimizer) / sizes.optimizer
        return trainable


@dataclass(frozen=True)
class Unit:
    """One piece of a chunk on one accelerator, per micro-batch where that applies.

    `dense_parameters` and `expert_parameters` are what tensor and expert parallelism leave on this rank (before
    any sharding over data ranks); the trainable ones have gradients and optimizer states. `saved_bytes` live
    from forward to backward, `working_bytes` during the backward pass only (a recomputed layer); `head_bytes` is
    the part of saved_bytes that logits take, `weight_bytes` what a split backward pass keeps for the weight
    gradients: inputs and output gradients of the linear layers (32 s b h a layer; arXiv 2401.10241, table 1).
    `again_s` is what a pass takes that recomputes before the backward pass (R), and `again_bytes` what it makes.
    Techniques: `spared_dense` and `spared_experts` of the trainable weights' states, `update_s` beside Adam once a
    step for all of these weights, before data ranks share it. `tensors`: how many parameter tensors these weights are.
    """

    price: PassPrice
    dense_parameters: Number
    expert_parameters: Number
    trainable_dense: Number
    trainable_experts: Number
    saved_bytes: Number
    working_bytes: Number
    head_bytes: Number = 0.0
    weight_bytes: Number = 0.0
    again_s: Number = 0.0
    again_bytes: Number = 0.0
    spared_dense: Spared = Spared()
    spared_experts: Spared = Spared()
    update_s: Number = 0.0
    tensors: Number = 0.0

    @property
    def spared(self) -> tuple[Spared, Spared]:
        """What the two kinds of `weights` are spared, in their order."""
        return self.spared_dense, self.spared_experts

    @property
    def weights(self) -> tuple[tuple[Number, Number, bool], ...]:
        """(held, trainable, whether experts) of the two kinds of weights, which lie on different ranks."""
        return (
            (self.dense_parameters, self.trainable_dense, False),
            (self.expert_parameters, self.trainable_experts, True),
        )


def _layer_unit(setting: Setting, layer: Layer) -> Unit:
    done = layer_work(setting, layer)
    kept = setting.widening * total_bytes(done.kept)
    whole = setting.widening * total_bytes(layer_work(setting, layer, "none").kept)
    dropped = whole - kept if setting.plan.recompute != "none" else 0.0 * whole
    working = layer_working_bytes(setting.model, layer, setting.shard, setting.stack.execution, setting.widening)
    operands = 2.0 * setting.widening * sum(
        operator.m * (operator.k + operator.n) * operator.groups
        for operator in done.operators if WEIGHT in operator.products and operator.category == "gemm"
    )
    price = layer_price(setting, layer)
    plain = Unit(
        price,
        done.dense.held,
        done.sparse.held,
        done.dense.trainable,
        done.sparse.trainable,
        kept,
        dropped + working,
        weight_bytes=operands,
        spared_dense=Spared.of(done.dense),
        spared_experts=Spared.of(done.sparse),
        update_s=update_s(setting, done),
        tensors=autograd.tensors(setting.model, layer, setting.shard),
    )
    if setting.plan.recompute_chunks is None:
        return plain
    again_s = repeated_s(setting, layer, price)
    return replace(plain, saved_bytes=whole, working_bytes=working + 0.0 * whole, again_s=again_s, again_bytes=dropped)


def _ends(setting: Setting) -> tuple[Unit, Unit]:
    """The embedding, and the head with its logits."""
    model, (first, last) = setting.model, [one.dense for one in end_work(setting)]
    embedding_price, head_price = end_prices(setting)
    logits, working = head_bytes(model, setting.shard, setting.stack.execution, setting.widening)
    tensors = autograd.end_tensors(model)
    # the gradient of the table is dense and made whole before it is added up (torch's embedding_dense_backward)
    table = float(np.any(first.trainable)) / setting.plan.tensor
    made = 2.0 * setting.widening * model.vocabulary * model.hidden * table
    return (
        Unit(embedding_price, first.held, 0.0, first.trainable, 0.0, 0.0, made, spared_dense=Spared.of(first),
             tensors=tensors[0]),
        Unit(head_price, last.held, 0.0, last.trainable, 0.0, logits, working, logits, spared_dense=Spared.of(last),
             tensors=tensors[1]),
    )


def _working_bytes(units: Sequence[Unit]) -> Number:
    """What the backward pass of these units needs beyond all that they kept. It runs from the last to the first: a
    unit works when what the later ones kept is gone."""
    most: Number = 0.0
    gone: Number = 0.0
    for unit in reversed(units):
        most = np.maximum(most, unit.working_bytes - gone)
        gone = gone + unit.saved_bytes
    return most


def merged(units: Sequence[Unit]) -> Unit:
    """Several units as one; only one layer at a time is recomputed, so working bytes do not add."""
    forward: Seconds = {}
    backward: Seconds = {}
    weight: Seconds = {}
    counted = Counter(id(unit) for unit in units)
    distinct = [(unit, counted[key]) for key, unit in {id(unit): unit for unit in units}.items()]
    for unit, times in distinct:
        add(forward, unit.price.forward, times)
        add(backward, unit.price.backward, times)
        add(weight, unit.price.weight, times)
    return Unit(
        PassPrice(forward, backward, weight),
        sum(times * unit.dense_parameters for unit, times in distinct),
        sum(times * unit.expert_parameters for unit, times in distinct),
        sum(times * unit.trainable_dense for unit, times in distinct),
        sum(times * unit.trainable_experts for unit, times in distinct),
        sum(times * unit.saved_bytes for unit, times in distinct),
        _working_bytes(units),
        sum(times * unit.head_bytes for unit, times in distinct),
        sum(times * unit.weight_bytes for unit, times in distinct),
        sum(times * unit.again_s for unit, times in distinct),
        sum(times * unit.again_bytes for unit, times in distinct),
        _spared([(unit.spared_dense, times) for unit, times in distinct]),
        _spared([(unit.spared_experts, times) for unit, times in distinct]),
        sum(times * unit.update_s for unit, times in distinct),
        sum(times * unit.tensors for unit, times in distinct),
    )


def _spared(counted: Sequence[tuple[Spared, int]]) -> Spared:
    gradients = sum(times * one.gradients for one, times in counted)
    return Spared(gradients, sum(times * one.moments for one, times in counted))


def vocabulary_share(setting: Setting) -> Unit:
    """Embedding and head of a p-th of the vocabulary: what each pipeline rank holds and computes of them where they
    are split over the pipeline (arXiv 2411.05288, section 3)."""
    split = -(-setting.model.vocabulary // int(setting.plan.pipeline))
    _, head = _ends(replace(setting, model=replace(setting.model, vocabulary=split)))
    held = parameters.embedding_parameters(setting.model) / setting.plan.pipeline / setting.plan.tensor
    trained = held * float(np.any(head.trainable_dense))
    return replace(
        head,
        dense_parameters=head.dense_parameters + held,
        trainable_dense=head.trainable_dense + trained,
    )


@dataclass(frozen=True)
class Parts:
    """What the chunks of a pipeline are put together from: a unit for every layer in model order (equal layers share
    one), and the two ends.

    `joined` units are made once, so that equal ones stay one object in every layout over the same parts.
    """

    layers: tuple[Unit, ...]
    embedding: Unit
    head: Unit
    _known: dict[tuple[int, ...], Unit] = field(default_factory=dict)

    def joined(self, units: Sequence[Unit]) -> Unit:
        key = tuple(id(unit) for unit in units)
        if key not in self._known:
            self._known[key] = merged(units)
        return self._known[key]


def parts(setting: Setting) -> Parts:
    """The parts of a model under a plan; broadcasts over arrays of plans."""
    of_layer = {layer: _layer_unit(setting, layer) for layer in dict.fromkeys(setting.model.layers)}
    return Parts(tuple(of_layer[layer] for layer in setting.model.layers), *_ends(setting))


def chunk_units(setting: Setting, made: Parts | None = None) -> list[tuple[Unit, ...]]:
    """The units of every chunk of the pipeline in model order, one a layer; equal layers share one object.

    The embedding belongs to the first unit of the first chunk, the head to the last unit of the last chunk, unless
    the schedule splits both over all ranks. `made`: the parts, where they are known already.
    """
    split_ends = schedules.get(setting.plan.schedule).barriers > 0
    made = parts(setting) if made is None else made
    sizes = layers_of_chunks(len(made.layers), setting.plan)
    result, first = [], 0
    for index, size in enumerate(sizes):
        units = list(made.layers[first : first + size])
        if index == 0 and not split_ends:
            units = [made.joined([made.embedding, *units[:1]]), *units[1:]]
        if index == len(sizes) - 1 and not split_ends:
            units = [*units[:-1], made.joined([*units[-1:], made.head])]
        result.append(units)
        first += size
    return _with_sends(setting, result)


def _with_sends(setting: Setting, chunks: Sequence[Sequence[Unit]]) -> list[tuple[Unit, ...]]:
    """The chunks with the sends that stand in the way of their passes: behind the last unit forward, the first one
    backward. Equal units stay one object: hops differ only in whether they leave the scale-up domain."""
    if not hops.blocks(setting):
        return [tuple(units) for units in chunks]
    known: dict[tuple[int, bool | None, bool | None], Unit] = {}
    wires: dict[bool | None, Number] = {None: 0.0}
    crossings = hops.crossings(setting)

    def link(stage: int, step: int) -> bool | None:
        rank = hops.sending_rank(setting, stage, step)
        if rank is None:
            return None
        if crossings[rank] not in wires:
            wires[crossings[rank]] = hops.wire_s(setting, rank)
        return crossings[rank]

    def longer(unit: Unit, ahead: bool | None, back: bool | None) -> Unit:
        if ahead is None and back is None:
            return unit
        key = (id(unit), ahead, back)
        if key not in known:
            forward, backward = (
                add(dict(seconds), {"pipeline_communication": wires[sent]})
                for seconds, sent in ((unit.price.forward, ahead), (unit.price.backward, back))
            )
            known[key] = replace(unit, price=PassPrice(forward, backward, unit.price.weight))
        return known[key]

    result = []
    for stage, units in enumerate(chunks):
        ahead, back = link(stage, 1), link(stage, -1)
        sent = [longer(unit, ahead if index == len(units) - 1 else None, back if index == 0 else None)
                for index, unit in enumerate(units)]
        result.append(tuple(sent))
    return result
