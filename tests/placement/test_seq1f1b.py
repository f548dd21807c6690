"""Seq1F1B against published results, its laws and brute force; segments in the prediction of a step."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import schedules
from placement.passes import layer_price
from placement.pipeline import segment_shares
from placement.schedules import ScheduleError, evaluate
from placement.schedules.seq1f1b import balanced_segments
from placement.step import analytic_step
from placement.units import chunk_units
from scenarios.errors import ScenarioError
from scenarios.load import load
from simulator.engine import static
from simulator.training import lower
from tests.placement.test_schedules import published
from tests.training_cases import setting

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


def work_of(linear: float, pair: float) -> Any:
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


LONG = {"sequence": 65_536, "pipeline": 4, "tensor": 2, "sequence_parallel": True}


def test_segments_of_a_model_are_cut_to_equal_flops() -> None:
    """Llama 3.1 8B by hand: linear layers and causal attention of a layer, from its published sizes."""
    hidden, keys, width = 4096, 1024, 14_336
    linear = 2 * (hidden * (hidden + 2 * keys) + hidden * hidden + 3 * hidden * width)
    work = work_of(linear, 4 * hidden)
    for segments in (2, 4, 7):
        shares = segment_shares(setting(**LONG, schedule="seq1f1b", segments=segments))
        expected = np.array(balanced_segments(65_536, segments, work)) * segments / 65_536
        assert shares == pytest.approx(expected, abs=2 * segments / 65_536)
        assert shares[0] > 1.05 * shares[-1]  # early tokens attend to few


def test_prices_and_bytes_of_the_segments_add_up_to_the_sequence() -> None:
    """Attention does the same work and activations take the same bytes; shorter products are no faster in all (but for
    the ripple of the measured surface)."""
    whole = setting(**LONG, schedule="seq1f1b")
    layer = whole.model.layers[0]
    price = layer_price(whole, layer)
    unit = chunk_units(whole)[1][0]
    for segments in (2, 4, 8):
        case = setting(**LONG, schedule="seq1f1b", segments=segments)
        part, held = layer_price(case, layer), chunk_units(case)[1][0]
        for seconds, of_whole in ((part.forward, price.forward), (part.backward, price.backward)):
            assert segments * seconds["attention"] == pytest.approx(of_whole["attention"], rel=1e-12)
            assert segments * seconds["gemm"] >= 0.95 * of_whole["gemm"]
        assert segments * held.saved_bytes == pytest.approx(unit.saved_bytes, rel=1e-12)


def test_one_segment_is_the_step_of_1f1b() -> None:
    one, other = (static.play(lower(setting(**LONG, schedule=name), 8).program) for name in ("seq1f1b", "1f1b"))
    assert one.makespan_s == other.makespan_s
    assert [one.peak(rank, "hbm")[0] for rank in range(4)] == [other.peak(rank, "hbm")[0] for rank in range(4)]


@pytest.mark.parametrize("extra", [{}, {"data": 2, "sharding": "fsdp"}, {"recompute": "full"}], ids=str)
@pytest.mark.parametrize("segments", [2, 3, 4])
def test_both_fidelities_agree_on_segments(segments: int, extra: dict[str, Any]) -> None:
    case = setting(**{**LONG, **extra}, schedule="seq1f1b", segments=segments)
    step, played = analytic_step(case, 16), static.play(lower(case, 16).program)
    assert step.step_time_s == pytest.approx(played.makespan_s, rel=0.02)
    for rank, peak in enumerate(step.peak_bytes):
        assert peak == pytest.approx(played.peak(rank, "hbm")[0], rel=0.05)


def test_a_step_in_segments_gains_what_the_law_says() -> None:
    """m = 8 on p = 4: (m + (p - 1)/k)/(m + p - 1) of 1F1B's time, and a little more for shorter products; the first
    rank holds p - 1 + k segments of at most the longest's bytes."""
    base = lower(setting(**LONG, schedule="1f1b"), 8)
    base_s = static.play(base.program).makespan_s
    for segments in (2, 4):
        case = setting(**LONG, schedule="seq1f1b", segments=segments)
        played = static.play(lower(case, 8).program)
        law_s = base_s * (8 + 3 / segments) / (8 + 3)
        assert 0.99 * law_s < played.makespan_s < 1.03 * law_s
        kept = sum(float(unit.saved_bytes) for unit in chunk_units(case)[0])
        shares = segment_shares(case)
        units = [one for one in case_order(segments) if one.kind in "FB"]
        held = np.cumsum([(1 if one.kind == "F" else -1) * shares[one.micro_batch % segments] for one in units])
        assert played.peak(0, "hbm")[1]["activations"] == pytest.approx(kept * held.max(), rel=1e-9)


def case_order(segments: int) -> list[schedules.Pass]:
    return SEQ1F1B.generate(4, 8, segments=segments)[0]


SCENARIO = """\
name: segments
model: llama-3.1-8b
cluster: {node: hgx-h100, nodes: 1}
workload: {kind: pretrain, sequence: 32768, global_batch: 8}
plan: {tensor: 2, pipeline: 4, schedule: seq1f1b, segments: 4}
"""


@pytest.mark.parametrize(("change", "message"), [
    ("plan.schedule=1f1b", "schedule 1f1b does not cut sequences, so segments must be 1 .*these do: seq1f1b"),
    ("plan.segments=40000", "40,000 segments are more than the 32,768 tokens"),
    ("plan.context=2", "4 segments cut a sequence that context 2 splits already")])
def test_scenarios_that_cannot_be_cut(tmp_path: Path, change: str, message: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(SCENARIO)
    changes = (change, "plan.tensor=1") if "context" in change else (change,)
    assert load(file, (), "f.yaml").scenario.plan.segments == 4
    with pytest.raises(ScenarioError, match=message):
        load(file, changes, "f.yaml")
