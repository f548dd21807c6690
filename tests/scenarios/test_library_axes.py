"""The library scenarios of context and expert axes show the trade they describe."""

from __future__ import annotations

from typing import Any

import pytest

from scenarios.commands.run import predict_prepared, prepare


def arms(name: str, *settings: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    document = predict_prepared(*prepare(name, settings), "analytic")
    return document, {row["name"]: row for row in document["variants"]}


def test_a_ring_hides_what_a_gather_shows() -> None:
    """The same bytes: bare in front of attention, or beside it at the cost of overlap."""
    base, others = arms("long-context-8b-128k-h100")
    assert base["fits"]
    assert base["breakdown_s"]["context_communication"] > 0
    ring = others["ring"]
    assert ring["step_time_s"] < base["step_time_s"]
    assert ring["breakdown_s"]["context_communication"] == pytest.approx(0.0, abs=1e-9)
    assert ring["breakdown_s"]["contention"] > base["breakdown_s"]["contention"]


def test_ulysses_is_best_inside_a_node_and_loses_its_edge_where_heads_repeat() -> None:
    base, others = arms("long-context-8b-128k-h100")
    inside = others["ulysses in a node, 8 ranks"], others["all-gather in a node, 8 ranks"]
    assert inside[0]["step_time_s"] < inside[1]["step_time_s"]
    assert others["ulysses"]["step_time_s"] > 0.99 * base["step_time_s"]


def test_splitting_experts_sends_more_and_multiplies_faster() -> None:
    base, others = arms("experts-8x22b-h100")
    split = [base, *(others[name] for name in others if name.startswith("expert "))]
    sent = [row["breakdown_s"]["expert_communication"] for row in split]
    assert sent == sorted(sent)
    assert others["expert 4, split over 2"]["breakdown_s"]["gemm"] < base["breakdown_s"]["gemm"]
    assert max(split, key=lambda row: row["step_time_s"]) is others["expert 1, split over 8"]


def test_changes_that_would_fit_leave_room_for_the_experts() -> None:
    """A degree that takes ranks from the experts is no way out; asking for one must not fail."""
    longer = ("plan.virtual=1", "plan.schedule=1f1b", "plan.micro_batch=8", "plan.recompute=none")
    base, _ = arms("experts-8x22b-h100", *longer)
    assert not base["fits"]
    assert all(change["set"].get("plan.pipeline") != 8 for change in base["fit"]["changes"])
