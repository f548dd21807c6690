"""What a pipeline schedule is: the order of passes on every pipeline rank, with its bubble and memory law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class ScheduleError(ValueError):
    """A schedule that does not exist, or a setting or order that a schedule cannot have."""


class Pass(NamedTuple):
    """One pass of one chunk over one micro-batch.

    `kind`: "F" forward; "B" backward for the input, and for the weight too where the schedule has no "W";
    "W" backward for the weight.
    """

    kind: str
    chunk: int
    micro_batch: int


Orders = list[list[Pass]]


def looped(rank: int, chunk: int, pipeline: int, chunks: int) -> int:
    """Stages dealt in turn: chunk c of rank r is stage c p + r (arXiv 2104.04473, section 2.2)."""
    return chunk * pipeline + rank


@dataclass(frozen=True)
class Schedule:
    """One published order of pipeline passes.

    `order(pipeline, micro_batches, chunks, group)` gives the passes of every rank; call `generate`, which
    checks the setting first.
    `bubble_s(p, m, v, forward_s, backward_s, latency_s=0)`: makespan less busy time in seconds; broadcasts.
    `forward_s` and `backward_s` are of one micro-batch over all chunks of a rank (a chunk takes a v-th),
    `backward_s` with the weight's; `latency_s` is one way between two ranks.
    `peak_in_flight(p, rank, m, v)`: most chunk activations that a rank holds at once, broadcasting; one is
    1/v of a micro-batch's activations on the rank.
    `stage_of(rank, chunk, pipeline, chunks)`: the stage, in model order from 0, that is this rank's chunk.
    """

    name: str
    title: str
    source: str
    order: Callable[[int, int, int, int], Orders]
    bubble_s: Callable[..., Any]
    peak_in_flight: Callable[..., Any]
    stage_of: Callable[[int, int, int, int], int] = looped
    splits_backward: bool = False
    least_chunks: int = 1
    most_chunks: int | None = None
    takes_group: bool = False

    def accepts_chunks(self, chunks: int) -> bool:
        return chunks >= self.least_chunks and (self.most_chunks is None or chunks <= self.most_chunks)

    def generate(
        self, pipeline: int, micro_batches: int, chunks: int | None = None, group: int | None = None
    ) -> Orders:
        """The passes of each of `pipeline` ranks in the order in which the rank runs them.

        `chunks` None takes the fewest that the schedule accepts. `group` is the number of micro-batches that
        go through a chunk before the next chunk's turn (Megatron's `microbatch_group_size_per_vp_stage`),
        None for `pipeline`; only schedules with `takes_group` have it.
        Raises ScheduleError for a setting that the schedule does not have.
        """
        chunks = self.least_chunks if chunks is None else chunks
        for name, value in (("pipeline", pipeline), ("micro_batches", micro_batches), ("chunks", chunks)):
            if value < 1:
                raise ScheduleError(f"{self.name}: {name} must be at least 1 (got {value})")
        if not self.accepts_chunks(chunks):
            allowed = f"at least {self.least_chunks}" if self.most_chunks is None else (
                f"{self.least_chunks}" if self.least_chunks == self.most_chunks
                else f"{self.least_chunks} to {self.most_chunks}")
            raise ScheduleError(f"{self.name} takes {allowed} chunks per rank (got {chunks})")
        if group is not None and not self.takes_group:
            raise ScheduleError(f"{self.name} has no micro-batch group (got {group})")
        return self.order(pipeline, micro_batches, chunks, pipeline if group is None else group)
