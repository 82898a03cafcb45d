"""The end of the interpreter, where a program may still save from an `atexit` handler.

1. When exit handlers run, Python has ended its thread pools and starts no new threads in them
   (https://docs.python.org/3/library/atexit.html). What would go to a thread runs in the calling one.
2. A library that is first imported there registers its own exit handlers too late for them to be called. What must be
   undone before the interpreter goes is undone by the handler of this module, which is registered with the first import
   of asyncckpt, and so runs after those that a program registers later; or else at once.
"""

from __future__ import annotations

import atexit
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


def is_exiting() -> bool:
    """Return whether the interpreter is running its exit handlers, or is beyond them."""
    return not threading.main_thread().is_alive()


def before_the_end(action: Callable[[], object]) -> None:
    """Call `action` after the program's own exit handlers, or now if that moment has passed."""
    if _can_wait:
        _actions.append(action)
    else:
        action()


class Threads(ThreadPoolExecutor):
    """A thread pool that works in the calling thread once the interpreter is exiting."""

    def submit(self, fn: Callable[Params, ResultT], /, *args: Params.args, **kwargs: Params.kwargs) -> Future[ResultT]:
        """Run `fn` in a thread; at exit run it here, and return when it has ended."""
        try:
            return super().submit(fn, *args, **kwargs)
        except RuntimeError:
            if self._shutdown or not is_exiting():
                raise
        future: Future[ResultT] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - it is for those who look at the future
            future.set_exception(error)
        return future


def _end() -> None:
    global _can_wait  # noqa: PLW0603 - there is one interpreter
    _can_wait = False
    while _actions:
        _actions.pop()()


_actions: Final[list[Callable[[], Any]]] = []
_can_wait = not is_exiting()
atexit.register(_end)
