"""What is wrong with a person's input: where it stands, what is wrong, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written. `line` and `column` count from 1; 0 means the source has no lines."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong, printed as `FILE:LINE:COLUMN: message` on a single line."""

    file: str
    line: int
    column: int
    message: str

    @classmethod
    def at(cls, place: Place, message: str) -> Problem:
        return cls(place.file, place.line, place.column, message)

    def __str__(self) -> str:
        return one_line(f"{Place(self.file, self.line, self.column)}: {self.message}")


class ScenarioError(ValueError):
    """Bad input. Carries every problem found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(dict.fromkeys(problems))
        super().__init__("\n".join(map(str, self.problems)))

    @classmethod
    def at(cls, place: Place, message: str) -> ScenarioError:
        """The error of a single problem."""
        return cls([Problem.at(place, message)])


def one_line(text: str) -> str:
    """The text with line breaks and other control characters escaped, so that it prints on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 60) -> str:
    """A value as it is quoted in a message: `text 'eight'`, `8.0`, `a list`; long ones are cut."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    if len(text) > limit:
        text = text[: limit - 4] + "..." + text[-1]
    return f"text {text}" if isinstance(value, str) else text


def nearest(name: str, known: Sequence[str], listed: int = 12) -> str:
    """A hint that ends a message: the nearest known name, else the names there are.

    >>> nearest("tensr", ["tensor", "pipeline"])
    "did you mean 'tensor'?"
    >>> nearest("zzz", ["tensor", "pipeline"])
    'known: tensor, pipeline'
    """
    folded = {k.lower().replace("_", "-"): k for k in known}
    close = difflib.get_close_matches(name[:80].lower().replace("_", "-"), list(folded), n=1, cutoff=0.6)
    if close:
        return f"did you mean '{folded[close[0]]}'?"
    more = f" and {len(known) - listed} more" if len(known) > listed else ""
    return f"known: {', '.join(known[:listed])}{more}" if known else "none are known"
