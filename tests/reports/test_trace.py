"""Traces: events nest on every track, arrows start and end in their tasks, files are whole and repeatable."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import trace
from tests.reports import sample


def task(start_s: float, duration_s: float, stream: str = "compute", rank: int = 0, label: str = "t") -> dict[str, Any]:
    return {"rank": rank, "stream": stream, "label": label, "category": "F", "start_s": start_s,
            "duration_s": duration_s, "args": {"micro batch": 0}}


def spans(result: dict[str, Any]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(start, end) in nanoseconds by (pid, tid), in the order a viewer opens them."""
    found: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in result["traceEvents"]:
        if event["ph"] == "X":
            start = round(event["ts"] * 1000)
            found[event["pid"], event["tid"]].append((start, start + round(event["dur"] * 1000)))
    return {track: sorted(members, key=lambda s: (s[0], -s[1])) for track, members in found.items()}


def assert_nested(result: dict[str, Any]) -> None:
    for members in spans(result).values():
        opened: list[int] = []
        for start, end in members:
            while opened and opened[-1] <= start:
                opened.pop()
            assert not opened or end <= opened[-1]
            opened.append(end)


def named(result: dict[str, Any], kind: str) -> dict[tuple[int, int], str]:
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in result["traceEvents"] if e["name"] == kind}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.sampled_from("ab"), st.integers(0, 1)),
                max_size=30))
def test_any_tasks_nest_and_keep_their_times(raw: list[tuple[int, int, str, int]]) -> None:
    tasks = [task(0.1 * start, 0.1 * length, stream, rank) for start, length, stream, rank in raw]
    result = trace.chrome_trace(tasks)
    assert_nested(result)
    events = [e for e in result["traceEvents"] if e["ph"] == "X"]
    for event, given_task in zip(events, tasks, strict=True):
        assert event["pid"] == given_task["rank"]
        assert event["ts"] == pytest.approx(given_task["start_s"] * 1e6, abs=2e-3)
        assert event["dur"] == pytest.approx(given_task["duration_s"] * 1e6, abs=4e-3)


def test_tasks_that_touch_share_one_track_despite_rounding() -> None:
    clock, tasks = 0.0, []
    for _ in range(1000):
        tasks.append(task(clock, 0.1))
        clock += 0.1
    result = trace.chrome_trace(tasks)
    assert_nested(result)
    assert named(result, "thread_name") == {(0, 0): "compute"}


def test_overlap_without_nesting_takes_a_second_track_and_nesting_does_not() -> None:
    nested = trace.chrome_trace([task(0, 4), task(1, 2)], rank_names={0: "stage 0"})
    crossing = trace.chrome_trace([task(0, 4), task(1, 5), task(0, 9, "copy")])
    assert named(nested, "thread_name") == {(0, 0): "compute"}
    assert named(nested, "process_name") == {(0, 0): "stage 0"}
    assert named(crossing, "thread_name") == {(0, 0): "compute", (0, 1): "compute (2)", (0, 2): "copy"}


def test_flows_leave_inside_their_task_and_arrive_at_the_start() -> None:
    result = trace.chrome_trace([task(1.0, 0.5), task(2.0, 0.5, rank=3)], flows=[(0, 1)])
    source, target = (e for e in result["traceEvents"] if e["ph"] in "sf")
    assert source["id"] == target["id"]
    assert 1.0e6 <= source["ts"] < 1.5e6
    assert (target["pid"], target["ts"], target["bp"]) == (3, 2.0e6, "e")


def test_flows_to_no_task_and_negative_durations_are_refused() -> None:
    with pytest.raises(IndexError):
        trace.chrome_trace([task(0, 1)], flows=[(0, 1)])
    with pytest.raises(IndexError):
        trace.chrome_trace([task(0, 1)], flows=[(0, -1)])
    with pytest.raises(ValueError, match="negative"):
        trace.chrome_trace([task(0, -1)])


def test_a_document_becomes_a_trace_with_memory_and_flows() -> None:
    document = sample.document()
    result = trace.render(document)
    assert_nested(result)
    events = result["traceEvents"]
    assert len([e for e in events if e["ph"] == "X"]) == 64
    assert named(result, "process_name")[2, 0] == "stage 2"
    busy = sum(e["dur"] for e in events if e["ph"] == "X" and e["pid"] == 0)
    assert busy == pytest.approx(8 * 0.9e6)
    counters = [e for e in events if e["ph"] == "C"]
    assert max(sum(e["args"].values()) for e in counters) == pytest.approx(68.0e9)
    starts = [e for e in events if e["ph"] == "s"]
    assert len(starts) == 8 * (2 * 4 - 1)  # every micro-batch passes 4 stages forward and 4 backward
    ends = {e["id"]: e["ts"] for e in events if e["ph"] == "f"}
    assert all(ends[e["id"]] >= e["ts"] for e in starts)
    assert trace.render(document["timeline"])["traceEvents"] == [e for e in events if e["ph"] != "C"]


def test_without_a_timeline_the_reason_is_given() -> None:
    with pytest.raises(ValueError, match="closed form"):
        trace.render(sample.document(timeline=None, reasons={"timeline": "a closed form has none"}))


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_files_are_whole_repeatable_and_leave_nothing_beside(tmp_path: Path, name: str) -> None:
    result = trace.render(sample.document())
    trace.write(tmp_path / name, {"traceEvents": []})
    trace.write(tmp_path / name, result)
    first = (tmp_path / name).read_bytes()
    trace.write(tmp_path / name, result)
    assert (tmp_path / name).read_bytes() == first
    assert json.loads(gzip.decompress(first) if name.endswith("gz") else first) == result
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"t\.pb"):
        trace.write(tmp_path / "t.pb", {"traceEvents": []})
    assert not list(tmp_path.iterdir())
