"""Files of orders: our notation and torch's, read back, played against torch's printed cases, refused with a place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placement import schedules
from placement.schedules import Orders, Schedule, ScheduleError, evaluate
from placement.schedules.files import OrderFileError, read_orders, text_of

TORCH = Path(__file__).resolve().parents[2] / ".." / "shared" / "published" / "torch_orders.json"
TIMES = {"F=B=W=1,c=0": (1.0, 1.0, 1.0, 0.0), "F=2,B=2.2,W=1.5,c=0.1": (2.0, 2.2, 1.5, 0.1)}


def stages(schedule: Schedule, p: int, v: int) -> list[list[int]]:
    return [[schedule.stage_of(rank, chunk, p, v) for chunk in range(v)] for rank in range(p)]


def own_json(schedule: Schedule, orders: Orders, v: int) -> str:
    return json.dumps({
        "name": "mine", "stages_of_rank": stages(schedule, len(orders), v), "routes": schedule.routes,
        "barriers": schedule.barriers, "order": [[text_of(one) for one in order] for order in orders]})


def torch_text(schedule: Schedule, orders: Orders) -> list[list[str]]:
    """The orders as torch would print them: I and W where B is split, stages instead of chunks."""
    v = 1 + max(one.chunk for order in orders for one in order)
    backward = "I" if schedule.splits_backward else "B"
    return [[f"{schedule.stage_of(rank, one.chunk, len(orders), v)}{one.kind.replace('B', backward)}{one.micro_batch}"
             for one in order] for rank, order in enumerate(orders)]


@pytest.mark.parametrize("name", schedules.names())
def test_our_notation_reads_back_as_written(name: str) -> None:
    schedule = schedules.get(name)
    p, m, v = 4, 8, schedule.least_chunks
    orders = schedule.generate(p, m)
    found = read_orders(own_json(schedule, orders, v), "mine.json")
    assert found.orders == orders
    count = 1 + max(one.micro_batch for order in orders for one in order)
    assert (found.pipeline, found.micro_batches, found.chunks) == (p, count, v)
    assert found.schedule.generate(p, found.micro_batches) == orders
    assert stages(found.schedule, p, v) == stages(schedule, p, v)
    other = evaluate(found.orders, found.schedule, 2.0, 3.0, 1.5, 0.1)
    mine = evaluate(orders, schedule, 2.0, 3.0, 1.5, 0.1)
    if not schedule.early:
        assert (other.makespan_s, other.span_s, other.peak.tolist()) == (
            mine.makespan_s, mine.span_s, mine.peak.tolist())


@pytest.mark.parametrize("name", ["1f1b", "interleaved-1f1b", "zb-h1", "v-half", "zbv"])
def test_torch_notation_in_json_and_csv(name: str) -> None:
    schedule = schedules.get(name)
    orders = schedule.generate(4, 8)
    rows = torch_text(schedule, orders)
    sheet = "\n".join(",".join(["", *row, ""]) for row in rows) + "\n\n"
    for text, file in ((json.dumps(rows), "a.json"), (json.dumps({"orders": rows}), "b.json"), (sheet, "c.csv")):
        found = read_orders(text, file)
        assert found.orders == orders
        assert found.schedule.splits_backward == schedule.splits_backward
        assert stages(found.schedule, 4, found.chunks) == stages(schedule, 4, found.chunks)
        assert found.notes == ()


def torch_cases() -> list[dict[str, Any]]:
    return json.loads(TORCH.read_text(encoding="utf-8"))["cases"] if TORCH.exists() else []


@pytest.mark.skipif(not TORCH.exists(), reason="shared/published/torch_orders.json is not beside the checkout")
def test_orders_that_torch_printed_play_as_published() -> None:
    text = TORCH.read_text(encoding="utf-8")
    cases = torch_cases()
    assert len(cases) >= 14
    for number, case in enumerate(cases):
        found = read_orders(text, TORCH.name, str(number))
        assert (found.pipeline, found.micro_batches, found.chunks) == (case["p"], case["m"], case["v"])
        assert stages(found.schedule, case["p"], case["v"]) == case["stages_of_rank"]
        assert bool(found.notes) == (case["schedule"] == "1F1B")
        for name, expected in case["eval_per_chunk_times"].items():
            played = evaluate(found.orders, found.schedule, *TIMES[name])
            where = (case["schedule"], name)
            assert played.makespan_s == pytest.approx(expected["makespan"], abs=1e-6), where
            assert played.span_s == pytest.approx(expected["longest_stage_span"], abs=1e-6), where
            assert played.busy_s[0] == pytest.approx(expected["busy"], abs=1e-6), where
            assert played.peak.tolist() == expected["peak_chunks_releaseW"], where
            assert round(played.bubble_fraction, 6) == pytest.approx(expected["bubble_rate_makespan"], abs=1e-6)


@pytest.mark.skipif(not TORCH.exists(), reason="shared/published/torch_orders.json is not beside the checkout")
def test_a_case_is_chosen_by_name_or_number_and_setting() -> None:
    text = TORCH.read_text(encoding="utf-8")
    assert read_orders(text, "t.json", "ZBVZeroBubble", 8).micro_batches == 16
    with pytest.raises(OrderFileError, match="2 cases fit"):
        read_orders(text, "t.json", "ZBVZeroBubble")
    with pytest.raises(OrderFileError, match="no case fits"):
        read_orders(text, "t.json", "ZBVZeroBubble", 5)


@pytest.mark.parametrize("p", [2, 4, 8])
def test_torch_counts_the_last_rank_of_1f1b_from_one(p: int) -> None:
    schedule = schedules.get("1f1b")
    orders = schedule.generate(p, 2 * p)
    rows = torch_text(schedule, orders)
    rows[-1] = [f"{p - 1}F{int(text.partition('F')[2]) + 1}" if "F" in text else text for text in rows[-1]]
    found = read_orders(json.dumps(rows), "t.json")
    assert found.orders == orders
    (note,) = found.notes
    assert f"rank {p - 1}" in note
    assert "off by one" in note


def test_whole_backwards_among_split_ones_run_with_their_weight_in_one_slot() -> None:
    found = read_orders(json.dumps([["0F0", "0F1", "0B0", "0I1", "0W1"]]), "t.json")
    assert [text_of(one) for one in found.orders[0]] == ["F0", "F1", "B0", "+W0", "B1", "W1"]
    assert evaluate(found.orders, found.schedule, 1.0, 2.0, 3.0).makespan_s == 12.0


def test_what_moves_data_is_left_out_and_overlaps_are_taken_apart() -> None:
    rows = [["0UNSHARD", "0F0", "0SEND_F0", None, "0RECV_B0", "(0F1;0B0)OVERLAP_F_B", "0B1", "0REDUCE_GRAD"]]
    assert [text_of(one) for one in read_orders(json.dumps(rows), "t.json").orders[0]] == ["F0", "F1", "B0", "B1"]


@pytest.mark.parametrize(("text", "file", "place", "what"), [
    ('{"order": [["F0",\n "X1"]]}', "a.json", (2, 2), "'X1' is no pass"),
    ("F0,B0\nF0,Z9\n", "a.csv", (2, 4), "'Z9' is no pass"),
    ("0F0,0B0\n1F0,B1\n", "a.csv", (2, 5), "'B1' is no action of torch"),
    ('{"order": [["F0", 7]]}', "a.json", (1, 19), "text such as"),
    ('{"order": [["F0"', "a.json", (1, 17), "not JSON"),
    ('{"orders": 3}', "a.json", (0, 0), "has no 'order'"),
    ("3", "a.json", (0, 0), "holds no order"),
    ("[]", "a.json", (0, 0), "no rank"),
    ("", "a.csv", (0, 0), "no rank"),
    ("F0,B0\n,\nF0,B0\n", "a.csv", (2, 1), "rank 1 has no pass"),
    ("0F0,0B0\n0F1,0B1\n", "a.csv", (0, 0), "each on one rank"),
    ("0F0,0B0,2F0,2B0\n1F0,1B0\n", "a.csv", (0, 0), "equally many stages"),
    ("F99999999999\n", "a.csv", (1, 1), "more than a pass can count"),
    ('{"order": [["F0", "B0"]], "stages_of_rank": [[0, 1]]}', "a.json", (0, 0), "stages_of_rank"),
    ('{"order": [["F0", "B0"]], "routes": 7}', "a.json", (0, 0), "routes must be"),
])
def test_a_file_that_holds_no_order_is_refused_with_its_place(
    text: str, file: str, place: tuple[int, int], what: str
) -> None:
    with pytest.raises(OrderFileError, match=what) as caught:
        read_orders(text, file)
    assert (caught.value.line, caught.value.column) == place
    assert "\n" not in str(caught.value)


def test_an_order_that_can_never_be_played_names_rank_pass_and_rule() -> None:
    found = read_orders("F0,F1,B0,B1\nF0,B1,F1,B0\n", "a.csv")
    with pytest.raises(ScheduleError, match=r"B of micro-batch 1 on stage 1 \(rank 1, pass 1\).*waits for F of micro-"):
        evaluate(found.orders, found.schedule, 1.0, 1.0)


def test_an_order_from_a_file_has_one_setting() -> None:
    found = read_orders("F0,B0\nF0,B0\n", "a.csv")
    with pytest.raises(ScheduleError, match="2 ranks and 1 micro-batches"):
        found.schedule.generate(2, 3)
    with pytest.raises(ScheduleError, match="takes 1 chunks"):
        found.schedule.generate(2, 1, chunks=2)
