"""What docs/strategies.md shows runs, and its law of memory is the derived one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placement import strategies
from placement.semantics import resident_bytes
from placement.states import Axis
from scenarios.cli import app

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
TABLE = TEXT[TEXT.index("## Laws"):TEXT.index("## Written")]
LAWS = re.findall(r"^\| ((?:`[\w+-]+`(?:, )?)+) \| ([^|]*?) \|", TABLE, re.M)


@pytest.mark.parametrize("line", COMMANDS.splitlines())
def test_commands_run(line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


def test_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "docs/strategies.md", "exec"), {})
    assert capsys.readouterr().out.count("GB") == 3


@pytest.mark.parametrize(("names", "memory"), LAWS)
def test_memory_laws(names: str, memory: str) -> None:
    n, g = 128, 8
    for name in re.findall(r"`([\w+-]+)`", names):
        if name == "paro-pgo":
            continue
        preset = None if name == "zero++" else "mixed"
        held = resident_bytes(strategies.get(name, preset), 1.0, {Axis.DATA: n, Axis.SHARD: g, Axis.REPLICATE: n // g})
        law = re.sub(r"\+ (one|two) .*", "", memory)
        assert sum(held.values()) == pytest.approx(eval(law, {"n": n, "g": g})), name
