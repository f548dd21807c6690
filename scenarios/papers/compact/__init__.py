"""CompAct (arXiv 2410.15352).

Mechanism: linear layers keep a random projection of their input, of rank r for n channels; gradients and Adam's moments
are r/n of their size (`costmodel.techniques.compact`).
Answered: how much of the allocator's peak falls away, by playing a step of one A800 with plain modules and states in
bf16. Rows state neither model nor batch: pre-training goes over the LLaMA presets of this line of work (60M to 1B,
sequences of 256 tokens, 16 to 64 of them a pass) at ranks n/4 and n/2, fine-tuning over the larger two with rank 8.
Encoders without logits, on which the paper fine-tunes, are not expressed. Rows print the per cent as value or as ratio.
"""

from __future__ import annotations

import re
from itertools import product

from costmodel.techniques.compact import CompAct
from scenarios.papers import one_gpu, settings
from scenarios.papers.answers import Answer, NotMapped, Span
from scenarios.papers.claims import Claim
from scenarios.papers.mixture_of_channels import PRESETS

NODE, SEQUENCE, BATCHES = "hgx-a800", 256, (16, 64)
PRETRAINING, FINE_TUNING = (0.25, 0.5), (8.0,)
MISSING = ("models without a vocabulary's logits, which take about half of these peaks: a classifier's peak is what "
           "its layers keep")


def reduction_pct(shape: tuple[int, int, int, int], batch: int, rank: float) -> float:
    """Per cent of the peak that falls away."""
    model = one_gpu.llama(*shape)
    whole, part = (one_gpu.allocated_bytes(one_gpu.played(model, NODE, SEQUENCE, batch, changes))
                   for changes in ((), (CompAct(rank),)))
    return 100.0 * (1.0 - part / whole)


def answer(claim: Claim) -> Answer:
    if not re.search(r"memory", claim.metric):
        raise NotMapped(f"metric {claim.metric!r}: peak memory is read")
    tuning = "fine" in claim.setting
    size, batch = settings.parameters(claim.setting), settings.degree(claim.setting, "batch")
    shapes = [PRESETS[size]] if size in PRESETS else [PRESETS[one] for one in sorted(PRESETS)][2 if tuning else 0 :]
    stated = re.search(r"\brank\D{0,3}(\d*\.?\d+)", claim.setting)
    ranks = (float(stated[1]),) if stated else FINE_TUNING if tuning else PRETRAINING
    found = Span.of([reduction_pct(*one) for one in product(shapes, (batch,) if batch else BATCHES, ranks)])
    return Answer(found, ratio=found, missing={"": MISSING},
                  open="the model (LLaMA 60M to 1B), the batch (16 to 64 sequences of 256) and the rank",
                  how=f"played steps of one A800, ranks {', '.join(f'{rank:g}' for rank in ranks)}")
