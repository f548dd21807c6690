"""`whatif accuracy`: scores, the document, the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from costmodel.architecture import Model
from costmodel.operators import model_flops_per_token
from scenarios.accuracy import measured, predict, rows, score
from scenarios.accuracy.document import document
from scenarios.accuracy.exceptions import FILTERS, exception_of
from scenarios.accuracy.importer import import_row
from scenarios.accuracy.page import scatter
from scenarios.accuracy.report import group_rows
from scenarios.accuracy.ship import PRINTED, ship
from scenarios.cli import app
from scenarios.commands.accuracy import PUBLISHED, measure
from tests.scenarios.test_accuracy_rows import GOOD, SHARED, made, row, text

STATISTICS = {"rows", "mape", "median_ape", "p90_ape", "bias"}


def whatif(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@cache
def shipped() -> dict[str, Any]:
    return measure([str(PUBLISHED)])[0]


# Predicting ----------------------------------------------------------------------------------------------


def test_equal_rows_are_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()

    def counted(inputs: Any) -> Any:
        calls.append(inputs.name)
        return real(inputs)

    real = predict.evaluate
    monkeypatch.setattr(predict, "evaluate", counted)
    same = [made(id=name) for name in "abc"]
    outcomes = predict.outcomes([*same, made(id="d", global_batch="128")])
    assert calls == ["a", "d"]
    assert len({one.range[0].tokens_per_s_per_gpu for one in outcomes}) == 2


def test_speed_is_tokens_over_step_time_and_gpus() -> None:
    (one,) = predict.outcomes([made()])
    assert one.range[0].tokens_per_s_per_gpu == pytest.approx(2048 * 64 / one.range[0].step_time_s / 8)


def test_an_impossible_plan_is_a_reason_and_no_crash() -> None:
    (one,) = predict.outcomes([made(pp="4", vp="7", dp="2", layers="24")])
    assert one.range == ()
    assert "24" in one.reason


# Scoring -------------------------------------------------------------------------------------------------


def scored(name: str, value: float, predicted: float, **changes: str) -> score.Scored:
    one = made(id=name, **changes)
    (outcome,) = predict.outcomes([one])
    return replace(score.score(outcome)[0], measured=value, predicted=predicted, low=predicted, high=predicted)


def test_error_has_the_documented_sign() -> None:
    (one,) = score.score(*predict.outcomes([made()]))
    assert one.error == pytest.approx(one.predicted / 20000.0 - 1.0)


def test_a_range_is_scored_by_its_median_with_its_ends() -> None:
    (outcome,) = predict.outcomes([made(recompute="")])
    (one,) = score.score(outcome)
    speeds = sorted(p.tokens_per_s_per_gpu for p in outcome.range)
    assert len(speeds) == 3
    assert (one.low, one.predicted, one.high) == tuple(speeds)
    assert not one.specified


def test_families_weigh_the_same() -> None:
    many = [scored(f"m{n}", 100.0, 110.0) for n in range(9)]
    few = [scored("k", 100.0, 70.0, family="Megatron-Korthikanti")]
    average = score.averaged(score.grouped([*many, *few], "family"))
    assert average["mape"] == pytest.approx((0.10 + 0.30) / 2)
    assert average["bias"] == pytest.approx(-0.10)


def test_vtrain_counts_as_its_cells() -> None:
    same = [scored(f"v{n}", 100.0, 110.0, family="vTrain-single") for n in range(9)]
    other = scored("w", 100.0, 150.0, family="vTrain-single", micro_batch="8")
    found = score.summary([*same, other])
    assert (found["rows"], found["units"]) == (10, 2)
    assert found["mape"] == pytest.approx(0.30)


def test_sweeps_need_three_rows_that_share_their_setting() -> None:
    three = [scored(name, 100.0 + n * 10, 100.0 - n, micro_batch=str(2**n)) for n, name in enumerate("abc")]
    alone = [scored("d", 90.0, 90.0, seq="4096"), scored("e", 90.0, 90.0, precision="fp16")]
    found = score.ranking([*three, *alone])
    assert found["sweeps"] == 1
    assert found["kendall_tau_median"] == pytest.approx(-1.0)
    assert found["pairs"] == 3
    assert found["pairs_ordered_right"] == 0.0
    assert found["loss_of_chosen_plan_median"] == pytest.approx(1 - 100 / 120)


def test_memory_is_of_the_rank_that_the_row_names() -> None:
    memory = {"score_memory": "1", "score_time": "0", "peak_mem_gib": "10", "memory_basis": "allocated", "pp": "4",
              "dp": "2", "vp": "1"}
    (last,) = score.score(*predict.outcomes([made(**memory, memory_rank="last")]))
    (largest,) = score.score(*predict.outcomes([made(**memory, memory_rank="max")]))
    (outcome,) = predict.outcomes([made(**memory)])
    peaks = outcome.range[0].allocated_bytes
    assert (last.predicted, largest.predicted) == (peaks[-1], max(peaks))
    assert len(peaks) == 4
    assert last.measured == 10 * 2**30


def test_reserved_memory_is_a_range_about_allocated() -> None:
    memory = {"score_memory": "1", "peak_mem_gib": "10", "reserved_mem_gib": "10.5", "memory_basis": "allocated"}
    found = {one.metric: one for one in score.score(*predict.outcomes([made(**memory)]))}
    low, high = score.RESERVED_OVER_ALLOCATED
    allocated, reserved = found["allocated_bytes"].predicted, found["reserved_bytes"]
    assert (reserved.low, reserved.high) == pytest.approx((allocated * low, allocated * high))


@pytest.mark.parametrize(("name", "filter_"), [
    ("megatron-sc21-012", "sc21-zero-3"), ("nemo-bridge-moe-021", "gpt-oss"), ("megatron-sc21-001", None),
    ("nemo-bridge-dense-074", "recorded-recompute"), ("nemo-bridge-moe-071", None), ("mpt-166", None),
])
def test_exceptions_are_named(name: str, filter_: str | None) -> None:
    found = exception_of(row(name))
    assert (found.name if found else None) == filter_
    assert all(one.reason for one in FILTERS)


# Converting printed TFLOP/s --------------------------------------------------------------------------------


def test_converted_speeds() -> None:
    def converted(name: str) -> float | None:
        model: Model = import_row(row(name)).alternatives[0].model
        return measured.converted_tokens_per_s_per_gpu(row(name), model)

    assert converted("llama3-paper-001") == 170.0  # "implied 170 tok/s/GPU"
    assert converted("megatron-sc21-012") == pytest.approx(2048 * 1536 / 768 / _seconds("megatron-sc21-012"))


def _seconds(name: str) -> float:
    found = re.search(r"step time ([\d.]+) s", row(name).text("notes"))
    assert found
    return float(found[1])


def test_full_attention_doubles_the_attention_of_the_causal_half() -> None:
    model = import_row(made()).alternatives[0].model
    causal, full = float(model_flops_per_token(model, 2048)), measured.full_attention_flops_per_token(model, 2048)
    assert full - causal == pytest.approx(6.0 * 24 * 2048 * 2048)  # 12 L s h full, 6 L s h causal


def test_the_printed_tokens_of_a_convention_come_back() -> None:
    """Megatron-README prints TFLOP/s (full attention) and tokens/s of the same runs: they agree within 1.5 %."""
    for name in ("megatron-readme-001", "megatron-readme-002", "megatron-readme-003"):
        model = import_row(row(name)).alternatives[0].model
        found = measured.converted_tokens_per_s_per_gpu(row(name), model)
        assert found == pytest.approx(row(name).number("tokens_per_s_per_gpu"), rel=0.015), name


# The shipped rows --------------------------------------------------------------------------------------------


def test_shipped_rows_are_the_printed_ones_of_the_shared_table(tmp_path: Path) -> None:
    families = {one.family for one in rows.read(PUBLISHED).rows}
    assert families == set(PRINTED)
    assert not any(name in str(families) for name in ("vTrain", "MLPerf", "Sailor", "CI"))
    if not SHARED.exists():
        pytest.skip("shared/published/training.csv is not here")
    ship(SHARED, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == PUBLISHED.read_bytes()


def test_coverage_of_the_shipped_rows() -> None:
    coverage = shipped()["coverage"]
    assert coverage["scored_rows"] == 394  # rows marked score_time, counted in the file
    assert coverage["share"] >= 0.95
    assert shipped()["problems"] == []


def test_the_document_has_the_keys_of_the_design() -> None:
    found = shipped()
    assert found["rows"] == 566
    assert found["predicted"] + len(found["not_expressible"]) == found["rows"]
    assert all(set(one) == {"id", "reason"} and one["reason"] for one in found["not_expressible"])
    for of in found["families"].values():
        assert {*STATISTICS, "kendall_tau"} <= set(of)
    assert {"allocated", "reserved"} <= set(found["memory"])
    assert all({"id", "metric", "measured", "predicted", "error", "band"} <= set(one) for one in found["per_row"])
    for one in found["per_row"]:
        assert one["error"] == pytest.approx(one["predicted"] / one["measured"] - 1)


def test_every_scored_row_counts_once() -> None:
    found = shipped()
    apart = sum(one["rows"] for one in found["exceptions"] if not one["memory"])
    counted = sum(of["rows"] for of in found["families"].values())
    converted = sum(of["rows"] for of in found["converted"].values())
    assert counted + apart + converted == len(found["per_row"])
    for groups in found["groups"].values():
        assert sum(of["rows"] for of in groups.values()) == counted


def test_a_breakdown_of_a_worst_row_adds_up() -> None:
    for one in shipped()["worst"]:
        assert sum(one["breakdown_s"].values()) == pytest.approx(one["step_time_s"], rel=1e-6)
        assert abs(one["error"]) >= abs(shipped()["worst"][-1]["error"])


# The command ---------------------------------------------------------------------------------------------


def test_command_json_counts_good_rows_and_names_bad_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text(GOOD, {**GOOD, "id": "b", "tp": "eight"}, {**GOOD, "id": "c", "accelerator": "abacus"}))
    result = whatif("accuracy", file, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 2  # bad input, told after the result
    assert (found["rows"], found["predicted"]) == (3, 1)
    assert [one["id"] for one in found["not_expressible"]] == ["c"]
    assert f"{file}:3:" in result.stderr
    assert "row b, column tp" in result.stderr
    assert "row b, column tp" in found["problems"][0]


def test_command_reports_and_files(tmp_path: Path) -> None:
    file, html, markdown = (tmp_path / name for name in ("mine.csv", "page.html", "table.md"))
    file.write_text(text(GOOD, {**GOOD, "id": "b", "recompute": ""}))
    result = whatif("accuracy", file, "--by", "gpu", "--html", html, "--markdown", markdown)
    assert result.exit_code == 0
    assert "a100-sxm-80gb" in result.stdout
    page = html.read_text()
    assert page.count("fill-opacity=") == 2
    assert "<script>" not in page
    assert "</svg>" in page
    inside = re.search(r'<script type="application/json" id="whatif-data">(.*?)</script>', page, re.DOTALL)
    assert inside
    assert json.loads(inside[1])["rows"] == 2
    table = markdown.read_text().splitlines()
    assert sum(line.startswith("| a100-sxm-80gb | 2 |") for line in table) == 1


@pytest.mark.parametrize("arguments", [["no-such.csv"], ["{csv}", "--html", "{csv}"], ["{csv}", "--markdown", "/"]])
def test_command_refuses_bad_targets(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text(GOOD))
    before = file.read_bytes()
    result = whatif("accuracy", *(argument.format(csv=file) for argument in arguments))
    assert result.exit_code == 2
    assert result.stderr.strip()
    assert file.read_bytes() == before


def test_same_input_same_document(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text(GOOD, {**GOOD, "id": "b", "micro_batch": ""}))
    first, second = (json.dumps({key: value for key, value in measure([str(file)])[0].items() if key != "run"})
                     for _ in range(2))
    assert first == second


def test_an_empty_table_is_no_crash() -> None:
    found = document(["none"], [], [])
    assert found["rows"] == 0
    assert found["families"] == {}
    assert found["average"]["mape"] is None
    assert group_rows(found["families"]) == []
    assert "</svg>" in scatter([], {})
