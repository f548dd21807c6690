"""How long an operator takes: the larger of compute and memory access, each at the rate a kernel reaches.

Matrix products are priced from measured surfaces (`costmodel.profiles`) where a part or its generation was
measured for the type. What is not measured there, and everything that belongs to the step (attention of training
kernels, memory-bound work, the in-step factor), is in a `Profile`, one YAML file per accelerator generation in
`costmodel/calibration/profiles/`, every constant with its source. A generation without one uses `generic.yaml`,
and the prediction says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from costmodel import step_kernels
from costmodel.hardware import Accelerator
from costmodel.operators import Number, Operator
from costmodel.profiles import HERE, kernels_of

PROFILES = Path(__file__).parent / "calibration" / "profiles"

# A precision of the linear layers maps to a peak of the data sheet; scaled fp8 and fp4 recipes share its units.
PEAK_OF_PRECISION = {
    "fp32": "fp32",
    "tf32": "tf32",
    "fp16": "fp16",
    "bf16": "bf16",
    "fp8": "fp8",
    "mxfp8": "fp8",
    "nvfp4": "fp4",
}
# The units whose measured surface serves a precision (fp16 runs as bf16).
SURFACE_OF_PRECISION = {
    "fp32": "fp32", "tf32": "tf32", "fp16": "bf16", "bf16": "bf16", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"
}
UNMEASURED_BAND = 0.25  # accuracy_notes.md: a GPU type without any calibration, 20-25 %
# bytes of one GEMM operand, and bytes moved to quantise one element (read 2, write it twice: rows, columns)
OPERAND_BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "mxfp8": 1.03, "nvfp4": 0.56}


@dataclass(frozen=True)
class Profile:
    """What kernels reach on one generation of accelerators. Fractions are of the data sheet."""

    name: str
    gemm_fraction: Mapping[str, float]  # best large shape, by peak type
    tile: tuple[int, int]  # output tile of the GEMM kernel; a partly filled last wave costs a whole one
    memory_fraction: float
    kernel_s: float  # shortest time of one kernel
    attention: Mapping[str, Mapping[str, float]]  # kernel -> fraction_forward, fraction_backward, ramp_tokens
    sources: Mapping[str, str] = field(default_factory=dict)


@cache
def profile(generation: str) -> Profile:
    """The profile of a generation, or the generic one."""
    path = PROFILES / f"{generation}.yaml"
    raw = YAML(typ="safe", pure=True).load((path if path.exists() else PROFILES / "generic.yaml").read_text("utf-8"))
    return Profile(
        name=raw["name"],
        gemm_fraction=raw["gemm"]["fraction"],
        tile=tuple(raw["gemm"]["tile"]),
        memory_fraction=raw["memory"]["fraction"],
        kernel_s=raw["launch"]["kernel_s"],
        attention=raw["attention"]["kernels"],
        sources={key: block["source"] for key, block in raw.items() if isinstance(block, dict)},
    )


def peak_flops_per_s(accelerator: Accelerator, precision: str) -> float:
    """Dense peak of the units that the precision uses. Raises ValueError naming what the part has."""
    kind = PEAK_OF_PRECISION[precision]
    peaks = accelerator.peak_flops_per_s
    for candidate in (kind, "fp16" if kind == "bf16" else "bf16" if kind == "fp16" else kind):
        if peaks.get(candidate):
            return float(peaks[candidate])
    raise ValueError(
        f"{accelerator.name} has no {kind} peak in the catalogue; it has {', '.join(sorted(peaks))}"
    )


def wave_efficiency(m: Number, n: Number, tile: tuple[int, int], compute_units: int, groups: Number = 1) -> Number:
    """Used share of the tile slots over whole waves of `compute_units` tiles.

    >>> float(wave_efficiency(8192, 8192, (128, 128), 132)), float(wave_efficiency(128, 128, (128, 128), 132))
    (0.9696..., 0.0075...)
    """
    tiles = np.ceil(np.asarray(m) / tile[0]) * np.ceil(np.asarray(n) / tile[1]) * groups
    waves = np.ceil(tiles / compute_units)
    return np.asarray(m) * np.asarray(n) * groups / (waves * compute_units * tile[0] * tile[1])


class Pricer:
    """Prices operators on one accelerator: seconds, at `precision` for linear layers and bf16 elsewhere."""

    def __init__(
        self, accelerator: Accelerator, precision: str, traffic_factor: float, attention: str, in_situ: float = 1.0,
        narrow: float = 1.0, attention_in_situ: float = 1.0,
    ) -> None:
        """`traffic_factor`: bytes of memory-bound operators over the fused count. `in_situ`: time of a kernel inside
        a step over its time alone, `narrow` a further factor of fp8 and fp4 products, `attention_in_situ` that of
        attention (costmodel.constants)."""
        self.accelerator = accelerator
        self.in_situ, self.narrow, self.attention_in_situ = in_situ, narrow, attention_in_situ
        self.precision = precision
        self.attention_kernel = attention
        self.traffic_factor = traffic_factor
        self.profile = profile(accelerator.generation)
        self.kernels = kernels_of(accelerator)
        self.memory_bytes_per_s = accelerator.memory.read_bandwidth_bytes_per_s * self.profile.memory_fraction
        # the kernels of the user's own profile, which has all parts of a step
        self.own = self.kernels if self.kernels is not None and self.kernels.basis == HERE else None

    def memory_s(self, size_bytes: Number) -> Number:
        """Time to move bytes through device memory (counted once: reads plus writes)."""
        if self.own is not None:
            copied = step_kernels.copy_s(self.own, np.asarray(size_bytes) / 2.0)
            if copied is not None:
                return copied
        return np.asarray(size_bytes) / self.memory_bytes_per_s

    def precision_of(self, operator: Operator) -> str:
        return self.precision if operator.narrow or OPERAND_BYTES[self.precision] >= 2.0 else "bf16"

    def in_situ_of(self, operator: Operator) -> float:
        """Time of a product inside a step over its time alone."""
        return self.in_situ * (self.narrow if OPERAND_BYTES[self.precision_of(operator)] < 2.0 else 1.0)

    @property
    def basis(self) -> str:
        """Where prices of matrix products come from: "measured", "derived" (from another part), "generic"."""
        kind = SURFACE_OF_PRECISION.get(self.precision, "")
        return self.kernels.basis if self.kernels and self.kernels.has("gemm", kind) else "generic"

    @property
    def band(self) -> float:
        """Relative error to expect of isolated kernels: of the fit, or wider where nothing was measured."""
        return self.kernels.band if self.kernels and self.basis != "generic" else UNMEASURED_BAND

    def gemm_s(self, operator: Operator, m: Number, n: Number, k: Number) -> Number:
        """One product of `operator.groups` problems (m x k).(k x n): measured, else the tile and wave law."""
        kind = SURFACE_OF_PRECISION.get(self.precision_of(operator), "")
        measured = self.kernels is not None and self.kernels.has("gemm", kind)
        if measured and self.own is not None:  # experts run one after another there
            return np.asarray(operator.groups) * self.own.gemm_s(kind, m, n, k) * self.in_situ_of(operator)
        if not measured or (np.any(np.not_equal(operator.groups, 1)) and not self._has_grouped(kind)):
            return self._wave_gemm_s(operator, m, n, k)
        assert self.kernels is not None
        one = np.equal(operator.groups, 1)
        in_situ = self.in_situ_of(operator)
        alone: Number = self.kernels.gemm_s(kind, m, n, k) if np.any(one) else 0.0
        if np.all(one):
            return alone * in_situ
        weight = np.multiply(operator.n, operator.k)
        grouped = self.kernels.grouped_gemm_s(kind, (m, n, k), operator.groups, operator.m, weight)
        chosen: Number = np.where(one, alone, grouped)
        return chosen * in_situ

    def _has_grouped(self, kind: str) -> bool:
        return self.kernels is not None and self.kernels.has("grouped", kind)

    def _wave_gemm_s(self, operator: Operator, m: Number, n: Number, k: Number) -> Number:
        """Share of peak of the best large shape, whole waves of tiles; or the bytes."""
        precision = self.precision_of(operator)
        profile, groups = self.profile, operator.groups
        fraction = profile.gemm_fraction[PEAK_OF_PRECISION[precision]]
        used = wave_efficiency(m, n, profile.tile, self.accelerator.compute_units or 1, groups)
        rate = peak_flops_per_s(self.accelerator, precision) * fraction * np.maximum(used, 1e-9)
        compute = 2.0 * np.asarray(m) * n * k * groups / rate
        width = OPERAND_BYTES[precision]
        moved = groups * (width * (np.asarray(m) * k + np.asarray(k) * n) + 2.0 * np.asarray(m) * n)
        return np.maximum(np.maximum(compute, self.memory_s(moved)) * self.in_situ_of(operator), profile.kernel_s)

    def quantize_s(self, operator: Operator, elements: Number) -> Number:
        """Casting operands to a narrow type: read 2 bytes, write the result row- and column-wise; and the launches
        of the cast where they were measured."""
        precision = self.precision_of(operator)
        width = OPERAND_BYTES[precision]
        if width >= 2.0:
            return np.asarray(elements) * 0.0
        launches = self.kernels.measured.quantize_floor_s if self.kernels else {}
        return self.memory_s(elements * (2.0 + 2.0 * width)) + launches.get(SURFACE_OF_PRECISION[precision], 0.0)

    def attention_s(self, flops: Number, operator: Operator, direction: str) -> Number:
        """Attention at fraction x s / (s + ramp): the measured curves of flash kernels follow it within 5 %; from the
        surface of an own profile where it has one."""
        if self.own is not None and self.attention_kernel != "unfused":
            kind = SURFACE_OF_PRECISION.get(self.precision_of(operator), "")
            alone = step_kernels.attention_s(self.own, kind, operator, direction)
            if alone is not None:
                return alone * self.attention_in_situ
        if self.attention_kernel == "unfused":
            return self._unfused_attention_s(operator, direction)
        law = self.profile.attention[self.attention_kernel]
        head = min(operator.head_dim / 128.0, 1.0) ** law["head_dim_power"]
        ramp = np.asarray(operator.sequence) / (np.asarray(operator.sequence) + law["ramp_tokens"])
        rate = peak_flops_per_s(self.accelerator, "bf16") * law[f"fraction_{direction}"] * head * ramp
        return flops / rate * self.attention_in_situ

    def _unfused_attention_s(self, operator: Operator, direction: str) -> Number:
        """Score products over the whole square without causal skip (two forward, four backward), each at least
        as long as moving its 2-byte scores, and the traffic of softmax, mask and dropout between them: 9 bytes a
        score forward, 11 backward (memory_notes B3)."""
        products, bytes_per_score = (2.0, 9.0) if direction == "forward" else (4.0, 11.0)
        width = max(OPERAND_BYTES[self.precision], 2.0) / 2.0
        kind = "bf16" if width == 1.0 else self.precision
        rate = peak_flops_per_s(self.accelerator, kind) * self.profile.gemm_fraction[kind]
        scores = operator.forward_flops / (2.0 * operator.head_dim)  # 2 x causal pairs: the whole square
        compute = operator.forward_flops / rate  # one product over the whole square
        product = np.maximum(compute, self.memory_s(2.0 * width * scores))
        return (products * product + self.memory_s(scores * width * bytes_per_score)) * self.attention_in_situ

    def operator_s(self, operator: Operator, size_bytes: Number, direction: str) -> Number:
        """A memory-bound operator that moves `size_bytes` at 2-byte activations in an ideally fused kernel."""
        if self.own is not None:
            kind, moved = SURFACE_OF_PRECISION.get(self.precision, ""), np.asarray(size_bytes) * self.traffic_factor
            alone = step_kernels.operator_s(self.own, kind, operator, direction, moved)
            if alone is not None:
                return alone
        return self.memory_s(size_bytes) * self.traffic_factor

    def optimizer_s(self, size_bytes: Number, tensors: Number) -> Number:
        """Adam over so many tensors, whose states take part in `size_bytes` of traffic together."""
        alone = step_kernels.optimizer_s(self.own, size_bytes, tensors) if self.own is not None else None
        return self.memory_s(size_bytes) if alone is None else alone

    def forward_s(self, operator: Operator) -> dict[str, Number]:
        """Seconds of the forward pass by breakdown category."""
        if operator.category == "gemm":
            cast = self.quantize_s(operator, operator.m * operator.k * operator.groups)
            return {"gemm": self.gemm_s(operator, operator.m, operator.n, operator.k), "quantize": cast}
        if operator.category == "attention":
            return {"attention": self.attention_s(operator.forward_flops, operator, "forward")}
        return {"memory_bound": self.operator_s(operator, operator.forward_bytes, "forward")}

    def backward_s(self, operator: Operator) -> dict[str, Number]:
        """Seconds of the backward pass by breakdown category: input and weight gradients."""
        if operator.category == "gemm":
            m, n, k = operator.m, operator.n, operator.k
            cast = self.quantize_s(operator, operator.m * operator.n * operator.groups)
            return {
                "gemm": self.gemm_s(operator, m, k, n) + self.gemm_s(operator, k, n, m),
                "quantize": cast,
            }
        if operator.category == "attention":
            return {"attention": self.attention_s(operator.backward_flops, operator, "backward")}
        return {"memory_bound": self.operator_s(operator, operator.backward_bytes, "backward")}
