"""Prices of unequal sequences: equal to those of equal ones where they are equal, conserved over policies, and the
laws that make a static mesh lose with its context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from costmodel import catalog
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from costmodel.stack import Stack
from costmodel.techniques.compact import CompAct
from placement import hybrid_data
from placement.context_groups import POLICIES, MicroBatch
from placement.hybrid_data import cut, cuts, rank_seconds, stage_costs
from placement.hybrid_step import hybrid_step, peak_activations, step_times_s, turns_s
from placement.memory import host_capacity_bytes
from placement.passes import Setting, layer_price
from placement.plan import Plan, PlanError
from placement.sequences import drawn, fitted
from placement.step import analytic_step

K = 1024
STACK = Stack(execution="fused", attention="flash-2", overlap=("pipeline",))


def setting_of(sequence: int, nodes: int = 2, **plan: object) -> Setting:
    cluster = Cluster(catalog.node("hgx-a100"), nodes, 8 * nodes)
    degrees = {"context": 1, "tensor": 1, "pipeline": 1, **plan}
    data = 8 * nodes // int(np.prod([degrees[name] for name in ("context", "tensor", "pipeline")]))
    chosen = Plan(data=data, context_method="ring", **degrees)  # type: ignore[arg-type]
    return Setting(catalog_model("llama-3.1-8b"), chosen, cluster, STACK, sequence)


def mixed(tokens: int, longest: int, seed: int = 0) -> tuple[int, ...]:
    return drawn(fitted("log-normal", 0.3, longest / 8, 64, longest, 1500), tokens, longest, seed)


@pytest.mark.parametrize("recompute", ["none", "selective", "full", "pointwise"])
def test_a_layer_of_one_sequence_on_one_rank_costs_what_any_layer_costs(recompute: str) -> None:
    setting = setting_of(8 * K, recompute=recompute)
    layer = setting.model.layers[0]
    forward, backward, ring_s = hybrid_data.layer_cost(setting, layer, [MicroBatch((8 * K,), 1)], np.array([False]))
    price = layer_price(setting, layer)
    for found, expected in ((forward, price.forward), (backward, price.backward)):
        for name in {*found, *expected}:
            assert float(np.sum(found.get(name, 0.0))) == pytest.approx(float(expected.get(name, 0.0)), rel=1e-12), name
    assert ring_s.tolist() == [0.0]


@pytest.mark.parametrize("name", POLICIES)
def test_sequences_of_a_ranks_capacity_make_the_ordinary_step(name: str) -> None:
    setting = setting_of(8 * K)
    found = hybrid_step(setting, cut(setting, [8 * K] * 48, name, offload=True))
    plain = analytic_step(setting, 48)
    assert found.step_time_s == pytest.approx(plain.step_time_s, rel=1e-9)
    for category in ("gemm", "attention", "memory_bound", "optimizer"):
        assert found.breakdown_s[category] == pytest.approx(plain.breakdown_s[category], rel=1e-9)
    assert found.peak_bytes == pytest.approx(plain.peak_bytes, rel=1e-9)


@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("name", POLICIES)
def test_batches_priced_together_take_what_each_takes(name: str, pipeline: int) -> None:
    setting = setting_of(64 * K, nodes=4, context=8, pipeline=pipeline)
    batches = [mixed(2**20, 64 * K, seed) for seed in range(3)]
    together = step_times_s(setting, cuts(setting, batches, name, offload=True))
    alone = [hybrid_step(setting, cut(setting, one, name, offload=True)).step_time_s for one in batches]
    assert together == pytest.approx(alone, rel=1e-12)
    assert len(set(together)) == len(batches)


def test_a_pipeline_of_equal_sequences_has_the_bubble_of_1f1b() -> None:
    """m + p - 1 turns of the slowest stage and p - 1 ramps of the others, without hops."""
    setting = setting_of(8 * K, pipeline=4)
    of = cut(setting, [8 * K] * 24, "static", offload=False)
    hopless = replace(setting, cluster=replace(setting.cluster, node=replace(
        setting.cluster.node, **{link: replace(getattr(setting.cluster.node, link), bandwidth_bytes_per_s=1e30)
                                 for link in ("scale_up", "scale_out")})))
    per_stage = [float(cost.forward_s[0] + cost.backward_s[0]) for cost in of.costs]
    count = 24 // 4
    law_s = (count - 1) * max(per_stage) + sum(per_stage)
    hops_s = turns_s(setting, of)
    assert turns_s(hopless, of) <= hops_s
    assert turns_s(hopless, of) == pytest.approx(law_s, rel=2e-2)  # the last stage, with the head, sets the pace
    plain = analytic_step(setting, 24)
    assert hybrid_step(setting, of).peak_bytes == pytest.approx(plain.peak_bytes, rel=1e-9)


@pytest.mark.parametrize("offload", [False, True])
def test_attention_is_conserved_over_policies(offload: bool) -> None:
    """Every causal pair is scored once, on whatever rank: FLOPs of attention over all ranks are the same."""
    setting = setting_of(256 * K, nodes=4, context=16)
    lengths = mixed(2**21, 256 * K)
    flops = []
    for name in POLICIES:
        seconds = rank_seconds(cut(setting, lengths, name, offload), 0)
        flops.append(float(seconds["attention"].sum()))
    assert flops == pytest.approx([flops[0]] * len(flops), rel=1e-9)


def test_tokens_are_conserved_over_ranks() -> None:
    setting = setting_of(256 * K, nodes=4, context=16)
    lengths = mixed(2**21, 256 * K)
    for name in POLICIES:
        of = cut(setting, lengths, name, False)
        found = [(len(one.ranks), of.micro_batches[one.micro_batch]) for one in of.placed]
        tokens = sum(ranks * micro_batch.tokens / micro_batch.degree for ranks, micro_batch in found)
        assert tokens == pytest.approx(2**21, rel=1e-12)


def test_short_sequences_on_a_static_mesh_lose_half_with_each_doubling_of_the_context() -> None:
    """Their attention hides nothing, so a ring of twice the ranks sends twice: bare sends a token double."""
    bare, dynamic = [], []
    for context in (8, 16, 32):
        setting = setting_of(8 * K * context, nodes=16, context=context)
        lengths = [512] * (2**22 // 512)
        static = hybrid_step(setting, cut(setting, lengths, "static", False))
        bare.append(static.breakdown_s["context_communication"])
        dynamic.append(hybrid_step(setting, cut(setting, lengths, "dp-balance", False)).step_time_s)
    # (2c - 1) / (c - 1) sends, over networks alike from two nodes on; attention of 512 tokens hides next to nothing
    assert bare[2] / bare[1] == pytest.approx(31 / 15, rel=0.01)
    assert bare[1] > bare[0]
    assert dynamic == pytest.approx([dynamic[0]] * 3, rel=1e-9)


def test_one_ring_step_takes_the_longer_of_attention_and_send() -> None:
    setting = setting_of(512 * K, nodes=8, context=64)
    layer = setting.model.layers[0]
    micro_batches = [MicroBatch((512 * K,), 64), MicroBatch((512,) * 1024, 64)]
    forward, _, around_s = hybrid_data.layer_cost(setting, layer, micro_batches, np.array([True, True]))
    once_s = around_s / 3
    taken = forward["attention"] + forward["context_communication"]
    assert taken == pytest.approx(np.maximum(forward["attention"], once_s))
    assert forward["context_communication"][0] == 0.0
    assert forward["context_communication"][1] > 0.9 * once_s[1]


def test_balance_lowers_the_step_and_the_spread_of_work() -> None:
    setting = setting_of(256 * K, nodes=4, context=32)
    lengths = mixed(2**22, 256 * K, seed=3)
    found = {name: hybrid_step(setting, cut(setting, lengths, name, False)) for name in POLICIES}
    assert found["dp-balance"].step_time_s < found["naive"].step_time_s
    assert found["dp-balance"].breakdown_s["imbalance"] < found["naive"].breakdown_s["imbalance"]
    for step in found.values():
        assert sum(step.breakdown_s.values()) == pytest.approx(step.step_time_s, rel=1e-12)
        assert min(step.breakdown_s.values()) >= 0


@pytest.mark.parametrize("techniques", [(), (CompAct(0.1),)])
def test_what_is_on_the_host_is_missing_on_the_device(techniques: tuple[CompAct, ...]) -> None:
    """All but two layers offloaded whole: these two are left of a stage without ends, whatever a technique keeps."""
    setting = setting_of(64 * K, pipeline=4, techniques=techniques)
    lengths = (64 * K,)
    away, here = (stage_costs(setting, [MicroBatch(lengths, 1, share)], np.array([False]))[1] for share in (1.0, 0.0))
    layers = len(setting.model.layers) // 4
    assert away.held_bytes / here.held_bytes == pytest.approx(2 / layers)
    assert away.held_bytes + away.host_bytes == pytest.approx(here.held_bytes)


def test_offloading_takes_fewer_ranks_and_lays_activations_on_the_host() -> None:
    setting = setting_of(512 * K, nodes=8, context=64)
    lengths = mixed(2**23, 512 * K, seed=1)
    plain, saved = (cut(setting, lengths, "dp-balance", offload) for offload in (False, True))
    assert sum(one.degree for one in saved.micro_batches) < sum(one.degree for one in plain.micro_batches)
    device, host = peak_activations(saved, 0)
    assert host.max() > 0
    assert not peak_activations(plain, 0)[1].any()
    assert host.max() <= host_capacity_bytes(setting.cluster) * (1 + 1e-9)
    # of the layers no rank holds more than its capacity of tokens; logits of all its tokens come on top
    layers = len(setting.model.layers)
    size = hybrid_data._layer_bytes(setting, np.array([8.0 * K]), setting.model.layers[0])[0]
    head = np.array([one.tokens / one.degree for one in saved.micro_batches]) * (6.0 * setting.model.vocabulary
                                                                                + 4.0 * setting.model.hidden)
    assert device.max() <= layers * size * (1 + 1e-9) + head.max()
    # copies hide, so a forward pass is none the longer
    assert saved.costs[0].forward["offload"].max() == pytest.approx(0.0, abs=1e-9)


def test_waits_of_a_pipeline_come_back_at_every_stage() -> None:
    """One long micro-batch among short ones: with p stages, the step grows by about p of its passes, not by one."""
    grown = []
    for pipeline in (1, 4):
        setting = setting_of(64 * K, nodes=4, pipeline=pipeline, context=1)
        ranks = 32 // pipeline
        short = [4 * K] * (16 * 16 * ranks)
        times = [hybrid_step(setting, cut(setting, lengths, "naive", False)).step_time_s
                 for lengths in (short, [64 * K, *short])]
        grown.append((times[1] - times[0]) * pipeline)  # a stage has a p-th of the layers
    assert grown[1] > 2.5 * grown[0]


@pytest.mark.parametrize(("change", "told"), [
    ({"context_method": "all-gather"}, "context_method"), ({"schedule": "gpipe"}, "schedule"),
    ({"micro_batch": 2}, "micro_batch"), ({"virtual": 2}, "virtual"), ({"offload_chunks": 1}, "offload_chunks"),
    ({"sharding": "fsdp"}, "sharding"),
])
def test_plans_that_such_a_step_is_not_played_with_are_refused(change: dict[str, object], told: str) -> None:
    setting = setting_of(8 * K)
    changed = replace(setting, plan=replace(setting.plan, **change))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=told):
        hybrid_step(changed, cut(changed, [8 * K] * 16, "static", False))


def test_stages_share_the_layers() -> None:
    whole, parts = setting_of(8 * K), setting_of(8 * K, pipeline=4)
    micro_batches = [MicroBatch((3 * K, 5 * K), 1), MicroBatch((200,), 1)]
    crosses = np.array([False, False])
    one, four = stage_costs(whole, micro_batches, crosses), stage_costs(parts, micro_batches, crosses)
    assert sum(cost.forward_s for cost in four) == pytest.approx(one[0].forward_s, rel=1e-9)
    assert sum(cost.held_bytes for cost in four) == pytest.approx(one[0].held_bytes, rel=1e-9)
