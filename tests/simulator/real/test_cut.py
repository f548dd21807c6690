"""Shapes of a rank stay what they were: the operators of a shard before and after the cut are compared one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from costmodel import catalog, constants, huggingface
from costmodel.architecture import Model
from costmodel.hardware import Cluster
from costmodel.operators import Shard, head_operators, layer_operators
from placement.plan import Plan, layers_of_chunks, micro_batches
from simulator.inputs import TrainingInputs
from simulator.real.cut import CutError, Machine, cut

NODE = catalog.node("hgx-h100")
FREE = lambda inputs: (0.0, 0.0)  # noqa: E731 (nothing costs anything)


def machine(ranks: int, **changes: Any) -> Machine:
    return replace(Machine(NODE, "cpu", ranks, 2, 1e12, 10.0), **changes)


def inputs(model: Model, sequence: int, global_batch: int, **plan: Any) -> TrainingInputs:
    made = Plan(**plan)
    return TrainingInputs("a", "", "a.yaml", {}, model, Cluster(NODE, 4096, int(made.gpus)), made, sequence,
                          global_batch)


def shard(one: TrainingInputs) -> Shard:
    plan = one.plan
    return Shard(plan.micro_batch, one.sequence, plan.tensor, plan.sequence_parallel, plan.context, plan.expert,
                 plan.expert_tensor)


def operators(one: TrainingInputs) -> list[Any]:
    mine = shard(one)
    return [*layer_operators(one.model, one.model.layers[-1], mine), *head_operators(one.model, mine)]


def llama() -> Model:
    return huggingface.from_config(huggingface.catalog_config("llama-3.1-405b"), "llama-3.1-405b")


def mixtral() -> Model:
    config = {"model_type": "mixtral", "num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8,
              "num_key_value_heads": 8, "intermediate_size": 1024, "num_local_experts": 16, "num_experts_per_tok": 2,
              "vocab_size": 4096, "tie_word_embeddings": False}
    return huggingface.from_config(config, "mixtral")


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_shapes_of_a_rank_are_kept(ranks: int) -> None:
    before = inputs(llama(), 8192, 2048, tensor=8, pipeline=14, data=16, schedule="1f1b")
    found = cut(before, machine(ranks), FREE)
    after = found.inputs
    assert int(after.plan.gpus) <= ranks
    for was, now in zip(operators(before), operators(after), strict=True):
        assert (was.name, was.m, was.n, was.k) == (now.name, now.m, now.n, now.k)
        assert was.forward_flops == pytest.approx(now.forward_flops, rel=1e-12)
        assert was.forward_bytes == pytest.approx(now.forward_bytes, rel=1e-12)
    assert micro_batches(after.plan, after.global_batch) == micro_batches(before.plan, before.global_batch)
    assert set(layers_of_chunks(len(after.model.layers), after.plan)) == {126 // 14}


def test_two_data_and_two_pipeline_ranks_stay_as_long_as_tensor_ranks_can_go() -> None:
    after = cut(inputs(llama(), 8192, 2048, tensor=8, pipeline=14, data=16), machine(4), FREE).inputs.plan
    assert (after.data, after.tensor, after.pipeline) == (2, 1, 2)


def test_more_ranks_than_a_plan_needs_change_nothing_but_the_numbers() -> None:
    before = inputs(llama(), 8192, 8, tensor=2, data=2, precision="fp32", state_bytes="fp32")
    found = cut(before, machine(16), FREE)
    assert found.inputs.plan == before.plan
    assert found.inputs.model == before.model
    assert found.inputs.global_batch == before.global_batch


def test_experts_of_a_rank_and_their_rows_are_kept() -> None:
    before = inputs(mixtral(), 256, 64, data=8, expert=8, micro_batch=2)
    after = cut(before, machine(2), FREE).inputs
    assert (after.plan.data, after.plan.expert) == (2, 2)
    assert after.model.layers[0].feed_forward.experts == 4  # 16 experts on 8 ranks: two each
    up = {one.name: one for one in operators(after)}["experts_up"]
    was = {one.name: one for one in operators(before)}["experts_up"]
    assert (up.groups, up.n, up.k) == (was.groups, was.n, was.k)
    assert up.m == was.m


def test_every_difference_is_said() -> None:
    before = inputs(llama(), 8192, 2048, tensor=8, pipeline=14, data=16)
    found = cut(before, machine(2), FREE)
    said = {change.key: (change.before, change.after) for change in found.changes}
    for key, was, now in (
        ("plan.data", before.plan.data, found.inputs.plan.data),
        ("plan.tensor", before.plan.tensor, found.inputs.plan.tensor),
        ("plan.pipeline", before.plan.pipeline, found.inputs.plan.pipeline),
        ("model.layers", len(before.model.layers), len(found.inputs.model.layers)),
        ("model.vocabulary", before.model.vocabulary, found.inputs.model.vocabulary),
        ("workload.global_batch", before.global_batch, found.inputs.global_batch),
        ("plan.precision", before.plan.precision, found.inputs.plan.precision),
    ):
        assert said.get(key, (str(was), str(was))) == (str(was), str(now)), key
    assert all(change.why for change in found.changes)


def test_a_budget_takes_layers_first_and_ends_within_it() -> None:
    def price(one: TrainingInputs) -> tuple[float, float]:
        return len(one.model.layers) * one.global_batch * one.sequence * 1e-4, 0.0

    before = inputs(llama(), 2048, 64, micro_batch=2)
    after = cut(before, machine(1), price).inputs
    assert price(after)[0] <= 10.0
    assert len(after.model.layers) == 1
    assert after.global_batch < 64
    assert after.sequence == 2048
    few = cut(before, machine(1, budget_s=1000.0), price).inputs
    assert 1 < len(few.model.layers) < 126
    assert few.global_batch == 64


def test_what_cannot_be_made_small_enough_is_refused_with_its_size() -> None:
    with pytest.raises(CutError, match=r"500\.0 GB of this machine's 1\.0 GB"):
        cut(inputs(llama(), 2048, 8), machine(1, memory_bytes=1e9), lambda _: (0.0, 5e11))


def test_constants_are_those_of_the_machine() -> None:
    given = inputs(llama(), 128, 4, data=2, sharding="fsdp", micro_batch=1)
    given = replace(given, constants=replace(constants.default(), other=1.55))
    found = cut(given, machine(2), lambda one: (0.0, 0.0)).inputs
    assert found.constants == constants.of(machine(2).node.accelerator)
