"""A manager's failures keep nothing alive: neither what the caller had in its hands, nor what the job had."""

from __future__ import annotations

import asyncio
import errno
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate, hold, turns
from helpers.leftovers import Traced, are_gone, failure_of, no_collections

from asyncckpt import (
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
    DirectoryLockedError,
    SaveFailedError,
    StateMismatchError,
    UnsupportedLeafError,
)
from asyncckpt.disk import write_blocks
from asyncckpt.formats import array_reader
from asyncckpt.runtime.memory import aligned_array
from asyncckpt.saving import load_job
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

MIB = 1 << 20


def damage(directory: Path) -> None:
    """Flip a bit of a checkpoint's arrays."""
    path = next(directory.glob("state.*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def fail_unnoticed(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Let a save fail whose error no caller receives."""
    disk.fail("write", errno.EIO)
    await manager.save(9, {"a": 1})
    while manager._session.use().steps.in_flight:
        await asyncio.sleep(0)


async def load_missing(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001 - as all of them
    """Load what is not there."""
    await manager.load(99)


async def load_corrupt(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001
    """Load what is damaged."""
    await manager.load(2)


async def restore_other(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001
    """Restore into what does not fit."""
    await manager.restore(1, into={"w": np.zeros(1)})


async def verify_corrupt(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001
    """Verify what is damaged."""
    await manager.verify(2)


async def save_unsupported(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001
    """Save what cannot be saved, found in a thread."""
    await manager.save(9, [*range(1000), object()])


async def prewarm_unsupported(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001
    """Prewarm for what cannot be saved."""
    await manager.prewarm(object())


async def await_handle(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Await a save that fails."""
    disk.fail("write", errno.EIO)
    await (await manager.save(9, {"a": 1}))


async def stream(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Save what the budget does not hold, on a disk that fails."""
    disk.fail("write", errno.EIO, path_part="state")
    await manager.save(9, {"w": np.zeros(8 * MIB, "u1")})


async def flush(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Flush after a failure."""
    await fail_unnoticed(manager, disk)
    await manager.flush()


async def save_after(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Save after a failure."""
    await fail_unnoticed(manager, disk)
    await manager.save(10, {})


async def close_after(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Close after a failure."""
    await fail_unnoticed(manager, disk)
    await manager.aclose()


async def delete_missing(manager: CheckpointManager, disk: FaultyDisk) -> None:  # noqa: ARG001
    """Delete what is not there."""
    await manager.delete(99)


async def delete_failing(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Delete on a disk that fails."""
    disk.fail("rename", errno.EIO)
    await manager.delete(1)


async def begin_pending(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Make a pending directory on a disk that fails."""
    disk.fail("mkdir", errno.EIO)
    await manager.init_tmp_checkpoint(9)


async def finalize(manager: CheckpointManager, disk: FaultyDisk) -> None:
    """Commit a pending directory on a disk that fails."""
    path = await manager.init_tmp_checkpoint(9)
    disk.fail("rename", errno.EIO)
    await manager.finalize_checkpoint(path)


FAILURES: dict[Callable[[CheckpointManager, FaultyDisk], Awaitable[None]], type[BaseException]] = {
    load_missing: CheckpointNotFoundError,
    load_corrupt: CorruptCheckpointError,
    restore_other: StateMismatchError,
    verify_corrupt: CorruptCheckpointError,
    save_unsupported: UnsupportedLeafError,
    prewarm_unsupported: UnsupportedLeafError,
    await_handle: SaveFailedError,
    stream: SaveFailedError,
    flush: SaveFailedError,
    save_after: SaveFailedError,
    close_after: SaveFailedError,
    delete_missing: CheckpointNotFoundError,
    delete_failing: OSError,
    begin_pending: OSError,
    finalize: OSError,
}


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
async def test_a_failure_keeps_nothing_of_its_caller(tmp_path: Path, fail: Any) -> None:
    """When the error is gone, so is what the frames that it came through had in their hands."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=4 * MIB) as manager:
        for step in (1, 2):
            await (await manager.save(step, {"w": np.ones(MIB, "u1")}))
        damage(tmp_path / "step_2")
        assert await failure_of(lambda: fail(manager, disk)) == (FAILURES[fail], True)


async def test_nor_does_one_of_the_lock(tmp_path: Path) -> None:
    """Nothing keeps the failed attempt until the next one."""
    async with CheckpointManager(tmp_path) as first, CheckpointManager(tmp_path) as second:
        await (await first.save(1, {}))
        found = await failure_of(lambda: second.save(2, {}))
        assert found == (DirectoryLockedError, True)


async def test_nor_do_cancellations(tmp_path: Path) -> None:
    """Of a wait for a thread, for something in the queue, and for the end of the manager."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:

        async def flush_behind(step: int) -> None:
            await manager.save(step, {})
            await manager.flush()

        async def close_behind(step: int) -> None:
            await manager.save(step, {})
            await manager.aclose()

        for step, call in enumerate((manager.init_tmp_checkpoint, flush_behind, close_behind)):
            with hold(disk) as gate:
                task = asyncio.create_task(failure_of(partial(call, step)))
                await gate.reached()
                task.cancel()
                await turns(3)
            assert await task == (asyncio.CancelledError, True), call


async def test_a_cancelled_load_keeps_nothing_that_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a reference to the cancellation is kept, as a task does."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"leaf": Traced(), "w": np.ones(MIB, "u1")}))
        Traced.read.clear()
        with Gate() as gate, no_collections():
            monkeypatch.setattr(Traced, "gate", gate)
            task = asyncio.create_task(manager.load(1))
            await gate.reached()
            task.cancel()
            gate.open()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            assert await are_gone(Traced.read)
        assert caught.value.__traceback__ is not None


async def test_a_fallback_holds_one_checkpoint_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arrays of the damaged one are gone before those of its stand-in are made, and not in the loop's thread."""
    steps: list[list[weakref.ref[Any]]] = []
    alive: list[int] = []
    threads: list[threading.Thread] = []

    def gone(_: object) -> None:
        threads.append(threading.current_thread())

    def make(meta: Any) -> Any:
        alive.append(sum(reference() is not None for arrays in steps[:-1] for reference in arrays))
        made = aligned_array(meta.shape, meta.dtype)
        steps[-1].append(weakref.ref(made, gone))
        return made

    def load(*args: Any) -> Any:
        steps.append([])
        return load_checkpoint(*args)

    load_checkpoint = load_job.load_checkpoint
    monkeypatch.setattr(array_reader, "fresh_array", make)
    monkeypatch.setattr("asyncckpt.saving.loader.load_checkpoint", load)
    async with CheckpointManager(tmp_path) as manager:
        for step in (1, 2, 3):
            await (await manager.save(step, {"a": np.ones(MIB, "u1"), "b": np.ones(MIB, "u1")}))
        damage(tmp_path / "step_3")
        damage(tmp_path / "step_2")
        with no_collections(), pytest.warns(CheckpointWarning):
            loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.step == 1
        assert len(threads) == 4
        assert threading.current_thread() not in threads
    assert alive == [0] * 6
    assert [len(each) for each in steps] == [2, 2, 2]


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_kept_handle_keeps_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: Any) -> None:
    """Its save failed: the state, and the memory that it was gathered in, are gone; the cause tells where it failed."""
    references: list[weakref.ref[Any]] = []
    aligned_buffer = write_blocks.aligned_buffer

    def traced_buffer(nbytes: int) -> Any:
        made = aligned_buffer(nbytes)
        references.append(weakref.ref(made))
        return made

    monkeypatch.setattr(write_blocks, "aligned_buffer", traced_buffer)
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        pool = manager._session.pool
        await (await manager.save(1, {"w": np.ones(40 * MIB, "u1")}))
        await asyncio.wrap_future(manager._session.use().warmer.pending)  # type: ignore[arg-type] # there is one
        staged = pool.free_nbytes
        references.clear()
        state = {"w": np.ones(40 * MIB, "u1")}
        references.append(weakref.ref(state["w"]))
        disk.fail("write", errno.EIO, path_part="state")
        with no_collections():
            handle = await manager.save(2, state, frozen=frozen)
            del state
            kind, is_gone = await failure_of(lambda: wait_for(handle))
            assert (kind, is_gone) == (SaveFailedError, True)
            assert len(references) > 1, "nothing was gathered"
            assert await are_gone(references)
            assert pool.free_nbytes == staged
        with pytest.raises(SaveFailedError) as caught:
            await handle
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        names = [entry.name for entry in pytest.ExceptionInfo.from_exception(cause).traceback]
        assert "write_checkpoint" in names
        assert names[-1] == "_do"  # the disk's


async def wait_for(handle: Any) -> None:
    """Await a handle."""
    await handle


async def test_nor_if_the_directory_could_not_be_taken(tmp_path: Path) -> None:
    """A save that never came to be written is gone as well."""
    async with CheckpointManager(tmp_path) as first, CheckpointManager(tmp_path) as second:
        await (await first.save(1, {}))
        state = {"w": np.ones(10)}
        references = [weakref.ref(state["w"])]
        with no_collections():
            handle = second.save_nowait(2, state, frozen=True)
            del state
            assert await failure_of(lambda: wait_for(handle)) == (SaveFailedError, True)
            assert await are_gone(references)
