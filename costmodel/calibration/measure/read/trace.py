"""Chrome traces of the PyTorch profiler (`export_chrome_trace`, plain or gzipped), made with record_shapes=True.

Products (aten::mm, addmm, linear) and causal attention become rows by shape; where the trace has GPU kernels, the time
is that of all kernels an operator launched (by "External id"), else that of the operator itself. NCCL kernels become
rows of collectives by message size: their time holds waiting for the other ranks, so the low quantile is the one to
use. fp32 products of a GPU may have run as tf32, which a trace does not tell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from costmodel.calibration.measure.read.rows import Read, ReadError, json_of, text_of
from costmodel.calibration.measure.statistics import timing

TYPES = {"float": "fp32", "c10::BFloat16": "bf16", "c10::Half": "fp16"}
ELEMENT_BYTES = {"Byte": 1, "Char": 1, "Half": 2, "BFloat16": 2, "Int": 4, "Float": 4, "Long": 8, "Double": 8,
                 "Float8_e4m3fn": 1, "Float8_e5m2": 1}
# operator: places of the rows and of the weight among its inputs
_PRODUCTS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::linear": (0, 1)}
# operator: direction, place of the queries, place of is_causal
_ATTENTION = {
    "aten::_scaled_dot_product_flash_attention": ("forward", 0, 4),
    "aten::_scaled_dot_product_flash_attention_for_cpu": ("forward", 0, 4),
    "aten::_scaled_dot_product_flash_attention_backward": ("backward", 1, 11),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": ("backward", 1, 7),
    "aten::_scaled_dot_product_efficient_attention": ("forward", 0, 6),
    "aten::_scaled_dot_product_cudnn_attention": ("forward", 0, 6),
}
# what c10d calls a collective: its name here, and whether the whole tensor goes in or comes out
_COLLECTIVES = {
    "allreduce": ("all_reduce", "In"), "allreduce_coalesced": ("all_reduce", "In"),
    "allgather": ("all_gather", "Out"), "_allgather_base": ("all_gather", "Out"),
    "allgather_into_tensor_coalesced": ("all_gather", "Out"),
    "reduce_scatter": ("reduce_scatter", "In"), "_reduce_scatter_base": ("reduce_scatter", "In"),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", "In"),
    "all_to_all": ("all_to_all", "In"), "all_to_allv": ("all_to_all", "In"), "alltoall_base": ("all_to_all", "In"),
    "broadcast": ("broadcast", "In"), "send": ("point_to_point", "In"), "recv": ("point_to_point", "Out"),
}

Event = dict[str, Any]
Found = Iterator[tuple[str, dict[str, Any], float]]  # table, point, microseconds


def read(path: Path) -> Read:
    """Rows of gemm, attention and collectives. Raises ReadError."""
    document = json_of(path, text_of(path))
    events = document.get("traceEvents") if isinstance(document, dict) else document
    if not isinstance(events, list):
        raise ReadError(f"{path}: has no list 'traceEvents', which the PyTorch profiler writes")
    whole = [one for one in events if isinstance(one, dict) and one.get("ph") == "X"]
    by_row: dict[tuple[str, tuple[tuple[str, Any], ...]], list[float]] = defaultdict(list)
    try:
        for table, point, microseconds in (*_operators(whole), *_collectives(whole)):
            if microseconds > 0:
                by_row[table, tuple(point.items())].append(microseconds * 1e-6)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ReadError(f"{path}: an event has not the form that the PyTorch profiler writes: {error!r}") from None
    if not by_row:
        raise ReadError(f"{path}: has no products, attention or collectives with shapes; profile with "
                        "record_shapes=True")
    version = document.get("torch_version") if isinstance(document, dict) else None
    return Read(f"PyTorch profiler {version or ''}".strip(),
                tuple((table, dict(point), timing(times)) for (table, point), times in by_row.items()))


def _operators(events: list[Event]) -> Found:
    """Operators with shapes, each with its own time or that of its kernels."""
    threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    kernels: dict[Any, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "cpu_op":
            threads[event["pid"], event["tid"]].append(event)
        elif event.get("cat") == "kernel" and "External id" in event.get("args", {}):
            kernels[event["args"]["External id"]] += float(event["dur"])
    for operators in threads.values():
        operators.sort(key=lambda one: float(one["ts"]))
        starts = [float(one["ts"]) for one in operators]
        for place, event in enumerate(operators):
            name = event["name"]
            if name not in _PRODUCTS and name not in _ATTENTION:
                continue
            inside = operators[place + 1:bisect_left(starts, starts[place] + float(event["dur"]))]
            if name == "aten::linear" and any(one["name"] in _PRODUCTS for one in inside):
                continue  # that one is counted
            point = _product(event) if name in _PRODUCTS else _attention(event)
            if point is not None:
                ids = [one["args"].get("External id") for one in (event, *inside) if "args" in one]
                microseconds = sum(kernels.get(one, 0.0) for one in ids) if kernels else float(event["dur"])
                yield ("gemm" if name in _PRODUCTS else "attention"), point, microseconds


def _product(event: Event) -> dict[str, Any] | None:
    """(m, n, k) of a product; None without shapes or of a type that no table has."""
    dims, types = event.get("args", {}).get("Input Dims"), event.get("args", {}).get("Input type")
    first, second = _PRODUCTS[event["name"]]
    if not dims or not types or len(dims) <= second or types[first] not in TYPES or len(dims[second]) != 2:
        return None
    rows = 1
    for edge in dims[first][:-1]:
        rows *= edge
    columns = dims[second][0] if event["name"] == "aten::linear" else dims[second][1]
    return {"type": TYPES[types[first]], "m": rows, "n": columns, "k": dims[first][-1]}


def _attention(event: Event) -> dict[str, Any] | None:
    """Shape of causal attention of a whole sequence to itself; None otherwise, or where a trace does not say."""
    args = event.get("args", {})
    direction, place, causal = _ATTENTION[event["name"]]
    dims, types, values = args.get("Input Dims"), args.get("Input type"), args.get("Concrete Inputs")
    if not dims or not types or not values or len(values) <= causal or values[causal].lower() != "true":
        return None
    (batch, heads, sequence, head_dim), (_, kv_heads, keys, _) = dims[place], dims[place + 1]
    if types[place] not in TYPES or sequence != keys:
        return None
    return {"type": TYPES[types[place]], "direction": direction, "batch": batch, "heads": heads, "kv_heads": kv_heads,
            "head_dim": head_dim, "sequence": sequence}


def _collectives(events: list[Event]) -> Found:
    for event in events:
        args = event.get("args", {})
        if event.get("cat") != "kernel" or not str(event.get("name", "")).startswith("nccl"):
            continue
        known, item = _COLLECTIVES.get(args.get("Collective name", "")), ELEMENT_BYTES.get(args.get("dtype", ""))
        if known is None or item is None:
            continue
        name, side = known
        size = int(args[f"{side} msg nelems"]) * item
        if size > 0:
            yield "collectives", {"collective": name, "backend": "nccl", "ranks": int(args["Group size"]),
                                  "size_bytes": size}, float(event["dur"])
