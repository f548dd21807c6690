"""FuseMax (arXiv 2406.10491; artifact FPSG-UIUC/micro24-fusemax-artifact).

Mechanism: attention on a spatial accelerator of a 256 x 256 array and 256 lanes at 940 MHz with 400 GiB/s. FLAT
keeps the softmax on the lanes (4 operations a score) and spills the scores at long sequences; FuseMax's one-pass
cascade with an online maximum moves it to the array, so that both work at once. The figures are the authors' model
outputs, not hardware, and follow from counting cycles and bytes (M keys and queries, E head width, all a head):

    FuseMax       M^2 (2 E + 10 + 256 E/M) / 256^2                      array
    FLAT          max(4 M^2 / 256 lanes, (8 M^2 + 4 E M^2/1024 + 4 E M) bytes once M >= 256K)
    unfused       4 M^2 / 256 lanes + (4 M^2 + 8 E M) bytes, one after the other
    +cascade      M^2 (4 + (2 E + 5)/256 + E/M) / 256                   lanes
    +architecture M^2 (3 E + 266) / 256^2                               array and lanes in turn

The first two are the closed forms known to equal all 24 points of the artifact; the others were derived from its
points in the same way and equal them within rounding, but for unfused attention from 256K keys on (0.3 % short).

Answered: latency of attention for BERT, TrXL, T5 and XLM at any length, and the mean speed-up of attention over the
artifact's 24 points. Not answered: end-to-end time and energy (the linear layers and the energy table).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from statistics import fmean

from scenarios.papers import settings
from scenarios.papers.answers import Answer, NotCheckable, NotMapped, Span
from scenarios.papers.claims import Claim

CLOCK_HZ, LANES, BYTES_PER_S = 940e6, 256, 400 * 2.0**30
MODELS = {"BERT": (12, 64), "TrXL": (16, 64), "T5": (8, 64), "XLM": (16, 128)}  # heads, width of a head
LENGTHS = tuple(2**power for power in (10, 12, 14, 16, 18, 20))
SPILLS = 2**18
BATCH = 64


def fusemax_s(keys: float, width: float) -> float:
    return keys**2 * (2 * width + 10 + 256 * width / keys) / LANES**2 / CLOCK_HZ


def softmax_s(keys: float) -> float:
    """Four operations a score on the lanes."""
    return 4 * keys**2 / LANES / CLOCK_HZ


def flat_s(keys: float, width: float) -> float:
    moved = 8 * keys**2 + 4 * width * keys**2 / 1024 + 4 * width * keys
    return softmax_s(keys) if keys < SPILLS else max(softmax_s(keys), moved / BYTES_PER_S)


def unfused_s(keys: float, width: float) -> float:
    return softmax_s(keys) + (4 * keys**2 + 8 * width * keys) / BYTES_PER_S


def cascade_s(keys: float, width: float) -> float:
    return keys**2 * (4 + (2 * width + 5) / 256 + width / keys) / LANES / CLOCK_HZ


def architecture_s(keys: float, width: float) -> float:
    return keys**2 * (3 * width + 266) / LANES**2 / CLOCK_HZ


BASELINES: dict[str, Callable[[float, float], float]] = {
    "flat": flat_s, "unfused": unfused_s, "+cascade": cascade_s, "+architecture": architecture_s, "fusemax": fusemax_s}


def answer(claim: Claim) -> Answer:
    baseline = BASELINES.get(claim.baseline_name.strip().lower())
    if baseline is None:
        raise NotMapped(f"baseline {claim.baseline_name!r}; known: {', '.join(BASELINES)}")
    if "attention" not in claim.setting or "energy" in claim.metric:
        raise NotMapped("linear layers and energy of the accelerator beside attention")
    if "mean" in claim.setting:
        ratios = [baseline(keys, width) / fusemax_s(keys, width) for _, width in MODELS.values() for keys in LENGTHS]
        return Answer(ratio=Span.of(fmean(ratios)), closed_form=True, how="arithmetic mean over 24 points")
    found = re.search("|".join(MODELS), claim.setting)
    keys = settings.tokens(claim.setting)
    if found is None or keys is None:
        raise NotCheckable("model (BERT, TrXL, T5, XLM) and sequence length")
    heads, width = MODELS[found[0]]
    times = heads * (settings.degree(claim.setting, "batch") or BATCH)
    ours, theirs = times * fusemax_s(keys, width), times * baseline(keys, width)
    return Answer(Span.of(ours), Span.of(theirs), Span.of(theirs / ours), closed_form=True,
                  missing={"": "a cost per query of the unfused baseline beyond 256K keys (up to 0.3 % of its time)"},
                  how="cycle and byte counts")
