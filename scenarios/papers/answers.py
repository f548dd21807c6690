"""What an adapter gives back for a claim: simulated numbers, or why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class NotMapped(ValueError):
    """No adapter can read the row; the message names what the project would need. Counts against coverage."""


class NotCheckable(ValueError):
    """The row itself, or what was published with it, leaves open what decides it; the message names it."""


@dataclass(frozen=True)
class Span:
    """A simulated number: one value, or the lowest and highest over what a row leaves open."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Any) -> Span:
        """The span of one number or of several."""
        numbers = [float(value) for value in values] if isinstance(values, Iterable) else [float(values)]
        return cls(min(numbers), max(numbers))

    @property
    def is_point(self) -> bool:
        return self.high - self.low <= 1e-12 * abs(self.high)

    @property
    def plain(self) -> float | list[float]:
        return self.high if self.is_point else [self.low, self.high]


@dataclass(frozen=True)
class Answer:
    """Simulated system value, baseline and ratio of a claim, each in the unit and sense the row prints it in.

    saving: what the system takes less than the baseline, where the simulated value starts from the printed baseline.
    closed_form: the numbers follow from counting alone, so that nothing but rounding may differ.
    open: what the row leaves open and a span goes over.
    missing: which term the simulator lacks where a figure does not come out: by its name, "" for any other.
    how: what was computed, with its assumptions.
    """

    value: Span | None = None
    baseline: Span | None = None
    ratio: Span | None = None
    saving: Span | None = None
    closed_form: bool = False
    open: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)
    how: str = ""
