"""Which points are measured: pure lists, coarse first, so that an interrupted run has covered the whole range thinly.

Sizes are those of small transformers on one processor thread, and of large ones on a GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Point = dict[str, Any]

KIB, MIB = 1 << 10, 1 << 20


def gemm(device: str, quick: bool) -> list[Point]:
    """Products by type: a cube of powers of two, the products of a vocabulary projection, and few rows or columns."""
    if device == "cuda":
        edges, most_flops = ([1024, 4096, 16384] if quick else [128, 512, 1024, 2048, 4096, 8192, 16384]), 2e13
        shapes = _cube(edges, most_flops) + _vocabulary([32_000, 128_256], [2048, 8192], [4096, 8192], most_flops)
        types = ["bf16"] if quick else ["bf16", "fp16", "tf32", "fp32"]
    else:
        most_flops = 4.5e9 if quick else 9e9
        edges = [128, 256, 512, 1024, 2048, 4096] if quick else [64, 128, 192, 256, 384, 512, 1024, 1536, 2048, 4096]
        shapes = _cube([256, 1024, 4096], most_flops) + _cube(edges, most_flops)
        shapes += _vocabulary([4096, 32_000], [256, 1024], [128, 512], 9e9 if quick else 3e10)
        shapes += [one for few in ([32] if quick else [8, 16, 32]) for one in _few(few, [256, 1024])]
        types = ["fp32"]
    distinct = list(dict.fromkeys(shapes))
    found = [{"type": name, "m": m, "n": n, "k": k} for name in types for m, n, k in distinct]
    return found + _in_bf16(gemm, device, quick)


def attention(device: str, quick: bool) -> list[Point]:
    """Causal attention, forward and backward."""
    if device == "cuda":
        heads, dims = [(32, 8), (32, 32)], [128]
        sequences = [2048, 8192] if quick else [1024, 2048, 4096, 8192, 16384]
        batches, most_flops, types = [1, 4], 1e14, (["bf16"] if quick else ["bf16", "fp16"])
    else:
        heads = [(4, 4), (8, 2)] if quick else [(2, 2), (4, 4), (16, 16), (8, 2), (8, 4)]
        dims = [32, 64, 128]
        sequences = [64, 128, 256, 512, 1024] if quick else [64, 128, 256, 512, 1024, 2048]
        batches, most_flops, types = [1, 4], (1e9 if quick else 4e9), ["fp32"]
    found = [
        {"type": name, "direction": direction, "batch": batch, "heads": many, "kv_heads": few, "head_dim": dim,
         "sequence": sequence}
        for name in types for dim in dims for many, few in heads for sequence in sequences for batch in batches
        if 2.0 * batch * many * sequence * sequence * dim <= most_flops
        for direction in ("forward", "backward")
    ]
    return found + _in_bf16(attention, device, quick)


def operators(device: str, quick: bool) -> list[Point]:
    """Memory-bound operators, the optimizer and sums of gradients, by rows and width."""
    cuda = device == "cuda"
    rows = ([1024, 8192] if quick else [512, 2048, 8192, 16384]) if cuda else (
        [128, 512, 1024, 4096] if quick else [64, 128, 256, 512, 1024, 2048, 4096])
    widths = ([4096] if quick else [2048, 4096, 8192]) if cuda else (
        [128, 512, 1024] if quick else [128, 256, 512, 1024, 2048, 4096])
    words = ([32_000] if quick else [32_000, 128_256]) if cuda else ([4096, 32_000] if quick else [2048, 8192, 32_000])
    type_name = "bf16" if cuda else "fp32"
    most_bytes = (2048 if cuda else 96 if quick else 256) * MIB
    found = []
    for operator in LAYER_OPERATORS:
        across = words if operator == "cross_entropy" else widths
        for count, width, direction in itertools.product(rows, across, ("forward", "backward")):
            one = _operator(operator, direction, type_name, count, width)
            if one["size_bytes"] <= most_bytes:
                found.append(one)
    found += [*_sums(cuda, quick), *_optimizers(cuda, quick)]
    return found + [
        _operator(one["operator"], one["direction"], "bf16", one["rows"], one["width"])
        for one in _in_bf16(operators, device, quick) if one["operator"] in LAYER_OPERATORS
    ]


def copies(device: str, quick: bool) -> list[Point]:
    """Copies by size; those between host and device exist only where the two differ."""
    sizes = _powers(64 * KIB, (1024 if device == "cuda" else 128) * MIB, 16 if quick else 4)
    kinds = ["device", "host-to-device", "device-to-host"] if device == "cuda" else ["device"]
    return [{"kind": kind, "size_bytes": size} for kind in kinds for size in sizes]


def launch() -> list[Point]:
    """What a kernel costs beside its work."""
    return [{"kind": kind} for kind in ("small-op", "small-linear", "autograd-node")]


def storage(quick: bool) -> list[Point]:
    """Files by size."""
    sizes = [4 * KIB, MIB, 32 * MIB] if quick else [4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB]
    return [{"kind": kind, "size_bytes": size} for size in sizes for kind in ("write", "write-fsync", "read")]


def collectives(device: str, quick: bool, ranks: int) -> list[Point]:
    """Collectives by size; what gives each rank a share has at least an element for each."""
    sizes = [4, KIB, 32 * KIB, MIB, 8 * MIB] if quick else _powers(4, 32 * MIB, 8)
    if device == "cuda":
        sizes = _powers(4 * KIB, 1024 * MIB, 16 if quick else 4)
    return [
        {"collective": name, "backend": "nccl" if device == "cuda" else "gloo", "ranks": ranks, "size_bytes": size}
        for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "point_to_point")
        for size in (max(one, 4 * ranks) if name in _SHARED else one for one in sizes)
    ]


# bytes a forward and a backward pass of each operator move at 2-byte activations, in elements of rows x width: those
# that `costmodel.operators` counts (norm_residual is one norm with one addition; cross-entropy is fused)
LAYER_OPERATORS = {
    "norm_residual_rms": (4.0, 4.0),
    "norm_residual_layer": (4.0, 4.0),
    "rotary": (2.0, 2.0),
    "query_key_norm": (2.0, 3.0),
    "mlp_activation_gated": (3.0, 5.0),
    "mlp_activation": (2.0, 3.0),
    "permute": (2.0, 2.0),
    "unpermute": (2.0, 2.0),
    "embedding": (2.0, 3.0),
    "final_norm": (2.0, 3.0),
    "cross_entropy": (1.0, 2.0),
}
WIDENING = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}  # bytes of an element
OPTIMIZER_BYTES = 34.0  # a parameter, as `placement.state_traffic.optimizer_s` counts
_SHARED = ("all_gather", "reduce_scatter", "all_to_all")


def _in_bf16(points: Callable[[str, bool], list[Point]], device: str, quick: bool) -> list[Point]:
    """On a processor the second type of a full measurement: the shapes of a quick one."""
    return [{**one, "type": "bf16"} for one in points(device, True)] if device == "cpu" and not quick else []


def _operator(operator: str, direction: str, type_name: str, rows: int, width: int) -> Point:
    moved = LAYER_OPERATORS[operator][direction == "backward"] * rows * width * WIDENING[type_name]
    return {"operator": operator, "direction": direction, "type": type_name, "rows": rows, "width": width,
            "size_bytes": int(moved)}


def _sums(cuda: bool, quick: bool) -> Iterator[Point]:
    """accumulate: a gradient is added to another (read two, write one); zero_fill: a tensor of zeros is made."""
    type_name = "bf16" if cuda else "fp32"
    for width in _powers(16 * KIB, (512 if cuda else 16) * MIB, 8 if quick else 4):
        for operator, moved in (("accumulate", 3), ("zero_fill", 1)):
            yield {"operator": operator, "direction": "step", "type": type_name, "rows": 1, "width": width,
                   "size_bytes": moved * width * WIDENING[type_name]}


def _optimizers(cuda: bool, quick: bool) -> Iterator[Point]:
    """AdamW over `rows` tensors of `width` parameters in fp32."""
    most = (1024 if cuda else 16 if quick else 24) * MIB
    for rows, width in itertools.product([4] if quick else [4, 32], _powers(256, (64 if cuda else 4) * MIB, 4)):
        if rows * width <= most:
            yield {"operator": "optimizer", "direction": "step", "type": "fp32", "rows": rows, "width": width,
                   "size_bytes": int(OPTIMIZER_BYTES * rows * width)}


def _cube(edges: Sequence[int], most_flops: float) -> list[tuple[int, int, int]]:
    return [(m, n, k) for m, n, k in itertools.product(edges, repeat=3) if 2.0 * m * n * k <= most_flops]


def _vocabulary(words: Sequence[int], tokens: Sequence[int], hidden: Sequence[int],
                most_flops: float) -> list[tuple[int, int, int]]:
    """The three products of the head: result, gradient of its input, gradient of its weight."""
    return [
        shape for v, t, h in itertools.product(words, tokens, hidden) if 2.0 * v * t * h <= most_flops
        for shape in ((t, v, h), (t, h, v), (v, h, t))
    ]


def _few(few: int, edges: Sequence[int]) -> list[tuple[int, int, int]]:
    """Few rows (tokens of an expert), few columns (a router's experts), and a short sum."""
    pairs = list(itertools.product(edges, repeat=2))
    return [shape for a, b in pairs for shape in ((few, a, b), (a, few, b), (a, b, few))]


def _powers(first: int, last: int, factor: int) -> list[int]:
    """first, first x factor, ... up to and always with last.

    >>> _powers(4, 100, 4)
    [4, 16, 64, 100]
    """
    found = []
    while first < last:
        found.append(first)
        first *= factor
    return [*found, last]
