"""`whatif validate`: the plan of a scenario run for real for a few steps, beside its simulation."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from costmodel import catalog
from costmodel.calibration.ranks import TORCH_MISSING, RanksError, has_torch
from costmodel.constants import RANGES
from costmodel.hardware import Node
from costmodel.stack import StackError
from costmodel.units import UnitError, parse
from placement.plan import PlanError
from placement.schedules import ScheduleError
from scenarios.build import training_inputs
from scenarios.commands.output import (
    SCHEMA_VERSION,
    cannot_write,
    check_target,
    plain_values,
    print_json,
    tool_version,
    write_file,
)
from scenarios.commands.run import prepare
from scenarios.errors import Place, Problem, ScenarioError
from scenarios.load import LoadedScenario
from simulator.inputs import TrainingInputs
from simulator.real import validate as real
from simulator.real.cut import Cut, CutError, Machine, cut
from simulator.real.layouts import unsupported

MOST_RANKS = 16
BUDGET_S = 10.0  # longest step that a validation waits for
MEMORY_SHARE = 0.5  # of the machine's memory that the ranks may take; torch and the system have the rest


def validate(scenario: str, settings: Sequence[str], *, device: str, profile: str, ranks: int | None, steps: int,
             warmup: int, timeout: str, max_error: float | None, update_profile: bool, html: str, trace: str,
             as_json: bool) -> int:
    """Cuts, simulates, runs, compares; 0, or 1 where a rank failed or an error is beyond `max_error`.

    Raises ScenarioError for bad input, before anything is run.
    """
    _check_outputs(scenario, html, trace)
    timeout_s = seconds_of(timeout)
    base, _ = prepare(scenario, settings)
    inputs = training_inputs(base)
    _check_scenario(base, inputs)
    need_torch()
    device, devices = device_of(device)
    if device == "cpu" and not as_json:
        tell("what needs CUDA (events, streams, NCCL) is skipped: there is no GPU, or --device cpu was asked for")
    machine = _machine(node_of(profile), device, min(ranks or devices, MOST_RANKS if device == "cpu" else devices))
    found = _cut(base, inputs, machine)
    asked = real.Asked(device, steps, warmup, timeout_s, max_error=max_error)
    try:
        document = real.validate(found, asked, None if as_json else tell)
    except RanksError as error:
        print(f"whatif validate: {error}", file=sys.stderr)
        return 1
    document = plain_values({
        "schema_version": SCHEMA_VERSION, "tool_version": tool_version(),
        "scenario": {"name": base.scenario.name, "description": base.scenario.description, "file": base.file},
        "profile": profile, **document, "run": {"date": datetime.now(UTC).isoformat(timespec="seconds")},
    })
    if update_profile:
        document["updated"] = keep(profile, document)
    _report(document, html, trace, as_json)
    return 1 if document["failures"] else 0


def _report(document: dict[str, Any], html: str, trace: str, as_json: bool) -> None:
    from reports import validation

    if html:
        write_file("--html", html, validation.page(document))
    if trace:
        from reports.trace import write

        try:
            write(trace, validation.trace(document))
        except OSError as error:
            raise cannot_write("--trace", trace, error) from None
    if as_json:
        print_json(document)
        return
    from rich.console import Console

    validation.show(document, Console(highlight=False))


# Bad input -------------------------------------------------------------------------------------------


def _check_outputs(scenario: str, html: str, trace: str) -> None:
    inputs = (Path(scenario),) if "\0" not in scenario else ()
    for option, path in (("--html", html), ("--trace", trace)):
        if path:
            check_target(option, path, never=inputs)
    if trace and not trace.endswith((".json", ".json.gz")):
        raise ScenarioError.at(Place(f"--trace {trace}"), "a trace is written to a .json or .json.gz file")


def seconds_of(timeout: str) -> float:
    """The limit in seconds; "10m" is ten minutes as well as "10 min"."""
    text = f"{timeout.strip()}in" if timeout.strip().endswith("m") else timeout
    try:
        seconds = parse(text, "s")
    except UnitError as error:
        raise ScenarioError.at(Place(f"--timeout {timeout}"), str(error)) from None
    if not 0 < seconds < 86400:
        raise ScenarioError.at(Place(f"--timeout {timeout}"), "is to be more than 0 s and less than a day")
    return seconds


def _check_scenario(base: LoadedScenario, inputs: TrainingInputs) -> None:
    """What no cut can help. Raises ScenarioError at the key."""
    for keys, wrong, text in (
        (("cluster", "beside"), bool(inputs.cluster.groups), "real runs have equal ranks; leave it out"),
        (("workload", "lengths"), inputs.lengths is not None, "real runs have sequences of equal length; leave it out"),
    ):
        if wrong:
            raise ScenarioError([Problem.at(base.document.key_place(keys), f"{'.'.join(keys)}: {text}")])


def device_of(asked: str) -> tuple[str, int]:
    """(cpu or cuda, ranks that it takes unless told otherwise). Raises ScenarioError for CUDA where there is none."""
    from costmodel.calibration.measure.run import gpus

    count = gpus() if asked != "cpu" else 0
    if asked == "cuda" and not count:
        raise ScenarioError.at(Place("--device cuda"), "torch finds no CUDA device here; use --device cpu")
    return ("cuda", count) if count else ("cpu", max(2, os.cpu_count() or 1))


def node_of(profile: str) -> Node:
    try:
        return catalog.node(profile)
    except catalog.UnknownName:
        raise ScenarioError.at(
            Place(f"--profile {profile}"), f"no profile of this machine in {catalog.own_root()}; run: whatif calibrate "
            f"measure, then: whatif calibrate fit --measured FOLDER") from None


def _machine(node: Node, device: str, ranks: int) -> Machine:
    """The node with as many accelerators as ranks: the ranks on a CPU share its memory."""
    part = node.accelerator
    memory_bytes = part.memory.capacity_bytes * (ranks if device == "cuda" else 1) * MEMORY_SHARE
    node = replace(node, accelerators=max(ranks, 1), scale_up_domain=max(ranks, 1))
    processors = ranks if device == "cuda" else os.cpu_count() or 1
    return Machine(node, device, ranks, processors, memory_bytes, BUDGET_S)


def _cut(base: LoadedScenario, inputs: TrainingInputs, machine: Machine) -> Cut:
    """The part that is run. Raises ScenarioError for what torch cannot lay out and what is too large."""
    place = base.document.key_place(("plan",))
    try:
        found = cut(inputs, machine, real.price)
    except (CutError, PlanError, ScheduleError, StackError) as error:
        raise ScenarioError([Problem.at(place, f"plan: {error}")]) from None
    if refused := unsupported(found.inputs.model, found.inputs.plan):
        raise ScenarioError([Problem.at(place, text) for text in refused])
    return found


def need_torch() -> None:
    """Raises ScenarioError where torch is not installed."""
    if not has_torch():
        raise ScenarioError.at(Place("whatif validate"), TORCH_MISSING)


def tell(text: str) -> None:
    print(text, file=sys.stderr)


# --update-profile ------------------------------------------------------------------------------------


def keep(profile: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """Writes what this validation implies into the user's profile; constant -> {before, after, clipped}.

    Raises ScenarioError for a profile that is not the user's own.
    """
    file = catalog.own_root() / "profiles" / f"{profile}.yaml"
    yaml = YAML()
    try:
        content = yaml.load(file.read_text(encoding="utf-8"))
    except OSError:
        missing = f"is no profile of your own: {file} is not there"
        raise ScenarioError.at(Place(f"--profile {profile}"), missing) from None
    constants = dict(content.get("constants") or {})
    found = real.corrections(document["quantities"], {key: one["value"] for key, one in constants.items()}, RANGES)
    source = f"whatif validate {document['scenario']['file']}, one run of {document['machine']['ranks']} rank(s)"
    for key, (_, after, _) in found.items():
        constants[key] = {"value": round(after, 4), "source": source, "date": document["run"]["date"]}
    content["constants"] = constants
    out = StringIO()
    yaml.dump(content, out)
    write_file("--update-profile", str(file), out.getvalue())
    return {key: {"before": old, "after": round(new, 4), "clipped": clipped}
            for key, (old, new, clipped) in found.items()}
