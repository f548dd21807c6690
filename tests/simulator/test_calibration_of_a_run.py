"""One measured run moves the constants of whole runs: enough to agree, no further, within their ranges."""

from __future__ import annotations

import io
import json
import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from costmodel import constants
from costmodel.constants import RANGES, Constants
from reports import page, run_table
from scenarios.build import training_inputs
from scenarios.commands.run import predict_prepared, prepare
from scenarios.load import load
from simulator import calibrate
from simulator.calibrate import AGREEMENT, PRIORS, RESIDUAL, Measurement, calibrated
from simulator.inputs import TrainingInputs
from simulator.predict import play, summary

SHIPPED = constants.default()
SCENARIO = """\
name: a small run
model: llama-3.1-8b
cluster: {node: NODE, nodes: 1}
workload: {kind: pretrain, sequence: 4096, global_batch: 32}
plan: {data: 8, sharding: fsdp, micro_batch: 1, precision: bf16}
stack: {execution: EXECUTION, attention: flash-2, overlap: [data]}
what_if:
  - {name: larger micro-batch, set: {plan.micro_batch: 2}}
"""


def text(node: str = "hgx-h100", execution: str = "compiled", calibration: str = "") -> str:
    base = SCENARIO.replace("NODE", node).replace("EXECUTION", execution)
    return base + (f"calibration:\n  - {calibration}\n" if calibration else "")


def inputs(folder: Path, node: str = "hgx-h100", execution: str = "compiled", fidelity: str = "analytic",
           settings: tuple[str, ...] = ()) -> TrainingInputs:
    file = folder / "f.yaml"
    file.write_text(text(node, execution), encoding="utf-8")
    return training_inputs(load(file, settings), fidelity)


def predicted(of: TrainingInputs, by: Constants = SHIPPED, metric: str = "step_time_s") -> float:
    moved = replace(of, constants=by)
    return float(summary(moved, play(moved))[0][metric])


def test_every_constant_has_a_prior_and_ships_within_its_range():
    assert set(PRIORS) == set(RANGES) == set(asdict(SHIPPED))
    for name, value in asdict(SHIPPED).items():
        low, high = RANGES[name]
        assert low <= value <= high
        assert 0 < PRIORS[name].deviation < high - low


@pytest.mark.parametrize(
    ("metric", "fidelity"), [("step_time_s", "events"), *((metric, "analytic") for metric in calibrate.METRICS)]
)
def test_a_run_made_with_other_constants_is_met(tmp_path, metric, fidelity):
    of = inputs(tmp_path, fidelity=fidelity)
    other = replace(SHIPPED, hopper=SHIPPED.hopper + 0.1, communication=SHIPPED.communication + 0.3)
    measured = predicted(of, other, metric)
    found = calibrated([Measurement(of, metric, measured, "made")])
    (row,) = found.rows
    assert abs(row["error_before"]) > 0.04
    assert row["after"] == pytest.approx(measured, rel=0.01)
    assert row["after"] == predicted(of, found.constants, metric)
    assert row["error_after"] == pytest.approx(row["after"] / measured - 1)


def test_a_pipeline_is_met_as_it_is_played(tmp_path):
    """Played and closed form differ there: the solution agrees with what is played."""
    of = inputs(tmp_path, fidelity="events", settings=("plan.pipeline=4", "plan.data=2", "plan.sharding=zero-1"))
    assert predicted(of) != pytest.approx(predicted(replace(of, fidelity="analytic")), rel=1e-6)
    measured = predicted(of) * 1.12
    (row,) = calibrated([Measurement(of, "step_time_s", measured, "made")]).rows
    assert row["after"] == pytest.approx(measured, rel=0.005)


def test_several_runs_give_back_the_constants_they_were_made_with(tmp_path):
    """Runs whose slopes differ tell constants apart; held-out settings are then predicted."""
    other = replace(SHIPPED, ampere=SHIPPED.ampere + 0.15, eager_traffic=SHIPPED.eager_traffic + 0.9)
    settings = [(), ("plan.recompute=full",), ("workload.sequence=16384", "workload.global_batch=8"),
                ("stack.execution=compiled",)]
    runs = [inputs(tmp_path, "hgx-a100", "eager", settings=each) for each in settings]
    made = [Measurement(run, "step_time_s", predicted(run, other), "made") for run in runs]
    found = calibrated(made)
    assert found.constants.ampere == pytest.approx(other.ampere, abs=0.03)
    assert found.constants.eager_traffic == pytest.approx(other.eager_traffic, abs=0.2)
    assert all(abs(row["error_after"]) < 0.005 for row in found.rows)
    held_out = inputs(tmp_path, "hgx-a100", "eager", settings=("plan.micro_batch=4",))
    assert predicted(held_out, found.constants) == pytest.approx(predicted(held_out, other), rel=0.01)


def test_a_slower_measurement_moves_constants_further(tmp_path):
    of = inputs(tmp_path)
    base = predicted(of)
    factors = [0.9, 1.0, 1.1, 1.2]
    found = [calibrated([Measurement(of, "step_time_s", base * factor, "made")]) for factor in factors]
    after = [one.rows[0]["after"] for one in found]
    assert all(np.diff(after) > 0)
    assert all(np.diff([one.constants.hopper for one in found]) >= 0)
    assert found[1].constants == SHIPPED
    assert found[1].moved == ()
    assert "every constant" in found[1].text


def test_it_is_the_least_movement(tmp_path):
    """No set on a grid of the constants that matter agrees as well and lies nearer to the shipped one."""
    of = inputs(tmp_path)
    measured = predicted(of) * 1.08
    found = calibrated([Measurement(of, "step_time_s", measured, "made")]).constants

    def loss(values: Constants) -> float:
        error = np.log(predicted(of, values) / measured) / AGREEMENT
        away = [(getattr(values, name) - getattr(SHIPPED, name)) / PRIORS[name].deviation for name in PRIORS]
        return float(error**2 + np.square(away).sum())

    best = loss(found)
    for hopper in np.linspace(1.1, 1.4, 7):
        for communication in np.linspace(1.0, 2.2, 5):
            for cost in np.linspace(0.0, 1.0, 5):
                tried = replace(SHIPPED, hopper=float(hopper), communication=float(communication),
                                overlap_cost=float(cost))
                assert loss(tried) > best * 0.95


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_what_the_ranges_do_not_allow_stays_and_is_said(tmp_path, factor):
    of = inputs(tmp_path)
    measured = predicted(of) * factor
    found = calibrated([Measurement(of, "step_time_s", measured, "made")])
    end = 1 if factor > 1 else 0
    assert found.constants.hopper == RANGES["hopper"][end]
    assert all(RANGES[n][0] <= value <= RANGES[n][1] for n, value in asdict(found.constants).items())
    (row,) = found.rows
    assert abs(row["error_after"]) > RESIDUAL
    assert abs(np.log(row["after"] / measured)) < abs(np.log(row["before"] / measured))
    assert f"hopper at the end of its range ({RANGES['hopper'][end]:g})" in found.text
    assert f"{abs(row['error_after']):.1%}" in found.text


def test_runs_that_contradict_one_another_are_said_to(tmp_path):
    of = inputs(tmp_path)
    base = predicted(of)
    found = calibrated([Measurement(of, "step_time_s", base * factor, "made") for factor in (0.95, 1.05)])
    assert "no one set of constants meets them all" in found.text
    assert found.rows[0]["after"] == found.rows[1]["after"] == pytest.approx(base, rel=0.01)


def test_a_constant_without_influence_does_not_move(tmp_path):
    """Hopper, no eager operators, one node: nothing to learn on other GPUs or eager traffic."""
    of = inputs(tmp_path)
    found = calibrated([Measurement(of, "step_time_s", predicted(of) * 1.15, "made")])
    for name in ("ampere", "blackwell", "other", "eager_traffic"):
        assert getattr(found.constants, name) == getattr(SHIPPED, name)
    names = [row["name"] for row in found.moved]
    assert "hopper" in names
    assert set(names) == {n for n in PRIORS if getattr(found.constants, n) != getattr(SHIPPED, n)}


def test_a_host_that_matters_only_far_away_is_found(tmp_path):
    """Slower than all other constants at their ends explain: the host's moves from where it has no slope."""
    settings = ("plan.sharding=zero-1", "workload.sequence=1024", "stack.host_layer=0.5 ms")
    of = inputs(tmp_path, settings=settings)
    nearby = [replace(SHIPPED, host=SHIPPED.host + sign * PRIORS["host"].deviation) for sign in (-1, 1)]
    ends = Constants(**{name: high for name, (_, high) in RANGES.items()})
    others = predicted(of, replace(ends, host=SHIPPED.host))
    assert predicted(of, nearby[1]) == pytest.approx(predicted(of, nearby[0]), rel=0.01)
    assert predicted(of, ends) > 1.02 * others
    measured = (others + predicted(of, ends)) / 2
    found = calibrated([Measurement(of, "step_time_s", measured, "made")])
    assert found.rows[0]["after"] == pytest.approx(measured, rel=0.01)
    assert found.constants.host > SHIPPED.host + 2 * PRIORS["host"].deviation


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_values_must_be_above_zero(tmp_path, value):
    with pytest.raises(ValueError, match="above 0"):
        calibrated([Measurement(inputs(tmp_path), "step_time_s", value, "made")])


def test_no_runs_are_refused():
    with pytest.raises(ValueError, match="one measured run"):
        calibrated([])


# The block of a scenario -----------------------------------------------------------------------------


def document(folder: Path, *, calibration: str = "", settings: tuple[str, ...] = ()) -> dict:
    file = folder / "f.yaml"
    file.write_text(text(calibration=calibration), encoding="utf-8")
    return predict_prepared(*prepare(str(file), settings))


def without_run(found: dict) -> str:
    return json.dumps({key: value for key, value in found.items() if key not in ("run", "scenario")}, sort_keys=True)


def test_base_and_variants_use_the_moved_constants(tmp_path):
    shipped = document(tmp_path)
    measured = shipped["step_time_s"] * 1.1
    found = document(tmp_path, calibration=f"{{metric: step_time_s, value: {measured}, source: ours}}")
    assert found["step_time_s"] == found["calibration"]["rows"][0]["after"] == pytest.approx(measured, rel=0.01)
    assert found["variants"][0]["step_time_s"] > 1.05 * shipped["variants"][0]["step_time_s"]
    moved = Constants(**asdict(SHIPPED) | {row["name"]: row["moved"] for row in found["calibration"]["moved"]})
    of = inputs(tmp_path, fidelity="events", settings=("plan.micro_batch=2",))
    assert found["variants"][0]["step_time_s"] == predicted(of, moved)
    assert any("measured runs" in row["source"] for row in found["assumptions"])
    assert not any("measured runs" in row["source"] for row in shipped["assumptions"])


def test_a_measured_variant_calibrates_the_base(tmp_path):
    shipped = document(tmp_path)
    measured = shipped["variants"][0]["mfu"] / 1.1
    row = f"{{metric: mfu, value: {measured}, set: {{plan.micro_batch: 2}}, source: ours}}"
    found = document(tmp_path, calibration=row)
    assert found["calibration"]["rows"][0]["before"] == pytest.approx(shipped["variants"][0]["mfu"])
    assert found["variants"][0]["mfu"] == pytest.approx(measured, rel=0.01)
    assert found["step_time_s"] > 1.05 * shipped["step_time_s"]


def test_the_measured_run_is_the_file_as_written(tmp_path):
    """What the command line overrides is asked about; it is not what was measured."""
    row = "{metric: step_time_s, value: 2.5 s, source: ours}"
    asked = document(tmp_path, calibration=row, settings=("plan.micro_batch=2",))
    assert asked["calibration"] == document(tmp_path, calibration=row)["calibration"]
    assert asked["step_time_s"] != asked["calibration"]["rows"][0]["after"]


def test_without_the_block_nothing_changes(tmp_path):
    plain = document(tmp_path)
    assert "calibration" not in plain
    file = tmp_path / "f.yaml"
    file.write_text(text() + "calibration: []\n", encoding="utf-8")
    assert without_run(predict_prepared(*prepare(str(file)))) == without_run(plain)


def test_the_example_of_the_readme_loads(tmp_path):
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    block = textwrap.dedent(readme[readme.index("    calibration:"):].split("\n\n")[0])
    file = tmp_path / "f.yaml"
    file.write_text(f"{text()}{block}\n", encoding="utf-8")
    assert [run.scenario.plan.micro_batch for run in load(file).measured] == [1, 2]


def test_table_and_page_show_what_moved(tmp_path):
    row = "{metric: step_time_s, value: 2.5 s, source: our <run>, set: {plan.micro_batch: 2}}"
    found = document(tmp_path, calibration=row)
    assert found["calibration"]["moved"]
    shown = io.StringIO()
    run_table.show(found, Console(width=200, file=shown))
    terminal, html = shown.getvalue(), page.render(found)
    for moved in found["calibration"]["moved"]:
        assert moved["meaning"] in terminal
        assert moved["meaning"] in html
    assert "plan.micro_batch = 2; our <run>" in terminal
    assert "plan.micro_batch = 2; our &lt;run&gt;" in html
    assert 'id="calibration"' in html
    assert 'id="calibration"' not in page.render(document(tmp_path))
