"""Quantities as people write them ("80 GB", "64 GiB", "400 Gb/s", "12 us") to SI floats, and back.

GB is 10^9 bytes and GiB 2^30; Gb is bits, GB is bytes. Inside the project everything is SI and plain floats.
"""

from __future__ import annotations

import math
import re

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_COUNTS = {prefix: scale for prefix, scale in _DECIMAL.items() if prefix} | {"B": 1e9}  # B: billion tokens
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _bytes_units() -> dict[str, float]:
    units = {f"{prefix}B": scale for prefix, scale in {**_DECIMAL, **_BINARY}.items()}
    bits = {f"{prefix}b": scale / 8 for prefix, scale in {**_DECIMAL, **_BINARY}.items()}
    return {**units, **bits, "bytes": 1.0, "byte": 1.0}


def _rates(units: dict[str, float]) -> dict[str, float]:
    return {f"{name}/s": scale for name, scale in units.items()} | {
        f"{name}ps": scale for name, scale in units.items() if name.endswith("b") and name
    }


_UNITS: dict[str, dict[str, float]] = {
    "bytes": _bytes_units(),
    "bytes/s": _rates(_bytes_units()),
    "s": _SECONDS,
    "FLOP/s": {f"{p}{name}": s for p, s in _DECIMAL.items() for name in ("FLOP/s", "FLOPS", "OP/s", "OPS")},
    "FLOP": {f"{p}FLOP": s for p, s in _DECIMAL.items()},
    "W": {f"{p}W": s for p, s in _DECIMAL.items()},
    "J": {f"{p}J": s for p, s in _DECIMAL.items()} | {"Wh": 3600.0, "kWh": 3.6e6, "MWh": 3.6e9},
    "USD/h": {"USD/h": 1.0, "USD/hour": 1.0, "$/h": 1.0},
    "tokens": {"": 1.0, "tokens": 1.0, **_COUNTS, **{f"{p} tokens": s for p, s in _COUNTS.items()}},
    "1": {"": 1.0, "%": 0.01},
}

_QUANTITY = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")


_SHOWN = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SHOWN_SECONDS = ((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"))


class UnitError(ValueError):
    """A quantity whose number or unit cannot be read, or is of another dimension."""


def parse(value: str | float | int, dimension: str) -> float:
    """The SI value of `value`; a bare number is SI already.

    `dimension` is one of "bytes", "bytes/s", "s", "FLOP/s", "FLOP", "W", "J", "USD/h", "tokens", "1".
    Raises UnitError naming the value, the dimension and the units allowed.

    >>> parse("80 GB", "bytes"), parse("64 GiB", "bytes"), parse("400 Gb/s", "bytes/s"), parse("12 us", "s")
    (80000000000.0, 68719476736.0, 50000000000.0, 1.2e-05)
    """
    if isinstance(value, bool) or value != value:
        raise UnitError(f"{value!r} is not a quantity in {dimension}")
    if isinstance(value, int | float):
        return float(value)
    units = _UNITS[dimension]
    match = _QUANTITY.fullmatch(str(value))
    if not match:
        raise UnitError(
            f"cannot read {value!r} as a quantity in {dimension}; write a number and a unit, "
            f"such as {_example(dimension)}"
        )
    number, unit = float(match[1].replace("_", "")), match[2]
    if unit and unit not in units:
        owner = next((d for d, table in _UNITS.items() if unit in table), None)
        hint = f"that is a unit of {owner}" if owner else "no such unit"
        raise UnitError(
            f"{value!r} is not a quantity in {dimension} ({hint}); write for example {_example(dimension)}"
        )
    result = number * units[unit] if unit else number
    if not math.isfinite(result):
        raise UnitError(f"{value!r} is too large for a quantity in {dimension}")
    return result


def _example(dimension: str) -> str:
    return {"bytes": "'80 GB' or '64 GiB'", "bytes/s": "'400 Gb/s' or '3.35 TB/s'", "s": "'12 us' or '1.5 h'",
            "FLOP/s": "'989 TFLOP/s'", "FLOP": "'1 PFLOP'", "W": "'700 W'", "J": "'1 kWh'",
            "USD/h": "'2.95 USD/h'", "tokens": "'15T'", "1": "0.4 or '40%'"}[dimension]


def show(value: float, unit: str) -> str:
    """A short human form of three digits: show(3.35e12, "B/s") -> '3.35 TB/s'.

    >>> show(3.35e12, "B/s"), show(1.2e-5, "s"), show(0, "B")
    ('3.35 TB/s', '12 us', '0 B')
    """
    if not math.isfinite(value):
        return f"{value} {unit}"
    rounded = float(f"{value:.3g}")  # first, so that 999.9 GB becomes 1 TB and not 1e+03 GB
    if unit == "s" and abs(rounded) >= 1000:
        return f"{value:,.0f} s"
    scales = _SHOWN_SECONDS if unit == "s" else _SHOWN
    for scale, prefix in scales:
        if abs(rounded) >= scale:
            return f"{rounded / scale:.3g} {prefix}{unit}"
    scale, prefix = scales[-1]
    return f"{rounded / scale:.3g} {prefix}{unit}" if rounded else f"0 {unit}"
