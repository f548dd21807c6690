"""The closed form of a step against the played one, and its laws."""

from dataclasses import replace

import pytest

from costmodel.stack import Stack
from placement.step import analytic_step
from simulator.engine import static
from simulator.training import lower
from tests.training_cases import setting

CASES = [
    {"data": 8, "sharding": "zero-1"},
    {"data": 8, "sharding": "fsdp"},
    {"data": 8, "sharding": "internevo"},
    {"data": 4, "pipeline": 2, "sharding": "internevo-isp", "shard_group": 2},
    {"data": 1, "tensor": 8, "sequence_parallel": True},
    {"data": 2, "pipeline": 4},
    {"data": 2, "pipeline": 4, "schedule": "gpipe", "recompute": "full"},
    {"data": 2, "pipeline": 4, "virtual": 2, "schedule": "interleaved-1f1b"},
    {"data": 1, "context": 4, "tensor": 2, "sequence_parallel": True, "sharding": "zero-1"},
]


@pytest.mark.parametrize("plan", CASES, ids=str)
def test_closed_form_agrees_with_events(plan):
    case = setting(**plan)
    played = static.play(lower(case, 64).program)
    assert analytic_step(case, 64).step_time_s == pytest.approx(played.makespan_s, rel=0.05)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_exact_for_unequal_stages_without_state_traffic(schedule):
    """(m - 1) max + sum of the stages, plus hops: exact for 1F1B and GPipe on one data rank."""
    case = setting(pipeline=8, schedule=schedule, stage_layers=(3, 4, 4, 5, 4, 4, 4, 4))
    free = replace(case.cluster.node.scale_up, bandwidth_bytes_per_s=1e30, latency_s=0.0)
    cluster = replace(case.cluster, node=replace(case.cluster.node, scale_up=free))
    case = replace(case, cluster=cluster)
    played = static.play(lower(case, 64).program)
    assert analytic_step(case, 64).step_time_s == pytest.approx(played.makespan_s, rel=2e-3)


@pytest.mark.parametrize("plan", CASES, ids=str)
def test_breakdown_adds_up(plan):
    step = analytic_step(setting(**plan), 64)
    assert sum(step.breakdown_s.values()) == pytest.approx(step.step_time_s, rel=1e-12)
    for stage in step.breakdown_by_stage:
        assert sum(stage.values()) == pytest.approx(step.step_time_s, rel=1e-12)
        assert min(stage.values()) >= -1e-9


def test_blocking_communication_is_never_faster():
    for plan in CASES:
        overlapped = setting(**plan, stack=Stack("fused", "flash-3", ("data", "pipeline", "tensor", "context")))
        blocking = setting(**plan, stack=Stack("fused", "flash-3", ()))
        assert static.play(lower(blocking, 64).program).makespan_s >= 0.999 * (
            static.play(lower(overlapped, 64).program).makespan_s
        )


def test_more_bandwidth_never_hurts():
    """Monotone in HBM, NVLink and NIC bandwidth."""
    case = setting("llama-3.1-8b", nodes=4, tensor=2, sequence_parallel=True, data=8, pipeline=2, sharding="fsdp")
    base = static.play(lower(case, 64).program).makespan_s
    node = case.cluster.node
    for field in ("scale_up", "scale_out"):
        link = getattr(node, field)
        faster = replace(node, **{field: replace(link, bandwidth_bytes_per_s=2 * link.bandwidth_bytes_per_s)})
        better = replace(case, cluster=replace(case.cluster, node=faster))
        assert static.play(lower(better, 64).program).makespan_s < base
    memory = replace(node.accelerator.memory, read_bandwidth_bytes_per_s=6.7e12)
    part = replace(node.accelerator, memory=memory)
    better = replace(case, cluster=replace(case.cluster, node=replace(node, accelerator=part)))
    assert static.play(lower(better, 64).program).makespan_s < base
