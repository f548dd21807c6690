"""The search over plans as arrays, against plans priced one by one."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.stack import Stack
from placement import divisibility
from placement.memory import DEVICE_OVERHEAD_BYTES
from placement.passes import Setting
from placement.plan import PlanError
from placement.schedules import ScheduleError
from placement.search.exhaustive import Case, Limits, search
from placement.search.pareto import front
from placement.search.pricing import Pricing
from placement.search.space import Space, blocks
from placement.step import BUSY, analytic_step
from tests.training_cases import setting

BATCH = 64
WIDE: dict[str, tuple[Any, ...]] = {
    "plan.tensor": (1, 2, 4, 8),
    "plan.pipeline": (1, 2, 4, 8),
    "plan.context": (1, 2, 4),
    "plan.virtual": (1, 2, 3),
    "plan.schedule": ("1f1b", "gpipe", "interleaved-1f1b"),
    "plan.micro_batch": (1, 2, 3),
    "plan.sequence_parallel": (False, True),
    "plan.context_method": ("all-gather", "ring", "ulysses"),
    "plan.recompute": ("none", "selective", "full"),
    "plan.sharding": ("ddp", "zero-1", "zero-3", "fsdp-no-reshard", "mics", "zero-offload",
                      "internevo", "internevo-isp"),
    "plan.shard_group": (None, 2),
    "stack.overlap": ((), ("data",), ("data", "pipeline"), ("pipeline", "tensor", "context")),
}
SMALL: dict[str, tuple[Any, ...]] = {
    "plan.tensor": (1, 2, 3),
    "plan.pipeline": (1, 2, 4),
    "plan.virtual": (1, 2),
    "plan.schedule": ("1f1b", "interleaved-1f1b"),
    "plan.micro_batch": (1, 2),
    "plan.sequence_parallel": (False, True),
    "plan.sharding": ("zero-1", "fsdp"),
    "stack.overlap": (("data",), ("data", "tensor")),
}


def space_of(base: Setting, axes: dict[str, tuple[Any, ...]]) -> Space:
    values = {f"plan.{f.name}": getattr(base.plan, f.name) for f in fields(base.plan) if f.name != "data"}
    values |= {f"stack.{f.name}": getattr(base.stack, f.name) for f in fields(base.stack)}
    return Space(axes, values)


def one_plan(base: Setting, values: dict[str, Any]) -> Setting:
    """A combination written out as a setting, without what the search knows."""
    plan = {key.removeprefix("plan."): value for key, value in values.items() if key.startswith("plan.")}
    stack = {key.removeprefix("stack."): value for key, value in values.items() if key.startswith("stack.")}
    degrees = [plan.get(name, getattr(base.plan, name)) for name in ("tensor", "pipeline", "context")]
    data = base.cluster.accelerators // int(np.prod(degrees))
    return replace(base, plan=replace(base.plan, **plan, data=data), stack=replace(base.stack, **stack))


def costs_alone(one: Setting) -> dict[str, float] | None:
    """Time, memory and busy time of a plan by itself; None where it cannot be laid."""
    plan = one.plan
    if plan.gpus != one.cluster.accelerators or divisibility.layout_fits(one.model, plan):
        return None
    if not all(np.all(holds) for _, holds in divisibility.rules(one.model, plan, int(one.sequence), BATCH)):
        return None
    if not divisibility.shard_group_divides(plan):
        return None
    step = analytic_step(one, BATCH)
    return {"time": step.step_time_s, "memory": max(step.peak_bytes) + DEVICE_OVERHEAD_BYTES,
            "busy": sum(step.breakdown_s.get(category, 0.0) for category in BUSY)}


MOE_AXES = {"plan.expert": (1, 2, 4, 8), "plan.expert_tensor": (1, 2)}
CASES = {
    "dense": (setting("llama-3.1-8b", nodes=2, sequence=8192, layers=13), WIDE),
    "experts": (setting("mixtral-8x7b", nodes=2, sequence=4096, layers=8), WIDE | MOE_AXES),
    "unequal layers": (setting("deepseek-v3", nodes=2, sequence=4096, layers=7), SMALL | MOE_AXES | {
        "plan.stage_layers": ("even", "balanced"), "plan.precision": ("bf16", "fp8")}),
}


@pytest.mark.parametrize("name", CASES)
def test_arrays_equal_single_plans(name: str) -> None:
    base, axes = CASES[name]
    pricing, rng = Pricing(base, space_of(base, axes), BATCH), np.random.default_rng(7)
    found = [block for block in blocks(pricing.space, base.model, 16) if not pricing.layout_fault(block)]
    compared = 0
    for block in rng.permutation(np.array(found, dtype=object))[:60]:
        prices = pricing.price(block)
        places = np.argwhere(prices.divides)
        for place in rng.permutation(places)[:3]:
            index = tuple(int(n) for n in place)
            alone = costs_alone(one_plan(base, block.values_at(index, list(axes))))
            assert alone is not None
            assert prices.step_time_s[index] == pytest.approx(alone["time"], rel=1e-12)
            assert prices.needed_bytes[index] == pytest.approx(alone["memory"], rel=1e-12)
            assert prices.busy_s[index] == pytest.approx(alone["busy"], rel=1e-12)
            compared += 1
    assert compared > 100


def meaning(values: dict[str, Any]) -> tuple[Any, ...]:
    """A combination with what does not matter struck out: written for these axes, apart from the search."""
    struck = dict(values)
    idle = set()
    if values["plan.tensor"] == 1:
        struck["plan.sequence_parallel"] = None
        idle.add("tensor")
    if values["plan.pipeline"] == 1:
        struck["plan.schedule"] = None
    struck["stack.overlap"] = tuple(sorted(set(values["stack.overlap"]) - idle))
    return tuple(struck.values())


def every_combination(axes: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def test_counts_and_best_are_those_of_every_plan_one_by_one() -> None:
    base = setting("llama-3.1-8b", nodes=1, sequence=4096, layers=9)
    alone = {meaning(values): costs_alone(one_plan(base, values)) for values in every_combination(SMALL)
             if 8 % (values["plan.tensor"] * values["plan.pipeline"]) == 0}
    sound = {key: costs for key, costs in alone.items() if costs is not None}
    limit = float(np.median([costs["memory"] for costs in sound.values()]))
    fitting = {key: costs for key, costs in sound.items() if costs["memory"] <= limit}

    found = search([Case(base, BATCH)], space_of(base, SMALL), lambda _: Limits(limit), top=5)
    counts = found.counts
    assert counts.combinations == len(every_combination(SMALL))
    assert (counts.distinct, counts.priced, counts.feasible) == (len(alone), len(sound), len(fitting))
    assert sum(counts.rejected.values()) == len(alone) - len(sound)
    ranked = sorted(costs["time"] for costs in fitting.values())[:5]
    assert [one.scores["time"] for one in found.best] == pytest.approx(ranked, rel=1e-12)
    assert all(meaning(dict(one.values)) in fitting for one in found.best)
    misses = sorted(costs["memory"] for costs in sound.values() if costs["memory"] > limit)[:3]
    assert [one.scores["memory"] for one in found.nearest_misses] == pytest.approx(misses, rel=1e-12)
    assert found.gap == 0.0


def test_a_plan_of_the_front_is_bettered_by_none() -> None:
    base = setting("llama-3.1-8b", nodes=1, sequence=4096, layers=9)
    sound = [costs for values in every_combination(SMALL)
             if 8 % (values["plan.tensor"] * values["plan.pipeline"]) == 0
             and (costs := costs_alone(one_plan(base, values))) is not None]
    case = Case(base, BATCH)
    every = np.array([list(case.scores(one["time"], one["memory"], one["busy"]).values()) for one in sound])
    found = search([case], space_of(base, SMALL), lambda _: Limits(1e15), objective="memory")
    kept = np.array([list(one.scores.values()) for one in found.pareto])
    assert kept.shape[1] == 4  # time, memory, cost and energy
    for point in kept:
        assert not (every < point * (1 - 1e-12)).all(axis=1).any()
    for point in every:
        assert (kept <= point * (1 + 1e-12)).all(axis=1).any()
    assert found.best[0].scores["memory"] == pytest.approx(every[:, 1].min())


def test_schedules_without_a_law_are_played_until_no_other_can_be_among_the_best() -> None:
    base = setting("llama-3.1-8b", nodes=1, sequence=4096, layers=8)
    axes = SMALL | {"plan.schedule": ("1f1b", "zb-h1", "interleaved-1f1b"), "plan.pipeline": (4, 8),
                    "plan.sharding": ("zero-1",)}
    alone: dict[tuple[Any, ...], float] = {}
    for values in every_combination(axes):
        if 8 % (values["plan.tensor"] * values["plan.pipeline"]) == 0:
            try:
                costs = costs_alone(one_plan(base, values))
            except (PlanError, ScheduleError):
                continue
            if costs is not None:
                alone[meaning(values)] = costs["time"]
    found = search([Case(base, BATCH)], space_of(base, axes), lambda _: Limits(1e15), top=4)
    assert [one.scores["time"] for one in found.best] == pytest.approx(sorted(alone.values())[:4], rel=1e-9)
    assert found.gap == 0.0
    assert 0 < found.counts.played < found.counts.bounded
    cut = search([Case(base, BATCH)], space_of(base, axes), lambda _: Limits(1e15), top=4, most_played=0)
    assert cut.gap > 0.0
    assert cut.counts.played == 0
    assert cut.best[0].scores["time"] * (1.0 - cut.gap) <= found.best[0].scores["time"] * (1 + 1e-12)


def test_limits_and_objectives() -> None:
    base = setting("llama-3.1-8b", nodes=1, sequence=4096, layers=9)
    space = space_of(base, SMALL)
    fastest = search([Case(base, BATCH)], space, lambda _: Limits(1e15), top=1).best[0]
    slower = {"time": fastest.scores["time"] * 0.999}
    assert not search([Case(base, BATCH)], space, lambda _: Limits(1e15, slower)).best
    nothing = search([Case(base, BATCH)], space, lambda _: Limits(1e6))
    assert not nothing.best
    assert nothing.nearest_misses
    assert nothing.fastest_miss is not None
    assert nothing.fastest_miss.scores["time"] == pytest.approx(fastest.scores["time"])
    half = replace(base, cluster=replace(base.cluster, accelerators=4))
    both = search([Case(base, BATCH), Case(half, BATCH)], space, lambda _: Limits(1e15), top=1)
    assert both.best[0].case.gpus == 8
    assert both.counts.combinations == 2 * space.combinations
    unpriced = replace(base.cluster.node.accelerator, price_usd_per_hour=None)
    free = replace(base, cluster=replace(base.cluster, node=replace(base.cluster.node, accelerator=unpriced)))
    with pytest.raises(ValueError, match="no price"):
        search([Case(free, BATCH)], space, lambda _: Limits(1e15), objective="cost")


def test_axes_that_cannot_be() -> None:
    base = setting()
    with pytest.raises(ValueError, match="has no values"):
        space_of(base, {"plan.tensor": ()})
    with pytest.raises(ValueError, match=r"plan\.data"):
        space_of(base, {"plan.data": (1,)})


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_front_by_brute_force(points: list[tuple[int, int, int]]) -> None:
    rows = np.array(points)
    kept = front(rows)
    for row in rows:
        assert any((rows[index] <= row).all() for index in kept)  # each is bettered or equalled by a kept one
    for one in kept:
        for other in kept:
            assert one == other or not (rows[other] <= rows[one]).all()


def test_overlap_of_tensor_traffic_matters_only_with_tensor_ranks() -> None:
    base = setting("llama-3.1-8b", nodes=1, stack=Stack("fused", "flash-3", ()))
    space = space_of(base, {"plan.tensor": (1, 2), "stack.overlap": ((), ("tensor",))})
    assert sum(block.plans for block in blocks(space, base.model, 8)) == 3
