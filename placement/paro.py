"""PaRO (arXiv 2310.06003): each training state replicated, sharded inside a group, or sharded over all ranks.

A triple names the levels of parameters, gradients and optimizer: N (none), I (intra-group), G (global). All 27
are placements; memory and communication of each follow from `placement.semantics`. Known points: GGG is ZeRO-3,
NGG ZeRO-2, NNG ZeRO-1, III MiCS.
"""

from __future__ import annotations

from functools import cache
from itertools import product

from placement.states import STATE_BYTES, Axis, Dim, Mode, Placement, PlacementError, State

AXES: dict[str, tuple[Axis, ...]] = {"N": (), "I": (Axis.SHARD,), "G": (Axis.SHARD, Axis.REPLICATE)}
WORDS = {"N": "whole", "I": "in the group", "G": "over all"}
STATES = (State.PARAMETERS, State.GRADIENTS, State.OPTIMIZER)
TRIPLES = tuple("".join(levels) for levels in product(AXES, repeat=3))
MOSTLY_FROZEN = 1 / 16  # the share of trained weights up to which the paper looks at adapters


@cache
def placement(triple: str) -> Placement:
    """The placement of a triple, named `paro-nig` and so on. Raises PlacementError for no triple.

    >>> placement("IGG").sharded_axes(State.OPTIMIZER)
    (<Axis.SHARD: 'shard'>, <Axis.REPLICATE: 'replicate'>)
    """
    if triple not in TRIPLES:
        raise PlacementError(f"{triple!r} is no triple of N (none), I (intra-group) and G (global)")
    modes = {
        state: dict.fromkeys(AXES[level], Mode.SHARDED_WITH_GATHER if state is State.PARAMETERS else Mode.SHARDED)
        for state, level in zip(STATES, triple, strict=True)
    }
    levels = ", ".join(f"{state} {WORDS[level]}" for state, level in zip(STATES, triple, strict=True))
    source = f"PaRO, arXiv 2310.06003: {levels}"
    return Placement(modes, {Axis.SHARD: Dim.BATCH, Axis.REPLICATE: Dim.BATCH}, bytes=STATE_BYTES["mixed"],
                     name=f"paro-{triple.lower()}", source=f"{source}; {said}" if (said := note(triple)) else source)


def note(triple: str) -> str:
    """What is to be said of a triple that is legal and seldom pays."""
    parameters, gradients, optimizer = ("NIG".index(level) for level in triple)
    if optimizer < max(parameters, gradients):
        return "the largest state is the least divided one"
    if parameters > gradients:
        return "whole gradients of divided parameters pay only where few weights are trained"
    return ""


def worth_trying(trainable_share: float = 1.0) -> tuple[str, ...]:
    """The triples left when those go that another beats in memory without costing more traffic: the optimizer, the
    largest state, is the most divided one; gradients are no coarser than parameters unless few weights are trained."""
    few = trainable_share <= MOSTLY_FROZEN
    return tuple(one for one in TRIPLES if not note(one) or (few and note(one).startswith("whole gradients")))
