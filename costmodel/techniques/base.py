"""The protocol of a technique."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Any, ClassVar

from costmodel.architecture import Model
from costmodel.work import Case, Work


class Technique:
    """A change of the work of layers and ends; subclasses are frozen dataclasses of its parameters."""

    title: ClassVar[str]
    source: ClassVar[str]
    law: ClassVar[str]  # one line: what changes by which formula
    freezes: ClassVar[bool] = False  # the model's own weights are not trained
    rebuilds_mlp: ClassVar[bool] = False  # counts the operators of the dense MLP anew

    def layer(self, work: Work, case: Case) -> Work:
        return work

    def end(self, work: Work) -> Work:
        """The embedding, or the head."""
        return work

    def problems(self, model: Model) -> Iterator[str]:
        """Why it cannot be applied to a model; nothing where it can."""
        yield from ()


def parameter(default: Any, text: str, **limits: Any) -> Any:
    """A field of a technique with its meaning and its limits (gt, ge, lt, le, as pydantic names them)."""
    return field(default=default, metadata={"text": text, "limits": limits})


def share(number: float, whole: Any) -> Any:
    """A size given as a share of a width (below 1) or as itself."""
    return number * whole if number < 1 else number
