"""Fitted kernel profiles: the fit recovers what it should, errs little on shapes it never saw, and bad tables
are refused by file and row."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from costmodel import catalog
from costmodel.calibration.build import build, grids, notes
from costmodel.calibration.fit import Samples, fit, fit_line, fit_surface, folds, surface_seconds
from costmodel.calibration.gemm import gemm_samples
from costmodel.calibration.tables import TableError, read_table
from costmodel.calibration.transport import ranks_hit
from costmodel.kernels import Pricer
from costmodel.operators import gemm
from costmodel.profiles import (
    BAND,
    MEASURED,
    POWER_EXPONENT,
    Rates,
    derived_rates,
    gemm_law_s,
    kernels_of,
    named,
    rates_of,
)

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
RATES = Rates({"bf16": 1e15}, 3e12)


def shared(folder):
    found = SHARED / folder
    if not found.exists():
        pytest.skip(f"shared/{folder} is not beside the checkout")
    return found


def synthetic(noise=0.0, rows=6000, seed=1):
    """GEMM times whose ratio to the law is linear in the logarithms of the shape: 1.2 (m/1024)^-0.1 (k/1024)^0.05."""
    generator = np.random.default_rng(seed)
    m, n, k = (2.0 ** generator.uniform(5, 15, rows) for _ in range(3))
    law = gemm_law_s(RATES, "bf16", m, n, k)
    floor = 3e-6
    seconds = (law + floor) * 1.2 * (m / 1024) ** -0.1 * (k / 1024) ** 0.05
    seconds *= np.exp(noise * generator.standard_normal(rows))
    shape = (np.log2(n).astype(int) * 100 + np.log2(k).astype(int))
    return Samples("gemm/bf16", "synthetic", (m, n, k), law, seconds, shape, (2.0, 2.0, 2.0))


def test_fit_recovers_a_synthetic_surface():
    clean = fit(synthetic())
    assert clean.in_sample.mape < 0.02
    assert clean.held_out.mape < 0.03
    noisy = fit(synthetic(noise=0.1))
    assert noisy.in_sample.mape == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.1)  # what the noise alone gives
    assert noisy.held_out.mape >= noisy.in_sample.mape


def test_robust_fit_ignores_runaway_rows():
    samples = synthetic(noise=0.02)
    truth = samples.seconds.copy()
    samples.seconds[::10] *= 5.0
    everything = np.ones(len(truth), dtype=bool)

    def median_error(robust):
        chosen = Samples(**{**samples.__dict__, "robust": robust})
        predicted = surface_seconds(fit_surface(chosen), chosen, everything)
        return np.median(np.abs(predicted / truth - 1))

    assert median_error(True) < 0.04 < median_error(False)


def test_whole_shapes_are_held_out():
    shape = np.repeat(np.arange(40), 7)
    fold = folds(shape)
    assert {len(set(fold[shape == number])) for number in range(40)} == {1}
    assert sorted(np.bincount(fold)) == [70, 70, 70, 70]


def test_line_is_recovered_and_never_negative():
    size = np.array([1e3, 1e5, 1e7, 1e9])
    line = fit_line(size, 5e-6 + size / 2e11)
    assert (line.floor_s, line.per_s) == (pytest.approx(5e-6), pytest.approx(2e11))
    assert fit_line(size, size / 2e11 * np.array([0.5, 1, 1, 1])).floor_s >= 0


def test_ranks_hit_by_brute_force():
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 8, (20000, 6))
    assert np.mean([len(set(row)) for row in drawn]) == pytest.approx(float(ranks_hit(8, 6)), rel=0.01)


@pytest.mark.parametrize("name", sorted(MEASURED.values()))
def test_committed_profiles_meet_the_stated_bounds(name):
    """accuracy_notes.md: bf16 4-6 % on left-out shapes (A100, an older release with a third of the rows, 7 %),
    low precision 8-12 %; prefill attention as good, the median below 5 %."""
    found = named(name)
    assert found.held_out["gemm/bf16"] < (0.07 if name == "a100" else 0.06)
    for surface, error in found.held_out.items():
        if surface.startswith(("gemm", "prefill", "latent")):
            assert error < 0.12, surface
        assert error < 0.25, surface


@pytest.mark.parametrize(("name", "dtype"), [("h100", "bf16"), ("b200", "fp8")])
def test_profile_prices_the_measured_table(name, dtype):
    """The committed surface against the raw rows, independent of the fit's own report."""
    import pandas as pd

    frame = pd.read_csv(shared("kernels") / f"gemm_{name}_sxm.csv.gz")
    table = {"bf16": "bfloat16", "fp8": "fp8"}[dtype]
    frame = frame[(frame.framework == "trtllm") & (frame.gemm_dtype == table) & (frame.m >= 1024)]
    frame = frame[(frame.n >= 1024) & (frame.k >= 1024)]
    part = next(part for part, profile in MEASURED.items() if profile == name)
    kernels = kernels_of(catalog.accelerator(part))
    predicted = kernels.gemm_s(dtype, *(frame[c].to_numpy() for c in "mnk"))
    if dtype == "fp8":  # the table's time includes the cast: at least 3 bytes a number, at most 5 and its launches
        predicted = predicted + kernels.measured.quantize_floor_s["fp8"]
        predicted = predicted + (frame.m * frame.k).to_numpy() * 5.0 / (0.85 * kernels.rates.bytes_per_s)
    error = np.abs(predicted / (frame.latency_ms.to_numpy() * 1e-3) - 1)
    assert np.mean(error) < 0.09
    assert np.median(error) < 0.06


def test_committed_profile_is_what_the_command_makes():
    kernels = shared("kernels")
    built = build("a100", kernels, shared("profiles_raw"))
    from costmodel.profiles import FOLDER, read

    committed = read(FOLDER / "a100.yaml")
    made, stated = grids(built), notes(built)
    assert set(made) == set(committed.surfaces)
    for name, grid in made.items():
        thousandths = np.ravel(committed.surfaces[name].values) * 1000
        np.testing.assert_allclose(grid["milli_ln_ratio"], thousandths, atol=1.5)
        assert stated["surfaces"][name]["floor_s"] == committed.surfaces[name].floor_s
    assert stated["memory"]["norm"]["bytes_per_s"] == pytest.approx(committed.memory["norm"].per_s, rel=1e-3)


@pytest.mark.parametrize("part", ["a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm", "b200-sxm"])
def test_more_work_never_costs_less_time(part):
    kernels = kernels_of(catalog.accelerator(part))
    for kind in kernels.rates.flops_per_s:
        axis = 2.0 ** np.arange(8, 15.01, 0.125)
        other = 2.0 ** np.arange(8, 15.01, 1.0)
        for vary in range(3):
            shape = [axis[:, None, None], other[None, :, None], other[None, None, :]]
            m, n, k = shape[vary:] + shape[:vary]
            time_s = np.broadcast_to(kernels.gemm_s(kind, m, n, k), (len(axis), len(other), len(other)))
            assert np.all(time_s[1:] > 0.95 * time_s[:-1])  # an eighth of an octave
            assert np.all(time_s[8:] >= 0.97 * time_s[:-8])  # twice the work


@pytest.mark.parametrize("part", ["a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm", "b200-sxm"])
def test_large_products_stay_below_the_data_sheet(part):
    kernels = kernels_of(catalog.accelerator(part))
    size = 2.0 ** np.arange(10, 18)
    m, n, k = size[:, None, None], size[None, :, None], size[None, None, :]
    for kind, peak in kernels.rates.flops_per_s.items():
        assert np.all(kernels.gemm_s(kind, m, n, k) > 2 * m * n * k / peak)


def test_ten_thousand_shapes_in_twenty_milliseconds():
    price = Pricer(catalog.accelerator("h100-sxm-80gb"), "bf16", 1.0, "flash-3")
    m, n, k = (2.0 ** np.random.default_rng(0).uniform(5, 15, 10000) for _ in range(3))
    operator = gemm("product", m, n, k)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        price.gemm_s(operator, m, n, k)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.02


def test_arrays_price_like_scalars():
    price = Pricer(catalog.accelerator("b200-sxm"), "fp8", 1.0, "cudnn")
    m, groups = np.array([64.0, 4096.0, 0.25]), np.array([8, 1, 64])
    together = price.gemm_s(gemm("product", m, 2048, 7168, groups), m, 2048, 7168)
    for i in range(3):
        alone = price.gemm_s(gemm("product", m[i], 2048, 7168, groups[i]), m[i], 2048, 7168)
        assert together[i] == pytest.approx(float(alone))


def test_few_rows_touch_few_experts():
    """A quarter row an expert reads a quarter of the weights (the table: 2, 4, 8 of 8 experts for 1, 2, 4 tokens)."""
    kernels = kernels_of(catalog.accelerator("h100-sxm-80gb"))
    shape = 0.25, 14336 * 2, 4096
    few = kernels.grouped_gemm_s("bf16", shape, 8, 0.25, shape[1] * shape[2])
    all_of_them = kernels.grouped_gemm_s("bf16", (1, *shape[1:]), 8, 1, shape[1] * shape[2])
    assert 0.2 < few / all_of_them < 0.35


def test_decode_reads_the_cache():
    """A long context at a large batch: at least the cache's bytes at 60-100 % of the bandwidth; fp8 is faster."""
    kernels = kernels_of(catalog.accelerator("h200-sxm"))
    seconds = kernels.decode_attention_s("bf16", 64, 16384, 64, 8, 128)
    size_bytes = 64 * 16384 * 8 * 256 * 2
    assert 0.6 < size_bytes / seconds / 4.8e12 <= 1.0
    assert kernels.decode_attention_s("fp8", 64, 16384, 64, 8, 128) < seconds
    window = kernels.decode_attention_s("bf16", 64, 16384, 64, 8, 64, window=128)
    assert window < 0.2 * kernels.decode_attention_s("bf16", 64, 16384, 64, 8, 64)
    latent = kernels.latent_decode_s("bf16", 64, 16384, 128)
    assert latent > 64 * 16384 * 576 * 2 / 4.8e12


def test_power_rule_and_bands():
    b200, gb300 = catalog.accelerator("b200-sxm"), catalog.accelerator("gb300")
    faster = (gb300.power_w / b200.power_w) ** POWER_EXPONENT
    found = kernels_of(gb300)
    assert found.rates.flops_per_s["bf16"] == pytest.approx(faster * b200.peak_flops_per_s["bf16"])
    assert (found.basis, found.band) == ("derived", BAND["derived"])
    assert found.band > kernels_of(b200).band
    pcie, sxm = catalog.accelerator("h100-pcie"), catalog.accelerator("h100-sxm-80gb")
    slower = (pcie.power_w / sxm.power_w) ** POWER_EXPONENT
    assert derived_rates(pcie, sxm).flops_per_s["bf16"] == pytest.approx(slower * sxm.peak_flops_per_s["bf16"])
    h20 = catalog.accelerator("h20")  # its peak, not its power, limits it
    assert derived_rates(h20, sxm).flops_per_s["bf16"] == rates_of(h20).flops_per_s["bf16"]
    assert kernels_of(catalog.accelerator("mi300x")) is None
    assert Pricer(catalog.accelerator("mi300x"), "bf16", 1.0, "flash-2").basis == "generic"


HEADER = "framework,version,gemm_dtype,m,n,k,latency_ms\n"
GOOD = "trtllm,1.0,bfloat16,64,64,64,0.01\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "no rows"),
        (HEADER.replace("n,k", "n,depth") + GOOD, r":1: has no column 'k'"),
        (HEADER + GOOD + "trtllm,1.0,bfloat16,64,many,64,0.01\n", r":3: n is 'many'"),
        (HEADER + GOOD + GOOD + "trtllm,1.0,bfloat16,64,64,64,0\n", r":4: latency_ms is '0\S*'; a number above 0"),
        (HEADER + GOOD + "trtllm,1.0,bfloat16,64,64,64,\n", r":3: latency_ms is 'nan'"),
        (HEADER + GOOD.replace("trtllm", "other"), "no rows with framework trtllm"),
    ],
)
def test_bad_tables_are_refused_by_file_and_row(tmp_path, text, message):
    path = tmp_path / "gemm_a100_sxm.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(TableError, match=message) as caught:
        gemm_samples(path, RATES)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_gzip_is_refused(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_text("m,n\n1,2\n")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(path, (), ("m",))


def test_command_ends_with_two_on_bad_input(tmp_path):
    from scenarios.cli import app

    runner = CliRunner()
    nothing = runner.invoke(app, ["calibrate", "fit", "--kernels", str(tmp_path), "-o", str(tmp_path)])
    assert nothing.exit_code == 2
    assert "holds none of gemm_a100_sxm.csv.gz" in nothing.output
    (tmp_path / "gemm_a100_sxm.csv.gz").write_bytes(gzip.compress((HEADER + GOOD + GOOD[:-5] + "x\n").encode()))
    bad = runner.invoke(app, ["calibrate", "fit", "--kernels", str(tmp_path), "-o", str(tmp_path)])
    assert bad.exit_code == 2
    assert "gemm_a100_sxm.csv.gz:3" in bad.output
    assert not (tmp_path / "a100.yaml").exists()


def test_command_writes_profiles_that_load(tmp_path):
    import json

    from costmodel.profiles import read
    from scenarios.cli import app

    rows = [f"trtllm,1.0,bfloat16,{m},{n},{k},{0.003 + 2e-12 * m * n * k / 0.25:.6g}"
            for m in (1, 64, 1024, 8192) for n in (256, 2048, 8192) for k in (256, 4096)]
    (tmp_path / "gemm_a100_sxm.csv.gz").write_bytes(gzip.compress((HEADER + "\n".join(rows)).encode()))
    ran = CliRunner().invoke(app, ["calibrate", "fit", "--kernels", str(tmp_path), "-o", str(tmp_path), "--json"])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert document["profiles"]["a100"]["surfaces"]["gemm/bf16"]["rows"] == len(rows)
    found = read(tmp_path / "a100.yaml")
    assert set(found.surfaces) == {"gemm/bf16"}
    assert "gemm/bf16" in (tmp_path / "calibration.md").read_text()
