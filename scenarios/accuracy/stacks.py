"""The software of a published row: a named stack of `costmodel.stack` by framework, with what the row overrides.

A bundle also holds what the framework does where a row leaves a setting out that no range is made of (sharding of
the states, sequence parallelism beside tensor parallelism).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scenarios.accuracy.rows import Row


@dataclass(frozen=True)
class Bundle:
    """`stack` is a name of costmodel/stacks.yaml, `choices` replace some of its keys, `source` says why."""

    stack: str
    source: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    sharding: str = "ddp"
    sequence_parallel: bool = False
    context_method: str = "ring"
    state_bytes: str | None = None  # of the plan; None: the strategy's own

    @property
    def block(self) -> dict[str, Any]:
        """The stack block of a scenario."""
        return {"name": self.stack, **self.choices}


_BRIDGE = Bundle("megatron-bridge", "NVIDIA-NeMo/Megatron-Bridge performance recipes: Transformer Engine, "
                 "tp_comm_overlap, overlap_grad_reduce, overlap_param_gather", sharding="zero-1",
                 sequence_parallel=True, state_bytes="mixed")  # grad_reduce_in_fp32=False
_CORE = Bundle("megatron-core", "NVIDIA/Megatron-LM tests/functional_tests; no cross-entropy fusion asked for",
               {"cross_entropy": "unfused", "overlap": ("data",)})

# framework, family -> bundle; the first pattern that matches "framework | family" counts
BUNDLES: tuple[tuple[str, Bundle], ...] = (
    (r"llm-foundry", Bundle("llm-foundry", "mosaicml/llm-foundry scripts/train/benchmarking", sharding="fsdp")),
    (r"internevo", Bundle("internevo", "InternLM/InternEvo doc/en/train_performance.md", sharding="zero-1",
                           state_bytes="mixed")),
    (r"megatron-lm \+ deepspeed", Bundle("deepspeed", "arXiv 2104.04473, table 2", sharding="zero-3")),
    (r"megatron-deepspeed|megatron-(sc21|korthikanti)|korthikanti-memory",
     Bundle("megatron-lm-2022", "arXiv 2104.04473, section 4.2; 2205.05198; memory_notes.md B3")),
    (r"simumax", replace(_CORE, source="published/README.md: overlap switched off, fused cross-entropy",
                         choices={"overlap": (), "cross_entropy": "fused"}, context_method="ulysses")),
    (r"functional test", _CORE),
    (r"sailor", Bundle("deepspeed", "memory_notes.md A2, A3: fp32 eager modules, no flash attention; fp32 states",
                       state_bytes="fp32")),
    (r"meta internal", Bundle("torchtitan", "arXiv 2407.21783, section 3.3.2", {"attention": "flash-3"},
                              "fsdp-no-reshard", True, "all-gather")),
    (r"maxtext|pax", Bundle("torchtitan", "google/maxtext: compiled by XLA", sharding="fsdp")),
    (r"pytorch 2\.[01]|deepspeed n\d", Bundle("megatron-core", "Gaudi and DeepSpeed submissions of MLPerf: fused",
                                              sharding="zero-1", sequence_parallel=True)),
    (r"rocm|llmboost|amd|mi3", Bundle("megatron-core", "AMD submissions of MLPerf: Megatron on ROCm",
                                      {"attention": "flash-2"}, "zero-1", True)),
)


def bundle_of(row: Row) -> Bundle:
    """The bundle of the row's framework (Megatron-Bridge and NeMo where none matches), with the attention kernel,
    CUDA graphs and cross-entropy that the row or its notes state."""
    text = f"{row.text('framework')} | {row.family} | {row.text('accelerator')}".lower()
    found = next((bundle for pattern, bundle in BUNDLES if re.search(pattern, text)), _BRIDGE)
    return replace(found, choices={**found.choices, **_stated(row)})


def _stated(row: Row) -> dict[str, Any]:
    """Stack choices that the row prints."""
    notes, found = row.text("notes"), dict[str, Any]()
    unfused = "attention-backend=unfused" in notes or "transformer-impl=local" in notes
    if unfused or row.text("flash_attention") == "0":
        found["attention"] = "unfused"
    if "dispatcher_backend=" in notes:
        found["moe_dispatcher"] = "flex"
    if "moe_a2a_overlap=True" in notes:
        found["overlap"] = ("data", "pipeline", "tensor", "expert")
    if "full_iteration" in notes:
        found["cuda_graphs"] = "full"
    elif re.search(r"cuda_graph_scope=[\w+]*attn", notes):
        found["cuda_graphs"] = "partial"  # scopes without attention leave most launches
    return found
