"""The torch functions that a plain layer is made of; the micro-measurements and the real model call the same ones.

Imported lazily, since it needs torch. Shapes: b sequences of s tokens, h hidden, n heads of d, V words.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-5
ROTARY_BASE = 10_000.0


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """(..., h) divided by its root mean square, times weight (h). arXiv 1910.07467, equation 4."""
    return functional.rms_norm(x, (x.shape[-1],), weight, EPSILON)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., h) with mean 0 and variance 1, times weight (h), plus bias (h). arXiv 1607.06450."""
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, EPSILON)


def rotary_table(sequence: int, head_dim: int, dtype: torch.dtype = torch.float32,
                 device: str | torch.device | None = None) -> Tensor:
    """(2, s, d): cosines and sines of position times frequency, each frequency twice. arXiv 2104.09864, equation 34;
    the halves are rotated against one another, as in Llama's code."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(sequence, dtype=torch.float32, device=device), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin())).to(dtype)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """(b, s, n, d) turned by its positions; `table` (2, s, d) of `rotary_table`."""
    cosine, sine = table[0].unsqueeze(1), table[1].unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Causal attention: queries (b, s, n, d), keys and values (b, s, m, d), m divides n; result (b, s, n, d).

    `mask` (s, s), True where a key is seen, takes the place of the causal one (sliding windows).
    """
    grouped = query.shape[2] != key.shape[2]
    out = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2),
        attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2)


def gated(gate_up: Tensor) -> Tensor:
    """(..., 2w), gate before up, to silu(gate) x up (..., w). arXiv 2002.05202, SwiGLU."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def plain(x: Tensor) -> Tensor:
    """GELU."""
    return functional.gelu(x)


def embed(tokens: Tensor, table: Tensor) -> Tensor:
    """Rows of the table (V, h) for tokens (b, s): (b, s, h)."""
    return functional.embedding(tokens, table)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of logits (b, s, V) for targets (b, s)."""
    return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
