"""How the software runs a step: the inputs of a prediction that are neither model, plan nor hardware.

Each field is a physical choice with its own term (accuracy_notes, ten decisions), not a multiplier on the
result. `named` reads the bundles of `stacks.yaml`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from costmodel.activations import EXECUTIONS
from costmodel.operators import Number

ATTENTION_KERNELS = ("unfused", "flash-2", "flash-3", "cudnn")
ATTENTION_BACKWARDS = ("skips", "whole")
CROSS_ENTROPIES = ("fused", "unfused", "vocab-parallel")
CUDA_GRAPHS = ("none", "partial", "full")
MOE_DISPATCHERS = ("all-to-all", "flex")
COLLECTIVES = ("nccl", "ho-ring")
OVERLAPS = ("data", "tensor", "context", "expert", "pipeline")

# Bytes a logit through cross-entropy, forward and backward: a fused kernel reads 2, reads 2 and writes 2; the
# unfused fp32 chain of 2022 moves 52 counted and costs as much as 108 (memory_notes B3, fitted on vTrain).
# "vocab-parallel" is that chain as counted in Megatron-LM's VocabParallelCrossEntropy: cast, maximum, difference,
# exponential, sum and quotient forward, product and cast backward.
LOGIT_BYTES = {"fused": (2.0, 4.0), "unfused": (36.0, 72.0), "vocab-parallel": (38.0, 14.0)}

# memory_notes B3: host time of a pass grows by 4.7 % per further tensor rank. Of the powers 3, 4, 5, 8 and 16 of the
# smooth maximum, 4 has the least mean error over the vTrain cells and the MoE rows (any from 4 up: B5).
HOST_GROWTH_PER_TENSOR_RANK = 0.047
SMOOTH_POWER = 4.0
# Share of the host time that CUDA graphs leave: "partial" captures the attention block, about half the launches.
HOST_SHARE = {"none": 1.0, "partial": 0.5, "full": 0.0}


class StackError(ValueError):
    """A stack that does not exist, or a choice that it does not have."""


@dataclass(frozen=True)
class Stack:
    """execution: "eager", "fused" (Transformer Engine, Megatron kernels) or "compiled" (torch.compile).
    attention: the kernel; attention_backward: "skips" masked blocks or computes the "whole" square.
    overlap: which communication runs beside compute (what is not named blocks).
    cross_entropy: "fused", or an fp32 chain ("unfused", "vocab-parallel"). cuda_graphs: what the host need not launch.
    moe_dispatcher: "all-to-all", or "flex" (DeepEP, HybridEP) which permutes while it sends.
    collectives: the algorithms of costmodel.collectives: what NCCL picks, or HO-Ring (arXiv 2310.06003).
    host_layer_s, host_moe_layer_s, host_head_s: host seconds of one pass of a dense layer, an MoE layer, the
    head; a pass takes at least that long. host_hop_s: of one send and its receive between pipeline stages. 0 means the
    host is never in the way.
    """

    execution: str = "fused"
    attention: str = "flash-2"
    overlap: tuple[str, ...] = ("data", "pipeline")
    attention_backward: str = "skips"
    cross_entropy: str = "fused"
    cuda_graphs: str = "none"
    moe_dispatcher: str = "all-to-all"
    collectives: str = "nccl"
    host_layer_s: float = 0.0
    host_moe_layer_s: float = 0.0
    host_head_s: float = 0.0
    host_hop_s: float = 0.0
    name: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise StackError(f"{key} {getattr(self, key)!r} is not one of {', '.join(allowed)}")
        if unknown := [name for name in self.overlap if name not in OVERLAPS]:
            raise StackError(f"overlap {unknown[0]!r} is not one of {', '.join(OVERLAPS)}")

    def host_s(self, moe: bool, tensor: Number) -> Number:
        """Host seconds of one pass of a layer: launches that CUDA graphs leave, more with tensor parallelism."""
        once = self.host_moe_layer_s if moe else self.host_layer_s
        return once * HOST_SHARE[self.cuda_graphs] * (1.0 + HOST_GROWTH_PER_TENSOR_RANK * (np.asarray(tensor) - 1))


CHOICES: Mapping[str, tuple[str, ...]] = {
    "execution": EXECUTIONS,
    "attention": ATTENTION_KERNELS,
    "attention_backward": ATTENTION_BACKWARDS,
    "cross_entropy": CROSS_ENTROPIES,
    "cuda_graphs": CUDA_GRAPHS,
    "moe_dispatcher": MOE_DISPATCHERS,
    "collectives": COLLECTIVES,
}


def waiting_for_host_s(device_s: Number, host_s: Number) -> Number:
    """What a pass takes longer because the host launches it: smooth maximum less the device time.

    >>> float(waiting_for_host_s(1.0, 0.0)), round(float(waiting_for_host_s(1.0, 3.0)), 4)
    (0.0, 2.0092)
    """
    top = np.maximum(np.maximum(device_s, host_s), 1e-30)
    smooth = top * ((device_s / top) ** SMOOTH_POWER + (host_s / top) ** SMOOTH_POWER) ** (1 / SMOOTH_POWER)
    return smooth - device_s


@cache
def _bundles() -> dict[str, dict[str, Any]]:
    raw = YAML(typ="safe", pure=True).load(Path(__file__).with_name("stacks.yaml").read_text("utf-8"))
    return {name: {key: tuple(v) if isinstance(v, list) else v for key, v in of.items()} for name, of in raw.items()}


def names() -> tuple[str, ...]:
    """The named bundles."""
    return tuple(_bundles())


def named(name: str, **overrides: Any) -> Stack:
    """A bundle with some of its choices replaced. Raises StackError naming the nearest bundle."""
    if name not in _bundles():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise StackError(f"no stack {name!r}; {hint}known: {', '.join(names())}")
    return Stack(**{**_bundles()[name], "name": name, **overrides})
