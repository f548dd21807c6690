"""Strategies on one mesh: factors multiply, axes are exclusive, wrong compositions say why."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from placement import composition, strategies
from placement.composition import check_divides, compose, data_degrees, remarks, widened
from placement.semantics import Collective, communications, gradient_steps, resident_bytes
from placement.states import Axis, Dim, Mode, Placement, PlacementError, Span, State

MESH = {Axis.TENSOR: 8, Axis.CONTEXT: 2, Axis.DATA: 4, Axis.PIPELINE: 16}


def test_resident_factors_multiply() -> None:
    """Rule 2: f is the product of 1/N over the axes on which the state is sharded."""
    held = resident_bytes(compose("zero-1", "tensor", "pipeline", bytes_preset="mixed"), 1e12, MESH)
    split = 8 * 16
    assert held[State.PARAMETERS] == pytest.approx(2e12 / split)
    assert held[State.OPTIMIZER] == pytest.approx(12e12 / split / 4)


def test_order_of_composition_does_not_matter() -> None:
    parts = ("zero-3", "tensor-sequence", "pipeline")
    listed = {communications(compose(*order), 1e9, MESH, 4) for order in permutations(parts)}
    assert len(listed) == 1


def test_context_ranks_join_the_gradient_reduction() -> None:
    """Ranks of one sequence hold the same weights: one flat group over context x data."""
    assert gradient_steps(compose("ddp", "context")) == (
        (Collective.ALL_REDUCE, (Axis.CONTEXT, Axis.DATA), Span.STEP),)
    sharded = widened(compose("zero-1", "context", bytes_preset="megatron"), Axis.CONTEXT)
    assert gradient_steps(sharded) == ((Collective.REDUCE_SCATTER, (Axis.CONTEXT, Axis.DATA), Span.STEP),)
    assert sum(resident_bytes(sharded, 1, MESH).values()) == 6 + 12 / (4 * 2)  # memory_notes A2


def test_expert_weights_are_reduced_over_their_replicas_only_and_dense_ones_over_all() -> None:
    experts = compose("zero-1", "expert", bytes_preset="megatron")
    dense = widened(experts.holding_whole(Axis.EXPERT), Axis.EXPERT)
    assert gradient_steps(experts) == ((Collective.REDUCE_SCATTER, (Axis.DATA,), Span.STEP),)
    assert gradient_steps(dense) == ((Collective.REDUCE_SCATTER, (Axis.EXPERT, Axis.DATA), Span.STEP),)
    degrees = {Axis.DATA: 4, Axis.EXPERT: 8}
    assert sum(resident_bytes(experts, 8, degrees).values()) == 6 + 12 / 4
    assert sum(resident_bytes(dense, 1, degrees).values()) == 6 + 12 / 32


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("ddp", "zero-1"), "both divide work over axis data"),
        (("hsdp", "ddp"), "both divide work over axis"),
        (("tensor", "tensor-sequence"), "both divide work over axis tensor"),
        (("no-such", "tensor"), "no strategy 'no-such'"),
    ],
)
def test_illegal_compositions_say_why(parts: tuple[str, ...], reason: str) -> None:
    with pytest.raises(PlacementError, match=reason):
        compose(*parts)


def test_a_composition_that_trains_another_model_is_refused() -> None:
    modes = {State.PARAMETERS: {Axis.TENSOR: Mode.SHARDED}}
    broken = Placement(modes, {Axis.TENSOR: Dim.HIDDEN}, name="broken")
    with pytest.raises(PlacementError, match="ddp x broken does not train the single-device model: state"):
        compose("ddp", broken)


def test_contradicting_options_are_refused() -> None:
    other = replace(strategies.get("pipeline"), bytes=strategies.get("zero-3").bytes)
    with pytest.raises(PlacementError, match="the parts differ in bytes"):
        compose("zero-1", other)


def test_no_state_is_sharded_over_an_axis_that_splits_the_weights() -> None:
    with pytest.raises(PlacementError, match="axis tensor splits the weights"):
        widened(compose("zero-1", "tensor"), Axis.TENSOR)


def test_axes_that_split_one_dimension_must_divide_it_together() -> None:
    """Rule 1: context x sequence-parallel tensor on the sequence."""
    placement = compose("zero-1", "tensor-sequence", "context")
    check_divides(placement, MESH, {Dim.SEQUENCE: 8192, Dim.BATCH: 4})
    with pytest.raises(PlacementError, match="sequence 8200 does not divide by tensor 8 x context 2 = 16"):
        check_divides(placement, MESH, {Dim.SEQUENCE: 8200})


def test_degrees_of_hybrid_sharding() -> None:
    hsdp = strategies.get("hsdp")
    assert data_degrees(strategies.get("zero-1"), 32) == {Axis.DATA: 32}
    assert data_degrees(hsdp, 32) == {Axis.SHARD: 32, Axis.REPLICATE: 1}
    assert data_degrees(hsdp, np.array([16, 32]), 8)[Axis.REPLICATE].tolist() == [2, 4]
    with pytest.raises(PlacementError, match="data 30 is not a multiple of the shard group 8"):
        data_degrees(hsdp, 30, 8)


def test_one_group_of_all_ranks_is_full_sharding() -> None:
    """HSDP over one group and FSDP hold and send the same."""
    hsdp, fsdp = strategies.get("hsdp"), strategies.get("fsdp")
    hybrid = communications(hsdp, 1e9, data_degrees(hsdp, 32), 4)
    full = communications(fsdp, 1e9, data_degrees(fsdp, 32), 4)
    assert sum(o.sent_bytes_per_step for o in hybrid) == sum(o.sent_bytes_per_step for o in full)
    assert resident_bytes(hsdp, 1e9, data_degrees(hsdp, 32)) == resident_bytes(fsdp, 1e9, {Axis.DATA: 32})


def test_remarks_on_legal_but_dear_compositions() -> None:
    """Rules 4 and 5."""
    assert remarks(compose("zero-1", "tensor", "pipeline"), list(MESH)) == ()
    (scatter,) = remarks(compose("zero-2", "pipeline"))
    assert "reduce-scatter over data is paid for every micro-batch" in scatter
    assert len(remarks(compose("zero-3", "pipeline"))) == 2
    (order,) = remarks(compose("zero-1", "tensor"), [Axis.DATA, Axis.TENSOR])
    assert "tensor sends more than data" in order
    assert composition.remarks(strategies.get("zero-2")) == ()
