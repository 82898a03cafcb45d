"""Rig: whoever waits is cancelled, at every await there is; signals come; loops end with saves pending."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import shutil
import signal
import threading
from typing import TYPE_CHECKING, Any

import asyncckpt

from .cancel_plays import FilePlay, ManagerPlay, Play, make_play
from .directories import FORMS
from .files import FORMS as FILE_FORMS
from .processes import Ended, run_forked
from .rig import Result, Rig
from .workload import LARGE_EVERY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
    from pathlib import Path

_POINTS_MAX = 300


class Steps:
    """Awaits a coroutine, and does something at its nth suspension.

    Attributes:
        count: How often it was suspended.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int, action: Callable[[], object]) -> None:
        self._coroutine = coroutine
        self._at = at
        self._action = action
        self.count = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Await it."""
        running = self._coroutine.__await__()
        throw: BaseException | None = None
        while True:
            try:
                waited = running.send(None) if throw is None else running.throw(throw)
            except StopIteration as end:
                return end.value
            self.count += 1
            if self.count == self._at:
                # While it waits: the task is suspended there when this is done.
                asyncio.get_running_loop().call_soon(self._action)
            try:
                yield waited
                throw = None
            except BaseException as error:  # noqa: BLE001 - it goes on to where it belongs
                throw = error


class Cancel(Rig):
    """Cancellation."""

    name = "cancel"
    tries = (
        "A manager's save, load, flush, delete, finalize and close, and those of a file of many keys and its"
        " cached_eval, are cancelled at each of their awaits, in turn; the loop ends under them; SIGINT and"
        " SIGTERM come there; `asyncio.run` ends with saves pending, the manager never closed. No thread, task,"
        " descriptor, lock or pending directory may be left, and what was acknowledged, or captured, must be there."
    )
    cases = "cancellations"
    quick = 80
    goal = 2000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each action and disturbance."""
        # Small states are captured on the loop, large ones in threads.
        contents = seed if seed % 2 else seed * LARGE_EVERY
        for kind, form in ((ManagerPlay, FORMS[seed % 3 == 0]), (FilePlay, FILE_FORMS[seed % len(FILE_FORMS)])):
            for how, actions in kind.disturbances.items():
                yield from (f"{how}/{action}/{form}/{contents}" for action in actions)

    def run(self, unit: str, scratch: Path) -> Result:
        """Disturb an action at one await after the other."""
        how, action, form, seed = unit.split("/")
        source = scratch / "source"
        asyncio.run(make_play(source, form, int(seed)).fill())
        result = Result()
        for at in range(1, _POINTS_MAX):
            root = scratch / "root"
            shutil.copytree(source, root)
            ended = run_forked(functools.partial(disturb, how, action, make_play(root, form, int(seed)), at))
            loss, was_reached = _judge(ended, make_play(root, form, int(seed)))
            shutil.rmtree(root)
            if loss:
                result.losses.append(f"{loss}; {how} at await {at} of {action}")
            elif not was_reached:
                break
            result.tried += 1
        return result


def _judge(ended: Ended, play: Play) -> tuple[str | None, bool]:
    if ended.value is None:
        return f"the process ended with {ended.status}: {ended.error}", True
    report, problem, was_reached = ended.value
    return problem or play.judge(report), was_reached


def disturb(how: str, action: str, play: Play, at: int) -> tuple[Any, str | None, bool]:
    """Play an action in this process, disturbed at an await; give what happened, what is wrong, and whether it came."""
    before = _resources()
    reached = []

    def now(action: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            reached.append(1)
            action()

        return act

    run = (lambda *each: asyncio.run(_cancel(*each))) if how == "cancel" else functools.partial(_end_loop, how)
    problem = run(play, action, at, now)
    gc.collect()
    for thread in threading.enumerate():  # a manager that was never closed ends its threads when it is collected
        if thread is not threading.current_thread():
            thread.join(10)
    after = _resources()
    if problem is None and after != before:
        problem = f"left behind: {after} where there was {before}"
    return play.report(), problem, bool(reached)


async def _cancel(play: Play, action: str, at: int, now: Callable[..., Callable[[], None]]) -> str | None:
    """Cancel the task of an action; the place must go on as if nothing was."""
    async with play.opened() as place:

        async def steps() -> Any:
            task = asyncio.current_task()
            assert task is not None
            return await Steps(getattr(play, action)(place), at, now(task.cancel))

        task = asyncio.get_running_loop().create_task(steps())
        done, _ = await asyncio.wait({task}, timeout=60)
        if not done:
            return "the cancelled task does not end"
        error = None if task.cancelled() else task.exception()
        if error is not None:
            return f"cancelled, it raised {error!r}"
        if action != "close" and (problem := await play.go_on(place)) is not None:
            return problem
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return f"tasks are left: {others}" if others else None


def _end_loop(how: str, play: Play, action: str, at: int, now: Callable[..., Callable[[], None]]) -> str | None:
    """End the loop under an action: its main task cancelled, by a signal or not, or just returning."""

    async def act(place: Any, disturbance: Callable[[], object]) -> None:
        await Steps(getattr(play, action)(place), at, now(disturbance))

    async def torn_down() -> None:
        main = asyncio.current_task()
        assert main is not None
        async with play.opened() as place:
            await act(place, main.cancel)

    async def interrupted() -> None:
        async with play.opened() as place:
            await act(place, lambda: os.kill(os.getpid(), signal.SIGINT))

    async def terminated() -> None:
        async with play.opened() as place:

            async def last() -> Awaitable[Any] | None:
                return None if action == "close" else await play.leave(place)

            async with asyncckpt.leave_on_sigterm(last):
                await act(place, lambda: os.kill(os.getpid(), signal.SIGTERM))

    kept: list[Any] = []

    async def pending() -> None:
        manager = play.opened()
        kept.append(manager)  # or its own finalizer would warn
        task = asyncio.get_running_loop().create_task(act(await manager.__aenter__(), leave.set))
        task.add_done_callback(lambda _: leave.set())
        kept.append(task)
        await leave.wait()

    leave = asyncio.Event()
    main = {"teardown": torn_down, "SIGINT": interrupted, "SIGTERM": terminated, "pending": pending}[how]
    try:
        asyncio.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass
    except SystemExit as error:
        if error.code != 128 + signal.SIGTERM:
            return f"the exit status is {error.code}"
    finally:
        kept.clear()
    return None


def _resources() -> dict[str, Any]:
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - only their number
    }
