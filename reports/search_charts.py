"""Drawings of a search: the Pareto front of time against memory, and how many plans each step of the search left.

Laid out in per cent across, so that they fit a phone without shrinking their text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from reports.charts import Show, fill, frame, label_text, num, ticks

# From little to much: cool to warm mid-tones, growing with it, so that not colour alone tells them apart.
SHADES = (("#5f9fd0", 4.5), ("#4f9a73", 5.5), ("#cf8a3c", 6.5), ("#a3433c", 7.5))
_LEFT, _RIGHT = 13.0, 94.0  # per cent across; left of it stand the labels of the lines
_TOP, _BOTTOM, _HEIGHT = 34.0, 300.0, 340.0
_MARGIN = 0.06  # of the range, on either side


@dataclass(frozen=True)
class Spot:
    """A plan of the front."""

    x: float
    y: float
    told: str
    shade: int = 0


@dataclass(frozen=True)
class Mark:
    """A plan to compare with: a hollow square, or a ring around the spot of the best."""

    x: float
    y: float
    label: str
    told: str
    ring: bool = False


def front(spots: Sequence[Spot]) -> list[Spot]:
    """The spots that no other beats in both directions, from left to right.

    >>> [(s.x, s.y) for s in front([Spot(1, 5, ""), Spot(2, 6, ""), Spot(3, 4, ""), Spot(3, 4.5, "")])]
    [(1, 5), (3, 4)]
    """
    kept: list[Spot] = []
    for spot in sorted(spots, key=lambda one: (one.x, one.y)):
        if not kept or spot.y < kept[-1].y:
            kept.append(spot)
    return kept


def within(spots: Sequence[Spot], mark: Mark) -> bool:
    """Whether a mark is near enough to the spots to be drawn without squeezing them."""
    return mark.x <= 2 * max(one.x for one in spots) and mark.y <= 2 * max(one.y for one in spots)


def pareto(spots: Sequence[Spot], marks: Sequence[Mark], limit: tuple[str, float] | None, title: str, text: str,
           axes: tuple[tuple[str, Show], tuple[str, Show]]) -> Markup:
    """Spots with the line of the least y for every x, a dashed line at the limit of x; axes are (name, show)."""
    xs = [*(one.x for one in spots), *(one.x for one in marks)]
    near = limit is not None and limit[1] <= 1.5 * max(xs)
    x_range = _range([*xs, *([limit[1]] if limit and near else [])])
    y_range = _range([*(one.y for one in spots), *(one.y for one in marks)])

    def at(x: float, y: float) -> tuple[str, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return f"{num(_LEFT + (_RIGHT - _LEFT) * across)}%", _BOTTOM - (_BOTTOM - _TOP) * up

    (x_name, show_x), (y_name, show_y) = axes
    body = [label_text("0", 12, y_name), label_text(f"{num(_RIGHT)}%", _HEIGHT - 4, x_name, "end")]
    for value in _between(*y_range, 5):
        y = at(x_range[0], value)[1]
        body += [_line("grid", "0", y, "100%", y), label_text("0", y - 4, show_y(value))]
    for value in _between(*x_range, 4):
        x = at(value, y_range[0])[0]
        body += [_line("grid", x, _BOTTOM, x, _BOTTOM + 4), label_text(x, _BOTTOM + 17, show_x(value), "middle")]
    body.append(_line("axis", "0", _BOTTOM, "100%", _BOTTOM))
    if limit and near:
        x = at(limit[1], y_range[0])[0]
        body += [_line("limit", x, _TOP - 14, x, _BOTTOM),
                 label_text(x, _TOP - 20, f"{limit[0]} {show_x(limit[1])}", "end", "t strong")]
    end = limit[1] if limit and near else x_range[1]
    body += _steps([at(one.x, one.y) for one in front(spots)], at(max(end, *xs), y_range[0])[0])
    for one in sorted(spots, key=lambda spot: -spot.shade):
        colour, radius = SHADES[one.shade]
        x, y = at(one.x, one.y)
        body.append(f'<circle class="point" cx="{x}" cy="{num(y)}" r="{radius}" fill="{colour}">'
                    f"<title>{escape(one.told)}</title></circle>")
    for mark in marks:
        body += _mark(mark, *at(mark.x, mark.y))
    return frame(title, text, body, height=_HEIGHT)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _between(low: float, high: float, count: int) -> list[float]:
    """About `count` round values in a range."""
    step = next(iter(ticks(high - low, count)[1:]), high - low)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(kind: str, x1: str, y1: float, x2: str, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{num(y1)}" x2="{x2}" y2="{num(y2)}"/>'


def _steps(corners: Sequence[tuple[str, float]], end: str) -> Iterable[str]:
    """The line that holds each value until the next, the last until the end; lines, since a path knows no per cent."""
    for (x, y), (next_x, next_y) in zip(corners, [*corners[1:], (end, corners[-1][1])], strict=True):
        yield _line("roof", x, y, next_x, y)
        if next_y != y:
            yield _line("roof", next_x, y, next_x, next_y)


def _mark(mark: Mark, x: str, y: float) -> Iterable[str]:
    title = f"<title>{escape(mark.told)}</title>"
    if mark.ring:
        yield f'<circle class="ring" cx="{x}" cy="{num(y)}" r="9">{title}</circle>'
    else:
        yield (f'<rect class="ring" x="{x}" y="{num(y)}" width="12" height="12" transform="translate(-6 -6)">{title}'
               "</rect>")
    left = float(x.removesuffix("%")) > 70
    yield (f'<text class="t strong over" x="{x}" y="{num(y)}" dx="{-13 if left else 13}" dy="{-6 if mark.ring else 4}" '
           f'text-anchor="{"end" if left else "start"}">{escape(mark.label)}</text>')


def spot_swatch(shade: int) -> Markup:
    """The sample of a shade for the legend."""
    colour, radius = SHADES[shade]
    return Markup('<svg class="swatch" width="14" height="14" aria-hidden="true" focusable="false">'
                  f'<circle cx="7" cy="7" r="{radius}" fill="{colour}"/></svg>')


def shades(values: Sequence[float]) -> tuple[list[int], list[tuple[int, float, float]]]:
    """(the shade of every value, (shade, least, most) of those used): a shade a value up to four, else four equal
    parts of the range.

    >>> shades([8.0, 64.0, 8.0])
    ([0, 1, 0], [(0, 8.0, 8.0), (1, 64.0, 64.0)])
    """
    distinct = sorted(set(values))
    if len(distinct) <= len(SHADES):
        of = [distinct.index(value) for value in values]
    else:
        part = (distinct[-1] - distinct[0]) / len(SHADES)
        of = [min(int((value - distinct[0]) / part), len(SHADES) - 1) for value in values]
    within_shade = {shade: [v for v, s in zip(values, of, strict=True) if s == shade] for shade in sorted(set(of))}
    return of, [(shade, min(held), max(held)) for shade, held in within_shade.items()]


def funnel(steps: Sequence[tuple[str, int]], title: str, text: str) -> Markup:
    """A bar a step, as long as the logarithm of what is left; the number stands beside it."""
    longest = math.log10(1 + max((count for _, count in steps), default=0)) or 1.0
    body, before = [], 0
    for index, (label, count) in enumerate(steps):
        y, width = 4 + 46.0 * index, 100 * math.log10(1 + count) / longest
        share = f" ({100 * count / before:.3g}%)" if before and count != before else ""
        told = f"{label}: {count:,}"
        body += [label_text("0", y + 12, label), label_text("100%", y + 12, f"{count:,}{share}", "end", "t strong")]
        if count:
            body.append(f'<rect class="part" x="0" y="{num(y + 18)}" width="{width:.3f}%" height="14" '
                        f"{fill('forward')}><title>{escape(told)}</title></rect>")
        before = count
    return frame(title, text, body, height=8 + 46.0 * len(steps))
