"""A rank for the tests of launching: does what its job says, without torch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from costmodel.calibration.ranks import rank_main


def work(job: Mapping[str, Any]) -> Any:
    rank = int(os.environ["RANK"])
    print(f"rank {rank} begins", flush=True)
    if rank == job.get("dies"):
        print("the disk of this rank is on fire", file=sys.stderr, flush=True)
        os._exit(7)
    if rank == job.get("raises"):
        raise ValueError("no such layout")
    if rank in job.get("hangs", []):
        time.sleep(600)
    return {"rank": rank, "world": int(os.environ["WORLD_SIZE"]), "threads": os.environ["OMP_NUM_THREADS"],
            "echo": job["echo"]}


if __name__ == "__main__":
    rank_main(work)
