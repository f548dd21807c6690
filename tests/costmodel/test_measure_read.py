"""Rows from outputs of other tools: small files of the forms that the tools write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from costmodel.calibration.measure.read import READERS, ReadError

NCCL = """\
# nccl-tests version 2.17.6 nccl-headers=22807 nccl-library=22807
# Collective test starting: all_gather_perf
# nThread 1 nGpus 2 minBytes 8 maxBytes 1048576 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1 validation: 1 \
graph: 0 unalign: 0
#
# Using devices
#  Rank  0 Group  0 Pid   4242 on    node1 device  0 [0000:07:00] NVIDIA H100 80GB HBM3
#  Rank  1 Group  0 Pid   4242 on    node1 device  1 [0000:0a:00] NVIDIA H100 80GB HBM3
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
           0             0     float    none      -1    11.00    0.00    0.00       0    10.90    0.00    0.00       0
     1048576        131072     float    none      -1    25.50   41.12   20.56       0    24.10   43.51   21.75       0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 10.5
"""
OLD = """\
# nThread 1 nGpus 2 minBytes 1024 maxBytes 1024 step: 1048576(bytes) warmup iters: 5 iters: 10 validation: 1
#   Rank  0 Pid   1 on a device  0 [0x07] V100
#   Rank  1 Pid   1 on a device  1 [0x0a] V100
#       size         count    type   redop     time   algbw   busbw  error     time   algbw   busbw  error
        1024           256   float             14.0    0.07    0.07  0e+00     13.0    0.08    0.08  0e+00
"""


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_nccl_tests_give_the_whole_tensor_and_the_time_out_of_place(tmp_path: Path) -> None:
    found = READERS["nccl-tests"](written(tmp_path, "out.txt", NCCL))
    assert found.source == "nccl-tests 2.17.6"
    ((table, point, timing),) = found.rows
    assert (table, point) == ("collectives", {"collective": "all_gather", "backend": "nccl", "ranks": 2,
                                              "size_bytes": 1 << 20})
    assert (timing.seconds, timing.repeats, timing.spread) == (pytest.approx(25.5e-6), 20, None)
    # the printed bus bandwidth is (n-1)/n of the whole tensor over that time, nccl-tests' PERFORMANCE.md
    assert (1 << 20) / 2 / timing.seconds / 1e9 == pytest.approx(20.56, abs=0.005)


def test_old_nccl_tests_name_the_collective_by_file_and_leave_columns_empty(tmp_path: Path) -> None:
    ((_, point, timing),) = READERS["nccl-tests"](written(tmp_path, "broadcast_perf-2.log", OLD)).rows
    assert (point["collective"], point["size_bytes"], timing.seconds) == ("broadcast", 1024, pytest.approx(14e-6))


@pytest.mark.parametrize(("name", "text", "said"), [
    ("x.txt", OLD, "x.txt: does not say which collective"),
    ("gather_perf.txt", OLD, "gather_perf measures no collective"),
    ("all_reduce_perf.txt", "# nothing\n", "lists no ranks"),
    ("all_reduce_perf.txt", OLD.replace("1 on a", "1 on b", 1), "several hosts"),
    ("all_reduce_perf.txt", OLD.replace("14.0", "fast"), r"all_reduce_perf.txt:5: has no number under time"),
    ("all_reduce_perf.txt", OLD.rsplit("\n", 2)[0], "has no rows"),
])
def test_bad_nccl_tests(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ReadError, match=said):
        READERS["nccl-tests"](written(tmp_path, name, text))


def fio_job(direction: str, bytes_each: int, operations: int, bytes_per_s: int, **options: str) -> dict[str, Any]:
    idle = {"io_bytes": 0, "bw_bytes": 0, "total_ios": 0}
    moved = {"io_bytes": bytes_each * operations, "bw_bytes": bytes_per_s, "total_ios": operations}
    return {"jobname": "j", "error": 0, "job options": {"rw": direction, **options},
            "read": moved if direction == "read" else idle, "write": moved if direction == "write" else idle}


def test_fio_rows_are_blocks_at_the_bandwidth_of_the_job(tmp_path: Path) -> None:
    document = {"fio version": "fio-3.36", "global options": {"bs": "1m"}, "jobs": [
        fio_job("read", 1 << 20, 100, 1 << 30), fio_job("write", 4096, 10, 40960, fsync="1"),
        fio_job("write", 4096, 10, 409600)]}
    found = READERS["fio"](written(tmp_path, "f.json", "fio: a warning\n" + json.dumps(document)))
    assert found.source == "fio-3.36"
    rows = [(point["kind"], point["size_bytes"], timing.seconds, timing.repeats) for _, point, timing in found.rows]
    assert rows == [
        ("read", 1 << 20, 2.0**-10, 100), ("write-fsync", 4096, 0.1, 10), ("write", 4096, 0.01, 10)]


@pytest.mark.parametrize(("text", "said"), [
    ("warning\n{\n 'x': 1}\n", r"f.json:3: is not JSON"),
    ("", r"f.json:1: is not JSON"),
    ("{}", "has no list 'jobs'"),
    ('{"jobs": []}', "no job read or wrote"),
    ('{"jobs": [{"jobname": "a", "error": 5}]}', "job a: ended with error 5"),
    ('{"jobs": [{"read": {}}]}', "job 0 has not the form"),
    ('{"jobs": [7]}', "job 0 has not the form"),
])
def test_bad_fio(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ReadError, match=said):
        READERS["fio"](written(tmp_path, "f.json", text))


def event(name: str, begin: float, duration: float, number: int, category: str = "cpu_op",
          **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": begin, "dur": duration,
            "args": {"External id": number, **args}}


MM = {"Input Dims": [[8, 4], [4, 16]], "Input type": ["c10::BFloat16", "c10::BFloat16"]}
ADDMM = {"Input Dims": [[16], [8, 4], [4, 16], [], []], "Input type": ["float"] * 3 + ["Scalar"] * 2}
LINEAR = {"Input Dims": [[2, 4, 4], [16, 4], [16]], "Input type": ["float"] * 3}
QUERIES = [2, 8, 64, 32]


def test_a_cpu_trace_counts_a_product_once_and_causal_attention_only(tmp_path: Path) -> None:
    attention = {"Input Dims": [QUERIES, QUERIES, QUERIES], "Input type": ["float"] * 3}
    events = [
        event("aten::linear", 0, 50, 1, **LINEAR), event("aten::addmm", 5, 40, 2, **ADDMM),
        event("aten::linear", 100, 30, 3, **LINEAR),
        event("aten::_scaled_dot_product_flash_attention_for_cpu", 200, 70, 4,
              **attention, **{"Concrete Inputs": ["", "", "", "0.", "True"]}),
        event("aten::_scaled_dot_product_flash_attention_for_cpu", 300, 90, 5,
              **attention, **{"Concrete Inputs": ["", "", "", "0.", "False"]}),
        {"ph": "M", "name": "process_name"},
    ]
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    rows = READERS["trace"](path).rows
    assert [(table, timing.seconds, timing.repeats) for table, _, timing in rows] == [
        ("gemm", pytest.approx(35e-6), 2), ("attention", pytest.approx(70e-6), 1)]
    assert rows[0][1] == {"type": "fp32", "m": 8, "n": 16, "k": 4}
    assert rows[1][1] == {"type": "fp32", "direction": "forward", "batch": 2, "heads": 8, "kv_heads": 8, "head_dim": 32,
                          "sequence": 64}


def test_a_gpu_trace_counts_kernels_and_messages(tmp_path: Path) -> None:
    gather = {"Collective name": "_allgather_base", "In msg nelems": 512, "Out msg nelems": 1024, "Group size": 2,
              "dtype": "BFloat16"}
    events = [
        event("aten::mm", 0, 9, 1, **MM), event("gemm_kernel", 50, 100, 1, "kernel"),
        event("splitk_reduce", 160, 20, 1, "kernel"),
        event("ncclDevKernel_AllGather_RING_LL(...)", 200, 30, 9, "kernel", **gather),
    ]
    rows = READERS["trace"](written(tmp_path, "t.json", json.dumps({"traceEvents": events}))).rows
    assert [(point, timing.seconds) for _, point, timing in rows] == [
        ({"type": "bf16", "m": 8, "n": 16, "k": 4}, pytest.approx(120e-6)),
        ({"collective": "all_gather", "backend": "nccl", "ranks": 2, "size_bytes": 2048}, pytest.approx(30e-6))]


def test_a_trace_that_torch_makes_here_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from torch.profiler import ProfilerActivity, profile

    rows, weight = torch.ones(32, 16), torch.ones(8, 16)
    queries = torch.ones(1, 2, 64, 32)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        torch.nn.functional.linear(rows, weight)
        torch.nn.functional.scaled_dot_product_attention(queries, queries, queries, is_causal=True)
    profiler.export_chrome_trace(str(tmp_path / "t.json"))
    points = [point for _, point, _ in READERS["trace"](tmp_path / "t.json").rows]
    assert {"type": "fp32", "m": 32, "n": 8, "k": 16} in points
    assert {"type": "fp32", "direction": "forward", "batch": 1, "heads": 2, "kv_heads": 2, "head_dim": 32,
            "sequence": 64} in points


@pytest.mark.parametrize(("text", "said"), [
    ("{\n\n", r"t.json:3: is not JSON"),
    ("3", "has no list 'traceEvents'"),
    ('{"traceEvents": []}', "no products"),
    ('{"traceEvents": [{"ph": "X", "cat": "cpu_op", "name": "aten::mm"}]}', "an event has not the form"),
])
def test_bad_traces(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ReadError, match=said):
        READERS["trace"](written(tmp_path, "t.json", text))


@pytest.mark.parametrize("kind", list(READERS))
def test_missing_and_binary_files(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ReadError, match="no such file"):
        READERS[kind](tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ReadError, match="not UTF-8"):
        READERS[kind](tmp_path / "binary")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(ReadError, match="cannot be read"):
        READERS[kind](tmp_path / "cut.gz")
