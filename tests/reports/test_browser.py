"""The page in a real browser: it renders, fits a phone and a desktop, and follows the colour scheme."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reports import page
from reports.compare import compare
from tests.reports import sample

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--hide-scrollbars", "--enable-logging=stderr"]
WIDTHS = (390, 1280)
# A frame per page and width, since a browser window has a least width above a phone's. Every element that is
# not inside a box that scrolls must end within the frame.
MEASURE = """
addEventListener("load", () => {
  document.body.dataset.found = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const inner = frame.contentDocument, root = inner.documentElement;
    const out = [...inner.body.querySelectorAll("*")].filter(e => !e.closest(".scroll") && !e.closest("defs") &&
      e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 120));
    return {name: frame.title, width: root.clientWidth, scroll: root.scrollWidth, out: out,
      charts: [...inner.querySelectorAll("svg.chart")].filter(e => e.getBoundingClientRect().width > 100).length,
      paper: frame.contentWindow.getComputedStyle(inner.body).backgroundColor,
      ink: frame.contentWindow.getComputedStyle(inner.body).color, heading: inner.querySelector("h1").textContent};
  }));
});
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def pages() -> dict[str, str]:
    long = sample.document(answer="unbroken" * 30, step_time_s=9.0, breakdown_s=sample.BREAKDOWN_S | {"bubble": 1.7})
    long["scenario"]["name"] = "A_scenario_with_a_very_long_name_that_has_no_space_to_break_it_at_all_" * 2
    comparison = compare([sample.document(), long, sample.too_big()])
    return {"fits": page.render(sample.document()), "too big": page.render(sample.too_big()),
            "long": page.render(long), "many": page.render(sample.many_tasks()),
            "comparison": page.render_comparison(comparison)}


def measure(folder: Path, shown: Mapping[str, str], dark: bool = False) -> list[dict[str, Any]]:
    """What a browser says of each page at each width; fails where a page says anything on the console."""
    frames = "".join(
        f'<iframe title="{name}" style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(text)}"></iframe>'
        for name, text in shown.items() for width in WIDTHS)
    file = folder / "frames.html"
    file.write_text(f"<!DOCTYPE html><html><body>{frames}<script>{MEASURE}</script></body></html>", encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [str(CHROMIUM), *FLAGS, *scheme, f"--user-data-dir={folder / 'profile'}", "--window-size=1400,900",
               "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def brightness(colour: str) -> float:
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_render_without_sideways_scrolling(tmp_path: Path, dark: bool) -> None:
    found = measure(tmp_path, pages(), dark)
    assert len(found) == 10
    for view in found:
        assert view["width"] in WIDTHS
        assert view["out"] == [], view["name"]
        assert view["scroll"] <= view["width"], view["name"]
        assert view["heading"]
        assert view["charts"] >= (2 if view["name"] == "comparison" else 6), view["name"]
        assert (brightness(view["paper"]) < 60) == dark
        assert abs(brightness(view["paper"]) - brightness(view["ink"])) > 150
