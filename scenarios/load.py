"""A scenario file, read, checked and built: every problem in one go, each with its line and column."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from costmodel.architecture import Model
from costmodel.hardware import Cluster
from scenarios import build, checks
from scenarios.document import Document, KeyPath, entries, parse_value, read_document
from scenarios.errors import Place, Problem, ScenarioError, nearest, shown
from scenarios.schema import Scenario, block_at

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
SETTABLE = ("model", "cluster", "workload", "plan", "stack", "seed")
_RELATED = ("model", "cluster", "workload", "plan")  # blocks whose values are checked against one another


@dataclass(frozen=True)
class LoadedScenario:
    """A checked scenario. `variant` names the `what_if` entry it came from, None for the base case."""

    scenario: Scenario
    model: Model
    cluster: Cluster
    document: Document
    file: str
    path: Path
    variant: str | None = None
    measured: tuple[LoadedScenario, ...] = ()  # the runs of its `calibration` block

    @property
    def raw(self) -> dict[str, Any]:
        """The mapping as written, with overrides applied."""
        return self.document.data

    @property
    def sha256(self) -> str:
        """Of the file's bytes, in hexadecimal."""
        return self.document.sha256

    def position(self, path: KeyPath) -> tuple[int, int]:
        """Line and column, from 1, where a value stands; (0, 0) for one set on the command line."""
        place = self.document.place(path)
        return place.line, place.column


def load(
    path: str | Path, overrides: Sequence[str] = (), name: str | None = None, related: bool = True
) -> LoadedScenario:
    """The scenario in a file, with `key=value` overrides applied before it is checked.

    `name` is what the file is called in messages, by default the path as given. `related` False leaves out what values
    must be to one another, for a search that replaces them.
    Raises ScenarioError with every problem found.
    """
    file = str(path) if name is None else name
    written = document = read_document(Path(path), file)
    problems: list[Problem] = []
    for override in overrides:
        try:
            document = _overridden(document, override)
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    base = _checked(document, file, Path(path), related)
    return replace(base, measured=_measured(base, written))


def with_values(
    loaded: LoadedScenario, values: Mapping[str, Any], places: Mapping[str, Place], related: bool = True
) -> LoadedScenario:
    """The scenario with dotted keys replaced, checked anew; `places` says where each was written.

    None leaves a key out. `related` as in `load`. Raises ScenarioError with every problem found.
    """
    document = loaded.document
    for key, value in values.items():
        if not _KEY.fullmatch(key) or key.split(".")[0] not in SETTABLE:
            hint = nearest(key.split(".")[0], SETTABLE)
            raise ScenarioError.at(places[key], f"cannot set {shown(key)[5:]}; {hint}")
        path = tuple(key.split("."))
        document = document.lacking(path) if value is None else document.replaced(path, value, places[key])
    return _checked(document, loaded.file, loaded.path, related)


def _measured(base: LoadedScenario, written: Document) -> tuple[LoadedScenario, ...]:
    """The run of each `calibration` row: the file as written, whatever the command line overrides, with `set`.

    Raises ScenarioError with the problems of all rows.
    """
    found: list[LoadedScenario] = []
    problems: list[Problem] = []
    for index, row in enumerate(base.scenario.calibration):
        path: KeyPath = ("calibration", index, "set")
        try:
            document = _varied(written, path, row.set).without("what_if", "published", "calibration")
            found.append(_checked(document, base.file, base.path))
        except ScenarioError as error:
            problems += [_in_set(written, path, f"calibration[{index}]", p) for p in error.problems]
    if problems:
        raise ScenarioError(problems)
    return tuple(found)


def variants(loaded: LoadedScenario) -> list[LoadedScenario]:
    """The scenario once more for each `what_if` entry, with its `set` applied and checked like the base case.

    Published values and author's notes on keys that a variant sets belong to the base case and are left out.
    Raises ScenarioError with the problems of all variants, each placed at the value in the `what_if` block.
    """
    found: list[LoadedScenario] = []
    problems: list[Problem] = []
    for index, entry in enumerate(loaded.scenario.what_if):
        path: KeyPath = ("what_if", index, "set")
        try:
            document = _varied(loaded.document, path, entry.set).without("what_if", "published", "calibration")
            varied = _checked(document, loaded.file, loaded.path)
            found.append(replace(varied, variant=entry.name))
        except ScenarioError as error:
            problems += [_in_set(loaded.document, path, f"what_if '{entry.name}'", p) for p in error.problems]
    names = [entry.name for entry in loaded.scenario.what_if]
    for index, name in enumerate(names):
        if name in names[:index]:
            place = loaded.document.place(("what_if", index, "name"))
            problems.append(Problem.at(place, f"what_if: the name {shown(name)[5:]} is given twice"))
    if problems:
        raise ScenarioError(problems)
    return found


def _in_set(document: Document, path: KeyPath, name: str, problem: Problem) -> Problem:
    """The problem placed in the `set` at `path`: the base case is sound, so what stands there caused it."""
    written = (*document.places.items(), *document.keys.items())
    place = Place(problem.file, problem.line, problem.column)
    if place not in {at for key, at in written if key[:3] == path}:
        place = document.place(path)
    return Problem.at(place, f"{name}: {problem.message}")


def _overridden(document: Document, override: str) -> Document:
    key, equals, text = override.partition("=")
    key = key.strip()
    place = Place(f"--set {override}")
    if not equals or not _KEY.fullmatch(key):
        raise ScenarioError.at(place, "write it as key=value, such as plan.tensor=8")
    if key.split(".")[0] == "calibration":
        raise ScenarioError.at(place, "calibration is of the scenario as written; measured runs stand in its file")
    return document.replaced(tuple(key.split(".")), parse_value(text, place.file), place)


def _varied(document: Document, at: KeyPath, settings: dict[str, Any]) -> Document:
    """The document with the dotted keys of the `set` at the path `at` replaced."""
    problems: list[Problem] = []
    varied = document
    for key, value in settings.items():
        path: KeyPath = (*at, key)
        if not _KEY.fullmatch(key) or key.split(".")[0] not in SETTABLE:
            hint = nearest(key.split(".")[0], SETTABLE)
            problems.append(Problem.at(document.key_place(path), f"cannot set {shown(key)[5:]}; {hint}"))
            continue
        try:
            written = document.place(path), document.key_place(path)
            varied = varied.replaced(tuple(key.split(".")), value, *written)
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    return varied


def _checked(document: Document, file: str, path: Path, related: bool = True) -> LoadedScenario:
    """Types, ranges and names first; what values must be to one another where those blocks are sound."""
    problems = list(_nulls(document, document.data, ()))
    empty = {p.message.split(":")[0] for p in problems}
    scenario, wrong = _validated(document)
    problems += [p for p in wrong if p.message.split(":")[0] not in empty]
    if scenario is not None and not any(name.split(".")[0] in _RELATED for name in empty):
        try:
            scenario = build.with_schedule_file(scenario, path.parent)
            model, cluster = build.model_and_cluster(scenario, path.parent)
            found = checks.relations(scenario, model, cluster) if related else checks.unsearchable(cluster)
            problems += [_problem(document, at, message) for at, message in found]
        except build.BuildError as error:
            problems.append(_problem(document, error.key, str(error)))
    if problems or scenario is None:
        raise ScenarioError(sorted(problems))
    return LoadedScenario(scenario, model, cluster, document, file, path)


def _validated(document: Document) -> tuple[Scenario | None, list[Problem]]:
    """The scenario and the problems of its single keys.

    Where only blocks outside _RELATED have problems, the scenario given holds the related blocks alone, so
    that those can be checked further.
    """
    try:
        return Scenario.model_validate(document.data), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = [_explained(document, e) for e in errors]
    if any(e["loc"] and e["loc"][0] in _RELATED for e in errors):
        return None, problems
    related = {key: document.data[key] for key in _RELATED}
    return Scenario.model_validate({"name": "related blocks", **related}), problems


def _nulls(document: Document, value: Any, path: KeyPath) -> Iterator[Problem]:
    """A key without a value is a slip, except in `model.set` and `search`, where null has a meaning."""
    if value is None:
        problem = _problem(document, path, "has no value; give one or leave the key out")
        place = document.key_place(path)  # an empty value is read where the next line begins
        yield replace(problem, line=place.line, column=place.column)
    elif path not in (("model", "set"), ("search",)) and not (
        path[:1] in (("what_if",), ("calibration",)) and path[2:] == ("set",)
    ):
        for key, inner in entries(value):
            yield from _nulls(document, inner, (*path, key))


def _problem(document: Document, path: KeyPath, message: str) -> Problem:
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return Problem.at(document.place(path), f"{dotted}: {message}" if dotted else message)


def _explained(document: Document, error: Any) -> Problem:
    """A pydantic error in plain words, placed at the key or value it is about."""
    path: KeyPath = tuple(error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return _problem(document, path, f"is missing; {_MISSING.get(str(path[-1]), 'add the key')}")
    if kind == "extra_forbidden":
        return _unknown_key(document, path)
    while path and path not in document.places:  # parts that pydantic adds for its own unions and validators
        path = path[:-1]
    if kind == "value_error":
        return _problem(document, path, str(context["error"]))
    value = document.get(path)
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return _problem(document, path, f"{shown(value)} is not one of {', '.join(choices)}"
                                        f"{_did_you_mean(value, choices)}")
    expected = _EXPECTED.get(kind)
    if expected is None:
        return _problem(document, path, f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {shown(value)}")
    return _problem(document, path, f"{expected.format(**context)} is expected, got {shown(value)}")


def _did_you_mean(value: Any, choices: Sequence[str]) -> str:
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return f"; {hint}" if hint.startswith("did") else ""


def _unknown_key(document: Document, path: KeyPath) -> Problem:
    block = block_at(path[:-1])
    known = list(block.model_fields) if block else []
    parents = [str(part) for part in path[:-1] if isinstance(part, str)]
    where = f" in {'.'.join(parents)}" if parents else ""
    message = f"unknown key {shown(str(path[-1]))[5:]}{where}; {nearest(str(path[-1]), known, listed=20)}"
    return Problem.at(document.key_place(path), message)


_MISSING = {
    "name": "begin with 'name: what this run is'",
    "model": "write 'model: NAME' (see: whatif list models)",
    "cluster": "write 'cluster: {node: hgx-h100, nodes: 1}'",
    "node": "write 'node: NAME' (see: whatif list nodes)",
    "nodes": "write how many nodes there are",
    "workload": "write 'workload: {kind: pretrain, sequence: 8192, global_batch: 128}'",
    "kind": "write 'kind: pretrain'",
    "sequence": "write how many tokens a sequence has",
    "global_batch": "write how many sequences a step takes",
    "plan": "write 'plan: {tensor: 8, ...}'",
}
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "string_too_short": "text of at least {min_length} character",
    "string_too_long": "text of at most {max_length} characters",
    "too_short": "at least {min_length} entry",
    "too_long": "a list of at most {max_length} entries",
}
