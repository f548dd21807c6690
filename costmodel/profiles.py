"""Measured kernel times: a law of first principles times a fitted surface.

Every family is `seconds = (max(FLOPs / peak, bytes / bandwidth) + floor) x ratio`. Peak and bandwidth are those
of the data sheet, which is never beaten; `ratio` is a coarse grid over the logarithms of a shape, interpolated
linearly in the logarithm and held constant outside, where the law alone extrapolates. The grids are made by
`whatif calibrate fit` from measured tables (docs/calibration.md) and stand in `calibration/profiles/NAME.json`,
what they are and how well they fit in `NAME.yaml`. They are times of an isolated, warm kernel; what a step adds
(clock, neighbours) is the profile's `in_situ` factor and not in here. All functions broadcast over arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from costmodel import catalog
from costmodel.hardware import Accelerator
from costmodel.operators import Number, attended_pairs

FOLDER = Path(__file__).parent / "calibration" / "profiles"

# bytes of one operand, by the type of the units (NVFP4: 4 bits and a byte of scale for each 16)
WIDTH = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "fp4": 0.56, "fp32": 4.0, "tf32": 4.0}
SHIPPED_TYPES = ("bf16", "fp8", "fp4")  # that shipped profiles have surfaces of
RESULT_WIDTH = {"fp32": 4.0, "tf32": 4.0}  # bytes of a result; 2 elsewhere

# DeepSeek's latent attention (arXiv 2405.04434): head widths when expanded (prefill) and absorbed (decode)
LATENT_KEY, LATENT_VALUE = 192, 128
LATENT_CACHE, LATENT_RANK = 576, 512

# Which measured profile stands for a part. Others of a generation are derived from its reference.
MEASURED = {"a100-sxm-80gb": "a100", "h100-sxm-80gb": "h100", "h200-sxm": "h200", "b200-sxm": "b200"}
REFERENCE = {"ampere": "a100-sxm-80gb", "hopper": "h100-sxm-80gb", "blackwell": "b200-sxm"}
SAME_DIE = frozenset({"gb200", "gb300", "b300-sxm"})  # as B200, at another power
POWER_EXPONENT = 0.87  # accuracy_notes.md, decision 4: speed goes as power^0.87 within a generation
HERE = "measured here"  # the basis of a user's own profile, whose band is its own error on shapes held out
BAND = {"measured": 0.10, "derived": 0.22}  # accuracy_notes.md: a type without calibration 20-25 %


@dataclass(frozen=True)
class Rates:
    """What the law divides by: FLOP/s by type (bf16, fp8, fp4) and bytes/s of device memory."""

    flops_per_s: Mapping[str, float]
    bytes_per_s: float

    def roofline_s(self, kind: str, flops: Number, size_bytes: Number) -> Number:
        return np.maximum(np.divide(flops, self.flops_per_s[kind]), np.divide(size_bytes, self.bytes_per_s))


@dataclass(frozen=True)
class Surface:
    """ln(seconds / law) on a grid: `axes` are log2 of the coordinates, ascending; `floor_s` belongs to the law."""

    axes: tuple[np.ndarray, ...]
    values: np.ndarray
    floor_s: float
    seen: dict[tuple[float, ...], Number] = field(default_factory=dict, compare=False, repr=False)

    def ratio(self, *coordinates: Number) -> Number:
        """Multilinear in log2 of the coordinates, clamped to the grid; single points are remembered."""
        if any(np.ndim(one) for one in coordinates):
            return self._ratio(*coordinates)
        key = tuple(float(one) for one in coordinates)
        if key not in self.seen:
            self.seen[key] = self._ratio(*coordinates)
        return self.seen[key]

    def _ratio(self, *coordinates: Number) -> Number:
        index, weight = corners(self.axes, coordinates)
        flat = self.values.ravel()
        return np.exp(sum(flat[i] * w for i, w in zip(index, weight, strict=True)))

    def seconds(self, law_s: Number, *coordinates: Number) -> Number:
        """(law + floor) x ratio, never below the law: the data sheet is not beaten."""
        return np.maximum((law_s + self.floor_s) * self.ratio(*coordinates), law_s)


def corners(axes: tuple[np.ndarray, ...], coordinates: tuple[Number, ...]) -> tuple[list[Any], list[Any]]:
    """Flat indices and weights of the 2^d grid points around each point (d axes, C order)."""
    index: list[Any] = [0]
    weight: list[Any] = [1.0]
    for axis, value in zip(axes, coordinates, strict=True):
        at = np.clip(np.log2(np.maximum(value, 1e-9)), axis[0], axis[-1])
        low = np.clip(np.searchsorted(axis, at, side="right") - 1, 0, len(axis) - 2)
        high_share = (at - axis[low]) / (axis[low + 1] - axis[low])
        index = [i * len(axis) + low + step for i in index for step in (0, 1)]
        weight = [w * share for w in weight for share in (1.0 - high_share, high_share)]
    return index, weight


def gemm_law_s(rates: Rates, kind: str, m: Number, n: Number, k: Number, groups: Number = 1) -> Number:
    """`groups` products (m x k).(k x n), results of `RESULT_WIDTH`. Below one row a group, only some groups run."""
    m = np.asarray(m, dtype=float)
    active, rows = groups * np.minimum(m, 1.0), np.maximum(m, 1.0)
    flops = 2.0 * active * rows * n * k
    moved = active * (WIDTH[kind] * (rows * k + np.multiply(k, n)) + RESULT_WIDTH.get(kind, 2.0) * rows * n)
    return rates.roofline_s(kind, flops, moved)


def prefill_law_s(rates: Rates, kind: str, rows: Number, sequence: Number, share: Number, key: int, value: int,
                  window: int | None) -> Number:
    """Causal attention of `rows` = batch x heads, `share` heads to a key-value head; bytes of Q, K, V and output."""
    flops = 2.0 * attended_pairs(np.asarray(sequence, dtype=float), window) * rows * (key + value)
    moved = WIDTH[kind] * rows * sequence * (key + value) * (1.0 + 1.0 / np.asarray(share))
    return rates.roofline_s(kind, flops, moved)


def decode_law_s(rates: Rates, kind: str, rows: Number, context: Number, share: Number, key: int, value: int,
                 window: int | None) -> Number:
    """One token against the cache of `rows` = batch x key-value heads, `share` heads to each."""
    length = np.minimum(context, window) if window else np.asarray(context)
    flops = 2.0 * rows * share * length * (key + value)
    return rates.roofline_s(kind, flops, WIDTH[kind] * rows * length * (key + value))


def latent_decode_law_s(rates: Rates, kind: str, batch: Number, context: Number, heads: Number) -> Number:
    """Absorbed latent attention: all heads read one latent of 576 per token."""
    flops = 2.0 * np.multiply(batch, context) * heads * (LATENT_CACHE + LATENT_RANK)
    return rates.roofline_s(kind, flops, WIDTH[kind] * np.multiply(batch, context) * LATENT_CACHE)


@dataclass(frozen=True)
class Line:
    """seconds = floor + size / rate."""

    floor_s: float
    per_s: float

    def seconds(self, size: Number) -> Number:
        return self.floor_s + np.asarray(size) / self.per_s


@dataclass(frozen=True)
class Measured:
    """The measured kernels of one part, as `whatif calibrate fit` wrote them."""

    name: str
    surfaces: Mapping[str, Surface]  # "gemm/bf16", "grouped/fp8", "prefill/bf16/128", "decode/fp8/64/window"...
    memory: Mapping[str, Line] = field(default_factory=dict)  # operator -> floor, achieved bytes/s
    expert: Mapping[str, Line] = field(default_factory=dict)  # "deepep-normal/dispatch/1" (nodes) -> line
    quantize_floor_s: Mapping[str, float] = field(default_factory=dict)  # launches of a dynamic cast, by type
    held_out: Mapping[str, float] = field(default_factory=dict)  # surface -> mean absolute error, held out
    constants: Mapping[str, float] = field(default_factory=dict)  # corrections that a user kept

    def has(self, family: str, kind: str) -> bool:
        return any(name == f"{family}/{kind}" or name.startswith(f"{family}/{kind}/") for name in self.surfaces)

    def attention_surface(self, family: str, kind: str, head_dim: int, window: int | None) -> Surface:
        """The surface of the nearest measured head width; a windowed one where measured. Raises KeyError."""
        found = [name.split("/") for name in self.surfaces if name.startswith(f"{family}/{kind}/")]
        if not found:
            raise KeyError(f"profile {self.name} has no {family} attention in {kind}")
        fits = [name for name in found if (len(name) == 4) == bool(window)] or found
        best = min(fits, key=lambda name: (abs(np.log2(int(name[2]) / head_dim)), len(name)))
        return self.surfaces["/".join(best)]


@dataclass(frozen=True)
class Kernels:
    """Isolated kernel times on one part. basis: "measured", "derived" or `HERE`; band: relative error to expect."""

    measured: Measured
    rates: Rates
    basis: str

    @property
    def band(self) -> float:
        if self.basis == HERE:
            return max(error for name, error in self.measured.held_out.items() if name.startswith("gemm/"))
        return BAND[self.basis]

    def has(self, family: str, kind: str) -> bool:
        return kind in self.rates.flops_per_s and self.measured.has(family, kind)

    def gemm_s(self, kind: str, m: Number, n: Number, k: Number) -> Number:
        """One product (m x k).(k x n)."""
        surface = self.measured.surfaces[f"gemm/{kind}"]
        return surface.seconds(gemm_law_s(self.rates, kind, m, n, k), m, n, k)

    def grouped_gemm_s(self, kind: str, product: tuple[Number, Number, Number], groups: Number,
                       rows: Number, weight: Number) -> Number:
        """`groups` products (m, n, k) = `product` of a layer with `rows` tokens per expert and `weight` numbers
        in each expert's matrix. The weight gradient has another (m, n, k) but the same rows and weight."""
        surface = self.measured.surfaces[f"grouped/{kind}"]
        return surface.seconds(gemm_law_s(self.rates, kind, *product, groups), rows, groups, weight)

    def prefill_attention_s(self, kind: str, batch: Number, sequence: Number, heads: Number, kv_heads: Number,
                            head_dim: int, window: int | None = None) -> Number:
        """Causal attention over a prompt (no earlier context), heads and kv_heads of this accelerator."""
        surface = self.measured.attention_surface("prefill", kind, head_dim, window)
        rows, share = np.multiply(batch, heads), np.divide(heads, kv_heads)
        law = prefill_law_s(self.rates, kind, rows, sequence, share, head_dim, head_dim, window)
        return surface.seconds(law, sequence, rows, share)

    def decode_attention_s(self, kind: str, batch: Number, context: Number, heads: Number, kv_heads: Number,
                           head_dim: int, window: int | None = None) -> Number:
        """One new token per sequence against a cache of `context` tokens, stored as `kind`."""
        surface = self.measured.attention_surface("decode", kind, head_dim, window)
        rows, share = np.multiply(batch, kv_heads), np.divide(heads, kv_heads)
        law = decode_law_s(self.rates, kind, rows, context, share, head_dim, head_dim, window)
        return surface.seconds(law, context, rows, share)

    def latent_prefill_s(self, kind: str, batch: Number, sequence: Number, heads: Number) -> Number:
        """DeepSeek's latent attention over a prompt, expanded heads."""
        surface = self.measured.surfaces[f"latent_prefill/{kind}"]
        rows = np.multiply(batch, heads)
        law = prefill_law_s(self.rates, kind, rows, sequence, 1, LATENT_KEY, LATENT_VALUE, None)
        return surface.seconds(law, sequence, rows)

    def latent_decode_s(self, kind: str, batch: Number, context: Number, heads: Number) -> Number:
        """DeepSeek's latent attention of one new token per sequence, absorbed."""
        surface = self.measured.surfaces[f"latent_decode/{kind}"]
        law = latent_decode_law_s(self.rates, kind, batch, context, heads)
        return surface.seconds(law, context, batch, heads)

    def memory_bound_s(self, operator: str, size_bytes: Number) -> Number:
        """A norm, activation, residual addition, rotary or embedding of a serving engine. Raises KeyError."""
        return self.measured.memory[operator].seconds(size_bytes)

    def expert_transfer_s(self, library: str, direction: str, nodes: int, size_bytes: Number) -> Number:
        """Expert dispatch or combine; `size_bytes` leave each rank (`calibration.transport`). Raises KeyError."""
        return self.measured.expert[f"{library}/{direction}/{nodes}"].seconds(size_bytes)


def read(path: Path) -> Measured:
    """A profile from NAME.yaml and NAME.json beside it."""
    notes = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    grids = json.loads(path.with_suffix(".json").read_text("utf-8"))
    surfaces = {}
    for name, block in notes["surfaces"].items():
        axes = tuple(np.array(axis, dtype=float) for axis in grids[name]["log2_axes"])
        values = np.array(grids[name]["milli_ln_ratio"], dtype=float) / 1000.0
        surfaces[name] = Surface(axes, values.reshape([len(axis) for axis in axes]), float(block["floor_s"]))
    return Measured(
        name=notes["name"],
        surfaces=surfaces,
        memory={name: Line(b["floor_s"], b["bytes_per_s"]) for name, b in notes["memory"].items()},
        expert={name: Line(b["floor_s"], b["bytes_per_s"]) for name, b in notes["expert_transfer"].items()},
        quantize_floor_s=notes["quantize_floor_s"],
        held_out={name: block["held_out"]["mape"] for name, block in notes["surfaces"].items()},
        constants={name: float(block["value"]) for name, block in notes.get("constants", {}).items()},
    )


@cache
def named(name: str) -> Measured | None:
    """A committed profile by name, None where there is none."""
    path = FOLDER / f"{name}.yaml"
    return read(path) if path.exists() else None


def own(name: str) -> Measured | None:
    """The profile of a part of the user's own catalogue (`costmodel.catalog.own_root`), None where it has none."""
    path = catalog.own_root() / "profiles" / f"{name}.yaml"
    return _read_once(path) if name in catalog.own_names("accelerators") and path.exists() else None


@cache
def _read_once(path: Path) -> Measured:
    return read(path)


def rates_of(part: Accelerator, scale: float = 1.0, types: Iterable[str] = SHIPPED_TYPES) -> Rates:
    """Peaks by type and bandwidth from the catalogue, peaks times `scale`."""
    peaks = {kind: part.peak_flops_per_s[kind] * scale for kind in types if part.peak_flops_per_s.get(kind)}
    return Rates(peaks, part.memory.read_bandwidth_bytes_per_s)


def derived_rates(part: Accelerator, reference: Accelerator) -> Rates:
    """The power rule: a part runs at the reference's share of peak, corrected where its power says otherwise.

    Power allows (P / P_reference)^0.87 of the reference's speed. A part of the same die at more power (GB200,
    GB300, B300 against B200) reaches the faster of that and its own peak's share; any other part the slower,
    as a power-capped board does.
    """
    own, base = rates_of(part), rates_of(reference)
    if not part.power_w or not reference.power_w:
        return own
    allowed = (part.power_w / reference.power_w) ** POWER_EXPONENT
    choose = max if part.name in SAME_DIE else min
    peaks = {}
    for kind, peak in own.flops_per_s.items():
        factor = allowed * base.flops_per_s.get(kind, peak / allowed) / peak
        peaks[kind] = peak * choose(1.0, factor)
    return Rates(peaks, own.bytes_per_s)


@cache
def _reference(name: str) -> Accelerator:
    return catalog.accelerator(name)


def kernels_of(part: Accelerator) -> Kernels | None:
    """Measured kernels of a part, derived ones within a measured generation, None elsewhere."""
    name = MEASURED.get(part.name)
    if name is not None:
        found = named(name)
        return Kernels(found, rates_of(part), "measured") if found else None
    measured_here = own(part.name)
    if measured_here is not None:
        return Kernels(measured_here, rates_of(part, types=WIDTH), HERE)
    reference = REFERENCE.get(part.generation)
    if reference is None:
        return None
    found = named(MEASURED[reference])
    return Kernels(found, derived_rates(part, _reference(reference)), "derived") if found else None
