"""A folder that `whatif calibrate measure` made becomes surfaces: through the same fits as the shipped profiles.

The data sheet of a machine that was only measured are its best measured rates, so that no law is beaten. Grids are as
fine as the points lie. What the surfaces are called and what their laws are stands in `costmodel.step_kernels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from costmodel import collectives, step_kernels
from costmodel.calibration.fit import Fit, Samples, fit
from costmodel.calibration.tables import TableError, read_table, shape_numbers
from costmodel.operators import attended_pairs
from costmodel.profiles import WIDTH, Rates, gemm_law_s

DESCRIPTION = ("name", "device", "date", "description", "threads", "clock")
OCTAVE = 1.0
ATTENTION_COLUMNS = ("batch", "heads", "kv_heads", "head_dim", "sequence", "seconds")
GEMM_COLUMNS = ("m", "n", "k", "seconds")


@dataclass(frozen=True)
class Folder:
    """What was measured: the machine, and the tables that there are (data frames, `seconds` above 0)."""

    path: Path
    machine: Mapping[str, Any]
    gemm: Any
    operators: Any | None
    attention: Any | None
    copies: Any | None
    storage: Any | None
    collectives: Any | None

    @property
    def source(self) -> str:
        about = self.machine["description"]
        part = about["gpu"]["name"] if self.machine["device"] == "cuda" else about["cpu"]
        return (f"measured here on {self.machine['date']}: {part}, {self.machine['device']}, "
                f"{self.machine['threads']} thread, torch {about['torch']}")


def read(path: Path) -> Folder:
    """The tables of a folder. Raises TableError with file and line."""
    if not path.is_dir():
        hint = f"; {path}.partial is not finished" if path.with_name(path.name + ".partial").is_dir() else ""
        raise TableError(f"{path}: is not a folder; `whatif calibrate measure` makes one{hint}")

    def table(name: str, text: tuple[str, ...], numbers: tuple[str, ...]) -> Any | None:
        file = path / f"{name}.csv"
        return read_table(file, text, numbers) if file.exists() else None

    gemm = read_table(path / "gemm.csv", ("type",), GEMM_COLUMNS)
    return Folder(
        path, _machine(path / "machine.yaml"), gemm,
        table("operators", ("operator", "direction", "type"), ("rows", "width", "size_bytes", "seconds")),
        table("attention", ("type", "direction"), ATTENTION_COLUMNS),
        table("copies", ("kind",), ("size_bytes", "seconds")),
        table("storage", ("kind",), ("size_bytes", "seconds")),
        table("collectives", ("collective", "backend"), ("ranks", "size_bytes", "seconds", "low_s")),
    )


def _machine(path: Path) -> Mapping[str, Any]:
    try:
        found = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise TableError(f"{path}:{mark.line + 1 if mark else 1}: is not YAML") from None
    missing = [key for key in DESCRIPTION if not isinstance(found, dict) or key not in found]
    if missing:
        raise TableError(f"{path}:1: has no {missing[0]!r}; `whatif calibrate measure` writes {', '.join(DESCRIPTION)}")
    about = found["description"]
    wanted = ("torch", "cpu", "memory_bytes", *(("gpu",) if found["device"] == "cuda" else ()))
    if missing := [key for key in wanted if not isinstance(about, dict) or key not in about]:
        raise TableError(f"{path}:1: description has no {missing[0]!r}")
    return dict(found)


def best_rates(folder: Folder) -> Rates:
    """The highest FLOP/s of each type and bytes/s that any row reached. Raises TableError where no row says bytes."""
    flops = {}
    for kind, part in folder.gemm.groupby("type"):
        if kind not in WIDTH:
            raise TableError(f"{folder.path / 'gemm.csv'}:{int(part.index[0]) + 2}: type is {str(kind)[:20]!r}; "
                             f"{', '.join(WIDTH)} are known")
        flops[str(kind)] = float((2.0 * part["m"] * part["n"] * part["k"] / part["seconds"]).max())
    if folder.attention is not None:
        for (kind, direction), part in folder.attention.groupby(["type", "direction"]):
            if kind in flops:
                flops[kind] = max(flops[kind], float((_attention_flops(part, direction) / part["seconds"]).max()))
    moved = [float((table["size_bytes"] * times / table["seconds"]).max())
             for table, times in ((folder.operators, 1.0), (folder.copies, 2.0)) if table is not None]
    if not moved:
        raise TableError(f"{folder.path}: has neither operators.csv nor copies.csv; they say how fast memory is")
    return Rates(flops, max(moved))


def best_link_bytes_per_s(folder: Folder) -> float | None:
    """The highest rate at which a rank sent in any collective; None without any."""
    table = folder.collectives
    if table is None:
        return None
    return max(float((collectives.sent_bytes(str(name), part["size_bytes"].to_numpy(), part["ranks"].to_numpy())
                      / part["low_s"].to_numpy()).max()) for name, part in table.groupby("collective"))


def _attention_flops(part: Any, direction: Any) -> Any:
    forward = 4.0 * attended_pairs(part["sequence"].to_numpy(), None) * part["batch"] * part["heads"] * part["head_dim"]
    return forward.to_numpy() * (step_kernels.BACKWARD if direction == "backward" else 1.0)


def samples(folder: Folder, rates: Rates) -> Iterator[Samples]:
    """The rows of every surface."""
    for kind, part in folder.gemm.groupby("type"):
        m, n, k = (part[column].to_numpy() for column in ("m", "n", "k"))
        law = gemm_law_s(rates, str(kind), m, n, k)
        yield Samples(f"gemm/{kind}", folder.source, (m, n, k), law, part["seconds"].to_numpy(),
                      shape_numbers(part, ("m", "n", "k")), (OCTAVE, OCTAVE, OCTAVE), robust=True)
    yield from _attention(folder, rates)
    yield from _moved(folder, rates)
    yield from _collectives(folder)


def _attention(folder: Folder, rates: Rates) -> Iterator[Samples]:
    if folder.attention is None:
        return
    for (kind, direction), part in folder.attention.groupby(["type", "direction"]):
        if kind not in rates.flops_per_s:
            continue
        law = step_kernels.attention_law_s(rates, kind, _attention_flops(part, direction))
        coordinates = (part["sequence"].to_numpy(), (part["batch"] * part["heads"]).to_numpy(),
                       part["head_dim"].to_numpy())
        yield Samples(f"attend/{kind}/{direction}", folder.source, coordinates, law, part["seconds"].to_numpy(),
                      shape_numbers(part, ("batch", "heads", "head_dim", "sequence")), (OCTAVE, OCTAVE, OCTAVE),
                      robust=True, floored=False)


def _moved(folder: Folder, rates: Rates) -> Iterator[Samples]:
    """Operators, optimizer and copies: a bandwidth that depends on how many bytes are moved."""
    if folder.operators is not None:
        for (name, direction, kind), part in folder.operators.groupby(["operator", "direction", "type"]):
            if name == "optimizer":
                one = part.assign(size_bytes=part["size_bytes"] / part["rows"], seconds=part["seconds"] / part["rows"])
                yield _by_bytes("optimizer", folder, one, rates, 1.0)
            else:
                yield _by_bytes(f"operator/{name}/{direction}/{kind}", folder, part, rates, 1.0)
    if folder.copies is not None:
        for kind, part in folder.copies.groupby("kind"):
            yield _by_bytes(f"copy/{kind}", folder, part, rates, 2.0)


def _by_bytes(name: str, folder: Folder, part: Any, rates: Rates, moved: float) -> Samples:
    size = part["size_bytes"].to_numpy(dtype=float)
    law = moved * size / rates.bytes_per_s
    return Samples(name, folder.source, (size,), law, part["seconds"].to_numpy(),
                   shape_numbers(part, ("size_bytes",)), (OCTAVE,), robust=True, floored=False)


def _collectives(folder: Folder) -> Iterator[Samples]:
    """By size and ranks; of gloo the low quantile, since its median is the scheduler's time slice."""
    link = best_link_bytes_per_s(folder)
    if folder.collectives is None or link is None:
        return
    for (name, backend), part in folder.collectives.groupby(["collective", "backend"]):
        size, ranks = part["size_bytes"].to_numpy(dtype=float), part["ranks"].to_numpy(dtype=float)
        law = step_kernels.collective_law_s(name, size, ranks, link)
        seconds = part["low_s" if backend == "gloo" else "seconds"].to_numpy()
        yield Samples(f"collective/{name}/{backend}", folder.source, (size, ranks), law, seconds,
                      shape_numbers(part, ("size_bytes",)), (2.0, OCTAVE), robust=True)


def fits(folder: Folder, rates: Rates) -> tuple[Fit, ...]:
    """Every surface of the folder with its error on shapes held out."""
    return tuple(fit(one) for one in samples(folder, rates))
