"""A search in the terminal: the essentials of the page within 100 columns, whatever is missing."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from rich.cells import cell_len

from reports import search_table
from tests.reports import search_sample as sample
from tests.reports.test_search_page import DOCUMENTS, read_back, without
from tests.reports.test_table import printed


def shown(document: dict[str, Any], width: int = 100) -> str:
    return printed(search_table.show, document, width)


def flat(document: dict[str, Any]) -> str:
    return " ".join(shown(document).split())


@pytest.mark.parametrize("name", list(DOCUMENTS))
@pytest.mark.parametrize("width", [80, 100])
def test_every_search_stays_within_the_width(name: str, width: int) -> None:
    lines = shown(DOCUMENTS[name](), width).splitlines()
    # a command is not broken inside a word, which the shell would read as two
    whole = [line for line in lines if not line.lstrip().startswith(("whatif run", "--set"))]
    assert max(map(cell_len, whole)) <= width
    if name != "hostile":
        assert max(map(cell_len, lines)) <= width


def test_the_essentials_are_printed() -> None:
    document = sample.document()
    text = flat(document)
    for wanted in (document["answer"], "Shortest step, exhaustive solver, 80 GB of memory per GPU",
                   "By the closed form; the best 10 were played as events too: 2 ranks changed.",
                   "! rank 3 of the closed form is rank 2 of events", document["best"][1]["why"],
                   "Combinations of the values 11,664", "Distinct plans 5,400", "Within every limit 108",
                   "layers by pipeline x virtual 2,103", "plan.pipeline 6: 1, 2, 4, 8, 16, 32",
                   "GPUs at most 64; Time of the run at most 30 days", "Proof: Proven best by the closed form",
                   "330 plans a second for 900 ms, 4.2 s in all", "62.67 s a step with 239.0 GB of memory"):
        assert wanted in text
    assert text.index(document["answer"]) < text.index("The best plan") < text.index("The 10 best plans")


def test_every_rank_has_its_line_with_both_fidelities() -> None:
    document = sample.document(50, 10)
    lines = shown(document).split("The 50 best plans")[1].split("Why the next best lost")[0].splitlines()
    for row in document["best"]:
        line = next(line for line in lines if line.split()[:2] == [str(row["rank"]), f"{row['step_time_s']:.2f}"])
        played = f"{row['events']['step_time_s']:.2f} s" if row["events"] else "–"
        assert played in line


def test_moved_ranks_are_flagged() -> None:
    text = shown(sample.document())
    assert "3 ▼" in text
    assert "2 ▲" in text
    assert text.count("▼") == text.count("▲") == 1
    assert not {"▼", "▲"} & set(shown(sample.document(5, 0)))


def test_no_plan_fits() -> None:
    text = flat(sample.nothing_fits())
    assert "No plan fits" in text
    assert "The nearest misses" in text
    assert sample.nothing_fits()["nearest_misses"][0]["text"] in text
    assert "whatif run" not in text
    assert "The best plan" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_command_can_be_pasted(width: int) -> None:
    document = sample.document(1)
    _, pasted = shown(document, width).split("Run the best plan\n")
    assert all(line.endswith("\\") for line in pasted.splitlines()[:-1])
    command = shlex.join(shlex.split(pasted.replace("\\\n", " ")))
    assert read_back([command]) == (document["scenario"]["file"], document["best"][0]["set"])


def test_text_has_no_markup() -> None:
    document = sample.hostile("[bold red]x[/] \x1b[31m")
    text = shown(document)
    assert "[bold red]x[/]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("blank", [True, False], ids=["null", "missing"])
def test_any_part_may_be_absent(blank: bool) -> None:
    whole = sample.document(3, 3, nearest_misses=sample.nothing_fits()["nearest_misses"])
    for key in whole:
        shown(without(whole, key, blank))
    for block in ("best", "pareto", "nearest_misses"):
        for key in whole[block][0]:
            shown(whole | {block: [without(row, key, blank) for row in whole[block]]})
    for block in ("scenario", "space", "counts", "proof", "run", "base", "fastest_that_does_not_fit"):
        for key in whole[block]:
            shown(whole | {block: without(whole[block], key, blank)})
