"""Memory Layers at Scale (arXiv 2412.09764).

Mechanism: product keys choose few of n^2 values as wide as the model, in place of an MLP (`costmodel.product_keys`):
the parameters grow with n^2, what a token computes with n.
Answered, by counting: parameters of the values, n^2 d, and bytes that a token reads of them in one layer, heads x
neighbours x d x 2, for the n (keys) and d (hidden) that the row states, with the authors' defaults otherwise. Not
answered: the quality that they buy.
"""

from __future__ import annotations

import re

from costmodel import product_keys
from costmodel.architecture import ProductKeys
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim

UNITS = {"B": 1e9, "M": 1e6, "GB": 1e9, "MB": 1e6, "GiB": 2.0**30, "MiB": 2.0**20, "KiB": 2.0**10}


def answer(claim: Claim) -> Answer:
    metric = claim.metric.lower()
    hidden = settings.degree(claim.setting, "d", "d_model", "hidden")
    if not re.search(r"parameter|read|lookup", metric):
        raise NotMapped(f"metric {claim.metric!r}: parameters of the values and bytes read a token are counted")
    if hidden is None:
        raise NotCheckable("the model's width")
    keys = settings.degree(claim.setting, "n_keys", "keys") or ProductKeys().keys
    memory = ProductKeys(
        keys, settings.degree(claim.setting, "heads") or ProductKeys().heads,
        settings.degree(claim.setting, "knn", "neighbours") or ProductKeys().neighbours,
    )
    unit = UNITS.get(claim.unit.split()[0] if claim.unit else "", 1.0)
    if "parameter" in metric:
        return Answer(Span.of(product_keys.value_parameters(memory, hidden) / unit), closed_form=True,
                      how=f"{keys:,}^2 values of {hidden:,}")
    return Answer(Span.of(product_keys.read_bytes(memory, hidden) / unit), closed_form=True,
                  how=f"{memory.heads} heads x {memory.neighbours} values of {hidden:,} in 2 bytes")
