"""A YAML document as plain Python values, with the line and column of every key and value.

The text is read as ruamel.yaml's event stream and built here, under limits, so that no file can make the
program slow or exhaust its memory: size, line length, depth, values (aliases expanded), digits of a number.
Only the YAML 1.2 core types exist: text, whole and decimal numbers, true/false, null, lists, mappings with
text keys.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scenarios.errors import Place, Problem, ScenarioError, shown

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_LINE = 10_000
MAX_LINES = 20_000
MAX_DEPTH = 32
MAX_VALUES = 10_000
MAX_DIGITS = 18

_INT = re.compile(r"[-+]?\d[\d_]*")
_FLOAT = re.compile(r"[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)([eE][-+]?\d+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
          "": None, "~": None, "null": None, "Null": None, "NULL": None}
_WHAT_IT_IS = "a scenario is a mapping (key: value) that begins with 'name:'"


@dataclass(frozen=True)
class Document:
    """Plain values and, for each key path, where its value (`places`) and its key (`keys`) were written."""

    data: dict[str, Any]
    root: Place
    places: dict[KeyPath, Place]
    keys: dict[KeyPath, Place]
    sha256: str = ""

    def place(self, path: KeyPath) -> Place:
        """Where the value at `path` stands; for a missing one, the key of its mapping (or what is there)."""
        if path in self.places:
            return self.places[path]
        if path and not isinstance(self.get(path[:-1]), dict | list):
            return self.place(path[:-1])
        return self.key_place(path[:-1]) if path else self.root

    def key_place(self, path: KeyPath) -> Place:
        """Where the key of `path` stands (for a list entry, the entry); for a missing one, its parent's."""
        if path in self.keys:
            return self.keys[path]
        if path in self.places:
            return self.places[path]
        return self.key_place(path[:-1]) if path else self.root

    def get(self, path: KeyPath) -> Any:
        """The value at `path`, None where there is none."""
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def replaced(
        self, path: tuple[str, ...], value: Any, place: Place, key_place: Place | None = None
    ) -> Document:
        """A copy with `value` at `path`, its place (and that of everything in it) being `place`.

        `key_place` is where the key was written, by default the same. Mappings missing on the way are
        made. Raises ScenarioError where the way leads through something else.
        """
        data = dict(self.data)
        inner = data
        for depth, part in enumerate(path[:-1], 1):
            step = inner.get(part, {})
            if not isinstance(step, dict):
                name = ".".join(path[:depth])
                raise ScenarioError.at(place, f"{'.'.join(path)}: {name} is {shown(step)}, not a mapping, so "
                                              f"it holds no key '{path[depth]}'")
            inner[part] = step = dict(step)
            inner = step
        inner[path[-1]] = value
        moved = dict.fromkeys(_paths(value, path), place)
        key_place = key_place or place
        way: dict[KeyPath, Place] = {path[:n]: key_place for n in range(1, len(path))}
        places = {p: at for p, at in self.places.items() if p[: len(path)] != path}
        keys = {p: at for p, at in self.keys.items() if p[: len(path)] != path}
        return Document(data, self.root, way | places | moved, way | keys | {path: key_place}, self.sha256)

    def lacking(self, path: tuple[str, ...]) -> Document:
        """A copy without the key at `path`."""
        if not path[:-1]:
            return self.without(*path)
        block = self.get(path[:-1])
        if not isinstance(block, dict) or path[-1] not in block:
            return self
        kept = {key: value for key, value in block.items() if key != path[-1]}
        return self.replaced(path[:-1], kept, self.place(path[:-1]), self.key_place(path[:-1]))

    def without(self, *names: str) -> Document:
        """A copy without these top-level keys."""
        data = {k: v for k, v in self.data.items() if k not in names}
        return Document(data, self.root, self.places, self.keys, self.sha256)


def read_document(path: Path, name: str) -> Document:
    """The document in a file. `name` is how the file is called in messages.

    Raises ScenarioError: no such file, not a file, over MAX_BYTES, not UTF-8, or anything `parse` refuses.
    """
    try:
        if path.is_dir():
            raise ScenarioError.at(Place(name), "is a folder; a scenario is a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ScenarioError.at(Place(name), "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError.at(Place(name), f"cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise ScenarioError.at(Place(name), f"is over {MAX_BYTES // 1_000_000} MB; scenarios are small")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        place = Place(name, line, column)
        raise ScenarioError.at(place, "is not UTF-8 text; save the file as UTF-8") from None
    return parse(text, name, hashlib.sha256(content).hexdigest())


def parse(text: str, name: str, sha256: str = "") -> Document:
    """The one mapping of a YAML text. Raises ScenarioError with every duplicate key and bad scalar found."""
    root, problems = _Reader(name).read(text)
    if root is None:
        raise ScenarioError.at(Place(name, 1, 1), f"is empty; {_WHAT_IT_IS}")
    if root.kind != "mapping":
        raise ScenarioError.at(root.place, _WHAT_IT_IS)
    builder = _Builder(problems)
    data = builder.build(root, (), 0)
    if problems:
        raise ScenarioError(sorted(problems))
    return Document(data, root.place, builder.places, builder.keys, sha256)


def parse_value(text: str, name: str) -> Any:
    """A value given on the command line, read as YAML. Raises ScenarioError without line numbers."""
    try:
        root, problems = _Reader(name).read(text)
        value = None if root is None else _Builder(problems).build(root, (), 0)
    except ScenarioError as error:
        problems = list(error.problems)
    if problems:
        raise ScenarioError(Problem(name, 0, 0, p.message) for p in problems)
    return value


@dataclass
class _Node:
    """A node of the YAML tree before aliases are expanded."""

    kind: str  # "scalar", "sequence", "mapping"
    place: Place
    value: Any = None
    items: list[Any] = field(default_factory=list)  # nodes; of a mapping key, value, key, value, ...
    complete: bool = False


class _Reader:
    """Event stream to nodes, stopping at the first thing that cannot be read on from."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self.anchors: dict[str, _Node] = {}
        self.open: list[_Node] = []
        self.root: _Node | None = None

    def read(self, text: str) -> tuple[_Node | None, list[Problem]]:
        from ruamel.yaml.events import DocumentStartEvent

        _check_size(text, self.name)
        documents = 0
        for count, event in enumerate(_events(text, self.name)):
            documents += isinstance(event, DocumentStartEvent)
            place = self._place(event)
            if documents > 1:
                raise ScenarioError.at(place, "a second document starts here; a file holds one scenario")
            if count > 2 * MAX_VALUES:
                raise ScenarioError.at(place, f"more than {MAX_VALUES} values; scenarios are small")
            self._take(event, place)
        return self.root, self.problems

    def _place(self, event: Any) -> Place:
        mark = event.start_mark
        return Place(self.name, mark.line + 1, mark.column + 1)

    def _take(self, event: Any, place: Place) -> None:
        kind = type(event).__name__
        if kind == "AliasEvent":
            self._attach(self._aliased(event.anchor, place))
        elif kind == "ScalarEvent":
            node = _Node("scalar", place, self._scalar(event, place), complete=True)
            self._anchor(event, node)
            self._attach(node)
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            self._check_tag(event, place, ("map", "seq"))
            if len(self.open) >= MAX_DEPTH:
                raise ScenarioError.at(place, f"nested deeper than {MAX_DEPTH} levels")
            node = _Node("mapping" if kind.startswith("M") else "sequence", place)
            self._anchor(event, node)
            self._attach(node)
            self.open.append(node)
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self.open.pop().complete = True

    def _attach(self, node: _Node) -> None:
        if self.open:
            self.open[-1].items.append(node)
        else:
            self.root = node

    def _anchor(self, event: Any, node: _Node) -> None:
        if event.anchor:
            self.anchors[event.anchor] = node

    def _aliased(self, anchor: str, place: Place) -> _Node:
        node = self.anchors.get(anchor)
        if node is None:
            raise ScenarioError.at(place, f"alias '*{anchor}' has no anchor '&{anchor}' before it")
        if not node.complete:
            raise ScenarioError.at(place, f"alias '*{anchor}' lies inside its own anchor: a cycle")
        return node

    def _scalar(self, event: Any, place: Place) -> Any:
        self._check_tag(event, place, ("str", "int", "float", "bool", "null"))
        if not _encodable(event.value):
            self.problems.append(Problem.at(place, "text with half a surrogate pair is not Unicode text"))
        if event.tag or event.style:  # quoted, block or tagged !!str: text as it stands
            return event.value
        value, wrong = plain(event.value)
        if wrong:
            self.problems.append(Problem.at(place, wrong))
        return value

    def _check_tag(self, event: Any, place: Place, allowed: tuple[str, ...]) -> None:
        tag = str(event.tag or "")
        if tag and tag != "!" and tag not in {f"tag:yaml.org,2002:{a}" for a in allowed}:
            self.problems.append(Problem.at(place, f"the tag {shown(tag)} is not supported; leave it out"))


class _Builder:
    """Nodes to plain values with their places; aliases are copied, within MAX_VALUES."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.places: dict[KeyPath, Place] = {}
        self.keys: dict[KeyPath, Place] = {}

    def build(self, node: _Node, path: KeyPath, depth: int) -> Any:
        self.places[path] = node.place
        if len(self.places) > MAX_VALUES or depth > MAX_DEPTH:
            raise ScenarioError.at(node.place, f"aliases expand to more than {MAX_VALUES} values or "
                                               f"{MAX_DEPTH} levels; write the values out")
        if node.kind == "scalar":
            return node.value
        if node.kind == "sequence":
            return [self.build(item, (*path, index), depth + 1) for index, item in enumerate(node.items)]
        built: dict[str, Any] = {}
        for key, value in zip(node.items[::2], node.items[1::2], strict=True):
            name = key.value
            if not isinstance(name, str):
                what = shown(name) if key.kind == "scalar" else f"a {key.kind}"
                self._wrong(key, f"a key must be text, got {what}")
            elif name == "<<":
                self._wrong(key, "merge keys (<<) are not supported; write the keys out")
            elif name in built:
                line = self.keys[(*path, name)].line
                self._wrong(key, f"the key {shown(name)[5:]} is given twice; the first stands in line {line}")
            else:
                self.keys[(*path, name)] = key.place
                built[name] = self.build(value, (*path, name), depth + 1)
        return built

    def _wrong(self, node: _Node, message: str) -> None:
        self.problems.append(Problem.at(node.place, message))


def plain(text: str) -> tuple[Any, str]:
    """A plain scalar's value by YAML 1.2's core types, and what is wrong with it ("" when nothing is)."""
    if text in _WORDS:
        return _WORDS[text], ""
    if _NOT_FINITE.fullmatch(text):
        return None, f"{text} is not a number that can be computed with; write a finite one"
    if len(text) < 400 and _INT.fullmatch(text):
        digits = text.replace("_", "")
        if len(digits.lstrip("+-0")) > MAX_DIGITS:
            return 0, f"a whole number of more than {MAX_DIGITS} digits is too large"
        return int(digits), ""
    if len(text) < 400 and _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        return (number, "") if math.isfinite(number) else (0, f"{text[:40]} is too large to compute with")
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return 0, f"a number of {len(text)} characters is too long"
    return text, ""


def _check_size(text: str, name: str) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        if number > MAX_LINES:
            raise ScenarioError.at(Place(name, number, 1), f"more than {MAX_LINES} lines")
        if len(line) > MAX_LINE:
            raise ScenarioError.at(Place(name, number, MAX_LINE), f"more than {MAX_LINE} characters")


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _events(text: str, name: str) -> Iterator[Any]:
    """ruamel's events of `text`; whatever its scanner or parser raises becomes a ScenarioError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    line_starts_with_tab = re.search(r"^ *\t", text, re.MULTILINE)
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = Place(name, mark.line + 1, mark.column + 1) if mark else _reader_place(error, text, name)
        what = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read")
        raise ScenarioError.at(place, _explained(what, bool(line_starts_with_tab))) from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        # ruamel's scanner is not defended against every malformed text (directives, surrogate escapes).
        what = f"not valid YAML ({type(error).__name__} while reading)"
        raise ScenarioError.at(Place(name, 1, 1), what) from None


def _reader_place(error: Exception, text: str, name: str) -> Place:
    """Where a character stands that YAML does not allow at all."""
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return Place(name, 1, 1)
    before = text[:position]
    return Place(name, before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


def _explained(problem: str, has_tab: bool) -> str:
    if "\\t" in problem or ("\t" in problem) or (has_tab and "cannot start any token" in problem):
        return "not valid YAML: a tab; indent with spaces"
    return f"not valid YAML: {problem}"


def entries(value: Any) -> Iterable[tuple[str | int, Any]]:
    """The keys and values of a mapping, the numbers and values of a list, nothing of a scalar."""
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _paths(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    yield path
    for key, inner in entries(value):
        yield from _paths(inner, (*path, key))
