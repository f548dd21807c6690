"""The keys of a scenario file: their types, ranges, defaults and meanings.

Only what one key alone can get wrong is checked here, plus the names it may hold; what two keys together get
wrong (degrees and GPUs, batch and micro-batch) is checked in `scenarios.checks`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from costmodel import units
from scenarios import names, technique_keys
from scenarios.errors import shown

Degree = Annotated[int, Field(ge=1, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Title = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(max_length=5000)]

Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"]
Metric = Literal["mfu", "step_time_s", "tokens_per_s_per_gpu", "model_flops_per_s_per_gpu"]
DIMENSION_OF_METRIC = {"mfu": "1", "step_time_s": "s", "tokens_per_s_per_gpu": "tokens",
                       "model_flops_per_s_per_gpu": "FLOP/s"}


def quantity(dimension: str) -> BeforeValidator:
    """A number, or text with a unit of `dimension` (costmodel.units)."""

    def read(value: Any) -> float:
        if not isinstance(value, int | float | str):
            raise ValueError(f"a quantity is expected, got {shown(value)}")
        return units.parse(value, dimension)

    return BeforeValidator(read)


def named(kind: names.Kind) -> AfterValidator:
    """A name of the catalogue or registry `kind`; the error names the nearest one."""

    def check(name: str) -> str:
        names.check(kind, name)
        return name

    return AfterValidator(check)


class Block(BaseModel):
    """A mapping of the file: no other keys, no conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


HostTime = Annotated[float, quantity("s"), Field(ge=0, le=10)] | None


class MemoryLayersBlock(Block):
    """Layers, counted from 0, whose MLP becomes a memory of `keys`^2 values (arXiv 2412.09764)."""

    layers: Annotated[list[Annotated[int, Field(ge=0, le=100_000)]], Field(min_length=1, max_length=1000)]
    keys: Annotated[int, Field(ge=2, le=100_000)] = 1024
    heads: Degree = 4
    neighbours: Degree = 32
    key_width: Degree = 512
    gated: bool = True
    shared: bool = True


class ModelChoice(Block):
    """A model of the catalogue, or a Hugging Face config.json; `set` overrides keys of its config."""

    catalog: Annotated[str, named("models")] | None = None
    hf: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    set: dict[str, Any] = {}
    memory_layers: MemoryLayersBlock | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ModelChoice:
        if (self.catalog is None) == (self.hf is None):
            raise ValueError("give one of 'catalog: NAME' and 'hf: PATH'")
        return self


def _model_choice(value: Any) -> Any:
    if isinstance(value, str):
        return {"catalog": value}
    if not isinstance(value, dict):
        raise ValueError(f"a model's name, or hf: PATH to its config.json, is expected, got {shown(value)}")
    return value


class BesideBlock(Block):
    """Nodes of another kind beside those of the cluster."""

    node: Annotated[str, named("nodes")]
    nodes: Degree
    power_limit: Annotated[float, quantity("W"), Field(gt=0, le=1e5)] | None = None


class ClusterBlock(Block):
    """Equal nodes. `gpus`, used by the run, defaults to all of them. `beside`: nodes of other kinds on the same fabric;
    the price is then that of every GPU."""

    node: Annotated[str, named("nodes")]
    nodes: Degree
    gpus: Count | None = None
    price_usd_per_gpu_hour: Annotated[float, quantity("USD/h"), Field(ge=0, le=1e6)] | None = None
    power_limit: Annotated[float, quantity("W"), Field(gt=0, le=1e5)] | None = None
    beside: Annotated[list[BesideBlock], Field(max_length=8)] = []


Length = Annotated[float, quantity("tokens"), Field(ge=1, le=1_000_000_000)]


class LengthsBlock(Block):
    """A law of unequal lengths (placement.sequences), settled by the share of all tokens that lie in sequences longer
    than `above`; or the lengths themselves. `maximum` defaults to the workload's sequence."""

    distribution: Literal["log-normal", "pareto", "empirical"]
    token_share: Annotated[float, quantity("1"), Field(gt=0, lt=1)] | None = None
    above: Length | None = None
    minimum: Length = 64.0
    median: Length = 2048.0
    maximum: Length | None = None
    lengths: Annotated[list[Length], Field(min_length=1, max_length=1_000_000)] | None = None

    @model_validator(mode="after")
    def _settled(self) -> LengthsBlock:
        if self.distribution == "empirical":
            if self.lengths is None:
                raise ValueError("give the lengths of the data: lengths: [512, 8K, ...]")
            if self.token_share is not None or self.above is not None:
                raise ValueError("token_share and above settle a law; the empirical one has none: leave them out")
        elif self.lengths is not None:
            raise ValueError(f"lengths are of the empirical law; leave them out of the {self.distribution} one")
        elif self.token_share is None or self.above is None:
            raise ValueError(f"what settles the {self.distribution} law? give token_share and above, such as "
                             "token_share: 9.8%, above: 262144")
        return self


class WorkloadBlock(Block):
    """What is trained: `sequence` tokens in each of `global_batch` sequences a step, `tokens` in all. With `lengths`
    sequences are unequal: `sequence` is the longest, and a step has `global_batch` x `sequence` tokens of them."""

    kind: Literal["pretrain"]
    sequence: Annotated[int, Field(ge=1, le=1_000_000_000)]
    global_batch: Count
    lengths: LengthsBlock | None = None
    tokens: Annotated[float, quantity("tokens"), Field(gt=0, le=1e18)] | None = None


def _stage_layers(value: Any) -> str | tuple[int, ...]:
    if value in ("even", "balanced"):
        return str(value)
    if isinstance(value, list) and value and all(type(n) is int and 0 <= n <= 100_000 for n in value):
        return tuple(value)
    raise ValueError("'even', 'balanced' or a list of whole numbers (layers of each chunk in model order) is "
                     f"expected, got {shown(value)}")


def _sharding(value: Any) -> Any:
    """The name of a strategy, or a placement written out, which must update like a single device."""
    if isinstance(value, str):
        names.check("strategies", value)
        return value
    if not isinstance(value, dict):
        raise ValueError(f"a sharding strategy, or a placement written out, is expected, got {shown(value)}")
    from placement import correctness, strategies
    from placement.states import PlacementError

    try:
        placement = strategies.from_mapping(value)
    except (PlacementError, TypeError, AttributeError) as error:
        raise ValueError(f"not a placement: {error}") from None
    if not strategies.shards_data(placement):
        raise ValueError("a sharding lies on the axes data, shard, replicate and memory and splits the batch "
                         "over them: activations: {data: batch}")
    if findings := correctness.check(placement):
        raise ValueError("; ".join(str(finding) for finding in findings))
    return placement


TechniquesBlock = technique_keys.block(Block)


class PlanBlock(Block):
    """How the model is laid over the cluster; `data` defaults to gpus / (tensor x pipeline x context)."""

    tensor: Degree = 1
    sequence_parallel: bool = False
    pipeline: Degree = 1
    virtual: Degree = 1
    data: Degree | None = None
    context: Degree = 1
    context_method: Literal["all-gather", "ring", "ulysses"] = "all-gather"
    context_groups: Annotated[str, named("context-groups")] = "static"
    selective_offload: bool = False
    expert: Degree = 1
    expert_tensor: Degree = 1
    shares: Annotated[str, named("shares")] = "decoupled"
    stage_layers: Annotated[Any, BeforeValidator(_stage_layers)] = "even"
    schedule: Annotated[str, named("schedules")] = "1f1b"
    segments: Degree = 1
    in_flight_limit: Annotated[float, Field(gt=0)] | None = None
    optimizer_barrier: bool = True
    sharding: Annotated[Any, BeforeValidator(_sharding)] = "zero-1"
    state_bytes: Literal["mixed", "mixed-packed", "megatron", "torch-fsdp", "torch-fsdp-16-bit", "fp32",
                         "bf16"] | None = None
    shard_group: Degree | None = None
    micro_batch: Degree = 1
    recompute: Literal["none", "pointwise", "selective", "full"] = "none"
    recompute_chunks: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    offload_chunks: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    precision: Precision = "bf16"
    trainable: Literal["all", "lora"] = "all"
    lora_rank: Degree = 16
    techniques: TechniquesBlock | None = None  # type: ignore[valid-type]


Overlap = Literal["data", "tensor", "context", "expert", "pipeline"]


def _once_each(names: list[Overlap]) -> list[Overlap]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{shown(name)[5:]} stands there twice")
    return names


class StackBlock(Block):
    """The software: a named bundle of choices, single choices, or both (a choice given replaces the bundle's)."""

    name: Annotated[str, named("stacks")] | None = None
    execution: Literal["eager", "fused", "compiled"] | None = None
    attention: Literal["unfused", "flash-2", "flash-3", "cudnn"] | None = None
    attention_backward: Literal["skips", "whole"] | None = None
    overlap: Annotated[list[Overlap], AfterValidator(_once_each)] | None = None
    cross_entropy: Literal["fused", "unfused", "vocab-parallel"] | None = None
    moe_dispatcher: Literal["all-to-all", "flex"] | None = None
    collectives: Literal["nccl", "ho-ring"] | None = None
    cuda_graphs: Literal["none", "partial", "full"] | None = None
    host_layer: HostTime = None
    host_moe_layer: HostTime = None
    host_head: HostTime = None
    host_hop: HostTime = None

    @property
    def choices(self) -> dict[str, Any]:
        """The keys that are given, under the names that `costmodel.stack.Stack` has for them."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in self}
        given = {key: value for key, value in values.items() if value is not None}
        return {f"{key}_s" if key.startswith("host_") else key: value for key, value in given.items()}


class PublishedValue(Block):
    """A measured or claimed result of this scenario; text values may carry a unit ("41%", "400 TFLOP/s")."""

    metric: Metric
    value: Any
    source: Title

    @model_validator(mode="before")
    @classmethod
    def _quantity(cls, data: Any) -> Any:
        metric = data.get("metric") if isinstance(data, dict) else None
        if not isinstance(metric, str) or metric not in DIMENSION_OF_METRIC or "value" not in data:
            return data
        value = data["value"]
        if not isinstance(value, int | float | str):
            raise ValueError(f"value: a quantity is expected, got {shown(value)}")
        number = units.parse(value, DIMENSION_OF_METRIC[metric])
        if not 0 < number <= (1 if metric == "mfu" else 1e18):
            above = "0 and at most 1 (0.41 or '41%')" if metric == "mfu" else "0"
            raise ValueError(f"value: {metric} must be above {above}, got {shown(value)}")
        return {**data, "value": number}


class MeasuredRun(PublishedValue):
    """A run of the user's own: the scenario as written, or with `set` applied to it."""

    set: dict[str, Any] = {}


class AuthorNote(Block):
    """Why a key that was not published has the value it has."""

    key: Title
    text: Text
    source: Text = ""


class WhatIf(Block):
    """A variant: dotted keys and the values they take in it."""

    name: Title
    set: Annotated[dict[str, Any], Field(min_length=1)]


class Scenario(Block):
    """One scenario file."""

    name: Title
    description: Text = ""
    model: Annotated[ModelChoice, BeforeValidator(_model_choice)]
    cluster: ClusterBlock
    workload: WorkloadBlock
    plan: PlanBlock
    stack: StackBlock = StackBlock()
    published: list[PublishedValue] = []
    assumptions: list[AuthorNote] = []
    calibration: Annotated[list[MeasuredRun], Field(max_length=20)] = []
    what_if: list[WhatIf] = []
    search: dict[str, Annotated[list[Any], Field(min_length=1, max_length=1000)]] = {}
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


def block_at(path: tuple[str | int, ...]) -> type[Block] | None:
    """The block class whose keys stand at `path` of a scenario; None where keys are free or values stand."""
    block: type[Block] | None = Scenario
    for part in path:
        if isinstance(part, int):
            continue
        field = block.model_fields.get(part) if block else None
        block = _block_in(field.annotation) if field else None
    return block


def _block_in(annotation: Any) -> type[Block] | None:
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return annotation
    found = (_block_in(inner) for inner in getattr(annotation, "__args__", ()))
    return next((block for block in found if block), None)


