"""What a layer asks of one accelerator: operators, weights, bytes kept, and what the optimizer step does for it.

This is what techniques (`costmodel.techniques`) change; a layer without any has the work of its architecture alone.
Everything broadcasts over arrays in the shard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodel import activations, parameters, plain_torch, product_keys
from costmodel.activations import Kept
from costmodel.architecture import Layer, Model
from costmodel.operators import Operator, Shard, layer_operators

Number = Any  # float or NumPy array


@dataclass(frozen=True)
class Weights:
    """Parameters of one kind on one accelerator, before data ranks shard them.

    held: all of them; linear: those of them in the matrices of linear layers (no norms, biases, router, values);
    trainable: have a gradient and an optimizer; gradients: elements of the gradients as they are held and reduced;
    moments: pairs of Adam's moments.
    """

    held: Number = 0.0
    linear: Number = 0.0
    trainable: Number = 0.0
    gradients: Number = 0.0
    moments: Number = 0.0

    @classmethod
    def trained(cls, held: Number, linear: Number = 0.0) -> Weights:
        """Weights that are all trained with Adam."""
        return cls(held, linear, held, held, held)

    def thinned(self, gradients: Number = 1.0, moments: Number = 1.0) -> Weights:
        """Gradients and moments of linear layers at a share of what they were; the others stay."""
        others = np.maximum(self.trainable - self.linear, 0.0)
        fewer_gradients = (1.0 - gradients) * np.maximum(self.gradients - others, 0.0)
        fewer_moments = (1.0 - moments) * np.maximum(self.moments - others, 0.0)
        return replace(self, gradients=self.gradients - fewer_gradients, moments=self.moments - fewer_moments)

    def frozen(self) -> Weights:
        return replace(self, trainable=0.0, gradients=0.0, moments=0.0)

    def with_trained(self, added: Number) -> Weights:
        """Further weights beside these, trained with Adam."""
        return replace(self, held=self.held + added, trainable=self.trainable + added,
                       gradients=self.gradients + added, moments=self.moments + added)


@dataclass(frozen=True)
class Work:
    """One layer, or one end of the model, on one accelerator and for one micro-batch.

    `dense` weights lie on every tensor rank's share, `sparse` ones (experts, values of a memory) on the expert ranks.
    `kept` lives from forward to backward. `update` are operators that the optimizer step runs once a step beside
    Adam (their forward product), `update_flops` further fp32 arithmetic there; both on the whole of these weights.
    """

    operators: tuple[Operator, ...]
    dense: Weights
    sparse: Weights = Weights()
    kept: tuple[Kept, ...] = ()
    update: tuple[Operator, ...] = ()
    update_flops: Number = 0.0


@dataclass(frozen=True)
class Case:
    """What a technique may ask about the layer that it changes."""

    model: Model
    layer: Layer
    shard: Shard
    recompute: str = "none"


def layer_weights(model: Model, layer: Layer, shard: Shard) -> tuple[Weights, Weights]:
    """(dense, sparse) weights of one layer on one accelerator; norms and the router are on every rank."""
    part, h = layer.feed_forward, model.hidden
    sparse = parameters.sparse_parameters(part, h)
    router = parameters.router_parameters(part, h)
    norms = layer.norms * parameters.norm_parameters(model.norm, h)
    split = parameters.layer_parameters(layer, h, model.norm) - sparse - router - norms
    experts = part.experts * (3 if part.gated else 2) * h * part.width
    visited = part.experts_per_token * (3 if part.gated else 2) * h * part.width if part.experts else 0
    matrices = parameters.layer_matmul_parameters_per_token(layer, h) - visited - part.experts * h
    spread = shard.expert * shard.expert_tensor
    dense = Weights.trained(split / shard.tensor + router + norms, matrices / shard.tensor)
    values = Weights.trained(sparse / spread, experts / spread)
    if part.memory:
        touched = product_keys.touched_share(part.memory, shard.tokens * shard.expert)
        values = replace(values, gradients=values.gradients * touched)
    return dense, values


def layer_work(
    case: Case, execution: str, kernel: str, input_bytes: float = 2.0, dispatcher: str = "all-to-all",
    widening: float = 1.0,
) -> Work:
    """The work of a layer before any technique (arguments as in `costmodel.activations.layer_tensors`; `widening`:
    bytes of an activation over 2, by which the caller multiplies what is kept)."""
    model, layer, shard = case.model, case.layer, case.shard
    if execution == "torch":
        kept = plain_torch.layer_tensors(model, layer, shard, kernel, case.recompute, widening)
    else:
        kept = activations.layer_tensors(
            model, layer, shard, execution, kernel, case.recompute, input_bytes, dispatcher)
    return Work(layer_operators(model, layer, shard), *layer_weights(model, layer, shard), kept)


def layer_working_bytes(model: Model, layer: Layer, shard: Shard, execution: str, widening: float) -> Number:
    """What the backward pass of a layer holds beside all that was kept; counted for plain torch alone, elsewhere part
    of the margin between allocated and reserved memory."""
    return plain_torch.layer_working_bytes(layer, model.hidden, shard, widening) if execution == "torch" else 0.0


def head_bytes(model: Model, shard: Shard, execution: str, widening: float) -> tuple[Number, Number]:
    """(kept, needed beside it in the backward pass) by the head and the loss, in bytes."""
    if execution != "torch":
        return widening * activations.head_bytes(model, shard, execution), 0.0
    kept = widening * plain_torch.head_bytes(model, shard, widening)
    return kept, plain_torch.head_working_bytes(model, shard, widening)
