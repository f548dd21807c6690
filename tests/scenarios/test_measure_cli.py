"""`whatif calibrate measure` as a person calls it: refusals with their place, stops that can go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel.calibration.measure import run
from costmodel.calibration.ranks import RanksError
from scenarios.cli import app
from scenarios.commands import measure as command

FIO = {"fio version": "fio-3.36", "jobs": [{
    "jobname": "j", "read": {"io_bytes": 40960, "total_ios": 10, "bw_bytes": 4096}, "write": {"total_ios": 0,
                                                                                            "bw_bytes": 0}}]}


def measured(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["calibrate", "measure", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(("arguments", "said"), [
    (["--only", "gem"], "--only gem: no family text 'gem'; did you mean 'gemm'?"),
    (["--ranks", "1,2"], "--ranks 1,2: numbers from 2 to 64 are expected"),
    (["--ranks", "2,"], "--ranks 2,: numbers from 2 to 64 are expected"),
    (["--name", "a/b"], "--name a/b: letters, digits"),
    (["-o", "none/x"], "-o none/x: the folder none does not exist"),
    (["--read", "fio"], "--read fio: KIND:FILE is expected"),
    (["--read", "foi:x"], "did you mean 'fio'?"),
    (["--read", "fio:none.json"], "none.json: no such file"),
    (["--read", "fio:bad.json"], "bad.json:2:1: is not JSON"),
])
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{\n x")
    code, out, err = measured(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_torch_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "has_torch", lambda: False)
    code, _, err = measured("-o", str(tmp_path / "m"))
    assert code == 2
    assert "pip install 'whatif-planner[torch]'" in err


def test_cuda_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = measured("--device", "cuda", "-o", str(tmp_path / "m"))
    assert code == 2
    assert "torch sees no CUDA device; --device cpu measures this processor" in err


def test_rows_that_are_read_and_a_folder_that_exists(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "f.json").write_text(json.dumps(FIO))
    arguments = ["--device", "cpu", "--only", "read", "--read", f"fio:{tmp_path / 'f.json'}", "-o", str(tmp_path / "m")]
    code, out, err = measured(*arguments, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["rows"] == {"storage": 1}
    assert document["median_spread"] == {}
    assert document["machine"]["read"] == [{"file": "f.json", "made_by": "fio-3.36", "rows": 1}]
    assert (tmp_path / "m" / "storage.csv").read_text().splitlines()[1] == "read,4096,1,1,,10,"
    assert str(tmp_path) not in (tmp_path / "m" / "machine.yaml").read_text()
    code, _, err = measured(*arguments)
    assert code == 2
    assert "m: exists already; choose another with -o, or remove it" in err


@pytest.mark.parametrize(("error", "code", "said"), [
    (OSError(28, "No space left on device"), 2, "cannot be written: No space left on device; what was measured is in"),
    (RanksError("rank 1 ended with code 3"), 1, "collectives: rank 1 ended with code 3; what was measured is in"),
    (KeyboardInterrupt(), 130, "interrupted; what was measured is in"),
])
def test_stops_keep_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int,
                                      said: str) -> None:
    pytest.importorskip("torch")

    def stop(*_: object) -> None:
        raise error

    monkeypatch.setattr(run, "measure", stop)
    folder = tmp_path / "m"
    found, out, err = measured("--device", "cpu", "-o", str(folder))
    assert (found, out) == (code, "")
    assert said in err
    assert not folder.exists()
    assert (tmp_path / "m.partial" / "machine.yaml").exists()


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    command_line = [sys.executable, "-m", "scenarios.cli", "calibrate", "measure", "--device", "cpu", "--quick",
                    "--only", "copies,launch", "-o", str(tmp_path / "m")]
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, env=os.environ)
    table = tmp_path / "m.partial" / "copies.csv"
    for _ in range(600):
        if table.exists() and table.read_text().count("\n") > 1:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command goes on there" in err
    before = table.read_text()
    again = subprocess.run(command_line, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on in" in again.stderr
    assert (tmp_path / "m" / "copies.csv").read_text().startswith(before)
