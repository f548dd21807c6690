"""Unequal sequences as events: the same step as the closed form, memory and time by cause found by playing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from costmodel import catalog
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from placement.context_groups import POLICIES
from placement.hybrid_data import rank_seconds
from placement.plan import Plan
from placement.sequences import Empirical, fitted
from simulator.engine import dynamic
from simulator.hybrid_data import flops_per_token, hybrid, lengths_of
from simulator.inputs import TrainingInputs
from simulator.predict import play, predict_training, setting_of

K = 1024
STACK = {"execution": "fused", "attention": "flash-2", "overlap": ["data"]}


def inputs_of(policy: str = "dp-balance", seed: int = 0, **plan: object) -> TrainingInputs:
    cluster = Cluster(catalog.node("hgx-a100"), 4, 32)
    degrees = {"context": 8, "pipeline": 1, "tensor": 1, **plan}
    data = 32 // (degrees["context"] * degrees["pipeline"] * degrees["tensor"])  # type: ignore[operator]
    chosen = Plan(data=data, context_method="ring", context_groups=policy, **degrees)  # type: ignore[arg-type]
    law = fitted("log-normal", 0.3, 16 * K, 64, 64 * K, 1500)
    return TrainingInputs("test", "", "", {}, catalog_model("llama-3.2-3b"), cluster, chosen, 64 * K, 32, law,
                          stack=STACK, seed=seed)


PLANS = [{}, {"selective_offload": True}, {"pipeline": 4, "context": 4}, {"pipeline": 2, "recompute": "full"},
         {"tensor": 2, "context": 4}]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("plan", PLANS)
def test_both_fidelities_agree(policy: str, plan: dict[str, object]) -> None:
    inputs = inputs_of(policy, seed=len(plan), **plan)
    played, closed = play(inputs).step, play(replace(inputs, fidelity="analytic")).step
    assert played.step_time_s == pytest.approx(closed.step_time_s, rel=1e-12)
    assert played.breakdown_s == pytest.approx(closed.breakdown_s, rel=1e-9)
    assert played.peak_bytes == closed.peak_bytes


@pytest.mark.parametrize("policy", ["naive", "pp-balance"])
def test_the_other_player_finds_the_same_times(policy: str) -> None:
    inputs = inputs_of(policy, pipeline=2, context=4)
    found = hybrid(inputs, setting_of(inputs))
    assert found.lowered is not None
    assert dynamic.play(found.lowered.program).makespan_s == pytest.approx(found.step.step_time_s, rel=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_time_by_cause_is_what_the_timeline_finds_on_the_mean_rank(policy: str) -> None:
    """The timeline charges gaps by walking back through the program; the step's own sums know nothing of it."""
    inputs = inputs_of(policy)
    found = hybrid(inputs, setting_of(inputs))
    assert found.timeline is not None
    walked = found.timeline.mean_breakdown()
    walked["imbalance"] = walked.pop("bubble", 0.0)
    for category, seconds in found.step.breakdown_s.items():
        assert walked[category] == pytest.approx(seconds, rel=1e-9, abs=1e-12), category


@pytest.mark.parametrize("plan", PLANS)
def test_memory_played_is_that_of_the_closed_form(plan: dict[str, object]) -> None:
    inputs = inputs_of("naive", **plan)
    found = hybrid(inputs, setting_of(inputs))
    assert found.timeline is not None
    for stage, peak_bytes in enumerate(found.step.peak_bytes):
        seen = found.timeline.peak(stage, "hbm")[0]
        assert seen <= peak_bytes * (1 + 1e-12)
        if "recompute" not in plan:
            assert seen == pytest.approx(peak_bytes, rel=1e-12)


def test_work_of_a_rank_is_what_its_stream_runs() -> None:
    inputs = inputs_of("dp-balance")
    found = hybrid(inputs, setting_of(inputs))
    assert found.timeline is not None
    busy = sorted(found.timeline.busy_s(found.timeline.compute_stream(rank)) for rank in range(32))
    seconds = rank_seconds(found.of, 0)
    once_s = busy[0] - sorted(sum(seconds.values()).tolist())[0]  # type: ignore[union-attr]
    assert [one - once_s for one in busy] == pytest.approx(sorted(sum(seconds.values()).tolist()))  # type: ignore[union-attr]


def test_the_seed_decides_and_the_same_seed_gives_the_same_document() -> None:
    first, again, other = (predict_training(inputs_of(seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["step_time_s"] != other["step_time_s"]


def test_model_flops_are_of_the_lengths_drawn() -> None:
    equal = replace(inputs_of(), lengths=None, sequence=4096, global_batch=8)
    alike = replace(equal, lengths=Empirical((4096.0,)))
    assert flops_per_token(alike) == pytest.approx(flops_per_token(equal), rel=1e-12)
    assert lengths_of(alike) == lengths_of(equal)
    halves = replace(equal, lengths=Empirical((2048.0,)))
    assert flops_per_token(halves) < flops_per_token(equal)


def test_the_document_says_how_unequal_the_ranks_are() -> None:
    document = predict_training(inputs_of("naive"))
    spread = document["sequences"]["compute_per_rank_s"]
    assert spread["min"] < spread["mean"] < spread["max"] <= document["step_time_s"]
    assert sum(document["breakdown_s"].values()) == pytest.approx(document["step_time_s"])
    assert document["tokens_per_s"] == pytest.approx(64 * K * 32 / document["step_time_s"])
    assert document["error_band"] is None
    assert "unequal" in document["reasons"]["error_band"]
    told = {row["key"]: row["text"] for row in document["assumptions"]}
    assert "unequal" in told["balance"]
    assert list(told).count("balance") == 1
