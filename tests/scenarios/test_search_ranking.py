"""Published sweeps are ranked by the search's arrays as the accuracy table ranks them."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from placement.search.pricing import Pricing
from placement.search.space import Space, blocks
from placement.step import has_law
from scenarios.accuracy import predict, rows, score
from scenarios.accuracy.predict import Outcome, Predicted
from simulator.inputs import TrainingInputs
from simulator.predict import setting_of
from tests.scenarios.test_accuracy_rows import SHARED


def by_search(inputs: TrainingInputs) -> float:
    """Seconds of a step from a space that holds this one plan."""
    setting = setting_of(inputs)
    plan, stack = setting.plan, setting.stack
    values = {f"plan.{f.name}": getattr(plan, f.name) for f in fields(plan) if f.name != "data"}
    values |= {f"stack.{f.name}": getattr(stack, f.name) for f in fields(stack)}
    pricing = Pricing(setting, Space({}, values), inputs.global_batch)
    (block,) = blocks(pricing.space, inputs.model, inputs.cluster.accelerators)
    prices = pricing.price(block)
    assert prices.exact
    return float(prices.step_time_s.item())


def searched(one: Predicted) -> Predicted:
    step_time_s = by_search(one.inputs)
    assert step_time_s == pytest.approx(one.step_time_s, rel=1e-9)
    return replace(one, step_time_s=step_time_s,
                   tokens_per_s_per_gpu=one.tokens_per_s_per_gpu * one.step_time_s / step_time_s)


@pytest.mark.skipif(not SHARED.is_file(), reason="the published rows are not beside this checkout")
def test_sweeps_are_ranked_alike_and_above_the_thresholds() -> None:
    """The sweeps whose rows are fully stated and whose schedules have a law."""
    found = [row for row in rows.read(SHARED).rows if row.scores_time and row.fully_specified]
    of_sweep: dict[tuple[str, ...], list[rows.Row]] = {}
    for row in found:
        of_sweep.setdefault(tuple(row.text(column) for column in score.SWEEP_COLUMNS), []).append(row)
    sweeps = [sweep for sweep in of_sweep.values() if len(sweep) >= score.LEAST_SWEEP]
    chosen = [row for sweep in sweeps for row in sweep]
    outcomes = [one for one in predict.outcomes(chosen)
                if one.range and all(has_law(setting_of(of.inputs)) for of in one.range)]
    again = [Outcome(one.row, one.imported, tuple(searched(of) for of in one.range)) for one in outcomes]
    ranking = score.ranking(speeds(again))
    assert ranking["sweeps"] >= 10
    assert ranking["pairs"] >= 100
    assert ranking == score.ranking(speeds(outcomes))
    assert ranking["kendall_tau_median"] >= 0.85
    assert ranking["pairs_ordered_right"] >= 0.85
    assert ranking["loss_of_chosen_plan_median"] <= 0.03


def speeds(outcomes: list[Outcome]) -> list[score.Scored]:
    found = (of for one in outcomes for of in score.score(one))
    return [of for of in found if of.metric == score.SPEED and of.exception is None]
