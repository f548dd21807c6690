"""`plan.schedule` may be a file of orders, relative to the scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placement import schedules
from placement.schedules.files import text_of
from scenarios.build import training_inputs
from scenarios.errors import ScenarioError
from scenarios.load import load
from simulator.predict import predict_training

SCENARIO = """
name: an order from a file
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 1}
workload: {kind: pretrain, sequence: 4096, global_batch: 16}
plan: {tensor: 2, pipeline: 4, virtual: %d, micro_batch: 1, schedule: %s}
"""


def predicted(folder: Path, schedule: str, virtual: int, fidelity: str = "events") -> dict[str, Any]:
    file = folder / "scenario.yaml"
    file.write_text(SCENARIO % (virtual, schedule), encoding="utf-8")
    return predict_training(training_inputs(load(file, (), "scenario.yaml"), fidelity))


def written(folder: Path, name: str, micro_batches: int = 16) -> str:
    schedule = schedules.get(name)
    orders, v = schedule.generate(4, micro_batches), schedule.least_chunks
    stages = [[schedule.stage_of(rank, chunk, 4, v) for chunk in range(v)] for rank in range(4)]
    document = {"stages_of_rank": stages, "order": [[text_of(one) for one in order] for order in orders]}
    (folder / "order.json").write_text(json.dumps(document), encoding="utf-8")
    return "order.json"


@pytest.mark.parametrize("fidelity", ["events", "analytic"])
@pytest.mark.parametrize(("name", "virtual"), [("zb-h1", 1), ("zbv", 2), ("interleaved-1f1b", 2)])
def test_an_order_from_a_file_is_predicted_as_its_schedule(
    tmp_path: Path, name: str, virtual: int, fidelity: str
) -> None:
    of_file = predicted(tmp_path, written(tmp_path, name), virtual, fidelity)
    of_name = predicted(tmp_path, name, virtual, fidelity)
    for key in ("step_time_s", "bubble_fraction", "peak_memory_bytes"):
        # without a law the closed form plays the order; interleaving's law is a bound where transfers take long
        assert of_file[key] == pytest.approx(of_name[key], rel=1e-9 if fidelity == "events" else 1e-3), key


@pytest.mark.parametrize(("text", "what"), [
    (None, "cannot be read: No such file"),
    ("[[\"X0\"]]", "order.json:1:3: rank 0, pass 0: 'X0' is no pass"),
    ("[[\"F0\", \"B0\"]]", "does not run 2 chunks per rank"),
])
def test_a_bad_file_is_refused_at_the_key(tmp_path: Path, text: str | None, what: str) -> None:
    if text is not None:
        (tmp_path / "order.json").write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as caught:
        predicted(tmp_path, "order.json", 2)
    (problem,) = caught.value.problems
    assert what in problem.message
    assert problem.line == 6


def test_an_order_of_another_setting_says_which_it_is_for(tmp_path: Path) -> None:
    with pytest.raises(schedules.ScheduleError, match="4 ranks and 8 micro-batches"):
        predicted(tmp_path, written(tmp_path, "1f1b", 8), 1)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "order.csv"
    path.write_text("F0,B0\n", encoding="utf-8")
    assert len(schedules.get(str(path)).generate(1, 1)[0]) == 2
    path.write_text("F0,F1,B0,B1\n", encoding="utf-8")
    assert len(schedules.get(str(path)).generate(1, 2)[0]) == 4
