"""The hardware catalogue: every file, its sources, its names, and its figures against independent ones."""

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from costmodel import catalog
from costmodel.catalog import EntryError, UnknownName

PUBLISHED = Path(__file__).resolve().parents[2] / ".." / "shared" / "published"
ACCELERATORS = catalog.names("accelerators")
NODES = catalog.names("nodes")
FILES = [(kind, name) for kind in ("accelerators", "nodes") for name in catalog.names(kind)]


def published(file: str) -> list[dict[str, str]]:
    if not (PUBLISHED / file).exists():
        pytest.skip(f"published/{file} is not beside this checkout")
    with (PUBLISHED / file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def raw(kind: str, name: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(catalog.path(kind, name).read_text(encoding="utf-8"))


# Files and sources


def unsourced(block: Any, where: str, source: Any = None) -> Iterator[str]:
    """Quantities with a unit that no source covers, found by walking the YAML without the loader."""
    source = block.get("source", source)
    for key, value in block.items():
        if isinstance(value, dict) and key != "source":
            yield from unsourced(value, f"{where}.{key}", source)
        elif isinstance(value, str) and re.fullmatch(r"[\d.]+ [A-Za-z/]+", value):
            text = source.get(key, source.get("default")) if isinstance(source, dict) else source
            if not text or len(text) < 8:
                yield f"{where}.{key}"


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_every_file_loads_and_every_figure_has_a_source(kind: str, name: str) -> None:
    entry = catalog.accelerator(name) if kind == "accelerators" else catalog.node(name)
    assert entry.name == name
    assert list(unsourced(raw(kind, name), name)) == []
    prefixes = {key.split(".")[0] for key in entry.sources}
    assert prefixes >= ({"memory", "peak"} if kind == "accelerators" else {"scale_up", "scale_out"})


@pytest.mark.parametrize("name", ACCELERATORS)
def test_a_price_has_a_date_and_a_basis(name: str) -> None:
    part = catalog.accelerator(name)
    assert ("price.on_demand" in part.sources) == (part.price_usd_per_hour is not None)
    if part.price_usd_per_hour is not None:
        assert re.search(r"listed.*; 20\d\d", part.sources["price.on_demand"])


ENTRY = """
title: A part
vendor: V
generation: g
memory: {capacity: 80 GiB, bandwidth: 2 TB/s, latency: 300 ns, source: here}
peak: {bf16: 100 TFLOP/s, source: here}
host_link: null
power: {limit: 700 W, source: here}
price: null
"""


def test_reads_a_users_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(ENTRY, encoding="utf-8")
    part = catalog.read_accelerator(file)
    assert (part.name, part.memory.capacity_bytes, part.power_w) == ("mine", 80 * 1024**3, 700)
    assert (part.price_usd_per_hour, part.host_link, part.compute_units) == (None, None, None)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (", source: here}\nhost", "}\nhost", "source is missing"),
        ("source: here}\nhost", "source: {fp8: here}}\nhost", "peak.source has fp8"),
        ("source: here}\nhost", "source: {default: ''}}\nhost", "peak.bf16 has no source"),
        ("700 W", "700 GB", "unit of bytes"),
        ("bf16:", "bfloat16:", "peak has bfloat16"),
        ("vendor: V", "vendr: V", "vendr"),
        ("title: A part\n", "", "title is missing"),
        ("capacity: 80 GiB, ", "", "capacity is missing"),
        ("price: null", "price: [", "mine.yaml"),
        ("host_link: null", "host_link: PCIe", "mine.yaml"),
        ("title: A part", "- a", "mine.yaml"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    assert old in ENTRY
    file.write_text(ENTRY.replace(old, new), encoding="utf-8")
    with pytest.raises(EntryError, match=re.escape(said)) as caught:
        catalog.read_accelerator(file)
    assert str(caught.value).startswith(str(file))


# Names


@pytest.mark.parametrize(
    ("ask", "typed", "nearest"),
    [
        (catalog.accelerator, "h100-sxm-80bg", "h100-sxm-80gb"),
        (catalog.accelerator, "MI30OX", "mi300x"),
        (catalog.node, "hgx-h1000", "hgx-h100"),
        (catalog.node, "gb200-nvl-72", "gb200-nvl72"),
        (lambda name: catalog.path("models", name), "deepseek-v33", "deepseek-v3"),
    ],
)
def test_unknown_names_give_the_nearest(ask: Any, typed: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(typed)) as caught:
        ask(typed)
    assert re.search(rf"\b{nearest}\b", str(caught.value))


def test_a_name_near_nothing_lists_what_is_known() -> None:
    with pytest.raises(UnknownName, match=r"known: .*h100-sxm-80gb"):
        catalog.accelerator("???")


@pytest.mark.parametrize("name", ["../nodes/hgx-h100", "", "H100-SXM-80GB.yaml"])
def test_a_name_is_not_a_path(name: str) -> None:
    with pytest.raises(UnknownName):
        catalog.accelerator(name)


@pytest.mark.parametrize("kind", ["accelerators", "nodes"])
def test_aliases_are_lower_case_unique_and_equal_to_the_files(kind: str) -> None:
    names = catalog.names(kind)
    stated = [(str(alias), name) for name in names for alias in raw(kind, name).get("aliases", ())]
    assert dict(stated) == dict(catalog.aliases(kind))
    assert len({alias for alias, _ in stated} | set(names)) == len(stated) + len(names)
    assert all(alias == alias.lower() for alias, _ in stated)


def test_case_and_spaces_do_not_matter() -> None:
    assert catalog.accelerator("  NVIDIA  H100-SXM5-80GB ") is not None
    assert catalog.accelerator("H100").name == catalog.accelerator("h100-sxm-80gb").name == "h100-sxm-80gb"


def test_only_the_file_asked_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    read_text = Path.read_text

    def noting(self: Path, encoding: str) -> str:
        read.append(self.name)
        return read_text(self, encoding)

    monkeypatch.setattr(Path, "read_text", noting)
    catalog._accelerator_of.cache_clear()
    catalog._node_of.cache_clear()
    catalog.node("hgx-h100")
    catalog.node("hgx-h100")
    assert read == ["hgx-h100.yaml", "h100-sxm-80gb.yaml"]


def test_every_accelerator_of_the_training_rows_resolves() -> None:
    rows = published("training.csv")
    assert len(rows) > 1000
    pairs = {(row["accelerator"], row["gpu"]) for row in rows if row["accelerator"] != "mixed"}
    for accelerator, gpu in pairs:
        assert catalog.path("accelerators", accelerator) == catalog.path("accelerators", gpu), gpu


NOT_ONE_PLAIN_PART = re.compile(r"^$|MAXSUN|, AMD|330W cap|Virtualized")


def test_every_plain_gpu_of_the_serving_rows_resolves() -> None:
    for gpu in {row["gpu"] for row in published("serving.csv")}:
        if NOT_ONE_PLAIN_PART.search(gpu):
            with pytest.raises(UnknownName):
                catalog.path("accelerators", gpu)
        else:
            assert catalog.path("accelerators", gpu).exists()


# Figures against hardware.csv, read here and not by the catalogue

ITEMS = {
    "GB300 SXM": "gb300", "GB200 SXM": "gb200", "B300 SXM": "b300-sxm", "B200 SXM": "b200-sxm",
    "H200 SXM": "h200-sxm", "H100 SXM": "h100-sxm-80gb", "H100 PCIe": "h100-pcie", "GH200": "gh200-96gb",
    "A100 SXM 80GB": "a100-sxm-80gb", "A100 PCIe 80GB": "a100-pcie-80gb", "A100 SXM 40GB": "a100-40gb",
    "A800 SXM 80GB": "a800-80gb", "L40S": "l40s", "MI355X": "mi355x", "MI325X": "mi325x",
    "MI300X": "mi300x", "MI250X (2 GCD)": "mi250x", "Gaudi3": "gaudi3", "Gaudi2": "gaudi2",
    "TPU v7 (Ironwood)": "tpu-v7", "TPU v6e": "tpu-v6e", "TPU v5p": "tpu-v5p", "TPU v5e": "tpu-v5e",
    "TPU v4": "tpu-v4", "V100 SXM2": "v100-sxm2-32gb", "H20": "h20", "RTX 4090": "rtx-4090",
    "RTX 5090": "rtx-5090", "RTX PRO 6000 Blackwell Server": "rtx-pro-6000-blackwell-server",
    "RTX PRO 6000": "rtx-pro-6000-blackwell", "h100_sxm": "h100-sxm-80gb", "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm", "gb200": "gb200", "gb300": "gb300", "b300_sxm": "b300-sxm", "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000-blackwell-server",
}  # fmt: skip
SCALE = {"TFLOPS": 1e12, "TOPS": 1e12, "TB/s": 1e12, "W": 1, "SM": 1, "B": 1, "GB": 1e9}
ROUNDING = {"mem_bandwidth": 0.02, "mem_capacity_bytes": 0, "sm_count": 0, "power_limit": 0}
SOURCES_DISAGREE = {("B300 SXM", "peak_dense_int8"), ("GB300 SXM", "peak_dense_int8")}  # said in their files


def figure(name: str, metric: str) -> float | None:
    part = catalog.accelerator(name)
    if metric.startswith("peak_dense_"):
        return part.peak_flops_per_s[metric.removeprefix("peak_dense_").removesuffix("_fp32acc")]
    return {
        "mem_bandwidth": part.memory.read_bandwidth_bytes_per_s,
        "mem_capacity": part.memory.capacity_bytes,
        "mem_capacity_bytes": part.memory.capacity_bytes,
        "power_limit": part.power_w,
        "sm_count": part.compute_units,
    }.get(metric)


def test_figures_agree_with_hardware_csv() -> None:
    checked = 0
    for row in published("hardware.csv"):
        item, metric = row["item"], row["metric"]
        if row["category"] != "gpu" or item not in ITEMS or (item, metric) in SOURCES_DISAGREE:
            continue
        mine = figure(ITEMS[item], metric)
        if mine is None or not re.fullmatch(r"[\d.]+", row["value"]):
            continue
        theirs = float(row["value"]) * SCALE[row["unit"]] * (0.5 if "2 GCD" in item else 1)
        if metric == "mem_capacity":  # a label of 80 GB may mean 80 GiB, and some of it may be kept back
            assert 1 <= mine / theirs <= 1.0738, (item, metric)
        else:
            assert mine == pytest.approx(theirs, rel=ROUNDING.get(metric, 0.007)), (item, metric)
        checked += 1
    assert checked > 150


def test_links_agree_with_hardware_csv() -> None:
    rows = {row["item"]: float(row["value"]) * 1e9 for row in published("hardware.csv")
            if row["category"] == "link" and row["metric"] == "unidirectional_bandwidth"}  # fmt: skip
    nodes = {
        "dgx-v100": "NVLink 2", "hgx-a100": "NVLink 3", "hgx-h100": "NVLink 4", "hgx-b200": "NVLink 5",
        "gb300-nvl72": "NVLink 5", "mi300x-8": "xGMI MI300X/MI325X", "mi355x-8": "xGMI MI355X",
        "a100-pcie-8": "PCIe 4 x16", "h100-pcie-8": "PCIe 5 x16", "tpu-v7-host": "ICI TPU7x",
    }  # fmt: skip
    for name, item in nodes.items():
        assert catalog.node(name).scale_up.bandwidth_bytes_per_s == rows[item], name
    for name, item in {"mi300x-8": "MI300X/MI325X", "mi355x-8": "MI355X", "tpu-v7-host": "TPU7x"}.items():
        assert catalog.node(name).scale_up.peer_bandwidth_bytes_per_s == rows[f"peer-to-peer {item}"], name
    link = catalog.accelerator("gb200").host_link
    assert link is not None
    assert link.bandwidth_bytes_per_s == rows["NVLink-C2C"]


def test_prices_agree_with_hardware_csv() -> None:
    facts = [row for row in published("hardware.csv") if row["category"] == "price"]
    rows = {(row["item"], row["metric"]): row["value"] for row in facts}
    expected = {
        "h100": float(rows["H100", "median of 37 providers, on demand"]),
        "h200": float(rows["H200", "Spheron on demand"]),
        "b200": float(rows["B200", "Spheron on demand"]),
        "gb200": float(rows["GB200 superchip (2 GPU)", "Spheron on demand"]) / 2,
        "h800": float(rows["H800", "assumed lease"]),
    }
    assert {name: catalog.accelerator(name).price_usd_per_hour for name in expected} == expected
    low, high = rows["A100 80GB", "hyperscaler / specialty / long tail"].split(" / ")[1].split("-")
    assert float(low) <= (catalog.accelerator("a100").price_usd_per_hour or 0) <= float(high)


# Figures against arithmetic and published totals


@pytest.mark.parametrize(
    ("name", "kind", "flops_per_clock", "megahertz"),
    [
        # dense FLOPs of a multiprocessor or compute unit per clock (architecture whitepapers), boost clock
        ("v100-sxm2-32gb", "fp16", 1024, 1530),
        ("rtx-2080", "fp16", 512, 1710),
        ("titan-rtx", "fp16", 1024, 1770),
        ("a100-sxm-80gb", "bf16", 2048, 1410),
        ("rtx-3090", "bf16", 512, 1695),
        ("a40", "bf16", 1024, 1740),
        ("a10g", "bf16", 512, 1710),
        ("rtx-4090", "bf16", 512, 2520),
        ("l40s", "bf16", 1024, 2490),
        ("h100-sxm-80gb", "bf16", 4096, 1830),
        ("h100-sxm-80gb", "fp8", 8192, 1830),
        ("h100-pcie", "bf16", 4096, 1620),
        ("rtx-5090", "bf16", 512, 2407),
        ("rtx-pro-6000-blackwell", "bf16", 1024, 2617),
        ("rtx-pro-6000-blackwell-server", "bf16", 1024, 2430),
        ("mi250x", "bf16", 1024, 1700),
        ("mi300x", "bf16", 2048, 2100),
        ("mi300x", "fp8", 4096, 2100),
        ("mi350x", "bf16", 4096, 2200),
        ("mi355x", "bf16", 4096, 2400),
    ],
)
def test_peak_is_units_times_clock(name: str, kind: str, flops_per_clock: int, megahertz: int) -> None:
    part = catalog.accelerator(name)
    product = part.compute_units * flops_per_clock * megahertz * 1e6
    assert part.peak_flops_per_s[kind] == pytest.approx(product, rel=0.008)


@pytest.mark.parametrize(
    ("name", "kind", "sparse"),
    [
        # 2:4-sparse TFLOP/s as the data sheets print them
        ("h100-sxm-80gb", "bf16", 1979), ("h100-sxm-80gb", "fp8", 3958), ("h100-pcie", "bf16", 1513),
        ("h200-sxm", "bf16", 1979), ("h200-nvl", "bf16", 1671), ("h200-nvl", "fp8", 3341),
        ("a100-sxm-80gb", "bf16", 624), ("a40", "bf16", 299.4), ("a10g", "bf16", 140),
        ("l40s", "bf16", 733), ("l40s", "fp8", 1466), ("b200-sxm", "bf16", 4500),
        ("b200-sxm", "fp4", 18000), ("gb200", "bf16", 5000), ("rtx-4090", "bf16", 330.4),
        ("rtx-5090", "bf16", 419), ("rtx-5090", "fp4", 3352), ("mi300x", "bf16", 2614.9),
        ("dgx-spark", "fp4", 1000),
    ],
)  # fmt: skip
def test_peaks_are_dense(name: str, kind: str, sparse: float) -> None:
    assert catalog.accelerator(name).peak_flops_per_s[kind] == pytest.approx(sparse * 1e12 / 2, rel=0.015)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_narrower_types_are_not_slower(name: str) -> None:
    peaks = catalog.accelerator(name).peak_flops_per_s
    order = [peaks[kind] for kind in ("fp32", "tf32", "bf16", "fp8", "fp4") if kind in peaks]
    assert order == sorted(order)
    if "fp16" in peaks and "bf16" in peaks:
        assert peaks["fp16"] == peaks["bf16"]
    assert all(1e12 < peak < 2e16 for peak in order)


@pytest.mark.parametrize(
    "line",
    [
        ("v100-sxm2-32gb", "a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm"),
        ("rtx-2080", "rtx-3090", "rtx-4090", "rtx-5090"),
        ("mi250x", "mi300x", "mi355x"),
        ("gaudi2", "gaudi3"),
        ("tpu-v5e", "tpu-v6e"),
        ("tpu-v4", "tpu-v5p", "tpu-v7"),
    ],
)
def test_a_later_generation_has_more_of_everything(line: tuple[str, ...]) -> None:
    parts = [catalog.accelerator(name) for name in line]
    for older, newer in pairwise(parts):
        assert newer.memory.capacity_bytes >= older.memory.capacity_bytes
        assert newer.memory.read_bandwidth_bytes_per_s > older.memory.read_bandwidth_bytes_per_s
        kind = "fp16" if "fp16" in older.peak_flops_per_s else "bf16"
        assert newer.peak_flops_per_s[kind] > older.peak_flops_per_s[kind]


def test_published_totals_of_nodes_and_racks() -> None:
    h100, b200, rack = catalog.node("hgx-h100"), catalog.node("hgx-b200"), catalog.node("gb200-nvl72")

    def peak(node: Any, kind: str, count: int) -> float:
        return count * node.accelerator.peak_flops_per_s[kind] / 1e15

    # DGX H100 data sheet: 32 PFLOP/s fp8 sparse; DGX B200: 72 fp8, 144 fp4 sparse, 64 TB/s, 14.4 TB/s NVLink
    assert 2 * peak(h100, "fp8", 8) == pytest.approx(32, rel=0.02)
    assert (2 * peak(b200, "fp8", 8), 2 * peak(b200, "fp4", 8)) == (72, 144)
    assert 8 * b200.accelerator.memory.read_bandwidth_bytes_per_s == 64e12
    assert 8 * 2 * b200.scale_up.bandwidth_bytes_per_s == 14.4e12
    # GB200 NVL72: 720 PFLOP/s fp8 and 1440 fp4 sparse, 576 TB/s HBM, 130 TB/s NVLink, 17 TB LPDDR5X
    assert (2 * peak(rack, "fp8", 72), 2 * peak(rack, "fp4", 72)) == (720, 1440)
    assert 72 * rack.accelerator.memory.read_bandwidth_bytes_per_s == 576e12
    assert 2 * rack.scale_up_domain * rack.scale_up.bandwidth_bytes_per_s == pytest.approx(130e12, rel=0.005)
    assert 18 * rack.tiers[0].capacity_bytes == pytest.approx(17e12, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kind", "exaflops"), [("tpu-v4", "bf16", 1.1), ("tpu-v5p", "bf16", 4.1), ("tpu-v7", "fp8", 42.5)]
)
def test_published_totals_of_tpu_pods(name: str, kind: str, exaflops: float) -> None:
    host = catalog.node(f"{name}-host")  # Google's pages: peak of a full pod
    pod = host.scale_up_domain * host.accelerator.peak_flops_per_s[kind]
    assert pod == pytest.approx(exaflops * 1e18, rel=0.03)


# Nodes


def test_every_accelerator_stands_in_a_node() -> None:
    assert {catalog.node(name).accelerator.name for name in NODES} == set(ACCELERATORS)


@pytest.mark.parametrize("name", NODES)
def test_networks_and_tiers_get_slower_with_distance(name: str) -> None:
    node = catalog.node(name)
    memory = node.accelerator.memory
    assert node.scale_out.bandwidth_bytes_per_s <= node.scale_up.bandwidth_bytes_per_s
    assert node.scale_out.latency_s >= node.scale_up.latency_s
    assert node.scale_up.bandwidth_bytes_per_s < memory.read_bandwidth_bytes_per_s
    large, small = sorted((node.scale_up_domain, node.accelerators), reverse=True)
    assert large % small == 0
    order = {"host": 0, "cxl": 1, "nvme": 2}
    assert [order[tier.name] for tier in node.tiers] == sorted(order[tier.name] for tier in node.tiers)
    for near, far in pairwise(node.tiers):
        assert far.read_bandwidth_bytes_per_s < near.read_bandwidth_bytes_per_s
        assert far.latency_s > near.latency_s
    assert all(tier.write_bandwidth_bytes_per_s <= tier.read_bandwidth_bytes_per_s for tier in node.tiers)


@pytest.mark.parametrize("name", NODES)
def test_the_links_to_the_peers_make_up_the_port(name: str) -> None:
    node = catalog.node(name)
    link = node.scale_up
    links = {"mesh": node.scale_up_domain - 1, "torus": 6 if "3D" in link.name else 4, "hybrid-cube": 6}
    assert (link.peer_bandwidth_bytes_per_s is not None) == (link.topology in links)
    if link.topology in links:
        together = link.peer_bandwidth_bytes_per_s * links[link.topology]
        assert together == pytest.approx(link.bandwidth_bytes_per_s)


def test_cards_sold_in_a_cut_form_keep_compute_and_lose_links() -> None:
    for cut, whole in (("hgx-a800", "hgx-a100"), ("hgx-h800", "hgx-h100")):
        less, full = catalog.node(cut), catalog.node(whole)
        assert less.accelerator.peak_flops_per_s == full.accelerator.peak_flops_per_s
        assert less.scale_up.bandwidth_bytes_per_s < full.scale_up.bandwidth_bytes_per_s


def test_cxl_cards_add_capacity_and_nothing_else() -> None:
    plain, more = catalog.node("hgx-h100"), catalog.node("hgx-h100-cxl")
    assert [tier for tier in more.tiers if tier.name != "cxl"] == list(plain.tiers)
    cxl = next(tier for tier in more.tiers if tier.name == "cxl")
    assert 140e-9 <= cxl.latency_s <= 410e-9  # arXiv 2409.14317: range over four devices
    assert cxl.read_bandwidth_bytes_per_s / 36e9 == cxl.capacity_bytes / 256e9 == 8  # Micron CZ120, a card
