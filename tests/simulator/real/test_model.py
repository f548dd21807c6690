"""The torch decoder has exactly the parameters that `costmodel.parameters` counts, and its parts make up the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from costmodel import huggingface, parameters  # noqa: E402
from costmodel.architecture import Attention, FeedForward, Layer, Model  # noqa: E402
from simulator.real.buildable import NotBuildable, plain, reasons  # noqa: E402
from simulator.real.model import Decoder, MixtureOfExperts, initialise, rows_by_rank  # noqa: E402


def tiny(norms: int = 2, experts: int = 0, **fields: object) -> Model:
    """Three small layers of Llama's kind."""
    attention = Attention("gqa", heads=4, kv_heads=2, head_dim=8, value_head_dim=8)
    ffn = FeedForward(48, gated=True, experts=experts, experts_per_token=2 if experts else 0,
                      shared_width=16 if experts else 0)
    return replace(Model("tiny", 32, 64, (Layer(attention, ffn, norms),) * 3, tied_embeddings=False), **fields)


def shrunk(model: Model) -> Model:
    """At most two layers of each kind: the count is a sum over layers."""
    return replace(plain(model)[0], layers=tuple(layer for kind in dict.fromkeys(model.layers) for layer in [kind] * 2))


@pytest.mark.parametrize("name", huggingface.catalog_names())
def test_parameters_of_every_catalogue_model_are_counted_exactly(name: str) -> None:
    model = shrunk(huggingface.catalog_model(name))
    if found := reasons(model):
        with pytest.raises(NotBuildable, match="cannot be built in plain torch"):
            Decoder(model, 16)
        pytest.skip("; ".join(found))
    with torch.device("meta"):
        decoder = Decoder(model, 16)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters.count(model)


@pytest.mark.parametrize("model", [
    tiny(), tiny(4), tiny(1), tiny(experts=4), tiny(positions=16, norm="layer", tied_embeddings=True),
])
def test_stages_one_after_another_compute_the_whole_model(model: Model) -> None:
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    whole = Decoder(model, 16)
    initialise(whole, 7)
    x = tokens
    cuts = (0, 3) if model.tied_embeddings else (0, 1, 3)
    for first, last in pairwise(cuts):
        stage = Decoder(model, 16, first, last)
        initialise(stage, 7)
        x = stage(x)
    torch.testing.assert_close(x, whole(tokens))
    assert x.shape == (2, 16, 64)


def test_a_token_sees_nothing_behind_it_and_with_a_window_nothing_far_before_it() -> None:
    def reach(model: Model) -> torch.Tensor:
        decoder = Decoder(model, 8)
        initialise(decoder, 3)
        embedded = torch.randn(1, 8, 32, requires_grad=True)
        layer = decoder.layers["0"]
        mask = getattr(decoder, "window_3", None)
        layer(embedded, decoder.rotary_8, mask)[0, 5].sum().backward()
        return embedded.grad[0].abs().sum(-1) > 0

    one = tiny()
    windowed = replace(one.layers[0], attention=replace(one.layers[0].attention, window=3))
    assert reach(one).tolist() == [True] * 6 + [False] * 2
    assert reach(replace(one, layers=(windowed,))).tolist() == [False] * 3 + [True] * 3 + [False] * 2


def test_experts_sorted_and_put_back_give_the_sum_that_a_loop_over_tokens_gives() -> None:
    ffn = tiny(experts=4).layers[0].feed_forward
    for balanced in (True, False):
        block = MixtureOfExperts(ffn, 32, balanced)
        x = torch.randn(2, 6, 32)
        weights, chosen, counts = block.route(x)
        by_hand = torch.stack([
            sum(weights[token, j] * block.experts.members[chosen[token, j]](row) for j in range(2)) + block.shared(row)
            for token, row in enumerate(x.flatten(0, 1))
        ])
        torch.testing.assert_close(block(x).flatten(0, 1), by_hand, atol=1e-5, rtol=1e-4)
        assert sum(counts) == 2 * 12
        assert not balanced or counts == [6, 6, 6, 6]


def test_rows_in_the_order_of_tensor_ranks_give_each_rank_its_heads() -> None:
    block = Decoder(tiny(), 8).layers["0"].attention
    rows = rows_by_rank(block.widths, 2)
    x, whole = torch.randn(1, 8, 32), block.qkv
    query, key, value = whole(x).split(block.widths, dim=-1)
    parts = torch.nn.functional.linear(x, whole.weight[rows]).chunk(2, dim=-1)
    for rank, part in enumerate(parts):
        mine = [one.chunk(2, dim=-1)[rank] for one in (query, key, value)]
        torch.testing.assert_close(part, torch.cat(mine, dim=-1))
    with pytest.raises(ValueError, match="do not divide by 3"):
        rows_by_rank((4, 2), 3)


def test_one_end_of_tied_embeddings_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="tied embeddings"):
        Decoder(tiny(tied_embeddings=True), 8, 0, 1)
