"""Dividing a batch and the states over unequal accelerators: against brute force and a mixed-integer programme."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pulp
import pytest

from placement.shares import POLICIES, Choice, Division, Kind, Problem, choices, get, solved

FREE = get("decoupled")


def problem(
    rng: np.random.Generator, counts: tuple[int, ...], batch: int, tight: float, cost: float | None = 0.2
) -> Problem:
    """Accelerators whose speed, efficiency of small micro-batches and memory have nothing to do with one another."""
    kinds = []
    samples = np.arange(batch + 1, dtype=float)
    for index, count in enumerate(counts):
        speed, start = rng.uniform(0.5, 4.0), rng.uniform(0.0, 1.0)
        forward = np.where(samples > 0, start + samples / speed, 0.0)
        backward = forward * rng.uniform(1.8, 2.2)
        kinds.append(Kind(f"kind {index}", count, forward, backward, samples * rng.uniform(0.2, 0.5),
                          samples * rng.uniform(0.5, 1.0), tight * rng.uniform(2.0, 8.0)))
    slope = rng.uniform(0.0, 4.0)
    return Problem(tuple(kinds), batch, 8.0, lambda share: (0.1 + slope * share, 0.2 + 2 * slope * share, share), cost)


def level(rooms: list[float]) -> float | None:
    """The least largest share, by halving; None where the states find no room."""
    if min(rooms) < 0 or sum(min(room, 1.0) for room in rooms) < 1.0 - 1e-9:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(min(room, middle) for room in rooms) < 1 - 1e-12 else (low, middle)
    return high


def every_step_s(case: Problem) -> Iterator[float]:
    """The step of every division in which all finds room."""
    for passes in (n for n in range(1, case.batch + 1) if case.batch % n == 0):
        options: list[list[Choice]] = []
        for kind in case.kinds:
            of_kind = [Choice(0, 0, 0.0, 0.0, 0.0, kind.room_bytes / case.state_bytes)]
            for size in range(1, case.batch // passes + 1):
                for count in range(1, case.batch // size + 1 if passes == 1 else 2):
                    held = count * kind.kept_bytes[size] + kind.once_bytes[size]
                    room = (kind.room_bytes - held) / case.state_bytes
                    times = count * kind.forward_s[size], count * kind.backward_s[size]
                    of_kind.append(Choice(size, count, *times, held, room))
            options += [of_kind] * kind.count
        for chosen in itertools.product(*options):
            if sum(one.samples for one in chosen) * passes != case.batch:
                continue
            largest = level([one.room for one in chosen])
            if largest is not None:
                yield case.step_s(max(one.forward_s for one in chosen), max(one.backward_s for one in chosen), largest,
                                  passes)


def check(case: Problem, found: Division) -> None:
    """Nothing is lost and nothing is held twice."""
    assert sum(one.count * one.choice.samples for one in found.groups) * found.passes == case.batch
    assert sum(one.count * one.state_share for one in found.groups) == pytest.approx(1.0)
    for index, kind in enumerate(case.kinds):
        assert sum(one.count for one in found.groups if one.kind == index) == kind.count
    if found.fits:
        for one in found.groups:
            held = one.choice.activation_bytes + one.state_share * case.state_bytes
            assert held <= case.kinds[one.kind].room_bytes * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("tight", [1.0, 3.0])
def test_as_fast_as_the_best_of_all_divisions(seed: int, tight: float) -> None:
    case = problem(np.random.default_rng(seed), ((1, 1), (1, 2), (2, 1))[seed % 3], 4, tight)
    best_s = min(every_step_s(case), default=None)
    found = FREE(case)
    check(case, found)
    assert found.fits == (best_s is not None)
    if best_s is not None:
        assert found.step_s == pytest.approx(best_s, rel=1e-3)  # SHARE_TOLERANCE, through the slope of the traffic


def by_programme(case: Problem) -> float | None:
    """The step of the best layered division, as a mixed-integer programme; traffic must be linear in the share."""
    model = pulp.LpProblem("shares", pulp.LpMinimize)
    gather, back, update = ((at_one - at_zero, at_zero)
                            for at_zero, at_one in zip(case.traffic(0.0), case.traffic(1.0), strict=True))
    forward, backward, largest = (model.add_variable(name, 0) for name in ("forward", "backward", "largest"))
    model += forward + backward + update[0] * largest + update[1]
    model += forward >= gather[0] * largest + gather[1]
    model += backward >= back[0] * largest + back[1]
    samples, held = [], []
    for index, kind in enumerate(case.kinds):
        options = choices(case, FREE, 1, kind)
        for rank in range(kind.count):
            taken = [model.add_variable(f"x_{index}_{rank}_{one}", cat="Binary") for one in range(len(options))]
            share = model.add_variable(f"r_{index}_{rank}", 0, 1)
            model += pulp.lpSum(taken) == 1
            model += share <= largest
            model += share <= pulp.lpSum(x * one.room for x, one in zip(taken, options, strict=True))
            model += forward >= pulp.lpSum(x * one.forward_s for x, one in zip(taken, options, strict=True))
            model += backward >= pulp.lpSum(x * one.backward_s for x, one in zip(taken, options, strict=True))
            samples += [x * one.samples for x, one in zip(taken, options, strict=True)]
            held.append(share)
    model += pulp.lpSum(samples) == case.batch
    model += pulp.lpSum(held) == 1
    status = model.solve(pulp.HiGHS(msg=False))
    return float(pulp.value(model.objective)) if pulp.LpStatus[status] == "Optimal" else None


@pytest.mark.parametrize("seed", range(6))
def test_a_mixed_integer_programme_finds_the_same(seed: int) -> None:
    """Two kinds of three, 16 samples: more divisions than brute force can see. Nothing hidden costs anything here."""
    case = problem(np.random.default_rng(100 + seed), (3, 3), 16, 1.0 + seed % 3, cost=0.0)
    expected_s = by_programme(case)
    found = solved(case, FREE, 1)
    assert (found is None) == (expected_s is None)
    if found is not None and expected_s is not None:
        check(case, found)
        assert found.step_s == pytest.approx(expected_s, rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_more_freedom_is_never_slower(seed: int) -> None:
    case = problem(np.random.default_rng(200 + seed), (2, 2), 8, 3.0)
    found = {name: policy(case) for name, policy in POLICIES.items()}
    for name, one in found.items():
        check(case, one)
        if one.fits:
            assert found["decoupled"].fits
            assert found["decoupled"].step_s <= one.step_s * (1 + 1e-3), name
    if found["equal"].fits:
        for name in ("by-speed", "by-memory"):
            assert found[name].fits
            assert found[name].step_s <= found["equal"].step_s * (1 + 1e-3)


def test_more_memory_is_never_slower() -> None:
    cases = [problem(np.random.default_rng(7), (2, 2), 8, tight) for tight in (1.0, 1.5, 2.0, 4.0)]
    found = [FREE(case) for case in cases]
    times = [one.step_s for one in found if one.fits]
    assert times == sorted(times, reverse=True)


def test_equal_accelerators_get_equal_shares() -> None:
    samples = np.arange(9.0)
    kind = Kind("one", 4, samples, 2 * samples, samples, 0 * samples, 1e9)
    found = FREE(Problem((kind,), 8, 1.0, lambda share: (0.0, 0.0, 0.0), 0.0))
    assert found.step_s == pytest.approx(3 * 2)
    assert {one.choice.samples * found.passes for one in found.groups} == {2}
    assert found.largest_share == pytest.approx(0.25)


def test_a_fast_accelerator_with_little_memory_computes_and_one_with_much_memory_holds() -> None:
    """What the paper decouples: here no division by one measure alone fits in the memory of the fast one."""
    samples = np.arange(9.0)
    fast = Kind("fast", 1, samples / 8, samples / 4, 0.1 * samples, 0 * samples, 1.0)
    large = Kind("large", 1, samples, 2 * samples, 0.1 * samples, 0 * samples, 20.0)
    case = Problem((fast, large), 8, 10.0, lambda share: (0.0, 0.0, 0.0), 0.0)
    found = {name: policy(case) for name, policy in POLICIES.items()}
    assert [name for name, one in found.items() if one.fits] == ["by-memory", "decoupled"]
    assert found["decoupled"].step_s < found["by-memory"].step_s / 2
    of = {case.kinds[one.kind].name: one for one in found["decoupled"].groups}
    assert of["fast"].choice.samples > of["large"].choice.samples
    assert of["fast"].state_share < of["large"].state_share
