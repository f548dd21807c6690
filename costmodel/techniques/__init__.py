"""Techniques that change what training costs: size of the states, FLOPs, bytes kept, bytes moved.

A technique is one change of a layer's work (`costmodel.work.Work`): it gets the work and gives another. Each has a
file of its own with its source and its law, is a frozen dataclass whose fields are its parameters, and stands in
`TECHNIQUES` under the name by which a plan asks for it. Several are applied in the order of the plan, but those first
that freeze the model: the others act on what is left to train.
"""

from __future__ import annotations

from collections.abc import Iterator

from costmodel.architecture import Model
from costmodel.techniques.base import Technique
from costmodel.techniques.compact import CompAct
from costmodel.techniques.frugal import Frugal
from costmodel.techniques.lora import Lora, of_trainable
from costmodel.techniques.mixlora import MixLora
from costmodel.techniques.mixture_of_channels import MixtureOfChannels
from costmodel.work import Case, Work

TECHNIQUES: dict[str, type[Technique]] = {
    "frugal": Frugal,
    "compact": CompAct,
    "mixture_of_channels": MixtureOfChannels,
    "lora": Lora,
    "mixlora": MixLora,
}
__all__ = ["TECHNIQUES", "Technique", "changed", "changed_end", "name_of", "names", "of_trainable", "problems"]


def names() -> tuple[str, ...]:
    return tuple(TECHNIQUES)


def name_of(technique: Technique) -> str:
    return next(name for name, one in TECHNIQUES.items() if one is type(technique))


def changed(work: Work, techniques: tuple[Technique, ...], case: Case) -> Work:
    """The work of a layer under some techniques."""
    for technique in _in_order(techniques):
        work = technique.layer(work, case)
    return work


def changed_end(work: Work, techniques: tuple[Technique, ...]) -> Work:
    """The work of the embedding or the head under some techniques."""
    for technique in _in_order(techniques):
        work = technique.end(work)
    return work


def _in_order(techniques: tuple[Technique, ...]) -> list[Technique]:
    return sorted(techniques, key=lambda one: not one.freezes)


def problems(techniques: tuple[Technique, ...], model: Model) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of techniques that this model or one another rule out."""
    frozen = [name_of(one) for one in techniques if one.freezes]
    if len(frozen) > 1:
        yield frozen[1], f"{' and '.join(frozen)} each freeze the model and add adapters of their own; keep one of them"
    rebuilt = [name_of(one) for one in techniques if one.rebuilds_mlp]
    if len(rebuilt) > 1:
        yield rebuilt[1], f"{' and '.join(rebuilt)} each put an MLP of their own in place of the dense one; keep one"
    for technique in techniques:
        for message in technique.problems(model):
            yield name_of(technique), message
