"""Mixture-of-Channels (arXiv 2511.09323; figures from the repository xiaohuangji/MoC).

Mechanism: top-K on the SwiGLU gate keeps about 20 % of the channels of the feed-forward block, so that fewer of its
activations are kept for the backward pass (`costmodel.techniques.mixture_of_channels`). Elements kept a layer
(reference/systems_training.md, 11.1):

    dense 4 b s f + b s d     MoC b s f + b s d     MoC with recomputation (GCP) 0.6 b s f + b s d

Answered: peak memory and training speed of one A800, by playing a step of the repository's presets with plain modules,
states in bf16, and K = d/2 (its configuration). The repository's modules keep more than the simulator's plain ones:
RMSNorm written in steps of fp32 (4 + 4 + 2 bytes an element in place of an input of 2), and a second copy of the logits
in the loss; both are counted from moc/model.py and added, the same for dense and sparse. Not answered: decode latency
(serving).
"""

from __future__ import annotations

import re

from costmodel.architecture import Model
from costmodel.techniques import Technique
from costmodel.techniques.mixture_of_channels import MixtureOfChannels
from scenarios.papers import one_gpu, settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim

PRESETS = {60e6: (512, 1376, 8, 8), 130e6: (768, 2048, 12, 12), 350e6: (1024, 2736, 24, 16),
           1e9: (2048, 5461, 24, 32)}  # d, f, L, heads
SEQUENCE = 256  # of every table of the repository
NODE = "hgx-a800"
STEPWISE_NORM_BYTES = 8.0  # x in fp32 for the square and for the product, the 2-byte result before the weight, less x
LOGIT_COPY_BYTES = 2.0
SPEED = ("the repository's unfused chains of small kernels (rotary embedding, fp32 norms, AdamW of single tensors) and "
         "the time of its top-K kernel, of which only the reads of the row are counted")


def beside_bytes(model: Model, tokens: int) -> float:
    """What the repository's modules keep beside those of the simulator's eager execution."""
    norms = 2 * len(model.layers) + 1
    return tokens * (STEPWISE_NORM_BYTES * model.hidden * norms + LOGIT_COPY_BYTES * model.vocabulary)


def technique(shape: tuple[int, int, int, int], recomputed: bool) -> tuple[Technique, ...]:
    return (MixtureOfChannels(keep=shape[0] / 2 / shape[1], rebuild=recomputed),)


def saved_bytes(shape: tuple[int, int, int, int], batch: int, recomputed: bool) -> float:
    """How much less the peak of the sparse run is."""
    model = one_gpu.llama(*shape)
    dense, sparse = (one_gpu.allocated_bytes(one_gpu.played(model, NODE, SEQUENCE, batch, changes))
                     for changes in ((), technique(shape, recomputed)))
    return dense - sparse


def answer(claim: Claim) -> Answer:
    if "decode" in claim.setting or not re.search(r"memory|throughput", claim.metric):
        raise NotMapped("sparse feed-forward products in a serving step")
    shape = PRESETS.get(settings.parameters(claim.setting) or 0.0)
    batch = settings.degree(claim.setting, "batch")
    if shape is None or batch is None:
        raise NotCheckable("the preset (60M, 130M, 350M, 1B) and the batch")
    sequence = settings.tokens(claim.setting) or SEQUENCE
    model, changes = one_gpu.llama(*shape), technique(shape, bool(re.search(r"GCP|recompute", claim.setting)))
    dense, sparse = (one_gpu.played(model, NODE, sequence, batch, of) for of in ((), changes))
    if "memory" in claim.metric:
        beside = beside_bytes(model, batch * sequence)
        whole, part = ((one_gpu.allocated_bytes(one) + beside) / 1e9 for one in (dense, sparse))
        return Answer(Span.of(part), Span.of(whole), Span.of(part / whole), how=(
            f"played step of one A800, peak {whole:.2f} GB dense and {part:.2f} GB, of which {beside / 1e9:.2f} GB are "
            "fp32 norms and a copy of the logits in the repository's modules"))
    slow, fast = (sequence * batch / one.step.step_time_s for one in (sparse, dense))
    return Answer(Span.of(slow), Span.of(fast), Span.of(slow / fast), missing={"": SPEED},
                  how="played step of one A800; dense products, selection at memory bandwidth")
