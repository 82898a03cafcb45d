"""Support for saving from an `atexit` handler, when the interpreter is shutting down.

1. While exit handlers run, Python has already shut down its thread pools and starts no new threads in them
   (https://docs.python.org/3/library/atexit.html). Jobs then run in the calling thread.
2. A library that is first imported by an exit handler registers its own handlers too late: they are never called. This
   module registers one handler when asyncckpt is first imported. It runs after those that the program registers later,
   and runs the actions passed to `run_at_exit`.
"""

from __future__ import annotations

import atexit
import threading
from concurrent.futures import Future, ThreadPoolExecutor, thread
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


def is_exiting() -> bool:
    """Return whether the interpreter is exiting: its thread pools have been shut down, or will be at once."""
    # Between these two moments the main thread waits for the threads of all pools.
    return getattr(thread, "_shutdown", False) or not threading.main_thread().is_alive()


def run_at_exit(action: Callable[[], object]) -> None:
    """Call `action` after the program's own exit handlers, or now if they have already run."""
    if _accepts_actions:
        _actions.append(action)
    else:
        action()


class ExitSafeThreadPool(ThreadPoolExecutor):
    """A thread pool that runs its work in the calling thread once the interpreter is exiting."""

    _has_ended = False  # `_shutdown` is set when the interpreter exits, too

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - as the base's
        """End the pool."""
        self._has_ended = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    def submit(self, fn: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> Future[ResultT]:
        """Run `fn` in a thread; at exit, run it in this thread before returning."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            if self._has_ended or not is_exiting():
                raise
        future: Future[ResultT] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised by the future's result
            future.set_exception(error)
        return future


def _run_actions() -> None:
    global _accepts_actions  # noqa: PLW0603 - there is one interpreter
    _accepts_actions = False
    while _actions:
        _actions.pop()()


_actions: Final[list[Callable[[], Any]]] = []
_accepts_actions = not is_exiting()
atexit.register(_run_actions)
