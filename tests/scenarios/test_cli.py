"""The command line: what it prints, which files it writes, how it ends."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from scenarios.cli import app
from scenarios.commands import output
from scenarios.names import KINDS, LIBRARY, known
from simulator import predict

ROOT = Path(__file__).resolve().parents[2]
NAME = "llama-3.1-8b-8xh100"
FAST = ["--fidelity", "analytic"]


def whatif(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def document(*arguments: str | Path) -> dict[str, Any]:
    """The one JSON document of a run; NaN and Infinity are refused."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    result = whatif("run", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "result.json"
    result = whatif("run", NAME, "--json")
    file.write_text(result.stdout, encoding="utf-8")
    return file


def test_json_holds_what_the_design_promises(saved: Path) -> None:
    found = json.loads(saved.read_text(encoding="utf-8"))
    promised = ("scenario kind fits step_time_s tokens_per_s tokens_per_s_per_gpu model_flops_per_s_per_gpu mfu "
                "bubble_fraction peak_memory_bytes memory_breakdown_bytes breakdown_s cost_usd energy_j error_band "
                "assumptions variants schema_version tool_version run")  # fmt: skip
    assert set(promised.split()) <= set(found)
    assert set(found["scenario"]) == {"name", "description", "file", "sha256", "inputs"}
    assert set(found["run"]) == {"wall_s", "date"}
    assert found["scenario"]["inputs"]["workload"]["sequence"] == 8192
    assert sum(found["breakdown_s"].values()) == pytest.approx(found["step_time_s"])


def test_same_scenario_gives_the_same_document_apart_from_the_run_block() -> None:
    first, second = document(NAME, *FAST), document(NAME, *FAST)
    del first["run"], second["run"]
    assert first == second


def test_variants_say_what_they_set_and_how_much_it_changed() -> None:
    found = document(NAME, *FAST)
    names = [row["name"] for row in found["variants"]]
    assert names == [entry["name"] for entry in found["scenario"]["inputs"]["what_if"]]
    for row in found["variants"]:
        ratio = row["step_time_s"] / found["step_time_s"]
        assert row["change"]["step_time_s"] == pytest.approx(ratio - 1)
    alone = document(NAME, *FAST, "--set", "plan.precision=bf16")
    (bf16,) = (row for row in found["variants"] if row["set"] == {"plan.precision": "bf16"})
    assert bf16["step_time_s"] == alone["step_time_s"] > found["step_time_s"]


def test_set_changes_the_inputs_shown_and_the_result() -> None:
    base, changed = document(NAME, *FAST), document(NAME, *FAST, "--set", "workload.global_batch=256")
    assert changed["scenario"]["inputs"]["workload"]["global_batch"] == 256
    assert changed["step_time_s"] > 1.5 * base["step_time_s"]


def test_text_output_and_files(tmp_path: Path) -> None:
    page, trace = tmp_path / "p.html", tmp_path / "t.json.gz"
    page.write_text("old", encoding="utf-8")
    result = whatif("run", NAME, "--html", page, "--trace", trace)
    assert result.exit_code == 0, result.stderr
    assert "Llama 3 8B" in result.stdout
    assert "<html" in page.read_text(encoding="utf-8")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.html", "t.json.gz"]


def test_report_makes_the_page_of_a_saved_result(tmp_path: Path, saved: Path) -> None:
    page = tmp_path / "p.html"
    assert whatif("report", saved, "-o", page).exit_code == 0
    assert "Llama 3 8B" in page.read_text(encoding="utf-8")


def test_compare_takes_scenarios_and_saved_results(tmp_path: Path, saved: Path) -> None:
    other = tmp_path / "other.yaml"
    text = (LIBRARY / f"{NAME}.yaml").read_text(encoding="utf-8")
    model = f"model: {{hf: {LIBRARY / 'configs' / 'llama-3-8b'}}}"
    other.write_text(re.sub("model: .*", model, text).replace("hgx-h100", "hgx-h200"), encoding="utf-8")
    page = tmp_path / "c.html"
    result = whatif("compare", saved, other, "--json", "--html", page)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    changed = {row["key"]: row["values"] for row in found["inputs"]}
    assert changed["cluster.node"] == ["hgx-h100", "hgx-h200"]
    assert "<html" in page.read_text(encoding="utf-8")
    assert whatif("compare", saved, saved).exit_code == 0


@pytest.mark.parametrize("kind", KINDS)
def test_list_knows_every_name(kind: Any) -> None:
    result = whatif("list", kind, "--json")
    assert result.exit_code == 0
    assert [entry["name"] for entry in json.loads(result.stdout)["entries"]] == known(kind)
    assert known(kind)[0] in whatif("list", kind).stdout


def test_every_listed_name_is_accepted() -> None:
    """`list` and the checks of scenarios go by the same registries."""
    from scenarios.names import check

    for kind in KINDS:
        for name in known(kind):
            check(kind, name)


def test_version_and_help() -> None:
    assert whatif("--version").stdout.startswith("whatif ")
    help_text = whatif("--help").stdout
    assert all(command in help_text for command in ("run", "compare", "list", "report"))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "llama-3.1-8b-8xh10"], f"did you mean '{NAME}'?"),
        (["run", "no/such/file.yaml"], "no/such/file.yaml: no such file"),
        (["run", "."], ".: is a folder"),
        (["run", ""], "SCENARIO: is empty"),
        (["run", "a\0b"], "no such file"),
        (["run", NAME, "--set", "plan.tensor=3"], "--set plan.tensor=3: plan.tensor: 3 does not divide"),
        (["run", NAME, "--html", "no/such/p.html"], "--html no/such/p.html: the folder no/such does not exist"),
        (["run", NAME, "--html", "."], "--html .: is a folder"),
        (["run", NAME, "--html", " "], "a file name is expected"),
        (["run", NAME, "--trace", "t.txt"], "a .json or .json.gz file"),
        (["run", NAME, "--trace", "t.json", "--fidelity", "analytic"], "only --fidelity events has a timeline"),
        (["run", NAME, "--trace", "x.json", "--html", "./x.json"], "the same file as --html"),
        (["run", NAME, "--fidelity", "exact"], "exact"),
        (["run", NAME, "--seed", "-1"], "--seed"),
        (["run", NAME, "--seed", "x"], "--seed"),
        (["run", NAME, "--colour"], "--colour"),
        (["run"], "SCENARIO"),
        (["compare", NAME], "two scenarios or more"),
        (["compare", NAME, "none"], "no library scenario of that name"),
        (["list", "colours"], "colours"),
        (["report", "none.json", "-o", "p.html"], "none.json: no such file"),
        (["report", ".", "-o", "p.html"], ".: cannot be read"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_use_ends_with_2_and_says_why(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "predict_training", None)  # nothing is predicted before the input is sound
    result = whatif(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert what in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", ":1:1: not JSON"),
        (b"{\n  x", ":2:3: not JSON"),
        (b"[1]", "is JSON, but not a result"),
        (b'{"scenario": 3}', "is JSON, but not a result"),
        (b'{"scenario": {}}', "has schema_version None; this version reads 1"),
        (b'{"scenario": {}, "schema_version": 99}', "has schema_version 99"),
        (b'{"scenario": {"name": NaN}}', "NaN is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "not usable JSON"),
        (b'{"scenario": {"inputs": 3}, "schema_version": 1, "breakdown_s": 3}', "not a whole result"),
    ],
)
def test_report_refuses_what_is_no_result(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "r.json"
    file.write_bytes(content)
    result = whatif("report", file, "-o", tmp_path / "p.html")
    assert result.exit_code == 2
    assert what in result.stderr
    assert not (tmp_path / "p.html").exists()


def test_inputs_are_never_overwritten(tmp_path: Path, saved: Path) -> None:
    copy = tmp_path / "r.json"
    copy.write_bytes(saved.read_bytes())
    result = whatif("report", copy, "-o", tmp_path / "." / "r.json")
    assert (result.exit_code, copy.read_bytes()) == (2, saved.read_bytes())
    assert "would overwrite the input" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = whatif("run", NAME, *FAST, "--html", tmp_path / "p.html")
    tmp_path.chmod(0o700)
    assert (result.exit_code, "cannot be written to" in result.stderr) == (2, True)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "p.html"
    page.write_text("old", encoding="utf-8")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output.os, "replace", full)
    result = whatif("report", saved, "-o", page)
    assert (result.exit_code, page.read_text(encoding="utf-8")) == (2, "old")
    assert "cannot be written: No space left on device" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["p.html"]


def test_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict, "predict_training", interrupted)
    assert whatif("run", NAME).exit_code == 130


def test_numbers_that_are_not_finite_become_null(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    values = {"mfu": float("nan"), "hfu": np.float64("inf"), "gpus": np.int64(8), "fits": np.bool_(True),
              "step_time_s": [np.float32(0.5), (1, float("-inf"))]}  # fmt: skip
    monkeypatch.setattr(predict, "predict_training", lambda _: dict(values))
    found = document(NAME)
    assert {key: found[key] for key in values} == {
        "mfu": None, "hfu": None, "gpus": 8, "fits": True, "step_time_s": [0.5, [1, None]]}  # fmt: skip


def _python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip


def test_help_starts_fast_and_imports_nothing_heavy() -> None:
    code = ("import resource, sys\nsys.argv = ['whatif', '--help']\nfrom scenarios.cli import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            "heavy = {'numpy', 'pydantic', 'ruamel.yaml', 'rich', 'pandas', 'numba', 'jinja2'} & set(sys.modules)\n"
            "used = resource.getrusage(resource.RUSAGE_SELF)\n"
            "print(sorted(heavy), used.ru_utime + used.ru_stime, file=sys.stderr)")  # fmt: skip
    heavy, seconds = min((_python(code).stderr.rsplit(" ", 1) for _ in range(3)), key=lambda pair: float(pair[1]))
    assert heavy == "[]"
    assert float(seconds) < 0.4


def test_a_fault_of_whatif_is_one_line() -> None:
    code = ("import sys\nsys.argv = ['whatif', 'run', sys.argv[1]]\nfrom simulator import predict\n"
            "def broken(inputs): raise TypeError('oh')\npredict.predict_training = broken\n"
            "from scenarios.cli import main\nmain()")  # fmt: skip
    result = _python(code, NAME)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("whatif: internal fault: TypeError: oh")
    assert len(result.stderr.splitlines()) == 1
