"""The adapter of ByteScale: one figure settles the network, all else follows; none is read from the row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from costmodel import catalog
from scenarios.papers import bytescale, registry
from scenarios.papers.answers import NotCheckable, NotMapped
from scenarios.papers.claims import COLUMNS, Claim
from scenarios.papers.document import verdict_of

BYTED = "LLaMA-7B, 2M, 1024 GPUs, Byted, ablation"


def claim(**cells: str) -> Claim:
    return Claim(**{**dict.fromkeys(COLUMNS, ""), "system": "ByteScale", "metric": "throughput", "ratio": "2",
                    "baseline_name": "MegaScale", "setting": BYTED, **cells})


@pytest.mark.parametrize("name", bytescale.NODES)
def test_the_network_makes_sends_the_published_share(name: str) -> None:
    assert bytescale.sends_share(bytescale.networked(name)) == pytest.approx(bytescale.SENDS, rel=1e-6)
    # slower cards, a larger share
    node = catalog.node(name)
    shares = [bytescale.sends_share(bytescale.with_cards(node, rate)) for rate in (1e9, 1e10, 1e11)]
    assert shares == sorted(shares, reverse=True)


def test_each_part_of_the_ablation_is_asked_as_a_plan_of_the_same_batches() -> None:
    case = next(bytescale.ablation_cases(bytescale.SHARES["byted"]))
    first, other = (case.inputs(policy, False) for policy in ("static", "dp-balance"))
    assert replace(first, plan=other.plan) == other
    assert first.sequence * first.global_batch == case.tokens
    balanced = registry.answer(claim(claim_id="BS-6-+ balance", setting=BYTED))
    dynamic = registry.answer(claim(claim_id="BS-6-dynamic communication", setting=BYTED))
    assert balanced.ratio is not None
    assert dynamic.ratio is not None
    assert dynamic.ratio.low > 1.0
    assert dynamic.ratio.high < balanced.ratio.low


def test_offloading_costs_nothing_until_its_copies_outlast_the_forward_pass() -> None:
    rows = [claim(claim_id=f"BS-9-{share}", setting=f"64K context, offload ratio {share}", metric="step time")
            for share in (0.1, 0.5, 1.0, 1.0)]
    answers = [registry.answer(row).ratio for row in rows]
    assert answers[0] is not None
    assert (answers[0].low, answers[0].high) == pytest.approx((1.0, 1.0))
    highs = [one.high for one in answers if one is not None]
    assert highs == sorted(highs)
    assert highs[-1] > 1.0


def test_rows_that_cannot_be_answered_say_why() -> None:
    with pytest.raises(NotCheckable, match="settles"):
        registry.answer(claim(metric="share of time in P2P communication", system_value="97.6"))
    with pytest.raises(NotMapped, match="data loading"):
        registry.answer(claim(claim_id="BS-6-+ remote dataloader"))
    with pytest.raises(NotMapped, match="are read"):
        registry.answer(claim(metric="tensor core activity"))


def test_a_ratio_far_off_is_not_reproduced() -> None:
    for ratio in ("0.5", "12"):
        assert verdict_of(claim(claim_id="BS-6-+ balance", ratio=ratio, system_value=ratio)).verdict == "not reproduced"
