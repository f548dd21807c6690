"""Hops between stages: latency where the stack overlaps them, part of the pass where it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement.hops import hop_s, sending_s, wire_s
from placement.passes import Setting, total
from placement.units import chunk_units, merged
from scenarios.accuracy.importer import import_row
from simulator.predict import setting_of
from tests.scenarios.test_accuracy_pipeline import made


def setting(schedule: str, overlap: tuple[str, ...]) -> Setting:
    found = setting_of(import_row(made(schedule=schedule)).alternatives[0])
    return replace(found, stack=replace(found.stack, overlap=overlap))


def test_a_hop_is_paid_once() -> None:
    beside, blocking = setting("1F1B", ("pipeline",)), setting("1F1B", ())
    assert hop_s(beside, 0) == wire_s(beside, 0) == wire_s(blocking, 0) > beside.stack.host_hop_s * 0.9
    assert hop_s(blocking, 0) == 0.0
    assert [sending_s(beside, stage, 1) for stage in range(8)] == [0.0] * 8


def test_passes_are_longer_by_the_sends_that_leave_their_stage() -> None:
    plain, longer = (chunk_units(setting("1F1B", overlap)) for overlap in (("pipeline",), ()))
    wire = wire_s(setting("1F1B", ()), 0)
    for stage, (before, after) in enumerate(zip(plain, longer, strict=True)):
        a, b = merged(before).price, merged(after).price
        assert float(total(b.forward) - total(a.forward)) == pytest.approx(wire if stage < 7 else 0.0, abs=1e-12)
        assert float(total(b.backward) - total(a.backward)) == pytest.approx(wire if stage > 0 else 0.0, abs=1e-12)


def test_stages_on_one_rank_hand_over_at_once() -> None:
    """The two middle stages of the V lie on the last rank."""
    one = setting("V-Half", ())
    sends = [sending_s(one, stage, 1) > 0 for stage in range(16)]
    assert sends == [stage not in (7, 15) for stage in range(16)]
