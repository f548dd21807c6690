"""Sequences of unequal length: laws of heavy-tailed lengths, fitted to what is published of a data set, and drawn.

Papers print of their data the share of *tokens* that lie in sequences beyond a length ("9.8 % of tokens in sequences
above 256K"). A law has one free parameter, which that share settles; the token-weighted law has a closed form, so the
fit is a root of a monotone function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_NORMAL = NormalDist()
_STEPS = 200  # halvings of a bracket: far below the last digit


class LengthsError(ValueError):
    """A law of lengths that does not exist; the message names the numbers."""


class Law(Protocol):
    """Lengths of sequences in tokens."""

    def __hash__(self) -> int: ...

    @property
    def longest(self) -> float: ...

    def token_share_above(self, length: float) -> float:
        """Share of all tokens that lie in sequences longer than `length`."""
        ...

    def quantile(self, share: Floats) -> Floats:
        """Lengths below which these shares of the sequences (not tokens) lie, [n] -> [n]."""
        ...


@dataclass(frozen=True)
class Pareto:
    """Bounded Pareto: sequences longer than x are as x^-index between `minimum` and `maximum`."""

    index: float
    minimum: float
    maximum: float

    @property
    def longest(self) -> float:
        return self.maximum

    def token_share_above(self, length: float) -> float:
        """(M^(1-a) - x^(1-a)) / (M^(1-a) - m^(1-a)), its logarithmic limit at a = 1."""
        low, top = self.minimum, self.maximum
        at = min(max(length, low), top)
        power = 1.0 - self.index
        if abs(power) < 1e-12:
            return math.log(top / at) / math.log(top / low)
        # over the largest term, so that no power overflows
        scale = top if power > 0 else low
        high, here, least = ((x / scale) ** power for x in (top, at, low))
        return float((high - here) / (high - least))

    def quantile(self, share: Floats) -> Floats:
        low, ratio = self.minimum, self.maximum / self.minimum
        if abs(self.index) < 1e-12:
            return np.asarray(low * ratio**share)
        return np.asarray(low * (1.0 - share * (1.0 - ratio**-self.index)) ** (-1.0 / self.index))


@dataclass(frozen=True)
class LogNormal:
    """Log-normal of `median` (before it is cut) and `sigma`, cut off below `minimum` and above `maximum`.

    Weighted by tokens it is the log-normal of median x exp(sigma^2).
    """

    median: float
    sigma: float
    minimum: float
    maximum: float

    @property
    def longest(self) -> float:
        return self.maximum

    def token_share_above(self, length: float) -> float:
        centre = math.log(self.median) + self.sigma**2
        # counted from the end that lies nearer to the centre's far side, where differences keep their digits
        side = 1.0 if centre > math.log(self.maximum) else -1.0
        low, here, top = (
            _NORMAL.cdf(side * (math.log(x) - centre) / self.sigma)
            for x in (self.minimum, min(max(length, self.minimum), self.maximum), self.maximum)
        )
        return (top - here) / (top - low)

    def quantile(self, share: Floats) -> Floats:
        centre = math.log(self.median)
        low, top = (_NORMAL.cdf((math.log(x) - centre) / self.sigma) for x in (self.minimum, self.maximum))
        inner = np.clip(low + share * (top - low), 1e-300, 1.0 - 1e-16)
        logs = np.array([centre + self.sigma * _NORMAL.inv_cdf(one) for one in inner.tolist()])
        return np.asarray(np.clip(np.exp(logs), self.minimum, self.maximum))


@dataclass(frozen=True)
class Empirical:
    """The lengths of a data set, each as likely as the others."""

    lengths: tuple[float, ...]

    @property
    def longest(self) -> float:
        return max(self.lengths)

    def token_share_above(self, length: float) -> float:
        return sum(one for one in self.lengths if one > length) / sum(self.lengths)

    def quantile(self, share: Floats) -> Floats:
        ordered = np.sort(np.array(self.lengths, dtype=float))
        return np.asarray(ordered[np.minimum((share * len(ordered)).astype(int), len(ordered) - 1)])


def _root(share: Callable[[float], float], wanted: float, low: float, high: float) -> float | None:
    """Where a monotone function is `wanted`; None where it is not between the two ends."""
    at_low, at_high = share(low), share(high)
    if not min(at_low, at_high) <= wanted <= max(at_low, at_high):
        return None
    rising = at_high > at_low
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if (share(middle) < wanted) == rising:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _pareto(minimum: float, maximum: float, median: float) -> tuple[Callable[[float], Law], float, float]:
    return lambda index: Pareto(index, minimum, maximum), -10.0, 50.0


def _log_normal(minimum: float, maximum: float, median: float) -> tuple[Callable[[float], Law], float, float]:
    return lambda sigma: LogNormal(median, sigma, minimum, maximum), 0.05, 6.0


LAWS: Mapping[str, Callable[[float, float, float], tuple[Callable[[float], Law], float, float]]] = {
    "pareto": _pareto,
    "log-normal": _log_normal,
}


def fitted(name: str, share: float, above: float, minimum: float, maximum: float, median: float) -> Law:
    """The law whose token share above a length is `share`. Pareto's index follows, the log-normal's sigma, with the
    median as given. Raises LengthsError where no law of that name has it."""
    if name not in LAWS:
        raise LengthsError(f"no law of lengths {name!r}; known: {', '.join(LAWS)}, empirical")
    if not minimum < above < maximum:
        told = f"above {above:,.0f} tokens does not lie between minimum {minimum:,.0f} and maximum {maximum:,.0f}"
        raise LengthsError(told)
    if name == "log-normal" and not minimum <= median < above:
        told = f"median {median:,.0f} tokens does not lie between minimum {minimum:,.0f} and above {above:,.0f}"
        raise LengthsError(told)
    make, low, high = LAWS[name](minimum, maximum, median)
    found = _root(lambda parameter: make(parameter).token_share_above(above), share, low, high)
    if found is None:
        ends = sorted(make(end).token_share_above(above) for end in (low, high))
        raise LengthsError(f"a {name} law between {minimum:,.0f} and {maximum:,.0f} tokens has {ends[0]:.3g} to "
                           f"{ends[1]:.3g} of its tokens above {above:,.0f}, not {share:g}")
    return make(found)


def expected_sequences(law: Law, tokens: float) -> float:
    """About how many sequences make up so many tokens: by the mean of the law at 1,000 equal shares."""
    return tokens / float(law.quantile((np.arange(1000) + 0.5) / 1000).mean())


@lru_cache(maxsize=128)
def drawn(law: Law, tokens: int, longest: int, seed: int) -> tuple[int, ...]:
    """Lengths of the sequences of one global batch of exactly `tokens` tokens, in the order of the data.

    A sequence longer than `longest` (the context) is cut into pieces; the last one is cut where the batch is full.
    The same seed gives the same lengths.
    """
    random = np.random.default_rng(seed)
    found: list[int] = []
    left = tokens
    while left > 0:
        for length in np.ceil(law.quantile(random.random(1024))).astype(int).tolist():
            for piece in cut(min(max(length, 1), left), longest):
                found.append(piece)
                left -= piece
            if left <= 0:
                break
    return tuple(found)


def cut(length: int, longest: int) -> list[int]:
    """A sequence in pieces of at most `longest` tokens.

    >>> cut(10, 4)
    [4, 4, 2]
    """
    whole, rest = divmod(length, longest)
    return [longest] * whole + ([rest] if rest else [])
