"""Results in words: what each figure is called and how it is written, and what terminal tables are made of.

Pages, comparisons and the tables of runs, schedules and searches use the same vocabulary, so that a number reads the
same everywhere.
A *document* is the plain dictionary of `whatif run --json`; a null value stands with its `reasons[key]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of a document: `better` is -1 where less is better, +1 where more is, 0 where neither."""

    key: str
    label: str
    unit: str
    better: int = 0
    short: str = ""  # for the heading of a column; the label where empty


FIGURES: dict[str, Figure] = {
    figure.key: figure
    for figure in (
        Figure("step_time_s", "Step time", "s", -1),
        Figure("tokens_per_s", "Tokens per second", "tokens/s", 1),
        Figure("tokens_per_s_per_gpu", "Tokens per second and GPU", "tokens/s", 1, "Tokens/s per GPU"),
        Figure("model_flops_per_s_per_gpu", "Model FLOP/s per GPU", "FLOP/s", 1),
        Figure("mfu", "Model FLOPs utilization (MFU)", "%", 1, "MFU"),
        Figure("hfu", "Hardware FLOPs utilization (HFU)", "%"),
        Figure("bubble_fraction", "Pipeline bubble", "%", -1, "Bubble"),
        Figure("peak_memory_bytes", "Peak memory", "B", -1),
        Figure("cost_usd", "Cost per step", "USD", -1),
        Figure("cost_usd_per_million_tokens", "Cost per million tokens", "USD", -1),
        Figure("energy_j", "Energy per step", "J", -1),
        Figure("gpus", "GPUs", "", 0),
    )
}

_LABELS = {
    "gemm": "Matrix multiplication",
    "memory_bound": "Memory-bound operators",
    "quantize": "Quantization",
    "recompute": "Recomputation",
    "launch": "Kernel launch",
    "bubble": "Pipeline bubble",
    "hbm": "HBM",
    "cxl": "CXL",
    "nvme": "NVMe",
}
_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_COUNTS = ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"), (1.0, ""))


def words(key: str) -> str:
    """A key as people say it: words("data_communication") -> 'Data communication'."""
    if key in FIGURES:
        return FIGURES[key].label
    return _LABELS.get(key) or key.replace("_", " ").strip()[:1].upper() + key.replace("_", " ").strip()[1:]


def number(value: float, digits: int = 3) -> str:
    """`value` with about `digits` significant digits, no exponent between 1e-4 and 1e15, thousands apart.

    >>> number(999.7), number(0.01234), number(16384), number(-2.50)
    ('1,000', '0.0123', '16,384', '-2.5')
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scaled(value: float, scales: Sequence[tuple[float, str]], digits: int) -> tuple[str, str]:
    rounded = abs(float(f"{value:.{digits - 1}e}"))
    scale, name = next(((s, n) for s, n in scales if rounded >= s), scales[-1])
    return number(value / scale, digits), name


def amount(value: float, unit: str, digits: int = 3) -> str:
    """A quantity in SI as people write it; `unit` is "s", "%", "USD", "tokens/s", "" or one with prefixes.

    >>> amount(12.5, "s"), amount(0.375, "%"), amount(8e10, "B"), amount(1234.5, "USD"), amount(9.996e11, "B")
    ('12.5 s', '37.5%', '80 GB', '$1,234.50', '1 TB')
    """
    if not math.isfinite(value):
        return str(value)
    if unit == "%":
        return f"{number(100 * value, digits)}%"
    if unit == "USD":
        if abs(value) >= 1e6:
            return "${}{}".format(*_scaled(value, _COUNTS, digits))
        return f"${value:,.2f}" if abs(value) >= 1 else f"${number(value, digits)}"
    if value == 0:
        return f"0 {unit}".strip()
    if unit in ("", "tokens/s"):
        return "{}{} {}".format(*_scaled(value, _COUNTS, digits), unit).strip()
    figure, name = _scaled(value, _SECONDS if unit == "s" else _PREFIXES, digits)
    return f"{figure} {name if unit == 's' else name + unit}"


def in_seconds(value: float) -> str:
    """A time: in_seconds(0.25) -> '250 ms'."""
    return amount(value, "s")


def in_bytes(value: float) -> str:
    """A size: in_bytes(8e10) -> '80 GB'."""
    return amount(value, "B")


def column(values: Sequence[float], unit: str) -> list[str]:
    """Quantities of one kind for one column: all in the unit of the largest, unless they would read as zero.

    >>> column([4.0, 0.9, 0.15], "s"), column([4.0, 0.00002], "s")
    (['4.000 s', '0.900 s', '0.150 s'], ['4.000 s', '20 us'])
    """
    largest = max((abs(value) for value in values), default=0.0)
    if not largest or unit not in ("s", "B"):
        return [amount(value, unit, 4) for value in values]
    rounded, scales = float(f"{largest:.3e}"), _SECONDS if unit == "s" else _PREFIXES
    scale, name = next(((s, n) for s, n in scales if rounded >= s), scales[-1])
    decimals = max(0, 3 - math.floor(math.log10(rounded / scale)))
    least = 5 * 10.0 ** -decimals * scale
    return [f"{value / scale:,.{decimals}f} {name if unit == 's' else name + unit}"
            if value == 0 or abs(value) >= least else amount(value, unit) for value in values]


def change_text(ratio: float | None) -> str:
    """A relative change with its sign: change_text(-0.05) -> '-5.0%'."""
    return "" if ratio is None else f"{100 * ratio:+.1f}%"


def plain(value: Any) -> str:
    """Any value of a document as one line of printable text (control characters become spaces)."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, 6) if isinstance(value, float) else str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() else " " for c in text)


def assumed(row: Mapping[str, Any]) -> str:
    """What an assumption sets: 'plan.virtual = 4'; the key alone where it has no value."""
    value = row.get("value")
    return plain(row.get("key")) if value is None or value == "" else f"{plain(row.get('key'))} = {plain(value)}"


def input_text(value: Any) -> str:
    """An input of a comparison; None stands for an input that a scenario does not set."""
    return "not set" if value is None else plain(value)


def settings(mapping: Mapping[str, Any] | None) -> str:
    """The assignments of a variant on one line: 'plan.virtual = 8, plan.tensor = 4'."""
    return ", ".join(f"{key} = {plain(value)}" for key, value in (mapping or {}).items())


def figure_text(key: str, value: Any, digits: int = 3) -> str:
    """The value of figure `key` as text; a mapping (memory by tier) becomes 'HBM 71 GB, host 1 TB'."""
    unit = FIGURES[key].unit if key in FIGURES else _unit(key)
    if isinstance(value, Mapping):
        return ", ".join(f"{words(name)} {figure_text(key, part, digits)}" for name, part in value.items())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if isinstance(value, int) and unit == "":
        return f"{value:,}"
    return amount(value, unit, digits)


def _unit(key: str) -> str:
    """The unit a name ends with, "" where it says none."""
    endings = (("flops_per_s", "FLOP/s"), ("flops_per_s_per_gpu", "FLOP/s"), ("bytes_per_s", "B/s"),
               ("bytes", "B"), ("tokens_per_s", "tokens/s"), ("tokens_per_s_per_gpu", "tokens/s"),
               ("usd", "USD"), ("fraction", "%"), ("_s", "s"), ("_j", "J"), ("_w", "W"))
    return next((unit for ending, unit in endings if key.endswith(ending)), "")


def reason(document: Document, key: str) -> str:
    """Why `key` has no value."""
    return plain((document.get("reasons") or {}).get(key) or "no reason was given")


def band_text(document: Document) -> str:
    """The error band of the step time in words; "" where there is none."""
    band = document.get("error_band") or {}
    ends, level = band.get("step_time_s"), band.get("level")
    if not ends or level is None:
        return ""
    low, high = (amount(end, "s") for end in ends)
    return f"{level:.0%} of runs like it lie between {low} and {high}"


def band_basis(document: Document) -> str:
    """What the error band rests on; "" where there is none."""
    return plain((document.get("error_band") or {}).get("basis") or "")


def by_size(parts: Mapping[str, float] | None) -> list[tuple[str, float]]:
    """The parts that are not zero, largest first; equal ones by name."""
    return sorted(((k, v) for k, v in (parts or {}).items() if v), key=lambda item: (-abs(item[1]), item[0]))


def variant_change(variant: Mapping[str, Any], key: str) -> float | None:
    """The relative change of figure `key` that a variant states, under the key with or without its unit."""
    change = variant.get("change") or {}
    return change.get(key, change.get(key.removesuffix("_s").removesuffix("_bytes")))


def scalar(value: Any) -> float | None:
    """The one number of a figure: of memory by tier the accelerator's own (HBM), or else the largest."""
    if isinstance(value, Mapping):
        known = [part for part in map(scalar, value.values()) if part is not None]
        return scalar(value["hbm"]) if "hbm" in value else max(known, default=None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def fit_text(document: Document) -> str:
    """Whether the plan fits, where it is tightest, and by how much; "" where the document says nothing."""
    fit = document.get("fit") or {}
    if document.get("fits") is None:
        return ""
    verdict = "Fits" if document["fits"] else "Does not fit"
    if fit.get("needed_bytes") is None or fit.get("capacity_bytes") is None:
        return f"{verdict}."
    free = fit.get("free_bytes", fit["capacity_bytes"] - fit["needed_bytes"])
    where = f"{words(str(fit.get('tier', 'memory')))}" + (
        f" of stage {fit['stage']}" if fit.get("stage") is not None else "")
    rest = f"{amount(free, 'B')} free" if free >= 0 else f"{amount(-free, 'B')} too much"
    return (f"{verdict}: {plain(where)} needs {amount(fit['needed_bytes'], 'B')} of "
            f"{amount(fit['capacity_bytes'], 'B')}, {rest}.")


# Terminal tables -------------------------------------------------------------------------------------


def grid(*columns: tuple[str, str]) -> Table:
    """A table without lines; `columns` are (heading, "left" | "right")."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim",
                  show_header=any(name for name, _ in columns))
    for name, side in columns:
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    return table


def add_row(table: Table, cells: Iterable[Any]) -> None:
    """A row of a terminal table; what is no Text is written as `plain` does, so that markup has no meaning."""
    table.add_row(*[cell if isinstance(cell, Text) else Text(plain(cell)) for cell in cells])


def heading(console: Console, text: str) -> None:
    """An empty line and the name of what follows."""
    console.print()
    console.print(Text(text, style="bold"))


CALIBRATION_HEADS = (("measured", "before", "after", "error before", "error after"),
                     ("constant", "shipped", "moved to", "range", "meaning"))


def calibration_rows(document: Document) -> tuple[list[list[str]], list[list[str]]]:
    """The measured runs before and after calibration, and the constants that moved, under CALIBRATION_HEADS."""
    found = document.get("calibration") or {}
    runs = []
    for row in found.get("rows", ()):
        metric, details = str(row["metric"]), [settings(row.get("set")), plain(row.get("source") or "")]
        value = f"{words(metric)} {figure_text(metric, row['measured'], 4)}"
        about = f" ({'; '.join(part for part in details if part)})" if any(details) else ""
        runs.append([value + about, *(figure_text(metric, row[key], 4) for key in ("before", "after")),
                     *(change_text(row[key]) for key in ("error_before", "error_after"))])
    moved = [[plain(row["name"]), number(row["shipped"], 4), number(row["moved"], 4),
              " to ".join(number(end) for end in row["range"]), plain(row["meaning"])]
             for row in found.get("moved", ())]
    return runs, moved


def signed(seconds: float) -> str:
    """Seconds with a sign: signed(0.25) -> '+250 ms'."""
    return ("+" if seconds > 0 else "") + amount(seconds, "s")
