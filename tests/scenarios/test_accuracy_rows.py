"""Reading published rows, and what the importer makes of them."""

from __future__ import annotations

import csv
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from costmodel import parameters
from scenarios.accuracy import rows
from scenarios.accuracy.importer import Imported, import_row
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.plans import MOST_ALTERNATIVES
from scenarios.commands.accuracy import PUBLISHED
from scenarios.errors import ScenarioError

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "published" / "training.csv"
GOOD = {
    "id": "a", "family": "MPT", "model": "MPT-1b", "layers": "24", "hidden": "2048", "ffn_hidden": "8192",
    "heads": "16", "vocab": "50368", "accelerator": "a100-sxm-80gb", "gpus": "8", "tp": "1", "pp": "1", "dp": "8",
    "cp": "1",
    "zero_or_fsdp": "FSDP-full_shard(ZeRO3)", "seq": "2048", "micro_batch": "4", "global_batch": "64",
    "recompute": "none", "precision": "bf16", "framework": "llm-foundry/Composer (PyTorch FSDP)",
    "tokens_per_s_per_gpu": "20000", "score_time": "1", "score_memory": "0",
}


def text(*records: dict[str, str], columns: tuple[str, ...] = rows.COLUMNS) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


@cache
def published(file: Path) -> dict[str, rows.Row]:
    return {row.id: row for row in rows.read(file).rows}


def row(name: str) -> rows.Row:
    """A row that ships, or one of the shared folder; the test is skipped where that is absent."""
    if name in published(PUBLISHED):
        return published(PUBLISHED)[name]
    if not SHARED.exists():
        pytest.skip("shared/published/training.csv is not here")
    return published(SHARED)[name]


def made(**changes: str) -> rows.Row:
    read = rows.parse(text({**GOOD, **changes}), "f.csv")
    assert not read.problems
    return read.rows[0]


# Bad input -------------------------------------------------------------------------------------------


def test_missing_columns_are_all_named() -> None:
    columns = tuple(column for column in rows.COLUMNS if column not in ("tp", "seq"))
    with pytest.raises(ScenarioError) as caught:
        rows.parse(text(GOOD, columns=columns), "f.csv")
    assert [re.findall(r"'(\w+)'", str(problem))[0] for problem in caught.value.problems] == ["tp", "seq"]


@pytest.mark.parametrize(("changes", "column", "words"), [
    ({"tp": "eight"}, "tp", "a whole number above 0"),
    ({"tp": "1.5"}, "tp", "a whole number"),
    ({"gpus": "-8"}, "gpus", "above 0"),
    ({"step_time_s": "nan"}, "step_time_s", "a number above 0"),
    ({"step_time_s": "inf"}, "step_time_s", "a number above 0"),
    ({"score_time": "2"}, "score_time", "0 or 1"),
    ({"gpus": "16"}, "gpus", "16 contradicts tp 1 x pp 1 x dp 8 x cp 1 = 8"),
    ({"ep": "3", "etp": "1"}, "ep", "does not divide"),
    ({"id": ""}, "id", "blank"),
])
def test_a_bad_row_is_named_and_good_ones_count(changes: dict[str, str], column: str, words: str) -> None:
    read = rows.parse(text({**GOOD, "id": "first"}, {**GOOD, "id": "bad", **changes}, {**GOOD, "id": "last"}), "f.csv")
    assert [one.id for one in read.rows] == ["first", "last"]
    (problem,) = read.problems
    assert (problem.file, problem.line, problem.column) == ("f.csv", 3, rows.COLUMNS.index(column) + 1)
    assert f"column {column}:" in problem.message
    assert words in problem.message
    assert f"row {changes.get('id', 'bad') or '?'}" in problem.message


def test_a_second_row_of_one_id_is_refused() -> None:
    read = rows.parse(text(GOOD, GOOD), "f.csv")
    assert len(read.rows) == 1
    assert "row a, column id" in read.problems[0].message
    assert "line 2" in read.problems[0].message


def test_a_row_of_another_length_is_refused() -> None:
    read = rows.parse(text(GOOD) + "short,row\n", "f.csv")
    assert len(read.rows) == 1
    assert "2 cells" in str(read.problems[0])


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "empty.csv").write_text("")
    for name in ("binary.csv", "empty.csv", "absent.csv"):
        with pytest.raises(ScenarioError):
            rows.read(tmp_path / name)


def test_the_shared_table_reads_without_a_problem() -> None:
    if not SHARED.exists():
        pytest.skip("shared/published/training.csv is not here")
    read = rows.read(SHARED)
    assert read.problems == ()
    assert len(read.rows) == 1657


# The importer: fields read by hand from the rows ------------------------------------------------------

PLANS: dict[str, dict[str, Any]] = {
    "mpt-166": {"data": 128, "micro_batch": 6, "sharding": "fsdp", "recompute": "none", "precision": "bf16"},
    "internevo-046": {"data": 32, "micro_batch": 2, "sharding": "internevo", "shard_group": 8, "tensor": 1},
    "internevo-030": {"tensor": 2, "data": 128, "micro_batch": 4, "shard_group": 4},
    "megatron-korthikanti-004": {"tensor": 8, "sequence_parallel": True, "pipeline": 8, "virtual": 3, "data": 1,
                                 "schedule": "interleaved-1f1b", "recompute": "selective", "precision": "fp16",
                                 "sharding": "ddp"},
    "megatron-sc21-012": {"tensor": 1, "data": 768, "micro_batch": 2, "sharding": "zero-3", "recompute": "full"},
    "nemo-bridge-dense-002": {"tensor": 2, "sequence_parallel": True, "pipeline": 8, "virtual": 4, "data": 8,
                              "context": 2, "precision": "mxfp8", "stage_layers": "balanced", "sharding": "zero-1"},
    "nemo-bridge-moe-071": {"pipeline": 4, "virtual": 12, "expert": 32, "expert_tensor": 1, "data": 64,
                            "micro_batch": 2},
    "nemo-bridge-finetune-001": {"pipeline": 2, "virtual": 20, "data": 16, "precision": "fp8"},
    "mlperf-llama2-70b-lora-031": {"tensor": 4, "data": 2, "trainable": "lora", "sequence_parallel": True},
    "simumax-b200-038": {"context": 8, "context_method": "ulysses", "sequence_parallel": False},
    "sailor-005": {"tensor": 4, "pipeline": 4, "data": 8, "stage_layers": (6, 9, 9, 8)},
    "vtrain-single-0112": {"tensor": 2, "pipeline": 2, "data": 1, "micro_batch": 2, "recompute": "full",
                           "precision": "fp16", "sharding": "ddp"},
    "megatron-ci-091": {"pipeline": 4, "data": 2, "stage_layers": (2, 4, 4, 2)},
    "megatron-ci-060": {"pipeline": 4, "virtual": 3, "sharding": "zero-1"},
    "llama3-paper-001": {"tensor": 8, "pipeline": 16, "data": 64, "sharding": "fsdp-no-reshard",
                         "context_method": "all-gather"},
}
SETTINGS: dict[str, tuple[str, int, int, int, str]] = {  # node, accelerators, sequence, global batch, stack
    "mpt-166": ("hgx-a100-40", 128, 2048, 768, "llm-foundry"),
    "internevo-046": ("hgx-a100", 32, 2048, 256, "internevo"),
    "megatron-korthikanti-004": ("hgx-a100", 64, 2048, 64, "megatron-lm-2022"),
    "megatron-sc21-012": ("hgx-a100", 768, 2048, 1536, "deepspeed"),
    "nemo-bridge-dense-002": ("gb300-nvl72", 256, 8192, 1536, "megatron-bridge"),
    "nemo-bridge-moe-071": ("gb300-nvl72", 256, 4096, 8192, "megatron-bridge"),
    "simumax-b200-038": ("hgx-b200", 8, 32768, 4, "megatron-core"),
    "sailor-005": ("gh200-quad", 128, 2048, 1024, "deepspeed"),
    "vtrain-single-0112": ("hgx-a100", 4, 1024, 8, "megatron-lm-2022"),
    "llama3-paper-001": ("hgx-h100", 8192, 8192, 2048, "torchtitan"),
}


@pytest.mark.parametrize("name", PLANS)
def test_plans_as_read_by_hand(name: str) -> None:
    imported = import_row(row(name))
    for inputs in imported.alternatives:
        assert {key: getattr(inputs.plan, key) for key in PLANS[name]} == PLANS[name]
        assert inputs.plan.gpus == row(name).integer("gpus")


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_as_read_by_hand(name: str) -> None:
    inputs = import_row(row(name)).alternatives[0]
    found = (inputs.cluster.node.name, inputs.cluster.accelerators, inputs.sequence, inputs.global_batch,
             inputs.stack["name"])
    assert found == SETTINGS[name]


def test_the_stated_network_replaces_the_catalogue_s() -> None:
    port = import_row(row("internevo-046")).alternatives[0].cluster.node.scale_out
    assert port.bandwidth_bytes_per_s == 4 * 100e9 / 8 / 8  # 4 x 100 Gb/s a node of 8
    port = import_row(row("mpt-166")).alternatives[0].cluster.node.scale_out
    assert port.bandwidth_bytes_per_s == 1600e9 / 8 / 8


def test_mpt_models_have_exactly_the_parameters_that_the_source_prints() -> None:
    printed = [one for one in published(PUBLISHED).values() if re.search(r"params=\d", one.text("notes"))]
    assert len(printed) > 100
    for one in printed:
        found = re.search(r"params=(\d+)", one.text("notes"))
        assert found
        assert parameters.count(import_row(one).alternatives[0].model) == int(found[1]), one.id


def test_models_have_about_the_parameters_of_their_column() -> None:
    """Within 1 % where the column has three digits; a wrong style (gate, tie) is off by more."""
    names = ["nemo-bridge-dense-002", "nemo-bridge-moe-071", "nemo-bridge-finetune-001", "llama3-paper-001",
             "nemo-bridge-moe-021", "nemo-bridge-moe-133", "megatron-ci-060", "megatron-ci-091", "sailor-005"]
    for name in names:
        model = import_row(row(name)).alternatives[0].model
        assert parameters.count(model) / 1e9 == pytest.approx(row(name).number("params_b"), rel=0.01), name


def test_a_flash_attention_of_0_and_notes_change_the_stack() -> None:
    assert import_row(row("megatron-korthikanti-004")).bundle.block["attention"] == "unfused"
    assert import_row(made(notes="attention-backend=unfused")).bundle.block["attention"] == "unfused"
    assert import_row(made(notes="cuda_graph_impl=local; cuda_graph_scope=full_iteration")).bundle.block[
        "cuda_graphs"] == "full"
    assert import_row(row("simumax-b200-038")).bundle.block["overlap"] == ()


# Blanks ------------------------------------------------------------------------------------------------


def choices(imported: Imported, field: str) -> set[Any]:
    return {getattr(inputs.plan, field) for inputs in imported.alternatives}


def test_a_full_row_is_one_scenario() -> None:
    imported = import_row(made())
    assert len(imported.alternatives) == 1
    assert imported.blanks == ()
    assert imported.row.fully_specified


def test_blanks_become_ranges_and_are_named() -> None:
    imported = import_row(made(recompute="", micro_batch=""))
    assert imported.blanks == ("micro_batch", "recompute")
    assert not imported.row.fully_specified
    assert choices(imported, "recompute") == {"none", "selective", "full"}
    assert choices(imported, "micro_batch") == {1, 2, 4, 8}  # all divide 64 / 8
    assert all(inputs.plan.data * inputs.plan.micro_batch * 8 <= 512 for inputs in imported.alternatives)


def test_micro_batches_of_a_range_divide_the_batch() -> None:
    assert choices(import_row(made(micro_batch="", global_batch="24")), "micro_batch") == {1}  # 24 / 8 = 3


def test_blank_degrees_close_the_gpu_count() -> None:
    imported = import_row(made(tp="", pp="", dp="", cp=""))
    assert 1 < len(imported.alternatives) <= MOST_ALTERNATIVES
    assert {"tp", "pp"} <= set(imported.blanks)
    for inputs in imported.alternatives:
        assert inputs.plan.gpus == 8
        assert 64 % (inputs.plan.data * inputs.plan.micro_batch) == 0


def test_a_blank_chunk_count_matters_only_in_a_pipeline() -> None:
    assert import_row(made(vp="")).blanks == ()
    imported = import_row(made(vp="", pp="4", dp="2"))
    assert imported.blanks == ("vp",)
    assert choices(imported, "virtual") == {1, 2, 3, 6}


@pytest.mark.parametrize(("changes", "words"), [
    ({"seq": ""}, "seq"), ({"gpus": "", "dp": ""}, "gpus"), ({"global_batch": ""}, "global_batch"),
    ({"hidden": ""}, "hidden"), ({"accelerator": "abacus"}, "abacus"), ({"accelerator": "mixed"}, "stage_gpus"),
    ({"model": "Mystery-9"}, "Mystery-9"), ({"zero_or_fsdp": "magic"}, "magic"), ({"recompute": "some"}, "some"),
    ({"precision": "fp8"}, "fp8"), ({"precision": "int3"}, "int3"),
])
def test_what_cannot_be_expressed_says_why(changes: dict[str, str], words: str) -> None:
    with pytest.raises(NotExpressible, match=re.escape(words)):
        import_row(made(**changes))
