"""SIGTERM becomes "save and leave": the block is cancelled, the last state is durable, the exit status says why."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvloop
from gates import hold

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncckpt import SaveHandle

    LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["stock", "uvloop"]
)


def terminate() -> None:
    """Send ourselves SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def run(main: Callable[[], Any], loop_factory: LoopFactory | None = None) -> int:
    """Run a program that leaves; return its exit status."""
    with asyncio.Runner(loop_factory=loop_factory) as runner, pytest.raises(SystemExit) as caught:
        runner.run(main())
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


@LOOPS
@pytest.mark.parametrize("held", ["lock", "save", "closing", "delete"])
@pytest.mark.filterwarnings("ignore::asyncckpt.CheckpointWarning")
def test_a_disk_that_hangs_keeps_nobody_beyond_the_deadline(
    tmp_path: Path, held: str, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The deadline ends the grace of every manager: the program leaves while the disk still hangs, and logs nothing."""
    disk = FaultyDisk()
    opened = threading.Event()
    waited: list[int] = []

    def hang() -> None:
        if not opened.wait(20):
            waited.append(1)

    async def main() -> None:
        async with (
            asyncckpt.CheckpointManager(tmp_path / "outer", disk=disk, grace=3600) as outer,
            asyncckpt.CheckpointManager(tmp_path / "inner", disk=disk, grace=3600) as inner,
        ):

            async def save() -> SaveHandle | None:
                outer.save_nowait(1, {})
                handle = await inner.save(1, {})
                if held == "delete":
                    await inner.delete(0)  # behind the save
                return handle if held == "save" else None

            disk.fail("mkdir", hang, path_part="" if held == "lock" else "tmp_step_1", lasting=True)
            async with asyncckpt.leave_on_sigterm(save, deadline=0.1):
                terminate()
                await asyncio.sleep(3600)

    try:
        assert run(main, loop_factory) == 143
        assert not waited
    finally:
        opened.set()
    for thread in [each for each in threading.enumerate() if each.name.startswith("asyncckpt")]:
        thread.join()
    gc.collect()
    assert not caplog.records


@LOOPS
def test_a_signal_in_the_last_turn_of_the_block_counts(tmp_path: Path, loop_factory: LoopFactory) -> None:
    """The block never awaits again, so that nothing is left to cancel; its end is saved, and the status is 143."""

    async def main() -> None:
        async with asyncckpt.CheckpointManager(tmp_path) as manager:
            async with asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
                await asyncio.sleep(0)
                terminate()
            raise AssertionError("the program went on")

    assert run(main, loop_factory) == 143
    assert steps_in(tmp_path) == [1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


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
