"""`CheckpointManager` for programs without an event loop: the same names, without `await`.

Each method is made of the asynchronous one: it has its signature and its docstring, runs it on a loop in a thread of
its own (`runtime/portal.py`), and waits. What a call has to know of the program's thread goes along: how far the
devices are, the context variables, and the line for warnings.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, overload

from asyncckpt import manager as asynchronous
from asyncckpt.arrays.adapters import current_moment, noted_moment
from asyncckpt.errors import CheckpointError, ManagerUsageError, ProgramLine, program_line, warn
from asyncckpt.runtime.portal import Portal
from asyncckpt.saving import pending_checkpoint, tracking
from asyncckpt.saving.environment import warn_in_background

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from types import TracebackType
    from typing import NoReturn, Self, Unpack

    from asyncckpt.config import CheckpointingConfig, CheckpointingOptions
    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.saving.preemption import Preemption
    from asyncckpt.storage.results import CheckpointRecord

__all__ = ["CheckpointManager", "PendingCheckpoint", "SaveHandle"]

Params = ParamSpec("Params")
ResultT = TypeVar("ResultT")

_WORDS: Final = (
    ("await its handle", "wait for its handle"),
    ("awaiting", "waiting"),
    ("await aclose()", "close()"),
    ("`aclose`", "`close`"),
    ("await ", ""),
    ("``async with``", "``with``"),
    ("`async with`", "`with`"),
    ("`asyncio.CancelledError`", "`KeyboardInterrupt`"),
    (", or this task is not run by asyncio", ""),
    ("Before the manager is entered,", "Before the manager is opened,"),
    ("Any task may", "Any thread may"),
    ("no task may", "no thread may"),
    ("an async function", "a function"),
    ("copied on the loop", "copied by one thread"),
    ("such as the cells of a notebook; ", "such as exit handlers; "),
)
"""What differs between the texts of the two managers."""


def _reworded(text: str) -> str:
    """Word a docstring or a message of the asynchronous manager for programs that do not await."""
    for ours, theirs in _WORDS:
        text = text.replace(ours, theirs)
    return text


@overload
def _without_await(
    method: Callable[Concatenate[asynchronous.CheckpointManager, Params], Coroutine[Any, Any, tracking.SaveHandle]],
) -> Callable[Concatenate[CheckpointManager, Params], SaveHandle]: ...
@overload
def _without_await(
    method: Callable[Concatenate[asynchronous.CheckpointManager, Params], Coroutine[Any, Any, ResultT]],
) -> Callable[Concatenate[CheckpointManager, Params], ResultT]: ...
@overload
def _without_await(
    method: Callable[
        Concatenate[asynchronous.CheckpointManager, Params],
        AbstractAsyncContextManager[pending_checkpoint.PendingCheckpoint],
    ],
) -> Callable[Concatenate[CheckpointManager, Params], AbstractContextManager[PendingCheckpoint]]: ...
@overload
def _without_await(
    method: Callable[Concatenate[asynchronous.CheckpointManager, Params], AbstractAsyncContextManager[ResultT]],
) -> Callable[Concatenate[CheckpointManager, Params], AbstractContextManager[ResultT]]: ...
@overload
def _without_await(
    method: Callable[Concatenate[asynchronous.CheckpointManager, Params], tracking.SaveHandle],
) -> Callable[Concatenate[CheckpointManager, Params], SaveHandle]: ...
@overload
def _without_await(
    method: Callable[Concatenate[asynchronous.CheckpointManager, Params], ResultT],
) -> Callable[Concatenate[CheckpointManager, Params], ResultT]: ...
def _without_await(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the manager here that does what one of the asynchronous manager does."""
    is_save = inspect.signature(method).return_annotation == "SaveHandle"

    @functools.wraps(method)
    def blocking(self: CheckpointManager, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("cut") is not None:
            message = (
                "a manager without await has no cuts, whose participants are tasks of an event loop: stop your threads"
                " while the state is captured, or use asyncckpt.CheckpointManager"
            )
            raise ManagerUsageError(message)
        if isinstance(files := kwargs.get("files"), Mapping):
            kwargs["files"] = {name: _awaitable(source) for name, source in files.items()}
        return self._call(functools.partial(method, self._manager, *args, **kwargs), goes_first=is_save)

    return _documented(blocking, method)


def _asked_often(
    method: Callable[Concatenate[asynchronous.CheckpointManager, Params], ResultT],
) -> Callable[Concatenate[CheckpointManager, Params], ResultT]:
    """Return the same for a method that a program calls at each step: if only the step decides, in its own thread."""
    asking = _without_await(method)

    @functools.wraps(method)
    def blocking(self: CheckpointManager, /, *args: Params.args, **kwargs: Params.kwargs) -> ResultT:
        session = self._session
        if self._portal is None or not (session.settings.has_rules_of_time or session.preemption.event.is_set()):
            return method(self._manager, *args, **kwargs)
        return asking(self, *args, **kwargs)

    return _documented(blocking, method)


def _documented(blocking: Callable[Params, ResultT], method: Callable[..., Any]) -> Callable[Params, ResultT]:
    """Give a method the signature and the docstring of the asynchronous one."""
    blocking.__module__ = __name__
    blocking.__doc__ = _reworded(method.__doc__ or "")
    blocking.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]  # which help() and others show
    vars(blocking).pop("__wrapped__", None)  # it may be a coroutine function, and this is not
    return blocking


def _awaitable(source: Any) -> Any:
    """Return what writes files as an asynchronous function, which calls a plain one in a thread of its own."""
    if not callable(source) or isinstance(source, type):
        return source

    async def fill(path: Path) -> object:
        if inspect.iscoroutinefunction(source):
            return await source(path)
        made = await asyncio.to_thread(source, path)
        return await made if inspect.isawaitable(made) else made

    return fill


class SaveHandle(tracking.SaveStatus):
    """A save that was accepted; `wait` waits until it is durable.

    It may be used in any thread, and when the manager is closed.
    """

    __slots__ = ("_portal",)

    def __init__(self, tracker: tracking.SaveTracker, portal: Portal) -> None:
        super().__init__(tracker)
        self._portal = portal

    def wait(self, timeout: float | None = None) -> CheckpointRecord | None:
        """Wait until the save has ended.

        Args:
            timeout: How long to wait, in seconds; None: without limit.

        Returns:
            The committed checkpoint, or None if the save was skipped, replaced or cancelled.

        Raises:
            SaveFailedError: The save failed. Each call raises a new one.
            TimeoutError: The save has not ended by then. It goes on.
            ManagerUsageError: This is a forked child, and the save had not ended when it was forked.
        """
        tracker = self._tracker

        async def ended() -> CheckpointRecord | None:
            return await tracking.SaveHandle(tracker)

        try:
            if not self.is_done:
                return self._portal.call(ended, timeout=timeout)
        except ManagerUsageError:  # the manager is closed, or its thread is not to be had here
            if not self.is_done:
                raise
        return tracker.result()

    def cancel(self) -> bool:
        """Drop the save if it still waits in the queue.

        Returns:
            Whether it was dropped. A save that is being written, or has ended, is not affected.
        """
        try:
            return self._portal.call(self._tracker.cancel)
        except ManagerUsageError:
            if not self.is_done:
                raise
        return False


class PendingCheckpoint(pending_checkpoint.PendingCheckpoint):
    """The directory of a checkpoint that the program fills, as a `pathlib.Path`, until it is committed.

    It is what `CheckpointManager.checkpoint` yields. Paths that are made of it are plain paths to files in it.
    """

    _filled: pending_checkpoint.PendingCheckpoint
    _call: Callable[..., Any]

    @classmethod
    def without_await(cls, pending: pending_checkpoint.PendingCheckpoint, call: Callable[..., Any]) -> Self:
        """Return the same directory for a program that does not await."""
        made = cls(pending)
        made._filled = pending
        made._call = call
        return made

    # Its docstring is that of the method that is awaited.
    def save(self, state: object, *, frozen: bool = False) -> None:  # type: ignore[override]  # noqa: D102
        self._call(functools.partial(self._filled.save, state, frozen=frozen))


_documented(PendingCheckpoint.save, pending_checkpoint.PendingCheckpoint.save)


class CheckpointManager:
    """Saves and loads checkpoints in a directory, for programs without an event loop.

    Use it as a context manager, in any thread, also in several at once, and also in a thread in which a loop runs (it
    stops that loop while it waits)::

        with CheckpointManager("runs/a", save_period=10, keep_top_k=3) as manager:
            handle = manager.save(step, state)
            handle.wait()  # durable

    It is `asyncckpt.CheckpointManager` on a loop in a thread of its own: `save` returns when the state has been
    captured, and the rest is done in the background. There are no cuts, whose participants are tasks: ``cut=`` is
    refused. Leaving the block writes what was captured. After a normal exit there is no time limit; if a
    KeyboardInterrupt or SystemExit ends the block, the limit is ``grace`` seconds, and
    another Ctrl-C stops the writing. An exception of the body is raised unchanged, with failed saves added to it as
    notes; without one, the failures are raised.

    Ctrl-C, or another exception of a signal's handler, interrupts a call that waits. The call ends first, as an
    asynchronous one that is cancelled: nothing was queued, and no thread reads the arrays any more. If a state had been
    captured just then, it is dropped, or a note of the exception says that it is being written.

    Args:
        directory: The checkpoint directory, or one `CheckpointingConfig` mapping with all options.
        disk: The operations that change the disk; tests pass `asyncckpt.testing.FaultyDisk`.
        clock: Measures time for `should_save`, as for `asyncckpt.CheckpointManager`.
        **options: The options, by keyword: any keys of `CheckpointingConfig`, which describes each, except
            ``checkpoint_dir``.

    Raises:
        ConfigError: An option is unknown or ill-typed; all problems are named.

    Warns:
        CheckpointWarning: Retention was asked for, and keeps every step that `should_save` allows.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | CheckpointingConfig | Mapping[str, Any],
        *,
        disk: DiskOps | None = None,
        clock: Callable[[], float] | None = None,
        **options: Unpack[CheckpointingOptions],
    ) -> None:
        self._portal: Portal | None = None
        self._manager = asynchronous.CheckpointManager(directory, disk=disk, clock=clock, **options)
        self._session = self._manager._session  # noqa: SLF001 - the two managers are one
        self._session.kind = type(self).__name__
        self._session.reworded = _reworded
        self._session.listens = False

    def __repr__(self) -> str:
        """Show the directory."""
        return repr(self._manager)

    # --- opening and closing ------------------------------------------------------------------------------------------

    def open(self) -> Self:
        """List what is committed, and start the background writer; return the manager.

        This is for programs that cannot use a block; `close` ends it. What is not closed when the interpreter exits is
        closed after the program's exit handlers.

        Raises:
            ManagerUsageError: The manager was opened before.
            ConfigError: The directory is not a directory of checkpoints, but a checkpoint.
            NotADirectoryError: There is a file in the directory's place.
            PermissionError: The directory cannot be read.
            ManagerUsageError: It is used with ``preempt_signals`` in another thread than the main one.
        """
        portal = Portal(repr(self), functools.partial(_close_at_exit, self._manager))
        try:
            call_on(portal, self._manager.open)
            if self._session.settings.preempt_signals is not None:
                self._session.preemption.listen(portal.loop)
            self._portal = portal
        except BaseException:
            self._session.preemption.stop()
            with contextlib.suppress(Exception):  # it may have been opened just before a Ctrl-C
                portal.call(self._manager.aclose)
            portal.stop()
            raise
        return self

    def __enter__(self) -> Self:
        """Open the manager; see `open`."""
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what was captured, and stop; the class says how long that may take."""
        self._close(error)

    def close(self) -> None:
        """Write what was captured, and stop. Any thread may call this, more than once: all of them wait.

        Raises:
            SaveFailedError: A save failed, and no caller had received the error; several come as an ExceptionGroup.
        """
        self._close(None)

    def aclose(self) -> None:
        """Do what `close` does, under the name that it has in the asynchronous manager."""
        self._close(None)

    if not TYPE_CHECKING:  # a type checker refuses `async with` by itself

        async def __aenter__(self) -> NoReturn:
            """Say that this takes ``with``."""
            message = f"{self!r} is a blocking one, and was entered by `async with`: use `with`"
            raise ManagerUsageError(message)

        async def __aexit__(self, *_: object) -> None:
            """Do nothing: `async with` looks for it before it calls `__aenter__`."""

    def __del__(self) -> None:
        """Warn if the manager was opened and never closed; what was captured is written nevertheless."""
        portal = getattr(self, "_portal", None)
        if portal is not None and portal.is_open:
            portal.post(functools.partial(_close_abandoned, self._manager, portal))
            warn(f"{self!r} was never closed: use `with`, or close()", ResourceWarning, source=self)

    @property
    def preempted(self) -> threading.Event:
        """The event that is set when the program must leave soon: when SIGTERM comes, or ``preempt_signals``.

        For loops that look whether they have to leave::

            while not manager.preempted.is_set():
                ...

        While it is set, `should_save` asks for one save. The program may set it itself, if it learns in another way
        that it must leave, and clear it to go on.

        The signals are handled from the first use of this property on (with ``preempt_signals`` from the opening of the
        manager on) until the manager is closed. Another signal changes nothing while the event is set, but a second
        SIGINT interrupts. Several managers all learn of a signal.

        Raises:
            ManagerUsageError: The manager is not open, or this is not the main thread, which alone receives signals;
                there, ``preempt_signals=()`` gives an event that only the program sets.
        """
        portal = self._opened()
        if portal.is_open:
            self._session.preemption.listen(portal.loop)
        return _Event(self._session.preemption, portal)

    # --- the methods of the asynchronous manager ----------------------------------------------------------------------

    save = _without_await(asynchronous.CheckpointManager.save)
    save_nowait = _without_await(asynchronous.CheckpointManager.save_nowait)
    should_save = _asked_often(asynchronous.CheckpointManager.should_save)
    save_reason = _asked_often(asynchronous.CheckpointManager.save_reason)
    prewarm = _without_await(asynchronous.CheckpointManager.prewarm)
    flush = _without_await(asynchronous.CheckpointManager.flush)
    delete = _without_await(asynchronous.CheckpointManager.delete)
    load = _without_await(asynchronous.CheckpointManager.load)
    restore = _without_await(asynchronous.CheckpointManager.restore)
    fork = _without_await(asynchronous.CheckpointManager.fork)
    verify = _without_await(asynchronous.CheckpointManager.verify)
    steps = _without_await(asynchronous.CheckpointManager.steps)
    latest_step = _without_await(asynchronous.CheckpointManager.latest_step)
    best_step = _without_await(asynchronous.CheckpointManager.best_step)
    refresh = _without_await(asynchronous.CheckpointManager.refresh)
    statistics = _without_await(asynchronous.CheckpointManager.statistics)
    init_tmp_checkpoint = _without_await(asynchronous.CheckpointManager.init_tmp_checkpoint)
    finalize_checkpoint = _without_await(asynchronous.CheckpointManager.finalize_checkpoint)
    remove_old_checkpoints = _without_await(asynchronous.CheckpointManager.remove_old_checkpoints)
    checkpoint = _without_await(asynchronous.CheckpointManager.checkpoint)
    get_best_checkpoint_path = _without_await(asynchronous.CheckpointManager.get_best_checkpoint_path)
    get_latest_checkpoint_path = _without_await(asynchronous.CheckpointManager.get_latest_checkpoint_path)
    load_training_info = _without_await(asynchronous.CheckpointManager.load_training_info)

    # --- calls --------------------------------------------------------------------------------------------------------

    def _opened(self) -> Portal:
        if self._portal is None:
            message = f"{self!r} is not open: use it inside `with`"
            raise ManagerUsageError(message)
        return self._portal

    def _call(
        self, function: Callable[[], Any], undo: Callable[[Any], object] | None = None, *, goes_first: bool = False
    ) -> Any:
        portal = self._opened()
        found = call_on(portal, function, undo or _undo, goes_first=goes_first)
        if isinstance(found, tracking.SaveHandle):
            return SaveHandle(found._tracker, portal)  # noqa: SLF001 - as above
        return _Block(self._call, found) if isinstance(found, AbstractAsyncContextManager) else found

    def _close(self, error: BaseException | None) -> None:
        portal = self._opened()
        if error is not None and portal.is_of_parent:
            return  # the child leaves the block of its parent, whose manager it does not touch
        try:
            call_on(portal, functools.partial(self._session.close, error))
        except ManagerUsageError:
            if not portal.is_over:  # or it was closed before
                raise
        except BaseException as interruption:
            portal.stop()
            if isinstance(error, Exception | None) or isinstance(interruption, Exception):
                raise
        else:
            portal.stop()
        finally:
            self._session.preemption.stop()


def call_on(
    portal: Portal,
    function: Callable[[], Any],
    undo: Callable[[Any], object] | None = None,
    *,
    goes_first: bool = False,
) -> Any:
    """Call a method of the asynchronous manager, in whose context is what it has to know of this thread."""
    context = copy_context()
    context.run(program_line.set, ProgramLine.here(_reworded))
    context.run(noted_moment.set, current_moment())
    try:
        return portal.call(function, context=context, undo=undo, goes_first=goes_first)
    except (CheckpointError, ValueError) as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (_reworded(error.args[0]), *error.args[1:])
        raise


class _Event(threading.Event):
    """The event of preemption, for threads."""

    def __init__(self, preemption: Preemption, portal: Portal) -> None:
        super().__init__()
        self._preemption = preemption
        self._portal = portal

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._preemption.event.is_set()

    def set(self) -> None:
        """Set it."""
        self._preemption.event.tell(self._portal.loop)

    def clear(self) -> None:
        """Go on as if there had been no signal."""
        if self.is_set():
            self._portal.call(self._preemption.event.clear)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; return whether it is."""
        try:
            return self.is_set() or self._portal.call(self._preemption.event.wait, timeout=timeout)
        except TimeoutError:
            return self.is_set()


class _Block(AbstractContextManager[ResultT]):
    """A block of an asynchronous context manager, entered and left on the loop."""

    def __init__(self, call: Callable[..., Any], manager: AbstractAsyncContextManager[ResultT]) -> None:
        self._call = call
        self._manager = manager

    def __enter__(self) -> ResultT:
        """Enter it; if that is interrupted too late, leave it again."""
        entered: Any = self._call(self._manager.__aenter__, lambda _: self._leave(KeyboardInterrupt()))
        if isinstance(entered, pending_checkpoint.PendingCheckpoint):
            entered = PendingCheckpoint.without_await(entered, self._call)
        made: ResultT = entered
        return made

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Leave it."""
        left: bool | None = self._call(functools.partial(self._manager.__aexit__, kind, error, traceback))
        return left

    async def _leave(self, error: BaseException) -> None:
        await self._manager.__aexit__(type(error), error, None)


def _undo(found: object) -> str | None:
    """Drop a save whose caller was interrupted when it had been captured, or say that it is too late."""
    if not isinstance(found, tracking.SaveHandle) or found.cancel() or found.state is tracking.SaveState.SKIPPED:
        return None
    return f"step {found.step} had been captured, and is {found.state}"


def _close_at_exit(manager: asynchronous.CheckpointManager, portal: Portal) -> None:
    """Close a manager that the program has left open; the interpreter is exiting."""
    failures: list[Exception] = []
    try:
        portal.call(manager.aclose)
    except ExceptionGroup as errors:
        failures += errors.exceptions
    except Exception as error:  # noqa: BLE001 - there is no caller
        failures.append(error)
    portal.stop()
    warn(f"{manager!r} was never closed: use `with`, or close()", ResourceWarning)
    for each in failures:
        warn(f"{manager!r} was never closed, and {each}")


async def _close_abandoned(manager: asynchronous.CheckpointManager, portal: Portal) -> None:
    try:
        await manager.aclose()
    except Exception as error:  # noqa: BLE001 - there is no caller
        warn_in_background(f"{manager!r} was never closed, and {error}")
    finally:
        portal.stop()
