"""Reading the free text of a claim: model sizes, degrees, sequence lengths, devices."""

from __future__ import annotations

import re

SCALES = {"M": 1e6, "B": 1e9, "T": 1e12}
THOUSANDS = {"": 1, "K": 2**10, "M": 2**20}


def parameters(text: str) -> float | None:
    """Parameters of the first model size in the text.

    >>> parameters("7.5B, N_d=64"), parameters("16 B/param"), parameters("350M, batch 128")
    (7500000000.0, None, 350000000.0)
    """
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([MBT])(?![\w/])", text)
    return float(found[1]) * SCALES[found[2]] if found else None


def degree(text: str, *names: str) -> int | None:
    """The whole number written after one of the names: `N=8`, `tp2`, `zero1=-1`, `batch 64`.

    >>> degree("7B, tp=4, pp=3", "pp"), degree("16 GPUs, tp2", "tp"), degree("batch 64", "batch")
    (3, 2, 64)
    """
    for name in names:
        if found := re.search(rf"(?<![A-Za-z0-9_]){name}(?![A-Za-z_])\s*[=:]?\s*(-?\d+)", text):
            return int(found[1])
    return None


def gpus(text: str) -> int | None:
    """Devices of a setting: `16 GPUs`, `8x A800`, `on 64 GPUs`.

    >>> gpus("7B, 3x A800, tp=1"), gpus("4x100Gb RoCE, 16 GPUs"), gpus("1M tokens, 8 x A800")
    (3, 16, 8)
    """
    if found := re.search(r"(\d[\d,]*)\s*(?:GPUs?|devices|ranks)\b", text):
        return int(found[1].replace(",", ""))
    found = re.search(r"(\d+)\s?x\s?(?:RTX ?)?(?:[AHBV]\d{2,3}|MI\d+|\d{4})", text)
    return int(found[1]) if found else None


def tokens(text: str, *names: str) -> int | None:
    """A sequence length: `seq 2048`, `seq 4K`, `64K context`, `1M tokens`.

    >>> tokens("seq 4K"), tokens("7B, 1M tokens"), tokens("64K context"), tokens("seq 2048")
    (4096, 1048576, 65536, 2048)
    """
    found = re.search(r"\bseq(?:uence)?(?:[ _]len(?:gth)?)?\s*[=:]?\s*(\d+)([KM]?)\b", text)
    found = found or re.search(r"\b(\d+)([KM]?)\s*(?:tokens|context)\b", text)
    return int(found[1]) * THOUSANDS[found[2]] if found else None


def bandwidths_bytes_per_s(text: str) -> list[float]:
    """Every bandwidth in the text, in its order: `300 GB/s`, `100 Gb/s`, `100Gb`.

    >>> bandwidths_bytes_per_s("inside 300 GB/s, between 100 Gb/s")
    [300000000000.0, 12500000000.0]
    """
    found = re.findall(r"(\d+(?:\.\d+)?)\s*G(B|b)(?:/s|ps)?\b", text)
    return [float(number) * 1e9 / (1 if unit == "B" else 8) for number, unit in found]
