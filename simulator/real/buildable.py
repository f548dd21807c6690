"""Which models the plain torch decoder can build, and what of a model a real run leaves out. Needs no torch."""

from __future__ import annotations

from dataclasses import replace

from costmodel.architecture import Attention, Layer, Model


class NotBuildable(ValueError):
    """A model with a part that the plain decoder does not have; the message names it."""


def plain(model: Model) -> tuple[Model, list[str]]:
    """The model without what a real run leaves out, and a line on each such part.

    Dropout would make losses differ between layouts; multi-token prediction is no part of the main model.
    """
    said = []
    if model.dropout:
        said.append("dropout is left out, so that every layout has the same loss")
    if model.mtp_layers:
        said.append(f"{len(model.mtp_layers)} multi-token prediction module(s) are left out")
    return replace(model, dropout=False, mtp_layers=()), said


def reasons(model: Model) -> list[str]:
    """What keeps a model from being built, each thing once; empty where nothing does."""
    found = []
    if model.dropout:
        found.append("dropout")
    if model.mtp_layers:
        found.append("multi-token prediction")
    for layer in dict.fromkeys(model.layers):
        found += _layer_reasons(layer)
    return list(dict.fromkeys(found))


def _layer_reasons(layer: Layer) -> list[str]:
    found = [] if layer.norms in (1, 2, 4) else [f"{layer.norms} norms a layer (1, 2 and 4 are known)"]
    if layer.feed_forward.memory:
        found.append("a memory layer (product keys)")
    return found + _attention_reasons(layer.attention)


def _attention_reasons(attention: Attention) -> list[str]:
    found = []
    if attention.sinks:
        found.append("attention sinks: torch's fused attention takes no extra logit")
    if attention.kind not in ("gqa", "mla"):
        found.append(f"attention of kind {attention.kind!r}")
    if attention.kind == "gqa" and attention.heads % attention.kv_heads:
        found.append(f"{attention.heads} query heads on {attention.kv_heads} key heads: no whole groups")
    return found


def check(model: Model) -> None:
    """Raises NotBuildable naming everything that keeps the model from being built."""
    if found := reasons(model):
        raise NotBuildable(f"{model.name} cannot be built in plain torch: {'; '.join(found)}")
