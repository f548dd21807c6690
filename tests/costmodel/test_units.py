"""Quantities: published conversions, refusals, and that what is shown can be read back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.units import UnitError, parse, show


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("80 GB", "bytes", 80 * 10**9),
        ("80 GiB", "bytes", 80 * 1024**3),
        ("80GiB", "bytes", 80 * 1024**3),
        ("1_024 MiB", "bytes", 1024**3),
        ("400 Gb/s", "bytes/s", 50e9),
        ("400 Gbps", "bytes/s", 50e9),
        ("3.35 TB/s", "bytes/s", 3.35e12),
        ("12 us", "s", 12e-6),
        ("12 µs", "s", 12e-6),
        ("1.5 h", "s", 5400),
        ("2 d", "s", 172800),
        ("989 TFLOP/s", "FLOP/s", 989e12),
        ("3958 TOPS", "FLOP/s", 3958e12),
        ("10.2 kW", "W", 10200),
        ("1 kWh", "J", 3.6e6),
        ("2.95 USD/h", "USD/h", 2.95),
        ("15T", "tokens", 15e12),
        ("300B tokens", "tokens", 300e9),
        ("300 B", "tokens", 300e9),
        ("40%", "1", 0.4),
        (" -1.5e3 ", "s", -1500),
        (7, "bytes", 7),
        ("7", "bytes", 7),
    ],
)
def test_reads_quantities(text: str | int, dimension: str, value: float) -> None:
    assert parse(text, dimension) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "dimension", "said"),
    [
        ("80 GB", "bytes/s", "that is a unit of bytes"),
        ("80 GB/s", "bytes", "that is a unit of bytes/s"),
        ("3 parsecs", "s", "no such unit"),
        ("10 mB", "bytes", "no such unit"),
        ("fast", "bytes/s", "write a number and a unit"),
        ("", "s", "write a number and a unit"),
        ("1.2.3 s", "s", "s"),
        ("1e400 B", "bytes", "too large"),
        ("nan", "s", "write a number and a unit"),
        (float("nan"), "s", "nan"),
        (True, "bytes", "True"),
    ],
)
def test_refuses_with_the_value_and_a_hint(text: str | float, dimension: str, said: str) -> None:
    with pytest.raises(UnitError, match=said) as caught:
        parse(text, dimension)
    assert repr(text) in str(caught.value)


UNITS = [("B", "bytes"), ("B/s", "bytes/s"), ("W", "W"), ("FLOP/s", "FLOP/s")]


@given(st.floats(1e-3, 1e20), st.sampled_from(UNITS))
def test_what_is_shown_reads_back(value: float, unit: tuple[str, str]) -> None:
    assert parse(show(value, unit[0]), unit[1]) == pytest.approx(value, rel=0.0051)


@given(st.floats(1e-9, 999))
def test_seconds_read_back_and_have_no_exponent(value: float) -> None:
    text = show(value, "s")
    assert parse(text, "s") == pytest.approx(value, rel=0.0051)
    assert "e" not in text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999.96e9, "B", "1 TB"),
        (85899345920, "B", "85.9 GB"),
        (0.9999, "s", "1 s"),
        (86400, "s", "86,400 s"),
        (-3e9, "B", "-3 GB"),
        (0, "s", "0 s"),
        (math.nan, "s", "nan s"),
        (math.inf, "B", "inf B"),
    ],
)
def test_shows(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text
