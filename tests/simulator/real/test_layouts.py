"""Plans laid out on real ranks: every layout learns what one process learns; what torch cannot do is refused.

One spawn for each number of ranks. AdamW with a large epsilon steps in proportion to the gradient, so that a gradient
that is wrong by a factor shows in the next losses.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from costmodel.architecture import Attention, FeedForward, Layer, Model
from placement.plan import Plan
from simulator.real.layouts import layers_of_stages, place_of, stages_of, unsupported

ATTENTION = Attention("gqa", heads=4, kv_heads=2, head_dim=16, value_head_dim=16)
DENSE = Model("dense", 64, 256, (Layer(ATTENTION, FeedForward(96, gated=True)),) * 4, tied_embeddings=False)
EXPERTS = replace(DENSE, layers=(Layer(ATTENTION, FeedForward(
    48, gated=True, experts=4, experts_per_token=2)),) * 2)

ONE = {"dense": (DENSE, {}), "experts": (EXPERTS, {})}
TWO: dict[str, tuple[Model, dict[str, Any]]] = {
    "ddp": (DENSE, {"data": 2, "sharding": "ddp"}),
    "fsdp": (DENSE, {"data": 2, "sharding": "fsdp", "recompute": "full"}),
    "fsdp-no-reshard": (DENSE, {"data": 2, "sharding": "fsdp-no-reshard"}),
    "tensor": (DENSE, {"tensor": 2}),
    "sequence": (DENSE, {"tensor": 2, "sequence_parallel": True}),
    "gpipe": (DENSE, {"pipeline": 2, "schedule": "gpipe"}),
    "1f1b": (DENSE, {"pipeline": 2, "schedule": "1f1b"}),
    "interleaved": (DENSE, {"pipeline": 2, "virtual": 2, "schedule": "interleaved-1f1b"}),
    "breadth first": (DENSE, {"pipeline": 2, "virtual": 2, "schedule": "interleaved-bfs"}),
    "zbv": (DENSE, {"pipeline": 2, "virtual": 2, "schedule": "zbv"}),
    "dualpipe-v": (DENSE, {"pipeline": 2, "virtual": 2, "schedule": "dualpipe-v"}),
    "experts": (EXPERTS, {"data": 2, "expert": 2, "sharding": "ddp"}),
}
FOUR: dict[str, tuple[Model, dict[str, Any]]] = {
    "interleaved x ddp": (DENSE, {"pipeline": 2, "virtual": 2, "data": 2, "schedule": "interleaved-1f1b",
                                  "sharding": "ddp"}),
    "1f1b x fsdp": (DENSE, {"pipeline": 2, "data": 2, "schedule": "1f1b", "sharding": "fsdp"}),
    "tensor x fsdp": (DENSE, {"tensor": 2, "data": 2, "sharding": "fsdp"}),
    "sequence x fsdp": (DENSE, {"tensor": 2, "data": 2, "sharding": "fsdp", "sequence_parallel": True}),
    "tensor x 1f1b": (DENSE, {"tensor": 2, "pipeline": 2, "schedule": "1f1b"}),
    "hybrid": (DENSE, {"data": 4, "sharding": "hsdp", "shard_group": 2}),
    "experts": (EXPERTS, {"data": 4, "expert": 2, "sharding": "ddp"}),
}


def run(cases: dict[str, tuple[Model, dict[str, Any]]], ranks: int, **more: dict[str, bool]) -> dict[str, list[Any]]:
    """The documents of all ranks by case, in one spawn."""
    from costmodel.calibration.ranks import launch

    jobs = [{"model": asdict(model), "plan": {"precision": "fp32", "micro_batch": 1 if ranks == 4 else 2, **plan},
             "sequence": 16, "global_batch": 8, "warmup": 1, "steps": 2, "seed": 3, "adam": {"lr": 1.0, "eps": 0.1},
             **more.get(name, {})} for name, (model, plan) in cases.items()]
    results = launch("simulator.real.worker", {"device": "cpu", "jobs": jobs}, ranks, timeout_s=300)
    return {name: [rank[index] for rank in results] for index, name in enumerate(cases)}


def losses(documents: list[Any]) -> list[float]:
    """Of all steps, which every rank that has them must tell alike."""
    told = [one["warmup_losses"] + [step["loss"] for step in one["steps"]] for one in documents]
    told = [each for each in told if None not in each]
    assert all(each == told[0] for each in told)
    return told[0]


@pytest.fixture(scope="module")
def one() -> dict[str, list[Any]]:
    pytest.importorskip("torch")
    return run(ONE, 1)


@pytest.fixture(scope="module")
def two(one: Any) -> dict[str, list[Any]]:
    return run(TWO, 2, ddp={"memory": True}, fsdp={"memory": True, "checkpoint": True})


@pytest.fixture(scope="module")
def four(one: Any) -> dict[str, list[Any]]:
    return run(FOUR, 4)


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_lose_what_one_process_loses(name: str, one: Any, two: Any) -> None:
    kind = "experts" if TWO[name][0] is EXPERTS else "dense"
    assert losses(two[name]) == pytest.approx(losses(one[kind]), rel=2e-5)


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_lose_what_one_process_loses(name: str, one: Any, four: Any) -> None:
    kind = "experts" if FOUR[name][0] is EXPERTS else "dense"
    assert losses(four[name]) == pytest.approx(losses(one[kind]), rel=2e-5)


def test_losses_move_far_enough_for_a_wrong_gradient_to_show(one: Any) -> None:
    for name in ONE:
        first, *_, last = losses(one[name])
        assert abs(last / first - 1) > 1e-3


def test_every_pass_is_timed_once_a_micro_batch(one: Any, two: Any) -> None:
    assert kinds(one["dense"][0]) == {("F", 0): 4, ("B", 0): 4, ("optimizer", 0): 1}
    for document in two["zbv"]:
        found = kinds(document)
        assert found[("F", 0)] == found[("F", 1)] == 4
        assert found[("B", 0)] == found[("B", 1)] == 4
        assert sum(count for (kind, _), count in found.items() if kind == "W") > 0
    for document in two["1f1b"]:
        for one_pass in document["passes"]:
            assert one_pass["wall_s"] >= 0
            assert one_pass["start_s"] >= 0


def kinds(document: Any) -> dict[tuple[str, int], int]:
    """Passes of the first step by kind and chunk."""
    found: dict[tuple[str, int], int] = {}
    for one_pass in document["passes"]:
        if one_pass["step"] == 0:
            key = one_pass["kind"], one_pass["chunk"]
            found[key] = found.get(key, 0) + 1
    return found


def test_sharding_halves_the_states_and_a_checkpoint_holds_them_once(two: Any) -> None:
    whole, sharded = (two[name][0]["peak_memory_bytes"] for name in ("ddp", "fsdp"))
    assert sharded["optimizer"] == pytest.approx(whole["optimizer"] / 2, rel=0.01)
    for document in two["fsdp"]:
        saved = document["checkpoint"]
        assert saved["finish_s"] >= saved["stall_s"] > 0
        # parameters and two moments, 4 bytes each, once; the rest is torch's headers
        states = whole["parameters"] + whole["optimizer"]
        assert states * 0.98 < saved["size_bytes"] < states * 1.5


@pytest.mark.parametrize(("plan", "said"), [
    (Plan(context=2), "plan.context 2"),
    (Plan(data=2), "plan.sharding zero-1: torch has ddp, fsdp"),
    (Plan(pipeline=2, schedule="zb-h1"), "plan.schedule zb-h1: torch has gpipe, 1f1b"),
    (Plan(pipeline=2, virtual=2, schedule="1f1b"), "one chunk a rank"),
    (Plan(pipeline=2, virtual=2, schedule="zbv", data=2, sharding="fsdp"), "use data 1"),
    (Plan(tensor=2, data=2, sharding="ddp"), "torch's DDP takes no DTensor"),
    (Plan(tensor=8), "plan.tensor 8 does not divide the heads 4 and 2"),
    (Plan(recompute="selective"), "real runs have none and full"),
    (Plan(precision="fp8"), "plan.precision fp8"),
    (Plan(data=4, sharding="hsdp", shard_group=3), "divides data 4"),
    (Plan(trainable="lora"), "plan.trainable"),
])
def test_what_torch_cannot_lay_out_is_refused_by_its_key(plan: Plan, said: str) -> None:
    assert any(said in line for line in unsupported(DENSE, plan))


def test_what_is_run_here_is_not_refused() -> None:
    for model, plan in (*ONE.values(), *TWO.values(), *FOUR.values()):
        assert unsupported(model, Plan(**{"precision": "fp32", **plan})) == []


def test_ranks_and_stages_stand_where_the_plan_has_them() -> None:
    plan = Plan(tensor=2, data=3, pipeline=2, virtual=2, schedule="interleaved-1f1b")
    places = [place_of(rank, plan) for rank in range(12)]
    assert len(set(places)) == 12
    assert [place.pipeline for place in places] == [0] * 6 + [1] * 6
    for schedule in ("interleaved-1f1b", "zbv"):
        held = [stage for rank in range(2) for stage in stages_of(rank, replace(plan, schedule=schedule))]
        assert sorted(held) == [0, 1, 2, 3]
    assert layers_of_stages(DENSE, plan) == [(0, 1), (1, 2), (2, 3), (3, 4)]
