"""Mixture-of-Channels (arXiv 2511.09323; figures from the repository xiaohuangji/MoC).

Mechanism: top-K on the SwiGLU gate keeps about 20 % of the channels of the feed-forward block, so that fewer of
its activations are kept for the backward pass. Elements kept a layer (reference/systems_training.md, 11.1):

    dense 4 b s f + b s d     MoC b s f + b s d     MoC with recomputation (GCP) 0.6 b s f + b s d

Answered: peak memory, as the row's own dense peak less the saving by this closed form in 2-byte elements; the
statement judged is the saving. Not answered: training speed (needs the cost of selecting channels and of sparse
products), decode latency (serving).
"""

from __future__ import annotations

import re

from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim

PRESETS = {60e6: (512, 1376, 8), 130e6: (768, 2048, 12), 350e6: (1024, 2736, 24), 1e9: (2048, 5461, 24)}  # d, f, L
DENSE, SPARSE, RECOMPUTED = 4.0, 1.0, 0.6  # b s f elements kept a layer
SEQUENCE = 256  # of every table of the repository


def saving_bytes(shape: tuple[int, int, int], batch: int, sequence: int, recomputed: bool) -> float:
    """Activation bytes that a dense feed-forward block keeps and this one does not, over all layers."""
    _, width, layers = shape
    kept = RECOMPUTED if recomputed else SPARSE
    return (DENSE - kept) * batch * sequence * width * layers * 2.0


def answer(claim: Claim) -> Answer:
    if "memory" not in claim.metric:
        raise NotMapped("the cost of choosing channels and of sparse feed-forward products"
                        + (" in a serving step" if "decode" in claim.setting else ""))
    shape = PRESETS.get(settings.parameters(claim.setting) or 0.0)
    batch, dense = settings.degree(claim.setting, "batch"), claim.baseline_figure
    if shape is None or batch is None:
        raise NotCheckable("the preset (60M, 130M, 350M, 1B) and the batch")
    if dense is None:
        raise NotCheckable("the dense peak: what lies beside these activations in the source's runs")
    sequence = settings.tokens(claim.setting) or SEQUENCE
    recomputed = bool(re.search(r"GCP|recompute", claim.setting))
    saved = saving_bytes(shape, batch, sequence, recomputed) / 1e9
    value = dense.high - saved
    return Answer(Span.of(value), None, Span.of(value / dense.high), saving=Span.of(saved),
                  how=f"the row's dense peak less {saved:.2f} GB of feed-forward activations")
