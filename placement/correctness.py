"""Does a placement, with a list of communications, train the same model as one device would?

Two conditions of "Placement Semantics" (arXiv 2601.02311) in checkable form. *Gradient integrity*: the
gradient of every weight element is summed exactly once over every axis whose ranks computed different parts
of it, and over no other. *State consistency*: whoever holds an element has the same parameters and optimizer
state at the start of a step. The list is an argument, so that real traffic can be judged too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from placement.semantics import (
    Activations,
    Collective,
    Communication,
    Phase,
    communications,
    fetched_axes,
    gathered_after_update,
    parameter_fetches,
)
from placement.states import Axis, Placement, Reduction, Span, State

_HOST = (Collective.HOST_READ, Collective.HOST_WRITE)
_REDUCTIONS = (Collective.REDUCE_SCATTER, Collective.ALL_REDUCE, Collective.ALL_TO_ALL)  # of gradients
_GATHERS = (Collective.ALL_GATHER, Collective.BROADCAST)


@dataclass(frozen=True)
class Finding:
    """One way in which the condition fails; `missing` is None where a collective is too many, not too few."""

    condition: str  # "gradient integrity", "state consistency" or "activation flow"
    state: State
    axis: Axis
    missing: Collective | None
    message: str

    def __str__(self) -> str:
        return f"{self.condition}: {self.state} on axis {self.axis}: {self.message}"


def check(
    placement: Placement, sent: Sequence[Communication] | None = None, activations: bool = False
) -> tuple[Finding, ...]:
    """Every finding; empty when the step equals the single-device step.

    sent: the communications to judge; None: those the semantics derives. activations: the list also holds
    what activations need (judge it with the placement of the main weights).
    """
    if sent is None:
        sent = expected(placement)
    found = [*gradient_integrity(placement, sent), *state_consistency(placement, sent)]
    return tuple([*found, *activation_flow(placement, sent)] if activations else found)


def expected(placement: Placement) -> tuple[Communication, ...]:
    """The communications of a placement when sizes do not matter (one parameter, one token, one layer)."""
    sizes = Activations(1, 1, key_value_width=1, moe_layers=1, experts_per_token=1)
    return communications(placement, 1, {}, activations=sizes)


def gradient_integrity(placement: Placement, sent: Sequence[Communication]) -> Iterator[Finding]:
    """Each gradient is summed once over every axis on which it is partial, and over no other axis."""
    partial = placement.partial_axes()
    for axis in Axis:
        sums = [one for one in _over(sent, State.GRADIENTS, axis) if one.collective in _REDUCTIONS]
        collective = _reduction(placement, axis)

        def finding(message: str, missing: Collective | None = None, axis: Axis = axis) -> Finding:
            return Finding("gradient integrity", State.GRADIENTS, axis, missing, message)

        if axis in partial and not sums:
            part = placement.partition[axis]
            yield finding(f"every rank has the gradient of its part of the {part} only; "
                          f"needs one {collective} over {axis}", collective)
        if axis in partial and len(sums) > 1:
            names = " and ".join(one.collective for one in sums)
            yield finding(f"reduced {len(sums)} times ({names}), so samples count more than once")
        if axis not in partial and sums:
            why = ("ranks hold different weights" if axis in placement.split_axes()
                   else "ranks hold the same complete gradient")
            yield finding(f"{sums[0].collective} over {axis} adds what must not be added: {why}")
        late = any(one.per is Span.STEP for one in sums)
        if late and axis in partial and axis in placement.sharded_axes(State.GRADIENTS):
            yield finding(f"held sharded over {axis} but reduced once a step: all but its own shard of the "
                          "earlier micro-batches is lost; reduce every micro-batch", collective)


def _reduction(placement: Placement, axis: Axis) -> Collective:
    sharded = {*placement.sharded_axes(State.GRADIENTS)}
    if placement.reduction is not Reduction.ALL_REDUCE:
        sharded |= {*placement.sharded_axes(State.OPTIMIZER)}
    if axis not in sharded:
        return Collective.ALL_REDUCE
    by_parts = placement.reduction is Reduction.ALL_TO_ALL
    return Collective.ALL_TO_ALL if by_parts else Collective.REDUCE_SCATTER


def state_consistency(placement: Placement, sent: Sequence[Communication]) -> Iterator[Finding]:
    """Every holder of a weight element starts the step with the same value and optimizer state."""
    gathers = [one for one in sent if one.collective in _GATHERS]
    spread = Collective.BROADCAST if placement.spread.by_owners else Collective.ALL_GATHER

    def missing(state: State, axis: Axis, message: str, collective: Collective | None) -> Finding:
        return Finding("state consistency", state, axis, collective, message)

    for axis in gathered_after_update(placement):
        if not any(one.phase is Phase.UPDATE for one in _over(gathers, State.PARAMETERS, axis)):
            message = f"each rank updates its shard only; needs its {spread} over {axis} after the update"
            yield missing(State.PARAMETERS, axis, message, spread)
    for phase, _ in parameter_fetches(placement):
        for axis in fetched_axes(placement, phase):
            if not any(one.phase is phase for one in _over(gathers, State.PARAMETERS, axis)):
                message = f"sharded, and not gathered over {axis} for the {phase} pass"
                yield missing(State.PARAMETERS, axis, message, Collective.ALL_GATHER)
    yield from _update_consistency(placement, sent, missing)
    yield from _absent(placement, sent, "state consistency", lambda one: one.state is not State.ACTIVATIONS
                       and one.collective in _HOST)


def _update_consistency(
    placement: Placement, sent: Sequence[Communication],
    missing: Callable[[State, Axis, str, Collective | None], Finding],
) -> Iterator[Finding]:
    """The update of an element sees its whole gradient wherever the optimizer holds the element."""
    owned = placement.sharded_axes(State.OPTIMIZER)
    for axis in placement.split_axes():
        for state in (State.OPTIMIZER, State.GRADIENTS):
            if axis not in placement.sharded_axes(state):
                yield missing(state, axis, f"parameters are split over {axis} and never gathered, so {state} "
                              "must be sharded there too", None)
    for axis in placement.axes:
        over = _over(sent, State.GRADIENTS, axis)
        scattered = any(one.collective in (Collective.REDUCE_SCATTER, Collective.ALL_TO_ALL) for one in over)
        scattered |= axis in placement.sharded_axes(State.GRADIENTS) and axis not in placement.split_axes()
        gathered = any(one.collective is Collective.ALL_GATHER for one in over)
        if axis not in owned and scattered and not gathered:
            message = f"scattered over {axis}, but the optimizer is replicated there and needs all of it"
            yield missing(State.GRADIENTS, axis, message, Collective.ALL_GATHER)


def activation_flow(placement: Placement, sent: Sequence[Communication]) -> Iterator[Finding]:
    """Partial sums, tokens and stage boundaries reach the rank that continues with them."""
    yield from _absent(placement, sent, "activation flow", lambda one: one.state is State.ACTIVATIONS)


def _absent(
    placement: Placement, sent: Sequence[Communication], condition: str,
    wanted: Callable[[Communication], bool],
) -> Iterator[Finding]:
    present = {(one.collective, one.state, one.axes, one.phase) for one in sent}
    for one in filter(wanted, expected(placement)):
        if (one.collective, one.state, one.axes, one.phase) not in present:
            message = f"needs a {one.collective} in the {one.phase} phase"
            yield Finding(condition, one.state, one.axis, one.collective, message)


def _over(sent: Sequence[Communication], state: State, axis: Axis) -> list[Communication]:
    return [one for one in sent if one.state is state and axis in one.axes]
