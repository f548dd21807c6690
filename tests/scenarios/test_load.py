"""Scenario files that are right: what is read, where it stands, what is built from it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from scenarios.build import training_inputs
from scenarios.document import parse
from scenarios.errors import ScenarioError
from scenarios.load import load, variants
from scenarios.names import LIBRARY, known

SMALL = """\
name: a small run
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 2}
workload: {kind: pretrain, sequence: 8192, global_batch: 64, tokens: 15T}
plan:
  tensor: 4
  pipeline: 2
what_if:
  - {name: H200, set: {cluster.node: hgx-h200}}
  - {name: more nodes, set: {cluster.nodes: 4, plan.data: 4, seed: 7}}
"""


def shared(name: str) -> Path:
    """A file of the material handed to the project; the test is skipped where it is absent."""
    file = Path(__file__).resolve().parents[2] / ".." / "shared" / name
    if not file.exists():
        pytest.skip(f"shared/{name} is not beside this checkout")
    return file


def write(folder: Path, text: str) -> Path:
    file = folder / "scenario.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_plan_defaults_and_derived_data_degree(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SMALL))
    inputs = training_inputs(loaded)
    assert inputs.plan.data == 16 // (4 * 2)
    assert inputs.plan.gpus == inputs.cluster.accelerators == 16
    assert (inputs.plan.virtual, inputs.plan.schedule, inputs.plan.precision) == (1, "1f1b", "bf16")
    assert (inputs.sequence, inputs.global_batch, inputs.total_tokens) == (8192, 64, 15e12)
    assert (inputs.seed, inputs.fidelity, inputs.price_usd_per_gpu_hour) == (0, "events", None)


def test_hash_is_that_of_the_file_and_raw_is_what_was_written(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    loaded = load(file)
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.raw["plan"] == {"tensor": 4, "pipeline": 2}
    assert loaded.raw["workload"]["tokens"] == "15T"


@pytest.mark.parametrize(
    ("path", "line", "text"),
    [
        (("name",), 1, "a small run"),
        (("cluster", "nodes"), 3, "2}"),
        (("plan", "pipeline"), 7, "2"),
        (("what_if", 1, "set", "plan.data"), 10, "4, seed"),
    ],
)
def test_position_points_at_the_value(tmp_path: Path, path: tuple[str | int, ...], line: int, text: str) -> None:
    found_line, column = load(write(tmp_path, SMALL)).position(path)
    assert found_line == line
    assert SMALL.splitlines()[line - 1][column - 1 :].startswith(text)


def test_position_of_a_missing_key_is_its_parents(tmp_path: Path) -> None:
    assert load(write(tmp_path, SMALL)).position(("plan", "virtual")) == (5, 1)


def test_overrides_are_typed_as_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, SMALL)
    loaded = load(file, ["plan.tensor=2", "stack.attention=flash-3", "stack.overlap=[data, tensor]", "seed=3"])
    inputs = training_inputs(loaded)
    assert (inputs.plan.tensor, inputs.plan.data, inputs.seed) == (2, 4, 3)
    assert inputs.stack["attention"] == "flash-3"
    assert tuple(inputs.stack["overlap"]) == ("data", "tensor")
    assert loaded.position(("plan", "tensor")) == (0, 0)
    assert load(file).raw["plan"]["tensor"] == 4


def test_seed_option_wins_over_the_file(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, SMALL + "seed: 5\n"))
    assert training_inputs(loaded).seed == 5
    assert training_inputs(loaded, seed=0).seed == 0


def test_variants_change_only_what_they_set(tmp_path: Path) -> None:
    base = load(write(tmp_path, SMALL))
    first, second = variants(base)
    assert (first.variant, second.variant) == ("H200", "more nodes")
    assert first.cluster.node.name == "hgx-h200"
    assert first.scenario.plan == base.scenario.plan
    assert second.cluster.accelerators == 32
    assert training_inputs(second).plan.data == 4
    assert second.scenario.seed == 7
    assert base.cluster.accelerators == 16


def test_model_config_keys_can_be_set(tmp_path: Path) -> None:
    model = "model: {catalog: llama-3.1-8b, set: {num_hidden_layers: 12, vocab_size: 1000}}"
    loaded = load(write(tmp_path, SMALL.replace("model: llama-3.1-8b", model)))
    assert (len(loaded.model.layers), loaded.model.vocabulary, loaded.model.hidden) == (12, 1000, 4096)


def test_model_file_is_found_beside_the_scenario(tmp_path: Path) -> None:
    config = LIBRARY / "configs" / "llama-3-8b" / "config.json"
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "config.json").write_text(config.read_text(encoding="utf-8"), encoding="utf-8")
    for model in ("{hf: my/config.json}", "{hf: my, set: {num_hidden_layers: 4}}"):
        loaded = load(write(tmp_path, SMALL.replace("model: llama-3.1-8b", f"model: {model}")))
        assert len(loaded.model.layers) == (4 if "set" in model else 32)
        assert loaded.model.name == "my"


def test_prices_and_published_values_carry_units(tmp_path: Path) -> None:
    text = SMALL.replace("nodes: 2}", "nodes: 2, price_usd_per_gpu_hour: 2.5 USD/h}") + (
        "published:\n  - {metric: mfu, value: 41%, source: s}\n  - {metric: step_time_s, value: 500 ms, source: s}\n"
        "  - {metric: model_flops_per_s_per_gpu, value: 400 TFLOP/s, source: s}\n"
    )
    inputs = training_inputs(load(write(tmp_path, text)))
    assert inputs.price_usd_per_gpu_hour == 2.5
    assert [row["value"] for row in inputs.published] == [pytest.approx(0.41), 0.5, 400e12]


@pytest.mark.parametrize(
    "change",
    [
        ("tensor: 4", "tensor: 16\n  data: 1"),  # more tensor ranks than the 8 key/value heads
        ("pipeline: 2", "context: 2\n  context_method: ulysses\n  sequence_parallel: true"),
        ("pipeline: 2", "pipeline: 2\n  stage_layers: [15, 17]"),
        ("pipeline: 2", "pipeline: 2\n  virtual: 4\n  schedule: interleaved-1f1b\n  stage_layers: balanced"),
        ("gpus: 2", "gpus: 2"),
    ],
)
def test_unusual_but_sound_plans_load(tmp_path: Path, change: tuple[str, str]) -> None:
    text = SMALL[: SMALL.index("what_if")].replace(*change)
    if "tensor: 16" in text:
        text = text.replace("  pipeline: 2\n", "")
    load(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("true", True), ("~", None), ("12", 12), ("-1_000", -1000), ("0x10", "0x10"), ("1e3", 1000.0),
        (".5", 0.5), ("'12'", "12"), ("2024-01-01", "2024-01-01"), ("[1, a]", [1, "a"]), ("{k: [2]}", {"k": [2]}),
        (">-\n  a\n  b", "a b"),
    ],
)  # fmt: skip
def test_yaml_core_types(text: str, value: object) -> None:
    got = parse(f"a: {text}\n", "f").data["a"]
    assert got == value
    assert type(got) is type(value)


def test_aliases_are_copied() -> None:
    data = parse("a: &x {k: [1]}\nb: *x\nc: [*x, *x]\n", "f").data
    assert data["b"] == {"k": [1]} == data["c"][1]
    assert data["b"] is not data["a"]


@pytest.mark.parametrize("name", known("scenarios"))
def test_library_scenarios_load_with_their_variants(name: str) -> None:
    loaded = load(LIBRARY / f"{name}.yaml")
    assert loaded.scenario.published or loaded.scenario.assumptions, "it states what was measured or what is assumed"
    for each in (loaded, *variants(loaded)):
        assert training_inputs(each).plan.gpus == each.cluster.accelerators


@pytest.mark.parametrize(
    ("name", "row_id"),
    [
        ("llama-3.1-405b-8k-h100", "llama3-paper-001"),
        ("llama-3.1-405b-16k-h100", "llama3-paper-002"),
        ("llama-3.1-405b-131k-h100", "llama3-paper-003"),
        ("llama-3.1-8b-8xh100", "nemo-bridge-dense-087"),
        ("internevo-7b-256-a100", "internevo-014"),
    ],
)
def test_library_scenarios_are_the_published_rows(name: str, row_id: str) -> None:
    """Degrees, workload, model shape and result against the table of published runs."""
    with shared("published/training.csv").open(encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["id"] == row_id)
    inputs = training_inputs(load(LIBRARY / f"{name}.yaml"))
    plan, model = inputs.plan, inputs.model
    stated = {"tp": plan.tensor, "pp": plan.pipeline, "dp": plan.data, "cp": plan.context,
              "gpus": inputs.cluster.accelerators, "seq": inputs.sequence, "micro_batch": plan.micro_batch,
              "global_batch": inputs.global_batch, "layers": len(model.layers), "hidden": model.hidden,
              "ffn_hidden": model.layers[0].feed_forward.width, "heads": model.layers[0].attention.heads,
              "kv_heads": model.layers[0].attention.kv_heads, "vocab": model.vocabulary}  # fmt: skip
    assert stated | {key: int(row[key]) for key in stated if row[key]} == stated
    assert inputs.cluster.accelerator.name == row["accelerator"]
    measured = {"mfu": float(row["mfu_pct"] or 0) / 100,
                "tokens_per_s_per_gpu": float(row["tokens_per_s_per_gpu"] or 0)}  # fmt: skip
    (published,) = inputs.published
    assert published["value"] == pytest.approx(measured[published["metric"]])


def test_library_scenarios_are_found_only_by_their_name() -> None:
    with pytest.raises(ScenarioError, match="no such file"):
        load(LIBRARY / "llama-3.1-8b-8xh10.yaml")
