"""Examples in the documentation run, doctests hold, and starting the command loads nothing heavy."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.build import training_inputs
from scenarios.load import load, variants
from simulator.predict import predict_training

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("costmodel", "placement", "simulator", "reports", "scenarios")


def modules():
    for room in ROOMS:
        for found in pkgutil.walk_packages([str(ROOT / room)], f"{room}."):
            yield found.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_doctests(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_readme_scenario_runs(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "my.yaml"
    path.write_text(block, encoding="utf-8")
    base = load(path, (), "my.yaml")
    assert predict_training(training_inputs(base))["step_time_s"] > 0
    assert len(variants(base)) == 2


def test_readme_commands_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^whatif (\w+)", text, re.MULTILINE))
    helped = subprocess.run([sys.executable, "-m", "scenarios", "--help"], capture_output=True, text=True, check=True)
    assert commands <= set(re.findall(r"^\s+(\w+)", helped.stdout, re.MULTILINE))


def test_map_names_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:costmodel|placement|simulator|reports|scenarios)/[\w/.-]*)`", text))
    assert named
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_the_command_starts_without_heavy_libraries():
    heavy = ("numpy", "pandas", "matplotlib", "pydantic", "ruamel.yaml", "numba", "torch", "simpy", "networkx", "pulp")
    code = f"import sys, scenarios.cli; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_no_optional_library_is_needed(tmp_path):
    """With numba, torch, gymnasium and dask hidden, a scenario is still answered, with the same numbers."""
    for name in ("numba", "torch", "gymnasium", "dask"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('hidden by the test')\n", encoding="utf-8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from scenarios.commands.run import predict_prepared, prepare\n"
        "print(repr(predict_prepared(*prepare('llama-3.1-405b-131k-h100'))['step_time_s']))"
    )
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    from scenarios.commands.run import predict_prepared, prepare

    assert found.stdout.strip() == repr(predict_prepared(*prepare("llama-3.1-405b-131k-h100"))["step_time_s"])


def run_examples(page):
    """The command blocks of a page, in their order, in the current folder; its scenario is `example.yaml`."""
    from typer.testing import CliRunner

    from scenarios.cli import app

    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        Path("example.yaml").write_text(block, encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        result = CliRunner().invoke(app, arguments)
        assert (program, result.exit_code) == ("whatif", 0), (line, result.output)


def test_schedule_examples_run(tmp_path, monkeypatch):
    """Of the golden table the rows that need no search."""
    monkeypatch.chdir(tmp_path)
    golden = Path("tests", "golden", "schedules.csv")
    header, *rows = (ROOT / golden).read_text(encoding="utf-8").splitlines()
    (tmp_path / golden).parent.mkdir(parents=True)
    (tmp_path / golden).write_text("\n".join([header, *rows[-60:]]), encoding="utf-8")
    run_examples("schedules.md")
    assert {"1f1b.html", "1f1b.json", "four.html"} <= {path.name for path in tmp_path.iterdir()}


def test_search_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_examples("search.md")
    assert "Pareto" in (tmp_path / "example.html").read_text(encoding="utf-8")


def test_schedule_page_names_every_schedule():
    from placement import schedules

    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    table = text[text.index("## The schedules"):]
    assert set(re.findall(r"`([\w-]+)`", table)) >= set(schedules.names())


def test_sweep_examples_run(tmp_path, monkeypatch):
    """The commands and the Python of docs/sweep.md; every table comes out with a row a variant."""
    import shlex

    from typer.testing import CliRunner

    from scenarios.cli import app

    text = (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 3
    monkeypatch.chdir(tmp_path)
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
    assert (tmp_path / "power.csv").read_text(encoding="utf-8").count("\n") == 1 + 4 * 2
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/sweep.md", "exec"), {})
    assert (tmp_path / "sizes.csv").read_text(encoding="utf-8").count("\n") == 1 + 4
