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
_MARKS = 5  # on a logarithmic axis
_SEVERAL = 4.0  # times the least from which an axis is logarithmic


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


@dataclass(frozen=True)
class Scale:
    """One axis: from little to much within 0 to 1, logarithmic where the most is several times the least."""

    low: float
    high: float
    logarithmic: bool

    def at(self, value: float) -> float:
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def marks(self) -> list[float]:
        """Round values, as many as a phone has room for: 1, 2 and 5 times powers of ten, or equal steps."""
        if not self.logarithmic:
            step = next(iter(ticks(self.high - self.low, 4)[1:]), self.high - self.low)
            return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        by = [[m * 10.0**e for e in powers for m in ms if self.low <= m * 10.0**e <= self.high]
              for ms in ((1, 2, 5), (1, 3), (1,))]
        return next((marks for marks in by if len(marks) <= _MARKS), by[-1])


def scale(values: Sequence[float]) -> Scale:
    """The axis that holds all values, with a margin.

    >>> scale([40.0, 100.0]).marks, scale([40.0, 400.0]).marks
    ([40.0, 60.0, 80.0, 100.0], [50.0, 100.0, 200.0])
    """
    low, high = min(values), max(values)
    if low > 0 and high > _SEVERAL * low:
        margin = (high / low) ** _MARGIN
        return Scale(low / margin, high * margin, True)
    margin = _MARGIN * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin, False)


def pareto(spots: Sequence[Spot], marks: Sequence[Mark], limit: tuple[str, float] | None, title: str, text: str,
           axes: tuple[tuple[str, Show], tuple[str, Show]]) -> Markup:
    """Spots with the line of the least y for every x, a dashed line at the limit of x; axes are (name, show)."""
    xs = [*(one.x for one in spots), *(one.x for one in marks)]
    near = limit if limit and limit[1] <= 1.5 * max(xs) else None
    across = scale([*xs, *([near[1]] if near else [])])
    up = scale([*(one.y for one in spots), *(one.y for one in marks)])

    def at(x: float, y: float) -> tuple[str, float]:
        return f"{num(_LEFT + (_RIGHT - _LEFT) * across.at(x))}%", _BOTTOM - (_BOTTOM - _TOP) * up.at(y)

    (x_name, show_x), (y_name, show_y) = axes
    said = [f"{name}, logarithmic" if one.logarithmic else name for name, one in ((x_name, across), (y_name, up))]
    body = [label_text("0", 12, said[1]), label_text(f"{num(_RIGHT)}%", _HEIGHT - 4, said[0], "end")]
    for value in up.marks:
        y = at(across.low, value)[1]
        body += [_line("grid", "0", y, "100%", y), label_text("0", y - 4, show_y(value))]
    for value in across.marks:
        x = at(value, up.low)[0]
        body += [_line("grid", x, _BOTTOM, x, _BOTTOM + 4), label_text(x, _BOTTOM + 17, show_x(value), "middle")]
    body.append(_line("axis", "0", _BOTTOM, "100%", _BOTTOM))
    if near:
        x = at(near[1], up.low)[0]
        body += [_line("limit", x, _TOP - 14, x, _BOTTOM),
                 label_text(x, _TOP - 20, f"{near[0]} {show_x(near[1])}", "end", "t strong")]
    body += _steps([at(one.x, one.y) for one in front(spots)], at(max([*xs, near[1]] if near else xs), up.low)[0])
    for one in sorted(spots, key=lambda spot: -spot.shade):
        colour, radius = SHADES[one.shade]
        x, y = at(one.x, one.y)
        body.append(f'<circle class="point" cx="{x}" cy="{num(y)}" r="{radius}" fill="{colour}">'
                    f"<title>{escape(one.told)}</title></circle>")
    for mark in marks:
        body += _mark(mark, *at(mark.x, mark.y))
    return frame(title, text, body, height=_HEIGHT)


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
