"""`whatif reproduce`: reading claims, adapters against closed forms, verdicts on right and wrong values."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from placement import semantics, strategies
from placement.states import Axis, State
from scenarios.cli import app
from scenarios.commands.reproduce import PUBLISHED
from scenarios.errors import ScenarioError
from scenarios.papers import claims, fusemax, mixture_of_channels, paro, registry, settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import COLUMNS, Claim
from scenarios.papers.document import document, entry, verdict_of
from scenarios.papers.verdicts import VERDICTS, judge, kind_of

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / ".." / "shared" / "published" / "systems_training.csv"
HEADER = ",".join(COLUMNS)


def claim(**cells: str) -> Claim:
    base = dict.fromkeys(COLUMNS, "")
    return Claim(**{**base, "system": "Placement Semantics", "claim_id": "x", "metric": "speed", **cells})


def shared_rows() -> tuple[Claim, ...]:
    if not SHARED.exists():
        pytest.skip("the shared folder with the full table of claims is not here")
    read = claims.read(SHARED)
    assert read.problems == ()
    return read.rows


def whatif(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# Reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "plain", "sort"), [
    ("31.4", 31.4, "point"), ("2P", 2.0, "point"), ("640K", 640 * 1024.0, "point"), ("8 B/param", 8.0, "point"),
    ("1.19-2.50", [1.19, 2.5], "interval"), ("97-99", [97.0, 99.0], "interval"), ("4.8 (max)", 4.8, "at most"),
    ("14 (over)", 14.0, "at least"), ("4 (or more)", 4.0, "at least"), ("<4", 4.0, "at most"),
    (">90", 90.0, "at least"), ("~8 less", 8.0, "about"), ("-55.7%", 0.443, "point"),
    ("266 % faster (up to)", 3.66, "at most"), ("up to two orders of magnitude less", 100.0, "at most"),
    ("9.77 (mean)", 9.77, "point"),
])
def test_printed_figures_are_read(text: str, plain: Any, sort: str) -> None:
    found = claims.figure(text)
    assert found is not None
    assert found.plain == pytest.approx(plain)
    assert found.sort == sort


@pytest.mark.parametrize("text", ["eight", "n/a", "abc12", "12abc", "1.2.3", "--4"])
def test_text_in_a_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="number is expected"):
        claims.figure(text)


def test_a_bad_row_is_named_and_the_good_ones_count() -> None:
    good = "Placement Semantics,,A,\"70B, N=8, ZeRO-1\",model-state memory per device,DP,1120,385.0,2.909,GB,table"
    text = "\n".join([HEADER, good, good, "S,,B,s,m,DP,1,lots,1,x,t", ",,C,s,m,DP,1,1,1,x,t", "S,,D,s"])
    read = claims.parse(text, "my.csv")
    assert [row.claim_id for row in read.rows] == ["A"]
    told = [str(problem) for problem in read.problems]
    assert told[0].startswith("my.csv:3:3: row A, column claim_id: stands in line 2 already")
    assert told[1].startswith("my.csv:4:8: row B, column system_value: text 'lots'")
    assert told[2].startswith("my.csv:5:1: row C, column system: is blank")
    assert told[3].startswith("my.csv:6:1: row D: 4 cells")
    assert len(told) == 4


def test_missing_columns_are_named() -> None:
    with pytest.raises(ScenarioError) as caught:
        claims.parse("system,claim_id\n", "my.csv")
    told = str(caught.value)
    assert "column 'ratio' is missing" in told
    assert "column 'arxiv' is missing" in told


@pytest.mark.parametrize("name", ["systems_training.csv", "systems_serving.csv"])
def test_the_full_tables_are_read_without_a_problem(name: str) -> None:
    path = SHARED.with_name(name)
    if not path.exists():
        pytest.skip("the shared folder with the full tables of claims is not here")
    read = claims.read(path)
    assert read.problems == ()
    assert len(read.rows) == len(path.read_text(encoding="utf-8").splitlines()) - 1


def test_shipped_claims_hold_no_rows_of_data_files() -> None:
    read = claims.read(PUBLISHED)
    assert read.problems == ()
    assert len(read.rows) > 100
    assert not [row.claim_id for row in read.rows if ".csv" in row.source_locator or ".txt" in row.source_locator]


# Placement: the published table and beyond it --------------------------------------------------------

# reference/systems_training.md 1.4 and ZeRO's Fig. 1 (arXiv 1910.02054): GB per device by stage
TABLE = [
    ("70B", 8, (1120.0, 385.0, 262.5, 140.0)), ("70B", 16, (1120.0, 332.5, 201.25, 70.0)),
    ("70B", 32, (1120.0, 306.25, 170.625, 35.0)), ("7.5B", 8, (120.0, 41.25, 28.125, 15.0)),
    ("7.5B", 16, (120.0, 35.625, 21.5625, 7.5)), ("7.5B", 64, (120.0, 31.4, 16.6, 1.9)),
]
CELLS = [(model, ranks, name, value) for model, ranks, values in TABLE
         for name, value in zip(("DP", "ZeRO-1", "ZeRO-2", "ZeRO-3"), values, strict=True)]


def memory_claim(model: str, ranks: int, name: str, value: float) -> Claim:
    return claim(setting=f"{model}, N={ranks}, {name}", metric="model-state memory per device", baseline_name="DP",
                 system_value=f"{value:g}", unit="GB")


@pytest.mark.parametrize(("model", "ranks", "name", "value"), CELLS)
def test_every_cell_of_the_zero_table_is_reproduced_and_a_wrong_one_is_not(
    model: str, ranks: int, name: str, value: float
) -> None:
    assert verdict_of(memory_claim(model, ranks, name, value)).verdict == "reproduced"
    for factor in (0.96, 1.04, 2.0):
        wrong = verdict_of(memory_claim(model, ranks, name, value * factor))
        assert (wrong.kind, wrong.verdict) == ("exact", "not reproduced")
        assert "missing" in wrong.reason


@pytest.mark.parametrize(("setting", "volume"), [
    ("ZeRO-1 vs DP", 2), ("ZeRO-2 vs DP", 2), ("ZeRO-3 vs DP", 3), ("FSDP, no reshard after forward, vs DP", 2),
    ("ZeRO-3 with recompute that re-gathers vs DP", 4), ("FSDP full-shard vs DP, N=64", 3)])
def test_volumes_are_those_of_the_table(setting: str, volume: int) -> None:
    row = claim(setting=setting, metric="communication volume", baseline_name="DP", baseline_value="2P",
                system_value=f"{volume}P", ratio=f"{volume / 2}")
    assert verdict_of(row).verdict == "reproduced"
    wrong = replace(row, system_value=f"{volume + 1}P", ratio=f"{(volume + 1) / 2}")
    assert verdict_of(wrong).verdict == "not reproduced"


@pytest.mark.parametrize(("setting", "least"), [("70B, ZeRO-3, 80 GB", 14), ("70B, ZeRO-3, 80 GB, 20 % kept", 18)])
def test_fewest_devices(setting: str, least: int) -> None:
    row = claim(setting=setting, metric="fewest devices", system_value=str(least))
    assert verdict_of(row).verdict == "reproduced"


def test_other_bytes_and_axes() -> None:
    halved = claim(setting="70B, N=8, ZeRO-1, TP=2", metric="model-state memory per device", baseline_name="DP",
                   baseline_value="1120", system_value="192.5", unit="GB")
    assert verdict_of(halved).verdict == "reproduced"
    megatron = claim(setting="10B, N=4, ZeRO-1 (2+4+12)", metric="memory per device", baseline_name="DP",
                     system_value="90", unit="GB")  # 6 + 12/4 = 9 bytes a parameter
    assert verdict_of(megatron).verdict == "reproduced"


def test_without_the_number_of_ranks_nothing_is_claimed() -> None:
    row = claim(setting="70B, ZeRO-3", metric="model-state memory per device", baseline_name="DP", system_value="140")
    found = verdict_of(row)
    assert found.verdict == "not checkable"
    assert "N" in found.reason


# Other adapters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("triple", "name"), [("GGG", "zero-3"), ("NGG", "zero-2"), ("NNG", "zero-1"), ("III", "mics")])
def test_triples_of_paro_are_the_named_strategies(triple: str, name: str) -> None:
    """Known points of reference/systems_training.md, section 2."""
    mesh = {Axis.SHARD: 8, Axis.REPLICATE: 4, Axis.DATA: 32}
    ours, theirs = strategies.get(f"paro-{triple.lower()}"), strategies.get(name, "mixed")
    for state in (State.PARAMETERS, State.GRADIENTS, State.OPTIMIZER):
        held = [semantics.resident_bytes(one, 1e9, mesh)[state] for one in (ours, theirs)]
        assert held[0] == pytest.approx(held[1])


def test_paro_gains_most_where_links_between_groups_are_slow() -> None:
    def gain(bytes_per_s: float) -> float:
        return next(paro.speedups("GGG", ("llama-2-7b",), (64,), (bytes_per_s,), (8,)))

    assert gain(12.5e9) > gain(100e9) > 1.0


def test_internevo_speed_falls_with_ranks_and_reads_the_setting() -> None:
    def speed(setting: str, **cells: str) -> Answer:
        return registry.answer(claim(system="InternEvo hybrid ZeRO", setting=setting, metric="tokens/GPU/s",
                                     baseline_name="zero1=-1", system_value="1", **cells))

    few, many = (speed(f"7B, A100-80G SXM, 4x100Gb RoCE, {n} GPUs, tp1, seq 2048, no act ckpt") for n in (8, 256))
    assert few.ratio == Span(1.0, 1.0)  # one node: hybrid sharding is ZeRO-1 itself
    assert few.value is not None
    assert many.value is not None
    assert few.value.high > many.value.high
    faster = speed("7B, A100-80G SXM, 8x200Gb RoCE, 256 GPUs, tp1, seq 2048, no act ckpt")
    assert faster.value is not None
    assert faster.value.high > many.value.high


def test_memory_without_a_sequence_is_a_span_and_with_one_it_narrows() -> None:
    def span(setting: str) -> Span:
        row = claim(system="InternEvo", setting=setting, metric="GPU memory", system_value="1", unit="GB")
        found = registry.answer(row)
        assert found.value is not None
        return found.value

    open_, stated = span("7B, 4x A800, tp=4, ckpt on"), span("7B, 4x A800, tp=4, ckpt on, seq 4096")
    assert open_.low <= stated.low < stated.high <= open_.high
    assert span("7B, 8x A800, tp=8, ckpt on").high < open_.high


SAVINGS = ((60e6, 256, 4.42), (130e6, 256, 9.87), (1e9, 64, 13.15))  # reference/systems_training.md 11.1, in GB


def test_saving_of_mixture_of_channels_is_the_published_one_within_three_per_cent() -> None:
    """Measured dense - MoC against two played steps, and against the closed form 3 b s f L elements of 2 bytes."""
    for size, batch, measured in SAVINGS:
        shape = mixture_of_channels.PRESETS[size]
        assert mixture_of_channels.saved_bytes(shape, batch, False) / 1e9 == pytest.approx(measured, rel=0.03)
        closed_form = 3.0 * batch * 256 * shape[1] * shape[2] * 2.0
        assert closed_form / 1e9 == pytest.approx(measured, rel=0.03)


def test_memory_layers_are_counted() -> None:
    """2^20 d values = 4.29e9 and 1 MiB a token and layer at d = 4096 (reference/systems_training.md, section 11)."""
    for metric, unit, value in (("value parameters", "B", "4.294967296"), ("bytes read a token and layer", "MiB", "1")):
        row = claim(system="Memory Layers", setting="d 4096, defaults", metric=metric, system_value=value, unit=unit)
        assert verdict_of(row).verdict == "reproduced"
        assert verdict_of(replace(row, system_value="7")).verdict == "not reproduced"


def test_fusemax_and_flat_equal_the_artifact() -> None:
    names = ("FLAT", "+cascade", "+architecture")
    rows = [row for row in shared_rows()
            if row.system == "FuseMax" and row.baseline_name in names and "seq" in row.setting]
    assert len(rows) > 30
    for row in rows:
        found = fusemax.answer(row)
        assert found.value is not None
        assert found.baseline is not None
        assert found.value.high == pytest.approx(float(row.system_value), rel=1e-5)
        assert found.baseline.high == pytest.approx(float(row.baseline_value), rel=1e-5)


def test_no_adapter_reads_the_figures_it_is_judged_by() -> None:
    """Other printed figures, same answer: none is hard-coded or taken from the row (MoC's baseline is an input)."""
    for row in claims.read(PUBLISHED).rows:
        if registry.canonical(row.system) not in registry.ADAPTERS:
            continue
        other = replace(row, system_value="123.456", ratio="7.89")
        try:
            expected = registry.answer(row)
        except (NotMapped, NotCheckable) as error:
            if "prints none" not in str(error):
                with pytest.raises(type(error)):
                    registry.answer(other)
        else:
            assert registry.answer(other) == expected


# Verdicts on synthetic rows --------------------------------------------------------------------------


def verdict(answer: Answer, **cells: str) -> str:
    return judge(claim(**cells), answer).verdict


def test_measured_values() -> None:
    answer = Answer(Span.of(104.0), missing={"": "a term"})
    assert verdict(answer, system_value="100") == "reproduced"
    assert verdict(answer, system_value="120") == "not reproduced"
    assert judge(claim(system_value="120"), answer).reason.endswith("missing: a term")


def test_measured_ratios_are_judged_by_their_gain() -> None:
    cells = {"baseline_value": "100", "system_value": "150", "ratio": "1.5"}
    assert verdict(Answer(Span.of(150), Span.of(100), Span.of(1.5)), **cells) == "reproduced"
    assert verdict(Answer(Span.of(125), Span.of(100), Span.of(1.25)), **cells) == "direction only"
    assert verdict(Answer(Span.of(95), Span.of(100), Span.of(0.95)), **cells) == "not reproduced"
    # the gain is right, the speeds are not
    assert verdict(Answer(Span.of(300), Span.of(200), Span.of(1.5)), **cells) == "direction only"


def test_a_row_that_contradicts_itself_is_not_reproduced() -> None:
    found = judge(claim(baseline_value="100", system_value="150", ratio="1.8"), Answer(Span.of(150), Span.of(100)))
    assert found.verdict == "not reproduced"
    assert "contradicts itself" in found.reason


def test_spans_over_unknown_inputs() -> None:
    span = Answer(Span(80.0, 120.0), open="the batch")
    assert verdict(span, system_value="100") == "range"
    assert verdict(span, system_value="200") == "not reproduced"
    wide = judge(claim(system_value="100"), Answer(Span(50.0, 150.0), open="the batch"))
    assert wide.verdict == "not checkable"
    assert "unknown: the batch" in wide.reason


@pytest.mark.parametrize(("ratio", "low", "high", "expected"), [
    ("1.2-2.6", 1.1, 1.5, "range"), ("1.2-2.6", 3.5, 4.0, "direction only"), ("1.2-2.6", 0.5, 0.9, "not reproduced"),
    ("4 (max)", 1.1, 3.0, "range"), ("4 (max)", 1.05, 1.3, "direction only"), ("4 (max)", 6.0, 7.0, "not reproduced"),
    ("4 (max)", 0.5, 0.9, "not reproduced"), ("13 (over)", 14.0, 14.0, "range"),
])
def test_ranges_and_bounds(ratio: str, low: float, high: float, expected: str) -> None:
    assert verdict(Answer(ratio=Span(low, high)), ratio=ratio, source_locator="abstract") == expected


@pytest.mark.parametrize(("simulated", "expected"), [
    (1.4, "direction only"), (1.2, "direction only"), (1.0, "not reproduced"), (0.8, "not reproduced"),
    (5.0, "not reproduced")])
def test_an_abstract_alone_fixes_the_direction(simulated: float, expected: str) -> None:
    assert verdict(Answer(ratio=Span.of(simulated)), ratio="1.365", source_locator="abstract") == expected


@pytest.mark.parametrize("ratio", ["0", "-3"])
def test_a_ratio_that_is_none_never_comes_out(ratio: str) -> None:
    assert verdict(Answer(ratio=Span.of(1.5)), ratio=ratio) == "not reproduced"


def test_kinds() -> None:
    assert kind_of(claim(ratio="1.5", source_locator="Table 3")) == "measured"
    assert kind_of(claim(ratio="1.5", source_locator="abstract")) == "direction"
    assert kind_of(claim(ratio="up to 7.6", source_locator="Table 3")) == "range"
    assert kind_of(claim(system_value="385", source_locator="derived from the rule")) == "exact"


def test_an_unseen_system_is_not_mapped_and_counts_against_coverage() -> None:
    rows = [claim(system="Unheard-of System", claim_id="u", system_value="1"), memory_claim("70B", 8, "ZeRO-1", 385)]
    made = document(rows, ())
    assert [one["verdict"] for one in made["claims"]] == ["not mapped", "reproduced"]
    assert "Unheard-of System" in made["claims"][0]["reason"]
    assert made["summary"]["coverage"] == 0.5
    assert sum(made["summary"]["verdicts"].values()) == made["summary"]["rows"] == 2


def test_a_setting_that_an_adapter_cannot_read_is_said_so() -> None:
    for expected, cells in (
        ("not mapped", {"system": "InternEvo", "metric": "humour", "setting": "7B, 8 GPUs"}),
        ("not mapped", {"system": "FuseMax", "metric": "latency", "baseline_name": "Nothing"}),
        ("not checkable", {"system": "PaRO", "metric": "accuracy"}),
    ):
        assert verdict_of(claim(ratio="2", **cells)).verdict == expected


def test_every_row_of_the_full_table_has_a_verdict_with_a_reason() -> None:
    entries = [entry(row) for row in shared_rows()]
    assert {one["verdict"] for one in entries} <= set(VERDICTS)
    assert all(one["reason"] for one in entries)
    exact = [one for one in entries if one["kind"] == "exact" and one["system"] in ("Placement Semantics", "FRUGAL")]
    assert {one["verdict"] for one in exact} == {"reproduced"}


def test_a_wrong_figure_is_never_reproduced() -> None:
    """Every reproduced row of the full table with each of its figures doubled (but a baseline of 1, a unit)."""
    good = [row for row in shared_rows() if verdict_of(row).verdict == "reproduced"]
    assert len(good) > 60
    for row in good:
        printed = {column: getattr(row, column) for column in claims.NUMBERS if getattr(row, column) not in ("", "1")}
        for column, text in printed.items():
            number = re.match(r"[\d.]+", text)
            assert number
            wrong = text.replace(number[0], f"{2 * float(number[0]):g}", 1)
            assert verdict_of(replace(row, **{column: wrong})).verdict != "reproduced", (row.claim_id, column)


def test_adapters_say_what_they_are() -> None:
    for package in set(registry.ADAPTERS.values()):
        text = import_module(f"scenarios.papers.{package}").__doc__ or ""
        assert "arXiv" in text
        assert "Mechanism" in text
        assert "Answered" in text


@pytest.mark.parametrize(("text", "size"), [("70B, N=8", 70e9), ("LLaMA-7B", 7e9), ("16 B/param", None), ("60M", 60e6)])
def test_model_sizes(text: str, size: float | None) -> None:
    assert settings.parameters(text) == size


# Command line ----------------------------------------------------------------------------------------


def test_json_is_the_documented_form() -> None:
    result = whatif("reproduce", "zero", "Placement Semantics", "--json")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    needed = {"system", "claim_id", "setting", "metric", "claimed", "simulated", "error", "kind", "verdict", "reason"}
    assert all(needed <= set(one) for one in made["claims"])
    assert made["summary"]["rows"] == len(made["claims"]) == 7
    assert made["summary"]["verdicts"]["reproduced"] == 7


def test_bad_rows_end_with_2_after_the_good_ones_are_judged(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    good = "ZeRO,,A,\"7.5B, N_d=64, ZeRO-1\",model-state memory per device,DP,120,31.4,,GB,Fig. 1"
    file.write_text(f"{HEADER}\n{good}\nZeRO,,B,s,m,DP,many,1,,GB,t\n", encoding="utf-8")
    result = whatif("reproduce", "--claims", file, "--json")
    assert result.exit_code == 2
    assert "row B, column baseline_value: text 'many'" in result.stderr
    assert [one["verdict"] for one in json.loads(result.stdout)["claims"]] == ["reproduced"]


@pytest.mark.parametrize("arguments", [["parro"], ["--claims", "none.csv"], [""]])
def test_bad_input_ends_with_2_and_one_line(arguments: list[str]) -> None:
    result = whatif("reproduce", *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1


def test_terminal_page_and_markdown(tmp_path: Path) -> None:
    page, text = tmp_path / "claims.html", tmp_path / "claims.md"
    result = whatif("reproduce", "zero", "mallocmuzero", "memo", "--html", page, "--markdown", text)
    assert result.exit_code == 0, result.stderr
    assert "ZERO-7.5B-ZeRO-1" in result.stdout
    assert "Not mapped" in result.stdout
    html = page.read_text(encoding="utf-8")
    assert "Verdicts by system" in html
    assert html.count("<script") == html.count('<script type="application/json"') == 1
    assert "| ZERO-7.5B-ZeRO-1 |" in text.read_text(encoding="utf-8")


def test_the_page_escapes_what_a_file_says(tmp_path: Path) -> None:
    file, page = tmp_path / "mine.csv", tmp_path / "claims.html"
    file.write_text(f"{HEADER}\n<b>S</b>,,A,<img src=x>,m,DP,1,1,,x,t\n", encoding="utf-8")
    assert whatif("reproduce", "--claims", file, "--html", page).exit_code == 0
    assert "<img" not in page.read_text(encoding="utf-8")
