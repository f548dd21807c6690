"""The keys of `plan.techniques`, made from the registry: one block a technique, one key a parameter."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model

from costmodel.techniques import TECHNIQUES, Technique


def block(base: type[BaseModel]) -> type[BaseModel]:
    """A block with an optional key for every technique; `base` gives what all blocks have in common."""
    made: dict[str, Any] = {name: (_parameters(name, kind, base) | None, None) for name, kind in TECHNIQUES.items()}
    return create_model("TechniquesBlock", __base__=base, **made)


def _parameters(name: str, kind: type[Technique], base: type[BaseModel]) -> Any:
    """The parameters of a technique with their types, limits and defaults."""
    made: dict[str, Any] = {}
    types = {"float": float, "int": int, "bool": bool, "str": str}
    for one in fields(kind):  # type: ignore[arg-type]
        limits = dict(one.metadata["limits"])
        choices = limits.pop("one_of", None)
        annotation: Any = Literal[choices] if choices else types[str(one.type)]
        made[one.name] = (annotation, Field(one.default, description=one.metadata["text"], **limits))
    return create_model(f"{name}_block", __base__=base, **made)


def chosen(block: BaseModel | None) -> tuple[Technique, ...]:
    """The techniques that a block asks for, in the order of the registry."""
    asked = {} if block is None else {name: value for name, value in block if value is not None}
    return tuple(TECHNIQUES[name](**value.model_dump()) for name, value in asked.items())
