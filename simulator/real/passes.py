"""The clock of a rank's passes: wall and CPU time on any device, events beside on CUDA."""

# mypy checks without torch: its modules are Any there
from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Clock:
    """Notes what happens between the barrier at a step's beginning and its end.

    CPU time is that of the calling thread, which does all compute on the CPU; collectives run in threads of their own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.passes: list[dict[str, Any]] = []
        self._events: list[tuple[dict[str, Any], Any, Any]] = []
        self._step, self._begin_s = 0, 0.0
        self.before_forward: Callable[[], None] = lambda: None

    def begin(self, step: int) -> None:
        self._step, self._begin_s = step, time.perf_counter()

    @contextlib.contextmanager
    def timed(self, kind: str, chunk: int = 0, micro_batch: int | None = None, stage: int = 0) -> Iterator[None]:
        """One pass (F, B, W or optimizer) of a chunk of this rank."""
        if kind == "F":
            self.before_forward()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if self._cuda else (None, None)
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        if start is not None:
            start.record()
        yield
        if end is not None:
            end.record()
        note = {"step": self._step, "kind": kind, "chunk": chunk, "stage": stage, "micro_batch": micro_batch,
                "start_s": wall_s - self._begin_s, "wall_s": time.perf_counter() - wall_s,
                "cpu_s": time.thread_time() - cpu_s, "device_s": None}
        self.passes.append(note)
        if start is not None:
            self._events.append((note, start, end))

    @contextlib.contextmanager
    def longer(self) -> Iterator[None]:
        """What belongs to the pass that was noted last (the loss, which torch's schedules compute behind it)."""
        if not self.passes:
            yield
            return
        note, wall_s, cpu_s = self.passes[-1], time.perf_counter(), time.thread_time()
        yield
        note["wall_s"] += time.perf_counter() - wall_s
        note["cpu_s"] += time.thread_time() - cpu_s

    def finish(self) -> None:
        """At a step's end: waits for the device and reads its events."""
        if self._cuda:
            torch.cuda.synchronize()
        for note, start, end in self._events:
            note["device_s"] = start.elapsed_time(end) / 1e3
        self._events.clear()

    @property
    def _cuda(self) -> bool:
        return str(self.device.type) == "cuda"


def watch_stage(stage: Any, chunk: int, clock: Clock) -> None:
    """Lets every pass of a torch pipeline stage be timed; what the schedule waits for lies outside of them."""
    forward: Callable[..., Any] = stage.forward_one_chunk
    backward: Callable[..., Any] = stage.backward_one_chunk
    weight: Callable[..., Any] = stage.backward_weight_one_chunk
    number = stage.stage_index

    def timed_forward(micro_batch: int, *args: Any, **options: Any) -> Any:
        with clock.timed("F", chunk, micro_batch, number):
            return forward(micro_batch, *args, **options)

    def timed_backward(micro_batch: int, *args: Any, **options: Any) -> Any:
        with clock.timed("B", chunk, micro_batch, number):
            return backward(micro_batch, *args, **options)

    def timed_weight(micro_batch: int, *args: Any, **options: Any) -> Any:
        with clock.timed("W", chunk, micro_batch, number):
            return weight(micro_batch, *args, **options)

    stage.forward_one_chunk = timed_forward
    stage.backward_one_chunk = timed_backward
    stage.backward_weight_one_chunk = timed_weight
