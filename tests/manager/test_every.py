"""`manager.every`: saves beside the body of a program that has no steps."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from helpers.gates import Gate, HeldPool, hold

import asyncckpt
from asyncckpt import CheckpointManager, ConfigError, SaveFailedError
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

SOON = 0.001
NEVER = 3600.0


class Counter:
    """A state that tells how often it was asked for, and wakes up who waits for a number of times."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Condition()

    async def __call__(self) -> dict[str, int]:
        """Return the state."""
        async with self._changed:
            self.count += 1
            self._changed.notify_all()
        return {"count": self.count}

    async def reaches(self, count: int) -> None:
        """Wait until the state was asked for so often."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(lambda: self.count >= count), 60)


async def test_saves_are_made_beside_the_body_and_steps_are_counted_up(tmp_path: Path) -> None:
    """From behind the last one that there is, and once more at the end."""
    counter = Counter()
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(7, {}))
        async with manager.every(SOON, counter):
            await counter.reaches(3)
        steps = manager.steps()
        assert steps == list(range(7, 8 + counter.count))
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == {"count": counter.count}
    async with CheckpointManager(tmp_path) as manager:
        async with manager.every(NEVER, dict):
            pass
        assert manager.steps() == [*steps, steps[-1] + 1]


async def test_the_first_step_is_one(tmp_path: Path) -> None:
    """In an empty directory, by a function that is not async; its state may be large."""
    state = {"a": np.arange(1 << 20)}
    async with CheckpointManager(tmp_path) as manager:
        async with manager.every(NEVER, lambda: state):
            assert manager.steps() == []
        assert manager.steps() == [1]


async def test_other_saves_take_steps_too(tmp_path: Path) -> None:
    """Those that are under way count."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            await manager.save(4, {})
            await gate.reached()
            block = manager.every(NEVER, dict)
            await block.__aenter__()
            gate.open()
            await block.__aexit__(None, None, None)
        assert manager.steps() == [4, 5]


async def test_the_first_save_comes_after_the_interval(tmp_path: Path) -> None:
    """Not at once; there is nothing new to save."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(KeyError):
            async with manager.every(NEVER, dict):
                for _ in range(10):
                    await asyncio.sleep(0)
                raise KeyError
        assert manager.steps() == []


async def test_a_small_state_is_captured_before_the_body_goes_on(tmp_path: Path) -> None:
    """So it needs no copy: it waits for other saves, and for the directory, before the state is asked for."""
    state = {"a": np.zeros(10), "b": 0}
    manager = CheckpointManager(tmp_path)
    pool = manager._session.pool = HeldPool()
    async with manager:
        with Gate() as gate:
            pool.gate = gate
            large = asyncio.ensure_future(manager.save(50, np.zeros(1 << 18)))
            await gate.reached()

            async def change() -> None:
                while not large.done() or manager.steps()[-1:] != [51]:
                    state["a"] += 1
                    state["b"] += 1  # type: ignore[operator]
                    await asyncio.sleep(0)

            changing = asyncio.ensure_future(change())
            async with manager.every(NEVER, state.copy):
                asyncio.get_running_loop().call_soon(gate.open)
            await changing
        await large
        loaded = await manager.load(51)
        assert loaded is not None
        assert loaded.state["b"] > 0
        assert (loaded.state["a"] == loaded.state["b"]).all()


async def test_a_slow_disk_delays_the_next_save(tmp_path: Path) -> None:
    """Nothing piles up while one is being written."""
    counter, disk = Counter(), FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            async with manager.every(SOON, counter):
                await gate.reached()
                await asyncio.sleep(20 * SOON)
                assert counter.count == 1
                gate.open()
                await counter.reaches(2)


@pytest.mark.parametrize("what", ["make_state", "state", "disk"])
async def test_an_error_ends_the_body_and_is_raised_from_the_block(tmp_path: Path, what: str) -> None:
    """At its next await, whatever it waits for; the task is not cancelled any more, and the manager goes on."""
    disk = FaultyDisk()

    def make_state() -> object:
        if what == "make_state":
            raise KeyError("no state")
        return object() if what == "state" else {}

    expected = {"make_state": KeyError, "state": asyncckpt.UnsupportedLeafError, "disk": SaveFailedError}[what]
    ended = []
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        await manager.flush()
        if what == "disk":
            disk.fail("sync", errno.EIO, path_part="tmp_step")
        with pytest.raises(expected):
            async with manager.every(SOON, make_state):
                try:
                    await asyncio.sleep(NEVER)
                finally:
                    ended.append(1)
        assert ended == [1]
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        await (await manager.save(100, {}))


async def test_an_error_of_the_last_save_is_raised_from_the_block(tmp_path: Path) -> None:
    """It is not left to the manager."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        disk.fail("sync", errno.EIO, path_part="tmp_step")
        with pytest.raises(SaveFailedError, match="step 1"):
            async with manager.every(NEVER, dict):
                pass


async def test_a_body_that_ends_in_its_own_way_keeps_its_exception(tmp_path: Path) -> None:
    """The failure of the saves is a note; and a body that catches the cancellation does not hide it."""

    def fail() -> object:
        raise KeyError("no state")

    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ZeroDivisionError) as caught:
            async with manager.every(SOON, fail):
                try:
                    await asyncio.sleep(NEVER)
                finally:
                    raise ZeroDivisionError
        assert any("no state" in note for note in caught.value.__notes__)
        with pytest.raises(KeyError, match="no state"):
            async with manager.every(SOON, fail):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(NEVER)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


async def test_an_exception_of_the_body_saves_nothing_more(tmp_path: Path) -> None:
    """The state may be half changed. What was captured is written."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            with pytest.raises(KeyError):
                async with manager.every(SOON, dict):
                    await gate.reached()
                    raise KeyError
            gate.open()
        await manager.flush()
        assert manager.steps() == [1]


@pytest.mark.parametrize("how", ["timeout", "cancel", "anyio", "anyio deadline"])
async def test_a_cancellation_by_others_stays_one(tmp_path: Path, how: str) -> None:
    """And saves nothing."""

    async def body(manager: CheckpointManager) -> None:
        async with manager.every(NEVER, dict):
            await asyncio.sleep(NEVER)

    async with CheckpointManager(tmp_path) as manager:
        if how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await body(manager)
        elif how == "cancel":
            task = asyncio.ensure_future(body(manager))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "anyio":
            async with anyio.create_task_group() as group:
                group.start_soon(body, manager)
                await asyncio.sleep(0)
                group.cancel_scope.cancel()
        else:
            with anyio.move_on_after(0.01) as scope:
                await body(manager)
            assert scope.cancelled_caught
        assert manager.steps() == []


async def test_a_cancellation_while_the_last_save_is_written_is_raised(tmp_path: Path) -> None:
    """The save goes on in the manager."""
    disk = FaultyDisk()

    async def body(manager: CheckpointManager) -> None:
        async with manager.every(NEVER, dict):
            pass

    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            task = asyncio.ensure_future(body(manager))
            await gate.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
        await manager.flush()
        assert manager.steps() == [1]


async def test_a_cancellation_that_comes_with_the_error_wins(tmp_path: Path) -> None:
    """Whoever cancelled the task must see it end; the error is a note."""
    task = asyncio.current_task()
    assert task is not None

    def fail() -> object:
        task.cancel()
        raise KeyError("no state")

    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(asyncio.CancelledError) as caught:
            async with manager.every(SOON, fail):
                await asyncio.sleep(NEVER)
        assert any("no state" in note for note in caught.value.__notes__)
        assert task.uncancel() == 0


async def test_training_info_is_made_with_the_state(tmp_path: Path) -> None:
    """At the same moment, so that it fits."""
    state = {"at": 0}
    async with CheckpointManager(tmp_path, metric_name="at", metric_required=True) as manager:
        async with manager.every(NEVER, lambda: state, make_training_info=lambda: dict(state)):
            state["at"] = 5
        assert (await manager.load_training_info()) == {"at": 5}


async def test_a_disabled_manager_saves_nothing(tmp_path: Path) -> None:
    """And asks for no state."""
    counter = Counter()
    async with CheckpointManager(tmp_path, enabled=False) as manager, manager.every(SOON, counter):
        await asyncio.sleep(3 * SOON)
    assert counter.count == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "1", None])
async def test_seconds_are_a_number_above_zero(tmp_path: Path, seconds: Any) -> None:
    """Or nothing is started."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ConfigError, match="seconds: expected a finite number of seconds > 0"):
            manager.every(seconds, dict)


async def test_wrong_uses(tmp_path: Path) -> None:
    """A state in the place of a function, a reader, a manager that is not open."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(ConfigError, match="make_state: expected a function, found dict"):
            manager.every(1, {})  # type: ignore[arg-type]
    with pytest.raises(asyncckpt.ManagerClosedError):
        manager.every(1, dict)
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        with pytest.raises(asyncckpt.ReadOnlyError):
            reader.every(1, dict)


async def test_a_block_in_a_block_counts_on(tmp_path: Path) -> None:
    """Two states, one sequence of steps."""
    async with CheckpointManager(tmp_path) as manager:
        async with manager.every(NEVER, lambda: "outer"), manager.every(NEVER, lambda: "inner"):
            pass
        assert manager.steps() == [1, 2]


async def test_each_save_is_one_moment_of_a_cut(tmp_path: Path) -> None:
    """Also the one at the end; two numbers that a task changes with an await between them are never saved apart."""
    cut, counter, state = asyncckpt.Cut(), Counter(), {"ours": 0, "theirs": 0}

    def make_state() -> dict[str, int]:
        assert cut.is_held
        counter.count += 1
        return dict(state)

    async def actor() -> None:
        async with cut.participant("actor") as me:
            while counter.count < 3:
                state["ours"] += 1
                await asyncio.sleep(0)
                state["theirs"] += 1
                await me.safe_point()

    async with CheckpointManager(tmp_path) as manager:
        async with manager.every(SOON, make_state, cut=cut):
            await actor()
        assert manager.steps()[-1] == counter.count >= 4
        for step in manager.steps():
            loaded = await manager.load(step)
            assert loaded is not None
            assert loaded.state["ours"] == loaded.state["theirs"]


async def test_a_cut_that_is_not_held_in_time_ends_the_body(tmp_path: Path) -> None:
    """With the error that names who is late."""
    cut, never = asyncckpt.Cut(), asyncio.Event()
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(asyncckpt.CutTimeoutError, match="actor"):
            async with manager.every(SOON, dict, cut=cut, cut_timeout=0), cut.participant("actor"):
                await never.wait()
        assert manager.steps() == []


async def test_a_participant_saves_beside_no_block_of_its_own(tmp_path: Path) -> None:
    """At the end it would wait for itself."""
    cut = asyncckpt.Cut()
    async with CheckpointManager(tmp_path) as manager, cut.participant("actor"):
        with pytest.raises(asyncckpt.CutUsageError, match="'actor', which takes part"):
            async with manager.every(NEVER, dict, cut=cut):
                pass
    assert not cut.torn
