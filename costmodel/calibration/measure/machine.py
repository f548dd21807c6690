"""The machine that is measured: what it is made of (no host, user or path names), and the state it is in."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path
from typing import Any


def description(device: str) -> dict[str, Any]:
    """Processor, memory, system and versions; with torch's libraries, and the GPUs where they are measured."""
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
        "torch": str(torch.__version__),
        "backends": {"mkl": bool(torch.backends.mkl.is_available()),
                     "onednn": bool(torch.backends.mkldnn.is_available()),
                     "capability": str(torch.backends.cpu.get_cpu_capability())},
    }
    if device == "cuda":
        found["backends"] |= {"cuda": str(torch.version.cuda), "driver": _driver(),
                              "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": str(properties.name), "count": int(torch.cuda.device_count()),
                        "memory_bytes": int(properties.total_memory)}
    return found


def state(device: str) -> dict[str, Any]:
    """Load, pressure on the processor, and how much longer than its CPU time a little work takes by the wall; clock,
    temperature and power of the GPU where its driver tells them."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2), "pressure_some_avg10": cpu_pressure(),
                             "wall_over_cpu": round(wall_over_cpu(), 3)}
    if device == "cuda":
        found["gpu"] = _gpu_state()
    else:
        found["cpu_mhz"] = _cpu_mhz()
    return found


def wall_over_cpu(seconds: float = 0.05) -> float:
    """Wall over CPU time of a loop of `seconds` CPU time: 1 on a quiet machine."""
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu < seconds:
        pass
    return (time.perf_counter() - wall) / (time.thread_time() - cpu)


def cpu_pressure(file: Path = Path("/proc/pressure/cpu")) -> float | None:
    """Share of the last 10 s (percent) in which some task waited for a processor; None where the kernel is silent."""
    with contextlib.suppress(OSError):
        match = re.search(r"some avg10=([\d.]+)", file.read_text())
        return float(match.group(1)) if match else None
    return None


def _cpu_model(file: Path = Path("/proc/cpuinfo")) -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.machine()


def _cpu_mhz(file: Path = Path("/proc/cpuinfo")) -> float | None:
    with contextlib.suppress(OSError):
        clocks = [float(one) for one in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", file.read_text(), re.MULTILINE)]
        return max(clocks, default=None)
    return None


def _driver(file: Path = Path("/proc/driver/nvidia/version")) -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text())
        if match:
            return match.group(1)
    return "unknown"


def _gpu_state() -> dict[str, Any]:
    """Needs the NVML bindings; what they do not tell is None."""
    import torch

    found: dict[str, Any] = {}
    for name, ask in (("clock_mhz", "clock_rate"), ("temperature_c", "temperature"), ("power_mw", "power_draw")):
        found[name] = None
        with contextlib.suppress(Exception):  # ModuleNotFoundError, or an error of the driver's
            found[name] = int(getattr(torch.cuda, ask)())
    return found
