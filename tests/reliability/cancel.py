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

from .checks import check_now
from .directories import FORMS, DirectoryWorkload, content, version_of
from .history import Event, History
from .processes import Ended, run_forked
from .rig import Result, Rig
from .workload import LARGE_EVERY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
    from pathlib import Path

_POINTS_MAX = 300
_STEPS = (1, 2)
_GRACE = 60.0


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


class Play:
    """A manager, and what is done with it while a task of it is disturbed."""

    def __init__(self, root: Path, form: str, seed: int, note: Callable[[Event], object]) -> None:
        self.root = root
        self.form = form
        self.seed = seed
        self.note = note

    def manager(self) -> asyncckpt.CheckpointManager:
        """Make a manager."""
        return asyncckpt.CheckpointManager(self.root, format=self.form, grace=_GRACE)

    async def keep(self, manager: asyncckpt.CheckpointManager, step: int, version: int = 0) -> asyncckpt.SaveHandle:
        """Save; what `save` has returned for will be there, unless it says otherwise."""
        self.note(Event("begin", step, version))
        state = content(self.seed, step, version)
        handle = await manager.save(step, state, training_info={"version": version}, overwrite=True)
        self.note(Event("queued", step, version))
        return handle

    async def save(self, manager: asyncckpt.CheckpointManager) -> None:
        """Save and wait."""
        await (await self.keep(manager, 5))
        self.note(Event("ack", 5, 0))

    async def overwrite(self, manager: asyncckpt.CheckpointManager) -> None:
        """Overwrite what is in flight, and wait."""
        await self.keep(manager, 2, 1)
        await (await self.keep(manager, 2, 2))
        self.note(Event("ack", 2, 2))

    async def load(self, manager: asyncckpt.CheckpointManager) -> None:
        """Load."""
        assert await version_of(manager, 1, self.seed) == 0

    async def flush(self, manager: asyncckpt.CheckpointManager) -> None:
        """Save and flush."""
        await self.keep(manager, 5)
        await manager.flush()
        self.note(Event("ack", 5, 0))

    async def delete(self, manager: asyncckpt.CheckpointManager) -> None:
        """Delete."""
        self.note(Event("delete", 1))
        await manager.delete(1)
        self.note(Event("deleted", 1))

    async def finalize(self, manager: asyncckpt.CheckpointManager) -> None:
        """Commit a directory filled by hand."""
        async with manager.checkpoint(6, {"version": 0}) as path:
            (path / "other").write_bytes(b"6")

    async def close(self, manager: asyncckpt.CheckpointManager) -> None:
        """Save and close."""
        await self.keep(manager, 5)
        await self.keep(manager, 6)
        await manager.aclose()
        self.note(Event("ack", 5, 0))
        self.note(Event("ack", 6, 0))


ACTIONS = ("save", "overwrite", "load", "flush", "delete", "finalize", "close")
DISTURBANCES = ("cancel", "teardown", "SIGINT", "SIGTERM", "pending")


class Cancel(Rig):
    """Cancellation."""

    name = "cancel"
    tries = (
        "save, load, flush, delete, finalize and close are cancelled at each of their awaits, in turn; the loop ends"
        " under them; SIGINT and SIGTERM come there; `asyncio.run` ends with saves pending, the manager never closed."
        " No thread, task, descriptor, lock or pending directory may be left, and what was acknowledged, or captured,"
        " must be there."
    )
    cases = "cancellations"
    quick = 80
    goal = 2000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each action and disturbance."""
        for how in DISTURBANCES:
            for action in ACTIONS:
                # Small states are captured on the loop, large ones in threads.
                yield f"{how}/{action}/{FORMS[seed % 3 == 0]}/{seed if seed % 2 else seed * LARGE_EVERY}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Disturb an action at one await after the other."""
        how, action, form, seed = unit.split("/")
        source = scratch / "source"
        asyncio.run(_fill(Play(source, form, int(seed), lambda _: None)))
        result = Result()
        for at in range(1, _POINTS_MAX):
            root = scratch / "root"
            shutil.copytree(source, root)
            ended = run_forked(functools.partial(disturb, how, action, root, form, int(seed), at))
            loss, was_reached = _judge(ended, root, form, int(seed))
            shutil.rmtree(root)
            if loss:
                result.losses.append(f"{loss}; {how} at await {at} of {action}")
            elif not was_reached:
                break
            result.tried += 1
        return result


async def _fill(play: Play) -> None:
    async with play.manager() as manager:
        for step in _STEPS:
            await (await play.keep(manager, step))


def _judge(ended: Ended, root: Path, form: str, seed: int) -> tuple[str | None, bool]:
    if ended.value is None:
        return f"the process ended with {ended.status}: {ended.error}", True
    events, problem, was_reached = ended.value
    history = History.of([*(Event(kind, step, 0) for step in _STEPS for kind in ("begin", "ack")), *events])
    history.begun.setdefault(6, set()).add(0)
    return problem or check_now_with_others(root, history, seed, form), was_reached


def check_now_with_others(root: Path, history: History, seed: int, form: str) -> str | None:
    """Check a directory in which step 6 may be one filled by hand."""
    strange = [path.name for path in root.iterdir() if path.name.startswith(("tmp_", "trash_", "old_"))]
    by_hand = root / "step_6" / "other"
    if by_hand.exists():
        if by_hand.read_bytes() != b"6":
            return "step 6 is not what was finalized"
        shutil.rmtree(by_hand.parent)
    loss = check_now(DirectoryWorkload(form, seed, ()), root, history)
    return f"left behind: {strange}" if strange else loss


def disturb(how: str, action: str, root: Path, form: str, seed: int, at: int) -> tuple[list[Event], str | None, bool]:  # noqa: PLR0913, PLR0917
    """Play an action in this process, disturbed at an await; give what happened, what is wrong, and whether it came."""
    events: list[Event] = []
    play = Play(root, form, seed, events.append)
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
    # What `save` has returned for is written even if nobody waits for it: it was captured.
    told = [event for event in events if event.kind != "queued"]
    told += [event._replace(kind="ack") for event in events if event.kind == "queued"]
    told.sort(key=lambda event: (event.step, event.version))
    return told, problem, bool(reached)


async def _cancel(play: Play, action: str, at: int, now: Callable[..., Callable[[], None]]) -> str | None:
    """Cancel the task of an action; the manager must go on as if nothing was."""
    manager = play.manager()
    async with manager:

        async def steps() -> Any:
            task = asyncio.current_task()
            assert task is not None
            return await Steps(getattr(play, action)(manager), at, now(task.cancel))

        task = asyncio.get_running_loop().create_task(steps())
        done, _ = await asyncio.wait({task}, timeout=60)
        if not done:
            return "the cancelled task does not end"
        error = None if task.cancelled() else task.exception()
        if error is not None:
            return f"cancelled, it raised {error!r}"
        if action != "close":
            await (await play.keep(manager, 9))
            play.note(Event("ack", 9, 0))
            await manager.flush()
            if manager.statistics().staged_nbytes or manager.statistics().queue_depth:
                return f"still staged: {manager.statistics()}"
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return f"tasks are left: {others}" if others else None


def _end_loop(how: str, play: Play, action: str, at: int, now: Callable[..., Callable[[], None]]) -> str | None:
    """End the loop under an action: its main task cancelled, by a signal or not, or just returning."""

    async def act(manager: asyncckpt.CheckpointManager, disturbance: Callable[[], object]) -> None:
        await Steps(getattr(play, action)(manager), at, now(disturbance))

    async def torn_down() -> None:
        main = asyncio.current_task()
        assert main is not None
        async with play.manager() as manager:
            await act(manager, main.cancel)

    async def interrupted() -> None:
        async with play.manager() as manager:
            await act(manager, lambda: os.kill(os.getpid(), signal.SIGINT))

    async def terminated() -> None:
        async with play.manager() as manager:

            async def last() -> Awaitable[Any] | None:
                if action == "close":
                    return None  # it is closing
                return await play.keep(manager, 9)

            async with asyncckpt.leave_on_sigterm(last):
                await act(manager, lambda: os.kill(os.getpid(), signal.SIGTERM))

    kept: list[Any] = []

    async def pending() -> None:
        manager = play.manager()
        kept.append(manager)  # or its own finalizer would warn
        await manager.__aenter__()
        task = asyncio.get_running_loop().create_task(act(manager, leave.set))
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
