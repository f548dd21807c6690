"""The `calibration` block of a scenario: its measured runs as `simulator.calibrate` takes them."""

from __future__ import annotations

from placement.plan import PlanError
from placement.schedules import ScheduleError
from scenarios.build import training_inputs
from scenarios.errors import Problem, ScenarioError
from scenarios.load import LoadedScenario
from simulator.calibrate import Calibrated, Measurement, calibrated


def calibration(base: LoadedScenario, fidelity: str = "events") -> Calibrated | None:
    """The constants moved to the scenario's measured runs; None where it has none. Raises ScenarioError."""
    rows = base.scenario.calibration
    if not rows:
        return None
    measurements = [
        Measurement(training_inputs(run, fidelity), row.metric, row.value, row.source, row.set)
        for row, run in zip(rows, base.measured, strict=True)
    ]
    try:
        return calibrated(measurements)
    except (PlanError, ScheduleError) as error:
        place = base.document.key_place(("calibration",))
        raise ScenarioError([Problem.at(place, f"calibration: {error}")]) from None
