"""The states that are saved: the same for every system, changed between two saves as by a training step."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

State = dict[str, Any]
Array = NDArray[Any]

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

_UPDATE: Final = np.float32(1.0009765)
"""A step's relative change of every weight: all arrays differ from save to save."""


def float_arrays(nbytes: int, count: int) -> State:
    """Make `count` float32 arrays of `nbytes` together, of random numbers."""
    length = nbytes // count // np.dtype(np.float32).itemsize
    numbers = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    return {f"w{index:05d}": np.roll(numbers, index) * np.float32(1 + index / count) for index in range(count)}


def gpt_with_adamw(layers: int) -> State:
    """Make the weights of a GPT-2 of 768 channels, and of each weight AdamW's two moments and its step."""
    width, rng = 768, np.random.default_rng(0)
    shapes = {"wte": (50257, width), "wpe": (1024, width), "ln_f.weight": (width,), "ln_f.bias": (width,)}
    for layer in range(layers):
        for name, inner in (("attn.qkv", 3 * width), ("attn.proj", width), ("mlp.fc", 4 * width)):
            shapes |= {f"h.{layer}.{name}.weight": (width, inner), f"h.{layer}.{name}.bias": (inner,)}
        shapes |= {f"h.{layer}.mlp.proj.weight": (4 * width, width), f"h.{layer}.mlp.proj.bias": (width,)}
        shapes |= {f"h.{layer}.ln_{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
    state: State = {}
    for name, shape in shapes.items():
        for part in ("model", "exp_avg", "exp_avg_sq"):
            state[f"{part}.{name}"] = rng.standard_normal(shape, dtype=np.float32)
        state[f"step.{name}"] = np.ones((), np.float32)
    return state


def byte_array(nbytes: int) -> State:
    """Make one array of `nbytes` random bytes."""
    block = np.random.default_rng(0).integers(0, 256, size=min(nbytes, 64 * MIB + 1), dtype=np.uint8)
    return {"x": np.resize(block, nbytes)}


def flat_ints(count: int) -> State:
    """Make one list of `count` ints."""
    return {"ints": list(range(count))}


def listed_ints(count: int, length: int) -> State:
    """Make lists of `length` ints, `count` ints together."""
    return {"lists": [list(range(start, start + length)) for start in range(0, count, length)]}


def arrays_of(state: State) -> dict[str, Array]:
    """Return the arrays of a state."""
    return {name: leaf for name, leaf in state.items() if isinstance(leaf, np.ndarray)}


def nbytes_of(state: State) -> int:
    """Return the bytes of a state's arrays."""
    return sum(array.nbytes for array in arrays_of(state).values())


def update(state: State) -> None:
    """Change every array in place."""
    for array in arrays_of(state).values():
        if array.dtype == np.uint8:
            np.add(array, 1, out=array)
        else:
            np.multiply(array, _UPDATE, out=array)


def like(state: State) -> State:
    """Make a state of the same arrays in fresh memory, not filled."""
    return {name: np.empty_like(array) for name, array in arrays_of(state).items()}


def is_equal(state: State, loaded: Any) -> bool:
    """Return whether a system returned what it was given; its arrays may be of its own type."""
    for name, leaf in state.items():
        if isinstance(leaf, np.ndarray):
            if not np.array_equal(leaf, np.asarray(loaded[name])):
                return False
        elif leaf != loaded[name]:
            return False
    return True
