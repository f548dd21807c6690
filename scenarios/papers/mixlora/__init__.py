"""MixLoRA (arXiv 2404.15159; README of TUDB-Labs/MixLoRA).

Mechanism: LoRA experts of one frozen MLP; gate and up of the frozen MLP are computed once a token in place of once an
expert (`costmodel.techniques.mixlora`), and several models of adapters are trained over one frozen base.
Answered: time a token with and without the shared products, and memory a model of two trained over one base against
one, by playing a step of LLaMA-2-7B on one RTX 4090 with the README's settings (8 experts, top-2, rank 8, micro-batches
of 2). Not stated: the sequence (512 and 1,024 tokens are taken), whether activations are recomputed (none and all), and
how many models share the base (2, the fewest).
"""

from __future__ import annotations

import re

from costmodel.huggingface import catalog_model
from costmodel.techniques.mixlora import MixLora
from scenarios.papers import one_gpu
from scenarios.papers.answers import Answer, NotMapped, Span
from scenarios.papers.claims import Claim
from simulator.predict import Played

MODEL, NODE, BATCH, SEQUENCES, MODELS = "llama-2-7b", "workstation-rtx4090", 2, (512, 1024), 2
OPEN = tuple((sequence, recompute) for sequence in SEQUENCES for recompute in ("none", "full"))


def played(share_base: bool, sequence: int, recompute: str) -> Played:
    changes = (MixLora(share_base=share_base),)
    return one_gpu.played(catalog_model(MODEL), NODE, sequence, BATCH, changes, recompute)


def time_ratio(sequence: int, recompute: str) -> float:
    """Time of a step with gate and up of the frozen MLP once a token, over once an expert."""
    shared, apart = (played(one, sequence, recompute).step.step_time_s for one in (True, False))
    return shared / apart


def memory_ratio(sequence: int, recompute: str) -> float:
    """Bytes a model when MODELS of them are trained over one frozen base, over those of one alone."""
    alone = played(True, sequence, recompute)
    base = alone.step.states_at_peak[0]["parameters"]
    beside = one_gpu.allocated_bytes(alone) - base
    return (base / MODELS + beside) / (base + beside)


def answer(claim: Claim) -> Answer:
    if re.search(r"latency|time|throughput", claim.metric):
        ratios = [time_ratio(*one) for one in OPEN]
        how = "time of a training step with gate and up of the frozen MLP once a token, over once an expert"
        missing = "the host's time in the loop over experts, and inference"
    elif "memory" in claim.metric:
        ratios = [memory_ratio(*one) for one in OPEN]
        how = f"peak a model of {MODELS} over one frozen base; sharing products alone keeps as many bytes"
        missing = "the memory of inference"
    else:
        raise NotMapped(f"metric {claim.metric!r}: latency and memory are read")
    baseline = claim.baseline_figure.high if claim.baseline_figure else 1.0
    ratio = Span.of(ratios)
    return Answer(Span(baseline * ratio.low, baseline * ratio.high), Span.of(baseline), ratio,
                  open=f"the sequence ({' to '.join(f'{one:,}' for one in SEQUENCES)} tokens) and recomputation",
                  missing={"": missing}, how=how)
