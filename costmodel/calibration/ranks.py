"""Work done by real ranks: one process each under torchrun, results back as JSON, nothing left behind.

`launch` is called by whatever wants ranks and does not import torch; `rank_main` is what the worker module calls in
each of them. A rank that hangs or dies ends all of them, with its last log lines in the error.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TORCH_MISSING = "this needs torch, which is not installed: pip install 'whatif-planner[torch]'"
_MARK = "WHATIF_RANKS_FOLDER"  # in the environment of every process that belongs to a launch
_POLL_S = 0.1
_LOG_LINES = 12  # of a rank that failed, in the error
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TERMINATION_S = 2  # grace that torchrun gives to the other ranks once one has died
_KILL_S = 10.0  # a killed process that still lives then hangs in the kernel, and nobody can end it


class RanksError(RuntimeError):
    """Ranks did not finish: which rank, why, and its last log lines."""


def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def launch(module: str, job: Mapping[str, Any], ranks: int, *, timeout_s: float, threads: int = 1,
           tell: Callable[[str], None] | None = None) -> list[Any]:
    """What each rank of `python -m module` made of `job`, in rank order.

    `module` calls `rank_main`. `job` and the results are JSON. `tell` gets the lines that rank 0 prints, as they come.
    `threads` are those of a rank. Whatever happens (also an interrupt), no process and no file of the launch is left.
    Raises RanksError without torch, when a rank dies, and when `timeout_s` is over.
    """
    if not has_torch():
        raise RanksError(TORCH_MISSING)
    folder = Path(tempfile.mkdtemp(prefix="whatif-ranks-"))
    try:
        (folder / "job.json").write_text(json.dumps(job))
        with (folder / "torchrun.log").open("wb") as log:
            process = subprocess.Popen(_command(module, folder, ranks), env=_environment(folder, threads),
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(process, folder, ranks, timeout_s, tell)
        finally:
            _kill(process, folder)
        return _results(folder, ranks)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rank_main(body: Callable[[Mapping[str, Any]], Any]) -> None:
    """What a worker module does under `if __name__ == "__main__"`: body(job), its result written for `launch`.

    RANK, WORLD_SIZE and LOCAL_RANK are in the environment as torchrun sets them; `process_group` makes the group.
    """
    _die_with_parent()
    path = Path(sys.argv[1])
    result = body(json.loads(path.read_text()))
    final = _result_path(path.parent, int(os.environ["RANK"]))
    temporary = final.with_suffix(".partial")
    temporary.write_text(json.dumps(result))
    temporary.replace(final)


def keep_freed_memory() -> None:
    """Has glibc keep what is freed for what is made next, as the allocator of a GPU does: no page faults.

    Elsewhere nothing changes. (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of mallopt(3).)
    """
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        change = ctypes.CDLL(None).mallopt
        change(-1, 2**31 - 1)
        change(-3, 1 << 30)


@contextlib.contextmanager
def process_group(device: str, timeout_s: float = 300.0) -> Iterator[Any]:
    """The default process group of all ranks, gloo on cpu and nccl on cuda; gives the torch.device of this rank."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    keep_freed_memory()
    own = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s),
                            device_id=own if device == "cuda" else None)
    try:
        yield own
    finally:
        dist.destroy_process_group()


def _command(module: str, folder: Path, ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
            "--log-dir", str(folder / "logs"), "--redirects", "3", "--shutdown-timeout", str(_TERMINATION_S),
            "-m", module, str(folder / "job.json")]


def _environment(folder: Path, threads: int) -> dict[str, str]:
    """The caller's environment, its import path, threads for every library that makes some, and the mark."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    own = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONUNBUFFERED": "1",
           "TMPDIR": str(folder),  # what a killed rank was writing goes with the folder
           _MARK: str(folder), **counts}
    if sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        own["GLOO_SOCKET_IFNAME"] = "lo"  # all ranks are here; a host name may not resolve
    return {**os.environ, **own}


def _wait(process: subprocess.Popen[bytes], folder: Path, ranks: int, timeout_s: float,
          tell: Callable[[str], None] | None) -> None:
    """Until torchrun ends; raises RanksError when it failed or took too long."""
    deadline = time.monotonic() + timeout_s
    told = 0
    while process.poll() is None:
        if time.monotonic() > deadline:
            late = [rank for rank in range(ranks) if not _result_path(folder, rank).exists()]
            raise RanksError(f"no end after {timeout_s:g} s, so all ranks were killed; "
                             + "; ".join(_log_of(folder, rank) for rank in late[:2]))
        told = _tell(folder, told, tell)
        time.sleep(_POLL_S)
    _tell(folder, told, tell)
    if process.returncode:
        raise RanksError(_cause(folder, ranks, process.returncode))


def _tell(folder: Path, told: int, tell: Callable[[str], None] | None) -> int:
    """Hands on the whole lines that rank 0 printed behind the first `told` characters; how many were told now."""
    if tell is None:
        return told
    new = _log_text(folder, 0, "stdout")[told:]
    whole = new[: new.rfind("\n") + 1]
    for line in whole.splitlines():
        tell(line)
    return told + len(whole)


def _cause(folder: Path, ranks: int, code: int) -> str:
    """Which rank failed first, as torchrun saw it, and what it last said."""
    log = (folder / "torchrun.log").read_text(errors="replace")
    root = log[log.find("Root Cause"):] if "Root Cause" in log else ""
    rank = re.search(r"\brank\s*:\s*(\d+)", root)
    exit_code = re.search(r"exitcode\s*:\s*(-?\d+)", root)
    if rank is None or int(rank.group(1)) >= ranks:
        return f"torchrun ended with code {code}: " + _last_lines(log)
    how = exit_code.group(1) if exit_code else str(code)
    ended = f"was killed by signal {-int(how)}" if how.startswith("-") else f"ended with code {how}"
    return f"rank {rank.group(1)} {ended}, so all ranks were stopped; {_log_of(folder, int(rank.group(1)))}"


def _log_of(folder: Path, rank: int) -> str:
    said = _last_lines(_log_text(folder, rank, "stdout") + _log_text(folder, rank, "stderr"))
    return f"rank {rank} said nothing" if not said else f"last lines of rank {rank}:\n{said}"


def _log_text(folder: Path, rank: int, stream: str) -> str:
    """What a rank wrote: torchrun keeps it in logs/RUN/attempt_0/RANK/."""
    paths = (folder / "logs").glob(f"*/attempt_0/{rank}/{stream}.log")
    return "".join(path.read_text(errors="replace") for path in paths)


def _last_lines(text: str) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-_LOG_LINES:])


def _result_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.json"


def _results(folder: Path, ranks: int) -> list[Any]:
    for rank in range(ranks):
        if not _result_path(folder, rank).exists():
            raise RanksError(f"rank {rank} ended without a result; {_log_of(folder, rank)}")
    return [json.loads(_result_path(folder, rank).read_text()) for rank in range(ranks)]


def _kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Ends torchrun and its ranks, which lie in sessions of their own: whatever carries the mark of this launch."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL if sys.platform == "linux" else signal.SIGTERM)
    if sys.platform == "linux":
        deadline = time.monotonic() + _KILL_S
        while (left := marked(folder)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)
    process.wait()


def marked(folder: Path) -> list[int]:
    """Living processes that belong to the launch in `folder` (Linux)."""
    mark = f"{_MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's; a zombie's environment is empty
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _die_with_parent() -> None:
    """Lets the kernel end this rank when torchrun dies, however that happens (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
