"""Which devices torch finds here."""

from __future__ import annotations


def cuda_devices() -> int:
    """CUDA devices of this machine; needs torch."""
    import torch

    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
