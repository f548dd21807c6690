"""FLOPs and bytes of operators against parameter counts, closed forms and published conventions."""

import numpy as np
import pytest

from costmodel import parameters
from costmodel.huggingface import catalog_model
from costmodel.operators import (
    Shard,
    attended_pairs,
    embedding_operators,
    head_operators,
    layer_operators,
    model_flops_per_token,
)

DENSE = ["llama-3.1-8b", "llama-2-7b", "gpt2", "qwen3-8b", "gemma-2-9b", "opt-125m", "falcon-7b"]
MIXTURES = ["mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b"]


def products(model, sequence):
    """Forward FLOPs of matrix products a token, summed over operators."""
    shard = Shard(batch=1, sequence=sequence)
    operators = [op for layer in model.layers for op in layer_operators(model, layer, shard)]
    operators += [*embedding_operators(model, shard), *head_operators(model, shard)]
    return sum(op.forward_flops for op in operators if op.category == "gemm") / sequence


@pytest.mark.parametrize("name", DENSE + MIXTURES)
def test_products_cost_two_flops_a_parameter(name):
    model = catalog_model(name)
    assert products(model, 4096) == pytest.approx(2 * parameters.matmul_parameters_per_token(model), rel=1e-9)


def test_model_flops_follow_the_published_conventions():
    """6N + 6 L h s (causal half) for Llama 3.1 405B: 2.46 PFLOP a 1,000 tokens at 8,192 tokens."""
    model = catalog_model("llama-3.1-405b")
    n = parameters.matmul_parameters_per_token(model)
    assert model_flops_per_token(model, 8192) == pytest.approx(6 * n + 6 * 126 * 16384 * 8192, rel=1e-12)


def test_gpt3_flops_agree_with_megatron_formula():
    """Narayanan et al. (arXiv 2104.04473, eq. 2) without recompute, full attention: 72 B s l h^2 (1 + s/6h + V/12lh).

    Ours counts the causal half of attention, so half of the s/6h term.
    """
    model = catalog_model("gpt3-175b")
    layers, h, s, v = 96, 12288, 2048, model.vocabulary
    formula = 72 * layers * h * h * (1 + s / (12 * h) + v / (12 * layers * h))
    assert model_flops_per_token(model, s) == pytest.approx(formula, rel=1e-9)


def test_window_limits_pairs():
    brute = sum(min(i, 128) for i in range(1, 1025))
    assert attended_pairs(1024, 128) == pytest.approx(brute, rel=0.01)
    assert attended_pairs(64, 128) == attended_pairs(64, None)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "mixtral-8x7b"])
def test_shards_add_up_to_the_whole(name):
    """Tensor and context ranks share the work of a layer without repeating it (kv heads not replicated)."""
    model = catalog_model(name)
    layer = model.layers[-1]
    whole = layer_operators(model, layer, Shard(batch=2, sequence=8192))
    parts = layer_operators(
        model, layer, Shard(batch=2, sequence=8192, tensor=4, context=2, expert=2, expert_tensor=1)
    )
    shared = ("query_down", "key_value_down")  # MLA's compression is on every tensor rank
    for one, part in zip(whole, parts, strict=True):
        if one.name not in shared:
            assert part.forward_flops * 8 == pytest.approx(one.forward_flops, rel=1e-12), one.name


def test_backward_is_twice_forward_and_attention_two_and_a_half():
    model = catalog_model("llama-3.1-8b")
    for operator in layer_operators(model, model.layers[0], Shard(batch=1, sequence=4096)):
        if operator.category == "gemm":
            assert operator.backward_flops + operator.weight_flops == 2 * operator.forward_flops
        if operator.category == "attention":
            assert operator.backward_flops == 2.5 * operator.forward_flops


def test_arrays_equal_scalars():
    model = catalog_model("mixtral-8x7b")
    tensor, batch = np.array([1, 2, 4, 8]), np.array([1, 2, 1, 4])
    many = layer_operators(model, model.layers[0], Shard(batch, 4096, tensor, tensor > 1, expert=8))
    for index in range(4):
        shard = Shard(int(batch[index]), 4096, int(tensor[index]), bool(tensor[index] > 1), expert=8)
        for array, scalar in zip(many, layer_operators(model, model.layers[0], shard), strict=True):
            for field in ("forward_flops", "forward_bytes", "backward_bytes"):
                value = np.broadcast_to(getattr(array, field), 4)[index]
                assert value == pytest.approx(float(getattr(scalar, field)), rel=1e-14)
