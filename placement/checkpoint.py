"""How long an asynchronous checkpoint stands in the way of a step.

`torch.distributed.checkpoint.async_save` copies the states of a rank to host memory before it returns; writing goes on
behind it. The stall is that copy (CheckFreq, FAST 2021, section 4.1: snapshot, then persist): through the host link of
an accelerator, or where the states lie in host memory already, read once and written once. What ranks tell one another
to plan the files is not counted.
"""

from __future__ import annotations

from placement.memory import resident_bytes
from placement.passes import Setting
from placement.units import Unit

SAVED = ("parameters", "optimizer")


def saved_bytes(setting: Setting, units: list[Unit]) -> float:
    """Bytes of the states of a rank that a checkpoint holds, of the chunks in `units`."""
    return float(sum(size for state, size in resident_bytes(setting, units).items() if state in SAVED))


def stall_s(setting: Setting, size_bytes: float) -> float:
    """Seconds in which the step waits for `size_bytes` of a rank to be copied."""
    part = setting.cluster.accelerator
    if part.host_link is not None and part.generation != "cpu":
        return size_bytes / part.host_link.bandwidth_bytes_per_s
    return size_bytes / part.memory.read_bandwidth_bytes_per_s + size_bytes / part.memory.write_bandwidth_bytes_per_s
