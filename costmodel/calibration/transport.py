"""Expert dispatch and combine: DeepEP (normal and low-latency) and TensorRT-LLM's all-to-all.

Each direction is a floor and a rate over the bytes that leave a rank. Normal DeepEP and TensorRT-LLM send a
token once to each rank that holds one of its experts, the low-latency kernels once to each expert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from costmodel.calibration.fit import Errors, line_errors
from costmodel.calibration.tables import read_table, shape_numbers
from costmodel.operators import Number
from costmodel.profiles import Line

RANKS_PER_NODE = {"gb200": 4, "gb300": 4}  # others 8
COMMUNICATION_SMS = 20.0  # DeepEP's default, the one profiled in both releases
WIDTHS = {"bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.56}
Fitted = dict[str, tuple[Line, Errors, Errors]]


def ranks_hit(ranks: Number, top_k: Number) -> Number:
    """Ranks that hold at least one of `top_k` experts drawn evenly: R (1 - (1 - 1/R)^k).

    >>> float(ranks_hit(8, 8))
    5.25...
    """
    return ranks * (1.0 - (1.0 - np.divide(1.0, ranks)) ** top_k)


def deepep_normal(path: Path, gpu: str) -> Fitted:
    """"deepep-normal/DIRECTION/NODES" -> line and errors; dispatch sends fp8, combine bf16. Raises TableError."""
    numbers = ("node_num", "hidden_size", "num_token", "num_topk", "num_experts", "dispatch_sms",
               "combine_transmit_us", "dispatch_transmit_us")
    frame = read_table(path, ("gpu", "version"), numbers, {"gpu": (gpu,)})
    frame = frame[frame["dispatch_sms"] == COMMUNICATION_SMS]
    ranks = frame["node_num"] * RANKS_PER_NODE.get(gpu, 8)
    sent = frame["num_token"] * frame["hidden_size"] * ranks_hit(ranks, frame["num_topk"])
    return _by_nodes("deepep-normal", frame, sent, "transmit_us")


def deepep_low_latency(path: Path, gpu: str) -> Fitted:
    """"deepep-low-latency/DIRECTION/NODES" -> line and errors. Raises TableError."""
    numbers = ("node_num", "hidden_size", "num_token", "num_topk", "num_experts", "combine_avg_t_us",
               "dispatch_avg_t_us")
    frame = read_table(path, ("gpu", "version"), numbers, {"gpu": (gpu,)})
    sent = frame["num_token"] * frame["hidden_size"] * frame["num_topk"]
    return _by_nodes("deepep-low-latency", frame, sent, "avg_t_us")


def _by_nodes(library: str, frame: Any, sent: Any, suffix: str) -> Fitted:
    found: Fitted = {}
    for nodes, part in frame.groupby("node_num"):
        shape = shape_numbers(part, ("hidden_size", "num_topk", "num_experts"))
        for direction, width in (("dispatch", 1.0), ("combine", 2.0)):
            seconds = part[f"{direction}_{suffix}"].to_numpy() * 1e-6
            size = width * sent.loc[part.index].to_numpy()
            found[f"{library}/{direction}/{int(nodes)}"] = line_errors(size, seconds, shape)
    return found


def tensorrt_llm(path: Path) -> Fitted:
    """"trtllm-KERNEL/DIRECTION/1" on GB200 (one NVLink domain of up to 64 ranks), held out by number of ranks.

    Raises TableError.
    """
    numbers = ("num_tokens", "hidden_size", "topk", "moe_ep_size", "latency_ms")
    frame = read_table(path, ("gpu", "op_name", "kernel_source", "moe_dtype"), numbers, {"gpu": ("gb200",)})
    names = {"NVLinkOneSided": "trtllm-one-sided", "NVLinkTwoSided": "trtllm-two-sided"}
    found: Fitted = {}
    for source, library in names.items():
        for direction in ("dispatch", "combine"):
            part = frame[(frame["kernel_source"] == source) & (frame["op_name"] == f"alltoall_{direction}")]
            if part.empty:
                continue
            width = part["moe_dtype"].map(WIDTHS).to_numpy() if direction == "dispatch" else 2.0
            hit = ranks_hit(part["moe_ep_size"].to_numpy(), part["topk"].to_numpy())
            size = width * (part["num_tokens"] * part["hidden_size"]).to_numpy() * hit
            shape = shape_numbers(part, ("moe_ep_size",))
            found[f"{library}/{direction}/1"] = line_errors(size, part["latency_ms"].to_numpy() * 1e-3, shape)
    return found
