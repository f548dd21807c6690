"""What a schedule is asked for on the command line, read from the options' texts.

Times are of one micro-batch over all chunks of a rank (a device-stage): a chunk's pass takes its part, a v-th. Bare
numbers are ticks of any length, numbers with a unit seconds; the two do not mix.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodel import units
from placement.schedules.order import KINDS, Schedule
from scenarios.errors import Place, Problem, ScenarioError
from scenarios.tables import read_text

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """The options in numbers. Times are scalars, [ranks or stages] or [ranks or stages, micro-batches]."""

    pipeline: int | None = None
    micro_batches: int | None = None
    chunks: int | None = None
    group: int | None = None
    segments: int | None = None
    times: Mapping[str, Array] = field(default_factory=lambda: {kind: np.array(1.0) for kind in "FBW"})
    latency: float = 0.0
    transfer: float = 0.0
    barrier: float = 0.0
    memory_limit: str = ""
    weight_share: float = 0.5
    activation_bytes: float | None = None  # of one micro-batch on one rank
    unit: str = "tick"
    objective: str = "span"  # of a search: "span" or "makespan"
    recompute: int = 0  # chunks of every rank that keep their input only
    offload: int = 0  # chunks of every rank that leave for the host


@dataclass(frozen=True)
class Options:
    """The options as they were written."""

    stages: int | None = None
    microbatches: int | None = None
    chunks: int | None = None
    group: int | None = None
    segments: int | None = None
    forward: str = "1"
    backward: str = "1"
    weight: str = "1"
    comm: str = "0"
    transfer: str = "0"
    barrier: str = "0"
    passes: Sequence[str] = ()
    memory_limit: str = ""
    weight_share: float = 0.5
    activation_bytes: str = ""
    objective: str = "span"
    recompute: int = 0
    offload: int = 0


def setting(options: Options) -> Setting:
    """Raises ScenarioError with every option that cannot be read."""
    reader = _Reader()
    times = {kind: reader.times(f"--{name}", getattr(options, name))
             for kind, name in (("F", "forward"), ("B", "backward"), ("W", "weight"))}
    for text in options.passes:
        kind, given, value = text.partition("=")
        if not given or kind not in set(KINDS) - set("FBW"):
            reader.refuse("--pass", f"{text[:40]!r} is not KIND=TIME with a kind of "
                                    f"{', '.join(one for one in KINDS if one not in 'FBW')}")
        else:
            times[kind] = reader.times("--pass", value)
    latency, transfer, barrier = (
        reader.number(f"--{name}", getattr(options, name)) for name in ("comm", "transfer", "barrier"))
    size = reader.size("--activation-bytes", options.activation_bytes)
    return Setting(options.stages, options.microbatches, options.chunks, options.group, options.segments, times,
                   latency, transfer, barrier, options.memory_limit.strip(), options.weight_share, size,
                   reader.unit(), options.objective, options.recompute, options.offload)


class _Reader:
    """Reads texts of options; gathers what is wrong and whether times carry units."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.with_unit: dict[bool, str] = {}

    def refuse(self, option: str, message: str, place: Place | None = None) -> None:
        self.problems.append(Problem.at(place or Place(option), message))

    def number(self, option: str, text: str, place: Place | None = None) -> float:
        try:
            value = units.parse(text.strip(), "s")
        except units.UnitError as error:
            self.refuse(option, str(error), place)
            return 0.0
        if not 0 <= value < math.inf:
            self.refuse(option, f"a time of at least 0 is expected (got {text.strip()})", place)
            return 0.0
        if value:
            self.with_unit.setdefault(text.strip()[-1:].isalpha(), option)
        return value

    def times(self, option: str, text: str) -> Array:
        """A number, a list with commas, or @FILE.csv with a line a stage and a cell a micro-batch."""
        if text.startswith("@"):
            return self.table(option, text[1:])
        values = [self.number(option, part) for part in text.split(",")]
        return np.array(values[0] if len(values) == 1 else values)

    def table(self, option: str, name: str) -> Array:
        try:
            rows = list(csv.reader(read_text(Path(name), Place(f"{option} {name}")).splitlines()))
        except ScenarioError as error:
            self.problems += error.problems
            return np.array(0.0)
        except csv.Error as error:
            self.refuse(option, f"not a CSV: {error}", Place(name))
            return np.array(0.0)
        table = []
        for line, row in enumerate(rows, 1):
            column, values = 1, []
            for cell in row:
                values.append(self.number(option, cell, Place(name, line, column)))
                column += len(cell) + 1
            if values:
                table.append(values)
        if not table or len({len(row) for row in table}) > 1:
            self.refuse(option, "a table with equally many cells in every line is expected", Place(name))
            return np.array(0.0)
        return np.array(table)

    def size(self, option: str, text: str) -> float | None:
        if not text:
            return None
        try:
            value = units.parse(text, "bytes")
        except units.UnitError as error:
            self.refuse(option, str(error))
            return None
        if not 0 < value < math.inf:
            self.refuse(option, f"a size above 0 is expected (got {text})")
        return value

    def unit(self) -> str:
        if len(self.with_unit) > 1:
            self.refuse(self.with_unit[False], f"is a number of ticks, but {self.with_unit[True]} has a unit; write a "
                                               "unit such as ms for all times or for none")
        if self.problems:
            raise ScenarioError(self.problems)
        return "s" if True in self.with_unit else "tick"


def pass_times(times: Array, option: str, schedule: Schedule, pipeline: int, chunks: int, segments: int,
               micro_batches: int) -> Array:
    """Times of one pass, a scalar or [stages] or [stages, parts of micro-batches], from those of a device-stage.

    A list as long as there are ranks is of ranks; one as long as there are stages (chunks of all ranks) is of the
    stages' own passes. Raises ScenarioError for any other length.
    """
    stages = pipeline * chunks // schedule.routes
    part = schedule.routes / chunks / segments
    if times.ndim == 0:
        return times * part
    if len(times) == pipeline:
        rows = np.empty((stages, *times.shape[1:]))
        for rank in range(pipeline):
            for chunk in range(chunks):
                stage = schedule.stage_of(rank, chunk, pipeline, chunks)
                rows[stage] = (times[stage] if schedule.routes > 1 else times[rank]) * part
    elif len(times) == stages:
        rows = times / segments
    else:
        expected = f"{pipeline} ranks" if stages == pipeline else f"{pipeline} ranks or {stages} stages"
        raise ScenarioError.at(Place(option), f"has {len(times)} times; {schedule.name} runs on {expected}")
    if times.ndim == 2:
        if times.shape[1] == micro_batches and segments > 1:
            rows = np.repeat(rows, segments, axis=1)
        elif times.shape[1] == micro_batches * segments:
            rows = rows * (segments if segments > 1 else 1)
        else:
            raise ScenarioError.at(Place(option), f"has times of {times.shape[1]} micro-batches; there are "
                                                  f"{micro_batches}")
    return rows


def memory_limit(text: str, setting: Setting, chunks_per_micro_batch: float) -> float | None:
    """The limit in activations of one chunk, from micro-batches ("4"), chunks ("6 chunks") or bytes ("40 GB").

    Raises ScenarioError for what is none, and for bytes without the size of a micro-batch.
    """
    if not text:
        return None
    place = Place("--memory-limit")
    number, unit = text.removesuffix("chunks").removesuffix("chunk").strip(), text.endswith(("chunk", "chunks"))
    try:
        value = float(number)
        if not 0 < value < math.inf:
            raise ScenarioError.at(place, f"a limit above 0 is expected (got {text})")
        return value if unit else value * chunks_per_micro_batch
    except ValueError:
        pass
    try:
        size = units.parse(text, "bytes")
    except units.UnitError:
        raise ScenarioError.at(place, f"cannot read {text[:40]!r}; write micro-batches (4), chunks (6 chunks) or bytes "
                                      "(40 GB)") from None
    if setting.activation_bytes is None:
        raise ScenarioError.at(place, "a limit in bytes needs --activation-bytes, what one micro-batch takes on a rank")
    return size / setting.activation_bytes * chunks_per_micro_batch


def described(found: Setting) -> dict[str, Any]:
    """The setting as it stands in a document."""
    return {
        "stages": found.pipeline, "microbatches": found.micro_batches, "chunks": found.chunks, "group": found.group,
        "segments": found.segments, "unit": found.unit, "comm": found.latency, "transfer": found.transfer,
        "barrier": found.barrier, "memory_limit": found.memory_limit or None, "weight_share": found.weight_share,
        "activation_bytes": found.activation_bytes, "recompute": found.recompute, "offload": found.offload,
        "times": {kind: value.tolist() for kind, value in found.times.items()},
    }
