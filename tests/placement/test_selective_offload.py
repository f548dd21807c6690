"""Equation 3 of ByteScale (arXiv 2502.21231) against a search over a grid of shares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from placement.selective_offload import Offloads, choose, without

GRID = np.linspace(0.0, 1.0, 20_001)


def random_case(seed: int, host_bytes: float = math.inf) -> Offloads:
    """T(s) = a s^2 + b s + c and Act(s) = d s of 12 lengths, in units in which B is about 1."""
    random = np.random.default_rng(seed)
    lengths = 2.0 ** random.uniform(0, 9, 12)  # in capacities
    square, line, constant = random.uniform(0.001, 0.1), random.uniform(0.05, 1.5), random.uniform(0, 0.5)
    return Offloads(square * lengths**2 + line * lengths + constant, lengths, 1.0, int(random.integers(3, 49)),
                    float(random.uniform(0.3, 3.0)), host_bytes)


def by_grid(of: Offloads, at: int) -> int:
    """The fewest ranks over all shares of the grid that satisfy the printed constraints; without any, all on device."""
    time_s, size = float(of.layer_s[at]), float(of.layer_bytes[at])
    least = min(1.0, of.layers * of.capacity_bytes / ((of.layers - 2) * size))
    best = math.ceil(size / of.capacity_bytes - 1e-9)
    for share in np.append(GRID, [least, min(1.0, time_s * of.bandwidth_bytes_per_s / size)]):
        ranks = math.ceil((2 * size + (1 - share) * (of.layers - 2) * size) / (of.layers * of.capacity_bytes) - 1e-9)
        ranks = max(ranks, 1)
        if share < least - 1e-12 or time_s < share * size / of.bandwidth_bytes_per_s - 1e-12:
            continue
        if share * (of.layers - 2) * size / ranks <= of.host_bytes:
            best = min(best, ranks)
    return best


@pytest.mark.parametrize("seed", range(25))
def test_the_fewest_ranks_that_any_share_allows(seed: int) -> None:
    of = random_case(seed)
    ranks, _ = choose(of)
    assert ranks.tolist() == [by_grid(of, at) for at in range(len(ranks))]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("host_bytes", [math.inf, 40.0, 4.0])
def test_constraints_hold(seed: int, host_bytes: float) -> None:
    of = random_case(seed, host_bytes)
    ranks, share = choose(of)
    size, inner = of.layer_bytes, of.layers - 2
    taken = share > 0
    assert (of.layer_s * of.bandwidth_bytes_per_s >= share * size * (1 - 1e-9)).all()
    least = np.minimum(1.0, of.layers * of.capacity_bytes / (inner * size))
    assert (share[taken] >= least[taken] - 1e-9).all()
    on_device = (2 + (1 - share) * inner) * size / ranks
    assert (on_device <= of.layers * of.capacity_bytes * (1 + 1e-9)).all()
    assert (share * inner * size / ranks <= of.host_bytes * (1 + 1e-9)).all()
    assert (ranks <= without(size, of.capacity_bytes)).all()
    assert (ranks[~taken] == without(size, of.capacity_bytes)[~taken]).all()


@pytest.mark.parametrize("seed", range(10))
def test_no_smaller_share_reaches_as_few_ranks(seed: int) -> None:
    of = random_case(seed)
    ranks, share = choose(of)
    least = of.least_share()
    for at in np.flatnonzero(share > 0):
        smaller = share[at] - 1e-6
        assert smaller < least[at] or of.ranks(np.full(len(ranks), smaller))[at] > ranks[at]


def test_more_bandwidth_or_host_memory_never_takes_more_ranks() -> None:
    of = random_case(3, 6.0)
    before = choose(of)[0]
    for wider in (replace(of, bandwidth_bytes_per_s=2 * of.bandwidth_bytes_per_s), replace(of, host_bytes=12.0)):
        assert (choose(wider)[0] <= before).all()


def test_ranks_asked_for_are_given_with_the_share_they_need() -> None:
    of = random_case(5)
    few, share = choose(of)
    plain = without(of.layer_bytes, of.capacity_bytes)
    asked = (few + plain) // 2
    ranks, less = choose(of, asked)
    chosen = less > 0
    assert (ranks[chosen] == np.maximum(asked, few)[chosen]).all()
    assert (less <= share + 1e-12).all()


def test_two_layers_leave_nothing_to_offload() -> None:
    of = replace(random_case(0), layers=2)
    ranks, share = choose(of)
    assert (ranks == without(of.layer_bytes, 1.0)).all()
    assert not share.any()
