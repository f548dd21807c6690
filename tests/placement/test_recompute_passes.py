"""Recomputation in passes of its own: its law, its memory, and the step of a plan that asks for it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodel.stack import Stack
from placement import schedules
from placement.passes import layer_price
from placement.schedules import Orders, Pass, Schedule, ScheduleError, evaluate
from placement.schedules.recompute import with_recompute
from placement.step import analytic_step
from placement.units import chunk_units
from scenarios.build import training_inputs
from scenarios.errors import ScenarioError
from scenarios.load import load, variants
from simulator.engine import static
from simulator.predict import predict_training
from simulator.training import lower
from tests.training_cases import setting


@pytest.mark.parametrize("name", ["1f1b", "gpipe", "eager-1f1b", "interleaved-bfs", "interleaved-1f1b", "seq1f1b"])
def test_the_bubble_stays_the_schedules_own(name: str) -> None:
    """1F1B-R: m forwards more on every rank, no bubble more (inside B it would grow by p - 1 forwards)."""
    schedule = schedules.get(name)
    parts = 2 if schedule.takes_segments else 1
    for p, rounds in itertools.product((1, 2, 3, 4, 5, 8), (1, 2, 4)):
        m, v = p * rounds, schedule.least_chunks
        order = schedule.generate(p, m)
        for chunks in (v,) if name == "interleaved-1f1b" else range(v + 1):
            again = with_recompute(order, chunks)
            for forward_s, backward_s in ((1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (3.0, 4.0)):
                played = evaluate(again, schedule, forward_s, backward_s, other_s={"R": forward_s})
                runs = m * parts
                busy_s = runs * (v * (forward_s + backward_s) + chunks * forward_s)
                whole = parts * v * forward_s, parts * v * backward_s
                assert played.busy_s == pytest.approx(busy_s)
                bubble_s = float(schedule.bubble_s(p, m, v, *whole))
                assert played.makespan_s == pytest.approx(busy_s + bubble_s, rel=1e-12), (p, m, chunks)


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "zbv", "interleaved-1f1b", "dualpipe", "dualpipe-v"])
def test_orders_gain_one_pass_before_the_backwards_of_the_first_chunks(name: str) -> None:
    schedule = schedules.get(name)
    orders = schedule.generate(4, 8)
    for chunks in range(schedule.least_chunks + 1):
        again = with_recompute(orders, chunks)
        for before, after in zip(orders, again, strict=True):
            assert [one for one in after if one.kind != "R"] == before
            assert sum(one.kind == "R" for one in after) == sum(
                one.kind == "B" and one.chunk < chunks for one in before)
            for place, one in enumerate(after):
                if one.kind == "R":  # its B follows at once, in the next slot
                    ends = next((i for i in range(place + 2, len(after)) if not after[i].joined), len(after))
                    assert any(b[:3] == ("B", *one[1:3]) for b in after[place + 1:ends])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_memory_law(share: float) -> None:
    """A rank of 1F1B holds the inputs of min(m, p - r) micro-batches and the rest of one."""
    schedule = schedules.get("1f1b")
    for p, m in ((2, 5), (4, 8), (4, 3), (6, 12)):
        orders = with_recompute(schedule.generate(p, m), 1)
        memory = {"F": share, "R": 1.0 - share, "B": -1.0}
        played = evaluate(orders, schedule, 1.0, 2.0, other_s={"R": 1.0}, memory=memory)
        assert played.peak == pytest.approx([min(m, p - rank) * share + 1.0 - share for rank in range(p)])
        assert evaluate(orders, schedule, 1.0, 2.0, other_s={"R": 1.0}).peak.tolist() == [1.0] * p  # inputs for free


def relaxed_makespan(orders: Orders, schedule: Schedule, seconds: dict[str, Any], latency_s: float) -> float:
    """The makespan by raising start times until nothing changes (orders without slots)."""
    p, chunks = len(orders), 1 + max(one.chunk for order in orders for one in order)
    key = {(rank, i): (one.kind, schedule.stage_of(rank, one.chunk, p, chunks), one.micro_batch)
           for rank, order in enumerate(orders) for i, one in enumerate(order)}
    rank_of = {stage: rank for (rank, _), (_, stage, _) in key.items()}
    end = dict.fromkeys(key.values(), 0.0)
    last, changes = p * chunks - 1, True
    while changes:
        changes = False
        for (rank, i), (kind, stage, j) in key.items():
            needs = {"F": [("F", stage - 1)], "R": [("F", stage)], "W": [("B", stage)],
                     "B": [("F", stage), ("R", stage), ("B", stage + 1)]}[kind]
            start = end[key[rank, i - 1]] if i else 0.0
            for source, of in needs:
                if 0 <= of <= last and (source, of, j) in end:
                    start = max(start, end[source, of, j] + latency_s * (rank_of[of] != rank))
            value = start + float(seconds[kind][stage])
            changes |= value > end[kind, stage, j]
            end[kind, stage, j] = max(value, end[kind, stage, j])
    return max(end.values())


@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "zbv", "interleaved-1f1b"])
def test_unequal_stages_against_a_second_player(name: str) -> None:
    schedule, random = schedules.get(name), np.random.default_rng(7)
    for p, m in ((2, 4), (3, 6)):
        orders = with_recompute(schedule.generate(p, m), 1)
        stages = p * schedule.least_chunks
        seconds = {kind: random.uniform(0.5, 2.0, stages) for kind in "FBWR"}
        weight_s = seconds["W"] if schedule.splits_backward else 0.0
        played = evaluate(orders, schedule, seconds["F"], seconds["B"], weight_s, 0.3, other_s={"R": seconds["R"]})
        assert played.makespan_s == pytest.approx(relaxed_makespan(orders, schedule, seconds, 0.3), rel=1e-12)


def test_settings_that_cannot_be_recomputed() -> None:
    orders = schedules.get("1f1b").generate(2, 4)
    with pytest.raises(ScheduleError, match="2 chunks cannot be recomputed, a rank holds 1; 0 to 1 can"):
        with_recompute(orders, 2)
    with pytest.raises(ScheduleError, match="the order has passes R already"):
        with_recompute(with_recompute(orders, 1), 1)
    copied = [[*order, Pass("O", 0, 0)] for order in orders]
    with pytest.raises(ScheduleError, match="the order has passes O already"):
        with_recompute(copied, 1)


PLANS = [
    {"schedule": "1f1b"},
    {"schedule": "interleaved-1f1b", "virtual": 2},
    {"schedule": "zb-h1"},
    {"schedule": "v-half", "virtual": 2},
    {"schedule": "dualpipe"},
    {"schedule": "seq1f1b", "segments": 2},
    {"schedule": "1f1b", "data": 2, "sharding": "fsdp"},
    {"schedule": "1f1b", "recompute": "selective"},
    {"schedule": "zb-h1", "recompute": "pointwise"},
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_both_fidelities_agree_and_recompute_what_they_should(plan: dict[str, Any]) -> None:
    case = setting(**{"pipeline": 4, "tensor": 2, "recompute": "full", **plan}, recompute_chunks=1)
    data = plan.get("data", 1)
    lowered = lower(case, 16 * data)
    played, step = static.play(lowered.program), analytic_step(case, 16 * data)
    assert step.step_time_s == pytest.approx(played.makespan_s, rel=0.03)
    peaks = [played.peak(rank, "hbm")[0] for rank in range(4)]
    exact = 0.08 if "sharding" in plan else 0.01  # two gathered layers need not be there at the peak
    assert step.peak_bytes == pytest.approx(peaks, rel=exact)
    # every layer is recomputed, or half of them where a rank recomputes one of its two chunks
    once = layer_price(setting(**{"pipeline": 4, "tensor": 2, **plan, "recompute": "none"}), case.model.layers[0])
    parts = {"full": list(once.forward), "selective": ["attention"], "pointwise": ["memory_bound"]}
    layers = 32 * float(sum(once.forward[part] for part in parts[plan.get("recompute", "full")]))
    runs = 16 * plan.get("segments", 1) / plan.get("virtual", 1)
    again_s = [sum(stage["recompute"] for stage in stages) for stages in
               ([played.breakdown(rank) for rank in range(4)], step.breakdown_by_stage)]
    assert again_s == pytest.approx([layers * runs] * 2, rel=1e-9)


def test_memory_of_a_step() -> None:
    """Rank r of 1F1B: the inputs of p - r micro-batches, and the rest of one while its R and B run."""
    case = setting(pipeline=4, recompute="full", recompute_chunks=1)
    none, inside = (setting(pipeline=4, recompute=how) for how in ("none", "full"))
    played = static.play(lower(case, 16).program)
    kept = [sum(float(unit.saved_bytes - unit.head_bytes) for unit in units) for units in chunk_units(none)]
    input_bytes = 2.0 * 8192 * 4096  # 8,192 tokens of 4,096 2-byte values
    for rank in range(3):  # the last rank holds logits too
        held = played.peak(rank, "hbm")[1]["activations"]
        assert held == pytest.approx((4 - rank) * input_bytes + kept[rank] - input_bytes, rel=1e-9)
    steps = [static.play(lower(one, 16).program).makespan_s for one in (none, case, inside)]
    assert steps == sorted(steps)  # the passes fill waiting time, which a recomputation inside B does not
    zero = static.play(lower(replace(case, plan=replace(case.plan, recompute_chunks=0)), 16).program)
    assert zero.makespan_s == steps[0]


@pytest.mark.parametrize("level", ["selective", "pointwise", "full"])
def test_memory_of_every_level(level: str) -> None:
    """What micro-batches in flight keep is what they keep with a recomputation inside B (of a whole chunk one input
    only); while R and B stand together one chunk is whole, not one layer."""
    case, inside, none = (
        setting(pipeline=4, recompute=how, recompute_chunks=chunks, stack=Stack("fused", "unfused"))
        for how, chunks in ((level, 1), (level, None), ("none", None)))
    kept, whole = ([sum(float(unit.saved_bytes) for unit in units) for units in chunk_units(one)]
                   for one in (inside, none))
    played = static.play(lower(case, 16).program)
    for rank in range(3):
        small = 2.0 * 8192 * 4096 if level == "full" else kept[rank]
        held = played.peak(rank, "hbm")[1]["activations"]
        assert held == pytest.approx((3 - rank) * small + whole[rank], rel=1e-9)


SCENARIO = """\
name: chunks
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 1}
workload: {kind: pretrain, sequence: 8192, global_batch: 16}
plan: {tensor: 2, pipeline: 4, virtual: 2, schedule: interleaved-1f1b, recompute: full, recompute_chunks: 1}
"""


def scenario(folder: Path, *changes: str) -> Any:
    file = folder / "f.yaml"
    file.write_text(SCENARIO)
    return variants(load(file, changes, "f.yaml"))


def test_scenarios(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(SCENARIO)
    found = [predict_training(training_inputs(load(file, (change,), "f.yaml"))) for change in (
        "plan.recompute_chunks=0", "plan.recompute_chunks=1", "plan.recompute_chunks=2")]
    none, half, whole = (one["hfu"] / one["mfu"] for one in found)
    assert none == 1.0
    assert half - none == pytest.approx(whole - half)
    assert found[0]["peak_memory_bytes"]["hbm"] > found[1]["peak_memory_bytes"]["hbm"]
    assert any(row["key"] == "plan.recompute_chunks" for row in found[1]["assumptions"])
    with pytest.raises(ScenarioError, match="3 chunks cannot be recomputed, a rank holds virtual 2; 0 to 2 can"):
        scenario(tmp_path, "plan.recompute_chunks=3")
    with pytest.raises(ScenarioError, match=r"set recompute to full, selective or pointwise \(it is none\)"):
        scenario(tmp_path, "plan.recompute=none")
