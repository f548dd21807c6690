"""Techniques and memory layers as a person asks for them: keys, bad input, what comes out of `whatif run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel import techniques
from scenarios.cli import app

BASE = "llama-3.1-8b-8xh100"


def whatif(*arguments: str | Path):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run(*settings: str, scenario: str = BASE, fidelity: str = "events"):
    flags = [flag for one in settings for flag in ("--set", one)]
    result = whatif("run", scenario, "--fidelity", fidelity, "--json", *flags)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(("setting", "told"), [
    ("plan.techniques.frugall.density=0.5", "unknown key 'frugall' in plan.techniques; did you mean 'frugal'?"),
    ("plan.techniques.frugal.densty=0.5", "unknown key 'densty' in plan.techniques.frugal; did you mean 'density'?"),
    ("plan.techniques.frugal.density=1.5", "plan.techniques.frugal.density: at most 1.0 is expected, got 1.5"),
    ("plan.techniques.frugal.variant=colums", "did you mean 'columns'?"),
    ("plan.techniques.compact.rank=0", "plan.techniques.compact.rank"),
    ("plan.techniques.mixlora.experts=1", "plan.techniques.mixlora: a token cannot visit 2 of 1 experts"),
    ("plan.techniques=frugal", "plan.techniques"),
])
def test_bad_techniques_end_with_2_and_a_hint(setting: str, told: str) -> None:
    result = whatif("run", BASE, "--set", setting)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_techniques_that_a_model_rules_out() -> None:
    result = whatif("run", BASE, "--set", "model=mixtral-8x7b", "--set", "plan.precision=bf16",
                    "--set", "plan.techniques.mixture_of_channels.keep=0.2")
    assert result.exit_code == 2
    assert "plan.techniques.mixture_of_channels" in result.stderr
    both = whatif("run", BASE, "--set", "plan.trainable=lora", "--set", "plan.techniques.mixlora.rank=4")
    assert "plan.techniques.mixlora: lora and mixlora each freeze the model" in both.stderr


@pytest.mark.parametrize(("key", "told"), [
    ("layers: [4, 42]", "model.memory_layers.layers: 42 is no layer of llama-3.1-8b; layers are counted from 0 to 31"),
    ("layers: [4], kys: 64", "unknown key 'kys' in model.memory_layers; did you mean 'keys'?"),
    ("layers: []", "model.memory_layers.layers"),
    ("layers: [4], key_width: 7", "model.memory_layers.key_width: 7 cannot be cut in two halves"),
])
def test_bad_memory_layers_are_placed(tmp_path: Path, key: str, told: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\nmodel: {{catalog: llama-3.1-8b, memory_layers: {{{key}}}}}\n"
        "cluster: {node: hgx-h100, nodes: 1}\nworkload: {kind: pretrain, sequence: 4096, global_batch: 8}\nplan: {}\n",
        encoding="utf-8")
    result = whatif("run", file)
    assert result.exit_code == 2
    assert told in result.stderr
    assert f"{file}:2:" in result.stderr


def test_memory_layers_want_their_values_on_one_stage_and_not_split_by_tensor() -> None:
    result = whatif("run", "memory-layers-8b-h100", "--set", "plan.tensor=2", "--set", "plan.pipeline=2")
    assert result.exit_code == 2
    assert "memory layers are not split by tensor ranks" in result.stderr
    assert "layers that share their values must lie on one stage" in result.stderr


@pytest.mark.parametrize("fidelity", ["events", "analytic"])
def test_a_technique_shows_in_the_breakdown_and_among_the_assumptions(fidelity: str) -> None:
    plain = run(fidelity=fidelity)
    thin = run("plan.techniques.frugal.density=0.25", fidelity=fidelity)
    for state in ("parameters", "gradients", "activations"):
        assert thin["memory_breakdown_bytes"][state] == plain["memory_breakdown_bytes"][state]
    assert thin["memory_breakdown_bytes"]["optimizer"] < plain["memory_breakdown_bytes"]["optimizer"]
    assert thin["breakdown_s"]["optimizer"] < plain["breakdown_s"]["optimizer"]
    assert sum(thin["breakdown_s"].values()) == pytest.approx(thin["step_time_s"])
    assert any("FRUGAL" in str(row) or "frugal" in str(row) for row in thin["assumptions"])


def test_published_scenario_of_channels_saves_what_the_closed_form_says() -> None:
    """3 b s f L 2 B at 20 % of the channels (systems_training 11.1), here at 1,024 of 5,461."""
    made = run(scenario="mixture-of-channels-1b-a800", fidelity="analytic")
    sparse = next(one for one in made["variants"] if one["name"] == "top 1,024 channels")
    saved = made["peak_memory_bytes"]["hbm"] - sparse["peak_memory_bytes"]["hbm"]
    assert saved == pytest.approx(2 * 64 * 256 * 24 * (4 * 5461 - 5 * 0.1875 * 5461), rel=1e-6)
    assert 0.93 < made["step_time_s"] / sparse["step_time_s"] < 1.0


@pytest.mark.parametrize("scenario", ["cheaper-states-1b-rtx4090", "mixlora-7b-l40s", "memory-layers-8b-h100"])
def test_library_scenarios_of_techniques_run(scenario: str) -> None:
    made = run(scenario=scenario, fidelity="analytic")
    assert made["fits"]
    assert len({round(one["peak_memory_bytes"]["hbm"]) for one in made["variants"]}) > 2


def test_every_technique_is_listed() -> None:
    made = json.loads(whatif("list", "techniques", "--json").stdout)
    rows = made if isinstance(made, list) else next(value for value in made.values() if isinstance(value, list))
    assert [row["name"] for row in rows] == list(techniques.names())
    assert all(row["source"] and row["law"] and row["defaults"] for row in rows)
