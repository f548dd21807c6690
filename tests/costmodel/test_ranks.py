"""Launching ranks: results in order; a rank that hangs or dies ends everything and says why; nothing is left."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from costmodel.calibration import ranks

pytest.importorskip("torch")
WORKER = "tests.costmodel.ranks_worker"


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def processes_left(tmp_path: Path) -> list[str]:
    """Living processes with the mark of a launch in this temporary folder."""
    mark = f"WHATIF_RANKS_FOLDER={tmp_path}".encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes():
                left.append(entry.name)
        except OSError:
            continue
    return left


def assert_clean(tmp_path: Path) -> None:
    assert not list(tmp_path.iterdir())
    assert not processes_left(tmp_path)


def test_results_come_in_rank_order_and_rank_0_is_heard(tmp_path: Path) -> None:
    said: list[str] = []
    results = ranks.launch(WORKER, {"echo": [1, "a"]}, 3, timeout_s=120, threads=2, tell=said.append)
    assert results == [{"rank": r, "world": 3, "threads": "2", "echo": [1, "a"]} for r in range(3)]
    assert said == ["rank 0 begins"]
    assert_clean(tmp_path)


def test_a_rank_that_hangs_is_killed_with_all_others(tmp_path: Path) -> None:
    with pytest.raises(ranks.RanksError, match=r"(?s)no end after 8 s.*rank 1:\nrank 1 begins"):
        ranks.launch(WORKER, {"echo": 0, "hangs": [1]}, 2, timeout_s=8)
    assert_clean(tmp_path)


def test_a_rank_that_dies_is_named_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ranks.RanksError, match=r"(?s)rank 1 ended with code 7.*on fire"):
        ranks.launch(WORKER, {"echo": 0, "dies": 1, "hangs": [0]}, 2, timeout_s=120)
    assert_clean(tmp_path)


def test_an_exception_of_a_rank_is_shown(tmp_path: Path) -> None:
    with pytest.raises(ranks.RanksError, match=r"(?s)rank 0 ended with code 1.*ValueError: no such layout"):
        ranks.launch(WORKER, {"echo": 0, "raises": 0}, 1, timeout_s=120)
    assert_clean(tmp_path)


def test_an_interrupt_ends_the_ranks(tmp_path: Path) -> None:
    def interrupt() -> None:
        while len(processes_left(tmp_path)) < 3:  # torchrun and both ranks
            time.sleep(0.05)
        os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ranks.launch(WORKER, {"echo": 0, "hangs": [0, 1]}, 2, timeout_s=120)
    assert_clean(tmp_path)


def test_a_module_that_cannot_be_found_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ranks.RanksError, match="No module named"):
        ranks.launch("tests.costmodel.no_such_worker", {}, 1, timeout_s=120)
    assert_clean(tmp_path)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "has_torch", lambda: False)
    with pytest.raises(ranks.RanksError, match=r"whatif-planner\[torch\]"):
        ranks.launch(WORKER, {}, 1, timeout_s=1)
