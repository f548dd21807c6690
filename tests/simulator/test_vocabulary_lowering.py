"""Steps whose output layer is split over the pipeline: the two fidelities, what every rank holds, and the baseline."""

from __future__ import annotations

import csv

import pytest

from costmodel import parameters
from costmodel.stack import Stack
from placement.memory import resident_bytes
from placement.passes import Setting
from placement.pipeline import output_layer
from placement.state_traffic import chunks_with_traffic
from placement.step import analytic_step
from scenarios.build import training_inputs
from scenarios.load import load, variants
from scenarios.names import LIBRARY
from simulator.engine import static
from simulator.predict import play
from simulator.training import lower
from tests.placement.test_schedules import published
from tests.training_cases import setting

NAMES = ["1f1b-vocab-1", "1f1b-vocab-2", "1f1b-interlaced", "v-half-vocab-1", "v-half-vocab-2"]
STACK = Stack("fused", "flash-2", ("pipeline",))


def pipeline(schedule: str, **plan: object) -> Setting:
    return setting(node="hgx-a100", sequence=2048, stack=STACK, pipeline=8, schedule=schedule,
                   virtual=2 if schedule.startswith("v-half") else 1, sharding="ddp", **plan)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("global_batch", [8, 32])
def test_the_fidelities_agree(name: str, global_batch: int) -> None:
    case = pipeline(name)
    played, closed = static.play(lower(case, global_batch).program), analytic_step(case, global_batch)
    assert closed.step_time_s == pytest.approx(played.makespan_s, rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_holds_and_computes_a_share_of_both_ends(name: str) -> None:
    """Embedding and head by the model's own count, divided by the ranks (but for the final norm, on each)."""
    case = pipeline(name)
    model, chunks = case.model, chunks_with_traffic(case)
    share, layer = output_layer(case).unit, parameters.layer_parameters(model.layers[0], model.hidden, model.norm)
    norm = parameters.norm_parameters(model.norm, model.hidden)
    ends = parameters.count(model) - len(model.layers) * layer
    assert share.dense_parameters == pytest.approx((ends - norm) / 8 + norm)
    assert sum(chunk.whole.dense_parameters for chunk in chunks) == pytest.approx(len(model.layers) * layer)
    held = resident_bytes(case, [share])["parameters"]
    assert held == pytest.approx(2 * share.dense_parameters)


def test_splitting_the_vocabulary_levels_the_stages() -> None:
    """The busiest stage does a p-th of all work; whole on the last stage, the head of 128k words stalls the others."""
    whole, split = (analytic_step(pipeline(name), 64) for name in ("1f1b", "1f1b-vocab-1"))
    assert split.step_time_s < whole.step_time_s
    busy = [sum(stage.values()) - stage["bubble"] for stage in split.breakdown_by_stage]
    assert max(busy) == pytest.approx(min(busy), rel=1e-9)


def test_what_splitting_gains_is_what_was_measured() -> None:
    """Vocabulary Parallelism, table 5 (256k words, 8 A100): step times to those of Vocab-1 as the inverse of the MFU.

    The absolute time is the machine's affair; how orders compare is the schedule's.
    """
    with published("pipeline.csv").open() as file:
        rows = [row for row in csv.DictReader(file)
                if (row["table"], row["metric"], row["vocab"], row["seq"], row["gpus"])
                == ("Table 5", "MFU", "256k", "2048", "8")]
    measured = {row["schedule"].removeprefix("1F1B "): float(row["value"]) for row in rows}
    base = load(LIBRARY / "vocabulary-4b-256k-a100.yaml")
    names = dict(zip(["Baseline", "Redis", "Vocab-2", "Interlaced"], variants(base), strict=False))
    split_s = play(training_inputs(base)).step.step_time_s
    for name, variant in names.items():
        ratio = play(training_inputs(variant)).step.step_time_s / split_s
        assert ratio == pytest.approx(measured["Vocab-1"] / measured[name], rel=0.06), name
