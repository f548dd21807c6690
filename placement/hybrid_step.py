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
from placement.context_groups import Floats, slots
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
    chunks = chunks_with_traffic(setting)
    if any(chunk.within_passes for chunk in chunks):
        raise PlanError("the sharding gathers or reduces within every pass, which ranks with unequal sequences cannot "
                        "do together; zero-1 and ddp do it once a step")
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
    turn_of = slots(of.placed, of.mesh.ranks)
    count = int(turn_of.max()) + 1
    members = [[one for one, turn in zip(of.placed, turn_of, strict=True) if turn == t] for t in range(count)]
    hops = hop_s(setting, of)
    ready_s = np.zeros((stages, of.mesh.ranks))
    done_s = {kind: np.full((stages, count, of.mesh.ranks), np.nan) for kind in "FB"}
    orders = schedules.get("1f1b").generate(stages, count, 1)
    position = [0] * stages
    while any(position[stage] < len(orders[stage]) for stage in range(stages)):
        for stage in range(stages):
            if position[stage] == len(orders[stage]):
                continue
            step = orders[stage][position[stage]]
            before = stage - 1 if step.kind == "F" else stage + 1
            inside = 0 <= before < stages
            if inside and position[before] <= _place(orders[before], step.kind, step.micro_batch):
                continue
            cost = of.costs[stage]
            taken_s = cost.forward_s if step.kind == "F" else cost.backward_s
            for one in members[step.micro_batch]:
                ranks = list(one.ranks)
                start_s = ready_s[stage, ranks].max()
                if inside:
                    arrived_s = done_s[step.kind][before, step.micro_batch, ranks].max()
                    start_s = max(start_s, arrived_s + hops[one.micro_batch])
                ready_s[stage, ranks] = start_s + taken_s[one.micro_batch]
            done_s[step.kind][stage, step.micro_batch] = ready_s[stage]
            position[stage] += 1
    return float(ready_s.max())


def _place(order: Sequence[schedules.Pass], kind: str, micro_batch: int) -> int:
    return next(i for i, one in enumerate(order) if one.kind == kind and one.micro_batch == micro_batch)


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


def hybrid_step(setting: Setting, of: Cut) -> Step:
    """The step of a cut, without a program."""
    return assembled(setting, of, once(setting, of), turns_s(setting, of))
