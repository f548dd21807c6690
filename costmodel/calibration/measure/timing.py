"""One piece of work, timed: CPU time of one thread, or events of a GPU with its cache emptied before each repeat."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from costmodel.calibration.measure.statistics import Timing, timing
from costmodel.calibration.ranks import keep_freed_memory

BATCH_S = 200e-6  # a repeat shorter than this runs the work several times: the clock itself takes about 1 us
MOST_REPEATS = 200
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Of results: more than the cache of a core, about what a layer of a small model makes before its memory comes back. Of
# the two sizes tried, 512 MiB made products 20 % slower than they are in a step.
_KEPT_BYTES = 64 << 20
_MOST_KEPT = 4096  # results held at a time
_LEAST_POOL_BYTES, _MOST_POOL_BYTES = 64 << 20, 512 << 20

Prepare = Callable[[int], Callable[[], object]]  # work to be done `count` times; only what it returns is timed


@dataclass(frozen=True)
class Budget:
    """How long one point may take: repeats end after `seconds`, though not before `least` of them."""

    seconds: float
    least: int = 3
    most: int = MOST_REPEATS


class Clock(Protocol):
    """Seconds that a call took: by the clock that counts, and by the wall."""

    def __call__(self, call: Callable[[], object]) -> tuple[float, float]: ...


def thread_clock(call: Callable[[], object]) -> tuple[float, float]:
    """CPU time of this thread, since wall clock lies where other work shares the processor."""
    wall, cpu = time.perf_counter(), time.thread_time()
    call()
    return time.thread_time() - cpu, time.perf_counter() - wall


def wall_clock(call: Callable[[], object]) -> tuple[float, float]:
    """For work that no thread of ours does: a disk, another rank."""
    begin = time.perf_counter()
    call()
    wall = time.perf_counter() - begin
    return wall, wall


def event_clock() -> Clock:
    """Events around a call on the current GPU, its L2 cache overwritten before (from documentation, not run here)."""
    import torch

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    flush = torch.empty(max(2 * getattr(properties, "L2_cache_size", 0), 1 << 26), dtype=torch.int8, device="cuda")

    def clock(call: Callable[[], object]) -> tuple[float, float]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()  # the host runs ahead meanwhile, so that launches are hidden as they are in a step
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) / 1e3
        return seconds, seconds

    return clock


def sample(prepare: Prepare, clock: Clock, budget: Budget, most_at_once: int = 64) -> Timing:
    """Times `prepare(count)()` until the budget is over, after a warm-up that also says how often fits one repeat.

    `most_at_once` bounds the count, for work whose preparation holds memory. Seconds are those of one piece of work.
    """
    prepare(1)()  # libraries load, pages come
    first, wall = clock(prepare(1))
    count = max(1, min(most_at_once, math.ceil(BATCH_S / max(first, 1e-9))))
    seconds: list[float] = []
    walls = cpus = 0.0
    begin = time.perf_counter()
    while len(seconds) < budget.most:
        own, wall = clock(prepare(count))
        seconds.append(own / count)
        walls, cpus = walls + wall, cpus + own
        if len(seconds) >= budget.least and time.perf_counter() - begin >= budget.seconds:
            break
    return timing(seconds, walls / cpus if cpus > 0 else None)


class Bench:
    """Where and how things are measured: the device, its clock, and a pool of memory that operands are taken from.

    Operands lie one behind another in `pool_bytes`, more than every cache holds, so that one that comes in turn comes
    from memory, as a weight does in a step.
    """

    def __init__(self, device: str, clock: Clock, pool_bytes: int) -> None:
        self.device, self.clock, self.pool_bytes = device, clock, pool_bytes
        self._pools: dict[str, Any] = {}

    def turns(self, shape: tuple[int, ...], type_name: str) -> list[Any]:
        """Normal tensors of one shape that fill the pool, at most 256; a single one where it is larger than the pool.

        They are views of the pool: whoever writes to them takes clones.
        """
        import torch

        pool = self._pool(type_name)
        size = math.prod(shape)
        apart = -(-size // 32) * 32  # elements; so that each begins a line of the cache
        count = min(len(pool) // apart, 256)
        if count == 0:
            return [torch.randn(shape, device=self.device).to(pool.dtype)]
        step = max(apart, len(pool) // count // 32 * 32)
        return [pool[begin:begin + size].view(shape) for begin in range(0, count * step, step)]

    def one(self, shape: tuple[int, ...], type_name: str) -> Any:
        """One normal tensor of its own memory."""
        return self.turns(shape, type_name)[0].clone()

    def kept(self, size_bytes: float) -> deque[Any]:
        """Holds results of this size, as many as a layer or so makes; then the oldest goes for each new one."""
        return deque(maxlen=max(1, min(_MOST_KEPT, int(_KEPT_BYTES / max(size_bytes, 1.0)))))

    def _pool(self, type_name: str) -> Any:
        import torch

        name = DTYPES[type_name]
        if name not in self._pools:
            self._pools.clear()  # types come one after another, and memory is for one
            dtype = getattr(torch, name)
            block = torch.randn(1 << 20, device=self.device).to(dtype)
            self._pools[name] = block.repeat(max(1, self.pool_bytes // (block.element_size() << 20)))
        return self._pools[name]


def bench(device: str) -> Bench:
    """The bench of "cpu" (one thread) or "cuda"."""
    import torch

    if device == "cuda":
        return Bench(device, event_clock(), _MOST_POOL_BYTES)
    torch.set_num_threads(1)
    keep_freed_memory()
    pool_bytes = min(max(2 * cache_bytes(), _LEAST_POOL_BYTES), _MOST_POOL_BYTES)
    torch.empty(pool_bytes + (pool_bytes >> 1), dtype=torch.int8).zero_()  # pages come now; they stay for what follows
    return Bench(device, thread_clock, pool_bytes)


def cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache of a processor core as the kernel tells it; 32 MiB where it does not."""
    sizes = []
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        number = text.rstrip("KM")
        sizes.append(int(number) * factor if number.isdigit() else 0)
    return max(sizes, default=0) or 32 << 20


def one_thread() -> None:
    """Environment of libraries that make threads of their own; before torch is imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
