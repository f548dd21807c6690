"""Policies that cut and place sequences: nothing lost, no rank over its capacity, balance against brute force."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from placement.context_groups import POLICIES, Mesh, MicroBatch, Placed, get, pack, slots, spans_domains
from placement.selective_offload import without

CAPACITY = 64


def mesh(ranks: int = 32, context: int = 16, domain: int = 4) -> Mesh:
    return Mesh(ranks, context, CAPACITY, domain,
                lambda lengths: (without(lengths, CAPACITY), np.zeros(len(lengths))))


def lengths_of(seed: int, count: int = 120) -> list[int]:
    random = np.random.default_rng(seed)
    return np.clip(np.exp(random.normal(3.0, 1.5, count)), 1, 16 * CAPACITY).astype(int).tolist()


def work_of(micro_batches: list[MicroBatch]) -> np.ndarray:
    return np.array([sum(length * (length + 50.0) for length in one.lengths) / one.degree for one in micro_batches])


def makespan_s(placed: list[Placed], work_s: np.ndarray, ranks: int) -> float:
    ready = np.zeros(ranks)
    for one in placed:
        mine = list(one.ranks)
        ready[mine] = ready[mine].max() + work_s[one.micro_batch]
    return float(ready.max())


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_every_sequence_once_on_as_many_distinct_ranks_as_its_tokens_need(name: str, seed: int) -> None:
    lengths, on = lengths_of(seed), mesh()
    cut = get(name).cut(lengths, on)
    placed = get(name).place(cut, work_of(cut), on)
    assert Counter(length for one in cut for length in one.lengths) == Counter(lengths)
    assert sorted(one.micro_batch for one in placed) == list(range(len(cut)))
    for one in placed:
        micro_batch = cut[one.micro_batch]
        assert list(one.ranks) == sorted(set(one.ranks))
        assert len(one.ranks) == micro_batch.degree
        assert 0 <= one.ranks[0] <= one.ranks[-1] < on.ranks
        assert micro_batch.tokens <= micro_batch.degree * CAPACITY


@pytest.mark.parametrize("name", POLICIES)
def test_gradients_are_those_of_plain_data_parallelism(name: str) -> None:
    """Gradient integrity: token losses summed on every rank over the global batch's tokens (token-level loss)."""
    lengths, on = lengths_of(11), mesh()
    random = np.random.default_rng(0)
    cut = get(name).cut(lengths, on)
    gradient = {length: random.normal(size=(length, 3)) for length in set(lengths)}  # of each token
    whole = np.concatenate([gradient[length] for length in lengths]).mean(axis=0)
    by_rank = np.zeros((on.ranks, 3))
    for one in get(name).place(cut, work_of(cut), on):
        micro_batch = cut[one.micro_batch]
        for length in micro_batch.lengths:
            parts = np.array_split(gradient[length], 2 * micro_batch.degree)  # two symmetric parts a rank
            for at, rank in enumerate(one.ranks):
                by_rank[rank] += (parts[at].sum(axis=0) + parts[-1 - at].sum(axis=0)) / sum(lengths)
    assert by_rank.sum(axis=0) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def fewest_packs(lengths: tuple[int, ...], capacity: int) -> int:
    return next(
        count for count in range(1, len(lengths) + 1) for owner in itertools.product(range(count), repeat=len(lengths))
        if np.bincount(owner, weights=lengths).max() <= capacity
    )


@pytest.mark.parametrize("seed", range(12))
def test_packing_is_within_its_bound_of_the_best(seed: int) -> None:
    """Best fit decreasing opens at most 11/9 of the fewest packs and 6/9 more (Dosa 2007; Johnson 1974)."""
    random = np.random.default_rng(seed)
    lengths = tuple(int(one) for one in random.integers(5, 60, 7))
    packs = pack(lengths, 64)
    assert Counter(one for each in packs for one in each) == Counter(lengths)
    assert max(sum(one) for one in packs) <= 64
    assert len(packs) <= math.floor(11 / 9 * fewest_packs(lengths, 64) + 6 / 9)


def best_makespan(work_s: np.ndarray, ranks: int) -> float:
    return min(
        max(np.bincount(owner, weights=work_s, minlength=ranks))
        for owner in itertools.product(range(ranks), repeat=len(work_s))
    )


@pytest.mark.parametrize("name", ["dp-balance", "pp-balance"])
@pytest.mark.parametrize("seed", range(15))
def test_balance_is_within_grahams_bound_of_the_best_assignment(name: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    ranks, work_s = 3, random.pareto(1.2, 8) + 0.1
    on, cut = mesh(ranks, 1, 1), [MicroBatch((1,), 1)] * 8
    found = makespan_s(get(name).place(cut, work_s, on), work_s, ranks)
    # longest first: 4/3 - 1/(3n) (Graham 1969); any order that never idles while work waits: 2 - 1/n
    bound = {"dp-balance": 4 / 3 - 1 / (3 * ranks), "pp-balance": 2 - 1 / ranks}[name]
    assert found <= bound * best_makespan(work_s, ranks) * (1 + 1e-12)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("seed", range(3))
def test_no_step_is_shorter_than_its_work_or_its_longest_micro_batch(name: str, seed: int) -> None:
    on = mesh()
    cut = get(name).cut(lengths_of(seed, 200), on)
    work_s = work_of(cut)
    area = sum(work * one.degree for work, one in zip(work_s, cut, strict=True))
    found = makespan_s(get(name).place(cut, work_s, on), work_s, on.ranks)
    assert found >= max(area / on.ranks, work_s.max()) * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_balance_beats_the_order_of_the_data(seed: int) -> None:
    on = mesh()
    cut = get("naive").cut(lengths_of(seed, 400), on)
    work_s = work_of(cut)
    times = {name: makespan_s(get(name).place(cut, work_s, on), work_s, on.ranks) for name in ("naive", "dp-balance")}
    assert times["dp-balance"] < times["naive"]


def test_levels_keep_to_ranks_of_their_own() -> None:
    """Equal work in every level: each bucket fills the ranks of its own and nobody takes from another."""
    on = mesh(8, 2, domain=1)
    cut = [MicroBatch((1,), 2)] * 4 + [MicroBatch((1,), 1)] * 64
    work_s = np.array([8.0] * 4 + [1.0] * 64)
    placed = get("pp-balance").place(cut, work_s, on)
    long = {rank for one in placed if one.micro_batch < 4 for rank in one.ranks}
    short = {rank for one in placed if one.micro_batch >= 4 for rank in one.ranks}
    assert not long & short
    assert makespan_s(placed, work_s, 8) == pytest.approx(16.0)


def test_equal_sequences_of_the_longest_length_make_all_policies_the_static_mesh() -> None:
    on = mesh()
    found = set()
    for name in POLICIES:
        cut = get(name).cut([16 * CAPACITY] * 6, on)
        placed = get(name).place(cut, work_of(cut), on)
        found.add((tuple(cut), makespan_s(placed, work_of(cut), on.ranks)))
    assert len(found) == 1


def test_small_rings_stay_in_a_node() -> None:
    on = mesh(32, 16, domain=4)
    cut = get("dp-balance").cut([2 * CAPACITY] * 40 + [5 * CAPACITY] * 2, on)
    placed = get("dp-balance").place(cut, work_of(cut), on)
    crossing = spans_domains(placed, 4)
    assert [crossing[i] for i, one in enumerate(placed) if len(one.ranks) == 5] == [True, True]
    assert not any(crossing[i] for i, one in enumerate(placed) if len(one.ranks) == 2)


@pytest.mark.parametrize("name", POLICIES)
def test_turns_rise_on_every_rank(name: str) -> None:
    on = mesh()
    cut = get(name).cut(lengths_of(2), on)
    placed = get(name).place(cut, work_of(cut), on)
    turns = slots(placed, on.ranks)
    for rank in range(on.ranks):
        mine = [turn for turn, one in zip(turns, placed, strict=True) if rank in one.ranks]
        assert mine == sorted(set(mine))
