"""Steps that copy activations to the host: the two fidelities, the bytes on either side, and what the link costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodel.stack import Stack
from placement.passes import Setting
from placement.state_traffic import chunks_with_traffic
from placement.step import analytic_step
from scenarios.build import training_inputs
from scenarios.errors import ScenarioError
from scenarios.load import load
from simulator.engine import static
from simulator.predict import predict_training
from simulator.timeline import Timeline
from simulator.training import lower
from tests.training_cases import setting

RANKS, GLOBAL_BATCH = 4, 16
CASES = [{"schedule": "po-h", "virtual": 4}, {"schedule": "po-f", "virtual": 2},
         {"schedule": "gis-h", "virtual": 2, "offload_chunks": 1}, {"schedule": "1f1b", "offload_chunks": 1},
         {"schedule": "seq1f1b", "segments": 4, "offload_chunks": 1}]


def case_of(slower: float = 1.0, **plan: object) -> Setting:
    """A pipeline of 4 ranks whose host link is `slower` than the catalogue's."""
    case = setting(node="hgx-a100", sequence=4096, stack=Stack("fused", "flash-2", ("pipeline",)), pipeline=RANKS,
                   sharding="ddp", **plan)
    node = case.cluster.node
    link = replace(node.accelerator.host_link,
                   bandwidth_bytes_per_s=node.accelerator.host_link.bandwidth_bytes_per_s / slower)
    node = replace(node, accelerator=replace(node.accelerator, host_link=link))
    return replace(case, cluster=replace(case.cluster, node=node))


def played(case: Setting) -> Timeline:
    return static.play(lower(case, GLOBAL_BATCH).program)


@pytest.mark.parametrize("plan", CASES, ids=lambda plan: plan["schedule"])
def test_the_fidelities_agree_on_both_sides_of_the_link(plan: dict[str, object]) -> None:
    for slower in (0.01, 1.0, 4.0):
        case = case_of(slower, **plan)
        timeline, closed = played(case), analytic_step(case, GLOBAL_BATCH)
        assert closed.step_time_s == pytest.approx(timeline.makespan_s, rel=3e-3)
        host = [timeline.peak(stage, "host")[0] for stage in range(RANKS)]
        assert closed.host_peak_bytes == pytest.approx(host, rel=1e-9)
        assert host[0] > 0


@pytest.mark.parametrize("plan", CASES[:3], ids=lambda plan: plan["schedule"])
def test_what_leaves_the_device_comes_back(plan: dict[str, object]) -> None:
    """Nothing is on the host at the end or ever below zero, and each chunk crosses the link twice at its bandwidth."""
    case = case_of(**plan)
    program, timeline = lower(case, GLOBAL_BATCH).program, played(case)
    link = case.cluster.accelerator.host_link.bandwidth_bytes_per_s
    sizes = {float(chunk.whole.saved_bytes) for chunk in chunks_with_traffic(case)}
    for stage in range(RANKS):
        _, series = timeline.memory_series(stage, "host")
        held = series.get("activations", np.zeros(1))
        assert held.min() >= -1.0
        assert held[-1] == pytest.approx(0.0, abs=1.0)
        assert timeline.memory_series(stage, "hbm")[1]["activations"].min() >= -1.0
    copies = [task for task, label in enumerate(program.label) if label[0] in "OL"]
    assert len(copies) % 2 == 0
    seconds = {round(size / link, 12) for size in sizes}
    assert {round(float(program.duration_s[task]), 12) for task in copies} <= seconds


def test_a_fast_link_costs_nothing_and_a_slow_one_sets_the_pace() -> None:
    base = analytic_step(case_of(schedule="uniform-repeating", virtual=2), GLOBAL_BATCH)
    fast, slow = (case_of(slower, schedule="po-f", virtual=2) for slower in (0.01, 20.0))
    assert played(fast).makespan_s == pytest.approx(base.step_time_s, rel=1e-3)
    assert max(analytic_step(fast, GLOBAL_BATCH).peak_bytes) < max(base.peak_bytes)
    timeline = played(slow)
    copied_s = max(
        timeline.end_s[tasks].max() - timeline.start_s[tasks].min()
        for tasks in (timeline.program.tasks_of(stream) for stream, one in enumerate(timeline.program.streams)
                      if one.name == "copy"))
    assert copied_s > 0.9 * timeline.makespan_s
    assert timeline.breakdown(0)["offload"] > 0.5 * timeline.makespan_s


SCENARIO = """\
name: copies
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 1}
workload: {kind: pretrain, sequence: 4096, global_batch: 32}
plan: {pipeline: 8, virtual: 2, schedule: gis-h}
"""


def test_scenarios(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(SCENARIO)
    none, first, both = (
        predict_training(training_inputs(load(file, (f"plan.offload_chunks={count}",), "f.yaml")))
        for count in (0, 1, 2))
    held = [found["memory_by_stage"][0]["peak_bytes"] for found in (none, first, both)]
    assert held[0] > held[1] > held[2]
    assert "host" not in none["peak_memory_bytes"]
    assert 0 < first["peak_memory_bytes"]["host"] < both["peak_memory_bytes"]["host"]
    assert "host link" in {row["key"] for row in both["assumptions"]} - {row["key"] for row in none["assumptions"]}
    with pytest.raises(ScenarioError, match="3 chunks cannot be copied to the host, a rank holds virtual 2; 0 to 2"):
        load(file, ("plan.offload_chunks=3",), "f.yaml")
    with pytest.raises(ScenarioError, match="first 1 chunks are recomputed and the first 2 copied to the host"):
        load(file, ("plan.offload_chunks=2", "plan.recompute=full", "plan.recompute_chunks=1"), "f.yaml")
