"""The catalogue of hardware that comes with Whatif: one YAML file per accelerator and per node.

An entry's figures stand in blocks (`memory`, `peak`, `power`, ...) of quantities with their units. Each
block has a `source`: one text for all its figures, or one per figure with `default` for the rest;
"hardware.csv" in a source is the project's table of gathered hardware facts. A file is read when it is asked
for; `read_accelerator` and `read_node` read a user's own file of the same form.

Models lie beside the hardware as `models/*.json`; `costmodel.huggingface` reads them.

A user's own entries lie in a folder of the same form (`own_root`): accelerators, nodes, and the profiles that
`whatif calibrate fit --measured` made of them. They are found after those that come with Whatif.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from costmodel.hardware import Accelerator, Link, MemoryTier, Node
from costmodel.units import UnitError, parse

ROOT = Path(__file__).parent
SUFFIXES: Mapping[str, str] = {"accelerators": "yaml", "nodes": "yaml", "models": "json"}
_PEAK = dict.fromkeys(("fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8"), "FLOP/s")
_TIER = {"capacity": "bytes", "latency": "s", **dict.fromkeys(("bandwidth", "read", "write"), "bytes/s")}
_LINK = {"bandwidth": "bytes/s", "latency": "s", "peer_bandwidth": "bytes/s"}
_ABOUT_LINK = ("link", "topology", "in_switch_reduction", "domain")
_ABOUT = {"title", "aliases", "notes", "power"}
_ACCELERATOR = _ABOUT | {"vendor", "generation", "memory", "peak", "compute", "host_link", "price"}
_NODE = _ABOUT | {"accelerator", "accelerators", "scale_up", "scale_out", "tiers"}
_Part = TypeVar("_Part", Accelerator, Node)
_ALIASES = re.compile(r"^aliases: *\[.*?\] *$", re.MULTILINE | re.DOTALL)


class UnknownName(ValueError):
    """A name that the catalogue does not have; the message gives the nearest ones it has."""


class EntryError(ValueError):
    """A catalogue file that is not of the form described above; the message begins with its path."""


def own_root() -> Path:
    """The folder of the user's own entries: $WHATIF_CATALOG, else ~/.whatif/catalog. It need not exist."""
    given = os.environ.get("WHATIF_CATALOG")
    return Path(given) if given else Path.home() / ".whatif" / "catalog"


def names(kind: str) -> tuple[str, ...]:
    """The names of all entries of a kind ("accelerators", "nodes", "models"), sorted; the user's own ones last."""
    return (*shipped_names(kind), *own_names(kind))


def own_names(kind: str) -> tuple[str, ...]:
    """Entries of the user's own catalogue; one named like an entry that comes with Whatif is not found."""
    known = shipped_names(kind)
    return tuple(name for name in _names(own_root(), kind) if name not in known) if kind != "models" else ()


@cache
def shipped_names(kind: str) -> tuple[str, ...]:
    """The names of the entries that come with Whatif."""
    return _names(ROOT, kind)


def _names(root: Path, kind: str) -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in (root / kind).glob(f"*.{SUFFIXES[kind]}")))


def path(kind: str, name: str) -> Path:
    """The file of an entry, found by its name or (hardware only) an alias, without regard to case.

    Raises UnknownName with the nearest known names.
    """
    wanted = " ".join(name.lower().split())
    file = ROOT / kind / f"{wanted}.{SUFFIXES[kind]}"
    if wanted in shipped_names(kind):
        return file
    known = aliases(kind)
    if wanted in known:
        return file.with_name(f"{known[wanted]}.{SUFFIXES[kind]}")
    for own in own_names(kind):
        if own.lower() == wanted:
            return own_root() / kind / f"{own}.{SUFFIXES[kind]}"
    near = difflib.get_close_matches(wanted, [*names(kind), *known], n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(names(kind))}"
    raise UnknownName(f"no {kind.removesuffix('s')} named {name!r} in the catalogue; {hint}")


@cache
def aliases(kind: str) -> Mapping[str, str]:
    """Every alias of a kind -> the entry's name. Reads only the `aliases` line of each file."""
    if kind == "models":
        return {}
    found = {}
    for name in shipped_names(kind):
        line = _ALIASES.search((ROOT / kind / f"{name}.yaml").read_text(encoding="utf-8"))
        for alias in _yaml(line[0])["aliases"] if line else ():
            found[str(alias)] = name
    return found


def accelerator(name: str) -> Accelerator:
    """The accelerator of that name or alias. Raises UnknownName."""
    return _accelerator_of(path("accelerators", name))


def node(name: str) -> Node:
    """The node of that name or alias. Raises UnknownName."""
    return _node_of(path("nodes", name))


@cache
def _accelerator_of(file: Path) -> Accelerator:
    return read_accelerator(file)


@cache
def _node_of(file: Path) -> Node:
    return read_node(file)


def read_accelerator(file: Path) -> Accelerator:
    """The accelerator that a YAML file describes; its name is the file's. Raises EntryError."""
    return _read(file, _accelerator)


def read_node(file: Path) -> Node:
    """The node that a YAML file describes, its accelerator from the catalogue. Raises EntryError."""
    return _read(file, _node)


def _yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _read(file: Path, build: Callable[[str, Mapping[str, Any]], _Part]) -> _Part:
    try:
        return build(file.stem, _yaml(file.read_text(encoding="utf-8")))
    except KeyError as error:
        raise EntryError(f"{file}: {error.args[0]} is missing") from error
    except (EntryError, UnitError, UnknownName, YAMLError, TypeError, AttributeError) as error:
        raise EntryError(f"{file}: {error}") from error


def _accelerator(name: str, entry: Mapping[str, Any]) -> Accelerator:
    _known("the entry", entry, _ACCELERATOR)
    sources: dict[str, str] = {}
    peak = _figures("peak", entry["peak"], _PEAK, sources)
    compute = _figures("compute", entry.get("compute"), {"units": "1", "cache": "bytes"}, sources)
    power = _figures("power", entry["power"], {"limit": "W"}, sources)
    price = _figures("price", entry["price"], {"on_demand": "USD/h"}, sources, text=("date", "basis"))
    link = entry["host_link"]
    return Accelerator(
        name=name,
        title=entry["title"],
        vendor=entry["vendor"],
        generation=entry["generation"],
        memory=_tier("hbm", "memory", entry["memory"], sources),
        peak_flops_per_s=peak,
        host_link=None if link is None else _link("host_link", link, sources),
        compute_units=int(compute["units"]) if "units" in compute else None,
        cache_bytes=compute.get("cache"),
        power_w=power.get("limit"),
        price_usd_per_hour=price.get("on_demand"),
        aliases=tuple(str(alias) for alias in entry.get("aliases", ())),
        sources=sources,
    )


def _node(name: str, entry: Mapping[str, Any]) -> Node:
    _known("the entry", entry, _NODE)
    sources: dict[str, str] = {}
    power = _figures("power", entry["power"], {"overhead": "W"}, sources)
    return Node(
        name=name,
        title=entry["title"],
        accelerator=accelerator(entry["accelerator"]),
        accelerators=entry["accelerators"],
        scale_up=_link("scale_up", entry["scale_up"], sources),
        scale_up_domain=entry["scale_up"]["domain"],
        scale_out=_link("scale_out", entry["scale_out"], sources),
        tiers=tuple(_tier(tier, f"tiers.{tier}", block, sources) for tier, block in entry["tiers"].items()),
        overhead_power_w=power.get("overhead"),
        sources=sources,
    )


def _tier(name: str, block: str, content: Mapping[str, Any], sources: dict[str, str]) -> MemoryTier:
    """A memory: `bandwidth` where reading and writing are equally fast, else `read` and `write`."""
    values = _figures(block, content, _TIER, sources)
    return MemoryTier(
        name,
        values["capacity"],
        values["bandwidth"] if "bandwidth" in values else values["read"],
        values["bandwidth"] if "bandwidth" in values else values["write"],
        values["latency"],
        _together(block, sources),
    )


def _link(block: str, content: Mapping[str, Any], sources: dict[str, str]) -> Link:
    values = _figures(block, content, _LINK, sources, text=_ABOUT_LINK)
    return Link(
        name=content["link"],
        bandwidth_bytes_per_s=values["bandwidth"],
        latency_s=values["latency"],
        source=_together(block, sources),
        in_switch_reduction=content.get("in_switch_reduction", False),
        topology=content.get("topology", "switch"),
        peer_bandwidth_bytes_per_s=values.get("peer_bandwidth"),
    )


def _figures(
    block: str,
    content: Mapping[str, Any] | None,
    dimensions: Mapping[str, str],
    sources: dict[str, str],
    text: tuple[str, ...] = (),
) -> dict[str, float]:
    """The SI values of a block's figures; puts the source of each into `sources` as "block.figure".

    `text` names keys that are no figures. A block that is null has no figures.
    """
    if content is None:
        return {}
    _known(block, content, {*dimensions, *text, "source"})
    given = content["source"]
    if not isinstance(given, str):
        _known(f"{block}.source", given, {*content, "default"})
    values = {}
    for figure in [key for key in content if key in dimensions]:
        source = given if isinstance(given, str) else given.get(figure, given.get("default"))
        if not source:
            raise EntryError(f"{block}.{figure} has no source")
        remarks = [str(content[key]) for key in ("basis", "date") if key in content]
        sources[f"{block}.{figure}"] = "; ".join([source, *remarks])
        values[figure] = parse(content[figure], dimensions[figure])
    return values


def _known(where: str, content: Mapping[str, Any], allowed: Collection[str]) -> None:
    unknown = sorted(content.keys() - set(allowed))
    if unknown:
        raise EntryError(f"{where} has {', '.join(unknown)}; known keys: {', '.join(sorted(allowed))}")


def _together(block: str, sources: Mapping[str, str]) -> str:
    found = (source for key, source in sorted(sources.items()) if key.startswith(f"{block}."))
    return "; ".join(dict.fromkeys(found))
