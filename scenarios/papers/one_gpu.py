"""A claim about one accelerator: the whole batch in one pass of a decoder, predicted as `whatif run` does."""

from __future__ import annotations

from functools import cache

from costmodel import catalog
from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.hardware import Cluster
from costmodel.techniques import Technique
from placement.memory import DEVICE_OVERHEAD_BYTES
from placement.plan import Plan
from simulator.inputs import TrainingInputs
from simulator.predict import Played, play


@cache
def llama(hidden: int, width: int, layers: int, heads: int, vocabulary: int = 32_000) -> Model:
    """A decoder with rotary attention, RMS norms, a gated MLP and an untied head."""
    dimension = hidden // heads
    layer = Layer(Attention("gqa", heads, heads, dimension, dimension), FeedForward(width, True))
    return Model(f"llama {hidden} x {layers}", hidden, vocabulary, (layer,) * layers, False)


@cache
def played(
    model: Model, node: str, sequence: int, batch: int, techniques: tuple[Technique, ...] = (),
    recompute: str = "none", state_bytes: str = "bf16", attention: str = "flash-2", trainable: str = "all",
) -> Played:
    """One step of plain PyTorch modules on one accelerator of a node."""
    cluster = Cluster(catalog.node(node), 1, 1)
    plan = Plan(micro_batch=batch, sharding="ddp", state_bytes=state_bytes, recompute=recompute,
                techniques=techniques, trainable=trainable)
    stack = {"execution": "eager", "attention": attention, "overlap": ()}
    return play(TrainingInputs("claim", "", "", {}, model, cluster, plan, sequence, batch, stack=stack))


def allocated_bytes(of: Played) -> float:
    """Peak of the allocator: without context and kernels."""
    return of.needed_bytes - DEVICE_OVERHEAD_BYTES
