"""Measured folders: resumed without loss, points planned without doubles, tiny measurements of every family."""

from __future__ import annotations

import csv
import platform
from pathlib import Path

import numpy as np
import pytest

from costmodel.calibration.measure import grids, machine, run, timing
from costmodel.calibration.measure.session import COLUMNS, KEYS, Session, SessionError, key_of
from costmodel.calibration.measure.statistics import Timing
from costmodel.calibration.measure.statistics import timing as statistics_of

MACHINE = {"name": "m", "device": "cpu", "description": {"cpu": "x", "cores": 2}, "threads": 1, "date": "2026-01-01"}
POINT = {"kind": "device", "size_bytes": 4096}
ONCE = Timing(1.5e-3, 1.25e-3, 1e-3, 0.25, 7, 1.0)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_statistics_are_quantiles() -> None:
    seconds = list(np.random.default_rng(0).random(41))
    found = statistics_of(seconds)
    ordered = sorted(seconds)
    assert found.seconds == ordered[20]
    assert found.least_s == ordered[0]
    assert found.low_s == pytest.approx(ordered[8])
    assert found.spread == pytest.approx((ordered[30] - ordered[10]) / ordered[20])


def test_repeats_end_with_the_budget_and_short_work_is_batched() -> None:
    counts: list[int] = []

    def prepare(count: int):  # type: ignore[no-untyped-def]
        counts.append(count)
        return lambda: None

    found = timing.sample(prepare, lambda call: (50e-6, 60e-6), timing.Budget(0.0, 3))
    assert found.repeats == 3
    assert counts == [1, 1, 4, 4, 4]  # warm-up, how long, then 4 x 50 us for each 200 us
    assert found.seconds == pytest.approx(50e-6 / 4)
    assert found.wall_over_cpu == pytest.approx(1.2)


def test_a_stopped_session_goes_on_without_loss_or_doubles(tmp_path: Path) -> None:
    folder = tmp_path / "m.measured"
    first = Session(folder, MACHINE)
    first.add("copies", POINT, ONCE)
    first.close()
    path = folder.with_name("m.measured.partial") / "copies.csv"
    with path.open("a") as file:
        file.write("device,8192,0.0")  # a kill cut this row
    second = Session(folder, {**MACHINE, "date": "2026-01-02"})
    assert second.resumed
    assert second.notes["date"] == "2026-01-01"
    assert second.has("copies", POINT)
    assert not second.has("copies", {**POINT, "size_bytes": 8192})
    second.add("copies", POINT, Timing(9.0, 9.0, 9.0, 0.0, 1))
    second.add("copies", {**POINT, "size_bytes": 8192}, ONCE)
    second.finish()
    assert not path.parent.exists()
    rows = rows_of(folder / "copies.csv")
    assert [(row["size_bytes"], float(row["seconds"])) for row in rows] == [("4096", 1.5e-3), ("8192", 1.5e-3)]
    with pytest.raises(SessionError, match="exists already"):
        Session(folder, MACHINE)


def test_rows_are_on_disk_before_the_session_closes(tmp_path: Path) -> None:
    session = Session(tmp_path / "m", MACHINE)
    session.add("launch", {"kind": "small-op"}, ONCE)
    assert (tmp_path / "m.partial" / "launch.csv").read_text().endswith("small-op,0.0015,0.001,0.25,7,1\n")
    session.close()


@pytest.mark.parametrize(("file", "text", "said"), [
    ("machine.yaml", "a: [1\n", "machine.yaml:2: is not YAML"),
    ("machine.yaml", "- 1\n", "machine.yaml:1: is not a mapping"),
    ("copies.csv", "kind,size\n", "copies.csv:1: has columns kind, size"),
    ("copies.csv", ",".join(COLUMNS["copies"]) + "\ndevice,1\n", "copies.csv:2: has 2 cells"),
])
def test_broken_partial_folders_are_told_with_their_place(tmp_path: Path, file: str, text: str, said: str) -> None:
    Session(tmp_path / "m", MACHINE).close()
    (tmp_path / "m.partial" / file).write_text(text)
    with pytest.raises(SessionError, match=said):
        Session(tmp_path / "m", MACHINE).has("copies", POINT)


def test_another_machine_does_not_go_on_with_a_folder(tmp_path: Path) -> None:
    Session(tmp_path / "m", MACHINE).close()
    with pytest.raises(SessionError, match="another description and threads"):
        Session(tmp_path / "m", {**MACHINE, "description": {"cpu": "y"}, "threads": 2})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [True, False])
def test_points_are_distinct_and_have_the_columns_of_their_table(device: str, quick: bool) -> None:
    for family in run.FAMILIES:
        points = (grids.collectives(device, quick, 4) if family == "collectives"
                  else run.points(family, device, quick))
        assert points
        assert all(tuple(point) == KEYS[family] for point in points)
        keys = [key_of(family, point) for point in points]
        assert len(set(keys)) == len(keys), family


def test_bytes_are_those_of_the_cost_model() -> None:
    """One norm with its addition, an MLP activation and cross-entropy of a small model, in fp32."""
    from costmodel import operators
    from costmodel.huggingface import catalog_model

    model = catalog_model("llama-3.1-8b")
    shard = operators.Shard(batch=1, sequence=128)
    layer = {one.name: one for one in operators.layer_operators(model, model.layers[0], shard)}
    end = {one.name: one for one in operators.head_operators(model, shard)}
    hidden, width = model.hidden, model.layers[0].feed_forward.width
    for operator, name, of, across in (
        ("norm_residual_rms", "norm_residual", 0.5, hidden), ("mlp_activation_gated", "mlp_activation", 1.0, width),
        ("final_norm", "final_norm", 1.0, hidden), ("cross_entropy", "cross_entropy", 1.0, model.vocabulary),
    ):
        counted = {**layer, **end}[name]
        for direction, moved in (("forward", counted.forward_bytes), ("backward", counted.backward_bytes)):
            point = grids._operator(operator, direction, "fp32", 128, across)
            assert point["size_bytes"] == 2 * of * moved, (operator, direction)


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2048K", "260M")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert timing.cache_bytes(tmp_path) == 260 << 20
    assert timing.cache_bytes(tmp_path / "none") == 32 << 20


def test_description_names_no_host_user_or_path() -> None:
    pytest.importorskip("torch")
    text = repr({**machine.description("cpu"), **machine.state("cpu")})
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert "torch" in text


TINY = {
    "gemm": [{"type": "fp32", "m": 64, "n": 32, "k": 16}, {"type": "bf16", "m": 32, "n": 32, "k": 32}],
    "attention": [{"type": "fp32", "direction": one, "batch": 1, "heads": 4, "kv_heads": 2, "head_dim": 32,
                   "sequence": 64} for one in ("forward", "backward")],
    "operators": [grids._operator(name, one, "fp32", 64, 128) for name in grids.LAYER_OPERATORS
                  for one in ("forward", "backward")]
    + [{"operator": name, "direction": "step", "type": "fp32", "rows": 2, "width": 256, "size_bytes": 2048}
       for name in ("optimizer", "accumulate", "zero_fill")],
    "copies": [{"kind": "device", "size_bytes": 65536}],
    "launch": grids.launch(),
    "storage": [{"kind": one, "size_bytes": 4096} for one in ("write", "write-fsync", "read")],
}


def test_every_family_is_measured_and_what_exists_is_not_measured_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(run, "points", lambda family, device, quick: TINY[family])
    monkeypatch.setattr(run.grids, "collectives", lambda device, quick, ranks: [
        {"collective": one, "backend": "gloo", "ranks": ranks, "size_bytes": 64}
        for one in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "point_to_point")])
    monkeypatch.setattr(timing, "_MOST_POOL_BYTES", 1 << 22)
    order = run.Order("m", "cpu", True)
    session = Session(tmp_path / "m", run.machine(order))
    run.measure(order, session, lambda text: None)
    assert session.counts() == {**{family: len(points) for family, points in TINY.items()}, "collectives": 6}
    assert not list(tmp_path.glob(".whatif-storage-*"))
    again: list[str] = []
    run.measure(order, session, again.append)
    assert again == []
    session.finish()
    for family in run.FAMILIES:
        for row in rows_of(tmp_path / "m" / f"{family}.csv"):
            assert 0 < float(row["least_s"]) <= float(row["seconds"]), row
            assert int(row["repeats"]) >= 3
    assert "host-to-device" in session.notes["skipped"]["copies"]


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(run.DeviceError, match="no CUDA device"):
        run.device_of("cuda")
    assert run.device_of("auto") == "cpu"
