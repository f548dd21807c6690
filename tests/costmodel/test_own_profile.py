"""An own profile from a folder whose times follow known laws: it must give them back, also between its points."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodel import catalog, collectives, constants
from costmodel.calibration import own, own_files
from costmodel.calibration.tables import TableError
from costmodel.hardware import Cluster
from costmodel.kernels import Pricer
from costmodel.network import Group
from costmodel.operators import Operator, Shard, layer_operators, memory_bound
from costmodel.stack import named
from placement.passes import Setting
from placement.plan import Plan
from placement.state_traffic import optimizer_s
from placement.units import chunk_units, merged
from simulator.real.cases import COMPUTE

PEAK, MEMORY, LINK = 100e9, 20e9, 2e9
MACHINE = """name: bench
device: cpu
date: "2026-11-24"
threads: 1
clock: thread-cpu-time
description: {cpu: a processor, cores: 2, memory_bytes: 16000000000, torch: "2"}
"""


def _gemm_s(m: float, n: float, k: float) -> float:
    return max(2.0 * m * n * k / PEAK, 4.0 * (m * k + k * n + m * n) / MEMORY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Products at the peak, attention at half of it, operators and the optimizer at memory bandwidth (rotary at half),
    all-reduces of 100 us and what two ranks send at the link's rate."""
    path = tmp_path / "bench.measured"
    path.mkdir()
    (path / "machine.yaml").write_text(MACHINE)
    sizes = [64, 256, 1024, 4096]
    rows = [f"fp32,{m},{n},{k},{_gemm_s(m, n, k):.9g}" for m, n, k in itertools.product(sizes, repeat=3)]
    (path / "gemm.csv").write_text("\n".join(["type,m,n,k,seconds", *rows]) + "\n")
    rows = []
    for batch, heads, dim, s in itertools.product((1, 4), (2, 8), (32, 128), (64, 256, 1024)):
        flops = 2.0 * s * s * batch * heads * dim
        rows += [f"fp32,{direction},{batch},{heads},{heads},{dim},{s},{2.0 * times * flops / PEAK:.9g}"
                 for direction, times in (("forward", 1.0), ("backward", 2.5))]
    head = "type,direction,batch,heads,kv_heads,head_dim,sequence,seconds"
    (path / "attention.csv").write_text("\n".join([head, *rows]) + "\n")
    rows = []
    for name, slower in (("norm_residual_rms", 1.0), ("rotary", 2.0), ("accumulate", 1.0)):
        for direction, width in itertools.product(("forward", "backward"), (256, 4096, 65536)):
            rows.append(f"{name},{direction},fp32,256,{width},{1024 * width},{slower * 1024 * width / MEMORY:.9g}")
    rows += [f"optimizer,step,fp32,{count},{width},{34 * count * width},{34 * count * width / MEMORY:.9g}"
             for count, width in itertools.product((4, 32), (256, 65536, 1 << 22))]
    (path / "operators.csv").write_text("\n".join(["operator,direction,type,rows,width,size_bytes,seconds", *rows]))
    rows = [f"all_reduce,gloo,2,{size},{1e-4 + size / LINK:.9g},1" for size in (1024, 65536, 1 << 20, 1 << 24)]
    (path / "collectives.csv").write_text("\n".join(["collective,backend,ranks,size_bytes,low_s,seconds", *rows]))
    return path


@pytest.fixture
def node(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the folder's machine, in a catalogue of its own."""
    monkeypatch.setenv("WHATIF_CATALOG", str(tmp_path / "catalog"))
    read = own.read(folder)
    own_files.write(tmp_path / "catalog", own_files.files(read, own.best_rates(read))[0])
    return "bench"


def _setting(node: str, **plan: object) -> Setting:
    case = COMPUTE[3]
    chosen = Plan(precision="fp32", **plan)  # type: ignore[arg-type]
    cluster = Cluster(catalog.node(node), 1, 2)
    part = constants.of(cluster.accelerator)
    return Setting(case.model, chosen, cluster, named("torch"), case.sequence, part, case.global_batch)


def test_entries_are_found_after_those_that_ship_and_never_in_their_place(node: str) -> None:
    assert catalog.names("nodes")[-1] == catalog.names("accelerators")[-1] == node
    assert catalog.node("Bench").accelerator.peak_flops_per_s["fp32"] == pytest.approx(PEAK, rel=1e-3)
    assert catalog.node(node).scale_up.bandwidth_bytes_per_s == pytest.approx(LINK, rel=0.02)
    with pytest.raises(catalog.UnknownName):
        catalog.node("bench2")


def test_products_operators_attention_and_collectives_follow_the_law_that_made_them(node: str) -> None:
    setting = _setting(node)
    pricer = setting.pricer
    assert pricer.basis == "measured here"
    m, n, k = np.array([512.0, 1000.0]), 768.0, 384.0
    product = Operator("mlp_up", "gemm", m=m, n=n, k=k)
    assert pricer.gemm_s(product, m, n, k) == pytest.approx([_gemm_s(one, n, k) for one in m], rel=0.05)
    rotary = memory_bound("rotary", 1e6, 1e6)  # counted at 2 bytes, moved at 4, at half of the bandwidth
    assert float(pricer.forward_s(rotary)["memory_bound"]) == pytest.approx(2.0 * 2e6 / MEMORY, rel=0.05)
    layer = setting.model.layers[0]
    core = next(one for one in layer_operators(setting.model, layer, Shard(2, 512)) if one.category == "attention")
    assert float(pricer.forward_s(core)["attention"]) == pytest.approx(2.0 * core.forward_flops / PEAK, rel=0.05)
    assert float(pricer.backward_s(core)["attention"]) == pytest.approx(2.0 * core.backward_flops / PEAK, rel=0.05)
    both = setting.collective_s(collectives.all_reduce_s, np.array([65536.0, 4e6]), Group(2, 2))
    assert both == pytest.approx(1e-4 + np.array([65536.0, 4e6]) / LINK, rel=0.15)
    assert setting.collective_s(collectives.all_reduce_s, 4e6, Group(1, 1)) == 0.0


def test_experts_take_as_long_as_so_many_products(node: str) -> None:
    pricer = _setting(node).pricer
    one, many = (Operator("experts_up", "gemm", m=256, n=512, k=256, groups=groups) for groups in (1, 8))
    assert pricer.gemm_s(many, 256, 512, 256) == pytest.approx(8 * pricer.gemm_s(one, 256, 512, 256))


def test_optimizer_is_34_bytes_a_parameter_at_the_measured_bandwidth(node: str) -> None:
    setting = _setting(node)
    unit = merged(chunk_units(setting)[0])
    assert float(optimizer_s(setting, [unit])) == pytest.approx(34 * unit.trainable_dense / MEMORY, rel=0.1)


def test_later_micro_batches_add_their_gradients(node: str) -> None:
    """Read, read and write 4 bytes of every parameter in all micro-batches but the first."""
    def added(micro_batch: int) -> float:
        setting = _setting(node, micro_batch=micro_batch)
        unit = merged(chunk_units(setting)[0])
        alone = merged(chunk_units(replace(setting, global_batch=None))[0])
        return float(unit.price.backward["memory_bound"] - alone.price.backward["memory_bound"])

    parameters = merged(chunk_units(_setting(node))[0]).trainable_dense
    assert added(4) == pytest.approx(0.0)
    assert added(1) == pytest.approx(0.75 * 12.0 * parameters / MEMORY, rel=0.1)


def test_constants_of_an_own_part_are_one_but_for_what_was_kept(node: str, tmp_path: Path) -> None:
    part = catalog.accelerator(node)
    mine = constants.of(part)
    assert (mine.other, mine.attention, mine.communication, mine.eager_traffic, mine.overlap_cost) == (1, 1, 1, 1, 0)
    assert constants.of(catalog.accelerator("h100")) == constants.default()


def test_shipped_parts_have_no_surface_of_their_own() -> None:
    pricer = Pricer(catalog.accelerator("h100"), "bf16", 1.0, "flash-2")
    assert pricer.own is None


@pytest.mark.parametrize(("file", "text", "message"), [
    ("gemm.csv", "type,m,n,k,seconds\nfp32,1,2,x,1\n", "gemm.csv:2: k is 'x'"),
    ("gemm.csv", "type,m,n,k,seconds\nfp32,1,2,3,0\n", "gemm.csv:2: seconds is"),
    ("gemm.csv", "type,m,n,k,seconds\nint7,1,2,3,1\n", "gemm.csv:2: type is 'int7'"),
    ("machine.yaml", "name: bench\n", "machine.yaml:1: has no 'device'"),
    ("machine.yaml", "name: [bench\n", "machine.yaml:"),
])
def test_bad_folders_say_where(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(TableError) as error:
        own.best_rates(own.read(folder))
    assert message in str(error.value)
