"""Which plans torch can lay out on real ranks, and where each rank stands. Needs no torch.

Ranks are numbered tensor first, then data, pipeline outermost, as `placement.plan` has it; the expert ranks are
neighbouring data ranks. `unsupported` says what of a plan is refused before anything is launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from costmodel.architecture import Attention, Model
from placement.plan import Plan, layers_of_chunks
from placement.states import Placement
from placement.strategies import get as strategy
from simulator.real.buildable import reasons

TORCH_SCHEDULES = {  # ours to those of torch.distributed.pipelining
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved-1f1b": "Interleaved1F1B",
    "interleaved-bfs": "LoopedBFS",
    "zbv": "ZBVZeroBubble",
    "dualpipe-v": "DualPipeV",
}
_SPLIT = ("zbv", "dualpipe-v")  # schedules with a V of two chunks and W apart from B
_SINGLE = ("gpipe", "1f1b")  # one chunk a rank in torch
SHARDINGS = ("ddp", "fsdp", "zero-3", "fsdp-shard-grad-op", "fsdp-no-reshard", "hsdp")
_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Place:
    """Where a rank stands: its coordinates on the axes of the plan."""

    tensor: int
    data: int
    pipeline: int


def place_of(rank: int, plan: Plan) -> Place:
    """
    >>> place_of(5, Plan(tensor=2, data=2, pipeline=2))
    Place(tensor=1, data=0, pipeline=1)
    """
    outer, tensor = divmod(rank, plan.tensor)
    pipeline, data = divmod(outer, plan.data)
    return Place(tensor, data, pipeline)


def stages_of(pipeline_rank: int, plan: Plan) -> list[int]:
    """The chunks (torch's stages) of a pipeline rank in its own order: in a V the second chunk comes back."""
    p, v = int(plan.pipeline), int(plan.virtual)
    if plan.schedule in _SPLIT:
        return [pipeline_rank, 2 * p - 1 - pipeline_rank]
    return [pipeline_rank + p * chunk for chunk in range(v)]


def layers_of_stages(model: Model, plan: Plan) -> list[tuple[int, int]]:
    """First and last + 1 layer of every stage in model order."""
    edges = [0]
    for count in layers_of_chunks(len(model.layers), plan):
        edges.append(edges[-1] + count)
    return list(pairwise(edges))


def sharding_of(plan: Plan) -> str:
    """The name of the sharding; "" with one data rank, where there is nothing to share."""
    if plan.data == 1:
        return ""
    return plan.sharding.name if isinstance(plan.sharding, Placement) else str(plan.sharding)


def is_fully_sharded(plan: Plan) -> bool:
    return sharding_of(plan) not in ("", "ddp")


def unsupported(model: Model, plan: Plan) -> list[str]:
    """What keeps torch from running the plan for real, a line each naming the key and what exists; empty: nothing."""
    found = [f"model: {reason}" for reason in reasons(model)]
    found += _axes(plan) + _pipeline(model, plan) + _sharding(plan) + _passes(plan)
    if plan.tensor > 1:
        found += _tensor(model, plan)
    if plan.expert > 1:
        found += _expert(model, plan)
    return found


def _axes(plan: Plan) -> list[str]:
    found = []
    if plan.context > 1:
        found.append(f"plan.context {plan.context}: real runs have no context parallelism; use 1")
    if plan.segments > 1:
        found.append(f"plan.segments {plan.segments}: torch's schedules do not cut sequences; use 1")
    if plan.expert_tensor > 1:
        found.append(f"plan.expert_tensor {plan.expert_tensor}: experts are whole on a rank; use 1")
    return found


def _pipeline(model: Model, plan: Plan) -> list[str]:
    if plan.pipeline == 1:
        return [f"plan.virtual {plan.virtual}: chunks need a pipeline; use 1"] if plan.virtual > 1 else []
    found = []
    if plan.schedule not in TORCH_SCHEDULES:
        found.append(f"plan.schedule {plan.schedule}: torch has {', '.join(TORCH_SCHEDULES)}")
    elif plan.schedule in _SINGLE and plan.virtual > 1:
        found.append(f"plan.virtual {plan.virtual}: torch's {plan.schedule} has one chunk a rank; use interleaved-1f1b")
    elif plan.schedule in _SPLIT and plan.virtual != 2:
        found.append(f"plan.virtual {plan.virtual}: {plan.schedule} has two chunks a rank")
    if model.tied_embeddings:
        found.append("model: tied embeddings lie on two stages, whose gradients torch's pipelines do not sum; "
                     "untie them or use pipeline 1")
    if plan.schedule in _SPLIT and plan.data > 1:
        found.append(f"plan.data {plan.data} with {plan.schedule}: torch's DDP does not see a weight gradient made "
                     "apart from B, and FSDP's losses then differ from one process; use data 1 or another schedule")
    if plan.schedule in _SPLIT and plan.recompute != "none":
        found.append(f"plan.recompute {plan.recompute}: torch cannot part B from W of a recomputed layer; use none")
    if plan.recompute_chunks is not None or plan.offload_chunks:
        found.append("plan.recompute_chunks and plan.offload_chunks: torch's schedules have no such passes")
    if plan.expert > 1:
        found.append("plan.expert with plan.pipeline: real runs have one of the two")
    return found


def _sharding(plan: Plan) -> list[str]:
    name = sharding_of(plan)
    if name and name not in SHARDINGS:
        return [f"plan.sharding {name or 'written out'}: torch has {', '.join(SHARDINGS)}"]
    if isinstance(plan.sharding, Placement) and plan.data > 1 and (
            plan.sharding.modes != strategy(name).modes or plan.sharding.partition != strategy(name).partition):
        return [f"plan.sharding written out: torch has {', '.join(SHARDINGS)}"]
    if name == "hsdp" and not _divides(plan.shard_group, plan.data):
        return [f"plan.shard_group {plan.shard_group}: hsdp needs one that divides data {plan.data}"]
    return []


def _divides(part: int | None, whole: int) -> bool:
    return bool(part) and whole % int(part or 1) == 0


def _passes(plan: Plan) -> list[str]:
    found = []
    if plan.recompute not in ("none", "full"):
        found.append(f"plan.recompute {plan.recompute}: real runs have none and full")
    if plan.precision not in _PRECISIONS:
        found.append(f"plan.precision {plan.precision}: real runs have {', '.join(_PRECISIONS)}")
    if plan.changes:
        found.append("plan.techniques, plan.trainable: real runs train the plain model")
    return found


def _tensor(model: Model, plan: Plan) -> list[str]:
    t = plan.tensor
    found = []
    if sharding_of(plan) == "ddp":
        found.append("plan.sharding ddp with plan.tensor: torch's DDP takes no DTensor; use fsdp")
    if plan.expert > 1 or any(layer.feed_forward.experts for layer in model.layers):
        found.append("plan.tensor with experts: real runs keep experts whole; use tensor 1")
    if plan.pipeline > 1 and plan.sequence_parallel:
        found.append("plan.sequence_parallel with plan.pipeline: real runs have one of the two")
    if plan.sequence_parallel and model.positions:
        found.append("plan.sequence_parallel with learned positions: real runs have it with rotary ones")
    if model.vocabulary % t:
        found.append(f"plan.tensor {t} does not divide the vocabulary {model.vocabulary}")
    if model.embedding_width or model.head_bias or model.embedding_norm or model.tied_embeddings:
        found.append("plan.tensor with tied, projected or normed embeddings or a head's bias: not laid out")
    for layer in dict.fromkeys(model.layers):
        found += _tensor_attention(layer.attention, t)
        if layer.feed_forward.width % t:
            found.append(f"plan.tensor {t} does not divide the MLP's width {layer.feed_forward.width}")
    return list(dict.fromkeys(found))


def _tensor_attention(a: Attention, tensor: int) -> list[str]:
    biased = (a.query_bias, a.key_bias, a.value_bias)
    if a.kind != "gqa" or a.query_key_norm or (any(biased) and not all(biased)):
        return ["plan.tensor with latent attention, query-key norms or biases of a part: not laid out"]
    if a.heads % tensor or a.kv_heads % tensor:
        return [f"plan.tensor {tensor} does not divide the heads {a.heads} and {a.kv_heads}"]
    return []


def _expert(model: Model, plan: Plan) -> list[str]:
    found = []
    if is_fully_sharded(plan) or plan.data % plan.expert:
        found.append(f"plan.expert {plan.expert}: experts lie on data ranks (it must divide data {plan.data}) with "
                     "sharding ddp")
    for layer in dict.fromkeys(model.layers):
        if layer.feed_forward.experts % plan.expert:
            found.append(f"plan.expert {plan.expert} does not divide the experts {layer.feed_forward.experts}")
    return found
