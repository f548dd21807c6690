"""Findings name the state, the axis and the collective that is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement import composition, correctness, strategies
from placement.semantics import Collective, Communication, Phase
from placement.states import Axis, Dim, Mode, Placement, Span, State


def lacking(placement: Placement, **which: object) -> list[Communication]:
    """The derived communications without those whose fields equal `which`."""
    listed = correctness.expected(placement)
    kept = [one for one in listed if any(getattr(one, key) != value for key, value in which.items())]
    assert len(kept) < len(listed), "nothing was removed"
    return kept


@pytest.mark.parametrize("name", strategies.names())
def test_every_named_strategy_is_correct(name: str) -> None:
    assert correctness.check(strategies.get(name), activations=True) == ()


@pytest.mark.parametrize("name", ["tensor-sequence", "pipeline", "expert"])
def test_weights_that_an_axis_does_not_split_are_correct_too(name: str) -> None:
    placement = strategies.get(name)
    assert correctness.check(placement.holding_whole(*placement.split_axes())) == ()


def test_missing_all_reduce_is_a_gradient_finding() -> None:
    (finding,) = correctness.check(strategies.get("ddp"), [])
    assert (finding.condition, finding.state, finding.axis, finding.missing) == (
        "gradient integrity", State.GRADIENTS, Axis.DATA, Collective.ALL_REDUCE)
    assert str(finding) == (
        "gradient integrity: gradients on axis data: every rank has the gradient of its part of the batch "
        "only; needs one all-reduce over data")


def test_missing_reduction_across_groups() -> None:
    hsdp = strategies.get("hsdp")
    (finding,) = correctness.check(hsdp, lacking(hsdp, axes=(Axis.REPLICATE,)))
    assert (finding.axis, finding.missing) == (Axis.REPLICATE, Collective.ALL_REDUCE)


def test_missing_gather_of_updated_parameters() -> None:
    zero = strategies.get("zero-1")
    (finding,) = correctness.check(zero, lacking(zero, state=State.PARAMETERS))
    assert (finding.condition, finding.state, finding.missing) == (
        "state consistency", State.PARAMETERS, Collective.ALL_GATHER)


@pytest.mark.parametrize("phase", [Phase.FORWARD, Phase.BACKWARD])
def test_missing_gather_before_use_names_the_pass(phase: Phase) -> None:
    fsdp = strategies.get("fsdp")
    (finding,) = correctness.check(fsdp, lacking(fsdp, state=State.PARAMETERS, phase=phase))
    assert finding.missing is Collective.ALL_GATHER
    assert phase in finding.message


def test_a_norm_needs_its_reduction_over_the_sequence_parallel_axis() -> None:
    norm = composition.compose("zero-1", "tensor-sequence").holding_whole(Axis.TENSOR)
    (finding,) = correctness.check(norm, lacking(norm, axes=(Axis.TENSOR,), state=State.GRADIENTS))
    assert finding.axis is Axis.TENSOR
    assert "sequence" in finding.message


def test_reducing_twice_or_over_split_weights_is_found() -> None:
    ddp = strategies.get("ddp")
    (reduction,) = correctness.expected(ddp)
    (twice,) = correctness.check(ddp, [reduction, reduction])
    assert "more than once" in twice.message
    tensor = composition.compose("ddp", "tensor")
    (wrong,) = correctness.gradient_integrity(tensor, [reduction, replace(reduction, axes=(Axis.TENSOR,))])
    assert (wrong.axis, wrong.missing) == (Axis.TENSOR, None)
    assert "different weights" in wrong.message


def test_summing_gradients_that_are_already_complete_is_found() -> None:
    norm = strategies.get("tensor").holding_whole(Axis.TENSOR)
    (reduction,) = correctness.expected(strategies.get("ddp"))
    (finding,) = correctness.gradient_integrity(norm, [replace(reduction, axes=(Axis.TENSOR,))])
    assert "same complete gradient" in finding.message


def test_sharded_gradients_cannot_wait_for_the_end_of_the_step() -> None:
    zero = strategies.get("zero-2")
    late = [replace(one, per=Span.STEP, phase=Phase.UPDATE) for one in correctness.expected(zero)]
    assert any("earlier micro-batches" in finding.message for finding in correctness.check(zero, late))


def test_an_optimizer_that_sees_part_of_the_gradient_is_found() -> None:
    zero, ddp = strategies.get("zero-1"), strategies.get("ddp")
    scattered = [one for one in correctness.expected(zero) if one.state is State.GRADIENTS]
    (finding,) = correctness.check(ddp, scattered)
    assert (finding.state, finding.missing) == (State.GRADIENTS, Collective.ALL_GATHER)


def test_split_parameters_need_a_split_optimizer() -> None:
    placement = Placement({State.PARAMETERS: {Axis.TENSOR: Mode.SHARDED}}, {Axis.TENSOR: Dim.HIDDEN})
    assert {finding.state for finding in correctness.check(placement)} == {State.OPTIMIZER, State.GRADIENTS}


@pytest.mark.parametrize("name", ["tensor", "tensor-sequence", "pipeline", "context", "expert"])
def test_every_missing_activation_collective_is_found(name: str) -> None:
    placement = strategies.get(name)
    flows = [one for one in correctness.expected(placement) if one.state is State.ACTIVATIONS]
    assert flows
    for gone in flows:
        left = [one for one in correctness.expected(placement) if one != gone]
        (finding,) = correctness.activation_flow(placement, left)
        assert (finding.axis, finding.missing) == (gone.axis, gone.collective)
