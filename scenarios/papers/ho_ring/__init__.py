"""HO-Ring, the collective of PaRO (arXiv 2310.06003).

Mechanism: a flat ring over N = m g ranks runs at the pace of its slowest hop; HO-Ring splits the data into a ring
inside every group of m and rings across the g groups that run at the same time.
Answered: the ratio of an all-reduce by the algorithms `ring` and `ho-ring` of costmodel.collectives, bandwidth alone:

    flat    2 (N-1)/N S / B_between
    HO-Ring max(2 (m-1)/m S / B_inside, 2 (g-1)/g S / B_between)

The testbed's bandwidths and group counts were not published: where a row states none, the span goes over 2 to 16
groups of 8 with links inside that are 2 to 24 times as fast.
"""

from __future__ import annotations

from itertools import product

from costmodel.collectives import all_reduce_s
from costmodel.network import Group, uniform_paths
from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotMapped, Span
from scenarios.papers.claims import Claim

GROUP = 8
GROUPS = (2, 4, 8, 16)
FASTER_INSIDE = (2.0, 6.0, 24.0)  # PCIe over one port, NVLink over one port


def speedup(inside_ranks: int, groups: int, faster_inside: float) -> float:
    """Time of the flat ring over that of HO-Ring.

    >>> speedup(8, 4, 24.0) > 1.2
    True
    """
    group, paths = Group(inside_ranks * groups, inside_ranks), uniform_paths(faster_inside, 1.0 / inside_ranks)
    return float(all_reduce_s(1.0, group, paths, "ring") / all_reduce_s(1.0, group, paths, "ho-ring"))


def answer(claim: Claim) -> Answer:
    if "ring" not in claim.baseline_name.lower():
        raise NotMapped(f"baseline {claim.baseline_name!r}: HO-Ring is compared with a flat ring")
    group = settings.degree(claim.setting, "m") or GROUP
    groups, rates = settings.degree(claim.setting, "g"), settings.bandwidths_bytes_per_s(claim.setting)
    ranks = settings.degree(claim.setting, "N", "n") or settings.gpus(claim.setting)
    counts = (groups,) if groups else (ranks // group,) if ranks and ranks > group else GROUPS
    faster = (rates[0] / rates[1],) if len(rates) > 1 else FASTER_INSIDE
    ratio = Span.of([speedup(group, count, rate) for count, rate in product(counts, faster)])
    left = [text for text, known in (("the number of groups", len(counts) == 1),
                                     ("the bandwidths inside and between groups", len(rates) > 1)) if not known]
    return Answer(ratio=ratio, open=" and ".join(left), how="flat ring against two concurrent rings, volumes only",
                  missing={"": "latencies and the cards of a node, which the source does not state"})
