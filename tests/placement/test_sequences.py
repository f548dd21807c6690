"""Laws of lengths against numerical integration and against what is drawn from them."""

from __future__ import annotations

import numpy as np
import pytest

from placement.sequences import Empirical, Law, LengthsError, cut, drawn, expected_sequences, fitted

K = 1024
CASES = [(name, share, median) for name in ("pareto", "log-normal") for share in (0.098, 0.37) for median in (1e3, 4e3)]


def law_of(name: str, share: float, median: float = 2048.0) -> Law:
    return fitted(name, share, 256 * K, 64, 2048 * K, median)


@pytest.mark.parametrize(("name", "share", "median"), CASES)
def test_the_fitted_law_has_the_share_by_integration_of_its_quantiles(name: str, share: float, median: float) -> None:
    law = law_of(name, share, median)
    # a second way: the mean of x over equal shares of the sequences, above and in all; finer where the tail is
    edges = 1.0 - np.concatenate([np.linspace(1, 1e-3, 100_000), np.geomspace(1e-3, 1e-12, 60_000), [0.0]])
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    lengths = law.quantile(middle)
    tokens = lengths * width
    assert tokens[lengths > 256 * K].sum() / tokens.sum() == pytest.approx(share, rel=2e-3)
    assert law.token_share_above(256 * K) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("name", ["pareto", "log-normal"])
def test_token_shares_fall_from_one_to_nothing(name: str) -> None:
    law = law_of(name, 0.2)
    shares = [law.token_share_above(length) for length in (64, 1 * K, 16 * K, 256 * K, 1024 * K, 2048 * K)]
    assert shares == sorted(shares, reverse=True)
    assert (shares[0], shares[-1]) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize("name", ["pareto", "log-normal"])
def test_quantiles_lie_within_the_bounds_and_rise(name: str) -> None:
    found = law_of(name, 0.37).quantile(np.linspace(0, 1 - 1e-12, 2001))
    assert found.min() >= 64 * (1 - 1e-9)
    assert found.max() <= 2048 * K * (1 + 1e-9)
    assert (np.diff(found) >= 0).all()


def test_the_pareto_law_at_its_logarithmic_point() -> None:
    from placement.sequences import Pareto

    near = [Pareto(index, 10, 1000).token_share_above(100) for index in (1 - 1e-7, 1.0, 1 + 1e-7)]
    assert near[1] == pytest.approx(0.5)  # log(1000/100) / log(1000/10)
    assert near == pytest.approx([0.5] * 3, rel=1e-6)


def test_a_batch_of_many_tokens_has_the_share_that_was_asked_for() -> None:
    law = law_of("log-normal", 0.37, 4096)
    lengths = np.array([one for seed in range(40) for one in drawn(law, 16 * 2048 * K, 2048 * K, seed)], dtype=float)
    above = np.where(lengths > 256 * K, lengths, 0.0)
    share = above.sum() / lengths.sum()
    error = np.sqrt(((above - share * lengths) ** 2).sum()) / lengths.sum()  # of a ratio of sums
    assert abs(share - 0.37) < 3 * error
    assert error < 0.02


@pytest.mark.parametrize("seed", [0, 7])
def test_a_batch_has_its_tokens_and_nothing_longer_than_the_context(seed: int) -> None:
    lengths = drawn(law_of("pareto", 0.098), 3 * 512 * K, 512 * K, seed)
    assert sum(lengths) == 3 * 512 * K
    assert 1 <= min(lengths) <= max(lengths) <= 512 * K


def test_the_seed_decides() -> None:
    law = law_of("log-normal", 0.37)
    assert drawn(law, 2**22, 2**21, 3) == drawn(law, 2**22, 2**21, 3)
    assert drawn(law, 2**22, 2**21, 3) != drawn(law, 2**22, 2**21, 4)


@pytest.mark.parametrize("length", [1, 4, 5, 12, 13])
def test_cutting_keeps_every_token(length: int) -> None:
    pieces = cut(length, 4)
    assert sum(pieces) == length
    assert max(pieces) <= 4
    assert len(pieces) == -(-length // 4)


def test_empirical_lengths_are_drawn_equally_often() -> None:
    law = Empirical((100.0, 300.0))
    assert law.token_share_above(200) == 0.75
    assert law.quantile(np.array([0.0, 0.49, 0.51, 0.999])).tolist() == [100, 100, 300, 300]
    assert expected_sequences(law, 2000) == pytest.approx(10)


@pytest.mark.parametrize(("name", "share", "above", "told"), [
    ("log-normal", 0.95, 256 * K, "of its tokens above 262,144, not 0.95"),
    ("pareto", 0.1, 4096 * K, "does not lie between"), ("log-normal", 0.1, 1 * K, "median 2,048 tokens does not lie"),
    ("weibull", 0.1, 256 * K, "known: pareto, log-normal, empirical"),
])
def test_laws_that_do_not_exist_are_refused(name: str, share: float, above: float, told: str) -> None:
    with pytest.raises(LengthsError, match=told):
        fitted(name, share, above, 64, 2048 * K, 2048)
