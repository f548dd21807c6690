"""Techniques: bytes kept against a NumPy implementation and published closed forms, FLOPs, states, parameters."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel import parameters, product_keys, techniques
from costmodel.activations import total_bytes
from costmodel.architecture import Attention, FeedForward, Layer, Model, ProductKeys
from costmodel.huggingface import catalog_model
from costmodel.operators import Shard
from costmodel.product_keys import MemoryLayerError, MemoryLayers, with_memory
from costmodel.techniques.compact import CompAct
from costmodel.techniques.frugal import Frugal
from costmodel.techniques.lora import Lora, adapter_parameters
from costmodel.techniques.mixlora import MixLora
from costmodel.techniques.mixture_of_channels import MixtureOfChannels
from costmodel.work import Case, layer_work
from tests.costmodel import numpy_mlp

H, F, TOKENS = 12, 40, 6


def decoder(hidden=H, width=F, heads=2, layers=2):
    layer = Layer(Attention("gqa", heads, heads, hidden // heads, hidden // heads), FeedForward(width, True))
    return Model("tiny", hidden, 100, (layer,) * layers, False)


def work_of(model, changes=(), shard=None, recompute="none", execution="eager", kernel="flash-2"):
    case = Case(model, model.layers[0], shard or Shard(1, TOKENS), recompute)
    return techniques.changed(layer_work(case, execution, kernel), tuple(changes), case)


def operator(work, name):
    return next(one for one in work.operators if one.name == name)


def mlp_bytes(work):
    """Kept by the MLP alone: its inner tensors and the input of its up projection."""
    return total_bytes(tuple(one for one in work.kept if one.part == "feed_forward" or one.feeds == "feed_forward"))


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(7)
    shapes = ((TOKENS, H), (H, F), (H, F), (F, H))
    return [rng.normal(size=shape) for shape in shapes]


@pytest.mark.parametrize(("channels", "rebuild"), [(None, False), (8, False), (8, True), (40, False)])
def test_a_numpy_mlp_keeps_what_is_predicted_and_needs_no_more(weights, channels, rebuild):
    x, up, gate, down = weights
    output, saved = numpy_mlp.forward(x, up, gate, down, channels, rebuild)
    changes = () if channels is None else (MixtureOfChannels(keep=channels / F, rebuild=rebuild),)
    assert mlp_bytes(work_of(decoder(), changes)) == pytest.approx(numpy_mlp.kept_bytes(saved), rel=1e-12)
    dy = np.random.default_rng(8).normal(size=output.shape)
    gradients = numpy_mlp.backward(saved, up, gate, down, dy)
    for place, gradient in zip((1, 2, 3, 0), gradients, strict=True):
        moved = [array.copy() for array in weights]
        moved[place][1, 2] += 1e-6
        slope = ((numpy_mlp.forward(*moved, channels)[0] - output) * dy).sum() / 1e-6
        assert gradient[1, 2] == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_a_projected_input_is_enough_for_an_unbiased_gradient_and_is_what_is_kept(weights):
    """(x P)^T dY of many draws of P averages to x^T dY (E[P P^T] = 1), and x P is all that was kept for it."""
    x, up, *_ = weights
    dy, rng, rank, total = np.random.default_rng(9).normal(size=(TOKENS, F)), np.random.default_rng(3), 3, 0.0
    for _ in range(4000):
        projection = rng.normal(size=(H, rank)) / np.sqrt(rank)
        total = total + projection @ ((x @ projection).T @ dy) / 4000
    assert np.abs(total - x.T @ dy).max() < 0.3 * np.abs(x.T @ dy).max()
    work = work_of(decoder(), (CompAct(rank=rank),))
    kept = next(one.size_bytes for one in work.kept if one.name == "projected_inputs")
    assert kept == numpy_mlp.BYTES * 4 * (x @ projection).size  # query-key-value, output, up and gate, down
    assert work.dense.gradients < up.size


@pytest.mark.parametrize(("rebuild", "elements"), [(False, 1.0), (True, 0.6)])
def test_channels_keep_the_published_closed_form(rebuild, elements):
    """b s f + b s d in place of 4 b s f + b s d, 0.6 b s f + b s d with recomputation (systems_training 11.1)."""
    model = decoder(2048, 5461 * 5, 32)  # a width of which 20 % is a whole number
    shard = Shard(4, 256)
    f, tokens = 5461 * 5, 4 * 256
    assert mlp_bytes(work_of(model, (), shard)) == pytest.approx(2 * tokens * (4 * f + 2048), rel=1e-12)
    sparse = mlp_bytes(work_of(model, (MixtureOfChannels(rebuild=rebuild),), shard))
    assert sparse == pytest.approx(2 * tokens * (elements * f + 2048), rel=1e-12)


def test_channels_leave_products_and_states_alone():
    plain, sparse = work_of(decoder()), work_of(decoder(), (MixtureOfChannels(),))
    assert [one for one in plain.operators if one.category == "gemm"] == [
        one for one in sparse.operators if one.category == "gemm"]
    assert (plain.dense, plain.sparse) == (sparse.dense, sparse.sparse)
    assert sum(one.forward_bytes for one in sparse.operators) > sum(one.forward_bytes for one in plain.operators)


def test_kept_bytes_fall_with_fewer_channels_and_with_lower_rank():
    for make in (lambda share: MixtureOfChannels(keep=share), lambda share: CompAct(rank=share)):
        sizes = [total_bytes(work_of(decoder(), (make(share),)).kept) for share in (0.1, 0.3, 0.5, 0.9)]
        assert sizes == sorted(sizes)
        assert sizes[0] < total_bytes(work_of(decoder()).kept)


@pytest.mark.parametrize("kernel", ["flash-2", "unfused"])
def test_projected_inputs_by_hand(kernel):
    """Norm outputs, the product and (unfused) the attention output go; four inputs of rank r come."""
    model, rank = decoder(), 3
    plain, less = (total_bytes(work_of(model, changes, kernel=kernel).kept) for changes in ((), (CompAct(rank=rank),)))
    gone = 2 * H + F + (H if kernel == "unfused" else 0)
    assert plain - less == pytest.approx(2 * TOKENS * (gone - 4 * rank))
    full = [total_bytes(work_of(model, changes, recompute="full").kept) for changes in ((), (CompAct(rank=rank),))]
    assert full[0] == full[1] == 2 * TOKENS * H


def test_projected_inputs_cost_their_products_and_shrink_gradients_and_moments():
    """+ 2 t n r forward and 2 t r m in place of 2 t n m for the gradient; n m -> r m of states (section 11)."""
    model = decoder()
    plain, less = work_of(model), work_of(model, (CompAct(rank=0.25),))
    shapes = [(H, 3 * H), (H, H), (H, 2 * F), (F, H)]
    forward = sum(one.forward_flops for one in less.operators) - sum(one.forward_flops for one in plain.operators)
    assert forward == pytest.approx(sum(2 * TOKENS * n * n / 4 for n, _ in shapes))
    gradients = sum(one.weight_flops for one in less.operators)
    assert gradients == pytest.approx(sum(2 * TOKENS * (n / 4) * m for n, m in shapes))
    inputs = [sum(one.backward_flops for one in work.operators) for work in (plain, less)]
    assert inputs[0] == pytest.approx(inputs[1])
    matrices = sum(n * m for n, m in shapes)
    assert plain.dense.linear == matrices
    assert less.dense.held == less.dense.trainable == plain.dense.held
    assert less.dense.gradients == less.dense.moments == pytest.approx(plain.dense.held - 0.75 * matrices)
    assert sum(one.forward_flops for one in less.update) == pytest.approx(sum(2 * n * m * n / 4 for n, m in shapes))


def test_a_projection_of_full_rank_spares_no_state():
    work = work_of(decoder(), (CompAct(rank=10_000),))
    assert work.dense.gradients == pytest.approx(work.dense.held)


@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
def test_moments_lie_on_a_share_of_the_linear_layers(density):
    for model in (decoder(), catalog_model("mixtral-8x7b")):
        plain, less = (work_of(model, changes) for changes in ((), (Frugal(density=density),)))
        for one, thin in ((plain.dense, less.dense), (plain.sparse, less.sparse)):
            assert thin.moments == pytest.approx(one.held - (1 - density) * one.linear)
            assert thin.gradients == thin.trainable == one.held


def test_linear_weights_are_all_but_norms_biases_and_router():
    model = catalog_model("mixtral-8x7b")
    work, layer, h = work_of(model), model.layers[0], model.hidden
    assert work.sparse.linear == parameters.routed_expert_parameters(layer.feed_forward, h)
    assert work.dense.held - work.dense.linear == parameters.router_parameters(layer.feed_forward, h) + 2 * h


def test_moments_of_projected_gradients_are_thinned_once_more():
    """In either order: rho r/n of the linear layers' moments, r/n of their gradients."""
    plain, both = work_of(decoder()), ((Frugal(0.25), CompAct(rank=0.5)), (CompAct(rank=0.5), Frugal(0.25)))
    for changes in both:
        dense = work_of(decoder(), changes).dense
        others = plain.dense.held - plain.dense.linear
        assert dense.moments == pytest.approx(others + 0.25 * 0.5 * plain.dense.linear)
        assert dense.gradients == pytest.approx(others + 0.5 * plain.dense.linear)


def test_singular_values_are_spread_over_the_gap():
    often, seldom = (work_of(decoder(), (Frugal(variant="svd", update_gap=gap),)).update_flops for gap in (10, 200))
    assert often == pytest.approx(20 * seldom)
    shapes = [(H, 3 * H), (H, H), (H, 2 * F), (H, F)]
    assert often * 10 == sum(6 * long * short**2 + 20 * short**3 for short, long in shapes)
    assert work_of(decoder(), (Frugal(variant="randk"),)).update_flops == 0


def test_adapters_train_and_the_frozen_model_keeps_no_inputs():
    model, rank = decoder(), 3
    plain, less = work_of(model), work_of(model, (Lora(rank),))
    adapters = rank * ((H + 3 * H) + (H + H))
    assert adapter_parameters(model.layers[0].attention, H, rank) == adapters
    assert less.dense.trainable == less.dense.moments == adapters
    assert less.dense.held == plain.dense.held + adapters
    assert sum(one.weight_flops for one in less.operators) == 2 * TOKENS * adapters
    # the second norm's output and the product fed frozen layers alone; two r-wide vectors came
    assert total_bytes(plain.kept) - total_bytes(less.kept) == 2 * TOKENS * (H + F - 2 * rank)


@pytest.mark.parametrize("visits", [1, 2, 4])
def test_shared_products_of_lora_experts(visits):
    """(2 h f + k h f) : 3 k h f (systems_training, section 11), 0.67 at k = 2; trained weights of E experts."""
    model = decoder()
    shared, apart = (work_of(model, (MixLora(8, visits, 2, share),)) for share in (True, False))
    flops = [sum(operator(work, name).forward_flops for name in ("mlp_up", "mlp_down")) for work in (shared, apart)]
    assert flops[0] / flops[1] == pytest.approx((2 + visits) / (3 * visits))
    assert flops[1] == visits * 3 * 2 * TOKENS * H * F
    attention = adapter_parameters(model.layers[0].attention, H, 2)
    assert shared.dense.trainable == attention + 8 * (3 * 2 * (H + F) + H)
    assert total_bytes(shared.kept) == total_bytes(apart.kept)
    weights = sum(one.weight_flops for one in shared.operators) / (2 * TOKENS)
    assert weights == pytest.approx(attention + 8 * H + visits * 3 * 2 * (H + F))  # of adapters and the router alone


@pytest.mark.parametrize(("changes", "told"), [
    ((MixtureOfChannels(),), "dense gated MLP"), ((MixLora(),), "dense gated MLP"),
    ((Lora(), MixLora()), "keep one of them"), ((MixtureOfChannels(), MixLora()), "MLP of their own"),
    ((MixLora(experts=2, experts_per_token=3),), "cannot visit"),
])
def test_what_a_model_or_another_technique_rules_out(changes, told):
    found = [message for _, message in techniques.problems(changes, catalog_model("mixtral-8x7b"))]
    assert any(told in message for message in found)
    assert list(techniques.problems((CompAct(), Frugal(), MixtureOfChannels()), decoder())) == []


@pytest.mark.parametrize("change", [CompAct(), Frugal(), Frugal(density=0.5, variant="svd")])
def test_what_freezes_comes_first(change):
    """A layer whose weights are frozen has nothing left to compress or to update, in whichever order it is asked."""
    model = decoder()
    frozen, before, after = (work_of(model, changes) for changes in ((Lora(),), (change, Lora()), (Lora(), change)))
    assert before == after
    if isinstance(change, CompAct):  # adapters stay as they are
        assert before.operators == frozen.operators
        assert before.update == ()


def test_only_trained_weights_are_decomposed():
    """Adapters of rank 1 on 12 -> 36 and 12 -> 12: 6 n + 20 FLOPs for each of n = 12, 36, 12, 12."""
    work = work_of(decoder(), (Frugal(variant="svd", update_gap=1), Lora(rank=1)))
    assert work.update_flops == 6 * (12 + 36 + 12 + 12) + 4 * 20


@pytest.mark.parametrize("change", [CompAct(), Frugal(variant="svd"), MixtureOfChannels(), Lora(), MixLora()],
                         ids=lambda one: type(one).__name__)
def test_arrays_equal_scalars(change):
    model = catalog_model("llama-3.1-8b")
    tensor, batch = np.array([1, 2, 4]), np.array([1, 3, 2])
    many = work_of(model, (change,), Shard(batch, 1024, tensor, tensor > 1))
    for index in range(3):
        one = work_of(model, (change,), Shard(int(batch[index]), 1024, int(tensor[index]), bool(tensor[index] > 1)))
        for found, expected in (
            (total_bytes(many.kept), total_bytes(one.kept)), (many.dense.moments, one.dense.moments),
            (many.dense.held, one.dense.held), (many.update_flops, one.update_flops),
            (sum(each.forward_flops for each in many.operators), sum(each.forward_flops for each in one.operators)),
        ):
            assert np.broadcast_to(found, 3)[index] == pytest.approx(float(expected), rel=1e-12)


# Memory layers ---------------------------------------------------------------------------------------


def test_parameters_of_memory_layers_by_hand():
    """Shapes of the authors' module: query d x h k with bias, keys 2 h n x k/2, gate and output d x d with bias."""
    plain = catalog_model("llama-3.1-8b")
    model, d = with_memory(plain, MemoryLayers((4, 12, 20))), 4096
    dense = d * 4 * 512 + 4 * 512 + 2 * 4 * 1024 * 256 + 2 * (d * d + d)
    mlp = 3 * d * 14336
    assert parameters.count(model) == parameters.count(plain) + 3 * (dense - mlp) + 2**20 * d
    apart = with_memory(plain, MemoryLayers((4, 12, 20), shared=False))
    assert parameters.count(apart) == parameters.count(model) + 2 * 2**20 * d
    read = 3 * 4 * 32 * d  # a token reads 128 values in each of 3 layers
    assert parameters.active(model) == parameters.count(model) - 2**20 * d + read
    assert sum(parameters.by_component(model).values()) == parameters.count(model)
    assert 2**20 * d == pytest.approx(4.29e9, rel=2e-3)
    assert product_keys.read_bytes(ProductKeys(), d) == 2**20


def test_values_lie_on_the_expert_ranks_and_flops_do_not_grow_with_them():
    plain = decoder(64, 256, 4, 3)
    for keys in (16, 64):
        model = with_memory(plain, MemoryLayers((1, 2), keys=keys, heads=2, neighbours=4, key_width=8))
        first, second = (layer_work(Case(model, model.layers[place], Shard(1, 8, expert=4)), "fused", "flash-2")
                         for place in (1, 2))
        assert first.sparse.held == keys**2 * 64 / 4
        assert second.sparse.held == 0
        flops = sum(one.forward_flops for one in first.operators if one.name.startswith("memory"))
        assert flops == 2 * 8 * (64 * 2 * 8 + 2 * 2 * keys * 4 + 2 * 64 * 64)


def test_touched_values_against_draws():
    memory, rng = ProductKeys(keys=16, heads=2, neighbours=4, sharers=3), np.random.default_rng(1)
    drawn = np.mean([len(np.unique(rng.integers(0, 256, 10 * 2 * 4 * 3))) / 256 for _ in range(400)])
    assert product_keys.touched_share(memory, 10) == pytest.approx(drawn, rel=0.01)


@pytest.mark.parametrize(("asked", "key"), [
    (MemoryLayers((40,)), "layers"), (MemoryLayers((1, 1)), "layers"), (MemoryLayers((1,), key_width=7), "key_width"),
    (MemoryLayers((1,), keys=8), "neighbours"),
])
def test_memories_that_cannot_be(asked, key):
    with pytest.raises(MemoryLayerError) as caught:
        with_memory(catalog_model("llama-3.1-8b"), asked)
    assert caught.value.key == key


def test_other_layers_are_unchanged():
    model = decoder()
    changed = with_memory(model, MemoryLayers((0,), keys=64))
    assert changed.layers[1] == model.layers[1]
    assert changed.layers[0].attention == model.layers[0].attention
