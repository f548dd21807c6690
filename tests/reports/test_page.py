"""The page: well-formed, complete, harmless whatever a scenario is called, small, the same bytes every time."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from reports import page
from reports.compare import compare
from reports.table import amount, change_text, column, figure_text
from tests.reports import sample

VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&]]>"


class Outline(HTMLParser):
    """Checks that elements close in order, and keeps the tags with their attributes and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def text_of(html: str) -> str:
    return " ".join(" ".join(Outline(html).text).split())


def embedded(html: str) -> Any:
    found = re.findall(r'<script type="application/json" id="whatif-data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    assert not set(found[0]) & set("<>&")
    return json.loads(found[0])


def svgs(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def comparison() -> dict[str, Any]:
    other = sample.document() | {k: v for k, v in sample.variants()[0].items() if k not in ("name", "set")}
    other["scenario"] = {"name": "interleaved", "inputs": {**other["scenario"]["inputs"], "plan": {"virtual": 2}}}
    return compare([sample.document(), other])


PAGES = {
    "fits": lambda: page.render(sample.document()),
    "too big": lambda: page.render(sample.too_big()),
    "many tasks": lambda: page.render(sample.many_tasks()),
    "nothing known": lambda: page.render(dict.fromkeys(sample.document())),
    "empty": lambda: page.render({}),
    "comparison": lambda: page.render_comparison(comparison()),
}


@pytest.fixture(scope="module", params=list(PAGES))
def html(request: pytest.FixtureRequest) -> str:
    return PAGES[request.param]()


def test_elements_close_in_order_and_ids_are_unique(html: str) -> None:
    tags = Outline(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in tags
    assert any(tag == "meta" and a.get("name") == "viewport" for tag, a in tags)


def test_every_chart_is_an_image_with_title_and_description(html: str) -> None:
    for svg in svgs(html):
        if svg.get("aria-hidden") == "true":
            continue
        assert svg.get("role") == "img"
        assert svg[0].tag == "title"
        assert svg[1].tag == "desc"
        assert all(child.text for child in svg[:2])


def test_textures_used_are_defined(html: str) -> None:
    defined = set(re.findall(r'<pattern id="([^"]+)"', html))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= defined


def test_nothing_is_loaded_and_no_script_runs(html: str) -> None:
    for tag, attributes in Outline(html).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "image", "use")
        assert not {"src", "srcset", "data", "xlink:href"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "script":
            assert attributes["type"] == "application/json"
        if "href" in attributes:
            assert tag == "a"
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_same_document_gives_the_same_bytes() -> None:
    assert page.render(sample.document()) == page.render(sample.document())


def test_the_figures_stand_on_the_page() -> None:
    document = sample.document()
    text = text_of(page.render(document))
    assert document["answer"] in text
    assert document["limiting"]["text"] in text
    for key in ("step_time_s", "tokens_per_s", "tokens_per_s_per_gpu", "mfu", "model_flops_per_s_per_gpu",
                "bubble_fraction", "cost_usd", "cost_usd_per_million_tokens", "energy_j"):
        assert figure_text(key, document[key]) in text, key
    for wanted in ("80% of runs like it lie between 9.2 s and 11.1 s", "68 GB",
                   "of 80 GB", "12 GB free", "41 GB", "32 × NVIDIA H100 SXM 80 GB",
                   "70,553,706,496", "a made-up paper, table 4", "10.4 s", change_text(10 / 10.4 - 1)):
        assert wanted in text, wanted


@pytest.mark.parametrize(("key", "unit"), [("breakdown_s", "s"), ("memory_breakdown_bytes", "B")])
def test_a_breakdown_shows_every_part_with_value_and_share(key: str, unit: str) -> None:
    document = sample.document()
    parts, text = document[key], text_of(page.render(document))
    total = sum(parts.values())
    values = column([total, *parts.values()], unit)
    for value, shown in zip(parts.values(), values[1:], strict=True):
        assert f"{shown} {100 * value / total:.1f}%" in text


def test_variants_assumptions_and_roofline_are_complete() -> None:
    document = sample.document()
    text = text_of(page.render(document))
    for variant in document["variants"]:
        for wanted in (variant["name"], figure_text("mfu", variant["mfu"]),
                       figure_text("energy_j", variant["energy_j"]), change_text(variant["change"]["step_time"]),
                       amount(variant["peak_memory_bytes"]["hbm"], "B")):
            assert wanted in text, wanted
    for row in document["assumptions"]:
        assert f"{row['key']} = {row['value']}" in text
        assert row["text"] in text
        assert row["source"] in text
    for operator in document["roofline"]["operators"]:
        assert operator["name"] in text
        assert amount(operator["flops_per_s"], "FLOP/s") in text


def test_what_would_fit_is_shown_when_it_does_not() -> None:
    text = text_of(page.render(sample.too_big()))
    for wanted in ("✗ does not fit in memory", "6 GB too much", "full recomputation", "plan.recompute = full", "61 GB",
                   "12.4 s", "micro-batch of 2", "55 GB"):
        assert wanted in text, wanted


def test_a_null_value_stands_with_its_reason() -> None:
    reasons = {"mfu": "the peak of this accelerator is not known", "timeline": "closed form, no timeline"}
    text = text_of(page.render(sample.document(mfu=None, timeline=None, reasons=reasons)))
    assert f"not given: {reasons['mfu']}" in text
    assert reasons["timeline"] in text
    assert "Pipeline timeline" not in text


def test_hostile_text_stays_text_everywhere() -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: poison(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return value + HOSTILE if isinstance(value, str) else value

    document = poison(sample.document())
    document["breakdown_s"][HOSTILE] = 1.0
    document["memory_over_time"]["states"][HOSTILE] = document["memory_over_time"]["states"]["activations"]
    document["scenario"]["inputs"]["plan"][HOSTILE] = HOSTILE
    html = page.render(document, extra=[{"title": HOSTILE, "text": HOSTILE, "head": [HOSTILE], "rows": [[HOSTILE]]}])
    tags = [tag for tag, _ in Outline(html).tags]
    assert "img" not in tags
    assert tags.count("script") == 1
    assert embedded(html)["scenario"]["name"] == document["scenario"]["name"]
    assert document["scenario"]["name"] in unescape(html)
    for svg in svgs(html):
        assert not [element for element in svg.iter() if element.tag in ("script", "img")]


def test_addresses_are_links_only_where_they_are_web_addresses() -> None:
    rows = [{"key": "a", "value": 1, "text": "javascript:alert(1)", "source": 'https://example.org/"onclick="x'}]
    tags = Outline(page.render(sample.document(assumptions=rows))).tags
    links = [attributes for tag, attributes in tags if tag == "a"]
    assert links == [{"href": "https://example.org/", "rel": "noreferrer"}]


def test_the_data_is_embedded_whole() -> None:
    document = sample.document()
    data = embedded(page.render(document))
    for key in set(document) - {"timeline"}:
        assert data[key] == document[key], key
    assert [len(s["tasks"]) for s in data["timeline"]["stages"]] == [16] * 4


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        page.render(sample.document(some_figure=float("nan")))


def test_ten_thousand_tasks_stay_small() -> None:
    document = sample.many_tasks()
    count = sum(len(stage["tasks"]) for stage in document["timeline"]["stages"])
    html = page.render(document)
    assert count > 9_900
    assert len(html.encode()) < 1_500_000
    charts = [svg for svg in svgs(html) if svg.findtext("title") == "Pipeline timeline"]
    paths = [e for e in charts[0].iter("path") if e.get("class") == "tasks"]
    assert sum(e.get("d", "").count("M") for e in paths) == count
    assert len(paths) == 6  # forward and backward of three chunks


def test_thinning_keeps_the_peak_and_the_ends() -> None:
    document = sample.many_tasks()
    full = document["memory_over_time"]
    full["states"]["activations"][12_345] = 9e12
    thin = page.compact(document)["memory_over_time"]
    assert len(thin["times_s"]) <= page.MEMORY_POINTS + 2
    assert max(thin["states"]["activations"]) == 9e12
    assert (thin["times_s"][0], thin["times_s"][-1]) == (full["times_s"][0], full["times_s"][-1])


def test_extra_sections_are_added() -> None:
    extra = [{"title": "Sensitivity", "text": "By one tenth.", "head": ["Input", "Effect"], "rows": [["price", "+3%"]]}]
    text = text_of(page.render(sample.document(), extra))
    for wanted in ("Sensitivity", "By one tenth.", "Effect", "price", "+3%"):
        assert wanted in text


def test_the_comparison_names_every_cause() -> None:
    text = text_of(page.render_comparison(comparison()))
    for wanted in ("plan.virtual", "not set", "8.85 s (-11.5%)", "1.15 s less", "-1.35 s", "+200 ms", "interleaved"):
        assert wanted in text, wanted
