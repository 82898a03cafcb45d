"""Which cancellations of a task count as one while a manager shuts down."""

from __future__ import annotations

import asyncio

import anyio

from asyncckpt.runtime.deadline import is_same_scope


async def _cancellations_in_a_scope(count: int) -> list[str]:
    """Return the messages of a scope's cancellations, in a task that does not leave it until the last."""
    messages = list[str]()
    with anyio.CancelScope() as scope:
        scope.cancel()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError as error:
                messages.append(str(error))
                if len(messages) == count:
                    raise
    return messages


async def test_the_cancellations_of_one_anyio_scope_are_the_same() -> None:
    """A cancelled scope cancels again and again; a cancellation by `Task.cancel` is another one each time."""
    first, again, last = await _cancellations_in_a_scope(3)
    assert is_same_scope(first, again)
    assert is_same_scope(first, last)
    for message in ("", "stop", first + "0"):
        assert not is_same_scope(first, message)
    assert not is_same_scope("", "")
    assert not is_same_scope("stop", "stop")
