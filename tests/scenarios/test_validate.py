"""`whatif validate`: what is refused before anything runs, and what a document becomes in table, page and trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from costmodel.constants import RANGES
from reports import validation
from scenarios.cli import app
from scenarios.commands import validate as command

RUN = CliRunner()


@pytest.fixture
def _no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATIF_CATALOG", str(tmp_path / "none"))


@pytest.mark.usefixtures("_no_profile")
@pytest.mark.parametrize(("options", "text"), [
    ([], "no profile of this machine"),
    (["--timeout", "soon"], "--timeout soon: "),
    (["--timeout", "0 s"], "more than 0 s"),
    (["--html", "/nowhere/a.html"], "does not exist"),
    (["--trace", "a.txt"], "a .json or .json.gz file"),
    (["--set", "plan.tensr=2"], "did you mean 'tensor'?"),
])
def test_bad_input_ends_with_2_before_anything_runs(options: list[str], text: str) -> None:
    result = RUN.invoke(app, ["validate", "validate-single", "--device", "cpu", *options])
    assert result.exit_code == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("_no_profile")
def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "has_torch", lambda: False)
    result = RUN.invoke(app, ["validate", "validate-single"])
    assert result.exit_code == 2
    assert "pip install 'whatif-planner[torch]'" in result.stderr


def document() -> dict[str, Any]:
    row = {"key": "compute_s", "label": "compute <b>", "unit": "s", "simulated": 1.0, "measured": 1.25, "error": -0.2,
           "spread": 0.01, "judged": True, "reason": ""}
    task = ["F", "F0", 0, 0, 0.0, 0.5]
    return {"scenario": {"name": "a", "description": "", "file": "a.yaml"}, "changes": [], "quantities": [row],
            "losses": [9.0], "max_error": 0.1, "failures": ["compute: error -20.0% is beyond 10%"],
            "machine": {"node": "n", "device": "cpu", "ranks": 2, "versions": {"torch": "2"}, "quiet": True,
                        "wall_over_cpu": 1.0}, "run": {"date": "2026-01-01"},
            "timelines": {"simulated": [{"name": "simulated, stage 0", "tasks": [task]}],
                          "measured": [{"name": "measured, rank 0", "tasks": [task]}]}}


def test_both_timelines_are_processes_of_one_trace() -> None:
    events = validation.trace(document())["traceEvents"]
    names = {one["pid"]: one["args"]["name"] for one in events if one["name"] == "process_name"}
    assert sorted(names.values()) == ["measured, rank 0", "simulated, stage 0"]
    assert sorted(names[one["pid"]] for one in events if one["ph"] == "X") == sorted(names.values())


def test_the_page_escapes_and_says_what_failed() -> None:
    page = validation.page(document())
    assert "compute &lt;b&gt;" in page
    assert "beyond 10%" in page
    assert "-20.0%" in page


def test_corrections_are_written_whole_beside_what_the_profile_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATIF_CATALOG", str(tmp_path))
    (tmp_path / "profiles").mkdir()
    file = tmp_path / "profiles" / "mine.yaml"
    file.write_text("name: mine\nconstants: {other: {value: 1.2}, overlap_cost: {value: 0.0}}\n")
    kept = command.keep("mine", document())
    content = YAML(typ="safe").load(file.read_text())
    assert content["name"] == "mine"
    assert content["constants"]["other"]["value"] == pytest.approx(1.5)
    assert content["constants"]["overlap_cost"] == {"value": 0.0}
    assert content["constants"]["other"]["source"].startswith("whatif validate a.yaml")
    assert kept["other"] == {"before": 1.2, "after": pytest.approx(1.5), "clipped": False}
    assert RANGES["other"][0] <= content["constants"]["other"]["value"] <= RANGES["other"][1]
    assert [one.name for one in (tmp_path / "profiles").iterdir()] == ["mine.yaml"]
