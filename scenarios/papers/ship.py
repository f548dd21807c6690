"""Makes `scenarios/published/systems_training.csv`: the printed claims of a full table, which may be copied.

    python -m scenarios.papers.ship PATH/TO/systems_training.csv

Rows out of data files of other repositories (artifacts, scheduler summaries) are left out: they stay where they are
and are read by `whatif reproduce --claims PATH/TO/systems_training.csv`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scenarios.tables import copy_rows

DATA_FILE = re.compile(r"\S+\.(csv|txt|json|pkl)\b")
SHIPPED = Path(__file__).parents[1] / "published" / "systems_training.csv"


def ship(source: Path, target: Path = SHIPPED) -> int:
    """Copies the rows whose locator names no data file, with all columns, in order; returns how many."""
    return copy_rows(source, target, lambda row: not DATA_FILE.search(row["source_locator"]))


if __name__ == "__main__":
    print(f"{ship(Path(sys.argv[1]))} rows written to {SHIPPED.name}")
