"""The models that come with Whatif: `costmodel/catalog/models/<name>.json`, Hugging Face configs with notes.

Beside the config's own fields each file holds `_title`, `_source`, `_aliases` and `_published_parameters`
(the exact published total, or null where none is known to the last digit).
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib.resources import files
from typing import Any

from costmodel.architecture import Model
from costmodel.huggingface.families import from_config
from costmodel.huggingface.fields import ConfigError, short


def catalog_names() -> tuple[str, ...]:
    """The names of all models in the catalogue, sorted."""
    return tuple(sorted(_entries()))


def catalog_config(name: str) -> dict[str, Any]:
    """The catalogue file of a model, found by its name or an alias without regard to case.

    Raises ConfigError with the nearest names where there is none.
    """
    wanted = name.strip().lower() if isinstance(name, str) else ""
    known = _known_names()
    if wanted not in known:
        near = difflib.get_close_matches(wanted[:100], known, n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(dict.fromkeys(known[n] for n in near))}" if near else (
            f"known: {', '.join(catalog_names())}")
        raise ConfigError(f"no model {short(name)} in the catalogue; {hint}")
    return dict(_entries()[known[wanted]])


def catalog_model(name: str) -> Model:
    """The model of that name or alias in the catalogue; ConfigError with the nearest names if none is."""
    entry = catalog_config(name)
    return from_config(entry, name=entry["_name"], source=entry["_source"])


@cache
def _entries() -> dict[str, dict[str, Any]]:
    folder = files("costmodel") / "catalog" / "models"
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".json"):
            name = file.name.removesuffix(".json")
            found[name] = {**json.loads(file.read_text(encoding="utf-8")), "_name": name}
    return found


@cache
def _known_names() -> dict[str, str]:
    """Every name and alias in lower case -> the catalogue's name."""
    known = {name: name for name in _entries()}
    for name, entry in _entries().items():
        known |= {alias.lower(): name for alias in entry["_aliases"]}
    return known
