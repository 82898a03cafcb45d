"""What a manager says to a mistake: what is the matter, and what to do instead."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

from asyncckpt import (
    CheckpointManager,
    CheckpointWarning,
    ConfigError,
    DirectoryLockedError,
    ManagerClosedError,
    ManagerUsageError,
)
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TAKES_STEP: dict[str, Callable[[CheckpointManager, Any], Any]] = {
    "should_save": lambda manager, step: manager.should_save(step),
    "save": lambda manager, step: manager.save(step, {}),
    "save_nowait": lambda manager, step: manager.save_nowait(step, {}),
    "delete": lambda manager, step: manager.delete(step),
    "load": lambda manager, step: manager.load(step),
    "restore": lambda manager, step: manager.restore(step, into={}),
    "verify": lambda manager, step: manager.verify(step),
    "init_tmp_checkpoint": lambda manager, step: manager.init_tmp_checkpoint(step),
    "checkpoint": lambda manager, step: manager.checkpoint(step).__aenter__(),
}
HOLDER = """
import asyncio, sys
import asyncckpt

async def main():
    async with asyncckpt.CheckpointManager(sys.argv[1]) as manager:
        await (await manager.save(1, {}))
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


async def call(use: str, manager: CheckpointManager, step: object) -> Any:
    """Call a method with a step, and await what is to be awaited."""
    result = TAKES_STEP[use](manager, step)
    return await result if asyncio.iscoroutine(result) else result


# --- steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", TAKES_STEP)
@pytest.mark.parametrize(
    ("step", "said"),
    [
        (3.0, r"3\.0 \(float\): pass 3, or int\(step\)"),
        (np.float32(3), r"\(float32\): pass 3"),
        (3.5, r"3\.5 \(float\)$"),
        (float("nan"), r"nan \(float\)$"),
        (float("inf"), r"inf \(float\)$"),
        (True, r"True \(bool\)$"),
        (None, r"None \(NoneType\)$"),
        ("3", r"'3' \(str\): pass the int 3$"),
        ("step_3", "pass the int 3$"),
        ("runs/step_3/", "pass the int 3"),
        ([3], r"\[3\] \(list\)$"),
    ],
)
async def test_what_is_no_step(tmp_path: Path, use: str, step: object, said: str) -> None:
    """Whatever takes a step says what it got instead, of which type, and what to pass; nothing is written."""
    async with CheckpointManager(tmp_path / "a") as manager:
        with pytest.raises(TypeError, match=said):
            await call(use, manager, step)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("use", TAKES_STEP)
@pytest.mark.parametrize("step", [-1, np.int8(-1), 1 << 63])
async def test_a_step_out_of_range(tmp_path: Path, use: str, step: object) -> None:
    """Whatever takes a step names the range."""
    async with CheckpointManager(tmp_path / "a") as manager:
        with pytest.raises(ValueError, match=r"an int from 0 to 9223372036854775807, not (-1|9223372036854775808)$"):
            await call(use, manager, step)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.asarray])
async def test_steps_of_numpy(tmp_path: Path, kind: Callable[[int], Any]) -> None:
    """An integer of numpy is a step everywhere, and an int of Python from there on."""
    async with CheckpointManager(tmp_path, save_period=5) as manager:
        assert manager.should_save(kind(5)) is True
        assert manager.should_save(kind(6)) is False
        handle = await manager.save(kind(5), {"a": 1})
        assert type(handle.step) is int
        await handle
        loaded = await manager.load(kind(5))
        assert loaded is not None
        assert type(loaded.step) is int
        await manager.restore(kind(5), into={"a": 0})
        await manager.verify(kind(5))
        async with manager.checkpoint(kind(6)):
            pass
        assert [(type(step), step) for step in manager.steps()] == [(int, 5), (int, 6)]
        await manager.delete(kind(5))
        assert manager.steps() == [6]


@pytest.mark.parametrize("use", ["load", "restore"])
@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("newest", "latest"),
        ("last", "latest"),
        ("Latest", "latest"),
        ("LATEST ", "latest"),
        ("lastest", "latest"),
        ("best ", "best"),
        ("Best", "best"),
        ("bset", "best"),
    ],
)
async def test_a_word_that_is_not_known(tmp_path: Path, use: str, word: str, meant: str) -> None:
    """It names the words that there are, and the one that was meant."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(TypeError, match=f'"latest", "best", a step.*{word}.*did you mean "{meant}"') as caught:
            await call(use, manager, word)
        assert "None" not in str(caught.value)


async def test_a_word_that_is_like_none(tmp_path: Path) -> None:
    """It names the words that there are, and guesses nothing."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(
            TypeError, match=r'^a checkpoint is named by "latest", "best", a step.*, not by \'first\' \(str\)$'
        ):
            await manager.load("first")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="pass the int 50"):
            await manager.load("step_50")  # type: ignore[arg-type]


@pytest.mark.parametrize("use", sorted(TAKES_STEP.keys() - {"load", "restore"}))
@pytest.mark.parametrize("word", ["latest", "best"])
async def test_a_word_where_a_step_is_needed(tmp_path: Path, use: str, word: str) -> None:
    """It says how to get the step."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(TypeError, match=rf"only load and restore take the word; {word}_step\(\) returns the step"):
            await call(use, manager, word)


# --- entering and leaving ---------------------------------------------------------------------------------------------


async def test_with_instead_of_async_with(tmp_path: Path) -> None:
    """`with` says that it takes `async with`, also through an ExitStack; the manager may still be entered."""
    manager: Any = CheckpointManager(tmp_path)
    with pytest.raises(ManagerUsageError, match="use `async with`"), manager:
        pass
    with ExitStack() as stack, pytest.raises(ManagerUsageError, match="use `async with`"):
        stack.enter_context(manager)
    async with manager:
        pass


async def test_closing_and_closed(tmp_path: Path) -> None:
    """While it closes it says that it is closing; afterwards, that it is closed, and what to do."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            await manager.save(1, {})
            await gate.reached()
            closing = asyncio.create_task(manager.aclose())
            await asyncio.sleep(0)
            with pytest.raises(ManagerClosedError, match="is closing: it takes no more work"):
                await manager.save(2, {})
        await closing
    for use in ("save", "load", "delete"):
        with pytest.raises(ManagerClosedError, match="is closed: make a new one"):
            await call(use, manager, 1)


async def test_entered_twice(tmp_path: Path) -> None:
    """It says whether it is open, or was."""
    manager = CheckpointManager(tmp_path)
    async with manager:
        with pytest.raises(ManagerClosedError, match="is entered already: make a new one"):
            await manager.__aenter__()
    with pytest.raises(ManagerClosedError, match="was entered before: make a new one"):
        await manager.__aenter__()


async def test_never_entered(tmp_path: Path) -> None:
    """A manager that is dropped without having been entered says so, whatever was asked of it."""
    manager = CheckpointManager(tmp_path / "runs")
    manager.should_save(1)
    with pytest.raises(ManagerUsageError, match="is not open: use it inside `async with`"):
        await manager.save(1, {})
    with pytest.warns(CheckpointWarning, match="runs'> was never entered.*use it in `async with`"):
        del manager
        gc.collect()


def test_never_entered_and_nothing_lost(tmp_path: Path) -> None:
    """One that is disabled, or could not be made, is dropped without a word."""
    CheckpointManager(tmp_path, enabled=False)
    with pytest.raises(ConfigError):
        CheckpointManager(tmp_path, keep_topk=1)  # type: ignore[call-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointWarning, match="keep_every"):
            CheckpointManager(tmp_path, keep_every=1)
    gc.collect()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("manager = asyncckpt.CheckpointManager(sys.argv[1])", "never entered"),
        ("manager = asyncckpt.CheckpointManager(sys.argv[1]); manager.itself = manager; gc.disable()", None),
        ("manager = asyncio.run(asyncckpt.CheckpointManager(sys.argv[1]).__aenter__())", "never closed"),
        ("asyncckpt.CheckpointManager(sys.argv[1], enabled=False)", None),
    ],
)
def test_at_the_end_of_the_interpreter(tmp_path: Path, script: str, said: str | None) -> None:
    """A warning may come as late as that, and then does no harm."""
    command = [sys.executable, "-W", "always", "-c", f"import asyncio, gc, sys, asyncckpt\n{script}\n", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    if said is not None:
        assert said in done.stderr


# --- the lock ---------------------------------------------------------------------------------------------------------


async def test_locked_by_this_process(tmp_path: Path) -> None:
    """The holder is named as another manager of this process, if it is one, and the way out is its own."""
    async with CheckpointManager(tmp_path) as first, CheckpointManager(tmp_path) as second:
        await (await first.save(1, {}))
        with pytest.raises(DirectoryLockedError, match=r"another CheckpointManager of this process.*close it first"):
            await second.save(2, {})


async def test_locked_by_another_process(tmp_path: Path) -> None:
    """The holder is another writer, also after a manager of this process has had the lock."""
    async with CheckpointManager(tmp_path) as earlier:
        await (await earlier.save(0, {}))
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(DirectoryLockedError, match="another writer holds the lock") as caught:
            await manager.save(2, {})
        assert "this process" not in str(caught.value)
    await holder.communicate(b"")
