"""One rank of torch's own pipeline schedules with sleep in place of compute (started by `simulator.real.sleeping`).

Each pass does the work of a tiny linear layer, so that torch's runtime, autograd and sends are real, and then sleeps
until the time that the pass is to take is over. Clocks are `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.pipelining.schedules import get_schedule_class
from torch.distributed.pipelining.stage import PipelineStage

from costmodel.calibration.ranks import process_group, rank_main


def main(job: Mapping[str, Any]) -> dict[str, Any]:
    """`job`: device, width (numbers a message), probes, repeats, pass_s (seconds by F, B, I, W), cases (`torch`, its
    name of the schedule, `stages` [ranks][chunks], micro_batches). What the probe and each case's steps recorded."""
    torch.manual_seed(0)
    with process_group(job["device"]) as device:
        probe = probed(job, device)
        return {"probe": probe, "cases": [played(case, job, device) for case in job["cases"]]}


def probed(job: Mapping[str, Any], device: Any) -> dict[str, list[float]]:
    """`probes` messages each way between the ranks of a pair, all pairs at once; a rank without a partner only waits.

    The first half behind sleeps, to one who waits for them: when sleeps of this rank ended (`sent_s`), how late that
    was (`late_s`), when messages were there (`received_s`). Then messages that have come before they are asked for:
    seconds from asking to having (`turn_s`).
    """
    rank, partner = dist.get_rank(), dist.get_rank() ^ 1
    alone = partner >= dist.get_world_size()
    found: dict[str, list[float]] = {"sent_s": [], "received_s": [], "late_s": [], "turn_s": []}
    out, into = (torch.zeros(1, job["width"], device=device) for _ in range(2))
    pause_s = job["pass_s"]["F"]

    def send() -> None:
        deadline = time.monotonic() + pause_s
        sleep_until(deadline)
        now = time.monotonic()
        found["late_s"].append(now - deadline)
        found["sent_s"].append(now)
        for work in asked(dist.isend, out, partner):
            work.wait()

    def receive() -> None:
        for work in asked(dist.irecv, into, partner):
            work.wait()
        found["received_s"].append(time.monotonic())

    def receive_late() -> None:
        sending = asked(dist.isend, out, partner)
        sleep_until(time.monotonic() + pause_s)
        start = time.monotonic()
        for work in asked(dist.irecv, into, partner):
            work.wait()
        found["turn_s"].append(time.monotonic() - start)
        for work in sending:
            work.wait()

    dist.barrier()
    for _ in range(0 if alone else job["probes"]):
        for action in (send, receive) if rank < partner else (receive, send):
            action()
    for _ in range(job["probes"]):
        dist.barrier()
        if not alone:
            receive_late()
    return found


def asked(kind: Any, tensor: Any, peer: int) -> list[Any]:
    """One operation as torch's schedules start theirs."""
    works: list[Any] = dist.batch_isend_irecv([dist.P2POp(kind, tensor, peer)])
    return works


def played(case: Mapping[str, Any], job: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The steps of one schedule: one without sleep to set it up, one to see what torch's runtime does, and `repeats`.

    `dispatch_s`: CPU seconds of this rank's main thread outside its passes, for each of them, in the second step.
    `steps`: the others, [step] of [kind, stage, micro-batch, start, end].
    """
    rank, width, count = dist.get_rank(), job["width"], case["micro_batches"]
    passes: list[list[Any]] = []
    seconds: dict[str, float] = dict.fromkeys(job["pass_s"], 0.0)
    within = [0.0]
    own, last = case["stages"][rank], max(max(stages) for stages in case["stages"])
    stages = [PipelineStage(torch.nn.Linear(width, width, device=device), stage, last + 1, device) for stage in own]
    for stage in stages:
        put_to_sleep(stage, seconds, passes, within)
    kind = get_schedule_class(case["torch"])
    schedule = kind(stages if len(stages) > 1 else stages[0], count, loss_fn=torch.nn.functional.mse_loss)
    inputs = [torch.randn(count, width, device=device)] if 0 in own else []
    target = torch.randn(count, width, device=device) if last in own else None

    def step() -> float:
        passes.clear()
        within[0] = 0.0
        dist.barrier()
        begin_s = time.thread_time()
        schedule.step(*inputs, target=target, losses=[] if last in own else None, return_outputs=False)
        return time.thread_time() - begin_s

    step()
    seconds.update(job["pass_s"])  # caches are as cold behind a sleep as in the steps that count
    dispatch_s = (step() - within[0]) / len(passes)
    steps = []
    for _ in range(job["repeats"]):
        step()
        steps.append(list(passes))
    return {"dispatch_s": dispatch_s, "steps": steps}


def put_to_sleep(stage: Any, seconds: Mapping[str, float], passes: list[list[Any]], within: list[float]) -> None:
    """Lets passes of `stage` take `seconds` by kind, note themselves in `passes` and add their CPU time to `within`."""

    @contextlib.contextmanager
    def asleep(kind: str, micro_batch: int) -> Iterator[None]:
        start, cpu = time.monotonic(), time.thread_time()
        yield
        if seconds[kind]:
            sleep_until(start + seconds[kind])
        passes.append([kind, stage.stage_index, micro_batch, start, time.monotonic()])
        within[0] += time.thread_time() - cpu

    forward: Callable[..., Any] = stage.forward_one_chunk
    backward: Callable[..., Any] = stage.backward_one_chunk
    weight: Callable[..., Any] = stage.backward_weight_one_chunk

    def sleeping_forward(micro_batch: int, *args: Any, **options: Any) -> Any:
        with asleep("F", micro_batch):
            return forward(micro_batch, *args, **options)

    def sleeping_backward(micro_batch: int, *args: Any, full_backward: bool = True, **options: Any) -> Any:
        with asleep("B" if full_backward else "I", micro_batch):
            return backward(micro_batch, *args, full_backward=full_backward, **options)

    def sleeping_weight(micro_batch: int, *args: Any, **options: Any) -> Any:
        with asleep("W", micro_batch):
            return weight(micro_batch, *args, **options)

    stage.forward_one_chunk = sleeping_forward
    stage.backward_one_chunk = sleeping_backward
    stage.backward_weight_one_chunk = sleeping_weight


def sleep_until(deadline_s: float) -> None:
    """Until this moment of `time.monotonic`."""
    while (left_s := deadline_s - time.monotonic()) > 0:
        time.sleep(left_s)


if __name__ == "__main__":
    rank_main(main)
