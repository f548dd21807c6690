"""The small models and layouts that check a machine's profile by real runs (`whatif validate`, `make validate`).

Models are given as Hugging Face configurations. Widths, sequences and vocabularies marked as not calibrated lie off the
grids of `whatif calibrate measure`, so that an error there is one of prediction, not of looking up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel.architecture import Model
from costmodel.huggingface import from_config


@dataclass(frozen=True)
class Case:
    """One real run: a model, a plan (keys of `placement.plan.Plan`), tokens of a sequence, sequences a step."""

    name: str
    config: Mapping[str, Any]
    sequence: int
    global_batch: int
    plan: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = True  # its widths and sequences lie on the grids that were measured
    checkpoint: bool = False
    memory: bool = False

    @property
    def model(self) -> Model:
        return from_config(self.config, self.name)


def gpt(layers: int, width: int, heads: int, vocabulary: int, positions: int = 1024) -> dict[str, Any]:
    """A GPT-2: learned positions, layer norm, GELU."""
    return {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads, "vocab_size": vocabulary,
            "n_positions": positions, "n_ctx": positions, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "tie_word_embeddings": False}


def llama(layers: int, width: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> dict[str, Any]:
    """A Llama: rotary positions, RMS norm, gated MLP, grouped heads."""
    return {"model_type": "llama", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocabulary,
            "tie_word_embeddings": False}


def mixtral(layers: int, width: int, heads: int, inner: int, experts: int, vocabulary: int) -> dict[str, Any]:
    """A Mixtral: a Llama whose MLP is a mixture of experts, two a token."""
    return {"model_type": "mixtral", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
            "num_key_value_heads": heads, "intermediate_size": inner, "num_local_experts": experts,
            "num_experts_per_tok": 2, "vocab_size": vocabulary, "tie_word_embeddings": False}


# (a) compute of every pass, by CPU time
COMPUTE = (
    Case("GPT 512 wide", gpt(4, 512, 8, 8192), 256, 4, memory=True),
    Case("GPT 256 wide", gpt(2, 256, 4, 4096), 128, 8, {"micro_batch": 8}),
    Case("GPT 448 wide", gpt(3, 448, 7, 6144), 192, 4, {"micro_batch": 4}, calibrated=False),
    Case("Llama 512 wide", llama(4, 512, 8, 4, 1408, 8192), 256, 4, {"micro_batch": 2}, memory=True),
    Case("Llama 320 wide", llama(3, 320, 5, 5, 896, 6144), 384, 4, {"micro_batch": 4}, calibrated=False),
    Case("Llama 640 wide", llama(2, 640, 10, 2, 1792, 7168), 448, 2, {"micro_batch": 2}, calibrated=False, memory=True),
    Case("Mixtral 256 wide", mixtral(2, 256, 4, 512, 8, 4096), 256, 4, {"micro_batch": 4}, memory=True),
    Case("Llama 512 wide, recomputed", llama(4, 512, 8, 8, 1408, 8192), 256, 4,
         {"micro_batch": 4, "recompute": "full"}, memory=True),
)

# (c) wall clock, losses and memory of every layout; each against the same model in one process
_SMALL = llama(4, 384, 6, 6, 1024, 4096)
_EXPERTS = mixtral(2, 256, 4, 512, 4, 4096)
LAYOUTS: Mapping[int, tuple[Case, ...]] = {
    1: (
        Case("one process", _SMALL, 192, 8, {"micro_batch": 2}, memory=True),
        Case("one process, experts", _EXPERTS, 192, 8, {"micro_batch": 4}, memory=True),
    ),
    2: (
        Case("DDP", _SMALL, 192, 8, {"micro_batch": 2, "data": 2, "sharding": "ddp"}, memory=True),
        Case("FSDP", _SMALL, 192, 8, {"micro_batch": 2, "data": 2, "sharding": "fsdp"}, memory=True),
        Case("tensor parallel", _SMALL, 192, 8, {"micro_batch": 2, "tensor": 2}, memory=True),
        Case("pipeline 1F1B", _SMALL, 192, 8, {"micro_batch": 2, "pipeline": 2, "schedule": "1f1b"}, memory=True),
        Case("expert all-to-all", _EXPERTS, 192, 8, {"micro_batch": 4, "data": 2, "expert": 2, "sharding": "ddp"}),
        Case("asynchronous checkpoint", _SMALL, 192, 8, {"micro_batch": 2, "data": 2, "sharding": "fsdp"},
             checkpoint=True),
    ),
    4: (
        Case("pipeline interleaved", _SMALL, 192, 8,
             {"micro_batch": 1, "pipeline": 2, "virtual": 2, "data": 2, "schedule": "interleaved-1f1b",
              "sharding": "ddp"}),
        Case("tensor x data", _SMALL, 192, 8, {"micro_batch": 2, "tensor": 2, "data": 2, "sharding": "fsdp"}),
    ),
}
