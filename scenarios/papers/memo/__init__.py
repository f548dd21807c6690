"""MEMO (arXiv 2407.12117): activations of long sequences swapped to host memory by tokens, memory planned by MIP.

Mechanism: skeletal activations of a layer are 16 b s h elements (SIGMOD version, section 4.1): input, norm output,
queries, keys, values, FlashAttention output, residual, second norm output (1 each), h-to-4h output (4), GeLU
output (4). Layer input and FlashAttention output are always offloaded.
Answered: sizes and shares of skeletal activations. Not answered: MFU and longest sequences, which need activations
swapped behind compute at a share of the tokens (the memory hierarchy).
"""

from __future__ import annotations

import re

from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim

SKELETAL = {"input": 1, "norm output": 1, "queries": 1, "keys": 1, "values": 1, "flashattention output": 1,
            "residual": 1, "second norm output": 1, "h-to-4h output": 4, "gelu output": 4}  # in b s h elements
SHAPES = {7: (32, 4096), 13: (40, 5120), 30: (48, 7168), 65: (80, 8192)}  # billions -> (layers, hidden), section 5


def answer(claim: Claim) -> Answer:
    metric = claim.metric.lower()
    if "skeletal" not in metric:
        raise NotMapped("the memory hierarchy: activations swapped to host memory by tokens, planned against "
                        "fragmentation")
    total = sum(SKELETAL.values())
    if "share" in metric:
        name = next((name for name in SKELETAL if name in metric), None)
        if name is None:
            raise NotMapped(f"for {claim.metric!r} a tensor of the paper's list ({', '.join(SKELETAL)})")
        share = Span.of(100.0 * SKELETAL[name] / total)
        return Answer(share, ratio=Span.of(share.high / 100), closed_form=True,
                      how=f"{SKELETAL[name]} of {total} b s h elements")
    size, sequence = settings.parameters(claim.setting), settings.tokens(claim.setting)
    shape = SHAPES.get(round((size or 0) / 1e9))
    if shape is None or sequence is None:
        raise NotCheckable("model and sequence length")
    bytes_ = 2.0 * total * sequence * shape[1] * (1 if re.search("per layer", metric) else shape[0])
    unit = {"GB": 1e9, "GiB": 2.0**30, "TB": 1e12, "TiB": 2.0**40}.get(claim.unit, 1.0)
    return Answer(Span.of(bytes_ / unit), closed_form=True, how=f"{total} s h elements of 2 bytes")
