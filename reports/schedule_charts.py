"""Pipeline schedules drawn: the passes of every rank over time, and what every rank holds.

Many passes become one path a kind and chunk; more than a picture has columns for are drawn by column, each showing the
pass that fills most of it, so that a page of 50,000 passes stays under a few hundred kB.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from reports import charts
from reports.schedule_table import pass_parts

PASS_STYLES = {"F": "forward", "B": "backward", "W": "weight", "R": "recompute", "S": "spare-0", "T": "spare-1",
               "O": "spare-3", "L": "spare-4"}
PASS_NAMES = {"F": "forward", "B": "backward", "W": "weight gradient", "R": "forward again", "S": "logits (S)",
              "T": "output layer's gradients (T)", "O": "copy to the host", "L": "copy back"}
COPIES = "OL"
MOST_BOXES = 1500  # passes drawn one by one, with their numbers where these fit
MOST_SHAPES = 12_000  # passes drawn at their places; above, columns
COLUMNS = 1000
READABLE = 100  # passes in a row of which the numbers can be read
LINES = 6  # ranks whose memory is drawn
POINTS = 500  # of one line
LINE_STYLES = (("#2f5f93", ""), ("#b5652b", "7 3"), ("#3f8a6c", "2 3"), ("#8f5f9e", "9 3 2 3"), ("#a3433c", "4 2"),
               ("#767d88", "1 2"))
_LEFT, _RIGHT = 34.0, 12.0


class Box(NamedTuple):
    """A pass, or a run of columns, on one rank."""

    kind: str
    chunk: int
    micro_batch: int
    start: float
    end: float


def boxes(shown: Mapping[str, Any], until: float) -> list[list[Box]]:
    """The passes of every rank of a document up to a time, without those that take none."""
    return [
        [Box(kind, chunk, micro_batch, start, min(end, until))
         for (kind, micro_batch, chunk), start, end in zip(map(pass_parts, passes), starts, ends, strict=True)
         if min(end, until) > start]
        for passes, starts, ends in zip(shown["order"], shown["start"], shown["end"], strict=True)
    ]


def readable(shown: Mapping[str, Any]) -> float:
    """The time until which passes are wide enough to carry their numbers."""
    ranks = len(shown["order"])
    of_rank = sum(map(len, shown["order"])) / ranks
    passes = min(READABLE, MOST_BOXES / ranks)
    return float(min(shown["makespan"], passes * max(shown["busy"]) / of_rank))


def in_columns(row: Sequence[Box], length: float) -> list[Box]:
    """Runs of columns in place of passes: each column takes the kind and chunk that fill most of it, or none."""
    edges = np.linspace(0.0, length, COLUMNS + 1)
    kinds = sorted({(one.kind, one.chunk) for one in row if one.kind not in COPIES})
    filled = np.zeros((len(kinds) + 1, COLUMNS))
    for place, key in enumerate(kinds):
        of_kind = [one for one in row if (one.kind, one.chunk) == key]
        starts, ends = np.array([one.start for one in of_kind]), np.array([one.end for one in of_kind])
        done = np.array([np.clip(edge - starts, 0.0, ends - starts).sum() for edge in edges])
        filled[place] = np.diff(done)
    filled[-1] = length / COLUMNS - filled[:-1].sum(axis=0)  # nothing
    most = filled.argmax(axis=0)
    cuts = np.flatnonzero(np.diff(most)) + 1
    return [Box(kinds[most[first]][0], kinds[most[first]][1], -1, edges[first], edges[last])
            for first, last in zip([0, *cuts], [*cuts, COLUMNS], strict=True) if most[first] < len(kinds)]


def gantt(shown: Mapping[str, Any], length: float, show_time: charts.Show) -> tuple[Markup, bool]:
    """(the picture up to time `length`, whether it is drawn by columns). One row a rank; colour and texture say the
    pass, a lighter tone a later chunk; copies are thin strips below the passes that they run beside."""
    rows = boxes(shown, length)
    count = sum(map(len, rows))
    columns = count > MOST_SHAPES
    if columns:
        rows = [in_columns(row, length) for row in rows]
    high = max(9.0, min(26.0, 640.0 / len(rows)))
    scale = (charts.TIMELINE_PX - _LEFT - _RIGHT) / (length or 1.0)
    bottom = 4 + high * len(rows)
    body = []
    for rank in range(len(rows)):
        y = 4 + high * rank
        body.append(f'<rect class="lane" x="{charts.num(_LEFT)}" y="{charts.num(y)}" '
                    f'width="{charts.num(length * scale)}" height="{charts.num(high - 2)}"/>')
        if high >= 12 or rank % 2 == 0:
            body.append(charts.label_text(charts.num(_LEFT - 6), y + high / 2 + 3, str(rank), "end"))
    body += _single(rows, high, scale, show_time) if count <= MOST_BOXES else _merged(rows, high, scale)
    for t in charts.ticks(length, 8):
        x = _LEFT + t * scale
        body += [f'<path class="grid" d="M{charts.num(x)} {charts.num(bottom)}v5"/>',
                 charts.label_text(charts.num(x), bottom + 17, show_time(t), "middle")]
    text = (f"{count:,} passes on {len(rows)} ranks in {show_time(shown['makespan'])}, longest span "
            f"{show_time(shown['span'])}.")
    return charts.frame(f"{shown['title']}: passes over time", text, body, (charts.TIMELINE_PX, bottom + 24)), columns


def _strip(kind: str, rank: int, high: float) -> tuple[float, float]:
    """(top, height) of a pass on its rank's row."""
    top, full = 4 + high * rank, high - 2
    return (top + 0.8 * full, 0.2 * full) if kind in COPIES else (top, full)


def _single(rows: Sequence[Sequence[Box]], high: float, scale: float, show_time: charts.Show) -> Iterable[str]:
    for rank, row in enumerate(rows):
        for one in sorted(row, key=lambda box: box.kind in COPIES):
            (y, tall), x, width = _strip(one.kind, rank, high), _LEFT + one.start * scale, (one.end - one.start) * scale
            told = (f"{PASS_NAMES[one.kind]}, micro-batch {one.micro_batch}, chunk {one.chunk}: "
                    f"{show_time(one.start)} to {show_time(one.end)}")
            yield (f'<rect class="task" x="{charts.num(x)}" y="{charts.num(y)}" width="{charts.num(width)}" '
                   f'height="{charts.num(tall)}" {charts.fill(PASS_STYLES[one.kind])}{charts.tone(one.chunk)}>'
                   f"<title>{escape(told)}</title></rect>")
            name = str(one.micro_batch)
            if width >= 7 * len(name) + 3 and tall >= 12:
                yield charts.label_text(charts.num(x + width / 2), y + high / 2 + 3, name, "middle", "mark")


def _merged(rows: Sequence[Sequence[Box]], high: float, scale: float) -> Iterable[str]:
    """One path a kind and chunk, in steps relative to the shape before."""
    paths: dict[tuple[str, int], list[str]] = defaultdict(list)
    for rank, row in enumerate(rows):
        for one in row:
            y, tall = _strip(one.kind, rank, high)
            x, width = round(_LEFT + one.start * scale, 1), round((one.end - one.start) * scale, 1)
            paths[one.kind, one.chunk].append(f"M{x:g} {y:.4g}h{width:g}v{tall:.3g}h-{width:g}z")
    for (kind, chunk), shapes in sorted(paths.items(), key=lambda item: item[0][0] in COPIES):
        yield (f'<path class="tasks" {charts.fill(PASS_STYLES[kind])}{charts.tone(chunk)} d="{"".join(shapes)}">'
               f"<title>{escape(f'{PASS_NAMES[kind]}, chunk {chunk}')}</title></path>")


def legend(shown: Mapping[str, Any]) -> list[tuple[Markup, str]]:
    kinds = {pass_parts(text)[0] for passes in shown["order"] for text in passes}
    names = PASS_NAMES | {"B": "backward for the input" if shown["splits_backward"] else "backward"}
    return [(charts.swatch(PASS_STYLES[kind]), names[kind]) for kind in PASS_STYLES if kind in kinds]


def drawn_ranks(ranks: int) -> list[int]:
    """At most LINES ranks, evenly spaced, with the first and last."""
    return sorted({round(i * (ranks - 1) / (min(LINES, ranks) - 1 or 1)) for i in range(min(LINES, ranks))})


def memory_lines(shown: Mapping[str, Any], length: float, show_time: charts.Show) -> Markup:
    """What ranks hold over time, a line each; a long line keeps the most of every group of neighbours."""
    chosen = drawn_ranks(len(shown["memory"]))
    highest = max([max(one["held"], default=0.0) for one in shown["memory"]]) * 1.06 or 1.0
    size = charts.AREA
    left, right, top, bottom = charts.MARGINS
    width, height = size[0] - left - right, size[1] - top - bottom
    body = list(charts.axes(
        [(left + width * t / length, show_time(t)) for t in charts.ticks(length)],
        [(top + height * (1 - v / highest), f"{v:g}") for v in charts.ticks(highest, 4)],
        ("time in the step", "micro-batches"), size))
    for rank, (colour, dashes) in zip(chosen, LINE_STYLES, strict=False):
        times, held = _thinned(shown["memory"][rank])
        xs = [left + width * t / length for t in [0.0, *times, length]]
        ys = [top + height * (1 - v / highest) for v in [0.0, *held, held[-1] if len(held) else 0.0]]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in charts.stairs(xs, ys))
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        body.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}><title>rank {rank}'
                    "</title></path>")
    return charts.frame(f"{shown['title']}: activations over time",
                        f"Ranks {', '.join(map(str, chosen))}; at most {highest / 1.06:g} micro-batches.", body, size)


def memory_legend(ranks: int) -> list[tuple[Markup, str]]:
    return [
        (Markup('<svg class="swatch" width="26" height="14" aria-hidden="true" focusable="false"><path d="M0 7h26" '
                f'stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dashes or "none"}"/></svg>'), f"rank {rank}")
        for rank, (colour, dashes) in zip(drawn_ranks(ranks), LINE_STYLES, strict=False)
    ]


def _thinned(line: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float]]:
    times, held = np.asarray(line["times"]), np.asarray(line["held"])
    if len(times) <= POINTS:
        return times.tolist(), held.tolist()
    groups = np.array_split(np.arange(len(times)), POINTS)
    kept = np.array([group[held[group].argmax()] for group in groups[:-1]] + [len(times) - 1])
    return times[kept].tolist(), held[kept].tolist()
