"""Residual statistics of published runs: the file, the rows' bands, and whether they hold for unseen families."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
from ruamel.yaml import YAML

from costmodel import constants
from scenarios.accuracy import bands as made_here
from scenarios.accuracy import fit, rows
from scenarios.accuracy.bands import memory_residuals
from scenarios.accuracy.predict import outcomes
from scenarios.accuracy.score import score
from scenarios.commands import accuracy
from simulator import bands
from simulator.predict import setting_of
from tests.scenarios.test_accuracy_rows import GOOD, SHARED, text


def test_80_percent_bands_hold_for_75_to_85_percent_of_families_left_out() -> None:
    """Fresh predictions with constants refitted without the row's family, bands without its residuals."""
    if not SHARED.exists():
        pytest.skip("shared/published/training.csv is not here")
    found = fit.cases(rows.read(SHARED).rows)
    errors, apart = fit.left_out_errors(found, constants.default())
    known = bands.Statistics(made_here.time_residuals(found, errors, apart))
    inside = defaultdict[str, list[bool]](list)
    for case, error in zip(found, apart, strict=True):
        kernels = setting_of(case.inputs).pricer.band
        band = bands.time_band(bands.cell_of(case.inputs), kernels, 0, known, without=case.family)
        assert band is not None
        inside[case.family].append(math.log(band.low) <= -float(error) <= math.log(band.high))
    assert len(inside) >= 8
    shares = {name: fmean(of) for name, of in inside.items()}
    assert 0.75 <= fmean(shares.values()) <= 0.85, shares


def test_the_file_is_read_back_as_it_was_made(tmp_path: Path) -> None:
    file, target = tmp_path / "mine.csv", tmp_path / "residuals.yaml"
    other = {**GOOD, "id": "b", "family": "MPT", "tokens_per_s_per_gpu": "15000", "micro_batch": "2"}
    file.write_text(text(GOOD, other, {**GOOD, "id": "c", "recompute": ""}))
    accuracy.write_bands([str(file)], target)
    raw = YAML(typ="safe", pure=True).load(target.read_text())
    assert raw["families"] == sorted({GOOD["family"], "MPT"})
    assert sum(one["rows"] for one in raw["time"]) == 2
    assert raw["unknown_variance"] > 0
    for one in raw["time"]:
        assert one["mean_square"] >= one["mean"] ** 2 - 1e-3
        assert len(one["cell"]) == 5


def test_memory_counts_a_configuration_once(tmp_path: Path) -> None:
    file = tmp_path / "memory.csv"
    row = {**GOOD, "score_memory": "1", "peak_mem_gib": "10", "memory_basis": "allocated"}
    file.write_text(text(row, {**row, "id": "b"}))
    scored = [one for outcome in outcomes(rows.read(file).rows) for one in score(outcome)]
    (found,) = memory_residuals(scored)
    allocated = next(one for one in scored if one.metric == "allocated_bytes")
    assert found.rows == 1
    assert found.mean == pytest.approx(math.log(allocated.predicted / allocated.measured), abs=1e-4)


def test_rows_carry_their_band_and_the_summary_counts_them(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(text(GOOD, {**GOOD, "id": "b", "recompute": ""}))
    document, _ = accuracy.measure([str(file)])
    whole, ranged = document["per_row"]
    assert whole["band"][0] < whole["predicted"] < whole["band"][1]
    assert ranged["band"][0] < ranged["range"][0] < ranged["range"][1] < ranged["band"][1]
    assert document["bands"]["level"] == bands.LEVEL
    assert document["bands"]["rows"] == document["bands"]["ranges"]["rows"] == 1
    assert document["bands"]["held"] == float(whole["band"][0] <= whole["measured"] <= whole["band"][1])


def test_a_range_without_spread_adds_no_variance() -> None:
    assert made_here.unknown_variance([]) == 0.0
