"""Matrix products and grouped (expert) products, from the tables gemm_GPU and moe_GPU.

TensorRT-LLM's rows are used throughout: one engine for all types and parts, its bf16 is cuBLAS as in training.
Its fp8 and nvfp4 times include the cast of the activation, which Whatif prices apart: the bytes of the cast and
the launches (shortest fp8 time less shortest bf16 time) are taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from costmodel.calibration.fit import Samples
from costmodel.calibration.tables import read_table, shape_numbers, versions
from costmodel.profiles import Rates, Surface, gemm_law_s

ENGINE = "trtllm"
TYPES = {"bfloat16": "bf16", "fp8": "fp8", "nvfp4": "fp4"}
# bytes moved to cast one activation: per-tensor fp8 reads twice (maximum, cast) and writes 1; nvfp4 reads once
CAST_BYTES = {"bf16": 0.0, "fp8": 5.0, "fp4": 2.56}
CAST_BANDWIDTH = 0.85  # of the data sheet, as memory-bound operators
LARGE_OCTAVE = 8.0  # 256: from here a larger product never takes less time
LEAST_SHARE = 0.5  # of a time that is never taken off as cast or activation
GROUPED_KERNELS = ("moe_torch_flow_cutlass", "moe_torch_flow")  # A100's table names only the second
GROUPED_SHAPE = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size")


def gemm_samples(path: Path, rates: Rates) -> tuple[list[Samples], dict[str, float]]:
    """(samples by type, seconds of the cast's launches by type). Raises TableError."""
    keep = {"framework": (ENGINE,), "gemm_dtype": tuple(TYPES)}
    frame = read_table(path, ("framework", "version", "gemm_dtype"), ("m", "n", "k", "latency_ms"), keep)
    shortest = {TYPES[name]: float(part["latency_ms"].min()) * 1e-3 for name, part in frame.groupby("gemm_dtype")}
    found: list[Samples] = []
    launches: dict[str, float] = {}
    for name, part in frame.groupby("gemm_dtype"):
        kind = TYPES[name]
        if kind not in rates.flops_per_s:
            continue
        m, n, k = (part[column].to_numpy() for column in ("m", "n", "k"))
        launch_s = max(shortest[kind] - shortest.get("bf16", shortest[kind]), 0.0)
        if launch_s:
            launches[kind] = launch_s
        total = part["latency_ms"].to_numpy() * 1e-3
        cast = launch_s + CAST_BYTES[kind] * m * k / (CAST_BANDWIDTH * rates.bytes_per_s)
        seconds = np.maximum(total - cast, np.minimum(LEAST_SHARE * total, shortest.get("bf16", np.inf)))
        law = gemm_law_s(rates, kind, m, n, k)
        shape = shape_numbers(part, ("n", "k"))
        source, finish = versions("TensorRT-LLM", part), _monotone(rates, kind)
        steps = (1.0, 1.0, 1.0)
        found.append(Samples(f"gemm/{kind}", source, (m, n, k), law, seconds, shape, steps, finish=finish))
    return found, launches


def _monotone(rates: Rates, kind: str) -> Callable[[Surface], Surface]:
    """Makes the time at the grid points from 256 up grow with m, n and k: the mean of the running maximum from
    below and the running minimum from above, along one axis after the other."""

    def finish(surface: Surface) -> Surface:
        points = np.meshgrid(*(2.0**axis for axis in surface.axes), indexing="ij")
        law = np.log(gemm_law_s(rates, kind, *points) + surface.floor_s)
        large = tuple(slice(int(np.searchsorted(axis, LARGE_OCTAVE)), None) for axis in surface.axes)
        time = law + surface.values
        for dimension in range(3):
            part = time[large]
            above = np.flip(np.minimum.accumulate(np.flip(part, dimension), dimension), dimension)
            time[large] = (np.maximum.accumulate(part, dimension) + above) / 2.0
        return replace(surface, values=time - law)

    return finish


def grouped_samples(path: Path, rates: Rates) -> list[Samples]:
    """Expert layers as two products each (up with gate, down), with the activation's bytes taken off.

    `num_tokens` meet experts / ep local experts: rows per expert = tokens x top-k / experts, balanced. A100 has
    no balanced rows: its mildest power law (1.01) stands in. Raises TableError.
    """
    numbers = (*GROUPED_SHAPE, "num_tokens", "moe_ep_size", "latency_ms")
    text = ("framework", "version", "kernel_source", "moe_dtype", "distribution")
    keep = {"framework": (ENGINE,), "kernel_source": GROUPED_KERNELS, "moe_dtype": tuple(TYPES)}
    frame = read_table(path, text, numbers, keep)
    load = "balanced" if (frame["distribution"] == "balanced").any() else "power_law_1.01"
    frame = frame[frame["distribution"] == load]
    found: list[Samples] = []
    for name, part in frame.groupby("moe_dtype"):
        kind = TYPES[name]
        if kind in rates.flops_per_s:
            found.append(_grouped(part, kind, rates, load))
    return found


def _grouped(part: Any, kind: str, rates: Rates, load: str) -> Samples:
    hidden, width = part["hidden_size"].to_numpy(), (part["inter_size"] / part["moe_tp_size"]).to_numpy()
    rows = (part["num_tokens"] * part["topk"] / part["num_experts"]).to_numpy()
    groups = (part["num_experts"] / part["moe_ep_size"]).to_numpy()
    up = gemm_law_s(rates, kind, rows, 2.0 * width, hidden, groups)
    down = gemm_law_s(rates, kind, rows, hidden, width, groups)
    total = part["latency_ms"].to_numpy() * 1e-3
    # 2 bytes each: permute reads and writes, unpermute reads rows and writes tokens, activation 2 in and 1 out
    moved = 2.0 * (rows * groups * (3.0 * hidden + 3.0 * width) + part["num_tokens"].to_numpy() * hidden)
    rest = moved / (CAST_BANDWIDTH * rates.bytes_per_s)
    seconds = np.maximum(total - rest, LEAST_SHARE * total) / 2.0  # of one product
    weight = hidden * width * np.sqrt(2.0)  # geometric mean of the two matrices
    shape = shape_numbers(part, GROUPED_SHAPE)
    source = versions("TensorRT-LLM", part) + f", {load} load"
    coordinates = (rows, groups, weight)
    return Samples(f"grouped/{kind}", source, coordinates, (up + down) / 2.0, seconds, shape, (2.0, 1.0, 1.0), True)
