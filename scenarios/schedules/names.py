"""Schedules as published tables call them: one rule a name, to the registry's name and what the name says besides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from placement import schedules

LAW, HEURISTIC = "law", "heuristic"


@dataclass(frozen=True)
class Named:
    """`rule` is LAW where the order is fixed, HEURISTIC where a search made it and a better one may exist.
    `settings`: numbers in the name: chunks, segments, group, limit (micro-batches). `release`: "slot" or "op"."""

    schedule: str
    rule: str
    settings: Mapping[str, int] = field(default_factory=dict)
    release: str = "slot"


_ONE = r"(?:1f1b|one[- ]f[- ]one[- ]b)"
_REST = r"(?:\W.*)?"
_SETTINGS = {"v": "chunks", "k": "segments", "g": "group"}
# the whole name in lower case -> (name in the registry, rule); the first that fits counts
_RULES = tuple((re.compile(pattern), schedule, rule) for pattern, schedule, rule in (
    (rf"gpipe{_REST}", "gpipe", LAW),
    (rf"eager[- ]{_ONE}{_REST}", "eager-1f1b", LAW),
    (rf"interleaved[- ]?{_ONE}{_REST}|{_ONE}-i\b{_REST}", "interleaved-1f1b", LAW),
    (rf"(?:looped|interleaved)[- ]?bfs{_REST}", "interleaved-bfs", LAW),
    (rf"seq[- ]?{_ONE}{_REST}", "seq1f1b", LAW),
    (rf"{_ONE}(?: \(.*\))?", "1f1b", LAW),
    (rf"zb-?h1{_REST}", "zb-h1", LAW),
    (rf"zb-?h2{_REST}", "zb-h2", LAW),
    (rf"zb-?1p{_REST}", "zb-1p", HEURISTIC),
    (rf"zb-?2p{_REST}", "zb-2p", HEURISTIC),
    (r"zb \(limit .*\)", "zb-2p", HEURISTIC),
    (r"zbv \((?:heuristic|auto.*)\)|zbv-auto", "zbv-auto", HEURISTIC),
    (r"zbv(?: \(hand.*\))?", "zbv", LAW),
    (rf"v[- ]half{_REST}", "v-half", HEURISTIC),
    (rf"v[- ]min{_REST}", "v-min", HEURISTIC),
    (rf"v[- ]zb{_REST}", "v-zb", HEURISTIC),
    (rf"v[- ]adaptive{_REST}", "v-adaptive", HEURISTIC),
    (rf"dual-?pipe(?! ?-?v){_REST}", "dualpipe", LAW),
    (rf"dual-?pipe ?-?v{_REST}", "dualpipe-v", LAW),
    (rf"gis-h{_REST}", "gis-h", LAW),
    (rf"gis{_REST}", "gis", LAW),
    (rf"uniform[- ]repeating{_REST}", "uniform-repeating", LAW),
))


def read_name(name: str) -> Named | None:
    """What a table's name stands for; None for a name that no rule fits.

    >>> read_name("Interleaved 1F1B v=2")
    Named(schedule='interleaved-1f1b', rule='law', settings={'chunks': 2}, release='slot')
    """
    text = " ".join(name.lower().split())
    settings = {_SETTINGS[letter]: int(number) for letter, number in re.findall(r"\b([vkg])\s*=\s*(\d{1,6})\b", text)}
    if limit := re.search(r"limit (\d{1,6})\b", text):
        settings["limit"] = int(limit[1])
    release = "op" if re.search(r"release\s*=\s*op\b", text) else "slot"
    for pattern, schedule, rule in _RULES:
        if pattern.fullmatch(text):
            return Named(schedule, rule, settings, release) if schedule in schedules.names() else None
    if text in schedules.names():
        return Named(text, LAW, settings, release)
    return None
