"""The document of `whatif reproduce` as a terminal table and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from reports.table import number
from scenarios.papers.verdicts import NOT_MAPPED, VERDICTS

Document = Mapping[str, Any]
HEAD = ("system", "claim", "setting", "metric", "printed", "simulated", "error", "kind", "verdict", "reason")
SYSTEM_HEAD = ("system", "rows", *VERDICTS, "coverage")
STYLES = {"reproduced": "green", "range": "green", "direction only": "yellow", "not reproduced": "red"}


def shown(value: float | Sequence[float] | None) -> str:
    """A number or both ends of a span; a dash where there is none.

    >>> shown(31.40625), shown([1.2, 2.6]), shown(None)
    ('31.41', '1.2 to 2.6', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, Sequence):
        return f"{number(value[0])} to {number(value[1])}"
    return number(value, 4)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.1f}%"


def claim_rows(document: Document) -> list[tuple[str, ...]]:
    """One row of text per claim, columns as HEAD."""
    return [(one["system"], one["claim_id"], one["setting"], one["metric"], _printed(one), shown(one["simulated"]),
             percent(one["error"]), one["kind"], one["verdict"], one["reason"]) for one in document["claims"]]


def _printed(one: Mapping[str, Any]) -> str:
    return f"{one['claimed_text'] or '–'} {one['unit']}".strip()


def system_rows(document: Document) -> list[tuple[str, ...]]:
    """Verdicts by system, and of all rows."""
    summary = document["summary"]
    listed = {**summary["systems"], "all": summary}
    return [(name, str(of["rows"]), *(str(of["verdicts"][verdict] or "") for verdict in VERDICTS),
             f"{100 * (of['coverage'] or 0):.0f}%") for name, of in listed.items()]


def sentence(document: Document) -> str:
    """The counts in words."""
    summary = document["summary"]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary["verdicts"].items() if count)
    mapped = summary["rows"] - summary["verdicts"][NOT_MAPPED]
    return f"{summary['rows']} claims: {counts or 'none'}; {mapped} of {summary['rows']} could be read by an adapter"


def show(document: Document, console: Console) -> None:
    """Every claim that was read, then what is missing for the others, then the counts."""
    read = [one for one in document["claims"] if one["verdict"] != NOT_MAPPED]
    table = Table(box=None, pad_edge=False)
    for column in ("claim", "printed", "simulated", "error", "kind", "verdict"):
        table.add_column(column, justify="right" if column in ("simulated", "error") else "left", overflow="fold")
    for one in read:
        table.add_row(one["claim_id"], _printed(one), shown(one["simulated"]), percent(one["error"]), one["kind"],
                      one["verdict"], style=STYLES.get(one["verdict"], "dim"))
    if read:
        console.print(table)
    off = [one for one in read if one["verdict"] not in ("reproduced", "range")]
    if off:
        console.print("\nWhy they do not come out")
        for reason, ids in grouped(off).items():
            console.print(f"  {', '.join(ids)}: {reason}")
    if rest := [one for one in document["claims"] if one["verdict"] == NOT_MAPPED]:
        console.print("\nNot mapped")
        for reason, ids in grouped(rest).items():
            console.print(f"  {', '.join(ids)}: {reason}")
    console.print(f"\n{sentence(document)}")


def grouped(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What is missing or unknown, with the claims that share it."""
    found: dict[str, list[str]] = {}
    for one in entries:
        found.setdefault(cause(one["reason"]), []).append(one["claim_id"])
    return found


def cause(reason: str) -> str:
    """The end of a reason, from the missing term or the unknown on.

    >>> cause("closed form; simulated ratio 1 against 2; missing: overlap")
    'missing: overlap'
    """
    return next((reason[reason.index(mark):] for mark in ("missing: ", "unknown: ") if mark in reason), reason)


def markdown(document: Document) -> str:
    """The report as Markdown, for docs/claims.md."""
    rows = [(one["claim_id"], f"{one['setting']}: {one['metric']}", _printed(one), shown(one["simulated"]),
             percent(one["error"]), one["kind"], one["verdict"]) for one in document["claims"]
            if one["verdict"] != NOT_MAPPED]
    off = [one for one in document["claims"] if one["verdict"] not in ("reproduced", "range")]
    parts = [
        "# Claims of studied systems against the simulator",
        f"Made by `whatif reproduce{_arguments(document)} --markdown docs/claims.md`; do not edit.",
        f"{sentence(document)}. Kinds, verdicts and tolerances are defined in `scenarios/papers/verdicts.py`; what each"
        " adapter computes stands at the top of `scenarios/papers/<system>/__init__.py`. error = simulated / printed - "
        "1 of the first number compared (the system's value, else the ratio, else the baseline).",
        "## By system", _pipes(SYSTEM_HEAD, system_rows(document)),
        "## Claims", _pipes(("claim", "what", "printed", "simulated", "error", "kind", "verdict"), rows),
        "## What does not come out, and why",
        _pipes(("claims", "reason"), [(", ".join(ids), reason) for reason, ids in grouped(off).items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _arguments(document: Document) -> str:
    systems, file = document["systems"], document["file"]
    given = [*systems, *(["--claims", file] if file else [])]
    return "".join(f" {one}" for one in given)


def _pipes(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in line) + " |" for line in lines)
