"""Typed, checked reading of a Hugging Face config: aliases, missing fields, and a record of what was assumed.

Sizes are never filled in from a library's defaults; a field may only be derived from others (head_dim from
hidden_size / num_attention_heads) or be a switch whose default is fixed by the family's published code, and
every such case is written down in `Fields.assumed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "kv_n_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "n_ctx", "max_seq_len"),
    "num_experts": ("num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("experts_per_token",),
    "attention_bias": ("bias",),
}
LARGEST_SIZE = 10**9
MOST_LAYERS = 10_000


class ConfigError(ValueError):
    """A model configuration that cannot be read, with what is wrong and what would be right."""


class Fields:
    """The fields of one config.json, asked for by their canonical name; the known aliases are tried too.

    A field that is absent or null counts as missing. Every method raises ConfigError on a wrong type
    or range.
    """

    def __init__(self, config: Mapping[Any, Any], family: str, where: str = "") -> None:
        self._config = config
        self.family = family
        self.where = where
        self.assumed: list[str] = []

    def error(self, message: str) -> ConfigError:
        """A ConfigError that names the file (where known) and the architecture."""
        return ConfigError(": ".join(part for part in (self.where, self.family, message) if part))

    def has(self, name: str) -> bool:
        """Whether the field is there, null counting as an answer."""
        return any(key in self._config for key in (name, *ALIASES.get(name, ())))

    def raw(self, name: str) -> Any:
        """The value under `name` or one of its aliases, None where missing. Two that differ are an error."""
        found = {
            key: self._config[key]
            for key in (name, *ALIASES.get(name, ()))
            if self._config.get(key) is not None
        }
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise self.error("fields that mean the same differ: " + ", ".join(f"{k} = {short(v)}"
                                                                              for k, v in found.items()))
        return values[0] if values else None

    def need(self, *names: str) -> None:
        """Check that all of `names` are stated; the error lists every missing one with its aliases."""
        missing = [name for name in names if self.raw(name) is None]
        if missing:
            shown = ", ".join(" or ".join((name, *ALIASES.get(name, ()))) for name in missing)
            raise self.error(f"missing {shown}; sizes are never assumed: add them to the config")

    def assume(self, name: str, value: object, why: str) -> None:
        """Write down that `name` was not stated and what was taken for it."""
        self.assumed.append(f"{name} = {value} ({why})")

    def size(self, name: str, otherwise: int | None = None, why: str = "", *, least: int = 1) -> int:
        """A whole number in [least, 10^9]; `otherwise` (with the reason `why`) is what it derives to."""
        value = self.raw(name)
        if value is None and otherwise is None:
            self.need(name)
        if value is None:
            assert otherwise is not None
            self.assume(name, otherwise, why)
            value = otherwise
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{name} must be a whole number, not {short(value)}")
        largest = MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE
        if not least <= value <= largest:
            raise self.error(f"{name} must be between {least} and {largest}, not {short(value)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """A true/false switch; where missing, the default in the family's published code, written down."""
        value = self.raw(name)
        if value is None:
            self.assume(name, default, f"default of {self.family}")
            return default
        if not isinstance(value, bool):
            raise self.error(f"{name} must be true or false, not {short(value)}")
        return value

    def word(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of `allowed`; where missing, the family's default, written down."""
        value = self.raw(name)
        if value is None:
            self.assume(name, default, f"default of {self.family}")
            return default
        if value not in allowed:
            raise self.error(f"{name} must be one of {', '.join(allowed)}, not {short(value)}")
        return str(value)

    def sequence(self, name: str) -> list[Any] | None:
        """A list, or None where missing."""
        value = self.raw(name)
        if value is not None and not isinstance(value, list | tuple):
            raise self.error(f"{name} must be a list, not {short(value)}")
        return None if value is None else list(value)

    def section(self, name: str) -> Fields:
        """A nested object, empty where missing; what it assumes is written down here too."""
        value = self.raw(name)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(f"{name} must be an object, not {short(value)}")
        inner = Fields(value or {}, f"{self.family}.{name}", self.where)
        inner.assumed = self.assumed
        return inner

    def positive(self, *names: str) -> bool | None:
        """Whether any of these probabilities is above zero; None where all are missing."""
        values = [(name, self.raw(name)) for name in names]
        stated = [(name, value) for name, value in values if value is not None]
        for name, value in stated:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise self.error(f"{name} must be a number between 0 and 1, not {short(value)}")
        return any(value > 0 for _, value in stated) if stated else None


def short(value: object) -> str:
    """repr, cut to 60 characters; for what cannot be printed (Python caps huge integers), its type."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"this {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
