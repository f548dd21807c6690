"""Error bands: the random-effects model against draws, closed forms, and what must widen them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from costmodel.profiles import BAND
from scenarios.build import training_inputs
from scenarios.load import load
from scenarios.names import LIBRARY
from simulator import bands, predict
from simulator.bands import Residuals, Statistics

CELL = ("dense", "hopper", "fp8", "pipeline", "up to 16 GPUs")


def of(family, rms, rows=10, cell=CELL):
    return Residuals(cell, family, rows, 0.0, rms**2)


def half(found):
    assert found.low * found.high == pytest.approx(1.0)
    return math.log(found.high)


def inputs_of(name, *settings):
    return training_inputs(load(LIBRARY / f"{name}.yaml", settings, name))


@pytest.mark.parametrize(("freedom", "value"), [(1, 3.078), (2, 1.886), (5, 1.476), (7, 1.415), (60, 1.296)])
def test_student_t_quantile(freedom, value):
    """Tables of the t distribution, 90 %."""
    assert bands.student_t(freedom) == pytest.approx(value, rel=0.04 if freedom == 1 else 0.004)


def test_many_equal_families_give_the_normal_band():
    found = bands.band(CELL, [of(f"f{n}", 0.1) for n in range(1000)])
    assert half(found) == pytest.approx(1.28155 * 0.1, rel=0.01)


def test_holds_for_new_families_of_a_random_effects_model():
    """Eight families with their own bias and scatter within; the ninth is inside in 80 % of the draws."""
    rng, inside = np.random.default_rng(3), []
    for _ in range(400):
        runs = rng.normal(0, 0.1, (9, 1)) + rng.normal(0, 0.05, (9, 20))
        known = [Residuals(CELL, f"f{n}", 20, 0.0, float(np.mean(row**2))) for n, row in enumerate(runs[:8])]
        inside.append(np.mean(np.abs(runs[8]) <= half(bands.band(CELL, known))))
    assert 0.75 <= np.mean(inside) <= 0.85


def test_a_long_table_does_not_outvote_a_short_one():
    few = bands.band((), [of("a", 0.1, 1), of("b", 0.2, 1)])
    many = bands.band((), [of("a", 0.1, 1000), of("b", 0.2, 1)])
    assert half(few) == pytest.approx(half(many))


def test_an_empty_cell_leans_on_the_coarser_one_and_says_so():
    known = [of("a", 0.1), of("b", 0.1), of("c", 0.3, cell=("MoE", *CELL[1:]))]
    dense, moe = (bands.band((kind, *CELL[1:]), known) for kind in ("dense", "MoE"))
    other = bands.band(("dense", "ampere", *CELL[2:]), known)
    assert half(dense) < half(other) < half(moe)
    assert (dense.rows, dense.families) == (20, 2)
    assert "up to 16 GPUs" in dense.basis
    assert "all kinds" in moe.basis  # one family alone is not named as what the band rests on


def test_leaving_a_family_out_forgets_it():
    known = [of("a", 0.1), of("b", 0.1), of("wild", 0.9)]
    assert half(bands.band(CELL, known, without="wild")) == pytest.approx(half(bands.band(CELL, known[:2])))
    assert bands.band(CELL, [of("a", 0.1)], without="a") is None


def test_unknown_inputs_and_unmeasured_kernels_widen():
    known = Statistics(tuple(of(f"f{n}", 0.1) for n in range(8)), unknown_variance=0.01)
    widths = [half(bands.time_band(CELL, BAND["measured"], unknown, known)) for unknown in range(4)]
    assert widths == sorted(set(widths))
    derived = half(bands.time_band(CELL, BAND["derived"], 0, known))
    generic = half(bands.time_band(CELL, 0.25, 0, known))
    assert widths[0] < derived < generic
    same = tuple(replace(one, kernels=bands.kernel_variance(BAND["derived"])) for one in known.time)
    assert half(bands.time_band(CELL, BAND["derived"], 0, Statistics(same))) == pytest.approx(widths[0])


def test_notes_on_assumed_inputs_widen_the_band_of_a_scenario():
    inputs = inputs_of("llama-3.1-8b-8xh100")
    noted = replace(inputs, assumptions=({"key": "plan.virtual", "text": "not published"},))
    plain, wider = (predict.predict_training(replace(one, fidelity="analytic"))["error_band"]
                    for one in (replace(inputs, assumptions=()), noted))
    assert wider["step_time_s"][0] < plain["step_time_s"][0] < plain["step_time_s"][1] < wider["step_time_s"][1]
    assert "assumed" in wider["basis"]


def test_time_and_speed_bands_are_the_same_runs():
    document = predict.predict_training(inputs_of("llama-3.1-8b-8xh100"))
    band = document["error_band"]
    work = document["step_time_s"] * document["tokens_per_s_per_gpu"]
    for time, speed in zip(band["step_time_s"], reversed(band["tokens_per_s_per_gpu"]), strict=True):
        assert time * speed == pytest.approx(work)


def test_without_residuals_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(bands, "shipped", Statistics)
    document = predict.predict_training(inputs_of("llama-3.1-8b-8xh100"))
    assert document["error_band"] is None
    assert "--update-bands" in document["reasons"]["error_band"]
