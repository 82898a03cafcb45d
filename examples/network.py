"""Two-layer perceptrons with one output, and Adam, in numpy: what the learner of async_cartpole needs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

Network = dict[str, np.ndarray]


def new_network(rng: np.random.Generator, *sizes: int) -> Network:
    """Return a network with layers of these sizes; the weights of the last one start small."""
    network = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        scale = 0.01 if layer == len(sizes) - 2 else 1.0
        network[f"w{layer}"] = rng.standard_normal((fan_in, fan_out)) * scale / np.sqrt(fan_in)
        network[f"b{layer}"] = np.zeros(fan_out)
    return network


def forward(net: Network, x: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the network's output, one number for each row of `x`, and what `backward` needs."""
    h0 = np.tanh(x @ net["w0"] + net["b0"])
    h1 = np.tanh(h0 @ net["w1"] + net["b1"])
    return (h1 @ net["w2"] + net["b2"])[..., 0], (x, h0, h1)


def backward(net: Network, activations: tuple[np.ndarray, ...], dy: np.ndarray) -> Network:
    """Return the loss's gradient with respect to the parameters, given that with respect to the output."""
    x, h0, h1 = activations
    d2 = dy[:, None]
    d1 = (d2 @ net["w2"].T) * (1 - h1**2)
    d0 = (d1 @ net["w1"].T) * (1 - h0**2)
    return {"w0": x.T @ d0, "b0": d0.sum(0), "w1": h0.T @ d1, "b1": d1.sum(0), "w2": h1.T @ d2, "b2": d2.sum(0)}


def new_adam(net: Network) -> dict[str, Any]:
    """Return the optimizer's state before its first step: moments of the gradient, and the number of steps."""
    m, v = ({name: np.zeros_like(array) for name, array in net.items()} for _ in range(2))
    return {"m": m, "v": v, "t": 0}


def descend(net: Network, adam: dict[str, Any], gradient: Network, rate: float) -> None:
    """Take one step of Adam, in place."""
    adam["t"] += 1
    rate *= np.sqrt(1 - 0.999 ** adam["t"]) / (1 - 0.9 ** adam["t"])
    for name, g in gradient.items():
        m, v = adam["m"][name], adam["v"][name]
        m += 0.1 * (g - m)
        v += 0.001 * (g * g - v)
        net[name] -= rate * m / (np.sqrt(v) + 1e-8)
