"""Attention of serving engines, from context_attention_GPU, generation_attention_GPU and mla_all.

Training attention is not fitted here: inference tables are no proxy for it (accuracy_notes.md, decision 1).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from costmodel.calibration.fit import Samples, Step
from costmodel.calibration.tables import read_table, shape_numbers, versions
from costmodel.profiles import (
    LATENT_KEY,
    LATENT_VALUE,
    Rates,
    decode_law_s,
    latent_decode_law_s,
    prefill_law_s,
)

ENGINE = "trtllm"
TYPES = {"bfloat16": "bf16", "fp8": "fp8"}
SHARES = (0.0, 1.0, 2.0, 4.0, 7.0)  # log2 of heads per key-value head: one to one is another kernel
FEWEST_ROWS = 200  # a surface needs at least as many
_HEADS = ("num_heads", "num_key_value_heads", "head_dim", "window_size")


def _name(family: str, kind: str, head_dim: int, window: int) -> str:
    return f"{family}/{kind}/{head_dim}" + ("/window" if window else "")


def _by_head(frame: Any, family: str, one: Callable[[str, str, Any, int, int], Samples]) -> list[Samples]:
    """Samples for each type, head width and whether there is a window (several windows share a surface)."""
    found = []
    keys = [frame["kv_cache_dtype"], frame["head_dim"].astype(int), frame["window_size"] > 0]
    for (name, head_dim, windowed), part in frame.groupby(keys):
        if len(part) >= FEWEST_ROWS:
            window = int(part["window_size"].mode().iloc[0]) if windowed else 0
            part = part[part["window_size"] == window]
            kind = TYPES[name]
            found.append(one(_name(family, kind, head_dim, window), kind, part, head_dim, window))
    return found


def prefill_samples(path: Path, rates: Rates) -> list[Samples]:
    """Causal attention over a whole prompt, operands and cache of one type. Raises TableError."""
    numbers = ("batch_size", "isl", *_HEADS, "latency_ms")
    text = ("framework", "version", "attn_dtype", "kv_cache_dtype")
    frame = read_table(path, text, numbers, {"framework": (ENGINE,), "kv_cache_dtype": tuple(TYPES)})
    frame = frame[frame["attn_dtype"] == frame["kv_cache_dtype"]]
    frame = frame[frame["kv_cache_dtype"].map(TYPES).isin(rates.flops_per_s)]

    def one(name: str, kind: str, part: Any, head_dim: int, window: int) -> Samples:
        sequence, heads = part["isl"].to_numpy(), part["num_heads"].to_numpy()
        rows, share = part["batch_size"].to_numpy() * heads, heads / part["num_key_value_heads"].to_numpy()
        law = prefill_law_s(rates, kind, rows, sequence, share, head_dim, head_dim, window)
        return _samples(name, part, (sequence, rows, share), law, (2.0, 2.0, 2.0))

    return _by_head(frame, "prefill", one)


def decode_samples(path: Path, rates: Rates) -> list[Samples]:
    """One token per sequence against a cache of isl + step tokens. Raises TableError."""
    numbers = ("batch_size", "isl", "step", *_HEADS, "latency_ms")
    keep = {"framework": (ENGINE,), "kv_cache_dtype": tuple(TYPES)}
    frame = read_table(path, ("framework", "version", "kv_cache_dtype"), numbers, keep)
    frame = frame[frame["kv_cache_dtype"].map(TYPES).isin(rates.flops_per_s)]

    def one(name: str, kind: str, part: Any, head_dim: int, window: int) -> Samples:
        context, kv_heads = (part["isl"] + part["step"]).to_numpy(), part["num_key_value_heads"].to_numpy()
        rows, share = part["batch_size"].to_numpy() * kv_heads, part["num_heads"].to_numpy() / kv_heads
        law = decode_law_s(rates, kind, rows, context, share, head_dim, head_dim, window)
        return _samples(name, part, (context, rows, share), law, (2.0, 1.0, SHARES))

    return _by_head(frame, "decode", one)


def latent_samples(path: Path, gpu: str, rates: Rates) -> list[Samples]:
    """DeepSeek's latent attention, prefill and decode, of one GPU. Raises TableError."""
    numbers = ("num_heads", "batch_size", "isl", "step", "latency_ms")
    keep = {"gpu": (gpu,), "framework": (ENGINE,), "kv_cache_dtype": tuple(TYPES)}
    frame = read_table(path, ("gpu", "framework", "version", "op_name", "kv_cache_dtype"), numbers, keep)
    frame = frame[frame["kv_cache_dtype"].map(TYPES).isin(rates.flops_per_s)]
    found = []
    for (operation, name), part in frame.groupby(["op_name", "kv_cache_dtype"]):
        kind = TYPES[name]
        batch, heads = part["batch_size"].to_numpy(), part["num_heads"].to_numpy()
        length = (part["isl"] + part["step"]).to_numpy()
        coordinates: tuple[Any, ...]
        if operation == "mla_generation":
            law = latent_decode_law_s(rates, kind, batch, length, heads)
            family, coordinates = "latent_decode", (length, batch, heads)
        else:
            law = prefill_law_s(rates, kind, batch * heads, length, 1, LATENT_KEY, LATENT_VALUE, None)
            family, coordinates = "latent_prefill", (length, batch * heads)
        shape = ("num_heads",) if operation == "mla_generation" else ("num_heads", "batch_size")
        found.append(_samples(f"{family}/{kind}", part, coordinates, law, (2.0,) * len(coordinates), shape))
    return found


def _samples(name: str, part: Any, coordinates: tuple[Any, ...], law: Any, steps: tuple[Step, ...],
             shape: tuple[str, ...] = _HEADS) -> Samples:
    seconds = part["latency_ms"].to_numpy() * 1e-3
    source = versions("TensorRT-LLM", part)
    return Samples(name, source, coordinates, law, seconds, shape_numbers(part, shape), steps, robust=True)
