"""`Participant`: a task that takes part in a cut, and the calls in which it is at rest."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
from asyncio import get_running_loop
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from asyncckpt.cut.core import CutCore, Member, current_task, task_on
from asyncckpt.cut.places import place_of_traceback
from asyncckpt.runtime.cancellation import shielded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")

_numbers: Final = itertools.count(1)
_MARK: Final = "_asyncckpt_raised_at_rest"


class Participant(Member):
    """A task that takes part in a cut: what ``async with cut.participant(name) as me`` returns.

    Only the task that has entered the block may use it.
    """

    __slots__ = ("_mark", "cut")

    def __init__(self, cut: CutCore, name: str | None) -> None:
        super().__init__(name or "")
        self.cut = cut
        self._mark = 0  # of the last exception that was raised at rest

    def __repr__(self) -> str:
        """Show the name, and whether it runs."""
        state = "running" if self.is_running else f"at rest in {self.resting}" if self.resting else "not taking part"
        return f"<Participant {self.name!r}, {state}>"

    async def __aenter__(self) -> Self:
        """Join, once no cut is wanted.

        Raises:
            CutUsageError: The task takes part already, the block was entered before, or the other participants are
                tasks of another loop.
        """
        task = current_task()
        if not self.name and task is not None:
            self.name = task.get_name()
        await self.cut.join(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave. If an exception was raised otherwise than at rest, the state counts as torn: see `Cut.torn`."""
        del kind, traceback
        self.cut.leave(self, None if error is None or self._was_raised_at_rest(error) else _told(error))

    async def safe_point(self) -> None:
        """Wait here while a cut is wanted or held. Without one, this returns at once, and lets no other task run.

        Raises:
            CutUsageError: Another task has called it, or this task holds the cut.
        """
        if self.cut.is_wanted or task_on(get_running_loop()) is not self.task:
            await self._park()

    async def at_rest(self, awaitable: Awaitable[ResultT]) -> ResultT:
        """Await something slow, and count as at rest meanwhile.

        A cut can be held while this waits. So what is awaited must not change or read what is saved. Its result, its
        error and a cancellation arrive after the release. A cancellation that arrives before the cut is held acts at
        once; the result is lost then, as it is with any awaitable. So an awaitable that takes an item out of somewhere
        is safe only if it is that of a queue of the cut.

        Args:
            awaitable: A coroutine, a future, a task or another awaitable, such as a `SaveHandle`.

        Returns:
            Its result.

        Raises:
            CutUsageError: Another task has called it, or this task holds the cut.
        """
        try:
            self.cut.check_may_rest(self, "at_rest")
        except BaseException:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise
        return await self.rest_in("at_rest", awaitable)

    async def run(self, function: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> ResultT:
        """Call a blocking function in a thread, and wait until it has ended, whatever is cancelled.

        The participant counts as running: no cut is held before the function has ended, so it may change what is saved.
        A cancellation is raised when the function has ended. A function that touches nothing that is saved may be
        awaited by ``await me.at_rest(me.run(function))``, which lets cuts be held meanwhile.

        Returns:
            What the function returns.

        Raises:
            CutUsageError: Another task has called it.
        """
        self.cut.check_here(self, "run")
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(None, call)
        cancellation: asyncio.CancelledError | None = None
        with contextlib.ExitStack() as stack:
            while not future.done():
                try:
                    await asyncio.wait((future,))
                except asyncio.CancelledError as error:
                    if cancellation is None:
                        cancellation = error
                        stack.enter_context(shielded())
        if cancellation is not None:
            raise cancellation from future.exception()
        return future.result()

    # --- for the queues -----------------------------------------------------------------------------------------------

    async def run_again(self) -> None:
        """Leave the rest, as soon as the participant may run."""
        if not self.is_running:
            await self._resume()

    async def leave_rest(self, error: BaseException | None) -> None:
        """Leave the rest, at the end of a block that `error` has ended. A participant that runs already goes on."""
        if self.is_running:
            return
        if error is not None and not isinstance(error, Exception | asyncio.CancelledError):
            self.cut.let_run(self)
            return
        await self._resume(error)
        if error is not None:
            self.mark(error)

    def begin_rest(self, name: str) -> None:
        """Be at rest."""
        self.cut.rest(self, name)
        self._mark = 0

    async def rest_in(self, name: str, awaitable: Awaitable[ResultT]) -> ResultT:
        """Await something at rest; return when the participant may run."""
        self.begin_rest(name)
        try:
            result = await awaitable
        except (Exception, asyncio.CancelledError) as error:
            await self._resume(error)
            self.mark(error)
            raise
        except BaseException:
            self.cut.let_run(self)
            raise
        await self._resume()
        return result

    def mark(self, error: BaseException) -> None:
        """Note that an exception is raised while the participant has run nothing since it was at rest."""
        self._mark = next(_numbers)
        with contextlib.suppress(Exception):  # some classes refuse attributes: then it counts as raised elsewhere
            setattr(error, _MARK, self._mark)

    async def _resume(self, error: BaseException | None = None) -> None:
        try:
            await self.cut.resume(self, error)
        except asyncio.CancelledError as cancellation:
            self.mark(cancellation)
            raise

    async def _park(self) -> None:
        self.cut.check_may_rest(self, "safe_point")
        self.begin_rest("safe_point")
        await self._resume()

    def _was_raised_at_rest(self, error: BaseException) -> bool:
        if isinstance(error, TimeoutError) and error.__cause__ is not None:  # by asyncio.timeout
            error = error.__cause__
        return self._mark > 0 and getattr(error, _MARK, 0) == self._mark


def _told(error: BaseException) -> str:
    """Say what an exception is, and which line of the program has raised it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = place_of_traceback(error.__traceback__)
    return text if place is None else f"{text}, at {place}"
