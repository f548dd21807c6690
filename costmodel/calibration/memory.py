"""Memory-bound operators of a serving engine (vLLM's kernels as profiled by Vidur): floor and achieved bytes/s.

Bytes are the ideal ones: every input read once, every output written once, 2 bytes a number. Training stacks
fuse more and keep the fraction of their generation's profile; these lines are for serving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from costmodel.calibration.fit import Errors, line_errors
from costmodel.calibration.tables import read_table
from costmodel.profiles import Line

LEAST_S = 1e-6  # Vidur prints 0 where its profiler found no kernel
_SIZES = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "num_tokens", "num_tensor_parallel_workers")


def _rotary(frame: Any) -> Any:
    heads = frame["n_head"] + frame["n_kv_head"]
    return 2 * heads * frame["n_embd"] / frame["n_head"] / frame["num_tensor_parallel_workers"]


# operator -> (Vidur's columns, numbers read and written per token)
OPERATORS: Mapping[str, tuple[tuple[str, ...], Callable[[Any], Any]]] = {
    "norm": (("input_layernorm", "post_attention_layernorm"), lambda frame: 2 * frame["n_embd"]),
    "residual_add": (("add",), lambda frame: 3 * frame["n_embd"]),
    "activation": (
        ("mlp_act",),
        lambda frame: 3 * frame["n_expanded_embd"] / frame["num_tensor_parallel_workers"],
    ),
    "rotary": (("attn_rope",), _rotary),
    "embedding": (("emb",), lambda frame: 2 * frame["n_embd"]),
}


def memory_lines(paths: Sequence[Path]) -> dict[str, tuple[Line, Errors, Errors]]:
    """Operator -> (line, error in sample, error on held-out model widths). Raises TableError."""
    size: dict[str, list[Any]] = {name: [] for name in OPERATORS}
    seconds: dict[str, list[Any]] = {name: [] for name in OPERATORS}
    shape: dict[str, list[Any]] = {name: [] for name in OPERATORS}
    columns = [column for names, _ in OPERATORS.values() for column in names]
    for number, path in enumerate(paths):
        medians = [f"time_stats.{column}.median" for column in columns]
        frame = read_table(path, (), (*medians, *_SIZES))
        for name, (names, per_token) in OPERATORS.items():
            moved = (2.0 * per_token(frame) * frame["num_tokens"]).to_numpy()
            for column in names:
                time_s = frame[f"time_stats.{column}.median"].to_numpy() * 1e-3
                good = time_s > LEAST_S
                size[name].append(moved[good])
                seconds[name].append(time_s[good])
                width = frame["num_tensor_parallel_workers"].to_numpy()[good]
                shape[name].append(number * 1000 + width)
    return {
        name: line_errors(*(np.concatenate(parts[name]) for parts in (size, seconds, shape)))
        for name in OPERATORS
        if sum(map(len, size[name]))
    }
