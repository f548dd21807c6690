"""PaRO's 27 triples: memory and traffic of every one against the paper's formulas, written out here on their own."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from costmodel import catalog
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from costmodel.stack import Stack
from placement import composition, paro, strategies
from placement.passes import Setting
from placement.plan import Plan
from placement.semantics import communications, resident_bytes
from placement.state_traffic import chunks_with_traffic
from placement.states import Axis, Number, PlacementError, State, state_bytes

PSI, MEMBERS, GROUPS = 1e9, 8, 4  # parameters, ranks of a group, groups
RANKS = MEMBERS * GROUPS
DEGREES = {Axis.SHARD: MEMBERS, Axis.REPLICATE: GROUPS, Axis.DATA: RANKS}
INSIDE, ACROSS, FLAT = (Axis.SHARD,), (Axis.REPLICATE,), (Axis.SHARD, Axis.REPLICATE)
DIVIDED = {"N": 1, "I": MEMBERS, "G": RANKS}


def share(ranks: int) -> float:
    return (ranks - 1) / ranks


def gather_bytes(size: float, coarse: str, fine: str) -> dict[tuple[Axis, ...], float]:
    """Sent per rank to gather a tensor from a finer level to a coarser one; a reduce-scatter back sends as much."""
    return {
        ("N", "I"): {INSIDE: share(MEMBERS) * size},
        ("N", "G"): {FLAT: share(RANKS) * size},
        ("I", "G"): {ACROSS: share(GROUPS) * size / MEMBERS},
    }.get((coarse, fine), {})


def expected_bytes(triple: str, trained: float) -> dict[tuple[str, tuple[Axis, ...]], float]:
    """systems_training.md, section 2: t_param, t_gradient, t_sync_g and t_sync_p of one micro-batch and one step."""
    p, g, o = triple
    found: dict[tuple[str, tuple[Axis, ...]], float] = defaultdict(float)

    def pay(name: str, of: dict[tuple[Axis, ...], float], times: int = 1) -> None:
        for axes, size in of.items():
            found[name, axes] += times * size

    pay("param", gather_bytes(2 * PSI, "N", p), 2)  # forward and backward
    pay("gradient", gather_bytes(2 * trained, "N", g))
    sums = {
        "NN": {FLAT: 2 * share(RANKS) * 2 * trained},
        "NI": {INSIDE: share(MEMBERS) * 2 * trained, ACROSS: 2 * share(GROUPS) * 2 * trained / MEMBERS},
        "NG": gather_bytes(2 * trained, "N", "G"),
        "II": {ACROSS: 2 * share(GROUPS) * 2 * trained / MEMBERS},
        "IG": gather_bytes(2 * trained, "I", "G"),
        # coarser optimizers than gradients: what was summed in parts is gathered to where it is consumed
        "IN": {ACROSS: 2 * share(GROUPS) * 2 * trained / MEMBERS, INSIDE: share(MEMBERS) * 2 * trained},
        "GI": gather_bytes(2 * trained, "I", "G"),
        "GN": gather_bytes(2 * trained, "N", "G"),
    }
    pay("sync_g", sums.get(g + o, {}))
    if "NIG".index(o) > "NIG".index(p):
        pay("sync_p", gather_bytes(2 * trained, p, o))
    return dict(found)


def derived_bytes(triple: str, trained: float) -> dict[tuple[str, tuple[Axis, ...]], float]:
    placement = paro.placement(triple)
    found: dict[tuple[str, tuple[Axis, ...]], float] = defaultdict(float)
    for one in communications(placement, PSI, DEGREES):
        if one.state is State.PARAMETERS and one.phase != "update":
            found["param", one.axes] += one.sent_bytes_per_step
    for one in communications(placement, trained, DEGREES):
        late = one.phase == "update"
        if one.state is State.GRADIENTS or late:
            name = {State.GRADIENTS: "sync_g" if late else "gradient", State.PARAMETERS: "sync_p"}[one.state]
            found[name, one.axes] += one.sent_bytes_per_step
    return dict(found)


@pytest.mark.parametrize("trainable", [1.0, 1 / 16, 3 / 1000])
@pytest.mark.parametrize("triple", paro.TRIPLES)
def test_traffic_of_all_27_triples_is_the_papers(triple: str, trainable: float) -> None:
    trained = PSI * trainable
    assert derived_bytes(triple, trained) == pytest.approx(expected_bytes(triple, trained))


@pytest.mark.parametrize("trainable", [1.0, 1 / 16, 3 / 1000])
@pytest.mark.parametrize("triple", paro.TRIPLES)
def test_memory_of_all_27_triples_is_the_papers(triple: str, trainable: float) -> None:
    p, g, o = triple
    placement = paro.placement(triple)
    held = [resident_bytes(placement, count, DEGREES) for count in (PSI, PSI * trainable)]
    total = held[0][State.PARAMETERS] + held[1][State.GRADIENTS] + held[1][State.OPTIMIZER]
    frozen = 2 * PSI / DIVIDED[p]
    assert total == pytest.approx(frozen + PSI * trainable * (2 / DIVIDED[g] + 12 / DIVIDED[o]))


KNOWN = [("GGG", "zero-3"), ("NNG", "zero-1"), ("NGG", "zero-2"), ("III", "mics")]


@pytest.mark.parametrize(("triple", "known"), KNOWN)
def test_known_points_cost_what_their_strategies_cost(triple: str, known: str) -> None:
    """Also in seconds: the same groups on the same links."""
    cluster = Cluster(catalog.node("hgx-a100"), 4, 32)
    sizes = []
    for name in (f"paro-{triple.lower()}", known):
        plan = Plan(data=32, sharding=name, shard_group=8, state_bytes="mixed")
        chunk = chunks_with_traffic(Setting(catalog_model("llama-2-7b"), plan, cluster, Stack(), 2048))[0]
        sizes.append([vars(flow) for flow in chunk.traffic])
    assert sizes[0] == sizes[1]


def test_every_triple_has_a_name_and_the_rule_is_one() -> None:
    named = [name for name in strategies.data_names() if name.startswith("paro-")]
    assert len(named) == len(set(named)) == 27
    with pytest.raises(PlacementError, match="no triple"):
        paro.placement("NIX")


def test_finer_parameters_than_gradients_are_worth_trying_only_where_little_is_trained() -> None:
    assert {"GGG", "III", "NIG", "IIG", "IGG"} <= set(paro.worth_trying())
    assert "ING" not in paro.worth_trying()
    assert "ING" in paro.worth_trying(3 / 1000)
    assert "few weights" in paro.placement("ING").source
    assert set(paro.worth_trying()) < set(paro.worth_trying(1 / 16)) < set(paro.TRIPLES)


@pytest.mark.parametrize("dropped", sorted(set(paro.TRIPLES) - set(paro.worth_trying())))
def test_what_is_pruned_holds_more_than_the_fully_sorted_triple_that_sends_no_more(dropped: str) -> None:
    """For a fully trained model another triple takes no more memory and no more bytes across groups."""
    def price(triple: str) -> tuple[float, float]:
        held = sum(resident_bytes(paro.placement(triple), PSI, DEGREES).values())
        sent = sum(size for (_, axes), size in expected_bytes(triple, PSI).items() if axes != INSIDE)
        return held, sent
    mine = price(dropped)
    assert any(all(a <= b * (1 + 1e-12) for a, b in zip(price(one), mine, strict=True)) for one in paro.worth_trying())


def test_broadcasts_over_groups_of_any_size() -> None:
    members = np.array([1, 2, 8, 32])
    plan = Plan(data=32, sharding="paro-nig", shard_group=members)
    cluster = Cluster(catalog.node("hgx-a100"), 4, 32)
    model = catalog_model("llama-2-7b")
    def seconds(of: Plan) -> Number:
        return sum(f.step_reduce_s + f.step_gather_s + f.backward_reduce_s
                   for f in chunks_with_traffic(Setting(model, of, cluster, Stack(), 2048))[0].traffic)
    each = [seconds(replace(plan, shard_group=int(one))) for one in members]
    assert seconds(plan) == pytest.approx(each)


def test_a_triple_composes_with_tensor_parallelism() -> None:
    both = composition.compose("paro-iig", "tensor")
    assert both.sharded_axes(State.OPTIMIZER) == (Axis.TENSOR, Axis.SHARD, Axis.REPLICATE)
    assert both.state_bytes == state_bytes("mixed")
