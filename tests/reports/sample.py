"""A result written by hand, with numbers that agree: 1F1B, 4 stages, 8 micro-batches, 0.3 s and 0.6 s a pass.

Step: (8 + 4 - 1) * 0.9 s = 9.9 s, and 0.1 s of optimizer. 262,144 tokens, 32 GPUs at 2.95 USD/h and 700 W.
"""

from __future__ import annotations

from typing import Any

STAGES, MICRO_BATCHES, FORWARD_S, BACKWARD_S = 4, 8, 0.3, 0.6
STEP_TIME_S, TOKENS, GPUS = 10.0, 262_144, 32
BREAKDOWN_S = {
    "gemm": 4.0, "attention": 0.9, "memory_bound": 0.7, "recompute": 0.4, "launch": 0.15, "optimizer": 0.1,
    "tensor_communication": 0.6, "pipeline_communication": 0.2, "data_communication": 0.25, "bubble": 2.7,
}
STATES_BYTES = {"parameters": 4.41e9, "gradients": 8.82e9, "optimizer": 26.46e9}
ACTIVATIONS_BYTES = 7.0775e9  # of one micro-batch


def one_f_one_b(stages: int, micro_batches: int, forward_s: float, backward_s: float) -> dict[str, Any]:
    """The timeline of the 1F1B schedule, free of communication."""
    orders = []
    for stage in range(stages):
        warm = min(stages - stage, micro_batches)
        order = [("F", m) for m in range(warm)]
        for m in range(micro_batches):
            order += [("B", m)] + ([("F", m + warm)] if m + warm < micro_batches else [])
        orders.append(order)
    ends: dict[tuple[str, int, int], float] = {}
    clocks, tasks = [0.0] * stages, [[] for _ in range(stages)]
    while any(orders):
        for stage in range(stages):
            while orders[stage]:
                kind, m = orders[stage][0]
                before = ("F", m, stage - 1) if kind == "F" else ("B", m, stage + 1)
                if before not in ends and 0 <= before[2] < stages:
                    break
                start = max(clocks[stage], ends.get(before, 0.0))
                duration = forward_s if kind == "F" else backward_s
                clocks[stage] = ends[kind, m, stage] = start + duration
                tasks[stage].append([kind, f"{kind}{m}", 0, m, start, duration])
                orders[stage].pop(0)
    return {"makespan_s": max(clocks), "stages": [{"stage": s, "tasks": tasks[s]} for s in range(stages)]}


def _memory_over_time(timeline: dict[str, Any]) -> dict[str, Any]:
    """Of stage 0: a forward holds the activations of its micro-batch until its backward ends."""
    changes = []
    for kind, _, _, _, start_s, duration_s in timeline["stages"][0]["tasks"]:
        changes.append((start_s, 1) if kind == "F" else (start_s + duration_s, -1))
    times, held, live = [0.0], [0.0], 0
    for time_s, change in sorted(changes, key=lambda item: (round(item[0], 9), item[1])):
        live += change
        times.append(time_s)
        held.append(live * ACTIVATIONS_BYTES)
    constant = {name: [value] * len(times) for name, value in STATES_BYTES.items()}
    return {"stage": 0, "tier": "hbm", "times_s": times, "states": constant | {"activations": held}}


def _variant(name: str, key: str, value: Any, step_time_s: float, peak_bytes: float,
             terms: dict[str, float]) -> dict[str, Any]:
    """What follows from the step time, as in the base case; `terms` replace those of its breakdown."""
    breakdown = BREAKDOWN_S | terms
    model_flops = 6 * 70.55e9 * TOKENS / step_time_s / GPUS
    return {"name": name, "set": {key: value}, "fits": peak_bytes < 80e9, "step_time_s": step_time_s,
            "tokens_per_s_per_gpu": TOKENS / step_time_s / GPUS, "mfu": model_flops / 989e12,
            "bubble_fraction": breakdown["bubble"] / step_time_s, "peak_memory_bytes": {"hbm": peak_bytes},
            "cost_usd": step_time_s * GPUS * 2.95 / 3600, "energy_j": GPUS * 700 * step_time_s,
            "breakdown_s": breakdown, "change": {"step_time": step_time_s / STEP_TIME_S - 1}}


def variants() -> list[dict[str, Any]]:
    """One variant that is faster and fits, one that does not fit."""
    return [_variant("interleave twice", "plan.virtual", 2, 8.85, 71.5e9,
                     {"bubble": 1.35, "pipeline_communication": 0.4}),
            _variant("no recomputation", "plan.recompute", "none", 9.6, 96.3e9, {"recompute": 0.0})]


def _roofline() -> dict[str, Any]:
    rows = (("mlp up and gate", 2048.0, 6.9e14, 1.9), ("mlp down", 1820.0, 6.6e14, 1.1),
            ("qkv", 1365.0, 6.2e14, 0.6), ("attention out", 1100.0, 6.0e14, 0.4),
            ("attention", 410.0, 4.6e14, 0.9), ("rms norm", 1.5, 4.2e12, 0.3),
            ("rotary", 0.8, 2.3e12, 0.15), ("swiglu", 1.2, 3.4e12, 0.25))
    operators = [{"name": name, "intensity_flop_per_byte": intensity, "flops_per_s": flops, "time_s": time_s,
                  "share": time_s / STEP_TIME_S} for name, intensity, flops, time_s in rows]
    return {"peak_flops_per_s": 989e12, "memory_bandwidth_bytes_per_s": 3.35e12, "operators": operators}


def document(**changes: Any) -> dict[str, Any]:
    """The sample result; keyword arguments replace its keys."""
    timeline = one_f_one_b(STAGES, MICRO_BATCHES, FORWARD_S, BACKWARD_S)
    inputs = {"name": "Llama 3.1 70B on 32 H100", "model": "llama-3.1-70b",
              "cluster": {"node": "hgx-h100", "nodes": 4},
              "workload": {"kind": "pretrain", "sequence": 8192, "global_batch": 32},
              "plan": {"tensor": 8, "pipeline": 4, "schedule": "1f1b", "micro_batch": 4,
                       "recompute": "selective"}}
    states = [STATES_BYTES | {"activations": (STAGES - stage) * ACTIVATIONS_BYTES} for stage in range(STAGES)]
    stages = [{"stage": s, "peak_bytes": sum(held.values()), "states": held} for s, held in enumerate(states)]
    model_flops = 6 * 70.55e9 * TOKENS / STEP_TIME_S / GPUS
    result = {
        "schema_version": 1, "tool_version": "0.1.0", "kind": "training", "fidelity": "events",
        "scenario": {"name": inputs["name"], "description": "A short pipeline with few micro-batches.",
                     "file": "llama.yaml", "inputs": inputs},
        "answer": "A step takes 10 s at 35.1% MFU; it fits with 12 GB to spare. The bubble costs 27% of it.",
        "limiting": {"term": "bubble", "share": 0.27, "text": "The pipeline waits 2.7 s of every step: 8 "
                     "micro-batches are few for 4 stages; more, or interleaving, would shorten it."},
        "fits": True,
        "fit": {"tier": "hbm", "stage": 0, "needed_bytes": 68.0e9, "capacity_bytes": 80e9, "free_bytes": 12e9,
                "changes": []},
        "gpus": GPUS, "accelerator": "NVIDIA H100 SXM 80 GB", "step_time_s": STEP_TIME_S,
        "tokens_per_s": TOKENS / STEP_TIME_S, "tokens_per_s_per_gpu": TOKENS / STEP_TIME_S / GPUS,
        "model_flops_per_s_per_gpu": model_flops, "mfu": model_flops / 989e12, "hfu": None,
        "bubble_fraction": 0.27,
        "peak_memory_bytes": {"hbm": 68.0e9, "host": 41.0e9},
        "memory_breakdown_bytes": STATES_BYTES | {"activations": STAGES * ACTIVATIONS_BYTES},
        "memory_by_stage": stages, "breakdown_s": dict(BREAKDOWN_S),
        "breakdown_by_stage": [dict(BREAKDOWN_S) for _ in range(STAGES)],
        "model": {"name": "Llama 3.1 70B", "parameters": 70_553_706_496, "active_parameters": 70_553_706_496,
                  "layers": 80, "hidden": 8192, "source": "config.json of the published model"},
        "cost_usd": STEP_TIME_S * GPUS * 2.95 / 3600,
        "cost_usd_per_million_tokens": STEP_TIME_S * GPUS * 2.95 / 3600 / (TOKENS / 1e6),
        "energy_j": GPUS * 700 * STEP_TIME_S,
        "error_band": {"step_time_s": [0.92 * STEP_TIME_S, 1.11 * STEP_TIME_S], "level": 0.8,
                       "basis": "14 published runs of 3 families", "rows": 14, "families": 3},
        "assumptions": [
            {"key": "stack.attention", "value": "flash-3", "text": "The attention kernel is not published.",
             "source": "usual for H100"},
            {"key": "price", "value": 2.95, "text": "US dollars per GPU and hour, on demand.",
             "source": "https://example.org/prices"}],
        "published": [{"metric": "step_time_s", "published": 10.4, "predicted": STEP_TIME_S,
                       "error": STEP_TIME_S / 10.4 - 1, "source": "a made-up paper, table 4"}],
        "roofline": _roofline(), "timeline": timeline, "memory_over_time": _memory_over_time(timeline),
        "variants": variants(), "reasons": {"hfu": "the recomputed share is not counted in this sample"},
        "run": {"wall_s": 0.41, "date": "2026-11-22"},
    }
    return result | changes


def too_big() -> dict[str, Any]:
    """A result that misses its memory by 6 GB and says what would fit."""
    return document(
        answer="It does not fit: stage 0 needs 86 GB of 80 GB.", fits=False,
        fit={"tier": "hbm", "stage": 0, "needed_bytes": 86e9, "capacity_bytes": 80e9, "free_bytes": -6e9,
             "changes": [{"name": "full recomputation", "set": {"plan.recompute": "full"},
                          "peak_memory_bytes": 61e9, "step_time_s": 12.4},
                         {"name": "micro-batch of 2", "set": {"plan.micro_batch": 2},
                          "peak_memory_bytes": 55e9, "step_time_s": None}]})


def many_tasks(stages: int = 16, micro_batches: int = 104, chunks: int = 3) -> dict[str, Any]:
    """A result with stages * micro_batches * chunks * 2 tasks (9,984 by default)."""
    rows = []
    for stage in range(stages):
        tasks, clock = [], 0.0123456789 * stage
        for chunk in range(chunks):
            for m in range(micro_batches):
                for kind, duration in (("F", 0.0071234567), ("B", 0.0152345678)):
                    tasks.append([kind, f"{kind}{m}.{chunk}", chunk, m, clock, duration])
                    clock += duration
        rows.append({"stage": stage, "tasks": tasks})
    end = max(task[4] + task[5] for row in rows for task in row["tasks"])
    times = [i * end / 20_000 for i in range(20_000)]
    activations = [1e9 * (i % 97) for i in range(20_000)]
    memory = {"stage": 0, "tier": "hbm", "times_s": times,
              "states": {"parameters": [1e9] * 20_000, "activations": activations}}
    return document(timeline={"makespan_s": end, "stages": rows}, memory_over_time=memory)
