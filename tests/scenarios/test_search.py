"""`whatif search`: the same numbers as `whatif run`, limits, and what bad input is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from costmodel.units import parse
from placement.memory import DEVICE_OVERHEAD_BYTES
from placement.search.pricing import Pricing
from placement.search.space import blocks
from scenarios.build import training_inputs
from scenarios.cli import app
from scenarios.commands.run import find
from scenarios.errors import Place, ScenarioError
from scenarios.load import LoadedScenario, load, with_values
from scenarios.search.axes import Axis, asked, gpu_counts
from simulator.predict import play

LIBRARY = "gpt-3-175b-64-a100"
SMALL = """name: a small search
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 1}
workload: {kind: pretrain, sequence: 8192, global_batch: 64, tokens: 1T}
plan: {tensor: 2, micro_batch: 1, recompute: full, sharding: zero-1}
search:
  plan.tensor: [1, 2, 4, 8]
  plan.pipeline: [1, 2, 4]
  plan.micro_batch: [1, 2]
  plan.recompute: [none, full]
  plan.sharding: [zero-1, fsdp]
"""


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["search", *arguments])


def as_options(row: dict[str, Any]) -> list[str]:
    """The settings of a plan found, as options of `whatif run`."""
    return [part for key, value in row["set"].items() for part in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture
def small(tmp_path: Path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL, encoding="utf-8")
    return str(file)


def library() -> LoadedScenario:
    path, name = find(LIBRARY)
    return load(path, (), name)


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_random_plans_cost_what_run_says(seed: int) -> None:
    """Each of four parts takes 250 plans of the library's space and asks `whatif run --fidelity analytic` for them."""
    loaded, rng = library(), np.random.default_rng(seed)
    wanted = asked(loaded, [])
    pricing = Pricing(wanted.cases[0].base, wanted.space, wanted.cases[0].global_batch)
    found = [block for block in blocks(wanted.space, loaded.model, 64) if not pricing.layout_fault(block)]
    sizes = np.array([block.plans for block in found], dtype=float)
    keys = [axis.field for axis in wanted.axes]
    compared = refused = 0
    while compared < 250:
        block = found[rng.choice(len(found), p=sizes / sizes.sum())]
        prices = pricing.price(block)
        for flat in rng.choice(block.plans, 5):
            index = tuple(int(n) for n in np.unravel_index(flat, block.shape))
            values = wanted.as_written(block.values_at(index, keys))
            places = dict.fromkeys(values, Place("test"))
            if not prices.divides[index]:
                with pytest.raises(ScenarioError):
                    with_values(loaded, values, places)
                refused += 1
                continue
            played = play(training_inputs(with_values(loaded, values, places), "analytic"))
            assert prices.step_time_s[index] == pytest.approx(played.step.step_time_s, rel=1e-12)
            assert prices.needed_bytes[index] == pytest.approx(played.needed_bytes, rel=1e-12)
            compared += 1
    assert compared >= 250


def test_every_plan_of_the_library_that_fits_beats_no_listed_one(small: str) -> None:
    """The document agrees with `whatif run` on its own first plan, and nothing shown is out of order or too large."""
    found = json.loads(run(small, "--json").stdout)
    times = [row["step_time_s"] for row in found["best"]]
    assert times == sorted(times)
    assert len(times) == 10
    assert all(row["peak_memory_bytes"] <= found["limit_bytes"] for row in found["best"])
    first = found["best"][0]
    settings = as_options(first)
    alone = json.loads(CliRunner().invoke(app, ["run", small, "--fidelity", "analytic", "--json", *settings]).stdout)
    assert alone["step_time_s"] == pytest.approx(first["step_time_s"], rel=1e-12)
    assert alone["energy_j"] == pytest.approx(first["energy_j"], rel=1e-12)
    events = json.loads(CliRunner().invoke(app, ["run", small, "--json", *settings]).stdout)
    assert events["step_time_s"] == pytest.approx(first["events"]["step_time_s"], rel=1e-12)
    assert found["base"]["set"]["plan.tensor"] == 2
    assert found["proof"]["status"] == "optimal"
    assert found["counts"]["combinations"] == found["space"]["combinations"] == 96


def test_differences_add_up_to_the_distance(small: str) -> None:
    found = json.loads(run(small, "--json", "--top", "5").stdout)
    first = found["best"][0]
    for row in found["best"][1:]:
        assert sum(one["seconds"] for one in row["differences"]) == pytest.approx(
            row["step_time_s"] - first["step_time_s"], abs=1e-9)
        assert row["changed"]
        assert row["why"]


def test_objectives_order_by_their_figure(small: str) -> None:
    for objective, figure in (("memory", "peak_memory_bytes"), ("cost", "cost_usd"), ("energy", "energy_j")):
        found = json.loads(run(small, "--json", "--objective", objective).stdout)
        values = [row[figure] for row in found["best"]]
        assert values == sorted(values)
        assert min(row[figure] for row in found["pareto"]) == pytest.approx(values[0])


def test_limits(small: str) -> None:
    free = json.loads(run(small, "--json").stdout)
    tight = json.loads(run(small, "--json", "--max-memory", "50 GB").stdout)
    assert all(row["peak_memory_bytes"] <= 50e9 for row in tight["best"])
    assert tight["best"][0]["step_time_s"] >= free["best"][0]["step_time_s"]
    steps = 1e12 / (8192 * 64)
    days = free["best"][2]["step_time_s"] * steps / 86400 * (1 + 1e-9)
    timed = json.loads(run(small, "--json", "--deadline", f"{days} d").stdout)
    assert timed["feasible"] == 3
    none = run(small, "--json", "--budget-usd", "1")
    found = json.loads(none.stdout)
    assert none.exit_code == 1
    assert found["best"] == []
    nearest = found["nearest_misses"][0]
    assert nearest["misses_by_bytes"] is None
    assert "over the limit" in nearest["text"]
    cheapest = json.loads(run(small, "--json", "--objective", "cost", "--top", "1").stdout)["best"][0]
    assert nearest["cost_usd"] == pytest.approx(cheapest["cost_usd"])
    assert "the limits of the run" in found["answer"]


def test_no_plan_fits_says_what_misses_by_how_much(small: str) -> None:
    result = run(small, "--json", "--max-memory", "2 GB")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["best"] == []
    assert found["feasible"] == 0
    nearest = found["nearest_misses"][0]
    assert nearest["misses_by_bytes"] == pytest.approx(nearest["peak_memory_bytes"] - 2e9)
    assert "nearest misses by" in found["answer"]
    assert found["fastest_that_does_not_fit"]["step_time_s"] > 0
    text = run(small, "--max-memory", "2 GB")
    assert text.exit_code == 1
    assert "No plan" in text.stdout


def test_more_gpus_are_tried_and_the_best_number_is_found(small: str) -> None:
    found = json.loads(run(small, "--json", "--max-gpus", "16", "--top", "3").stdout)
    assert found["best"][0]["set"]["cluster.gpus"] == found["best"][0]["gpus"] == 16
    sizes = {axis["key"]: axis["values"] for axis in found["space"]["axes"]}["cluster.gpus"]
    assert sizes == [1, 2, 4, 8, 16]
    assert {row["gpus"] for row in found["pareto"]} > {16}
    assert gpu_counts(library(), 24) == (1, 2, 4, 8, 16, 24)
    again = CliRunner().invoke(app, ["run", small, *as_options(found["best"][0])])
    assert again.exit_code == 0  # with as many nodes as they need


def test_a_saved_search_has_its_page_and_what_was_set(small: str, tmp_path: Path) -> None:
    saved, page = tmp_path / "search.json", tmp_path / "search.html"
    saved.write_text(run(small, "--set", "workload.global_batch=32", "--json", "--top", "2").stdout, encoding="utf-8")
    assert json.loads(saved.read_text(encoding="utf-8"))["scenario"]["set"] == {"workload.global_batch": 32}
    assert CliRunner().invoke(app, ["report", str(saved), "-o", str(page)]).exit_code == 0
    assert "Pareto" in page.read_text(encoding="utf-8")


def test_axes_from_the_command_line_replace_those_of_the_file(small: str) -> None:
    found = json.loads(run(small, "--json", "--vary", "plan.tensor=2,4", "--vary",
                           "workload.global_batch=32,64", "--top", "2").stdout)
    axes = {axis["key"]: axis["values"] for axis in found["space"]["axes"]}
    assert axes["plan.tensor"] == [2, 4]
    assert axes["workload.global_batch"] == [32, 64]
    assert found["counts"]["combinations"] == 96
    assert {row["set"]["workload.global_batch"] for row in found["best"]} == {32}


def test_a_scenario_without_axes_has_the_usual_ones(tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text(SMALL.split("search:")[0].replace("tensor: 2", "tensor: 3"), encoding="utf-8")
    result = run(str(file), "--json", "--top", "1")  # its own plan cannot be laid, which a search may mend
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["base"] is None
    axes = {axis["key"]: axis["values"] for axis in found["space"]["axes"]}
    assert axes["plan.tensor"] == [1, 2, 4, 8]
    assert axes["plan.pipeline"] == [1, 2, 4, 8]


def test_page_and_table(small: str, tmp_path: Path) -> None:
    page = tmp_path / "search.html"
    result = run(small, "--html", str(page), "--top", "3")
    assert result.exit_code == 0
    assert "a small search" in result.stdout
    assert "a small search" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(("extra", "said"), [
    ("search: {plan.tensr: [1]}", "tensor"),
    ("search: {plan.tensor: [1, two]}", "whole number"),
    ("search: {plan.schedule: [1f1b, 1f1c]}", "1f1b"),
    ("search: {plan.data: [1]}", "plan.data"),
    ("search: {plan.tensor: []}", "at least 1"),
    ("search: {plan.tensor: [1, 2, 1]}", "twice"),
    ("search: {pln.tensor: [1]}", "plan"),
    ("search: {plan.tensor: 2}", "list"),
])
def test_bad_axes_in_the_file(tmp_path: Path, extra: str, said: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(SMALL.split("search:")[0] + extra + "\n", encoding="utf-8")
    result = run(str(file))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.startswith(f"{file}:6:")


@pytest.mark.parametrize("arguments", [
    ("--vary", "plan.tensor"), ("--vary", "plan.tensor="), ("--vary", "plan.tensor=a"), ("--max-memory", "70 W"),
    ("--max-memory", "-1"), ("--deadline", "soon"), ("--html", "no/such/folder/x.html"), ("--vary", "nonsense=1"),
])
def test_bad_options(small: str, arguments: tuple[str, ...]) -> None:
    result = run(small, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr
    assert "Traceback" not in result.stderr


def test_no_plan_costs_nothing(small: str) -> None:
    result = run(small, "--json", "--play", "0", "--budget-usd", "0")
    assert result.exit_code == 1, result.stderr
    found = json.loads(result.stdout)
    assert found["feasible"] == 0
    assert "over the limit" in found["nearest_misses"][0]["text"]


def test_gpus_may_be_free(small: str) -> None:
    found = json.loads(run(small, "--json", "--set", "cluster.price_usd_per_gpu_hour=0", "--objective", "cost",
                           "--budget-usd", "0", "--play", "1").stdout)
    assert found["feasible"] > 0
    assert found["best"][0]["cost_usd"] == found["best"][0]["events"]["cost_usd"] == 0.0


def test_orders_that_were_not_made_are_no_proof_that_nothing_fits(small: str) -> None:
    result = run(small, "--json", "--vary", "plan.schedule=zb-h1", "--vary", "plan.pipeline=2,4", "--orders", "0")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["proof"]["status"] == "none"
    assert "only 0 were made and played; --orders allows more" in found["answer"]


def test_an_axis_that_is_a_whole_block_is_named(small: str) -> None:
    found = json.loads(run(small, "--json", "--vary", "model=llama-3.1-8b", "--play", "0").stdout)
    assert "model llama-3.1-8b" in found["answer"]


def test_limits_of_the_run_need_its_length(tmp_path: Path) -> None:
    file = tmp_path / "endless.yaml"
    file.write_text(SMALL.replace(", tokens: 1T", ""), encoding="utf-8")
    result = run(str(file), "--deadline", "3 d")
    assert result.exit_code == 2
    assert "workload.tokens" in result.stderr


def test_the_library_space_is_as_large_as_it_says() -> None:
    loaded = library()
    wanted = asked(loaded, [Axis("plan.tensor", (8,), (Place("test"),))])
    assert wanted.space.combinations * 6 == asked(loaded, []).space.combinations > 3_000_000
    assert wanted.cases[0].base.cluster.accelerator.memory.capacity_bytes == parse("80 GiB", "bytes")
    assert DEVICE_OVERHEAD_BYTES > 0
