"""Makes `scenarios/published/training.csv` and `pipeline.csv`: the printed figures of full tables, which may be copied.

    python -m scenarios.accuracy.ship PATH/TO/training.csv PATH/TO/pipeline.csv

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
ARTIFACT = "artifact"  # the table of pipeline.csv that comes out of a repository's data file
SHIPPED = Path(__file__).parents[1] / "published" / "training.csv"
SHIPPED_SCHEDULES = SHIPPED.with_name("pipeline.csv")


def ship(source: Path, target: Path = SHIPPED) -> int:
    """Copies the rows of PRINTED with all columns, in order; returns how many."""
    return copy_rows(source, target, lambda row: row["family"] in PRINTED)


def ship_schedules(source: Path, target: Path = SHIPPED_SCHEDULES) -> int:
    """Copies all rows of pipeline.csv but those of the repository artifact; returns how many."""
    return copy_rows(source, target, lambda row: row["table"] != ARTIFACT)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        schedules = Path(name).name == SHIPPED_SCHEDULES.name
        written = ship_schedules(Path(name)) if schedules else ship(Path(name))
        print(f"{written} rows of {name} written")
