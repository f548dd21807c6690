"""A step of sequences of unequal length, played: rings of ranks that start together, pipelines that go by turns.

No two ranks need have the same work here, so every data x context rank of a stage is a rank of the program. What a
reader is shown of them (passes, memory) is the fullest rank of each stage and some ranks from the idlest to the
busiest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from costmodel.operators import model_flops_per_token
from placement import context_groups, schedules
from placement.context_groups import Floats, slots
from placement.hybrid_data import Cut, cut, rank_seconds
from placement.hybrid_step import Once, assembled, hop_s, once, peak_activations, turns_s
from placement.memory import resident_bytes
from placement.passes import Setting
from placement.sequences import drawn
from placement.step import Step
from simulator.engine import static
from simulator.inputs import TrainingInputs
from simulator.program import COMPUTE, ProgramBuilder
from simulator.timeline import Timeline
from simulator.training import Lowered

SHOWN = 8  # ranks whose passes a reader sees


def lengths_of(inputs: TrainingInputs) -> tuple[int, ...]:
    """The sequences of one step, drawn by the seed; equal ones where the workload has no law of lengths."""
    if inputs.lengths is None:
        return (inputs.sequence,) * inputs.global_batch
    return drawn(inputs.lengths, inputs.sequence * inputs.global_batch, inputs.sequence, inputs.seed)


def flops_per_token(inputs: TrainingInputs) -> float:
    """Model FLOPs of the mean token of the step."""
    if inputs.lengths is None:
        return float(model_flops_per_token(inputs.model, inputs.sequence))
    lengths = np.array(lengths_of(inputs), dtype=float)
    return float((model_flops_per_token(inputs.model, lengths) * lengths).sum() / lengths.sum())


@dataclass(frozen=True)
class HybridStep:
    """A step with its cut; `lowered` and `timeline` where it was played as events."""

    step: Step
    of: Cut
    policy: str
    lowered: Lowered | None = None
    timeline: Timeline | None = None

    @cached_property
    def compute_s(self) -> Floats:
        """[ranks]: seconds of work without bare sends and waiting, on the stage that works most ("valid compute")."""
        stages = [rank_seconds(self.of, stage) for stage in range(len(self.of.costs))]
        found = [sum((v for k, v in one.items() if k != "context_communication"), np.zeros(1)) for one in stages]
        return np.asarray(max(found, key=lambda one: float(one.sum())))

    @cached_property
    def document(self) -> dict[str, Any]:
        """What `whatif run --json` says of it under "sequences"."""
        of = self.of
        lengths = np.array([length for one in of.micro_batches for length in one.lengths])
        ranks_of = np.array([one.degree for one in of.micro_batches])
        per_rank = np.bincount(np.concatenate([one.ranks for one in of.placed]), minlength=of.mesh.ranks)
        passes_s = sum((cost.forward_s + cost.backward_s for cost in of.costs), np.zeros(1))
        sends_s = sum((cost.ring_s for cost in of.costs), np.zeros(1))
        rings = ranks_of > 1
        return {
            "policy": self.policy,
            "count": len(lengths),
            "mean_tokens": float(lengths.mean()),
            "longest_tokens": int(lengths.max()),
            "capacity_tokens": of.mesh.capacity,
            "micro_batches": len(of.micro_batches),
            "micro_batches_per_rank": [int(per_rank.min()), int(per_rank.max())],
            "ranks_of_a_ring": [int(ranks_of.min()), int(ranks_of.max())],
            "offloaded_share": [float(min(one.offloaded for one in of.micro_batches)),
                                float(max(one.offloaded for one in of.micro_batches))],
            "compute_per_rank_s": {"min": float(self.compute_s.min()), "mean": float(self.compute_s.mean()),
                                   "max": float(self.compute_s.max()), "std": float(self.compute_s.std())},
            # of the passes in which a ring takes part: sends over the whole pass, hidden or not
            "ring_share": float(np.median(sends_s[rings] / passes_s[rings])) if rings.any() else 0.0,
        }

    @property
    def notes(self) -> list[dict[str, Any]]:
        """Assumptions that replace those of equal ranks."""
        found, of = self.document, self.of
        spread, mean = found["compute_per_rank_s"], found["mean_tokens"]
        text = context_groups.get(self.policy).text
        rows = [
            ("balance", f"{spread['min']:.3g} to {spread['max']:.3g} s of work a rank, mean {spread['mean']:.3g} s, "
             f"deviation {spread['std']:.3g} s", "ranks run unequal sequences; equal speed, no failures", "scope"),
            ("plan.context_groups", self.policy, f"{text}; rings of {found['ranks_of_a_ring'][0]:,} to "
             f"{found['ranks_of_a_ring'][1]:,} of {of.mesh.ranks:,} ranks, {of.mesh.capacity:,} tokens a rank",
             "arXiv 2502.21231"),
            ("workload.lengths", f"{found['count']:,} sequences", f"drawn by the seed: mean {mean:,.0f} tokens, "
             f"longest {found['longest_tokens']:,}; other seeds give other steps", "the scenario"),
            ("loss", "per token", "gradients are summed over tokens and divided by the tokens of the global batch, so "
             "that they are those of plain data parallelism", "arXiv 2502.21231"),
        ]
        return [{"key": key, "value": value, "text": said, "source": source} for key, value, said, source in rows]


def hybrid(inputs: TrainingInputs, setting: Setting) -> HybridStep:
    """The step of the inputs' sequences, in closed form or as events. Raises PlanError where it is not played."""
    policy = inputs.plan.context_groups
    of = cut(setting, lengths_of(inputs), policy, inputs.plan.selective_offload)
    between = once(setting, of)
    if inputs.fidelity == "analytic":
        return HybridStep(assembled(setting, of, between, turns_s(setting, of)), of, policy)
    lowered = lower(setting, of, between)
    timeline = static.play(lowered.program)
    apart_s = max(sum(one.seconds.values()) for one in between)
    step = assembled(setting, of, between, timeline.makespan_s - apart_s)
    return HybridStep(step, of, policy, lowered, timeline)


class _Lowering:
    """Ranks of the program: rank r of stage p is r x stages + p, after the fullest rank of each stage is swapped to
    the front, so that the first ranks are what a reader is shown of memory."""

    def __init__(self, setting: Setting, of: Cut, between: tuple[Once, ...]) -> None:
        self.setting, self.of, self.between = setting, of, between
        self.stages, self.ranks = len(of.costs), of.mesh.ranks
        self.build = ProgramBuilder()
        self.passes: list[tuple[int, int, str, int, int]] = []
        self.last = np.full((self.stages, self.ranks), -1, dtype=np.int64)  # task before, on each compute stream
        self.hops = hop_s(setting, of)
        self.fullest = [int(peak_activations(of, stage)[0].argmax()) for stage in range(self.stages)]
        shown = np.linspace(0, self.ranks - 1, min(SHOWN, self.ranks)).astype(int)
        busy_s = sum((np.asarray(v) for v in rank_seconds(of, 0).values()), np.zeros(self.ranks))
        self.shown = {int(rank): at for at, rank in enumerate(np.argsort(busy_s, kind="stable")[shown])}
        self.profiles = [
            {kind: [self.build.profile({name: float(v[i]) for name, v in seconds.items()})
                    for i in range(len(of.micro_batches))]
             for kind, seconds in (("F", cost.forward), ("B", cost.backward))}
            for cost in of.costs
        ]

    def stream(self, stage: int, rank: int, name: str = COMPUTE) -> int:
        return self.build.stream(self.number(stage, rank), name, float(self.setting.plan.tensor))

    def number(self, stage: int, rank: int) -> int:
        swapped = {0: self.fullest[stage], self.fullest[stage]: 0}.get(rank, rank)
        return swapped * self.stages + stage

    def run(self) -> Lowered:
        of, build = self.of, self.build
        turn_of = slots(of.placed, self.ranks)
        count = int(turn_of.max()) + 1
        members = [[one for one, turn in zip(of.placed, turn_of, strict=True) if turn == t] for t in range(count)]
        communication = build.profile({"data_communication": 1.0})
        for stage in range(self.stages):
            for rank in range(self.ranks):
                gather_s = self.between[stage].gather_s
                self.last[stage, rank] = build.task(self.stream(stage, rank), "gather", communication, gather_s)
        ended: dict[tuple[str, int, int], dict[int, int]] = {}
        for stage, order in enumerate(schedules.get("1f1b").generate(self.stages, count, 1)):
            for step in order:
                for one in members[step.micro_batch]:
                    ended[step.kind, stage, one.micro_batch] = self.ring(stage, step.kind, one)
        self.connect(ended)
        self.update()
        self.memory(ended)
        return Lowered(build.build(), tuple(self.passes), len(of.micro_batches))

    def ring(self, stage: int, kind: str, one: context_groups.Placed) -> dict[int, int]:
        """The tasks of one pass by rank; of several ranks they start together, when the last one is free."""
        cost, number = self.of.costs[stage], one.micro_batch
        seconds = float((cost.forward_s if kind == "F" else cost.backward_s)[number])
        tasks: dict[int, int] = {}
        after: list[int] = []
        if len(one.ranks) > 1:
            meeting = self.build.stream(self.number(stage, one.ranks[0]), f"ring {kind}{number}")
            free = [int(self.last[stage, rank]) for rank in one.ranks]
            after = [self.build.task(meeting, f"ring {kind}{number}", self.profiles[stage][kind][number], 0.0, free)]
        for rank in one.ranks:
            task = self.build.task(
                self.stream(stage, rank), f"{kind}{number}", self.profiles[stage][kind][number], seconds, after)
            tasks[rank], self.last[stage, rank] = task, task
            if stage == 0 and rank in self.shown:
                self.passes.append((task, self.shown[rank], kind, 0, number))
        return tasks | ({-1: after[0]} if after else {})

    def connect(self, ended: Mapping[tuple[str, int, int], Mapping[int, int]]) -> None:
        """Forward passes wait for the stage before, backward passes for the stage behind."""
        for (kind, stage, number), tasks in ended.items():
            source = ended.get((kind, stage - 1 if kind == "F" else stage + 1, number))
            if source is None:
                continue
            first = [tasks[-1]] if -1 in tasks else list(tasks.values())
            for task in first:
                for rank, before in source.items():
                    if rank >= 0:
                        self.build.add_dependency(task, before, float(self.hops[number]))

    def update(self) -> None:
        """The reduction behind the last pass of all, then the optimizer and what spreads its result."""
        build = self.build
        meeting = build.stream(0, "all ranks")
        communication, optimizer = build.profile({"data_communication": 1.0}), build.profile({"optimizer": 1.0})
        hidden = build.profile({"contention": 1.0})
        met = build.task(meeting, "all ranks", communication, 0.0, [int(task) for task in self.last.ravel()])
        for stage, between in enumerate(self.between):
            for rank in range(self.ranks):
                stream = self.stream(stage, rank)
                build.task(stream, "reduce", communication, between.reduce_s, [met])
                build.task(stream, "beside", hidden, between.contention_s)
                build.task(stream, "optimizer", optimizer, between.optimizer_s)
                if between.spread_s:
                    build.task(stream, "spread parameters", communication, between.spread_s)

    def memory(self, ended: Mapping[tuple[str, int, int], Mapping[int, int]]) -> None:
        """Of the fullest rank of each stage."""
        for stage, rank in enumerate(self.fullest):
            place, cost = self.number(stage, rank), self.of.costs[stage]
            for state, size_bytes in resident_bytes(self.setting, [self.of.units[stage]]).items():
                self.build.resident(place, "hbm", state, float(size_bytes))
            for (kind, of_stage, number), tasks in ended.items():
                if of_stage != stage or rank not in tasks:
                    continue
                held, working = float(cost.held_bytes[number]), float(cost.working_bytes[number])
                taken, given = (held, 0.0) if kind == "F" else (working, -held - working)
                self.build.memory(tasks[rank], "start", place, "hbm", "activations", taken)
                self.build.memory(tasks[rank], "end", place, "hbm", "activations", given)


def lower(setting: Setting, of: Cut, between: tuple[Once, ...]) -> Lowered:
    """The program of a step. `Lowered.passes` are those of the ranks shown, numbered from the idlest."""
    return _Lowering(setting, of, between).run()
