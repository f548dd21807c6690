"""What the project would need before claims of these systems can be simulated: the reason of a row not mapped."""

from __future__ import annotations

MISSING: dict[str, str] = {
    "protrain": "the memory hierarchy: chunks resident, swapped or recomputed by a cost model",
    "harmony": "the memory hierarchy: weights swapped between host and device by packs of layers",
    "memascend": "the memory hierarchy: pinned host buffers and SSD offload",
    "cxl-aware allocation": "the memory hierarchy: optimizer states interleaved over DRAM and CXL",
    "mallocmuzero": "placing buffers in fast memory by search (the memory hierarchy)",
    "larc": "caches as a memory tier of processors (the memory hierarchy)",
    "mcunetv2": "convolutions run patch by patch",
    "datastates-llm": "checkpointing (stall, drain and storage)",
    "reft": "checkpointing in peer memory with erasure coding",
    "bytecheckpoint": "checkpointing (stall, drain and storage)",
    "torch dcp async": "asynchronous checkpointing beside training",
    "flash checkpoint": "checkpointing (blocking save against a copy in host memory)",
    "gemini": "failure recovery from peer memory",
    "tba": "asynchronous actors and learners",
    "papaya": "asynchronous federated training",
}
