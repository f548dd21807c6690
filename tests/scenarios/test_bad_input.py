"""Scenario files that are wrong: every problem in one go, at its line and column, with what would be right."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scenarios import document
from scenarios.cli import app
from scenarios.errors import ScenarioError
from scenarios.load import load, variants
from scenarios.names import LIBRARY
from simulator import predict

BASE = """\
name: a run on two nodes
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 2}
workload: {kind: pretrain, sequence: 8192, global_batch: 64}
plan:
  tensor: 4
  pipeline: 2
  data: 2
  virtual: 4
  schedule: interleaved-1f1b
  sharding: zero-1
  precision: bf16
stack: {execution: fused, overlap: [data]}
published:
  - {metric: mfu, value: 41%, source: a paper}
what_if:
  - {name: H200, set: {cluster.node: hgx-h200}}
"""


def problems(folder: Path, text: str | bytes, overrides: tuple[str, ...] = ()) -> list[str]:
    """The problems of a scenario text (base case and variants), the file called f.yaml; empty when it loads."""
    file = folder / "f.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        variants(load(file, overrides, "f.yaml"))
    except ScenarioError as error:
        return [str(problem) for problem in error.problems] or ["an error without a problem"]
    return []


def changed(*changes: tuple[str, str]) -> str:
    text = BASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_the_base_is_sound(tmp_path: Path) -> None:
    assert problems(tmp_path, BASE) == []


@pytest.mark.parametrize(
    ("old", "new", "where", "what"),
    [
        # keys
        ("tensor: 4", "tensr: 4", "6:3", "unknown key 'tensr' in plan; did you mean 'tensor'?"),
        ("stack:", "stak:", "13:1", "did you mean 'stack'?"),
        ("nodes: 2", "nods: 2", "3:27", "did you mean 'nodes'?"),
        ("nodes: 2", "colour: 2", "3:27", "known: node, nodes, gpus, price_usd_per_gpu_hour"),
        ("name: a run on two nodes\n", "", "1:1", "name: is missing"),
        (", nodes: 2", "", "3:1", "cluster.nodes: is missing"),
        ("source: a paper", "from: a paper", "15:31", "unknown key 'from' in published"),
        ("  tensor: 4", "  tensor: 4\n  tensor: 2", "7:3", "'tensor' is given twice; the first stands in line 6"),
        # types
        ("tensor: 4", 'tensor: "4"', "6:11", "a whole number is expected, got text '4'"),
        ("tensor: 4", "tensor: four", "6:11", "a whole number is expected, got text 'four'"),
        ("tensor: 4", "tensor: 4.0", "6:11", "a whole number is expected, got 4.0"),
        ("tensor: 4", "tensor: true", "6:11", "a whole number is expected, got true"),
        ("tensor: 4", "tensor: 0", "6:11", "1 or more is expected, got 0"),
        ("tensor: 4", "tensor: -4", "6:11", "1 or more is expected, got -4"),
        ("tensor: 4", "tensor: [4]", "6:11", "a whole number is expected, got a list"),
        ("tensor: 4", "tensor:", "6:3", "plan.tensor: has no value"),
        ("tensor: 4", "tensor: ~", "6:3", "plan.tensor: has no value"),
        ("tensor: 4", "tensor: .nan", "6:11", "not a number that can be computed with"),
        ("tensor: 4", "tensor: -.inf", "6:11", "not a number that can be computed with"),
        ("tensor: 4", "tensor: 1e999", "6:11", "too large"),
        ("tensor: 4", f"tensor: {'9' * 40}", "6:11", "too large"),
        ("tensor: 4", f"tensor: {'9' * 6000}", "6:11", "too long"),
        ("tensor: 4", "tensor: 999999999", "6:11", "at most 1000000 is expected"),
        ("overlap: [data]", "overlap: data", "13:36", "a list is expected, got text 'data'"),
        ("overlap: [data]", "overlap: [data, dta]", "13:43", "stack.overlap[1]: text 'dta' is not one of data"),
        ("overlap: [data]", "overlap: [data, data]", "13:36", "stack.overlap: 'data' stands there twice"),
        ("{node: hgx-h100, nodes: 2}", "hgx-h100", "3:10", "a mapping (key: value) is expected"),
        ("virtual: 4", "virtual: 4\n  sequence_parallel: yes", "10:22", "true or false is expected, got text 'yes'"),
        ("name: a run on two nodes", "name: 12", "1:7", "name: text is expected, got 12"),
        ("nodes: 2}", "nodes: 2, price_usd_per_gpu_hour: cheap}", "3:61", "cannot read 'cheap'"),
        ("nodes: 2}", "nodes: 2, price_usd_per_gpu_hour: 3 GB}", "3:61", "that is a unit of bytes"),
        ("global_batch: 64", "global_batch: 64, tokens: 15 tokns", "4:70", "no such unit"),
        ("value: 41%", "value: 41", "15:5", "mfu must be above 0 and at most 1"),
        # names
        ("llama-3.1-8b", "llama-3.1-8", "2:8", "no model 'llama-3.1-8'; did you mean 'llama-3.1-8b'?"),
        ("hgx-h100", "hgx-h10", "3:17", "no node 'hgx-h10'; did you mean 'hgx-h100'?"),
        ("interleaved-1f1b", "interleaved1f1b", "10:13", "did you mean 'interleaved-1f1b'?"),
        ("zero-1", "zero_1", "11:13", "no sharding strategy 'zero_1'; did you mean 'zero-1'?"),
        ("precision: bf16", "precision: bf61", "12:14", "did you mean 'bf16'?"),
        ("metric: mfu", "metric: mfuu", "15:14", "did you mean 'mfu'?"),
        ("kind: pretrain", "kind: serve", "4:18", "text 'serve' is not one of pretrain"),
        ("virtual: 4", "virtual: 4\n  stage_layers: blanced", "10:17", "'even', 'balanced' or a list"),
        # models
        ("model: llama-3.1-8b", "model: {hf: none/config.json}", "2:13", "no such file"),
        ("model: llama-3.1-8b", "model: {}", "2:8", "give one of 'catalog: NAME' and 'hf: PATH'"),
        ("model: llama-3.1-8b", "model: {catalog: llama-3.1-8b, hf: x}", "2:8", "give one of"),
        ("llama-3.1-8b", "{catalog: llama-3.1-8b, set: {num_hiden_layers: 1}}", "2:56",
         "did you mean 'num_hidden_layers'?"),
        ("llama-3.1-8b", "{catalog: llama-3.1-8b, set: {num_hidden_layers: x}}", "2:37", "num_hidden_layers"),
        ("llama-3.1-8b", "{catalog: llama-3.1-8b, set: {num_hidden_layers: 5000}}", "2:8", "5,000 layers are more"),
        # relations
        ("data: 2", "data: 3", "8:9", "tensor 4 x pipeline 2 x context 1 x data 3 = 24 GPUs, but the cluster has 16; "
                                      "data 2 would fit"),
        ("  tensor: 4\n  pipeline: 2\n  data: 2", "  tensor: 4\n  pipeline: 3", "6:3",
         "tensor 4 x pipeline 3 x context 1 = 12 does not divide the cluster's 16 GPUs"),
        ("nodes: 2}", "nodes: 2, gpus: 17}", "3:43", "2 nodes x 8 of hgx-h100 = 16"),
        ("global_batch: 64", "global_batch: 63", "4:58", "63 does not divide by data 2 x micro_batch 1 = 2; 64 would"),
        ("global_batch: 64", "global_batch: 62", "10:13", "whole groups of pipeline 2; a step has global_batch 62"),
        ("tensor: 4", "tensor: 3", "6:11", "3 does not divide the 32 attention heads of llama-3.1-8b"),
        ("pipeline: 2", "pipeline: 64", "7:13", "64 x virtual 4 = 256 chunks are more than the 32 layers"),
        ("virtual: 4", "virtual: 4\n  stage_layers: [16, 16]", "10:17", "lists 2 chunks with 32 layers"),
        ("interleaved-1f1b", "1f1b", "9:12", "schedule 1f1b does not run 4 chunks per rank"),
        ("virtual: 4", "virtual: 1", "10:13", "schedule interleaved-1f1b does not run 1 chunk per rank"),
        ("precision: bf16", "precision: nvfp4", "12:14", "h100-sxm-80gb does not compute in nvfp4; it does in fp32"),
        ("virtual: 4", "virtual: 4\n  expert: 2", "10:11", "llama-3.1-8b has no experts to spread"),
        ("sequence: 8192, global_batch: 64}\nplan:", "sequence: 8190, global_batch: 64}\nplan:\n"
         "  sequence_parallel: true", "4:38", "8,190 does not divide by tensor (sequence_parallel) 4"),
        # variants
        ("cluster.node: hgx-h200", "cluster.nod: hgx-h200", "17:24", "what_if 'H200': unknown key 'nod' in cluster"),
        ("cluster.node: hgx-h200", "plan.data: 5", "17:35", "= 40 GPUs, but the cluster has 16"),
        ("cluster.node: hgx-h200", "cluster.nodes: 4", "17:23", "= 16 GPUs, but the cluster has 32"),
        ("cluster.node: hgx-h200", "name: b", "17:24", "cannot set 'name'; known: model, cluster"),
        ("cluster.node: hgx-h200", "plan.tensor.x: 1", "17:39", "plan.tensor is 4, not a mapping"),
        ("set: {cluster.node: hgx-h200}", "set: {}", "17:23", "at least 1 entry is expected"),
        ("}}", "}}\n  - {name: H200, set: {seed: 1}}", "18:12", "'H200' is given twice"),
    ],
)  # fmt: skip
def test_one_slip(tmp_path: Path, old: str, new: str, where: str, what: str) -> None:
    found = problems(tmp_path, changed((old, new)))
    assert [p for p in found if p.startswith(f"f.yaml:{where}: ") and what in p], "\n".join(found)


MEASURED = "calibration:\n  - {metric: step_time_s, value: 9.8 s, source: our run}\n"


@pytest.mark.parametrize(
    ("row", "where", "what"),
    [
        ("{metric: mfuu, value: 1, source: x}", "19:14", "calibration[0].metric: text 'mfuu' is not one of"),
        ("{metric: peak_memory_bytes, value: 1, source: x}", "19:14", "is not one of mfu, step_time_s"),
        ("{value: 1, source: x}", "19:5", "calibration[0].metric: is missing"),
        ("{metric: mfu, source: x}", "19:5", "calibration[0].value: is missing"),
        ("{metric: mfu, value: 0.4}", "19:5", "calibration[0].source: is missing"),
        ("{metric: mfu, value: 41, source: x}", "19:5", "mfu must be above 0 and at most 1"),
        ("{metric: step_time_s, value: 0, source: x}", "19:5", "step_time_s must be above 0, got 0"),
        ("{metric: step_time_s, value: -3 s, source: x}", "19:5", "step_time_s must be above 0"),
        ("{metric: step_time_s, value: 9.8 GB, source: x}", "19:5", "that is a unit of bytes"),
        ("{metric: step_time_s, value: fast, source: x}", "19:5", "cannot read 'fast'"),
        ("{metric: step_time_s, value: [9], source: x}", "19:5", "a quantity is expected, got a list"),
        ("{metric: step_time_s, value: .nan, source: x}", "19:34", "not a number that can be computed with"),
        ("{metric: step_time_s, value: , source: x}", "19:27", "calibration[0].value: has no value"),
        ("{metric: mfu, value: 0.4, source: x, sets: {}}", "19:42", "unknown key 'sets' in calibration; did you mean"),
        ("{metric: mfu, value: 0.4, source: x, set: 3}", "19:47", "a mapping (key: value) is expected"),
        ("{metric: mfu, value: 0.4, source: x, set: {plan.tensr: 1}}", "19:48",
         "calibration[0]: unknown key 'tensr' in plan"),
        ("{metric: mfu, value: 0.4, source: x, set: {plan.data: 5}}", "19:59", "= 40 GPUs, but the cluster has 16"),
        ("{metric: mfu, value: 0.4, source: x, set: {cluster.nodes: 4}}", "19:47", "but the cluster has 32"),
        ("{metric: mfu, value: 0.4, source: x, set: {name: b}}", "19:48", "cannot set 'name'; known: model, cluster"),
        ("{metric: mfu, value: 0.4, source: x, set: {calibration: []}}", "19:48", "cannot set 'calibration'"),
        ("mfu", "19:5", "a mapping (key: value) is expected"),
    ],
)  # fmt: skip
def test_bad_measured_runs(tmp_path: Path, row: str, where: str, what: str) -> None:
    found = problems(tmp_path, f"{BASE}calibration:\n  - {row}\n")
    assert [p for p in found if p.startswith(f"f.yaml:{where}: ") and what in p], "\n".join(found)


def test_measured_runs_are_few_and_of_the_file(tmp_path: Path) -> None:
    row = MEASURED.splitlines()[1]
    assert problems(tmp_path, BASE + MEASURED) == []
    assert problems(tmp_path, BASE + "\n".join(["calibration:", *[row] * 20])) == []
    assert "at most 20 entries" in "".join(problems(tmp_path, BASE + "\n".join(["calibration:", *[row] * 21])))
    assert "a list is expected" in "".join(problems(tmp_path, BASE + "calibration: {metric: mfu}\n"))
    for override in ("calibration=[]", "calibration.value=3"):
        (problem,) = problems(tmp_path, BASE + MEASURED, (override,))
        assert problem.startswith(f"--set {override}: calibration is of the scenario as written")
    variant = BASE.replace("cluster.node: hgx-h200", "calibration: []")
    assert "cannot set 'calibration'" in "".join(problems(tmp_path, variant))


def test_a_file_that_only_an_override_makes_sound_measured_nothing(tmp_path: Path) -> None:
    """The measured run is the file as written, so that must be sound by itself."""
    found = problems(tmp_path, BASE.replace("data: 2", "data: 3") + MEASURED, ("plan.data=2",))
    assert any("calibration[0]" in p and "= 24 GPUs" in p for p in found), found


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems(tmp_path, changed(
        ("llama-3.1-8b", "llama-3.1-8"), ("hgx-h100", "hgx-h10"), ("tensor: 4", "tensor: x"),
        ("fused", "fusd"), ("41%", "410%")))  # fmt: skip
    assert [p.split(":")[1] for p in found] == ["2", "3", "6", "13", "15"]


def test_relations_are_checked_although_another_block_is_wrong(tmp_path: Path) -> None:
    found = problems(tmp_path, changed(("data: 2", "data: 3"), ("fused", "fusd")))
    assert len(found) >= 2
    assert any("= 24 GPUs" in p for p in found)
    assert any("did you mean 'fused'?" in p for p in found)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("plan.tensor=3", "--set plan.tensor=3: plan.tensor: 3 does not divide the 32 attention heads"),
        ("plan.tensor=eight", "--set plan.tensor=eight: plan.tensor: a whole number is expected"),
        ("plan.tensr=3", "--set plan.tensr=3: unknown key 'tensr' in plan; did you mean 'tensor'?"),
        ("plan.tensor", "--set plan.tensor: write it as key=value"),
        ("=3", "--set =3: write it as key=value"),
        ("plan..x=3", "--set plan..x=3: write it as key=value"),
        ("name.x=3", "--set name.x=3: name.x: name is text 'a run on two nodes', not a mapping"),
        ("plan.tensor=[", "--set plan.tensor=[: not valid YAML"),
        ("plan.tensor=", "--set plan.tensor=: plan.tensor: has no value"),
        ("seed=-1", "--set seed=-1: seed: 0 or more is expected"),
        ("plan.tensor=.inf", "--set plan.tensor=.inf: .inf is not a number"),
        ("plan.tensor=\n---\n3", "--set plan.tensor="),
    ],
)
def test_overrides_are_checked_like_the_file(tmp_path: Path, override: str, what: str) -> None:
    found = problems(tmp_path, BASE, (override,))
    assert [p for p in found if p.startswith(what)], "\n".join(found)
    assert all("\n" not in p for p in found)


def _bomb() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    names = "abcdefghijklmnop"
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise(names)]
    return "\n".join(lines)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "f.yaml:1:1: is empty"),
    "only a comment": (lambda: b"# nothing\n", "f.yaml:1:1: is empty"),
    "a list": (lambda: b"- 1\n", "f.yaml:1:1: a scenario is a mapping"),
    "text": (lambda: b"hello\n", "f.yaml:1:1: a scenario is a mapping"),
    "not UTF-8": (lambda: b"name: x\nmodel: \xff\xfe\n", "f.yaml:2:8: is not UTF-8"),
    "a zero byte": (lambda: b"name: a\x00b\n", "f.yaml:1:8: not valid YAML: special characters"),
    "half a surrogate": (lambda: b'name: "\\ud800"\n', "f.yaml:1:7: text with half a surrogate pair"),
    "too large": (lambda: b"# " + b"x" * 1_100_000, "f.yaml: is over 1 MB"),
    "a long line": (lambda: b"name: " + b"!" * 900_000, "f.yaml:1:10000: more than 10000 characters"),
    "many lines": (lambda: b"\n" * 900_000, "more than 20000 lines"),
    "many values": (lambda: b"a:\n" + b"- 1\n" * 19_000, "more than 10000 values"),
    "alias bomb": (lambda: _bomb().encode(), "aliases expand to more than 10000 values"),
    "anchor cycle": (lambda: b"name: &x [*x]\n", "f.yaml:1:11: alias '*x' lies inside its own anchor"),
    "unknown alias": (lambda: b"name: *x\n", "f.yaml:1:7: alias '*x' has no anchor '&x'"),
    "deep flow": (lambda: b"name: " + b"[" * 9_000, "nested deeper than 32 levels"),
    "deep blocks": (lambda: b"- " * 4_000, "nested deeper than 32 levels"),
    "deep through aliases": (lambda: b"a0: &a0 1\n" + b"".join(
        b"a%d: &a%d [*a%d]\n" % (n, n, n - 1) for n in range(1, 90)), "levels; write the values out"),
    "two documents": (lambda: BASE.encode() + b"---\nname: b\n", "f.yaml:18:1: a second document starts here"),
    "a tab": (lambda: BASE.replace("  tensor", "\ttensor").encode(), "f.yaml:6:1: not valid YAML: a tab; indent"),
    "merge key": (lambda: b"a: &a {b: 1}\nc:\n  <<: *a\n", "f.yaml:3:3: merge keys"),
    "a python tag": (lambda: b"name: !!python/object/apply:os.system [ls]\n", "f.yaml:1:7: the tag"),
    "a number as key": (lambda: BASE.encode() + b"3: x\n", "f.yaml:18:1: a key must be text, got 3"),
    "a list as key": (lambda: b"? [a, b]\n: 3\n", "f.yaml:1:3: a key must be text, got a sequence"),
    "open bracket": (lambda: b"name: {a: 1\n", "not valid YAML: expected ',' or '}'"),
    "bad directive": (lambda: b"%YAML 9.9\n---\nname: x\n", "f.yaml:1:1: not valid YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_quickly(tmp_path: Path, case: str) -> None:
    make, what = HOSTILE[case]
    content = make()
    began = time.process_time()
    found = problems(tmp_path, content)
    assert time.process_time() - began < 3.0
    assert any(what in p for p in found), found
    assert all(p.startswith("f.yaml") and p.isprintable() for p in found)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path, what in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a folder"),
                       (tmp_path / ("a" * 300), "cannot be read")):  # fmt: skip
        with pytest.raises(ScenarioError, match=what):
            load(path)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, b"\xef\xbb\xbf" + BASE.encode()) == []


# Every mutation must end with exit code 0 or 2; any other exception fails the test.


def mutated(text: str, rng: random.Random) -> bytes:
    """The text with one to three random slips: keys, values, lines, indents, bytes."""
    for _ in range(rng.randint(1, 3)):
        lines = text.splitlines() or [""]
        index = rng.randrange(len(lines))
        line = lines[index]
        kind = rng.choice(["delete", "double", "value", "key", "indent", "cut", "swap", "byte", "punctuation"])
        if kind == "delete":
            del lines[index]
        elif kind == "double":
            lines.insert(index, line)
        elif kind == "value" and ": " in line:
            lines[index] = line.split(": ")[0] + ": " + rng.choice(VALUES)
        elif kind == "key" and ":" in line:
            lines[index] = line.replace(line.split(":")[0].strip(" -{"), rng.choice(KEYS), 1)
        elif kind == "indent":
            lines[index] = " " * rng.randint(0, 6) + line.lstrip()
        elif kind == "cut":
            lines[index] = line[: rng.randrange(len(line) + 1)]
        elif kind == "swap":
            other = rng.randrange(len(lines))
            lines[index], lines[other] = lines[other], line
        elif kind == "punctuation":
            at = rng.randrange(len(line) + 1)
            lines[index] = line[:at] + rng.choice("{}[]:,-&*!|>'\"%@`#?\t") + line[at:]
        text = "\n".join(lines) + "\n"
    content = bytearray(text.encode())
    if kind == "byte" and content:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


VALUES = ["", "~", "0", "-1", "1.5", "x", "[]", "{}", "[1, 2]", "true", "1e9", "99999999999", ".nan", "'8'",
          "*a", "&a 1", "!!int 3", "even", "llama-3.1-8b", "{a: {b: c}}", "999983", "16", "15T", "3 GB",
          "\u202e", "|", "\U0001f600",
          "{hf: configs}", "{catalog: mixtral-8x7b, set: {num_local_experts: 0}}", "mixtral-8x7b", "hgx-b200"]
KEYS = ["tensor", "plan", "name", "what_if", "set", "experts", "data", "", "<<", "1", "null", "model"]


@pytest.mark.parametrize("seed", range(200))
def test_mutations_run_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    files = sorted(LIBRARY.glob("*.yaml"))
    text = files[seed % len(files)].read_text(encoding="utf-8")
    began = time.process_time()
    file = tmp_path / "f.yaml"
    file.write_bytes(mutated(text, rng))
    monkeypatch.setattr(predict, "predict_training", lambda inputs: {"kind": "training", "gpus": inputs.plan.gpus})
    result = CliRunner().invoke(app, ["run", str(file), "--json"])
    assert time.process_time() - began < 3.0
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code == 0:
        assert json.loads(result.stdout)["gpus"] >= 1
    else:
        lines = result.stderr.splitlines()
        assert (result.exit_code, result.stdout) == (2, "")
        assert lines
        assert all(line.startswith(str(file)) and line.isprintable() for line in lines)


def test_most_mutations_are_refused(tmp_path: Path) -> None:
    """The mutations above would prove nothing if the loader took everything or nothing."""
    text = (LIBRARY / "llama-3.1-8b-8xh100.yaml").read_text(encoding="utf-8")
    refused = sum(bool(problems(tmp_path, mutated(text, random.Random(seed)))) for seed in range(60))
    assert 20 < refused <= 60


def test_limits_admit_every_library_scenario() -> None:
    for file in LIBRARY.glob("*.yaml"):
        read = document.read_document(file, file.name)
        assert len(read.places) < document.MAX_VALUES / 10
