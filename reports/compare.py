"""Results side by side: what was changed, what came out differently, and which term caused it.

The terms of a breakdown add up to the step time, so the differences term by term add up to the difference of
the step times; whatever a document left out of its breakdown appears as the term `unattributed`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from reports.table import FIGURES, Document, reason, scalar

_NOT_INPUTS = ("name", "description", "what_if", "published", "assumptions")
_TOLERANCE = 1e-9  # of the step time; a smaller residual is rounding


def flatten(inputs: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested inputs as dotted keys: {"plan": {"tensor": 8}} -> {"plan.tensor": 8}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in inputs.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value})
    return flat


def _same(values: Sequence[Any]) -> bool:
    return len({json.dumps(value, sort_keys=True, default=str) for value in values}) == 1


def _changed_inputs(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Inputs that differ; None stands for "not set"."""
    flats = [
        {key: value for key, value in flatten((d.get("scenario") or {}).get("inputs") or {}).items()
         if key.split(".")[0] not in _NOT_INPUTS}
        for d in documents
    ]
    keys = list(dict.fromkeys(key for flat in flats for key in flat))
    rows = [{"key": key, "values": [flat.get(key) for flat in flats]} for key in keys]
    return [row for row in rows if not _same(row["values"])]


def _change(base: Any, other: Any) -> float | None:
    first, second = scalar(base), scalar(other)
    return second / first - 1 if first and second is not None else None


def _changed_outputs(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Figures that differ, each with its relative change against the first document."""
    labels = {"fits": "Fits in memory"} | {key: figure.label for key, figure in FIGURES.items()}
    rows = []
    for key, label in labels.items():
        values = [document.get(key) for document in documents]
        if not _same(values):
            changes = [None] + [_change(values[0], value) for value in values[1:]]
            rows.append({"key": key, "label": label, "values": values, "changes": changes})
    return rows


def _terms(base: Document, other: Document) -> list[dict[str, Any]]:
    """The difference of the step times by category, largest first; sums to that difference."""
    first, second = dict(base.get("breakdown_s") or {}), dict(other.get("breakdown_s") or {})
    for document, parts in ((base, first), (other, second)):
        rest = document["step_time_s"] - math.fsum(parts.values())
        if abs(rest) > _TOLERANCE * abs(document["step_time_s"]):
            parts["unattributed"] = rest
    difference = other["step_time_s"] - base["step_time_s"]
    terms = [
        {"category": key, "base_s": first.get(key, 0.0), "other_s": second.get(key, 0.0),
         "difference_s": second.get(key, 0.0) - first.get(key, 0.0)}
        for key in {**first, **second}
    ]
    for term in terms:
        term["share"] = term["difference_s"] / difference if difference else None
    kept = [term for term in terms if term["difference_s"]]
    return sorted(kept, key=lambda term: (-abs(term["difference_s"]), term["category"]))


def _attribution(base: Document, other: Document, names: tuple[str, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {"base": names[0], "name": names[1], "base_step_time_s": base.get("step_time_s"),
                             "step_time_s": other.get("step_time_s"), "difference_s": None, "terms": None}
    for document, name in ((base, names[0]), (other, names[1])):
        if document.get("step_time_s") is None:
            return entry | {"reason": f"{name} has no step time: {reason(document, 'step_time_s')}"}
    return entry | {"difference_s": other["step_time_s"] - base["step_time_s"], "terms": _terms(base, other)}


def _names(documents: Sequence[Document]) -> list[str]:
    """The scenarios' names, made distinct with a number where two are equal."""
    names: list[str] = []
    for position, document in enumerate(documents, 1):
        name = str((document.get("scenario") or {}).get("name") or f"scenario {position}")
        names.append(f"{name} ({position})" if name in names else name)
    return names


def compare(documents: Sequence[Document]) -> dict[str, Any]:
    """Compare results with the first of them.

    Gives `names`, `answers`, `inputs` [{key, values}] and `outputs` [{key, label, values, changes}] (only
    those that differ), `breakdowns` (one {category: seconds} each) and `attributions`, one for every further
    document: {base, name, base_step_time_s, step_time_s, difference_s, terms: [{category, base_s, other_s,
    difference_s, share}]}; `terms` is None with a `reason` where a step time is missing.
    Raises ValueError below two documents.
    """
    if len(documents) < 2:
        raise ValueError("a comparison needs at least two results")
    names = _names(documents)
    return {
        "names": names,
        "answers": [document.get("answer") for document in documents],
        "inputs": _changed_inputs(documents),
        "outputs": _changed_outputs(documents),
        "breakdowns": [dict(document.get("breakdown_s") or {}) for document in documents],
        "attributions": [_attribution(documents[0], other, (names[0], name))
                         for other, name in zip(documents[1:], names[1:], strict=True)],
    }
