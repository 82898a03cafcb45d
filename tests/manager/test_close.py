"""How a manager ends: what is written, what is raised, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import math
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import uvloop
from helpers.gates import Gate, HeldPool, hold, turns
from helpers.support import descriptors_below, own_threads

from asyncckpt import (
    CheckpointManager,
    DirectoryLockedError,
    ManagerClosedError,
    SaveFailedError,
    SaveHandle,
    register_type,
)
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["stock", "uvloop"]
)


def steps_on_disk(path: Path) -> list[str]:
    """Return the names of everything that is, was or was to be a checkpoint."""
    return sorted(each.name for each in path.glob("*step_*"))


def notes(error: BaseException) -> str:
    """Return the notes of an error as one text."""
    return "\n".join(getattr(error, "__notes__", []))


# --- without a cancellation -------------------------------------------------------------------------------------------


async def test_leaving_writes_what_was_captured(tmp_path: Path) -> None:
    """Leaving the block waits until everything that was captured is durable."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handles = [await manager.save(step, np.full(MIB, step)) for step in range(3)]
            handles.append(manager.save_nowait(3, {}))
            await gate.reached()
    assert {each.state for each in handles} == {"committed"}
    assert steps_on_disk(tmp_path) == [f"step_{step}" for step in range(4)]


async def test_leaving_leaves_nothing_behind(tmp_path: Path) -> None:
    """After the block there are no threads, tasks, descriptors, buffers or locks of the manager's."""
    for round_number in range(2):
        tasks = asyncio.all_tasks()
        async with CheckpointManager(tmp_path, keep_latest_k=1) as manager:
            for step in range(round_number * 10, round_number * 10 + 3):
                await manager.save(step, np.ones(MIB))
            await manager.load("latest", missing_ok=True)
            await manager.flush()
            assert own_threads()
            assert descriptors_below(tmp_path) != [], "the lock's, at least"
        assert own_threads() == []
        assert asyncio.all_tasks() == tasks
        assert manager._session.pool.free_nbytes == 0
        assert descriptors_below(tmp_path) == []
    async with CheckpointManager(tmp_path) as second:
        await (await second.save(100, {}))


async def test_the_bodys_exception_comes_out_as_it_is(tmp_path: Path) -> None:
    """The body's own exception comes out, the same object, with failed saves as notes; the others are written."""
    disk = FaultyDisk()
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        async with CheckpointManager(tmp_path, disk=disk) as manager:
            disk.fail("sync", errno.ENOSPC, path_part="tmp_step_2")
            for step in (1, 2, 3):
                await manager.save(step, {})
            raise error
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert len(error.__notes__) == 1
    assert "step 2" in error.__notes__[0]
    assert os.strerror(errno.ENOSPC) in error.__notes__[0]
    assert steps_on_disk(tmp_path) == ["step_1", "step_3"]


async def test_a_bodys_exception_without_failures_has_no_notes(tmp_path: Path) -> None:
    """Without failed saves nothing is added; a failure that the body has received is no news either."""
    disk = FaultyDisk()
    with pytest.raises(ZeroDivisionError) as caught:
        async with CheckpointManager(tmp_path / "a", disk=disk) as manager:
            await manager.save(1, {})
            raise ZeroDivisionError
    assert notes(caught.value) == ""
    with pytest.raises(SaveFailedError) as failed:
        async with CheckpointManager(tmp_path / "b", disk=disk) as manager:
            disk.fail("sync", errno.EIO)
            await (await manager.save(1, {}))
    assert notes(failed.value) == ""


async def test_failures_are_raised_on_leaving(tmp_path: Path) -> None:
    """Without an exception of the body's, one failure is raised by itself, and several as an ExceptionGroup."""
    for count in (1, 2):
        disk = FaultyDisk()
        with pytest.raises((SaveFailedError, ExceptionGroup)) as caught:
            async with CheckpointManager(tmp_path / str(count), disk=disk) as manager:
                disk.fail("sync", errno.EIO, lasting=True)
                for step in range(count):
                    manager.save_nowait(step, {})
        error = caught.value
        errors = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        assert isinstance(error, ExceptionGroup) == (count > 1)
        assert [each.step for each in errors if isinstance(each, SaveFailedError)] == list(range(count))
        assert own_threads() == []


async def test_a_failing_save_does_not_cancel_the_body(tmp_path: Path) -> None:
    """A background save that fails leaves the body alone."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        handle = await manager.save(1, {})
        while not handle.is_done:
            await asyncio.sleep(0)
        await turns(10)
        with pytest.raises(SaveFailedError):
            await manager.flush()


# --- aclose -----------------------------------------------------------------------------------------------------------


async def test_all_who_close_wait(tmp_path: Path) -> None:
    """`aclose` may be called by several tasks and more than once: all return when everything is written."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {})
            await gate.reached()
            tasks = [asyncio.create_task(manager.aclose()) for _ in range(3)]
            done, _ = await asyncio.wait(tasks, timeout=0.02)
            assert not done
        await asyncio.gather(*tasks)
        assert handle.state == "committed"
        assert own_threads() == []
        await manager.aclose()
    await manager.aclose()


class Walked:
    """A leaf at which the walk of a state can be held."""

    gate: Gate | None = None

    def to_state(self) -> int:
        """Wait, if there is a gate."""
        if self.gate is not None:
            self.gate()
        return 1


register_type(Walked, to_state=Walked.to_state, from_state=lambda _: Walked())


async def test_a_save_that_needs_room_while_the_manager_closes_is_refused_at_once(tmp_path: Path) -> None:
    """It does not wait for the end of the save that is being written."""
    disk = FaultyDisk()
    manager = CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=9 * MIB)
    async with manager:
        with hold(disk) as gate, Gate() as walking:
            await manager.save(1, np.ones(MIB))
            await gate.reached()
            leaf = Walked()
            leaf.gate = walking
            saving = asyncio.create_task(manager.save(2, {"large": np.ones(MIB), "leaf": leaf}))
            await walking.reached()
            closing = asyncio.create_task(manager.aclose())
            await asyncio.sleep(0)
            walking.open()
            with pytest.raises(ManagerClosedError, match="clos"):
                await saving
            assert not closing.done()
        await closing


async def test_once_closing_saves_are_refused(tmp_path: Path) -> None:
    """New saves, and those waiting for room, for their turn or still being copied, get ManagerClosedError.

    Whatever had been captured is written.
    """
    disk = FaultyDisk()
    manager = CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=9 * MIB)
    async with manager:
        with hold(disk) as gate:
            first = await manager.save(1, np.ones(MIB))
            await gate.reached()
            waiting = [asyncio.create_task(manager.save(step, np.ones(MIB))) for step in (2, 3, 4)]
            flush = asyncio.create_task(manager.flush())
            delete = asyncio.create_task(manager.delete(1))
            done, _ = await asyncio.wait(waiting, timeout=0.05)
            assert not done
            closing = asyncio.create_task(manager.aclose())
            for task in waiting:
                with pytest.raises(ManagerClosedError, match="clos"):
                    await task
            with pytest.raises(ManagerClosedError):
                await manager.save(5, {})
            with pytest.raises(ManagerClosedError):
                manager.save_nowait(5, {})
            with pytest.raises(ManagerClosedError):
                await manager.load("latest")
            with pytest.raises(ManagerClosedError):
                await manager.flush()
            assert not closing.done()
        await closing
        await flush
        await delete
        assert first.state == "committed"
    assert steps_on_disk(tmp_path) == []


@pytest.mark.parametrize("stage", ["directory", "copy"])
async def test_a_save_that_is_being_captured_when_closing_begins(tmp_path: Path, stage: str) -> None:
    """It is refused, and never queued behind the writer's back."""
    disk = FaultyDisk()
    manager = CheckpointManager(tmp_path, disk=disk)
    pool = manager._session.pool = HeldPool()
    async with manager:
        if stage == "directory":
            gate = hold(disk, "open_lock", "")
        else:
            gate = pool.gate = Gate()
        with gate:
            task = asyncio.create_task(manager.save(1, {} if stage == "directory" else np.ones(MIB)))
            await gate.reached()
            closing = asyncio.create_task(manager.aclose())
            await turns(5)
        with pytest.raises(ManagerClosedError):
            await task
        await closing
        assert own_threads() == []
    assert pool.free_nbytes == 0
    assert steps_on_disk(tmp_path) == []
    async with CheckpointManager(tmp_path) as second:
        await (await second.save(1, {}))


async def test_a_save_called_when_the_writer_is_idle_and_closing(tmp_path: Path) -> None:
    """A `save` that races `aclose` either commits or raises; its handle never hangs."""
    for count in range(12):
        manager = await CheckpointManager(tmp_path / str(count)).__aenter__()
        task = asyncio.create_task(manager.save(1, {}))
        await turns(count)
        await manager.aclose()
        with suppress(ManagerClosedError):
            with anyio.fail_after(60):
                assert await (await task) is not None
            assert steps_on_disk(tmp_path / str(count)) == ["step_1"]


async def test_a_state_that_streams_when_closing_begins(tmp_path: Path) -> None:
    """A state that is being streamed is written to its end, and `save` gives its handle."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        with hold(disk, "write", "state.msgpack") as gate:
            task = asyncio.create_task(manager.save(1, np.ones(2 * MIB)))
            await gate.reached()
            closing = asyncio.create_task(manager.aclose())
            await turns(5)
        handle = await task
        await closing
        assert await handle is not None


async def test_a_load_that_runs_when_closing_begins(tmp_path: Path) -> None:
    """Closing waits for a load that runs, which ends well."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, np.ones(4 * MIB)))
        task = asyncio.create_task(manager.load("latest"))
        await turns(2)
        await manager.aclose()
        loaded = await task
        assert loaded is not None
        assert loaded.state.all()
        assert own_threads() == []


async def test_a_lock_that_is_being_taken_is_given_back(tmp_path: Path) -> None:
    """If the save that takes the lock is cancelled and the manager closed at once, the lock is free afterwards."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk, "open_lock", "") as gate:
            task = asyncio.create_task(manager.save(1, {}))
            await gate.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            closing = asyncio.create_task(manager.aclose())
            await turns(5)
        await closing
        async with CheckpointManager(tmp_path) as second:
            await (await second.save(1, {}))
    assert descriptors_below(tmp_path) == []


# --- under cancellation -----------------------------------------------------------------------------------------------


class Holder:
    """A task that holds a manager open, with saves queued behind one that is held at the disk."""

    def __init__(self, path: Path, body: Callable[[], Any] | None = None, **options: Any) -> None:
        self.disk = FaultyDisk()
        self.manager = CheckpointManager(path, disk=self.disk, **options)
        self.handles: list[SaveHandle] = []
        self.is_full = asyncio.Event()
        self.body = body
        self.gate = hold(self.disk)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.manager as manager:
            for step in range(3):
                self.handles.append(await manager.save(step, np.ones(MIB)))
            await self.gate.reached()
            self.is_full.set()
            if self.body is None:
                await asyncio.sleep(3600)
            else:
                await self.body()

    async def ended(self) -> BaseException | None:
        """Wait for the task's end, and return what it raised."""
        with anyio.fail_after(30):
            await asyncio.wait({self.task})
        return asyncio.CancelledError() if self.task.cancelled() else self.task.exception()


async def test_a_cancelled_body_has_grace(tmp_path: Path) -> None:
    """Under cancellation what was captured is written within `grace`, and CancelledError comes out without notes."""
    holder = Holder(tmp_path)
    with holder.gate:
        await holder.is_full.wait()
        holder.task.cancel()
        await turns(5)
        assert not holder.task.done()
    with pytest.raises(asyncio.CancelledError) as caught:
        await holder.task
    assert notes(caught.value) == ""
    assert {each.state for each in holder.handles} == {"committed"}
    assert own_threads() == []


@pytest.mark.parametrize("grace", [0, 0.01])
async def test_when_the_grace_is_over(tmp_path: Path, grace: float) -> None:
    """When the grace is over, what is being written stops, what waits fails, and all are named in what comes out."""
    holder = Holder(tmp_path, grace=grace)
    with holder.gate:
        await holder.is_full.wait()
        holder.task.cancel()
        while not holder.manager._session._open.deadline.is_over:
            await asyncio.sleep(0)
        assert not holder.task.done(), "a thread is waited for"
    with pytest.raises(asyncio.CancelledError) as caught:
        await holder.task
    for step in range(3):
        assert f"step {step}" in notes(caught.value)
    assert [each.state for each in holder.handles] == ["failed"] * 3
    for handle in holder.handles:
        with pytest.raises(SaveFailedError) as failed:
            await handle
        assert isinstance(failed.value.__cause__, ManagerClosedError)
    assert steps_on_disk(tmp_path) == []
    assert own_threads() == []
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(0, {}))


async def test_a_second_cancellation_ends_it(tmp_path: Path) -> None:
    """With endless grace, a second cancellation ends the drain; the unfinished saves are named."""
    holder = Holder(tmp_path, grace=math.inf)
    with holder.gate:
        await holder.is_full.wait()
        for _ in range(2):
            holder.task.cancel()
            await turns(5)
    with pytest.raises(asyncio.CancelledError) as caught:
        await holder.task
    for step in range(3):
        assert f"step {step}" in notes(caught.value)
    assert steps_on_disk(tmp_path) == []


@pytest.mark.parametrize("count", [1, 2])
async def test_cancelled_while_it_drains(tmp_path: Path, count: int) -> None:
    """A body that ended well, cancelled in the drain: once leaves grace, twice does not; CancelledError comes out."""

    async def body() -> None:
        pass

    holder = Holder(tmp_path, body, grace=math.inf)
    with holder.gate:
        await holder.is_full.wait()
        await turns(3)
        for _ in range(count):
            holder.task.cancel()
            await turns(5)
        assert not holder.task.done()
    with pytest.raises(asyncio.CancelledError) as caught:
        await holder.task
    if count == 1:
        assert {each.state for each in holder.handles} == {"committed"}
        assert notes(caught.value) == ""
    else:
        assert {each.state for each in holder.handles} == {"failed"}
        assert all(f"step {step}" in notes(caught.value) for step in range(3))


async def test_a_bodys_exception_beats_a_cancelled_drain(tmp_path: Path) -> None:
    """If the drain of a failed body is cancelled, the body's exception comes out, the unfinished saves in its notes."""

    async def body() -> None:
        raise ValueError

    holder = Holder(tmp_path, body, grace=0)
    with holder.gate:
        await holder.is_full.wait()
        await turns(3)
        holder.task.cancel()
        await turns(5)
    error = await holder.ended()
    assert isinstance(error, ValueError)
    assert all(f"step {step}" in notes(error) for step in range(3))


async def test_a_timeout_around_the_manager(tmp_path: Path) -> None:
    """An `asyncio.timeout` around the block becomes TimeoutError, after the drain."""
    handle = None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as scope, CheckpointManager(tmp_path) as manager:
            handle = await manager.save(1, np.ones(MIB))
            scope.reschedule(0)
            await asyncio.sleep(3600)
    assert handle is not None
    assert handle.state == "committed"


async def test_a_cancelled_scope_counts_once(tmp_path: Path) -> None:
    """A cancel scope of anyio's cancels over and over, and means it once: the grace is kept."""
    handle = None
    disk = FaultyDisk()
    gate = hold(disk)
    with anyio.CancelScope() as scope:
        async with CheckpointManager(tmp_path, disk=disk) as manager:
            handle = await manager.save(1, {})
            await gate.reached()
            asyncio.get_running_loop().call_later(0.05, gate.open)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert handle is not None
    assert handle.state == "committed"


async def test_a_cancelled_close_starts_the_countdown_for_all(tmp_path: Path) -> None:
    """If one of the tasks that close is cancelled, the manager ends within the grace, for all of them."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, grace=0) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {})
            await gate.reached()
            tasks = [asyncio.create_task(manager.aclose()) for _ in range(2)]
            await turns(3)
            tasks[0].cancel()
            while not manager._session._open.deadline.is_over:
                await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert handle.state == "failed"
        received = [each for each in results if each is not None and ("step 1" in str(each) or "step 1" in notes(each))]
        assert len(received) == 1


async def test_a_thread_that_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread stuck in a system call does not prevent closing: it alone remains, and keeps the lock until it ends."""
    monkeypatch.setattr("asyncckpt.saving.writer._STUCK_SECONDS", 0.05)
    monkeypatch.setattr("asyncckpt.saving.writer._POLL_SECONDS", 0.02)
    tasks = asyncio.all_tasks()
    holder = Holder(tmp_path, grace=0)
    with holder.gate:
        await holder.is_full.wait()
        holder.task.cancel()
        with anyio.fail_after(30):
            await asyncio.wait({holder.task})
        with pytest.raises(asyncio.CancelledError) as caught:
            await holder.task
        assert all(f"step {step}" in notes(caught.value) for step in range(3))
        assert [each.state for each in holder.handles] == ["failed"] * 3
        assert {task for task in asyncio.all_tasks() if "asyncckpt" in task.get_name()} <= tasks
        async with CheckpointManager(tmp_path) as second:
            with pytest.raises(DirectoryLockedError):
                await second.save(0, {})
    while own_threads():
        await asyncio.sleep(0.001)
    async with CheckpointManager(tmp_path) as third:
        assert third.steps() == []
        await (await third.save(0, {}))


# --- the end of a loop ------------------------------------------------------------------------------------------------


def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], main: Any) -> Any:
    """Do as `asyncio.run`."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(main)


class Brake:
    """Holds the first save at the disk until the task that holds the manager has been cancelled."""

    def __init__(self) -> None:
        self.disk = FaultyDisk()
        self.reached = threading.Event()
        self.cancelled = threading.Event()
        self.disk.fail("mkdir", self._stop, path_part="tmp_step_")

    def _stop(self) -> None:
        self.reached.set()
        assert self.cancelled.wait(60)

    async def until_reached(self) -> None:
        """Wait until the disk is idle."""
        while not self.reached.is_set():
            await asyncio.sleep(0)


async def _save(manager: CheckpointManager, step: int, *, is_nowait: bool) -> SaveHandle:
    return manager.save_nowait(step, {}) if is_nowait else await manager.save(step, np.ones(MIB))


@LOOPS
@pytest.mark.parametrize("is_nowait", [False, True])
def test_a_loop_that_ends_with_saves_pending(tmp_path: Path, loop_factory: Any, is_nowait: bool) -> None:
    """`asyncio.run` ends while another task holds the manager: one cancellation, however many tasks it strikes.

    What was captured is written within the grace.
    """
    brake = Brake()
    is_full = asyncio.Event()
    handles: list[SaveHandle] = []

    async def hold_open() -> None:
        async with CheckpointManager(tmp_path, disk=brake.disk) as manager:
            save = functools.partial(_save, manager, is_nowait=is_nowait)
            handles.extend([await save(step) for step in range(3)])
            is_full.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                asyncio.get_running_loop().call_later(0.05, brake.cancelled.set)
                raise

    async def main() -> None:
        main.task = asyncio.create_task(hold_open())  # type: ignore[attr-defined]
        await is_full.wait()
        await brake.until_reached()

    run(loop_factory, main())
    assert [each.state for each in handles] == ["committed"] * 3
    assert steps_on_disk(tmp_path) == ["step_0", "step_1", "step_2"]
    assert own_threads() == []


@LOOPS
def test_a_loop_that_ends_while_the_directory_is_taken(tmp_path: Path, loop_factory: Any) -> None:
    """The loop ends while the writer takes the lock for a first `save_nowait`: the save is written all the same."""
    disk = FaultyDisk()
    reached, cancelled = threading.Event(), threading.Event()

    def stop() -> None:
        reached.set()
        assert cancelled.wait(60)

    disk.fail("open_lock", stop)
    handles: list[SaveHandle] = []

    async def hold_open() -> None:
        async with CheckpointManager(tmp_path, disk=disk) as manager:
            handles.append(manager.save_nowait(1, {}))
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                asyncio.get_running_loop().call_later(0.05, cancelled.set)
                raise

    async def main() -> None:
        main.task = asyncio.create_task(hold_open())  # type: ignore[attr-defined]
        while not reached.is_set():
            await asyncio.sleep(0)

    run(loop_factory, main())
    assert handles[0].state == "committed"
    assert steps_on_disk(tmp_path) == ["step_1"]


@LOOPS
def test_a_loop_that_ends_while_a_task_closes(tmp_path: Path, loop_factory: Any) -> None:
    """The loop ends while another task is in `aclose`: the threads end, the saves are written, the lock is free."""
    brake = Brake()
    handles: list[SaveHandle] = []

    async def close(manager: CheckpointManager) -> None:
        try:
            await manager.aclose()
        finally:
            assert own_threads() == []

    async def main() -> None:
        manager = await CheckpointManager(tmp_path, disk=brake.disk).__aenter__()
        handles.append(await manager.save(1, {}))
        main.task = asyncio.create_task(close(manager))  # type: ignore[attr-defined]
        await brake.until_reached()
        asyncio.get_running_loop().call_later(0.05, brake.cancelled.set)

    run(loop_factory, main())
    assert handles[0].state == "committed"
    assert own_threads() == []


@LOOPS
def test_a_loop_that_ends_with_the_manager_open(tmp_path: Path, loop_factory: Any) -> None:
    """Nobody closes the manager: what was captured is written when the loop ends, and a ResourceWarning says so.

    The lock goes with the manager.
    """
    handles: list[SaveHandle] = []

    async def main() -> CheckpointManager:
        manager = await CheckpointManager(tmp_path).__aenter__()
        handles.extend([await manager.save(1, np.ones(MIB)), manager.save_nowait(2, {})])
        return manager

    manager = run(loop_factory, main())
    assert [each.state for each in handles] == ["committed"] * 2
    with pytest.warns(ResourceWarning, match="never closed"):
        del manager
        gc.collect()

    async def again() -> None:
        async with CheckpointManager(tmp_path) as second:
            await (await second.save(3, {}))

    gc.collect()
    run(loop_factory, again())


@LOOPS
@pytest.mark.parametrize("is_signal", [False, True])
def test_a_keyboard_interrupt(tmp_path: Path, loop_factory: Any, is_signal: bool) -> None:
    """Ctrl-C: what was captured is written within the grace, and KeyboardInterrupt comes out."""
    handles: list[SaveHandle] = []

    async def main() -> None:
        async with CheckpointManager(tmp_path) as manager:
            handles.extend([await manager.save(step, np.ones(MIB)) for step in range(3)])
            if not is_signal:
                raise KeyboardInterrupt
            asyncio.get_running_loop().call_soon(functools.partial(os.kill, os.getpid(), signal.SIGINT))
            await asyncio.sleep(3600)

    with pytest.raises(KeyboardInterrupt):
        run(loop_factory, main())
    assert [each.state for each in handles] == ["committed"] * 3
    assert own_threads() == []


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_cancelled_while_it_opens(tmp_path: Path) -> None:
    """Cancelled while the directory is listed: no thread or descriptor stays behind."""
    await asyncio.to_thread((tmp_path / "tmp_step_1").mkdir)
    disk = FaultyDisk()
    with hold(disk, "open_lock", "") as gate:
        manager = CheckpointManager(tmp_path, disk=disk)
        task = asyncio.create_task(manager.__aenter__())
        await gate.reached()
        task.cancel()
        await turns(3)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert own_threads() == []
    async with CheckpointManager(tmp_path) as second:
        await (await second.save(1, {}))
