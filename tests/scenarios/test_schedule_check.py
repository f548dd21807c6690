"""`whatif schedule check`: rows that follow from a law are equal to the printed digits, searched rows may be beaten."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scenarios.cli import app
from scenarios.schedules.check import check
from scenarios.schedules.names import read_name

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "schedules.csv"
HEADER = GOLDEN.read_text(encoding="utf-8").splitlines()[0].split(",")
# reference examples at p = 4, m = 8 and F = B = W = 1 (catalogue of published orders; chunk ticks where v = 2)
EXAMPLES: list[dict[str, Any]] = [
    {"schedule": "GPipe", "cost": 33, "makespan": 33, "peaks": "8 8 8 8"},
    {"schedule": "1F1B", "cost": 33, "makespan": 33, "peaks": "4 3 2 1"},
    {"schedule": "Eager 1F1B", "cost": 33, "makespan": 33, "peaks": "7 5 3 1"},
    {"schedule": "Interleaved 1F1B v=2", "v": 2, "cost": 57, "makespan": 57, "peaks": "11 9 7 5"},
    {"schedule": "Looped BFS v=2", "v": 2, "cost": 57, "makespan": 57, "peaks": "16 16 16 16"},
    {"schedule": "ZB-H1", "cost": 27, "makespan": 27, "peaks": "4 4 4 4"},
    {"schedule": "ZB-H2", "cost": 24, "makespan": 27, "peaks": "7 7 7 7"},
    {"schedule": "ZBV (handcrafted)", "v": 2, "cost": 48, "makespan": 51, "peaks": "8 8 8 8"},
    {"schedule": "V-Half (greedy)", "v": 2, "cost": 53, "makespan": 53, "peaks": "6 6 6 6"},
    {"schedule": "V-Min (greedy)", "v": 2, "cost": 59, "makespan": 59, "peaks": "4 4 4 4"},
    {"schedule": "Seq1F1B k=2 (even segments; times per segment)", "cost": 57, "makespan": 57, "peaks": "5 4 3 2"},
    {"schedule": "Seq1F1B k=4 (even segments; times per segment)", "cost": 105, "makespan": 105, "peaks": "7 6 5 4"},
]


def row(example: dict[str, Any], number: int, **changes: Any) -> dict[str, Any]:
    cells = {"id": f"row-{number}", "schedule": example["schedule"], "p": 4, "m": 8,
             "chunks_per_dev": example.get("v", 1), "F": 1, "B": 1, "W": 1, "C": 0,
             "tool_cost_longest_stage": example["cost"], "asap_makespan_all_stages": example["makespan"],
             "peak_mem_per_stage": example["peaks"]}
    return {**cells, **changes}


def written(folder: Path, rows: list[dict[str, Any]], header: list[str] = HEADER) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "rows.csv").write_text(text.getvalue(), encoding="utf-8")
    return str(folder / "rows.csv")


def checked(file: str) -> dict[str, Any]:
    return check(file, lambda text: None)


def command(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["schedule", "check", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_examples_of_the_papers_agree(tmp_path: Path) -> None:
    found = checked(written(tmp_path, [row(one, i) for i, one in enumerate(EXAMPLES)]))
    assert (found["rows"], found["checked"], found["agreeing"], found["disagreeing"]) == (12, 12, 12, 0)
    assert all(one["difference"] == pytest.approx(0) for one in found["per_row"])


def test_published_rows_all_agree() -> None:
    found = checked(str(GOLDEN))
    assert found["disagreeing"] == 0, [one for one in found["per_row"] if not one["agrees"]]
    assert found["agreeing"] == found["rows"] - len(found["not_checked"])
    assert {one["id"] for one in found["not_checked"]} == {"sched-115", "sched-120"}  # rows without times or results
    laws = [one for one in found["per_row"] if one["rule"] == "law" and one["expected"] is not None]
    assert len(laws) > 50
    assert all(one["difference"] == pytest.approx(0, abs=0.051) for one in laws)


@pytest.mark.parametrize(("changes", "what"), [
    ({"tool_cost_longest_stage": 34}, "cost 33 instead of 34"),
    ({"asap_makespan_all_stages": 32.9}, "makespan 33 instead of 32.9"),
    ({"asap_bubble_rate_span": 0.2717}, "bubble_rate 0.27"),
    ({"ideal_busy": 25}, "busy 24 instead of 25"),
    ({"peak_mem_per_stage": "4 3 2 2"}, "peak 1 instead of 2 on stage 3"),
    ({"peak_mem_per_stage": "4 3 2"}, "peaks of 3 stages"),
    ({"C": 0.5}, "cost 41 instead of 33"),  # (m + p - 1) 3 + 2 c ((p - 1) m/p + p - 2)
])
def test_one_wrong_cell_disagrees(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    file = written(tmp_path, [row(EXAMPLES[1], 0), row(EXAMPLES[1], 1, **changes)])
    found = checked(file)
    assert [one["agrees"] for one in found["per_row"]] == [True, False]
    assert what in found["per_row"][1]["reason"]
    assert command(file).exit_code == 1


def test_searched_rows_may_be_beaten_but_not_missed(tmp_path: Path) -> None:
    half = EXAMPLES[8]
    rows = [row(half, 0, tool_cost_longest_stage=60), row(half, 1, tool_cost_longest_stage=48),
            row(half, 2, peak_mem_per_stage="5 5 5 5")]
    beaten, missed, greedy = checked(written(tmp_path, rows))["per_row"]
    assert (beaten["agrees"], beaten["difference"]) == (True, -7)
    assert not missed["agrees"]  # nothing of V-Half's memory takes no more than the work of a rank
    assert not greedy["agrees"]
    assert "holds 6, more than 5" in greedy["reason"]


def test_times_of_a_device_stage_are_told_by_the_busy_time(tmp_path: Path) -> None:
    by_chunk = row(EXAMPLES[3], 0, ideal_busy=48)
    by_stage = row(EXAMPLES[3], 1, F=2, B=2, W=2, ideal_busy=48)
    found = checked(written(tmp_path, [by_chunk, by_stage]))
    assert found["agreeing"] == 2


def test_memory_limits_count_in_the_unit_of_the_row(tmp_path: Path) -> None:
    """ZB-1p of unit times is ZB-H1: a rank holds p micro-batches from F, of which B gives back a half."""
    cells = {"mem_F": 2, "mem_B": -1, "mem_W": -1, "mem_limit": 8, "tool_cost_longest_stage": 27,
             "peak_mem_per_stage": "4 3.5 3 2.5"}
    enough = row({**EXAMPLES[5], "schedule": "ZB-1p"}, 0, **cells)
    tight = {**enough, "id": "row-1", "mem_limit": 7.9, "peak_mem_per_stage": ""}
    impossible = {**enough, "id": "row-2", "mem_limit": 1}
    found = checked(written(tmp_path, [enough, tight, impossible]))
    assert found["per_row"][0]["agrees"]
    assert found["per_row"][0]["peak"].tolist() == [4, 3.5, 3, 2.5]
    assert not found["per_row"][1]["agrees"]  # less memory costs more here
    assert "cannot be played" in found["per_row"][2]["reason"]


def test_what_cannot_be_checked_says_why(tmp_path: Path) -> None:
    rows = [row({**EXAMPLES[1], "schedule": "Chimera"}, 0), row(EXAMPLES[1], 1, F=""),
            row(EXAMPLES[1], 2, m=10**6, p=1000),
            row(EXAMPLES[1], 3, tool_cost_longest_stage="", asap_makespan_all_stages="", peak_mem_per_stage="")]
    found = checked(written(tmp_path, rows))
    reasons = {one["id"]: one["reason"] for one in found["not_checked"]}
    assert found["checked"] == 0
    assert "no schedule 'Chimera' is known" in reasons["row-0"]
    assert "F not given" in reasons["row-1"]
    assert "more than a check plays" in reasons["row-2"]
    assert "no cost" in reasons["row-3"]


def test_a_bad_file_is_refused_with_line_and_column(tmp_path: Path) -> None:
    file = written(tmp_path, [row(EXAMPLES[1], 0), row(EXAMPLES[1], 1, p="four", F=-1, peak_mem_per_stage="4 x")])
    result = command(file)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert f"{file}:3:{HEADER.index('p') + 1}: p must be a whole number from 1 (got 'four')" in lines
    assert all(line.startswith(f"{file}:3:") for line in lines)
    missing = written(tmp_path, [], [name for name in HEADER if name != "W"])
    result = command(missing)
    assert (result.exit_code, "column 'W' is missing" in result.stderr) == (2, True)
    assert command(str(tmp_path / "none.csv")).exit_code == 2


def test_json_holds_what_the_issue_promises(tmp_path: Path) -> None:
    file = written(tmp_path, [row(EXAMPLES[1], 0), row({**EXAMPLES[1], "schedule": "Chimera"}, 1)])
    result = command(file, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"rows", "checked", "agreeing", "disagreeing", "not_checked", "per_row"} <= set(found)
    assert {"id", "schedule", "cost", "expected", "difference", "agrees", "rule"} <= set(found["per_row"][0])
    assert {"id", "reason"} <= set(found["not_checked"][0])


@pytest.mark.parametrize(("name", "schedule", "settings"), [
    ("1F1B", "1f1b", {}), ("Interleaved 1F1B v=4", "interleaved-1f1b", {"chunks": 4}), ("ZB-2p", "zb-2p", {}),
    ("ZB (limit 6 M_B)", "zb-2p", {"limit": 6}), ("dualpipe release=slot", "dualpipe", {}),
    ("dualpipev release=op", "dualpipe-v", {}), ("DualPipeV", "dualpipe-v", {}), ("GIS g=2", "gis", {"group": 2}),
    ("GIS-H g=4", "gis-h", {"group": 4}), ("Seq1F1B k=8", "seq1f1b", {"segments": 8}), ("v-zb", "v-zb", {}),
    ("ZBV (heuristic)", "zbv-auto", {}), ("ZBV", "zbv", {}), ("V adaptive", "v-adaptive", {}),
    ("uniform repeating (PipeOffload base) g=1", "uniform-repeating", {"group": 1}),
])
def test_names_of_published_tables(name: str, schedule: str, settings: dict[str, int]) -> None:
    found = read_name(name)
    assert found is not None
    assert (found.schedule, found.settings) == (schedule, settings)
    assert found.release == ("op" if "release=op" in name else "slot")
