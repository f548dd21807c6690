"""Charts: geometry against the numbers that go in."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import charts
from reports.charts import Part
from tests.reports import sample


def seconds(value: float) -> str:
    return f"{value:g} s"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def percent(element: ElementTree.Element, name: str) -> float:
    return float(element.get(name, "").removesuffix("%"))


@given(st.floats(1e-9, 1e15), st.integers(3, 9))
def test_ticks_are_even_round_and_inside(limit: float, count: int) -> None:
    steps = charts.ticks(limit, count)
    assert steps[0] == 0
    assert steps[-1] <= limit * (1 + 1e-9)
    assert count / 2.5 <= len(steps) <= 2.5 * count + 1
    mantissa = steps[1] / 10 ** math.floor(math.log10(steps[1] * (1 + 1e-9)))
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 1e-6


def test_stacked_bars_are_as_long_as_their_values() -> None:
    rows = [("first case", [Part("a", 3.0, "gemm"), Part("b", 1.0, "bubble")]), ("second", [Part("a", 2.0, "gemm")])]
    svg = parse(charts.stacked_bars(rows, "t", "d", seconds, ("limit", 8.0)))
    bars = list(svg.iter("rect"))
    assert [percent(e, "width") for e in bars] == [37.5, 12.5, 25.0]
    assert percent(bars[1], "x") == percent(bars[0], "x") + 37.5
    assert percent(next(svg.iter("line")), "x1") == 100.0
    assert bars[0].findtext("title") == "a: 3 s (75.0%)"


def test_differences_lie_on_their_side_of_zero() -> None:
    svg = parse(charts.differences([("less", -3.0), ("more", 1.0)], "t", "d", seconds))
    less, more = svg.iter("rect")
    zero = percent(next(svg.iter("line")), "x1")
    assert zero == 75.0
    assert (percent(less, "x"), percent(less, "width")) == (0.0, 75.0)
    assert (percent(more, "x"), percent(more, "width")) == (75.0, 25.0)
    assert less.get("fill") != more.get("fill")


def test_timeline_boxes_lie_where_the_tasks_are() -> None:
    timeline = sample.one_f_one_b(4, 8, 0.3, 0.6)
    svg = parse(charts.timeline(timeline["stages"], timeline["makespan_s"], "t", "d", seconds))
    lane = next(e for e in svg.iter("rect") if e.get("class") == "lane")
    left, scale = float(lane.get("x", "")), float(lane.get("width", "")) / timeline["makespan_s"]
    tasks = [task for stage in timeline["stages"] for task in stage["tasks"]]
    boxes = [e for e in svg.iter("rect") if e.get("class") == "task"]
    assert len(boxes) == len(tasks) == 64
    for box, task in zip(boxes, tasks, strict=True):
        assert float(box.get("x", "")) == pytest.approx(left + task[4] * scale, abs=0.01)
        assert float(box.get("width", "")) == pytest.approx(task[5] * scale, abs=0.01)
    assert {box.get("fill") for box in boxes} == {charts.STYLES["forward"][0], "url(#p-backward)"}


def test_area_reaches_the_peak_and_the_capacity_line_its_value() -> None:
    times, low, high = [0.0, 1.0, 2.0, 4.0], [1.0, 1.0, 1.0, 1.0], [0.0, 3.0, 1.0, 0.0]
    svg = parse(charts.steps_area(times, [("low", "parameters", low), ("high", "activations", high)], "t", "d",
                                  seconds, seconds, ("capacity", 8.0)))
    areas = [e for e in svg.iter("path") if e.get("class") == "area"]
    ys = [[float(p.split()[1]) for p in re.split("[ML]", e.get("d", "").rstrip("z"))[1:]] for e in areas]
    line = next(e for e in svg.iter("path") if e.get("class") == "limit")
    zero, one = max(ys[0]), min(ys[0])
    unit = zero - one
    assert max(ys[1]) == pytest.approx(one)
    assert min(ys[1]) == pytest.approx(zero - 4 * unit, abs=0.3)
    limit = float(line.get("d", "").split()[1].split("H")[0])
    assert limit == pytest.approx(zero - 8 * unit, abs=0.5)


def test_a_roofline_point_at_the_ridge_sits_on_the_corner() -> None:
    peak, bandwidth = 1e15, 1e12
    points = [charts.Operator("ridge", peak / bandwidth, peak, "1"), charts.Operator("slow", 1.0, 1e12, "2"),
              charts.Operator("no bytes", 0.0, 1e12, "3")]
    svg = parse(charts.roofline(peak, bandwidth, points, "t", "d", seconds))
    roof = next(e for e in svg.iter("path") if e.get("class") == "roof")
    corner = [tuple(float(v) for v in p.split()) for p in re.split("[ML]", roof.get("d", ""))[1:]]
    circle = next(svg.iter("circle"))
    assert (float(circle.get("cx", "")), float(circle.get("cy", ""))) == pytest.approx(corner[1], abs=0.02)
    diamond = next(e for e in svg.iter("path") if e.get("class") == "point")
    x, y = (float(v) for v in re.split("[Ml]", diamond.get("d", ""))[1].split())
    slope = (corner[1][1] - corner[0][1]) / (corner[1][0] - corner[0][0])
    assert y + 6 == pytest.approx(corner[0][1] + slope * (x - corner[0][0]), abs=0.1)
    assert len(list(svg.iter("circle"))) == 1


def test_families_differ_in_texture_and_styles_of_a_chart_differ() -> None:
    texture = {name: style[1] for name, style in charts.STYLES.items()}
    assert len({texture["gemm"], texture["data_communication"], texture["bubble"]}) == 3
    assert len({texture["forward"], texture["backward"], texture["weight"], texture["other"]}) == 4
    assert len(set(charts.STYLES.values())) >= len(charts.STYLES) - 2  # parameters look like gemm, in other charts


def test_texts_are_escaped() -> None:
    rows = [("<b>&", [Part("<script>", 1.0, "gemm", "<i>")])]
    svg = parse(charts.stacked_bars(rows, "<title>", "a & b", seconds))
    assert svg.findtext("title") == "<title>"
    assert not [e for e in svg.iter() if e.tag in ("script", "b", "i")]


@pytest.mark.parametrize("repeats", [1, 400])  # separate boxes, and one path per pass and chunk
def test_tones_follow_the_chunks_of_each_stage_however_they_are_numbered(repeats: int) -> None:
    stages = [{"stage": s, "tasks": [["F", "F", chunk, m, 2.0 * m + turn, 1.0] for m in range(repeats)
                                     for turn, chunk in enumerate((s, s + 4))]} for s in range(2)]
    svg = parse(charts.timeline(stages, 2.0 * repeats, "t", "d", seconds))
    drawn = [e for e in svg.iter() if e.get("class") in ("task", "tasks")]
    assert [e.get("fill-opacity") for e in drawn] == [None, "0.76"] * (2 if repeats == 1 else 1)
