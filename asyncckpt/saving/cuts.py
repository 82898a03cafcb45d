"""What a save has to do with cuts: how it waits, and how the state is put together while a cut is held."""

from __future__ import annotations

import inspect
import sys
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from asyncckpt.errors import CutUsageError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from asyncckpt.cut.cut import Cut
    from asyncckpt.cut.participant import Participant


def check_cut(cut: Cut | None, step: int) -> None:
    """Check whether the calling task may save now.

    Raises:
        CutUsageError: The task takes part in a cut that is wanted, and saves without it.
        TypeError: `cut` is none.
    """
    if cut is None:
        me = _running_participant()
        if me is not None and me.cut.is_wanted:
            message = (
                f"step {step}: {me.name!r} saves without a cut while one is wanted, which waits for it: pass cut=, or"
                " await safe_point() before"
            )
            raise CutUsageError(message)
        return
    from asyncckpt.cut.core import CutCore

    if not isinstance(cut, CutCore):
        message = f"cut={cut!r}: expected an asyncckpt.Cut"
        raise TypeError(message)


def check_takes_no_part(cut: Cut | None, what: str) -> None:
    """Check that the calling task takes no part in a cut for which it would wait otherwise than at rest.

    Raises:
        CutUsageError: It does.
    """
    if cut is not None and (me := cut.member_here()) is not None:
        message = f"{what} was entered by {me.name!r}, which takes part in the cut and would wait for itself at the end"
        raise CutUsageError(f"{message}: enter it around the block of the participant")


def resting(cut: Cut | None) -> AbstractAsyncContextManager[None]:
    """Return a block in which a participant of the cut is at rest until it has held the cut."""
    return nullcontext() if cut is None else cut.resting("save")


@asynccontextmanager
async def locked_at_rest(lock: asyncio.Lock) -> AsyncIterator[None]:
    """Hold a lock. A participant of a cut waits for it at rest: whoever has it may wait for the cut."""
    me = _running_participant() if lock.locked() else None
    is_ours = False

    async def acquire() -> None:
        nonlocal is_ours
        await lock.acquire()
        is_ours = True

    try:
        await (acquire() if me is None else me.rest_in("save", acquire()))
        yield
    finally:
        if is_ours:
            lock.release()


def at_once(cut: Cut | None) -> AbstractContextManager[None]:
    """Return a block in which the cut is held, if there is one, and that is possible without waiting."""
    return nullcontext() if cut is None else cut.hold_nowait()


def put_together(state: Any) -> object:
    """Return the state that a function of the program puts together; what is no function is the state itself.

    Raises:
        TypeError: The function returns an awaitable.
    """
    if not callable(state):
        return state
    made = state()
    if inspect.isawaitable(made):
        if inspect.iscoroutine(made):
            made.close()
        message = "the function that puts the state together returns an awaitable: no task may run while it does so"
        raise TypeError(message)
    return made


def _running_participant() -> Participant | None:
    """Return the participant whose task runs now, unless it is at rest."""
    core = sys.modules.get("asyncckpt.cut.core")  # a program that has not imported it has no participants
    me: Participant | None = None if core is None else core.find_member(core.current_task())
    return me if me is not None and me.is_running else None
