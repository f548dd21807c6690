"""Numbers in words, and the terminal output within 80 columns."""

from __future__ import annotations

import doctest
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from costmodel.units import parse
from reports import charts, table
from reports.compare import compare
from reports.run_table import show, show_comparison
from reports.table import amount, column
from tests.reports import sample


def printed(show_it: Any, what: Any, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    show_it(what, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [table, charts])
def test_examples_in_the_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


@given(st.floats(1e-9, 9e14), st.sampled_from(["s", "B", "FLOP/s", "J"]))
def test_amounts_read_back_within_their_digits(value: float, unit: str) -> None:
    text = amount(value, unit, 4).replace(",", "")
    dimension = {"s": "s", "B": "bytes", "FLOP/s": "FLOP/s", "J": "J"}[unit]
    if "e" in text.split(" ")[0] or text.split(" ")[1] == "EB":
        return
    assert parse(text, dimension) == pytest.approx(value, rel=6e-4)
    assert len(text.split(" ")[0].replace(".", "")) <= 15


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6))
def test_a_column_shows_no_value_as_zero_that_is_not(values: list[float]) -> None:
    for value, text in zip(values, column(values, "s"), strict=True):
        read = parse(text.replace(",", ""), "s")
        assert (read == 0) == (value == 0)
        assert read == pytest.approx(value, rel=0.51)


@pytest.mark.parametrize("document", [sample.document(), sample.too_big(), dict.fromkeys(sample.document()), {}])
def test_everything_fits_80_columns(document: dict[str, Any]) -> None:
    assert max(len(line) for line in printed(show, document).splitlines()) <= 80


def test_the_answer_the_figures_and_the_reasons_are_printed() -> None:
    text = " ".join(printed(show, sample.document()).split())
    for wanted in ("A step takes 10 s", "819.2 tokens/s", "35.06%", "27%", "$0.2622", "224 kJ",
                   "80% of runs like it lie between 9.2 s and 11.1 s (14 published runs of 3 families)",
                   "the recomputed share is not counted in this sample", "68 GB of 80 GB", "12 GB free", "40.0%",
                   "28.31 GB", "10.4 s", "-3.8%", "interleave twice", "-11.5%", "stack.attention = flash-3",
                   "https://example.org/prices"):
        assert wanted in text, wanted


def test_what_would_fit_is_printed() -> None:
    text = printed(show, sample.too_big())
    for wanted in ("Does not fit", "6 GB too much", "full recomputation", "61 GB", "12.4 s"):
        assert wanted in text, wanted


def test_bars_are_in_proportion() -> None:
    lines = printed(show, sample.document()).splitlines()
    length = {name: next(line for line in lines if line.startswith(name)).count("█")
              for name in ("Matrix multiplication", "Pipeline bubble ", "Attention")}
    whole = length["Matrix multiplication"]
    for name, seconds in (("Pipeline bubble ", 2.7), ("Attention", 0.9)):
        if name == "Pipeline bubble ":
            name_lines = [line for line in lines if line.startswith(name) and "█" in line]
            assert name_lines[0].count("█") == round(whole * seconds / 4.0)
        else:
            assert length[name] == round(whole * seconds / 4.0)


def test_markup_and_control_characters_in_names_do_nothing() -> None:
    document = sample.document(answer="[bold red]x[/] \x1b[31mred\x07")
    text = printed(show, document)
    assert "[bold red]x[/]" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_a_comparison_is_printed_within_80_columns() -> None:
    other = sample.document(step_time_s=9.0, breakdown_s=sample.BREAKDOWN_S | {"bubble": 1.7})
    other["scenario"] = {"name": "other", "inputs": other["scenario"]["inputs"] | {"plan": {"tensor": 4}}}
    text = printed(show_comparison, compare([sample.document(), other, sample.document(step_time_s=None)]))
    assert max(len(line) for line in text.splitlines()) <= 80
    for wanted in ("plan.tensor", "9 s (-10.0%)", "-1 s", "Pipeline bubble", "not set", "no attribution"):
        assert wanted in text, wanted


def test_an_assumption_without_a_value_is_its_key_alone() -> None:
    rows = [{"key": "balance", "value": "", "text": "ranks are equal", "source": None},
            {"key": "seed", "value": 0, "text": "fixed", "source": None}]
    text = printed(show, sample.document(assumptions=rows))
    assert "- balance: ranks are equal" in text
    assert "- seed = 0: fixed" in text
