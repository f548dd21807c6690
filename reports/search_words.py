"""A search in words: plans as settings and as commands, columns of figures, limits, the funnel, the proof.

The document is that of `whatif search --json`. A *row* is a plan of it: `set` {key: value} and figures in SI, each of
which may be missing or null. The terminal table and the page are made of what is said here.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from reports.table import (
    FIGURES,
    Document,
    amount,
    column,
    figure_text,
    in_bytes,
    in_seconds,
    number,
    plain,
    scalar,
    words,
)

Row = Mapping[str, Any]
NOTHING = "–"
ROW_FIGURES = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "peak_memory_bytes", "cost_usd", "energy_j", "gpus")
OBJECTIVES = {"time": "Shortest step", "cost": "Lowest cost", "energy": "Least energy", "memory": "Least memory"}
_FUNNEL = (("combinations", "Combinations of the values"), ("placed", "Degrees multiply to the GPUs"),
           ("distinct", "Distinct plans"), ("divisible", "Divide model and batch evenly"),
           ("plans_evaluated", "Priced for time and memory"), ("feasible", "Within every limit"))
_CONSTRAINTS = {"max_memory_bytes": "Memory per GPU", "max_gpus": "GPUs", "deadline_s": "Time of the run",
                "budget_usd": "Cost of the run"}
_PROOF = {"optimal": "Proven best", "bounded": "Not proven best, but bounded", "none": "Not proven"}
_BARE = re.compile(r"[A-Za-z0-9][\w.-]*")  # text that YAML and a shell take as it stands, unless it reads as a value
_VALUES = ("true", "false", "null", "yes", "no", "on", "off", "nan", "inf")
_HOUR_S, _DAY_S = 3600.0, 86400.0


# Plans -----------------------------------------------------------------------------------------------


def value_text(value: Any) -> str:
    """The value of a setting as people write it.

    >>> value_text(["data", "tensor"]), value_text([]), value_text(True), value_text("1f1b")
    ('data + tensor', 'none', 'yes', '1f1b')
    """
    if isinstance(value, list | tuple):
        return " + ".join(value_text(inner) for inner in value) or "none"
    return NOTHING if value is None else plain(value)


def key_text(key: str) -> str:
    """A key without the block that nearly all of them stand in: key_text("plan.tensor") -> 'tensor'."""
    return plain(key.removeprefix("plan."))


def best(document: Document) -> list[Row]:
    """The plans found, the best first."""
    return list(document.get("best") or [])


def settings_of(row: Row | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (row or {}).get("set") or {}
    return found


def keys(document: Document, rows: Sequence[Row]) -> list[str]:
    """The keys that the rows set: those of the axes in their order, then any others."""
    axes = [str(axis.get("key")) for axis in (document.get("space") or {}).get("axes") or []]
    used = dict.fromkeys(key for row in rows for key in settings_of(row))
    return [key for key in axes if key in used] + [key for key in used if key not in axes]


def varying(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The keys in which the rows differ."""
    return [key for key in names if len({value_text(settings_of(row).get(key)) for row in rows}) > 1]


def alike(rows: Sequence[Row], names: Sequence[str]) -> str:
    """What all rows set alike: 'schedule 1f1b, micro_batch 1'; "" where there is nothing."""
    differing = varying(rows, names)
    return plan_text({key: settings_of(rows[0]).get(key) for key in names if key not in differing}) if rows else ""


def plan_text(setting: Mapping[str, Any]) -> str:
    """Settings on one line: 'tensor 8, pipeline 8, schedule 1f1b'."""
    return ", ".join(f"{key_text(key)} {value_text(value)}" for key, value in setting.items())


def changed_settings(first: Row, row: Row) -> dict[str, Any]:
    """What a plan sets otherwise than the first."""
    ours = settings_of(first)
    return {key: value for key, value in settings_of(row).items() if ours.get(key) != value}


def against(first: Row, row: Row) -> str:
    """How a plan differs from the first: 'tensor 8 → 4, micro_batch 1 → 2'; "the same settings" where it does not."""
    changed = row.get("changed")
    if changed is None:
        ours, theirs = settings_of(first), settings_of(row)
        changed = {key: [ours.get(key), theirs.get(key)] for key in {**ours, **theirs}
                   if ours.get(key) != theirs.get(key)}
    return ", ".join(f"{key_text(key)} {value_text(one)} → {value_text(other)}"
                     for key, (one, other) in changed.items()) or "the same settings"


def command(document: Document, row: Row) -> list[str]:
    """The pieces of the command line that predicts this plan: 'whatif run FILE', '--set plan.tensor=8', ...

    What the search itself was told by --set stands in `scenario.set` and comes first, so that the plan wins. A key
    without a value is left to the scenario's default.
    """
    scenario = document.get("scenario") or {}
    given = {**(scenario.get("set") or {}), **settings_of(row)}
    name = shlex.quote(plain(scenario.get("file") or scenario.get("name") or "SCENARIO"))
    return [f"whatif run {name}", *(f"--set {shlex.quote(f'{plain(key)}={written(value)}')}"
                                    for key, value in given.items() if value is not None)]


def written(value: Any) -> str:
    """A value as `--set` reads it back (YAML).

    >>> written("1f1b"), written("8"), written(True), written(["data"])
    ('1f1b', '"8"', 'true', '["data"]')
    """
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _VALUES and not _is_number(value):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _is_number(text: str) -> bool:
    """Whether YAML would read a text as a number: it starts with a digit and has only what numbers are written with."""
    return bool(re.fullmatch(r"[0-9][0-9._:]*(e[-+]?[0-9]+)?|0[xob][0-9a-f_]+", text.lower()))


def spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many of the rows, evenly spaced, with the first and last.

    >>> spread([1, 2, 3, 4, 5, 6, 7], 3)
    [1, 4, 7]
    """
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


# Figures ---------------------------------------------------------------------------------------------


def known_figures(rows: Sequence[Row]) -> list[str]:
    """The figures that some row has; GPUs only where their number differs and no setting says it."""
    found = [key for key in ROW_FIGURES if any(scalar(row.get(key)) is not None for row in rows)]
    said = any("cluster.gpus" in settings_of(row) for row in rows) or len({row.get("gpus") for row in rows}) == 1
    return [key for key in found if key != "gpus" or not said]


def figure_column(rows: Sequence[Row | None], key: str) -> list[str]:
    """One figure of all rows in one unit; a dash where it is missing."""
    values = [scalar((row or {}).get(key)) for row in rows]
    texts = iter(column([value for value in values if value is not None], FIGURES[key].unit))
    return [NOTHING if value is None else next(texts) for value in values]


def figures(rows: Sequence[Row | None]) -> list[tuple[str, list[str]]]:
    """(key, its text for every row) of each figure that some row has."""
    found = [(key, figure_column(rows, key)) for key in ROW_FIGURES]
    return [(key, texts) for key, texts in found if any(text != NOTHING for text in texts)]


def events(row: Row) -> Row | None:
    """What playing the plan as events gave; None where it was not played."""
    found: Row | None = row.get("events")
    return found


def rank_by_events(row: Row) -> str:
    """The rank among the played plans, with an arrow where it is another than by the closed form."""
    played = (events(row) or {}).get("rank")
    if played is None:
        return NOTHING
    rank = row.get("rank")
    arrow = "" if rank is None or played == rank else " ▲" if played < rank else " ▼"
    return f"{played}{arrow}"


def fits_text(row: Row) -> str:
    """Whether the plan fits by the closed form, and by events where these say otherwise."""
    said, played = row.get("fits"), (events(row) or {}).get("fits")
    text = NOTHING if said is None else "✓ yes" if said else "✗ no"
    return text if played is None or played == said else f"{text}; events: {'✓ yes' if played else '✗ no'}"


def first_by_events(document: Document) -> Row | None:
    """The plan that is first by events, where that is another than the first of the closed form."""
    found = best(document)
    return next((row for row in found[1:] if (events(row) or {}).get("rank") == 1), None)


def events_text(document: Document) -> str:
    """How many plans were played as events, and how many changed their rank by it; "" where none were."""
    played = [row for row in best(document) if (events(row) or {}).get("rank") is not None]
    if not played:
        return ""
    moved = sum(row["events"]["rank"] != row.get("rank") for row in played)
    many = "the best plan was" if len(played) == 1 else f"the best {len(played)} were"
    change = "no rank changed" if not moved else f"{moved} rank{'s' * (moved > 1)} changed"
    return f"By the closed form; {many} played as events too: {change}."


def rank_changes(document: Document) -> list[str]:
    return [plain(change.get("text") if isinstance(change, Mapping) else change)
            for change in document.get("rank_changes") or []]


# The search ------------------------------------------------------------------------------------------


def facts(document: Document) -> list[str]:
    """What was asked for, in a few words each."""
    objective, limit = document.get("objective"), document.get("limit_bytes")
    found = [OBJECTIVES.get(str(objective), words(plain(objective))) if objective else "",
             f"{plain(document['solver'])} solver" if document.get("solver") else "",
             f"{in_bytes(limit)} of memory per GPU" if limit is not None else ""]
    return [fact for fact in found if fact]


def constraint_rows(document: Document) -> list[tuple[str, str]]:
    """The limits a plan had to keep: ('Memory per GPU', 'at most 80 GB')."""
    given = {key: value for key, value in (document.get("constraints") or {}).items() if value is not None}
    rows = [(_CONSTRAINTS.get(key, words(plain(key))), f"at most {_limit_text(key, value)}")
            for key, value in given.items()]
    limit = document.get("limit_bytes")
    if limit is not None and given.get("max_memory_bytes") != limit:
        rows.insert(0, ("Memory per GPU", f"at most {in_bytes(limit)} (its capacity)"))
    return rows


def _limit_text(key: str, value: Any) -> str:
    if key != "deadline_s" or value < _HOUR_S:
        return figure_text(key, value)
    return f"{number(value / _HOUR_S)} hours" if value < 2 * _DAY_S else f"{number(value / _DAY_S)} days"


def axis_rows(document: Document) -> list[tuple[str, str, str]]:
    """What was varied: (key, number of values, the values)."""
    return [(plain(axis.get("key")), str(len(axis.get("values") or [])),
             ", ".join(value_text(value) for value in axis.get("values") or []))
            for axis in (document.get("space") or {}).get("axes") or []]


def funnel(document: Document) -> list[tuple[str, int]]:
    """How many plans are left after each step of the search, from all combinations to those within every limit."""
    counts = dict(document.get("counts") or {})
    if counts.get("combinations") is None:
        counts["combinations"] = (document.get("space") or {}).get("combinations")
    steps = {label: int(counts[key]) for key, label in _FUNNEL if counts.get(key) is not None}
    if counts.get("divisible") is not None and counts["divisible"] == counts.get("plans_evaluated"):
        same = "Divide evenly, and are priced"  # one step of two names
        steps = {same if label == dict(_FUNNEL)["divisible"] else label: count for label, count in steps.items()
                 if label != dict(_FUNNEL)["plans_evaluated"]}
    return list(steps.items())


def rejected_rows(document: Document) -> list[tuple[str, str]]:
    """Why plans were dropped and how many, the most first."""
    found = [(plain(row.get("reason")), int(row.get("plans") or 0)) for row in document.get("rejected") or []]
    return [(reason, f"{plans:,}") for reason, plans in sorted(found, key=lambda item: (-item[1], item[0]))]


def proof_text(document: Document) -> str:
    """What is proven of the best plan; "" where the document does not say."""
    proof = document.get("proof") or {}
    status = proof.get("status")
    if status is None:
        return ""
    of, gap, text = proof.get("of"), proof.get("gap"), plain(proof.get("text") or "").rstrip(".")
    status_text = _PROOF.get(str(status), words(plain(status)))
    if status == "optimal" and not best(document):
        status_text = "Proven that none fits"
    head = f"{status_text}{f' by the {plain(of)}' if of else ''}"
    bound = f"no plan is more than {amount(gap, '%')} better" if status == "bounded" and gap is not None else ""
    return ": ".join([head, *(["; ".join(one for one in (bound, text) if one)] if bound or text else [])]) + "."


def speed_text(document: Document) -> str:
    """How fast plans were priced: '310,000 plans a second for 0.9 s, 4.2 s in all'; "" where the run does not say."""
    run = document.get("run") or {}
    rate, pricing, wall = run.get("plans_per_s"), run.get("pricing_s"), run.get("wall_s")
    priced = "" if rate is None else f"{number(float(f'{rate:.3g}'))} plans a second" + (
        f" for {in_seconds(pricing)}" if pricing is not None else "")
    return ", ".join(one for one in (priced, "" if wall is None else f"{in_seconds(wall)} in all") if one)


def miss_text(row: Row) -> str:
    """What a plan needs that there is not."""
    by = row.get("misses_by_bytes")
    text = plain(row["text"]) if row.get("text") else ""
    return text or (f"{in_bytes(by)} too much memory" if by is not None else NOTHING)
