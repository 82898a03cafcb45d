"""Where a task stands: the line of the program at which it waits, for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from types import FrameType, TracebackType

_PLUMBING: Final = frozenset({"anyio", "asyncckpt", "asyncio", "concurrent", "contextlib", "uvloop"})
"""Packages whose lines tell nothing of the program."""


def place_of(task: asyncio.Task[Any]) -> str:
    """Return the innermost line of the program at which a suspended task waits: "rollout.py:41 in actor"."""
    frames = list(_frames(task.get_coro()))
    own = [frame for frame in frames if _is_of_program(frame)]
    if not frames:
        return "an unknown line"
    frame = (own or frames)[-1]
    return _place(frame, frame.f_lineno)


def place_of_traceback(traceback: TracebackType | None) -> str | None:
    """Return the innermost line of the program that an exception has passed; None if it has passed no line."""
    entries = []
    while traceback is not None:
        entries.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    own = [entry for entry in entries if _is_of_program(entry[0])]
    return _place(*(own or entries)[-1]) if entries else None


def _is_of_program(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] not in _PLUMBING


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"


def _frames(awaited: Any) -> Any:
    """Yield the frames of a suspended coroutine and of what it awaits, the outermost first."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
