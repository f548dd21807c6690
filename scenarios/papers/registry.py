"""Systems and their adapters: one package per system, with `answer(claim) -> Answer`.

An adapter turns claim id, setting and metric of a row into scenario inputs or placement queries and returns what the
simulator gives; it never sees what the authors measured as an expected value.
"""

from __future__ import annotations

import re
from importlib import import_module

from scenarios.papers.answers import Answer, NotCheckable, NotMapped
from scenarios.papers.claims import Claim
from scenarios.papers.missing import MISSING

ADAPTERS: dict[str, str] = {
    "placement semantics": "placement_semantics",
    "zero": "zero",
    "paro": "paro",
    "ho-ring": "ho_ring",
    "internevo": "internevo",
    "internevo/buff": "internevo",
    "internevo hybrid zero": "internevo",
    "buff": "internevo",
    "memo": "memo",
    "mixture-of-channels": "mixture_of_channels",
    "fusemax": "fusemax",
    "frugal": "frugal",
    "bytescale": "bytescale",
    "compact": "compact",
    "mixlora": "mixlora",
    "memory layers": "memory_layers",
    "cephalo": "cephalo",
}
_QUALITY = re.compile(r"perplexity|accuracy|top-1|\bmAP\b|quality|pass@|\bloss\b")


def canonical(system: str) -> str:
    """The name that a system is registered by: lower case, without remarks in brackets.

    >>> canonical("ZeRO (reference for placement)"), canonical("Harmony  (scheduler estimate)")
    ('zero', 'harmony')
    """
    return " ".join(re.sub(r"\(.*?\)", "", system).lower().split())


def is_named(system: str, wanted: str) -> bool:
    """Whether a system of a row is one that a person names: "internevo" means every row of InternEvo.

    >>> is_named("InternEvo hybrid ZeRO", "internevo"), is_named("PaRO", "HO-Ring")
    (True, False)
    """
    plain = [re.sub(r"[^a-z0-9]", "", text.lower()) for text in (wanted, canonical(system))]
    adapter = re.sub(r"[^a-z0-9]", "", ADAPTERS.get(canonical(system), ""))
    return bool(plain[0]) and (plain[1].startswith(plain[0]) or adapter == plain[0])


def names() -> tuple[str, ...]:
    """Every system that has an adapter."""
    return tuple(ADAPTERS)


def answer(claim: Claim) -> Answer:
    """What the system's adapter says. Raises NotMapped or NotCheckable."""
    system = canonical(claim.system)
    if _QUALITY.search(claim.metric):
        raise NotCheckable("what the model learns; a simulator of time and memory has no model quality")
    if not (claim.system_value or claim.baseline_value or claim.ratio):
        raise NotCheckable("the figure itself: the row prints none")
    if system in MISSING:
        raise NotMapped(MISSING[system])
    if system not in ADAPTERS:
        raise NotMapped(f"an adapter for {claim.system} (known: {', '.join(ADAPTERS)})")
    found: Answer = import_module(f"scenarios.papers.{ADAPTERS[system]}").answer(claim)
    return found
