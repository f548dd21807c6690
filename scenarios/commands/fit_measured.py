"""`whatif calibrate fit --measured`: a measured folder becomes entries of the user's own catalogue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from costmodel import catalog
from costmodel.calibration import own, own_files
from costmodel.calibration.fit import Fit
from costmodel.calibration.tables import TableError
from costmodel.profiles import Rates
from scenarios.commands.calibrate import place_of
from scenarios.commands.output import cannot_write, print_json
from scenarios.errors import ScenarioError


def fit(measured: str, output: str, as_json: bool) -> None:
    """Fits FOLDER and writes accelerators/, nodes/ and profiles/ of the catalogue `output` (default: the user's own).

    Raises ScenarioError for a folder that cannot be fitted and a catalogue that cannot be written.
    """
    catalogue = Path(output) if output else catalog.own_root()
    try:
        folder = own.read(Path(measured))
        name = str(folder.machine["name"])
        if any(name in catalog.shipped_names(kind) for kind in ("accelerators", "nodes")):
            raise TableError(f"{Path(measured) / 'machine.yaml'}:1: name {name!r} is one that comes with Whatif; "
                             "another one is needed")
        print(f"fitting {name}: {folder.source}", file=sys.stderr)
        rates = own.best_rates(folder)
        content, fits = own_files.files(folder, rates)
    except TableError as error:
        raise ScenarioError.at(*place_of(str(error))) from None
    try:
        written = own_files.write(catalogue, content)
    except OSError as error:
        raise cannot_write("-o", str(catalogue), error) from None
    if as_json:
        print_json(_document(folder, rates, fits, written))
    else:
        _show(folder, rates, fits, catalogue)


def _document(folder: own.Folder, rates: Rates, fits: Sequence[Fit], written: Sequence[Path]) -> dict[str, object]:
    return {
        "name": folder.machine["name"], "source": folder.source, "machine": folder.machine["description"],
        "peak_flops_per_s": dict(rates.flops_per_s), "memory_bandwidth_bytes_per_s": rates.bytes_per_s,
        "surfaces": {one.samples.name: {"rows": one.in_sample.rows, "held_out": asdict(one.held_out),
                                        "in_sample": asdict(one.in_sample)} for one in fits},
        "files": [str(path) for path in written],
    }


def _show(folder: own.Folder, rates: Rates, fits: Sequence[Fit], catalogue: Path) -> None:
    name = folder.machine["name"]
    print(f"{name}: {folder.source}")
    peaks = ", ".join(f"{kind} {rate / 1e9:,.1f} GFLOP/s" for kind, rate in rates.flops_per_s.items())
    print(f"best rates: {peaks}, memory {rates.bytes_per_s / 1e9:,.1f} GB/s")
    for one in fits:
        print(f"  {one.samples.name:44} {one.in_sample.rows:5} rows, held out {one.held_out.mape:6.1%} mean, "
              f"{one.held_out.median:6.1%} median; in sample {one.in_sample.mape:6.1%}")
    print(f"catalogue: {catalogue}")
    if catalogue.resolve() != catalog.own_root().resolve():
        print(f"to use it: WHATIF_CATALOG={catalogue}")
    print(f"in a scenario: cluster: {{node: {name}, nodes: 1}}")


