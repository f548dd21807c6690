"""The document of `whatif reproduce`: every claim with its verdict, and the counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from scenarios.errors import Problem
from scenarios.papers import registry
from scenarios.papers.answers import NotCheckable, NotMapped
from scenarios.papers.claims import Claim, Figure
from scenarios.papers.verdicts import (
    KINDS,
    NOT_CHECKABLE,
    NOT_MAPPED,
    VERDICTS,
    Verdict,
    judge,
    kind_of,
)


def verdict_of(claim: Claim) -> Verdict:
    """Asks the adapter of the system and judges what it says."""
    try:
        return judge(claim, registry.answer(claim))
    except NotCheckable as error:
        return Verdict(kind_of(claim), NOT_CHECKABLE, f"unknown: {error}")
    except NotMapped as error:
        return Verdict(kind_of(claim), NOT_MAPPED, f"needs {error}")


def entry(claim: Claim) -> dict[str, Any]:
    """One element of `claims`. `claimed` and `simulated` are a number, [low, high] or null; `error` is
    simulated / claimed - 1 of two numbers; `figures` has every number of the row that was compared."""
    found = verdict_of(claim)
    lead = found.lead
    claimed = lead.claimed if lead else claim.value_figure or claim.ratio_figure or claim.baseline_figure
    return {
        "system": claim.system,
        "claim_id": claim.claim_id,
        "setting": claim.setting,
        "metric": claim.metric,
        "claimed": claimed.plain if claimed else None,
        "simulated": lead.simulated.plain if lead else None,
        "error": lead.error if lead else None,
        "kind": found.kind,
        "verdict": found.verdict,
        "reason": found.reason,
        "claimed_text": _printed(claim),
        "bound": claimed.sort if isinstance(claimed, Figure) else None,
        "unit": claim.unit,
        "baseline_name": claim.baseline_name,
        "figures": [{"name": one.name, "claimed": one.claimed.plain, "simulated": one.simulated.plain,
                     "error": one.error} for one in found.statements],
        "source": " ".join(text for text in (claim.arxiv and f"arXiv {claim.arxiv}", claim.source_locator) if text),
    }


def _printed(claim: Claim) -> str:
    """What the row prints, in one line: system value, against the baseline, ratio."""
    parts = [claim.system_value, f"against {claim.baseline_value}" if claim.baseline_value else "",
             f"ratio {claim.ratio}" if claim.ratio else ""]
    return ", ".join(part for part in parts if part)


def document(claims: Iterable[Claim], problems: Sequence[Problem]) -> dict[str, Any]:
    """Every claim, the counts by verdict, kind and system, coverage, and what is wrong with bad rows."""
    entries = [entry(claim) for claim in claims]
    systems = dict.fromkeys(registry.canonical(one["system"]) for one in entries)
    return {
        "kind": "reproduce",
        "claims": entries,
        "summary": {
            **_counts(entries),
            "kinds": {kind: _counts([one for one in entries if one["kind"] == kind]) for kind in KINDS},
            "systems": {name: _counts([one for one in entries if registry.canonical(one["system"]) == name])
                        for name in systems},
        },
        "problems": [str(problem) for problem in problems],
    }


def _counts(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows, rows by verdict, the share that an adapter could read, and the mean |error| of the points compared."""
    found = Counter(one["verdict"] for one in entries)
    errors = [abs(one["error"]) for one in entries if one["error"] is not None]
    return {
        "rows": len(entries),
        "verdicts": {name: found[name] for name in VERDICTS},
        "coverage": 1 - found[NOT_MAPPED] / len(entries) if entries else None,
        "mean_abs_error": math.fsum(errors) / len(errors) if errors else None,
    }
