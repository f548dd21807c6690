"""What papers on pipeline schedules ran their tables with, beside what the tables print (rows of pipeline.csv).

Every entry is a fact about the software or the model, with where it was read; nothing here depends on a row, a size or
a schedule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

A100 = "a100-sxm-80gb"


@dataclass(frozen=True)
class Paper:
    """`name` begins the family of its rows. `vocabulary` None: the column's. `short_ends`: the first and the last stage
    hold one layer less. `memory`: which peak of torch's allocator the tables print, in GiB. `barrier`: a zero-bubble
    schedule still ends its steps together. `stack_of_table`: what a table ran on other software with.
    `not_of_a_step`: tables whose values are no prediction, with the reason."""

    name: str
    pattern: str
    stack: Mapping[str, Any]
    source: str
    vocabulary: int | None = None
    tied: bool = False
    positions: int | None = None  # None: the sequence
    sequences: tuple[int, ...] = ()  # what a blank sequence may be
    sharding: str = "ddp"
    memory: str = "allocated"
    short_ends: bool = False
    barrier: bool = True
    recompute: str = "none"
    precision: str = "fp16"
    accelerator: str = A100
    stack_of_table: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_of_a_step: Mapping[str, str] = field(default_factory=dict)


_MEGATRON = {"name": "megatron-lm-2023"}
PAPERS = (
    Paper(
        "ZeroBubble", r"2401\.10241", {**_MEGATRON, "attention": "unfused"},
        "sail-sg/zero-bubble-pipeline-parallelism, branch arxiv, examples/pretrain_zero_bubble.sh: fp16, tied "
        "embeddings, 2,048 positions, dropout, local transformer without flash attention, no distributed optimizer; "
        "vocabulary: of the usual padded sizes only 32,000 gives the printed 1.5, 6.2, 14.6 and 28.3 billion "
        "parameters; memory: reserved (not stated), as the same authors' artifact of arXiv 2411.05288 reads it "
        "(artifact/quick_exp.sh)",
        vocabulary=32_000, tied=True, positions=2048, memory="reserved", short_ends=True, barrier=False,
        not_of_a_step={
            "Table 5": "a bubble rate that the authors computed from table 6: `whatif schedule check` and "
                       "tests/placement hold the schedules to it",
            "Table 6": "a profiled time of a pass: an input of the predictions from measured pass times",
        },
    ),
    Paper(
        "VocabularyParallelism", r"2411\.05288|VocabularyParallelism", {**_MEGATRON, "attention": "cudnn"},
        "sail-sg/VocabularyParallelism, pretrain_gpt.sh: fp16, layers and attention of Transformer Engine, untied "
        "embeddings, distributed optimizer, dropout kernels at rate 0 (their masks stay); memory: the largest "
        "allocated peak of the artifact's 8-GPU runs is the table's; table 6: branch v-half-vocab of zero-bubble-"
        "pipeline-parallelism: local layers with flash attention, no post-validation",
        sharding="zero-1", stack_of_table={"Table 6": {**_MEGATRON, "attention": "flash-2"}},
        not_of_a_step={"Table 3": "an isolated layer on more ranks over linear scaling, no figure of a step"},
    ),
    Paper(
        "ControllableMemory", r"2405\.15362|Controllable Memory", {**_MEGATRON, "attention": "flash-2"},
        "sail-sg/zero-bubble-pipeline-parallelism, branch main, examples/pretrain_zero_bubble.sh: fp16, flash "
        "attention, untied embeddings, post-validation; vocabulary as in arXiv 2401.10241, by the same authors; "
        "table 4 does not print its sequence, which may be any of table 3",
        sequences=(1024, 3072), vocabulary=32_000, sharding="zero-1", short_ends=True, barrier=False,
    ),
    Paper(
        "Megatron-SC21", r"2104\.04473", {"name": "megatron-lm-2022"},
        "arXiv 2104.04473, section 5: full recomputation, fp16; tensor parallelism fills a node first (takeaway 1)",
        recompute="full", tied=True,
    ),
    Paper(
        "PipeOffload", r"2503\.01328", {**_MEGATRON, "attention": "flash-2"}, "arXiv 2503.01328, figure 1",
    ),
    Paper(
        "ZeroBubble-issue21", r"issue #21", {**_MEGATRON, "attention": "unfused"},
        "sail-sg/zero-bubble-pipeline-parallelism, issue 21: a user's report", accelerator="h800-sxm",
    ),
)

TRAINED = ("Megatron-SC21",)  # papers whose rows are whole training runs: the importer of training.csv reads them
SPEEDS = ("throughput", "MFU", "MFU_best_of_grid", "achieved_tflops")
NODE = 8  # GPUs of one node of arXiv 2104.04473

# schedule as printed -> (name in the registry, chunks a rank where fixed)
SCHEDULES: Mapping[str, tuple[str, int | None]] = {
    "1F1B": ("1f1b", 1),
    "1F1B Baseline": ("1f1b", 1),
    "1F1B Redis": ("1f1b", 1),
    "1F1B-R": ("1f1b", 1),
    "1F1B-I": ("interleaved-1f1b", None),
    "1F1B Vocab-1": ("1f1b-vocab-1", 1),
    "1F1B Vocab-2": ("1f1b-vocab-2", 1),
    "1F1B Interlaced": ("1f1b-interlaced", 1),
    "ZB-H1": ("zb-h1", 1),
    "ZB-H2": ("zb-h2", 1),
    "ZB-1p": ("zb-1p", 1),
    "ZB-1P": ("zb-1p", 1),
    "ZB-2p": ("zb-2p", 1),
    "ZB-2p post-validation": ("zb-2p", 1),
    "ZB-2p all-reduce sync": ("zb-2p", 1),
    "ZBV": ("zbv-auto", 2),
    "V-Min": ("v-min", 2),
    "V-Half": ("v-half", 2),
    "V-Half Baseline": ("v-half", 2),
    "V-Half Vocab-1": ("v-half-vocab-1", 2),
    "V-ZB": ("v-zb", 2),
    "1F1B baseline": ("1f1b", 1),
    "1F1B redis": ("1f1b", 1),
    "1F1B vocab-1": ("1f1b-vocab-1", 1),
    "1F1B vocab-2": ("1f1b-vocab-2", 1),
    "1F1B interlaced": ("1f1b-interlaced", 1),
}


def paper_of(source: str) -> Paper | None:
    return next((one for one in PAPERS if re.search(one.pattern, source)), None)


def derived(values: Mapping[str, str | float]) -> dict[str, str | float]:
    """The columns of a training run that follow from those of a row: family, accelerator, batch, recomputation, ..."""
    text = {column: str(values.get(column, "")) for column in ("source", "table", "notes", "schedule")}
    paper, found = paper_of(text["source"]), dict[str, str | float]()
    name = paper.name if paper else text["source"].split(",")[0]
    number = re.fullmatch(r"Table (\d+)", text["table"])
    own = paper is not None and "issue" in paper.name
    found["family"] = name if own else f"{name}-{'T' + number[1] if number else text['table'].split()[0].rstrip('.')}"
    if stated := re.search(r"global batch (\d+)", text["notes"]):
        found["global_batch"] = float(stated[1])
    elif "micro_batch" in values and "num_micro" in values:
        found["global_batch"] = float(values["micro_batch"]) * float(values["num_micro"]) * float(values.get("dp", 1))
    if "value" in values:
        found |= {"score_time": float(values.get("metric") in SPEEDS),
                  "score_memory": float(values.get("metric") == "peak_memory")}
    if paper:
        found |= {"accelerator": paper.accelerator, "framework": paper.stack["name"], "precision": paper.precision,
                  "recompute": "full" if text["schedule"].endswith("-R") else paper.recompute,
                  "memory_basis": paper.memory}
    return found | (_trained(values, text) if paper and paper.name in TRAINED else {})


def _trained(values: Mapping[str, str | float], text: Mapping[str, str]) -> dict[str, str | float]:
    """What training.csv says of a run in columns of its own."""
    found: dict[str, str | float] = {"cp": 1.0, "ffn_hidden": 4.0 * float(values.get("hidden", 0))}
    if text["schedule"].startswith("ZeRO-3"):
        found |= {"zero_or_fsdp": "ZeRO-3", "framework": "Megatron-LM + DeepSpeed"}
    if (product := re.search(r"t\*p\s*=?\s*(\d+)", text["notes"])) and text["schedule"].startswith("PTD-P"):
        tensor = min(int(product[1]), NODE)
        found |= {"tp": float(tensor), "pp": float(int(product[1]) // tensor)}
    return found
