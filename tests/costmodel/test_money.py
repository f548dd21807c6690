"""Rent and energy against arithmetic on published figures, and the laws both must keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import catalog
from costmodel.money import JOULES_PER_KWH, PUE, cost_usd, energy_j


def test_a_day_on_one_h100_node_at_the_listed_price() -> None:
    h100 = catalog.accelerator("h100-sxm-80gb")
    assert cost_usd(8, h100.price_usd_per_hour, 86400) == pytest.approx(8 * 24 * 2.95)  # 2.95: aimultiple.com


def test_deepseek_v3_training_bill() -> None:
    # arXiv 2412.19437 table 1: 2,788 thousand H800 hours at 2 USD are 5.576 million USD
    price = catalog.accelerator("h800").price_usd_per_hour
    assert cost_usd(2048, price, 2.788e6 / 2048 * 3600) == pytest.approx(5.576e6)


@pytest.mark.parametrize(
    ("name", "kilowatts"), [("hgx-h100", 10.2), ("hgx-b200", 14.3), ("hgx-a100", 6.5), ("dgx-v100", 3.5)]
)
def test_a_busy_node_draws_its_published_maximum(name: str, kilowatts: float) -> None:
    node = catalog.node(name)
    energy = energy_j(
        node.accelerators,
        node.accelerator.power_w,
        3600,
        overhead_power_w_per_accelerator=node.overhead_power_w / node.accelerators,
        pue=1,
    )
    assert energy / JOULES_PER_KWH == pytest.approx(kilowatts)


def test_a_gb200_rack_draws_about_120_kilowatts() -> None:
    tray = catalog.node("gb200-nvl72")
    power_w = tray.accelerators * tray.accelerator.power_w + tray.overhead_power_w
    assert power_w * 72 / tray.accelerators == pytest.approx(120e3, rel=0.001)


def test_idle_draws_the_idle_share_and_pue_multiplies_everything() -> None:
    assert energy_j(1, 500, 10, busy_fraction=0, idle_fraction=0.2, pue=1) == pytest.approx(1000)
    assert energy_j(3, 500, 10, overhead_power_w_per_accelerator=100) == pytest.approx(3 * 600 * 10 * PUE)


def test_arrays_broadcast_to_the_scalar_results() -> None:
    accelerators, time_s = np.array([[8.0], [64.0]]), np.array([60.0, 3600.0, 7200.0])
    busy = np.array([0.2, 0.5, 1.0])
    cost, energy = cost_usd(accelerators, 2.5, time_s), energy_j(accelerators, 700.0, time_s, busy)
    assert cost.shape == energy.shape == (2, 3)
    for i, n in enumerate((8, 64)):
        for j in range(3):
            assert cost[i, j] == pytest.approx(cost_usd(n, 2.5, time_s[j]))
            assert energy[i, j] == pytest.approx(energy_j(n, 700, time_s[j], busy[j]))


fraction = st.floats(0, 1)


@given(fraction, fraction, fraction)
def test_energy_lies_between_idle_and_busy(less: float, more: float, idle: float) -> None:
    less, more = sorted((less, more))
    low, high = (energy_j(1, 400, 1, busy, idle, pue=1) for busy in (less, more))
    assert 400 * idle - 1e-9 <= low <= high + 1e-9
    assert high <= 400 + 1e-9
