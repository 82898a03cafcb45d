"""SIGTERM becomes "save and leave": the block is cancelled, the last state is durable, the exit status says why."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import uvloop
from helpers.gates import hold

import asyncckpt
from asyncckpt.saving import signals, sigterm
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import FrameType

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
    """If the disk takes too long, the program warns and ends; what was committed stays."""
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
def test_a_disk_that_hangs_delays_no_program_beyond_the_deadline(
    tmp_path: Path, held: str, loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """The deadline ends the grace of every manager: the program leaves while the disk still hangs, and logs nothing."""
    disk = FaultyDisk()
    opened = threading.Event()
    waited: list[int] = []

    def hang() -> None:
        if not opened.wait(60):
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


def test_other_threads_are_refused(tmp_path: Path) -> None:
    """Signals come to the main thread only; elsewhere it is an error that says so."""
    raised: list[Exception] = []

    async def main() -> None:
        async with asyncckpt.CheckpointManager(tmp_path) as manager:
            try:
                async with asyncckpt.leave_on_sigterm(lambda: manager.save(1, {})):
                    pass
            except asyncckpt.ManagerUsageError as error:
                raised.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


async def test_blocks_do_not_overlap() -> None:
    """A program leaves once: a second block would have its save or the first one's forgotten."""

    async def save() -> None:
        """Nothing."""

    async with asyncckpt.leave_on_sigterm(save):
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(asyncckpt.ManagerUsageError, match="around all"):
            async with asyncckpt.leave_on_sigterm(save):
                pass
        assert signal.getsignal(signal.SIGTERM) == handler
    async with asyncckpt.leave_on_sigterm(save):
        pass


async def test_a_signal_that_cannot_be_handled_is_an_error() -> None:
    """No block is entered, and a later one works."""

    async def save() -> None:
        """Nothing."""

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="cannot be caught"):
        async with asyncckpt.leave_on_sigterm(save, signals=(signal.SIGTERM, signal.SIGKILL)):
            pass
    assert signal.getsignal(signal.SIGTERM) == before
    async with asyncckpt.leave_on_sigterm(save):
        pass


async def test_a_handler_of_the_loop_for_the_signal_is_removed() -> None:
    """With a warning: one that cancels the task would cancel the last save. Those for other signals stay."""

    async def save() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        saved.append(1)

    saved: list[int] = []
    loop, other = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    loop.add_signal_handler(signal.SIGUSR1, other.set)
    try:
        with (
            pytest.raises(SystemExit),
            pytest.warns(asyncckpt.CheckpointWarning, match="the loop's handler for SIGTERM is removed") as caught,
        ):
            async with asyncckpt.leave_on_sigterm(save):
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.wait_for(other.wait(), 30)
                terminate()
                await asyncio.sleep(3600)
        assert saved == [1]
        assert [each.filename for each in caught] == [__file__]
    finally:
        assert not loop.remove_signal_handler(signal.SIGTERM)
        assert loop.remove_signal_handler(signal.SIGUSR1)


async def test_a_handler_that_is_set_within_the_block_stays() -> None:
    """It replaces ours, on the loop as elsewhere."""

    async def save() -> None:
        raise AssertionError("the signal was not ours")

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    try:
        async with asyncckpt.leave_on_sigterm(save):
            loop.add_signal_handler(signal.SIGTERM, stop.set)
            terminate()
            await asyncio.wait_for(stop.wait(), 30)
        stop.clear()
        terminate()
        await asyncio.wait_for(stop.wait(), 30)
    finally:
        assert loop.remove_signal_handler(signal.SIGTERM)


async def test_a_handler_of_pythons_that_is_set_within_the_block_stays() -> None:
    """It alone is called, although the loop had been told to wake up for the signal."""

    async def save() -> None:
        raise AssertionError("the signal was not ours")

    calls: list[int] = []
    loop, later = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, later.set)
    before = signal.getsignal(signal.SIGTERM)
    try:
        async with asyncckpt.leave_on_sigterm(save):
            signal.signal(signal.SIGTERM, lambda number, _: calls.append(number))
            terminate()
            os.kill(os.getpid(), signal.SIGUSR1)  # the loop sees it after the first
            await asyncio.wait_for(later.wait(), 30)
        terminate()
        assert calls == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
        assert loop.remove_signal_handler(signal.SIGUSR1)


@LOOPS
def test_a_signal_is_heard_once_at_any_instant(loop_factory: LoopFactory) -> None:
    """By the block or by the handler that was there before, never by both or neither, while they are exchanged, too."""
    heard: list[str] = []

    async def save() -> None:
        heard.append("block")

    async def main(instant: int) -> bool:
        """Send a signal at this call that the module makes; tell whether there was one."""
        signal.signal(signal.SIGTERM, lambda *_: heard.append("program"))
        calls = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            del argument  # any
            nonlocal calls
            if event in ("c_call", "c_return") and frame.f_code.co_filename in (sigterm.__file__, signals.__file__):
                calls += 1
                if calls == instant:
                    terminate()

        sys.setprofile(count)
        try:
            async with asyncckpt.leave_on_sigterm(save):
                await asyncio.sleep(0)
        finally:
            sys.setprofile(None)
        return calls >= instant

    hearers = set()
    before = signal.getsignal(signal.SIGTERM)
    for instant in itertools.count(1):
        heard.clear()
        with asyncio.Runner(loop_factory=loop_factory) as runner, suppress(SystemExit):
            if not runner.run(main(instant)):
                break
        assert heard in (["block"], ["program"]), instant
        hearers.update(heard)
    signal.signal(signal.SIGTERM, before)
    assert hearers == {"block", "program"}


@LOOPS
def test_a_signal_that_another_thread_gets_wakes_the_loop(loop_factory: LoopFactory) -> None:
    """Python's handler runs in the main thread, which sleeps until the loop has something to do."""
    woken_by = []

    async def save() -> None:
        woken_by.append("signal")

    async def main() -> None:
        asyncio.get_running_loop().call_later(30, woken_by.append, "timer")
        about_to_sleep = threading.Event()

        def get_it() -> None:
            about_to_sleep.wait()
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        thread = threading.Thread(target=get_it)
        thread.start()
        try:
            async with asyncckpt.leave_on_sigterm(save):
                about_to_sleep.set()
                await asyncio.sleep(3600)
        finally:
            thread.join()

    assert run(main, loop_factory) == 143
    assert woken_by == ["signal"]


@LOOPS
def test_a_signal_that_another_thread_gets_while_the_handler_is_set_counts(
    loop_factory: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signals are blocked in the main thread only, and the loop's handler is set just before ours."""
    saved = []
    is_time = threading.Event()
    set_handler = signal.signal

    def get_it() -> None:
        is_time.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def set_late(number: int, handler: Any) -> Any:
        if getattr(handler, "__name__", "") == "_handle":
            is_time.set()
            while thread.is_alive():
                os.sched_yield()
        return set_handler(number, handler)

    async def save() -> None:
        saved.append(1)

    async def main() -> None:
        async with asyncckpt.leave_on_sigterm(save):
            await asyncio.wait_for(asyncio.sleep(3600), 30)

    thread = threading.Thread(target=get_it)
    thread.start()
    monkeypatch.setattr(signal, "signal", set_late)
    assert run(main, loop_factory) == 143
    assert saved == [1]


# In a process of its own: it forks, and what is wrong hangs at its end.
_FORKING = """
import asyncio, multiprocessing, os, signal, sys

how, loop_name = sys.argv[1:]
if how == "at once":  # before the library's own hook
    os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))

import asyncckpt

if loop_name == "uvloop":
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop

fork = multiprocessing.get_context("fork")

async def save():
    pass

async def main():
    async with asyncckpt.leave_on_sigterm(save):
        child = fork.Process(target=signal.pause)
        child.start()
        if how != "at once":
            child.terminate()
        child.join()
        assert child.exitcode == -signal.SIGTERM, child.exitcode
        if how != "at once":  # or uvloop's has ended already
            program = await asyncio.create_subprocess_exec(sys.executable, "-c", "import signal; signal.pause()")
            program.terminate()
            assert await program.wait() == -signal.SIGTERM
        fork.Process(target=signal.pause, daemon=True).start()  # which multiprocessing ends at the end
        if how == "and leave":
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(3600)

with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop_name", ["stock", "uvloop"])
@pytest.mark.parametrize("how", ["later", "at once", "and leave"])
def test_forked_children_end_by_the_signal(how: str, loop_name: str) -> None:
    """They do not handle it as their parent does, so the parent need not wait for them for ever."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", _FORKING, how, loop_name], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, complaints = process.communicate(timeout=100)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert (process.returncode, complaints) == (143 if how == "and leave" else 0, "")
