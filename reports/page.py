"""A result as one self-contained HTML page: no script runs, nothing is loaded, it reads well on a phone.

Everything shown comes from the document (the JSON of `whatif run --json`), which the page also carries in a
`<script type="application/json">`. Values that are null stand with their reason. The templates escape all
text; the charts escape their own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from reports import charts, shares
from reports.compare import flatten
from reports.table import (
    CALIBRATION_HEADS,
    FIGURES,
    Document,
    amount,
    band_basis,
    band_text,
    by_size,
    calibration_rows,
    change_text,
    column,
    figure_text,
    fit_text,
    in_bytes,
    in_seconds,
    input_text,
    number,
    plain,
    reason,
    scalar,
    settings,
    signed,
    variant_change,
    words,
)
from reports.views import (
    View,
    breakdowns,
    embedded,
    environment,
    figure_view,
    legend_of,
    linked,
    parts_of,
    parts_table,
    table_view,
)

MEMORY_POINTS = 600  # of memory over time that a page draws and carries
_CARDS = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "model_flops_per_s_per_gpu", "bubble_fraction",
          "peak_memory_bytes", "cost_usd_per_million_tokens", "energy_j")
_VARIANT_FIGURES = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "bubble_fraction", "peak_memory_bytes",
                    "cost_usd", "energy_j")
_RUN = {"wall_s": "time to predict"}


# What a page draws of long series --------------------------------------------------------------------


def compact(document: Document) -> dict[str, Any]:
    """The document as the page carries it: timeline to the nanosecond, memory over time thinned."""
    small = dict(document)
    if document.get("timeline"):
        stages = [{**stage, "tasks": [[*t[:4], round(t[4], 9), round(t[5], 9)] for t in stage["tasks"]]}
                  for stage in document["timeline"]["stages"]]
        small["timeline"] = {**document["timeline"], "stages": stages}
    if document.get("memory_over_time"):
        small["memory_over_time"] = _thinned(document["memory_over_time"])
    return small


def _totals(states: Mapping[str, Sequence[float]]) -> list[float]:
    """The sum over the states at each time."""
    return [math.fsum(values) for values in zip(*states.values(), strict=True)]


def _thinned(memory: Mapping[str, Any]) -> dict[str, Any]:
    """At most about MEMORY_POINTS times; of every group of neighbours the one with the most memory stays."""
    times, states = memory["times_s"], memory["states"]
    if len(times) <= MEMORY_POINTS:
        return dict(memory)
    totals, size = _totals(states), math.ceil(len(times) / MEMORY_POINTS)
    groups = (range(start, min(start + size, len(times))) for start in range(0, len(times), size))
    kept = sorted({0, len(times) - 1} | {max(group, key=totals.__getitem__) for group in groups})
    return {**memory, "times_s": [times[i] for i in kept],
            "states": {name: [values[i] for i in kept] for name, values in states.items()}}


# Sections --------------------------------------------------------------------------------------------


def _head(document: Document) -> View:
    scenario, fits = document.get("scenario") or {}, document.get("fits")
    gpus, fidelity = document.get("gpus"), document.get("fidelity")
    model = (document.get("model") or {}).get("name")
    facts = [f"{gpus:,} × {plain(document.get('accelerator') or 'GPU')}" if gpus else "",
             plain(model or ""), f"{fidelity} model" if fidelity else ""]
    verdict = "" if fits is None else "✓ fits in memory" if fits else "✗ does not fit in memory"
    return {"name": plain(scenario.get("name") or "Scenario"),
            "kind": plain(document.get("kind") or "prediction"),
            "description": plain(scenario.get("description") or ""),
            "facts": [fact for fact in facts if fact],
            "answer": plain(document.get("answer") or reason(document, "answer")), "verdict": verdict,
            "band": band_text(document), "fits": fits is not False}


def _cards(document: Document) -> list[View]:
    cards = []
    for key in _CARDS:
        if key not in document:
            continue
        value, note = document[key], ""
        if key == "tokens_per_s_per_gpu" and document.get("tokens_per_s") is not None:
            note = f"{figure_text('tokens_per_s', document['tokens_per_s'])} in all"
        elif key == "mfu" and document.get("hfu") is not None:
            note = f"HFU {figure_text('hfu', document['hfu'])}"
        elif key == "cost_usd_per_million_tokens" and document.get("cost_usd") is not None:
            note = f"{figure_text('cost_usd', document['cost_usd'])} per step"
        elif key == "peak_memory_bytes" and isinstance(value, Mapping) and value:
            tier = "hbm" if "hbm" in value else next(iter(value))
            limit = _capacity(document, tier)
            others = [f"{words(name)} {in_bytes(part)}" for name, part in value.items() if name != tier]
            note = "; ".join([f"{words(tier)}, of {in_bytes(limit[1])}" if limit else words(tier), *others])
            value = value[tier]
        text = "–" if value is None else figure_text(key, value)
        cards.append({"label": FIGURES[key].label, "value": text,
                      "note": reason(document, key) if value is None else note, "missing": value is None})
    return cards


def _limits(document: Document) -> View | None:
    limiting = document.get("limiting")
    if not limiting:
        return None
    share = limiting.get("share")
    return {"term": words(str(limiting.get("term") or "")), "text": plain(limiting.get("text") or ""),
            "share": "" if share is None else f"{figure_text('bubble_fraction', share)} of the step"}


def _published(document: Document) -> View | None:
    rows = [(words(str(row["metric"])), figure_text(row["metric"], row.get("published"), 4),
             figure_text(row["metric"], row.get("predicted"), 4), change_text(row.get("error")),
             linked(row.get("source") or "")) for row in document.get("published") or []]
    return table_view(("Metric", "Published", "Predicted", "Error", "Source"), rows, (0, 4)) if rows else None


def _calibration(document: Document) -> View | None:
    if not document.get("calibration"):
        return None
    (runs, moved), heads = calibration_rows(document), [[h.capitalize() for h in row] for row in CALIBRATION_HEADS]
    return {"text": plain(document["calibration"]["text"]), "runs": table_view(heads[0], runs),
            "moved": table_view(heads[1], moved, (0, 3, 4)) if moved else None}


def _shares(values: Mapping[str, float], unit: str, order: Sequence[str], heading: str) -> View:
    """The open table under a bar: name with its sample, value, share, and the total."""
    total = math.fsum(values.values())
    texts = column([total, *(values[name] for name in order)], unit)
    rows: list[Sequence[Any]] = [
        (charts.swatch(charts.style(name, position)) + f" {position + 1} {words(name)}", text,
         f"{100 * values[name] / total:.1f}%")
        for position, (name, text) in enumerate(zip(order, texts[1:], strict=True))]
    return table_view((heading, "Time" if unit == "s" else "Size", "Share"),
                  [*rows, (Markup("<b>Total</b>"), texts[0], "100.0%")])


def _time(document: Document) -> View | None:
    parts = document.get("breakdown_s")
    if not parts:
        return None
    order = [name for name, _ in by_size(parts)]
    total = math.fsum(parts.values())
    text = "; ".join(f"{words(n)} {in_seconds(parts[n])}" for n in order)
    bar = charts.stacked_bars([("", parts_of(parts, order))], "Where the time of a step goes",
                              f"{in_seconds(total)} in all: {text}.", in_seconds)
    return {"figure": figure_view(bar, None), "table": _shares(parts, "s", order, "Part of the step"),
            "by_stage": _time_by_stage(document, order)}


def _time_by_stage(document: Document, order: Sequence[str]) -> View | None:
    names, what = shares.parts_of_a_step(document)
    rows = list(zip(names, document.get("breakdown_by_stage") or [], strict=True))
    if len(rows) < 2:
        return None
    order = [*order, *sorted({name for _, stage in rows for name in stage} - set(order))]
    title = f"Time by {what}"
    chart = charts.stacked_bars([(label, parts_of(stage, order)) for label, stage in rows], title,
                                f"{len(rows)} of them, each with the parts of its time.", in_seconds)
    return figure_view(chart, parts_table(rows, "s", order), legend_of(order), title)


def _pipeline(document: Document) -> View | None:
    timeline = document.get("timeline")
    if not timeline or not timeline["stages"]:
        return None
    makespan, stages = timeline["makespan_s"], timeline["stages"]
    kinds = list(dict.fromkeys(task[0] for stage in stages for task in stage["tasks"]))
    count, rows = sum(len(stage["tasks"]) for stage in stages), []
    for stage in stages:
        busy = math.fsum(task[5] for task in stage["tasks"])
        times = column([busy, makespan - busy], "s")
        idle = f"{100 * (1 - busy / makespan):.1f}%" if makespan else ""
        rows.append((str(stage["stage"]), f"{len(stage['tasks']):,}", *times, idle))
    chart = charts.timeline(stages, makespan, "Pipeline timeline",
                            f"{count:,} tasks on {len(stages)} stages in {in_seconds(makespan)}.", in_seconds)
    legend = [(charts.swatch(charts.pass_style(kind)), charts.pass_name(kind)) for kind in kinds]
    chunks = max(len({task[2] for task in stage["tasks"]}) for stage in stages)
    caption = ("One row per stage, time from left to right"
               + ("; a lighter tone is a later chunk of the stage's layers." if chunks > 1 else "."))
    table = table_view(("Stage", "Tasks", "Busy", "Idle", "Idle share"), rows)
    return figure_view(chart, table, legend, caption, 860)


def _capacity(document: Document, tier: str) -> tuple[str, float] | None:
    fit = document.get("fit") or {}
    known = fit.get("capacity_bytes") is not None and fit.get("tier") in (tier, None)
    return ("capacity", float(fit["capacity_bytes"])) if known else None


def _memory_over_time(document: Document) -> View | None:
    memory = document.get("memory_over_time")
    if not memory or not memory["times_s"]:
        return None
    states, times = memory["states"], memory["times_s"]
    tier = str(memory.get("tier") or "hbm")
    series = [(words(name), charts.style(name, i), values) for i, (name, values) in enumerate(states.items())]
    stage = memory.get("stage")
    where = f"{words(tier)} over time" + ("" if stage is None else f", stage {stage}")
    totals = _totals(states)
    text = f"From {in_bytes(min(totals))} to {in_bytes(max(totals))}; stacked from the bottom: "
    chart = charts.steps_area(times, series, where, text + ", ".join(label for label, _, _ in series) + ".",
                              in_bytes, in_seconds, _capacity(document, tier))
    samples = [bisect_right(times, times[-1] * step / 12) - 1 for step in range(13)]
    peak = totals.index(max(totals))
    rows = [(in_seconds(times[i]) + (" (peak)" if i == peak else ""),
             *column([*(values[i] for values in states.values()), totals[i]], "B"))
            for i in sorted({*samples, peak})]
    legend = [(charts.swatch(name), label) for label, name, _ in reversed(series)]
    table = table_view(("Time", *(words(name) for name in states), "Total"), rows)
    return figure_view(chart, table, legend, where, 320)


def _memory(document: Document) -> View | None:
    parts = {name: value for name, value in (document.get("memory_breakdown_bytes") or {}).items() if value}
    stages = document.get("memory_by_stage") or []
    order = [name for name, _ in by_size(parts)]
    order += sorted({name for stage in stages for name in stage.get("states") or {}} - set(order))
    by_stage, limit = None, _capacity(document, "hbm")
    if len(stages) > 1:
        names, what = shares.parts_of_a_step(document)
        unequal = what != "pipeline stage"
        rows = [(names[index] if unequal else str(stage["stage"]), stage.get("states") or {})
                for index, stage in enumerate(stages)]
        title, most = f"Peak memory by {what}", None if unequal else limit
        chart = charts.stacked_bars([(label, parts_of(states, order)) for label, states in rows], title,
                                    f"{len(rows)} of them with what lies in them.", in_bytes, most)
        by_stage = figure_view(chart, parts_table(rows, "B", order), legend_of(order), title)
    bar = table = None
    if parts:
        text = ", ".join(f"{words(name)} {in_bytes(parts[name])}" for name in order if name in parts)
        bar = figure_view(charts.stacked_bars([("", parts_of(parts, order))], "Memory at the peak", text + ".",
                                          in_bytes, limit), None)
        table = _shares(parts, "B", [name for name in order if name in parts], "State")
    over_time = _memory_over_time(document)
    if not (bar or over_time or by_stage):
        return None
    tiers = document.get("peak_memory_bytes")
    return {"figure": bar, "table": table, "over_time": over_time, "by_stage": by_stage,
            "tiers": figure_text("peak_memory_bytes", tiers, 4) if tiers else ""}


def _fit(document: Document) -> View | None:
    text = fit_text(document)
    if not text:
        return None
    rows = [(plain(change.get("name")), settings(change.get("set")),
             figure_text("peak_memory_bytes", change.get("peak_memory_bytes")),
             "–" if change.get("step_time_s") is None else in_seconds(change["step_time_s"]))
            for change in (document.get("fit") or {}).get("changes") or []]
    return {"text": text, "fits": bool(document["fits"]),
            "changes": table_view(("Change", "Set", "Peak memory", "Step time"), rows, (0, 1)) if rows else None}


def _roofline(document: Document) -> View | None:
    roof = document.get("roofline")
    if not roof or not roof.get("operators"):
        return None
    listed = sorted(roof["operators"], key=lambda op: -(op.get("share") or 0.0))
    points = [charts.Operator(plain(op["name"]), op.get("intensity_flop_per_byte") or 0.0,
                              op.get("flops_per_s") or 0.0, str(position))
              for position, op in enumerate(listed, 1)]
    peak, bandwidth = roof["peak_flops_per_s"], roof["memory_bandwidth_bytes_per_s"]
    chart = charts.roofline(peak, bandwidth, points[:12], "Roofline",
                            f"Peak {amount(peak, 'FLOP/s')}, memory bandwidth {amount(bandwidth, 'B/s')}; "
                            f"the ridge lies at {number(peak / bandwidth)} FLOP per byte.",
                            lambda value: amount(value, "FLOP/s"))
    rows = [(f"{position} {plain(op['name'])}", number(op.get("intensity_flop_per_byte") or 0.0),
             amount(op.get("flops_per_s") or 0.0, "FLOP/s"), in_seconds(op.get("time_s") or 0.0),
             figure_text("bubble_fraction", op.get("share") or 0.0)) for position, op in enumerate(listed, 1)]
    legend = [(charts.swatch("forward"), "● limited by computing"),
              (charts.swatch("backward"), "◆ limited by memory")]
    return {"figure": figure_view(chart, None, legend, "", 320),
            "table": table_view(("Operator", "FLOP per byte", "Attained", "Time", "Share"), rows)}


def _variants(document: Document) -> View | None:
    variants = document.get("variants")
    if not variants:
        return None
    everyone = [{**document, "name": "As given", "set": {}, "change": {}}, *variants]
    keys = [key for key in _VARIANT_FIGURES if any(row.get(key) is not None for row in everyone)]
    rows = []
    for row in everyone:
        cells = [plain(row.get("name")), settings(row.get("set")),
                 "–" if row.get("fits") is None else "✓ yes" if row["fits"] else "✗ no"]
        for key in keys:
            change, value = variant_change(row, key), scalar(row.get(key))
            text = "–" if value is None else figure_text(key, value)
            cells.append(text if change is None else f"{text} ({change_text(change)})")
        rows.append(cells)
    head = ("Variant", "Set", "Fits", *(FIGURES[key].short or FIGURES[key].label for key in keys))
    table = table_view(head, rows, range(3))
    bars = [(plain(row.get("name")), row["breakdown_s"]) for row in everyone if row.get("breakdown_s")]
    figure = breakdowns(bars, "Step time of the variants") if len(bars) > 1 else None
    return {"table": table, "figure": figure}


def _origin(document: Document) -> View:
    """Inputs, the model, what was assumed, what is missing and why, and which run made this."""
    model, run = document.get("model") or {}, document.get("run") or {}
    inputs = flatten((document.get("scenario") or {}).get("inputs") or {})
    missing = [(words(key), reason(document, key))
               for key in sorted({*document, *(document.get("reasons") or {})} - {"reasons"})
               if document.get(key) is None]
    made = {"tool version": document.get("tool_version"), "schema version": document.get("schema_version"),
            "fidelity": document.get("fidelity"), "file": (document.get("scenario") or {}).get("file"),
            **{_RUN.get(key, words(key).lower()): figure_text(key, value) for key, value in run.items()}}
    return {"assumptions": document.get("assumptions") or [],
            "model": [(words(key), figure_text("gpus", value)) for key, value in flatten(model).items()],
            "inputs": [(key, value) for key, value in inputs.items()], "missing": missing,
            "band": band_basis(document),
            "made": [(key, value) for key, value in made.items() if value is not None]}


def render(document: Document, extra: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of one result.

    `extra` adds sections at the end: {title, text, head: [...], rows: [[...]]} (all text; the last two may be
    left out). Raises ValueError on a number that is not finite, which JSON cannot hold.
    """
    small = compact(document)
    added = [{"title": plain(section["title"]), "text": plain(section.get("text") or ""),
              "table": _plain_table(section.get("head") or (), section.get("rows") or ())}
             for section in extra]
    return environment().get_template("page.html").render(
        head=_head(small), cards=_cards(small), limits=_limits(small), published=_published(small),
        calibration=_calibration(small),
        time=_time(small), pipeline=_pipeline(small), memory=_memory(small), fit=_fit(small),
        roofline=_roofline(small), variants=_variants(small), origin=_origin(small), extra=added,
        data=embedded(small))


def _plain_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> View | None:
    return table_view([plain(cell) for cell in head], [[plain(c) for c in row] for row in rows]) if rows else None


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The page of what `reports.compare.compare` gave."""
    names = [plain(name) for name in comparison["names"]]
    inputs = [(row["key"], *(input_text(value) for value in row["values"])) for row in comparison["inputs"]]
    outputs = [(row["label"], *(figure_text(row["key"], value, 4) + (f" ({change_text(c)})" if c else "")
                                for value, c in zip(row["values"], row["changes"], strict=True)))
               for row in comparison["outputs"]]
    bars = [(name, parts) for name, parts in zip(names, comparison["breakdowns"], strict=True) if parts]
    return environment().get_template("compare.html").render(
        names=names, answers=[plain(answer or "") for answer in comparison["answers"]],
        inputs=table_view(("Input", *names), inputs, range(1 + len(names))),
        outputs=table_view(("Figure", *names), outputs),
        breakdowns=breakdowns(bars, "Step times side by side") if len(bars) > 1 else None,
        causes=[_cause(part) for part in comparison["attributions"]], data=embedded(comparison))


def _cause(part: Mapping[str, Any]) -> View:
    """Why one result differs from the first, term by term."""
    base, name = plain(part["base"]), plain(part["name"])
    if part["terms"] is None:
        return {"title": f"{name} against {base}", "text": plain(part["reason"]), "figure": None}
    terms = [(words(term["category"]), term["difference_s"]) for term in part["terms"]]
    difference = part["difference_s"]
    text = (f"A step takes {in_seconds(abs(difference))} {'more' if difference > 0 else 'less'} than with {base}."
            if difference else f"A step takes as long as with {base}.")
    rows = [(words(term["category"]), amount(term["base_s"], "s", 4), amount(term["other_s"], "s", 4),
             signed(term["difference_s"])) for term in part["terms"]]
    rows.append(("Total", amount(part["base_step_time_s"], "s", 4), amount(part["step_time_s"], "s", 4),
                 signed(part["difference_s"])))
    chart = charts.differences(terms, f"Difference by cause: {name} against {base}", text, signed)
    return {"title": f"{name} against {base}", "text": text, "figure": figure_view(
        chart, table_view(("Term", base, name, "Difference"), rows)) if terms else None}
