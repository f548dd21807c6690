"""whatif sweep: rows are what whatif run says; the table is the same bytes whoever made it, however often killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from scenarios.cli import app
from scenarios.commands.run import predict_prepared
from scenarios.errors import Place, ScenarioError
from scenarios.load import LoadedScenario, load, with_values
from scenarios.names import LIBRARY
from scenarios.sweep import stream, values
from scenarios.sweep.columns import OK, RESULTS, Row
from scenarios.sweep.executors import Inline
from scenarios.sweep.stream import Sweep

ROOT = Path(__file__).resolve().parents[2]
NAME = "llama-3.1-8b-8xh100"
VARY = ["plan.data=1,2,4,8", "plan.tensor=1..8 x2", "plan.micro_batch=1..4", "stack.overlap=[],[data]",
        "workload.global_batch=64,128"]  # fmt: skip
SMALL = ["plan.data=4,8", "plan.tensor=1,2", "plan.micro_batch=1,3,8", "cluster.power_limit=400 W,700 W"]


def options(varied: Sequence[str]) -> list[str]:
    return [part for option in varied for part in ("--vary", option)]


def whatif(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def asked(out: Path | None, varied: Sequence[str] = VARY, **more: Any) -> Sweep:
    return Sweep(load(LIBRARY / f"{NAME}.yaml", (), NAME, related=False), values.grid(varied), out=out, **more)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """256 variants are 32 batches. All tests and SLOWLY have the same, since the last digits may depend on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(stream.CHUNK, "analytic", 8)
        yield


@pytest.fixture(scope="module")
def whole(small_batches: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of VARY, made without interruption in this process."""
    out = tmp_path_factory.mktemp("whole") / "out.csv"
    asked(out).run()
    return out.read_bytes()


@pytest.mark.parametrize("fidelity", ["analytic", "events"])
def test_every_row_is_what_whatif_run_says_of_that_variant(fidelity: str, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    sweep = asked(out, SMALL, fidelity=fidelity)
    sweep.run()
    found = rows(out)
    assert len(found) == len(sweep.grid) == 24
    assert {row["status"] for row in found} == {"ok", "does not fit", "invalid"}
    for index, row in enumerate(found):
        settings = sweep.grid.settings(index)
        assert row["variant"] == sweep.grid.name(index)
        try:
            loaded: LoadedScenario | None = with_values(sweep.loaded, settings, dict.fromkeys(settings, Place("")))
        except ScenarioError as error:
            reason = "; ".join(problem.message for problem in error.problems)
            loaded = None
        if loaded is None:
            assert (row["status"], row["reason"]) == ("invalid", reason)
            assert not any(row[name] for name in (*RESULTS, "fits"))
            continue
        expected = predict_prepared(loaded, (), fidelity)
        expected["peak_memory_bytes"] = expected["peak_memory_bytes"]["hbm"]
        assert row["status"] == ("ok" if expected["fits"] else "does not fit")
        assert row["fits"] == ("true" if expected["fits"] else "false")
        assert ("needs" in row["reason"]) != expected["fits"]
        for name in RESULTS:
            assert float(row[name]) == pytest.approx(expected[name], rel=1e-11, abs=1e-12), (name, row["variant"])


def test_numbers_have_twelve_digits_and_read_back_as_themselves(whole: bytes) -> None:
    numbers = [row[name] for row in csv.DictReader(whole.decode().splitlines()) for name in RESULTS if row[name]]
    assert len(numbers) > 100
    assert all(repr(float(number)) == number == repr(float(f"{float(number):.12g}")) for number in numbers)


class Shuffled(Executor):
    """Hands results back in another order than they were asked for, several late ones at a time."""

    def __init__(self, seed: int) -> None:
        self.random, self.held = random.Random(seed), list[tuple[Future[Any], Any]]()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append((future, function(*arguments, **named)))
        if len(self.held) == 4:
            self.random.shuffle(self.held)
            while self.held:
                done, result = self.held.pop()
                done.set_result(result)
        return future


EXECUTORS: dict[str, tuple[Callable[[], Any], int]] = {
    "this process": (Inline, 1),
    "threads": (lambda: ThreadPoolExecutor(3), 5),
    "processes": (lambda: ProcessPoolExecutor(2, get_context("spawn")), 4),
    "out of order": (lambda: Shuffled(3), 4),
}


@pytest.mark.parametrize("name", EXECUTORS)
def test_any_executor_makes_the_same_bytes(name: str, whole: bytes, tmp_path: Path) -> None:
    make, in_flight = EXECUTORS[name]
    with make() as executor:
        asked(tmp_path / "out.csv").run(executor, in_flight)
    assert (tmp_path / "out.csv").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


# a sweep that takes some seconds, in small steps
SLOWLY = """
import sys, time
from scenarios.sweep import stream
fast = stream.evaluate
def evaluate(*arguments):
    time.sleep(0.04)
    return fast(*arguments)
stream.evaluate, stream.CHUNK["analytic"] = evaluate, 8
from scenarios.cli import main
main()
"""


def started(out: Path, *more: str, code: str = SLOWLY) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code, "sweep", NAME, *options(VARY), "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            start_new_session=True)  # fmt: skip


def killed(process: subprocess.Popen[bytes], journal: Path, least: int) -> int:
    """Kills with SIGKILL once the journal has so many rows; how many it then has."""

    def finished() -> int:
        return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0

    until_s = time.monotonic() + 60
    while process.poll() is None and finished() < least and time.monotonic() < until_s:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert finished() >= least
    return finished()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_twice_and_resumed_is_the_same_bytes(whole: bytes, tmp_path: Path) -> None:
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    first = killed(started(out, "--workers", "1"), journal, 10)
    assert not out.exists()
    kept = journal.read_bytes()
    again = whatif("sweep", NAME, *options(VARY), "--out", out)
    assert again.exit_code == 2
    assert f"out.csv.journal: holds {first} finished results of a sweep that did not end" in again.stderr
    assert journal.read_bytes() == kept
    second = killed(started(out, "--workers", "1", "--resume"), journal, first + 10)
    assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    result = whatif("sweep", NAME, *options(VARY), "--out", out, "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert out.read_bytes() == whole
    assert first < second <= json.loads(result.stdout)["run"]["resumed"] < len(rows(out))
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def _gone(session: int) -> bool:
    """Whether no process of a session is left that could still work."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = status.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(of) == session and state != "Z":
            return False
    return True


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_workers_end_with_their_killed_parent(whole: bytes, tmp_path: Path) -> None:
    """Two processes of the command itself; it may be killed at any time, also before or after all its work."""
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    code = "from scenarios.cli import main\nif __name__ == '__main__': main()"
    script = tmp_path / "whatif.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, str(script), "sweep", NAME, *options(VARY), "--out", str(out), "--workers", "2",
               "--fidelity", "events"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True)  # fmt: skip
    killed(process, journal, 1)
    until_s = time.monotonic() + 20
    while not _gone(process.pid) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert _gone(process.pid)


@pytest.fixture
def broken_off(tmp_path: Path) -> Path:
    """A journal with half of the variants; the table it belongs to."""

    def half(done: int, of: int, _: int) -> None:
        if done >= of / 2:
            raise KeyboardInterrupt

    out = tmp_path / "out.csv"
    sweep = asked(out)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=half)
    return out


@pytest.mark.parametrize("cut", [1, 2, 17, 5_000])
def test_a_torn_end_of_the_journal_is_done_again(broken_off: Path, whole: bytes, cut: int) -> None:
    journal = broken_off.with_name("out.csv.journal")
    content = journal.read_bytes()
    assert content.count(b"\n") == 129
    journal.write_bytes(content[:-cut])
    sweep = asked(broken_off, resume=True)
    sweep.run()
    assert broken_off.read_bytes() == whole
    assert 0 < sweep.resumed == content[:-cut].count(b"\n") - 1 < 128
    assert sweep.cut_bytes == len(content[:-cut].rpartition(b"\n")[2])


@pytest.mark.parametrize("tail", [b"\0" * 500, b'[3, "ok"]\n', b'[99999, "invalid", ""]\n', b"[" * 100_000 + b"\n"])
def test_what_is_no_row_ends_the_journal(broken_off: Path, whole: bytes, tail: bytes) -> None:
    journal = broken_off.with_name("out.csv.journal")
    journal.write_bytes(journal.read_bytes() + tail)
    asked(broken_off, resume=True).run()
    assert broken_off.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"varied": VARY[1:]}, "variants differ"),
        ({"fidelity": "events"}, "fidelity differ"),
        ({"tool_version": "0.0.1"}, "version of whatif differ"),
        ({"varied": ["plan.tensor=1..8 x2", *VARY[:1], *VARY[2:]]}, "variants differ"),
    ],
)
def test_the_journal_of_another_sweep_is_refused(broken_off: Path, change: dict[str, Any], what: str) -> None:
    journal = broken_off.with_name("out.csv.journal")
    before = journal.read_bytes()
    with pytest.raises(ScenarioError, match=what):
        asked(broken_off, resume=True, **change).run()
    assert journal.read_bytes() == before


def test_a_changed_scenario_is_another_sweep(broken_off: Path, tmp_path: Path) -> None:
    file = tmp_path / "changed.yaml"
    text = (LIBRARY / f"{NAME}.yaml").read_text(encoding="utf-8").replace("configs/", f"{LIBRARY}/configs/")
    file.write_text(text.replace("precision: fp8", "precision: bf16"), encoding="utf-8")
    result = whatif("sweep", file, *options(VARY), "--out", broken_off, "--resume")
    assert result.exit_code == 2
    assert "belongs to another sweep (scenario" in result.stderr


def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "out.csv.journal"
    file.write_text("my notes\n", encoding="utf-8")
    for more in ([], ["--resume"]):
        result = whatif("sweep", NAME, *options(SMALL), "--out", tmp_path / "out.csv", *more)
        assert (result.exit_code, file.read_text(encoding="utf-8")) == (2, "my notes\n")


class Invents:
    """Answers for any variant without working, so that only what a sweep itself holds is measured."""

    def submit(self, function: Any, base: Any, batch: Sequence[Any]) -> Future[list[Row]]:
        future: Future[list[Row]] = Future()
        numbers = tuple(0.1 * place for place in range(len(RESULTS)))
        future.set_result([Row(one.index, OK, "", numbers) for one in batch])
        return future


def _peak_bytes(variants: int, out: Path) -> int:
    sweep = asked(out, [f"workload.global_batch=1..{variants // 100}", "plan.micro_batch=1..100"])
    tracemalloc.start()
    try:
        sweep.run(Invents(), in_flight=2)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert out.read_bytes().count(b"\n") == variants + 1


def test_memory_does_not_grow_with_the_number_of_variants(tmp_path: Path) -> None:
    few, many = (_peak_bytes(variants, tmp_path / "out.csv") for variants in (5_000, 45_000))
    assert many - few < 40_000 * 20  # eight bytes a variant are meant


def test_summary_counts_and_names_the_best(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = whatif("sweep", NAME, *options(VARY), "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    summary, table = json.loads(result.stdout), rows(out)
    for status, count in summary["statuses"].items():
        assert count == sum(row["status"] == status for row in table)
    assert summary["variants"] == len(table) == sum(summary["statuses"].values())
    assert sum(summary["invalid_by_key"].values()) == summary["statuses"]["invalid"]
    fitting = [row for row in table if row["status"] == "ok"]
    for by, column in (("time", "step_time_s"), ("cost", "cost_usd_per_million_tokens")):
        best = sorted(fitting, key=lambda row: float(row[column]))[:5]
        assert [row["variant"] for row in summary[f"best_by_{by}"]] == [row["variant"] for row in best]
        assert [str(row[column]) for row in summary[f"best_by_{by}"]] == [row[column] for row in best]
    text = whatif("sweep", NAME, *options(VARY))
    assert text.exit_code == 0
    assert f"{len(table)} variants" in text.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_long_work_says_where_it_is(tmp_path: Path) -> None:
    process = started(tmp_path / "out.csv", "--workers", "1", code=SLOWLY.replace("0.04", "0.1"))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0
    assert said.startswith(b"sweep: "), said
    assert b" of 256 variants, " in said


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--vary", "plan.tensr=1"], "did you mean 'tensor'?"),
        ([], "--vary: is missing"),
        (["--vary", "plan.tensor=1", "--out", "out.txt"], "a table is written to a .csv or .parquet file"),
        (["--vary", "plan.tensor=1", "--out", "none/out.csv"], "the folder none does not exist"),
        (["--vary", "plan.tensor=1", "--resume"], "--resume: needs the --out"),
        (["--vary", "plan.tensor=1", "--address", "tcp://x:1"], "add --executor dask"),
        (["--vary", "plan.tensor=1", "--workers", "0"], "--workers"),
        (["--vary", "plan.tensor=1", "--executor", "mpi"], "--executor"),
        (["--vary", "plan.tensor=@v.csv", "--out", "v.csv"], "would overwrite the input"),
    ],
)
def test_bad_use_ends_with_2_before_anything_is_written(
    more: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v.csv").write_text("1\n", encoding="utf-8")
    result = whatif("sweep", NAME, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert what in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["v.csv"]


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(stream, "finished", interrupted)
    result = whatif("sweep", NAME, *options(SMALL), "--out", tmp_path / "out.csv")
    assert result.exit_code == 130
    assert "go on with --resume" in result.stderr


def dies(*_: Any) -> None:
    os._exit(3)


def test_a_dead_worker_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "evaluate", dies)
    monkeypatch.setitem(stream.CHUNK, "analytic", 4)
    result = whatif("sweep", NAME, *options(SMALL), "--out", tmp_path / "out.csv", "--workers", "2")
    assert result.exit_code == 1
    assert "a worker died" in result.stderr
