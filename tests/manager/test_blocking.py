"""The manager without `await`: what a program gets from it, in which thread, and what interrupts it."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.stops import press_ctrl_c, stop_at
from helpers.support import descriptors_below, own_threads

import asyncckpt
from asyncckpt import CheckpointWarning, ManagerClosedError, ManagerUsageError, SaveFailedError, StepExistsError
from asyncckpt.arrays import adapters
from asyncckpt.blocking import CheckpointManager
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


def notes(error: BaseException) -> str:
    """Return the notes of an error as one text."""
    return "\n".join(getattr(error, "__notes__", []))


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_a_program_saves_and_resumes(tmp_path: Path) -> None:
    """Every method does what the asynchronous one does, and nothing of the manager's is left behind."""
    with CheckpointManager(tmp_path, save_period=2, keep_latest_k=3, keep_periodic=False) as manager:
        manager.prewarm({"w": np.zeros(MIB)})
        for step in filter(manager.should_save, range(8)):
            handle = manager.save(step, {"w": np.full(MIB, float(step)), "step": step}, training_info={"loss": -step})
        record = handle.wait()
        assert record is not None
        assert (record.step, record.path.name, record.training_info) == (6, "step_6", {"loss": -6})
        assert manager.save_nowait(7, {"small": 1}, training_info={"loss": 0}).wait(60) is not None
        manager.flush()
        with manager.checkpoint(8, {"loss": -1}) as path:
            (path / "own").write_text("mine")
        assert manager.steps() == [6, 7, 8]
        assert (manager.latest_step(), manager.best_step()) == (8, 8)
        assert manager.get_latest_checkpoint_path() == str(tmp_path / "step_8")
        assert manager.get_best_checkpoint_path() == str(tmp_path / "step_8")
        assert manager.load_training_info() == {"loss": -1}
        assert manager.statistics().last_committed_step == 8
        loaded = manager.load(6)
        assert loaded is not None
        assert loaded.state["w"].sum() == 6 * MIB
        target = {"w": np.zeros(MIB), "step": 0}
        assert manager.restore(6, into=target).state is target
        assert target["step"] == 6
        manager.verify(6)
        manager.delete(8)
        manager.remove_old_checkpoints()
        manager.refresh()
        path = manager.init_tmp_checkpoint(9, {"loss": -9})
        manager.finalize_checkpoint(path)
        assert manager.steps() == [6, 7, 9]
        assert manager.load(5, missing_ok=True) is None
    assert own_threads() == []
    assert descriptors_below(tmp_path) == []
    with CheckpointManager(tmp_path) as again:
        assert again.latest_step() == 9


@pytest.mark.parametrize("size", [10, MIB])
def test_the_state_may_change_as_soon_as_save_has_returned(tmp_path: Path, size: int) -> None:
    """It is captured then, whatever its size, and written later."""
    disk = FaultyDisk()
    with CheckpointManager(tmp_path, disk=disk) as manager:
        with stop_at(disk) as stop:
            state = {"w": np.ones(size)}
            handle = manager.save(1, state)
            state["w"][:] = 2
            stop.reached()
            assert handle.state == "writing"
        handle.wait()
        loaded = manager.load(1)
    assert loaded is not None
    assert loaded.state["w"].sum() == size


def test_waiting_has_a_timeout(tmp_path: Path) -> None:
    """When it is over, `wait` raises TimeoutError, and the save goes on."""
    disk = FaultyDisk()
    with CheckpointManager(tmp_path, disk=disk) as manager:
        with stop_at(disk) as stop:
            handle = manager.save(1, {})
            stop.reached()
            for timeout in (0, 0.01):
                with pytest.raises(TimeoutError, match=str(timeout)):
                    handle.wait(timeout)
            assert handle.state == "writing"
        assert handle.wait(60) is not None
        assert handle.wait(0) is not None
    assert handle.wait(0) is not None, "when the manager is closed, too"


def test_a_waiting_save_is_cancelled(tmp_path: Path) -> None:
    """`cancel` drops what is not being written, and its handle says so, also when the manager is closed."""
    disk = FaultyDisk()
    with CheckpointManager(tmp_path, disk=disk) as manager:
        with stop_at(disk) as stop:
            first, second = manager.save(1, {}), manager.save(2, {})
            stop.reached()
            assert not first.cancel()
            assert second.cancel()
        assert second.wait() is None
        assert manager.statistics().queue_depth == 0
    assert (first.state, second.state) == ("committed", "cancelled")
    assert not second.cancel()
    assert asyncckpt.load(tmp_path).step == 1


def test_several_threads_use_it_at_once(tmp_path: Path) -> None:
    """The manager is of the process, not of the thread that opened it."""
    with CheckpointManager(tmp_path, max_staged_nbytes=9 * MIB) as manager, ThreadPoolExecutor(4) as pool:

        def work(step: int) -> float:
            manager.save(step, {"a": np.full(MIB, step)}).wait()
            loaded = manager.load(step)
            assert loaded is not None
            return float(loaded.state["a"].mean())

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # the steps come in any order
            assert list(pool.map(work, range(8))) == list(range(8))
        assert manager.steps() == list(range(8))


async def test_it_works_in_a_thread_in_which_a_loop_runs(tmp_path: Path) -> None:
    """As in the cell of a notebook, which it stops while it waits."""
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {"a": np.ones(MIB)}).wait()
        loaded = manager.load("latest")
    assert loaded is not None
    assert loaded.step == asyncckpt.load(tmp_path).step == 1
    assert asyncio.get_running_loop().is_running()


def test_files_of_the_programs_own(tmp_path: Path) -> None:
    """A plain function fills them, in a thread of its own, and may not wait for the save that waits for it."""
    threads = []

    def fill(path: Path) -> None:
        threads.append(threading.current_thread())
        (path / "a").write_text("mine")
        with pytest.raises(ManagerUsageError, match="wait for itself"):
            manager.flush()

    async def fill_too(path: Path) -> None:
        await asyncio.to_thread((path / "b").write_text, "mine")

    with CheckpointManager(tmp_path) as manager:
        record = manager.save(1, {}, files={"w": fill, "v": fill_too, "x": __file__}).wait()
        assert record is not None
        assert sorted(each.name for each in record.files) == ["v/b", "w/a", "x"]
    assert threads
    assert threading.current_thread() not in threads


def test_a_state_in_a_pending_directory(tmp_path: Path) -> None:
    """What `checkpoint` yields has `save`, and is a path."""
    with CheckpointManager(tmp_path) as manager:
        with manager.checkpoint(1) as pending:
            assert pending.save({"a": 1}) is None
            with pytest.raises(ManagerUsageError, match="has a state already"):
                pending.save({"a": 2})
            (pending / "own").write_text("mine")
        assert manager.load(1).state == {"a": 1}
        with pytest.raises(ManagerUsageError, match="inside its block"):
            pending.save({})


def test_a_run_starts_from_another(tmp_path: Path) -> None:
    """And goes back to an earlier step."""
    with CheckpointManager(tmp_path / "a") as first:
        for step in range(3):
            first.save(step, {"n": step})
        first.flush()
        with CheckpointManager(tmp_path / "b") as second:
            assert second.fork(tmp_path / "a", 1).step == 1
            assert second.steps() == [1]
        assert first.load(0, discard_later=True).state == {"n": 0}
        first.save(1, {"n": 10}).wait()
        assert first.steps() == [0, 1]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_save_reaches_the_caller_once(tmp_path: Path) -> None:
    """From its handle, or else from the next call, the end of the block, or a note of the body's exception."""
    disk = FaultyDisk()
    with CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        handle = manager.save(1, {})
        for _ in range(2):
            with pytest.raises(SaveFailedError, match="step 1"):
                handle.wait()
        disk.fail("sync", errno.EIO)
        manager.save(2, {})
        with pytest.raises(SaveFailedError, match="step 2"):
            manager.flush()
    with pytest.raises(SaveFailedError, match="step 3"), CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        manager.save(3, {})
    assert own_threads() == []
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO)
        manager.save(4, {})
        raise error
    assert caught.value is error
    assert "step 4" in notes(error)


def test_a_block_that_raises_discards_its_pending_directory(tmp_path: Path) -> None:
    """Whatever it raises comes out as it is, and the manager goes on."""
    with CheckpointManager(tmp_path) as manager:
        for error in (KeyboardInterrupt(), SystemExit(3), ValueError()):
            with pytest.raises(type(error)) as caught, manager.checkpoint(1):
                raise error
            assert caught.value is error
        assert manager.steps() == []
        manager.save(1, {}).wait()


def test_what_a_state_raises_comes_out(tmp_path: Path) -> None:
    """Also a KeyboardInterrupt of a method that `save` calls: the manager can be used afterwards."""

    class Broken:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def to_state(self) -> object:
            raise self.error

    asyncckpt.register_type(Broken, name="tests.blocking.Broken", to_state=Broken.to_state, from_state=Broken)
    with CheckpointManager(tmp_path) as manager:
        for error in (KeyboardInterrupt(), SystemExit(1)):
            with pytest.raises(type(error)):
                manager.save(1, Broken(error))
        manager.save(1, {}).wait()


def test_a_method_of_a_state_cannot_wait_for_the_save_that_calls_it(tmp_path: Path) -> None:
    """It would wait for itself; the error says so."""

    class Curious:
        def to_state(self) -> object:
            return manager.steps()

    make = {"to_state": Curious.to_state, "from_state": lambda _: Curious()}
    asyncckpt.register_type(Curious, name="tests.blocking.Curious", **make)
    with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ManagerUsageError, match="would wait for itself"):
            manager.save(1, Curious())
        manager.save(1, {}).wait()


def test_mistakes_are_named(tmp_path: Path) -> None:
    """In words without `await`."""
    manager = CheckpointManager(tmp_path)
    with pytest.raises(ManagerUsageError, match="is not open: use it inside `with`"):
        manager.save(1, {})
    with pytest.raises(ManagerUsageError, match="is not open"):
        manager.close()
    with manager:
        with pytest.raises(ManagerClosedError, match="entered already"):
            manager.open()
        manager.save(1, {}).wait()
        with pytest.raises(StepExistsError, match="overwrite=True"):
            manager.save(1, {})
        with pytest.raises(ValueError, match=r"use save\(\)"):
            manager.save_nowait(2, np.ones(MIB))
        with pytest.raises(TypeError):
            manager.save("one", {})  # type: ignore[arg-type]
    for use in (manager.steps, lambda: manager.save(2, {}), manager.flush):
        with pytest.raises(ManagerClosedError, match="closed: make a new one"):
            use()
    manager.close()
    manager.aclose()
    with pytest.raises(ManagerClosedError, match="entered before"):
        manager.open()


async def test_async_with_names_the_other_manager(tmp_path: Path) -> None:
    """The blocking manager is no asynchronous one."""
    with CheckpointManager(tmp_path) as opened, pytest.raises(ManagerUsageError, match="use `with`"):
        async with opened:  # type: ignore[attr-defined]
            pass


def test_warnings_point_to_the_program(tmp_path: Path) -> None:
    """To the line that called, in words without `await`; where they are errors, nothing is queued."""
    with CheckpointManager(tmp_path) as manager:
        manager.save(5, {}).wait()
        with pytest.warns(CheckpointWarning, match="below the latest") as caught:
            manager.save(3, {}).wait()
        assert [each.filename for each in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error", CheckpointWarning)
            with pytest.raises(CheckpointWarning):
                manager.save(4, {})
        manager.flush()
        assert manager.steps() == [3, 5]
    unused = CheckpointManager(tmp_path)
    with pytest.warns(CheckpointWarning, match="never entered.*use it in `with`"):
        del unused
        gc.collect()


def test_devices_are_asked_in_the_thread_that_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current stream is a matter of the thread, so a save and a load note it where the program calls them."""
    asked = set()

    class Framework:
        def devices(self) -> Iterator[object]:
            asked.add(threading.current_thread())
            return iter(())

    monkeypatch.setattr(adapters, "imported_frameworks", lambda: iter((Framework(),)))
    with CheckpointManager(tmp_path) as manager:
        manager.prewarm({"a": np.ones(MIB)})
        manager.save(1, {"a": np.ones(MIB)}).wait()
        manager.load(1)
        manager.restore(1, into={"a": np.zeros(MIB)})
        asyncckpt.load(tmp_path)
        asyncckpt.load(tmp_path / "step_1")
    assert asked == {threading.current_thread()}


def test_a_program_is_told_that_it_must_leave(tmp_path: Path) -> None:
    """The signal sets the event at once, and `should_save` asks for one save; the handler is there until the end."""
    before = signal.getsignal(signal.SIGTERM)
    with CheckpointManager(tmp_path, save_period=100) as manager:
        assert isinstance(manager.preempted, threading.Event)
        assert not manager.preempted.is_set()
        assert not manager.preempted.wait(0.001)
        assert not manager.should_save(7)
        signal.raise_signal(signal.SIGTERM)
        assert manager.preempted.is_set()
        assert manager.preempted.wait()
        assert manager.should_save(7)
        assert manager.save_reason(7) is asyncckpt.SaveReason.PREEMPTED
        manager.save(7, {}).wait()
        assert not manager.should_save(8)
        manager.preempted.clear()
        assert not manager.preempted.is_set()
        assert not manager.should_save(9)
        manager.preempted.set()
        assert manager.should_save(9)
    assert signal.getsignal(signal.SIGTERM) == before
    with CheckpointManager(tmp_path, preempt_signals=signal.SIGUSR1) as manager:
        signal.raise_signal(signal.SIGUSR1)
        assert manager.preempted.is_set()

    def open_elsewhere() -> None:
        with pytest.raises(ManagerUsageError, match="main thread only"):
            CheckpointManager(tmp_path, preempt_signals=signal.SIGUSR1).open()
        with CheckpointManager(tmp_path) as manager, pytest.raises(ManagerUsageError, match="main thread only"):
            manager.preempted.is_set()

    with ThreadPoolExecutor() as pool:
        pool.submit(open_elsewhere).result()
    assert own_threads() == []


def test_rules_of_time(tmp_path: Path) -> None:
    """`should_save` knows the saves that were made, and asks the program's clock."""
    now = [0.0]
    with CheckpointManager(tmp_path, save_interval=10, clock=lambda: now[0]) as manager:
        assert not manager.should_save(1)
        now[0] = 11
        assert manager.should_save(2)
        manager.save(2, {}).wait()
        assert not manager.should_save(3)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_interrupts_a_save(tmp_path: Path) -> None:
    """KeyboardInterrupt comes out of the call that waits; nothing was queued, and the step is free."""
    disk = FaultyDisk()
    with CheckpointManager(tmp_path, disk=disk) as manager:
        with stop_at(disk, "open_lock", "", on_reach=press_ctrl_c), pytest.raises(KeyboardInterrupt) as caught:
            manager.save(1, {"a": 1})
        assert notes(caught.value) == ""
        assert manager.statistics().queue_depth == 0
        manager.save(1, {"a": 2}).wait()
        assert asyncckpt.load(tmp_path).state == {"a": 2}


def test_ctrl_c_interrupts_a_wait(tmp_path: Path) -> None:
    """The save goes on, and leaving the block by the KeyboardInterrupt writes it."""
    disk = FaultyDisk()
    with pytest.raises(KeyboardInterrupt), CheckpointManager(tmp_path, disk=disk) as manager:
        stop = stop_at(disk)
        handle = manager.save(1, {})
        stop.reached()
        pressing = threading.Thread(target=press_ctrl_c)
        try:
            pressing.start()
            handle.wait()
        finally:
            stop.open()
            pressing.join()
    assert handle.state == "committed"


def test_ctrl_c_again_stops_the_writing(tmp_path: Path) -> None:
    """While a manager closes, a first one starts the grace, and a second one ends it; what was queued has failed."""
    disk = FaultyDisk()
    stop = stop_at(disk)
    with pytest.raises(KeyboardInterrupt) as caught, CheckpointManager(tmp_path, disk=disk) as manager:
        handles = [manager.save(step, {}) for step in range(3)]
        stop.reached()
        deadline = manager._session._open.deadline

        def end() -> None:
            while deadline._over_at is None:  # the first one has begun the countdown
                time.sleep(0.001)
            press_ctrl_c()
            while not deadline.is_over:
                time.sleep(0.001)
            stop.open()

        ending = threading.Thread(target=end)
        ending.start()
        raise KeyboardInterrupt
    ending.join()
    assert [each.state for each in handles[1:]] == ["failed", "failed"]
    assert "step 2" in notes(caught.value)
    assert own_threads() == []


def test_ctrl_c_that_comes_too_late(tmp_path: Path) -> None:
    """A save that had been captured is dropped, or a note says that it is being written."""
    disk = FaultyDisk()

    class Pressing:
        """Its capture ends after the signal has been sent, whenever it is received."""

        def to_state(self) -> object:
            press_ctrl_c()
            return 1

    make = {"to_state": Pressing.to_state, "from_state": lambda _: Pressing()}
    asyncckpt.register_type(Pressing, name="tests.blocking.Pressing", **make)
    with CheckpointManager(tmp_path, disk=disk) as manager:
        manager.save(0, {}).wait()
        with stop_at(disk) as stop:
            manager.save(1, {})
            stop.reached()
            with pytest.raises(KeyboardInterrupt) as caught:
                manager.save(2, Pressing())
            assert notes(caught.value) == ""
            assert manager.statistics().queue_depth == 0
            manager.save(2, {"again": True})
        manager.flush()
        assert manager.steps() == [0, 1, 2]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_never_closed(tmp_path: Path) -> None:
    """A manager that is dropped gives a ResourceWarning; what was captured is written, and its thread ends."""
    disk = FaultyDisk()
    manager = CheckpointManager(tmp_path, disk=disk).open()
    with stop_at(disk) as stop:
        handle = manager.save(1, np.ones(MIB))
        stop.reached()
        with pytest.warns(ResourceWarning, match="never closed: use `with`, or close") as caught:
            del manager
            gc.collect()
        assert caught[0].filename == __file__
    assert handle.wait(60) is not None
    for thread in threading.enumerate():
        if thread.name.startswith("asyncckpt"):
            thread.join(60)
    assert own_threads() == []
    with CheckpointManager(tmp_path) as second:
        second.save(2, {}).wait()


def test_a_manager_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    """The error comes out, and there is nothing to close."""
    (tmp_path / "file").touch()
    manager = CheckpointManager(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        manager.open()
    assert own_threads() == []
    with pytest.raises(ManagerUsageError, match="not open"):
        manager.save(1, {})


def run(script: str, *arguments: object, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, which must end by itself."""
    command = [sys.executable, *options, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603 - ours


def test_a_script_that_never_closes_its_manager(tmp_path: Path) -> None:
    """At its end everything that was captured is committed, also by its own exit handlers, and a failure is told."""
    done = run(
        """
        import atexit, errno, sys
        import numpy as np
        from asyncckpt.blocking import CheckpointManager
        from asyncckpt.testing import FaultyDisk

        disk = FaultyDisk()
        manager = CheckpointManager(sys.argv[1], disk=disk).open()
        disk.fail("sync", errno.EIO, path_part="tmp_step_11")
        for step in (11, 10):  # in the other order
            atexit.register(lambda step=step: manager.save(step, {"a": np.ones(1 << 20)}))
        for step in range(4):
            manager.save(step, {"a": np.ones(1 << 20)})
        """,
        tmp_path,
        options=("-W", "always::ResourceWarning"),
    )
    assert done.returncode == 0
    assert done.stdout == ""
    assert "was never closed: use `with`, or close()" in done.stderr
    assert "was never closed, and step 11 was not saved" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.glob("*step_*")) == [f"step_{each}" for each in (0, 1, 10, 2, 3)]


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="Python 3.12 starts no threads in exit handlers")
def test_an_exit_handler_uses_a_manager_of_its_own(tmp_path: Path) -> None:
    """And `asyncckpt.load`."""
    done = run(
        """
        import atexit, sys
        import asyncckpt
        from asyncckpt.blocking import CheckpointManager

        def save():
            with CheckpointManager(sys.argv[1]) as manager:
                manager.save(1, {"a": 1}).wait()
            print(asyncckpt.load(sys.argv[1]).state)

        atexit.register(save)
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("{'a': 1}\n", "", 0)


def test_a_forked_child(tmp_path: Path) -> None:
    """It may not use its parent's manager, is told so, ends by itself, and leaves the parent's lock alone."""
    done = run(
        """
        import os, sys
        import asyncckpt
        from asyncckpt.blocking import CheckpointManager

        with CheckpointManager(sys.argv[1]) as manager:
            saved = manager.save(0, {})
            saved.wait()
            pid = os.fork()
            if pid == 0:
                for use in (lambda: manager.save(1, {}), manager.steps, manager.flush, manager.close):
                    try:
                        use()
                    except asyncckpt.ManagerUsageError as error:
                        assert "belongs to the parent process" in str(error), error
                    else:
                        sys.exit("it was allowed")
                assert saved.wait().step == 0 and not saved.cancel()
                with CheckpointManager(sys.argv[1] + "/of_child") as own:
                    own.save(1, {}).wait()
                assert asyncckpt.load(sys.argv[1] + "/of_child").step == 1
                sys.exit(3)  # through the block of the parent's manager
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
            manager.save(2, {}).wait()
            try:
                with CheckpointManager(sys.argv[1]) as second:
                    second.save(3, {})
            except asyncckpt.DirectoryLockedError:
                print(manager.steps())
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[0, 2]\n", "", 0)


def test_a_program_that_is_left_by_ctrl_c(tmp_path: Path) -> None:
    """The process ends by the signal, within the grace, and what was captured is there."""
    done = run(
        """
        import os, signal, sys
        import numpy as np
        from asyncckpt.blocking import CheckpointManager

        with CheckpointManager(sys.argv[1]) as manager:
            for step in range(3):
                manager.save(step, {"a": np.ones(1 << 20)})
            signal.raise_signal(signal.SIGINT)
        """,
        tmp_path,
    )
    assert done.returncode == -2
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert sorted(path.name for path in tmp_path.glob("*step_*")) == ["step_0", "step_1", "step_2"]
