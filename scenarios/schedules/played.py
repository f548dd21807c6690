"""A schedule played on its own: the document that `whatif schedule show --json` prints."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from placement.schedules.evaluate import Evaluation, play
from placement.schedules.files import text_of
from placement.schedules.layout import Layout, durations, layout
from placement.schedules.order import ScheduleError
from scenarios.errors import Place, ScenarioError
from scenarios.schedules.choose import Chosen
from scenarios.schedules.settings import described, memory_limit

SAME = 1e-9  # of the value, between a law and what was played


def document(chosen: Chosen) -> dict[str, Any]:
    """Times are in the setting's unit; `peak_activations` counts chunks from F to their last backward pass, `memory` is
    in micro-batches of a rank's activations with the part that B gives back gone.

    Raises ScenarioError for an order that can never be played.
    """
    schedule, setting = chosen.schedule, chosen.setting
    try:
        found = layout(chosen.orders, schedule, sends=setting.transfer > 0)
        seconds = _seconds(chosen)
        whole = _play(chosen, found, seconds, None)
        weighed = _play(chosen, found, seconds, _changes(chosen, found))
    except ScheduleError as error:
        raise ScenarioError.at(Place(chosen.file or f"schedule {schedule.name}"), str(error)) from None
    if not whole.makespan_s > 0:
        raise ScenarioError.at(Place("--forward"), "no pass takes any time; give one of them a time above 0")
    per_micro_batch = chosen.chunks_per_micro_batch
    _check_limit(chosen, weighed)
    starts, ends = _drawn(found, seconds, whole)
    memory = [{"times": when, "held": held / per_micro_batch} for when, held in weighed.memory]
    peak_memory = weighed.peak / per_micro_batch
    size = setting.activation_bytes
    return {
        "name": schedule.name, "title": schedule.title, "source": schedule.source, "law": schedule.law,
        "settings": {**described(setting), "pass_times": dict(chosen.times)},
        "makespan": whole.makespan_s, "span": whole.span_s, "busy": whole.busy_s,
        "bubble_rate_makespan": whole.bubble_fraction, "bubble_rate_span": whole.span_bubble_fraction,
        "peak_activations": whole.peak, "peak_activations_micro_batches": whole.peak / per_micro_batch,
        "peak_memory_micro_batches": peak_memory,
        "peak_memory_bytes": None if size is None else peak_memory * size,
        "p2p_volume": _p2p_volume(found), "parameter_copies": schedule.routes,
        "laws": _laws(chosen, whole), "notes": list(chosen.notes), **chosen.facts,
        "splits_backward": schedule.splits_backward, "routes": schedule.routes, "barriers": schedule.barriers,
        "stages_of_rank": _stages_of_rank(chosen),
        "order": [[text_of(one) for one in order] for order in chosen.orders],
        "start": starts, "end": ends, "memory": memory,
    }


def order_file(shown: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a document that `placement.schedules.files` reads back."""
    return {key: shown[key] for key in ("name", "stages_of_rank", "routes", "barriers", "order")}


def _seconds(chosen: Chosen) -> dict[str, Any]:
    times = dict(chosen.times)
    if not chosen.schedule.splits_backward:
        times["B"] = np.add(times["B"], times["W"])
    return times


def _play(chosen: Chosen, found: Layout, seconds: Mapping[str, Any], memory: Mapping[str, Any] | None) -> Evaluation:
    setting = chosen.setting
    return play(found, chosen.schedule, seconds, setting.latency, memory, setting.barrier, setting.transfer)


def _changes(chosen: Chosen, found: Layout) -> dict[str, Any]:
    """What each kind of pass changes, in chunk activations: B gives its part back where W comes later; a chunk that is
    computed again is held from R on."""
    share = chosen.setting.weight_share if chosen.schedule.splits_backward else 0.0
    forward = np.ones((found.stages, found.micro_batches))
    if "R" in found.index:
        forward[(found.index["R"][:found.stages] >= 0)] = 0.0
    return {"F": forward, "R": 1.0, "B": share - 1.0, "W": -share, "O": -1.0, "L": 1.0}


def _check_limit(chosen: Chosen, weighed: Evaluation) -> None:
    """Schedules that do not look at the limit may hold more: raises ScenarioError with rank, pass and least limit."""
    per_micro_batch = chosen.chunks_per_micro_batch
    limit = memory_limit(chosen.setting.memory_limit, chosen.setting, per_micro_batch)
    if limit is None or weighed.peak.max() <= limit * (1 + SAME):
        return
    rank = int(np.argmax(weighed.peak > limit * (1 + SAME)))
    when, held = weighed.memory[rank]
    at = when[int(np.argmax(held > limit * (1 + SAME)))]
    first = text_of(chosen.orders[rank][int(np.searchsorted(weighed.start_s[rank], at))])
    raise ScenarioError.at(Place("--memory-limit"), (
        f"{chosen.schedule.name} holds more than {limit / per_micro_batch:g} micro-batches on rank {rank} from pass "
        f"{first} on; the least limit that its order keeps is {weighed.peak.max() / per_micro_batch:g}"))


def _drawn(found: Layout, seconds: Mapping[str, Any], whole: Evaluation) -> tuple[list[Any], list[Any]]:
    """Start and end of every pass, those of one slot one after the other."""
    pass_s = durations(found, dict(seconds))
    starts, ends = np.concatenate(whole.start_s), np.concatenate(whole.end_s)
    before = np.cumsum(pass_s) - pass_s
    opens = np.maximum.accumulate(np.where(np.diff(found.task, prepend=-1) > 0, np.arange(len(pass_s)), 0))
    starts = starts + before - before[opens]
    ends = np.minimum(starts + pass_s, ends)
    cuts = found.offsets[1:-1]
    return np.split(starts, cuts), np.split(ends, cuts)


def _stages_of_rank(chosen: Chosen) -> list[list[int]]:
    pipeline, chunks = len(chosen.orders), int(chosen.setting.chunks or 1)
    return [[chosen.schedule.stage_of(rank, chunk, pipeline, chunks) for chunk in range(chunks)]
            for rank in range(pipeline)]


def _p2p_volume(found: Layout) -> float | None:
    """Boundaries that a micro-batch crosses between ranks, relative to one stage a rank; None for a single rank."""
    if found.ranks == 1:
        return None
    ranks = found.rank_of_node[:found.stages]
    return float((np.diff(ranks) != 0).sum() / (found.ranks - 1))


def _laws(chosen: Chosen, whole: Evaluation) -> dict[str, Any]:
    """Closed forms beside what was played, where the schedule has them: {law, played, agrees}.

    A bubble law is for equal stages and transfers that take no time, and has a domain that its docstring says; outside
    it `agrees` is false and the played value holds. A peak law agrees where no rank holds more and the worst as much.
    Orders with chunks recomputed or copied have none.
    """
    schedule, setting = chosen.schedule, chosen.setting
    laws: dict[str, Any] = {}
    if setting.recompute or setting.offload:
        return laws
    p, m, v = int(setting.pipeline or 1), int(setting.micro_batches or 1), int(setting.chunks or 1)
    k = int(setting.segments or 1)
    equal = all(np.ndim(value) == 0 for value in chosen.times.values()) and not setting.transfer
    named = {"group": setting.group, "segments": k}
    if schedule.bubble_s is not None and equal:
        forward, backward, weight = (float(setting.times[kind]) for kind in "FBW")
        law = float(schedule.bubble_s(p, m, v, forward, backward + weight, setting.latency, weight,
                                      **_accepted(schedule.bubble_s, named)))
        played = whole.makespan_s - float(whole.busy_s.max())
        laws["bubble"] = {"law": law, "played": played, "agrees": abs(law - played) <= SAME * whole.makespan_s}
    if schedule.peak_in_flight is not None:
        values = np.broadcast_to(schedule.peak_in_flight(
            p, np.arange(p), m, v, **_accepted(schedule.peak_in_flight, named)), p).astype(float)
        held = bool((whole.peak <= values * (1 + SAME)).all()) and bool(whole.peak.max() == values.max())
        laws["peak_activations"] = {"law": values, "played": whole.peak, "agrees": held}
    return laws


def _accepted(law: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the named arguments that this law takes."""
    known = inspect.signature(law).parameters
    return {key: value for key, value in named.items() if key in known}
