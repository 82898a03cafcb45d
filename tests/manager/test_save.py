"""What `save` and `save_nowait` promise their caller."""

from __future__ import annotations

import asyncio
import errno
import json
import sys
import threading
import time
import warnings
import weakref
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from helpers.gates import HeldPool, gone, hold, poke

import asyncckpt
import asyncckpt.runtime.memory
from asyncckpt import CheckpointManager, CheckpointWarning, QueueFullError, SaveFailedError, StepExistsError
from asyncckpt.runtime.jobs import _IDLE_YIELD_INTERVAL, Jobs
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = pytest.mark.parametrize("format_name", ["msgpack", "hdf5"])
MIB = 1 << 20


def big(value: float = 1.0, mib: int = 4) -> np.ndarray[Any, Any]:
    """An array that is captured in a worker thread."""
    return np.full(mib * MIB // 8, value)


# --- what is captured -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mib", [0, 4])
async def test_captures_everything_before_it_returns(tmp_path: Path, mib: int) -> None:
    """State, training_info and run_config may all change once `save` has returned; none of it is seen."""
    array = np.arange(1000.0) if mib == 0 else big(1.0, mib)
    expected = array.copy()
    state = {"a": array, "t": array.T, "list": [1, 2], "d": {"x": 1}}
    info = {"loss": 1.0, "nested": {"k": [1]}}
    config = {"lr": 0.5, "layers": [1, 2]}
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, state, training_info=info, run_config=config)
            array[:] = -1
            state["list"].append(3)
            state["d"]["x"] = 2
            del state["t"]
            info["loss"] = 9.0
            info["nested"]["k"].append(2)
            config["layers"].append(3)
            await gate.reached()
        record = await handle
        assert record is not None
        assert record.training_info == {"loss": 1.0, "nested": {"k": [1]}}
        loaded = await manager.load(1)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.state["a"], expected)
    np.testing.assert_array_equal(loaded.state["t"], expected.T)
    assert loaded.state["list"] == [1, 2]
    assert loaded.state["d"] == {"x": 1}
    assert loaded.training_info == {"loss": 1.0, "nested": {"k": [1]}}
    assert json.loads((tmp_path / "step_1/training_info.json").read_text()) == {"loss": 1.0, "nested": {"k": [1]}}
    assert yaml.safe_load((tmp_path / "step_1/config.yaml").read_text()) == {"lr": 0.5, "layers": [1, 2]}


async def test_read_only_view_of_a_writable_array_is_copied(tmp_path: Path) -> None:
    """An array that only says that it is read-only is copied: its base may change."""
    base = np.zeros(MIB)
    view = base.view()
    view.flags.writeable = False
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {"v": view, "s": base[:10]})
            base[:] = 7
            await gate.reached()
        await handle
        loaded = await manager.load(1)
    assert loaded is not None
    assert not loaded.state["v"].any()
    assert not loaded.state["s"].any()


@pytest.mark.parametrize("mib", [0, 4])
async def test_the_callers_arrays_are_let_go(tmp_path: Path, mib: int) -> None:
    """Once `save` has returned nothing refers to the caller's arrays: their memory is not held beyond the budget."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {})
            await gate.reached()
            array = big(1.0, mib) if mib else np.ones(10)
            alive = weakref.ref(array)
            queued = await manager.save(2, [array])
            del array
            await gone(alive)
        await handle
        await queued
        loaded = await manager.load(2)
    assert loaded is not None
    assert loaded.state[0].all()


async def test_a_kept_handle_keeps_no_state(tmp_path: Path) -> None:
    """A handle that is kept after its save keeps neither a frozen array nor a copy alive."""
    async with CheckpointManager(tmp_path) as manager:
        array = big()
        alive = weakref.ref(array)
        handle = await manager.save(1, [array], frozen=True)
        await handle
        await manager.flush()
        await manager.save(2, [])  # so that the writer has something else in hand
        await manager.flush()
        del array
        await gone(alive)
        assert manager._session.pool.free_nbytes == 0
        assert handle.state == "committed"


async def test_steps_may_be_numpy_integers(tmp_path: Path) -> None:
    """A step is any integer; records and errors carry it as an int."""
    async with CheckpointManager(tmp_path) as manager:
        handle = await manager.save(np.int32(3), {})  # type: ignore[arg-type]
        record = await handle
        assert type(handle.step) is int
        assert record is not None
        assert type(record.step) is int
        assert record.path == tmp_path / "step_3"


@pytest.mark.parametrize("step", [-1, np.int64(-3)])
async def test_negative_step(tmp_path: Path, step: int) -> None:
    """A negative step is refused with ValueError, by name, before anything is written."""
    async with CheckpointManager(tmp_path / "a") as manager:
        for call in (manager.save, manager.save_nowait):
            with pytest.raises(ValueError, match=str(step)):
                result = call(step, {})
                assert not isinstance(result, asyncckpt.SaveHandle)
                await result
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("step", [True, 1.0, "1", None])
async def test_step_of_another_type(tmp_path: Path, step: Any) -> None:
    """A step that is no integer is refused with TypeError."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(TypeError, match="step"):
            await manager.save(step, {})
        with pytest.raises(TypeError, match="step"):
            manager.save_nowait(step, {})


# --- order, duplicates, overwriting -----------------------------------------------------------------------------------


async def test_saves_are_committed_in_order(tmp_path: Path) -> None:
    """Saves are committed in the order of the calls, whatever their sizes."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        tasks = [
            asyncio.create_task(manager.save(step, big(step) if step % 2 == 0 else {"step": step})) for step in range(8)
        ]
        handles = await asyncio.gather(*tasks)
        await asyncio.gather(*handles)
    published = [each.target.name for each in disk.operations if each.name == "rename" and each.target is not None]
    assert published == [f"step_{step}" for step in range(8)]


async def test_concurrent_first_saves_do_not_warn(tmp_path: Path) -> None:
    """Saves called at once, in ascending order, are not "below the latest"."""
    async with CheckpointManager(tmp_path) as manager:
        handles = await asyncio.gather(*(manager.save(step, {}) for step in range(1, 5)))
        assert [record.step for record in await asyncio.gather(*handles) if record] == [1, 2, 3, 4]


async def test_committed_step_exists(tmp_path: Path) -> None:
    """A committed step is refused, by both kinds of save and in a later session, and the first stays as it was."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, "first"))
        with pytest.raises(StepExistsError, match="step 1") as caught:
            await manager.save(1, "second")
        assert caught.value.step == 1
        assert isinstance(caught.value, FileExistsError)
        with pytest.raises(StepExistsError):
            manager.save_nowait(1, "second")
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(StepExistsError):
            await manager.save(1, "second")
        loaded = await manager.load(1)
        assert loaded is not None
        assert loaded.state == "first"


async def test_a_step_is_reserved_when_save_is_called(tmp_path: Path) -> None:
    """A step in flight is refused from the first moment on: waiting, queued, and being written."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            first, second = (asyncio.create_task(manager.save(1, big())) for _ in range(2))
            done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
            assert done == {second}
            with pytest.raises(StepExistsError, match="step 1"):
                await second
            await gate.reached()
            handle = await first
            with pytest.raises(StepExistsError):
                await manager.save(1, {})
            with pytest.raises(StepExistsError):
                manager.save_nowait(1, {})
            await manager.save(2, {})
            with pytest.raises(StepExistsError):
                await manager.save(2, {})
        assert await handle is not None


async def test_overwrite_queues_behind_and_the_last_wins(tmp_path: Path) -> None:
    """With `overwrite` a step in flight is saved again, behind, and the last one stays."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handles = [await manager.save(1, "first")]
            await gate.reached()
            handles.append(await manager.save(1, "second", overwrite=True))
            handles.append(manager.save_nowait(1, "third", overwrite=True))
            assert [each.state for each in handles] == ["writing", "queued", "queued"]
        assert all(record is not None for record in await asyncio.gather(*handles))
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == "third"
        assert manager.steps() == [1]
        with pytest.raises(StepExistsError):
            await manager.save(1, "fourth")


async def test_a_failed_overwrite_leaves_the_old_one(tmp_path: Path) -> None:
    """If the overwriting save fails, the step that was there stays listed and intact."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await (await manager.save(1, "first"))
        disk.fail("sync", errno.EIO)
        with pytest.raises(SaveFailedError):
            await (await manager.save(1, "second", overwrite=True))
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == "first"


async def test_a_corrupt_step_may_be_saved_again(tmp_path: Path) -> None:
    """A step found corrupt may be saved again without `overwrite`, and is as good as new."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": np.arange(1000)}))
        path = tmp_path / "step_1/state.msgpack"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(asyncckpt.CorruptCheckpointError):
            await manager.verify(1)
        assert manager.latest_step() is None
        await (await manager.save(1, {"a": 2}))
        assert manager.latest_step() == 1
        await manager.verify(1)
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == {"a": 2}


@pytest.mark.parametrize("is_committed", [True, False])
async def test_saving_below_the_latest_warns(tmp_path: Path, is_committed: bool) -> None:
    """Saving below the latest step, committed or in flight, works and warns, naming `delete`."""
    async with CheckpointManager(tmp_path) as manager:
        later = await manager.save(7, {})
        if is_committed:
            await later
        with pytest.warns(CheckpointWarning, match="delete") as caught:
            handle = await manager.save(3, {})
        assert "step 3" in str(caught[0].message)
        assert "step 7" in str(caught[0].message)
        with pytest.warns(CheckpointWarning, match="delete") as nowait:
            manager.save_nowait(4, {})
        assert caught[0].filename == nowait[0].filename == __file__, "it points at the caller"
        assert await handle is not None
        await manager.flush()
        assert manager.steps() == [3, 4, 7]
        assert manager.latest_step() == 7


async def test_a_warning_that_is_an_error_leaves_the_step_free(tmp_path: Path) -> None:
    """Where warnings are errors, a save below the latest raises, nothing was queued, and the step is free."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(7, {}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(CheckpointWarning):
                await manager.save(3, {})
            with pytest.raises(CheckpointWarning):
                manager.save_nowait(3, {})
        assert manager.statistics().queue_depth == 0
        assert manager.statistics().staged_nbytes == 0
        await manager.flush()
        assert manager.steps() == [7]
        with pytest.warns(CheckpointWarning):
            handle = await manager.save(3, {})
        await handle


@pytest.mark.parametrize("is_nowait", [False, True])
async def test_a_save_that_raises_leaves_the_step_free(tmp_path: Path, is_nowait: bool) -> None:
    """A state, training_info or run_config that cannot be saved is refused with its path; the step stays free."""
    async with CheckpointManager(tmp_path) as manager:

        async def save(state: object, **more: Any) -> asyncckpt.SaveHandle:
            return manager.save_nowait(1, state, **more) if is_nowait else await manager.save(1, state, **more)

        for state, more, path in (
            ({"a": [0, object()]}, {}, "a/1"),
            ({"f": len}, {}, "f"),
            ({}, {"training_info": {"x": object()}}, "x"),
            ({}, {"run_config": {"y": object()}}, "y"),
        ):
            with pytest.raises(asyncckpt.UnsupportedLeafError, match=path):
                await save(state, **more)
        assert list(tmp_path.glob("*step*")) == []
        assert await (await save({})) is not None


async def test_a_large_state_that_is_refused_leaves_the_step_free(tmp_path: Path) -> None:
    """A bad leaf found by a worker thread is refused like any other, and nothing was staged."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(asyncckpt.UnsupportedLeafError, match="z"):
            await manager.save(1, {"a": big(), "z": object()})
        assert manager.statistics().staged_nbytes == 0
        assert await (await manager.save(1, {})) is not None


# --- save_nowait ------------------------------------------------------------------------------------------------------


async def test_save_nowait_captures_on_the_spot(tmp_path: Path) -> None:
    """`save_nowait` needs no await: the state may change in the next line."""
    async with CheckpointManager(tmp_path) as manager:
        state = {"a": np.zeros(1000), "b": [1]}
        handle = manager.save_nowait(1, state, training_info={"loss": 1}, run_config={"lr": 1})
        state["a"][:] = 5
        state["b"].append(2)
        assert handle.state == "queued"
        record = await handle
        assert record is not None
        assert record.training_info == {"loss": 1}
        loaded = await manager.load(1)
        assert loaded is not None
        assert not loaded.state["a"].any()
        assert loaded.state["b"] == [1]


async def test_save_nowait_refuses_large_states(tmp_path: Path) -> None:
    """A state beyond the inline bound, in bytes or in leaves, is a ValueError, and the step stays free."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ValueError, match="step 1"):
            manager.save_nowait(1, np.zeros(2 * MIB, np.uint8))
        with pytest.raises(ValueError, match="step 1"):
            manager.save_nowait(1, {str(number): None for number in range(100_000)})
        handle = manager.save_nowait(1, np.zeros(MIB // 2, np.uint8))
        assert await handle is not None


async def test_save_nowait_where_save_would_wait_for_its_turn(tmp_path: Path) -> None:
    """While another save is being admitted, `save_nowait` raises QueueFullError, and its step stays free."""
    manager = CheckpointManager(tmp_path)
    pool = manager._session.pool = HeldPool()
    async with manager:
        await (await manager.save(0, {}))
        with hold(FaultyDisk()) as gate:
            pool.gate = gate
            task = asyncio.create_task(manager.save(1, big()))
            await gate.reached()
            with pytest.raises(QueueFullError, match="step 2"):
                manager.save_nowait(2, {})
        await (await task)
        assert await manager.save_nowait(2, {}) is not None


async def test_save_nowait_meets_a_full_queue(tmp_path: Path) -> None:
    """With 64 saves waiting `save_nowait` raises QueueFullError; a duplicate among them is still a duplicate."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handles = [manager.save_nowait(0, {})]
            await gate.reached()
            handles += [manager.save_nowait(step, {}) for step in range(1, 65)]
            assert manager.statistics().queue_depth == 64
            with pytest.raises(QueueFullError, match="step 65"):
                manager.save_nowait(65, {})
            with pytest.raises(StepExistsError):
                manager.save_nowait(64, {})
        await asyncio.gather(*handles)
        assert await manager.save_nowait(65, {}) is not None


async def test_a_refused_save_nowait_replaces_nothing(tmp_path: Path) -> None:
    """With overflow="replace" a duplicate that is refused does not drop the saves that wait."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, overflow="replace") as manager:
        with hold(disk) as gate:
            handles = [manager.save_nowait(0, {})]
            await gate.reached()
            handles += [manager.save_nowait(step, {}) for step in range(1, 65)]
            with pytest.raises(StepExistsError):
                manager.save_nowait(0, {})
            assert {each.state for each in handles[1:]} == {"queued"}
        await asyncio.gather(*handles)


async def test_save_nowait_takes_the_lock_later(tmp_path: Path) -> None:
    """A directory that another writer holds fails the handle of `save_nowait`, which cannot know on the spot."""
    async with CheckpointManager(tmp_path) as first, CheckpointManager(tmp_path) as second:
        await (await first.save(1, {}))
        handle = second.save_nowait(2, {})
        with pytest.raises(SaveFailedError, match="lock") as caught:
            await handle
        assert isinstance(caught.value.__cause__, asyncckpt.DirectoryLockedError)


# --- frozen -----------------------------------------------------------------------------------------------------------


class RecordingDisk(FaultyDisk):
    """A disk that keeps the addresses of what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []

    def write(self, fd: int, buffers: Any, offset: int) -> int:
        """Write."""
        for each in buffers:
            if isinstance(each, np.ndarray):
                self.ranges.append((each.ctypes.data, each.nbytes))
        return super().write(fd, buffers, offset)


async def test_frozen_makes_no_copy(tmp_path: Path) -> None:
    """A frozen array goes to the disk from where it lies: no buffer of the pool is used."""
    array = np.arange(512 << 10, dtype=np.uint8)
    large = big()
    for is_frozen in (False, True):
        disk = RecordingDisk()
        manager = CheckpointManager(tmp_path / str(is_frozen), disk=disk)
        pool = manager._session.pool = HeldPool()
        async with manager:
            handle = await manager.save(1, {"a": array}, frozen=is_frozen)
            await handle
            address = array.ctypes.data
            assert any(address <= at < address + array.nbytes for at, _ in disk.ranges) == is_frozen
            handle = await manager.save(2, {"a": large}, frozen=is_frozen)
            assert handle.captured_nbytes >= large.nbytes
            await handle
            assert (pool.taken_nbytes == 0) == is_frozen
            loaded = await manager.load(2)
            assert loaded is not None
            np.testing.assert_array_equal(loaded.state["a"], large)


async def test_frozen_arrays_count_in_the_budget(tmp_path: Path) -> None:
    """Frozen arrays are staged bytes until they are committed."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, big(), frozen=True)
            await gate.reached()
            assert manager.statistics().staged_nbytes >= 4 * MIB
        await handle
        assert manager.statistics().staged_nbytes == 0


@FORMATS
async def test_frozen_state_of_every_layout(tmp_path: Path, format_name: Any) -> None:
    """Frozen arrays of any layout are saved right, in both formats."""
    base = np.arange(3 * MIB, dtype=np.int32)
    state = {
        "odd": base[1:],
        "strided": base[::3],
        "fortran": np.asfortranarray(base.reshape(1024, -1)),
        "transposed": base.reshape(1024, 3, -1).transpose(2, 0, 1),
        "tied": base,
        "again": base,
        "read_only": np.frombuffer(bytes(range(256)) * 8000, np.uint8),
    }
    async with CheckpointManager(tmp_path, format=format_name) as manager:
        await (await manager.save(1, state, frozen=True))
        loaded = await manager.load(1)
    assert loaded is not None
    for name, array in state.items():
        np.testing.assert_array_equal(loaded.state[name], array)


# --- streaming --------------------------------------------------------------------------------------------------------


@FORMATS
async def test_a_state_beyond_the_budget_streams(
    tmp_path: Path, format_name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the budget a state is captured block by block while it is written, in memory within the budget.

    `save` returns when the last block is captured, the handle already writing, and what the caller changes then is not
    seen.
    """
    allocated: list[int] = []
    aligned_buffer = asyncckpt.runtime.memory.aligned_buffer

    def counting(nbytes: int) -> Any:
        allocated.append(nbytes)
        return aligned_buffer(nbytes)

    monkeypatch.setattr("asyncckpt.disk.write_blocks.aligned_buffer", counting)
    monkeypatch.setattr("asyncckpt.runtime.buffers.aligned_buffer", counting)
    rng = np.random.default_rng(1)
    aligned = aligned_buffer(16 * MIB).view(np.float64)  # direct I/O could take it from where it lies
    aligned[:] = rng.random(2 * MIB)
    state = {"a": aligned, "f": np.asfortranarray(rng.random((512, 512))), "n": list(range(10_000))}
    expected = {name: np.array(value) for name, value in state.items()}
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, format=format_name, max_staged_nbytes=6 * MIB) as manager:
        await (await manager.save(0, state))
        writes = sum(each.name == "write" and each.path.name.startswith("state.") for each in disk.operations)
        allocated.clear()
        with hold(disk, "write", "state.", after=writes - 1) as gate:
            handle = await manager.save(1, state)
            assert handle.state == "writing"
            assert manager.statistics().staged_nbytes < MIB
            for name in ("a", "f"):
                state[name][:] = -1  # type: ignore[index]
            state["n"].clear()  # type: ignore[union-attr]
            await gate.reached()
            assert handle.state == "writing"
        record = await handle
        assert record is not None
        assert sum(allocated) <= 6 * MIB
        assert handle.captured_nbytes < MIB
        await manager.verify(1)
        loaded = await manager.load(1)
    assert loaded is not None
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded.state[name], value)


async def test_streaming_captures_as_blocks_reach_the_disk(tmp_path: Path) -> None:
    """A streaming save does not return before its last block is captured, which waits for the disk."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        with hold(disk, "write", "state.msgpack") as gate:
            task = asyncio.create_task(manager.save(1, big(3.0, 16)))
            await gate.reached()
            done, _ = await asyncio.wait({task}, timeout=0)
            assert not done
            with pytest.raises(QueueFullError):
                manager.save_nowait(2, {})
            waiting = asyncio.create_task(manager.save(2, {}))
        handle = await task
        assert handle.state in ("writing", "committed")
        assert handle.timings.queued is not None
        assert handle.timings.blocked is not None
        assert handle.timings.queued <= handle.timings.blocked
        await handle
        assert await (await waiting) is not None


async def test_a_small_state_beyond_a_tiny_budget(tmp_path: Path) -> None:
    """A budget below the inline bound is kept, too: what does not fit into it streams."""
    async with CheckpointManager(tmp_path, max_staged_nbytes=1000) as manager:
        state = {"a": np.arange(1000), "s": "x" * 5000}
        handle = await manager.save(1, state)
        assert handle.state in ("writing", "committed")
        state["a"][:] = 0
        await handle
        loaded = await manager.load(1)
        assert loaded is not None
        np.testing.assert_array_equal(loaded.state["a"], np.arange(1000))
        assert loaded.state["s"] == "x" * 5000


async def test_a_streaming_save_that_fails_raises(tmp_path: Path) -> None:
    """If a streaming save fails before it is captured, `save` raises, once; nothing is listed and the step is free."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        disk.fail("write", errno.ENOSPC, path_part="state.msgpack")
        with pytest.raises(SaveFailedError, match="step 1") as caught:
            await manager.save(1, big(1.0, 16))
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        await manager.flush()
        assert manager.steps() == []
        assert list(tmp_path.glob("*step*")) == []
        assert await (await manager.save(1, big(1.0, 16))) is not None


async def test_a_streaming_failure_is_not_reported_twice(tmp_path: Path) -> None:
    """The failure that a streaming save raises is raised by nothing else that runs at the same time."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=2 * MIB) as manager:
        await (await manager.save(0, {}))
        poking = asyncio.create_task(poke(manager))
        with hold(disk) as gate:
            disk.fail("write", errno.EIO, path_part="state.msgpack")
            task = asyncio.create_task(manager.save(1, big(1.0, 16)))
            await gate.reached()
            flushes = [asyncio.create_task(manager.flush()) for _ in range(3)]
        results = await asyncio.gather(task, *flushes, return_exceptions=True)
        assert [type(each) for each in results] == [SaveFailedError, type(None), type(None), type(None)]
        poking.cancel()
        assert await poking == []


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note for how many seconds the loop's thread sleeps to give the GIL away, each time it does."""
    naps: list[float] = []
    real = asyncckpt.runtime.jobs.select.select  # type: ignore[attr-defined]

    def counting(*args: Any) -> Any:
        naps.append(args[3])
        return real(*args)

    monkeypatch.setattr("asyncckpt.runtime.jobs.select.select", counting)
    return naps


async def test_a_busy_loop_gives_the_threads_their_turn(tmp_path: Path, naps: list[float]) -> None:
    """While a job runs beside callbacks that follow each other without a pause, the loop gives the GIL away."""
    loop = asyncio.get_running_loop()
    is_busy = True

    def busy() -> None:
        sum(range(2000))
        if is_busy:
            loop.call_soon(busy)

    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        loop.call_soon(busy)
        try:
            with hold(disk) as gate:
                handle = await manager.save(1, big(1.0, 16))
                await gate.reached()
                before = len(naps)
                while len(naps) < before + 3:  # as long as the job runs, again and again
                    await asyncio.sleep(0)
            await handle
            await manager.flush()
        finally:
            is_busy = False
        await asyncio.sleep(0.01)  # the last nap is due
        after = len(naps)
        await asyncio.sleep(0.01)
        assert len(naps) == after, "an idle manager leaves the loop alone"
    assert all(0 < nap < 0.001 for nap in naps)


async def test_a_loop_that_sleeps_gives_nothing_away(
    tmp_path: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop with nothing to do is seldom woken while a job runs, and then only to see whether it still is so."""
    pauses: list[float] = []
    real = Jobs._yield

    def noting(jobs: Jobs) -> None:
        real(jobs)
        pauses.append(jobs._yield_delay)

    monkeypatch.setattr(Jobs, "_yield", noting)
    # How much of a core its thread has had is not left to what else the machine does: none.
    clocks = SimpleNamespace(perf_counter=time.perf_counter, thread_time=float)
    monkeypatch.setattr("asyncckpt.runtime.jobs.time", clocks)
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, big(1.0, 16))
            await gate.reached()
            before = len(pauses)
            while len(pauses) < before + 10:
                await asyncio.sleep(0.001)
            assert pauses[before + 2 :] == [_IDLE_YIELD_INTERVAL] * (len(pauses) - before - 2)
        await handle
    assert naps == []


async def test_disk_work_never_runs_on_the_loops_thread(tmp_path: Path) -> None:
    """Every operation on the disk runs in one of the manager's own threads."""
    threads: set[str] = set()
    disk = FaultyDisk()
    for name in asyncckpt.testing.OPERATIONS:
        disk.fail(name, lambda: threads.add(threading.current_thread().name), lasting=True)
    async with CheckpointManager(tmp_path / "a/b", disk=disk, keep_latest_k=1) as manager:
        manager.save_nowait(1, {})
        await (await manager.save(2, big()))
        await manager.flush()
        await manager.delete(2)
    assert threads
    assert all(name.startswith("asyncckpt") for name in threads)


async def test_flush_waits_for_saves_and_deletes(tmp_path: Path) -> None:
    """`flush` returns when everything queued before it is done, in order: a save, its deletion, the save again."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            first = await manager.save(1, "first")
            await gate.reached()
            delete = asyncio.create_task(manager.delete(1))
            await asyncio.sleep(0)
            second = await manager.save(1, "second", overwrite=True)
            flush = asyncio.create_task(manager.flush())
            done, _ = await asyncio.wait({flush, delete}, timeout=0)
            assert not done
        await flush
        assert first.state == second.state == "committed"
        assert delete.done()
        assert manager.steps() == [1]
        loaded = await manager.load(1)
        assert loaded is not None
        assert loaded.state == "second"
    names = [(each.path.name, each.target.name) for each in disk.operations if each.target is not None]
    assert names == [("tmp_step_1", "step_1"), ("step_1", "trash_step_1"), ("tmp_step_1", "step_1")]


async def test_a_delete_behind_a_save_takes_it_away(tmp_path: Path) -> None:
    """A step deleted while its save is in flight is committed first and deleted then."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {})
            await gate.reached()
            delete = asyncio.create_task(manager.delete(1))
        await delete
        assert handle.state == "committed"
        assert manager.steps() == []
        with pytest.raises(asyncckpt.CheckpointNotFoundError):
            await manager.delete(1)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks(tmp_path: Path) -> None:
    """Under an eager task factory (which uvloop does not take) saves, loads and closing work as ever."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        async with CheckpointManager(tmp_path, max_staged_nbytes=8 * MIB) as manager:
            tasks = [asyncio.create_task(manager.save(step, big(step, 1 + 6 * step))) for step in range(3)]
            for handle in await asyncio.gather(*tasks):
                assert await handle is not None
            await asyncio.create_task(manager.delete(0))
            loaded = await manager.load("latest")
            assert loaded is not None
            assert (loaded.state == 2).all()

    asyncio.run(main())


async def test_the_writer_has_an_empty_context(tmp_path: Path) -> None:
    """What the task that entered the manager has in its context is not kept alive by the writer."""
    import contextvars

    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    variable.set(1)
    async with CheckpointManager(tmp_path) as manager:
        writer = manager._session.use().writer.task
        if sys.version_info >= (3, 12):
            assert variable not in writer.get_context()
        assert await (await manager.save(1, {})) is not None


async def test_saves_nothing_through_a_directory_it_cannot_write(tmp_path: Path) -> None:
    """A directory that cannot be made fails `save` itself with the disk's error; the step is free when it can."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path / "new", disk=disk) as manager:
        disk.fail("mkdir", errno.EACCES)
        with pytest.raises(PermissionError):
            await manager.save(1, {})
        assert not (tmp_path / "new").exists()
        assert await (await manager.save(1, {})) is not None
        assert (tmp_path / "new/step_1").is_dir()


async def test_prewarm_leaves_the_first_save_nothing_to_allocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `prewarm`, a save of such a state takes buffers that are there; nothing was saved, or kept of the state."""
    async with asyncckpt.CheckpointManager(tmp_path / "a") as manager:
        state = {"w": np.ones(5_000_000), "b": [np.ones(300_000), "x"]}
        await manager.prewarm(state)
        assert not (tmp_path / "a").exists()
        monkeypatch.delattr("asyncckpt.runtime.buffers.aligned_buffer")  # a request for a fresh buffer fails
        await (await manager.save(1, state))
        loaded = await manager.load(1)
        assert loaded is not None
        np.testing.assert_array_equal(loaded.state["w"], state["w"])
