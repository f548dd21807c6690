"""A checked scenario becomes the objects that the simulator works on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel import catalog, constants, huggingface
from costmodel.architecture import Model
from costmodel.hardware import Cluster, joined
from costmodel.huggingface.fields import ALIASES
from costmodel.product_keys import MemoryLayerError, MemoryLayers, with_memory
from placement import schedules
from placement.plan import Plan
from placement.schedules import ScheduleError
from placement.schedules.files import is_file
from placement.sequences import Empirical, Law, fitted
from scenarios import technique_keys
from scenarios.errors import nearest
from scenarios.schema import BesideBlock, ModelChoice, PlanBlock, Scenario, WorkloadBlock
from simulator.inputs import TrainingInputs

if TYPE_CHECKING:
    from scenarios.load import LoadedScenario


class BuildError(ValueError):
    """A model or cluster that cannot be built; `key` is the path of the scenario key that says so."""

    def __init__(self, key: tuple[str, ...], message: str) -> None:
        self.key = key
        super().__init__(message)


def model_and_cluster(scenario: Scenario, folder: Path) -> tuple[Model, Cluster]:
    """The model (paths are relative to `folder`) and the cluster of a scenario. Raises BuildError."""
    model = build_model(scenario.model, folder)
    node = catalog.node(scenario.cluster.node)
    nodes = scenario.cluster.nodes
    most = nodes * node.accelerators
    gpus = most if scenario.cluster.gpus is None else scenario.cluster.gpus
    if gpus > most:
        held = f"{nodes:,} nodes x {node.accelerators} of {node.name} = {most:,}"
        raise BuildError(("cluster", "gpus"), f"{gpus:,} is more than the cluster holds: {held}")
    own = Cluster(node, nodes, gpus, scenario.cluster.power_limit)
    if not scenario.cluster.beside:
        return model, own
    if scenario.cluster.gpus is not None:
        raise BuildError(("cluster", "gpus"), "nodes of several kinds are used whole; leave gpus out")
    return model, joined([own, *(_beside(block) for block in scenario.cluster.beside)])


def _beside(block: BesideBlock) -> Cluster:
    node = catalog.node(block.node)
    return Cluster(node, block.nodes, block.nodes * node.accelerators, block.power_limit)


def with_schedule_file(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario with the path of a file of orders as `plan.schedule` resolved; it is relative to `folder`.

    Raises BuildError where the file holds no order.
    """
    if not is_file(scenario.plan.schedule):
        return scenario
    path = str(folder / scenario.plan.schedule)
    try:
        schedules.get(path)
    except ScheduleError as error:
        raise BuildError(("plan", "schedule"), str(error)) from None
    return scenario.model_copy(update={"plan": scenario.plan.model_copy(update={"schedule": path})})


def build_model(choice: ModelChoice, folder: Path) -> Model:
    """A model of the catalogue or of a config.json, with the config keys of `set` replaced and with the memory layers
    that are asked for. Raises BuildError, with the key that is to blame.
    """
    model, asked = _plain_model(choice, folder), choice.memory_layers
    if asked is None:
        return model
    try:
        return with_memory(model, MemoryLayers(**{**asked.model_dump(), "layers": tuple(asked.layers)}))
    except MemoryLayerError as error:
        raise BuildError(("model", "memory_layers", error.key), str(error)) from None


def _plain_model(choice: ModelChoice, folder: Path) -> Model:
    key = ("model", "hf") if choice.hf is not None else ("model",)
    try:
        if choice.hf is None:
            config = huggingface.catalog_config(str(choice.catalog))
            name, source = config["_name"], config["_source"]
        else:
            model = huggingface.from_file(folder / choice.hf)
            if not choice.set:
                return model
            config = _config_of(folder / choice.hf)
            name, source = model.name, choice.hf
        key = ("model", "set") if choice.set else key
        return huggingface.from_config(_with_settings(config, choice.set), name=name, source=source)
    except huggingface.ConfigError as error:
        raise BuildError(key, str(error)) from error


def _config_of(path: Path) -> dict[str, Any]:
    """The mapping of a config.json that `huggingface.from_file` has read without error."""
    file = path / "config.json" if path.is_dir() else path
    return dict(json.loads(file.read_text(encoding="utf-8-sig")))


def _with_settings(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The config with keys replaced, in its nested `text_config` where they stand there.

    Raises BuildError for a key that neither the config nor any architecture has, so that no slip goes unseen.
    """
    nested = config.get("text_config")
    inner = dict(nested) if isinstance(nested, dict) else {}
    outer = dict(config)
    known = [k for k in (*outer, *inner, *ALIASES) if not k.startswith("_")]
    for key, value in settings.items():
        if key not in known:
            hint = nearest(key, list(dict.fromkeys(known)))
            raise BuildError(("model", "set", key), f"the model's config has no such key; {hint}")
        target = inner if key in inner or (inner and key not in outer) else outer
        target[key] = value
    return outer | ({"text_config": inner} if inner else {})


def data_degree(plan: PlanBlock, cluster: Cluster) -> int:
    """The data-parallel degree: as given, else what the other degrees leave of the cluster's GPUs."""
    return plan.data or max(1, cluster.accelerators // (plan.tensor * plan.pipeline * plan.context))


def build_plan(block: PlanBlock, cluster: Cluster) -> Plan:
    """The plan with `data` filled in and its techniques made."""
    changes = technique_keys.chosen(block.techniques)
    return Plan(**{**dict(block), "data": data_degree(block, cluster), "techniques": changes})


def build_lengths(workload: WorkloadBlock) -> Law | None:
    """The law of the workload's lengths, None where sequences are equal. Raises LengthsError for none that fits."""
    block = workload.lengths
    if block is None:
        return None
    if block.distribution == "empirical":
        return Empirical(tuple(block.lengths or ()))
    share, above = block.token_share or 0.0, block.above or 0.0
    longest = block.maximum or float(workload.sequence)
    return fitted(block.distribution, share, above, block.minimum, longest, block.median)


def training_inputs(
    loaded: LoadedScenario, fidelity: str = "events", seed: int | None = None
) -> TrainingInputs:
    """What `simulator.predict` is asked. `seed` None takes the scenario's."""
    scenario = loaded.scenario
    return TrainingInputs(
        name=scenario.name if loaded.variant is None else f"{scenario.name}: {loaded.variant}",
        description=scenario.description,
        file=loaded.file,
        raw=loaded.raw,
        model=loaded.model,
        cluster=loaded.cluster,
        plan=build_plan(scenario.plan, loaded.cluster),
        sequence=scenario.workload.sequence,
        global_batch=scenario.workload.global_batch,
        lengths=build_lengths(scenario.workload),
        total_tokens=scenario.workload.tokens,
        stack=scenario.stack.choices,
        price_usd_per_gpu_hour=scenario.cluster.price_usd_per_gpu_hour,
        published=tuple(p.model_dump() for p in scenario.published),
        assumptions=tuple(a.model_dump() for a in scenario.assumptions),
        seed=scenario.seed if seed is None else seed,
        fidelity=fidelity,
        constants=constants.of(loaded.cluster.accelerator),
    )
