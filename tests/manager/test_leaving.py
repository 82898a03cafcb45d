"""SIGTERM becomes "save and leave": the block is cancelled, the last state is durable, the exit status says why."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gates import hold

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncckpt import SaveHandle


def terminate() -> None:
    """Send ourselves SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def run(main: Callable[[], Any]) -> int:
    """Run a program that leaves; return its exit status."""
    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    status = caught.value.code
    assert isinstance(status, int)
    return status


def steps_in(root: Path) -> list[int]:
    """List what is committed."""
    return [step for step, _, _ in asyncckpt._load_checkpoint_history(root)]


def test_the_last_state_is_saved_and_what_waited_too(tmp_path: Path) -> None:
    """The block ends at its next await, its `finally` first; then the state is saved, and the status is 143."""
    done = []

    async def main() -> None:
        state = {"at": 0}
        async with asyncckpt.CheckpointManager(tmp_path) as manager:
            async with asyncckpt.leave_on_sigterm(lambda: manager.save(state["at"], state)):
                await manager.save(1, {"queued": True})
                terminate()
                try:
                    while True:
                        state["at"] += 1
                        await asyncio.sleep(0)
                finally:
                    state["at"] = 7
                    done.append("finally")
            done.append("behind")

    assert run(main) == 143
    assert done == ["finally"]
    assert steps_in(tmp_path) == [1, 7]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_without_a_signal_nothing_happens(tmp_path: Path) -> None:
    """The block ends as it would, its exceptions come out, and the old handler is back."""
    before = signal.getsignal(signal.SIGTERM)
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        async with asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
            await asyncio.sleep(0)
        with pytest.raises(KeyError):
            async with asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
                raise KeyError
        assert manager.steps() == []
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_cancellation_by_others_stays_one(tmp_path: Path) -> None:
    """`asyncio.timeout` around the block works as ever, and saves nothing."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0), asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
                await asyncio.sleep(60)
        assert manager.steps() == []


def test_a_last_save_that_fails_is_raised(tmp_path: Path) -> None:
    """Not the exit status, but the failure comes out."""
    disk = FaultyDisk()

    async def main() -> None:
        async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
            disk.fail("sync", 5, lasting=True)
            async with asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
                terminate()
                await asyncio.sleep(60)

    with pytest.raises(asyncckpt.SaveFailedError):
        asyncio.run(main())


@pytest.mark.parametrize("ending", ["deadline", "second signal"])
def test_when_time_is_over_nothing_is_waited_for(tmp_path: Path, ending: str) -> None:
    """A disk that takes too long keeps nobody: it warns, and ends; what was committed stays."""
    disk = FaultyDisk()

    async def main() -> None:
        async with asyncckpt.CheckpointManager(tmp_path, disk=disk, grace=3600) as manager:
            await (await manager.save(1, {}))
            with hold(disk) as gate:
                seconds = 0.1 if ending == "deadline" else 3600.0

                async def save() -> SaveHandle:
                    handle = await manager.save(2, {"a": np.zeros(10)})
                    await gate.reached()
                    if ending == "second signal":
                        terminate()
                    return handle

                async with asyncckpt.leave_on_sigterm(save, deadline=seconds):
                    terminate()
                    await asyncio.sleep(60)

    with pytest.warns(asyncckpt.CheckpointWarning, match="time ran out"):
        assert run(main) == 143
    assert steps_in(tmp_path) in ([1], [1, 2])  # the second was stopped, or had been written by then


def test_other_threads_are_told(tmp_path: Path) -> None:
    """Signals come to the main thread only; elsewhere it is an error that says so."""
    told: list[Exception] = []

    async def main() -> None:
        async with asyncckpt.CheckpointManager(tmp_path) as manager:
            try:
                async with asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
                    pass
            except asyncckpt.ManagerUsageError as error:
                told.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert "main thread" in str(told[0])
