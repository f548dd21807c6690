"""What is measured beside what is simulated, on results written by hand from the simulated step itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from costmodel import catalog
from costmodel.constants import RANGES
from costmodel.hardware import Cluster
from costmodel.huggingface import from_config
from placement.plan import Plan
from simulator.inputs import TrainingInputs
from simulator.predict import Played, play
from simulator.real.cases import gpt
from simulator.real.compare import compared, compute_s, failures, losses, spread_of
from simulator.real.validate import corrections, quiet

NODE = catalog.node("rtx4090-8")


@pytest.fixture(scope="module")
def played() -> Played:
    plan = Plan(pipeline=2, schedule="1f1b", micro_batch=2, sharding="ddp", precision="fp32", state_bytes="fp32")
    model = from_config(gpt(4, 512, 8, 8192), "gpt")
    cluster = Cluster(NODE, 1, 2)
    return play(TrainingInputs("a", "", "a.yaml", {}, model, cluster, plan, 256, 8, stack={"name": "torch"}))


def rank(played: Played, number: int, factor: float, **changes: Any) -> dict[str, Any]:
    """A rank that took `factor` times as long in everything as the simulated one, over two steps."""
    simulated = compute_s(played)
    passes = []
    for step in (0, 1):
        for kind in ("F", "B", "optimizer"):
            seconds, count = simulated[number, kind]
            passes += [{"step": step, "kind": kind, "chunk": number, "micro_batch": turn, "start_s": 0.0,
                        "wall_s": seconds / count * factor, "cpu_s": seconds / count * factor, "device_s": None}
                       for turn in range(count)]
    wall_s = played.step.step_time_s * factor
    return {"rank": number, "world": 2, "device": "cpu", "passes": passes,
            "steps": [{"step": step, "wall_s": wall_s, "cpu_s": wall_s, "loss": 9.0 if number else None}
                      for step in (0, 1)],
            "communication_wall_s": None, "checkpoint": None,
            "peak_memory_bytes": {"total": played.step.peak_bytes[number] * factor}, **changes}


@pytest.mark.parametrize("factor", [1.0, 1.25, 0.5])
def test_error_is_simulated_over_measured_less_one(played: Played, factor: float) -> None:
    rows = compared(played, [rank(played, 0, factor), rank(played, 1, factor)], quiet=True)
    found = {row.key: row for row in rows}
    for key in ("step_time_s", "compute_s", "pass_F_0", "pass_B_1", "pass_optimizer_0", "peak_memory_bytes_1"):
        assert found[key].error == pytest.approx(1 / factor - 1, abs=1e-9), key
        assert not found[key].unjudged
    assert found["pass_F_0"].spread == pytest.approx(0.0, abs=1e-12)


def test_the_slowest_rank_is_the_step_and_equal_ranks_are_one_row(played: Played) -> None:
    rows = compared(played, [rank(played, 0, 1.0), rank(played, 1, 2.0)], quiet=True)
    found = {row.key: row for row in rows}
    assert found["step_time_s"].error == pytest.approx(-0.5)
    assert found["pass_F_0"].error == pytest.approx(0.0)
    assert found["pass_F_1"].error == pytest.approx(-0.5)


def test_passes_of_a_rank_have_the_work_of_the_whole_step(played: Played) -> None:
    busy = sum(seconds for seconds, _ in compute_s(played).values())
    categories = ("gemm", "attention", "memory_bound", "launch", "optimizer", "recompute", "quantize")
    of_step = sum(played.step.breakdown_s.get(name, 0.0) for name in categories) * 2
    assert busy == pytest.approx(of_step, rel=1e-9)


def test_wall_clock_is_not_judged_on_a_busy_machine(played: Played) -> None:
    rows = compared(played, [rank(played, 0, 3.0), rank(played, 1, 3.0)], quiet=False)
    reported = {row.key for row in rows if row.unjudged}
    assert reported == {"step_time_s", "idle_fraction"}
    assert not quiet({"wall_over_cpu": 1.2, "pressure_some_avg10": 0.0})
    assert not quiet({"wall_over_cpu": 1.0, "pressure_some_avg10": 50.0})
    assert quiet({"wall_over_cpu": 1.0, "pressure_some_avg10": None})


def test_a_run_fails_by_its_judged_errors_and_by_losses_that_are_no_numbers(played: Played) -> None:
    rows = compared(played, [rank(played, 0, 2.0), rank(played, 1, 2.0)], quiet=False)
    assert not failures(rows, [9.0], None)
    assert not failures(rows, [9.0], 0.51)
    said = failures(rows, [math.nan], 0.49)
    assert said[0] == "a loss is not a finite number"
    assert all("-50.0% is beyond 49%" in one for one in said[1:])
    assert not any("step time" in one for one in said)
    assert losses([rank(played, 0, 1.0), rank(played, 1, 1.0)]) == [9.0, 9.0]


def test_spread_is_the_distance_of_the_quartiles_over_the_median() -> None:
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread_of([1.0]) is None


def test_corrections_make_the_simulated_figure_the_measured_one_within_what_physics_allows() -> None:
    rows = [{"key": "compute_s", "simulated": 1.0, "measured": 1.1},
            {"key": "exposed_communication_s", "simulated": 1.0, "measured": 10.0}]
    found = corrections(rows, {"other": 1.2}, RANGES)
    assert found["other"] == (1.2, pytest.approx(1.32), False)
    assert found["communication"] == (1.0, RANGES["communication"][1], True)
    assert corrections([], {}, RANGES) == {}
