"""Work that is leased is held as not done until its result is handed over, in one step."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from helpers.support import FORMATS
from reliability.cut_schedules import run_virtually

import asyncckpt
from asyncckpt import Cut, CutUsageError, CutWorkQueue, Participant

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


def filled(cut: Cut, *items: object, **options: Any) -> CutWorkQueue[Any]:
    """Return a queue with work."""
    work = cut.WorkQueue(**options)
    for item in items:
        work.put_nowait(item)
    return work


class Worker:
    """Leases one item, and ends the block as it is told."""

    def __init__(self, work: CutWorkQueue[Any]) -> None:
        self.work = work
        self.seen: list[tuple[Any, int, int]] = []
        self.told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def __call__(self, me: Participant) -> None:
        """Work."""
        async with self.work.lease() as lease:
            self.seen.append((lease.item, lease.ordinal, lease.attempt))
            told = await self.told
            if isinstance(told, Exception):
                raise told
            if told is not None:
                await told(lease)
                assert me.is_running


async def test_who_holds_a_lease_is_at_rest() -> None:
    """A cut waits for no work, and holds it as not done; lines of the block run meanwhile."""
    cut, seen = Cut(), []
    work = filled(cut, "a", "b")

    async def play(me: Participant) -> None:
        async with work.lease() as lease:
            assert not me.is_running
            await go.wait()
            seen.append(lease.item)
            await work.complete(lease, into=lambda: seen.append(me.is_running))
            seen.append(cut.is_held)

    go = asyncio.Event()
    task = start(cut, play)
    await settle()
    async with cut.hold():
        go.set()
        await settle()
        assert seen == ["a"]  # it waits with its result
        assert list(work) == ["a", "b"]
        assert (work.qsize(), work.leased) == (1, 1)
    await task
    assert seen == ["a", True, False]
    assert list(work) == ["b"]


async def test_a_result_is_handed_over_to_a_queue_in_one_step() -> None:
    """A result that waits for a place is the queue's already, and its lease is completed; unless it is withdrawn."""
    cut = Cut()
    work, results = filled(cut, "a", "b"), cut.Queue(1)
    worker, second = Worker(work), Worker(work)
    tasks = [start(cut, worker), start(cut, second)]
    await settle()
    for each in (worker, second):
        each.told.set_result(lambda lease: results.put(lease.item.upper(), completes=lease))
        await settle()
    assert [task.done() for task in tasks] == [True, False]
    async with cut.hold():
        assert (list(results), list(work)) == (["A", "B"], [])
        assert work.low_water_mark == 1
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    assert (list(results), list(work)) == (["A"], ["b"])
    assert not cut.torn


async def test_items_come_back_to_the_front_in_their_old_order() -> None:
    """Whether their block ended normally, by an error or by a cancellation."""
    cut = Cut()
    work = filled(cut, *"abcd")
    workers = [Worker(work) for _ in range(3)]
    tasks = [start(cut, worker) for worker in workers]
    await settle()
    assert list(work) == [*"abcd"]
    workers[2].told.set_result(None)
    await settle()
    workers[0].told.set_result(ValueError("no"))
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in results] == [ValueError, asyncio.CancelledError, type(None)]
    assert not cut.torn
    workers = [Worker(work) for _ in range(4)]
    tasks = [start(cut, worker) for worker in workers]
    await settle()
    assert [worker.seen for worker in workers] == [[("a", 0, 2)], [("b", 1, 1)], [("c", 2, 1)], [("d", 3, 1)]]
    for worker in workers:
        worker.told.set_result(work.complete)
    await asyncio.gather(*tasks)
    assert list(work) == []


async def test_an_item_that_comes_back_wakes_who_waits() -> None:
    """The longest waiting worker gets it."""
    cut = Cut()
    work = filled(cut, "a")
    first, second = Worker(work), Worker(work)
    tasks = [start(cut, first), start(cut, second)]
    await settle()
    assert not second.seen
    first.told.set_result(None)
    await settle()
    assert second.seen == [("a", 0, 1)]
    second.told.set_result(work.complete)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize("way", ["task", "scope"])
async def test_leaving_a_lease_waits_for_the_release(way: str) -> None:
    """No line behind the block runs while a cut is held, nor does the item move."""
    cut, scope, ended = Cut(), anyio.CancelScope(), []
    work = filled(cut, "a", "b")
    worker = Worker(work)

    async def main(me: Participant) -> None:
        try:
            with scope:
                await worker(me)
        finally:
            ended.append(cut.is_held)

    task = start(cut, main)
    await settle()
    async with cut.hold():
        (task if way == "task" else scope).cancel()
        for _ in range(10):
            await settle()
        assert not ended
        assert work.leased == 1
        assert len(cut._parked) <= 2
    await asyncio.wait([task])
    assert ended == [False]
    assert work.leased == 0
    assert list(work) == ["a", "b"]
    assert not cut.torn


async def test_poison_is_given_up() -> None:
    """After `max_attempts` blocks that ended by an error; cancellations do not count."""
    cut = Cut()
    work = filled(cut, "a", "b", max_attempts=2)
    for error in (ValueError("bad"), None, KeyError("worse")):
        worker = Worker(work)
        task = start(cut, worker)
        await settle()
        if error is None:
            task.cancel()
        else:
            worker.told.set_result(error)
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is error
    assert [(each.ordinal, each.item, each.error) for each in work.failed] == [(0, "a", "KeyError: 'worse'")]
    assert list(work) == ["b"]
    assert work.low_water_mark == 1
    with pytest.raises(ValueError, match="1 or more"):
        cut.WorkQueue(max_attempts=0)


async def test_ordinals_and_the_low_water_mark() -> None:
    """Ordinals count what was put in; below the mark, all is done."""
    cut = Cut()
    work = cut.WorkQueue(2)
    assert (work.low_water_mark, work.next_ordinal) == (0, 0)
    assert [work.put_nowait(each) for each in "ab"] == [0, 1]
    with pytest.raises(asyncio.QueueFull):
        work.put_nowait("c")
    withdrawn, waiting = [start(cut, lambda _, item=item: work.put(item)) for item in "xc"]
    await settle()
    assert list(work) == ["a", "b", "x", "c"]
    withdrawn.cancel()
    workers = [Worker(work) for _ in range(3)]
    tasks = [start(cut, worker) for worker in workers]
    assert await waiting == 2  # that of a put that was withdrawn is not used
    await settle()
    marks = []
    for number in (1, 0, 2):
        workers[number].told.set_result(work.complete)
        await settle()
        marks.append(work.low_water_mark)
    assert marks == [0, 2, 3]
    await asyncio.gather(*tasks)
    assert work.next_ordinal == 3
    assert repr(work) == "<CutWorkQueue, 0 items, 0 leased, 0 failed>"
    assert work.empty()
    assert not work.full()


def test_a_lease_has_a_timeout() -> None:
    """It limits the waiting for an item, not the work."""

    async def main() -> None:
        cut = Cut()
        work = cut.WorkQueue()

        async def play(_: Participant) -> None:
            with pytest.raises(TimeoutError):
                async with work.lease(timeout=2.0):
                    pass
            assert asyncio.get_running_loop().time() == 2.0
            await work.put("a", timeout=1.0)
            async with work.lease(timeout=2.0) as lease:
                await asyncio.sleep(10)
                await work.complete(lease)

        await start(cut, play)
        assert list(work) == []
        assert not cut.torn

    run_virtually(main())


async def test_other_calls_in_a_lease_count_as_running() -> None:
    """Whoever takes another item in the block is waited for: it would be in no cut."""
    cut = Cut()
    work, other = filled(cut, "a"), cut.Queue()
    other.put_nowait(1)
    go = asyncio.Event()

    async def play(me: Participant) -> None:
        async with work.lease() as lease:
            item = await other.get()
            assert me.is_running
            await go.wait()
            await other.put(item + 1)
            await work.complete(lease)

    task = start(cut, play)
    await settle()
    hold = asyncio.create_task(_hold(cut))
    await settle()
    assert not cut.is_held
    go.set()
    await asyncio.gather(task, hold)
    assert list(other) == [2]


async def _hold(cut: Cut) -> None:
    async with cut.hold():
        pass


async def test_a_function_that_fails_completes_nothing() -> None:
    """Its error tears the state, as it may have changed something; coroutine functions are refused before."""
    cut = Cut()
    work = filled(cut, "a")

    async def slow() -> None:
        pass

    async def play(_: Participant) -> None:
        async with work.lease() as lease:
            with pytest.raises(TypeError, match="plain function"):
                await work.complete(lease, into=slow)
            await work.complete(lease, into=lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        await start(cut, play)
    assert list(work) == ["a"]
    assert work.leased == 0
    assert list(cut.torn) == ["task"]


async def test_a_result_that_finds_no_place_leaves_the_lease_open() -> None:
    """The participant is at rest again, and may try it once more."""
    cut = Cut()
    work, results = filled(cut, "a"), cut.Queue(1)
    results.put_nowait(0)

    async def play(me: Participant) -> None:
        async with work.lease() as lease:
            with pytest.raises(TimeoutError):
                await results.put(1, timeout=0.0, completes=lease)
            assert not me.is_running
            assert list(work) == ["a"]
            assert work.low_water_mark == 0
            await results.put(1, completes=lease)

    task = start(cut, play)
    await settle()
    assert await start(cut, lambda _: results.get()) == 0
    await task
    assert list(results) == [1]
    assert work.low_water_mark == 1


async def test_wrong_uses_of_a_lease() -> None:
    """Completed twice, or after its block, or by another; entered twice, or by a task that takes no part."""
    cut = Cut()
    work, queue = filled(cut, "a", "b", "c"), cut.Queue()
    with pytest.raises(CutUsageError, match="takes no part"):
        async with work.lease():
            pass
    with pytest.raises(CutUsageError, match="in its block"):
        _ = work.lease().item
    leases = []

    async def play(_: Participant) -> None:
        async with work.lease() as lease:
            leases.append(lease)
            await work.complete(lease)
            for again in (lambda: work.complete(lease), lambda: queue.put(1, completes=lease)):
                with pytest.raises(CutUsageError, match="completed"):
                    await again()
        with pytest.raises(CutUsageError, match="block has ended"):
            await work.complete(lease)
        with pytest.raises(CutUsageError, match="entered once"):
            async with lease:
                pass
        async with work.lease() as lease:
            with pytest.raises(CutUsageError, match="another participant's"):
                await asyncio.create_task(work.complete(lease))
            other = start(cut, lambda _: work.complete(lease))
            with pytest.raises(CutUsageError, match="another participant's"):
                await other

    await start(cut, play)
    assert list(work) == ["b", "c"]
    assert list(queue) == []


@pytest.mark.parametrize("form", FORMATS)
async def test_a_work_queue_is_a_leaf(tmp_path: Path, form: str) -> None:
    """It comes back with what is not done, in order, with its ordinals, its attempts and what has failed."""
    cut = Cut()
    work = filled(cut, "poison", "a", maxsize=2, max_attempts=1)
    template = {"work": filled(Cut(), 1, maxsize=9)}
    poisoned, worker = Worker(work), Worker(work)
    tasks = [start(cut, poisoned), start(cut, worker)]
    await settle()
    poisoned.told.set_result(ValueError("bad"))
    await settle()
    tasks += [start(cut, lambda _, item=item: work.put(item)) for item in ("b", "c", "waiting")]
    await settle()
    async with asyncckpt.CheckpointManager(tmp_path, format=form) as manager:
        async with cut.hold():
            await manager.save(1, {"work": work})
        await manager.flush()
        with pytest.raises(asyncckpt.CheckpointError, match=r"leased|waits in it"):
            await manager.restore(1, into={"work": work})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loaded = (await manager.load(1)).state["work"]
        like = (await manager.load(1, like=template)).state["work"]
        await manager.restore(1, into=template)
    assert [each.maxsize for each in (loaded, like, template["work"])] == [2, 9, 9]
    assert [each.max_attempts for each in (loaded, like, template["work"])] == [1, None, None]
    for each, of in ((loaded, Cut()), (like, None), (template["work"], None)):
        assert type(each) is CutWorkQueue
        assert list(each) == ["a", "b", "c", "waiting"]
        assert each.failed == ((0, "poison", "ValueError: bad"),)
        assert (each.low_water_mark, each.next_ordinal, each.leased) == (1, 5, 0)
        workers = [Worker(each) for _ in range(4)]
        tasks = [start(of or each._waiting.cut, worker) for worker in workers]
        await settle()
        assert [worker.seen[0][:2] for worker in workers] == [("a", 1), ("b", 2), ("c", 3), ("waiting", 4)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
