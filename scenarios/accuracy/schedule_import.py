"""A value of a paper on pipeline schedules (a row of pipeline.csv) becomes the scenario that it was measured on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from costmodel import parameters
from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.hardware import Cluster
from placement import schedules
from placement.plan import Plan
from placement.states import STATE_BYTES
from scenarios.accuracy.clusters import node_of
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.papers import SCHEDULES, TRAINED, Paper, paper_of
from scenarios.accuracy.rows import Row
from simulator.inputs import TrainingInputs
from simulator.predict import play

NEEDED = ("layers", "hidden", "heads", "seq", "gpus")
DEGREES = ("pp", "tp", "dp", "micro_batch")
BEST = "MFU_best_of_grid"  # the paper prints the best of its plans
WIDTHS, SIZES, LONGEST = (1, 2, 4, 8), (1, 2), 10  # tensor degrees, micro-batches and most stages of such a grid
PLAYED = 2  # plans of a grid that are played with the row's own schedule
AS_THOUSANDS = "k"  # 256k is 256,000 (artifact/quick_exp.sh of VocabularyParallelism)


def is_training_run(row: Row) -> bool:
    """Whether the importer of training.csv reads the row."""
    paper = paper_of(row.text("source"))
    return paper is not None and paper.name in TRAINED


def scenarios_of(row: Row) -> tuple[tuple[TrainingInputs, ...], tuple[str, ...]]:
    """(alternatives, columns whose blank made them). Raises NotExpressible with the reason."""
    paper = paper_of(row.text("source"))
    if paper is None:
        raise NotExpressible(f"source {row.text('source')!r}: not known what it ran with")
    if reason := paper.not_of_a_step.get(row.text("table")):
        raise NotExpressible(reason)
    if row.integer("seq") is None and paper.sequences:
        each = [replace(row, values={**row.values, "seq": float(sequence)}) for sequence in paper.sequences]
        return tuple(one for stated in each for one in scenarios_of(stated)[0]), ("seq",)
    for column in NEEDED:
        if row.integer(column) is None:
            raise NotExpressible(f"column {column} is blank")
    if "value" not in row.values and row.text("notes") != "OOM":
        raise NotExpressible("column value is blank")
    best = row.text("metric") == BEST
    for column in () if best else DEGREES:
        if row.integer(column) is None and column != "tp":
            raise NotExpressible(f"column {column} is blank")
    name, chunks = schedule_of(row)
    model = model_of(row, paper)
    cluster = cluster_of(row)
    block = dict(paper.stack_of_table.get(row.text("table"), paper.stack))
    plans = tuple(_plans(row, paper, name, chunks, best))
    if best:
        plans = tuple(plan for plan in plans if _least_bytes(model, plan) < cluster.accelerator.memory.capacity_bytes)
    if not plans:
        raise NotExpressible("no plan closes the GPU count and divides the batch")
    batch, sequence = row.integer("global_batch") or 0, row.integer("seq") or 0
    found = tuple(TrainingInputs(row.id, "", row.place.file, {}, model, cluster, plan, sequence, batch, stack=block,
                                 fidelity="analytic") for plan in plans)
    return (_fastest(found), DEGREES) if best else (found, ())


def _fastest(found: tuple[TrainingInputs, ...]) -> tuple[TrainingInputs, ...]:
    """The few of a grid that are fastest under 1F1B, whose closed form is cheap, of those that fit under it where any
    does; only they are played."""
    quick = list[tuple[float, int, bool]]()
    for one in found:
        played = play(replace(one, plan=replace(one.plan, schedule="1f1b", virtual=1, optimizer_barrier=True)))
        quick.append((played.step.step_time_s, len(quick), played.fits))
    quick.sort()
    chosen = [one for one in quick if one[2]] or quick
    return tuple(found[number] for _, number, _ in chosen[:PLAYED])


def schedule_of(row: Row) -> tuple[str, int | None]:
    """(name in the registry, chunks a rank where the schedule fixes them)."""
    printed = row.text("schedule")
    if printed not in SCHEDULES:
        raise NotExpressible(f"schedule {printed!r} is not one of ours")
    name, chunks = SCHEDULES[printed]
    if name not in schedules.names():
        raise NotExpressible(f"schedule {name!r} is not in the registry")
    return name, chunks


def vocabulary_of(row: Row, paper: Paper) -> int:
    text = row.text("vocab").lower()
    if not text and paper.vocabulary is None:
        raise NotExpressible("column vocab is blank")
    if not text:
        return paper.vocabulary or 0
    return int(float(text.removesuffix(AS_THOUSANDS)) * (1000 if text.endswith(AS_THOUSANDS) else 1))


def model_of(row: Row, paper: Paper) -> Model:
    """GPT with biases, layer norms, learned positions and dropout, of the row's shape."""
    layers, hidden, heads, sequence, _ = (row.integer(column) or 0 for column in NEEDED)
    return _gpt(row.text("model"), layers, hidden, heads, vocabulary_of(row, paper), paper.tied,
                paper.positions or sequence, paper.source)


@cache
def _gpt(name: str, layers: int, hidden: int, heads: int, vocabulary: int, tied: bool, positions: int, source: str
         ) -> Model:
    size = hidden // heads
    attention = Attention("gqa", heads, heads, size, size, query_bias=True, key_bias=True, value_bias=True,
                          output_bias=True)
    layer = Layer(attention, FeedForward(4 * hidden, gated=False, bias=True))
    return Model(name, hidden, vocabulary, (layer,) * layers, tied, "layer", positions, dropout=True, source=source)


def cluster_of(row: Row) -> Cluster:
    node = node_of(row.text("accelerator"))
    if node is None:
        raise NotExpressible(f"accelerator {row.text('accelerator')!r} is in no node of the catalogue")
    gpus = row.integer("gpus") or 0
    return Cluster(node, -(-gpus // node.accelerators), gpus)


def _plans(row: Row, paper: Paper, name: str, chunks: int | None, best: bool) -> Iterator[Plan]:
    """The row's plan; of a grid every one that closes the GPU count and divides layers and batch."""
    splits = schedules.get(name).splits_backward
    layers, heads = row.integer("layers") or 0, row.integer("heads") or 1
    batch, gpus = row.integer("global_batch") or 0, row.integer("gpus") or 0
    common: dict[str, Any] = {
        "schedule": name, "sharding": paper.sharding, "state_bytes": "mixed", "recompute": row.text("recompute"),
        "precision": row.text("precision"),
        "optimizer_barrier": paper.barrier or not splits or row.text("schedule").endswith("sync"),
    }
    for pipeline, tensor, size in _degrees(row, gpus, best):
        data, virtual = gpus // (pipeline * tensor), chunks or row.integer("vp") or 1
        fits = heads % tensor == 0 and batch % (data * size) == 0 and batch > 0
        whole = not best or (layers + 2 * paper.short_ends) % (pipeline * virtual) == 0
        if fits and whole:
            yield Plan(**common, pipeline=pipeline, tensor=tensor, data=data, virtual=virtual, micro_batch=size,
                       sequence_parallel=tensor > 1,
                       stage_layers=stage_layers_of(row, paper, layers, pipeline, virtual))


def _least_bytes(model: Model, plan: Plan) -> float:
    """What the states of a rank take at least: spares the evaluation of plans that cannot fit."""
    of = STATE_BYTES["mixed"]
    per_parameter = of.parameters + of.gradients + of.optimizer / float(plan.data)
    return parameters.count(model) * per_parameter / float(plan.pipeline * plan.tensor)


def _degrees(row: Row, gpus: int, best: bool) -> Iterator[tuple[int, int, int]]:
    """(pipeline, tensor, micro-batch) as stated, or of the grid."""
    stated = {column: row.integer(column) for column in ("pp", "tp", "micro_batch")}
    pipelines = [stated["pp"]] if stated["pp"] else [p for p in range(2, LONGEST + 1) if gpus % p == 0]
    tensors = [stated["tp"]] if stated["tp"] else list(WIDTHS) if best else [1]
    sizes = [stated["micro_batch"]] if stated["micro_batch"] else list(SIZES)
    for pipeline, tensor, size in itertools.product(pipelines, tensors, sizes):
        if gpus % (pipeline * tensor) == 0:
            yield pipeline, tensor, size


def stage_layers_of(row: Row, paper: Paper, layers: int, pipeline: int, virtual: int) -> str | tuple[int, ...]:
    """Even; one less at either end; or moved away from the head ("Redis")."""
    if row.text("schedule").lower().endswith("redis"):
        return redistributed(layers, pipeline, row.integer("hidden") or 0, row.integer("seq") or 0,
                             vocabulary_of(row, paper))
    return "balanced" if paper.short_ends and (layers + 2) % (pipeline * virtual) == 0 else "even"


def redistributed(layers: int, pipeline: int, hidden: int, sequence: int, vocabulary: int) -> tuple[int, ...]:
    """Layers by stage where the last stage's share is made up by the head's FLOPs (arXiv 2411.05288, section 6.2,
    costs of its table 4): it holds the mean of all work less the head, rounded up; the others share the rest, later
    ones the longer part (`--final-stage-num-layers` of the repository).

    >>> redistributed(32, 8, 3072, 2048, 256_000), redistributed(32, 8, 3072, 2048, 64_000)
    ((4, 4, 4, 5, 5, 5, 5, 0), (4, 4, 4, 4, 4, 4, 5, 3))
    """
    head = 6.0 * vocabulary / (72.0 * hidden + 12.0 * sequence)
    last = max(math.ceil((layers + head) / pipeline - head), 0)
    each, longer = divmod(layers - last, pipeline - 1)
    return (*(each + (stage >= pipeline - 1 - longer) for stage in range(pipeline - 1)), last)
