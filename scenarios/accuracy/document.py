"""The result of `whatif accuracy` as one plain document (DESIGN.md), from which every report is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel import constants
from scenarios.accuracy import bands, pass_times, score
from scenarios.accuracy.predict import Outcome
from scenarios.accuracy.score import SPEED, Scored
from scenarios.errors import Problem
from simulator.bands import Statistics, shipped

WORST = 20  # rows whose breakdown the document carries


def document(files: Sequence[str], outcomes: Sequence[Outcome], problems: Sequence[Problem]) -> dict[str, Any]:
    """Fractions, not per cent; errors are predicted / measured - 1. Rows that could not be read count as rows."""
    scored, known = [one for outcome in outcomes for one in score.score(outcome)], shipped()
    speed = [one for one in scored if one.is_speed and one.exception is None]
    families = score.grouped(speed, "family")
    of_runs = {one.row.family for one in speed if one.metric == SPEED}
    runs = {name: of for name, of in families.items() if name in of_runs}
    others = {name: of for name, of in families.items() if name not in of_runs}
    for name, of in families.items():
        of["left_out"] = constants.fit_errors().get(name, {}).get("left_out")
    return {
        "files": list(files),
        "rows": len(outcomes) + _bad_rows(problems),
        "predicted": sum(bool(one.range) for one in outcomes),
        "coverage": _coverage(outcomes),
        "not_expressible": [{"id": one.row.id, "reason": one.reason} for one in outcomes if not one.range],
        "problems": [str(problem) for problem in problems],
        "families": families,
        "average": score.averaged(runs or others),
        "average_specified": score.averaged(runs or others, "specified"),
        "average_schedules": score.averaged(others),
        "groups": {by: score.grouped(speed, by) for by in score.GROUPS if by != "family"},
        "metrics": {metric: score.summary([one for one in speed if one.metric == metric])
                    for metric in dict.fromkeys(one.metric for one in speed)} or {SPEED: score.summary([])},
        "ranking": score.ranking(speed),
        "memory": score.memory_summary(scored),
        "out_of_memory": score.out_of_memory(outcomes),
        "printed_out_of_memory": score.printed_out_of_memory(outcomes),
        "exceptions": score.exception_summary(scored),
        "pass_times": pass_times.document(outcomes),
        "converted": score.grouped([one for one in scored if one.metric.startswith("converted")
                                    and one.exception is None], "family"),
        **score.counts(outcomes),
        "bands": bands.held(scored, known),
        "per_row": [_row(one, known) for one in scored],
        "worst": [_worst(one, known) for one in sorted(speed, key=lambda one: -abs(one.error))[:WORST]],
    }


def _bad_rows(problems: Sequence[Problem]) -> int:
    return len({(problem.file, problem.line) for problem in problems})


def _coverage(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of the rows marked score_time or score_memory."""
    marked = [one for one in outcomes if one.row.scores_time or one.row.scores_memory]
    predicted = sum(bool(one.range) for one in marked)
    return {"scored_rows": len(marked), "predicted": predicted, "share": predicted / len(marked) if marked else None,
            "fully_specified": sum(one.row.fully_specified for one in marked)}


def _row(one: Scored, known: Statistics) -> dict[str, Any]:
    return {
        "id": one.row.id,
        "family": one.row.family,
        "metric": one.metric,
        "measured": one.measured,
        "predicted": one.predicted,
        "error": one.error,
        "band": bands.ends(one, known),
        "range": None if one.low == one.high else [one.low, one.high],
        "fully_specified": one.specified,
        "exception": one.exception,
    }


def _worst(one: Scored, known: Statistics) -> dict[str, Any]:
    row = one.row
    columns = ("model", "accelerator", "gpus", "tp", "pp", "vp", "dp", "cp", "ep", "micro_batch", "recompute")
    return {
        **_row(one, known),
        "setting": {column: row.values[column] for column in columns if column in row.values},
        "stack": dict(one.typical.inputs.stack),
        "measured_step_time_s": one.typical.step_time_s / one.measured
        * (one.typical.tokens_per_s_per_gpu if one.metric == SPEED else one.predicted),
        "step_time_s": one.typical.step_time_s,
        "breakdown_s": dict(one.typical.breakdown_s),
    }
