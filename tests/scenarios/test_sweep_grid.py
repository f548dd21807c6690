"""The grid of a sweep: what --vary may say, in which order variants stand, what is refused before the first one."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.document import parse_value
from scenarios.errors import Place, ScenarioError
from scenarios.load import load
from scenarios.names import LIBRARY
from scenarios.sweep import grid as grids
from scenarios.sweep import values
from scenarios.sweep.grid import Axis, Grid
from scenarios.sweep.variants import check

NAME = "llama-3.1-8b-8xh100"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1,2,4", [1, 2, 4]),
        ("1..4", [1, 2, 3, 4]),
        ("1..10 step 4", [1, 5, 9]),
        ("1..64 x2", [1, 2, 4, 8, 16, 32, 64]),
        ("1..8x2, 12", [1, 2, 4, 8, 12]),
        ("0..1 step 0.1", [n / 10 if n % 10 else n // 10 for n in range(11)]),
        ("-1..1", [-1, 0, 1]),
        ("1_000..3_000 step 1_000", [1000, 2000, 3000]),
        ("400 W", ["400 W"]),
        ("200 W..700 W step 250 W", ["200 W", "450 W", "700 W"]),
        ("200..700 W step 250", ["200 W", "450 W", "700 W"]),
        ("[data],[data, pipeline],[]", [["data"], ["data", "pipeline"], []]),
        ("true,false", [True, False]),
        ("none, full", ["none", "full"]),
        ("{catalog: llama-3.1-8b}, llama-3.1-70b", [{"catalog": "llama-3.1-8b"}, "llama-3.1-70b"]),
        ("../a/config.json", ["../a/config.json"]),
        ('"1, 2"', ["1, 2"]),
    ],
)
def test_lists_and_ranges(written: str, expected: list[Any]) -> None:
    assert values.values(written, Place("--vary")) == expected


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("plan.tensor", "write it as key=value,value"),
        ("=1", "write it as key=value,value"),
        ("plan..x=1", "write it as key=value,value"),
        ("plan.tensor=", "plan.tensor has no values"),
        ("plan.tensor=1,,2", "--vary plan.tensor=1,,2: "),
        ("plan.tensor=null", "a value is missing"),
        ("plan.tensor=[1", "not valid YAML"),
        ("plan.tensor=1] , [2", "--vary plan.tensor=1] , [2: "),
        ("plan.tensor=8..1", "'8..1' is no range: 1 is less than 8"),
        ("plan.tensor=1..8 x1", "it needs a factor above 1"),
        ("plan.tensor=0..8 x2", "it needs a factor above 1 and a first value above 0"),
        ("plan.tensor=1..8 step 0", "its step must be above 0"),
        ("cluster.power_limit=1 W..8 kW", "different units"),
        ("plan.tensor=1..100000000", "more than 1,000,000 values"),
        ("plan.tensor=1,2,1", "1 is given twice for plan.tensor"),
        ("plan.tensor=.inf", "not a number that can be computed with"),
        ("plan.tensor=@none.txt", "none.txt: no such file"),
        ("plan.tensor=@", "a file is expected after @"),
        ("@none.csv", "none.csv: no such file"),
        ("@", "a file is expected after @"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(
    option: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScenarioError) as refused:
        values.grid([option])
    (problem,) = map(str, refused.value.problems)
    assert what in problem
    assert problem.isprintable()


def test_values_and_variants_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v.txt").write_text("# degrees\n1\n\n  [data, tensor]\n400 W\n", encoding="utf-8")
    (one,) = values.grid(["plan.x=@v.txt"]).axes
    assert one.values == ((1, ["data", "tensor"], "400 W"),)
    assert one.places[0][1] == Place("v.txt", 4, 3)
    Path("v.csv").write_text('plan.tensor, stack.overlap,plan.data\n8,"[data, tensor]",1\n\n4,,2\n', encoding="utf-8")
    grid = values.grid(["@v.csv", "plan.micro_batch=1,2"])
    assert [grid.settings(index) for index in range(len(grid))] == [
        {"plan.tensor": 8, "stack.overlap": ["data", "tensor"], "plan.data": 1, "plan.micro_batch": 1},
        {"plan.tensor": 8, "stack.overlap": ["data", "tensor"], "plan.data": 1, "plan.micro_batch": 2},
        {"plan.tensor": 4, "plan.data": 2, "plan.micro_batch": 1},
        {"plan.tensor": 4, "plan.data": 2, "plan.micro_batch": 2},
    ]
    assert grid.name(3) == "plan.tensor=4;plan.data=2;plan.micro_batch=2"


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("", "v.csv:1:1", "holds no variants"),
        ("plan.tensor\n", "v.csv:1:1", "holds no variants"),
        ("plan.tensor,2\n1,2\n", "v.csv:1:13", "'2' is no key"),
        ("plan.tensor,plan.data\n1,2,3\n", "v.csv:2:1", "3 cells are given for 2 keys"),
        ("plan.tensor,plan.data\n1,[2\n", "v.csv:2:3", "not valid YAML"),
        ("plan.tensor,plan.data\n1,2\n3,4\n1,2\n", "v.csv:4:1", "1, 2 is given twice"),
        ("plan.tensor\n~\n", "v.csv:2:1", "a value is missing"),
    ],
)
def test_bad_files_are_refused_at_their_line(
    content: str, where: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("v.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ScenarioError) as refused:
        values.grid(["@v.csv"])
    (problem,) = map(str, refused.value.problems)
    assert problem.startswith(f"{where}: ")
    assert what in problem


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "--vary: is missing"),
        (["plan.tensor=1", "plan.tensor=2"], "plan.tensor is varied twice"),
        (["plan={tensor: 1}", "plan.tensor=2"], "plan.tensor and plan are varied, one inside the other"),
        (["plan.tensor=1..100000", "plan.data=1..100000"], "100,000 x 100,000 = 10,000,000,000 variants are more than"),
    ],
)
def test_axes_that_do_not_go_together(options: list[str], what: str) -> None:
    with pytest.raises(ScenarioError, match=what):
        values.grid(options)


def test_variants_are_the_product_with_the_last_axis_fastest() -> None:
    grid = values.grid(["plan.tensor=1,2,4", "workload.global_batch=64,128", "plan.recompute=none,full"])
    product = list(itertools.product((1, 2, 4), (64, 128), ("none", "full")))
    assert [grid.values(index) for index in range(len(grid))] == product
    assert len({grid.name(index) for index in range(len(grid))}) == len(product)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 9), st.randoms())
def test_chunks_hold_every_variant_once(sizes: list[int], size: int, rng: random.Random) -> None:
    keys = rng.sample(["plan.tensor", "plan.micro_batch", "plan.virtual", "workload.global_batch", "plan.recompute",
                       "cluster.nodes"], len(sizes))  # fmt: skip
    grid = Grid(tuple(_axis(key, count) for key, count in zip(keys, sizes, strict=True)))
    chunks = [grid.chunk(number, size) for number in range(grid.chunks(size))]
    assert sorted(itertools.chain(*chunks)) == list(range(len(grid)))
    assert all(len(chunk) == size for chunk in chunks[:-1])


def _axis(key: str, count: int) -> Axis:
    return grids.axis_of((key,), (((value,), (Place("test"),)) for value in range(count)))


def test_variants_priced_together_are_evaluated_together() -> None:
    grid = values.grid(["plan.tensor=1,2", "workload.global_batch=64,128", "plan.micro_batch=1,2,4"])
    first = {grid.settings(index)["workload.global_batch"] for index in grid.chunk(0, 6)}
    assert first == {64}


TEXT = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")) | st.sampled_from("\n\t\x07"), max_size=8)
VALUES = st.recursive(
    st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc:", min_size=1), inner, max_size=2),
    max_leaves=5,
)


@given(VALUES)
def test_names_say_values_so_that_they_can_be_read_again(value: Any) -> None:
    assert parse_value(grids.text(value), "test") == value


def _problems(*options: str) -> list[str]:
    base = load(LIBRARY / f"{NAME}.yaml", (), NAME, related=False)
    try:
        check(base, values.grid(options))
    except ScenarioError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("plan.tensr=1,2", "unknown key 'tensr' in plan; did you mean 'tensor'?"),
        ("plan.tensor=1,x", "plan.tensor: a whole number is expected, got text 'x'"),
        ("plan.tensor=0", "plan.tensor: 1 or more is expected, got 0"),
        ("name=a", "cannot set 'name'; known: model, cluster"),
        ("what_if=[]", "cannot set 'what_if'"),
        ("cluster.node=hgx-h10", "did you mean 'hgx-h100'?"),
        ("cluster.power_limit=400 GB", "that is a unit of bytes"),
        ("plan.schedule=1f2b", "did you mean '1f1b'?"),
        ("plan.schedule=none.json", "none.json"),
        ("plan.data.x=1", "plan.data is 8, not a mapping"),
        ("seed=-1", "seed: 0 or more is expected"),
        ("model=llama-3.1-8", "did you mean 'llama-3.1-8b'?"),
        ("model.set.hiddn_size=64", "did you mean 'hidden_size'?"),
    ],
)
def test_keys_and_values_that_a_scenario_cannot_have_end_the_sweep(option: str, what: str) -> None:
    (problem,) = _problems(option)
    assert problem.startswith(f"--vary {option}: ")
    assert what in problem


def test_all_problems_come_at_once() -> None:
    assert len(_problems("plan.tensr=1..9", "plan.data=x,y", "plan.micro_batch=1")) == 3


def test_what_only_a_combination_gets_wrong_is_no_problem_of_a_value() -> None:
    assert _problems("plan.tensor=3,1000", "cluster.nodes=1,2", "cluster.gpus=8,64", "plan.pipeline=7") == []
