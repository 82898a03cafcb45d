"""An item of a cut's queue is in every cut exactly once, and a queue is a leaf of the state."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
from helpers.support import FORMATS
from hypothesis import given
from hypothesis import strategies as st
from reliability.cut_schedules import run_virtually

import asyncckpt
from asyncckpt import CheckpointError, Cut, CutQueue, CutUsageError, Participant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


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


def get(cut: Cut, queue: CutQueue[Any], **options: Any) -> asyncio.Task[Any]:
    """Start a participant that gets an item."""
    return start(cut, lambda _: queue.get(**options))


def put(cut: Cut, queue: CutQueue[Any], item: object, **options: Any) -> asyncio.Task[Any]:
    """Start a participant that puts an item."""
    return start(cut, lambda _: queue.put(item, **options))


def filled(cut: Cut, *items: object, maxsize: int = 0) -> CutQueue[Any]:
    """Return a queue with items."""
    queue = cut.Queue(maxsize)
    for item in items:
        queue.put_nowait(item)
    return queue


# --- as a queue -------------------------------------------------------------------------------------------------------


async def test_it_is_first_in_first_out() -> None:
    """In the order of the calls, also of those that wait, on both sides."""
    cut = Cut()
    queue = cut.Queue(2)
    puts = [put(cut, queue, number) for number in range(5)]
    await settle()
    assert [task.done() for task in puts] == [True, True, False, False, False]
    assert list(queue) == [0, 1, 2, 3, 4]
    assert (queue.qsize(), len(queue), queue.maxsize, queue.full(), queue.empty()) == (2, 2, 2, True, False)
    gets = [get(cut, queue) for _ in range(7)]
    await settle()
    assert [task.result() for task in gets[:5]] == [0, 1, 2, 3, 4]
    assert queue.empty()
    assert bool(queue)
    for number in (5, 6):
        await put(cut, queue, number)
    assert await asyncio.gather(*gets) == list(range(7))
    assert repr(queue) == "<CutQueue, 0 items, maxsize=2>"


async def test_each_get_lets_the_longest_waiting_put_go() -> None:
    """One get, one put: none is forgotten, and none goes in beyond `maxsize`."""
    cut = Cut()
    queue = filled(cut, 0, maxsize=1)
    puts = [put(cut, queue, number) for number in range(1, 5)]
    for number in range(5):
        await settle()
        assert [task.done() for task in puts] == [True] * number + [False] * (4 - number)
        assert await get(cut, queue) == number


@given(
    maxsize=st.integers(0, 3),
    calls=st.lists(st.tuples(st.sampled_from(["put", "get", "put_nowait", "get_nowait", "cancel"]), st.integers(0, 9))),
)
def test_without_cuts_it_does_what_asyncios_queue_does(maxsize: int, calls: list[tuple[str, int]]) -> None:
    """The same calls have the same results in both."""

    async def play(make: Callable[[], Any], cut: Cut) -> list[object]:
        queue, numbers, tasks = make(), itertools.count(), list[asyncio.Task[Any]]()
        results: list[object] = []

        async def main(_: Participant) -> None:
            for call, which in calls:
                if call == "cancel":
                    if tasks:
                        tasks[which % len(tasks)].cancel()
                elif call.endswith("nowait"):
                    try:
                        results.append(getattr(queue, call)(*[next(numbers)][: call == "put_nowait"]))
                    except (asyncio.QueueEmpty, asyncio.QueueFull) as error:
                        results.append(type(error))
                else:
                    item = [next(numbers)][: call == "put"]
                    tasks.append(start(cut, lambda _, call=call, item=item: getattr(queue, call)(*item)))
                await settle()
            results.append([task.result() if task.done() and not task.cancelled() else task.done() for task in tasks])
            results.append((queue.qsize(), queue.full(), queue.empty()))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks) if tasks else None

        await start(cut, main, "main")
        return results

    async def compare() -> None:
        cut = Cut()
        assert await play(lambda: cut.Queue(maxsize), cut) == await play(lambda: asyncio.Queue(maxsize), Cut())

    run_virtually(compare())


def test_timeouts() -> None:
    """Both calls have one, after which nothing has been taken out or put in."""

    async def main() -> None:
        cut = Cut()
        queue = cut.Queue(1)
        loop = asyncio.get_running_loop()

        async def play(_: Participant) -> None:
            for timeout in (2.0, 0.0):
                begin = loop.time()
                with pytest.raises(TimeoutError):
                    await queue.get(timeout=timeout)
                assert loop.time() - begin == timeout
            await queue.put(1, timeout=1.0)
            with pytest.raises(TimeoutError):
                await queue.put(2, timeout=1.0)
            assert list(queue) == [1]
            assert await queue.get(timeout=0.0) == 1
            await queue.put(3)

        await start(cut, play)
        assert await get(cut, queue, timeout=None) == 3

    run_virtually(main())


# --- cuts -------------------------------------------------------------------------------------------------------------


async def test_who_waits_in_a_queue_is_at_rest() -> None:
    """And goes on after the release, though an item or a place has come meanwhile."""
    cut = Cut()
    empty, full = cut.Queue(), filled(cut, 1, maxsize=1)
    tasks = [get(cut, empty), put(cut, full, 2)]
    await settle()
    async with cut.hold():
        assert (list(empty), list(full)) == ([], [1, 2])  # the waiting put's item is the queue's
    assert not any(task.done() for task in tasks)
    await put(cut, empty, 3)
    await get(cut, full)
    assert await asyncio.gather(*tasks) == [3, None]


async def test_no_item_is_on_its_way_in_a_cut() -> None:
    """A get and a put that were let go have not moved anything when the cut is held."""
    cut = Cut()
    empty, full = cut.Queue(), filled(cut, 1, maxsize=1)
    tasks = [get(cut, empty), put(cut, full, 2)]
    await settle()

    go = asyncio.Event()

    async def play(me: Participant) -> None:
        await go.wait()
        empty.put_nowait(3)  # lets the get go
        assert full.get_nowait() == 1  # lets the put go
        await me.safe_point()

    tasks.append(start(cut, play))
    await settle()
    go.set()
    async with cut.hold():
        await settle()
        assert not any(task.done() for task in tasks)
        assert (list(empty), list(full)) == ([3], [2])
    assert await asyncio.gather(*tasks) == [3, None, None]


async def test_calls_wait_while_a_cut_is_wanted() -> None:
    """A put and a get are safe points: a loop that only uses queues holds up no cut."""
    cut = Cut()
    queue = cut.Queue()

    async def produce(_: Participant) -> None:
        for number in itertools.count():
            await queue.put(number)
            await asyncio.sleep(0)

    async def consume(_: Participant) -> None:
        while True:
            await queue.get()
            await asyncio.sleep(0)

    tasks = [start(cut, produce), start(cut, consume)]
    await settle()
    async with cut.hold():
        before = list(queue)
        await settle()
        assert list(queue) == before
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancelled_get_leaves_the_item_at_the_front(way: str) -> None:
    """Though it had been let go, and waited only for the end of a cut that was wanted; the next get has it."""
    cut, scope, go = Cut(), anyio.CancelScope(), asyncio.Event()
    queue = cut.Queue()

    async def wait(_: Participant) -> object:
        with scope:
            return await queue.get()
        return "cancelled"

    async def put_both(_: Participant) -> None:
        await go.wait()
        queue.put_nowait(1)  # lets the get go
        queue.put_nowait(2)
        await asyncio.Event().wait()

    waiting, running = start(cut, wait), start(cut, put_both)
    await settle()
    hold = asyncio.create_task(_hold(cut))
    await settle()
    go.set()
    await settle()
    assert not waiting.done()  # it has an item, and waits while the cut is wanted
    (scope if way == "scope" else waiting).cancel()
    await settle()
    assert waiting.cancelled() if way == "task" else waiting.result() == "cancelled"
    assert list(queue) == [1, 2]
    hold.cancel()
    running.cancel()
    await asyncio.wait([hold, running])
    assert await get(cut, queue) == 1


async def _hold(cut: Cut) -> None:
    async with cut.hold():
        pass


async def test_a_cancelled_get_lets_the_next_one_go() -> None:
    """What it was promised goes to whoever waits next."""
    cut = Cut()
    queue = cut.Queue()
    first, second = get(cut, queue), get(cut, queue)
    await settle()

    async def play(_: Participant) -> None:
        queue.put_nowait(1)
        first.cancel()

    await start(cut, play)
    assert await second == 1
    assert first.cancelled()


async def test_a_cancelled_put_is_withdrawn() -> None:
    """While it waits, and after it was let go; the place goes to the next one."""
    cut = Cut()
    queue = filled(cut, 0, maxsize=1)
    first, second, third = [put(cut, queue, number) for number in (1, 2, 3)]
    await settle()
    first.cancel()
    await settle()
    assert list(queue) == [0, 2, 3]

    async def play(_: Participant) -> None:
        assert queue.get_nowait() == 0  # lets the second one go
        second.cancel()

    await start(cut, play)
    await third
    assert second.cancelled()
    assert list(queue) == [3]
    assert not cut.torn


async def test_cancellations_during_a_cut_wait_for_its_release() -> None:
    """Until then the items are where they were: a checkpoint has them once."""
    cut = Cut()
    empty, full = cut.Queue(), filled(cut, 1, maxsize=1)
    tasks = [get(cut, empty), put(cut, full, 2)]
    await settle()
    async with cut.hold():
        for task in tasks:
            task.cancel()
        await settle()
        assert not any(task.done() for task in tasks)
        assert list(full) == [1, 2]
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert list(full) == [1]


def test_a_timeout_during_a_cut_waits_for_its_release() -> None:
    """And an item that was promised before is delivered, however long the cut was held."""

    async def main() -> None:
        cut = Cut()
        queue, other = cut.Queue(), cut.Queue()
        waiting = get(cut, queue, timeout=1.0)
        promised = get(cut, other, timeout=1.0)
        go = asyncio.Event()

        async def play(me: Participant) -> None:
            await go.wait()
            other.put_nowait(5)
            await me.safe_point()

        task = start(cut, play)
        await settle()
        go.set()
        async with cut.hold():
            await asyncio.sleep(10)
            assert not waiting.done()
            assert list(other) == [5]
        with pytest.raises(TimeoutError):
            await waiting
        assert await promised == 5
        await task
        assert not cut.torn

    run_virtually(main())


# --- who may use it ---------------------------------------------------------------------------------------------------


async def test_other_tasks_may_not_use_it() -> None:
    """An item would be in the hands of a task that takes no part: of a helper, or of the main program."""
    cut = Cut()
    queue = filled(cut, 1)
    async with cut.participant("me"):
        for call in (queue.get, lambda: queue.put(2)):
            with pytest.raises(RuntimeError, match=r"wait_for.* timeout"):
                await asyncio.create_task(call())
        for at_once in (queue.get_nowait, lambda: queue.put_nowait(2)):
            with pytest.raises(RuntimeError, match="takes no part"):
                await asyncio.gather(asyncio.create_task(_call(at_once)))
        assert list(queue) == [1]


async def _call(function: Callable[[], object]) -> object:
    return function()


def test_before_and_after_all_participants() -> None:
    """Any code may fill and empty it, as long as it need not wait; without a loop, too."""
    cut = Cut()
    queue = cut.Queue(1)
    queue.put_nowait(1)
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait(2)

    async def main() -> None:
        with pytest.raises(CutUsageError, match="takes no part"):
            await queue.put(2)
        assert await queue.get() == 1
        await queue.put(3)
        assert queue.get_nowait() == 3
        with pytest.raises(asyncio.QueueEmpty):
            queue.get_nowait()
        with pytest.raises(CutUsageError, match="takes no part"):
            await queue.get()
        async with cut.hold():
            with pytest.raises(CutUsageError, match="held"):
                queue.put_nowait(1)

    asyncio.run(main())


# --- as a leaf --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
async def test_a_queue_is_saved_with_its_waiting_puts(tmp_path: Path, form: str) -> None:
    """It comes back as a queue, with a template of the template's cut, and by `restore` in the very queue."""
    cut = Cut()
    queue = filled(cut, {"x": np.arange(3)}, maxsize=1)
    waiting = put(cut, queue, "waiting")
    await settle()
    async with asyncckpt.CheckpointManager(tmp_path, format=form) as manager:
        async with cut.hold():
            await manager.save(1, {"queue": queue})
        waiting.cancel()
        await manager.flush()
        loaded = (await manager.load(1)).state["queue"]
        assert type(loaded) is CutQueue
        assert loaded.maxsize == 1
        assert loaded.full()
        first, second = loaded
        assert first["x"].tolist() == [0, 1, 2]
        assert second == "waiting"

        other = Cut()
        template = {"queue": filled(other, 1, 2, 3, maxsize=7)}
        like = (await manager.load(1, like=template)).state["queue"]
        assert len(like) == 2
        assert like.maxsize == 7
        assert like is not template["queue"]
        await manager.restore(1, into=template)
        for each in (like, template["queue"]):
            assert len(each) == 2
            await get(other, each)
            assert await get(other, each) == "waiting"
            assert each.maxsize == 7


async def test_a_loaded_queue_belongs_to_who_uses_it_first(tmp_path: Path) -> None:
    """From then on to that cut."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, filled(Cut(), 1, 2)))
        queue = (await manager.load(1)).state
    cut = Cut()
    assert await get(cut, queue) == 1
    waiting = start(cut, lambda me: me.at_rest(asyncio.Event().wait()))
    await settle()
    with pytest.raises(CutUsageError):
        queue.put_nowait(1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert list(queue) == [2]


async def test_a_queue_in_which_tasks_wait_is_not_restored(tmp_path: Path) -> None:
    """What they wait for would be lost: restore before they start."""
    cut = Cut()
    queue = cut.Queue()
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, filled(cut, 1)))
        task = get(cut, queue)
        await settle()
        with pytest.raises(CheckpointError, match="before they start"):
            await manager.restore(1, into=queue)
        task.cancel()
        await asyncio.wait([task])
        await manager.restore(1, into=queue)
        assert list(queue) == [1]


def test_a_process_that_has_not_used_cuts_loads_queues(tmp_path: Path) -> None:
    """The name in the file is enough."""
    import subprocess
    import sys

    async def main() -> None:
        async with asyncckpt.CheckpointManager(tmp_path) as manager:
            await manager.save(1, [filled(Cut(), 1, 2)])

    asyncio.run(main())
    code = f"""
import asyncio, sys, asyncckpt
async def main():
    async with asyncckpt.CheckpointManager({str(tmp_path)!r}) as manager:
        assert "asyncckpt.cut.core" not in sys.modules
        print(*[list(each) for each in (await manager.load(1)).state])
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout == "[1, 2]\n"
