"""The named filter: rows that are reported apart, each with the reason (reference/accuracy_notes.md, memory_notes)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scenarios.accuracy.rows import Row


@dataclass(frozen=True)
class Filter:
    name: str
    reason: str
    matches: Callable[[Row], bool]
    memory: bool = False  # whether it concerns the memory of the row; else its time


def _ids(*ids: str) -> Callable[[Row], bool]:
    return lambda row: row.id in ids


FILTERS: tuple[Filter, ...] = (
    Filter("schedule-artifact", "the repository's artifact ran on another machine than the paper's tables",
           lambda row: row.family.endswith("-artifact")),
    Filter("schedule-artifact-memory", "the repository's artifact ran on another machine than the paper's tables",
           lambda row: row.family.endswith("-artifact"), memory=True),
    Filter("sc21-zero-3", "DeepSpeed ZeRO-3 of 2021: about 20 GB/s a node effective, up to 4 times slower than "
           "physics", lambda row: row.family.startswith("Megatron-SC21") and row.text("zero_or_fsdp") == "ZeRO-3"),
    Filter("gpt-oss", "the same recorded configuration differs 1.6 times between two releases (an unrecorded "
           "software switch)", lambda row: row.text("model").startswith("GPT-OSS")),
    Filter("recorded-recompute", "recorded full recompute, the speed equals the row without",
           _ids("nemo-bridge-dense-074")),
    Filter("suspect-run", "layout or run suspect", _ids("nemo-bridge-dense-037", "nemo-bridge-dense-082")),
    Filter("mpt-near-limit", "near the memory limit: allocator retries are not in the model",
           lambda row: row.family == "MPT" and (
               (row.text("model") == "MPT-30b" and row.integer("seq") == 8192)
               or (row.text("model") == "MPT-70b" and row.text("accelerator") == "a100-40gb"
                   and row.integer("micro_batch") == 2))),
    Filter("mlperf-gpt3-huge", "above 4,096 GPUs the exposed data-parallel time is overestimated",
           lambda row: row.family == "MLPerf-gpt3" and (row.integer("gpus") or 0) > 4096),
    Filter("sailor-memory", "8 GiB less than the same plan at other degrees (011); does not fit the stated "
           "sequence and precision (028)", _ids("sailor-011", "sailor-028"), memory=True),
    Filter("transcribed-setup", "transcribed by a third party, with a set-up that contradicts itself: of 512 micro-"
           "batches on 32 ranks 1F1B loses 5.7 % in its bubble, but its printed MFU is 11 % below V-ZB's",
           lambda row: row.family == "ControllableMemory-T4"),
    Filter("sailor-single", "a step of a single micro-batch takes 1.7 times the prediction", _ids("sailor-003")),
)


def exception_of(row: Row, memory: bool = False) -> Filter | None:
    """The first filter that the row's time (or memory) falls under."""
    return next((one for one in FILTERS if one.memory is memory and one.matches(row)), None)
