"""Errors without the memory of the work that failed.

A traceback refers to the frames that the error came through, and they to whatever the work had in its variables. So an
error that leaves its thread, or is kept for later, has those variables cleared first; and no frame refers back to an
error that came through it, which would keep all that until a garbage collection.
"""

from __future__ import annotations

import inspect
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_MAY_GO_ON: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def drop_locals(error: BaseException) -> None:
    """Let go of what the functions had in their hands that an error, or one that led to it, came through.

    So had their callers, which a frame refers to. The memory is freed here, and not when the error is. The traceback
    still names every function and line; only the coroutines that it begins with, which awaited the rest, are taken off.
    What a closure has closed over stays: work with much memory in its hands is a method, or a `functools.partial`.
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
        for place, _ in traceback.walk_tb(each.__traceback__):
            frame: FrameType | None = place
            while frame is not None and frame not in seen:
                seen.add(frame)
                # To clear a coroutine or a generator that only waits would close it, and an error may be an old one.
                if not frame.f_code.co_flags & _MAY_GO_ON:
                    with suppress(RuntimeError):  # it is still running
                        frame.clear()
                frame = frame.f_back
