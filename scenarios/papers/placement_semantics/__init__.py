"""Placement Semantics for Distributed Deep Learning (arXiv 2601.02311).

Mechanism: four training states in five modes along the axes of a device mesh determine memory and communication.
Answered: model-state memory per device, its reduction against another strategy, the fewest devices that hold it,
and communication volume per step, for every strategy of `placement/strategies.yaml` and for tensor and pipeline
parallelism composed with them, at any size and degrees that a row states. All follow from `placement.semantics`.

The paper's "2P against 3P" counts parameters for large N, so volumes are taken in that limit. Without a stated
N no memory can be computed; where the locator of a row names the N that its figure belongs to, that one is taken.
"""

from __future__ import annotations

import re

from placement import semantics, strategies
from placement.composition import compose
from placement.states import Axis, Placement, PlacementError, StateBytes
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim

LARGE = 2**40  # N in the limit
MOST_DEVICES = 2**17
# the first pattern that matches names the strategy of placement/strategies.yaml
NAMES: tuple[tuple[str, str], ...] = (
    (r"zero[- ]?infinity", "zero-infinity"),
    (r"zero[- ]?offload", "zero-offload"),
    (r"hsdp|hybrid[- ]shard", "hsdp"),
    (r"\bmics\b", "mics"),
    (r"fsdp.*(no[t]? |without )reshard|shard_grad_op", "fsdp-no-reshard"),
    (r"zero[- ]?(stage[- ]?)?3.*(re-?gather|recompute)", "zero-3-recompute"),
    (r"zero[- ]?(stage[- ]?)?3|fsdp|full[- ]shard", "zero-3"),
    (r"zero[- ]?(stage[- ]?)?2", "zero-2"),
    (r"zero[- ]?(stage[- ]?)?1|distributed optimizer", "zero-1"),
    (r"\bddp\b|\bdp\b(?!\s*=)|data[- ]parallel|(single|one) device|replicat", "ddp"),
)


def strategy(text: str) -> str | None:
    """The strategy that a text names; None where it names none.

    >>> strategy("70B, N=8, ZeRO-2"), strategy("FSDP, no reshard after forward"), strategy("70B")
    ('zero-2', 'fsdp-no-reshard', None)
    """
    return next((name for pattern, name in NAMES if re.search(pattern, text, re.IGNORECASE)), None)


def state_bytes(text: str) -> StateBytes:
    """Bytes per parameter of parameters, gradients and optimizer: `(2+2+12)`, `2/4/12`, `K=12`, `16 B/param`.

    Mixed-precision Adam (2 + 2 + 12) where nothing is stated. Raises NotMapped for a sum with no known parts.
    """
    if found := re.search(r"(\d+)\s*[+/]\s*(\d+)\s*[+/]\s*(\d+)", text):
        return StateBytes(float(found[1]), float(found[2]), float(found[3]))
    if (multiplier := settings.degree(text, "K")) is not None:
        return StateBytes(2, 2, float(multiplier))
    found = re.search(r"(\d+)\s*B(?:ytes)?(?:/| per )param", text)
    total = int(found[1]) if found else 16
    known = {16: StateBytes(2, 2, 12), 18: StateBytes(2, 4, 12), 20: StateBytes(4, 4, 12)}
    if total not in known:
        raise NotMapped(f"{total} bytes a parameter: how they divide over the states is not stated")
    return known[total]


def degrees(text: str) -> dict[Axis, int]:
    """The degrees that a setting states, by axis. `N` (N_d, DP, GPUs) is the data-parallel group."""
    found = {
        Axis.TENSOR: settings.degree(text, "TP", "tp", "t", "tensor"),
        Axis.PIPELINE: settings.degree(text, "PP", "pp", "p", "pipeline"),
        Axis.SHARD: settings.degree(text, "g", "group"),
    }
    data = settings.degree(text, "N_d", "N", "DP", "dp", "Nd") or settings.gpus(text)
    found[Axis.DATA] = data
    return {axis: value for axis, value in found.items() if value is not None}


def placement(name: str, bytes_: StateBytes, mesh: dict[Axis, int]) -> Placement:
    """The named strategy, with tensor and pipeline parallelism where the mesh has them. Raises NotMapped."""
    parts: list[Placement | str] = [strategies.get(name, bytes_)]
    parts += [axis.value for axis in (Axis.TENSOR, Axis.PIPELINE) if mesh.get(axis, 1) > 1]
    try:
        return compose(*parts, bytes_preset=bytes_) if len(parts) > 1 else strategies.get(name, bytes_)
    except PlacementError as error:
        raise NotMapped(str(error)) from None


def mesh_of(laid: Placement, found: dict[Axis, int]) -> semantics.Degrees:
    """Degrees with N divided over the two halves of hybrid sharding. Raises NotCheckable without N or the group."""
    if Axis.SHARD not in laid.axes:
        return found
    if Axis.DATA not in found or Axis.SHARD not in found:
        raise NotCheckable("N and the size of the sharding group")
    return {**found, Axis.REPLICATE: max(found[Axis.DATA] // found[Axis.SHARD], 1)}


def model_state_bytes(name: str, parameters: float, bytes_: StateBytes, found: dict[Axis, int]) -> float:
    """Bytes of parameters, gradients and optimizer at rest on one device."""
    laid = placement(name, bytes_, found)
    return float(sum(semantics.resident_bytes(laid, parameters, mesh_of(laid, found)).values()))


def sent_in_p(name: str, bytes_: StateBytes, found: dict[Axis, int]) -> float:
    """Sent per device and step, in units of the parameters P, for large N."""
    laid = placement(name, bytes_, found)
    mesh = mesh_of(laid, {**found, Axis.DATA: LARGE})
    listed = semantics.communications(laid, 1.0, mesh)
    return sum(float(one.sent_bytes_per_step) / _wire(laid, one) for one in listed)


def _wire(laid: Placement, one: semantics.Communication) -> float:
    bytes_ = laid.state_bytes
    return bytes_.gradient_wire if one.state.value == "gradients" else bytes_.parameter_wire


def answer(claim: Claim) -> Answer:
    """Memory, reduction, device count or volume of the strategy that the row names."""
    text = f"{claim.setting}; {claim.metric}"
    bytes_ = state_bytes(f"{claim.setting} {claim.unit}" if "param" in claim.unit else claim.setting)
    system = strategy(re.split(r"\bvs\.?\b|against", claim.setting)[0])
    baseline = strategy(claim.baseline_name) or ("ddp" if claim.baseline_name == "" else None)
    if baseline is None:
        raise NotMapped(f"baseline {claim.baseline_name!r} names no known placement strategy")
    if re.search(r"communication|volume|traffic", text, re.IGNORECASE):
        if system is None:
            raise NotMapped("a data-parallel strategy in the setting: other volumes are no multiples of P")
        return _volume(system, baseline, bytes_, degrees(claim.setting))
    if re.search(r"fewest|smallest|minimum|needed|devices to fit", claim.metric, re.IGNORECASE):
        return _fewest(claim, system or baseline, bytes_)
    if re.search(r"memory|bytes|state", claim.metric, re.IGNORECASE):
        return _memory(claim, system, baseline, bytes_)
    raise NotMapped(f"metric {claim.metric!r}: placement alone determines memory and communication volume")


def _volume(system: str, baseline: str, bytes_: StateBytes, found: dict[Axis, int]) -> Answer:
    ours, theirs = sent_in_p(system, bytes_, found), sent_in_p(baseline, bytes_, found)
    return Answer(Span.of(ours), Span.of(theirs), Span.of(ours / theirs), closed_form=True,
                  how=f"{system} sends {ours:.4g} P and {baseline} {theirs:.4g} P a step and device, for large N")


def _memory(claim: Claim, system: str | None, baseline: str, bytes_: StateBytes) -> Answer:
    found, noted = degrees(claim.setting), ""
    if Axis.DATA not in found and re.search(r"(single|one) (device|GPU)", claim.setting):
        found[Axis.DATA] = 1
    if Axis.DATA not in found and Axis.DATA in (stated := degrees(claim.source_locator)):
        found[Axis.DATA], noted = stated[Axis.DATA], " (N as the row's locator states it; other N give other figures)"
    if Axis.DATA not in found and not {Axis.TENSOR, Axis.PIPELINE} & set(found):
        raise NotCheckable("N, the ranks that the states are divided over")
    size = settings.parameters(claim.setting)
    reduction = "reduction" in claim.metric
    if size is None and not reduction and "param" not in claim.unit:
        raise NotCheckable("the number of parameters")
    unit = {"GB": 1e9, "GiB": 2.0**30, "MB": 1e6, "MiB": 2.0**20}.get(claim.unit, 1.0)
    whole = (size or 1.0) if "param" not in claim.unit else 1.0
    ours = model_state_bytes(system or baseline, whole, bytes_, found) / unit
    theirs = model_state_bytes(baseline, whole, bytes_, _of_baseline(claim.baseline_name, found)) / unit
    ratio = Span.of(theirs / ours)
    ranks = found.get(Axis.DATA, 1)
    how = f"{system or baseline} at N = {ranks}{noted} holds 1/{theirs / ours:.4g} of {baseline}"
    if reduction:
        return Answer(ratio, None, ratio, closed_form=True, how=how)
    return Answer(Span.of(ours), Span.of(theirs), ratio, closed_form=True, how=how)


def _of_baseline(name: str, found: dict[Axis, int]) -> dict[Axis, int]:
    """The mesh of the baseline: it splits the weights only where its name says so."""
    split = re.search(r"\b(TP|PP)\b|tensor|pipeline", name)
    return found if split else {axis: n for axis, n in found.items() if axis not in (Axis.TENSOR, Axis.PIPELINE)}


def _fewest(claim: Claim, system: str, bytes_: StateBytes) -> Answer:
    size, capacity = settings.parameters(claim.setting), re.search(r"(\d+)\s*(GB|GiB)\b", claim.setting)
    if size is None or capacity is None:
        raise NotCheckable("the number of parameters and the memory of a device")
    room = float(capacity[1]) * (1e9 if capacity[2] == "GB" else 2.0**30)
    if kept := re.search(r"(\d+)\s*% (?:kept|reserved|free)", claim.setting):
        room *= 1 - float(kept[1]) / 100
    found = degrees(claim.setting)
    low, high = 1, MOST_DEVICES
    if model_state_bytes(system, size, bytes_, {**found, Axis.DATA: high}) > room:
        raise NotCheckable(f"no N: the states of {system} never fit the device")
    while low < high:
        middle = (low + high) // 2
        fits = model_state_bytes(system, size, bytes_, {**found, Axis.DATA: middle}) <= room
        low, high = (low, middle) if fits else (middle + 1, high)
    return Answer(Span.of(low), closed_form=True, how=f"{system}: the smallest N whose states fit")
