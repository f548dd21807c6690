"""A gated MLP in NumPy, forward and backward, that keeps what its backward pass needs and nothing else.

A second implementation of three ways to run it: plain, with the top-K channels of the gate, and with randomly projected
inputs. What each saves is counted from the arrays themselves; gradients are made from what was saved alone.
"""

from __future__ import annotations

import numpy as np

BYTES = 2  # every value and every index is kept in 16 bits


def silu(x):
    return x / (1.0 + np.exp(-x))


def silu_slope(x):
    gate = 1.0 / (1.0 + np.exp(-x))
    return gate * (1.0 + x * (1.0 - gate))


def kept_bytes(saved):
    return BYTES * sum(array.size for array in saved.values())


def forward(x, up, gate, down, channels=None, rebuild=False):
    """(output, what is saved). `channels`: how many of the inner channels, by their gate, are used."""
    g, u = x @ gate, x @ up
    if channels is None:
        s = silu(g)
        return (s * u) @ down, {"x": x, "g": g, "u": u, "s": s, "z": s * u}
    index = np.argsort(-g, axis=1)[:, :channels]
    g, u = np.take_along_axis(g, index, 1), np.take_along_axis(u, index, 1)
    z = np.zeros((len(x), gate.shape[1]))
    np.put_along_axis(z, index, silu(g) * u, 1)
    saved = {"x": x, "index": index, "g": g, "u": u}
    return z @ down, saved if rebuild else {**saved, "s": silu(g), "z": silu(g) * u}


def backward(saved, up, gate, down, dy):
    """Gradients of (up, gate, down, x) from the saved arrays."""
    g, u, x = saved["g"], saved["u"], saved["x"]
    s = saved.get("s", silu(g))
    z, dz = saved.get("z", s * u), dy @ down.T
    if "index" in saved:
        index, shape = saved["index"], dz.shape
        dz = np.take_along_axis(dz, index, 1)

        def spread(values):
            whole = np.zeros(shape)
            np.put_along_axis(whole, index, values, 1)
            return whole
    else:
        def spread(values):
            return values
    dg, du = spread(dz * u * silu_slope(g)), spread(dz * s)
    return x.T @ du, x.T @ dg, spread(z).T @ dy, du @ up.T + dg @ gate.T
