"""Executing a placement rank by rank gives the single-device update exactly when it should, and only then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as draw

from placement import composition, correctness, paro, strategies
from placement.semantics import Activations, Collective, Communication, communications, resident_bytes
from placement.states import Axis, Dim, Mode, Placement, Reduction, Span, Spread, State
from tests.placement.numpy_execution import BYTES, Execution, Problem, single_device

REDUCTIONS = (Collective.REDUCE_SCATTER, Collective.ALL_REDUCE, Collective.ALL_TO_ALL)
EXACT, STEPS = 1e-12, 2
R, S, G = Mode.REPLICATED, Mode.SHARDED, Mode.SHARDED_WITH_GATHER


@dataclass(frozen=True)
class Case:
    """A placement on a mesh; `groups` are its weights split by tensor parallelism and those that are not."""

    placement: Placement
    degrees: dict[Axis, int]
    micro_batches: int = 1
    problem: Problem = field(default_factory=Problem)

    @property
    def groups(self) -> dict[str, Placement]:
        return {"matrix": self.placement, "norm": self.placement.holding_whole(Axis.TENSOR)}

    @property
    def counts(self) -> dict[str, int]:
        one = self.problem
        return {"matrix": 2 * one.layers * one.hidden * one.width, "norm": one.layers * one.hidden}

    @property
    def lists(self) -> dict[str, Sequence[Communication]]:
        one, degrees = self.problem, self.degrees
        data = np.prod([degrees[a] for a, d in self.placement.partition.items() if d is Dim.BATCH])
        sizes = Activations(
            tokens=one.batch * one.sequence / data / self.micro_batches, hidden=one.hidden,
            bytes_per_element=8, layers=one.layers // degrees.get(Axis.PIPELINE, 1), blocks_per_layer=1,
            key_value_width=one.hidden * one.mixing,
        )
        return {
            group: communications(placement, self.counts[group], degrees, self.micro_batches,
                                  sizes if group == "matrix" else None)
            for group, placement in self.groups.items()
        }

    def play(self, lists: dict[str, Sequence[Communication]] | None = None) -> tuple[Execution, float]:
        """The execution after `STEPS` steps and its largest relative difference from a single device."""
        run = Execution(self.placement, self.degrees, self.problem, self.micro_batches, lists or self.lists)
        for _ in range(STEPS):
            run.step()
        weights, m, v = single_device(self.problem, STEPS)
        true = (weights, weights, m, v)  # parameters equal their masters in fp64
        return run, run.error(lambda group, rank: np.stack([run.local(one, group, rank) for one in true]))


def case(*parts: str | Placement, micro_batches: int = 1, widen: Sequence[Axis] = (), **extra) -> Case:
    """Degrees by axis name; other keywords change the problem."""
    degrees = {axis: extra.pop(axis) for axis in list(Axis) if axis in extra}
    placement = composition.widened(composition.compose(*parts, bytes_preset=BYTES), *widen)
    return Case(placement, degrees, micro_batches, Problem(**extra))


CASES = {
    "ddp": case("ddp", data=4),
    "ddp, 2 micro-batches": case("ddp", data=2, micro_batches=2),
    "ddp, reduced every micro-batch": case(
        replace(strategies.get("ddp"), accumulate=False), data=2, micro_batches=2),
    "zero-1": case("zero-1", data=4, micro_batches=2),
    "zero-1, reduced every micro-batch": case(
        replace(strategies.get("zero-1"), accumulate=False), data=2, micro_batches=2),
    "zero-2": case("zero-2", data=4, micro_batches=2),
    "zero-3": case("zero-3", data=4, micro_batches=2),
    "fsdp-no-reshard": case("fsdp-no-reshard", data=4, micro_batches=2),
    "fsdp-shard-grad-op": case("fsdp-shard-grad-op", data=4, micro_batches=2),
    "hsdp": case("hsdp", shard=2, replicate=2, micro_batches=2),
    "mics": case("mics", shard=2, replicate=2, micro_batches=2),
    "zero-offload": case("zero-offload", data=2, micro_batches=2),
    "zero-infinity": case("zero-infinity", data=2, micro_batches=2),
    "optimizer streamed from the host": case(
        replace(strategies.get("zero-offload"), host_update=False), data=2, micro_batches=2),
    "stage 1, all off the device": case(
        strategies.from_mapping({
            "parameters": {"memory": "offloaded"}, "gradients": {"memory": "offloaded"},
            "optimizer": {"data": "sharded", "memory": "offloaded"}, "activations": {"data": "batch"},
            "host_update": True}), data=2, micro_batches=2),
    "zero++": case("zero++", shard=2, replicate=2, micro_batches=2),
    "internevo": case("internevo", shard=2, replicate=2, micro_batches=2),
    "internevo, one group": case("internevo", shard=4, replicate=1, micro_batches=2),
    "internevo-isp": case("internevo-isp", shard=2, replicate=2, micro_batches=2),
    "tensor": case("tensor", tensor=4),
    "tensor-sequence": case("tensor-sequence", tensor=4, micro_batches=2),
    "pipeline": case("pipeline", pipeline=3, layers=3, micro_batches=4),
    "context": case("context", context=4, mixing=True),
    "ddp x context": case("ddp", "context", data=2, context=2, mixing=True),
    "zero-1 over data x context": case(
        "zero-1", "context", data=2, context=2, mixing=True, widen=[Axis.CONTEXT]),
    "zero-3 over data x context": case(
        "zero-3", "context", data=2, context=2, mixing=True, widen=[Axis.CONTEXT]),
    "ddp x tensor": case("ddp", "tensor", data=2, tensor=2),
    "zero-1 x tensor-sequence": case("zero-1", "tensor-sequence", data=2, tensor=2, micro_batches=2),
    "fsdp x tensor-sequence": case("fsdp", "tensor-sequence", data=2, tensor=2),
    "zero-2 x pipeline": case("zero-2", "pipeline", data=2, pipeline=2, micro_batches=2),
    "fsdp-no-reshard x tensor-sequence x pipeline": case(
        "fsdp-no-reshard", "tensor-sequence", "pipeline", data=2, tensor=2, pipeline=2, micro_batches=2),
}
NAMES = list(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_the_step_equals_the_single_device_step(name: str) -> None:
    _, error = CASES[name].play()
    assert error < EXACT


def assert_bytes_agree(case: Case, run: Execution) -> None:
    """What the arrays weigh and what the rings sent, against what the semantics derived."""
    derived = [resident_bytes(case.groups[g], n, case.degrees) for g, n in case.counts.items()]
    for state, held in run.peak_resident.items():
        assert held == sum(one[state] for one in derived), state
    for communication in {one for listed in case.lists.values() for one in listed}:
        sent = run.world.sent.get(communication, np.zeros(1)) / STEPS
        assert sent.max() == pytest.approx(communication.sent_bytes_per_step, rel=1e-12), communication
        if communication.collective is not Collective.POINT_TO_POINT:  # the outer stages have one neighbour
            assert sent.min() == sent.max()


@pytest.mark.parametrize("name", NAMES)
def test_bytes_held_and_sent_equal_the_semantics(name: str) -> None:
    run, _ = CASES[name].play()
    assert_bytes_agree(CASES[name], run)


def without(case: Case, group: str, position: int) -> dict[str, Sequence[Communication]]:
    changed = {name: list(listed) for name, listed in case.lists.items()}
    del changed[group][position]
    return changed


@pytest.mark.parametrize("name", NAMES)
def test_dropping_any_communication_breaks_the_step_and_is_found(name: str) -> None:
    case = CASES[name]
    for group, listed in case.lists.items():
        for position, dropped in enumerate(listed):
            if not np.any(dropped.sent_bytes):
                continue
            broken = without(case, group, position)
            _, error = case.play(broken)
            assert error > 1e-6, (group, dropped)
            found = correctness.check(case.groups[group], broken[group], activations=group == "matrix")
            named = {(one.state, one.axis, one.missing) for one in found}
            assert any((dropped.state, axis, dropped.collective) in named for axis in dropped.axes)


@pytest.mark.parametrize("name", NAMES)
def test_reducing_a_gradient_twice_breaks_the_step_and_is_found(name: str) -> None:
    case = CASES[name]
    for group, listed in case.lists.items():
        for position, one in enumerate(listed):
            if one.state is not State.GRADIENTS or one.collective not in REDUCTIONS:
                continue
            again = replace(one, collective=Collective.ALL_REDUCE)
            doubled = {**case.lists, group: [*listed[:position], again, *listed[position:]]}
            _, error = case.play(doubled)
            assert error > 1e-6, (group, one)
            found = correctness.gradient_integrity(case.groups[group], doubled[group])
            assert {f.axis for f in found} >= set(one.axes)


@pytest.mark.parametrize("axis", [Axis.TENSOR, Axis.PIPELINE])
def test_reducing_a_gradient_over_an_axis_that_splits_weights_breaks_the_step(axis: Axis) -> None:
    case = CASES["fsdp-no-reshard x tensor-sequence x pipeline"]
    model = next(one for one in case.lists["norm"] if one.collective is Collective.ALL_REDUCE)
    wrong = replace(model, axes=(axis,))
    lists = {**case.lists, "matrix": [*case.lists["matrix"], wrong]}
    _, error = case.play(lists)
    assert error > 1e-6
    assert any(f.axis is axis and f.missing is None
               for f in correctness.gradient_integrity(case.placement, lists["matrix"]))


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    parameters=draw.sampled_from([R, G]), gradients=draw.sampled_from([R, S]),
    optimizer=draw.sampled_from([R, S]),
    keep=draw.sampled_from(list(Span)), accumulate=draw.booleans(), ranks=draw.sampled_from([1, 2, 4]),
    micro_batches=draw.sampled_from([1, 2]), offloaded=draw.sets(draw.sampled_from(list(State)[:3])),
    host_update=draw.booleans(), reduction=draw.sampled_from(list(Reduction)), spread=draw.sampled_from(list(Spread)),
)
def test_any_placement_over_data_trains_the_same_model(
    parameters: Mode, gradients: Mode, optimizer: Mode, keep: Span, accumulate: bool, ranks: int,
    micro_batches: int, offloaded: set[State], host_update: bool, reduction: Reduction, spread: Spread,
) -> None:
    """Also those that nobody has named: the rule, not the table, makes them right."""
    modes = {State.PARAMETERS: {Axis.DATA: parameters}, State.GRADIENTS: {Axis.DATA: gradients},
             State.OPTIMIZER: {Axis.DATA: optimizer}}
    for state in offloaded:
        modes[state][Axis.MEMORY] = Mode.OFFLOADED
    placement = Placement(modes, {Axis.DATA: Dim.BATCH}, BYTES, keep, accumulate, host_update=host_update,
                          reduction=reduction, spread=spread)
    assert correctness.check(placement) == ()
    case = Case(placement, {Axis.DATA: ranks}, micro_batches)
    run, error = case.play()
    assert error < EXACT
    assert_bytes_agree(case, run)


@pytest.mark.parametrize("letters", paro.TRIPLES)
def test_all_27_triples_of_paro_train_the_same_model(letters: str) -> None:
    one = case(f"paro-{letters.lower()}", shard=2, replicate=2, micro_batches=2)
    assert correctness.check(one.placement) == ()
    run, error = one.play()
    assert error < EXACT
    assert_bytes_agree(one, run)
