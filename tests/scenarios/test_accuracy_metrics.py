"""The measures of agreement: hand-computed values and brute force."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from scenarios.accuracy import metrics


def test_statistics_by_hand() -> None:
    found = metrics.statistics([0.10, -0.20, 0.30, -0.05])
    assert found["mape"] == pytest.approx((0.10 + 0.20 + 0.30 + 0.05) / 4)
    assert found["median_ape"] == pytest.approx(0.15)  # between 0.10 and 0.20
    assert found["bias"] == pytest.approx(0.15 / 4)
    assert found["p90_ape"] == pytest.approx(0.27)  # of 0.05 0.10 0.20 0.30: position 2.7


def test_nothing_gives_none_and_not_a_number() -> None:
    assert metrics.statistics([]) == {"mape": None, "median_ape": None, "p90_ape": None, "bias": None}


def brute_force_tau(a: list[float], b: list[float]) -> float:
    """tau-b by its definition, pair by pair (Kendall 1945)."""
    concordant = discordant = untied_a = untied_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        product = (a[i] - a[j]) * (b[i] - b[j])
        concordant += product > 0
        discordant += product < 0
        untied_a += a[i] != a[j]
        untied_b += b[i] != b[j]
    return (concordant - discordant) / math.sqrt(untied_a * untied_b)


@pytest.mark.parametrize("seed", range(8))
def test_kendall_tau_is_its_definition(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.randint(4, 25)
    a = [chance.randint(0, 12) for _ in range(size)]  # with ties
    b = [chance.randint(0, 12) for _ in range(size)]
    assert metrics.kendall_tau(a, b) == pytest.approx(brute_force_tau(a, b))


def test_kendall_tau_of_orders() -> None:
    assert metrics.kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert metrics.kendall_tau([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert metrics.kendall_tau([1, 1, 1], [1, 2, 3]) is None


def test_pairs_count_only_between_the_limits() -> None:
    # against 100: 102 is 2 % away (out), 110 is 10 %; 102-110 is 7.8 %; 200 is over 35 % from all
    assert metrics.ordered_pairs([100, 102, 110, 200], [1, 2, 3, 0]) == (2, 2)
    assert metrics.ordered_pairs([100, 110], [2, 1]) == (1, 0)
    assert metrics.ordered_pairs([100, 110], [1, 1]) == (1, 0)  # a tie is no order


def test_loss_of_the_chosen_plan() -> None:
    assert metrics.loss_of_choice([80, 100, 90], [1, 2, 3]) == pytest.approx(0.1)
    assert metrics.loss_of_choice([80, 100, 90], [1, 3, 2]) == 0.0
