"""Measured beside simulated: what `simulator.real.worker` wrote of every rank against the step as it was played.

A result of a rank is a mapping: rank, passes [{step, kind, chunk, micro_batch, start_s, wall_s, cpu_s, device_s}],
steps [{step, wall_s, cpu_s, loss}], communication_wall_s, peak_memory_bytes {total, ...}, checkpoint, busy, versions.
Compute is told by CPU time on a CPU, which other processes do not lengthen, and by events on a GPU. Ranks that do equal
work (tensor and data ranks of a stage) are one row: the mean of their times, the most of their memory.
error = simulated / measured - 1; spread = (75 % - 25 % quantile) / median over the steps.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Any

from placement.checkpoint import saved_bytes, stall_s
from placement.pipeline import stages_of_rank
from placement.state_traffic import chunks_with_traffic
from simulator.predict import Played
from simulator.real.layouts import is_fully_sharded

Rank = Mapping[str, Any]
KINDS = ("F", "B", "W", "optimizer")
WALL = "wall clock: judged on a quiet machine only"


@dataclass(frozen=True)
class Quantity:
    """One figure simulated and measured, its `unit` "s", "B" or "%"; `unjudged`: why no limit is put to its error."""

    key: str
    label: str
    unit: str
    simulated: float
    measured: float
    spread: float | None = None
    unjudged: str = ""

    @property
    def error(self) -> float | None:
        """simulated / measured - 1; None where nothing was measured."""
        return self.simulated / self.measured - 1.0 if self.measured else None

    def document(self) -> dict[str, Any]:
        return {"key": self.key, "label": self.label, "unit": self.unit, "simulated": self.simulated,
                "measured": self.measured, "error": self.error, "spread": self.spread, "judged": not self.unjudged,
                "reason": self.unjudged}


def compared(played: Played, ranks: Sequence[Rank], quiet: bool) -> list[Quantity]:
    """Every quantity that both have. `quiet`: nothing else ran, so that wall clock on a CPU can be judged."""
    wall = "" if quiet or ranks[0]["device"] != "cpu" else WALL
    return [*_step(played, ranks, wall), *_passes(played, ranks), *_waiting(played, ranks, wall),
            *_memory(played, ranks), *_checkpoint(played, ranks)]


def losses(ranks: Sequence[Rank]) -> list[float]:
    """The loss of every step, from the first rank that has one."""
    for rank in ranks:
        found = [step["loss"] for step in rank["steps"]]
        if found and None not in found:
            return [float(loss) for loss in found]
    return []


def stage_of(played: Played, rank: int) -> int:
    """The pipeline stage of a rank: pipeline is the outermost axis (placement.plan)."""
    plan = played.setting.plan
    return rank // int(plan.tensor * plan.context * plan.data)


def spread_of(values: Sequence[float]) -> float | None:
    """(75 % - 25 % quantile) / median; None of fewer than two values."""
    if len(values) < 2 or not median(values):
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / median(values)


def _step(played: Played, ranks: Sequence[Rank], wall: str) -> list[Quantity]:
    longest = [max(step["wall_s"] for step in steps) for steps in zip(*(rank["steps"] for rank in ranks), strict=True)]
    return [Quantity("step_time_s", "step time", "s", played.step.step_time_s, median(longest), spread_of(longest),
                     wall)]


# Passes ----------------------------------------------------------------------------------------------


def compute_s(played: Played) -> dict[tuple[int, str], tuple[float, int]]:
    """(stage, kind of pass) -> (seconds of compute in a step, passes), communication of the pass left out."""
    assert played.lowered is not None
    program = played.lowered.program
    share = [sum(part for name, part in profile.items() if _is_compute(name)) for profile in program.profiles]
    seconds: dict[tuple[int, str], float] = defaultdict(float)
    seen: dict[tuple[int, str], set[tuple[int, int]]] = defaultdict(set)
    for task, rank, kind, stage, micro_batch in played.lowered.passes:
        # a recomputation in a pass of its own is part of torch's backward pass
        merged = "B" if kind == "R" else kind
        seconds[rank, merged] += float(program.duration_s[task]) * share[program.profile[task]]
        if kind == merged:
            seen[rank, kind].add((stage, micro_batch))
    for task, label in enumerate(program.label):
        if label == "optimizer":
            key = program.streams[program.stream[task]].rank, label
            seconds[key] += float(program.duration_s[task])
            seen[key].add((0, 0))
    return {key: (seconds[key], len(seen[key])) for key in seconds}


def _is_compute(category: str) -> bool:
    return not category.endswith("communication") and category not in ("latency", "contention", "bubble")


def measured_passes(played: Played, ranks: Sequence[Rank], clock: str) -> dict[tuple[int, str], list[float]]:
    """(stage, kind) -> seconds of a pass, one mean a step over the ranks of the stage."""
    found: dict[tuple[int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rank in ranks:
        stage = stage_of(played, rank["rank"])
        for one in rank["passes"]:
            found[stage, one["kind"]][one["step"]].append(float(one[clock]))
    return {key: [fmean(values) for _, values in sorted(steps.items())] for key, steps in found.items()}


def clock_of(ranks: Sequence[Rank]) -> str:
    """The clock that tells compute: "cpu_s", or "device_s" where the passes ran on a GPU."""
    return "cpu_s" if ranks[0]["device"] == "cpu" else "device_s"


def _passes(played: Played, ranks: Sequence[Rank]) -> list[Quantity]:
    simulated, measured = compute_s(played), measured_passes(played, ranks, clock_of(ranks))
    stages = int(played.setting.plan.pipeline)
    rows, total, whole = [], 0.0, 0.0
    for stage in range(stages):
        for kind in KINDS:
            seconds, count = simulated.get((stage, kind), (0.0, 0))
            steps = measured.get((stage, kind), [])
            if not count or not steps:
                continue
            where = f" of stage {stage}" if stages > 1 else ""
            name = "optimizer step" if kind == "optimizer" else f"pass {kind}"
            total, whole = total + seconds, whole + count * median(steps)
            rows.append(Quantity(f"pass_{kind}_{stage}", f"{name}{where}, compute", "s", seconds / count,
                                 median(steps), spread_of(steps)))
    if not rows:
        return []
    return [Quantity("compute_s", "compute of a step, mean rank", "s", total / stages, whole / stages), *rows]


# Waiting, memory, checkpoint -------------------------------------------------------------------------


def _waiting(played: Played, ranks: Sequence[Rank], wall: str) -> list[Quantity]:
    """Share of the step in which a rank of a pipeline runs no pass; communication that compute waits for."""
    rows = []
    stages = int(played.setting.plan.pipeline)
    if stages > 1:
        idle = [1.0 - busy / length for rank in ranks for busy, length in _busy(rank)]
        assert played.timeline is not None
        timeline = played.timeline
        busy_s = fmean(_passes_s(played, stage) for stage in range(stages))
        rows.append(Quantity("idle_fraction", "share of the step without a pass", "%",
                             1.0 - busy_s / timeline.makespan_s, fmean(idle), spread_of(idle), wall))
    told = [rank["communication_wall_s"] for rank in ranks if rank.get("communication_wall_s") is not None]
    if told:
        exposed = sum(value for name, value in played.step.breakdown_s.items() if name.endswith("communication"))
        rows.append(Quantity("exposed_communication_s", "exposed communication", "s", exposed, fmean(told), None, wall))
    return rows


def _busy(rank: Rank) -> list[tuple[float, float]]:
    """(wall seconds in passes, wall seconds) of every step."""
    inside: dict[int, float] = defaultdict(float)
    for one in rank["passes"]:
        inside[one["step"]] += float(one["wall_s"])
    return [(inside[step["step"]], float(step["wall_s"])) for step in rank["steps"]]


def _passes_s(played: Played, stage: int) -> float:
    """Seconds that the passes and the optimizer of a stage run, communication inside them too."""
    assert played.lowered is not None
    program = played.lowered.program
    inside = sum(float(program.duration_s[task]) for task, rank, *_ in played.lowered.passes if rank == stage)
    return inside + compute_s(played).get((stage, "optimizer"), (0.0, 0))[0]


def _memory(played: Played, ranks: Sequence[Rank]) -> list[Quantity]:
    stages: dict[int, float] = {}
    for rank in ranks:
        peak = rank.get("peak_memory_bytes")
        if peak:
            stage = stage_of(played, rank["rank"])
            stages[stage] = max(stages.get(stage, 0.0), float(peak["total"]))
    many = int(played.setting.plan.pipeline) > 1
    return [Quantity(f"peak_memory_bytes_{stage}", "peak memory" + (f" of stage {stage}" if many else ""), "B",
                     float(played.step.peak_bytes[stage]), measured) for stage, measured in sorted(stages.items())]


def _checkpoint(played: Played, ranks: Sequence[Rank]) -> list[Quantity]:
    told = [(rank["rank"], rank["checkpoint"]) for rank in ranks if rank.get("checkpoint")]
    if not told:
        return []
    setting = played.setting
    chunks = chunks_with_traffic(setting)
    sizes = [saved_bytes(setting, [chunks[number].whole for number in stages_of_rank(setting, rank)])
             for rank in range(int(setting.plan.pipeline))]
    plan = setting.plan  # ranks of a stage that hold different states; replicas are written once
    holders = int(plan.tensor) * (int(plan.data) if is_fully_sharded(plan) else 1)
    return [
        Quantity("checkpoint_bytes", "checkpoint on disk", "B", sum(sizes) * holders,
                 max(float(one["size_bytes"]) for _, one in told), None, "files hold more than the states"),
        Quantity("checkpoint_stall_s", "checkpoint stall", "s", max(stall_s(setting, size) for size in sizes),
                 max(float(one["stall_s"]) for _, one in told), None,
                 "one save, and what ranks tell one another to plan it is not counted"),
    ]


# The verdict -----------------------------------------------------------------------------------------


def failures(rows: Sequence[Quantity], found_losses: Sequence[float], max_error: float | None) -> list[str]:
    """Why the validation failed: losses that are no numbers, and judged errors above `max_error`."""
    said = [] if all(math.isfinite(loss) for loss in found_losses) else ["a loss is not a finite number"]
    if max_error is not None:
        said += [f"{row.label}: error {row.error:+.1%} is beyond {max_error:.0%}" for row in rows
                 if not row.unjudged and row.error is not None and abs(row.error) > max_error]
    return said
