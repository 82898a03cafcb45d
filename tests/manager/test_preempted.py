"""`manager.preempted`: an event that signals set, for loops that look at it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import asyncckpt
from asyncckpt import CheckpointManager, ManagerUsageError, SaveReason

if TYPE_CHECKING:
    from pathlib import Path

SIGRT = signal.SIGRTMIN + 1


def send(number: int = signal.SIGTERM) -> None:
    """Send ourselves a signal."""
    os.kill(os.getpid(), number)


async def test_a_loop_that_looks_saves_and_leaves(tmp_path: Path) -> None:
    """It sees the signal at once; one save is due; afterwards the earlier handler is back."""
    before = signal.getsignal(signal.SIGTERM)
    saved = []
    async with CheckpointManager(tmp_path, save_period=100) as manager:
        step = 0
        while not manager.preempted.is_set():
            step += 1
            if step == 3:
                send()
                assert manager.preempted.is_set()
            if manager.should_save(step):
                assert manager.save_reason(step) == SaveReason.PREEMPTED
                await manager.save(step, {})
                saved.append(step)
        assert saved == [3]
        assert not manager.should_save(4)
        assert isinstance(manager.preempted, asyncio.Event)
    assert manager.preempted.is_set()
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_task_may_wait_for_it(tmp_path: Path) -> None:
    """While the loop sleeps, and whichever thread gets the signal."""
    async with CheckpointManager(tmp_path) as manager:
        event = manager.preempted
        assert not event.is_set()
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.sleep(0)
        thread = threading.Thread(target=lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
        thread.start()
        assert await asyncio.wait_for(waiting, 60)
        assert await event.wait()
        thread.join()


async def test_nothing_is_handled_that_was_not_asked_for(tmp_path: Path) -> None:
    """SIGTERM from the first look on; the signals that were named from the opening on, and SIGTERM is not one then."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    async with CheckpointManager(tmp_path) as manager:
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
        manager.preempted.clear()
        assert signal.getsignal(signal.SIGTERM) != before[0]
    async with CheckpointManager(tmp_path, preempt_signals=()) as manager:
        manager.preempted.clear()
        assert signal.getsignal(signal.SIGTERM) == before[0]
    async with CheckpointManager(tmp_path, preempt_signals="SIGUSR1") as manager:
        send(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGTERM) == before[0]
        assert manager.should_save(7)
        assert manager.preempted.is_set()
    assert signal.getsignal(signal.SIGUSR1) == before[1]


@pytest.mark.parametrize("number", [signal.SIGUSR2, SIGRT], ids=["SIGUSR2", "real time"])
async def test_any_of_several_signals_sets_it(tmp_path: Path, number: int) -> None:
    """Those for real time, too."""
    async with CheckpointManager(tmp_path, preempt_signals=["SIGUSR1", signal.SIGUSR2, SIGRT]) as manager:
        send(number)
        assert manager.preempted.is_set()


@pytest.mark.parametrize("first", [0, 1])
async def test_all_managers_learn_of_it_in_whatever_order_they_close(tmp_path: Path, first: int) -> None:
    """The last one that is open still does."""
    before = signal.getsignal(signal.SIGTERM)
    managers = [CheckpointManager(tmp_path / str(number)) for number in range(2)]
    for manager in managers:
        await manager.__aenter__()
        manager.preempted.clear()
    send()
    assert [manager.preempted.is_set() for manager in managers] == [True, True]
    for manager in managers:
        manager.preempted.clear()
    await managers[first].aclose()
    last = managers[1 - first]
    waiting = asyncio.ensure_future(last.preempted.wait())
    await asyncio.sleep(0)
    send()
    assert await asyncio.wait_for(waiting, 60)
    await last.aclose()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("is_looked_at", ["before", "within"])
def test_leave_on_sigterm_goes_on_as_ever(tmp_path: Path, is_looked_at: str) -> None:
    """The block is cancelled, and the event is set, whichever was first."""

    async def main() -> None:
        async with CheckpointManager(tmp_path) as manager:
            if is_looked_at == "before":
                manager.preempted.clear()

            async def save() -> asyncckpt.SaveHandle:
                assert manager.preempted.is_set()
                return await manager.save(1, {})

            async with asyncckpt.leave_on_sigterm(save):
                manager.preempted.clear()
                send()
                await asyncio.sleep(3600)

    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    assert caught.value.code == 143
    assert [step for step, _, _ in asyncckpt._load_checkpoint_history(tmp_path)] == [1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_notice_may_be_repeated_but_ctrl_c_interrupts(tmp_path: Path) -> None:
    """Schedulers send a signal to every process of a job, some of which forward it."""
    heard: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda number, _: heard.append(number)) for number in numbers]
    try:
        async with CheckpointManager(tmp_path, preempt_signals=numbers) as manager:
            send()
            send()
            assert heard == []
            send(signal.SIGINT)
            assert heard == [signal.SIGINT]
            manager.preempted.clear()
            send(signal.SIGINT)
            assert heard == [signal.SIGINT]
            assert manager.preempted.is_set()
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


async def test_a_program_may_set_it_itself(tmp_path: Path) -> None:
    """It may learn from elsewhere that it must leave, and that it need not."""
    async with CheckpointManager(tmp_path, save_period=100) as manager:
        manager.preempted.set()
        assert manager.save_reason(1) == SaveReason.PREEMPTED
        await manager.save(1, {})
        assert not manager.should_save(2)
        manager.preempted.clear()
        assert not manager.preempted.is_set()
        send()
        manager.preempted.clear()
        await asyncio.sleep(0)
        assert not manager.preempted.is_set()


async def test_a_handler_that_the_program_sets_stays(tmp_path: Path) -> None:
    """It replaces ours, and one of the loop's is replaced with a warning."""
    before = signal.getsignal(signal.SIGTERM)
    heard: list[int] = []
    try:
        async with CheckpointManager(tmp_path) as manager:
            manager.preempted.clear()
            mine = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
            send()
            assert not manager.preempted.is_set()
        send()
        assert heard == [signal.SIGTERM] * 2
        mine(signal.SIGTERM, None)  # type: ignore[operator,misc]  # as if the program passed the signal on
        assert not manager.preempted.is_set()
        signal.signal(signal.SIGTERM, before)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.clear)
        with pytest.warns(asyncckpt.CheckpointWarning, match="because manager.preempted handles the signal"):
            async with CheckpointManager(tmp_path, preempt_signals="SIGTERM"):
                send()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


async def test_it_belongs_to_an_open_manager(tmp_path: Path) -> None:
    """Before, the error says what to do."""
    manager = CheckpointManager(tmp_path)
    with pytest.raises(ManagerUsageError, match="is not open"):
        manager.preempted  # noqa: B018 - it is a property that raises
    async with manager:
        pass
    assert not manager.preempted.is_set()


def test_other_threads_are_refused(tmp_path: Path) -> None:
    """Signals come to the main thread only; an event that only the program sets works everywhere."""
    raised: list[Exception] = []

    async def main() -> None:
        for options in ({}, {"preempt_signals": "SIGTERM"}, {"preempt_signals": ()}):
            try:
                async with CheckpointManager(tmp_path, **options) as manager:  # type: ignore[arg-type]
                    manager.preempted.set()
            except ManagerUsageError as error:
                raised.append(error)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert ["main thread" in str(error) for error in raised] == [True, True]


_FORKING = """
import asyncio, multiprocessing, signal, sys, asyncckpt

fork = multiprocessing.get_context("fork")

async def main():
    async with asyncckpt.CheckpointManager(sys.argv[1]) as manager:
        manager.preempted.clear()
        child = fork.Process(target=signal.pause)
        child.start()
        child.terminate()
        child.join()
        assert child.exitcode == -signal.SIGTERM, child.exitcode
        assert not manager.preempted.is_set()

asyncio.run(main())
"""


def test_forked_children_end_by_the_signal(tmp_path: Path) -> None:
    """They do not handle it as their parent does."""
    subprocess.run([sys.executable, "-c", _FORKING, tmp_path], timeout=100, check=True)  # noqa: S603 - our own line


# --- leave_on_sigterm with other signals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signals", "number"),
    [
        (signal.SIGUSR1, signal.SIGUSR1),
        ((signal.SIGTERM, signal.SIGUSR1), signal.SIGUSR1),
        ([int(signal.SIGUSR1)], signal.SIGUSR1),
        ("SIGUSR1", signal.SIGUSR1),
        (("SIGUSR2", "SIGTERM"), signal.SIGTERM),
        (SIGRT, SIGRT),
    ],
    ids=str,
)
def test_leaving_on_another_signal(tmp_path: Path, signals: Any, number: int) -> None:
    """The state is saved, and the exit status names the signal."""
    before = signal.getsignal(number)
    messages: list[str] = []

    async def main() -> None:
        async with (
            CheckpointManager(tmp_path) as manager,
            asyncckpt.leave_on_sigterm(lambda: manager.save(1, {}), signals=signals),
        ):
            send(number)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError as error:
                messages.append(str(error))
                raise

    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    assert caught.value.code == 128 + number
    name = "SIGRTMIN+1" if number == SIGRT else signal.Signals(number).name
    assert messages == [f"{name}: save and leave"]
    assert [step for step, _, _ in asyncckpt._load_checkpoint_history(tmp_path)] == [1]
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    ("signals", "kind", "words"),
    [
        (signal.SIGKILL, ManagerUsageError, "SIGKILL cannot be caught"),
        (["SIGTERM", "SIGSTOP"], ManagerUsageError, "SIGSTOP cannot be caught"),
        (signal.SIGSEGV, ManagerUsageError, "SIGSEGV cannot be caught"),
        ("TERM", asyncckpt.ConfigError, "its number or its name.*'TERM'"),
        (1000, asyncckpt.ConfigError, "found 1000"),
        ([None], asyncckpt.ConfigError, "found"),
        (True, asyncckpt.ConfigError, "found True"),
    ],
)
async def test_what_is_no_signal_is_refused(signals: Any, kind: type[Exception], words: str) -> None:
    """Before the block is entered."""

    async def save() -> None:
        """Nothing."""

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(kind, match=words):
        async with asyncckpt.leave_on_sigterm(save, signals=signals):
            raise AssertionError("it was entered")
    assert signal.getsignal(signal.SIGTERM) == before
    async with asyncckpt.leave_on_sigterm(save):
        pass
