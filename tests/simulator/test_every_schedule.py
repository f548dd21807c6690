"""Every registered schedule end to end: the event player and the closed form are two ways to the same step."""

from __future__ import annotations

import pytest

from costmodel.stack import Stack
from placement import schedules
from placement.passes import Setting
from placement.step import analytic_step
from simulator.engine import static
from simulator.timeline import Timeline
from simulator.training import lower
from tests.training_cases import setting

RANKS, GLOBAL_BATCH = 4, 12


def case_of(name: str, **plan: object) -> Setting:
    schedule = schedules.get(name)
    return setting(
        node="hgx-a100", sequence=2048, stack=Stack("fused", "flash-2", ("pipeline",)), pipeline=RANKS, schedule=name,
        virtual=schedule.least_chunks if schedule.routes == 1 else 1, sharding="ddp",
        segments=2 if schedule.takes_segments else 1, **plan)


def played(case: Setting) -> Timeline:
    return static.play(lower(case, GLOBAL_BATCH).program)


@pytest.mark.parametrize("name", schedules.names())
def test_the_fidelities_agree_in_time_and_memory(name: str) -> None:
    case = case_of(name)
    timeline, closed = played(case), analytic_step(case, GLOBAL_BATCH)
    assert closed.step_time_s == pytest.approx(timeline.makespan_s, rel=3e-3)
    for stage in range(RANKS):
        assert closed.peak_bytes[stage] == pytest.approx(timeline.peak(stage, "hbm")[0], rel=0.03), stage
        assert sum(closed.breakdown_by_stage[stage].values()) == pytest.approx(closed.step_time_s)
        assert sum(timeline.breakdown(stage).values()) == pytest.approx(timeline.makespan_s)


def keeps_shapes(name: str) -> bool:
    """Segments and shares of the vocabulary make shorter matrix products, which take longer."""
    schedule = schedules.get(name)
    return not schedule.takes_segments and not schedule.barriers


@pytest.mark.parametrize("name", [name for name in schedules.names() if keeps_shapes(name)])
def test_work_is_conserved(name: str) -> None:
    """Whatever the order, all ranks together do the same matrix products: the order moves work, it makes none."""
    def products_s(case: Setting) -> float:
        timeline = played(case)
        return sum(timeline.breakdown(stage)["gemm"] for stage in range(RANKS))

    assert products_s(case_of(name)) == pytest.approx(products_s(case_of("1f1b")), rel=1e-9)


def test_without_a_barrier_a_step_takes_the_longest_span() -> None:
    """Zero-bubble orders gain what lies between the first start of rank 0 and that of the last rank."""
    for name in ("zb-h2", "zb-2p", "zbv"):
        closed = [analytic_step(case_of(name, optimizer_barrier=barrier), GLOBAL_BATCH).step_time_s
                  for barrier in (False, True)]
        timeline = played(case_of(name, optimizer_barrier=False))
        spans = [timeline.span_s(timeline.compute_stream(stage)) for stage in range(RANKS)]
        assert closed[0] == pytest.approx(max(spans), rel=3e-3)
        assert closed[0] < closed[1]
