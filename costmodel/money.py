"""What a run costs in US dollars and joules. Every argument may be a NumPy array; all broadcast together.

A part without a price or a power limit (`None` in the catalogue) has no cost: the caller says so to the user.
"""

from __future__ import annotations

from typing import Any

Number = Any  # float or NumPy array

JOULES_PER_KWH = 3.6e6
IDLE_FRACTION = 0.1
"""Power of an idle accelerator as a share of its limit: assumption, tens of watts of several hundred."""
PUE = 1.2
"""Energy of the whole data centre over the energy of its computers: assumption, a well-run modern site."""


def cost_usd(accelerators: Number, price_usd_per_hour: Number, time_s: Number) -> Number:
    """Rent of `accelerators` devices at a price per device and hour, for `time_s` seconds.

    Rented prices include host, network, energy and building.

    >>> cost_usd(8, 2.95, 3600)
    23.6
    """
    return accelerators * price_usd_per_hour * time_s / 3600


def energy_j(
    accelerators: Number,
    accelerator_power_w: Number,
    time_s: Number,
    busy_fraction: Number = 1.0,
    idle_fraction: Number = IDLE_FRACTION,
    overhead_power_w_per_accelerator: Number = 0.0,
    pue: Number = PUE,
) -> Number:
    """Energy taken from the grid by `accelerators` devices over `time_s` seconds, in joules.

    A device draws `accelerator_power_w` (its limit) in the `busy_fraction` of the time that it works and
    `idle_fraction` of that power in the rest; its share of host, fans and network always draws
    `overhead_power_w_per_accelerator` (a node's `overhead_power_w` over its accelerators); `pue` multiplies
    all of it. With both at the maxima of a data sheet this is an upper bound.

    >>> energy_j(8, 700, 3600, overhead_power_w_per_accelerator=575, pue=1) / JOULES_PER_KWH
    10.2
    """
    device_w = accelerator_power_w * (busy_fraction + idle_fraction * (1 - busy_fraction))
    return accelerators * (device_w + overhead_power_w_per_accelerator) * time_s * pue
