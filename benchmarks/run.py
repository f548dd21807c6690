"""Speeds and sizes of the product on this machine, as ratios within one run where they can be.

python -m benchmarks.run            prints one table; see README.md here for what each line must hold
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

SCENARIO = "llama-3.1-405b-16k-h100"
SEARCH = "gpt-3-175b-64-a100"
REPEATS = 5
WHATIF = [str(Path(sys.executable).with_name("whatif"))]


def best_s(
    work: Callable[[], object], repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of `work` after one warm-up call, on the wall or (`time.process_time`) of one core."""
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def child(arguments: list[str], **environment: str) -> tuple[float, float, float]:
    """(wall s, CPU s, peak MB) of one process, median of REPEATS after a warm-up."""
    samples = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)} ended with {process.returncode}")
        samples.append((time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
    wall, cpu, peak = zip(*samples[1:], strict=True)
    return statistics.median(wall), statistics.median(cpu), max(peak)


def prediction() -> list[tuple[str, str]]:
    """One scenario as a process, with and without the `fast` extra, and the start alone."""
    wall, cpu, peak = child([*WHATIF, "run", SCENARIO, "--json"])
    with tempfile.TemporaryDirectory() as folder:  # a numba that cannot be imported, as without the extra
        (Path(folder) / "numba.py").write_text("raise ImportError('hidden by the benchmark')\n", encoding="utf-8")
        plain_wall, _, _ = child([*WHATIF, "run", SCENARIO, "--json"], PYTHONPATH=folder)
    _, help_cpu, _ = child([*WHATIF, "--help"])
    return [
        ("whatif run, with numba", f"{wall:.2f} s wall, {cpu:.2f} s CPU, {peak:.0f} MB"),
        ("whatif run, without numba", f"{plain_wall:.2f} s wall"),
        ("whatif --help", f"{help_cpu:.2f} s CPU"),
    ]


def players() -> list[tuple[str, str]]:
    """The same step on both players and by the closed form, in this process."""
    from placement.step import analytic_step
    from scenarios.build import training_inputs
    from scenarios.load import load
    from simulator.engine import dynamic, static
    from simulator.predict import setting_of
    from simulator.training import lower

    inputs = training_inputs(load(library() / f"{SCENARIO}.yaml", (), SCENARIO))
    setting = setting_of(inputs)
    program = lower(setting, inputs.global_batch).program
    compiled = best_s(lambda: static.play(program, compiled=True))
    plain = best_s(lambda: static.play(program, compiled=False))
    simpy = best_s(lambda: dynamic.play(program), 3)
    closed = best_s(lambda: analytic_step(setting, inputs.global_batch))
    lowered = best_s(lambda: lower(setting, inputs.global_batch), 3)
    return [
        (f"lowering to {len(program):,} tasks", f"{lowered * 1e3:.0f} ms"),
        ("static player, numba", f"{compiled * 1e3:.2f} ms"),
        ("static player, plain Python", f"{plain * 1e3:.1f} ms ({plain / compiled:.0f} x numba)"),
        ("SimPy player", f"{simpy * 1e3:.0f} ms ({simpy / compiled:.0f} x numba)"),
        ("closed form", f"{closed * 1e3:.1f} ms"),
    ]


def schedules() -> list[tuple[str, str]]:
    """Playing and generating pipeline schedules alone."""
    from placement.schedules import Request, Times, get
    from placement.schedules.layout import durations, layout
    from placement.schedules.play import earliest_times
    from placement.schedules.search.auto import auto

    schedule = get("interleaved-1f1b")
    found = layout(schedule.generate(32, 1024, 8), schedule)
    seconds, lag_s = durations(found, {"F": 1.0, "B": 2.0}), found.hop * 0.1
    columns = (found.order, found.previous, found.dependency_offsets, found.dependency_task, lag_s, seconds)
    played_s = best_s(lambda: earliest_times(*columns, compiled=True))
    asked = {name: Request(32, 256, get(name).least_chunks) for name in ("v-half", "zb-2p")}
    made_s = {name: best_s(lambda name=name: get(name).order(asked[name]), 3) for name in asked}
    rate = len(found.kind) / played_s / 1e6
    small = Request(4, 8, times=Times(10, 11, 8, 1), memory_limit=3.0)
    large = Request(8, 64, 2, memory_limit=10.0, weight_share=1.0)
    return [
        (f"playing {len(found.kind):,} passes, numba", f"{rate:.0f} million passes a second"),
        *((f"generating {name}, p = 32, m = 256", f"{seconds:.2f} s") for name, seconds in made_s.items()),
        ("an order with its proof, p = 4, m = 8", f"{best_s(lambda: auto(small), 3):.2f} s"),
        ("an order at its bound, p = 8, m = 64, V", f"{best_s(lambda: auto(large), 3):.2f} s"),
    ]


def searches() -> list[tuple[str, str]]:
    """Plans priced as arrays against one at a time; the cost of twice and four times as many plans."""
    from placement.search.exhaustive import Limits, search
    from placement.step import analytic_step
    from scenarios.errors import Place
    from scenarios.load import load
    from scenarios.search.axes import Asked, Axis, asked

    loaded = load(library() / f"{SEARCH}.yaml", (), SEARCH)
    capacity = loaded.cluster.accelerator.memory.capacity_bytes

    def priced(wanted: Asked) -> tuple[int, int, float]:
        found = search(wanted.cases, wanted.space, lambda _: Limits(capacity))
        work = partial(search, wanted.cases, wanted.space, lambda _: Limits(capacity))
        seconds = best_s(work, 3, time.process_time)
        return found.counts.combinations, found.counts.priced, seconds

    def axis(key: str, *values: object) -> Axis:
        return Axis(key, values, (Place("benchmark"),) * len(values))

    rows = []
    rates = []
    more = axis("plan.state_bytes", None, "mixed", "megatron", "bf16")
    half = axis("plan.sharding", "ddp", "zero-1", "zero-3", "fsdp")
    for name, given in (("4 placements", [half]), ("as in the file", []), ("x 4 kinds of state bytes", [more])):
        combinations, plans, seconds = priced(asked(loaded, given))
        rates.append(plans / seconds)
        rows.append((f"search of {combinations:,}, {name}",
                     f"{seconds:.1f} s of a core: {plans:,} priced, {plans / seconds:,.0f} a second"))
    base = asked(loaded, []).cases[0]
    one_s = best_s(partial(analytic_step, base.base, base.global_batch), clock=time.process_time)
    rows.append(("one plan by itself", f"{one_s * 1e3:.1f} ms ({one_s * rates[-1]:,.0f} x a plan of an array)"))
    return rows


def sweeps() -> list[tuple[str, str]]:
    """A sweep in one process, and the same variants predicted one by one."""
    from scenarios.load import load
    from scenarios.sweep import evaluate, values

    loaded = load(library() / "gpt-3-175b-64-a100.yaml", (), "gpt-3", related=False)
    grid = values.grid(["plan.tensor=1..8 x2", "plan.pipeline=4,8,16", "plan.micro_batch=1..8 x2",
                        "plan.recompute=none,selective,full", "plan.sharding=ddp,zero-1,fsdp"])
    base = evaluate.Base("", loaded, "analytic")
    batch = [evaluate.Variant(index, grid.settings(index)) for index in range(len(grid))]
    together_s = best_s(lambda: evaluate.evaluate(base, batch), 3)

    def alone() -> None:
        for variant in batch:
            evaluate.evaluate(base, [variant])

    alone_s = best_s(alone, 1)
    return [
        (f"a sweep of {len(grid)} variants", f"{len(grid) / together_s:,.0f} variants a second"),
        ("the same one by one", f"{len(grid) / alone_s:,.0f} a second ({alone_s / together_s:.0f} x as long)"),
    ]


def library() -> Path:
    return Path(__file__).resolve().parents[1] / "scenarios" / "library"


def main() -> None:
    rows = [*prediction(), *players(), *schedules(), *searches()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'peak memory of this process':{width}}  {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
