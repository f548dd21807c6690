"""Makes `scenarios/published/training.csv`: the printed figures of a full table, which may be copied.

    python -m scenarios.accuracy.ship PATH/TO/training.csv

Rows out of data files of other repositories (logs, golden values, artifacts) are left out: they stay where they
are and are read by `whatif accuracy PATH/TO/training.csv`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scenarios.tables import copy_rows

PRINTED = ("MPT", "NeMo-Bridge-dense", "NeMo-Bridge-finetune", "NeMo-Bridge-moe", "NeMo-longseq",
           "Megatron-Korthikanti", "Megatron-README", "Megatron-SC21", "Korthikanti-memory", "InternEvo",
           "InternEvo-memory", "Llama3-paper", "MaxText")
SHIPPED = Path(__file__).parents[1] / "published" / "training.csv"


def ship(source: Path, target: Path = SHIPPED) -> int:
    """Copies the rows of PRINTED with all columns, in order; returns how many."""
    return copy_rows(source, target, lambda row: row["family"] in PRINTED)


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]))} rows written to {SHIPPED.name}")
