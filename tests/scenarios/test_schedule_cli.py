"""`whatif schedule show` and `compare`: numbers against published ones and laws, files, pages, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from placement import schedules
from scenarios.cli import app

SMALL = ("--stages", "4", "--microbatches", "8")
# Zero Bubble (arXiv 2401.10241), 1.5B model: table 6 (ms) and the bubble rates of table 5
TABLE_6 = ("--stages", "8", "--microbatches", "24", "--forward", "18.522 ms", "--backward", "18.086 ms", "--weight",
           "9.337 ms", "--comm", "0.601 ms")
TABLE_5 = {"1f1b": 0.2431, "zb-h1": 0.1585, "zb-h2": 0.1083, "zb-1p": 0.1585, "zb-2p": 0.0433}


def whatif(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, ["schedule", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def shown(name: str | Path, *arguments: str) -> dict[str, Any]:
    result = whatif("show", name, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: str | Path) -> list[str]:
    result = whatif(*arguments)
    assert result.exit_code == 2, result.stdout
    assert result.stdout == ""
    return result.stderr.splitlines()


def test_json_holds_what_the_design_promises() -> None:
    found = shown("zbv", *SMALL, "--activation-bytes", "2 GB")
    promised = ("schema_version name title source makespan span bubble_rate_makespan bubble_rate_span "
                "peak_activations memory order settings laws")
    assert set(promised.split()) <= set(found)
    assert (found["makespan"], found["span"]) == (25.5, 24.0)  # 51 and 48 chunk ticks of half a unit
    assert found["bubble_rate_span"] == pytest.approx(0)
    assert found["bubble_rate_makespan"] == pytest.approx(3 / 51)
    assert found["peak_activations"] == [8] * 4
    assert found["peak_activations_micro_batches"] == [4] * 4
    assert found["peak_memory_bytes"] == [8e9] * 4
    assert found["order"][3][:4] == ["F0", "F0.1", "F1", "F1.1"]
    assert all(len(found[key][0]) == 48 for key in ("order", "start", "end"))
    assert found["stages_of_rank"] == [[0, 7], [1, 6], [2, 5], [3, 4]]


@pytest.mark.parametrize(("name", "rate"), TABLE_5.items())
def test_published_bubble_rates(name: str, rate: float) -> None:
    found = shown(name, *TABLE_6, "--weight-share", str(73728 / 201216))
    assert round(found["bubble_rate_span"], 4) == rate
    assert found["settings"]["unit"] == "s"


@pytest.mark.parametrize("name", schedules.names())
def test_every_schedule_is_shown_and_holds_its_laws(name: str) -> None:
    found = shown(name, "--stages", "4", "--microbatches", "16", "--forward", "3", "--backward", "3", "--weight", "3")
    busy = 16 * 9
    assert found["busy"] == pytest.approx([busy] * 4)
    assert found["makespan"] >= found["span"] >= busy
    assert found["bubble_rate_makespan"] == pytest.approx(1 - busy / found["makespan"])
    assert found["bubble_rate_span"] == pytest.approx(1 - busy / found["span"])
    assert all(law["agrees"] for law in found["laws"].values()), found["laws"]
    for rank, line in enumerate(found["memory"]):
        assert max(line["held"]) == pytest.approx(found["peak_memory_micro_batches"][rank])
        assert line["held"][-1] == pytest.approx(0)
    for starts, ends in zip(found["start"], found["end"], strict=True):
        assert max(ends) <= found["makespan"] * (1 + 1e-12)
        assert all(start <= end for start, end in zip(starts, ends, strict=True))


def test_laws_in_words_are_those_that_are_computed() -> None:
    """The bubble that the text states, as a formula, is the bubble that the schedule computes."""
    values = {"p": 4, "m": 8, "v": 2, "k": 2, "c": 0.25, "F": 3.0, "B": 4.0, "W": 2.0, "BW": 6.0}
    checked = []
    for name in schedules.names():
        schedule = schedules.get(name)
        assert schedule.law, name
        match = re.fullmatch(r"bubble ([^;,]*?)( without latency)?; peak .*", schedule.law)
        if not match or schedule.bubble_s is None or not re.fullmatch(r"[\s()+*/\dpmvkcFBW-]*", match[1]):
            continue
        formula = re.sub(r"(?<=[\w)]) ?(?=\()|(?<=\w) (?=\w)|(?<=\)) (?=\w)", "*", match[1])
        v = max(schedule.least_chunks, 1)
        c = 0.0 if match[2] else values["c"]
        stated = eval(formula, {"__builtins__": {}}, {**values, "v": v, "c": c})
        found = shown(name, *SMALL, "--forward", "3", "--backward", "4", "--weight", "2", "--comm", str(c))
        assert found["laws"]["bubble"]["law"] == pytest.approx(stated), name
        checked.append(name)
    assert set(checked) >= {"gpipe", "1f1b", "eager-1f1b", "interleaved-1f1b", "interleaved-bfs", "zb-h1", "seq1f1b",
                            "gis"}


def test_unhidden_latency_is_paid_in_the_steady_state() -> None:
    found = shown("1f1b", "--stages", "4", "--microbatches", "64", "--backward", "2", "--weight", "0", "--comm", "0.5")
    assert found["makespan"] == 251.0  # reference, p = 4, m = 64, tF + tB = 3, c = 0.5
    assert found["laws"]["bubble"]["agrees"]


def test_unequal_stages_and_micro_batches(tmp_path: Path) -> None:
    setting = ("gpipe", "--stages", "2", "--microbatches", "3", "--backward", "1", "--weight", "0", "--forward")
    slow = shown(*setting, "1,2")
    assert slow["makespan"] == 1 + 3 * 2 + 3 * 1 + 1  # the second stage sets the pace of forwards
    table = tmp_path / "forward.csv"
    table.write_text("1,1,5\n1,1,1\n", encoding="utf-8")
    late = shown(*setting, f"@{table}")
    assert late["makespan"] == (1 + 1 + 5) + 1 + 3 + 1
    assert late["laws"].get("bubble") is None


def test_times_of_ranks_and_of_stages_say_the_same() -> None:
    of_ranks = shown("zbv", *SMALL, "--forward", "2,4,6,8")
    of_stages = shown("zbv", *SMALL, "--forward", "1,2,3,4,4,3,2,1", "--backward", "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5",
                      "--weight", "0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5")
    assert of_ranks["makespan"] == of_stages["makespan"]
    assert of_ranks["busy"] == of_stages["busy"] == [(2 + 1 + 1) * 8, (4 + 2) * 8, (6 + 2) * 8, (8 + 2) * 8]


def test_an_order_written_and_read_back_plays_the_same(tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    for name in ("interleaved-1f1b", "v-half", "dualpipe"):
        first = shown(name, *SMALL, "--orders", str(file))
        again = shown(file)
        keys = ("makespan", "span", "peak_activations", "order", "stages_of_rank", "memory", "p2p_volume")
        assert [again[key] for key in keys] == [first[key] for key in keys]
        whole = tmp_path / "shown.json"
        whole.write_text(json.dumps(first), encoding="utf-8")
        assert shown(whole)["makespan"] == first["makespan"]


def test_torch_tables_are_put_right_with_a_note(tmp_path: Path) -> None:
    file = tmp_path / "torch.csv"
    file.write_text("0F0,0F1,0B0,0F2,0B1,0B2\n1F1,1B0,1F2,1B1,1F3,1B2\n", encoding="utf-8")
    found = shown(file)
    assert found["makespan"] == (3 + 2 - 1) * 3
    assert "off by one" in found["notes"][0]
    assert "off by one" in whatif("show", file).stdout


def test_text_draws_the_order() -> None:
    result = whatif("show", "1f1b", "--stages", "2", "--microbatches", "3", "--backward", "1", "--weight", "0")
    lines = result.stdout.splitlines()
    assert "  0  F0--F1--    B0--F2--B1--    B2--" in lines
    assert "  1      F0--B0--F1--B1--F2--B2--" in lines
    assert "too long to be drawn" in whatif("show", "1f1b", "--stages", "8", "--microbatches", "64").stdout


def test_compare_has_equal_work_and_reasons() -> None:
    result = whatif("compare", "--all", "--stages", "4", "--microbatches", "6", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    rows, reasons = found["rows"], {one["name"]: one["reason"] for one in found["cannot_run"]}
    assert {row["name"] for row in rows} | set(reasons) == set(schedules.names())
    assert "at least 2 x 4 - 1 = 7 micro-batches" in reasons["zbv"]
    for row, one in zip(rows, found["schedules"], strict=True):
        assert one["busy"] == pytest.approx([18] * 4)
        assert row["makespan"] == one["makespan"]
    assert rows == sorted(rows, key=lambda row: (row["makespan"], row["span"]))
    by_name = {row["name"]: row for row in rows}
    assert by_name["1f1b"]["makespan"] == 27
    assert by_name["1f1b"]["peak_activations_micro_batches"] == 4
    text = whatif("compare", "1f1b", "zbv", "--stages", "4", "--microbatches", "6").stdout
    assert "zbv does not run here" in text


def test_chunks_recomputed_or_copied() -> None:
    """1F1B-R: m forwards more a rank, the bubble of 1F1B; a copied chunk lies on the host from O to L."""
    again = shown("1f1b", *SMALL, "--recompute", "1")
    assert again["makespan"] == 33 + 8
    assert again["peak_activations"] == [1] * 4
    assert again["busy"] == [32] * 4
    kept, copied = (shown("gis", "--stages", "8", "--microbatches", "32", "--offload", count) for count in ("0", "1"))
    assert copied["makespan"] == kept["makespan"]  # copies take no time here
    assert max(copied["peak_activations"]) < max(kept["peak_activations"])
    assert "O passes take no time" in copied["notes"][1]
    assert "0 to 1 can" in refused("show", "1f1b", *SMALL, "--recompute", "2")[0]


def test_traffic_and_copies_of_the_catalogue() -> None:
    found = json.loads(whatif("compare", "1f1b", "zb-h1", "dualpipe", "dualpipe-v", "zbv", "--stages", "4",
                              "--microbatches", "8", "--json").stdout)
    held = {row["name"]: (row["p2p_volume"], row["parameter_copies"]) for row in found["rows"]}
    assert held == {"1f1b": (1, 1), "zb-h1": (1, 1), "dualpipe": (1, 2), "dualpipe-v": (2, 1), "zbv": (2, 1)}


def test_memory_limits_in_micro_batches_chunks_and_bytes() -> None:
    same = [shown("v-adaptive", *SMALL, "--memory-limit", limit, "--activation-bytes", "4 GB")["span"]
            for limit in ("3", "6 chunks", "12 GB")]
    assert same == [26.5] * 3  # V-Half's 53 chunk ticks
    assert shown("v-adaptive", *SMALL, "--memory-limit", "2")["span"] == 29.5  # V-Min's 59


@pytest.mark.parametrize(("arguments", "what"), [
    (("zvb", *SMALL), "did you mean 'zbv'"),
    (("zbv", "--stages", "4", "--microbatches", "3"), "at least 2 x 4 - 1 = 7 micro-batches"),
    (("1f1b", "--stages", "4"), "--microbatches: is needed"),
    (("1f1b", *SMALL, "--chunks", "2"), "takes 1 chunks per rank (got 2)"),
    (("1f1b", *SMALL, "--memory-limit", "3"), "on rank 0 from pass F3 on; the least limit that its order keeps is 4"),
    (("zb-1p", *SMALL, "--memory-limit", "0.5"), "the least that works is 1"),
    (("v-adaptive", *SMALL, "--memory-limit", "1 chunk"), "the least that works is 2"),
    (("1f1b", *SMALL, "--memory-limit", "40 GB"), "needs --activation-bytes"),
    (("1f1b", *SMALL, "--memory-limit", "lots"), "cannot read 'lots'"),
    (("1f1b", *SMALL, "--forward", "-1"), "--forward: a time of at least 0"),
    (("1f1b", *SMALL, "--forward", "1,2"), "--forward: has 2 times; 1f1b runs on 4 ranks"),
    (("zbv", *SMALL, "--forward", "1,2"), "4 ranks or 8 stages"),
    (("1f1b", *SMALL, "--forward", "12 ms"), "write a unit such as ms for all times or for none"),
    (("1f1b", *SMALL, "--forward", "12 GB"), "--forward: '12 GB' is not a quantity in s"),
    (("1f1b", *SMALL, "--forward", "@none.csv"), "--forward none.csv: no such file"),
    (("1f1b", *SMALL, "--pass", "F=3"), "'F=3' is not KIND=TIME"),
    (("1f1b", *SMALL, "--html", "nowhere/a.html"), "the folder nowhere does not exist"),
    (("none.json",), "none.json: no such file"),
    (("1f1b", "--stages", "4096", "--microbatches", "100000"), "are more than the 5,000,000 that are played"),
    (("1f1b", *SMALL, "--forward", "0", "--backward", "0", "--weight", "0"), "no pass takes any time"),
    (("1f1b-vocab-1", *SMALL, "--pass", "S=1,2,3"), "schedule 1f1b-vocab-1: times of S passes are for 3 stages"),
    (("seq1f1b", *SMALL, "--segments", "4", "--chunks", "2"), "takes 1 chunks per rank"),
])
def test_bad_input_is_one_line_with_what_would_be_right(arguments: tuple[str, ...], what: str) -> None:
    (line,) = refused("show", *arguments)
    assert what in line


def test_bad_files_name_line_and_column(tmp_path: Path) -> None:
    file = tmp_path / "order.csv"
    file.write_text("F0,F1,B0,B1\nF0,X,B1,B0\n", encoding="utf-8")
    (line,) = refused("show", file)
    assert line.startswith(f"{file}:2:4: rank 1, pass 1: 'X' is no pass")
    file.write_text("F0,F1,B0,B1\nF0,B1,F1,B0\n", encoding="utf-8")
    (line,) = refused("show", file)
    assert line.startswith(f"{file}: ")
    assert "B of micro-batch 1 on stage 1 (rank 1, pass 1) waits for F of micro-batch 1 on stage 1" in line
    file.write_text("F0,B0\nF0,B0\n", encoding="utf-8")
    assert "its order is for --microbatches 1 (got 8)" in refused("show", file, "--microbatches", "8")[0]
    table = tmp_path / "times.csv"
    table.write_text("1,2\n1,x\n", encoding="utf-8")
    (line,) = refused("show", "1f1b", *SMALL, "--forward", f"@{table}")
    assert line.startswith(f"{table}:2:3: ")


def test_compare_refuses_nothing_and_unknown_names() -> None:
    assert "--all" in refused("compare", *SMALL)[0]
    assert "did you mean 'zbv'" in refused("compare", "1f1b", "zvb", *SMALL)[0]


def test_pages_are_written(tmp_path: Path) -> None:
    one, several = tmp_path / "one.html", tmp_path / "several.html"
    assert whatif("show", "zb-h1", *SMALL, "--html", one).exit_code == 0
    assert whatif("compare", "1f1b", "zbv", *SMALL, "--html", several).exit_code == 0
    assert "ZB-H1" in one.read_text(encoding="utf-8")
    assert several.read_text(encoding="utf-8").count("<figure>") == 4


@pytest.mark.parametrize(("limit", "least"), [("2", 29.5), ("3", 26.5), ("4", 24.0)])
def test_a_search_names_what_it_found_its_bound_and_the_gap(limit: str, least: float) -> None:
    """V-Min's 59, V-Half's 53 and ZBV's 48 chunk ticks are known orders within 2, 3 and 4 micro-batches."""
    found = shown("auto", *SMALL, "--chunks", "2", "--memory-limit", limit)
    assert found["span"] == pytest.approx(found["cost"])
    assert found["span"] <= least
    assert max(found["peak_memory_micro_batches"]) <= float(limit)
    assert found["bound"] <= found["span"]
    assert found["gap"] == pytest.approx(1 - found["bound"] / found["cost"], abs=1e-9)
    assert (found["proof"] == "optimal") == (found["gap"] < 1e-9)
    text = whatif("show", "auto", *SMALL, "--chunks", "2", "--memory-limit", limit).stdout
    assert all(word in text for word in ("Found", "No order takes less than", "Gap to that bound"))


def test_a_search_of_one_chunk_keeps_to_it_and_refuses_what_cannot_be() -> None:
    found = shown("auto", *SMALL, "--chunks", "1", "--memory-limit", "4")
    assert found["settings"]["chunks"] == 1
    assert found["span"] == 27.0  # ZB-H1, the order of least memory p without a bubble of its own
    for chunks in ("1", "2"):
        (line,) = refused("show", "auto", *SMALL, "--chunks", chunks, "--memory-limit", "0.4")
        assert f"the least that works is {chunks}" in line
    assert "needs the times of all 8 stages" in refused("show", "auto", *SMALL, "--chunks", "2", "--forward",
                                                        "1,1,1,2")[0]
