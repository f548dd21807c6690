"""ZeRO (arXiv 1910.02054), the reference for placement.

Mechanism: optimizer (stage 1), gradients (2) and parameters (3) divided over the data-parallel ranks.
Answered: model-state memory per device and communication volume of every stage (the four figures of its Fig. 1 at
7.5B, N_d = 64, K = 12), by the same derivation as placement_semantics.
"""

from __future__ import annotations

from scenarios.papers.answers import Answer
from scenarios.papers.claims import Claim
from scenarios.papers.placement_semantics import answer as _by_placement


def answer(claim: Claim) -> Answer:
    return _by_placement(claim)
