"""An asynchronous distributed checkpoint of a real run: how long training stood still, and when it was on disk."""

# mypy checks without torch: its modules are Any there
from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn


def saved(parts: Mapping[int, nn.Module], optimizer: Any) -> dict[str, Any]:
    """Parameters (by stage) and optimizer states of all ranks to a temporary folder, which is gone afterwards.

    `stall_s`: until torch gives the rank back; `finish_s`: until all is written; `size_bytes`: all files (rank 0's
    count, the same on every rank).
    """
    from torch.distributed.checkpoint import async_save

    folder = [tempfile.mkdtemp(prefix="whatif-checkpoint-") if dist.get_rank() == 0 else ""]
    dist.broadcast_object_list(folder)
    gloo = dist.new_group(backend="gloo")  # written in a thread, which needs a group of its own
    try:
        state = states(parts, optimizer)
        dist.barrier()
        begin_s = time.perf_counter()
        writing = async_save(state, checkpoint_id=folder[0], process_group=gloo)
        stall_s = time.perf_counter() - begin_s
        writing.result()
        finish_s = time.perf_counter() - begin_s
        dist.barrier()
        size_bytes = sum(path.stat().st_size for path in Path(folder[0]).rglob("*") if path.is_file())
        dist.barrier()
        return {"stall_s": stall_s, "finish_s": finish_s, "size_bytes": size_bytes}
    finally:
        if dist.get_rank() == 0:
            shutil.rmtree(folder[0], ignore_errors=True)


def states(parts: Mapping[int, nn.Module], optimizer: Any) -> dict[str, Any]:
    """Parameters and the optimizer's tensors by stage and name: one name is one tensor of the whole run, of which ranks
    hold shards or copies (torch writes a copy once). Experts of a rank carry its number."""
    found: dict[str, Any] = {}
    for stage, part in parts.items():
        for name, parameter in part.named_parameters():
            owner = f" of rank {dist.get_rank()}" if ".experts.experts." in name else ""
            key = f"stage {stage} {name}{owner}"
            found[key] = parameter.detach()
            found |= {f"{key} {moment}": value for moment, value in optimizer.state[parameter].items()}
    return found
