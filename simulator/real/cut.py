"""A scenario cut to what one machine can run: the same shapes on every rank, fewer ranks, fewer layers, fewer batches.

Degrees come first: a degree of tensor parallelism that cannot be kept leaves the heads and widths of one shard, fewer
pipeline ranks keep the layers of a chunk, fewer data ranks the batch of a rank, fewer expert ranks the experts of one.
What a step then still costs too much is cut in the order layers, micro-batches, micro-batch, sequence, vocabulary.
Every change is said. Pure functions; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, gcd

from costmodel import constants
from costmodel.architecture import FeedForward, Layer, Model
from costmodel.hardware import Cluster, Node
from placement.plan import Plan
from simulator.inputs import TrainingInputs
from simulator.real.buildable import plain

STACK = "torch"  # the bundle of costmodel/stacks.yaml that a real run is
LEAST_SEQUENCE = 64
LEAST_VOCABULARY = 1024


class CutError(ValueError):
    """A scenario of which no part that keeps its shapes fits the machine; the message names what is too large."""


@dataclass(frozen=True)
class Machine:
    """What runs the ranks. `budget_s`: longest step, of all ranks on `processors` at a time; `memory_bytes`: of all."""

    node: Node
    device: str  # cpu | cuda
    ranks: int
    processors: int
    memory_bytes: float
    budget_s: float


@dataclass(frozen=True)
class Change:
    """One thing that the real run does otherwise than the scenario."""

    key: str
    before: str
    after: str
    why: str

    @property
    def sentence(self) -> str:
        return f"{self.key}: {self.before} -> {self.after}, {self.why}"


@dataclass(frozen=True)
class Cut:
    """The inputs of the real run, and everything that was changed for it."""

    inputs: TrainingInputs
    changes: tuple[Change, ...]


Price = Callable[[TrainingInputs], tuple[float, float]]  # -> seconds of compute of all ranks, bytes of all ranks
Edit = tuple[TrainingInputs, Change]


def cut(inputs: TrainingInputs, machine: Machine, price: Price) -> Cut:
    """The largest part of the scenario that the machine runs within its budget, the shapes of a rank kept.

    Raises CutError where even the smallest part is too long or too large; what `price` raises goes through.
    """
    changes: list[Change] = []
    for edits in (_left_out, _context, _degrees, _experts, _numbers):
        for made, change in list(edits(inputs, machine)):
            inputs = made
            changes.append(change)
    inputs = replace(
        inputs, cluster=Cluster(machine.node, 1, int(inputs.plan.gpus)), stack={"name": STACK}, published=(),
        assumptions=(), total_tokens=None, price_usd_per_gpu_hour=None, fidelity="events",
        constants=constants.of(machine.node.accelerator),
    )
    while (over := _over(inputs, machine, price)) is not None:
        smaller = next(_smaller(inputs), None)
        if smaller is None:
            raise CutError(f"the smallest part of this scenario that keeps its shapes takes {over}")
        inputs, change = smaller
        changes.append(change)
    return Cut(inputs, _joined(changes))


def _over(inputs: TrainingInputs, machine: Machine, price: Price) -> str | None:
    """By what the machine is exceeded, None where it is not."""
    work_s, size_bytes = price(inputs)
    step_s = work_s / min(machine.processors, int(inputs.plan.gpus))
    if size_bytes > machine.memory_bytes:
        return f"{size_bytes / 1e9:,.1f} GB of this machine's {machine.memory_bytes / 1e9:,.1f} GB for a run"
    return f"{step_s:,.1f} s a step of the {machine.budget_s:,.0f} s allowed" if step_s > machine.budget_s else None


def _joined(changes: list[Change]) -> tuple[Change, ...]:
    """One change a key, from its first value to its last; none where both are the same."""
    kept: dict[str, Change] = {}
    for change in changes:
        kept[change.key] = replace(change, before=kept[change.key].before) if change.key in kept else change
    return tuple(change for change in kept.values() if change.before != change.after)


# What is cut once ------------------------------------------------------------------------------------


def _left_out(inputs: TrainingInputs, _: Machine) -> Iterator[Edit]:
    model, said = plain(inputs.model)
    for text in said:
        inputs = replace(inputs, model=model)
        yield inputs, Change("model", "whole", f"cut ({text.split()[0]})", text)


def _context(inputs: TrainingInputs, _: Machine) -> Iterator[Edit]:
    """Context ranks are not run for real: one of them, with its tokens."""
    plan, parts = inputs.plan, int(inputs.plan.context)
    if parts == 1:
        return
    why = "context parallelism is not run for real; a rank keeps its tokens and scores fewer pairs of them"
    inputs = replace(inputs, plan=replace(plan, context=1))
    yield inputs, Change("plan.context", f"{parts}", "1", why)
    yield (replace(inputs, sequence=inputs.sequence // parts),
           Change("workload.sequence", f"{inputs.sequence}", f"{inputs.sequence // parts}", why))


def _degrees(inputs: TrainingInputs, machine: Machine) -> Iterator[Edit]:
    """Data, tensor and pipeline degrees, until their product is at most the ranks there are.

    Of data and pipeline ranks two are kept as long as tensor ranks can go, so that their communication is seen.
    """
    for axis, least in (("data", 2), ("tensor", 1), ("pipeline", 2), ("data", 1), ("pipeline", 1)):
        plan = inputs.plan
        degree = int(getattr(plan, axis))
        kept = _degree(degree, max(machine.ranks * degree // int(plan.gpus), 1), least)
        if kept == degree:
            continue
        for made, change in list(_AXES[axis](inputs, degree, kept)):
            inputs = made
            yield inputs, change


def _degree(degree: int, most: int, least: int) -> int:
    """The largest divisor of `degree` up to `most`; the smallest from `least` up where none is as small."""
    divisors = [one for one in range(1, degree + 1) if degree % one == 0 and one >= min(least, degree)]
    return max((one for one in divisors if one <= most), default=divisors[0])


def _fewer_data(inputs: TrainingInputs, before: int, after: int) -> Iterator[Edit]:
    why = "this machine has fewer ranks; the batch of a rank is kept"
    batch = inputs.global_batch * after // before
    yield (replace(inputs, plan=replace(inputs.plan, data=after, shard_group=None)),
           Change("plan.data", f"{before}", f"{after}", why))
    yield (replace(inputs, plan=replace(inputs.plan, data=after, shard_group=None), global_batch=batch),
           Change("workload.global_batch", f"{inputs.global_batch}", f"{batch}", why))


def _fewer_tensor(inputs: TrainingInputs, before: int, after: int) -> Iterator[Edit]:
    """The model becomes that of `after` shards: heads, inner widths and vocabulary divided, the hidden width whole."""
    plan, model, factor = inputs.plan, inputs.model, before // after
    why = "this machine has fewer ranks; heads, inner widths and vocabulary of a shard are kept"
    cut_by = gcd(int(plan.expert_tensor), factor)
    layers = {layer: _shard_of(layer, before, factor, cut_by) for layer in dict.fromkeys(model.layers)}
    shards = replace(model, layers=tuple(layers[layer] for layer in model.layers),
                     vocabulary=ceil(model.vocabulary / before) * after)
    alone = after > 1 and plan.sequence_parallel
    plan = replace(plan, tensor=after, expert_tensor=int(plan.expert_tensor) // cut_by, sequence_parallel=alone)
    inputs = replace(inputs, model=shards, plan=plan)
    yield inputs, Change("plan.tensor", f"{before}", f"{after}", why)
    old, new = model.layers[0], shards.layers[0]
    for key, was, now in (
        ("model.heads", old.attention.heads, new.attention.heads),
        ("model.kv_heads", old.attention.kv_heads, new.attention.kv_heads),
        ("model.feed_forward_width", old.feed_forward.width, new.feed_forward.width),
        ("model.vocabulary", model.vocabulary, shards.vocabulary),
    ):
        yield inputs, Change(key, f"{was}", f"{now}", why)


def _shard_of(layer: Layer, tensor: int, factor: int, expert_factor: int) -> Layer:
    """A layer with the heads and widths of tensor / factor of its shards."""
    attention, part = layer.attention, layer.feed_forward
    heads = replace(attention, heads=attention.heads // factor,
                    kv_heads=max(attention.kv_heads, tensor) // factor if attention.kind == "gqa"
                    else attention.heads // factor)
    width = part.width // (expert_factor if part.experts else factor)
    return replace(layer, attention=heads,
                   feed_forward=replace(part, width=width, shared_width=part.shared_width // factor))


def _fewer_stages(inputs: TrainingInputs, before: int, after: int) -> Iterator[Edit]:
    plan, count = inputs.plan, len(inputs.model.layers)
    virtual = int(plan.virtual) if after > 1 else 1
    ends = 2 if plan.stage_layers == "balanced" else 0
    chunks = after * virtual
    layers = max((count + ends) * after // before - (ends if after > 1 else 0), chunks)
    layers = max(layers // chunks, 1) * chunks if not ends else layers
    stages = plan.stage_layers if isinstance(plan.stage_layers, str) and after > 1 else "even"
    why = "this machine has fewer ranks; the layers of a stage are kept"
    schedule = plan.schedule if after > 1 else "1f1b"
    plan = replace(plan, pipeline=after, virtual=virtual, stage_layers=stages, schedule=schedule)
    yield (replace(inputs, plan=plan, model=_with_layers(inputs.model, layers)),
           Change("plan.pipeline", f"{before}", f"{after}", why))
    yield (replace(inputs, plan=plan, model=_with_layers(inputs.model, layers)),
           Change("model.layers", f"{count}", f"{layers}", why))


_AXES = {"data": _fewer_data, "tensor": _fewer_tensor, "pipeline": _fewer_stages}


def _with_layers(model: Model, count: int) -> Model:
    """Every so-manieth layer, so that kinds of layers keep their shares."""
    have = len(model.layers)
    return replace(model, layers=tuple(model.layers[index * have // count] for index in range(count)))


def _experts(inputs: TrainingInputs, _: Machine) -> Iterator[Edit]:
    """As many expert ranks as the ranks of a stage can be dealt to, with the experts of each kept."""
    plan, degree = inputs.plan, int(inputs.plan.expert)
    ranks = int(plan.data * plan.context * plan.tensor) // int(plan.expert_tensor)
    kept = gcd(degree, max(ranks, 1))
    if kept == degree:
        return
    why = "this machine has fewer ranks; the experts of a rank and the pairs that it computes are kept"
    inputs = replace(inputs, plan=replace(plan, expert=kept))
    yield inputs, Change("plan.expert", f"{degree}", f"{kept}", why)
    most = max(layer.feed_forward.experts for layer in inputs.model.layers)
    layers = {layer: _dealt(layer, degree, kept) for layer in dict.fromkeys(inputs.model.layers)}
    model = replace(inputs.model, layers=tuple(layers[layer] for layer in inputs.model.layers))
    yield (replace(inputs, model=model),
           Change("model.experts", f"{most}", f"{max(layer.feed_forward.experts for layer in model.layers)}", why))


def _dealt(layer: Layer, before: int, after: int) -> Layer:
    part: FeedForward = layer.feed_forward
    if not part.experts:
        return layer
    experts = part.experts * after // before
    return replace(layer, feed_forward=replace(part, experts=experts,
                                               experts_per_token=min(part.experts_per_token, experts)))


def _numbers(inputs: TrainingInputs, machine: Machine) -> Iterator[Edit]:
    """The type of numbers that plain torch runs on the device."""
    before: str = inputs.plan.precision
    held = inputs.plan.state_bytes or "of the strategy"
    after = "fp32" if machine.device == "cpu" else before if before in ("fp32", "tf32", "bf16") else "bf16"
    why = "plain torch on a CPU is measured in fp32" if machine.device == "cpu" else "plain torch has no such recipe"
    plan: Plan = replace(inputs.plan, precision=after, state_bytes="fp32")
    inputs = replace(inputs, plan=plan)
    yield inputs, Change("plan.precision", before, after, why)
    yield inputs, Change("plan.state_bytes", held, "fp32", "torch's AdamW holds parameters, gradients and "
                         "moments in fp32 and no copies")


# What is cut until the budget holds ------------------------------------------------------------------


def _smaller(inputs: TrainingInputs) -> Iterator[Edit]:
    """The next smaller runs, the one to be preferred first; each halves one thing, down to what the plan needs."""
    plan, model = inputs.plan, inputs.model
    why = "a step would take too long or too much memory here"
    chunks, count = int(plan.chunks), len(model.layers)
    if count > chunks:
        layers = max(count // 2 // chunks, 1) * chunks
        stages = plan.stage_layers if isinstance(plan.stage_layers, str) and layers > chunks else "even"
        yield (replace(inputs, model=_with_layers(model, layers), plan=replace(plan, stage_layers=stages)),
               Change("model.layers", f"{count}", f"{layers}", why))
    once, turns = int(plan.data * plan.micro_batch), inputs.global_batch // int(plan.data * plan.micro_batch)
    pipeline = int(plan.pipeline)
    if turns > pipeline:
        fewer = max(turns // 2 // pipeline, 1) * pipeline
        yield (replace(inputs, global_batch=fewer * once),
               Change("workload.global_batch", f"{inputs.global_batch}", f"{fewer * once}", f"{why}: micro-batches"))
    micro = int(plan.micro_batch)
    if micro > 1 and micro % 2 == 0:
        half = replace(inputs, plan=replace(plan, micro_batch=micro // 2), global_batch=inputs.global_batch // 2)
        yield half, Change("plan.micro_batch", f"{micro}", f"{micro // 2}", f"{why}; each product has fewer rows")
    if inputs.sequence >= 2 * LEAST_SEQUENCE and inputs.sequence % 2 == 0:
        yield (replace(inputs, sequence=inputs.sequence // 2),
               Change("workload.sequence", f"{inputs.sequence}", f"{inputs.sequence // 2}",
                      f"{why}; each product has fewer rows"))
    if model.vocabulary >= 2 * LEAST_VOCABULARY:
        smaller = ceil(model.vocabulary / 2 / int(plan.tensor)) * int(plan.tensor)
        yield (replace(inputs, model=replace(model, vocabulary=smaller)),
               Change("model.vocabulary", f"{model.vocabulary}", f"{smaller}", f"{why}; the head is narrower"))
