"""Variants of one scenario as inputs of a prediction: what they share is read, checked and built once.

A block of the scenario (plan, cluster, ...) that two variants have in common is one object in both, and so are the
model and the cluster. Whatever is not in order goes the way of `scenarios.load`, which finds the words for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from costmodel.architecture import Model
from costmodel.hardware import Cluster
from placement.schedules.files import is_file
from scenarios import checks
from scenarios.build import BuildError, model_and_cluster
from scenarios.errors import Place, Problem, ScenarioError
from scenarios.load import LoadedScenario, with_values
from scenarios.schema import Block, Scenario, block_at
from scenarios.sweep.grid import Grid

_SIMPLE = ("cluster", "workload", "plan", "stack")  # blocks that a class of the schema reads without looking further
_REMEMBERED = 512
# What a value is looked at beside, so that more GPUs than there are nodes for are a matter of the combination.
_BESIDE: Mapping[str, Mapping[str, Any]] = {
    "cluster.gpus": {"cluster.nodes": 1_000_000}, "cluster.nodes": {"cluster.gpus": 1},
    "cluster.node": {"cluster.gpus": 1},
}


class Variants:
    """Variants of a scenario, by their settings."""

    def __init__(self, base: LoadedScenario) -> None:
        self.base = base
        self._block = lru_cache(_REMEMBERED)(self._read)
        self._built = lru_cache(_REMEMBERED)(self._build)

    def loaded(self, settings: Mapping[str, Any]) -> LoadedScenario:
        """The scenario with dotted keys replaced. Raises ScenarioError where it is not sound."""
        blocks = _by_block(settings)
        try:
            read = {name: self._block(name, text) for name, text in blocks.items()}
        except (ValidationError, KeyError):
            return self._explained(settings)
        scenario: Scenario = self.base.scenario.model_copy(update=read)
        if is_file(scenario.plan.schedule):
            return self._explained(settings)
        try:
            model, cluster = self._built(blocks.get("model", ""), blocks.get("cluster", ""))
        except BuildError as error:
            raise ScenarioError.at(Place("variant"), f"{'.'.join(error.key)}: {error}") from None
        if found := checks.relations(scenario, model, cluster):
            raise ScenarioError(Problem.at(Place("variant"), f"{'.'.join(at)}: {message}") for at, message in found)
        return replace(self.base, scenario=scenario, model=model, cluster=cluster)

    def accepts(self, key: str, value: Any) -> bool:
        """Whether a key may have this value, as far as its block alone can tell."""
        ((name, text),) = _by_block({key: value}).items()
        try:
            return name in _SIMPLE and not is_file(str(value)) and bool(self._block(name, text))
        except (ValidationError, KeyError):
            return False

    def _explained(self, settings: Mapping[str, Any]) -> LoadedScenario:
        return with_values(self.base, settings, dict.fromkeys(settings, Place("variant")))

    def _read(self, name: str, text: str) -> Block:
        """The block `name` with the settings in `text`. Raises ValidationError, and KeyError where there is no way."""
        raw = self.base.raw.get(name, {})
        for key, value in json.loads(text).items():
            raw = _replaced(raw, key.split(".")[1:], value)
        block = block_at((name,))
        if name in _SIMPLE and block:
            return block.model_validate(raw)
        data = {key: self.base.raw[key] for key in ("model", "cluster", "workload", "plan")}
        read: Block = getattr(Scenario.model_validate({"name": "variant", **data, name: raw}), name)
        return read

    def _build(self, model: str, cluster: str) -> tuple[Model, Cluster]:
        """Model and cluster for the settings of their blocks. Raises BuildError."""
        if not model and not cluster:
            return self.base.model, self.base.cluster
        read = {name: self._block(name, text) for name, text in (("model", model), ("cluster", cluster)) if text}
        return model_and_cluster(self.base.scenario.model_copy(update=read), self.base.path.parent)


def check(base: LoadedScenario, asked: Grid) -> None:
    """Every key and every value by itself; what values are to one another is a matter of each variant.

    Raises ScenarioError with every problem found.
    """
    variants = Variants(base)
    of_search = {f"{'.'.join(at)}: {message}" for at, message in checks.unsearchable(base.cluster)}
    problems: list[Problem] = []
    for axis in asked.axes:
        for key, values, places in zip(axis.keys, axis.values, axis.places, strict=True):
            for value, place in zip(values, places, strict=True):
                if value is None or variants.accepts(key, value):
                    continue
                settings = {key: value, **_BESIDE.get(key, {})}
                try:
                    with_values(base, settings, dict.fromkeys(settings, place), related=False)
                except ScenarioError as error:
                    problems += [problem for problem in error.problems if problem.message not in of_search]
    if problems:
        raise ScenarioError(problems)


def _by_block(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of each block that is set, its settings as text."""
    blocks: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        blocks.setdefault(key.partition(".")[0], {})[key] = value
    return {name: json.dumps(of) for name, of in blocks.items()}


def _replaced(raw: Any, way: list[str], value: Any) -> Any:
    """A copy of a block with the value at the end of a way of keys. Raises KeyError where something else stands."""
    if not way:
        return value
    if not isinstance(raw, dict):
        raise KeyError(way[0])
    return {**raw, way[0]: _replaced(raw.get(way[0], {}), way[1:], value)}
