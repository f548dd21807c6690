"""What a row says was measured: speed and memory as printed, or a speed converted from its TFLOP/s.

Conversion follows the convention that the source counted in (reference/training_notes.md, section 1). Converted
speeds are reported apart and never enter an average.
"""

from __future__ import annotations

import re

from costmodel import parameters
from costmodel.architecture import Model
from costmodel.operators import model_flops_per_token, query_width
from scenarios.accuracy.rows import Row

GIB = 2.0**30


def tokens_per_s_per_gpu(row: Row) -> float | None:
    """As printed, or from the step time."""
    if (printed := row.number("tokens_per_s_per_gpu")) is not None:
        return printed
    seconds, tokens = row.number("step_time_s"), _tokens_per_gpu(row)
    return tokens / seconds if seconds and tokens else None


def _tokens_per_gpu(row: Row) -> float | None:
    sequence, batch, gpus = row.integer("seq"), row.integer("global_batch"), row.integer("gpus")
    return sequence * batch / gpus if sequence and batch and gpus else None


def converted_tokens_per_s_per_gpu(row: Row, model: Model) -> float | None:
    """Tokens/s behind a printed TFLOP/s: as the notes derive it, or by the convention of the source."""
    notes, tokens = row.text("notes"), _tokens_per_gpu(row)
    if found := re.search(r"implied ([\d.]+) tok/s/GPU", notes):
        return float(found[1])
    if (found := re.search(r"(?:implied|derived) step time\D*([\d.]+) s", notes)) and tokens:
        return tokens / float(found[1])
    flops, sequence = row.number("model_tflops_per_gpu"), row.integer("seq")
    if flops is None or sequence is None:
        return None
    per_token = float(model_flops_per_token(model, sequence))
    if row.family in FULL_ATTENTION:
        per_token = full_attention_flops_per_token(model, sequence)
    return flops * 1e12 / per_token


FULL_ATTENTION = ("NeMo-longseq", "MaxText", "Megatron-README")


def full_attention_flops_per_token(model: Model, sequence: int) -> float:
    """6 x matmul parameters (head included) + 12 s x width of the heads a layer: non-causal attention."""
    attention = sum(12.0 * sequence * query_width(layer.attention) for layer in model.layers)
    return 6.0 * parameters.matmul_parameters_per_token(model) + attention


def allocated_bytes(row: Row) -> float | None:
    peak = row.number("peak_mem_gib")
    return None if peak is None else peak * GIB


def reserved_bytes(row: Row) -> float | None:
    reserved = row.number("reserved_mem_gib")
    return None if reserved is None else reserved * GIB
