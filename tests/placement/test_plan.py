"""How layers and batches are divided."""

import pytest

from placement.plan import Plan, PlanError, layers_of_chunks, micro_batches


def test_llama_405b_stages_are_balanced():
    """126 layers on 16 stages: the first and the last hold one fewer (arXiv 2407.21783, 3.3.2)."""
    sizes = layers_of_chunks(126, Plan(pipeline=16, virtual=4, stage_layers="balanced"))
    per_stage = [sum(sizes[stage::16]) for stage in range(16)]
    assert per_stage == [7] + [8] * 14 + [7]


@pytest.mark.parametrize("layers", [24, 32, 61, 80, 126])
@pytest.mark.parametrize("pipeline", [1, 2, 4, 8])
@pytest.mark.parametrize("how", ["even", "balanced"])
def test_every_layer_lies_in_one_chunk(layers, pipeline, how):
    sizes = layers_of_chunks(layers, Plan(pipeline=pipeline, virtual=2, stage_layers=how))
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 2


def test_given_stages_must_hold_the_model():
    assert layers_of_chunks(10, Plan(pipeline=2, stage_layers=(4, 6))) == (4, 6)
    with pytest.raises(PlanError, match=r"lists 2 chunks with 11 layers.*10 layers"):
        layers_of_chunks(10, Plan(pipeline=2, stage_layers=(5, 6)))
    with pytest.raises(PlanError, match="cannot fill"):
        layers_of_chunks(2, Plan(pipeline=4))


def test_batches_divide_or_say_why():
    assert micro_batches(Plan(data=8, micro_batch=2), 128) == 8
    with pytest.raises(PlanError, match=r"global_batch 100 .* data 8 x micro_batch 2 = 16"):
        micro_batches(Plan(data=8, micro_batch=2), 100)
