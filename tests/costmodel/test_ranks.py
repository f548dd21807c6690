"""Ranks answer in order; one that dies or hangs is told of with its last words, and nothing is left behind."""

import subprocess
import tempfile
from pathlib import Path

import pytest

from costmodel.calibration.ranks import RanksError, launch

pytest.importorskip("torch")
WORKER = "tests.costmodel.ranks_worker"


def left_behind():
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    folders = list(Path(tempfile.gettempdir()).glob("whatif-ranks-*"))
    return [line for line in listed.splitlines() if WORKER in line], folders


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_results_in_rank_order_with_one_thread_each():
    found = launch(WORKER, {"what": "answer"}, 3, timeout_s=120)
    assert found == [{"rank": rank, "world": 3, "threads": "1"} for rank in range(3)]
    assert left_behind()[1] == []


def test_a_rank_that_dies_is_told_of_with_its_last_words():
    with pytest.raises(RanksError, match=r"died(.|\n)*rank 1, last lines:(.|\n)*these are my last words"):
        launch(WORKER, {"what": "die", "rank": 1}, 2, timeout_s=120)
    assert left_behind()[1] == []


def test_a_rank_that_hangs_is_killed_with_all_others(monkeypatch):
    with pytest.raises(RanksError, match=r"no end after 6 s(.|\n)*rank 0 waits"):
        launch(WORKER, {"what": "hang", "note": "test_ranks"}, 2, timeout_s=6)
    assert left_behind()[1] == []
    job_folder = [line for line in left_behind()[0] if str(tempfile.gettempdir()) in line]
    assert job_folder == []
