"""Free the memory that a failed job's error would keep alive.

A traceback refers to the frames that the error passed through, and these refer to the job's variables, which may be
large arrays. So before an error leaves its thread, or is kept for later, the variables in its frames are cleared. For
the same reason no frame may refer back to an error that passed through it: the cycle would last until a garbage
collection.
"""

from __future__ import annotations

import inspect
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_RESUMABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def drop_locals(error: BaseException) -> None:
    """Clear the local variables of all frames that an error and its causes refer to, callers included.

    The memory is freed here, in this thread. The traceback still names every function and line, except for the
    coroutines at its beginning, which awaited the rest and are cut off. Variables that a closure refers to are not
    cleared: a job that holds much memory must be a method or a `functools.partial`, not a closure.
    """
    while (outer := error.__traceback__) is not None and outer.tb_frame.f_code.co_flags & inspect.CO_COROUTINE:
        error.__traceback__ = outer.tb_next
    errors: list[BaseException | None] = [error]
    seen: set[object] = set()
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += (each.__cause__, each.__context__)
        if isinstance(each, BaseExceptionGroup):
            errors += each.exceptions
        for innermost, _ in traceback.walk_tb(each.__traceback__):
            frame: FrameType | None = innermost
            while frame is not None and frame not in seen:
                seen.add(frame)
                # Clearing a suspended coroutine or generator would close it, and it may still be in use.
                if not frame.f_code.co_flags & _RESUMABLE:
                    with suppress(RuntimeError):  # the frame is still running
                        frame.clear()
                frame = frame.f_back
