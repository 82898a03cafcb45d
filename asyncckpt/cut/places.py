"""Where a task stands: the line of the program at which it waits, for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from types import FrameType

_PLUMBING: Final = frozenset({"anyio", "asyncckpt", "asyncio", "concurrent", "contextlib", "uvloop"})
"""Packages whose lines tell nothing of the program."""


def place_of(task: asyncio.Task[Any]) -> str:
    """Return the innermost line of the program at which a suspended task waits: "rollout.py:41 in actor"."""
    frames = list(_frames(task.get_coro()))
    own = [frame for frame in frames if frame.f_globals.get("__name__", "").partition(".")[0] not in _PLUMBING]
    return place_of_frame((own or frames)[-1]) if frames else "an unknown line"


def place_of_frame(frame: FrameType) -> str:
    """Return the line at which a frame stands."""
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"


def _frames(awaited: Any) -> Any:
    """Yield the frames of a suspended coroutine and of what it awaits, the outermost first."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
