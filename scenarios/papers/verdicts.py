"""From a claim and a simulated answer to a verdict. Every rule and tolerance of `whatif reproduce` stands here.

Kinds, derived from the row:
    exact      a closed form (the locator says derived, computed, a formula, the authors' artifact; or volumes in P)
    range      an interval, or an "up to", "over", "or more", <, >: the end of a range, not a point
    direction  a figure read only in an abstract or a summary, or marked ~: sign and order of magnitude
    measured   everything else

Tolerances:
    exact      half a unit of the last printed digit, at least 0.1 % and at most 2 %, on every figure of the row
    measured   a value within 10 %; a ratio within a quarter of its own logarithm, at least 2 %
    range      an interval is met where the simulated span touches it (ends widened by 10 %); an upper bound where
               at least half of its logarithm is reached and it is not exceeded by more than 10 % throughout
    direction  same side of 1, and the logarithm of the gain within a factor of 3
A row that prints a system value, a baseline and a ratio makes three statements, and a fourth: that the ratio is the
quotient of the two. A verdict holds for all of them. A span over what the row leaves open that is wider than a
factor of 2 cannot check a measured value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from scenarios.papers.answers import Answer, Span
from scenarios.papers.claims import ABOUT, AT_LEAST, AT_MOST, INTERVAL, POINT, Claim, Figure

EXACT, MEASURED, RANGE, DIRECTION = "exact", "measured", "range", "direction"
KINDS = (EXACT, MEASURED, RANGE, DIRECTION)
REPRODUCED, IN_RANGE, DIRECTION_ONLY = "reproduced", "range", "direction only"
NOT_REPRODUCED, NOT_CHECKABLE, NOT_MAPPED = "not reproduced", "not checkable", "not mapped"
VERDICTS = (REPRODUCED, IN_RANGE, DIRECTION_ONLY, NOT_REPRODUCED, NOT_CHECKABLE, NOT_MAPPED)

EXACT_LEAST, EXACT_MOST = 1e-3, 2e-2
VALUE_TOLERANCE = 0.10
RATIO_SHARE, RATIO_LEAST = 0.25, math.log(1.02)
SIDE = math.log(1.005)  # a gain below half a per cent has no sign
REACHED = 0.5  # share of the logarithm of an upper bound
ORDER = 3.0
WIDEST = 2.0
UNKNOWN_TERM = "not known; no term of the simulator explains the difference"
_CLOSED = re.compile(r"\bderived\b|\bformula|closed form|\brecomputed\b|artifact|\b1/\d+\b|\bcounted\b")
_SUMMARY = re.compile(r"abstract|TL;DR|author-page|citation|excerpt|headline", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """One number of a row beside the simulated one."""

    name: str  # value | ratio | baseline | saving
    claimed: Figure
    simulated: Span

    @property
    def error(self) -> float | None:
        """simulated / claimed - 1 of two points."""
        ends = (self.claimed.sort == INTERVAL, not self.simulated.is_point, not self.claimed.high)
        return None if any(ends) else self.simulated.high / self.claimed.high - 1


@dataclass(frozen=True)
class Verdict:
    """`lead` is the statement shown for the row: the system's value, else its ratio, else the baseline."""

    kind: str
    verdict: str
    reason: str
    statements: tuple[Statement, ...] = ()

    @property
    def lead(self) -> Statement | None:
        return self.statements[0] if self.statements else None


def kind_of(claim: Claim) -> str:
    """The kind of a claim, from its row alone."""
    figures = [one for one in (claim.value_figure, claim.ratio_figure) if one is not None]
    if _CLOSED.search(claim.source_locator) or re.fullmatch(r"[\d.]+P", claim.system_value):
        return EXACT
    if any(one.sort in (INTERVAL, AT_MOST, AT_LEAST) for one in figures):
        return RANGE
    printed = claim.value_figure is not None
    if any(one.sort == ABOUT for one in figures) or (not printed and _SUMMARY.search(claim.source_locator)):
        return DIRECTION
    return MEASURED


def statements(claim: Claim, answer: Answer) -> tuple[Statement, ...]:
    """Every figure of the row that the answer has a number for, the system's value first."""
    pairs = (("value", claim.value_figure, answer.value), ("ratio", claim.ratio_figure, answer.ratio),
             ("baseline", claim.baseline_figure, answer.baseline))
    found = [Statement(name, figure, span) for name, figure, span in pairs if figure is not None and span is not None]
    value, baseline = claim.value_figure, claim.baseline_figure
    if answer.saving is not None and value is not None and baseline is not None:
        saved = baseline.high - value.high
        found.append(Statement("saving", Figure(saved, saved, POINT, value.step), answer.saving))
    return tuple(found)


def contradiction(claim: Claim) -> str:
    """What is wrong inside a row: a ratio that is no quotient of its own values, either way. "" where nothing is."""
    value, baseline, ratio = claim.value_figure, claim.baseline_figure, claim.ratio_figure
    if value is None or baseline is None or ratio is None:
        return ""
    if any(one.sort != POINT or one.high <= 0 for one in (value, baseline, ratio)):
        return ""
    quotient = value.high / baseline.high
    slack = 0.02 + sum(one.step / one.high / 2 for one in (value, baseline, ratio))
    if min(abs(math.log(ratio.high / quotient)), abs(math.log(ratio.high * quotient))) <= slack:
        return ""
    return (f"the row contradicts itself: ratio {claim.ratio}, but {claim.system_value} and {claim.baseline_value} "
            f"make {quotient:.4g} or {1 / quotient:.4g}")


def judge(claim: Claim, answer: Answer) -> Verdict:
    """The verdict on a claim that an adapter has answered."""
    kind, found = kind_of(claim), statements(claim, answer)
    if answer.closed_form and kind in (MEASURED, DIRECTION):
        kind = EXACT
    if not found:
        printed = "no figure to compare with" if claim.system_value or claim.ratio else "no figure at all"
        return Verdict(kind, NOT_CHECKABLE, f"the row prints {printed} for {claim.metric}")
    if told := contradiction(claim):
        return Verdict(kind, NOT_REPRODUCED, told, found)
    verdict = {EXACT: _exact, MEASURED: _measured, RANGE: _range, DIRECTION: _direction}[kind](found)
    off = [one for one in found if not _comes_out(kind, one)] or list(found)
    return Verdict(kind, verdict, _reason(verdict, off, answer), found)


def _comes_out(kind: str, one: Statement) -> bool:
    if kind == EXACT:
        return _equal(one)
    if not one.simulated.is_point:
        return _touches(one)
    return _ratio_close(one) if one.name == "ratio" else _close(one)


def _exact(found: Sequence[Statement]) -> str:
    return REPRODUCED if all(_equal(one) for one in found) else NOT_REPRODUCED


def _equal(one: Statement) -> bool:
    claimed = one.claimed.high
    tolerance = min(max(one.claimed.step / 2 / abs(claimed), EXACT_LEAST), EXACT_MOST) if claimed else EXACT_LEAST
    return one.claimed.low * (1 - tolerance) <= one.simulated.low and one.simulated.high <= claimed * (1 + tolerance)


def _measured(found: Sequence[Statement]) -> str:
    """Values and ratio must come out; where only the sign of the gain does, it is the direction only."""
    if any(not one.simulated.is_point for one in found):
        return _spanned(found)
    ratios = [one for one in found if one.name == "ratio"]
    values = [one for one in found if one.name != "ratio"]
    if all(_close(one) for one in values) and all(_ratio_close(one) for one in ratios):
        return REPRODUCED
    return DIRECTION_ONLY if ratios and all(_same_side(one) for one in ratios) else NOT_REPRODUCED


def _spanned(found: Sequence[Statement]) -> str:
    if any(one.simulated.low <= 0 or one.simulated.high / one.simulated.low > WIDEST for one in found):
        return NOT_CHECKABLE
    return IN_RANGE if all(_touches(one) for one in found) else NOT_REPRODUCED


def _touches(one: Statement) -> bool:
    low, high = one.claimed.low * (1 - VALUE_TOLERANCE), one.claimed.high * (1 + VALUE_TOLERANCE)
    return one.simulated.high >= low and one.simulated.low <= high


def _close(one: Statement) -> bool:
    return abs(one.simulated.high / one.claimed.high - 1) <= VALUE_TOLERANCE if one.claimed.high else False


def _log(ratio: float) -> float:
    """The logarithm; far below every other where there is none, so that it never comes out."""
    return math.log(max(ratio, 1e-300))


def _ratio_close(one: Statement) -> bool:
    claimed, simulated = _log(one.claimed.high), _log(one.simulated.high)
    return abs(simulated - claimed) <= max(RATIO_LEAST, RATIO_SHARE * abs(claimed))


def _same_side(one: Statement) -> bool:
    claimed, simulated = _log(one.claimed.high), _log(one.simulated.high)
    return claimed * simulated > 0 and abs(claimed) > SIDE and abs(simulated) > SIDE


def _range(found: Sequence[Statement]) -> str:
    """The worst over the figures; a baseline of 1 or of a point is judged as measured."""
    ranks = [_range_of(one) for one in found if one.name != "baseline"] or [_range_of(found[0])]
    return max(ranks, key=VERDICTS.index)


def _range_of(one: Statement) -> str:
    claimed, span = one.claimed, one.simulated
    if one.name != "ratio" or claimed.sort in (POINT, ABOUT):
        bounded = {AT_MOST: span.high <= claimed.high * 1.1, AT_LEAST: span.low >= claimed.low * 0.9}
        return IN_RANGE if bounded.get(claimed.sort, _touches(one)) else NOT_REPRODUCED
    gain, top = _log(span.high), _log(claimed.high)
    if gain * top <= 0 or abs(gain) <= SIDE:
        return NOT_REPRODUCED
    if claimed.sort == INTERVAL:
        return IN_RANGE if _touches(one) else DIRECTION_ONLY
    if claimed.sort == AT_MOST and span.low > claimed.high * (1 + VALUE_TOLERANCE):
        return NOT_REPRODUCED
    return IN_RANGE if gain / top >= REACHED else DIRECTION_ONLY


def _direction(found: Sequence[Statement]) -> str:
    ratios = [one for one in found if one.name == "ratio"]
    if not ratios:
        return DIRECTION_ONLY if all(_touches(one) for one in found) else NOT_REPRODUCED
    return DIRECTION_ONLY if all(_same_order(one) for one in ratios) else NOT_REPRODUCED


def _same_order(one: Statement) -> bool:
    claimed = _log(one.claimed.high)
    gains = [_log(one.simulated.low), _log(one.simulated.high)]
    signed = all(gain * claimed > 0 and abs(gain) > SIDE for gain in gains)
    return signed and min(gains, key=abs) / claimed <= ORDER and max(gains, key=abs) / claimed >= 1 / ORDER


def _reason(verdict: str, off: Sequence[Statement], answer: Answer) -> str:
    """What was computed, the figures that do not come out, and the terms that are missing for them."""
    parts = [answer.how] if answer.how else []
    if verdict in (DIRECTION_ONLY, NOT_REPRODUCED):
        parts.append("simulated " + ", ".join(
            f"{one.name} {_text(one.simulated.plain)} against {_text(one.claimed.plain)}" for one in off))
        terms = dict.fromkeys(answer.missing.get(one.name, answer.missing.get("", UNKNOWN_TERM)) for one in off)
        parts.append("missing: " + "; ".join(terms))
    if answer.open:
        parts.append(("unknown: " if verdict == NOT_CHECKABLE else "over what the row leaves open: ") + answer.open)
    return "; ".join(parts)


def _text(value: float | list[float]) -> str:
    return f"{value[0]:.4g} to {value[1]:.4g}" if isinstance(value, list) else f"{value:.4g}"
