"""FRUGAL (arXiv 2411.07837; defaults read in fzmushko/FRUGAL).

Mechanism: only a share rho of the projectable parameters keeps Adam's two fp32 moments; the rest is updated by a
state-free rule (signSGD): `costmodel.techniques.frugal`.
Answered: bytes of moments a parameter, 8 rho against 8, and with a model size their sum.
"""

from __future__ import annotations

import re

from costmodel.operators import Shard
from costmodel.techniques.frugal import Frugal
from costmodel.work import Case, Weights, Work
from placement.units import MOMENT_BYTES
from scenarios.papers import one_gpu, settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim


def answer(claim: Claim) -> Answer:
    if not re.search(r"state|memory", claim.metric, re.IGNORECASE):
        raise NotMapped(f"metric {claim.metric!r}: only the optimizer's bytes follow from the density")
    found = re.search(r"(?:rho|density)\D*?(\d*\.?\d+)", claim.setting)
    if found is None:
        raise NotCheckable("the density rho")
    if re.search(r"memory", claim.metric) and settings.parameters(claim.setting) is None:
        raise NotCheckable("the number of parameters")
    whole = 1.0 if "param" in claim.unit else (settings.parameters(claim.setting) or 1.0) / 1e9
    rho = float(found[1])
    model = one_gpu.llama(512, 1376, 8, 8)
    linear = Work((), Weights.trained(1.0, linear=1.0))  # one weight of a linear layer
    left = float(Frugal(density=rho).layer(linear, Case(model, model.layers[0], Shard(1, 1))).dense.moments)
    return Answer(Span.of(MOMENT_BYTES * left * whole), Span.of(MOMENT_BYTES * whole), Span.of(left),
                  closed_form=True, how=f"two fp32 moments on {rho:g} of the parameters")
