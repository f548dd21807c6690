"""Resident bytes and peaks against published memory laws, and the closed form against the played step."""

import pytest

from costmodel import parameters
from costmodel.stack import Stack
from placement.memory import resident_bytes, stage_peak
from placement.state_traffic import chunks_with_traffic
from placement.step import analytic_step
from placement.units import chunk_units, merged
from simulator.engine import static
from simulator.training import lower
from tests.training_cases import setting


def states_of(case):
    units = [merged(units) for units in chunk_units(case)]
    held = resident_bytes(case, units)
    held.pop("workspace")
    return sum(held.values()), sum(unit.dense_parameters + unit.expert_parameters for unit in units)


@pytest.mark.parametrize(
    ("sharding", "per_parameter"),
    [("ddp", 18), ("zero-1", 6 + 12 / 8), ("zero-2", 2 + 14 / 8), ("zero-3", 16 / 8), ("fsdp", 16 / 8)],
)
def test_bytes_per_parameter(sharding, per_parameter):
    """memory_notes A2 and ZeRO's table at N = 8."""
    size, count = states_of(setting(data=8, sharding=sharding))
    assert count == parameters.count(setting().model)
    assert size == pytest.approx(per_parameter * count, rel=1e-12)


def test_expert_weights_shard_over_their_own_group():
    """6 + 12 / edp bytes for experts, edp = dp x cp x tp / (ep x etp) (memory_notes A2)."""
    case = setting("mixtral-8x7b", nodes=4, tensor=2, data=16, expert=8, sharding="zero-1", sequence_parallel=True)
    units = [merged(units) for units in chunk_units(case)]
    dense = sum(unit.dense_parameters for unit in units)
    experts = sum(unit.expert_parameters for unit in units)
    assert experts == sum(
        parameters.routed_expert_parameters(layer.feed_forward, 4096) for layer in case.model.layers
    ) / 8
    size, _ = states_of(case)
    assert size == pytest.approx(dense * (6 + 12 / 16) + experts * (6 + 12 / 4), rel=1e-12)


def test_tied_embedding_is_held_twice_across_a_pipeline():
    whole = states_of(setting("qwen2.5-1.5b", data=8))[1]
    split = states_of(setting("qwen2.5-1.5b", data=4, pipeline=2))[1]
    model = setting("qwen2.5-1.5b").model
    assert model.tied_embeddings
    assert split - whole == model.vocabulary * model.hidden


CASES = [
    {"data": 8, "sharding": "zero-1"},
    {"data": 8, "sharding": "fsdp"},
    {"data": 2, "tensor": 4, "sequence_parallel": True, "sharding": "zero-1", "micro_batch": 2},
    {"data": 2, "pipeline": 4, "sharding": "zero-1", "stage_layers": (8, 8, 8, 8)},
    {"data": 2, "pipeline": 4, "sharding": "zero-1", "recompute": "full"},
    {"data": 2, "pipeline": 4, "virtual": 2, "schedule": "interleaved-1f1b", "sharding": "zero-1"},
    {"data": 2, "pipeline": 4, "schedule": "gpipe", "sharding": "fsdp-no-reshard"},
]


@pytest.mark.parametrize("plan", CASES, ids=str)
def test_closed_form_peak_agrees_with_the_played_one(plan):
    """Every stage's peak within 6 %: exact but for gathered copies and where the head's logits meet the peak."""
    case = setting(**plan)
    played = static.play(lower(case, 64).program)
    step = analytic_step(case, 64)
    for stage in range(case.plan.pipeline):
        assert step.peak_bytes[stage] == pytest.approx(played.peak(stage, "hbm")[0], rel=0.06), stage


def test_one_f_one_b_holds_p_minus_r_micro_batches():
    case = setting(pipeline=4, data=2, sharding="zero-1", stage_layers=(8, 8, 8, 8))
    played = static.play(lower(case, 64).program)
    units = [merged(units) for units in chunk_units(case)]
    for stage in range(4):
        held = played.peak(stage, "hbm")[1]["activations"]
        expected = min(4 - stage, 32) * units[stage].saved_bytes
        assert held == pytest.approx(expected, rel=1e-12)


def test_compiled_needs_less_than_fused():
    peaks = []
    for execution in ("compiled", "fused", "eager"):
        case = setting(data=8, stack=Stack(execution, "flash-3", ("data",)))
        peaks.append(stage_peak(case, 0, chunks_with_traffic(case), 16).peak_bytes)
    assert peaks == sorted(peaks)
    assert peaks[0] < peaks[1] < peaks[2]
