"""Charts as inline SVG, each with role="img", a title and a description; no script, no outside resource.

Colours are mid-tones that stand on light and dark paper; every colour comes with a texture (its family's),
and every chart with a legend in drawing order, so that nothing is told by colour alone. Bars are laid out
in per cent, so that they fit a phone without shrinking their text; the other charts keep their shape.
Text and axes take their colours from the page's style sheet (classes `t`, `axis`, `grid`, `limit`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

# name -> (colour, texture): computing is solid blue, communication hatched amber, waiting dotted grey.
STYLES: dict[str, tuple[str, str]] = {
    "gemm": ("#2f5f93", "solid"), "attention": ("#6f9fd0", "solid"), "memory_bound": ("#3f8a9c", "solid"),
    "quantize": ("#8fc0c4", "solid"), "recompute": ("#5a62a8", "solid"), "optimizer": ("#9a9fd6", "solid"),
    "tensor_communication": ("#b5652b", "diagonal"), "context_communication": ("#dba04f", "diagonal"),
    "expert_communication": ("#a3433c", "diagonal"), "data_communication": ("#d47f6f", "diagonal"),
    "pipeline_communication": ("#8d6e2f", "diagonal"), "contention": ("#c05f80", "cross"),
    "launch": ("#767d88", "dots"), "bubble": ("#a3aab5", "dots"), "latency": ("#5d6470", "dots"),
    "unattributed": ("#8c8c8c", "cross"),
    "parameters": ("#2f5f93", "solid"), "gradients": ("#6f9fd0", "diagonal"),
    "activations": ("#cf8a3c", "lines"),
    "forward": ("#3f74ad", "solid"), "backward": ("#cf8a3c", "diagonal"), "weight": ("#4f9a73", "lines"),
    "other": ("#8a8f98", "dots"), "slower": ("#c0603a", "diagonal"), "faster": ("#3f8a6c", "solid"),
    "spare-0": ("#3f8a9c", "dots"), "spare-1": ("#a3433c", "lines"), "spare-2": ("#7d8a4a", "cross"),
    "spare-3": ("#8f5f9e", "diagonal"), "spare-4": ("#767d88", "solid"),
}
_TEXTURES = {
    "diagonal": '<path d="M-1.5 1.5l3-3M0 6l6-6M4.5 7.5l3-3" class="ink"/>',
    "cross": '<path d="M0 6l6-6M0 0l6 6" class="ink"/>',
    "lines": '<path d="M0 1.5h6M0 4.5h6" class="ink"/>',
    "dots": '<circle cx="1.5" cy="1.5" r=".9" class="dot"/><circle cx="4.5" cy="4.5" r=".9" class="dot"/>',
}
_PASSES = {"f": "forward", "forward": "forward", "b": "backward", "backward": "backward", "w": "weight",
           "weight": "weight", "backward_input": "backward", "backward_weight": "weight"}
SEPARATE_TASKS = 600  # up to here each task is a box with its own title; above, one path per kind and chunk
Show = Callable[[float], str]


@dataclass(frozen=True)
class Part:
    """A segment of a bar."""

    label: str
    value: float
    style: str
    mark: str = ""  # written inside the segment where it is wide enough


def style(name: str, position: int = 0) -> str:
    """The style of a category, state or pass; an unknown name takes a spare one by its position."""
    return name if name in STYLES else f"spare-{position % 5}"


def pass_style(kind: str) -> str:
    """The style of a pipeline pass: forward, backward (for the input), weight, or other."""
    return _PASSES.get(kind.lower(), "other")


def pass_name(kind: str) -> str:
    """A pass in words: pass_name("F") -> 'forward (F)'."""
    known = pass_style(kind)
    return kind if known in (kind, "other") else f"{known} ({kind})"


def fill(name: str) -> str:
    """The attribute that paints a shape in a style."""
    colour, texture = STYLES[name]
    return f'fill="{colour}"' if texture == "solid" else f'fill="url(#p-{name})"'


def definitions() -> Markup:
    """The textures that all charts of a page share; goes into the page once, before the first chart."""
    patterns = "".join(
        f'<pattern id="p-{name}" width="6" height="6" patternUnits="userSpaceOnUse">'
        f'<rect width="6" height="6" fill="{colour}"/>{_TEXTURES[texture]}</pattern>'
        for name, (colour, texture) in STYLES.items() if texture != "solid"
    )
    return Markup('<svg class="definitions" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
                  f"{patterns}</defs></svg>")


def swatch(name: str) -> Markup:
    """The small sample of a style for a legend."""
    return Markup('<svg class="swatch" width="14" height="14" aria-hidden="true" focusable="false">'
                  f'<rect width="14" height="14" rx="3" {fill(name)}/></svg>')


def num(value: float) -> str:
    """A number in drawing units, to a hundredth."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def label_text(x: str, y: float, content: str, anchor: str = "start", kind: str = "t") -> str:
    """A text element; `content` is escaped."""
    return f'<text class="{kind}" x="{x}" y="{num(y)}" text-anchor="{anchor}">{escape(content)}</text>'


def _shortened(label: str) -> str:
    """A label that a phone has room for; the middle goes, since names often differ at their ends."""
    return label if len(label) <= 36 else f"{label[:20]}…{label[-15:]}"


def frame(title: str, text: str, body: Iterable[str], size: tuple[float, float] | None = None,
           height: float = 0) -> Markup:
    """An SVG image: with `size` of a fixed shape, else as wide as the page and `height` pixels high."""
    shape = f'viewBox="0 0 {num(size[0])} {num(size[1])}"' if size else f'width="100%" height="{num(height)}"'
    return Markup(f'<svg class="chart" role="img" {shape}><title>{escape(title)}</title>'
                  f'<desc>{escape(text)}</desc>{"".join(body)}</svg>')


def ticks(limit: float, count: int = 5) -> list[float]:
    """Round steps (1, 2, 5 times a power of ten) from 0 to at most `limit`, about `count` of them.

    >>> ticks(12.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    """
    if not limit > 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(limit / count))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(limit / s - count))
    return [i * step for i in range(math.floor(limit / step * (1 + 1e-9)) + 1)]


# Bars ------------------------------------------------------------------------------------------------


def stacked_bars(rows: Sequence[tuple[str, Sequence[Part]]], title: str, text: str, show: Show,
                 limit: tuple[str, float] | None = None) -> Markup:
    """One bar per row, made of parts, on a common scale; `limit` (label, value) is a dashed line across."""
    totals = [math.fsum(max(part.value, 0.0) for part in parts) for _, parts in rows]
    scale = max([*totals, limit[1] if limit else 0.0]) or 1.0
    short = all(len(label) <= 3 for label, _ in rows) and len(rows) > 1
    left, width = (7.0, 75.0) if short else (0.0, 100.0)
    wide = (24, 52 if rows[0][0] else 30)
    bar, step = wide if not short else (14, 18) if len(rows) > 16 else (22, 28)
    top = 22.0 if limit else 4.0
    body: list[str] = []
    for index, ((label, parts), total) in enumerate(zip(rows, totals, strict=True)):
        y = top + index * step
        if short:
            body += [label_text("0", y + bar / 2 + 4, label), label_text("100%", y + bar / 2 + 4, show(total), "end")]
        elif label:
            body += [label_text("0", y + 13, _shortened(label)), label_text("100%", y + 13, show(total), "end")]
        y += 0 if short or not label else 20
        body += _segments(parts, y, bar, left, width / scale, total, show)
    height = top + len(rows) * step + 4
    if limit:
        x = f"{num(left + width * limit[1] / scale)}%"
        body.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{num(top - 4)}" y2="{num(height)}"/>')
        body.append(label_text(x, 13, f"{limit[0]} {show(limit[1])}", "end", "t strong"))
    return frame(title, text, body, height=height)


def _segments(parts: Sequence[Part], y: float, bar: float, left: float, per_unit: float, total: float,
              show: Show) -> Iterable[str]:
    x = left
    for part in parts:
        width = max(part.value, 0.0) * per_unit
        if width <= 0:
            continue
        told = f"{part.label}: {show(part.value)} ({100 * part.value / total:.1f}%)"
        yield (f'<rect class="part" x="{num(x)}%" y="{num(y)}" width="{width:.3f}%" height="{num(bar)}" '
               f'{fill(part.style)}><title>{escape(told)}</title></rect>')
        if part.mark and width >= 4.5:
            yield label_text(f"{num(x + width / 2)}%", y + bar / 2 + 4, part.mark, "middle", "mark")
        x += width


def differences(rows: Sequence[tuple[str, float]], title: str, text: str, show: Show) -> Markup:
    """Signed values around a common zero line, each with its label and its value above the bar."""
    low, high = min([0.0, *(v for _, v in rows)]), max([0.0, *(v for _, v in rows)])
    scale = 100.0 / ((high - low) or 1.0)
    zero, body = -low * scale, []
    for index, (label, value) in enumerate(rows):
        y = 4 + 40.0 * index
        x, width = zero + min(value, 0.0) * scale, abs(value) * scale
        body += [label_text("0", y + 12, _shortened(label)), label_text("100%", y + 12, show(value), "end", "t strong"),
                 f'<rect x="{num(x)}%" y="{num(y + 18)}" width="{width:.3f}%" height="12" '
                 f'{fill("slower" if value > 0 else "faster")}><title>{escape(f"{label}: {show(value)}")}'
                 "</title></rect>"]
    height = 8 + 40.0 * len(rows)
    body.append(f'<line class="axis" x1="{num(zero)}%" x2="{num(zero)}%" y1="2" y2="{num(height - 4)}"/>')
    return frame(title, text, body, height=height)


# Lines and areas -------------------------------------------------------------------------------------

AREA = (440.0, 270.0)
MARGINS = _LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 22.0, 40.0


def axes(xs: Sequence[tuple[float, str]], ys: Sequence[tuple[float, str]], labels: tuple[str, str],
          size: tuple[float, float]) -> Iterable[str]:
    """Grid lines, tick labels and axis names at positions already in drawing units."""
    right, bottom = size[0] - _RIGHT, size[1] - _BOTTOM
    for y, label in ys:
        yield f'<path class="grid" d="M{num(_LEFT)} {num(y)}H{num(right)}"/>'
        yield label_text(num(_LEFT - 6), y + 4, label, "end")
    for x, label in xs:
        yield f'<path class="grid" d="M{num(x)} {num(bottom)}v4"/>'
        yield label_text(num(min(x, right)), bottom + 16, label, "end" if x > right - 12 else "middle")
    yield f'<path class="axis" d="M{num(_LEFT)} {num(bottom)}H{num(right)}"/>'
    yield label_text(num((_LEFT + right) / 2), size[1] - 6, labels[0], "middle")
    yield label_text("4", 12, labels[1])


def steps_area(times: Sequence[float], series: Sequence[tuple[str, str, Sequence[float]]], title: str,
               text: str, show: Show, show_time: Show, limit: tuple[str, float] | None = None) -> Markup:
    """Stacked areas of values that hold until the next time; series (label, style, values), bottom first."""
    end = max(times[-1], 0.0) or 1.0
    tops = [0.0] * len(times)
    stacks: list[tuple[str, str, list[float], list[float]]] = []
    for label, name, values in series:
        base, tops = tops, [low + value for low, value in zip(tops, values, strict=True)]
        stacks.append((label, name, base, tops))
    highest = max([*tops, limit[1] if limit else 0.0]) * 1.06 or 1.0
    width, height = AREA[0] - _LEFT - _RIGHT, AREA[1] - _TOP - _BOTTOM
    xs = [_LEFT + width * t / end for t in times]

    def y_of(value: float) -> float:
        return _TOP + height * (1 - value / highest)

    body = list(axes([(_LEFT + width * t / end, show_time(t)) for t in ticks(end)],
                      [(y_of(v), show(v)) for v in ticks(highest, 4)], ("time in the step", "bytes"), AREA))
    for label, name, low, high in stacks:
        outline = stairs(xs, [y_of(v) for v in high]) + stairs(xs, [y_of(v) for v in low])[::-1]
        body.append(f'<path class="area" {fill(name)} d="{_polygon(outline)}"><title>{escape(label)}</title>'
                    "</path>")
    if limit:
        y = y_of(limit[1])
        body += [f'<path class="limit" d="M{num(_LEFT)} {num(y)}H{num(AREA[0] - _RIGHT)}"/>',
                 label_text(num(AREA[0] - _RIGHT), y - 5, f"{limit[0]} {show(limit[1])}", "end", "t strong")]
    return frame(title, text, body, AREA)


def stairs(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """The corners of a line that holds each value until the next."""
    points = [(xs[0], ys[0])]
    for x, y in zip(xs[1:], ys[1:], strict=True):
        points += [(x, points[-1][1]), (x, y)] if y != points[-1][1] else [(x, y)]
    return points


def _polygon(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "z"


@dataclass(frozen=True)
class Operator:
    """A point of the roofline chart."""

    name: str
    intensity: float  # FLOP per byte
    flops_per_s: float
    mark: str


def roofline(peak: float, bandwidth: float, operators: Sequence[Operator], title: str, text: str,
             show: Show) -> Markup:
    """Attained FLOP/s over arithmetic intensity, both logarithmic, under min(peak, bandwidth * intensity)."""
    points = [op for op in operators if op.intensity > 0 and op.flops_per_s > 0]
    ridge = peak / bandwidth
    x_low, x_high = _decades([op.intensity for op in points] + [ridge / 3, ridge * 10])
    y_low, y_high = _decades([op.flops_per_s for op in points] + [peak / 100, peak * 1.2])
    width, height = AREA[0] - _LEFT - _RIGHT, AREA[1] - _TOP - _BOTTOM

    def at(intensity: float, flops: float) -> tuple[float, float]:
        return (_LEFT + width * (math.log10(intensity) - x_low) / (x_high - x_low),
                _TOP + height * (1 - (math.log10(flops) - y_low) / (y_high - y_low)))

    start = max(10.0**x_low, 10.0**y_low / bandwidth)
    corner = [at(start, start * bandwidth), at(ridge, peak), at(10.0**x_high, peak)]
    x_ticks = [(at(10.0**e, peak)[0], f"{10.0**e:g}") for e in range(x_low, x_high + 1)]
    y_ticks = [(at(ridge, 10.0**e)[1], show(10.0**e).removesuffix("FLOP/s"))
               for e in range(y_low, y_high + 1)]
    body = list(axes(x_ticks, y_ticks, ("arithmetic intensity, FLOP per byte", "FLOP/s"), AREA))
    body.append('<path class="roof" d="M' + "L".join(f"{num(x)} {num(y)}" for x, y in corner) + '"/>')
    body.append(label_text(num(corner[2][0]), corner[2][1] - 6, f"peak {show(peak)}", "end", "t strong"))
    taken: list[tuple[float, float]] = []
    for op in points:
        x, y = at(op.intensity, op.flops_per_s)
        told = f"{op.name}: {op.intensity:.3g} FLOP per byte, {show(op.flops_per_s)}"
        body.append(_point(x, y, memory_bound=op.intensity < ridge, told=told))
        taken.append(_free_place(x, y, taken))
        body.append(label_text(num(taken[-1][0]), taken[-1][1] + 4, op.mark, "middle", "t strong"))
    return frame(title, text, body, AREA)


def _decades(values: Iterable[float]) -> tuple[int, int]:
    logs = [math.log10(value) for value in values]
    return math.floor(min(logs)), math.ceil(max(logs))


def _point(x: float, y: float, memory_bound: bool, told: str) -> str:
    """A diamond left of the ridge (memory bound), a circle right of it (compute bound)."""
    title = f"<title>{escape(told)}</title>"
    if memory_bound:
        diamond = f"M{num(x)} {num(y - 6)}l6 6l-6 6l-6-6z"
        return f'<path class="point" d="{diamond}" {fill("backward")}>{title}</path>'
    return f'<circle class="point" cx="{num(x)}" cy="{num(y)}" r="5" {fill("forward")}>{title}</circle>'


def _free_place(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A place for a label near (x, y) that keeps clear of the labels already set."""
    places = [(x + dx * r, y + dy * r) for r in (14, 24, 34) for dx, dy in
              ((0, 1), (1, 0), (-1, 0), (0, -1), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))]
    free = (p for p in places if all(abs(p[0] - q[0]) > 14 or abs(p[1] - q[1]) > 12 for q in taken))
    return next(free, places[0])


# The pipeline ----------------------------------------------------------------------------------------

TIMELINE_PX = 1040.0


def timeline(stages: Sequence[Mapping[str, Any]], makespan_s: float, title: str, text: str,
             show_time: Show) -> Markup:
    """One row per stage; colour and texture say the pass, a lighter tone a later chunk of layers.

    `stages` holds {stage, tasks: [[kind, label, chunk, micro_batch, start_s, duration_s], ...]}.
    """
    row = max(9.0, min(26.0, 640.0 / max(len(stages), 1)))
    left, width = 34.0, TIMELINE_PX - 34.0 - 12.0
    scale = width / (makespan_s or 1.0)
    bottom = 4 + row * len(stages)
    count = sum(len(stage["tasks"]) for stage in stages)
    body = []
    for index, stage in enumerate(stages):
        y = 4 + row * index
        body.append(f'<rect class="lane" x="{num(left)}" y="{num(y)}" width="{num(width)}" '
                    f'height="{num(row - 2)}"/>')
        if row >= 12 or index % 2 == 0:
            body.append(label_text(num(left - 6), y + row / 2 + 3, str(stage["stage"]), "end"))
    draw = _task_boxes if count <= SEPARATE_TASKS else _task_paths
    body += draw(stages, left, row, scale, show_time)
    for t in ticks(makespan_s, 8):
        x = left + t * scale
        body += [f'<path class="grid" d="M{num(x)} {num(bottom)}v5"/>',
                 label_text(num(x), bottom + 17, show_time(t), "middle")]
    return frame(title, text, body, (TIMELINE_PX, bottom + 24))


def _turns(stage: Mapping[str, Any]) -> dict[Any, int]:
    """The chunks of a stage, counted from 0 in model order (a schedule may number them over the whole model)."""
    chunks = {task[2] for task in stage["tasks"]} - {None}
    return {None: 0} | {chunk: turn for turn, chunk in enumerate(sorted(chunks))}


def tone(turn: int) -> str:
    """Later chunks of a stage are lighter."""
    return f' fill-opacity="{(0.76, 0.58, 0.44)[min(turn, 3) - 1]}"' if turn else ""


def _task_boxes(stages: Sequence[Mapping[str, Any]], left: float, row: float, scale: float,
                show_time: Show) -> Iterable[str]:
    for index, stage in enumerate(stages):
        y, turns = 4 + row * index, _turns(stage)
        for kind, label, chunk, micro_batch, start_s, duration_s in stage["tasks"]:
            x, width = left + start_s * scale, duration_s * scale
            told = (f"{label} ({kind}), micro-batch {micro_batch}, chunk {chunk}: {show_time(start_s)} to "
                    f"{show_time(start_s + duration_s)}")
            yield (f'<rect class="task" x="{num(x)}" y="{num(y)}" width="{num(width)}" height="{num(row - 2)}" '
                   f"{fill(pass_style(kind))}{tone(turns[chunk])}><title>{escape(told)}</title></rect>")
            if width >= 16 and row >= 14 and micro_batch is not None:
                yield label_text(num(x + width / 2), y + row / 2 + 3, str(micro_batch), "middle", "mark")


def _task_paths(stages: Sequence[Mapping[str, Any]], left: float, row: float, scale: float,
                show_time: Show) -> Iterable[str]:
    """All tasks of a pass and chunk as one path: thousands of tasks stay a few hundred kB."""
    paths: dict[tuple[str, int], list[str]] = defaultdict(list)
    busy: dict[tuple[str, int], float] = defaultdict(float)
    high = num(row - 2)
    for index, stage in enumerate(stages):
        y, turns = num(4 + row * index), _turns(stage)
        for kind, _, chunk, _, start_s, duration_s in stage["tasks"]:
            key = (kind, turns[chunk])
            paths[key].append(f"M{num(left + start_s * scale)} {y}h{num(duration_s * scale)}v{high}H"
                              f"{num(left + start_s * scale)}z")
            busy[key] += duration_s
    for (kind, turn), boxes in sorted(paths.items()):
        told = (f"{pass_name(kind)}, chunk {turn + 1} of each stage: {len(boxes):,} tasks, "
                f"{show_time(busy[kind, turn])} over all stages")
        yield (f'<path class="tasks" {fill(pass_style(kind))}{tone(turn)} d="{"".join(boxes)}">'
               f"<title>{escape(told)}</title></path>")
