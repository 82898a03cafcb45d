"""`save(cut=)` captures one moment, and keeps the program at rest no longer than that takes."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

import asyncckpt.blocking
from asyncckpt import (
    CheckpointManager,
    ConfigError,
    Cut,
    CutBusyError,
    CutTimeoutError,
    CutUsageError,
    ManagerUsageError,
    Participant,
    StepExistsError,
    TornStateError,
)
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

MIB = 1 << 20


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def start(cut: Cut, play: Callable[[Participant], Awaitable[Any]], name: str = "task") -> asyncio.Task[Any]:
    """Start a participant."""

    async def main() -> Any:
        async with cut.participant(name) as me:
            return await play(me)

    return asyncio.create_task(main(), name=name)


class Program:
    """Moves numbers from a cursor to a sum, through a queue; each is in the hands of a task in between."""

    def __init__(self, nbytes: int = 8) -> None:
        self.cut = Cut()
        self.queue = self.cut.Queue(2)
        self.cursor = self.total = 0
        self.large = np.zeros(nbytes // 8)
        self.calls = 0
        self.tasks = [start(self.cut, self.produce, "producer"), start(self.cut, self.consume, "consumer")]

    async def produce(self, me: Participant) -> None:
        """Put numbers into the queue."""
        while True:
            await me.safe_point()
            self.large += 1
            number, self.cursor = self.cursor, self.cursor + 1
            await asyncio.sleep(0)
            await self.queue.put(number)

    async def consume(self, _: Participant) -> None:
        """Add them up."""
        while True:
            number = await self.queue.get()
            await asyncio.sleep(0)
            self.total += number

    def state(self) -> dict[str, Any]:
        """Put the state together."""
        assert self.cut.is_held
        self.calls += 1
        return {"cursor": self.cursor, "queue": self.queue, "total": self.total, "large": self.large}

    async def stop(self) -> None:
        """End the tasks."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for name in self.cut.torn:
            self.cut.forgive(name)


async def check(manager: CheckpointManager, step: int) -> int:
    """Check that a checkpoint has each number once; return how many there are."""
    state = (await manager.load(step)).state  # type: ignore[union-attr] # it is not missing
    assert state["total"] + sum(state["queue"]) == sum(range(state["cursor"]))
    assert (state["large"] == state["large"][0]).all()
    assert state["large"][0] == state["cursor"]
    return int(state["cursor"])


@pytest.mark.parametrize("nbytes", [8, 4 * MIB])
async def test_a_checkpoint_is_one_moment(tmp_path: Path, nbytes: int) -> None:
    """Of small states and of large ones, which are captured in threads; the saver may take part, or not."""
    program, steps = Program(nbytes), itertools.count()

    async def save(me: Participant | None) -> None:
        for _ in range(3):
            handle = await manager.save(next(steps), program.state, cut=program.cut)
            assert me is None or me.is_running
            await (handle if me is None else me.at_rest(handle))

    async with CheckpointManager(tmp_path) as manager:
        await asyncio.gather(save(None), start(program.cut, save, "saver"))
        await program.stop()
        for step in manager.steps():
            await check(manager, step)
        assert len(manager.steps()) == 6
        assert program.calls == 6


async def test_a_state_may_stand_for_itself(tmp_path: Path) -> None:
    """With a cut, a state that is no function is captured while the cut is held, too."""
    program = Program()
    async with CheckpointManager(tmp_path) as manager:
        await manager.save(1, {"queue": program.queue}, cut=program.cut)
        await program.stop()


async def test_the_program_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """The cut is held until the state is captured, not until the disk has it."""
    program, disk = Program(), FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, program.state, cut=program.cut)
            await gate.reached()
            assert not program.cut.is_wanted
            cursor = program.cursor
            await settle()
            assert program.cursor > cursor
        await handle
        await program.stop()
        assert await check(manager, 1) <= cursor


async def test_errors_release_the_cut_and_free_the_step(tmp_path: Path) -> None:
    """What the function raises comes as it is; so does its use of the cut. An awaitable is refused."""
    program = Program()

    def fail() -> object:
        raise ZeroDivisionError

    async def wait() -> object:
        return {}

    def use() -> object:
        return program.queue.get_nowait()

    async def save(_: Participant) -> None:
        for state, error in ((fail, ZeroDivisionError), (wait, TypeError), (use, CutUsageError)):
            with pytest.raises(error):
                await manager.save(1, state, cut=program.cut)
            assert not program.cut.is_wanted
        with pytest.raises(TypeError, match=r"expected an asyncckpt\.Cut"):
            await manager.save(1, program.state, cut=program)  # type: ignore[arg-type] # on purpose
        await me_at_rest(await manager.save(1, program.state, cut=program.cut))
        with pytest.raises(StepExistsError):
            await manager.save(1, program.state, cut=program.cut)
        assert program.calls == 1

    async def me_at_rest(handle: Awaitable[Any]) -> None:
        await handle

    async with CheckpointManager(tmp_path) as manager:
        await start(program.cut, save, "saver")
        assert not program.cut.torn
        await program.stop()
        await check(manager, 1)


async def test_too_late(tmp_path: Path) -> None:
    """A timeout and a death say so, free the step, and let all go on."""
    program = Program()
    standing = start(program.cut, lambda _: asyncio.Event().wait(), "standing")
    await settle()
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(CutTimeoutError, match="'standing' at"):
            await manager.save(1, program.state, cut=program.cut, cut_timeout=0.0)
        cursor = program.cursor
        await settle()
        assert program.cursor > cursor
        standing.cancel()
        await settle()
        with pytest.raises(TornStateError):
            await manager.save(1, program.state, cut=program.cut)
        program.cut.forgive("standing")
        await manager.save(1, program.state, cut=program.cut)
        await program.stop()


async def test_a_cancelled_save_lets_all_go_on(tmp_path: Path) -> None:
    """At whichever await it is cancelled: it has saved, or left nothing behind."""
    program = Program(4 * MIB)
    async with CheckpointManager(tmp_path) as manager:
        for turns in range(12):
            task = asyncio.create_task(manager.save(turns, program.state, cut=program.cut))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                await manager.save(turns, program.state, cut=program.cut)
            cursor = program.cursor
            await settle()
            assert program.cursor > cursor
        await program.stop()
        await manager.flush()
        for turns in range(12):
            await check(manager, turns)


# --- room first -------------------------------------------------------------------------------------------------------


async def test_room_is_waited_for_before_the_cut(tmp_path: Path) -> None:
    """While there is none, the program runs."""
    program, disk = Program(4 * MIB), FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=6 * MIB) as manager:
        with hold(disk) as gate:
            await manager.save(1, program.state, cut=program.cut)
            await gate.reached()
            task = start(program.cut, lambda _: manager.save(2, program.state, cut=program.cut), "saver")
            await settle()
            assert not program.cut.is_wanted
            assert program.calls == 1
            async with program.cut.hold():  # a participant that waits for room is at rest
                assert not task.done()
        await task
        await program.stop()
        await manager.flush()
        await check(manager, 2)
        assert program.calls == 2


async def test_a_state_that_is_larger_than_expected_is_put_together_again(tmp_path: Path) -> None:
    """The cut is released while there is no room for it, and held again."""
    program, disk = Program(), FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=6 * MIB) as manager:
        await manager.save(0, {"small": 1})
        await manager.flush()
        with hold(disk) as gate:
            await manager.save(1, np.zeros(4 * MIB // 8), frozen=True)
            await gate.reached()
            await manager.save(2, {"small": 1})  # what is expected now
            program.large = np.full(4 * MIB // 8, float(program.cursor))
            task = start(program.cut, lambda _: manager.save(3, program.state, cut=program.cut), "saver")
            while not program.calls:
                await asyncio.sleep(0.001)
            while program.cut.is_wanted:
                await asyncio.sleep(0.001)
            cursor = program.cursor
            await settle()
            assert program.cursor > cursor
            assert program.calls == 1
        await task
        assert program.calls == 2
        await program.stop()
        await manager.flush()
        assert await check(manager, 3) > cursor


async def test_a_state_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    """It would have to be copied while it is written; the error names the budget that it needs."""
    program = Program(4 * MIB)
    async with CheckpointManager(tmp_path, max_staged_nbytes=2 * MIB) as manager:
        with pytest.raises(ConfigError, match=r"step 1: .* max_staged_nbytes=41\d{5} or more"):
            await manager.save(1, program.state, cut=program.cut)
        assert not program.cut.is_wanted
        program.large = np.full(MIB // 8, float(program.cursor))
        await manager.save(1, program.state, cut=program.cut)
        await program.stop()
        await manager.flush()
        await check(manager, 1)


async def test_a_save_is_skipped_before_the_cut(tmp_path: Path) -> None:
    """With `overflow="skip"` the function is not even called; nor is it by a disabled manager."""
    program, disk = Program(4 * MIB), FaultyDisk()
    options: dict[str, Any] = {"max_staged_nbytes": 6 * MIB, "overflow": "skip"}
    async with CheckpointManager(tmp_path, disk=disk, **options) as manager:
        with hold(disk) as gate:
            await manager.save(1, program.state, cut=program.cut)
            await gate.reached()
            handle = await manager.save(2, program.state, cut=program.cut)
            assert str(handle.state) == "skipped"
            assert program.calls == 1
        await program.stop()
    async with CheckpointManager(tmp_path, enabled=False) as manager:
        await manager.save(3, program.state, cut=program.cut)
        assert program.calls == 1


# --- plain saves ------------------------------------------------------------------------------------------------------


async def test_a_plain_save_of_a_participant_while_a_cut_is_wanted_is_an_error(tmp_path: Path) -> None:
    """It would wait for the saver, which waits for it. At a safe point, or at rest, it may."""
    cut, go = Cut(), asyncio.Event()

    async def play(me: Participant) -> None:
        await go.wait()
        with pytest.raises(CutUsageError, match="step 2: 'actor' saves without a cut"):
            await manager.save(2, {"x": 1})
        await me.at_rest(manager.save(2, {"x": 1}))
        await me.safe_point()
        await manager.save(3, {"x": 1})
        async with cut.hold():
            await manager.save(4, {"x": 1})

    async with CheckpointManager(tmp_path) as manager:
        task = start(cut, play, "actor")
        await settle()
        saving = asyncio.create_task(manager.save(1, lambda: {"y": 1}, cut=cut))
        while not cut.is_wanted:
            await asyncio.sleep(0.001)
        go.set()
        await asyncio.gather(task, saving)
        await manager.flush()
        assert manager.steps() == [1, 2, 3, 4]


async def test_a_plain_save_that_waits_for_a_save_with_a_cut_is_at_rest(tmp_path: Path) -> None:
    """Also if the cut is wanted only after it began to wait."""
    cut, disk = Cut(), FaultyDisk()

    def state() -> object:
        return np.zeros(4 * MIB // 8)

    async with CheckpointManager(tmp_path, disk=disk, max_staged_nbytes=6 * MIB) as manager:
        with hold(disk) as gate:
            await manager.save(1, state(), frozen=True)
            await gate.reached()
            saving = asyncio.create_task(manager.save(2, state, cut=cut, cut_timeout=None))
            await settle()  # it waits for room
            plain = start(cut, lambda _: manager.save(3, {"x": 1}), "actor")
            await settle()
            assert not cut.is_wanted
        await asyncio.wait_for(asyncio.gather(saving, plain), 60)
        await manager.flush()
        assert manager.steps() == [1, 2, 3]


async def test_the_task_that_holds_the_cut_saves_without_it(tmp_path: Path) -> None:
    """With it, it would wait for itself."""
    program = Program()
    async with CheckpointManager(tmp_path) as manager:
        for member in (False, True):

            async def save(_: Participant | None, step: int = int(member)) -> None:
                async with program.cut.hold():
                    with pytest.raises(CutUsageError):
                        await manager.save(7, program.state, cut=program.cut)
                    await manager.save(step, program.state())

            await (start(program.cut, save, "saver") if member else save(None))
        await program.stop()
        await manager.flush()
        assert [await check(manager, step) >= 0 for step in manager.steps()] == [True, True]


def test_a_manager_without_await_has_no_cuts(tmp_path: Path) -> None:
    """And says so."""
    with (
        asyncckpt.blocking.CheckpointManager(tmp_path) as manager,
        pytest.raises(ManagerUsageError, match="has no cuts"),
    ):
        manager.save(1, {"x": 1}, cut=Cut())


# --- without waiting --------------------------------------------------------------------------------------------------


async def test_a_save_at_once(tmp_path: Path) -> None:
    """`save_nowait(cut=)` saves only if all are at rest already."""
    program = Program()
    async with CheckpointManager(tmp_path) as manager:
        await settle()
        await program.stop()
        program.tasks = [start(program.cut, program.consume), start(program.cut, lambda _: asyncio.Event().wait(), "x")]
        await settle()
        with pytest.raises(CutBusyError, match="'x' at"):
            manager.save_nowait(1, lambda: {"x": 1}, cut=program.cut)
        await program.stop()
        program.tasks = [start(program.cut, lambda me: me.at_rest(asyncio.Event().wait()))]
        await settle()
        handle = manager.save_nowait(1, lambda: {"held": program.cut.is_held}, cut=program.cut)
        assert not program.cut.is_wanted
        await handle
        assert (await manager.load(1)).state == {"held": True}  # type: ignore[union-attr] # it is not missing
        with pytest.raises(ZeroDivisionError):
            manager.save_nowait(2, lambda: 1 / 0, cut=program.cut)
        assert not program.cut.is_wanted
        manager.save_nowait(2, {"x": 1}, cut=program.cut)
        await program.stop()
