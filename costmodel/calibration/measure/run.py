"""One measurement from its first point to its folder."""

from __future__ import annotations

import datetime
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.calibration.measure import attention, collectives, copies, gemm, grids, launch, operators, storage
from costmodel.calibration.measure import machine as machines
from costmodel.calibration.measure.session import COLUMNS, Session
from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.timing import Bench, Budget, bench, one_thread

FAMILIES = tuple(COLUMNS)  # the tables
_TELL_S = 2.0

Point = dict[str, Any]
Tell = Callable[[str], None]


class DeviceError(ValueError):
    """A device that is not here."""


@dataclass(frozen=True)
class Order:
    """What is asked for: the name of the machine, a device ("cpu" or "cuda"), which families, how thoroughly, and the
    numbers of ranks of collectives."""

    name: str
    device: str
    quick: bool
    families: tuple[str, ...] = FAMILIES
    ranks: tuple[int, ...] = (2,)


def device_of(asked: str) -> str:
    """"cpu" or "cuda"; raises DeviceError where torch sees no GPU."""
    if asked == "cpu":
        return asked
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise DeviceError("cuda asked for, but torch sees no CUDA device; --device cpu measures this processor")
    return "cpu"


def machine(order: Order) -> dict[str, Any]:
    """What a folder says of its machine when it is begun."""
    one_thread()
    return {"name": order.name, "device": order.device,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "description": machines.description(order.device), "threads": 1,
            "clock": "cuda-events" if order.device == "cuda" else "thread-cpu-time"}


def measure(order: Order, session: Session, tell: Tell) -> None:
    """Measures every point that the session does not have; a full order begins with the points of a quick one.

    Raises RanksError and OSError; what was measured until then stays in the session.
    """
    session.note("state_before", session.notes.get("state_before") or machines.state(order.device))
    own = bench(order.device)
    for quick in (True,) if order.quick else (True, False):
        budget = Budget(0.03, 4) if quick else Budget(0.05, 5)
        for family in order.families:
            _family(family, order, quick, session, own, budget, tell)
    session.note("state_after", machines.state(order.device))
    session.note("skipped", skipped(order))


def skipped(order: Order) -> dict[str, str]:
    """What is asked for but cannot be measured here, and why, by family."""
    found = {}
    if order.device == "cpu" and "copies" in order.families:
        found["copies"] = "host-to-device and device-to-host need cuda; on cpu host and device are one"
    if "collectives" in order.families and not order.ranks:
        found["collectives"] = "one GPU is alone; collectives need two"
    return found


def default_ranks(device: str, quick: bool) -> tuple[int, ...]:
    """Numbers of ranks that collectives are measured with: powers of two up to the GPUs; 2 on a processor, also 4."""
    if device == "cpu":
        return (2,) if quick else (2, 4)
    return tuple(2**power for power in range(1, 11) if 2**power <= gpus())


def gpus() -> int:
    """GPUs that torch sees."""
    import torch

    return int(torch.cuda.device_count())


def _family(family: str, order: Order, quick: bool, session: Session, own: Bench, budget: Budget, tell: Tell) -> None:
    if family == "collectives":
        for ranks in order.ranks:
            missing = _missing(session, family, grids.collectives(order.device, quick, ranks))
            if missing:
                tell(f"collectives: {len(missing)} points on {ranks} ranks")
                collectives.measure(missing, order.device, ranks, 2 * budget.seconds,
                                    lambda point, timing: session.add("collectives", point, timing))
        return
    missing = _missing(session, family, points(family, order.device, quick))
    timed = _timer(family, own, budget, session.folder.parent)
    told = time.monotonic()
    for done, point in enumerate(missing):
        if done == 0 or time.monotonic() - told > _TELL_S:
            tell(f"{family}: {done} of {len(missing)} points")
            told = time.monotonic()
        session.add(family, point, timed(point))
    gc.collect()


def points(family: str, device: str, quick: bool) -> list[Point]:
    """The points of every family but collectives."""
    if family == "launch":
        return grids.launch()
    if family == "storage":
        return grids.storage(quick)
    made: Callable[[str, bool], list[Point]] = getattr(grids, family)
    return made(device, quick)


def _timer(family: str, own: Bench, budget: Budget, folder: Path) -> Callable[[Point], Timing]:
    if family == "storage":
        return lambda point: storage.measure(folder, point, budget)
    module = {"gemm": gemm, "attention": attention, "operators": operators, "copies": copies, "launch": launch}[family]
    return lambda point: module.measure(own, point, budget)


def _missing(session: Session, family: str, wanted: Iterable[Point]) -> Sequence[Point]:
    return [point for point in wanted if not session.has(family, point)]
