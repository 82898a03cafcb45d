"""`await pending.save(state)`: a state in a directory that the program fills, in one commit with its files."""

from __future__ import annotations

import asyncio
import errno
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from helpers.gates import hold

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[asyncckpt.CheckpointManager]:
    """Give a manager in a directory that does not exist yet."""
    async with asyncckpt.CheckpointManager(tmp_path / "runs") as made:
        yield made


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", ["msgpack", "hdf5"])
async def test_load_reads_it_like_any_other(tmp_path: Path, form: Any, *, frozen: bool) -> None:
    """The state, small or large, comes back bit for bit; the program's files are listed, and all is verified."""
    rng = np.random.default_rng(0)
    state = {"a": rng.standard_normal(400_000), "small": np.arange(5), "n": 1, "rng": rng}
    async with asyncckpt.CheckpointManager(tmp_path, format=form) as manager:
        async with manager.checkpoint(3, {"loss": 0.5}, {"lr": 1}) as pending:
            await anyio.Path(pending / "mine.bin").write_bytes(b"123")
            assert await pending.save(state, frozen=frozen) is None  # type: ignore[func-returns-value]
            assert manager.steps() == []
            await anyio.Path(pending / "sub").mkdir()
            await anyio.Path(pending / "sub", "late").write_bytes(b"1")
        loaded = await manager.load("latest")
        assert loaded is not None
        assert np.array_equal(loaded.state["a"], state["a"])  # type: ignore[arg-type]
        assert loaded.state["rng"].bit_generator.state == rng.bit_generator.state
        assert loaded.training_info == {"loss": 0.5}
        assert [(each.name, each.size) for each in loaded.files] == [("mine.bin", 3), ("sub/late", 1)]
        await manager.verify(3)
        into = {"a": np.zeros(400_000), "small": np.zeros(5, int), "n": 0, "rng": np.random.default_rng(1)}
        assert len((await manager.restore(3, into=into)).files) == 2
        assert np.array_equal(into["a"], state["a"])  # type: ignore[arg-type]


async def test_what_is_yielded_is_a_path(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """As before there was a `save`: it equals the path, and what is made of it is plain paths."""
    async with manager.checkpoint(1) as pending:
        plain = tmp_path / "runs" / "tmp_step_1"
        assert isinstance(pending, Path)
        assert pending == plain
        assert {plain: 1}[pending] == 1
        assert os.fspath(pending) == str(pending) == str(plain)
        assert pending.name == "tmp_step_1"
        assert pending.parent == plain.parent
        for made in (pending / "a" / "b", pending.joinpath("a", "b"), Path(pending, "a", "b")):
            assert made == plain / "a" / "b"
            assert type(made) is type(plain)
        assert await asyncio.to_thread(lambda: [path.name for path in pending.iterdir()]) == ["training_info.json"]
        assert pickle.loads(pickle.dumps(pending)) == plain  # noqa: S301 - our own
        with pytest.raises(asyncckpt.ManagerUsageError, match="not being filled"):
            await pickle.loads(pickle.dumps(pending)).save({})  # noqa: S301 - our own
        await asyncio.to_thread((pending / "mine").write_bytes, b"")
    assert manager.steps() == [1]


async def test_only_one_state(manager: asyncckpt.CheckpointManager) -> None:
    """A second one is refused, also beside the first, and so is one after the block."""
    async with manager.checkpoint(1) as pending:
        results = await asyncio.gather(*(pending.save({"n": n}) for n in range(3)), return_exceptions=True)
        assert results[0] is None
        assert all(isinstance(each, asyncckpt.ManagerUsageError) for each in results[1:])
        with pytest.raises(asyncckpt.ManagerUsageError, match="step 1 has a state already"):
            await pending.save({})
    with pytest.raises(asyncckpt.ManagerUsageError, match="inside its block"):
        await pending.save({})
    loaded = await manager.load(1)
    assert loaded is not None
    assert loaded.state == {"n": 0}


async def test_what_cannot_be_saved(manager: asyncckpt.CheckpointManager) -> None:
    """The error names the step and the leaf; nothing is left, and a good state may follow."""
    async with manager.checkpoint(1) as pending:
        with pytest.raises(asyncckpt.UnsupportedLeafError, match="step 1") as caught:
            await pending.save({"x": {"y": object()}})
        assert caught.value.path == "x/y"
        assert await asyncio.to_thread(os.listdir, pending) == ["training_info.json"]
        await pending.save({"n": 1})
    loaded = await manager.load(1)
    assert loaded is not None
    assert loaded.state == {"n": 1}


@pytest.mark.parametrize("operation", ["create", "write", "sync"])
async def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, operation: str) -> None:
    """No half of a state file stays; another try works."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager, manager.checkpoint(1) as pending:
        disk.fail(operation, errno.ENOSPC, path_part="state.msgpack")
        with pytest.raises(OSError, match="No space left"):
            await pending.save({"a": np.zeros(3 << 20, np.uint8)})
        assert await asyncio.to_thread(os.listdir, pending) == ["training_info.json"]
        await pending.save({"n": 1})
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await manager.verify(1)


async def test_a_cancelled_one_leaves_nothing(tmp_path: Path) -> None:
    """No thread reads the state any more when the cancellation is raised, and there is no file."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        async with manager.checkpoint(1) as pending:
            with hold(disk, "write", "state.msgpack", after=1) as gate:
                task = asyncio.create_task(pending.save({"a": np.zeros(100 << 20, np.uint8)}))
                await gate.reached()
                task.cancel()
                await asyncio.sleep(0)
                assert not task.done()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(os.listdir, pending) == ["training_info.json"]
            with hold(disk, "sync", "state.msgpack") as gate:  # now the file is complete when the cancellation comes
                task = asyncio.create_task(pending.save({"n": 1}))
                await gate.reached()
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(os.listdir, pending) == ["training_info.json"]
            await pending.save({"n": 2})
        loaded = await manager.load(1)
        assert loaded is not None
        assert loaded.state == {"n": 2}


async def test_leaving_the_block_waits_for_it(tmp_path: Path) -> None:
    """One that runs in a task of its own is in the commit."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk, "create", "state.msgpack") as gate:
            async with manager.checkpoint(1) as pending:
                task = asyncio.create_task(pending.save({"n": 1}))
                await gate.reached()
                asyncio.get_running_loop().call_later(0.01, gate.open)
        await task
        loaded = await manager.load(1)
        assert loaded is not None
        assert loaded.state == {"n": 1}


async def test_an_exception_in_the_block_discards_the_state(tmp_path: Path) -> None:
    """Nothing is committed, and nothing is left."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        with pytest.raises(KeyError):
            async with manager.checkpoint(1) as pending:
                await pending.save({"n": 1})
                raise KeyError
        assert manager.steps() == []
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


@pytest.mark.parametrize("change", ["write", "unlink"])
async def test_a_state_file_that_the_program_changes(manager: asyncckpt.CheckpointManager, change: str) -> None:
    """It is noticed when the block is left, and not committed."""
    with pytest.raises(asyncckpt.CheckpointError, match=r"state\.msgpack was changed"):
        async with manager.checkpoint(1) as pending:
            await pending.save({"n": 1})
            if change == "write":
                await asyncio.to_thread((pending / "state.msgpack").write_bytes, b"x")
            else:
                await asyncio.to_thread((pending / "state.msgpack").unlink)
    assert manager.steps() == []


async def test_a_file_of_the_programs_is_not_overwritten(manager: asyncckpt.CheckpointManager) -> None:
    """If it has the name of the state file, the save is refused."""
    async with manager.checkpoint(1) as pending:
        await asyncio.to_thread((pending / "state.msgpack").write_bytes, b"mine")
        with pytest.raises(FileExistsError, match=r"state\.msgpack"):
            await pending.save({"n": 1})
        assert await asyncio.to_thread((pending / "state.msgpack").read_bytes) == b"mine"
    await manager.verify(1)
