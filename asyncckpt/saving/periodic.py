"""Saves beside the body of a program that has no steps (`CheckpointManager.every`).

1. One task saves while the body goes on. A save begins when `seconds` have passed since the last one began, but not
   before that one is durable; what was missed is not made up for.
2. The body is cancelled only when a save has failed, at its next await, as `asyncio.timeout` does it, and the failure
   is raised in the place of that cancellation. No cancel scope wraps the body.
3. After a normal end of the body there is one more save, which is durable when the block ends. After an exception there
   is none, because the body may have left its state half changed.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, NoReturn

from asyncckpt.config import check_duration
from asyncckpt.errors import ConfigError, ManagerUsageError
from asyncckpt.runtime.cancellation import DeferredCancellation
from asyncckpt.saving.cuts import check_takes_no_part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from asyncckpt.cut.cut import Cut
    from asyncckpt.saving.tracking import SaveHandle


class PeriodicSaves:
    """The context manager of one block.

    Args:
        seconds: The time from the beginning of a save to that of the next.
        make_state: Returns the state, or an awaitable of it.
        make_training_info: Returns what is saved with it; called at the same moment.
        get_ready: Waits until a state would be captured at once.
        save: Saves them under the next step; with a cut, it gets `make_state` itself.
        cut: The cut under which it saves, if any.

    Raises:
        ConfigError: An argument has the wrong type or value.
    """

    def __init__(  # noqa: PLR0913 - each is independent of the others
        self,
        seconds: float,
        make_state: Callable[[], object],
        make_training_info: Callable[[], Mapping[str, object]] | None,
        get_ready: Callable[[], Awaitable[None]],
        save: Callable[[object, Mapping[str, object] | None], Awaitable[SaveHandle]],
        *,
        cut: Cut | None,
    ) -> None:
        self._seconds = check_duration("seconds", seconds)
        for name, function in (("make_state", make_state), ("make_training_info", make_training_info)):
            if not callable(function) and (function is not None or name == "make_state"):
                found = type(function).__qualname__
                message = f"{name}: expected a function, found {found}: pass `lambda: ...`"
                raise ConfigError(message)
        self._make_state = make_state
        self._make_training_info = make_training_info
        self._get_ready = get_ready
        self._save = save
        self._cut = cut
        self._has_ended = asyncio.Event()
        """The body has ended normally."""
        self._body: asyncio.Task[object] | None = None  # while it runs
        self._cancelled: asyncio.Task[object] | None = None  # the body, if it was cancelled here
        self._cancelling = 0
        self._saving: asyncio.Task[None] | None = None
        self._is_entered = False

    async def __aenter__(self) -> None:
        """Start to save."""
        if self._is_entered:
            raise ManagerUsageError("this block of manager.every was entered before: call manager.every() again")
        check_takes_no_part(self._cut, "manager.every(cut=)")
        self._is_entered = True
        self._body = asyncio.current_task()
        assert self._body is not None  # noqa: S101 - a coroutine runs in a task
        self._cancelling = self._body.cancelling()
        self._saving = asyncio.create_task(self._run(), name="asyncckpt saves beside a block")
        self._saving.add_done_callback(self._end_body)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Save once more after a normal end of the body, and raise what failed."""
        assert self._saving is not None  # noqa: S101 - the block was entered
        self._body = None
        if error is None:
            self._has_ended.set()
        else:
            self._stop()
        cancellation = DeferredCancellation()
        await cancellation.wait(self._saving, self._stop)
        failure, self._saving = _failure_of(self._saving), None
        # Whoever else has cancelled the body, beside us, must see it end.
        is_only_ours = self._cancelled is not None and self._cancelled.uncancel() <= self._cancelling
        try:
            if failure is not None:
                is_replaced = error is None or (is_only_ours and isinstance(error, asyncio.CancelledError))
                if is_replaced and not cancellation:
                    _raise_as_it_is(failure)
                (error or cancellation).add_note(f"asyncckpt: a save beside the block failed: {failure!r}")
            if error is None:
                cancellation.reraise()
        finally:
            del failure, error  # a failure's traceback refers to this frame

    def _stop(self, _: object = None) -> None:
        if self._saving is not None:
            self._saving.cancel()

    def _end_body(self, task: asyncio.Task[None]) -> None:
        """Cancel the body, if it still runs when the task has failed."""
        if self._body is not None and not task.cancelled() and task.exception() is not None:
            self._cancelled = self._body
            self._body.cancel("a save beside the block failed")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time() + self._seconds
        is_last = False
        while not is_last:
            try:
                async with asyncio.timeout_at(due_at):
                    await self._has_ended.wait()
            except TimeoutError:
                due_at = max(due_at, loop.time()) + self._seconds
            is_last = self._has_ended.is_set()
            await self._save_once()

    async def _save_once(self) -> None:
        """Save what stands now, and wait until that is durable."""
        await self._get_ready()
        state: object = self._make_state
        if self._cut is None:
            state = self._make_state()
            if inspect.isawaitable(state):
                state = await state
        info = None if self._make_training_info is None else self._make_training_info()
        handle = await self._save(state, info)
        del state
        await handle


def _failure_of(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def _raise_as_it_is(failure: BaseException) -> NoReturn:
    """Raise an exception without making the one that is being handled its context."""
    context = failure.__context__
    try:
        raise failure
    finally:
        failure.__context__ = context
        del failure, context
