"""Rig: whoever waits is cancelled, at every await there is; signals come; loops end with saves pending."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import shutil
import signal
import threading
from typing import TYPE_CHECKING, Any

import asyncckpt

from .cancel_plays import FilePlay, ManagerPlay, Play, make_play
from .directories import FORMS
from .disks import ShimDisk
from .files import FORMS as FILE_FORMS
from .processes import Ended, run_forked
from .rig import Result, Rig
from .workload import LARGE_EVERY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
    from pathlib import Path

    from .disks import Change

_POINTS_MAX = 300
_DEADLINE = 0.5
_HELD = (1, 5, 9)  # changes of the last save
_PATIENCE = 20.0  # seconds after which a disk that stands still goes on


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
        "A manager's save, load, flush, delete, finalize and close, and those of a keyed file and its cached_eval,"
        " are cancelled at each of their awaits, in turn; the loop is closed while they run; SIGINT and SIGTERM"
        " arrive there; `asyncio.run` ends with saves pending and the manager not closed. No thread, task,"
        " descriptor, lock or pending directory may be left, and what was acknowledged, or captured, must be there;"
        " a signal ends the program as documented, and within the deadline even if the disk does not respond."
    )
    cases = "cancellations"
    quick = 80
    goal = 2000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each action and disturbance, every disturbance in turn."""
        # Small states are captured on the loop, large ones in threads.
        contents = seed if seed % 2 else seed * LARGE_EVERY
        manager_form, file_form = FORMS[seed % 3 == 0], FILE_FORMS[seed % len(FILE_FORMS)]
        yield f"deadline/save/{manager_form}/{contents}"
        columns = [
            [f"{how}/{action}/{form}/{contents}" for action in actions]
            for kind, form in ((ManagerPlay, manager_form), (FilePlay, file_form))
            for how, actions in kind.disturbances.items()
        ]
        for row in itertools.zip_longest(*columns):
            yield from filter(None, row)

    def run(self, unit: str, scratch: Path) -> Result:
        """Disturb an action at one await after the other; or leave while a change of the disk hangs, each in turn."""
        how, action, form, seed = unit.split("/")
        source = scratch / "source"
        asyncio.run(make_play(source, form, int(seed)).fill())
        result = Result()
        for at in _HELD if how == "deadline" else range(1, _POINTS_MAX):
            root = scratch / "root"
            shutil.copytree(source, root)
            if how == "deadline":
                case = functools.partial(leave_in_time, ManagerPlay(root, form, int(seed)), at)
            else:
                case = functools.partial(disturb, how, action, make_play(root, form, int(seed)), at)
            ended = run_forked(case)
            loss, was_reached = _judge(ended, make_play(root, form, int(seed)))
            shutil.rmtree(root)
            if loss:
                result.losses.append(f"{loss}; {how} at {'change' if how == 'deadline' else 'await'} {at} of {action}")
                if how == "deadline":  # the next would wait as long
                    break
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
    reached: list[int] = []

    def now(action: Callable[[], object]) -> Callable[[], None]:
        def act() -> None:
            reached.append(1)
            action()

        return act

    if how == "cancel":
        problem = asyncio.run(_cancel(play, action, at, now))
    else:
        problem, ending = _end_loop(how, play, action, at, now)
        if problem is None and reached and ending != _ENDINGS[how]:
            problem = f"asyncio.run ended with {ending}, not {_ENDINGS[how]}"
    return play.report(), problem or _left_behind(before), bool(reached)


_ENDINGS = {
    "teardown": "CancelledError()",
    "SIGINT": "KeyboardInterrupt()",
    "SIGTERM": "SystemExit(143)",
    "pending": "",
}
"""How `asyncio.run` ends when the loop was ended; empty where the main task just returns."""


def _left_behind(before: dict[str, Any]) -> str | None:
    gc.collect()
    for thread in threading.enumerate():  # a manager that was never closed ends its threads when it is collected
        if thread is not threading.current_thread():
            thread.join(10)
    after = _resources()
    return None if after == before else f"left behind: {after} where there was {before}"


def leave_in_time(play: ManagerPlay, at: int) -> tuple[Any, str | None, bool]:
    """Let SIGTERM come, and the disk stand still at a change of the last save until the program has left."""
    before = _resources()
    has_left = threading.Event()
    changes: list[Change] = []
    waited: list[Change] = []

    def hold(change: Change) -> None:
        changes.append(change)
        if len(changes) == at and not has_left.wait(_PATIENCE):
            waited.append(change)

    play.disk = ShimDisk(hold)

    async def main() -> None:
        async with play.opened() as place, asyncckpt.leave_on_sigterm(lambda: play.leave(place), deadline=_DEADLINE):
            changes.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(_PATIENCE)

    problem, ending = _run(main)
    was_reached = len(changes) >= at
    has_left.set()
    if problem is None and ending != _ENDINGS["SIGTERM"]:
        problem = f"asyncio.run ended with {ending}"
    problem = problem or _left_behind(before)
    if waited:
        problem = f"it waited for the disk longer than {_PATIENCE} s, with a deadline of {_DEADLINE} s"
    begun = [event for event in play.report() if event.kind == "begin"]  # and not waited for: it is there or not
    return begun, problem, was_reached


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


def _end_loop(
    how: str, play: Play, action: str, at: int, now: Callable[..., Callable[[], None]]
) -> tuple[str | None, str]:
    """End the loop under an action: its main task cancelled, by a signal or not, or just returning; say how."""

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
        task = asyncio.get_running_loop().create_task(play.abandon(lambda place: act(place, leave.set), kept))
        task.add_done_callback(lambda _: leave.set())
        kept.append(task)
        await leave.wait()

    leave = asyncio.Event()
    main = {"teardown": torn_down, "SIGINT": interrupted, "SIGTERM": terminated, "pending": pending}[how]
    try:
        return _run(main)
    finally:
        kept.clear()


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> tuple[str | None, str]:
    """Run a program; return what is wrong with how it ended, and how it ended."""
    try:
        asyncio.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
        return None, f"{type(error).__name__}({error.code if isinstance(error, SystemExit) else ''})"
    except BaseException as error:  # noqa: BLE001 - it is the loss
        return f"asyncio.run ended with {error!r}", ""
    return None, ""


def _resources() -> dict[str, Any]:
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - only their number
    }
