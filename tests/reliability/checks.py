"""Looks at a directory as a program does that starts after a crash: through the public API, every bit of it."""

from __future__ import annotations

import asyncio
import functools
import warnings
from typing import TYPE_CHECKING

import asyncckpt

from .workloads import USERS_FILES, content, same, users_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .history import History

expected = functools.lru_cache(64)(content)
NEXT_STEP = 1_000_000  # saved after the crash


async def survey(root: Path, seed: int, form: str, *, saves: bool = True) -> tuple[dict[int, int], str | None]:
    """Recover a directory, list and load everything in it, and save into it.

    Args:
        root: The checkpoint directory.
        seed: Of the contents.
        form: The format to save in.
        saves: Whether to save as well.

    Returns:
        The version of each step listed, -1 where it does not load bit for bit; and what else is wrong, if something is.
    """
    found: dict[int, int] = {}
    problem = None
    # What a reader sees that changes nothing, before the recovery.
    listed = [step for step, _, _ in await asyncio.to_thread(asyncckpt._load_checkpoint_history, root)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with asyncckpt.CheckpointManager(root, format=form) as manager:
            if manager.steps() != listed:
                problem = f"readers saw the steps {listed} before recovery, and {manager.steps()} after it"
            for step in manager.steps():
                found[step] = await version_of(manager, step, seed)
            if saves:
                state = content(seed, NEXT_STEP, 0)
                await (await manager.save(NEXT_STEP, state, training_info={"version": 0}))
                if await version_of(manager, NEXT_STEP, seed) != 0:
                    problem = "the next save does not load"
    strange = [
        path.name
        for path in root.iterdir()
        if path.name != ".lock" and (not path.name.startswith("step_") or not path.name[5:].isdigit())
    ]
    if strange:
        problem = problem or f"left behind: {strange}"
    return found, problem


async def version_of(manager: asyncckpt.CheckpointManager, step: int, seed: int) -> int:
    """Load a step and compare every bit with what was saved; return its version, or -1."""
    try:
        record = manager._catalog.get(step)
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


def check_now(root: Path, history: History, seed: int, form: str) -> str | None:
    """Check a directory after a crash, in this process; return what is wrong, if something is."""
    if not root.exists():
        return history.judge({})
    try:
        found, problem = asyncio.run(survey(root, seed, form))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a loss
        return f"after the crash: {error!r}"
    return judge(found, problem, history)


def judge(found: Mapping[int, int], problem: str | None, history: History) -> str | None:
    """Say what is wrong, if something is."""
    return problem or history.judge(found)
