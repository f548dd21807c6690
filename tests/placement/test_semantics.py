"""Memory and communication derived from placements, against published tables and closed forms."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from placement import composition, strategies
from placement.semantics import (
    Activations,
    Collective,
    Communication,
    Phase,
    communications,
    gathered_after_update,
    gradient_steps,
    host_bytes,
    parameter_fetches,
    resident_bytes,
    ring_bytes,
    transient_bytes,
)
from placement.states import STATE_BYTES, Axis, Dim, Mode, Placement, PlacementError, Span, State

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "placement_tables.csv"
ROWS = list(csv.DictReader(GOLDEN.read_text(encoding="utf-8").splitlines()))
PUBLISHED = Path(__file__).resolve().parents[2] / ".." / "shared" / "published" / "systems_training.csv"


def everywhere(ranks: float) -> dict[Axis, float]:
    """The same degree on the axes that shard; one group where there are two levels."""
    return dict.fromkeys((Axis.DATA, Axis.SHARD, Axis.TENSOR, Axis.PIPELINE, Axis.EXPERT), ranks)


def model_state_bytes(name: str, parameters: float, ranks: float) -> float:
    return float(sum(resident_bytes(strategies.get(name, "mixed"), parameters, everywhere(ranks)).values()))


def sent_bytes(name: str, parameters: float, ranks: float) -> float:
    listed = communications(strategies.get(name, "mixed"), parameters, everywhere(ranks))
    return float(sum(one.sent_bytes_per_step for one in listed))


def derived(row: dict[str, str]) -> float:
    """The quantity of one golden row, by the derivation under test."""
    name, parameters, ranks = row["strategy"], float(row["parameters"]), int(row["ranks"])
    match row["quantity"]:
        case "model state":
            held = model_state_bytes(name, parameters, ranks)
            return held / 1e9 if row["unit"] == "GB" else held
        case "sent, large N":
            return sent_bytes(name, parameters, ranks) / (STATE_BYTES["mixed"].parameters * parameters)
        case "sent, ratio to ddp":
            return sent_bytes(name, parameters, ranks) / sent_bytes("ddp", parameters, ranks)
        case "memory, ddp over it":
            return model_state_bytes("ddp", parameters, ranks) / model_state_bytes(name, parameters, ranks)
    raise AssertionError(row["quantity"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(list(row.values())[:4]))
def test_published_tables(row: dict[str, str]) -> None:
    assert derived(row) == pytest.approx(float(row["value"]), rel=float(row["relative_tolerance"]))


def test_published_claims_of_placement_semantics() -> None:
    if not PUBLISHED.exists():
        pytest.skip("the shared published tables are not beside this checkout")
    rows = csv.DictReader(PUBLISHED.read_text(encoding="utf-8").splitlines())
    mine = [row for row in rows if row["claim_id"].startswith("PS-70B-N")]
    assert mine
    for row in mine:
        _, _, ranks, stage = row["claim_id"].split("-", 3)
        held = model_state_bytes(stage.lower(), 70e9, int(ranks[1:]))
        assert held / 1e9 == pytest.approx(float(row["system_value"]))


def test_eight_times_less_memory_holds_at_eight_ranks_only() -> None:
    ranks = np.array([2, 4, 8, 16, 64])
    ratio = model_state_bytes("ddp", 1.0, 8) / np.array([model_state_bytes("zero-3", 1.0, n) for n in ranks])
    assert ratio.tolist() == ranks.tolist()


def test_ranks_that_a_70b_run_needs() -> None:
    """1120 GB over 80 GB devices: N >= 14, and N >= 18 with 20 % kept for activations (1.4)."""
    ranks = np.arange(1, 40)
    held = sum(resident_bytes(strategies.get("zero-3", "mixed"), 70e9, {Axis.DATA: ranks}).values())
    assert ranks[held <= 80e9].min() == 14
    assert ranks[held <= 0.8 * 80e9].min() == 18


LETTERS = {"ddp": "R R R", "zero-1": "R S R", "zero-2": "R S S", "zero-3": "S* S S", "fsdp": "S* S S"}


@pytest.mark.parametrize("name", LETTERS)
def test_modes_of_the_paper(name: str) -> None:
    """(P, O, G) of table 1.3."""
    placement = strategies.get(name)
    states = (State.PARAMETERS, State.OPTIMIZER, State.GRADIENTS)
    assert " ".join(placement.mode(state, Axis.DATA).letter for state in states) == LETTERS[name]


@pytest.mark.parametrize("bytes_preset", STATE_BYTES)
def test_bytes_per_parameter_of_software_stacks(bytes_preset: str) -> None:
    """memory_notes A2: 18 for Megatron DDP, 6 + 12/N for its distributed optimizer, 16 elsewhere."""
    total = {"megatron": 18, "bf16": 8}.get(bytes_preset, 16)
    assert sum(resident_bytes(strategies.get("ddp", bytes_preset), 1, {Axis.DATA: 8}).values()) == total
    distributed = resident_bytes(strategies.get("zero-1"), 1, {Axis.DATA: 8})
    assert sum(distributed.values()) == 6 + 12 / 8


def test_torch_fsdp_keeps_a_cast_copy_beside_the_shard() -> None:
    """fp32 shards of all states, and the bf16 copy on top while it is kept."""
    held = resident_bytes(strategies.get("fsdp-no-reshard"), 1, {Axis.DATA: 8})
    assert sum(held.values()) == 2 + 16 / 8
    gather, scatter = communications(strategies.get("fsdp-no-reshard"), 1, {Axis.DATA: 8})
    assert (gather.tensor_bytes, scatter.tensor_bytes) == (2, 4)


def test_hybrid_sharding_uses_two_link_classes() -> None:
    """3 P inside the group of g; an all-reduce of P/g across groups (1.3)."""
    shard, replicate = 8, 2**30
    degrees = {Axis.SHARD: shard, Axis.REPLICATE: replicate}
    listed = communications(strategies.get("mics", "mixed"), 1.0, degrees)
    sent = {axis: sum(one.sent_bytes for one in listed if one.axis is axis) / 2 for axis in degrees}
    assert sent[Axis.SHARD] == pytest.approx(3 * 7 / 8)
    assert sent[Axis.REPLICATE] == pytest.approx(2 / shard)


def total(listed: tuple[Communication, ...], collective: Collective) -> float:
    return float(sum(one.sent_bytes_per_step for one in listed if one.collective is collective))


def test_tensor_parallel_traffic_is_the_same_with_sequence_parallelism() -> None:
    """Per layer 2 all-reduces forward and 2 backward of b s h 2 bytes; with SP the same bytes (1.3)."""
    sizes = Activations(tokens=4096, hidden=512, layers=10)
    degrees = {Axis.TENSOR: 8}
    plain = communications(strategies.get("tensor"), 1, degrees, 3, sizes)
    sequence = communications(strategies.get("tensor-sequence"), 1, degrees, 3, sizes)
    reduced = total(plain, Collective.ALL_REDUCE)
    assert reduced == 3 * 10 * 4 * 2 * 7 / 8 * 4096 * 512 * 2
    gathered, scattered = (total(sequence, c) for c in (Collective.ALL_GATHER, Collective.REDUCE_SCATTER))
    assert gathered == scattered == reduced / 2


def test_pipeline_and_expert_traffic() -> None:
    """p2p of b s h 2 bytes each way a micro-batch; 2 + 2 all-to-alls a MoE layer of k tokens h 2 bytes."""
    sizes = Activations(tokens=1024, hidden=64, moe_layers=5, experts_per_token=2)
    stage = communications(strategies.get("pipeline"), 1, {Axis.PIPELINE: 4}, 6, sizes)
    assert [(one.phase, one.sent_bytes, one.times) for one in stage] == [
        (Phase.FORWARD, 1024 * 64 * 2, 6), (Phase.BACKWARD, 1024 * 64 * 2, 6)]
    experts = communications(strategies.get("expert"), 1, {Axis.EXPERT: 4}, 1, sizes)
    assert total(experts, Collective.ALL_TO_ALL) == 5 * 4 * 3 / 4 * 2 * 1024 * 64 * 2


def test_outer_axis_sends_what_the_inner_ones_left() -> None:
    """Rule 3: the data-parallel volume of tensor x pipeline is P/(t p)."""
    placement = composition.compose("ddp", "tensor", "pipeline", bytes_preset="mixed")
    degrees = {Axis.DATA: 4, Axis.TENSOR: 8, Axis.PIPELINE: 16}
    (reduction,) = communications(placement, 1e9, degrees)
    assert reduction.sent_bytes == pytest.approx(2 * 3 / 4 * 2e9 / (8 * 16))
    assert resident_bytes(placement, 1e9, degrees)[State.OPTIMIZER] == pytest.approx(12e9 / (8 * 16))


def test_sharded_gradients_are_paid_every_micro_batch_and_whole_ones_once() -> None:
    """Rule 4."""
    times = {name: [one.times for one in communications(strategies.get(name), 1, {Axis.DATA: 4}, 16)
                    if one.state is State.GRADIENTS] for name in ("zero-1", "zero-2", "zero-3")}
    assert times == {"zero-1": [1], "zero-2": [16], "zero-3": [16]}


def test_reducing_every_micro_batch_costs_as_many_times_the_volume() -> None:
    """PyTorch's HSDP all-reduces across groups in every backward, MiCS once a step."""
    degrees = {Axis.SHARD: 8, Axis.REPLICATE: 4}
    sent = {name: total(communications(strategies.get(name, "mixed"), 1, degrees, 16), Collective.ALL_REDUCE)
            for name in ("hsdp", "mics")}
    assert sent["hsdp"] == 16 * sent["mics"] == 16 * 2 * 3 / 4 * 2 / 8


def test_weights_held_whole_on_a_tensor_axis_need_a_reduction_only_with_sequence_parallelism() -> None:
    """1.5: norms; the per-head norm of queries and keys needs one in both cases."""
    reduced = {
        (name, dim): [axes for _, axes, _ in gradient_steps(
            strategies.get(name).holding_whole(Axis.TENSOR, dim=dim))]
        for name in ("tensor", "tensor-sequence") for dim in (None, Dim.HEAD)
    }
    over = [(Axis.TENSOR,)]
    assert reduced == {("tensor", None): [], ("tensor", Dim.HEAD): over,
                       ("tensor-sequence", None): over, ("tensor-sequence", Dim.HEAD): over}


def test_a_tied_embedding_is_reduced_between_its_two_stages() -> None:
    tied = strategies.get("pipeline", "mixed").holding_whole(Axis.PIPELINE)
    (reduction,) = communications(tied, 1000, {Axis.PIPELINE: 2})
    assert (reduction.collective, reduction.sent_bytes) == (Collective.ALL_REDUCE, 2000)


def test_questions_of_the_step_lowering() -> None:
    placement = strategies.get("fsdp")
    both = ((Phase.FORWARD, Span.MICRO_BATCH), (Phase.BACKWARD, Span.MICRO_BATCH))
    assert parameter_fetches(placement) == both
    assert parameter_fetches(strategies.get("fsdp-no-reshard")) == ((Phase.FORWARD, Span.STEP),)
    assert parameter_fetches(strategies.get("zero-2")) == ()
    assert gradient_steps(placement) == ((Collective.REDUCE_SCATTER, (Axis.DATA,), Span.MICRO_BATCH),)
    assert gradient_steps(strategies.get("ddp")) == ((Collective.ALL_REDUCE, (Axis.DATA,), Span.STEP),)
    assert gathered_after_update(strategies.get("zero-1")) == (Axis.DATA,)
    assert gathered_after_update(placement) == ()


def test_offloaded_optimizer() -> None:
    """1.6 rule 6: 12 P (GPUs per node)/N on the host; 1.1: 2 |O| over the link when streamed."""
    offload = strategies.get("zero-offload")
    degrees = {Axis.DATA: 64}
    assert resident_bytes(offload, 10e9, degrees)[State.OPTIMIZER] == 0
    assert 8 * host_bytes(offload, 10e9, degrees)[State.OPTIMIZER] == 12 * 10e9 * 8 / 64
    streamed = Placement(offload.modes, offload.partition, offload.bytes)
    moved = [one for one in communications(streamed, 10e9, degrees) if one.axis is Axis.MEMORY]
    assert sum(one.sent_bytes for one in moved) == 2 * 12 * 10e9 / 64
    by_host = [one for one in communications(offload, 10e9, degrees) if one.axis is Axis.MEMORY]
    assert sum(one.sent_bytes for one in by_host) == (2 + 2) * 10e9 / 64


def test_transient_buffers() -> None:
    """k u for k prefetched units; nothing where the state rests as it is used."""
    assert transient_bytes(strategies.get("zero-3"), 1e6, 3)[State.PARAMETERS] == 3 * 2e6
    assert transient_bytes(strategies.get("zero-2"), 1e6)[State.PARAMETERS] == 0
    assert set(transient_bytes(strategies.get("ddp"), 1e6).values()) == {0}
    kept = transient_bytes(strategies.get("fsdp-no-reshard"), 1e6)
    assert (kept[State.PARAMETERS], kept[State.GRADIENTS]) == (0, 2 * 4e6)


def test_activations_are_divided_or_rebuilt() -> None:
    sequence = composition.compose("zero-1", "tensor-sequence", "context")
    degrees = {Axis.DATA: 2, Axis.TENSOR: 4, Axis.CONTEXT: 8}
    assert resident_bytes(sequence, 1, degrees, activation_bytes=64e9)[State.ACTIVATIONS] == 1e9
    rebuilt = resident_bytes(strategies.get("zero-3-recompute"), 1, degrees, activation_bytes=64e9)
    assert rebuilt[State.ACTIVATIONS] == 0


@pytest.mark.parametrize("name", strategies.names())
def test_arrays_of_degrees_equal_one_at_a_time(name: str) -> None:
    """One formula, any shape."""
    placement, ranks, counts = strategies.get(name), np.array([1, 2, 8]), np.array([[1e9], [7e9]])
    sizes = Activations(1024, 64, key_value_width=16, moe_layers=1, experts_per_token=2, stored_bytes=10)
    degrees = dict.fromkeys([a for a in Axis if a is not Axis.MEMORY], ranks)
    held = sum(resident_bytes(placement, counts, degrees).values())
    sent = sum((one.sent_bytes_per_step for one in communications(placement, counts, degrees, 2, sizes)), 0.0)
    sent = np.broadcast_to(sent, (2, 3))
    for i, j in np.ndindex(2, 3):
        single = dict.fromkeys(degrees, int(ranks[j]))
        count = float(counts[i, 0])
        assert held[i, j] == pytest.approx(sum(resident_bytes(placement, count, single).values()))
        listed = communications(placement, count, single, 2, sizes)
        assert sent[i, j] == pytest.approx(sum(one.sent_bytes_per_step for one in listed))


@pytest.mark.parametrize("name", strategies.names())
def test_one_rank_sends_nothing_over_the_network_and_more_ranks_never_hold_more(name: str) -> None:
    placement = strategies.get(name)
    sizes = Activations(1024, 64, key_value_width=16, moe_layers=1, experts_per_token=2)
    alone = [one for one in communications(placement, 1e9, {}, 2, sizes) if one.axis is not Axis.MEMORY]
    assert all(one.sent_bytes == 0 for one in alone)
    ranks = 2.0 ** np.arange(8)
    held = sum(resident_bytes(placement, 1e9, dict.fromkeys(everywhere(1), ranks)).values()) * np.ones(8)
    assert (np.diff(held) <= 0).all()


@pytest.mark.parametrize("collective", list(Collective)[:3])
def test_all_reduce_is_a_reduce_scatter_and_an_all_gather(collective: Collective) -> None:
    passes = 2 if collective is Collective.ALL_REDUCE else 1
    assert ring_bytes(collective, 12.0, np.array([1, 2, 4])).tolist() == [0, 6 * passes, 9 * passes]


@pytest.mark.parametrize(
    ("modes", "reason"),
    [
        ({State.OPTIMIZER: {Axis.DATA: Mode.OFFLOADED}}, "axis memory"),
        ({State.GRADIENTS: {Axis.DATA: Mode.SHARDED_WITH_GATHER}}, "only parameters are gathered"),
        ({State.PARAMETERS: {Axis.MEMORY: Mode.MATERIALIZED}}, "only activations can be rebuilt"),
        ({State.ACTIVATIONS: {Axis.DATA: Mode.SHARDED}}, "name the dimension"),
    ],
)
def test_meaningless_modes_are_refused(modes: dict, reason: str) -> None:
    with pytest.raises(PlacementError, match=reason):
        Placement(modes)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(PlacementError, match=r"no strategy 'zero3'; did you mean 'zero-3'\?"):
        strategies.get("zero3")
    with pytest.raises(PlacementError, match="no bytes preset 'fp4'"):
        strategies.get("ddp", "fp4")
    with pytest.raises(PlacementError, match="unknown key 'paramters'"):
        strategies.from_mapping({"paramters": {}}, "mine")
    with pytest.raises(PlacementError, match="'dat' is no axis"):
        strategies.from_mapping({"parameters": {"dat": "sharded"}}, "mine")


@pytest.mark.parametrize("name", strategies.names())
def test_every_strategy_names_its_source(name: str) -> None:
    assert "arXiv" in strategies.get(name).source or "PyTorch" in strategies.get(name).source
