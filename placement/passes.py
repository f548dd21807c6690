"""What one pass costs: a layer, and a chunk of layers, forward and backward, by breakdown category.

Prices compute (`costmodel.kernels`) and the communication that belongs to the layer itself: tensor, context
and expert parallel. What belongs to the states (data parallel) and to the pipeline is added where the step is
assembled. Everything broadcasts over arrays of plans that share a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from costmodel import (
    autograd,
    collectives,
    constants,
    network,
    parameters,
    product_keys,
    step_kernels,
    techniques,
    work,
)
from costmodel.architecture import Layer, Model
from costmodel.constants import Constants
from costmodel.hardware import Cluster, capped
from costmodel.kernels import OPERAND_BYTES, Pricer, peak_flops_per_s
from costmodel.operators import (
    FORWARD,
    INPUT,
    WEIGHT,
    Number,
    Operator,
    Shard,
    embedding_operators,
    head_operators,
    query_width,
)
from costmodel.stack import LOGIT_BYTES, Stack, waiting_for_host_s
from costmodel.work import Case, Weights, Work
from placement import strategies
from placement.plan import Plan, PlanError
from placement.states import Axis, Mode, Placement, State, state_bytes

Seconds = dict[str, Number]  # breakdown category -> seconds
# A backward kernel that does not skip masked blocks does twice the work at the non-causal rate: 2 x 189 / 203 of the
# FlashAttention-2 curves on A100 at 16,384 tokens (hardware.csv, category attention).
WHOLE_SQUARE = 1.86


def add(total: Seconds, part: Mapping[str, Number], times: Number = 1.0) -> Seconds:
    """total + times * part, by category (in place, returned)."""
    for category, seconds in part.items():
        total[category] = total.get(category, 0.0) + seconds * times
    return total


def total(seconds: Mapping[str, Number]) -> Number:
    return sum(seconds.values())


@dataclass(frozen=True)
class Setting:
    """Everything a price depends on besides the layer: model, plan, cluster, stack, sequence length."""

    model: Model
    plan: Plan
    cluster: Cluster
    stack: Stack
    sequence: Number
    constants: Constants = field(default_factory=constants.default)
    global_batch: Number | None = None  # sequences of a step; None: a single micro-batch a rank

    def __post_init__(self) -> None:
        if self.cluster.groups:
            raise PlanError(f"unequal accelerators ({self.cluster.node.name}): `whatif run` divides work over them")

    @property
    def shard(self) -> Shard:
        plan = self.plan
        return Shard(
            batch=plan.micro_batch,
            sequence=self.sequence,
            tensor=plan.tensor,
            sequence_parallel=plan.sequence_parallel,
            context=plan.context,
            expert=plan.expert,
            expert_tensor=plan.expert_tensor,
            segments=plan.segments,
        )

    @cached_property
    def placement(self) -> Placement:
        """The placement that the plan's sharding means in this pipeline.

        With a pipeline, gradients are held whole and leave once, behind the last micro-batch of a chunk, whatever
        the strategy shards afterwards (torch.distributed.pipelining switches gradient synchronisation off until
        the last backward; Megatron does the same).
        """
        sharding = self.plan.sharding
        placement = sharding if isinstance(sharding, Placement) else strategies.get(sharding)
        if self.plan.state_bytes is not None:
            placement = replace(placement, bytes=state_bytes(self.plan.state_bytes))
        if self.plan.pipeline == 1:
            return placement
        modes: dict[State, Mapping[Axis, Mode]] = {
            state: of for state, of in placement.modes.items() if state is not State.GRADIENTS
        }
        return replace(placement, modes=modes, accumulate=True)

    @cached_property
    def pricer(self) -> Pricer:
        stack, accelerator = self.stack, capped(self.cluster.accelerator, self.cluster.power_limit_w)
        constants = self.constants
        factors = (constants.in_situ(accelerator.generation), constants.narrow, constants.attention)
        return Pricer(accelerator, self.plan.precision, self.traffic_factor, stack.attention, *factors)

    @property
    def widening(self) -> float:
        """Bytes of an activation over the 2 that operators count: 2 where everything is fp32 (TF32 included)."""
        return max(OPERAND_BYTES[self.plan.precision], 2.0) / 2.0

    @property
    def micro_batches(self) -> Number:
        """Passes of a rank in one step."""
        if self.global_batch is None:
            return 1.0
        return np.maximum(np.asarray(self.global_batch) / (self.plan.data * self.plan.micro_batch), 1.0)

    @property
    def by_autograd(self) -> bool:
        """Whether plain torch modules run, whose gradients autograd puts together (`costmodel.autograd`)."""
        return self.stack.execution == "torch"

    @property
    def traffic_factor(self) -> float:
        return self.constants.traffic(self.stack.execution) * self.widening

    def collective_s(self, price: Callable[..., Number], size_bytes: Number, group: network.Group) -> Number:
        """Seconds of one collective (a function of costmodel.collectives) inside a step."""
        own = self.pricer.own
        if own is not None:
            rate, name = self.cluster.node.scale_up.bandwidth_bytes_per_s, step_kernels.name_of(price)
            alone = step_kernels.collective_s(own.measured, name, size_bytes, group, rate)
            if alone is not None:
                return alone * self.constants.communication
        paths = network.paths(self.cluster)
        return price(size_bytes, group, paths, self.stack.collectives) * self.constants.communication


@dataclass(frozen=True)
class PassPrice:
    """Seconds of one forward and one backward pass by category; `weight` is the part of the backward pass that only
    weight gradients need, which schedules that split it run later (W)."""

    forward: Seconds
    backward: Seconds
    weight: Seconds = field(default_factory=dict)


def layer_work(setting: Setting, layer: Layer, recompute: str | None = None) -> Work:
    """What a layer asks of one accelerator, changed by the plan's techniques; `recompute` in place of the plan's."""
    stack, plan = setting.stack, setting.plan
    case = Case(setting.model, layer, setting.shard, plan.recompute if recompute is None else recompute)
    width = min(OPERAND_BYTES[plan.precision], 2.0)
    plain = work.layer_work(case, stack.execution, stack.attention, width, stack.moe_dispatcher, setting.widening)
    return techniques.changed(plain, plan.changes, case)


def _operators_price(setting: Setting, operators: tuple[Operator, ...]) -> PassPrice:
    """Compute of some operators; of a linear layer those of its three products that it runs."""
    pricer = setting.pricer
    whole = setting.stack.attention_backward == "whole"
    forward: Seconds = {}
    backward: Seconds = {}
    weight: Seconds = {}
    for operator in operators:
        m, n, k, products = operator.m, operator.n, operator.k, operator.products
        counted = 1.0 / setting.constants.traffic(setting.stack.execution) if operator.as_moved else 1.0
        if FORWARD in products:
            add(forward, pricer.forward_s(operator), counted)
        if operator.category != "gemm":
            squared = whole and operator.category == "attention"
            add(backward, pricer.backward_s(operator), WHOLE_SQUARE if squared else counted)
            continue
        if WEIGHT in products:
            add(weight, {"gemm": pricer.gemm_s(operator, k, n, m)})
        if INPUT in products and WEIGHT in products:
            add(backward, pricer.backward_s(operator))
        elif INPUT in products:
            add(backward, {"gemm": pricer.gemm_s(operator, m, k, n)})
        elif WEIGHT in products:
            add(backward, {"gemm": pricer.gemm_s(operator, k, n, m)})
    return PassPrice(forward, backward, weight)


def update_s(setting: Setting, asked: Work) -> Number:
    """Seconds that the optimizer step takes beside Adam on the whole of a layer's weights on this rank: products that
    techniques run there, and fp32 arithmetic at the peak of the vector units."""
    seconds: Number = sum((total(setting.pricer.forward_s(one)) for one in asked.update), 0.0)
    if np.any(asked.update_flops):
        seconds = seconds + asked.update_flops / peak_flops_per_s(setting.pricer.accelerator, "fp32")
    return seconds


def overlapped(communication_s: Number, beside_s: Number, overlap_cost: Number) -> tuple[Number, Number]:
    """(exposed, contention): what compute of `beside_s` cannot hide, and what the hidden part slows it down."""
    hidden = np.minimum(communication_s, beside_s)
    return communication_s - hidden, overlap_cost * hidden


def sent_bytes(setting: Setting) -> Number:
    """Activations that one rank sends to the next stage: its tensor ranks share them, with sequence parallelism
    or by scattering and gathering (arXiv 2104.04473, section 4.1)."""
    return 2.0 * setting.widening * setting.shard.tokens * setting.model.hidden / setting.plan.tensor


def tensor_communication(setting: Setting, layer: Layer) -> tuple[Number, Number]:
    """Seconds (forward, backward) of tensor-parallel collectives of one layer.

    Two all-reduces each way without sequence parallelism; with it each becomes an all-gather and a
    reduce-scatter, and the backward pass gathers the two inputs once more for the weight gradients
    (Korthikanti et al., arXiv 2205.05198, section 4.2.2). There routed experts take the sequence's shards as they lie,
    so that such a layer without shared experts has the attention's collectives alone.
    """
    plan, cluster = setting.plan, setting.cluster
    group = network.group(cluster, plan.tensor, 1)
    size = 2.0 * setting.widening * setting.shard.tokens * setting.model.hidden
    reduce_s = setting.collective_s(collectives.all_reduce_s, size, group)
    gather_s = setting.collective_s(collectives.all_gather_s, size, group)
    scatter_s = setting.collective_s(collectives.reduce_scatter_s, size, group)
    blocks = 1 if layer.feed_forward.experts and not layer.feed_forward.shared_width else 2
    forward = np.where(plan.sequence_parallel, blocks * (gather_s + scatter_s), 2 * reduce_s)
    backward = np.where(plan.sequence_parallel, blocks * (2 * gather_s + scatter_s), 2 * reduce_s)
    return forward, backward


def context_communication(setting: Setting, layer: Layer) -> tuple[Number, Number]:
    """Seconds (forward, backward) of context parallelism in one layer.

    all-gather: keys and values of the whole sequence, again in the backward pass, gradients reduce-scattered
    (Llama 3, arXiv 2407.21783, 3.3.2). ring: the same bytes as neighbour exchanges, gradients travel with
    them. ulysses: all-to-alls of queries, keys, values and output (arXiv 2309.14509).
    """
    plan, cluster, attention = setting.plan, setting.cluster, layer.attention
    group = network.group(cluster, plan.context, plan.tensor)
    shard = setting.shard
    if attention.kind == "mla":
        key_value_width: Number = attention.key_value_rank + attention.rope_head_dim
    else:
        heads = np.maximum(attention.kv_heads / plan.tensor, 1)
        key_value_width = heads * (attention.head_dim + attention.value_head_dim)
    whole = 2.0 * setting.widening * shard.batch * shard.sequence * key_value_width
    if plan.context_method == "ulysses":
        rows = 2.0 * setting.widening * shard.tokens
        queries = rows * query_width(attention) / plan.tensor
        inputs_s = setting.collective_s(collectives.all_to_all_s, queries + rows * _dealt_width(setting, layer), group)
        output = rows * attention.heads * attention.value_head_dim / plan.tensor
        both_s = inputs_s + setting.collective_s(collectives.all_to_all_s, output, group)
        return both_s, both_s
    gather_s = setting.collective_s(collectives.all_gather_s, whole, group)
    if plan.context_method == "ring":
        return gather_s, 2.0 * gather_s
    return gather_s, gather_s + setting.collective_s(collectives.reduce_scatter_s, whole, group)


def _dealt_width(setting: Setting, layer: Layer) -> Number:
    """Elements of keys and values that a token brings to the all-to-all of ulysses: every context rank needs a head of
    its own, so that fewer grouped heads than ranks are repeated; latent ones are expanded first."""
    attention, plan = layer.attention, setting.plan
    if attention.kind == "mla":
        return (query_width(attention) + attention.heads * attention.value_head_dim) / plan.tensor
    heads = np.maximum(attention.kv_heads / plan.tensor, plan.context)
    return heads * (attention.head_dim + attention.value_head_dim)


def distinct(places: Number, choices: Number) -> Number:
    """Expected number of different places that `choices` uniform choices fall on: n (1 - (1 - 1/n)^k).

    >>> round(float(distinct(8, 8)), 3), float(distinct(1, 8))
    (5.251, 1.0)
    """
    return places * (1.0 - (1.0 - 1.0 / np.asarray(places, dtype=float)) ** choices)


def expert_communication(setting: Setting, layer: Layer) -> tuple[Number, Number]:
    """Seconds (forward, backward) of dispatch and combine of a balanced MoE layer.

    "all-to-all" sends every token-expert pair to one rank of its expert; the tensor ranks of an expert then gather
    what each of them got and reduce-scatter the results (Megatron-Core's dispatcher; MoE Parallel Folding, arXiv
    2504.14960). "flex" sends a token once to every rank that needs it, and once across to every node that needs it,
    from where it is forwarded (DeepEP; DeepSeek-V3, arXiv 2412.19437, 3.2.2).
    """
    feed_forward, plan = layer.feed_forward, setting.plan
    if not feed_forward.experts:
        return 0.0, 0.0
    group = network.group(setting.cluster, plan.expert, plan.expert_tensor)
    rows = setting.shard.routed_rows(feed_forward)
    if setting.stack.moe_dispatcher == "all-to-all":
        shared = 2.0 * setting.widening * rows * setting.model.hidden  # what the tensor ranks of an expert all see
        one_way = setting.collective_s(collectives.all_to_all_s, shared / plan.expert_tensor, group)
        tensor_ranks = network.group(setting.cluster, plan.expert_tensor, 1)
        gather_s = setting.collective_s(collectives.all_gather_s, shared, tensor_ranks)
        scatter_s = setting.collective_s(collectives.reduce_scatter_s, shared, tensor_ranks)
        both_ways = 2.0 * one_way + gather_s + scatter_s
        return both_ways, both_ways
    choices = feed_forward.experts_per_token
    token_bytes = 2.0 * setting.widening * rows * setting.model.hidden / choices
    near = network.Group(group.per_domain, group.per_domain)
    inside = setting.collective_s(collectives.all_to_all_s, token_bytes * distinct(group.size, choices), near)
    crossing = token_bytes * distinct(group.domains, choices) * (group.domains - 1) / group.domains
    paths = network.paths(setting.cluster)
    across = crossing / paths.scale_out_bandwidth_bytes_per_s * setting.constants.communication
    one_way = np.maximum(inside, across)
    return 2.0 * one_way, 2.0 * one_way


def lookup_communication(setting: Setting, layer: Layer) -> tuple[Number, Number]:
    """Seconds (forward, backward) of a memory layer whose values lie on the expert ranks by columns.

    Choices and scores of all tokens of the group are gathered on every rank; the sums of its columns return by an
    all-to-all (arXiv 2412.09764; ColwiseEmbeddingBag: input replicated, output from columns to tokens). Backward,
    gradients of the sums go out the same way and those of the scores are reduced to where they came from.
    """
    memory = layer.feed_forward.memory
    if memory is None:
        return 0.0, 0.0
    group = network.group(setting.cluster, setting.plan.expert, setting.plan.expert_tensor)
    tokens = setting.shard.tokens
    chosen = tokens * setting.plan.expert * product_keys.selected_bytes(memory)
    scores = tokens * setting.plan.expert * memory.heads * memory.neighbours * 2.0
    sums_s = setting.collective_s(
        collectives.all_to_all_s, 2.0 * setting.widening * tokens * setting.model.hidden, group
    )
    gather_s = setting.collective_s(collectives.all_gather_s, chosen, group)
    return gather_s + sums_s, setting.collective_s(collectives.reduce_scatter_s, scores, group) + sums_s


def _with_communication(setting: Setting, layer: Layer, price: PassPrice) -> PassPrice:
    """Adds exposed tensor, context and expert communication and what the hidden part costs."""
    cost = setting.constants.overlap_cost
    parts = {
        "tensor": tensor_communication(setting, layer),
        "context": context_communication(setting, layer),
        "expert": lookup_communication(setting, layer) if layer.feed_forward.memory
        else expert_communication(setting, layer),
    }
    forward, backward = dict(price.forward), dict(price.backward)
    for name, pair in parts.items():
        overlaps = name in setting.stack.overlap or (name == "context" and setting.plan.context_method == "ring")
        for seconds, communication_s in zip((forward, backward), pair, strict=True):
            beside = seconds.get("attention" if name == "context" else "gemm", 0.0) if overlaps else 0.0
            exposed, contention = overlapped(communication_s, beside, cost)
            add(seconds, {f"{name}_communication": exposed, "contention": contention})
    return PassPrice(forward, backward, price.weight)


def _with_host(price: PassPrice, host_s: Number) -> PassPrice:
    """A pass takes at least as long as the host needs to launch it."""
    forward, backward = (
        add(dict(seconds), {"launch": waiting_for_host_s(total(seconds), host_s)})
        for seconds in (price.forward, price.backward)
    )
    return PassPrice(forward, backward, price.weight)


def layer_price(setting: Setting, layer: Layer) -> PassPrice:
    """One layer and pass: compute, its communication, and what recomputation repeats within the backward pass."""
    plan = setting.plan
    asked = layer_work(setting, layer)
    price = _operators_price(setting, asked.operators)
    if setting.by_autograd:
        trained = asked.dense.gradients + asked.sparse.gradients
        beside = autograd.layer_operators(setting.model, layer, setting.shard, trained, setting.micro_batches)
        add(price.backward, _operators_price(setting, beside).backward)
    host_s = setting.stack.host_s(bool(layer.feed_forward.experts), plan.tensor) * setting.constants.host
    price = _with_host(_with_communication(setting, layer, price), host_s)
    repeated = repeated_s(setting, layer, price) if plan.recompute_chunks is None else 0.0
    return PassPrice(price.forward, add(dict(price.backward), {"recompute": repeated}), price.weight)


def repeated_s(setting: Setting, layer: Layer, price: PassPrice) -> Number:
    """Seconds of what recomputation runs again of a layer and pass.

    Full recomputation repeats the forward pass with its communication; selective repeats the attention core,
    pointwise the memory-bound operators.
    """
    level = setting.plan.recompute
    if level in ("none", "full"):
        return total(price.forward) if level == "full" else 0.0
    repeats = "attention" if level == "selective" else "memory_bound"
    again = (one for one in layer_work(setting, layer).operators if one.category == repeats and not one.once)
    return total(_operators_price(setting, tuple(again)).forward)


def end_work(setting: Setting) -> tuple[Work, Work]:
    """(embedding, head): operators and weights, changed by the plan's techniques. A tied head on another stage holds
    its own copy; the final norm and learned positions go with the head."""
    model, plan, stack = setting.model, setting.plan, setting.stack
    embedding = parameters.embedding_parameters(model)
    layers = sum(parameters.layer_parameters(layer, model.hidden, model.norm) for layer in model.layers)
    rest = parameters.count(model) - layers - embedding
    if model.tied_embeddings and plan.pipeline > 1:
        rest += model.vocabulary * model.hidden
    # the fp32 chains are counted as they are moved, whatever the execution
    counted = 1.0 if stack.cross_entropy == "fused" else setting.traffic_factor
    forward, backward = (size_bytes / counted for size_bytes in LOGIT_BYTES[stack.cross_entropy])
    first = Work(embedding_operators(model, setting.shard), Weights.trained(embedding / plan.tensor))
    last = Work(head_operators(model, setting.shard, (forward, backward)), Weights.trained(rest / plan.tensor))
    return techniques.changed_end(first, plan.changes), techniques.changed_end(last, plan.changes)


def end_prices(setting: Setting) -> tuple[PassPrice, PassPrice]:
    """(embedding, head): what the first and the last chunk do beside their layers."""
    first, last = end_work(setting)
    operators, model = [first.operators, last.operators], setting.model
    if setting.by_autograd:
        table = autograd.dense_table(model.vocabulary * model.hidden / setting.plan.tensor)
        operators[0] += (table, autograd.sums(first.dense.gradients, setting.micro_batches))
        operators[1] += (autograd.sums(last.dense.gradients, setting.micro_batches),)
    embedding, head = (_operators_price(setting, one) for one in operators)
    return embedding, _with_host(head, setting.stack.host_head_s / 2.0 * setting.constants.host)
