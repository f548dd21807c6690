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


class Executor(StrEnum):
    """Who evaluates the variants of a sweep."""

    local = "local"
    dask = "dask"


class Objective(StrEnum):
    """What a search for an order makes small: the longest span of a rank, or the makespan."""

    span = "span"
    makespan = "makespan"


class PlanObjective(StrEnum):
    """What a search for plans makes small."""

    time = "time"
    cost = "cost"
    energy = "energy"
    memory = "memory"


class Solver(StrEnum):
    """How `whatif search` looks through the plans."""

    exhaustive = "exhaustive"


class Device(StrEnum):
    """What is measured, or runs for real."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Listed(StrEnum):
    """What `whatif list` can show."""

    models = "models"
    accelerators = "accelerators"
    nodes = "nodes"
    schedules = "schedules"
    strategies = "strategies"
    techniques = "techniques"
    context_groups = "context-groups"
    shares = "shares"
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
def search(
    scenario: ScenarioName,
    settings: Set = [],  # noqa: B006 (typer copies it)
    vary: Annotated[list[str], typer.Option(
        "--vary", help="An axis and its values: plan.tensor=1,2,4. Replaces that axis of the scenario. Repeatable.",
        metavar="KEY=V1,V2")] = [],  # noqa: B006
    solver: Annotated[Solver, typer.Option(help="exhaustive: every plan is priced.")] = Solver.exhaustive,
    objective: Annotated[PlanObjective, typer.Option(help="What to make small.")] = PlanObjective.time,
    top: Annotated[int, typer.Option(help="How many plans to show.", min=1, max=1000)] = 10,
    play: Annotated[int, typer.Option(help="How many of them to play as events.", min=0, max=1000)] = 5,
    orders: Annotated[int, typer.Option(help="How many orders may be made for schedules without a closed form.",
                                        min=0, max=10_000)] = 20,
    max_memory: Annotated[str, typer.Option(help="Most memory of a GPU that a plan may need: 70 GB.",
                                            metavar="SIZE")] = "",
    max_gpus: Annotated[int | None, typer.Option(help="Try clusters of up to so many GPUs.", min=1,
                                                 max=1_000_000)] = None,
    deadline: Annotated[str, typer.Option(help="Longest time of the whole run: 30 d.", metavar="TIME")] = "",
    budget_usd: Annotated[float | None, typer.Option(help="Most US dollars for the whole run.", min=0.0)] = None,
    html: Html = "",
    json: Json = False,
) -> None:
    """Find the best plan for a scenario: every combination of its axes is priced, the best are played.

    Ends with 1 where no plan fits.
    """
    from scenarios.commands import search as command
    from scenarios.commands.output import reported

    with reported():
        code = command.search(scenario, settings, vary, solver=solver.value, objective=objective.value, top=top,
                              play=play, orders=orders, max_memory=max_memory, max_gpus=max_gpus, deadline=deadline,
                              budget_usd=budget_usd, html=html, as_json=json)
    raise typer.Exit(code)


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


@app.command()
def sweep(
    scenario: ScenarioName,
    varied: Annotated[list[str], typer.Option("--vary", help="Values of a key: plan.tensor=1,2,4 or 1..8 or "
                                              "1..64 x2 or @FILE with a value a line; or @FILE.csv with keys in its "
                                              "header and a variant a line. Repeatable: all combinations.",
                                              metavar="KEY=V1,V2,...")] = [],  # noqa: B006
    out: Annotated[str, typer.Option(help="Write every variant to this table.", metavar="F.csv|F.parquet")] = "",
    fidelity: FidelityOption = Fidelity.analytic,
    executor: Annotated[Executor, typer.Option(help="local: processes of this machine; dask: a cluster of "
                                               "machines.")] = Executor.local,
    address: Annotated[str, typer.Option(help="The scheduler of a Dask cluster; none: one on this machine.",
                                         metavar="ADDRESS")] = "",
    workers: Annotated[int | None, typer.Option(help="Processes on this machine (default: its processors).", min=1,
                                                max=1024)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was stopped.")] = False,
    json: Json = False,
) -> None:
    """Predict many variants of a scenario, into a table."""
    from scenarios.commands import sweep as command
    from scenarios.commands.output import reported

    with reported():
        command.sweep(scenario, varied, fidelity.value, out=out, executor=executor.value, address=address,
                      workers=workers, resume=resume, as_json=json)


@app.command("list")
def list_names(what: Annotated[Listed, typer.Argument(help="What to list.")], json: Json = False) -> None:
    """List what is known: models, accelerators, nodes, schedules, strategies, techniques, stacks, scenarios, ..."""
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


@app.command()
def validate(
    scenario: Annotated[str, typer.Argument(help="A scenario file or library name; none: small models that check "
                                            "the profile of this machine.", metavar="[SCENARIO]")] = "",
    settings: Set = [],  # noqa: B006 (typer copies it)
    device: Annotated[Device, typer.Option(help="auto: the GPUs where torch finds some.")] = Device.auto,
    profile: Annotated[str, typer.Option(help="The measured profile of this machine.", metavar="NAME")]
    = "this-machine",
    ranks: Annotated[int | None, typer.Option(help="Most ranks (default: processors, at least 2; or GPUs).", min=1,
                                              max=16)] = None,
    steps: Annotated[int, typer.Option(help="Steps that are timed.", min=1, max=1000)] = 5,
    warmup: Annotated[int, typer.Option(help="Steps before them.", min=0, max=100)] = 2,
    timeout: Annotated[str, typer.Option(help="Ranks that take longer are ended: 10m, 90 s.", metavar="TIME")] = "10m",
    max_error: Annotated[float | None, typer.Option(help="End with 1 where a judged error is larger: 0.25.",
                                                    min=0.0)] = None,
    update_profile: Annotated[bool, typer.Option("--update-profile", help="Keep the corrections that the run implies "
                                                 "in the profile.")] = False,
    html: Html = "",
    trace: Annotated[str, typer.Option(help="Write both timelines (.json or .json.gz) for Perfetto.",
                                       metavar="F")] = "",
    markdown: Annotated[str, typer.Option("--markdown", help="Write the checks of this machine as Markdown to this "
                                          "file.", metavar="F")] = "",
    json: Json = False,
) -> None:
    """Run the plan of a scenario for real for a few steps, cut to this machine, and compare with its simulation."""
    from scenarios.commands import checks
    from scenarios.commands import validate as command
    from scenarios.commands.output import reported

    with reported():
        of_scenario = {"--set": settings, "--ranks": ranks is not None, "--max-error": max_error is not None,
                       "--update-profile": update_profile, "--html": html, "--trace": trace}
        checks.belong(scenario, of_scenario, {"--markdown": markdown})
        if not scenario:
            raise typer.Exit(checks.check(device=device.value, profile=profile, timeout=timeout, markdown=markdown,
                                          as_json=json))
        code = command.validate(scenario, settings, device=device.value, profile=profile, ranks=ranks, steps=steps,
                                warmup=warmup, timeout=timeout, max_error=max_error, update_profile=update_profile,
                                html=html, trace=trace, as_json=json)
    raise typer.Exit(code)


schedule = typer.Typer(help="Pipeline schedules on their own: order, bubble, memory, picture.", no_args_is_help=True)
app.add_typer(schedule, name="schedule")

Stages = Annotated[int | None, typer.Option(help="Pipeline ranks.", min=1, max=4096)]
Microbatches = Annotated[int | None, typer.Option(help="Micro-batches of a step.", min=1, max=100_000)]
Chunks = Annotated[int | None, typer.Option(help="Chunks of layers a rank (default: the schedule's fewest).", min=1,
                                            max=1024)]
Group = Annotated[int | None, typer.Option(help="Micro-batches that go through a chunk before the next chunk's turn.",
                                           min=1)]
Segments = Annotated[int | None, typer.Option(help="Parts of each sequence, for schedules that cut it.", min=1,
                                              max=4096)]
_EACH = "of one micro-batch on a rank: ticks, or with a unit (12 ms); a list with commas, one a rank; or @FILE.csv"
Forward = Annotated[str, typer.Option(help=f"Time of the forward {_EACH}, a line a rank and a cell a micro-batch.",
                                      metavar="TIME")]
Backward = Annotated[str, typer.Option(help="The same of the backward for the input.", metavar="TIME")]
Weight = Annotated[str, typer.Option(help="The same of the backward for the weight.", metavar="TIME")]
Comm = Annotated[str, typer.Option(help="Latency from one rank to another.", metavar="TIME")]
Transfer = Annotated[str, typer.Option(help="How long one hop keeps the wire between two ranks busy.", metavar="TIME")]
Barrier = Annotated[str, typer.Option(help="A meeting of all ranks (split output layer).", metavar="TIME")]
PassTimes = Annotated[list[str], typer.Option("--pass", help="Time of another kind of pass (R, S, T, O, L). "
                                              "Repeatable.", metavar="KIND=TIME")]
MemoryLimit = Annotated[str, typer.Option(help="The most a rank may hold: micro-batches (4), chunks (6 chunks) or "
                                          "bytes (40 GB).", metavar="X")]
WeightShare = Annotated[float, typer.Option(help="Share of an activation that B leaves for W.", min=0, max=1)]
ActivationBytes = Annotated[str, typer.Option(help="Activations of one micro-batch on one rank (2 GB).",
                                              metavar="SIZE")]

Recompute = Annotated[int, typer.Option(help="Chunks of every rank that run forward again (R) before their backward.",
                                        min=0)]
Offload = Annotated[int, typer.Option(help="Chunks of every rank that leave for the host (O) and come back (L).",
                                      min=0)]


@schedule.callback()
def _schedule() -> None:
    pass


@schedule.command("show")
def schedule_show(
    name: Annotated[str, typer.Argument(help="A schedule, auto (the best order a search finds), or a file of "
                                        "orders (.json, .csv; FILE#CASE of several).", metavar="NAME")],
    stages: Stages = None, microbatches: Microbatches = None, chunks: Chunks = None, group: Group = None,
    segments: Segments = None, forward: Forward = "1", backward: Backward = "1", weight: Weight = "1",
    comm: Comm = "0", transfer: Transfer = "0", barrier: Barrier = "0", passes: PassTimes = [],  # noqa: B006
    memory_limit: MemoryLimit = "", weight_share: WeightShare = 0.5, activation_bytes: ActivationBytes = "",
    recompute: Recompute = 0, offload: Offload = 0,
    orders: Annotated[str, typer.Option(help="Write the order to this file.", metavar="F.json")] = "",
    objective: Annotated[Objective, typer.Option(help="What NAME auto searches the least of.")] = Objective.span,
    html: Html = "", json: Json = False,
) -> None:
    """Play one schedule: makespan, span, bubble, peak activations, picture."""
    from scenarios.commands import schedule as command
    from scenarios.commands.output import reported
    from scenarios.schedules.settings import Options

    options = Options(stages, microbatches, chunks, group, segments, forward, backward, weight, comm, transfer, barrier,
                      passes, memory_limit, weight_share, activation_bytes, objective.value, recompute, offload)
    with reported():
        command.show(name, options, orders=orders, html=html, as_json=json)


@schedule.command("compare")
def schedule_compare(
    names: Annotated[list[str] | None, typer.Argument(help="Schedules or files of orders.",
                                                      metavar="[NAME...]")] = None,
    every: Annotated[bool, typer.Option("--all", help="All schedules there are.")] = False,
    stages: Stages = None, microbatches: Microbatches = None, chunks: Chunks = None, group: Group = None,
    segments: Segments = None, forward: Forward = "1", backward: Backward = "1", weight: Weight = "1",
    comm: Comm = "0", transfer: Transfer = "0", barrier: Barrier = "0", passes: PassTimes = [],  # noqa: B006
    memory_limit: MemoryLimit = "", weight_share: WeightShare = 0.5, activation_bytes: ActivationBytes = "",
    recompute: Recompute = 0, offload: Offload = 0,
    html: Html = "", json: Json = False,
) -> None:
    """Play several schedules with the same work on every rank and micro-batch."""
    from scenarios.commands import schedule as command
    from scenarios.commands.output import reported
    from scenarios.schedules.settings import Options

    options = Options(stages, microbatches, chunks, group, segments, forward, backward, weight, comm, transfer, barrier,
                      passes, memory_limit, weight_share, activation_bytes, recompute=recompute, offload=offload)
    with reported():
        command.compare(names or [], options, every=every, html=html, as_json=json)


@schedule.command("check")
def schedule_check(
    file: Annotated[str, typer.Argument(help="A CSV with the columns of published/schedules.csv.", metavar="FILE.csv")],
    json: Json = False,
) -> None:
    """Play every published row and compare cost, bubble and peak; exit status 1 where one disagrees."""
    from scenarios.commands import schedule as command
    from scenarios.commands.output import reported

    with reported():
        command.check(file, as_json=json)


calibrate = typer.Typer(help="Kernel profiles from measurement.", no_args_is_help=True)
app.add_typer(calibrate, name="calibrate")


@calibrate.callback()
def _calibrate() -> None:
    pass


@calibrate.command("measure")
def calibrate_measure(
    device: Annotated[Device, typer.Option(help="auto: the GPUs where there are some.")] = Device.auto,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes: about a minute.")] = False,
    name: Annotated[str, typer.Option(help="What the profile will be called.", metavar="NAME")] = "this-machine",
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the tables (default: NAME.measured).",
                                        metavar="FOLDER")] = "",
    only: Annotated[list[str], typer.Option("--only", help="Families to measure: gemm, attention, operators, copies, "
                                            "launch, storage, collectives; read: none, only what --read names. "
                                            "Repeatable.", metavar="FAMILY")] = [],  # noqa: B006
    ranks: Annotated[str, typer.Option(help="Ranks of collectives (default: 2, and 4 unless quick; on GPUs powers of "
                                       "two).", metavar="2,4")] = "",
    read: Annotated[list[str], typer.Option("--read", help="Take rows from outputs of nccl-tests (text), fio (JSON) or "
                                            "the PyTorch profiler (trace). Repeatable.",
                                            metavar="KIND:FILE")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Measure the hardware at hand into a folder of tables; a run that was stopped goes on where it was."""
    from scenarios.commands import measure as command
    from scenarios.commands.output import reported

    with reported():
        command.measure(device.value, name, output, only, ranks, read, quick=quick, as_json=json)


@calibrate.command("fit")
def calibrate_fit(
    kernels: Annotated[str, typer.Option(help="Folder of measured kernel tables of shipped parts.",
                                         metavar="DIR")] = "",
    measured: Annotated[str, typer.Option(help="Folder that `whatif calibrate measure` made: becomes entries of your "
                                          "own catalogue.", metavar="FOLDER")] = "",
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the profiles; of --measured the catalogue "
                                        "(default: $WHATIF_CATALOG, else ~/.whatif/catalog).", metavar="DIR")] = "",
    profiles_raw: Annotated[str, typer.Option(help="Folder of operator profiles (vidur/).", metavar="DIR")] = "",
    report_file: Annotated[str, typer.Option("--report", help="Where the fit report goes (default: with the "
                                             "profiles).", metavar="F.md")] = "",
    json: Json = False,
) -> None:
    """Fit compact kernel profiles and report their error on shapes held out."""
    from scenarios.commands import calibrate as command
    from scenarios.commands import fit_measured
    from scenarios.commands.output import reported
    from scenarios.errors import Place, ScenarioError

    with reported():
        if bool(kernels) == bool(measured):
            raise ScenarioError.at(Place("whatif calibrate fit"), "takes either --kernels DIR or --measured FOLDER")
        if measured:
            fit_measured.fit(measured, output, as_json=json)
            return
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
