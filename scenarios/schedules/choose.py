"""A name becomes a schedule with its order: one of the registry, a file of orders, or `auto`, a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placement import schedules
from placement.schedules.files import OrderFileError, read_orders
from placement.schedules.offload import with_offload
from placement.schedules.order import Orders, Request, Schedule, ScheduleError, Times, looped
from placement.schedules.recompute import with_recompute
from scenarios.errors import Place, ScenarioError
from scenarios.schedules.settings import Array, Setting, memory_limit, pass_times
from scenarios.tables import read_text

if TYPE_CHECKING:
    from placement.schedules.search.auto import Found

AUTO = "auto"
ROUNDING = 1e-9
MOST_PASSES = 5_000_000
OPTIONS = {"F": "--forward", "B": "--backward", "W": "--weight"}


@dataclass(frozen=True)
class Chosen:
    """A schedule in one setting.

    `times`: of one pass by kind, "B" for the input alone; scalars, [stages] or [stages, micro-batches].
    `facts`: what a search says about its order (bound, gap, ...). `notes`: what was put right or assumed.
    """

    schedule: Schedule
    orders: Orders
    setting: Setting  # with every number filled in
    times: Mapping[str, Array]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file: str = ""  # that the order was read from

    @property
    def chunks_per_micro_batch(self) -> float:
        """Chunk activations that make up those of one micro-batch on a rank."""
        return chunks_per_micro_batch(self.schedule, int(self.setting.chunks or 1), int(self.setting.segments or 1))


def chunks_per_micro_batch(schedule: Schedule, chunks: int, segments: int) -> float:
    return chunks * segments / schedule.routes


def choose(name: str, setting: Setting) -> Chosen:
    """The schedule called `name` in this setting: a path ending in .json or .csv (`FILE#CASE` of several), `auto` for
    the best order that a search finds, or a name.

    Raises ScenarioError for an unknown name, a file without an order, and a setting that the schedule does not have.
    """
    file, _, case = name.partition("#")
    if file.lower().endswith((".json", ".csv")):
        return _from_file(file, case, setting)
    try:
        return searched(setting) if name == AUTO else generated(schedules.get(name), setting)
    except ScheduleError as error:
        raise ScenarioError.at(Place(f"schedule {name}"), str(error).removeprefix(f"{name}: ")) from None


def generated(schedule: Schedule, setting: Setting) -> Chosen:
    """Raises ScheduleError for a setting that the schedule does not have, ScenarioError for what none has."""
    pipeline, micro_batches = _sizes(setting)
    chunks = schedule.least_chunks if setting.chunks is None else setting.chunks
    segments = setting.segments or (2 if schedule.takes_segments else 1)
    whole = replace(setting, chunks=chunks, segments=segments)
    times = _pass_times(schedule, whole)
    forward, backward, weight = (float(times[kind].mean()) for kind in "FBW")
    orders = schedule.generate(
        pipeline, micro_batches, setting.chunks, setting.group, setting.segments,
        Times(forward, backward, weight, setting.latency),
        memory_limit(setting.memory_limit, setting, chunks_per_micro_batch(schedule, chunks, segments)),
        setting.weight_share)
    if setting.recompute:
        orders = with_recompute(orders, setting.recompute)
    if setting.offload:
        orders = with_offload(orders, setting.offload)
    return Chosen(schedule, orders, whole, times, notes=_notes(orders, setting))


def searched(setting: Setting) -> Chosen:
    """The best order found, of two chunks a rank in each placement and of one unless the setting says how many.

    Times of a search are of stages: those of micro-batches count by their mean, and those of ranks only say the
    stages' for one chunk a rank. Raises ScheduleError for a limit that no order keeps, ScenarioError for times.
    """
    from placement.schedules.search.auto import auto
    from placement.schedules.search.bounds import lower_bound_s
    from placement.schedules.search.problem import problem_of

    pipeline, micro_batches = _sizes(setting)
    for option, given in (("--group", setting.group), ("--segments", setting.segments),
                          ("--recompute", setting.recompute or None), ("--offload", setting.offload or None)):
        if given is not None:
            raise ScenarioError.at(Place(option), "a search has no use for it")
    of_ranks = any(times.ndim and len(times) == pipeline for times in setting.times.values())
    if of_ranks and (setting.chunks or 1) > 1:
        stages = pipeline * int(setting.chunks or 1)
        raise ScenarioError.at(Place("--chunks"), f"a search over {setting.chunks} chunks a rank needs the times of "
                                                  f"all {stages} stages, not of {pipeline} ranks")
    found: list[tuple[Found, Setting, dict[str, Array]]] = []
    refused = None
    for chunks in [setting.chunks] if setting.chunks else [1] if of_ranks else [2, 1]:
        whole = replace(setting, chunks=chunks, segments=1)
        times = _pass_times(schedules.get("interleaved-1f1b" if chunks > 1 else "1f1b"), whole)
        of_stages: dict[str, Any] = {
            name: times[kind].mean(axis=1) if times[kind].ndim == 2 else times[kind]
            for kind, name in (("F", "forward_s"), ("B", "backward_s"), ("W", "weight_s"))}
        request = Request(pipeline, micro_batches, chunks, times=Times(latency_s=setting.latency),
                          memory_limit=memory_limit(setting.memory_limit, setting, chunks),
                          weight_share=setting.weight_share)
        try:
            problem = problem_of(request, setting.objective, looped, **of_stages)
            if found and lower_bound_s(problem) >= found[0][0].cost_s:
                continue  # one chunk a rank, which has one placement, cannot be better
            found.append((auto(request, setting.objective, **of_stages), whole, times))
        except ScheduleError as error:
            refused = refused or error
    if refused and not found:
        raise refused
    best, whole, times = min(found, key=lambda one: one[0].cost_s)
    bound = min(best.cost_s, *(one.bound_s for one, _, _ in found))
    facts = {"found": best.name, "objective": best.objective, "cost": best.cost_s, "bound": bound,
             "gap": 1 - bound / best.cost_s if best.cost_s else 0.0,
             "proof": "optimal" if best.cost_s <= bound * (1 + ROUNDING) else "none"}
    return Chosen(best.schedule, best.orders, whole, times, facts, _notes(best.orders, setting))


def _sizes(setting: Setting) -> tuple[int, int]:
    for option, value in (("--stages", setting.pipeline), ("--microbatches", setting.micro_batches)):
        if value is None:
            raise ScenarioError.at(Place(option), "is needed: the order follows from it")
    pipeline, micro_batches = int(setting.pipeline or 0), int(setting.micro_batches or 0)
    passes = 3 * pipeline * micro_batches * (setting.chunks or 1) * (setting.segments or 1)
    if passes > MOST_PASSES:
        what = f"about {passes:,} passes are more than the {MOST_PASSES:,} that are played"
        raise ScenarioError.at(Place("--microbatches"), f"{what}; fewer ranks, micro-batches or chunks would do")
    return pipeline, micro_batches


def _from_file(file: str, case: str, setting: Setting) -> Chosen:
    place = Place(file)
    text = read_text(Path(file), place)
    try:
        found = read_orders(text, Path(file).name, case, setting.pipeline, setting.micro_batches)
    except OrderFileError as error:
        raise ScenarioError.at(Place(file, error.line, error.column), str(error)) from None
    wanted = {"--stages": (setting.pipeline, found.pipeline), "--chunks": (setting.chunks, found.chunks),
              "--microbatches": (setting.micro_batches, found.micro_batches)}
    for option, (asked, there) in wanted.items():
        if asked not in (None, there):
            raise ScenarioError.at(place, f"its order is for {option} {there} (got {asked})")
    for option, given in (("--group", setting.group), ("--segments", setting.segments),
                          ("--recompute", setting.recompute or None), ("--offload", setting.offload or None)):
        if given is not None:
            raise ScenarioError.at(place, f"an order from a file has no {option}")
    whole = replace(setting, pipeline=found.pipeline, micro_batches=found.micro_batches, chunks=found.chunks,
                    segments=1)
    return Chosen(found.schedule, found.orders, whole, _pass_times(found.schedule, whole),
                  notes=(*found.notes, *_notes(found.orders, setting)), file=file)


def _pass_times(schedule: Schedule, whole: Setting) -> dict[str, Array]:
    """Passes of S and T are of a rank and micro-batch, all others of a chunk."""
    pipeline, micro_batches, chunks, segments = (
        int(one or 1) for one in (whole.pipeline, whole.micro_batches, whole.chunks, whole.segments))
    if not schedule.accepts_chunks(chunks):  # generate() says which it accepts
        chunks = schedule.least_chunks
    given = {**whole.times, "R": whole.times.get("R", whole.times["F"])}
    return {
        kind: times if kind in "ST" else pass_times(
            times, OPTIONS.get(kind, f"--pass {kind}"), schedule, pipeline, chunks, segments, micro_batches)
        for kind, times in given.items()
    }


def _notes(orders: Orders, setting: Setting) -> tuple[str, ...]:
    """Kinds of pass whose time nobody gave."""
    kinds = {one.kind for order in orders for one in order} - set(setting.times) - {"R"}
    return tuple(f"{kind} passes take no time: --pass {kind}=TIME gives one" for kind in sorted(kinds))
