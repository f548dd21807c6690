"""Timelines as Chrome JSON, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

pid = rank, tid = stream. Format: "Trace Event Format" of the Chromium project; times are microseconds.
Perfetto takes complete events ("X") of one track only if they nest, so tasks of a stream that overlap
without nesting go to further tracks of that stream. All times are rounded to nanoseconds first, so that a
task that starts where another ends does not overlap it by a rounding error.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Task = Mapping[str, Any]
Event = dict[str, Any]
Place = tuple[int, int, int, int]  # rank, tid, start ns, end ns
_KINDS = {"f": "F", "forward": "F", "b": "B", "backward": "B"}
_SLACK_NS = 1  # an overlap this small is rounding, and is cut off


def _span(task: Task) -> tuple[int, int]:
    start_s, duration_s = task["start_s"], task["duration_s"]
    if duration_s < 0:
        raise ValueError(f"task {task['label']!r} has a negative duration: {duration_s} s")
    return round(start_s * 1e9), round((start_s + duration_s) * 1e9)


def _place(span: tuple[int, int], lanes: list[list[tuple[int, int]]]) -> tuple[int, int, int]:
    """(lane, start, end) of a task on the first lane where it nests; `lanes` hold the tasks still open."""
    for number, opened in enumerate([*lanes, []]):
        start, end = span
        while opened and opened[-1][1] <= start + _SLACK_NS:
            start = max(start, opened.pop()[1])
        if opened and max(start, end) > opened[-1][1] + _SLACK_NS:
            continue
        if opened:
            start, end = max(start, opened[-1][0]), min(end, opened[-1][1])
        if number == len(lanes):
            lanes.append(opened)
        opened.append((start, max(start, end)))
        break
    return number, *opened[-1]


def _tracks(tasks: Sequence[Task]) -> tuple[list[tuple[int, int, int]], dict[tuple[int, int], str]]:
    """For each task (tid, start ns, end ns), and the name of every (rank, tid)."""
    streams: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        streams[task["rank"], task["stream"]].append(index)
    placed: list[tuple[int, int, int]] = [(0, 0, 0)] * len(tasks)
    names: dict[tuple[int, int], str] = {}
    used: dict[int, int] = defaultdict(int)
    for (rank, stream), members in streams.items():
        lanes: list[list[tuple[int, int]]] = []
        spans = {index: _span(tasks[index]) for index in members}
        for index in sorted(members, key=lambda i: (spans[i][0], -spans[i][1], i)):
            lane, start, end = _place(spans[index], lanes)
            placed[index] = (used[rank] + lane, start, end)
        for lane in range(len(lanes)):
            names[rank, used[rank] + lane] = stream if lane == 0 else f"{stream} ({lane + 1})"
        used[rank] += len(lanes)
    return placed, names


def _metadata(rank_names: Mapping[int, str], tracks: Mapping[tuple[int, int], str]) -> Iterable[Event]:
    for rank in sorted(rank_names):
        yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": rank_names[rank]}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
    for (rank, tid), name in sorted(tracks.items()):
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": name}}


def _flow(number: int, source: Place, target: Place) -> list[Event]:
    """An arrow from the last nanosecond of one task to the start of another."""
    leaves = max(source[2], min(source[3] - 1, target[2]))
    common = {"name": "dependency", "cat": "flow", "id": number}
    return [{"ph": "s", **common, "pid": source[0], "tid": source[1], "ts": leaves / 1000},
            {"ph": "f", "bp": "e", **common, "pid": target[0], "tid": target[1], "ts": target[2] / 1000}]


def _counter(counter: Mapping[str, Any]) -> Iterable[Event]:
    """One event per time; `values` is a list, or a list for each series that the counter stacks."""
    values = counter["values"]
    series = values if isinstance(values, Mapping) else {counter["name"]: values}
    for index, time_s in enumerate(counter["times_s"]):
        yield {"ph": "C", "name": counter["name"], "pid": counter["rank"], "tid": 0,
               "ts": round(time_s * 1e9) / 1000,
               "args": {name: column[index] for name, column in series.items()}}


def chrome_trace(
    tasks: Iterable[Task],
    counters: Iterable[Mapping[str, Any]] = (),
    rank_names: Mapping[int, str] | None = None,
    flows: Iterable[tuple[int, int]] = (),
) -> dict[str, Any]:
    """A Chrome trace.

    tasks: {rank, stream, label, category, start_s, duration_s, args}; counters: {rank, name, times_s,
    values}; rank_names: what each rank is called; flows: pairs of positions in `tasks` (from, to).
    Raises ValueError on a negative duration and IndexError on a flow to a task that is not there.
    """
    listed = list(tasks)
    placed, tracks = _tracks(listed)
    names = {rank: f"rank {rank}" for rank, _ in tracks} | dict(rank_names or {})
    events = list(_metadata(names, tracks))
    for task, (tid, start, end) in zip(listed, placed, strict=True):
        events.append({"ph": "X", "name": task["label"], "cat": task["category"], "pid": task["rank"],
                       "tid": tid, "ts": start / 1000, "dur": (end - start) / 1000,
                       "args": dict(task.get("args") or {})})
    for number, (source, target) in enumerate(flows):
        if min(source, target) < 0:
            raise IndexError(f"flow {source} -> {target}: tasks are counted from 0")
        ends = [(listed[index]["rank"], *placed[index]) for index in (source, target)]
        events += _flow(number, ends[0], ends[1])
    for counter in counters:
        events += _counter(counter)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _chains(tasks: Sequence[Task]) -> list[tuple[int, int]]:
    """The way of each micro-batch through the stages: its forwards in time order, then its backwards."""
    passes: dict[tuple[int, str], list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        kind, micro_batch = _KINDS.get(task["category"].lower()), task["args"]["micro batch"]
        if kind and micro_batch is not None:
            passes[micro_batch, kind].append(index)
    flows: list[tuple[int, int]] = []
    for micro_batch in sorted({key[0] for key in passes}):
        chain = [index for kind in "FB" for index in sorted(passes.get((micro_batch, kind), ()),
                                                            key=lambda i: tasks[i]["start_s"])]
        flows += pairwise(chain)
    return flows


def render(document: Mapping[str, Any]) -> dict[str, Any]:
    """The trace of a document (or of its `timeline` alone): one process per stage, flows along micro-batches.

    Raises ValueError, with the document's reason, where there is no timeline.
    """
    timeline = document if "stages" in document else document.get("timeline")
    if not timeline:
        why = (document.get("reasons") or {}).get("timeline", "this result holds none; predict with events")
        raise ValueError(f"no timeline: {why}")
    tasks = [
        {"rank": stage["stage"], "stream": "compute", "label": label, "category": kind, "start_s": start_s,
         "duration_s": duration_s, "args": {"chunk": chunk, "micro batch": micro_batch}}
        for stage in timeline["stages"]
        for kind, label, chunk, micro_batch, start_s, duration_s in stage["tasks"]
    ]
    memory = document.get("memory_over_time")
    counters = [] if not memory else [
        {"rank": memory.get("stage") or 0, "name": f"memory ({memory.get('tier', 'hbm')}) in bytes",
         "times_s": memory["times_s"], "values": memory["states"]}]
    names = {stage["stage"]: f"stage {stage['stage']}" for stage in timeline["stages"]}
    return chrome_trace(tasks, counters, names, _chains(tasks))


def encode(trace: Mapping[str, Any], compress: bool) -> bytes:
    """The bytes of a trace file; the same trace gives the same bytes."""
    text = json.dumps(trace, separators=(",", ":"), allow_nan=False).encode()
    if not compress:
        return text
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=3, fileobj=buffer, mtime=0) as file:
        file.write(text)
    return buffer.getvalue()


def write(path: str | Path, trace: Mapping[str, Any]) -> None:
    """Write `.json` or `.json.gz`, beside the target and then renamed, so that no half file is ever seen.

    Raises ValueError on another ending, OSError where the folder cannot be written.
    """
    target = Path(path)
    if not target.name.endswith((".json", ".json.gz")):
        raise ValueError(f"a trace is written to .json or .json.gz, not to {target.name!r}")
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(encode(trace, compress=target.suffix == ".gz"))
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
