"""A cut scenario simulated and run for real: the document of `whatif validate`.

The document: `changes` (what the real run does otherwise), `quantities` (compare.Quantity), `losses`, `timelines`
{simulated, measured: [{name, tasks: [[kind, label, chunk, micro_batch, start_s, duration_s]]}]}, `machine`, `plan`,
`failures`. Torch is imported by the ranks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.calibration import ranks
from costmodel.calibration.measure import machine as state
from placement.plan import Plan
from placement.states import Placement
from simulator import explain
from simulator.inputs import TrainingInputs
from simulator.predict import Played, play
from simulator.real.compare import Quantity, Rank, compared, failures, losses
from simulator.real.cut import Cut

WORKER = "simulator.real.worker"
QUIET_RATIO = 1.05  # wall over CPU time of a loop of one thread on a quiet machine (real_runs.md, 3)
QUIET_PRESSURE = 10.0  # percent of the last 10 s in which some task waited for a processor
RUN_KEYS = ("tensor", "sequence_parallel", "pipeline", "virtual", "schedule", "data", "expert", "recompute",
            "micro_batch", "precision", "stage_layers", "shard_group", "state_bytes")


@dataclass(frozen=True)
class Asked:
    """How the real run goes: steps that are timed, those before them, the limit on all."""

    device: str = "cpu"
    steps: int = 5
    warmup: int = 2
    timeout_s: float = 600.0
    checkpoint: bool = True
    max_error: float | None = None


def job(inputs: TrainingInputs, asked: Asked) -> dict[str, Any]:
    """What the worker is asked to run (`simulator.real.worker`)."""
    from dataclasses import asdict

    return {"device": asked.device, "model": asdict(inputs.model), "plan": plan_keys(inputs.plan),
            "sequence": inputs.sequence, "global_batch": inputs.global_batch, "warmup": asked.warmup,
            "steps": asked.steps, "seed": inputs.seed, "checkpoint": asked.checkpoint, "memory": True}


def plan_keys(plan: Plan) -> dict[str, Any]:
    """The keys of the plan that a real run knows, in JSON's types."""
    keys = {key: getattr(plan, key) for key in RUN_KEYS}
    sharding = plan.sharding.name if isinstance(plan.sharding, Placement) else plan.sharding
    keys["stage_layers"] = list(plan.stage_layers) if isinstance(plan.stage_layers, tuple) else plan.stage_layers
    return {**keys, "sharding": sharding}


def price(inputs: TrainingInputs) -> tuple[float, float]:
    """(seconds that the ranks of a step are busy, added up; bytes of all ranks at their peaks), for `cut`."""
    step = play(inputs).step
    each = int(inputs.plan.gpus) // len(step.peak_bytes)  # ranks of a stage
    waiting = ("bubble", "latency")
    busy_s = sum(seconds for name, seconds in step.breakdown_s.items() if name not in waiting)
    return busy_s * int(inputs.plan.gpus), sum(step.peak_bytes) * each


def quiet(state_of_machine: Mapping[str, Any]) -> bool:
    """Whether an idle probe says that nothing else runs."""
    pressure = state_of_machine["pressure_some_avg10"]
    calm = pressure is None or pressure <= QUIET_PRESSURE
    return bool(state_of_machine["wall_over_cpu"] <= QUIET_RATIO and calm)


def validate(cut: Cut, asked: Asked, tell: Any = None) -> dict[str, Any]:
    """Simulates and runs. Raises RanksError where a rank dies or hangs, PlanError for plans that cannot be laid out."""
    played = play(cut.inputs)
    before = state.state("cpu")
    found = ranks.launch(WORKER, job(cut.inputs, asked), int(cut.inputs.plan.gpus), timeout_s=asked.timeout_s,
                         tell=tell)
    is_quiet = quiet(before) and quiet({**state.state("cpu"), "pressure_some_avg10": None})  # its own pressure is left
    return document(cut, played, found, is_quiet, before, asked.max_error)


def document(cut: Cut, played: Played, found: Sequence[Rank], is_quiet: bool, before: Mapping[str, Any],
             max_error: float | None) -> dict[str, Any]:
    """What came out, in plain values."""
    rows: list[Quantity] = compared(played, found, is_quiet)
    values = losses(found)
    assert played.timeline is not None
    assert played.lowered is not None
    simulated = explain.timeline(played.timeline, played.lowered)["stages"]
    busy = [rank["busy"]["wall_over_cpu"] for rank in found if rank["busy"]["wall_over_cpu"] is not None]
    return {
        "kind": "validation",
        "changes": [{"key": one.key, "before": one.before, "after": one.after, "why": one.why} for one in cut.changes],
        "model": explain.model(cut.inputs.model), "plan": plan_keys(cut.inputs.plan),
        "sequence": cut.inputs.sequence, "global_batch": cut.inputs.global_batch,
        "machine": {"node": cut.inputs.cluster.node.name, "device": found[0]["device"], "ranks": len(found),
                    "versions": found[0]["versions"], "before": dict(before), "quiet": is_quiet,
                    "wall_over_cpu": max(busy, default=None)},
        "quantities": [row.document() for row in rows], "losses": values,
        "timelines": {
            "simulated": [{"name": f"simulated, stage {one['stage']}", "tasks": one["tasks"]} for one in simulated],
            "measured": [{"name": f"measured, rank {rank['rank']}", "tasks": _last_step(rank)} for rank in found],
        },
        "max_error": max_error, "failures": failures(rows, values, max_error),
    }


def _last_step(rank: Rank) -> list[list[Any]]:
    """The passes of the last step, as a timeline has them."""
    last = max((one["step"] for one in rank["passes"]), default=0)
    return [[one["kind"], one["kind"] if one["kind"] == "optimizer" else f"{one['kind']}{one['micro_batch']}",
             one["chunk"], one["micro_batch"], one["start_s"], one["wall_s"]]
            for one in rank["passes"] if one["step"] == last]


def corrections(rows: Sequence[Mapping[str, Any]], before: Mapping[str, float],
                ranges: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float, bool]]:
    """Constant -> (before, after, clipped) that would make the simulated figures the measured ones.

    Constants are those of `costmodel.constants`; `rows` the quantities of a document. Compute is not told apart by
    kernel, so kernels (`other`: a machine of one's own is of no shipped generation) and attention get one
    factor. What was not measured keeps its constant.
    """
    by_key = {row["key"]: row for row in rows}
    found = {}
    for key, quantity in (("other", "compute_s"), ("attention", "compute_s"),
                          ("communication", "exposed_communication_s")):
        row = by_key.get(quantity)
        if not row or not row["simulated"] or not row["measured"]:
            continue
        old = float(before.get(key, 1.0))
        wanted = old * row["measured"] / row["simulated"]
        low, high = ranges[key]
        kept = min(max(wanted, low), high)
        found[key] = (old, kept, kept != wanted)
    return found
