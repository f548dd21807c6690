"""Seq1F1B against published results, its laws and brute force; segments in the prediction of a step."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest

from placement import schedules
from placement.schedules import ScheduleError, evaluate
from placement.schedules.seq1f1b import balanced_segments
from tests.placement.test_schedules import published

SEQ1F1B = schedules.get("seq1f1b")


def test_published_rows() -> None:
    with published("schedules.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["schedule"].startswith("Seq1F1B")]
    assert len(rows) == 8
    for row in rows:
        segments = int(row["schedule"].split("k=")[1].split()[0])
        orders = SEQ1F1B.generate(int(row["p"]), int(row["m"]), segments=segments)
        played = evaluate(orders, SEQ1F1B, *(float(row[key]) for key in ("F", "B", "W", "C")))
        assert played.makespan_s == float(row["asap_makespan_all_stages"]), row["id"]
        assert played.span_s == float(row["tool_cost_longest_stage"]), row["id"]
        assert played.busy_s.tolist() == [float(row["ideal_busy"])] * int(row["p"]), row["id"]
        assert played.peak.tolist() == [float(peak) for peak in row["peak_mem_per_stage"].split()], row["id"]


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 6])
def test_laws_equal_the_played_order(segments: int) -> None:
    for p, m in itertools.product((1, 2, 3, 4, 5, 8), (1, 2, 3, 5, 8, 12)):
        orders = SEQ1F1B.generate(p, m, segments=segments)
        for forward_s, backward_s, latency_s in ((1.0, 2.0, 0.0), (3.0, 1.5, 0.25), (1.0, 2.2, 4.0)):
            played = evaluate(orders, SEQ1F1B, forward_s, backward_s, latency_s=latency_s)
            whole = segments * forward_s, segments * backward_s
            law_s = m * sum(whole) + float(
                SEQ1F1B.bubble_s(p, m, 1, *whole, latency_s, segments=segments))
            assert played.makespan_s == pytest.approx(law_s, rel=1e-12), (p, m, latency_s)
        law = np.broadcast_to(SEQ1F1B.peak_in_flight(p, np.arange(p), m, 1, segments=segments), p)
        assert played.peak.tolist() == law.tolist()


def test_one_segment_is_1f1b() -> None:
    for p, m in ((1, 3), (4, 8), (5, 3)):
        assert SEQ1F1B.generate(p, m, segments=1) == schedules.get("1f1b").generate(p, m)


def test_segments_run_in_order_forward_and_in_reverse_backward() -> None:
    for rank in SEQ1F1B.generate(4, 3, segments=4):
        for j in range(3):
            for kind, expected in (("F", [0, 1, 2, 3]), ("B", [3, 2, 1, 0])):
                ran = [one.micro_batch % 4 for one in rank if one.kind == kind and one.micro_batch // 4 == j]
                assert ran == expected


def work_of(linear: float, pair: float):
    return lambda tokens: linear * tokens + pair * tokens**2 / 2


@pytest.mark.parametrize(("linear", "pair"), [(1.0, 0.0), (0.0, 1.0), (20.0, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize(("sequence", "segments"), [(12, 2), (30, 3), (24, 4), (5, 5)])
def test_balanced_segments_against_brute_force(sequence: int, segments: int, linear: float, pair: float) -> None:
    work = work_of(linear, pair)

    def worst(cuts: tuple[int, ...]) -> float:
        return max(work(after) - work(before) for before, after in itertools.pairwise(cuts))

    best = min(worst((0, *cuts, sequence)) for cuts in itertools.combinations(range(1, sequence), segments - 1))
    lengths = balanced_segments(sequence, segments, work)
    assert (sum(lengths), len(lengths)) == (sequence, segments)
    assert min(lengths) >= 1
    one_token = work(sequence) - work(sequence - 1)
    assert worst((0, *np.cumsum(lengths).tolist())) <= best + one_token + 1e-9


def test_balanced_segments_against_the_closed_form() -> None:
    """Cuts of L x + A x^2/2 = q/k of all: x = (sqrt(L^2 + 2 A C) - L)/A."""
    for sequence, segments, linear, pair in ((131_072, 4, 5e4, 1.0), (32_768, 8, 1.0, 1e-4), (65_536, 3, 0.0, 2.0)):
        work = work_of(linear, pair)
        cumulated = work(sequence) * np.arange(1, segments + 1) / segments
        cuts = (np.sqrt(linear**2 + 2 * pair * cumulated) - linear) / pair
        found = np.cumsum(balanced_segments(sequence, segments, work))
        assert np.abs(found - cuts).max() <= 0.5 + 1e-6
    assert balanced_segments(12, 3, float) == (4, 4, 4)  # without attention: equal tokens


def test_settings_that_cannot_be_run() -> None:
    with pytest.raises(ScheduleError, match="5 tokens cannot be cut into 6 segments; 1 to 5 can"):
        balanced_segments(5, 6, float)
    with pytest.raises(ScheduleError, match=r"segments must be at least 1 \(got 0"):
        SEQ1F1B.generate(4, 8, segments=0)
    with pytest.raises(ScheduleError, match=r"1f1b does not cut sequences \(got 2 segments"):
        schedules.get("1f1b").generate(4, 8, segments=2)
