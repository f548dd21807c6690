"""From folders of measured tables to profile files and a report of how well they fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from costmodel import catalog
from costmodel.calibration import attention, gemm, memory, transport
from costmodel.calibration.fit import Errors, Fit, Samples, fit
from costmodel.calibration.tables import TableError
from costmodel.profiles import MEASURED, Line, rates_of

FAMILIES = ("gemm", "grouped", "attention", "memory", "transport")
MADE_BY = "whatif calibrate fit"
ORIGIN = "ai-dynamo/aiconfigurator at 095f58a (Apache-2.0); memory: microsoft/vidur at 7d47513 (MIT)"


@dataclass(frozen=True)
class Built:
    """One profile before it is written."""

    name: str
    part: str
    fits: tuple[Fit, ...]
    quantize_floor_s: Mapping[str, float]
    memory: Mapping[str, tuple[Line, Errors, Errors]]
    expert: Mapping[str, tuple[Line, Errors, Errors]]
    inputs: Mapping[str, str]  # file -> first 16 digits of its SHA-256


def tables_of(name: str, kernels: Path, profiles_raw: Path | None) -> dict[str, Path]:
    """The tables of a part that exist, by family."""
    gpu = f"{name}_sxm"
    candidates = {
        "gemm": kernels / f"gemm_{gpu}.csv.gz",
        "grouped": kernels / f"moe_{gpu}.csv.gz",
        "prefill": kernels / f"context_attention_{gpu}.csv.gz",
        "decode": kernels / f"generation_attention_{gpu}.csv.gz",
        "latent": kernels / "mla_all.csv.gz",
        "deepep-normal": kernels / "wideep_deepep_normal.csv.gz",
        "deepep-low-latency": kernels / "wideep_deepep_ll.csv.gz",
    }
    if name == "b200":
        candidates["trtllm"] = kernels / "trtllm_alltoall.csv.gz"
    for path in sorted((profiles_raw / "vidur").glob(f"mlp__{name}__*.csv.gz")) if profiles_raw else ():
        candidates[f"memory {path.name}"] = path
    return {family: path for family, path in candidates.items() if path.exists()}


def build(name: str, kernels: Path, profiles_raw: Path | None,
          families: tuple[str, ...] = FAMILIES) -> Built:
    """Fits one part ("a100", "h100", ...) from the tables that are there. Raises TableError."""
    part = next(part for part, profile in MEASURED.items() if profile == name)
    rates, gpu, tables = rates_of(catalog.accelerator(part)), f"{name}_sxm", tables_of(name, kernels, profiles_raw)
    samples: list[Samples] = []
    launches: dict[str, float] = {}
    if "gemm" in families and "gemm" in tables:
        samples, launches = gemm.gemm_samples(tables["gemm"], rates)
    if "grouped" in families and "grouped" in tables:
        samples += gemm.grouped_samples(tables["grouped"], rates)
    if "attention" in families:
        if "prefill" in tables:
            samples += attention.prefill_samples(tables["prefill"], rates)
        if "decode" in tables:
            samples += attention.decode_samples(tables["decode"], rates)
        if "latent" in tables:
            samples += attention.latent_samples(tables["latent"], gpu, rates)
    profiled = [path for family, path in tables.items() if family.startswith("memory ")]
    lines = memory.memory_lines(profiled) if profiled and "memory" in families else {}
    expert = _expert(tables, gpu) if "transport" in families else {}
    inputs = {path.name: _digest(path) for path in tables.values()}
    return Built(name, part, tuple(map(fit, samples)), launches, lines, expert, inputs)


def _expert(tables: Mapping[str, Path], gpu: str) -> transport.Fitted:
    found: transport.Fitted = {}
    readers: dict[str, Callable[[Path], transport.Fitted]] = {
        "deepep-normal": lambda path: transport.deepep_normal(path, gpu),
        "deepep-low-latency": lambda path: transport.deepep_low_latency(path, gpu),
        "trtllm": transport.tensorrt_llm,
    }
    for family, read in readers.items():
        if family in tables and gpu != "a100_sxm":  # no DeepEP for Ampere
            found |= read(tables[family])
    return found


def build_all(kernels: Path, profiles_raw: Path | None, tell: Callable[[str], None] = lambda text: None) -> list[Built]:
    """Every part whose GEMM table is in the folder. Raises TableError where there is none."""
    names = [name for name in MEASURED.values() if (kernels / f"gemm_{name}_sxm.csv.gz").exists()]
    if not names:
        expected = ", ".join(f"gemm_{name}_sxm.csv.gz" for name in MEASURED.values())
        raise TableError(f"{kernels}: holds none of {expected}")
    found = []
    for name in names:
        tell(f"fitting {name}")
        found.append(build(name, kernels, profiles_raw))
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _errors(errors: Errors) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(errors).items() if key != "rows"}


def notes(built: Built) -> dict[str, Any]:
    """The content of NAME.yaml: how it was made, floors, lines and errors."""
    surfaces = {
        one.samples.name: {
            "floor_s": _digits(one.surface.floor_s),
            "rows": one.in_sample.rows,
            "source": one.samples.source,
            "in_sample": _errors(one.in_sample),
            "held_out": _errors(one.held_out),
        }
        for one in built.fits
    }
    return {
        "name": built.name,
        "accelerator": built.part,
        "made_by": MADE_BY,
        "source": ORIGIN,
        "inputs": dict(built.inputs),
        "quantize_floor_s": {kind: _digits(value) for kind, value in built.quantize_floor_s.items()},
        "memory": {name: _line(*found) for name, found in built.memory.items()},
        "expert_transfer": {name: _line(*found) for name, found in built.expert.items()},
        "surfaces": surfaces,
    }


def _line(line: Line, in_sample: Errors, held_out: Errors) -> dict[str, Any]:
    rates = {"floor_s": _digits(line.floor_s), "bytes_per_s": _digits(line.per_s), "rows": in_sample.rows}
    return rates | {"in_sample": _errors(in_sample), "held_out": _errors(held_out)}


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def grids(built: Built) -> dict[str, Any]:
    """The content of NAME.json: axes in log2 and thousandths of ln(seconds / law), C order."""
    return {
        one.samples.name: {
            "log2_axes": [[round(float(point), 4) for point in points] for points in one.surface.axes],
            "milli_ln_ratio": [round(1000.0 * float(value)) for value in one.surface.values.ravel()],
        }
        for one in built.fits
    }


def yaml_text(content: Mapping[str, Any], depth: int = 0) -> str:
    """Nested mappings of texts and numbers as YAML; innermost mappings of numbers on one line."""
    lines = []
    for key, value in content.items():
        indent = "  " * depth
        if not isinstance(value, Mapping):
            text = json.dumps(value) if value is None or isinstance(value, str) else value
            lines.append(f"{indent}{key}: {text}\n")
        elif all(isinstance(inner, int | float) for inner in value.values()):
            inner_text = ", ".join(f"{name}: {number:.12g}" for name, number in value.items())
            lines.append(f"{indent}{key}: {{{inner_text}}}\n")
        else:
            lines.append(f"{indent}{key}:\n{yaml_text(value, depth + 1)}")
    return "".join(lines)


def json_text(content: Mapping[str, Any]) -> str:
    """One surface a line."""
    rows = [f"{json.dumps(name)}: {json.dumps(grid, separators=(',', ':'))}" for name, grid in content.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"
