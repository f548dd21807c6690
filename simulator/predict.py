"""From inputs to a prediction: play the step, read time, memory, money and energy off it.

The result is one plain document, the JSON of `whatif run --json`; every report is made from it. What is not
known holds None, with the reason under `reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from costmodel import money, parameters, stack
from costmodel.kernels import peak_flops_per_s
from placement.divisibility import expert_ranks_divide, heads_divide
from placement.memory import DEVICE_OVERHEAD_BYTES, host_bytes, host_capacity_bytes
from placement.passes import Setting, add
from placement.plan import PlanError
from placement.schedules import ScheduleError
from placement.step import BUSY, Step, analytic_step
from simulator import bands, explain
from simulator.engine import static
from simulator.hybrid_data import flops_per_token, hybrid
from simulator.inputs import TrainingInputs
from simulator.timeline import Timeline
from simulator.training import Lowered, lower
from simulator.unequal import UNMEASURED, shared


@dataclass(frozen=True)
class Played:
    """One step by its closed form, or as it was played with its program and timeline."""

    setting: Setting
    step: Step
    lowered: Lowered | None = None
    timeline: Timeline | None = None
    details: Mapping[str, Any] = field(default_factory=dict)  # blocks of the document that this kind of step has more
    notes: Sequence[Mapping[str, Any]] = ()  # assumptions of this kind of step, in place of those with the same key
    unmeasured: str = ""  # why no measured run is like it

    @property
    def needed_bytes(self) -> float:
        """Device memory that the fullest stage needs: its peak and what lies beside the allocator."""
        return self.step.peak_bytes[self.step.worst_stage] + DEVICE_OVERHEAD_BYTES

    @property
    def on_host_bytes(self) -> float:
        """Host memory that an accelerator needs, the mean over stages: model states and copied activations."""
        copied = sum(self.step.host_peak_bytes) / max(len(self.step.host_peak_bytes), 1)
        return float(host_bytes(self.setting) + copied)

    @property
    def fits(self) -> bool:
        """Whether device memory holds the fullest stage, and the host's what lies there."""
        capacity_bytes = self.setting.cluster.accelerator.memory.capacity_bytes
        return self.needed_bytes <= capacity_bytes and self.on_host_bytes <= host_capacity_bytes(self.setting.cluster)


def stack_of(inputs: TrainingInputs) -> stack.Stack:
    """The stack block of the inputs. Raises StackError for a part that the stack does not know."""
    chosen: dict[str, Any] = {key: tuple(value) if key == "overlap" else value for key, value in inputs.stack.items()}
    name = chosen.pop("name", None)
    return stack.named(name, **chosen) if name else stack.Stack(**chosen)


def setting_of(inputs: TrainingInputs) -> Setting:
    """The stack block of the inputs with the rest. Raises StackError, or PlanError for unequal accelerators."""
    return Setting(inputs.model, inputs.plan, inputs.cluster, stack_of(inputs), inputs.sequence, inputs.constants,
                   inputs.global_batch)


def play(inputs: TrainingInputs) -> Played:
    """The step at the fidelity asked for: "events" plays its program, "analytic" takes the closed form.

    Raises PlanError or ScheduleError where the plan cannot be laid over the model.
    """
    if inputs.cluster.groups:
        found = shared(inputs, stack_of(inputs))
        return Played(found.divided.setting, found.divided.step, details={"shares": found.document}, notes=found.notes,
                      unmeasured=UNMEASURED)
    setting = setting_of(inputs)
    if inputs.lengths is not None:
        cut = hybrid(inputs, setting)
        return Played(setting, cut.step, cut.lowered, cut.timeline, {"sequences": cut.document}, cut.notes,
                      "no published run with sequences of unequal length is among the residuals")
    return play_setting(setting, inputs.global_batch, inputs.fidelity)


def play_setting(setting: Setting, global_batch: int, fidelity: str = "events") -> Played:
    """The same of a setting, as a search has it. Raises PlanError or ScheduleError."""
    if fidelity == "analytic":
        return Played(setting, analytic_step(setting, global_batch))
    lowered = lower(setting, global_batch)
    timeline = static.play(lowered.program)
    stages = range(int(setting.plan.pipeline))
    peaks = [timeline.peak(stage, "hbm") for stage in stages]
    breakdowns = [timeline.breakdown(stage) for stage in stages]
    step_time_s = timeline.makespan_s
    if not setting.plan.optimizer_barrier:
        step_time_s = max(timeline.span_s(timeline.compute_stream(stage)) for stage in stages)
        breakdowns = [_within(breakdown, step_time_s) for breakdown in breakdowns]
    step = Step(
        step_time_s,
        _mean(breakdowns),
        tuple(breakdowns),
        tuple(peak[0] for peak in peaks),
        tuple(peak[1] for peak in peaks),
        tuple(timeline.peak(stage, "host")[0] for stage in stages),
    )
    return Played(setting, step, lowered, timeline)


def _within(breakdown: Mapping[str, float], step_time_s: float) -> dict[str, float]:
    """A rank's breakdown where the next step starts before all ranks have ended: less of it is waiting."""
    result = dict(breakdown)
    excess_s = sum(result.values()) - step_time_s
    for category in ("bubble", "pipeline_communication", "latency"):
        saved_s = min(result.get(category, 0.0), max(excess_s, 0.0))
        if saved_s:
            result[category] -= saved_s
            excess_s -= saved_s
    return result


def _mean(breakdowns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    mean: dict[str, float] = {}
    for breakdown in breakdowns:
        add(mean, breakdown, 1.0 / len(breakdowns))
    return mean


def _speed(inputs: TrainingInputs, step_time_s: float) -> dict[str, float]:
    """Tokens and model FLOPs per second; mfu against the dense peak of the GEMM type."""
    gpus = inputs.cluster.accelerators
    tokens_per_s = inputs.sequence * inputs.global_batch / step_time_s
    flops = tokens_per_s * flops_per_token(inputs) / gpus
    peak = peak_flops_per_s(inputs.cluster.accelerator, inputs.plan.precision)
    return {
        "tokens_per_s": tokens_per_s,
        "tokens_per_s_per_gpu": tokens_per_s / gpus,
        "model_flops_per_s_per_gpu": flops,
        "mfu": flops / peak,
    }


def _hardware_flops_share(inputs: TrainingInputs) -> float:
    """hfu / mfu: executed over model FLOPs, with the recomputed forward pass where there is one."""
    if inputs.plan.recompute == "none":
        return 1.0
    whole = flops_per_token(inputs)
    if inputs.plan.recompute == "full":
        once = 6.0 * inputs.model.vocabulary * inputs.model.hidden  # the head
    else:
        once = 6.0 * parameters.matmul_parameters_per_token(inputs.model)
    chunks = inputs.plan.recompute_chunks
    return 1.0 + (whole - once) / 3.0 / whole * (1.0 if chunks is None else chunks / inputs.plan.virtual)


def _money(inputs: TrainingInputs, step: Step, speed: dict[str, float]) -> tuple[dict[str, Any], dict[str, str]]:
    """Cost and energy of one step; None with a reason where the price or the power is not known."""
    accelerator, gpus = inputs.cluster.accelerator, inputs.cluster.accelerators
    result: dict[str, Any] = {"cost_usd": None, "cost_usd_per_million_tokens": None, "energy_j": None}
    reasons: dict[str, str] = {}
    price = inputs.price_usd_per_gpu_hour
    price = accelerator.price_usd_per_hour if price is None else price
    if price is None:
        reasons["cost_usd"] = (
            f"nobody in the catalogue lists a price for {accelerator.name}; set cluster.price_usd_per_gpu_hour"
        )
        reasons["cost_usd_per_million_tokens"] = reasons["cost_usd"]
    else:
        cost = float(money.cost_usd(gpus, price, step.step_time_s))
        result["cost_usd"] = cost
        result["cost_usd_per_million_tokens"] = cost / (speed["tokens_per_s"] * step.step_time_s) * 1e6
    if accelerator.power_w is None:
        reasons["energy_j"] = f"the catalogue has no power limit for {accelerator.name}"
    else:
        busy = sum(step.breakdown_s.get(category, 0.0) for category in BUSY) / step.step_time_s
        overhead = (inputs.cluster.node.overhead_power_w or 0.0) / inputs.cluster.node.accelerators
        result["energy_j"] = float(
            money.energy_j(
                gpus,
                accelerator.power_w,
                step.step_time_s,
                busy_fraction=busy,
                overhead_power_w_per_accelerator=overhead,
            )
        )
    return result, reasons


def _run_totals(inputs: TrainingInputs, step: Step, cost_usd: float | None, energy_j: float | None) -> Any:
    """The whole run, where the scenario says how many tokens it trains on."""
    if not inputs.total_tokens:
        return None
    steps = inputs.total_tokens / (inputs.sequence * inputs.global_batch)
    return {
        "tokens": inputs.total_tokens,
        "steps": steps,
        "wall_time_s": steps * step.step_time_s,
        "cost_usd": None if cost_usd is None else steps * cost_usd,
        "energy_j": None if energy_j is None else steps * energy_j,
    }


def _published(inputs: TrainingInputs, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Published values beside the predicted ones: error = predicted / published - 1."""
    rows = []
    for row in inputs.published:
        predicted = document[row["metric"]]
        rows.append(
            {
                "metric": row["metric"],
                "published": row["value"],
                "predicted": predicted,
                "error": predicted / row["value"] - 1.0,
                "source": row["source"],
            }
        )
    return rows


def summary(inputs: TrainingInputs, played: Played) -> tuple[dict[str, Any], dict[str, str]]:
    """The numbers that base case and variants share, and the reasons for those that are None."""
    step = played.step
    worst = step.worst_stage
    speed = _speed(inputs, step.step_time_s)
    paid, reasons = _money(inputs, step, speed)
    peaks = {"hbm": played.needed_bytes}
    if host := played.on_host_bytes:
        peaks["host"] = host
    return {
        "fits": played.fits,
        "step_time_s": step.step_time_s,
        **speed,
        "hfu": speed["mfu"] * _hardware_flops_share(inputs),
        "bubble_fraction": step.breakdown_s.get("bubble", 0.0) / step.step_time_s,
        "peak_memory_bytes": peaks,
        "memory_breakdown_bytes": {**step.states_at_peak[worst], "device_overhead": DEVICE_OVERHEAD_BYTES},
        "breakdown_s": dict(step.breakdown_s),
        **paid,
    }, reasons


def _error_band(inputs: TrainingInputs, played: Played, numbers: dict[str, Any]) -> dict[str, Any] | None:
    """Where 80 % of measured runs like this one lie; None without residuals. Inputs that the author notes as
    assumed, of plan, stack or cluster, widen it."""
    if played.unmeasured:
        return None
    known, cell = bands.shipped(), bands.cell_of(inputs)
    unknown = bands.unknown_inputs([note["key"] for note in inputs.assumptions])
    pricer = played.setting.pricer
    found = bands.time_band(cell, pricer.band, unknown, known)
    if found is None:
        return None
    speed, step_s = numbers["tokens_per_s_per_gpu"], numbers["step_time_s"]
    document = {
        "step_time_s": [step_s / found.high, step_s / found.low],
        "tokens_per_s_per_gpu": found.around(speed),
        "level": found.level,
        "basis": found.basis + "".join(bands.widened(pricer.basis, unknown)),
        "rows": found.rows,
        "families": found.families,
    }
    if (memory := bands.memory_band(cell, known)) is not None:
        peak = played.needed_bytes - DEVICE_OVERHEAD_BYTES
        document["peak_memory_bytes"] = [DEVICE_OVERHEAD_BYTES + end for end in memory.around(peak)]
    return document


def _assumptions(inputs: TrainingInputs, played: Played) -> list[dict[str, Any]]:
    replaced = {note["key"] for note in played.notes}
    general = explain.assumptions(inputs, played.setting, any(played.step.host_peak_bytes))
    return [row for row in general if row["key"] not in replaced] + [dict(note) for note in played.notes]


def predict_training(inputs: TrainingInputs) -> dict[str, Any]:
    """The document of one training scenario (DESIGN.md, `whatif run --json`), without variants and run block."""
    played = play(inputs)
    numbers, reasons = summary(inputs, played)
    step = played.step
    document: dict[str, Any] = {
        "kind": "training",
        "fidelity": inputs.fidelity,
        "gpus": inputs.cluster.accelerators,
        "accelerator": inputs.cluster.accelerator.title,
        **numbers,
        "breakdown_by_stage": [dict(stage) for stage in step.breakdown_by_stage],
        "memory_by_stage": [
            {"stage": stage, "peak_bytes": peak, "states": dict(states)}
            for stage, (peak, states) in enumerate(zip(step.peak_bytes, step.states_at_peak, strict=True))
        ],
        "fit": {**explain.fit(played.setting, step, DEVICE_OVERHEAD_BYTES, played.on_host_bytes), "changes": []},
        "model": explain.model(inputs.model),
        "run_totals": _run_totals(inputs, step, numbers["cost_usd"], numbers["energy_j"]),
        "error_band": _error_band(inputs, played, numbers),
        "assumptions": _assumptions(inputs, played),
        "roofline": explain.roofline(played.setting),
        "limiting": explain.limiting(step),
        "seed": inputs.seed,
        "reasons": reasons,
        **played.details,
    }
    if document["error_band"] is None:
        none = "no residuals of published runs; see `whatif accuracy --update-bands`"
        document["reasons"]["error_band"] = played.unmeasured or none
    if not inputs.total_tokens:
        document["reasons"]["run_totals"] = "the scenario does not say workload.tokens"
    document["published"] = _published(inputs, document)
    document["answer"] = explain.answer(inputs, document)
    if played.timeline is not None and played.lowered is not None:
        document["timeline"] = explain.timeline(played.timeline, played.lowered)
        document["memory_over_time"] = explain.memory_over_time(played.timeline, step.worst_stage)
    if not played.fits:
        document["fit"]["changes"] = changes_that_fit(inputs)
    return document


def _candidates(inputs: TrainingInputs) -> list[tuple[str, dict[str, Any]]]:
    """Single changes of the plan that save memory, smallest first."""
    plan = inputs.plan
    found: list[tuple[str, dict[str, Any]]] = []
    for level in ("selective", "full"):
        if plan.recompute in ("none", "selective") and plan.recompute != level:
            found.append((f"{level} recomputation", {"recompute": level}))
    if plan.micro_batch > 1:
        found.append(("half the micro-batch", {"micro_batch": plan.micro_batch // 2}))
    for name in ("zero-1", "fsdp-no-reshard", "fsdp"):
        if plan.sharding != name and plan.data > 1:
            found.append((f"sharding {name}", {"sharding": name}))
    if inputs.cluster.groups and plan.shares != "decoupled":
        found.append(("samples by speed, states by memory", {"shares": "decoupled"}))
    if plan.data % 2 == 0:
        data = plan.data // 2
        found.append(("twice the tensor parallelism", {"tensor": plan.tensor * 2, "data": data}))
        found.append(("twice the pipeline stages", {"pipeline": plan.pipeline * 2, "data": data}))
        found.append(("twice the context parallelism", {"context": plan.context * 2, "data": data}))
    return found


def changes_that_fit(inputs: TrainingInputs) -> list[dict[str, Any]]:
    """Single plan changes under which the plan fits, the fastest first (closed form)."""
    result = []
    for name, change in _candidates(inputs):
        tried = replace(inputs, plan=replace(inputs.plan, **change), fidelity="analytic")
        attention = tried.model.layers[0].attention
        if not (heads_divide(attention, tried.plan.tensor) and expert_ranks_divide(tried.plan)):
            continue
        try:
            played = play(tried)
        except (PlanError, ScheduleError):
            continue
        if played.fits:
            result.append(
                {
                    "name": name,
                    "set": {f"plan.{key}": value for key, value in change.items()},
                    "peak_memory_bytes": played.needed_bytes,
                    "step_time_s": played.step.step_time_s,
                }
            )
    return sorted(result, key=lambda row: row["step_time_s"])
