"""A search written by hand, with numbers that agree: GPT-3 175B on 64 GPUs, made-up times.

A step of any plan takes COMPUTE_S of computing; tensor parallelism adds communication, few micro-batches a bubble,
recomputation time for memory. Cost: 64 GPUs at 2 USD/h; energy: 400 W while computing, 150 W while waiting.
"""

from __future__ import annotations

import itertools
from typing import Any

GPUS, LIMIT_BYTES, COMPUTE_S, BATCH = 64, 80e9, 60.0, 1536
STATES_BYTES = 16 * 175e9
AXES = [
    {"key": "plan.tensor", "values": [1, 2, 4, 8]},
    {"key": "plan.pipeline", "values": [1, 2, 4, 8, 16, 32]},
    {"key": "plan.virtual", "values": [1, 2, 3]},
    {"key": "plan.schedule", "values": ["1f1b", "interleaved-1f1b", "zb-h1"]},
    {"key": "plan.micro_batch", "values": [1, 2, 4]},
    {"key": "plan.recompute", "values": ["none", "selective", "full"]},
    {"key": "plan.sequence_parallel", "values": [False, True]},
    {"key": "stack.overlap", "values": [[], ["data"], ["data", "tensor"]]},
]


def plan(tensor: int, pipeline: int, virtual: int, micro_batch: int, recompute: str) -> dict[str, Any]:
    """A row: what follows from the settings."""
    data = GPUS // tensor // pipeline
    micro_batches = BATCH // data // micro_batch
    recomputed = {"none": 0.0, "selective": 0.02, "full": 0.3}[recompute] * COMPUTE_S
    parts = {"gemm": 0.8 * COMPUTE_S, "attention": 0.12 * COMPUTE_S, "memory_bound": 0.08 * COMPUTE_S,
             "recompute": recomputed, "tensor_communication": 1.1 * (tensor - 1),
             "data_communication": 0.9 * (data - 1) / data, "pipeline_communication": 0.02 * pipeline * virtual,
             "bubble": (COMPUTE_S + recomputed) * (pipeline - 1) / virtual / micro_batches, "optimizer": 0.4}
    step_time_s = sum(parts.values())
    kept = {"none": 34e9, "selective": 12e9, "full": 1.5e9}[recompute] * micro_batch * 8 / tensor * (1 + 1 / virtual)
    peak = STATES_BYTES / (tensor * pipeline) / (1 + data) * 1.4 + kept
    idle_s = parts["bubble"]
    return {
        "set": {"plan.tensor": tensor, "plan.pipeline": pipeline, "plan.virtual": virtual,
                "plan.schedule": "interleaved-1f1b" if virtual > 1 else "1f1b", "plan.micro_batch": micro_batch,
                "plan.recompute": recompute, "plan.sequence_parallel": tensor > 1, "stack.overlap": ["data"]},
        "step_time_s": step_time_s, "tokens_per_s_per_gpu": BATCH * 2048 / step_time_s / GPUS,
        "mfu": 0.55 * COMPUTE_S / step_time_s, "peak_memory_bytes": peak, "cost_usd": step_time_s * GPUS * 2 / 3600,
        "energy_j": GPUS * (400 * (step_time_s - idle_s) + 150 * idle_s), "gpus": GPUS, "fits": peak <= LIMIT_BYTES,
        "breakdown_s": {name: value for name, value in parts.items() if value},
    }


def every_plan() -> list[dict[str, Any]]:
    """All plans of a small space, the fastest first."""
    degrees = itertools.product((2, 4, 8), (2, 4, 8, 16), (1, 2, 3), (1, 2, 4), ("none", "selective", "full"))
    rows = [plan(*one) for one in degrees if one[0] * one[1] <= GPUS]
    return sorted(rows, key=lambda row: row["step_time_s"])


def _ranked(rows: list[dict[str, Any]], played: int) -> list[dict[str, Any]]:
    """The rows with their ranks and why they lost; the first `played` with events, the second and third swapped."""
    first, orders = rows[0], {2: 3, 3: 2} if min(played, len(rows)) >= 3 else {}
    found = []
    for rank, row in enumerate(rows, 1):
        terms = {key: row["breakdown_s"].get(key, 0.0) - first["breakdown_s"].get(key, 0.0)
                 for key in {**first["breakdown_s"], **row["breakdown_s"]}}
        differences = sorted(({"category": key, "seconds": value} for key, value in terms.items() if value),
                             key=lambda one: -abs(one["seconds"]))
        changed = {key: [first["set"][key], value] for key, value in row["set"].items() if first["set"][key] != value}
        told = ", ".join(f"{abs(one['seconds']):.2f} s {'more' if one['seconds'] > 0 else 'less'} "
                         f"{one['category'].replace('_', ' ')}" for one in differences[:3])
        slower = row["step_time_s"] - first["step_time_s"]
        by_events = orders.get(rank, rank)
        events = {"step_time_s": rows[by_events - 1]["step_time_s"] * 1.01,
                  "peak_memory_bytes": row["peak_memory_bytes"] * 0.98, "rank": by_events, "fits": True}
        found.append({"rank": rank, **row, "why": f"{slower:.2f} s slower than the best: {told}" if rank > 1 else None,
                      "differences": differences, "changed": changed, "events": events if rank <= played else None})
    return found


def _pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("step_time_s", "peak_memory_bytes", "cost_usd", "energy_j")
    front = [row for row in rows if not any(
        all(other[key] <= row[key] for key in keys) and any(other[key] < row[key] for key in keys) for other in rows)]
    return [{key: row[key] for key in ("set", *keys, "gpus")} for row in front]


def document(count: int = 10, played: int = 10, **changes: Any) -> dict[str, Any]:
    """The sample with its `count` first plans; keyword arguments replace its keys."""
    rows = every_plan()
    feasible = [row for row in rows if row["fits"]]
    own, fastest = plan(8, 8, 1, 1, "full"), next(row for row in rows if not row["fits"])
    found = _ranked(feasible[:count], played)
    result = {
        "schema_version": 1, "tool_version": "0.1.0", "kind": "search",
        "scenario": {"name": "GPT-3 175B on 64 A100-80GB", "description": "Which plan trains it fastest?",
                     "file": "gpt-3-175b-64-a100.yaml", "inputs": {"model": "gpt-3-175b", "plan": {"tensor": 8}}},
        "answer": f"The best of 11,664 plans takes {found[0]['step_time_s']:.1f} s a step, "
                  f"{own['step_time_s'] - found[0]['step_time_s']:.1f} s less than the scenario's own.",
        "objective": "time", "solver": "exhaustive", "constraints": {"max_gpus": 64, "deadline_s": 2_592_000.0},
        "space": {"axes": AXES, "combinations": 11_664}, "limit_bytes": LIMIT_BYTES,
        "counts": {"combinations": 11_664, "placed": 8_100, "distinct": 5_400, "divisible": 297, "plans_evaluated": 297,
                   "feasible": len(feasible)},
        "rejected": [{"reason": "degrees do not multiply to the GPUs", "plans": 3_564},
                     {"reason": "the same plan as another combination", "plans": 2_700},
                     {"reason": "batch by data x micro_batch", "plans": 3_000},
                     {"reason": "layers by pipeline x virtual", "plans": 2_103}],
        "base": {**own, "events": None}, "best": found, "pareto": _pareto(feasible),
        "rank_changes": [{"text": "rank 3 of the closed form is rank 2 of events"}] if min(played, count) >= 3 else [],
        "proof": {"status": "optimal", "of": "closed form over the space listed", "gap": 0.0,
                  "text": "every plan of the space was priced or excluded by a rule"},
        "nearest_misses": [], "fastest_that_does_not_fit": {**fastest, "events": None},
        "run": {"wall_s": 4.2, "pricing_s": 0.9, "plans_per_s": 330.0, "date": "2026-01-01T00:00:00+00:00"},
    }
    return result | changes


def nothing_fits() -> dict[str, Any]:
    """The same GPUs with too little memory."""
    limit, rows = 16e9, sorted(every_plan(), key=lambda row: row["peak_memory_bytes"])
    misses = [{"set": row["set"], "peak_memory_bytes": row["peak_memory_bytes"], "step_time_s": row["step_time_s"],
               "misses_by_bytes": row["peak_memory_bytes"] - limit,
               "text": f"needs {(row['peak_memory_bytes'] - limit) / 1e9:.1f} GB more than there is"}
              for row in rows[:5]]
    assert misses[0]["misses_by_bytes"] > 0
    return document(
        answer=f"No plan fits: the nearest needs {misses[0]['misses_by_bytes'] / 1e9:.1f} GB more than the 16 GB that "
               "a GPU has.", limit_bytes=limit, constraints={"max_memory_bytes": limit}, best=[], pareto=[],
        rank_changes=[], nearest_misses=misses, base={**plan(8, 8, 1, 1, "full"), "fits": False},
        counts=document()["counts"] | {"feasible": 0})


def one_plan() -> dict[str, Any]:
    """A space with a single plan, which is the scenario's own; nothing played as events."""
    only = document(1, 0)
    row = only["best"][0]
    return only | {
        "base": {key: row[key] for key in row if key not in ("rank", "why", "differences", "changed")},
        "pareto": only["pareto"][:1], "fastest_that_does_not_fit": None, "rejected": [], "constraints": {},
        "space": {"axes": [{"key": key, "values": [value]} for key, value in row["set"].items()], "combinations": 1},
        "counts": dict.fromkeys(("combinations", "placed", "distinct", "divisible", "plans_evaluated", "feasible"), 1)}


def without_money() -> dict[str, Any]:
    """Neither price nor power is known."""
    bare = document(6, 3)
    blank = {"cost_usd": None, "energy_j": None}
    for name in ("best", "pareto"):
        bare[name] = [row | blank for row in bare[name]]
    return bare | {
        "base": None, "fastest_that_does_not_fit": None,
        "proof": {"status": "bounded", "of": "closed form", "gap": 0.025, "text": "the rest was bounded from below"}}


def hostile(text: str) -> dict[str, Any]:
    """Text of the worst kind wherever text can stand."""
    bad = document(3, 3)
    bad["best"][0]["set"]["plan.schedule"] = text
    bad["best"][0]["breakdown_s"] |= {text: 1.0}
    bad["best"][1] |= {"why": text, "changed": {text: [text, text]}}
    bad["pareto"][0]["set"] = {"plan.schedule": text}
    return bad | {
        "scenario": {"name": text, "description": text, "file": text, "inputs": {text: text}, "set": {"plan.x": text}},
        "answer": text, "objective": text, "solver": text, "kind": text, "rank_changes": [{"text": text}],
        "rejected": [{"reason": "degrees do not multiply to the GPUs", "plans": 3_564},
                     {"reason": "the same plan as another combination", "plans": 2_700},
                     {"reason": text, "plans": 1}], "space": {"axes": [{"key": text, "values": [text]}]},
        "constraints": {"max_memory_bytes": text, text: text},
        "proof": {"status": text, "of": text, "text": text, "gap": 0.5},
        "nearest_misses": [{"set": {text: text}, "text": text, "peak_memory_bytes": 9e10, "misses_by_bytes": 1e10}]}
