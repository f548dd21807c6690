"""The axes of a search: the scenario's own, those given on the command line, or what is usual for model and cluster.

An axis of a plan or a stack is priced as arrays (`placement.search`); every other key (GPUs, nodes, workload, model)
makes a case of its own around which the plans are searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from costmodel.stack import Stack
from placement.divisibility import feed_forwards
from placement.plan import Plan
from placement.search.exhaustive import Case
from placement.search.space import Space
from scenarios.build import training_inputs
from scenarios.errors import Place, ScenarioError, shown
from scenarios.load import LoadedScenario, with_values
from simulator.inputs import TrainingInputs
from simulator.predict import setting_of

MOST_CASES = 1_000
_PLAN_FIELDS = {f.name for f in fields(Plan)} - {"data"}
_STACK_FIELDS = {f.name for f in fields(Stack)} - {"name", "source"}


@dataclass(frozen=True)
class Axis:
    """A dotted key and its values as written, each with its place."""

    key: str
    values: tuple[Any, ...]
    places: tuple[Place, ...]

    @property
    def field(self) -> str:
        """The key as the objects call it: host times of a stack carry their unit there."""
        return f"{self.key}_s" if self.key.startswith("stack.host_") else self.key

    @property
    def is_priced_as_array(self) -> bool:
        block, _, name = self.field.partition(".")
        return name in {"plan": _PLAN_FIELDS, "stack": _STACK_FIELDS}.get(block, ())


@dataclass(frozen=True)
class Asked:
    """What is searched: cases, the space around each, and how values of the space are written in a scenario.
    `inputs`: of the cases, in their order."""

    axes: tuple[Axis, ...]
    cases: tuple[Case, ...]
    inputs: tuple[TrainingInputs, ...]
    space: Space
    written: Mapping[str, tuple[tuple[Any, Any], ...]]  # field -> (value, as written)

    def as_written(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of a plan found, by the keys and in the notation of a scenario."""
        fields_of = {axis.field for axis in self.axes} | {axis.key for axis in self.axes}
        found = {key: value for key, value in values.items() if key not in fields_of}
        for axis in self.axes:
            if axis.field in values:
                pairs = self.written.get(axis.field, ())
                value = values[axis.field]
                found[axis.key] = next((text for typed, text in pairs if typed == value and type(typed) is type(value)),
                                       value)
        return found


def of_scenario(loaded: LoadedScenario) -> list[Axis]:
    """The axes in the `search` block of a scenario file."""
    found = []
    for key, values in loaded.scenario.search.items():
        places = tuple(loaded.document.place(("search", key, index)) for index in range(len(values)))
        found.append(Axis(key, tuple(values), places))
    return found


def asked(loaded: LoadedScenario, given: list[Axis], gpu_counts: tuple[int, ...] = ()) -> Asked:
    """What to search. `given` axes replace those of the same key in the scenario; without any in both the usual ones.

    `gpu_counts`: sizes of the cluster to try, where no axis says so. Raises ScenarioError for a key or a value that a
    scenario cannot have.
    """
    stands = {axis.key: axis for axis in of_scenario(loaded) or usual(loaded)}
    stands |= {axis.key: axis for axis in given}
    if gpu_counts and not any(key in stands for key in ("cluster.gpus", "cluster.nodes")):
        place = Place("--max-gpus")
        stands["cluster.gpus"] = Axis("cluster.gpus", gpu_counts, (place,) * len(gpu_counts))
    axes = tuple(stands.values())
    if "plan.data" in stands:
        place = stands["plan.data"].places[0]
        raise ScenarioError.at(place, "plan.data is what the other degrees leave of the GPUs; leave this axis out")
    inner = [axis for axis in axes if axis.is_priced_as_array]
    outer = [axis for axis in axes if not axis.is_priced_as_array]
    written = {axis.field: tuple(_typed(loaded, axis)) for axis in inner}
    cases, inputs = zip(*_cases(loaded, outer), strict=True)
    base = cases[0].base
    values = {f"plan.{name}": getattr(base.plan, name) for name in sorted(_PLAN_FIELDS)}
    values |= {f"stack.{name}": getattr(base.stack, name) for name in sorted(_STACK_FIELDS)}
    space = Space({field: tuple(typed for typed, _ in pairs) for field, pairs in written.items()}, values)
    return Asked(axes, cases, inputs, space, written)


def _typed(loaded: LoadedScenario, axis: Axis) -> list[tuple[Any, Any]]:
    """(value as the plan or the stack holds it, as written), of every value of an axis."""
    found: list[tuple[Any, Any]] = []
    block, _, name = axis.field.partition(".")
    for value, place in zip(axis.values, axis.places, strict=True):
        one = with_values(loaded, {axis.key: value}, {axis.key: place}, related=False)
        setting = setting_of(training_inputs(one, "analytic"))
        typed = getattr(setting.plan if block == "plan" else setting.stack, name)
        if any(typed == other and type(typed) is type(other) for other, _ in found):
            raise ScenarioError.at(place, f"{axis.key}: {shown(value)} stands in this axis twice")
        found.append((typed, value))
    return found


def _cases(loaded: LoadedScenario, outer: list[Axis]) -> list[tuple[Case, TrainingInputs]]:
    """A case for every combination of the values that are not priced as arrays."""
    count = 1
    for axis in outer:
        count *= len(axis.values)
    if count > MOST_CASES:
        keys = " x ".join(f"{axis.key} {len(axis.values)}" for axis in outer)
        raise ScenarioError.at(outer[0].places[0], f"{keys} = {count:,} cases are more than {MOST_CASES:,}; give fewer")
    found = []
    for values in product(*(tuple(zip(axis.values, axis.places, strict=True)) for axis in outer)):
        chosen = {axis.key: value for axis, (value, _) in zip(outer, values, strict=True)}
        places = {axis.key: place for axis, (_, place) in zip(outer, values, strict=True)}
        nodes = _enough_nodes(loaded, chosen)
        case = with_values(loaded, chosen | nodes, places | dict.fromkeys(nodes, Place("--max-gpus")), related=False)
        inputs = training_inputs(case, "analytic")
        searched = Case(setting_of(inputs), inputs.global_batch, chosen | nodes, inputs.price_usd_per_gpu_hour)
        found.append((searched, inputs))
    return found


def _enough_nodes(loaded: LoadedScenario, chosen: Mapping[str, Any]) -> dict[str, int]:
    """More nodes where more GPUs are asked about than the scenario's hold."""
    gpus = chosen.get("cluster.gpus")
    if not isinstance(gpus, int) or "cluster.nodes" in chosen:
        return {}
    each = loaded.cluster.node.accelerators
    nodes = -(-gpus // each)
    return {"cluster.nodes": nodes} if nodes > loaded.scenario.cluster.nodes else {}


def gpu_counts(loaded: LoadedScenario, most: int) -> tuple[int, ...]:
    """Cluster sizes up to `most`: a node and its doublings, parts of a node below that, and `most` itself."""
    each = loaded.cluster.node.accelerators
    counts = {most}
    size = 1
    while size <= most:
        if size <= each or size % each == 0:
            counts.add(size)
        size *= 2
    multiple = each
    while multiple <= most:
        counts.add(multiple)
        multiple *= 2
    return tuple(sorted(counts))


def usual(loaded: LoadedScenario) -> list[Axis]:
    """Axes for a scenario that lists none: what divides the model and the cluster, within what is common practice, and
    the scenario's own values."""
    model, cluster, plan = loaded.model, loaded.cluster, loaded.scenario.plan
    gpus, layers = cluster.accelerators, len(model.layers)
    heads = [layer.attention.heads for layer in dict.fromkeys(model.layers)]
    dealt = [part.experts or model.hidden for part in feed_forwards(model) if part.experts or part.memory]
    sequence = loaded.scenario.workload.sequence

    def divisors(number: int, most: int) -> list[int]:
        return [n for n in range(1, min(number, most) + 1) if number % n == 0]

    tensor = [n for n in divisors(gpus, cluster.node.scale_up_domain) if all(count % n == 0 for count in heads)]
    context = [n for n in (1, 2, 4, 8, 16, 32, 64) if gpus % n == 0 and sequence // n >= 4096] or [1]
    values: dict[str, list[Any]] = {
        "plan.tensor": tensor,
        "plan.pipeline": divisors(gpus, layers),
        "plan.context": context,
        "plan.virtual": [n for n in (1, 2, 3, 4, 5, 6, 8) if n <= layers],
        "plan.schedule": ["1f1b", "interleaved-1f1b"],
        "plan.micro_batch": [n for n in (1, 2, 4, 8) if n <= loaded.scenario.workload.global_batch],
        "plan.sequence_parallel": [False, True],
        "plan.recompute": ["none", "selective", "full"],
        "plan.sharding": ["zero-1", "fsdp-no-reshard", "fsdp"],
    }
    if dealt:
        values["plan.expert"] = [n for n in divisors(min(dealt), gpus) if gpus % n == 0]
    for key, of in values.items():
        own = getattr(plan, key.partition(".")[2])
        if own in of or not isinstance(own, str | int):
            continue
        if isinstance(own, str) or key in ("plan.virtual", "plan.micro_batch") or gpus % own == 0:
            of.append(own)
            of.sort(key=lambda value: value if isinstance(value, int) else 0)
    place = Place(loaded.file)
    return [Axis(key, tuple(of), (place,) * len(of)) for key, of in values.items()]

