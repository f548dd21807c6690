"""What each rank does: every collective of the job, rank 0 prints a JSON line for each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from costmodel.calibration import ranks
from costmodel.calibration.measure.statistics import timing

_WARM_UPS, _LEAST, _MOST = 2, 5, 200
_AT_ONCE = 5  # on a GPU a repeat holds several, so that launches are hidden


def body(job: Mapping[str, Any]) -> int:
    """Times every point of the job; gives their number."""
    with ranks.process_group(job["device"]) as device:
        for point in job["points"]:
            seconds = _measure(point, device, job["budget_s"])
            if dist.get_rank() == 0:
                print(json.dumps({"point": point, "timing": asdict(timing(seconds))}), flush=True)
    return len(job["points"])


def _measure(point: Mapping[str, Any], device: Any, budget_s: float) -> list[float]:
    """Seconds of each repeat: those of the slowest rank, from a barrier on."""
    call, share = _call(point, device)
    for _ in range(_WARM_UPS):
        call()
    once = torch.tensor([_timed(call, device)], device=device)
    dist.all_reduce(once, dist.ReduceOp.MAX)
    repeats = int(min(max(budget_s / max(float(once), 1e-6), _LEAST), _MOST))
    seconds = torch.tensor([_timed(call, device) * share for _ in range(repeats)], device=device)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return [float(one) for one in seconds.tolist()]


def _timed(call: Callable[[], object], device: Any) -> float:
    dist.barrier()
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(_AT_ONCE):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / _AT_ONCE
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _call(point: Mapping[str, Any], device: Any) -> tuple[Callable[[], object], float]:
    """The collective, and the share of its time that counts: point to point goes there and back.

    Tensors are fp32, `size_bytes` the whole one of a rank (`costmodel.collectives`).
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    count = max(point["size_bytes"] // 4, 1)
    share = max(count // world, 1)
    name = point["collective"]
    whole, part = (torch.zeros(size, device=device) for size in (count, share))
    parts = torch.zeros(share * world, device=device)
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        "all_gather": lambda: dist.all_gather_into_tensor(parts, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, parts),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(parts), parts),
        "point_to_point": lambda: _there_and_back(whole, rank),
    }
    return calls[name], 0.5 if name == "point_to_point" else 1.0


def _there_and_back(tensor: Any, rank: int) -> None:
    """Between ranks 0 and 1; the others look on."""
    if rank == 0:
        dist.send(tensor, 1)
        dist.recv(tensor, 1)
    elif rank == 1:
        dist.recv(tensor, 0)
        dist.send(tensor, 0)


if __name__ == "__main__":
    ranks.rank_main(body)
