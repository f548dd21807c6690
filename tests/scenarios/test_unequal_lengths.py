"""Scenarios with sequences of unequal length: what may be written, what is refused and where, what comes out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scenarios.cli import app
from scenarios.names import known

LIBRARY = "bytescale-7b-2m-1024-a100"
BASE = """\
name: unequal
model: llama-3.1-8b
cluster: {node: hgx-a100, nodes: 2}
workload:
  kind: pretrain
  sequence: 65536
  global_batch: 10
  lengths: {distribution: pareto, token_share: 20%, above: 8192}
plan:
  context: 8
  context_method: ring
  context_groups: naive
stack: {execution: fused, attention: flash-2}
"""


def whatif(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def written(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in BASE
    file = folder / "scenario.yaml"
    file.write_text(BASE.replace(old, new))
    return file


def test_the_library_scenario_shows_what_each_part_gains() -> None:
    document = json.loads(whatif("run", LIBRARY, "--json").stdout)
    times = {row["name"]: row["step_time_s"] for row in document["variants"]}
    assert sum(document["breakdown_s"].values()) == pytest.approx(document["step_time_s"])
    assert document["fits"] is True
    assert document["peak_memory_bytes"]["host"] > 0
    assert document["sequences"]["policy"] == "dp-balance"
    assert document["step_time_s"] <= times["hybrid with offloading"] < times["static mesh with packing"]
    assert times["hybrid with balance"] < times["hybrid in the order of the data"]
    # fewer long sequences: less attention, the same static ring
    assert times["GitHub data (9.8% of tokens above 256K)"] < document["step_time_s"]
    assert times["static mesh on GitHub data"] > 3 * times["GitHub data (9.8% of tokens above 256K)"]


def test_the_table_says_how_ranks_differ() -> None:
    text = whatif("run", LIBRARY, "--fidelity", "analytic").stdout
    assert "Imbalance" in text
    assert "deviation" in text
    assert "plan.context_groups = dp-balance" in text


def test_a_page_and_a_trace_are_written(tmp_path: Path) -> None:
    file = written(tmp_path)
    done = whatif("run", file, "--html", tmp_path / "page.html", "--trace", tmp_path / "trace.json")
    assert done.exit_code == 0, done.output
    assert "imbalance" in (tmp_path / "page.html").read_text().lower()
    assert json.loads((tmp_path / "trace.json").read_text())


def test_the_seed_of_the_command_line_draws_other_sequences(tmp_path: Path) -> None:
    file = written(tmp_path)
    first, again, other = (json.loads(whatif("run", file, "--json", "--seed", seed).stdout) for seed in ("1", "1", "2"))
    assert first["step_time_s"] == again["step_time_s"] != other["step_time_s"]


def test_policies_are_listed() -> None:
    assert known("context-groups") == ["static", "naive", "dp-balance", "pp-balance"]
    assert "laggards" in whatif("list", "context-groups").stdout


@pytest.mark.parametrize(("old", "new", "place", "told"), [
    ("token_share: 20%, ", "", "8:12", "what settles the pareto law"),
    ("distribution: pareto", "distribution: weibull", "8:27", "not one of log-normal, pareto, empirical"),
    ("above: 8192", "above: 131072", "8:12", "above 131,072 tokens does not lie between minimum 64 and maximum 65,536"),
    ("token_share: 20%", "token_share: 120%", "8:48", "less than 1"),
    ("distribution: pareto, token_share: 20%", "distribution: log-normal, token_share: 99%", "8:12", "not 0.99"),
    ("{distribution: pareto, token_share: 20%, above: 8192}", "{distribution: empirical}", "8:12", "give the lengths"),
    ("{distribution: pareto", "{lengths: [8K], distribution: pareto", "8:12", "leave them out of the pareto one"),
    ("distribution: pareto", "lengths: [8K], distribution: empirical", "8:12", "token_share and above settle a law"),
    ("context_groups: naive", "context_groups: naiv", "12:19", "did you mean 'naive'"),
    ("  context_method: ring\n", "", "9:1", "plan.context_method: sequences of unequal length pass keys and values"),
    ("context: 8", "context: 8\n  micro_batch: 2", "11:16", "packed by tokens"),
    ("  lengths: {distribution: pareto, token_share: 20%, above: 8192}\n", "", "11:19", "write workload.lengths"),
    ("global_batch: 10", "global_batch: 100000000", "8:12", "sequences in a step"),
    ("  context_groups: naive", "  context_groups: naive\n  sharding: fsdp", "9:1", "within every pass"),
])
def test_what_does_not_go_together_is_refused_where_it_stands(
    tmp_path: Path, old: str, new: str, place: str, told: str
) -> None:
    file = written(tmp_path, old, new)
    done = whatif("run", file)
    assert done.exit_code == 2, done.output
    assert f"{file}:{place}: " in done.stderr, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.output


def test_a_search_refuses_what_it_does_not_price() -> None:
    done = whatif("search", LIBRARY, "--vary", "plan.context=128,256")
    assert done.exit_code == 2
    assert "workload.lengths: plans are searched for sequences of equal length" in done.stderr


def test_a_sweep_plays_unequal_sequences_like_a_run(tmp_path: Path) -> None:
    file, table = written(tmp_path), tmp_path / "sweep.csv"
    assert whatif("sweep", file, "--vary", "plan.context_groups=static,naive,dp-balance", "--out", table).exit_code == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    for row in rows:
        setting = f"plan.context_groups={row['plan.context_groups']}"
        alone = json.loads(whatif("run", file, "--json", "--fidelity", "analytic", "--set", setting).stdout)
        assert float(row["step_time_s"]) == pytest.approx(alone["step_time_s"], rel=1e-11)
    assert len({row["step_time_s"] for row in rows}) == 3


def test_unequal_accelerators_with_unequal_sequences_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "nodes: 2}", "nodes: 2, beside: [{node: hgx-h100, nodes: 1}]}")
    done = whatif("run", file)
    assert done.exit_code == 2
    assert "sequences of unequal length need equal accelerators" in done.stderr
