"""`whatif run`: a scenario and its variants predicted, shown and saved."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from costmodel.constants import Constants
from placement.plan import PlanError
from placement.schedules import ScheduleError
from scenarios import names
from scenarios.build import training_inputs
from scenarios.calibration import calibration
from scenarios.commands.output import (
    SCHEMA_VERSION,
    cannot_write,
    check_target,
    plain_values,
    print_json,
    tool_version,
    write_file,
)
from scenarios.errors import Place, Problem, ScenarioError, nearest
from scenarios.load import LoadedScenario, load, variants
from simulator import predict

SLOW_S = 2.0  # work that takes longer shows its progress


def find(scenario: str) -> tuple[Path, str]:
    """The file of a scenario given by path or by its name in the library, and what messages call it.

    Raises ScenarioError, with the nearest library name, where there is neither.
    """
    if not scenario.strip():
        raise ScenarioError.at(Place("SCENARIO"), "is empty; give a file or a name (see: whatif list scenarios)")
    path = Path(scenario)
    try:
        exists = path.exists()
    except (OSError, ValueError):
        exists = False
    inside = None if exists else names.library_file(scenario)
    if not exists and inside is None and "/" not in scenario:
        hint = nearest(scenario.removesuffix(".yaml"), names.known("scenarios"))
        raise ScenarioError.at(Place(scenario), f"no such file, and no library scenario of that name; {hint}")
    return (inside, inside.name) if inside else (path, scenario)


def prepare(scenario: str, settings: Sequence[str] = ()) -> tuple[LoadedScenario, list[LoadedScenario]]:
    """The base case and the variants of a scenario given by path or library name. Raises ScenarioError."""
    path, name = find(scenario)
    base = load(path, settings, name)
    return base, variants(base)


def predict_prepared(
    base: LoadedScenario, varied: Sequence[LoadedScenario], fidelity: str = "events", seed: int | None = None
) -> dict[str, Any]:
    """The whole document of a scenario with its variants, in plain values. Raises ScenarioError."""
    began = time.perf_counter()
    calibrated = calibration(base, fidelity)
    constants = calibrated.constants if calibrated else None
    document = _predicted(base, fidelity, seed, constants)
    if calibrated:
        document["calibration"] = plain_values(calibrated.document)
    rows = []
    for index, variant in enumerate(varied):
        if time.perf_counter() - began > SLOW_S:
            print(f"{base.file}: variant {index + 1} of {len(varied)}: {variant.variant}", file=sys.stderr)
        rows.append(variant_row(document, _predicted(variant, fidelity, seed, constants), base, index))
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": tool_version(),
        "scenario": {"name": base.scenario.name, "description": base.scenario.description, "file": base.file,
                     "sha256": base.sha256, "inputs": base.raw},
        **document,
        "variants": rows,
        "run": {"wall_s": time.perf_counter() - began,
                "date": datetime.now(UTC).isoformat(timespec="seconds")},
    }


def variant_row(
    document: dict[str, Any], varied: dict[str, Any], base: LoadedScenario, index: int
) -> dict[str, Any]:
    """A variant beside the base case: its `set`, its figures, and the relative changes of the numbers."""
    entry = base.scenario.what_if[index]
    figures = {key: varied[key] for key in _OF_VARIANTS if key in varied}
    changes = {key: _change(document.get(key), value) for key, value in figures.items()}
    return {"name": entry.name, "set": entry.set, **figures, "reasons": varied.get("reasons", {}),
            "change": {key: change for key, change in changes.items() if change is not None}}


_OF_VARIANTS = (
    "answer", "fits", "gpus", "accelerator", "step_time_s", "tokens_per_s", "tokens_per_s_per_gpu",
    "model_flops_per_s_per_gpu", "mfu", "hfu", "bubble_fraction", "peak_memory_bytes",
    "memory_breakdown_bytes", "breakdown_s", "cost_usd", "cost_usd_per_million_tokens", "energy_j",
    "run_totals", "error_band",
)


def _change(base: Any, other: Any) -> float | None:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (base, other))
    return float(other / base - 1) if numbers and base else None


def _predicted(
    loaded: LoadedScenario, fidelity: str, seed: int | None, constants: Constants | None
) -> dict[str, Any]:
    """The document of one case, by the shipped constants where none are given."""
    inputs = training_inputs(loaded, fidelity, seed)
    inputs = replace(inputs, constants=constants) if constants else inputs
    try:
        document: dict[str, Any] = plain_values(predict.predict_training(inputs))
        return document
    except (PlanError, ScheduleError) as error:
        raise ScenarioError([Problem.at(loaded.document.key_place(("plan",)), f"plan: {error}")]) from None


def run(
    scenario: str,
    settings: Sequence[str],
    fidelity: str,
    *,
    html: str,
    trace: str,
    as_json: bool,
    seed: int | None,
) -> None:
    """Predict, then write what was asked for. Raises ScenarioError."""
    _check_outputs(scenario, fidelity, html, trace)
    document = predict_prepared(*prepare(scenario, settings), fidelity, seed)
    if html:
        from reports import page

        write_file("--html", html, page.render(document))
    if trace:
        _write_trace(trace, document)
    if as_json:
        print_json(document)
    else:
        from rich.console import Console

        from reports import run_table

        run_table.show(document, Console(highlight=False))


def _check_outputs(scenario: str, fidelity: str, html: str, trace: str) -> None:
    inputs = (Path(scenario),) if "\0" not in scenario else ()
    for option, path in (("--html", html), ("--trace", trace)):
        if path:
            check_target(option, path, never=inputs)
    if trace and not trace.endswith((".json", ".json.gz")):
        raise ScenarioError.at(Place(f"--trace {trace}"), "a trace is written to a .json or .json.gz file")
    if trace and fidelity != "events":
        raise ScenarioError.at(Place(f"--trace {trace}"), "only --fidelity events has a timeline to write")
    if trace and html and Path(trace).resolve() == Path(html).resolve():
        raise ScenarioError.at(Place(f"--trace {trace}"), "is the same file as --html; choose another name")


def _write_trace(path: str, document: dict[str, Any]) -> None:
    from reports import trace

    if not document.get("timeline"):
        raise ScenarioError.at(Place(f"--trace {path}"), "this step is a closed form; it has no timeline to write")
    try:
        trace.write(path, trace.render(document))
    except OSError as error:
        raise cannot_write("--trace", path, error) from None
