"""What stands beside the numbers: the answer in words, what limits it, the assumptions, the pictures' data."""

from __future__ import annotations

from typing import Any

import numpy as np

from costmodel import constants, parameters, techniques
from costmodel.architecture import Model
from costmodel.kernels import peak_flops_per_s
from costmodel.operators import FORWARD
from costmodel.profiles import HERE
from costmodel.units import show
from placement import schedules
from placement.memory import (
    DEVICE_OVERHEAD_BYTES,
    DEVICE_OVERHEAD_SOURCE,
    WORKSPACE_SOURCE,
    host_capacity_bytes,
    workspace_bytes,
)
from placement.passes import Setting, layer_work, total
from placement.pipeline import segment_shares
from placement.step import Step
from simulator.inputs import TrainingInputs
from simulator.timeline import Timeline
from simulator.training import Lowered

TERMS = {
    "gemm": "matrix products",
    "attention": "attention kernels",
    "memory_bound": "memory-bound operators",
    "quantize": "casts to a narrow type",
    "recompute": "recomputation of activations",
    "tensor_communication": "tensor-parallel communication",
    "context_communication": "context-parallel communication",
    "expert_communication": "expert-parallel communication",
    "data_communication": "gathers and reductions of the training states",
    "pipeline_communication": "sends between pipeline stages",
    "offload": "copies of activations to the host and back",
    "contention": "slow-down by communication beside compute",
    "optimizer": "the optimizer step",
    "bubble": "pipeline bubbles",
    "imbalance": "waits for ranks with longer sequences",
    "latency": "latency",
    "waiting": "waiting for slower accelerators",
}
USEFUL = ("gemm", "attention")
REMEDIES = {
    "bubble": "more micro-batches a step, more virtual stages, or fewer stages would shrink it",
    "imbalance": "a balance of plan.context_groups, or more tokens a step, would shrink it",
    "tensor_communication": "less tensor parallelism, or overlapping it, would shrink it",
    "context_communication": "less context parallelism, or a ring that overlaps, would shrink it",
    "data_communication": "a larger batch per rank or another sharding would shrink it",
    "recompute": "more memory per accelerator, or finer sharding, would avoid it",
    "memory_bound": "fused or compiled operators move fewer bytes",
    "waiting": "shares of the batch that go by speed (plan.shares) would shrink it",
    "contention": "fewer bytes beside compute would shrink it",
}


def limiting(step: Step) -> dict[str, Any]:
    """The largest part of the step, and the largest that is not model arithmetic with what would shrink it."""
    shares = {name: seconds / step.step_time_s for name, seconds in step.breakdown_s.items()}
    largest = max(shares, key=lambda name: shares[name])
    overhead = max((name for name in shares if name not in USEFUL), key=lambda name: shares[name])
    remedy = REMEDIES.get(overhead)
    text = (
        f"{TERMS.get(largest, largest)} take {shares[largest]:.0%} of the step; the largest part that is not model "
        f"arithmetic is {TERMS.get(overhead, overhead)} ({shares[overhead]:.0%})" + (f": {remedy}" if remedy else "")
    )
    return {"term": overhead, "share": shares[overhead], "text": text}


def answer(inputs: TrainingInputs, document: dict[str, Any]) -> str:
    """One line: how long a step takes, how well the machine is used, whether it fits, what it costs."""
    fit = document["fit"]
    where = "the host" if fit["stage"] is None else f"stage {fit['stage']}"
    room = (
        f"fits, {fit['free_bytes'] / 1e9:.1f} GB free on stage {fit['stage']}"
        if document["fits"]
        else f"does not fit: {where} misses by {-fit['free_bytes'] / 1e9:.1f} GB"
    )
    cost = document["cost_usd"]
    paid = "price unknown" if cost is None else f"{cost:,.2f} USD a step"
    return (
        f"{inputs.model.name} on {inputs.cluster.accelerators:,} x {inputs.cluster.accelerator.title}: "
        f"{document['step_time_s']:.3g} s a step, {document['tokens_per_s_per_gpu']:,.0f} tokens/s per accelerator, "
        f"{document['mfu']:.1%} MFU; {room}; {paid}"
    )


def fit(setting: Setting, step: Step, overhead_bytes: float, host_bytes: float = 0.0) -> dict[str, Any]:
    """What the fullest stage needs of the device; or of the host, where that is what does not suffice."""
    stage: int | None = step.worst_stage
    needed = step.peak_bytes[step.worst_stage] + overhead_bytes
    capacity = setting.cluster.accelerator.memory.capacity_bytes
    host_capacity = host_capacity_bytes(setting.cluster)
    if needed <= capacity and host_bytes > host_capacity:
        return {"tier": "host", "stage": None, "needed_bytes": host_bytes, "capacity_bytes": host_capacity,
                "free_bytes": host_capacity - host_bytes}
    return {
        "tier": "hbm",
        "stage": stage,
        "needed_bytes": needed,
        "capacity_bytes": capacity,
        "free_bytes": capacity - needed,
    }


def model(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": parameters.count(model),
        "active_parameters": parameters.active(model),
        "layers": len(model.layers),
        "hidden": model.hidden,
        "vocabulary": model.vocabulary,
        "source": model.source,
        "assumed": list(model.assumed),
    }


def assumptions(inputs: TrainingInputs, setting: Setting, copies: bool = False) -> list[dict[str, Any]]:
    """What the prediction takes for granted: the author's notes, the stack, the constants, with sources.

    `copies`: activations lie on the host for a while.
    """
    plan, stack, profile = inputs.plan, setting.stack, setting.pricer.profile
    accelerator, placement = inputs.cluster.accelerator, setting.placement
    shipped = setting.constants == constants.default()
    origin = constants.source() if shipped else "as shipped, moved where the scenario's measured runs ask for it"
    rows: list[tuple[str, Any, str, str]] = [
        (note["key"], _at(inputs.raw, note["key"]), note["text"], note.get("source", "the scenario"))
        for note in inputs.assumptions
    ]
    rows += [
        ("stack", stack.name or "given part by part", "the software", stack.source or "the scenario"),
        ("stack.host",
         f"{stack.host_layer_s * 1e3:g} ms a dense layer and pass, {stack.host_moe_layer_s * 1e3:g} ms an MoE layer",
         "a pass takes at least as long as the host needs to launch it", stack.source or "the scenario"),
        ("stack.execution", stack.execution, f"memory-bound operators move {setting.traffic_factor:g} times the "
         "ideally fused bytes", origin),
        ("stack.attention", stack.attention, "attention at this kernel's measured rate",
         profile.sources.get("attention", "")),
        ("stack.overlap", ", ".join(stack.overlap) or "nothing", "communication beside compute costs "
         f"{setting.constants.overlap_cost:.0%} of its length", origin),
        _products(setting),
        ("kernels in a step", f"{setting.pricer.in_situ:g} x alone", "clock and neighbours slow kernels in a step",
         origin),
        ("memory bandwidth", f"{profile.memory_fraction:.0%} of specification", "reached by memory-bound operators",
         profile.sources.get("memory", "")),
        ("plan.sharding", placement.name or "written out", "placement of the four training states",
         placement.source or "the scenario"),
        ("plan.schedule", plan.schedule, "order of pipeline passes", schedules.get(plan.schedule).source),
        ("workspace", show(workspace_bytes(accelerator), "B"), "library workspace on every device", WORKSPACE_SOURCE),
        ("device overhead", show(DEVICE_OVERHEAD_BYTES, "B"), DEVICE_OVERHEAD_SOURCE, "assumption"),
        ("balance", "equal ranks", "every rank of a stage has equal work and speed; experts are balanced; no failures",
         "scope"),
    ]
    for one in plan.changes:
        asked = ", ".join(f"{key} {value}" for key, value in vars(one).items())
        rows.append((f"technique: {techniques.name_of(one)}", asked, one.law, one.source))
    if plan.segments > 1:
        tokens = segment_shares(setting) * inputs.sequence / plan.segments
        rows.append(("plan.segments", ", ".join(f"{count:,.0f}" for count in tokens), "tokens of the parts of a "
                     "sequence, cut to equal FLOPs; a pass takes as long as the mean part", "arXiv 2406.03488"))
    if plan.recompute_chunks is not None:
        rows.append(("plan.recompute_chunks", plan.recompute_chunks, "chunks of a rank that are recomputed, "
                     "each in a pass of its own before its backward", "the scenario"))
    if copies and accelerator.host_link:
        rows.append(("host link", show(accelerator.host_link.bandwidth_bytes_per_s, "B/s"), "activations leave and "
                     "come back in turn at all of one direction's bandwidth; ranks behind one switch take turns too",
                     accelerator.host_link.source))
    if accelerator.price_usd_per_hour and inputs.price_usd_per_gpu_hour is None:
        price = f"{accelerator.price_usd_per_hour:g} USD/h"
        rows.append(("price", price, "list price on demand", accelerator.sources.get("price_usd_per_hour", "")))
    rows += [(f"model.{name}", "assumed", "not stated in the config; taken from the family's code", "Hugging Face")
             for name in inputs.model.assumed]
    return [{"key": key, "value": value, "text": text, "source": source} for key, value, text, source in rows]


def _products(setting: Setting) -> tuple[str, Any, str, str]:
    """Where the prices of matrix products come from: measured, derived from a part like it, or the wave law."""
    pricer = setting.pricer
    if pricer.kernels is None or pricer.basis == "generic":
        shares = ", ".join(f"{kind} {value:.0%}" for kind, value in pricer.profile.gemm_fraction.items())
        text = f"share of peak that matrix products reach, before wave quantisation: {shares}"
        return "kernels", pricer.profile.name, text, pricer.profile.sources.get("gemm", "")
    measured = pricer.kernels.measured
    if pricer.own is not None:
        text = (f"products, attention, memory-bound operators, optimizer, collectives as {HERE}; "
                f"products {pricer.band:.1%} off on shapes held out")
        return "kernels", f"{measured.name}, {HERE}", text, "whatif calibrate fit --measured"
    text = f"matrix products from surfaces fitted to measured tables of {measured.name}; {pricer.basis} for this part"
    return "kernels", f"{measured.name}, {pricer.basis}", text, "docs/calibration.md (error on shapes held out)"


def _at(raw: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        raw = raw.get(part) if hasattr(raw, "get") else None
    return raw


def roofline(setting: Setting) -> dict[str, Any]:
    """Intensity and reached rate of the operators of the most frequent layer, forward pass."""
    pricer, counted = setting.pricer, list(setting.model.layers)
    layer = max(dict.fromkeys(counted), key=counted.count)  # the first of equally many, in any process
    rows: list[dict[str, Any]] = []
    for operator in (one for one in layer_work(setting, layer).operators if FORWARD in one.products):
        time_s = float(total(pricer.forward_s(operator)))
        flops, moved = float(operator.forward_flops), float(operator.forward_bytes)
        rows.append(
            {
                "name": operator.name,
                "intensity_flop_per_byte": flops / moved if moved else 0.0,
                "flops_per_s": flops / time_s if time_s else 0.0,
                "time_s": time_s,
            }
        )
    whole = sum(row["time_s"] for row in rows)
    accelerator = setting.cluster.accelerator
    return {
        "peak_flops_per_s": peak_flops_per_s(accelerator, setting.plan.precision),
        "memory_bandwidth_bytes_per_s": accelerator.memory.read_bandwidth_bytes_per_s,
        "operators": [{**row, "share": row["time_s"] / whole} for row in rows],
    }


def timeline(played: Timeline, lowered: Lowered) -> dict[str, Any]:
    """Passes by stage: [kind, label, chunk, micro-batch, start_s, duration_s]; the tasks of a pass joined."""
    stages: dict[int, dict[tuple[str, int, int], list[float]]] = {}
    for task, stage, kind, chunk, micro_batch in lowered.passes:
        spans = stages.setdefault(stage, {})
        start, end = float(played.start_s[task]), float(played.end_s[task])
        span = spans.setdefault((kind, chunk, micro_batch), [start, end])
        span[0], span[1] = min(span[0], start), max(span[1], end)
    return {
        "makespan_s": played.makespan_s,
        "stages": [
            {
                "stage": stage,
                "tasks": [
                    [kind, f"{kind}{micro_batch}", chunk, micro_batch, start, end - start]
                    for (kind, chunk, micro_batch), (start, end) in spans.items()
                ],
            }
            for stage, spans in sorted(stages.items())
        ],
    }


def memory_over_time(played: Timeline, stage: int, points: int = 1500) -> dict[str, Any]:
    """Bytes by state on the fullest stage. Long series are thinned to their highest point per interval."""
    times_s, series = played.memory_series(stage, "hbm")
    keep = np.arange(len(times_s))
    if len(times_s) > points:
        whole = np.sum(list(series.values()), axis=0)
        keep = np.array([part[int(whole[part].argmax())] for part in np.array_split(keep, points)])
    return {
        "stage": stage,
        "tier": "hbm",
        "times_s": times_s[keep].tolist(),
        "states": {state: values[keep].tolist() for state, values in series.items()},
    }
