"""The `whatif` command line. Only typer is imported here; each command imports what it needs when it runs.

Exit codes: 0 done, 1 a check the user asked for failed (or Whatif itself did), 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(
    name="whatif",
    help="Predict the time, memory, money and energy of large-model training from one scenario file.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Fidelity(StrEnum):
    """How a step is predicted: every task played, or the closed form."""

    events = "events"
    analytic = "analytic"


class By(StrEnum):
    """How `whatif accuracy` groups rows."""

    family = "family"
    gpu = "gpu"
    scale = "scale"
    precision = "precision"
    release = "release"


class Listed(StrEnum):
    """What `whatif list` can show."""

    models = "models"
    accelerators = "accelerators"
    nodes = "nodes"
    schedules = "schedules"
    strategies = "strategies"
    stacks = "stacks"
    scenarios = "scenarios"


ScenarioName = Annotated[str, typer.Argument(help="A scenario file, or the name of a library scenario.",
                                             metavar="SCENARIO")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Html = Annotated[str, typer.Option("--html", help="Write a self-contained page to this file.", metavar="F")]
Set = Annotated[list[str], typer.Option("--set", help="Override a key: plan.tensor=4. Repeatable.",
                                        metavar="KEY=VALUE")]
FidelityOption = Annotated[Fidelity, typer.Option(help="events: play every task; analytic: the closed form.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from scenarios.commands.output import tool_version

        typer.echo(f"whatif {tool_version()}")
        raise typer.Exit()


@app.callback()
def _whatif(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.",
                                          callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


@app.command()
def run(
    scenario: ScenarioName,
    settings: Set = [],  # noqa: B006 (typer copies it)
    fidelity: FidelityOption = Fidelity.events,
    html: Html = "",
    trace: Annotated[str, typer.Option(help="Write the timeline (.json or .json.gz) for Perfetto.",
                                       metavar="F")] = "",
    json: Json = False,
    seed: Annotated[int | None, typer.Option(help="Replace the seed.", min=0, max=2**32 - 1)] = None,
) -> None:
    """Predict a scenario; its what_if variants come out beside the base case."""
    from scenarios.commands import run as command
    from scenarios.commands.output import reported

    with reported():
        command.run(scenario, settings, fidelity.value, html=html, trace=trace, as_json=json, seed=seed)


@app.command()
def compare(
    scenarios: Annotated[list[str], typer.Argument(help="Two or more scenarios or results of run --json.",
                                                   metavar="A B...")],
    fidelity: FidelityOption = Fidelity.events,
    html: Html = "",
    json: Json = False,
) -> None:
    """Predict several scenarios and show what differs, and which term of the step causes it."""
    from scenarios.commands import compare as command
    from scenarios.commands.output import reported

    with reported():
        command.compare(scenarios, fidelity.value, html=html, as_json=json)


@app.command("list")
def list_names(what: Annotated[Listed, typer.Argument(help="What to list.")], json: Json = False) -> None:
    """List what is known: models, accelerators, nodes, schedules, strategies, stacks, library scenarios."""
    from scenarios.commands import listing
    from scenarios.commands.output import reported

    with reported():
        listing.show(what.value, as_json=json)


@app.command()
def report(
    result: Annotated[str, typer.Argument(help="A result of `whatif run --json`; - reads stdin.",
                                          metavar="RESULT.json")],
    output: Annotated[str, typer.Option("--output", "-o", help="The page to write.", metavar="F.html")],
) -> None:
    """Make the page of a saved result."""
    from scenarios.commands import report as command
    from scenarios.commands.output import reported

    with reported():
        command.report(result, output)


@app.command()
def accuracy(
    files: Annotated[list[str] | None, typer.Argument(help="CSV files with the columns of published/training.csv; "
                                                      "none: the rows that ship with Whatif.",
                                                      metavar="[CSV...]")] = None,
    by: Annotated[By, typer.Option(help="How to group the rows.")] = By.family,
    html: Html = "",
    markdown: Annotated[str, typer.Option("--markdown", help="Write the report as Markdown to this file.",
                                          metavar="F")] = "",
    json: Json = False,
    update_bands: Annotated[bool, typer.Option("--update-bands", help="First make the error bands of every prediction "
                                               "anew from these rows (about a minute).")] = False,
) -> None:
    """Predict published measured runs and score the errors."""
    from scenarios.commands import accuracy as command
    from scenarios.commands.output import reported

    with reported():
        command.accuracy(files or [], by.value, html=html, markdown=markdown, as_json=json,
                         update_bands=update_bands)


@app.command()
def reproduce(
    systems: Annotated[list[str] | None, typer.Argument(help="Studied systems; none: all.",
                                                        metavar="[SYSTEM...]")] = None,
    claims: Annotated[str, typer.Option(help="A CSV with the columns of published/systems_training.csv; none: the "
                                        "claims that ship with Whatif.", metavar="CSV")] = "",
    html: Html = "",
    markdown: Annotated[str, typer.Option("--markdown", help="Write the report as Markdown to this file.",
                                          metavar="F")] = "",
    json: Json = False,
) -> None:
    """Check claims of the studied systems against the simulator."""
    from scenarios.commands import reproduce as command
    from scenarios.commands.output import reported

    with reported():
        command.reproduce(systems or [], claims, html=html, markdown=markdown, as_json=json)


calibrate = typer.Typer(help="Kernel profiles from measurement.", no_args_is_help=True)
app.add_typer(calibrate, name="calibrate")


@calibrate.callback()
def _calibrate() -> None:
    pass


@calibrate.command("fit")
def calibrate_fit(
    kernels: Annotated[str, typer.Option(help="Folder of measured kernel tables.", metavar="DIR")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the profiles.", metavar="DIR")],
    profiles_raw: Annotated[str, typer.Option(help="Folder of operator profiles (vidur/).", metavar="DIR")] = "",
    report_file: Annotated[str, typer.Option("--report", help="Where the fit report goes (default: with the "
                                             "profiles).", metavar="F.md")] = "",
    json: Json = False,
) -> None:
    """Fit compact kernel profiles and report their error on shapes held out."""
    from scenarios.commands import calibrate as command
    from scenarios.commands.output import reported

    with reported():
        command.fit(kernels, profiles_raw, output, report_file, as_json=json)


@calibrate.command("constants")
def calibrate_constants(
    files: Annotated[list[str], typer.Argument(help="Published runs, with the columns of training.csv.",
                                               metavar="CSV...")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where the constants go.", metavar="F.yaml")],
    json: Json = False,
) -> None:
    """Fit the constants that only whole runs can tell; every family is also left out once."""
    from scenarios.commands import calibrate as command
    from scenarios.commands.output import reported

    with reported():
        command.end_to_end(files, output, as_json=json)


def main() -> None:
    """The entry point: like `app()`, but a fault of Whatif itself is one line on stderr, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        import os

        if os.environ.get("WHATIF_TRACEBACK"):
            raise
        print(f"whatif: internal fault: {type(error).__name__}: {error} "
              "(WHATIF_TRACEBACK=1 shows where; please report it)", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
