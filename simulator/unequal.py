"""A step on unequal accelerators: the closed form (`placement.unequal`) and what a reader is told of who got what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from costmodel.stack import Stack
from placement import shares
from placement.memory import DEVICE_OVERHEAD_BYTES
from placement.passes import Setting
from placement.unequal import WAITING, Divided, divided_step
from simulator.inputs import TrainingInputs

UNMEASURED = "no published run on unequal accelerators is among the residuals"
PAPER = "arXiv 2411.01075"


@dataclass(frozen=True)
class Shared:
    """A divided step with its document."""

    divided: Divided
    policy: str

    @property
    def document(self) -> dict[str, Any]:
        """What `whatif run --json` says of it under "shares": one row per group of equal accelerators with equal
        shares, in the order of `breakdown_by_stage` and `memory_by_stage`."""
        found = self.divided
        division, step = found.division, found.step
        rows = []
        for group, seconds, peak, free in zip(division.groups, step.breakdown_by_stage, step.peak_bytes,
                                              step.free_bytes, strict=True):
            accelerator = found.kinds[group.kind].setting.cluster.accelerator
            rows.append({
                "node": found.kinds[group.kind].name,
                "accelerator": accelerator.title,
                "gpus": group.count,
                "samples": group.choice.samples * division.passes,
                "micro_batch": group.choice.micro_batch,
                "micro_batches": group.choice.micro_batches * division.passes,
                "state_share": group.state_share,
                "waiting_s": seconds.get(WAITING, 0.0),
                "peak_memory_bytes": peak + DEVICE_OVERHEAD_BYTES,
                "capacity_bytes": accelerator.memory.capacity_bytes,
                "free_bytes": free,
            })
        return {
            "policy": self.policy,
            "text": shares.get(self.policy).text,
            "accumulation": division.accumulation,
            "largest_state_share": division.largest_share,
            "equal_state_share": 1.0 / found.problem.ranks,
            "groups": rows,
        }

    @property
    def notes(self) -> list[dict[str, Any]]:
        """Assumptions that replace those of equal ranks."""
        found, of = self.document, self.divided.problem
        dealt = "; ".join(f"{row['gpus']} x {row['node']}: {row['samples']} samples ({row['micro_batches']} x "
                          f"{row['micro_batch']}), {row['state_share']:.2%} of the states" for row in found["groups"])
        layered = found["accumulation"] == shares.LAYERED
        rows = [
            ("balance", dealt, "equal accelerators are equally fast; ranks wait for the slowest once a pass; gradients "
             "are summed over samples", PAPER),
            ("plan.shares", self.policy, f"{found['text']}; fastest division by dynamic programme and branch and bound "
             f"(tolerances {shares.SHARE_TOLERANCE:g} of the largest share, {shares.TIME_TOLERANCE:g} of the time)",
             shares.get(self.policy).source),
            ("accumulation", found["accumulation"], "a layer runs all its micro-batches before the next: states are "
             "gathered once a step" if layered else "one micro-batch after another goes through the whole model: "
             "states are gathered for each", PAPER),
            ("shards", f"largest {found['largest_state_share']:.2%} of {of.ranks} ranks", "not padded: a gather takes "
             "as long as that of as many shards of the largest size, over links as slow as the slowest", "assumption"),
            ("fidelity", "closed form", "steps on unequal accelerators are not played as events", "scope"),
        ]
        return [{"key": key, "value": value, "text": text, "source": source} for key, value, text, source in rows]


def shared(inputs: TrainingInputs, stack: Stack) -> Shared:
    """The step of the inputs on `inputs.cluster.groups`. Raises PlanError where it is not played."""
    groups, plan = inputs.cluster.groups, inputs.plan
    first = Setting(inputs.model, replace(plan, data=1), groups[0], stack, inputs.sequence, inputs.constants)
    return Shared(divided_step(first, groups, inputs.global_batch), plan.shares)
