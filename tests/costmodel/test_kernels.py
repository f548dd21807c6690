"""Kernel prices: bounded by the data sheet, monotone, and near the measured curves they stand for."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from costmodel import catalog
from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from costmodel.kernels import PROFILES, Pricer, peak_flops_per_s, profile, wave_efficiency
from costmodel.operators import Operator, Shard, gemm, layer_operators
from costmodel.stack import Stack
from placement.passes import Setting, layer_price, total
from placement.plan import Plan

CURVES_FILE = Path(__file__).resolve().parents[1] / "golden" / "kernel_curves.csv"


def pricer(name="h100-sxm-80gb", precision="bf16", attention="flash-3", traffic=1.0):
    return Pricer(catalog.accelerator(name), precision, traffic, attention)


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "a100-sxm-80gb", "b200-sxm", "mi300x"])
def test_nothing_beats_the_data_sheet(name):
    part, price = catalog.accelerator(name), pricer(name)
    model = catalog_model("llama-3.1-8b")
    for operator in layer_operators(model, model.layers[0], Shard(1, 8192)):
        time_s = sum(price.forward_s(operator).values())
        assert time_s >= operator.forward_flops / part.peak_flops_per_s["bf16"]
        assert time_s >= 0.5 * operator.forward_bytes / part.memory.read_bandwidth_bytes_per_s


def test_time_grows_with_every_dimension():
    price = pricer()
    sizes = [128, 256, 1024, 4096, 16384]
    for vary in range(3):
        times = []
        for size in sizes:
            shape = [4096, 4096, 4096]
            shape[vary] = size
            operator = gemm("product", *shape)
            times.append(float(price.gemm_s(operator, operator.m, operator.n, operator.k)))
        assert times == sorted(times)


def test_faster_types_are_faster_and_more_bandwidth_helps_decode():
    operator = gemm("product", 8192, 8192, 8192)
    fp8, bf16 = pricer(precision="fp8"), pricer()
    assert fp8.gemm_s(operator, 8192, 8192, 8192) < bf16.gemm_s(operator, 8192, 8192, 8192)
    thin = gemm("product", 1, 8192, 8192)
    h200 = pricer("h200-sxm")
    assert h200.gemm_s(thin, 1, 8192, 8192) < bf16.gemm_s(thin, 1, 8192, 8192)


def test_head_stays_in_bf16_under_an_fp8_recipe():
    narrow, wide = gemm("a", 4096, 4096, 4096), gemm("a", 4096, 4096, 4096, narrow=False)
    price = pricer(precision="fp8")
    assert price.forward_s(wide)["gemm"] == pytest.approx(pricer().forward_s(wide)["gemm"])
    assert price.forward_s(wide)["gemm"] > price.forward_s(narrow)["gemm"]
    assert price.forward_s(wide)["quantize"] == 0 < price.forward_s(narrow)["quantize"]


def test_wave_efficiency_is_a_share():
    m, n = np.meshgrid(np.arange(1, 3000, 37), np.arange(1, 3000, 41))
    used = wave_efficiency(m, n, (128, 128), 132)
    assert np.all((used > 0) & (used <= 1))
    assert wave_efficiency(128 * 12, 128 * 11, (128, 128), 132) == 1.0


def test_a_missing_peak_is_refused_by_name():
    with pytest.raises(ValueError, match=r"a100-sxm-80gb has no fp8 peak.*bf16"):
        peak_flops_per_s(catalog.accelerator("a100-sxm-80gb"), "fp8")


@pytest.mark.parametrize("generation", ["ampere", "hopper", "blackwell", "generic"])
def test_every_constant_has_a_source(generation):
    assert (PROFILES / f"{generation}.yaml").exists()
    found = profile(generation)
    for block in ("gemm", "memory", "launch", "attention"):
        assert len(found.sources[block]) > 10


CURVES = [
    ("FA2 fwd+bwd A100 hd128 causal", "a100-sxm-80gb", "flash-2", "both", 128),
    ("FA2 fwd+bwd A100 hd64 causal", "a100-sxm-80gb", "flash-2", "both", 64),
    ("FA2 fwd+bwd H100 hd128 causal", "h100-sxm-80gb", "flash-2", "both", 128),
    ("FA2 fwd+bwd H100 hd64 causal", "h100-sxm-80gb", "flash-2", "both", 64),
    ("FA3 fwd H100 hd128 causal", "h100-sxm-80gb", "flash-3", "forward", 128),
    ("FA3 fwd H100 hd64 causal", "h100-sxm-80gb", "flash-3", "forward", 64),
    ("cuDNN fwd H100 hd128 causal", "h100-sxm-80gb", "cudnn", "forward", 128),
]


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve[0])
def test_attention_law_follows_measured_curves(curve):
    """The isolated kernel (without the in-step factor) within 8 % of the curve at 2,048 tokens and up."""
    item, part, kernel, direction, head_dim = curve
    table = csv.DictReader(CURVES_FILE.read_text(encoding="utf-8").splitlines())
    rows = [row for row in table if row["item"] == item]
    points = {int(re.sub(r"\D", "", row["metric"])): float(row["value"]) for row in rows}
    assert len(points) >= 5
    price = pricer(part, attention=kernel)
    for sequence, tflops in points.items():
        if sequence < 2048:
            continue
        operator = Operator("attention", "attention", 1e12, 2.5e12, head_dim=head_dim, sequence=sequence)
        seconds = price.attention_s(1e12, operator, "forward")
        flops = 1e12
        if direction == "both":
            seconds, flops = seconds + price.attention_s(2.5e12, operator, "backward"), 3.5e12
        assert flops / (seconds / price.attention_in_situ) == pytest.approx(tflops * 1e12, rel=0.08), sequence


def test_korthikanti_layer_times():
    """Table 4 of arXiv 2205.05198: a layer of the 22B model (hidden 6144, 64 heads, TP 8, micro-batch 4) on A100
    takes 7.7 ms forward and 11.9 ms backward; with sequence parallelism 7.2 and 11.8 ms. Unfused attention."""
    layer = Layer(Attention("gqa", 64, 64, 96, 96), FeedForward(4 * 6144, gated=False))
    model = Model("22B", 6144, 51200, (layer,) * 48, True, norm="layer", dropout=True)
    cluster = Cluster(catalog.node("hgx-a100"), 1, 8)
    measured = {False: (7.7e-3, 11.9e-3), True: (7.2e-3, 11.8e-3)}
    for sequence_parallel, (forward_s, backward_s) in measured.items():
        plan = Plan(tensor=8, sequence_parallel=sequence_parallel, micro_batch=4, precision="fp16")
        setting = Setting(model, plan, cluster, Stack("fused", "unfused", ("data",)), 2048)
        price = layer_price(setting, layer)
        assert total(price.forward) == pytest.approx(forward_s, rel=0.15)
        assert total(price.backward) == pytest.approx(backward_s, rel=0.15)
