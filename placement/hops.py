"""One hop of activations from a pipeline stage to the next, either way: on the wire, beside compute or in its way.

A stack that overlaps the pipeline's traffic ("pipeline" in `Stack.overlap`) pays a hop as latency between two passes.
One that does not (Megatron-LM's batched sends and receives end in a device synchronisation) stands still until the
message has left: the hop is then part of the pass that makes it, and nothing is left for the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from costmodel import collectives, network, step_kernels
from costmodel.operators import Number
from placement import schedules
from placement.passes import Setting, sent_bytes


def crossings(setting: Setting) -> list[bool]:
    """Of every rank, whether the hop to the next one (from the last to the first) leaves the scale-up domain. Plans of
    one array have equally many accelerators a stage."""
    plan, domain = setting.plan, setting.cluster.node.scale_up_domain
    stages, ranks = int(plan.pipeline), int(np.max(plan.tensor * plan.context * plan.data))
    return [rank * ranks // domain != (rank + 1) % stages * ranks // domain for rank in range(stages)]


def wire_s(setting: Setting, rank: int) -> Number:
    """Seconds of one hop between a rank and the next one (the last and the first), with what the host adds."""
    if int(setting.plan.pipeline) == 1:
        return 0.0
    crosses = crossings(setting)[rank]
    sent_s = _measured_s(setting, crosses)
    if sent_s is None:
        sent_s = collectives.point_to_point_s(sent_bytes(setting), crosses, network.paths(setting.cluster))
    return sent_s + setting.stack.host_hop_s * setting.constants.host


def _measured_s(setting: Setting, crosses: bool) -> Number | None:
    """The send by an own profile's surface; None where it has none, or the hop leaves the node that was measured."""
    own = setting.pricer.own
    if own is None or crosses:
        return None
    rate = setting.cluster.node.scale_up.bandwidth_bytes_per_s
    alone = step_kernels.collective_s(own.measured, "point_to_point", sent_bytes(setting), network.Group(2, 2), rate)
    return None if alone is None else alone * setting.constants.communication


def blocks(setting: Setting) -> bool:
    return "pipeline" not in setting.stack.overlap


def hop_s(setting: Setting, rank: int) -> Number:
    """Seconds between the end of a pass and the start of the one on the next rank that waits for it."""
    return 0.0 if blocks(setting) else wire_s(setting, rank)


def sending_rank(setting: Setting, stage: int, step: int) -> int | None:
    """The rank whose link to the next one carries the result of `stage` (in model order) to stage + step, where that
    makes the pass longer; None where nothing is sent or the hop is beside compute."""
    plan, last = setting.plan, int(setting.plan.chunks) - 1
    if not blocks(setting) or not 0 <= stage + step <= last:
        return None
    schedule, ranks = schedules.get(plan.schedule), int(plan.pipeline)
    rank_of = _ranks(schedule.stage_of, ranks, schedule.routes if schedule.routes > 1 else int(plan.virtual))
    here, there = rank_of[stage], rank_of[stage + step]
    if here == there:
        return None
    return here if (here + 1) % ranks == there else there


@cache
def _ranks(stage_of: Callable[[int, int, int, int], int], ranks: int, chunks: int) -> dict[int, int]:
    """The rank of every stage in model order."""
    return {stage_of(rank, chunk, ranks, chunks): rank for rank in range(ranks) for chunk in range(chunks)}


def sending_s(setting: Setting, stage: int, step: int) -> Number:
    """Seconds by which handing the result of `stage` (in model order) to stage + step makes its pass longer."""
    rank = sending_rank(setting, stage, step)
    return 0.0 if rank is None else wire_s(setting, rank)
