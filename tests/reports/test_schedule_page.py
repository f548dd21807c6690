"""The page of a schedule: whole, self-contained, light for long orders, and rendered by a real browser."""

from __future__ import annotations

import html
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import schedules
from reports import schedule_charts as drawings
from reports import schedule_page
from scenarios.commands.output import plain_values
from scenarios.schedules.choose import choose
from scenarios.schedules.comparison import comparison
from scenarios.schedules.played import document
from scenarios.schedules.settings import Options, setting
from tests.reports.test_browser import CHROMIUM, measure

VOID = {"meta", "path", "rect", "line", "circle", "br", "link"}


def shown(name: str, stages: int, microbatches: int, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = plain_values(document(choose(name, setting(Options(stages, microbatches, **options)))))
    return found


def compared(names: list[str], stages: int = 4, microbatches: int = 8) -> dict[str, Any]:
    asked = setting(Options(stages, microbatches))
    found = comparison(names, asked, lambda text: None)
    settings = {"stages": stages, "microbatches": microbatches, "chunks": None, "unit": "tick", "times": {}}
    return plain_values({"settings": settings, **found})


def page(name: str, stages: int = 4, microbatches: int = 8, **options: Any) -> str:
    return schedule_page.render(shown(name, stages, microbatches, **options), compared(["1f1b", "gpipe"]))


class Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["1f1b", "zbv", "dualpipe", "1f1b-vocab-1"])
def test_a_page_is_whole_and_loads_nothing(name: str) -> None:
    text = page(name)
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert not re.search(r'(?:src|href)="(?!https?://arxiv)', text)
    assert "http://" not in text.replace("http://www.w3.org", "")
    one = shown(name, 4, 8)
    assert one["title"] in html.unescape(text)
    data = re.search(r'id="whatif-data">(.*?)</script>', text, re.DOTALL)
    assert data
    assert json.loads(data[1])["makespan"] == one["makespan"]


def test_each_pass_is_a_box_with_its_number() -> None:
    text = page("zb-h1")
    boxes = re.findall(r'<rect class="task" x="([\d.]+)"[^>]*width="([\d.]+)"[^>]*><title>([^<]*)', text)
    assert len(boxes) == 4 * 8 * 3
    assert boxes[0][2] == "forward, micro-batch 0, chunk 0: 0 to 1"
    one = shown("zb-h1", 4, 8)
    right = max(float(x) + float(width) for x, width, _ in boxes)
    left = min(float(x) for x, _, _ in boxes)
    widths = {round(float(width) * one["makespan"] / (right - left), 1) for _, width, _ in boxes}
    assert widths == {1.0}
    assert text.count('class="mark"') == 4 * 8 * 3


def test_zero_marks_this_schedule_among_all_others() -> None:
    text = page("zb-h1")
    assert "▶ ZB-H1 (zb-h1)" in text
    rows = re.findall(r'<td class="w">(?:▶ )?([^<]*\((?:zb-h1|1f1b|gpipe)\))</td>', text)
    assert rows[0] == "ZB-H1 (zb-h1)"


def test_long_orders_stay_light_and_say_so() -> None:
    text = page("interleaved-1f1b", 32, 256, chunks=3)
    assert len(text) < 900_000
    assert "49,152 passes are more than the picture has room for" in text
    assert "The first " in text
    assert '"order"' not in text


def test_columns_keep_the_time_of_every_kind() -> None:
    """A picture by columns shows about as much of each kind as there is, and nothing where a rank is idle."""
    one = shown("gpipe", 2, 3000, backward="2", weight="0")
    row = drawings.boxes(one, one["makespan"])[0]
    runs = drawings.in_columns(row, one["makespan"])
    for kind, time in (("F", 3000), ("B", 6000)):
        drawn = sum(run.end - run.start for run in runs if run.kind == kind)
        assert drawn == pytest.approx(time, abs=2 * one["makespan"] / drawings.COLUMNS)
    idle = [row[i + 1].start - row[i].end for i in range(len(row) - 1)]
    assert max(idle) < 10
    assert all(a.end <= b.start + 1e-9 for a, b in itertools.pairwise(runs))


def test_memory_lines_keep_the_peak() -> None:
    one = shown("1f1b", 4, 2000)
    for rank, line in enumerate(one["memory"]):
        assert len(line["times"]) > drawings.POINTS
        times, held = drawings._thinned(line)
        assert len(times) <= drawings.POINTS
        assert max(held) == one["peak_memory_micro_batches"][rank]
        assert held[-1] == 0
        assert np.all(np.diff(times) >= 0)


@pytest.mark.parametrize(("ranks", "expected"), [
    (1, [0]), (2, [0, 1]), (6, [0, 1, 2, 3, 4, 5]), (32, [0, 6, 12, 19, 25, 31])])
def test_drawn_ranks_are_spread_evenly(ranks: int, expected: list[int]) -> None:
    assert drawings.drawn_ranks(ranks) == expected


def test_names_and_notes_are_escaped() -> None:
    one = shown("1f1b", 2, 2)
    one |= {"title": "<script>alert(1)</script>", "notes": ["</script><b>"], "name": "<i>"}
    text = schedule_page.render(one, compared(["gpipe"], 2, 2))
    assert "<script>alert" not in text
    assert "</script><b>" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_pages_fit_a_phone_and_a_desktop(tmp_path: Path) -> None:
    pages = {"small": page("zbv"), "long": page("1f1b", 16, 600), "two routes": page("dualpipe"),
             "comparison": schedule_page.render_comparison(compared(schedules.names()[:6]))}
    views = measure(tmp_path, pages)
    assert len(views) == 2 * len(pages)
    for view in views:
        assert view["out"] == [], view["name"]
        assert view["scroll"] <= view["width"], view["name"]
        assert view["charts"] >= (12 if view["name"] == "comparison" else 2), view["name"]
