"""SaveHandle: its states, and that each failure is received once."""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold, poke, turns

from asyncckpt import CheckpointManager, SaveFailedError, SaveHandle
from asyncckpt.saving.tracking import TRANSITIONS, SaveState, SaveTracker
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path


async def failing(manager: CheckpointManager, disk: FaultyDisk, step: int, **more: Any) -> SaveHandle:
    """Queue a save and let it fail."""
    disk.fail("sync", errno.EIO, path_part=f"tmp_step_{step}")
    handle = await manager.save(step, {}, **more)
    while not handle.is_done:
        await asyncio.sleep(0)
    assert handle.state == "failed"
    return handle


# --- awaiting ---------------------------------------------------------------------------------------------------------


async def test_awaiting_gives_the_record(tmp_path: Path) -> None:
    """A handle may be awaited many times, by many tasks, before and after the commit; all get the record."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(4, {}, training_info={"loss": np.float32(0.5)})

            async def wait() -> object:
                return await handle

            tasks = [asyncio.create_task(wait()) for _ in range(5)]
            await gate.reached()
        records = [*await asyncio.gather(*tasks), await handle, await handle]
        record = records[0]
        assert record is not None
        assert (record.step, record.path, record.training_info) == (4, tmp_path / "step_4", {"loss": 0.5})
        assert all(each == record for each in records)
    assert await handle == record, "also when the manager is closed"


async def test_committed_means_durable(tmp_path: Path) -> None:
    """A handle resolves, and the step is listed, only after the parent directory is synced."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, {}))
        with hold(disk, "sync_directory", str(tmp_path), after=1) as gate:  # the pending one, then the parent
            handle = await manager.save(2, {})
            await gate.reached()
            assert (tmp_path / "step_2").is_dir()
            assert handle.state == "writing"
            assert manager.steps() == [1]
            assert manager.latest_step() == 1
            assert manager.statistics().last_committed_step == 1
            assert await manager.get_latest_checkpoint_path() == str(tmp_path / "step_1")
        await handle
        assert manager.latest_step() == 2


async def test_a_cancelled_awaiter_does_not_cancel_the_save(tmp_path: Path) -> None:
    """Cancelling who awaits a handle, by `cancel` or by a timeout, leaves the save as it was."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            writing = await manager.save(1, {})
            queued = await manager.save(2, {})
            await gate.reached()
            for handle in (writing, queued):
                task = asyncio.ensure_future(handle)
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(handle, 0.001)
            assert (writing.state, queued.state) == ("writing", "queued")
        assert await writing is not None
        assert await queued is not None


async def test_every_awaiter_gets_a_fresh_error(tmp_path: Path) -> None:
    """Each await of a failed save raises a new SaveFailedError, from the cause, naming the step."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        handle = await manager.save(3, {})

        async def wait() -> object:
            return await handle

        errors = await asyncio.gather(wait(), wait(), return_exceptions=True)
        for _ in range(2):
            with pytest.raises(SaveFailedError) as caught:
                await handle
            errors.append(caught.value)
        assert len({id(each) for each in errors}) == 4
        for error in errors:
            assert isinstance(error, SaveFailedError)
            assert error.step == 3
            assert "step 3" in str(error)
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == errno.EIO
        assert manager.steps() == []


async def test_a_failed_step_is_free(tmp_path: Path) -> None:
    """A step whose save failed may be saved again; what the first had written is gone."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        for operation in ("mkdir", "create", "write", "sync", "sync_directory", "rename"):
            disk.fail(operation, errno.EIO, path_part="tmp_step_1")
            with pytest.raises(SaveFailedError, match="step 1"):
                await (await manager.save(1, {"a": np.zeros(100_000)}))
            assert manager.steps() == []
        record = await (await manager.save(1, {"a": np.ones(100_000)}))
        assert record is not None
        assert [each.name for each in tmp_path.glob("*step*")] == ["step_1"]


# --- failures that no caller has received -----------------------------------------------------------------------------


async def test_an_unreceived_failure_is_raised_by_the_next_save(tmp_path: Path) -> None:
    """The next `save` raises it, once, before it captures anything; its own step stays free."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await failing(manager, disk, 1)
        with pytest.raises(SaveFailedError, match="step 1"):
            await manager.save(2, {"bad": object()})  # not even looked at
        assert await (await manager.save(2, {})) is not None
        await failing(manager, disk, 3)
        with pytest.raises(SaveFailedError, match="step 3"):
            manager.save_nowait(4, {})
        assert await manager.save_nowait(4, {}) is not None
        await manager.flush()


async def test_an_unreceived_failure_is_raised_by_flush(tmp_path: Path) -> None:
    """`flush` raises it, once; several come as an ExceptionGroup."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        await manager.save(1, {})
        with pytest.raises(SaveFailedError, match="step 1"):
            await manager.flush()
        await manager.flush()
        disk.fail("sync", errno.EIO, lasting=True)
        for step in (2, 3, 4):
            manager.save_nowait(step, {})
        with pytest.raises(ExceptionGroup) as caught:
            await manager.flush()
        assert [error.step for error in caught.value.exceptions if isinstance(error, SaveFailedError)] == [2, 3, 4]
        disk.heal()
        await manager.flush()


async def test_an_unreceived_failure_is_raised_by_aclose(tmp_path: Path) -> None:
    """`aclose` raises it, once: leaving the block, or closing again, says it no more."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        await manager.save(1, {})
        with pytest.raises(SaveFailedError, match="step 1"):
            await manager.aclose()
        await manager.aclose()


async def test_a_received_failure_is_raised_no_more(tmp_path: Path) -> None:
    """What an awaiter has received, neither the next save nor closing raises."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        handle = await failing(manager, disk, 1)
        with pytest.raises(SaveFailedError):
            await handle
        await (await manager.save(2, {}))
        await manager.flush()


async def test_a_failure_that_is_awaited_is_its_awaiters(tmp_path: Path) -> None:
    """While a task awaits the handle, it receives the failure; if it is cancelled before, the next caller does."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(0, {}))
        poking = asyncio.create_task(poke(manager))
        with hold(disk) as gate:
            disk.fail("sync", errno.EIO)
            handle = await manager.save(1, {})
            awaiting = asyncio.ensure_future(handle)
            flush = asyncio.create_task(manager.flush())
            await gate.reached()
        with pytest.raises(SaveFailedError):
            await awaiting
        await flush
        poking.cancel()
        assert await poking == []
        with hold(disk) as gate:
            disk.fail("sync", errno.EIO)
            handle = await manager.save(1, {})
            awaiting = asyncio.ensure_future(handle)
            await gate.reached()
            awaiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await awaiting
        with pytest.raises(SaveFailedError):
            await manager.flush()


async def test_a_dropped_handle_still_reports(tmp_path: Path) -> None:
    """A failure is reported even if the caller threw the handle away."""
    disk = FaultyDisk()
    with pytest.raises(SaveFailedError, match="step 1"):
        async with CheckpointManager(tmp_path, disk=disk) as manager:
            disk.fail("sync", errno.EIO)
            await manager.save(1, {})


# --- states -----------------------------------------------------------------------------------------------------------


def test_the_table_of_transitions() -> None:
    """Every state is in the table; those that end a save lead nowhere, and each can be reached, or begins."""
    assert set(TRANSITIONS) == set(SaveState)
    assert {state.value for state in SaveState} == {
        "queued",
        "writing",
        "committed",
        "failed",
        "skipped",
        "replaced",
        "cancelled",
    }
    final = {state for state, moves in TRANSITIONS.items() if not moves}
    assert final == set(SaveState) - {SaveState.QUEUED, SaveState.WRITING}
    reached = set().union(*TRANSITIONS.values()) | {SaveState.QUEUED, SaveState.SKIPPED}
    assert reached == set(SaveState)
    assert TRANSITIONS[SaveState.WRITING] == {SaveState.COMMITTED, SaveState.FAILED}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(SaveState, SaveState)))
async def test_no_other_transition_happens(old: SaveState, new: SaveState) -> None:
    """A move that is not in the table is refused, and changes nothing."""
    tracker = SaveTracker(1, old)
    if new in TRANSITIONS[old]:
        tracker.move(new)
        assert SaveHandle(tracker).state == new
        assert SaveHandle(tracker).is_done == (not TRANSITIONS[new])
    else:
        with pytest.raises(AssertionError, match=f"{old} to {new}"):
            tracker.move(new)
        assert tracker.state == old


async def test_states_of_a_save(tmp_path: Path) -> None:
    """A save is queued, then writing, then committed, and says so."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            first, second = manager.save_nowait(1, {}), manager.save_nowait(2, {})
            assert first.state == second.state == "queued"
            await gate.reached()
            assert (first.state, second.state) == ("writing", "queued")
            assert not first.is_done
            assert manager.statistics().queue_depth == 1
        await second
        assert first.state == second.state == "committed"
        assert first.is_done
        assert "step=1" in repr(first)
        assert "committed" in repr(first)


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_cancel_before_writing(tmp_path: Path) -> None:
    """A queued save can be cancelled: it resolves to None, frees its step and its bytes, and nothing is written."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            first = await manager.save(1, {})
            await gate.reached()
            staged = manager.statistics().staged_nbytes
            second = await manager.save(2, np.zeros(1_000_000))
            awaiting = asyncio.ensure_future(second)
            await asyncio.sleep(0)
            assert second.cancel()
            assert second.state == "cancelled"
            assert await awaiting is None
            assert await second is None
            assert manager.statistics().staged_nbytes == staged
            assert manager.statistics().queue_depth == 0
            assert not second.cancel(), "it is cancelled already"
            again = await manager.save(2, "again")
            assert not first.cancel(), "it is being written"
            assert first.state == "writing"
        assert await first is not None
        assert await again is not None
        assert not first.cancel(), "it is committed"
        assert not second.cancel()
        loaded = await manager.load(2)
        assert loaded is not None
        assert loaded.state == "again"


async def test_cancelled_saves_make_room(tmp_path: Path) -> None:
    """A save that waits for room goes on when a queued one is cancelled."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=20 << 20) as manager:
        with hold(disk) as gate:
            await manager.save(1, np.zeros(1 << 20))
            await gate.reached()
            second = await manager.save(2, np.zeros(1 << 20))
            task = asyncio.create_task(manager.save(3, np.zeros(1 << 20)))
            done, _ = await asyncio.wait({task}, timeout=0.01)
            assert not done
            second.cancel()
            third = await task
            assert third.state == "queued"
        await third
        assert manager.steps() == [1, 3]


# --- progress, timings, byte counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
async def test_progress_and_timings(tmp_path: Path, format_name: Any) -> None:
    """Progress grows up to the size of the state file, and the timings follow each other."""
    disk = FaultyDisk()
    seen: list[tuple[int, int]] = []
    looking = threading.Lock()

    def look() -> None:
        with looking:  # several threads write: what one has read is noted before another reads
            seen.append(handle.progress())

    async with CheckpointManager(tmp_path, disk=disk, format=format_name) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, np.ones(9 << 20))
            await gate.reached()
            assert handle.progress().written_nbytes == 0
            timings = handle.timings
            assert timings.blocked is not None
            assert timings.queued is not None
            assert timings.written is None
            assert timings.committed is None
            assert handle.captured_nbytes >= 9 << 23
            disk.fail("write", look, lasting=True)
            disk.fail("sync", look, path_part="state.")
        await handle
    seen.append(handle.progress())
    path = next((tmp_path / "step_1").glob("state.*"))
    assert handle.progress() == (path.stat().st_size, path.stat().st_size)
    assert [each for each, _ in seen] == sorted(each for each, _ in seen)
    assert len({each for each, _ in seen}) > 2
    assert {total for _, total in seen} == {path.stat().st_size}
    blocked, queued, written, committed = handle.timings
    assert blocked is not None
    assert queued is not None
    assert written is not None
    assert committed is not None
    assert 0 <= blocked <= queued <= written <= committed


async def test_a_skipped_handle(tmp_path: Path) -> None:
    """A skipped save resolves to None at once, has captured nothing, and cannot be cancelled."""
    async with CheckpointManager(tmp_path, enabled=False) as manager:
        handle = await manager.save(1, {})
        assert handle.state == "skipped"
        assert handle.is_done
        assert await handle is None
        assert handle.captured_nbytes == 0
        assert handle.progress() == (0, 0)
        assert handle.timings == (None, None, None, None)
        assert not handle.cancel()


async def test_waiting_on_many_handles_at_once(tmp_path: Path) -> None:
    """Handles go where awaitables go: gather, wait_for, shield, TaskGroup."""
    async with CheckpointManager(tmp_path) as manager:
        handles = [await manager.save(step, {}) for step in range(4)]
        records = await asyncio.gather(*handles, handles[0])
        assert [each and each.step for each in records] == [0, 1, 2, 3, 0]
        assert await asyncio.shield(handles[0]) == await asyncio.wait_for(handles[0], 10)
        await turns(1)
