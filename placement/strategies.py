"""The registry of published strategies: names to placements, read from `strategies.yaml` or made by a rule."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from placement import paro
from placement.states import (
    Axis,
    Dim,
    Mode,
    Placement,
    PlacementError,
    Reduction,
    Span,
    Spread,
    State,
    StateBytes,
    state_bytes,
)

_FILE = Path(__file__).with_name("strategies.yaml")
_FLAGS = ("accumulate", "separate_recompute_gather", "host_update")
_CHOICES = {"keep_gathered": Span, "reduction": Reduction, "spread": Spread}
_KEYS = (*State, *_FLAGS, *_CHOICES, "secondary", "bytes", "source")


def names() -> tuple[str, ...]:
    """Every strategy known, in the order of the file, then those made by rule."""
    return tuple(_registry())


def shards_data(placement: Placement) -> bool:
    """Whether a placement is a way to share data-parallel work: the batch is split, and nothing lies on axes that
    belong to the degrees of a plan (tensor, pipeline, context, expert)."""
    data_like = {Axis.DATA, Axis.SHARD, Axis.REPLICATE, Axis.MEMORY}
    return set(placement.axes) <= data_like and Dim.BATCH in placement.partition.values()


def data_names() -> tuple[str, ...]:
    """The strategies that `plan.sharding` can name."""
    return tuple(name for name in names() if shards_data(get(name)))


def get(name: str, bytes_preset: str | StateBytes | None = None) -> Placement:
    """The placement of a named strategy, with other bytes per parameter if asked for.

    `bytes_preset` is a name of `states.STATE_BYTES` ("mixed", "megatron", ...) or a `StateBytes`. Raises
    PlacementError naming the nearest known name.

    >>> get("zero-3").mode(State.PARAMETERS, Axis.DATA).letter
    'S*'
    """
    if name not in _registry():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PlacementError(f"no strategy {name!r}; {hint}known: {', '.join(names())}")
    found = _registry()[name]
    return found if bytes_preset is None else replace(found, bytes=state_bytes(bytes_preset))


def from_mapping(data: Mapping[str, Any], name: str = "") -> Placement:
    """A placement from the notation of `strategies.yaml`. Raises PlacementError naming a bad key or value."""
    for key in data:
        if key not in _KEYS:
            raise PlacementError(f"placement {name!r}: unknown key {key!r}; known: {', '.join(_KEYS)}")
    modes: dict[State, dict[Axis, Mode]] = {}
    partition: dict[Axis, Dim] = {}
    for state in State:
        for axis_name, value in data.get(state, {}).items():
            axis = _member(Axis, axis_name, name)
            if state is State.ACTIVATIONS and axis is not Axis.MEMORY:
                partition[axis] = _member(Dim, value, name)
            else:
                modes.setdefault(state, {})[axis] = _member(Mode, value, name)
    options: dict[str, Any] = {flag: bool(data[flag]) for flag in _FLAGS if flag in data}
    options |= {key: _member(kind, data[key], name) for key, kind in _CHOICES.items() if key in data}
    return Placement(
        modes, partition,
        bytes=state_bytes(data["bytes"]) if "bytes" in data else None,
        secondary=tuple(_member(Axis, axis, name) for axis in data.get("secondary", ())),
        name=name, source=str(data.get("source", "")),
        **options,
    )


def _member(kind: Any, value: str, name: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        what = f"{value!r} is no {kind.__name__.lower()}"
        raise PlacementError(f"placement {name!r}: {what}; known: {', '.join(kind)}") from None


@cache
def _registry() -> dict[str, Placement]:
    data = YAML(typ="safe").load(_FILE.read_text(encoding="utf-8"))
    written = {name: from_mapping(entry, name) for name, entry in data.items()}
    return written | {one.name: one for one in map(paro.placement, paro.TRIPLES)}
