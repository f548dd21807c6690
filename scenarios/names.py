"""The names a scenario may use, and what each stands for. Registries are imported when asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from scenarios.errors import nearest, shown

Kind = Literal["models", "accelerators", "nodes", "schedules", "strategies", "techniques", "context-groups", "shares",
               "stacks", "scenarios"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LIBRARY = Path(__file__).with_name("library")


def known(kind: Kind) -> list[str]:
    """Every name of a kind, in its registry's order."""
    return list(_KNOWN[kind]())


def check(kind: Kind, name: str) -> None:
    """Raises ValueError, with the nearest name, where nothing of that kind has the name or alias."""
    if name in known(kind):
        return
    if kind == "schedules":
        from placement.schedules.files import is_file

        if name == "auto" or is_file(name):  # a search; a file is read where the scenario's folder is known
            return
    if kind == "models":
        from costmodel.huggingface import ConfigError, catalog_config

        try:
            catalog_config(name)  # aliases count
            return
        except ConfigError:
            pass
    elif kind == "nodes":
        from costmodel import catalog

        try:
            catalog.node(name)
            return
        except catalog.UnknownName:
            pass
    singular = {"strategies": "sharding strategy", "shares": "way of sharing"}.get(kind, kind[:-1])
    raise ValueError(f"no {singular} {shown(name)[5:]}; {nearest(name, known(kind))}")


def describe(kind: Kind) -> list[dict[str, Any]]:
    """One row per name with its main figures, for `whatif list`."""
    return [{"name": name, **_DESCRIBE[kind](name)} for name in known(kind)]


def library_file(name: str) -> Path | None:
    """The file of a library scenario, named with or without `.yaml`; None where there is none of that name."""
    stem = name.removesuffix(".yaml")
    return LIBRARY / f"{stem}.yaml" if stem in known("scenarios") else None


def _models() -> list[str]:
    from costmodel.huggingface import catalog_names

    return list(catalog_names())


def _accelerators() -> list[str]:
    from costmodel import catalog

    return list(catalog.names("accelerators"))


def _nodes() -> list[str]:
    from costmodel import catalog

    return list(catalog.names("nodes"))


def _schedules() -> list[str]:
    from placement import schedules

    return list(schedules.names())


def _strategies() -> list[str]:
    from placement import strategies

    return list(strategies.data_names())


def _context_groups() -> list[str]:
    from placement.context_groups import POLICIES

    return list(POLICIES)


def _techniques() -> list[str]:
    from costmodel import techniques

    return list(techniques.names())


def _shares() -> list[str]:
    from placement.shares import POLICIES

    return list(POLICIES)


def _stacks() -> list[str]:
    from costmodel import stack

    return list(stack.names())


def _scenarios() -> list[str]:
    return sorted(file.stem for file in LIBRARY.glob("*.yaml"))


def _model(name: str) -> dict[str, Any]:
    from costmodel.huggingface import catalog_config, catalog_model
    from costmodel.parameters import count

    model = catalog_model(name)
    return {"title": catalog_config(name)["_title"], "parameters": count(model),
            "layers": len(model.layers), "hidden": model.hidden, "vocabulary": model.vocabulary}


def _accelerator(name: str) -> dict[str, Any]:
    from costmodel import catalog

    found = catalog.accelerator(name)
    return {"title": found.title, "vendor": found.vendor, "memory_bytes": found.memory.capacity_bytes,
            "bandwidth_bytes_per_s": found.memory.read_bandwidth_bytes_per_s,
            "peak_bf16_flops_per_s": found.peak_flops_per_s.get("bf16")}


def _node(name: str) -> dict[str, Any]:
    from costmodel import catalog

    found = catalog.node(name)
    return {"title": found.title, "accelerator": found.accelerator.name, "accelerators": found.accelerators,
            "scale_up_bytes_per_s": found.scale_up.bandwidth_bytes_per_s,
            "scale_out_bytes_per_s": found.scale_out.bandwidth_bytes_per_s}


def _schedule(name: str) -> dict[str, Any]:
    from placement import schedules

    found = schedules.get(name)
    return {"title": found.title, "least_chunks": found.least_chunks, "most_chunks": found.most_chunks,
            "source": found.source, "law": found.law}


def _strategy(name: str) -> dict[str, Any]:
    from placement import strategies

    return {"source": strategies.get(name).source}


def _context_group(name: str) -> dict[str, Any]:
    from placement import context_groups

    return {"text": context_groups.get(name).text}


def _technique(name: str) -> dict[str, Any]:
    from dataclasses import fields

    from costmodel import techniques

    found: Any = techniques.TECHNIQUES[name]
    defaults = ", ".join(f"{one.name} {one.default}" for one in fields(found))
    return {"title": found.title, "defaults": defaults, "law": found.law, "source": found.source}


def _share(name: str) -> dict[str, Any]:
    from placement import shares

    found = shares.get(name)
    return {"text": found.text, "source": found.source}


def _stack(name: str) -> dict[str, Any]:
    from costmodel import stack

    found = stack.named(name)
    return {"execution": found.execution, "attention": found.attention, "overlap": ", ".join(found.overlap),
            "source": found.source}


def _scenario(name: str) -> dict[str, Any]:
    from scenarios.document import read_document

    data = read_document(LIBRARY / f"{name}.yaml", name).data
    return {"title": data["name"], "description": data.get("description", "")}


_KNOWN: dict[Kind, Callable[[], list[str]]] = {
    "models": _models, "accelerators": _accelerators, "nodes": _nodes, "schedules": _schedules,
    "strategies": _strategies, "techniques": _techniques, "context-groups": _context_groups,
    "shares": _shares, "stacks": _stacks, "scenarios": _scenarios,
}
_DESCRIBE: dict[Kind, Callable[[str], dict[str, Any]]] = {
    "models": _model, "accelerators": _accelerator, "nodes": _node, "schedules": _schedule,
    "strategies": _strategy, "techniques": _technique, "context-groups": _context_group, "shares": _share,
    "stacks": _stack, "scenarios": _scenario,
}
