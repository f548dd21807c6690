"""The plans that a published row may mean: what it states is kept, a blank becomes every choice that fits.

A blank degree, chunk count, micro-batch, recomputation or precision is a range, never a guess; the choices
are cut to those that close the GPU count and divide batch, heads and layers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from costmodel.architecture import Model
from costmodel.hardware import Accelerator
from costmodel.kernels import PEAK_OF_PRECISION
from placement.plan import Plan
from scenarios.accuracy.models import NotExpressible
from scenarios.accuracy.rows import Row
from scenarios.accuracy.stacks import Bundle

MOST_ALTERNATIVES = 12  # of one row; more are thinned evenly
PRECISIONS = {"fp8-cs": "fp8", "fp8-mx": "mxfp8", "fp4": "nvfp4"}
POWERS = tuple(2**k for k in range(11))


@dataclass(frozen=True)
class Plans:
    """Alternatives of one row. `blanks` are the columns that made them; `approximated` says which stated thing
    has no input in the core yet and was left out or rounded."""

    alternatives: tuple[Plan, ...]
    blanks: tuple[str, ...]
    approximated: tuple[str, ...]


def is_lora(row: Row) -> bool:
    """Whether only adapters are trained: in the model's name, or the first word of the notes."""
    return "lora" in row.text("model").lower() or row.text("notes").lower().startswith("lora")


def sharding_of(row: Row, bundle: Bundle) -> tuple[str, int | None, tuple[str, ...]]:
    """(strategy, shard group, what is approximated) of the free text in zero_or_fsdp."""
    text, notes = row.text("zero_or_fsdp").lower(), row.text("notes")
    group = re.search(r"FSDP shard group (\d+)", notes)
    if not text:
        return bundle.sharding, None, ()
    if found := re.fullmatch(r"zero1-(\d+|all)", text):
        return "internevo", None if found[1] == "all" else int(found[1]), ()  # InternEvo's notation
    if "shard_grad_op" in text:
        return "fsdp-shard-grad-op", None, ()
    if "not resharded" in text:
        return "fsdp-no-reshard", None, ()
    if "megatron-fsdp" in text:
        return "fsdp", None, ("Megatron-FSDP's bytes per parameter",)
    if "fsdp" in text:
        ranks = (row.integer("dp") or 1) * (row.integer("cp") or 1)
        return ("hsdp", int(group[1]), ()) if group and int(group[1]) < ranks else ("fsdp", None, ())
    if text == "zero-3":
        return "zero-3", None, ()
    if text.startswith("none"):
        return "ddp", None, ()
    if "distributed-optimizer" in text:
        if found := re.search(r"(\d+) distributed-optimizer instances", notes):
            ranks = (row.integer("dp") or 1) * (row.integer("cp") or 1)
            return "zero-1-hybrid", max(ranks // int(found[1]), 1), ()
        return "zero-1", None, ()
    raise NotExpressible(f"zero_or_fsdp {row.text('zero_or_fsdp')!r} names no known strategy")


def recompute_of(row: Row, bundle: Bundle) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(levels, what is approximated). Blank: every level that the framework's recipes use."""
    text, notes = row.text("recompute"), row.text("notes")
    if not text:
        light = ("pointwise",) if bundle.stack == "megatron-bridge" else ()
        return ("none", *light, "selective", "full"), ()
    if text not in ("none", "selective", "full"):
        raise NotExpressible(f"recompute {text!r} is not none, selective or full")
    if text == "full" and "layer(s) per stage" in notes:
        return ("none", "full"), ("full recomputation of some layers of a stage",)
    if modules := re.search(r"recompute_modules=([\w+]+)", notes):
        named = set(modules[1].split("+"))
        if named <= {"layernorm", "moe_act", "mla_up_proj"}:
            return ("pointwise",), ()
        level = "selective" if "core_attn" in named else "pointwise"
        return (level,), ("recomputed modules beside the attention core",)
    return (text,), ()


def state_bytes_of(row: Row, sharding: str, bundle: Bundle) -> str | None:
    """The preset of bytes per parameter where it is not the strategy's own."""
    if "mode=PURE" in row.text("notes") and sharding.startswith(("fsdp", "hsdp")):
        return "torch-fsdp-16-bit"
    return bundle.state_bytes if sharding in ("ddp", "zero-1", "zero-1-hybrid") else None


def precisions_of(row: Row, accelerator: Accelerator, bundle: Bundle) -> tuple[str, ...]:
    """The linear layers' type; blank: what the part offers (fp32 modules on tensor cores where eager)."""
    if text := row.text("precision"):
        name = PRECISIONS.get(text, text)
        if name not in PEAK_OF_PRECISION:
            raise NotExpressible(f"precision {text!r} is not one of {', '.join(PEAK_OF_PRECISION)}")
        if name != "bf16" and not accelerator.peak_flops_per_s.get(PEAK_OF_PRECISION[name]):
            raise NotExpressible(f"precision {text!r}: {accelerator.name} has no such units in the catalogue")
        return (name,)
    if row.family.startswith("Sailor"):
        return ("tf32",)  # memory_notes A3, B5: fp32 modules, TF32 units
    offered = [name for name in ("bf16", "fp8") if accelerator.peak_flops_per_s.get(name)]
    return tuple(offered) or ("bf16",)


def stage_layers_of(row: Row, layers: int, pipeline: int, virtual: int) -> str | tuple[int, ...]:
    """Layers by chunk: as planned, as the notes say, or even, with embedding and head counted where it divides."""
    if text := row.text("stage_layers"):
        sizes = [int(size.split("+")[0]) for size in text.split("|")]
        sizes[0] -= 1  # the embedding counts as a layer
        sizes[-1] -= 1  # and so does the head
        return tuple(sizes)
    if ends := re.search(r"first/last stage (\d+)/(\d+) layers", row.text("notes")):
        inner, rest = divmod(layers - int(ends[1]) - int(ends[2]), max(pipeline - 2, 1))
        if pipeline * virtual == pipeline > 2 and not rest:
            return (int(ends[1]), *(inner,) * (pipeline - 2), int(ends[2]))
    chunks = pipeline * virtual
    return "balanced" if layers % chunks and (layers + 2) % chunks == 0 else "even"


def plans_of(row: Row, model: Model, accelerator: Accelerator, domain: int, bundle: Bundle) -> Plans:
    """Every plan the row may mean. Raises NotExpressible where none closes."""
    gpus, batch = row.integer("gpus"), row.integer("global_batch")
    if gpus is None or batch is None:
        raise NotExpressible(f"column {'gpus' if gpus is None else 'global_batch'} is blank")
    sharding, group, rounded = sharding_of(row, bundle)
    levels, rounded_levels = recompute_of(row, bundle)
    common: dict[str, Any] = {"sharding": sharding, "shard_group": group, "context_method": bundle.context_method,
                              "state_bytes": state_bytes_of(row, sharding, bundle)}
    if is_lora(row):
        common["trainable"] = "lora"
    found, blanks = list[Plan](), set[str]()
    precisions = precisions_of(row, accelerator, bundle)
    for tensor, pipeline, context, data in _degrees(row, model, domain, gpus, batch):
        for micro_batch, virtual in itertools.product(_micro_batches(row, data, batch),
                                                      _chunks(row, len(model.layers), pipeline)):
            if row.integer("vp") is None and virtual > 1 and (batch // (data * micro_batch)) % pipeline:
                continue
            expert = row.integer("ep") or 1
            chosen = {
                **common, "tensor": tensor, "pipeline": pipeline, "context": context, "data": data,
                "virtual": virtual, "micro_batch": micro_batch, "expert": expert,
                "expert_tensor": _expert_tensor(row, expert, tensor, data * context),
                "sequence_parallel": _sequence_parallel(row, bundle, tensor),
                "schedule": "interleaved-1f1b" if virtual > 1 else "1f1b",
                "stage_layers": stage_layers_of(row, len(model.layers), pipeline, virtual),
            }
            found += [Plan(**chosen, recompute=level, precision=precision)
                      for level, precision in itertools.product(levels, precisions)]
    if not found:
        raise NotExpressible("no plan closes the GPU count and divides the batch")
    blanks = {column for column in ("tp", "pp", "cp", "micro_batch", "vp", "recompute", "precision")
              if column not in row.values and _varies(found, column)}
    return Plans(_thinned(found), tuple(sorted(blanks)), tuple(dict.fromkeys((*rounded, *rounded_levels))))


_FIELD = {"tp": "tensor", "pp": "pipeline", "cp": "context", "vp": "virtual"}


def _varies(plans: list[Plan], column: str) -> bool:
    return len({getattr(plan, _FIELD.get(column, column)) for plan in plans}) > 1


def _degrees(row: Row, model: Model, domain: int, gpus: int, batch: int) -> Iterator[tuple[int, int, int, int]]:
    """(tensor, pipeline, context, data) that close the GPU count."""
    stated = {column: row.integer(column) for column in ("tp", "pp", "cp", "dp")}
    heads, layers = model.layers[0].attention.heads, len(model.layers)
    tensors = [stated["tp"]] if stated["tp"] else [t for t in POWERS if t <= min(domain, 8) and heads % t == 0]
    pipelines = [stated["pp"]] if stated["pp"] else [p for p in range(1, 33) if layers % p == 0]
    contexts = [stated["cp"] or 1] if stated["cp"] or stated["tp"] else [1, 2, 4]
    closes = "INCONSISTENT" not in row.text("notes")
    for tensor, pipeline, context in itertools.product(tensors, pipelines, contexts):
        data, rest = divmod(gpus, tensor * pipeline * context)
        wanted = stated["dp"] if closes and stated["dp"] else data
        if data and not rest and data == wanted and batch % data == 0:
            yield tensor, pipeline, context, data


def _micro_batches(row: Row, data: int, batch: int) -> list[int]:
    stated = row.integer("micro_batch")
    return [stated] if stated else [size for size in (1, 2, 4, 8) if batch // data % size == 0]


def _chunks(row: Row, layers: int, pipeline: int) -> list[int]:
    """Chunks of layers per pipeline rank; blank: every divisor of the layers of a stage, up to 8."""
    if pipeline == 1:
        return [1]
    if stated := row.integer("vp"):
        return [stated]
    fitting = [v for v in range(1, 9) if layers % (pipeline * v) == 0 or (layers + 2) % (pipeline * v) == 0]
    return fitting or [1]


def _sequence_parallel(row: Row, bundle: Bundle, tensor: int) -> bool:
    stated: Any = row.integer("sp")
    return tensor > 1 and (bundle.sequence_parallel if stated is None else stated == 1)


def _expert_tensor(row: Row, expert: int, tensor: int, replicas: int) -> int:
    """As stated; else Megatron-Core's default, the tensor degree, where the expert degree leaves room for it."""
    fits = expert > 1 and (replicas * tensor) % (expert * tensor) == 0
    return row.integer("etp") or (tensor if fits else 1)


def _thinned(plans: list[Plan]) -> tuple[Plan, ...]:
    step = max(1.0, len(plans) / MOST_ALTERNATIVES)
    return tuple(plans[int(index * step)] for index in range(int(len(plans) / step)))
