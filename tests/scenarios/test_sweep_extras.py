"""whatif sweep with Dask and Parquet where they are installed, and what it says where they are not."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scenarios.sweep.columns import RESULTS
from tests.scenarios.test_sweep import NAME, ROOT, SMALL, asked, options, whatif


def test_without_the_extras_the_message_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("distributed", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    dask = whatif("sweep", NAME, *options(SMALL), "--executor", "dask")
    assert dask.exit_code == 2
    assert "pip install 'whatif-planner[distributed]'" in dask.stderr
    parquet = whatif("sweep", NAME, *options(SMALL), "--out", tmp_path / "out.parquet")
    assert parquet.exit_code == 2
    assert "pip install 'whatif-planner[parquet]'" in parquet.stderr
    assert list(tmp_path.iterdir()) == []


def test_parquet_holds_the_same_as_csv(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in ("csv", "parquet"):
        asked(tmp_path / f"out.{kind}", SMALL).run()
    table = parquet.read_table(tmp_path / "out.parquet")
    assert {field.name: str(field.type) for field in table.schema if field.name in ("plan.data", "fits", "mfu")} == {
        "plan.data": "int64", "fits": "bool", "mfu": "double"}  # fmt: skip
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        for row, expected in zip(csv.DictReader(file), table.to_pylist(), strict=True):
            assert {name: row[name] for name in ("variant", "status", "reason")} == {
                name: expected[name] for name in ("variant", "status", "reason")}  # fmt: skip
            for name in RESULTS:
                assert (float(row[name]) if row[name] else None) == expected[name]
    first = (tmp_path / "out.parquet").read_bytes()
    asked(tmp_path / "out.parquet", SMALL).run()
    assert (tmp_path / "out.parquet").read_bytes() == first


def test_a_dask_cluster_makes_the_same_bytes(tmp_path: Path) -> None:
    """The command against a scheduler with two workers, in processes of their own."""
    pytest.importorskip("distributed")
    asked(tmp_path / "here.csv", SMALL).run()
    code = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        sys.argv += ["--address", cluster.scheduler_address]
        from scenarios.cli import main
        main()
"""
    script = tmp_path / "cluster.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, str(script), "sweep", NAME, *options(SMALL), "--executor", "dask", "--json",
               "--out", str(tmp_path / "there.csv")]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["run"]["executor"] == "dask"
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    code = ("import scenarios.sweep.executors as e, sys; e.CONNECT_S = 0.5\n"
            "from scenarios.cli import main; main()")  # fmt: skip
    command = [sys.executable, "-c", code, "sweep", NAME, *options(SMALL), "--executor", "dask", "--address",
               "tcp://127.0.0.1:9"]  # fmt: skip
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert "--address tcp://127.0.0.1:9: no Dask cluster answers" in found.stderr
    assert "Traceback" not in found.stderr
