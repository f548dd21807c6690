"""The page of a search: whole and harmless, complete, true to its numbers, and rendered by a real browser."""

from __future__ import annotations

import doctest
import html
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import search_charts as drawings
from reports import search_page
from reports import search_words as said
from reports.search_charts import SHADES, Spot, front, scale, shades
from scenarios.document import parse_value
from tests.reports import search_sample as sample
from tests.reports.test_browser import CHROMIUM, WIDTHS, brightness, measure
from tests.reports.test_page import HOSTILE, Outline, embedded, svgs, text_of

DOCUMENTS = {
    "fits": sample.document, "nothing fits": sample.nothing_fits, "one plan": sample.one_plan,
    "fifty": lambda: sample.document(50, 10), "no money": sample.without_money,
    "closed form only": lambda: sample.document(5, 0), "hostile": lambda: sample.hostile(HOSTILE),
    "nothing known": lambda: dict.fromkeys(sample.document()), "empty": dict,
}


@pytest.fixture(scope="module", params=list(DOCUMENTS))
def page(request: pytest.FixtureRequest) -> str:
    return search_page.render(DOCUMENTS[request.param]())


def table(page: str, label: str) -> list[list[str]]:
    """The cells of a table, heading first."""
    found = re.search(rf'aria-label="{re.escape(label)}">\s*<table>(.*?)</table>', page, re.DOTALL)
    assert found, label
    rows = re.findall(r"<tr>(.*?)</tr>", found[1], re.DOTALL)
    return [[html.unescape(re.sub(r"<[^>]*>", "", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in rows]


# The page as a whole ---------------------------------------------------------------------------------


def test_elements_close_ids_are_unique_and_nothing_is_loaded(page: str) -> None:
    tags = Outline(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "image", "use")
        assert not {"src", "srcset", "data", "xlink:href"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes["type"] == "application/json"
    assert not re.search(r"url\((?!#)", page)


def test_charts_are_images_with_titles_and_known_textures(page: str) -> None:
    for svg in svgs(page):
        if svg.get("aria-hidden") != "true":
            assert svg.get("role") == "img"
            assert [svg[0].tag, svg[1].tag] == ["title", "desc"]
            assert all(child.text for child in svg[:2])
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(re.findall(r'<pattern id="([^"]+)"', page))


def test_the_document_is_carried_whole_and_the_bytes_are_always_the_same() -> None:
    for make in DOCUMENTS.values():
        assert embedded(search_page.render(make())) == make()
        assert search_page.render(make()) == search_page.render(make())


@pytest.mark.parametrize("examples", [said, drawings])
def test_examples_in_the_docstrings(examples: Any) -> None:
    assert doctest.testmod(examples).failed == 0
    assert doctest.testmod(examples).attempted > 0


@pytest.mark.parametrize("blank", [True, False], ids=["null", "missing"])
def test_any_part_may_be_absent(blank: bool) -> None:
    whole = sample.document(3, 3, nearest_misses=sample.nothing_fits()["nearest_misses"])
    for key in whole:
        search_page.render(without(whole, key, blank))
    for block in ("best", "pareto", "nearest_misses"):
        for key in whole[block][0]:
            search_page.render(whole | {block: [without(row, key, blank) for row in whole[block]]})
    for block in ("scenario", "space", "counts", "proof", "run", "base", "fastest_that_does_not_fit", "constraints"):
        for key in whole[block]:
            search_page.render(whole | {block: without(whole[block], key, blank)})
    for key in whole["best"][0]["events"]:
        rows = [row | {"events": without(row["events"], key, blank)} for row in whole["best"]]
        search_page.render(whole | {"best": rows})


def without(mapping: dict[str, Any], key: str, blank: bool) -> dict[str, Any]:
    return mapping | {key: None} if blank else {name: value for name, value in mapping.items() if name != key}


# What stands on it -----------------------------------------------------------------------------------


def test_the_answer_comes_before_every_number_and_the_proof_with_it() -> None:
    text = text_of(search_page.render(sample.document()))
    answer = sample.document()["answer"]
    proof = "Proven best by the closed form over the space listed: every plan of the space was priced or excluded"
    assert text.index(answer) < text.index(proof) < text.index("The best plan") < text.index("The 10 best plans")
    bounded = text_of(search_page.render(sample.without_money()))
    assert "Not proven best, but bounded by the closed form: no plan is more than 2.5% better" in bounded


def test_the_best_plan_stands_beside_the_scenarios_own() -> None:
    document = sample.document()
    page = search_page.render(document)
    rows = table(page, "Settings of the best plan")
    assert rows[0] == ["Key", "Best", "Scenario"]
    assert [row[0] for row in rows[1:]] == [axis["key"].removeprefix("plan.") for axis in sample.AXES]
    for (key, best), row in zip(document["best"][0]["set"].items(), rows[1:], strict=True):
        assert row[1:] == [said.value_text(best), said.value_text(document["base"]["set"][key])]
    bold = re.findall(r"<td><b>([^<]*)</b></td>\s*<td>", page)
    assert set(bold) >= {said.value_text(best) for best, own in zip(
        document["best"][0]["set"].values(), document["base"]["set"].values(), strict=True) if best != own}
    figures = {row[0]: row[1:] for row in table(page, "Figures of the best plan")[1:]}
    assert figures["Step time"] == ["65.82 s", "86.62 s"]
    assert figures["Fits in memory"] == ["✓ yes", "✓ yes"]
    assert table(search_page.render(sample.without_money()), "Settings of the best plan")[0] == ["Key", "Best"]


def test_a_plan_that_is_the_scenarios_own_is_said_to_be() -> None:
    assert "The scenario's own plan is the best of those searched." in text_of(search_page.render(sample.one_plan()))
    assert "The scenario's own plan" not in text_of(search_page.render(sample.document()))


@pytest.mark.parametrize("count", [2, 10, 50])
def test_the_ranking_has_every_plan_with_both_fidelities_and_flags_what_moved(count: int) -> None:
    document = sample.document(count, min(count, 10))
    head, *rows = table(search_page.render(document), "Plans by rank")
    assert head[:5] == ["Rank", "Step time", "Step by events", "Change", "Rank by events"]
    assert [row[0] for row in rows] == [str(rank) for rank in range(1, count + 1)]
    for plan, row in zip(document["best"], rows, strict=True):
        assert row[1] == f"{plan['step_time_s']:.2f} s"
        if plan["events"] is None:
            assert row[2:5] == ["–", "–", "–"]
            continue
        assert row[2] == f"{plan['events']['step_time_s']:.2f} s"
        moved = plan["events"]["rank"] - plan["rank"]
        assert row[4] == f"{plan['events']['rank']}{' ▼' if moved > 0 else ' ▲' if moved < 0 else ''}"


def test_only_settings_that_differ_are_columns_and_the_others_are_said_once() -> None:
    document = sample.document(10)
    page = search_page.render(document)
    head = table(page, "Plans by rank")[0]
    for key in document["best"][0]["set"]:
        differs = len({str(row["set"][key]) for row in document["best"]}) > 1
        assert (key.removeprefix("plan.") in head) == differs
    assert "In all: sequence_parallel yes, stack.overlap data" in text_of(page)


def test_bars_are_as_long_as_the_steps_they_show() -> None:
    """Every bar's parts add up to its step time on one scale, in the colours of the run's page."""
    document = sample.document(10)
    chart = next(svg for svg in svgs(search_page.render(document)) if "goes by rank" in (svg[0].text or ""))
    lengths: dict[str, float] = {}
    for part in chart.iter("rect"):
        lengths[part.get("y", "")] = lengths.get(part.get("y", ""), 0.0) + float(part.get("width", "").rstrip("%"))
    steps = [row["step_time_s"] for row in document["best"]]
    assert len(lengths) == len(steps)
    for length, step in zip(lengths.values(), steps, strict=True):
        assert length / max(lengths.values()) == pytest.approx(step / max(steps), rel=1e-4)
    assert any(part.get("fill") == "url(#p-tensor_communication)" for part in chart.iter("rect"))


def test_why_the_next_best_lost_adds_up() -> None:
    document = sample.document(10)
    page = search_page.render(document)
    chart = next(svg for svg in svgs(page) if "rank 2 against the best" in (svg[0].text or ""))
    second = document["best"][1]
    assert sum(one["seconds"] for one in second["differences"]) == pytest.approx(
        second["step_time_s"] - document["best"][0]["step_time_s"])
    assert len(list(chart.iter("rect"))) == len(second["differences"])
    rows = table(page, "Why plans lost")[1:] + table(page, "Why the others lost")[1:]
    assert [row[2] for row in rows] == [plan["why"] for plan in document["best"][1:]]
    assert rows[0][1] == "virtual 1 → 2, schedule 1f1b → interleaved-1f1b"


def test_changes_are_found_where_the_document_does_not_say_them() -> None:
    first, second = sample.document(2)["best"]
    bare = {key: value for key, value in second.items() if key != "changed"}
    assert said.against(first, bare) == said.against(first, second)
    assert said.against(first, first) == "the same settings"


def test_a_first_by_events_that_is_not_the_best_gets_its_own_command() -> None:
    document = sample.document(3)
    for row, rank in zip(document["best"], (2, 1, 3), strict=True):
        row["events"]["rank"] = rank
    text = text_of(search_page.render(document))
    assert "Run the first by events (rank 2 by the closed form)" in text
    assert text.count("whatif run gpt-3-175b-64-a100.yaml") == 2
    assert "2 ranks changed" in text


def test_a_plan_that_does_not_fit_by_events_says_so() -> None:
    document = sample.document(3)
    assert "Fits" not in table(search_page.render(document), "Plans by rank")[0]
    document["best"][1]["events"]["fits"] = False
    rows = table(search_page.render(document), "Plans by rank")
    assert rows[0][-1] == "Fits"
    assert [row[-1] for row in rows[1:]] == ["✓ yes", "✓ yes; events: ✗ no", "✓ yes"]


def test_no_plan_fits_puts_the_misses_first() -> None:
    document = sample.nothing_fits()
    page = search_page.render(document)
    text = text_of(page)
    assert text.index("No plan fits") < text.index("The nearest misses") < text.index("What was searched")
    assert 'class="answer bad"' in page
    assert "Proven that none fits by the closed form" in text
    assert "The best plan" not in text
    rows = table(page, "The nearest misses")[1:]
    assert [row[3] for row in rows] == [miss["text"] for miss in document["nearest_misses"]]
    chart = next(svg for svg in svgs(page) if "nearest misses" in (svg[0].text or ""))
    widths = [float(part.get("width", "").rstrip("%")) for part in chart.iter("rect")]
    for miss, within, beyond in zip(document["nearest_misses"], widths[::2], widths[1::2], strict=True):
        assert beyond / within == pytest.approx(miss["misses_by_bytes"] / document["limit_bytes"], rel=1e-3)


def test_misses_of_other_limits_than_memory_are_told_without_bars() -> None:
    miss = {"set": {"plan.tensor": 8}, "peak_memory_bytes": 5e9, "step_time_s": 90.0, "misses_by_bytes": None,
            "text": "takes 3 days more than the deadline"}
    page = search_page.render(sample.nothing_fits() | {"nearest_misses": [miss]})
    assert table(page, "The nearest misses")[1][3] == "takes 3 days more than the deadline"
    assert "too much" not in page.split("<section")[2].split("<table")[0]


def test_the_funnel_narrows_as_the_counts_do() -> None:
    chart = next(svg for svg in svgs(search_page.render(sample.nothing_fits())) if "Plans left" in (svg[0].text or ""))
    widths = [float(part.get("width", "").rstrip("%")) for part in chart.iter("rect")]
    assert len(widths) == 4  # none is left after the last step
    assert widths[0] == 100
    assert widths == sorted(widths, reverse=True)
    texts = [node.text for node in chart.iter("text")]
    assert texts == ["Combinations of the values", "11,664", "Degrees multiply to the GPUs", "8,100 (69.4%)",
                     "Distinct plans", "5,400 (66.7%)", "Divide evenly, and are priced", "297 (5.5%)",
                     "Within every limit", "0 (0%)"]
    counts = sample.document()["counts"] | {"plans_evaluated": 290}
    assert said.funnel({"counts": counts})[3:5] == [("Divide model and batch evenly", 297),
                                                    ("Priced for time and memory", 290)]


def test_what_was_searched_and_the_limits_are_told() -> None:
    page = search_page.render(sample.document())
    assert table(page, "Why plans were dropped")[1] == ["degrees do not multiply to the GPUs", "3,564"]
    assert table(page, "Values tried")[-1] == ["stack.overlap", "3", "none, data, data + tensor"]
    text = text_of(page)
    for wanted in ("Memory per GPU at most 80 GB (its capacity)", "GPUs at most 64", "Time of the run at most 30 days",
                   "plans priced per second 330", "time to search 4.2 s"):
        assert wanted in text


def test_gpus_are_a_column_once_and_only_where_their_number_differs() -> None:
    document = sample.document(3)
    assert "GPUs" not in table(search_page.render(document), "Plans by rank")[0]
    document["best"][1]["gpus"] = 32
    assert [row[-1] for row in table(search_page.render(document), "Plans by rank")] == ["GPUs", "64", "32", "64"]
    for row in document["best"]:
        row["set"]["cluster.gpus"] = row["gpus"]
    head = table(search_page.render(document), "Plans by rank")[0]
    assert "cluster.gpus" in head
    assert "GPUs" not in head


def test_missing_money_leaves_no_column_of_dashes() -> None:
    page = search_page.render(sample.without_money())
    for label in ("Plans by rank", "Pareto front", "Figures of the best plan"):
        assert "Cost per step" not in str(table(page, label))
        assert "Energy per step" not in str(table(page, label))
    assert "that no other beats in all of step time, peak memory" in text_of(page)


# The front -------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_the_front_is_what_brute_force_finds(points: list[tuple[int, int]]) -> None:
    found = [(spot.x, spot.y) for spot in front([Spot(x, y, "") for x, y in points])]
    unbeaten = {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert found == sorted(unbeaten)


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=30))
def test_shades_keep_the_order_and_their_ranges_hold_all(values: list[float]) -> None:
    of, legend = shades(values)
    assert len(of) == len(values)
    assert {shade for shade, _, _ in legend} == set(of) <= set(range(len(SHADES)))
    ranges = {shade: (low, high) for shade, low, high in legend}
    for one, shade in zip(values, of, strict=True):
        assert ranges[shade][0] <= one <= ranges[shade][1]
    ordered = [shade for _, shade in sorted(zip(values, of, strict=True))]
    assert ordered == sorted(ordered)


@given(st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=10))
def test_axes_keep_the_order_and_hold_every_value_and_mark(values: list[float]) -> None:
    axis = scale(values)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 1 for place in places)
    assert axis.logarithmic == (max(values) > 4 * min(values))
    assert all(-1e-9 <= axis.at(mark) <= 1 + 1e-9 for mark in axis.marks)
    assert len(axis.marks) <= 60


def test_equal_ratios_are_equal_lengths_where_an_axis_is_logarithmic() -> None:
    axis = scale([1.0, 100.0])
    assert axis.at(10.0) - axis.at(1.0) == pytest.approx(axis.at(100.0) - axis.at(10.0))


def test_spots_lie_where_their_numbers_say() -> None:
    document = sample.document()
    chart = next(svg for svg in svgs(search_page.render(document)) if "Pareto" in (svg[0].text or ""))
    spots = [node for node in chart.iter("circle") if node.get("class") == "point"]
    assert len(spots) == len(document["pareto"])
    seen = {node[0].text: (float(node.get("cx", "").rstrip("%")), float(node.get("cy", ""))) for node in spots}
    rows = {search_page._told(row): row for row in document["pareto"]}
    assert set(seen) == set(rows)
    by_memory = sorted(rows, key=lambda told: rows[told]["peak_memory_bytes"])
    by_time = sorted(rows, key=lambda told: rows[told]["step_time_s"])
    low, high = rows[by_memory[0]], rows[by_memory[-1]]
    per_byte = (seen[by_memory[-1]][0] - seen[by_memory[0]][0]) / (
        high["peak_memory_bytes"] - low["peak_memory_bytes"])
    for told, row in rows.items():
        across = seen[by_memory[0]][0] + per_byte * (row["peak_memory_bytes"] - low["peak_memory_bytes"])
        assert seen[told][0] == pytest.approx(across, abs=0.02)
    heights = [seen[told][1] for told in by_time]
    assert heights == sorted(heights, reverse=True)  # a longer step lies higher
    marked = [node for node in chart.iter() if node.get("class") == "ring"]
    assert len(marked) == 2  # the best and the scenario's own; the fastest that does not fit is far away


def test_the_line_ends_at_the_limit() -> None:
    """Nothing was searched beyond it, so nothing is said of it."""
    chart = next(svg for svg in svgs(search_page.render(sample.document())) if "Pareto" in (svg[0].text or ""))
    limit = next(node for node in chart.iter("line") if node.get("class") == "limit")
    ends = [float(node.get("x2", "").rstrip("%")) for node in chart.iter("line") if node.get("class") == "roof"]
    assert max(ends) == float(limit.get("x1", "").rstrip("%"))


def test_long_fronts_are_thinned_and_say_so() -> None:
    rows = [{"set": {"plan.tensor": i}, "step_time_s": 100.0 - i / 50, "peak_memory_bytes": 1e9 * (1 + i / 100),
             "cost_usd": None, "energy_j": None, "gpus": 64} for i in range(4000)]
    page = search_page.render(sample.document(2, pareto=rows))
    assert "4,000 plans that no other beats" in text_of(page)
    assert len(table(page, "Pareto front")) == 41
    assert page.count('class="point"') == 600
    assert f"plan.tensor {3999}" not in page
    assert "tensor 3999:" in page  # the ends stay


# The command -----------------------------------------------------------------------------------------


def read_back(pieces: list[str]) -> tuple[str, dict[str, Any]]:
    words = shlex.split(" ".join(pieces))
    assert words[:2] == ["whatif", "run"]
    assert words[3::2] == ["--set"] * len(words[4::2])
    pairs = [word.partition("=") for word in words[4::2]]
    return words[2], {key: parse_value(text, "--set") for key, _, text in pairs}


def test_the_command_sets_the_plan() -> None:
    document = sample.document(10)
    for row in document["best"]:
        assert read_back(said.command(document, row)) == (document["scenario"]["file"], row["set"])
    document["scenario"]["set"] = {"cluster.nodes": 8, "plan.tensor": 2}
    found = read_back(said.command(document, document["best"][0]))[1]
    assert found == {"cluster.nodes": 8, **document["best"][0]["set"]}


@given(st.one_of(
    st.integers(-10**9, 10**9), st.booleans(), st.floats(-1e12, 1e12),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.from_regex(r"[0-9a-fA-Fxob.:_+-]{1,6}", fullmatch=True),
    st.lists(st.sampled_from(["data", "tensor", "1", "no"]), max_size=3)))
def test_values_come_back_as_they_were(value: Any) -> None:
    _, found = read_back(said.command({}, {"set": {"plan.key": value}}))
    assert found == {"plan.key": value}
    assert type(found["plan.key"]) is type(value)


# In a browser ----------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_a_phone_and_a_desktop_and_follow_the_scheme(tmp_path: Path, dark: bool) -> None:
    shown = {name: search_page.render(make()) for name, make in DOCUMENTS.items()}
    shown["unbroken"] = search_page.render(sample.hostile("unbroken_" * 40))
    views = measure(tmp_path, shown, dark)
    assert len(views) == 2 * len(shown)
    charts = {"fits": 4, "nothing fits": 2, "one plan": 2, "fifty": 4, "no money": 4, "closed form only": 4}
    for view in views:
        assert view["width"] in WIDTHS
        assert view["out"] == [], view["name"]
        assert view["scroll"] <= view["width"], view["name"]
        assert view["heading"]
        assert view["charts"] >= charts.get(view["name"], 0), view["name"]
        assert (brightness(view["paper"]) < 60) == dark
        assert abs(brightness(view["paper"]) - brightness(view["ink"])) > 150
