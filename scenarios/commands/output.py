"""What the commands share: errors to exit codes, JSON on stdout, files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from scenarios.errors import Place, ScenarioError, one_line

SCHEMA_VERSION = 1
MOST_PROBLEMS = 50
# what reading a document raises when its parts are missing or of another type
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def tool_version() -> str:
    """The version of the installed package, "unknown" where it runs from a bare checkout."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("whatif-planner")
    except PackageNotFoundError:
        return "unknown"


@contextmanager
def reported() -> Iterator[None]:
    """Bad input ends with exit code 2 and its problems on stderr, one a line; an interrupt with 130."""
    try:
        yield
    except ScenarioError as error:
        for problem in error.problems[:MOST_PROBLEMS]:
            print(problem, file=sys.stderr)
        if len(error.problems) > MOST_PROBLEMS:
            print(f"... and {len(error.problems) - MOST_PROBLEMS} more problems", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(to_json(document))


def to_json(document: Any) -> str:
    """The JSON text of a document (`plain_values`)."""
    return json.dumps(plain_values(document), allow_nan=False, indent=1)


def plain_values(value: Any) -> Any:
    """The same with NumPy values made plain; what is not a finite number becomes None."""
    if isinstance(value, dict):
        return {str(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(inner) for inner in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain_values(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def check_target(option: str, path: str, never: tuple[Path, ...] = ()) -> None:
    """Whether a file can be written, asked before the work begins. `never` are inputs that must survive.

    Raises ScenarioError placed at the option.
    """
    place, target = Place(f"{option} {path}"), Path(path)
    folder = target.parent
    if not path.strip() or "\0" in path:
        raise ScenarioError.at(place, "a file name is expected")
    if not folder.is_dir():
        raise ScenarioError.at(place, f"the folder {one_line(str(folder))} does not exist; make it first")
    if target.is_dir():
        raise ScenarioError.at(place, "is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise ScenarioError.at(place, f"the folder {one_line(str(folder))} cannot be written to")
    if any(target.exists() and source.exists() and target.samefile(source) for source in never):
        raise ScenarioError.at(place, "would overwrite the input; choose another name")


def write_file(option: str, path: str, text: str) -> None:
    """Writes beside the target and renames, so that no half file is ever seen. Raises ScenarioError."""
    target = Path(path)
    beside = target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
    try:
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(option, path, error) from None


def cannot_write(option: str, path: str, error: OSError) -> ScenarioError:
    """The error for a file that the operating system refused."""
    return ScenarioError.at(Place(f"{option} {path}"), f"cannot be written: {error.strerror or error}")


def read_result(name: str) -> dict[str, Any]:
    """A result saved from `whatif run --json`; "-" reads stdin. Raises ScenarioError when it is not one."""
    place = Place("stdin" if name == "-" else name)
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
        document = json.loads(text, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise ScenarioError.at(place, "no such file") from None
    except json.JSONDecodeError as error:
        place = Place(place.file, error.lineno, error.colno)
        raise ScenarioError.at(place, f"not JSON: {error.msg}; expected {_RESULT}") from None
    except OSError as error:
        raise ScenarioError.at(place, f"cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ScenarioError.at(place, f"is not UTF-8 text; expected {_RESULT}") from None
    except (ValueError, RecursionError) as error:
        raise ScenarioError.at(place, f"not usable JSON: {error}; expected {_RESULT}") from None
    if not isinstance(document, dict) or not isinstance(document.get("scenario"), dict):
        raise ScenarioError.at(place, f"is JSON, but not {_RESULT}")
    if document.get("schema_version") != SCHEMA_VERSION:
        found = one_line(str(document.get("schema_version"))[:40])
        raise ScenarioError.at(place, f"has schema_version {found}; this version reads {SCHEMA_VERSION}")
    return document


_RESULT = "a result written by 'whatif run SCENARIO --json'"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
