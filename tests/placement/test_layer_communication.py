"""What a layer sends for its tensor, context and expert axes: the bytes that are priced are those that the placement
implies, and those of the papers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from costmodel import collectives
from placement.passes import Setting, context_communication, expert_communication, tensor_communication
from placement.semantics import Activations, Phase, communications
from placement.states import Axis, Dim, Mode, Placement, State
from tests.training_cases import setting

TOKENS = 8192


@dataclass(frozen=True)
class Counting(Setting):
    """A setting whose collectives "take" the bytes that a rank sends in them."""

    def collective_s(self, price, size_bytes, group):
        return collectives.sent_bytes(price.__name__.removesuffix("_s"), size_bytes, group.size)


def counting(model: str, **plan: object) -> Counting:
    return Counting(**vars(setting(model, nodes=8, sequence=TOKENS, **plan)))


def implied(counted: Counting, partition: dict[Axis, Dim], weights: tuple[Axis, ...] = (),
            again: bool = False) -> dict[tuple[Axis, Phase], float]:
    """Bytes of one layer and micro-batch by axis and phase, derived from the placement alone."""
    plan, model = counted.plan, counted.model
    layer = model.layers[-1]
    attention, part = layer.attention, layer.feed_forward
    width = attention.kv_heads * (attention.head_dim + attention.value_head_dim)
    sizes = Activations(TOKENS, model.hidden, key_value_width=width, moe_layers=1 if part.experts else 0,
                        experts_per_token=part.experts_per_token)
    modes = {state: dict.fromkeys(weights, Mode.SHARDED)
             for state in (State.PARAMETERS, State.GRADIENTS, State.OPTIMIZER)}
    kept = {State.ACTIVATIONS: {Axis.MEMORY: Mode.MATERIALIZED}} if again else {}
    degrees = {Axis.TENSOR: plan.tensor, Axis.CONTEXT: plan.context, Axis.EXPERT: plan.expert}
    found = communications(Placement({**modes, **kept}, partition), 0, degrees, 1, sizes)
    sent: dict[tuple[Axis, Phase], float] = {}
    for one in found:
        key = one.axis, one.phase
        sent[key] = sent.get(key, 0.0) + float(one.sent_bytes_per_step)
    return sent


@pytest.mark.parametrize("split", [Dim.HIDDEN, Dim.SEQUENCE])
@pytest.mark.parametrize("context", [2, 4, 8])
@pytest.mark.parametrize("tensor", [1, 2])
def test_context_parallel_sends_what_the_placement_implies(context: int, tensor: int, split: Dim) -> None:
    """Gathered once forward and, since the gathered copy is not kept, once more backward; gradients scattered. Inside
    attention a tensor rank has its heads of all tokens, also under sequence parallelism."""
    counted = counting("llama-3.1-8b", context=context, tensor=tensor, sequence_parallel=split is Dim.SEQUENCE,
                       data=64 // context // tensor)
    forward, backward = context_communication(counted, counted.model.layers[0])
    heads = counted.model.layers[0].attention.kv_heads // tensor
    assert forward == pytest.approx((1 - 1 / context) * TOKENS * 2 * heads * 128 * 2)  # 16.78 MB gathered at tensor 2
    partition = {Axis.TENSOR: split, Axis.CONTEXT: Dim.SEQUENCE}
    sent = implied(counted, partition, (Axis.TENSOR,), again=True)
    assert forward == pytest.approx(sent[Axis.CONTEXT, Phase.FORWARD])
    assert backward == pytest.approx(sent[Axis.CONTEXT, Phase.RECOMPUTE] + sent[Axis.CONTEXT, Phase.BACKWARD])


@pytest.mark.parametrize("context", [2, 8])
def test_ring_and_all_gather_send_the_same_bytes(context: int) -> None:
    counted = [counting("llama-3.1-8b", context=context, context_method=method, data=64 // context)
               for method in ("ring", "all-gather")]
    ring, gathered = (context_communication(one, one.model.layers[0]) for one in counted)
    assert ring == pytest.approx(gathered)


@pytest.mark.parametrize("context", [2, 4, 8])
def test_ulysses_sends_four_hidden_widths_per_token_of_a_rank(context: int) -> None:
    """arXiv 2309.14509, section 3.2: 3 N h for queries, keys and values and N h for the output, over P links: 4 N h/P,
    each way; the own part stays. Multi-head attention."""
    counted = counting("gpt3-6.7b", context=context, context_method="ulysses", data=64 // context)
    forward, backward = context_communication(counted, counted.model.layers[0])
    stays = 1 / context
    assert forward == pytest.approx(4 * TOKENS * counted.model.hidden * 2 / context * (1 - stays))
    assert backward == pytest.approx(forward)


def test_ulysses_volume_falls_with_the_ranks_and_that_of_a_ring_does_not() -> None:
    """The paper's point: constant where tokens and ranks grow together."""

    def sent(method: str, context: int) -> float:
        one = counting("gpt3-6.7b", context=context, context_method=method, data=1)
        return float(context_communication(one, one.model.layers[0])[0])

    assert sent("ulysses", 16) / sent("ulysses", 8) == pytest.approx(0.5 * (15 / 16) / (7 / 8))
    assert sent("ring", 16) / sent("ring", 8) == pytest.approx((15 / 16) / (7 / 8))


def test_ulysses_repeats_grouped_heads_where_ranks_outnumber_them() -> None:
    """Llama 3 8B has 8 key and value heads: 16 ranks hold each of them twice."""
    one = counting("llama-3.1-8b", context=16, context_method="ulysses", data=4)
    attention = one.model.layers[0].attention
    rows = TOKENS / 16 * 2 * attention.head_dim
    sent = rows * (attention.heads + 2 * 16 + attention.heads) * 15 / 16
    assert context_communication(one, one.model.layers[0])[0] == pytest.approx(sent)


@pytest.mark.parametrize("expert", [2, 4, 8])
def test_experts_send_every_pair_there_and_back(expert: int) -> None:
    tensor = 2
    counted = counting("mixtral-8x7b", expert=expert, tensor=tensor, sequence_parallel=True, data=32)
    forward, backward = expert_communication(counted, counted.model.layers[-1])
    sent = implied(counted, {Axis.TENSOR: Dim.SEQUENCE, Axis.EXPERT: Dim.BATCH}, (Axis.TENSOR, Axis.EXPERT))
    assert forward == pytest.approx(sent[Axis.EXPERT, Phase.FORWARD])
    assert backward == pytest.approx(sent[Axis.EXPERT, Phase.BACKWARD])
    pairs = TOKENS / tensor * 2  # top 2
    assert forward == pytest.approx(2 * pairs * counted.model.hidden * 2 * (1 - 1 / expert))


@pytest.mark.parametrize(("expert", "expert_tensor"), [(1, 2), (2, 2), (4, 2), (2, 4), (1, 8)])
def test_tensor_ranks_of_an_expert_gather_and_scatter_their_tokens(expert: int, expert_tensor: int) -> None:
    """Megatron-Core's dispatcher (arXiv 2504.14960): each rank gets its share of the pairs by all-to-all, gathers those
    of its fellows, and scatters the results; by hand for every rank's rows."""
    counted = counting("mixtral-8x7b", expert=expert, expert_tensor=expert_tensor, tensor=expert_tensor,
                       sequence_parallel=True, data=64 // expert_tensor)
    forward, _ = expert_communication(counted, counted.model.layers[-1])
    pair_bytes = counted.model.hidden * 2
    pairs = TOKENS / expert_tensor * 2  # of this rank
    to_others = pairs * (expert - 1) / expert
    to_fellows = pairs * (expert_tensor - 1)  # a ring all-gather passes on every shard but one
    assert forward == pytest.approx(2 * (to_others + to_fellows) * pair_bytes)


def test_expert_tensor_ranks_trade_all_to_all_for_gathers_of_more_bytes() -> None:
    """Over as many ranks, splitting experts sends more bytes than dealing them out: (e - 1)/e of the pairs against
    t - 1 times the pairs."""
    dealt = counting("mixtral-8x7b", expert=8, tensor=8, sequence_parallel=True, data=8)
    split = counting("mixtral-8x7b", expert=1, expert_tensor=8, tensor=8, sequence_parallel=True, data=8)
    sent = [expert_communication(one, one.model.layers[-1])[0] for one in (dealt, split)]
    assert sent[1] / sent[0] == pytest.approx(7 / (7 / 8))


def test_layers_of_routed_experts_have_the_collectives_of_attention_alone() -> None:
    """With sequence parallelism; shared experts are a tensor-parallel block of their own, as dense layers have."""
    plans = {"tensor": 4, "sequence_parallel": True, "data": 16}
    routed, shared = counting("mixtral-8x7b", **plans), counting("deepseek-v3", **plans)
    dense = tensor_communication(shared, shared.model.layers[0])
    assert np.array(tensor_communication(shared, shared.model.layers[-1])) == pytest.approx(np.array(dense))
    hidden = routed.model.hidden
    block = 3 / 4 * TOKENS * hidden * 2
    found = np.array(tensor_communication(routed, routed.model.layers[0]))
    assert found == pytest.approx(np.array([2 * block, 3 * block]))


def test_prices_broadcast_over_arrays_of_degrees() -> None:
    """An array of plans costs what its plans cost one by one."""
    experts, tensors = np.array([1, 2, 4, 2]), np.array([2, 2, 1, 4])
    common = {"tensor": 4, "sequence_parallel": True, "data": 16}
    together = setting("mixtral-8x7b", nodes=8, expert=experts, expert_tensor=tensors, **common)
    found = expert_communication(together, together.model.layers[0])[0]
    for index in range(len(experts)):
        one = setting("mixtral-8x7b", nodes=8, expert=int(experts[index]), expert_tensor=int(tensors[index]), **common)
        assert found[index] == pytest.approx(expert_communication(one, one.model.layers[0])[0], rel=1e-12)
