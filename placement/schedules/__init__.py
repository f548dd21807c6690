"""The known pipeline schedules by name. A new one is a file with a `Schedule` and a line here."""

from __future__ import annotations

import difflib

from placement.schedules.dual_pipe import DUAL_PIPE, DUAL_PIPE_V
from placement.schedules.evaluate import Evaluation, evaluate
from placement.schedules.files import is_file, load_schedule
from placement.schedules.gpipe import GPIPE
from placement.schedules.greedy import ZB_1P, ZB_2P
from placement.schedules.grouped import GIS, GIS_H, UNIFORM
from placement.schedules.interleaved import INTERLEAVED_1F1B, INTERLEAVED_BFS
from placement.schedules.offload import PO_F, PO_H
from placement.schedules.one_f_one_b import EAGER_ONE_F_ONE_B, ONE_F_ONE_B
from placement.schedules.order import Orders, Pass, Request, Schedule, ScheduleError, Times
from placement.schedules.seq1f1b import SEQ1F1B
from placement.schedules.v_shape import V_ADAPTIVE, V_HALF, V_MIN, V_ZB, ZBV, ZBV_AUTO
from placement.schedules.vocabulary import (
    ONE_F_ONE_B_INTERLACED,
    ONE_F_ONE_B_VOCAB_1,
    ONE_F_ONE_B_VOCAB_2,
    V_HALF_VOCAB_1,
    V_HALF_VOCAB_2,
)
from placement.schedules.zero_bubble import ZB_H1, ZB_H2

__all__ = ["Evaluation", "Orders", "Pass", "Request", "Schedule", "ScheduleError", "Times", "evaluate", "get", "names"]

_KNOWN = {
    schedule.name: schedule
    for schedule in (GPIPE, ONE_F_ONE_B, EAGER_ONE_F_ONE_B, INTERLEAVED_1F1B, INTERLEAVED_BFS,
                     ZB_H1, ZB_H2, ZB_1P, ZB_2P, ZBV, ZBV_AUTO, V_MIN, V_HALF, V_ZB, V_ADAPTIVE,
                     DUAL_PIPE, DUAL_PIPE_V, SEQ1F1B,
                     ONE_F_ONE_B_VOCAB_1, ONE_F_ONE_B_VOCAB_2, ONE_F_ONE_B_INTERLACED, V_HALF_VOCAB_1,
                     V_HALF_VOCAB_2,
                     GIS, GIS_H, UNIFORM, PO_H, PO_F)
}


def names() -> list[str]:
    return list(_KNOWN)


def get(name: str) -> Schedule:
    """The schedule of this name, `auto` for a search, or of the file of orders at this path (.json, .csv).

    Raises ScheduleError with the nearest names for an unknown one, and for a file that holds no order.
    """
    if name in _KNOWN:
        return _KNOWN[name]
    if name == "auto":
        from placement.schedules.search.planned import AUTO  # it looks through these schedules

        return AUTO
    if is_file(name):
        return load_schedule(name)
    near = difflib.get_close_matches(name, _KNOWN, n=3, cutoff=0.4) or list(_KNOWN)
    raise ScheduleError(f"no schedule {name!r}; did you mean {' or '.join(map(repr, near))}?")
