"""Techniques in a step: resident bytes, traffic of the optimizer, communication, both fidelities, arrays of plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from costmodel.product_keys import MemoryLayers, with_memory
from costmodel.stack import Stack
from costmodel.techniques.compact import CompAct
from costmodel.techniques.frugal import Frugal
from costmodel.techniques.lora import Lora
from costmodel.techniques.mixlora import MixLora
from costmodel.techniques.mixture_of_channels import MixtureOfChannels
from placement.memory import resident_bytes
from placement.passes import lookup_communication
from placement.state_traffic import chunks_with_traffic, optimizer_s, unit_traffic
from placement.step import analytic_step
from placement.units import chunk_units, merged
from simulator.engine import static
from simulator.training import lower
from tests.training_cases import setting

CHANGES = {"frugal": Frugal(), "svd": Frugal(variant="svd"), "compact": CompAct(), "channels": MixtureOfChannels(),
           "lora": Lora(), "mixlora": MixLora()}


def case(*changes, **plan):
    return setting(data=8, layers=4, techniques=tuple(changes), **{"sharding": "zero-1", **plan})


def with_values(expert, **plan):
    plain = setting(layers=4, nodes=2, data=16, expert=expert, **{"sharding": "zero-1", **plan})
    return replace(plain, model=with_memory(plain.model, MemoryLayers((1, 3), keys=512)))


def whole(of):
    return merged([merged(units) for units in chunk_units(of)])


def states(of):
    return resident_bytes(of, [whole(of)])


@pytest.mark.parametrize(("preset", "master"), [("megatron", 4), ("fp32", 0), ("bf16", 0)])
@pytest.mark.parametrize("density", [0.0, 0.25, 0.5, 1.0])
def test_moments_of_a_share_are_held(preset, master, density):
    """8 rho bytes a linear weight (4 rho where all is 16 bits wide); masters and all other weights as before."""
    plain, thin = (case(*changes, sharding="ddp", state_bytes=preset) for changes in ((), (Frugal(density=density),)))
    moments = 4 if preset == "bf16" else 8
    linear = 4 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336)
    count = whole(plain).dense_parameters
    assert states(plain)["optimizer"] == (moments + master) * count
    assert states(thin)["optimizer"] == pytest.approx((moments + master) * count - (1 - density) * moments * linear)
    for state in ("parameters", "gradients"):
        assert states(thin)[state] == states(plain)[state]


def test_the_optimizer_moves_fewer_bytes_without_moments():
    plain, thin = case(sharding="ddp"), case(Frugal(density=0.0), sharding="ddp")
    linear = 4 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336)
    saved_s = optimizer_s(plain, [whole(plain)]) - optimizer_s(thin, [whole(thin)])
    assert saved_s == pytest.approx(plain.pricer.memory_s(16.0 * linear))
    shared = case(Frugal(density=0.0))  # over 8 ranks
    assert optimizer_s(shared, [whole(shared)]) == pytest.approx(optimizer_s(thin, [whole(thin)]) / 8)


def test_decompositions_cost_time_and_no_memory():
    seldom, often = (case(Frugal(variant="svd", update_gap=gap)) for gap in (200, 20))
    none = case(Frugal())
    times = [optimizer_s(one, [whole(one)]) for one in (none, seldom, often)]
    assert times[2] - times[0] == pytest.approx(10 * (times[1] - times[0]))
    assert states(none) == states(seldom)


def test_projected_gradients_are_held_and_reduced_at_their_rank():
    plain, low = (case(*changes, sharding="ddp") for changes in ((), (CompAct(rank=0.25),)))
    linear = 4 * (4096 * (4096 + 2 * 1024 + 4096) + 3 * 4096 * 14336)
    spared = 0.75 * linear
    count = whole(plain).dense_parameters
    assert states(low)["gradients"] == pytest.approx(4 * (count - spared))
    assert states(low)["optimizer"] == pytest.approx(12 * count - 8 * spared)
    layer = [chunk_units(one)[0][1] for one in (plain, low)]
    reduced = [unit_traffic(one, unit).step_reduce_s for one, unit in zip((plain, low), layer, strict=True)]
    assert reduced[1] < 0.5 * reduced[0]


def test_lora_by_either_key_is_the_same():
    found = [analytic_step(one, 16) for one in (case(Lora(rank=16)), case(trainable="lora"))]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", CHANGES)
def test_both_fidelities_agree(name):
    """No pipeline and nothing hidden: the played step is the closed form to rounding, in time and in bytes."""
    one = replace(case(CHANGES[name]), stack=Stack("eager", "flash-2", ()))
    step, played = analytic_step(one, 16), static.play(lower(one, 16).program)
    assert played.makespan_s == pytest.approx(step.step_time_s, rel=1e-9)
    assert played.peak(0, "hbm")[0] == pytest.approx(step.peak_bytes[0], rel=1e-9)


@pytest.mark.parametrize("recompute", ["none", "pointwise", "selective", "full"])
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "mixlora"])
def test_no_technique_needs_more_memory_than_none(name, recompute):
    """Eager modules, one rank's view; MixLoRA's experts keep k times an MLP's inner tensors, and are left out."""
    plain, changed = (replace(case(*changes, recompute=recompute), stack=Stack("eager", "flash-2", ()))
                      for changes in ((), (CHANGES[name],)))
    assert analytic_step(changed, 16).peak_bytes[0] <= analytic_step(plain, 16).peak_bytes[0] * (1 + 1e-12)


@pytest.mark.parametrize("name", CHANGES)
def test_arrays_of_plans_equal_single_plans(name):
    tensor, batch = np.array([1, 2, 4]), np.array([1, 2, 1])

    def unit(tensor, batch):
        of = case(CHANGES[name], tensor=tensor, micro_batch=batch, sequence_parallel=np.asarray(tensor) > 1)
        return of, chunk_units(of)[0][1]

    many_of, many = unit(tensor, batch)
    for index in range(3):
        of, one = unit(int(tensor[index]), int(batch[index]))
        for found, expected in (
            (many.saved_bytes, one.saved_bytes), (many.spared_dense.moments, one.spared_dense.moments),
            (many.trainable_dense, one.trainable_dense), (many.update_s, one.update_s),
            (optimizer_s(many_of, [many]), optimizer_s(of, [one])),
            (sum(many.price.forward.values()), sum(one.price.forward.values())),
            (sum(many.price.backward.values()), sum(one.price.backward.values())),
        ):
            assert np.broadcast_to(found, 3)[index] == pytest.approx(float(expected), rel=1e-9)


def test_techniques_add_up():
    """Moments spared by one and tensors dropped by another do not touch."""
    plain, both = case(), case(Frugal(), MixtureOfChannels())
    each = [whole(case(one)) for one in (Frugal(), MixtureOfChannels())]
    assert whole(both).spared_dense == each[0].spared_dense
    assert whole(both).saved_bytes == each[1].saved_bytes < whole(plain).saved_bytes


def test_values_are_held_by_columns_and_replicated_over_the_other_ranks():
    values, count = 512**2 * 4096, whole(with_values(1)).dense_parameters
    for expert in (1, 4, 8):
        unit = whole(with_values(expert))
        assert unit.expert_parameters == values / expert
        held = states(with_values(expert))
        assert held["parameters"] == pytest.approx(2 * (count + values / expert))
        assert held["optimizer"] == pytest.approx(12 * (count / 16 + values / expert / (16 / expert)))


def test_a_lookup_talks_only_where_values_are_spread():
    layer = with_values(1).model.layers[1]
    assert sum(lookup_communication(with_values(1), layer)) == 0.0
    inside, across = (sum(lookup_communication(with_values(expert), layer)) for expert in (8, 16))
    assert 0.0 < inside < across  # 16 ranks lie on two nodes
    assert lookup_communication(with_values(8), with_values(8).model.layers[0]) == (0.0, 0.0)


def test_memory_layers_play_as_the_closed_form_says():
    one = replace(with_values(8), stack=Stack("eager", "flash-2", ()))
    step, played = analytic_step(one, 32), static.play(lower(one, 32).program)
    assert played.makespan_s == pytest.approx(step.step_time_s, rel=1e-9)
    assert step.breakdown_s["expert_communication"] > 0
    assert len({id(unit) for chunk in chunks_with_traffic(one) for unit in chunk.layers}) == 4
