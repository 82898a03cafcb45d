"""What the keys of a workload's file hold.

A key is a small int, spelt by `NAMES`; each value says its own number, so that what is found tells what it is.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .workload import LARGE_EVERY

NAMES = ("a", "b/c", "é %", "d.npy", "e" * 300, "f")
NEXT_KEY = len(NAMES)  # set after a crash
NEXT_NUMBER = 1_000_000
LARGE = 3  # this key's value is large where a workload is about that
_LARGE_NBYTES = 600_000


def name_of(key: int) -> str:
    """Return the name of a key."""
    return NAMES[key] if key < NEXT_KEY else "after"


def key_of(name: str) -> int:
    """Return the key of a name."""
    return NAMES.index(name) if name in NAMES else NEXT_KEY


def value_of(seed: int, key: int, number: int, *, is_large: bool) -> Any:
    """Make a value that no other key or number has: an array, or a tree of small things and an array."""
    chance = np.random.default_rng([seed, key, number])
    size = int(chance.choice([0, 1, 63, 64, 511, 512, 513, 4095, 4096, 4097, 9000]))
    if key == LARGE and (is_large or (seed and seed % LARGE_EVERY == 0)):
        size = _LARGE_NBYTES + 100_000 * (number % 3)
    if chance.random() < 0.5:
        return np.concatenate([[number], chance.integers(0, 1 << 62, size // 8)]).astype(np.int64)
    return {
        "number": number,
        "array": chance.integers(0, 256, size, np.uint8),
        "words": [f"{each:x}" for each in chance.integers(0, 1 << 60, int(chance.integers(0, 20)))],
        "matrix": chance.standard_normal((3, int(chance.integers(1, 20)))),
    }


expected_value = functools.lru_cache(64)(value_of)
