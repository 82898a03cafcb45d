"""What the checkpoints of a workload hold: states and files that nobody else has, and whether a step still has them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import asyncckpt

from .workload import LARGE_EVERY, same


def content(seed: int, step: int, version: int) -> dict[str, Any]:
    """Make a state that nobody else has: of sizes that fall on and beside the boundaries of pages and sectors.

    Those of every `LARGE_EVERY`th seed are large enough to be captured in threads and written past the page cache.
    """
    chance = np.random.default_rng([seed, step, version])
    sizes = [int(each) for each in chance.choice([0, 1, 511, 512, 513, 4095, 4096, 4097, 9000], 3)]
    if seed and seed % LARGE_EVERY == 0:
        sizes[1] = 1_300_000
    return {
        "step": step,
        "version": version,
        "arrays": [chance.integers(0, 256, size, np.uint8) for size in sizes],
        "matrix": chance.standard_normal((3, int(chance.integers(1, 40)))),
        "words": [f"{each:x}" for each in chance.integers(0, 1 << 60, int(chance.integers(0, 40)))],
        "big": int(chance.integers(0, 1 << 62)) ** 3,
    }


USERS_FILES = ("mine", "sub/deep/file")


def users_bytes(seed: int, step: int, version: int, name: str) -> bytes:
    """Make the contents of a file that a user writes."""
    return np.random.default_rng([seed, step, version, len(name)]).bytes(700) + f"{step} {version}".encode()


# --- looking ----------------------------------------------------------------------------------------------------------

expected = functools.lru_cache(64)(content)


async def version_of(manager: asyncckpt.CheckpointManager, step: int, seed: int) -> int:
    """Load a step and compare every bit with what was saved; return its version, or -1."""
    try:
        record = manager._session.use().catalog.get(step)
        if (record.path / "mine").exists():
            await manager.verify(step)
            version = int(record.training_info["version"])
            data = [(record.path / name).read_bytes() for name in USERS_FILES]
            return version if data == [users_bytes(seed, step, version, name) for name in USERS_FILES] else -1
        if b"config.yaml" in (record.path / "manifest.json").read_bytes():
            await manager.verify(step)  # a file that loading does not read
        loaded = await manager.load(step)
        version = int(loaded.state["version"])
        is_same = same(loaded.state, expected(seed, step, version)) and loaded.training_info == {"version": version}
    except (asyncckpt.CheckpointError, KeyError, ValueError, OSError):
        return -1
    return version if is_same else -1
