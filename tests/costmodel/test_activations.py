"""Saved activation bytes against the published closed forms of Korthikanti et al. (arXiv 2205.05198)."""

import numpy as np
import pytest

from costmodel.activations import head_bytes, layer_bytes
from costmodel.architecture import Attention, FeedForward, Layer, Model
from costmodel.huggingface import catalog_model
from costmodel.operators import Shard


def gpt(hidden=12288, heads=96, vocabulary=51200, layers=96):
    attention = Attention("gqa", heads, heads, hidden // heads, hidden // heads)
    layer = Layer(attention, FeedForward(4 * hidden, gated=False))
    return Model("gpt", hidden, vocabulary, (layer,) * layers, True, norm="layer", positions=2048, dropout=True)


@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_gpt_layer_keeps_34_sbh(tensor, sequence_parallel):
    """34 sbh + 5 a s^2 b in all; equation 2 (tensor parallel) 10 + 24/t + 5as/ht; equation 4 (with sequence
    parallelism) everything over t."""
    model = gpt()
    s, b, h, a = 2048, 4, 12288, 96
    shard = Shard(b, s, tensor, sequence_parallel)
    statistics = 4 * a * s * b / tensor  # flash attention's row statistics, not in the paper
    found = layer_bytes(model, model.layers[0], shard, "fused", "flash-2") - statistics
    outside = 10 / (tensor if sequence_parallel else 1)
    assert found == pytest.approx(s * b * h * (outside + 24 / tensor), rel=1e-12)
    unfused = layer_bytes(model, model.layers[0], shard, "fused", "unfused")
    assert unfused == pytest.approx(s * b * h * (outside + 24 / tensor + 5 * a * s / (h * tensor)), rel=1e-12)


def test_selective_recompute_drops_the_scores_and_full_keeps_the_input():
    model, shard = gpt(), Shard(1, 2048, 8, True)
    layer = model.layers[0]
    none = layer_bytes(model, layer, shard, "fused", "unfused")
    selective = layer_bytes(model, layer, shard, "fused", "unfused", "selective")
    full = layer_bytes(model, layer, shard, "fused", "unfused", "full")
    assert none - selective == pytest.approx(5 * 96 * 2048 * 2048 / 8)
    assert full == 2 * 12288 * 2048 / 8
    assert full < selective < none


def test_compiled_keeps_less_than_fused_and_eager_more():
    for name in ("llama-3.1-8b", "mixtral-8x7b", "deepseek-v3", "gpt2"):
        model = catalog_model(name)
        kept = [
            layer_bytes(model, model.layers[-1], Shard(1, 4096), execution, "flash-2")
            for execution in ("compiled", "fused", "eager")
        ]
        assert kept == sorted(kept), name
        assert kept[0] < kept[1], name


def test_megatron_table_for_swiglu():
    """memory_notes A3 summed by hand for Llama 3.1 8B, one token, no parallelism, flash attention."""
    model = catalog_model("llama-3.1-8b")
    h, f, a, q, k = 4096, 14336, 32, 4096, 1024
    by_hand = 4 * h + 2 * (q + 2 * k) + 2 * (q + k) + 2 * q + 4 * a + 4 * h + 6 * f
    assert layer_bytes(model, model.layers[0], Shard(1, 1), "fused", "cudnn") == by_hand


def test_logits_are_three_copies_when_not_compiled():
    model = catalog_model("llama-3.1-8b")
    shard = Shard(1, 4096, 2)
    logits = 2 * 4096 * 128256 / 2
    norm = 4 * 4096 * 4096
    assert head_bytes(model, shard, "fused") == 3 * logits + norm
    assert head_bytes(model, shard, "compiled") == logits + norm


def test_arrays_equal_scalars():
    model = catalog_model("qwen3-30b-a3b")
    tensor = np.array([1, 2, 4])
    many = layer_bytes(model, model.layers[0], Shard(2, 4096, tensor, tensor > 1, expert=4), "fused", "flash-3")
    for index, t in enumerate([1, 2, 4]):
        one = layer_bytes(model, model.layers[0], Shard(2, 4096, t, t > 1, expert=4), "fused", "flash-3")
        assert many[index] == pytest.approx(float(one), rel=1e-14)
