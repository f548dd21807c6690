"""Placements that choose their collectives: ZeRO++, InternEvo, hybrid sharding, a streamed optimizer. Closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from costmodel import catalog, collectives, network
from costmodel.hardware import Cluster
from costmodel.huggingface import catalog_model
from costmodel.parameters import count
from costmodel.stack import Stack
from placement import strategies
from placement.passes import Setting
from placement.plan import Plan
from placement.semantics import Collective, Phase, communications, resident_bytes, transient_bytes
from placement.state_traffic import chunks_with_traffic, optimizer_s
from placement.states import Axis, Mode, Placement, PlacementError, Reduction, Span, Spread, State
from placement.step import analytic_step
from simulator.engine import static
from simulator.training import lower

PSI, MEMBERS, NODES = 1e9, 8, 16
DEGREES = {Axis.SHARD: MEMBERS, Axis.REPLICATE: NODES, Axis.DATA: MEMBERS * NODES}
ACROSS, ALL = (Axis.REPLICATE,), (Axis.SHARD, Axis.REPLICATE)
MODEL = catalog_model("llama-2-7b")


def setting(sharding: str | Placement, gpus: int = 32, group: int | None = 8, **stack: object) -> Setting:
    plan = Plan(data=gpus, sharding=sharding, shard_group=group, state_bytes="mixed")
    return Setting(MODEL, plan, Cluster(catalog.node("hgx-a100"), -(-gpus // 8), gpus), Stack(**stack), 2048)


def across_bytes(name: str) -> dict[str, float]:
    """Bytes that leave a node in a micro-batch by kind, over those of the 16-bit weights and (nodes - 1) / nodes.

    A flat collective over all ranks enters every node once: its ring crosses the node's border with the whole tensor.
    """
    found = dict.fromkeys(("forward", "backward", "gradients"), 0.0)
    for one in communications(strategies.get(name), PSI, DEGREES):
        kind = "gradients" if one.state is State.GRADIENTS else str(one.phase)
        if one.axes == ALL:
            found[kind] += float(one.tensor_bytes) / (2 * PSI)
        if one.axes == ACROSS:
            found[kind] += MEMBERS * float(one.tensor_bytes) / (2 * PSI)
    return found


def test_cross_node_volume_of_zero_plus_plus_is_a_quarter() -> None:
    """arXiv 2306.10209, table 1: 3 M of ZeRO-3 become 0.5 M + 0 + 0.25 M."""
    assert across_bytes("paro-ggg") == {"forward": 1, "backward": 1, "gradients": 1}
    assert across_bytes("zero++") == {"forward": 0.5, "backward": 0, "gradients": 0.25}


def test_memory_of_the_secondary_copy() -> None:
    """2 Psi / m beside ZeRO-3's 16 Psi / n."""
    held = resident_bytes(strategies.get("zero++"), PSI, DEGREES)
    assert sum(held.values()) == pytest.approx(16 * PSI / (MEMBERS * NODES) + 2 * PSI / MEMBERS)
    transient = transient_bytes(strategies.get("zero++"), 1e6, 1, DEGREES)
    assert transient[State.PARAMETERS] == 2e6  # the copy that is computed with is not quantised


def test_quantising_costs_memory_traffic() -> None:
    """Gather: 2 + 1 bytes on a shard and on the whole. Hop of n: read 2, write and read 0.5, write 2 on an n-th."""
    listed = communications(strategies.get("zero++"), PSI, DEGREES)
    forward = next(one for one in listed if one.phase is Phase.FORWARD)
    assert forward.packing_bytes == pytest.approx(3 * PSI * (1 + 1 / (MEMBERS * NODES)))
    hops = [one for one in listed if one.collective is Collective.ALL_TO_ALL]
    assert [one.axes for one in hops] == [(Axis.SHARD,), ACROSS]
    assert hops[0].packing_bytes == pytest.approx(PSI * (3 + 2 / MEMBERS))
    assert hops[1].packing_bytes == pytest.approx(PSI / MEMBERS * (3 + 2 / NODES))
    backward = next(one for one in listed if one.phase is Phase.BACKWARD and one.state is State.PARAMETERS)
    assert backward.packing_bytes == 0
    assert backward.axes == (Axis.SHARD,)


def test_quantised_seconds_are_wire_and_memory() -> None:
    one = setting("zero++")
    one = replace(one, plan=replace(one.plan, state_bytes=None))
    layer, flow = chunks_with_traffic(one)[0].layers[1], chunks_with_traffic(one)[0].traffic[1]
    p, paths = layer.dense_parameters, network.paths(one.cluster)
    wire_s = collectives.all_gather_s(p, network.group(one.cluster, 32, 1), paths, "nccl") * one.constants.communication
    assert flow.forward_gather_s == pytest.approx(wire_s + one.pricer.memory_s(3 * p * (1 + 1 / 32)))


def test_a_secondary_copy_must_be_gathered_and_of_use() -> None:
    with pytest.raises(PlacementError, match="not gathered over it"):
        replace(strategies.get("mics"), secondary=(Axis.REPLICATE,))
    with pytest.raises(PlacementError, match="kept gathered"):
        replace(strategies.get("zero++"), keep_gathered=Span.STEP)
    with pytest.raises(PlacementError, match="is no spread"):
        strategies.from_mapping({"spread": "rumour"})


@pytest.mark.parametrize("ranks", [2, 8, 32])
def test_owners_broadcast_their_parts_one_after_another(ranks: int) -> None:
    """N broadcasts of 1/N of the rank's 16-bit weights a step, with every one's own latency."""
    one = setting("internevo", group=ranks)
    paths = network.paths(one.cluster)
    part = 2 * count(MODEL) / ranks
    group = network.group(one.cluster, ranks, 1)
    expected_s = ranks * collectives.broadcast_s(part, group, paths, "nccl") * one.constants.communication
    alone, beside = (chunks_with_traffic(one)[0], chunks_with_traffic(overlapped(one))[0])
    assert alone.spread_s == pytest.approx(expected_s)
    assert beside.step_s - alone.step_s == pytest.approx(expected_s)
    assert beside.spread_s == 0
    assert all(np.all(flow.step_gather_s == 0) for flow in alone.traffic)


def overlapped(one: Setting) -> Setting:
    """The same with overlap_sync_param."""
    placement = replace(strategies.get("internevo", "mixed"), spread=Spread.BROADCASTS_BESIDE)
    return replace(one, plan=replace(one.plan, sharding=placement))


def test_broadcasts_that_nothing_runs_beside_follow_the_update() -> None:
    """InternEvo's `step` waits for all of them: the step takes as long as one without broadcasts, and then their
    time; beside the forward pass they take no longer than that, and no less than none."""
    one = setting("internevo", group=8)
    spread_s = float(chunks_with_traffic(one)[0].spread_s)
    free = replace(strategies.get("internevo", "mixed"), modes={}, reduction=Reduction.ALL_REDUCE)  # nothing to spread
    without = replace(one, plan=replace(one.plan, sharding=free))
    update_s = [float(optimizer_s(of, [chunks_with_traffic(of)[0].whole])) for of in (one, without)]
    least_s = analytic_step(without, 64).step_time_s - update_s[1] + update_s[0]
    times_s = [analytic_step(of, 64).step_time_s for of in (one, overlapped(one))]
    assert times_s[0] == pytest.approx(least_s + spread_s)
    assert least_s < times_s[1] < times_s[0]
    program = lower(one, 64).program
    assert static.play(program).makespan_s == pytest.approx(times_s[0], rel=0.01)
    assert [program.label[task] for task in program.tasks_of(0)][-2:] == ["optimizer", "spread parameters"]


def test_broadcasts_cost_more_with_every_owner_and_a_gather_hardly() -> None:
    """The volume is the same; the latency of N chains of N hops is not."""
    def spread_s(name: str, ranks: int) -> float:
        flows = chunks_with_traffic(setting(name, gpus=ranks, group=ranks))[0].traffic
        return float(sum(flow.step_gather_s + flow.step_spread_s for flow in flows))
    grown = {name: spread_s(name, 512) - spread_s(name, 64) for name in ("internevo", "zero-1-hybrid")}
    assert grown["internevo"] > 3 * max(grown["zero-1-hybrid"], 0.0)
    assert grown["internevo"] > 0.1


def test_internevo_sums_gradients_over_all_ranks_at_once() -> None:
    sums = [one for one in communications(strategies.get("internevo"), PSI, DEGREES) if one.state is State.GRADIENTS]
    assert [(one.collective, one.axes, one.per) for one in sums] == [(Collective.ALL_REDUCE, ALL, Span.STEP)]
    held = resident_bytes(strategies.get("internevo"), PSI, DEGREES)
    assert sum(held.values()) == pytest.approx(PSI * (4 + 12 / MEMBERS))


def test_isp_gathers_into_two_pools() -> None:
    """isp.py: two blocks of weights, whatever the number of layers or ranks."""
    assert transient_bytes(strategies.get("internevo-isp"), 1e6, 2, DEGREES)[State.PARAMETERS] == 2 * 2e6
    held = resident_bytes(strategies.get("internevo-isp"), PSI, DEGREES)
    assert sum(held.values()) == pytest.approx(PSI * (4 / MEMBERS + 12 / (MEMBERS * NODES)))


@pytest.mark.parametrize(("name", "per"), [("hsdp", 16), ("mics", 1)])
def test_hybrid_sharding_is_the_table(name: str, per: int) -> None:
    """systems_training.md 1.3: 16/g bytes; 3 inside the group, an all-reduce of P/g across: every one of 16
    micro-batches, or once a step where gradients accumulate."""
    listed = communications(strategies.get(name, "mixed"), PSI, DEGREES, micro_batches=16)
    held = resident_bytes(strategies.get(name, "mixed"), PSI, DEGREES)
    assert sum(held.values()) == pytest.approx(16 * PSI / MEMBERS)
    inside = sum(one.sent_bytes_per_step for one in listed if one.axes == (Axis.SHARD,))
    across = sum(one.sent_bytes_per_step for one in listed if one.axes == ACROSS)
    assert inside == pytest.approx(16 * 3 * 2 * PSI * (MEMBERS - 1) / MEMBERS)
    assert across == pytest.approx(per * 2 * 2 * PSI / MEMBERS * (NODES - 1) / NODES)


def test_an_optimizer_streamed_from_the_host_pays_the_link() -> None:
    """12 bytes a weight come down and go back, both ways at once; the device's memory is faster and hides."""
    zero = strategies.get("zero-1", "mixed")
    modes = {**zero.modes, State.OPTIMIZER: {**zero.modes[State.OPTIMIZER], Axis.MEMORY: Mode.OFFLOADED}}
    streamed, resident = setting(replace(zero, modes=modes)), setting(zero)
    units = [chunk.whole for chunk in chunks_with_traffic(streamed)]
    link = streamed.cluster.accelerator.host_link
    assert link is not None
    expected_s = 12 * count(MODEL) / 32 / link.bandwidth_bytes_per_s
    assert optimizer_s(streamed, units) == pytest.approx(expected_s)
    assert optimizer_s(streamed, units) > optimizer_s(resident, units)
    by_host = replace(streamed, plan=replace(streamed.plan, sharding=replace(zero, modes=modes, host_update=True)))
    assert optimizer_s(by_host, units) != pytest.approx(expected_s)


def test_a_stack_names_its_collectives() -> None:
    """HO-Ring has fewer hops than the flat ring, so that a gather over all ranks is never slower."""
    flat, two = (setting("zero-3", gpus=256, collectives=name) for name in ("nccl", "ho-ring"))
    times = [sum(f.forward_gather_s for f in chunks_with_traffic(one)[0].traffic) for one in (flat, two)]
    assert times[1] < times[0]


def test_arrays_of_groups_cost_what_each_costs() -> None:
    groups = np.array([4, 8, 16])
    for name in ("zero++", "internevo", "internevo-isp", "hsdp"):
        def flows(group: object, name: str = name) -> np.ndarray:
            one = setting(name)
            traffic = chunks_with_traffic(replace(one, plan=replace(one.plan, shard_group=group)))[0].traffic
            parts = ("forward_gather_s", "backward_gather_s", "step_gather_s", "backward_reduce_s", "step_reduce_s",
                     "step_spread_s")
            sums = [sum(getattr(flow, part) for flow in traffic) for part in parts]
            return np.array([np.broadcast_to(one, np.shape(group)) for one in sums])
        each = np.stack([flows(int(group)) for group in groups], axis=-1)
        np.testing.assert_allclose(flows(groups), each, rtol=1e-12)
