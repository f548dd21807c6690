"""One hop of activations from a pipeline stage to the next, either way: on the wire, beside compute or in its way.

A stack that overlaps the pipeline's traffic ("pipeline" in `Stack.overlap`) pays a hop as latency between two passes.
One that does not (Megatron-LM's batched sends and receives end in a device synchronisation) stands still until the
message has left: the hop is then part of the pass that makes it, and nothing is left for the wire.
"""

from __future__ import annotations

from costmodel import collectives, network
from placement import schedules
from placement.passes import Setting, sent_bytes


def wire_s(setting: Setting, rank: int) -> float:
    """Seconds of one hop between a rank and the next one (the last and the first), with what the host adds."""
    plan, cluster = setting.plan, setting.cluster
    stages = int(plan.pipeline)
    if stages == 1:
        return 0.0
    ranks, domain = int(plan.tensor * plan.context * plan.data), cluster.node.scale_up_domain
    crosses = rank * ranks // domain != (rank + 1) % stages * ranks // domain
    sent_s = float(collectives.point_to_point_s(sent_bytes(setting), crosses, network.paths(cluster)))
    return sent_s + setting.stack.host_hop_s * setting.constants.host


def blocks(setting: Setting) -> bool:
    return "pipeline" not in setting.stack.overlap


def hop_s(setting: Setting, rank: int) -> float:
    """Seconds between the end of a pass and the start of the one on the next rank that waits for it."""
    return 0.0 if blocks(setting) else wire_s(setting, rank)


def sending_s(setting: Setting, stage: int, step: int) -> float:
    """Seconds by which handing the result of `stage` (in model order) to stage + step makes its pass longer."""
    plan, last = setting.plan, int(setting.plan.chunks) - 1
    if not blocks(setting) or not 0 <= stage + step <= last:
        return 0.0
    schedule, ranks, chunks = schedules.get(plan.schedule), int(plan.pipeline), int(plan.virtual)
    if schedule.routes > 1:
        chunks = schedule.routes
    rank_of = {schedule.stage_of(rank, chunk, ranks, chunks): rank for rank in range(ranks) for chunk in range(chunks)}
    here, there = rank_of[stage], rank_of[stage + step]
    if here == there:
        return 0.0
    return wire_s(setting, here if (here + 1) % ranks == there else there)
