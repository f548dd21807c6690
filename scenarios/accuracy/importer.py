"""One importer: a published row becomes the scenarios it may mean, with every published field used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costmodel.architecture import Model
from costmodel.stack import MOE_DISPATCHERS
from scenarios.accuracy.clusters import cluster_of
from scenarios.accuracy.models import NotExpressible, model_of
from scenarios.accuracy.plans import plans_of
from scenarios.accuracy.rows import Row
from scenarios.accuracy.schedule_import import BEST, is_training_run, scenarios_of
from scenarios.accuracy.stacks import Bundle, bundle_of
from simulator.inputs import TrainingInputs


@dataclass(frozen=True)
class Imported:
    """A row as scenarios: one where it is fully specified, several where a blank leaves a range."""

    row: Row
    alternatives: tuple[TrainingInputs, ...]
    bundle: Bundle
    blanks: tuple[str, ...]  # columns whose blank made the range
    approximated: tuple[str, ...]  # stated things that the core has no input for yet
    best: bool = False  # what was printed is the best of the alternatives


def import_row(row: Row) -> Imported:
    """Raises NotExpressible with the reason where no scenario can be made of the row."""
    if row.of_schedule and not is_training_run(row):
        found, blanks = scenarios_of(row)
        bundle = Bundle(str(found[0].stack["name"]), row.text("source"))
        return Imported(row, found, bundle, blanks, (), row.text("metric") == BEST)
    sequence = row.integer("seq")
    if sequence is None:
        raise NotExpressible("column seq is blank")
    model, cluster, bundle = model_of(row), cluster_of(row), bundle_of(row)
    plans = plans_of(row, model, cluster.accelerator, cluster.node.scale_up_domain, bundle)
    batch = row.integer("global_batch") or 0
    blocks = _stacks(row, model, bundle)
    alternatives = tuple(
        TrainingInputs(row.id, "", row.place.file, {}, model, cluster, plan, sequence, batch, stack=block,
                       fidelity="analytic")
        for plan in plans.alternatives for block in blocks
    )
    blanks = (*plans.blanks, *(("dispatcher",) if len(blocks) > 1 else ()))
    return Imported(row, alternatives, bundle, blanks, (*plans.approximated, *_left_out(row)))


def _stacks(row: Row, model: Model, bundle: Bundle) -> tuple[dict[str, Any], ...]:
    """The stack block; one per dispatcher where a recipe of Megatron-Bridge with experts was not matched."""
    experts = any(layer.feed_forward.experts for layer in set(model.layers))
    unknown = bundle.stack == "megatron-bridge" and "recipe match" not in row.text("notes")
    if not (experts and unknown) or "moe_dispatcher" in bundle.choices:
        return (bundle.block,)
    return tuple({**bundle.block, "moe_dispatcher": name} for name in MOE_DISPATCHERS)


def _left_out(row: Row) -> tuple[str, ...]:
    """Stated things that decide time or memory and that no input of the core holds yet."""
    notes, found = row.text("notes"), list[str]()
    if row.text("offload") not in ("", "none"):
        found.append("offloaded activations")
    if "moe-token-dispatcher-type" in notes and "alltoall" not in notes:
        found.append("MoE dispatcher")
    if "tokendrop" in notes:
        found.append("token dropping")
    return tuple(found)
