"""The step of sequences of unequal length in closed form: who waits for whom, time by cause, and memory.

A ring starts when the last of its ranks is free. Under a pipeline all ranks go by the same turns (1F1B over turns; a
rank without a micro-batch in a turn leaves it out), so that a ring stands at the same place in the order of all its
ranks; a wait for one long micro-batch then comes back at every stage, which is why imbalance between data ranks costs
a pipeline more (ByteScale, arXiv 2502.21231).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placement import schedules
from placement.context_groups import Floats, Ints, Placed, slots
from placement.hops import wire_s
from placement.hybrid_data import Cut, one_by_one, rank_seconds
from placement.memory import resident_bytes
from placement.passes import Seconds, Setting, add
from placement.plan import PlanError
from placement.state_traffic import ChunkTraffic, chunks_with_traffic, norm_reduction_s, optimizer_s
from placement.step import Step


@dataclass(frozen=True)
class Once:
    """What a step does once, the same on all ranks of a stage: seconds before the passes and behind them."""

    gather_s: float
    reduce_s: float  # with the global gradient norm
    contention_s: float  # of what is hidden behind the first and the last pass
    optimizer_s: float
    spread_s: float  # behind the update

    @property
    def seconds(self) -> Seconds:
        return {"data_communication": self.gather_s + self.reduce_s + self.spread_s, "contention": self.contention_s,
                "optimizer": self.optimizer_s}


def once(setting: Setting, of: Cut) -> tuple[Once, ...]:
    """[stages]. Raises PlanError for a sharding that gathers or reduces within passes: ranks that run unequal numbers
    of passes would wait for one another in every layer."""
    return _once_of(setting, _chunks(setting), of)


def _chunks(setting: Setting) -> tuple[ChunkTraffic, ...]:
    chunks = chunks_with_traffic(setting)
    if any(chunk.within_passes for chunk in chunks):
        raise PlanError("the sharding gathers or reduces within every pass, which ranks with unequal sequences cannot "
                        "do together; zero-1 and ddp do it once a step")
    return chunks


def _once_of(setting: Setting, chunks: Sequence[ChunkTraffic], of: Cut) -> tuple[Once, ...]:
    return tuple(
        _once(setting, chunk, float(cost.forward_s.min()), float(cost.backward_s.min()))
        for chunk, cost in zip(chunks, of.costs, strict=True)
    )


def _once(setting: Setting, chunk: ChunkTraffic, forward_s: float, backward_s: float) -> Once:
    """Overlapped, the first layer's gather and the last one's reduction show, and what the shortest pass leaves."""
    gathers = float(sum(flow.step_gather_s for flow in chunk.traffic))
    reductions = float(sum(flow.step_reduce_s for flow in chunk.traffic))
    bare_gather_s, bare_reduce_s = gathers, reductions
    if "data" in setting.stack.overlap:
        first = chunk.traffic[0]
        bare_gather_s = max(float(first.step_gather_s), gathers - forward_s)
        bare_reduce_s = max(float(first.step_reduce_s), reductions - backward_s)
    hidden_s = gathers + reductions - bare_gather_s - bare_reduce_s
    norm_s = float(norm_reduction_s(setting))
    return Once(bare_gather_s, bare_reduce_s + norm_s, setting.constants.overlap_cost * hidden_s,
                float(optimizer_s(setting, [chunk.whole])), float(chunk.spread_s))


def turns_s(setting: Setting, of: Cut) -> float:
    """Seconds from the first pass to the last one of all ranks and stages."""
    stages = len(of.costs)
    turns = _turns(of)
    hops = hop_s(setting, of)
    ready_s = np.zeros((stages, of.mesh.ranks))
    done_s = {kind: np.full((stages, len(turns), of.mesh.ranks), np.nan) for kind in "FB"}
    orders = schedules.get("1f1b").generate(stages, len(turns), 1)
    places = [{(one.kind, one.micro_batch): place for place, one in enumerate(order)} for order in orders]
    position = [0] * stages
    while any(position[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            if position[stage] == len(orders[stage]):
                continue
            step = orders[stage][position[stage]]
            before = stage - 1 if step.kind == "F" else stage + 1
            inside = 0 <= before < stages
            if inside and position[before] <= places[before][step.kind, step.micro_batch]:
                continue
            cost, turn = of.costs[stage], turns[step.micro_batch]
            taken_s = cost.forward_s if step.kind == "F" else cost.backward_s
            start_s = np.maximum.reduceat(ready_s[stage, turn.ranks], turn.first)
            if inside:
                arrived_s = np.maximum.reduceat(done_s[step.kind][before, step.micro_batch, turn.ranks], turn.first)
                start_s = np.maximum(start_s, arrived_s + hops[turn.numbers])
            ready_s[stage, turn.ranks] = np.repeat(start_s + taken_s[turn.numbers], turn.degrees)
            done_s[step.kind][stage, step.micro_batch] = ready_s[stage]
            position[stage] += 1
    return float(ready_s.max())


@dataclass(frozen=True)
class _Turn:
    """Micro-batches that run at the same time, on ranks of their own: number and ring of each, and the ranks of all,
    one ring after another, of which each ring's `first` is a place."""

    numbers: Ints
    degrees: Ints
    ranks: Ints
    first: Ints


def _turns(of: Cut) -> list[_Turn]:
    turn_of = slots(of.placed, of.mesh.ranks)
    members: list[list[Placed]] = [[] for _ in range(int(turn_of.max()) + 1)]
    for turn, one in zip(turn_of.tolist(), of.placed, strict=True):
        members[turn].append(one)
    found = []
    for together in members:
        degrees = np.array([len(one.ranks) for one in together])
        ranks = np.array([rank for one in together for rank in one.ranks])
        numbers = np.array([one.micro_batch for one in together])
        found.append(_Turn(numbers, degrees, ranks, np.cumsum(degrees) - degrees))
    return found


def hop_s(setting: Setting, of: Cut) -> Floats:
    """[micro-batches]: seconds from a pass on one stage to the same micro-batch's pass on the next one."""
    tokens = np.array([one.tokens / one.degree for one in of.micro_batches])
    return np.asarray(wire_s(one_by_one(setting, tokens), 0)) + 0.0 * tokens


def peak_activations(of: Cut, stage: int) -> tuple[Floats, Floats]:
    """(device, host) bytes, [ranks]: the most that 1F1B keeps, as many turns as there are stages from here on."""
    turn_of, cost, ranks = slots(of.placed, of.mesh.ranks), of.costs[stage], of.mesh.ranks
    window = len(of.costs) - stage
    peaks = []
    for size in (cost.held_bytes, cost.host_bytes):
        grid = np.zeros((int(turn_of.max()) + 1 + window, ranks))
        for turn, one in zip(turn_of.tolist(), of.placed, strict=True):
            grid[turn, list(one.ranks)] = size[one.micro_batch]
        sums = np.cumsum(np.vstack([np.zeros((1, ranks)), grid]), axis=0)
        peaks.append((sums[window:] - sums[:-window]).max(axis=0))
    return peaks[0] + cost.working_bytes.max(), peaks[1]


def assembled(setting: Setting, of: Cut, between: Sequence[Once], passes_s: float) -> Step:
    """The step of a cut whose passes take `passes_s` from the first to the last: time by cause, and memory of the
    fullest rank of every stage."""
    step_time_s = passes_s + max(sum(one.seconds.values()) for one in between)
    waiting = "bubble" if len(between) > 1 else "imbalance"  # a pipeline's waits for stages and for ranks are one
    by_stage: list[Seconds] = []
    peaks, states, host = [], [], []
    for stage, alone in enumerate(between):
        seconds: Seconds = {name: float(value.mean()) for name, value in rank_seconds(of, stage).items()}
        add(seconds, alone.seconds)
        seconds[waiting] = step_time_s - sum(seconds.values())
        by_stage.append({name: value for name, value in seconds.items() if value})
        device, away = peak_activations(of, stage)
        resident = {name: float(size) for name, size in resident_bytes(setting, [of.units[stage]]).items()}
        states.append({**resident, "activations": float(device.max())})
        peaks.append(sum(states[-1].values()))
        host.append(float(away.max()))
    mean: Seconds = {}
    for parts in by_stage:
        add(mean, parts, 1.0 / len(by_stage))
    return Step(step_time_s, mean, tuple(by_stage), tuple(peaks), tuple(states), tuple(host))


def step_times_s(setting: Setting, cuts: Sequence[Cut]) -> list[float]:
    """[cuts]: seconds of the step of each and nothing else of it. Raises PlanError as `once`."""
    chunks = _chunks(setting)
    return [turns_s(setting, of) + max(sum(one.seconds.values()) for one in _once_of(setting, chunks, of))
            for of in cuts]


def hybrid_step(setting: Setting, of: Cut) -> Step:
    """The step of a cut, without a program."""
    return assembled(setting, of, once(setting, of), turns_s(setting, of))
