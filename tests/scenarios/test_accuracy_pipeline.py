"""`whatif accuracy` on tables of papers on pipeline schedules: what a row becomes, what is scored, and how well."""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from costmodel import parameters
from placement import schedules
from placement.plan import layers_of_chunks
from scenarios.accuracy import pass_times, predict, rows, schedule_score, score
from scenarios.accuracy.importer import import_row
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.papers import PAPERS, SCHEDULES
from scenarios.accuracy.schedule_import import redistributed
from scenarios.commands.accuracy import PUBLISHED_SCHEDULES

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "published" / "pipeline.csv"
EXPRESSIBLE = {"ZeroBubble-T4": 48, "ZeroBubble-T7": 4, "ZeroBubble-T8": 24, "ZeroBubble-T9": 24,
               "VocabularyParallelism-T5": 120, "VocabularyParallelism-T6": 48, "ControllableMemory-T3": 12,
               "ControllableMemory-T4": 5,
               "Megatron-SC21-T1": 10, "Megatron-SC21-T2": 12}


@cache
def shipped() -> dict[str, rows.Row]:
    return {row.id: row for row in rows.read(PUBLISHED_SCHEDULES).rows}


def family(*names: str) -> list[rows.Row]:
    return [row for row in shipped().values() if row.family in names]


@cache
def scored(name: str, metric: str) -> list[score.Scored]:
    outcomes = predict.outcomes([row for row in family(name) if row.text("metric") == metric])
    return [one for outcome in outcomes for one in score.score(outcome)]


def mape(found: list[score.Scored]) -> float:
    return sum(abs(one.error) for one in found) / len(found)


def parsed(**changes: str) -> rows.Rows:
    base = {"id": "a", "source": "Zero Bubble PP, arXiv 2401.10241", "table": "Table 4", "model": "m",
            "layers": "30", "hidden": "4096", "heads": "32", "seq": "1024", "gpus": "8", "pp": "8", "vp": "1",
            "tp": "1", "dp": "1", "micro_batch": "3", "num_micro": "24", "schedule": "ZB-2p", "metric": "throughput",
            "value": "4.32", "unit": "samples/GPU/s"}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows.PIPELINE.all, restval="")
    writer.writeheader()
    writer.writerow({**base, **changes})
    return rows.parse(buffer.getvalue(), "f.csv")


def made(**changes: str) -> rows.Row:
    (row,) = parsed(**changes).rows
    return row


# Reading -------------------------------------------------------------------------------------------------


def test_columns_decide_which_table_it_is() -> None:
    assert made().of_schedule
    assert not next(iter(rows.read(PUBLISHED_SCHEDULES.with_name("training.csv")).rows)).of_schedule


def test_the_artifact_is_not_shipped() -> None:
    assert len(shipped()) == 441
    assert not [row for row in shipped().values() if row.text("table") == "artifact"]
    if SHARED.exists():
        shared = rows.read(SHARED)
        assert not shared.problems
        assert {row.id for row in shared.rows if row.text("table") != "artifact"} == set(shipped())


@pytest.mark.parametrize(("changes", "told"), [
    ({"gpus": "16"}, "gpus"), ({"pp": "x"}, "pp"), ({"value": "fast"}, "value"), ({"num_micro": "0"}, "num_micro")])
def test_a_bad_cell_names_row_and_column(changes: dict[str, str], told: str) -> None:
    (problem,) = parsed(**changes).problems
    assert f"row a, column {told}" in str(problem)


# What a row becomes --------------------------------------------------------------------------------------


def test_every_value_is_predicted_or_has_a_reason() -> None:
    found: dict[str, int] = {}
    for row in shipped().values():
        if row.family not in EXPRESSIBLE:
            with pytest.raises(NotExpressible, match=r"\w"):
                import_row(row)
            continue
        assert import_row(row).alternatives
        found[row.family] = found.get(row.family, 0) + 1
    assert found == EXPRESSIBLE


def test_models_have_the_printed_size() -> None:
    """The vocabulary of the Zero Bubble models is inferred from these very figures; the other two are not."""
    for row in family("ZeroBubble-T4", "VocabularyParallelism-T5"):
        count = parameters.count(import_row(row).alternatives[0].model) / 1e9
        within = 0.05 if row.family.startswith("Zero") else 0.12 * row.values["params_b"] + 0.7  # type: ignore[operator]
        if row.text("vocab") in ("", "32k", "64k"):
            assert count == pytest.approx(row.number("params_b"), abs=within)


def test_zero_bubble_rows_hold_one_layer_less_at_either_end() -> None:
    for row in family("ZeroBubble-T4", "ZeroBubble-T8"):
        (inputs,) = import_row(row).alternatives
        sizes = layers_of_chunks(len(inputs.model.layers), inputs.plan)
        assert sizes[0] == sizes[-1] == sizes[1] - 1 == max(sizes) - 1
        assert sum(sizes) == row.integer("layers")


def test_schedules_of_the_registry_and_their_barriers() -> None:
    assert {name for name, _ in SCHEDULES.values()} <= set(schedules.names())
    barrier = {row.text("schedule"): import_row(row).alternatives[0].plan.optimizer_barrier
               for row in family("ZeroBubble-T4", "ZeroBubble-T7")}
    assert barrier == {"1F1B": True, "1F1B-I": True, "ZB-1p": False, "ZB-2p": False, "ZB-2p post-validation": False,
                       "ZB-2p all-reduce sync": True}


def test_layers_move_away_from_the_head_as_in_the_artifact() -> None:
    """Layers of the last stage in artifact/full_exp.sh's settings: 4 billion parameters, both sequence lengths."""
    for vocabulary, last in ((32_000, 4), (64_000, 3), (128_000, 2), (256_000, 0)):
        for sequence in (2048, 4096):
            layers = redistributed(32, 8, 3072, sequence, vocabulary)
            assert (layers[-1], sum(layers), len(layers)) == (last, 32, 8)
            assert max(layers[:-1]) - min(layers[:-1]) <= 1


def test_unknown_sources_and_schedules_are_reasons() -> None:
    for changes, told in (({"source": "A blog"}, "A blog"), ({"schedule": "ZB-9p"}, "ZB-9p"), ({"pp": ""}, "pp")):
        with pytest.raises(NotExpressible, match=told):
            import_row(made(**changes))


def test_every_paper_says_where_its_facts_were_read() -> None:
    assert all(paper.source for paper in PAPERS)


# Units ---------------------------------------------------------------------------------------------------


def test_units_of_the_papers() -> None:
    """Closed forms: samples a second; 3 x the forward FLOPs of artifact/quick_exp.sh; 8/6 of 6 N for recomputation."""
    (one,) = predict.outcomes([made()])[0].range
    assert schedule_score.samples_per_s_per_gpu(one) == pytest.approx(3 * 24 / 8 / one.step_time_s)
    batch, s, h, v, layers = 72, 1024, 4096, 32_000, 30
    tokens = batch * s
    forward = 2 * tokens * h * v + layers * (8 * tokens * h * h + 4 * tokens * s * h + 4 * tokens * h * 4 * h)
    assert schedule_score.counted_flops(one) == pytest.approx(3 * forward)
    assert schedule_score.mfu_percent(one) == pytest.approx(100 * 3 * forward / one.step_time_s / 8 / 312e12)
    with_recompute = tokens * (layers * (24 * h * h + 4 * s * h) * 4 + 6 * h * v)
    assert schedule_score.recomputed_tflops(one) == pytest.approx(with_recompute / one.step_time_s / 8 / 1e12)


# How well ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "metric", "most"), [
    ("ZeroBubble-T4", "throughput", 0.05), ("ZeroBubble-T8", "throughput", 0.05), ("ZeroBubble-T9", "throughput", 0.05),
    ("ZeroBubble-T7", "throughput", 0.07), ("VocabularyParallelism-T5", "MFU", 0.08),
    ("Megatron-SC21-T1", "achieved_tflops", 0.05), ("ZeroBubble-T4", "peak_memory", 0.04),
    ("ZeroBubble-T8", "peak_memory", 0.05), ("ZeroBubble-T9", "peak_memory", 0.06),
    ("VocabularyParallelism-T5", "peak_memory", 0.03)])
def test_mean_error(name: str, metric: str, most: float) -> None:
    assert mape(scored(name, metric)) < most


def test_schedules_are_ranked_as_measured() -> None:
    """Inside one model and number of micro-batches, where two schedules differ by more than 4 %."""
    found = scored("ZeroBubble-T4", "throughput")

    def setting(one: score.Scored) -> tuple[int | None, int | None]:
        return one.row.integer("layers"), one.row.integer("num_micro")

    pairs = [(a, b) for a in found for b in found if setting(a) == setting(b) and a.measured > 1.04 * b.measured]
    assert len(pairs) > 20
    assert all(a.predicted > b.predicted for a, b in pairs)


def test_every_term_of_the_measured_pass_times_is_in_the_step() -> None:
    """Ends, sends and the optimizer bring the played order nearer to the measured step, and its schedules together."""
    outcomes = predict.outcomes(family("ZeroBubble-T4", "ZeroBubble-T6"))
    found = pass_times.document(outcomes)
    assert found["rows"] == 24
    assert found["optimizer"]["mape"] < 0.05 < found["equal_stages"]["mape"]

    def spread(term: str) -> float:
        errors = [row["errors"][term] for row in found["per_row"]]
        return max(errors) - min(errors)

    assert spread("optimizer") < spread("equal_stages")


def test_equal_stages_without_latency_follow_the_law() -> None:
    """1F1B with equal stages: (m + p - 1)(F + B + W), whatever the ends of the model."""
    (inputs,) = import_row(made(schedule="1F1B")).alternatives
    found: Any = pass_times.steps(inputs, pass_times.PassTimes(0.003, 0.004, 0.002, 0.0))
    assert found["equal_stages"] == pytest.approx((24 + 7) * 0.009)
