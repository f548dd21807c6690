"""Variants of a sweep that are priced as arrays, and those that cannot be."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from scenarios.build import training_inputs
from scenarios.commands.run import predict_prepared
from scenarios.errors import Place, ScenarioError
from scenarios.load import load, with_values
from scenarios.names import LIBRARY
from scenarios.sweep import values
from scenarios.sweep.columns import RESULTS
from scenarios.sweep.together import played_together
from scenarios.sweep.variants import Variants
from simulator.inputs import TrainingInputs
from simulator.predict import play, summary
from tests.scenarios.test_sweep import rows, whatif

TOGETHER = ["plan.tensor=1..8 x2", "plan.pipeline=1,2,4", "plan.virtual=1,2", "plan.schedule=1f1b,interleaved-1f1b",
            "plan.micro_batch=1,2", "plan.sequence_parallel=false,true", "plan.recompute=none,selective,full",
            "plan.sharding=zero-1,fsdp,mics", "stack.overlap=[],[data],[pipeline,tensor]",
            "plan.context=1,2"]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_variants_priced_together_are_those_priced_alone(seed: int) -> None:
    """A random part of a wide grid: at least half of what is sound goes through arrays, and nothing changes."""
    loaded = load(LIBRARY / "gpt-3-175b-64-a100.yaml", (), "gpt-3", related=False)
    grid, rng = values.grid(TOGETHER), random.Random(seed)
    variants = Variants(loaded)
    numbers_of_chunks, cases = list(range(grid.chunks(400))), list[TrainingInputs]()
    rng.shuffle(numbers_of_chunks)
    while len(cases) < 80:  # many a chunk holds nothing that can be laid
        for index in grid.chunk(numbers_of_chunks.pop(), 400):
            with contextlib.suppress(ScenarioError):
                cases.append(training_inputs(variants.loaded(grid.settings(index)), "analytic"))
    together = played_together(cases)
    assert len(together) > len(cases) / 2
    for place, played in together.items():
        alone, _ = summary(cases[place], play(cases[place]))
        numbers, _ = summary(cases[place], played)
        assert numbers["fits"] == alone["fits"]
        assert played.needed_bytes == pytest.approx(alone["peak_memory_bytes"]["hbm"], rel=1e-9)
        for name in set(RESULTS) - {"peak_memory_bytes"}:
            assert numbers[name] == pytest.approx(alone[name], rel=1e-9, abs=1e-12), name


def test_what_arrays_cannot_hold_is_left_to_be_priced_alone() -> None:
    loaded = load(LIBRARY / "gpt-3-175b-64-a100.yaml", (), "gpt-3", related=False)
    variants = Variants(loaded)
    cases = [training_inputs(variants.loaded({"plan.micro_batch": size, "plan.schedule": "zb-1p"}), "analytic")
             for size in (1, 2, 4)]  # fmt: skip
    assert played_together(cases) == {}


def test_unequal_accelerators_and_sequences_are_swept_one_by_one(tmp_path: Path) -> None:
    """Scenarios that `whatif search` refuses; the rows are again what `whatif run` says."""
    name = "unequal-32b-h100-a100"
    out = tmp_path / "out.csv"
    result = whatif("sweep", name, "--vary", "workload.global_batch=128,256", "--out", out)
    assert result.exit_code == 0, result.stderr
    base = load(LIBRARY / f"{name}.yaml", (), name)
    for row in rows(out):
        settings = {"workload.global_batch": int(row["workload.global_batch"])}
        expected = predict_prepared(with_values(base, settings, dict.fromkeys(settings, Place(""))), (), "analytic")
        assert float(row["step_time_s"]) == pytest.approx(expected["step_time_s"], rel=1e-11)
    wrong = whatif("sweep", name, "--vary", "plan.tensr=1")
    assert wrong.stderr == "--vary plan.tensr=1: unknown key 'tensr' in plan; did you mean 'tensor'?\n"
