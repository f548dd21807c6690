"""Scenarios with unequal accelerators, from the file to the document and its words."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placement.shares import POLICIES
from scenarios.cli import app
from scenarios.commands.run import predict_prepared, prepare
from scenarios.errors import ScenarioError
from scenarios.load import load
from scenarios.papers.answers import NotMapped
from scenarios.papers.cephalo import answer
from tests.scenarios.test_reproduce import claim

NAME = "unequal-32b-h100-a100"
HEAD = """name: two kinds
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 1, beside: [{node: %s, nodes: 1}]}
workload: {kind: pretrain, sequence: 2048, global_batch: 48}
plan: {sharding: fsdp, recompute: full, precision: %s}
"""


def written(folder: Path, node: str = "hgx-a100-40", precision: str = "bf16") -> str:
    file = folder / "s.yaml"
    file.write_text(HEAD % (node, precision), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return predict_prepared(*prepare(NAME))


def test_the_document_has_the_usual_keys_and_adds_up(document: dict[str, Any]) -> None:
    equal = predict_prepared(*prepare("llama-3.1-8b-8xh100"))
    absent = {"timeline", "memory_over_time", "published", "calibration"}
    assert set(equal) - absent <= set(document)
    assert sum(document["breakdown_s"].values()) == pytest.approx(document["step_time_s"])
    assert document["error_band"] is None
    assert "unequal accelerators" in document["reasons"]["error_band"]
    groups = document["shares"]["groups"]
    assert sum(row["gpus"] for row in groups) == document["gpus"] == 16
    assert sum(row["gpus"] * row["samples"] for row in groups) == 128
    assert sum(row["gpus"] * row["state_share"] for row in groups) == pytest.approx(1.0)
    assert len(document["memory_by_stage"]) == len(document["breakdown_by_stage"]) == len(groups)
    assert json.loads(json.dumps(document)) == document


def test_the_arms_of_the_paper_stand_beside_one_another(document: dict[str, Any]) -> None:
    """What the scenario is there to show: equal shards do not fit, and decoupling beats what does."""
    rows = {row["name"]: row for row in document["variants"]}
    assert document["fits"]
    assert not rows["equal batches, equal shards (FSDP)"]["fits"]
    assert not rows["batches by speed, equal shards"]["fits"]
    by_memory = rows["equal batches, shards by memory"]
    assert by_memory["fits"]
    assert by_memory["step_time_s"] > document["step_time_s"]


def test_mfu_is_against_all_peaks_together(document: dict[str, Any]) -> None:
    from costmodel import catalog

    peaks = [catalog.accelerator(name).peak_flops_per_s["bf16"] for name in ("h100-sxm-80gb", "a100-40gb")]
    assert document["mfu"] == pytest.approx(document["model_flops_per_s_per_gpu"] / (sum(peaks) / 2))


@pytest.mark.parametrize(("setting", "where", "told"), [
    ("plan.tensor=2", "plan.tensor", "must be 1"),
    ("plan.micro_batch=4", "plan.micro_batch", "leave it out"),
    ("plan.trainable=lora", "plan.trainable", "leave it out"),
    ("plan.techniques.frugal.density=0.5", "plan.techniques", "leave it out"),
    ("plan.sharding=zero-1", "plan.sharding", "fsdp"),
    ("plan.shares=equall", "plan.shares", "did you mean 'equal'"),
    ("workload.global_batch=4000", "workload.global_batch", "1,024"),
    ("cluster.nodes=4000", "cluster.beside", "16,384"),
    ("cluster.gpus=8", "cluster.gpus", "leave gpus out"),
    ("plan.precision=fp8", "plan.precision", "does not compute in fp8"),
])
def test_what_does_not_go_together_is_said_at_its_key(tmp_path: Path, setting: str, where: str, told: str) -> None:
    with pytest.raises(ScenarioError) as found:
        load(written(tmp_path), [setting])
    assert any(problem.message.startswith(where) and told in problem.message for problem in found.value.problems)


def test_equal_accelerators_have_nothing_to_share_out(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"plan\.shares: .*leave it out"):
        load(written(tmp_path), ["cluster.beside=[]", "plan.shares=equal"])


def test_a_precision_must_be_that_of_every_accelerator(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="does not compute in bf16"):
        load(written(tmp_path, "dgx-v100"))
    assert load(written(tmp_path, "dgx-v100", "fp16")).cluster.accelerators == 16


def test_other_commands_refuse_or_answer(tmp_path: Path) -> None:
    file = written(tmp_path)
    refused = CliRunner().invoke(app, ["search", file])
    assert refused.exit_code == 2
    assert "s.yaml:3:" in refused.output
    assert "equal accelerators" in refused.output
    traced = CliRunner().invoke(app, ["run", file, "--trace", str(tmp_path / "t.json")])
    assert traced.exit_code == 2
    assert "closed form" in traced.output
    page = CliRunner().invoke(app, ["run", file, "--html", str(tmp_path / "p.html")])
    assert page.exit_code == 0
    assert "Who gets what" in page.output
    assert "group of accelerators" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["list", "shares"]).exit_code == 0


def test_commands_of_the_page_run() -> None:
    text = (Path(__file__).parents[2] / "docs" / "unequal-gpus.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        _, *arguments = shlex.split(line, comments=True)
        assert CliRunner().invoke(app, arguments).exit_code == 0, line
    assert set(re.findall(r"^\| `([\w-]+)`", text, re.MULTILINE)) >= set(POLICIES)


def test_power_caps_slow_one_group_alone(tmp_path: Path) -> None:
    capped = tmp_path / "capped.yaml"
    capped.write_text((HEAD % ("hgx-a100-40", "bf16")).replace("nodes: 1}]", "nodes: 1, power_limit: 200 W}]"), "utf-8")
    samples = []
    for file in (written(tmp_path), str(capped)):
        groups = predict_prepared(*prepare(file))["shares"]["groups"]
        samples.append(sum(row["gpus"] * row["samples"] for row in groups if row["node"] == "hgx-a100-40"))
    assert samples[1] < samples[0]


def test_what_the_adapter_of_cephalo_cannot_read_is_said() -> None:
    with pytest.raises(NotMapped, match="metric"):
        answer(claim(metric="memory"))
    with pytest.raises(NotMapped, match="baseline"):
        answer(claim(metric="training throughput", baseline_name="Megatron pipeline"))
    with pytest.raises(NotMapped, match="2B"):
        answer(claim(metric="training throughput", baseline_name="FSDP", setting="2B model"))
    found = answer(claim(metric="training throughput", baseline_name="FSDP", setting="7B model"))
    assert found.ratio is not None
    assert found.ratio.low >= 1 - 1e-3
    assert found.ratio.high > 1.2
