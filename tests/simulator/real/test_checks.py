"""The verdicts on a machine's profile: what holds, what does not, and what a busy machine leaves open."""

import math

import pytest

from reports.checks import markdown, parts
from simulator.real import cases, checks
from simulator.real.compare import WALL, Quantity
from simulator.real.layouts import unsupported


def row(case="one", ranks=1, *, error=0.05, loss=2.0, wall_error=0.1, memory_error=0.01, busy=False, calibrated=True):
    return {
        "case": case, "ranks": ranks, "calibrated": calibrated, "config": {"width": 8}, "sequence": 4,
        "global_batch": 2, "losses": [loss, loss],
        "quantities": [
            Quantity("step_time_s", "step time", "s", 1 + wall_error, 1.0, 0.1, WALL if busy else ""),
            Quantity("compute_s", "compute", "s", 5.0, 1.0),
            Quantity("pass_F_0", "pass F, compute", "s", 1.0 + error, 1.0, 0.02),
            Quantity("peak_memory_bytes_0", "peak memory", "B", 100 * (1 + memory_error), 100.0),
        ],
    }


SLEPT = [{"schedule": "1f1b", "ranks": 2, "micro_batches": 4, "order_equal": True, "first_difference": None,
          "simulated_s": 1.0, "measured_s": 1.05, "error": -0.048, "spread": 0.01, "bubble_simulated": 0.3,
          "bubble_measured": 0.31}]
BEFORE = {"wall_over_cpu": 1.0, "load": 0.1, "pressure_some_avg10": 0.0}


def held(compute=None, layouts=None, slept=SLEPT, calm=True):
    layouts = {1: [row()], 2: [row("two", 2)]} if layouts is None else layouts
    document = checks.document(compute or [row()], layouts, slept, calm, BEFORE)
    return {one["name"]: one["held"] for one in document["verdicts"]}


def test_all_within_their_limits_hold():
    assert set(held().values()) == {True}


@pytest.mark.parametrize(("errors", "expected"), [
    ([0.09, -0.01], True), ([0.11, 0.0], False), ([-0.11, 0.0], False), ([0.07, 0.07], False), ([0.09, 0.0], True)])
def test_compute_has_a_limit_each_and_one_on_average(errors, expected):
    assert held([row(error=error) for error in errors])["compute of every pass"] is expected


def test_an_order_that_differs_and_a_makespan_that_is_off_do_not_hold():
    assert held(slept=[SLEPT[0] | {"order_equal": False}])["order of torch's schedules"] is False
    assert held(slept=[SLEPT[0] | {"error": 0.09}])["makespan of torch's schedules"] is False


@pytest.mark.parametrize(("loss", "expected"), [(2.0, True), (2.0 * (1 + 5e-5), True), (2.0 * (1 + 2e-4), False)])
def test_losses_are_those_of_one_process(loss, expected):
    found = held(layouts={1: [row()], 2: [row("two", 2, loss=loss)]})
    assert found["losses of layouts"] is expected


def test_a_layout_without_losses_does_not_pass_for_equal():
    lost = row("two", 2) | {"losses": []}
    document = checks.document([row()], {1: [row()], 2: [lost]}, SLEPT, True, BEFORE)
    assert document["losses"][0]["difference"] == math.inf


def test_wall_clock_is_judged_on_a_quiet_machine_alone():
    slow = {1: [row()], 2: [row("two", 2, wall_error=0.4)]}
    assert held(layouts=slow)["wall clock of layouts"] is False
    busy = {1: [row(busy=True)], 2: [row("two", 2, wall_error=0.4, busy=True)]}
    assert held(layouts=busy, calm=False)["wall clock of layouts"] is None


def test_memory_is_held_to_three_percent():
    assert held(layouts={1: [row(memory_error=0.031)]})["peak memory"] is False


def test_the_page_has_a_row_for_every_figure():
    document = checks.document([row()], {1: [row()], 2: [row("two", 2)]}, SLEPT, True, BEFORE)
    document |= {"profile": "mine", "machine": {"cpu": "a | b"}, "run": {"date": "2026-11-24"}}
    page = markdown(document, "# Title")
    assert page.startswith("# Title\n")
    for title, _, rows in parts(document):
        assert rows
        assert f"## {title}" in page
    assert page.count("| one | 1 |") == 3  # memory of the compute run and of the layout; wall clock of the layout


@pytest.mark.parametrize("case", [*cases.COMPUTE, *(case for of in cases.LAYOUTS.values() for case in of)],
                         ids=lambda case: f"{case.name} {case.sequence}")
def test_torch_lays_out_every_case(case):
    plan = checks.Plan(**{"precision": "fp32", "state_bytes": "fp32", "sharding": "ddp", **case.plan})
    assert unsupported(case.model, plan) == []


def test_every_layout_has_its_like_in_one_process():
    alone = {(str(case.config), case.sequence, case.global_batch) for case in cases.LAYOUTS[1]}
    for count, of in cases.LAYOUTS.items():
        for case in of:
            assert (str(case.config), case.sequence, case.global_batch) in alone
            assert math.prod(case.plan.get(axis, 1) for axis in ("tensor", "data", "pipeline")) == count
