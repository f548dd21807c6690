"""`whatif report`: the page of a saved result."""

from __future__ import annotations

from pathlib import Path

from scenarios.commands.output import MALFORMED, check_target, read_result, write_file
from scenarios.errors import Place, ScenarioError


def report(result: str, output: str) -> None:
    """Read a result of `whatif run --json` or `search --json` and write its page. Raises ScenarioError."""
    check_target("-o", output, never=(Path(result),) if "\0" not in result else ())
    document = read_result(result)
    searched = document.get("kind") == "search"
    from reports import page, search_page

    try:
        text = search_page.render(document) if searched else page.render(document)
    except MALFORMED as error:
        command = "search" if searched else "run"
        what = f"is not a whole result of 'whatif {command} --json' ({type(error).__name__} at {error})"
        raise ScenarioError.at(Place(result), what) from None
    write_file("-o", output, text)
