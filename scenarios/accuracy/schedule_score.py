"""Values of papers on pipeline schedules against predictions, each in the unit that the paper prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from scenarios.accuracy.predict import Predicted
from scenarios.accuracy.rows import Row

GIB = 2.0**30
MEMORY = "peak_memory"
PEAK_FLOPS_PER_S = 312e12  # of the A100 in 16 bits, which the papers divide by (artifact/quick_exp.sh)


def samples_per_s_per_gpu(one: Predicted) -> float:
    return one.tokens_per_s_per_gpu / one.inputs.sequence


def counted_flops(one: Predicted) -> float:
    """FLOPs of a step as arXiv 2411.05288, table 4, counts them: b s h (72 h + 12 s) a layer, 6 b s h V the head."""
    model, sequence, batch = one.inputs.model, one.inputs.sequence, one.inputs.global_batch
    layer = 72.0 * model.hidden + 12.0 * sequence
    return batch * sequence * model.hidden * (len(model.layers) * layer + 6.0 * model.vocabulary)


def mfu_percent(one: Predicted) -> float:
    rate = counted_flops(one) / one.step_time_s / one.inputs.cluster.accelerators
    return 100.0 * rate / PEAK_FLOPS_PER_S


def recomputed_tflops(one: Predicted) -> float:
    """TFLOP/s per GPU as arXiv 2104.04473, section 5.1, counts them, with full recomputation:
    96 B s l h^2 (1 + s / 6h + V / 16 l h)."""
    model, s, batch = one.inputs.model, one.inputs.sequence, one.inputs.global_batch
    layers, h = len(model.layers), model.hidden
    flops = 96.0 * batch * s * layers * h**2 * (1.0 + s / (6.0 * h) + model.vocabulary / (16.0 * layers * h))
    return flops / one.step_time_s / one.inputs.cluster.accelerators / 1e12


def peak_gib(one: Predicted) -> float:
    return max(one.allocated_bytes) / GIB


# metric, unit as printed -> what a prediction gives
METRICS: Mapping[tuple[str, str], Callable[[Predicted], float]] = {
    ("throughput", "samples/GPU/s"): samples_per_s_per_gpu,
    ("MFU", "%"): mfu_percent,
    ("MFU_best_of_grid", "%"): mfu_percent,
    ("achieved_tflops", "TFLOP/s/GPU"): recomputed_tflops,
    (MEMORY, "GB"): peak_gib,
}


def converter_of(row: Row) -> Callable[[Predicted], float] | None:
    return METRICS.get((row.text("metric"), row.text("unit")))
