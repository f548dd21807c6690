"""What a pipeline schedule is: the order of passes on every pipeline rank, with its bubble and memory law."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ScheduleError(ValueError):
    """A schedule that does not exist, or a setting or order that a schedule cannot have."""


KINDS = {
    "F": "forward",
    "B": "backward for the input, and for the weight too where the schedule has no W",
    "W": "backward for the weight",
    "R": "forward once more, before the backward of a chunk that kept its input only",
    "S": "this rank's share of the logits and of their softmax (vocabulary parallelism)",
    "T": "this rank's share of the output layer's gradients (vocabulary parallelism)",
    "O": "copy of a chunk's activations to the host, beside the passes",
    "L": "copy of a chunk's activations back, beside the passes",
}
COPIES = frozenset("OL")  # run on the rank's copy stream
SHARED = frozenset("ST")  # one on every rank for each micro-batch, of no chunk


class Pass(NamedTuple):
    """One pass (a key of `KINDS`) of one chunk over one micro-batch.

    `joined` passes run in one slot with the pass before: what any of them makes is there at the slot's end (at the
    pass's own end where the schedule is `early`).
    Of a copy, the place in the order says when it is issued: at the end of the passes before it.
    """

    kind: str
    chunk: int
    micro_batch: int
    joined: bool = False


Orders = list[list[Pass]]


@dataclass(frozen=True)
class Times:
    """Seconds of one chunk's passes (all of equal length) and of one hop between two ranks.

    `backward_s` is for the input alone. What schedules that look at times are made for.
    """

    forward_s: float = 1.0
    backward_s: float = 1.0
    weight_s: float = 1.0
    latency_s: float = 0.0


@dataclass(frozen=True)
class Request:
    """What an order is asked for.

    `memory_limit` is the most a rank may hold at once, in activations of one chunk and micro-batch, of which the
    forward takes 1, the backward for the input gives back 1 - `weight_share` and the one for the weight the rest.
    """

    pipeline: int
    micro_batches: int
    chunks: int = 1
    group: int = 1  # micro-batches that go through a chunk before the next chunk's turn
    segments: int = 1  # parts of a sequence; part q of micro-batch j is "micro-batch" j segments + q of a pass
    times: Times = field(default_factory=Times)
    memory_limit: float | None = None
    weight_share: float = 0.5


def looped(rank: int, chunk: int, pipeline: int, chunks: int) -> int:
    """Stages dealt in turn: chunk c of rank r is stage c p + r (arXiv 2104.04473, section 2.2)."""
    return chunk * pipeline + rank


def v_shaped(rank: int, chunk: int, pipeline: int, chunks: int) -> int:
    """Stages dealt there and back: rank r holds stages r and 2 p - 1 - r (arXiv 2405.15362, section 3)."""
    return chunk * pipeline + (rank if chunk % 2 == 0 else pipeline - 1 - rank)


def mirrored(rank: int, chunk: int, pipeline: int, chunks: int) -> int:
    """Two pipelines in opposite directions: rank r holds stage r of one and stage p - 1 - r of the other."""
    return rank if chunk == 0 else pipeline - 1 - rank


@dataclass(frozen=True)
class Schedule:
    """One published order of pipeline passes.

    `order(request)` gives the passes of every rank; call `generate`, which checks the setting first.
    `bubble_s(p, m, v, forward_s, backward_s, latency_s=0, weight_s=0)`: makespan less busy time in seconds;
    broadcasts. All times are of one micro-batch over the chunks of a rank that it passes (with one route all: each
    takes a v-th); `backward_s` is with the weight's, whose part is `weight_s`; `latency_s` is one way between two
    ranks. None where the order follows from a search: then it is played. Laws of schedules that cut sequences take
    `segments` too, and count the peak in segments.
    `peak_in_flight(p, rank, m, v)`: most chunk activations that a rank holds at once, from F to its last backward
    pass, broadcasting; one is 1/v of a micro-batch's activations on the rank. None where it is played.
    `stage_of(rank, chunk, pipeline, chunks)`: the stage, in model order from 0, that is this rank's chunk.
    `routes`: 2 where half of the micro-batches go the other way through a second copy of the model (chunk 1).
    `takes_segments`: sequences go in parts, one pass each.
    `barriers`: how often all ranks meet in each micro-batch's output layer (passes S and T).
    `early`: what passes of one slot make leaves at their own ends; the slot still starts when all is there.
    `law`: bubble of the makespan and worst peak in words, in times F, B, W (BW = B + W) of a micro-batch on a rank.
    """

    name: str
    title: str
    source: str
    order: Callable[[Request], Orders]
    bubble_s: Callable[..., Any] | None = None
    peak_in_flight: Callable[..., Any] | None = None
    stage_of: Callable[[int, int, int, int], int] = looped
    splits_backward: bool = False
    least_chunks: int = 1
    most_chunks: int | None = None
    takes_group: bool = False
    routes: int = 1
    takes_segments: bool = False
    barriers: int = 0
    early: bool = False
    law: str = ""

    def accepts_chunks(self, chunks: int) -> bool:
        return chunks >= self.least_chunks and (self.most_chunks is None or chunks <= self.most_chunks)

    def generate(
        self,
        pipeline: int,
        micro_batches: int,
        chunks: int | None = None,
        group: int | None = None,
        segments: int | None = None,
        times: Times | None = None,
        memory_limit: float | None = None,
        weight_share: float = 0.5,
    ) -> Orders:
        """The passes of each of `pipeline` ranks in the order in which the rank runs them.

        `chunks` None takes the fewest that the schedule accepts. `group` is the number of micro-batches that
        go through a chunk before the next chunk's turn (Megatron's `microbatch_group_size_per_vp_stage`),
        None for `pipeline`; only schedules with `takes_group` have it. The rest as in `Request`.
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
        if segments is not None and not self.takes_segments:
            raise ScheduleError(f"{self.name} does not cut sequences (got {segments} segments)")
        segments = (2 if self.takes_segments else 1) if segments is None else segments
        group = pipeline if group is None else group
        times = Times() if times is None else times
        request = Request(pipeline, micro_batches, chunks, group, segments, times, memory_limit, weight_share)
        return [list(passes) for passes in _made(self.order, request)]


@functools.lru_cache(maxsize=16)
def _made(order: Callable[[Request], Orders], request: Request) -> Orders:
    """Both fidelities and the variants of a scenario ask for the same order; some are searched for."""
    return order(request)
