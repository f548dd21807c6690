"""The simulated peak of plain torch is what MemTracker counts, within 1.5 %; model states to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from costmodel import catalog, parameters  # noqa: E402
from costmodel.architecture import Attention, FeedForward, Layer, Model  # noqa: E402
from costmodel.hardware import Cluster  # noqa: E402
from costmodel.stack import Stack  # noqa: E402
from placement.passes import Setting  # noqa: E402
from placement.plan import Plan  # noqa: E402
from placement.step import analytic_step  # noqa: E402
from simulator.engine import static  # noqa: E402
from simulator.real.memory import step_peaks  # noqa: E402
from simulator.training import lower  # noqa: E402

GROUPED = Attention("gqa", heads=8, kv_heads=2, head_dim=32, value_head_dim=32)
PLAIN = Attention("gqa", heads=8, kv_heads=8, head_dim=32, value_head_dim=32, query_bias=True, key_bias=True,
                  value_bias=True, output_bias=True)
LATENT = Attention("mla", heads=8, kv_heads=8, head_dim=32, value_head_dim=32, rope_head_dim=16, query_rank=128,
                   key_value_rank=64)
LLAMA = Model("llama", 256, 4096, (Layer(GROUPED, FeedForward(704, True)),) * 4, tied_embeddings=False)
GPT = Model("gpt", 256, 4096, (Layer(PLAIN, FeedForward(1024, False, bias=True)),) * 4, tied_embeddings=True,
            norm="layer", positions=256)


def like_llama(name: str, layer: Layer, vocabulary: int = 4096) -> Model:
    return replace(LLAMA, name=name, layers=(layer,) * 4, vocabulary=vocabulary)


MOE = like_llama("moe", Layer(GROUPED, FeedForward(352, True, experts=8, experts_per_token=2)))
SHARED = like_llama("shared", Layer(GROUPED, FeedForward(128, True, experts=4, experts_per_token=1, shared_width=256)))
NORMED = like_llama("normed", Layer(replace(GROUPED, query_key_norm="per_head"), FeedForward(704, True)))
MLA = like_llama("mla", Layer(LATENT, FeedForward(704, True)))
FEW_WORDS = like_llama("few-words", LLAMA.layers[0], 256)  # the layers, not the head, make the peak
GPT_FEW_WORDS = replace(GPT, name="gpt-few-words", vocabulary=256)


def simulated(model: Model, sequence: int, micro_batch: int, micro_batches: int, recompute: str, precision: str
              ) -> tuple[float, float]:
    """Peaks of the played step and of the closed form."""
    node = catalog.node("hgx-h100")
    node = replace(node, accelerators=1, accelerator=replace(node.accelerator, generation="cpu"))
    plan = Plan(micro_batch=micro_batch, recompute=recompute, precision=precision, state_bytes=precision,
                data=1, sharding="ddp")
    setting = Setting(model, plan, Cluster(node, 1, 1), Stack("torch", "flash-2", ()), sequence)
    batch = micro_batch * micro_batches
    played = static.play(lower(setting, batch).program)
    return played.peak(0, "hbm")[0], analytic_step(setting, batch).peak_bytes[0]


CASES = [
    (model, 256, batch, count, recompute, "fp32")
    for model in (LLAMA, GPT, MOE) for batch, count, recompute in ((2, 1, "none"), (2, 3, "none"), (2, 1, "full"))
] + [
    (LLAMA, 64, 1, 1, "none", "fp32"), (LLAMA, 64, 1, 2, "none", "fp32"), (GPT, 64, 1, 1, "full", "fp32"),
    (LLAMA, 256, 4, 2, "full", "fp32"), (FEW_WORDS, 256, 4, 1, "none", "fp32"),
    (GPT_FEW_WORDS, 256, 4, 2, "none", "fp32"), (FEW_WORDS, 256, 4, 2, "full", "fp32"),
    (SHARED, 256, 2, 1, "none", "fp32"), (NORMED, 256, 2, 1, "none", "fp32"), (MLA, 256, 2, 1, "none", "fp32"),
    (LLAMA, 256, 2, 1, "none", "bf16"), (GPT, 256, 2, 2, "none", "bf16"), (NORMED, 256, 2, 1, "none", "bf16"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(getattr(one, "name", one)) for one in case))
def test_peak_is_what_memtracker_counts(case: tuple[Model, int, int, int, str, str]) -> None:
    model, sequence, batch, count, recompute, precision = case
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    peak = step_peaks(model, sequence, batch, count, recompute=recompute, dtype=dtype).peak
    buffers = peak["buffers"]  # tables of positions
    played, closed = simulated(*case)
    assert played == pytest.approx(peak["total"] - buffers, rel=0.015)
    assert closed == pytest.approx(peak["total"] - buffers, rel=0.015)


def test_model_states_are_exact_and_fake_tensors_count_as_real_ones() -> None:
    fake = step_peaks(LLAMA, 64, 1, 2)
    count = parameters.count(LLAMA)
    tensors = 4 * 6 + 3  # of a layer; embedding, final norm, head: each has a counter of steps (fp32)
    assert fake.phases["optimizer"]["parameters"] == fake.phases["optimizer"]["gradients"] == 4 * count
    assert fake.phases["forward"]["optimizer"] == 8 * count + 4 * tensors
    assert step_peaks(LLAMA, 64, 1, 2, fake=False).phases == fake.phases
