"""How a manager is made, where it may be used, and what it says where it may not."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from helpers.gates import hold
from helpers.support import own_threads

import asyncckpt
from asyncckpt import (
    CheckpointingConfig,
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    ConfigError,
    CorruptCheckpointError,
    DirectoryLockedError,
    ManagerClosedError,
    ManagerUsageError,
    ReadOnlyError,
)
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# What needs an open manager on its own loop, whatever else it does.
USES: dict[str, Callable[[CheckpointManager], Any]] = {
    "save": lambda manager: manager.save(1, {}),
    "save_nowait": lambda manager: manager.save_nowait(1, {}),
    "load": lambda manager: manager.load("latest"),
    "restore": lambda manager: manager.restore(1, into={}),
    "verify": lambda manager: manager.verify(1),
    "steps": lambda manager: manager.steps(),
    "latest_step": lambda manager: manager.latest_step(),
    "best_step": lambda manager: manager.best_step(),
    "refresh": lambda manager: manager.refresh(),
    "delete": lambda manager: manager.delete(1),
    "flush": lambda manager: manager.flush(),
    "init_tmp_checkpoint": lambda manager: manager.init_tmp_checkpoint(1, {}),
    "finalize_checkpoint": lambda manager: manager.finalize_checkpoint("tmp_step_1"),
    "checkpoint": lambda manager: manager.checkpoint(1, {}).__aenter__(),
    "remove_old_checkpoints": lambda manager: manager.remove_old_checkpoints(),
    "get_best_checkpoint_path": lambda manager: manager.get_best_checkpoint_path(),
    "get_latest_checkpoint_path": lambda manager: manager.get_latest_checkpoint_path(),
    "load_training_info": lambda manager: manager.load_training_info(),
}
WRITES = {
    "save",
    "save_nowait",
    "delete",
    "init_tmp_checkpoint",
    "finalize_checkpoint",
    "checkpoint",
    "remove_old_checkpoints",
}
EVERY_USE = pytest.mark.parametrize("use", USES)


async def do(use: str, manager: CheckpointManager) -> Any:
    """Use a manager, awaiting what is to be awaited."""
    result = USES[use](manager)
    return await result if hasattr(result, "__await__") and not isinstance(result, asyncckpt.SaveHandle) else result


# --- how it is made ---------------------------------------------------------------------------------------------------


async def test_a_mapping_is_as_good_as_keywords(tmp_path: Path) -> None:
    """One CheckpointingConfig mapping, or a directory and keywords: the same manager."""
    config: CheckpointingConfig = {
        "enabled": True,
        "checkpoint_dir": str(tmp_path / "a"),
        "metric_name": "loss",
        "higher_is_better": False,
        "save_period": 2,
        "keep_top_k": 1,
        "format": "hdf5",
    }
    keywords: dict[str, Any] = {key: value for key, value in config.items() if key != "checkpoint_dir"}
    for manager in (CheckpointManager(config), CheckpointManager(tmp_path / "b", **keywords)):
        async with manager:
            assert [step for step in range(6) if manager.should_save(step)] == [0, 2, 4]
            for step, loss in enumerate([0.5, 0.1, 0.3, 0.2, 0.4]):
                await (await manager.save(step * 2, {}, training_info={"loss": loss}))
            await manager.flush()
            assert manager.steps() == [2, 8]
            assert manager.best_step() == 2
            record = await manager.load("best")
            assert record is not None
            assert (record.path / "state.h5").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keep_topk": 3}, ["keep_topk", "keep_top_k", "save_period", "read_only"]),
        ({"enabled": "yes", "save_period": 0}, ["enabled", "'yes'", "save_period"]),
        ({"keep_top_k": 1.5}, ["keep_top_k", "1.5"]),
        ({"format": "pickle"}, ["format", "msgpack", "hdf5", "pickle"]),
        ({"overflow": "drop"}, ["overflow", "wait", "skip", "replace"]),
        ({"grace": -1}, ["grace"]),
        ({"max_staged_nbytes": 0}, ["max_staged_nbytes"]),
        ({"metric_name": 3}, ["metric_name"]),
    ],
)
@pytest.mark.parametrize("is_mapping", [False, True])
def test_bad_options_are_named(tmp_path: Path, options: dict[str, Any], named: list[str], is_mapping: bool) -> None:
    """Unknown and ill-typed options are all named, with the known ones."""
    with pytest.raises(ConfigError) as caught:
        if is_mapping:
            CheckpointManager({"checkpoint_dir": tmp_path, **options})
        else:
            CheckpointManager(tmp_path, **options)
    for word in named:
        assert word in str(caught.value)


def test_making_one_touches_nothing(tmp_path: Path) -> None:
    """A manager that is only made has no thread and no directory."""
    manager = CheckpointManager(tmp_path / "a")
    assert "CheckpointManager" in repr(manager)
    assert str(tmp_path / "a") in repr(manager)
    assert own_threads() == []
    assert not (tmp_path / "a").exists()
    with pytest.warns(CheckpointWarning, match="never entered"):
        del manager
        gc.collect()


async def test_the_directory_is_made_by_the_first_save(tmp_path: Path) -> None:
    """Opening a manager, listing and loading make no directory; the first save makes it, with its ancestors."""
    path = tmp_path / "a/b/c"
    async with CheckpointManager(path) as manager:
        assert manager.steps() == []
        assert await manager.load("latest", missing_ok=True) is None
        with pytest.raises(CheckpointNotFoundError):
            await manager.load("latest")
        assert not (tmp_path / "a").exists()
        await (await manager.save(1, {}))
        assert (path / "step_1").is_dir()


async def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    """A file in the directory's place is refused on opening, by name; it stays as it was."""
    path = tmp_path / "file"
    await asyncio.to_thread(path.write_text, "mine")
    with pytest.raises(NotADirectoryError, match="file"):
        async with CheckpointManager(path):
            pass
    with pytest.raises(NotADirectoryError, match="file"):
        async with CheckpointManager(path / "below") as manager:
            await manager.save(1, {})
    assert path.read_text() == "mine"


async def test_a_second_writer(tmp_path: Path) -> None:
    """A second writer may look and load; saving is refused until the first has gone, and nothing is lost."""
    async with CheckpointManager(tmp_path) as second:
        async with CheckpointManager(tmp_path) as first:
            await (await first.save(1, "first"))
            with pytest.raises(DirectoryLockedError, match="read_only"):
                await second.save(2, {})
            with pytest.raises(DirectoryLockedError):
                await second.delete(1)
            loaded = await second.load(1)
            assert loaded is not None
            assert loaded.state == "first"
            assert first.steps() == [1]
        with pytest.raises(asyncckpt.StepExistsError):
            await second.save(1, {})  # it sees what the first has done
        assert await (await second.save(2, {})) is not None
        assert second.steps() == [1, 2]


async def test_a_full_disk(tmp_path: Path) -> None:
    """A full disk fails the save with its error, nothing of it is left, and the next one works."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, {}))
        disk.fail("write", errno.ENOSPC, lasting=True, path_part="tmp_step_2")
        with pytest.raises(asyncckpt.SaveFailedError, match="step 2") as caught:
            await (await manager.save(2, np.ones(1 << 20)))
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        disk.heal()
        assert [each.name for each in tmp_path.glob("*step*")] == ["step_1"]
        await (await manager.save(2, {}))


# --- enabled=False ----------------------------------------------------------------------------------------------------


async def test_disabled(tmp_path: Path) -> None:
    """With enabled=False every handle says that it was skipped, and nothing is written: no directory, no lock."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path / "a", enabled=False, disk=disk) as manager:
        for _ in range(2):
            handle = await manager.save(1, {"a": object()}, training_info={"x": 1}, run_config={}, frozen=True)
            assert handle.state == "skipped"
            assert await handle is None
        assert manager.save_nowait(1, {}).state == "skipped"
        await manager.flush()
        await manager.remove_old_checkpoints()
        with pytest.raises(ManagerUsageError, match="enabled"):
            await manager.delete(1)
        assert await manager.load("latest", missing_ok=True) is None
        with pytest.raises(ValueError, match="-1"):
            await manager.save(-1, {})
    assert disk.operations == []
    assert not (tmp_path / "a").exists()


async def test_disabled_beside_checkpoints(tmp_path: Path) -> None:
    """A disabled manager loads what is there, and neither prunes nor tidies."""
    async with CheckpointManager(tmp_path) as manager:
        for step in range(3):
            await (await manager.save(step, step))
    await asyncio.to_thread((tmp_path / "tmp_step_9").mkdir)
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, enabled=False, keep_latest_k=1, disk=disk) as manager:
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == 2
        await manager.remove_old_checkpoints(exclude_latest=False)
        assert manager.steps() == [0, 1, 2]
    assert disk.operations == []
    assert (tmp_path / "tmp_step_9").is_dir()


# --- read_only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", sorted(WRITES))
async def test_read_only_refuses_to_write(tmp_path: Path, use: str) -> None:
    """A read-only manager refuses whatever would write, says why, makes no directory, and takes no lock."""
    disk = FaultyDisk()
    with pytest.warns(CheckpointWarning, match="does not exist"):
        manager = await CheckpointManager(tmp_path / "a", read_only=True, disk=disk).__aenter__()
    with pytest.raises(ReadOnlyError, match="was made with read_only=True: make one without it to save or delete"):
        await do(use, manager)
    assert await manager.load("latest", missing_ok=True) is None
    await manager.flush()
    await manager.aclose()
    assert disk.operations == []
    assert not (tmp_path / "a").exists()


async def test_read_only_sees_what_another_commits(tmp_path: Path) -> None:
    """Loads of "latest" and "best" list the directory; what is pending, or was left by a crash, is not changed."""
    reading = FaultyDisk()
    writing = FaultyDisk()
    async with (
        CheckpointManager(tmp_path, disk=writing, metric_name="loss", higher_is_better=False) as trainer,
        CheckpointManager(
            tmp_path, read_only=True, disk=reading, metric_name="loss", higher_is_better=False
        ) as evaluator,
    ):
        assert await evaluator.load("latest", missing_ok=True) is None
        for step, loss in enumerate([0.5, 0.1, 0.3]):
            await (await trainer.save(step, step, training_info={"loss": loss}))
            latest = await evaluator.load("latest")
            assert latest is not None
            assert latest.state == step
            assert await evaluator.get_latest_checkpoint_path() == str(tmp_path / f"step_{step}")
        best = await evaluator.load("best")
        assert best is not None
        assert best.state == 1
        assert await evaluator.get_best_checkpoint_path() == str(tmp_path / "step_1")
        with hold(writing) as gate:
            handle = await trainer.save(3, 3, training_info={"loss": 0.0})
            await gate.reached()
            async with CheckpointManager(tmp_path, read_only=True) as third:
                assert third.steps() == [0, 1, 2]
            best = await evaluator.load("best")
            assert best is not None
            assert best.state == 1
        assert await handle is not None, "its pending directory was not cleared"
    assert reading.operations == []


async def test_read_only_beside_a_crash(tmp_path: Path) -> None:
    """A read-only manager leaves alone what a killed writer left, and takes a lone old_step_N for step N."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, "one"))
    names = ["tmp_step_2", "trash_step_0"]
    for name in names:
        await asyncio.to_thread((tmp_path / name).mkdir)
    await asyncio.to_thread((tmp_path / "step_1").rename, tmp_path / "old_step_1")
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        loaded = await reader.load("latest")
        assert loaded is not None
        assert loaded.state == "one"
    assert sorted(each.name for each in tmp_path.glob("*_step_*")) == ["old_step_1", *names]


async def test_read_only_retries_when_pruned_meanwhile(tmp_path: Path) -> None:
    """If the chosen checkpoint is gone when it is to be read, another is chosen, until there is something to read."""
    async with CheckpointManager(tmp_path, keep_latest_k=1) as trainer:
        await (await trainer.save(0, 0))
        async with CheckpointManager(tmp_path, read_only=True) as evaluator:
            step = 1
            for _ in range(20):
                tasks = [asyncio.create_task(evaluator.load("latest")) for _ in range(3)]
                await (await trainer.save(step, step))
                await trainer.flush()
                for loaded in await asyncio.gather(*tasks):
                    assert loaded is not None
                    assert loaded.state == loaded.step
                    assert step - 1 <= loaded.step <= step
                step += 1


async def test_read_only_takes_no_lock(tmp_path: Path) -> None:
    """While a read-only manager is open anyone may write, and it may be opened beside a writer."""
    async with CheckpointManager(tmp_path, read_only=True), CheckpointManager(tmp_path) as writer:
        await (await writer.save(1, {}))
        async with CheckpointManager(tmp_path, read_only=True) as second:
            assert second.latest_step() == 1


async def test_read_only_sees_a_step_that_was_repaired(tmp_path: Path) -> None:
    """A step found corrupt, which the trainer has saved again since, is the latest again."""
    async with (
        CheckpointManager(tmp_path) as trainer,
        CheckpointManager(tmp_path, read_only=True) as evaluator,
    ):
        await (await trainer.save(1, "one"))
        await (await trainer.save(2, "two"))
        await asyncio.to_thread((tmp_path / "step_2/state.msgpack").write_bytes, b"")
        with pytest.warns(CheckpointWarning, match="step 2"):
            loaded = await evaluator.load("latest")
        assert loaded is not None
        assert loaded.state == "one"
        with pytest.raises(CorruptCheckpointError):
            await trainer.verify(2)
        await (await trainer.save(2, "again"))
        loaded = await evaluator.load("latest")
        assert loaded is not None
        assert loaded.state == "again"


# --- where it may be used ---------------------------------------------------------------------------------------------


@EVERY_USE
async def test_before_it_is_opened(tmp_path: Path, use: str) -> None:
    """Use before `async with` is an error that says so."""
    manager = CheckpointManager(tmp_path)
    with pytest.raises(ManagerUsageError, match="async with"):
        await do(use, manager)
    async with manager:  # one that is never entered is complained of, too
        pass


@EVERY_USE
async def test_after_it_is_closed(tmp_path: Path, use: str) -> None:
    """Use after the block is a ManagerClosedError; closing again is none."""
    async with CheckpointManager(tmp_path) as manager:
        pass
    with pytest.raises(ManagerClosedError):
        await do(use, manager)
    await manager.aclose()
    assert manager.statistics() == (0, 0, None, 0)


async def test_opened_twice(tmp_path: Path) -> None:
    """A manager is entered once: again, open or closed, is a ManagerClosedError, and the first session goes on."""
    manager = CheckpointManager(tmp_path)
    async with manager:
        with pytest.raises(ManagerClosedError):
            await manager.__aenter__()
        assert await (await manager.save(1, {})) is not None
    with pytest.raises(ManagerClosedError):
        async with manager:
            pass


@EVERY_USE
async def test_from_another_loop(tmp_path: Path, use: str) -> None:
    """Use from a task of another loop is an error that says so."""
    async with CheckpointManager(tmp_path) as manager:

        def run() -> None:
            async def main() -> None:
                with pytest.raises(ManagerUsageError, match="another event loop"):
                    await do(use, manager)

            asyncio.run(main())

        await asyncio.to_thread(run)
        assert await (await manager.save(1, {})) is not None


async def test_from_a_foreign_thread(tmp_path: Path) -> None:
    """Use from a thread without a loop is an error that says so."""
    async with CheckpointManager(tmp_path) as manager:

        def run() -> None:
            with pytest.raises(ManagerUsageError, match="thread"):
                manager.save_nowait(1, {})
            with pytest.raises(ManagerUsageError, match="thread"):
                manager.steps()
            coroutine = manager.save(1, {})
            with pytest.raises(ManagerUsageError, match="thread"):
                coroutine.send(None)

        await asyncio.to_thread(run)
        assert manager.steps() == []


def test_under_trio(tmp_path: Path) -> None:
    """Under trio, opening is an error that says what asyncckpt runs on."""

    async def main() -> None:
        with pytest.raises(ManagerUsageError, match=r"asyncio.*trio"):
            async with CheckpointManager(tmp_path / "a"):
                pass

    trio.run(main)
    assert not (tmp_path / "a").exists()


async def test_after_a_fork(tmp_path: Path) -> None:
    """A forked child may not use the manager, and its end takes nothing from the parent, whose lock is held on."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {}))
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads and forks
            child = os.fork()
        if child == 0:
            answer = b"nothing was raised"
            try:
                manager.save_nowait(2, {})
            except ManagerUsageError as error:
                answer = str(error).encode()
            finally:
                del manager
                gc.collect()
                os.write(write, answer)
                os._exit(0)
        os.close(write)
        text = await asyncio.to_thread(os.read, read, 1000)
        os.close(read)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert b"fork" in text
        async with CheckpointManager(tmp_path) as second:
            with pytest.raises(DirectoryLockedError):
                await second.save(2, {})
        assert await (await manager.save(2, {})) is not None


async def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A child that lives on does not hold the lock that its parent has given back."""
    release_read, release_write = os.pipe()
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os.close(release_write)
            os.read(release_read, 1)
            os._exit(0)
        os.close(release_read)
    try:
        async with CheckpointManager(tmp_path) as second:
            assert await (await second.save(2, {})) is not None
    finally:
        os.close(release_write)
        await asyncio.to_thread(os.waitpid, child, 0)


async def test_never_closed(tmp_path: Path) -> None:
    """A manager that is dropped without being closed gives a ResourceWarning; what was captured is still written."""
    manager = await CheckpointManager(tmp_path).__aenter__()
    handle = await manager.save(1, np.ones(1 << 20))
    with pytest.warns(ResourceWarning, match="never closed"):
        del manager
        gc.collect()
    assert await handle is not None
    for _ in range(1000):
        gc.collect()
        if not own_threads():
            break
        await asyncio.sleep(0.005)
    else:
        pytest.fail("its threads stay")
    async with CheckpointManager(tmp_path) as second:
        assert await (await second.save(2, {})) is not None


async def test_open_is_for_programs_without_a_block(tmp_path: Path) -> None:
    """It returns the manager, as entering does, and raises the same errors; `aclose` ends it."""
    made = CheckpointManager(tmp_path)
    manager = await made.open()
    assert manager is made
    handle = await manager.save(1, {"a": 1})
    for enter in (manager.open, manager.__aenter__):
        with pytest.raises(ManagerClosedError, match="entered already"):
            await enter()
    await manager.aclose()
    assert handle.state == "committed"
    assert own_threads() == []
    with pytest.raises(ManagerClosedError, match="was entered before"):
        await manager.open()


async def test_a_failure_of_a_manager_that_was_never_closed(tmp_path: Path) -> None:
    """It is a warning of its own, because nobody else receives it."""
    disk = FaultyDisk()
    manager = await CheckpointManager(tmp_path, disk=disk).open()
    disk.fail("sync", errno.EIO)
    handle = await manager.save(1, {})
    while not handle.is_done:
        await asyncio.sleep(0)
    expected = "never closed, and step 1 was not saved"
    with pytest.warns(CheckpointWarning, match=expected), pytest.warns(ResourceWarning, match="never closed"):
        del manager
        gc.collect()


async def test_closed_managers_do_not_complain(tmp_path: Path) -> None:
    """A manager that was closed, or could not be opened, is dropped without a word."""
    manager = CheckpointManager(tmp_path)
    async with manager:
        pass
    del manager
    await asyncio.to_thread((tmp_path / "file").touch)
    manager = CheckpointManager(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        await manager.__aenter__()
    with pytest.raises(ManagerUsageError):
        await manager.aclose()
    del manager
    gc.collect()


# --- lists and numbers ------------------------------------------------------------------------------------------------


async def test_statistics(tmp_path: Path) -> None:
    """`statistics` tells queue depth, staged bytes and the last committed step."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        assert manager.statistics() == (0, 0, None, 0)
        with hold(disk) as gate:
            handles = [await manager.save(1, np.ones(1 << 20))]
            await gate.reached()
            handles += [await manager.save(step, np.ones(1 << 20)) for step in (2, 3)]
            found = manager.statistics()
            assert found.queue_depth == 2
            assert found.staged_nbytes == sum(each.captured_nbytes for each in handles) >= 3 << 23
            assert found.last_committed_step is None
        await asyncio.gather(*handles)
        assert manager.statistics() == (0, 0, 3, 0)


@pytest.mark.parametrize(("period", "expected"), [(None, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4])])
async def test_should_save(tmp_path: Path, period: int | None, expected: list[int]) -> None:
    """`should_save` says yes to multiples of `save_period`, and always without one."""
    async with CheckpointManager(tmp_path, save_period=period) as manager:
        assert [step for step in range(5) if manager.should_save(step)] == expected
