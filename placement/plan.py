"""How a model is laid over a cluster: the degrees, the schedule, the placement of the states.

Ranks are numbered tensor first, then context, data, and pipeline outermost (systems_training 1.6, rule 5):
the axes that talk most are nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costmodel.techniques import Technique, of_trainable
from placement.states import Placement

Number = Any  # int or NumPy integer array


class PlanError(ValueError):
    """A plan that cannot be laid over this model or cluster; the message names the numbers."""


@dataclass(frozen=True)
class Plan:
    """One way to run a training step. Every degree may be a NumPy array of plans that broadcast together.

    gpus = tensor * pipeline * data * context; `expert` divides data * context (* tensor / expert_tensor).
    """

    tensor: Number = 1
    sequence_parallel: Any = False
    pipeline: Number = 1
    virtual: Number = 1  # chunks of layers per pipeline rank
    data: Number = 1
    context: Number = 1
    expert: Number = 1
    expert_tensor: Number = 1
    context_method: str = "all-gather"  # all-gather | ring | ulysses
    context_groups: str = "static"  # of placement.context_groups: which ranks share a sequence of unequal ones
    selective_offload: bool = False  # long sequences of unequal ones on fewer ranks, partly kept on the host
    stage_layers: str | tuple[int, ...] = "even"  # even | balanced | layers per chunk in model order
    schedule: str = "1f1b"
    segments: Number = 1  # parts of a sequence that go through the pipeline one by one (schedules that cut it)
    in_flight_limit: float | None = None  # micro-batches of activations a rank may hold (schedules that take one)
    optimizer_barrier: bool = True  # False: each rank updates when it is ready and validates the norm afterwards
    shares: str = "decoupled"  # of placement.shares: how batch and states are divided over unequal accelerators
    sharding: str | Placement = "zero-1"  # a name of placement.strategies, or a placement written out
    state_bytes: str | None = None  # a preset of placement.states.STATE_BYTES; None: the strategy's own
    shard_group: Number | None = None  # ranks that share one copy of the states in hybrid sharding; None: all
    micro_batch: Number = 1
    recompute: str = "none"  # none | pointwise | selective | full
    recompute_chunks: int | None = None  # in passes of their own: a rank's first chunks; None: inside B, all
    offload_chunks: int = 0  # a rank's first so many chunks lie on the host between their forward and their backward
    precision: str = "bf16"  # of the linear layers (costmodel.kernels.PEAK_OF_PRECISION)
    trainable: str = "all"  # all | lora: adapters of `lora_rank` on the attention projections, the rest frozen
    lora_rank: int = 16
    techniques: tuple[Technique, ...] = ()  # applied in this order (costmodel.techniques)

    @property
    def changes(self) -> tuple[Technique, ...]:
        """Every technique of the plan, with what `trainable` stands for."""
        return of_trainable(self.trainable, self.lora_rank) + self.techniques

    @property
    def gpus(self) -> Number:
        return self.tensor * self.pipeline * self.data * self.context

    @property
    def chunks(self) -> Number:
        """Chunks of layers in the whole pipeline."""
        return self.pipeline * self.virtual

    @property
    def replicas(self) -> Number:
        """Ranks that hold the same dense weights: data and context parallel ranks."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> Number:
        """Ranks that hold the same expert weights (Megatron's expert data parallel group)."""
        return self.data * self.context * self.tensor // (self.expert * self.expert_tensor)


def micro_batches(plan: Plan, global_batch: int) -> Number:
    """Micro-batches per step of one pipeline; raises PlanError where the batch does not divide."""
    per_step = plan.data * plan.micro_batch
    if global_batch % per_step:
        raise PlanError(
            f"global_batch {global_batch} does not divide by data {plan.data} x micro_batch {plan.micro_batch} = "
            f"{per_step}"
        )
    return global_batch // per_step


def layers_of_chunks(layers: int, plan: Plan) -> tuple[int, ...]:
    """Layers of every chunk in model order.

    "even": equal chunks (the last ones get one fewer where it does not divide); "balanced": embedding and
    head count as one layer each (Llama 3, arXiv 2407.21783, 3.3.2: the first and last stage hold one fewer).

    >>> layers_of_chunks(126, Plan(pipeline=16, virtual=4, stage_layers="balanced"))[:2]
    (1, 2)
    """
    chunks = int(plan.chunks)
    if isinstance(plan.stage_layers, tuple):
        if len(plan.stage_layers) != chunks or sum(plan.stage_layers) != layers:
            raise PlanError(
                f"stage_layers lists {len(plan.stage_layers)} chunks with {sum(plan.stage_layers)} layers; the plan "
                f"has pipeline {plan.pipeline} x virtual {plan.virtual} = {chunks} chunks and the model {layers} layers"
            )
        return plan.stage_layers
    ends = 1 if plan.stage_layers == "balanced" and chunks > 1 else 0
    slots, longer = divmod(layers + 2 * ends, chunks)
    sizes = [slots + (chunk < longer) for chunk in range(chunks)]
    sizes[0] -= ends
    sizes[-1] -= ends
    if min(sizes) < 0 or layers + 2 * ends < chunks:
        raise PlanError(f"{layers} layers cannot fill pipeline {plan.pipeline} x virtual {plan.virtual} chunks")
    return tuple(sizes)
