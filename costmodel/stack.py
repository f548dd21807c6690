"""How the software runs a step: the inputs of a prediction that are neither model, plan nor hardware.

Each field is a physical choice with its own term (accuracy_notes, ten decisions), not a multiplier on the
result.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.activations import EXECUTIONS

ATTENTION_KERNELS = ("unfused", "flash-2", "flash-3", "cudnn")
OVERLAPS = ("data", "tensor", "context", "pipeline")

# Bytes moved by memory-bound operators over the ideally fused count, by way of execution.
# accuracy_notes, decision 2: "eager PyTorch moves about 3.1 times the ideal fused bytes; compiled or
# Transformer Engine about 1".
TRAFFIC_FACTOR = {"eager": 3.1, "fused": 1.0, "compiled": 1.0}
TRAFFIC_SOURCE = "accuracy_notes.md, decision 2 (fitted on published runs, 2026-11)"


@dataclass(frozen=True)
class Stack:
    """execution: "eager", "fused" (Transformer Engine, Megatron kernels) or "compiled" (torch.compile);
    attention: the kernel; overlap: which communication runs beside compute (what is not named blocks)."""

    execution: str = "fused"
    attention: str = "flash-2"
    overlap: tuple[str, ...] = ("data", "pipeline")

    def __post_init__(self) -> None:
        if self.execution not in EXECUTIONS:
            raise ValueError(f"execution {self.execution!r} is not one of {', '.join(EXECUTIONS)}")
        if self.attention not in ATTENTION_KERNELS:
            raise ValueError(f"attention {self.attention!r} is not one of {', '.join(ATTENTION_KERNELS)}")
        if unknown := [name for name in self.overlap if name not in OVERLAPS]:
            raise ValueError(f"overlap {unknown[0]!r} is not one of {', '.join(OVERLAPS)}")

    @property
    def traffic_factor(self) -> float:
        return TRAFFIC_FACTOR[self.execution]
