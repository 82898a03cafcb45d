"""A cut is held while every participant is at rest, and no line of theirs runs meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
from reliability.cut_schedules import run_virtually

from asyncckpt import (
    CheckpointKeyError,
    Cut,
    CutBusyError,
    CutTimeoutError,
    CutUsageError,
    Participant,
    TornStateError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def take_part(cut: Cut, name: str, play: Callable[[Participant], Awaitable[Any]]) -> Any:
    """Take part, and play."""
    async with cut.participant(name) as me:
        return await play(me)


def start(cut: Cut, name: str, play: Callable[[Participant], Awaitable[Any]]) -> asyncio.Task[Any]:
    """Start a participant."""
    return asyncio.create_task(take_part(cut, name, play), name=name)


@asynccontextmanager
async def cancelled_in_the_end(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Cancel tasks at the end of the block."""
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Walker:
    """A participant that counts its steps, from one safe point to the next."""

    def __init__(self) -> None:
        self.steps = 0
        self.cleanups = 0

    async def __call__(self, me: Participant) -> None:
        """Walk."""
        try:
            while True:
                await me.safe_point()
                self.steps += 1
                await asyncio.sleep(0)
        finally:
            self.cleanups += 1


async def stand(me: Participant) -> None:
    """Run, and never come to a safe point."""
    del me
    await asyncio.Event().wait()


async def test_nobody_runs_while_a_cut_is_held() -> None:
    """All park as they come; when the last one has, the cut is held; after the release all go on."""
    cut, walkers = Cut(), [Walker() for _ in range(3)]
    async with cancelled_in_the_end(*[start(cut, f"walker {n}", walker) for n, walker in enumerate(walkers)]):
        await settle()
        assert not cut.is_wanted
        async with cut.hold():
            assert cut.is_wanted
            assert cut.is_held
            steps = [walker.steps for walker in walkers]
            await settle()
            assert [walker.steps for walker in walkers] == steps
        assert not cut.is_wanted
        await settle()
        assert all(walker.steps > before for walker, before in zip(walkers, steps, strict=True))


async def test_a_cut_waits_for_who_runs() -> None:
    """A participant that awaits something plainly is running, and the cut is not held before it comes to rest."""
    cut, event = Cut(), asyncio.Event()

    async def play(me: Participant) -> None:
        await event.wait()
        await me.safe_point()

    task = start(cut, "slow", play)
    await settle()
    hold = asyncio.create_task(take(cut))
    await settle()
    assert cut.is_wanted
    assert not cut.is_held
    event.set()
    await hold
    await task


async def take(cut: Cut, seconds: float | None = 30.0) -> None:
    """Hold a cut for a moment."""
    async with cut.hold(seconds):
        pass


async def test_without_participants_a_cut_is_held_at_once() -> None:
    """No task takes part, or none that is not at rest."""
    cut = Cut()
    async with cut.hold():
        assert cut.is_held
    async with cut.participant("me") as me:
        await me.at_rest(asyncio.create_task(take(cut)))


async def test_cuts_are_serialized_and_everybody_runs_between_two() -> None:
    """Holds are granted in the order of the calls; whoever was parked has run before the next one."""
    cut, walkers = Cut(), [Walker() for _ in range(3)]
    seen: list[tuple[int, list[int]]] = []

    async def hold(number: int) -> None:
        async with cut.hold():
            seen.append((number, [walker.steps for walker in walkers]))
            await settle()

    async with cancelled_in_the_end(*[start(cut, f"walker {n}", walker) for n, walker in enumerate(walkers)]):
        await settle()
        await asyncio.gather(*[hold(number) for number in range(5)])
    assert [number for number, _ in seen] == list(range(5))
    for (_, before), (_, after) in itertools.pairwise(seen):
        assert all(new > old for old, new in zip(before, after, strict=True))


async def test_participants_may_hold() -> None:
    """A participant that waits for its turn to hold is at rest, so two of them do not wait for each other."""
    cut, seen = Cut(), []

    async def play(me: Participant) -> None:
        for _ in range(3):
            async with cut.hold():
                seen.append(me.name)
            assert me.is_running
            await asyncio.sleep(0)

    await asyncio.wait_for(asyncio.gather(start(cut, "a", play), start(cut, "b", play)), 30)
    assert seen == ["a", "b"] * 3


# --- at rest ----------------------------------------------------------------------------------------------------------


async def test_a_result_is_delivered_after_the_release() -> None:
    """What was awaited at rest may end during a cut; the participant goes on afterwards."""
    cut, future, seen = Cut(), asyncio.get_running_loop().create_future(), []

    async def play(me: Participant) -> None:
        seen.append(await me.at_rest(future))

    task = start(cut, "waiting", play)
    await settle()
    async with cut.hold():
        future.set_result(7)
        await settle()
        assert not seen
    await task
    assert seen == [7]


async def test_an_error_is_delivered_after_the_release() -> None:
    """As a result is; and it was raised at rest, so that nothing is torn."""
    cut, future = Cut(), asyncio.get_running_loop().create_future()

    async def play(me: Participant) -> None:
        await me.at_rest(future)

    task = start(cut, "waiting", play)
    await settle()
    async with cut.hold():
        future.set_exception(ValueError("no"))
        await settle()
        assert not task.done()
    with pytest.raises(ValueError, match="no"):
        await task
    assert not cut.torn


async def rest_for_ever(me: Participant) -> None:
    """Wait at rest, at another place than a safe point."""
    await me.at_rest(asyncio.Event().wait())


@pytest.mark.parametrize("play", [Walker, lambda: rest_for_ever], ids=["safe_point", "at_rest"])
@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancellation_is_delivered_after_the_release(play: Callable[[], Any], way: str) -> None:
    """Also that of a scope of anyio, which cancels again and again, and does so without keeping the loop busy."""
    cut, scope, ended = Cut(), anyio.CancelScope(), []

    async def main() -> None:
        try:
            with scope:
                await take_part(cut, "cancelled", play())
        finally:
            ended.append(cut.is_held)

    task = asyncio.create_task(main())
    await settle()
    async with cut.hold():
        if way == "task":
            task.cancel()
        else:
            scope.cancel()
        for _ in range(10):
            await settle()
        assert not ended
        assert len(cut._parked) <= 3  # it waits, and is not woken again and again
        if way == "task":
            task.cancel()  # a second one changes nothing
            await settle()
            assert not ended
    await asyncio.wait([task])
    assert task.cancelled() == (way == "task")
    assert ended == [False]
    assert not cut.torn
    await take(cut)


@pytest.mark.parametrize("play", [Walker, lambda: rest_for_ever], ids=["safe_point", "at_rest"])
@pytest.mark.parametrize("way", ["task", "scope"])
async def test_a_cancellation_while_a_cut_is_wanted_acts_at_once(play: Callable[[], Any], way: str) -> None:
    """The cut is not held yet, because another participant runs."""
    cut, scope = Cut(), anyio.CancelScope()
    standing = start(cut, "standing", stand)

    async def main() -> None:
        with scope:
            await take_part(cut, "cancelled", play())

    task = asyncio.create_task(main())
    hold = asyncio.create_task(take(cut))
    async with cancelled_in_the_end(standing, hold):
        await settle()
        assert cut.is_wanted
        assert not cut.is_held
        (scope if way == "scope" else task).cancel()
        await settle()
        assert task.done()
        assert not hold.done()
        assert not cut.torn


async def test_a_coroutine_at_rest_may_run() -> None:
    """What a coroutine awaits at rest may be a call of the participant's, after which it runs, and the cut waits."""
    cut, event, seen = Cut(), asyncio.Event(), []

    async def inner(me: Participant) -> int:
        await me.at_rest(asyncio.sleep(0))
        seen.append("runs")
        await event.wait()
        return 3

    async def play(me: Participant) -> int:
        return await me.at_rest(inner(me))

    task = start(cut, "nested", play)
    await settle()
    hold = asyncio.create_task(take(cut))
    await settle()
    assert seen == ["runs"]
    assert not hold.done()
    event.set()
    assert await task == 3
    await hold


async def test_a_safe_point_without_a_cut_does_not_yield() -> None:
    """It returns at once: no other task runs."""
    cut, seen = Cut(), []
    async with cut.participant("me") as me:
        asyncio.get_running_loop().call_soon(seen.append, 1)
        for _ in range(10):
            await me.safe_point()
        assert not seen
        await asyncio.sleep(0)
    assert seen


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["task", "scope", "none"])
async def test_a_thread_is_awaited_to_its_end(way: str) -> None:
    """The participant runs meanwhile, so no cut is held; a cancellation is raised when the thread has ended."""
    cut, begun, go, scope = Cut(), threading.Event(), threading.Event(), anyio.CancelScope()
    ended: list[str] = []

    def work(word: str, *, times: int) -> str:
        begun.set()
        go.wait(60)
        ended.append(word * times)
        return word * times

    async def play(me: Participant) -> str:
        try:
            with scope:
                return await me.run(work, "a", times=2)
        except asyncio.CancelledError:
            assert ended
            raise
        return "cancelled"

    task = start(cut, "working", play)
    while not begun.is_set():
        await asyncio.sleep(0.001)
    hold = asyncio.create_task(take(cut))
    if way == "task":
        task.cancel()
    elif way == "scope":
        scope.cancel()
    await settle()
    assert not task.done()
    assert not hold.done()
    go.set()
    await asyncio.wait([task])
    assert ended == ["aa"]
    if way == "task":
        assert task.cancelled()
        with pytest.raises(TornStateError, match="CancelledError"):
            await hold
    else:
        assert task.result() == ("aa" if way == "none" else "cancelled")
        await hold


async def test_a_thread_that_touches_nothing_may_work_at_rest() -> None:
    """`at_rest(run(...))` lets cuts be held, and still awaits the thread to its end."""
    cut, go, ended = Cut(), threading.Event(), []

    def work() -> None:
        go.wait(60)
        ended.append(1)

    task = start(cut, "working", lambda me: me.at_rest(me.run(work)))
    await settle()
    async with cut.hold():
        task.cancel()
        await settle()
        assert not task.done()
    go.set()
    await asyncio.wait([task])
    assert ended
    assert task.cancelled()
    assert not cut.torn


async def test_what_a_thread_raises() -> None:
    """Is raised where it is awaited."""

    def fail() -> None:
        raise KeyError("x")

    async with Cut().participant("me") as me:
        with pytest.raises(KeyError, match="x"):
            await me.run(fail)


# --- too late ---------------------------------------------------------------------------------------------------------


def test_a_timeout_names_who_is_late_and_who_waits_where() -> None:
    """It gives the line at which each stands; then all go on, and the next cut can be held."""

    async def main() -> None:
        cut, walker = Cut(), Walker()
        standing = start(cut, "late one", stand)
        others = [start(cut, "walker", walker), start(cut, "resting", rest_for_ever)]
        async with cancelled_in_the_end(*others):
            await settle()
            with pytest.raises(CutTimeoutError, match="within 2 s") as caught:
                await take(cut, 2.0)
            error = caught.value
            assert list(error.late) == ["late one"]
            assert f"{__file__}:{stand.__code__.co_firstlineno + 3} in stand" in error.late["late one"]
            assert set(error.resting) == {"walker", "resting"}
            assert "in __call__ (safe_point)" in error.resting["walker"]
            assert "in rest_for_ever (at_rest)" in error.resting["resting"]
            assert isinstance(error, TimeoutError)
            for name, place in {**error.late, **error.resting}.items():
                assert f"{name!r} at {place}" in str(error)
            assert not cut.is_wanted
            steps = walker.steps
            await settle()
            assert walker.steps > steps
            standing.cancel()
            await settle()
            cut.forgive("late one")
            await take(cut, 2.0)

    run_virtually(main())


def test_a_timeout_names_who_holds_the_cut() -> None:
    """If a hold waits for another one, that is what is late."""

    async def main() -> None:
        cut = Cut()

        async def play(me: Participant) -> None:
            del me
            async with cut.hold():
                await asyncio.sleep(10)

        task = start(cut, "saver", play)
        await settle()
        with pytest.raises(CutTimeoutError, match=r"another call held the cut: 'saver' at .* in play"):
            await take(cut, 2.0)
        await task
        await take(cut, 0.0)

    run_virtually(main())


@pytest.mark.parametrize("seconds", [-1, float("nan")])
async def test_a_timeout_is_a_number_of_seconds(seconds: float) -> None:
    """Negative numbers are refused."""
    with pytest.raises(ValueError, match="seconds"):
        Cut().hold(seconds)


async def test_a_hold_that_is_cancelled_lets_all_go_on() -> None:
    """Whether the cut was wanted, waited in line, or was just granted."""
    cut, walker = Cut(), Walker()
    standing = start(cut, "standing", stand)
    async with cancelled_in_the_end(start(cut, "walker", walker)):
        holds = [asyncio.create_task(take(cut)) for _ in range(2)]
        await settle()
        for hold in holds:
            hold.cancel()
        await settle()
        assert all(hold.cancelled() for hold in holds)
        assert not cut.is_wanted
        standing.cancel()
        await settle()
        cut.forgive("standing")
        for turns in range(5):
            hold = asyncio.create_task(take(cut))
            for _ in range(turns):
                await asyncio.sleep(0)
            hold.cancel()
            await asyncio.wait([hold])
        steps = walker.steps
        await settle()
        assert walker.steps > steps
        await take(cut)


async def test_an_error_in_the_block_releases() -> None:
    """The error is raised as it is."""
    cut, walker = Cut(), Walker()
    async with cancelled_in_the_end(start(cut, "walker", walker)):
        with pytest.raises(ZeroDivisionError):
            async with cut.hold():
                raise ZeroDivisionError
        assert not cut.is_wanted
        await take(cut)


# --- without waiting --------------------------------------------------------------------------------------------------


async def test_a_cut_at_once() -> None:
    """It is held only if all others are at rest already."""
    cut = Cut()
    resting = start(cut, "resting", rest_for_ever)
    async with cut.participant("me") as me, cancelled_in_the_end(resting):
        with pytest.raises(CutUsageError), cut.hold_nowait(), cut.hold_nowait():
            pass
        await settle()
        with cut.hold_nowait():
            assert cut.is_held
            assert not me.is_running
        assert me.is_running
        standing = start(cut, "standing", stand)
        await settle()
        with pytest.raises(CutBusyError, match=r"'standing' at .* in stand"), cut.hold_nowait():
            pass
        assert not cut.is_wanted
        standing.cancel()
        await settle()
        with pytest.raises(TornStateError), cut.hold_nowait():
            pass
        cut.forgive("standing")
        hold = asyncio.create_task(take(cut))
        await asyncio.sleep(0)
        with pytest.raises(CutBusyError, match="another call"), cut.hold_nowait():
            pass
        await me.safe_point()
        await hold


# --- deaths -----------------------------------------------------------------------------------------------------------


async def test_a_death_tears_the_state() -> None:
    """No cut can be held until the death is forgiven."""
    cut = Cut()

    async def play(me: Participant) -> None:
        await me.safe_point()
        raise ValueError("half done")

    task = start(cut, "dying", play)
    await asyncio.wait([task])
    assert isinstance(task.exception(), ValueError)
    assert list(cut.torn) == ["dying"]
    with pytest.raises(TornStateError, match=r"'dying': ValueError: half done, at .*:\d+ in play") as caught:
        await take(cut)
    assert caught.value.torn == cut.torn
    with pytest.raises(CheckpointKeyError):
        cut.forgive("living")
    cut.forgive("dying")
    assert not cut.torn
    await take(cut)


async def test_a_death_is_told_with_the_line_of_the_program() -> None:
    """Not with that of the function of asyncio in which the task was cancelled."""
    cut = Cut()

    async def play(_: Participant) -> None:
        await asyncio.sleep(3600)

    task = start(cut, "sleeping", play)
    await settle()
    task.cancel()
    await asyncio.wait([task])
    line = play.__code__.co_firstlineno + 1
    assert cut.torn == {"sleeping": f"CancelledError, at {__file__}:{line} in play"}


async def test_a_death_ends_the_waiting_for_a_cut() -> None:
    """All calls that wait to hold it raise at once, and the others go on."""
    cut, walker = Cut(), Walker()
    standing = start(cut, "standing", stand)
    async with cancelled_in_the_end(start(cut, "walker", walker)):
        holds = [asyncio.create_task(take(cut)) for _ in range(2)]
        await settle()
        standing.cancel()
        done, _ = await asyncio.wait(holds)
        assert [type(hold.exception()) for hold in done] == [TornStateError] * 2
        steps = walker.steps
        await settle()
        assert walker.steps > steps


async def test_who_leaves_or_dies_at_rest_tears_nothing() -> None:
    """A normal end; a cancellation, an error and a timeout at rest; an error of the block of a hold."""
    cut = Cut()

    async def fail() -> None:
        raise ValueError

    async def time_out(me: Participant) -> None:
        async with asyncio.timeout(0):
            await me.at_rest(asyncio.Event().wait())

    async def fail_to_save(_: Participant) -> None:
        async with cut.hold():
            raise KeyError

    async def leave(_: Participant) -> None:
        pass

    plays = (leave, rest_for_ever, lambda me: me.at_rest(fail()), time_out, fail_to_save)
    tasks = [start(cut, str(number), play) for number, play in enumerate(plays)]
    await settle()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert [type(task.exception()) for task in tasks if not task.cancelled()] == [
        *(type(None), ValueError, TimeoutError, KeyError)
    ]
    assert not cut.torn
    await take(cut)


async def test_an_error_after_the_rest_tears() -> None:
    """Another error than the one that was raised at rest, or the same one at the next line, comes from running code."""
    cut = Cut()

    async def fail(error: Exception) -> None:
        raise error

    async def turn(me: Participant) -> None:
        try:
            await me.at_rest(fail(ValueError()))
        except ValueError:
            raise KeyError from None

    async def go_on(me: Participant) -> None:
        try:
            await me.at_rest(fail(error := ValueError()))
        except ValueError:
            await me.at_rest(asyncio.sleep(0))
            raise error from None

    await asyncio.gather(start(cut, "a", turn), start(cut, "b", go_on), return_exceptions=True)
    assert set(cut.torn) == {"a", "b"}


async def test_a_task_that_never_leaves_is_let_go_when_it_ends() -> None:
    """A block that was entered by hand does not keep cuts from being held."""
    cut = Cut()

    async def enter() -> None:
        await cut.participant("lost").__aenter__()

    await asyncio.create_task(enter())
    await settle()
    assert list(cut.torn) == ["lost"]
    cut.forgive("lost")
    await take(cut)


async def test_a_task_that_never_releases_is_let_go_when_it_ends() -> None:
    """Nor does the block of a hold that was entered by hand keep the others for ever."""
    cut, walker = Cut(), Walker()

    async def enter() -> None:
        await cut.hold().__aenter__()

    async with cancelled_in_the_end(start(cut, "walker", walker)):
        await asyncio.create_task(enter())
        steps = walker.steps
        await settle()
        assert walker.steps > steps
        await take(cut)


async def test_a_coroutine_that_is_thrown_away_lets_the_others_go_on() -> None:
    """Wherever a coroutine stood that is closed, the cut can still be held."""
    cut, walker = Cut(), Walker()

    async def by_hand(coroutine: Any) -> None:
        """Let a coroutine run in this task until it waits, and throw it away."""
        coroutine.send(None)
        coroutine.close()

    standing = start(cut, "standing", stand)
    async with cancelled_in_the_end(start(cut, "walker", walker), standing):
        await settle()
        await by_hand(take(cut))
        hold = asyncio.create_task(take(cut))
        await settle()
        await asyncio.create_task(by_hand(take_part(cut, "joining", stand)))
        assert not hold.done()
        hold.cancel()
        await settle()
        for play in (Walker(), rest_for_ever):
            await asyncio.create_task(by_hand(take_part(cut, "a", play)))
        steps = walker.steps
        await settle()
        assert walker.steps > steps
    for name in cut.torn:
        cut.forgive(name)
    await take(cut)


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_joining_waits_while_a_cut_is_wanted() -> None:
    """Who joins takes part from the next moment on; and may be cancelled meanwhile."""
    cut, joined = Cut(), []

    async def play(me: Participant) -> None:
        joined.append(me.name)

    async with cut.hold():
        tasks = [start(cut, name, play) for name in ("a", "b")]
        await settle()
        assert not joined
        tasks[1].cancel()
        await settle()
        assert tasks[1].cancelled()
    await tasks[0]
    assert joined == ["a"]
    await take(cut)


async def test_nested_participants_are_refused() -> None:
    """Of one cut or of two: a task is one participant. A block is entered once."""
    cut = Cut()
    async with cut.participant("me") as me:
        for other in (cut, Cut()):
            with pytest.raises(CutUsageError, match="'me' takes part already"):
                async with other.participant("again"):
                    pass
    with pytest.raises(RuntimeError, match="entered before"):
        async with me:
            pass
    async with cut.participant("me again"):
        pass


async def test_another_task_may_not_use_a_participant() -> None:
    """Whether a cut is wanted or not."""
    cut = Cut()
    async with cut.participant("me") as me:
        for call in (me.safe_point, lambda: me.at_rest(asyncio.sleep(0)), lambda: me.run(int)):
            with pytest.raises(RuntimeError, match="'me' was called by other"):
                await asyncio.create_task(call(), name="other")
    with pytest.raises(RuntimeError, match="only the task that has joined"):
        await me.safe_point()


async def test_who_holds_the_cut_may_not_wait_for_it() -> None:
    """A call of the cut in the block of a hold raises, instead of waiting for itself."""
    cut = Cut()
    queue = cut.Queue()
    async with cut.participant("me") as me:
        await queue.put(1)
        calls = (
            me.safe_point,
            lambda: me.at_rest(asyncio.sleep(0)),
            lambda: take(cut),
            lambda: queue.put(1),
            queue.get,
        )
        for call in calls:
            with pytest.raises(CutUsageError, match="holds the cut"):
                async with cut.hold():
                    await call()
            assert not cut.is_wanted
            assert me.is_running
        for at_once in (lambda: queue.put_nowait(1), queue.get_nowait):
            with pytest.raises(CutUsageError, match="holds the cut"):
                async with cut.hold():
                    at_once()
    assert list(queue) == [1]
    async with cut.hold():
        with pytest.raises(CutUsageError, match="holds the cut"):
            async with cut.participant("joining"):
                pass


def test_participants_are_of_one_loop() -> None:
    """A cut may be used on one loop after the other, but not on two at once."""
    cut = Cut()

    async def main() -> None:
        async with cut.participant("me") as me:
            await me.safe_point()
            with pytest.raises(CutUsageError, match="one event loop"):
                await asyncio.to_thread(asyncio.run, take(cut))

    asyncio.run(main())
    asyncio.run(main())


def test_trio_is_told() -> None:
    """Cuts are of asyncio's tasks."""

    async def main() -> None:
        cut = Cut()
        for block in (cut.participant("me"), cut.hold()):
            with pytest.raises(CutUsageError, match="not those of trio"):
                async with block:
                    pass

    trio.run(main)


async def test_reprs_tell_the_state() -> None:
    """Of the cut, and of a participant, whose name is that of the task by default."""
    cut = Cut()
    assert repr(cut) == "<Cut, not wanted, 0 running, 0 at rest>"
    async with cut.participant() as me:
        assert repr(me) == f"<Participant {asyncio.current_task().get_name()!r}, running>"  # type: ignore[union-attr]
        assert repr(cut) == "<Cut, not wanted, 1 running, 0 at rest>"
        with cut.hold_nowait():
            assert repr(cut) == "<Cut, held, 0 running, 1 at rest>"
            assert repr(me).endswith("at rest in hold>")
    assert repr(me).endswith("not taking part>")
