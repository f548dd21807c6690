"""One process's part of the model: cut, sharded and wrapped as the plan says, by torch's own composable pieces.

Every part starts from the numbers of the whole model, since weights are drawn from their names (`initialise`).
"""

# mypy checks without torch: its modules are Any there
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call"
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from costmodel.architecture import Model
from placement.plan import Plan
from simulator.real.layouts import is_fully_sharded, sharding_of
from simulator.real.memory import recomputed
from simulator.real.model import Decoder, Experts, MixtureOfExperts, Mlp, initialise, rows_by_rank


def mesh_of(plan: Plan, device: torch.device) -> Any:
    """The mesh pipeline x data x tensor, or pipeline x replicate x shard x tensor with hybrid sharding."""
    from torch.distributed.device_mesh import init_device_mesh

    if sharding_of(plan) == "hsdp":
        group = int(plan.shard_group or plan.data)
        sizes, names = (plan.pipeline, plan.data // group, group, plan.tensor), ("pipeline", "replicate", "shard",
                                                                                 "tensor")
        return init_device_mesh(device.type, sizes, mesh_dim_names=names)
    return init_device_mesh(device.type, (plan.pipeline, plan.data, plan.tensor),
                            mesh_dim_names=("pipeline", "data", "tensor"))


def part(model: Model, plan: Plan, sequence: int, first: int, last: int, mesh: Any, device: torch.device,
         seed: int) -> nn.Module:
    """Layers first .. last - 1 as this rank holds them. The order is torch's: tensor, recompute, data."""
    decoder = Decoder(model, sequence, first, last)
    initialise(decoder, seed)
    decoder = decoder.to(device=device, dtype=torch.bfloat16 if plan.precision == "bf16" else torch.float32)
    if plan.tensor > 1:
        split_tensors(decoder, plan, mesh["tensor"])
    if plan.expert > 1:
        split_experts(decoder, plan)
    if plan.recompute == "full":
        decoder = recomputed(decoder)
    if is_fully_sharded(plan):
        shard(decoder, plan, mesh)
    elif sharding_of(plan) == "ddp":
        return replicated(decoder, mesh["data"].get_group())
    return decoder


def split_tensors(decoder: Decoder, plan: Plan, mesh: Any) -> None:
    """Megatron's layout by DTensor: columns of qkv and up, rows of output and down, the vocabulary of both ends.

    With sequence parallelism what lies between the blocks is split along the sequence."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    between = Shard(1) if plan.sequence_parallel else Replicate()
    columns, rows = ColwiseParallel(input_layouts=between), RowwiseParallel(output_layouts=between)
    styles: dict[str, Any] = {"attention.qkv": columns, "attention.output": rows, "feed_forward.up": columns,
                              "feed_forward.down": rows}
    if plan.sequence_parallel:
        norm = SequenceParallel(use_local_output=True)
        styles |= {"attention_norm": norm, "attention_post_norm": norm, "feed_forward_norm": norm,
                   "feed_forward_post_norm": norm}
    for layer in decoder.layers.values():
        _order_rows(layer, plan.tensor)
        there = dict(layer.named_modules())
        parallelize_module(layer, mesh, {name: style for name, style in styles.items() if name in there})
    if decoder.embedding is not None:
        vocabulary = RowwiseParallel(input_layouts=Replicate(), output_layouts=between)
        parallelize_module(decoder, mesh, {"embedding": vocabulary})
    if decoder.head is not None:
        ends: dict[str, Any] = {
            "head": ColwiseParallel(input_layouts=between, output_layouts=Shard(-1), use_local_output=False)}
        if plan.sequence_parallel and decoder.final_norm is not None:
            ends["final_norm"] = SequenceParallel(use_local_output=True)
        parallelize_module(decoder, mesh, ends)


@torch.no_grad()
def _order_rows(layer: Any, ranks: int) -> None:
    """Puts the rows of fused matrices in the order in which equal parts hold a rank's share of each piece."""
    fused = [(layer.attention.qkv, layer.attention.widths)]
    up = layer.feed_forward.up
    if up.out_features == 2 * layer.feed_forward.down.in_features:
        fused.append((up, (up.out_features // 2,) * 2))
    for linear, sizes in fused:
        order = rows_by_rank(sizes, ranks)
        for parameter in (linear.weight, linear.bias):
            if parameter is not None:
                parameter.copy_(parameter[order])


def shard(decoder: Decoder, plan: Plan, mesh: Any) -> None:
    """FSDP2: every layer a unit, the rest with the root."""
    from torch.distributed.fsdp import fully_shard

    over = mesh["replicate", "shard"] if sharding_of(plan) == "hsdp" else mesh["data"]
    reshard = sharding_of(plan) in ("fsdp", "zero-3", "hsdp")
    for layer in decoder.layers.values():
        fully_shard(layer, mesh=over, reshard_after_forward=reshard)
    fully_shard(decoder, mesh=over, reshard_after_forward=reshard)


def replicated(decoder: Decoder, group: Any) -> nn.Module:
    """DDP over all but the experts that only this rank holds."""
    from torch.nn.parallel import DistributedDataParallel

    own = [name for name, _ in decoder.named_parameters() if ".experts.experts." in name]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(decoder, own)
    return DistributedDataParallel(decoder, process_group=group, gradient_as_bucket_view=True)


class Exchange(torch.autograd.Function):
    """Rows to other ranks and back by all-to-all; its gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], owner: ExpertParallel) -> Tensor:
        ctx.sent, ctx.received, ctx.owner = sent, received, owner
        return owner.exchange(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.owner.exchange(gradient.contiguous(), ctx.received, ctx.sent), None, None, None


class ExpertParallel(nn.Module):
    """In place of `Experts`: rows go to the rank of their expert and their results come back, even or uneven.

    Rank i of the group holds experts i E/n .. (i + 1) E/n - 1. `waited_s` gathers what all-to-alls took (wall)."""

    def __init__(self, experts: Experts, group: Any, replicas: Any) -> None:
        super().__init__()
        self.group, self.replicas = group, replicas
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        self.own = len(experts.members) // ranks
        self.experts = Experts([_mlp(member) for member in
                                list(experts.members)[rank * self.own:(rank + 1) * self.own]])
        self.waited_s = 0.0

    def exchange(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows (sum of sent, h) in the order of their ranks to rows (sum of received, h)."""
        begin_s = time.perf_counter()
        out = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), received, sent, group=self.group)
        self.waited_s += time.perf_counter() - begin_s
        return out

    def forward(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """As `Experts.forward`, with `counts` of all experts of the model."""
        here = torch.tensor(list(counts), device=rows.device).view(-1, self.own)  # (rank, its experts)
        there = self.exchange(here.flatten(), [self.own] * len(here), [self.own] * len(here)).view(-1, self.own)
        sent, received = here.sum(1).tolist(), there.sum(1).tolist()
        arrived = Exchange.apply(rows, sent, received, self)
        expert = torch.arange(self.own, device=rows.device).repeat(len(there))
        order = expert.repeat_interleave(there.flatten()).argsort(stable=True)  # from by rank to by expert
        made = self.experts(arrived[order], there.sum(0).tolist())
        return Exchange.apply(made[order.argsort()], received, sent, self)


def _mlp(module: nn.Module) -> Mlp:
    assert isinstance(module, Mlp)
    return module


def split_experts(decoder: Decoder, plan: Plan) -> None:
    """Neighbouring data ranks hold the experts between them; the groups are made by all ranks alike."""
    ranks = int(plan.expert)
    group, replicas = None, None
    for first in range(0, dist.get_world_size(), ranks):
        made = dist.new_group(range(first, first + ranks))
        group = made if first <= dist.get_rank() < first + ranks else group
    for index in range(ranks):
        made = dist.new_group(range(index, dist.get_world_size(), ranks))
        replicas = made if dist.get_rank() % ranks == index else replicas
    for layer in decoder.layers.values():
        if isinstance(layer.feed_forward, MixtureOfExperts):
            experts = layer.feed_forward.experts
            assert isinstance(experts, Experts)
            layer.feed_forward.experts = ExpertParallel(experts, group, replicas)


def average_experts(module: nn.Module, data: int) -> None:
    """Gradients of experts have come from all ranks of their group: sums of losses that DDP would have averaged."""
    for one in module.modules():
        if isinstance(one, ExpertParallel):
            for parameter in one.parameters():
                if dist.get_world_size(one.replicas) > 1:
                    dist.all_reduce(parameter.grad, group=one.replicas)
                parameter.grad.div_(data)


def optimizer_of(modules: Sequence[nn.Module], **options: Any) -> torch.optim.Optimizer:
    """AdamW; plain tensors and DTensors of each mesh are groups of their own, since one fused update takes no mix.

    `options` are AdamW's own."""
    groups: dict[Any, list[nn.Parameter]] = {}
    for module in modules:
        for parameter in module.parameters():
            groups.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return torch.optim.AdamW([{"params": parameters} for parameters in groups.values()], **options)
