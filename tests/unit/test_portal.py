"""A loop in a thread of its own: calls, their interruption, and its end."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING

import pytest
from helpers.stops import press_ctrl_c

from asyncckpt import ManagerClosedError
from asyncckpt.runtime.portal import Portal, _Call

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBER: ContextVar[int] = ContextVar("NUMBER", default=0)


@pytest.fixture
def portal() -> Iterator[Portal]:
    """Start a portal, and stop it."""
    found = Portal("the test", Portal.stop)
    yield found
    found.stop()


async def slow(log: list[str], cancellations: int = 1) -> str:
    """Wait until it has been cancelled so many times, with a Ctrl-C each time that it begins to wait."""
    for _ in range(cancellations):
        threading.Thread(target=press_ctrl_c).start()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            log.append("cancelled")
    return "too late"


def test_results_errors_and_context_come_through(portal: Portal) -> None:
    """Of functions and of coroutine functions, with the caller's context variables."""

    async def number() -> int:
        await asyncio.sleep(0)
        return NUMBER.get()

    token = NUMBER.set(7)
    try:
        assert portal.call(number) == portal.call(NUMBER.get) == 7
    finally:
        NUMBER.reset(token)
    for error in (KeyError("a"), SystemExit(2), KeyboardInterrupt()):

        async def fail(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            portal.call(fail)
        assert caught.value is error
    assert portal.call(threading.current_thread) is not threading.current_thread()


def test_each_interruption_cancels_once(portal: Portal) -> None:
    """The call is over when the coroutine is; what it returns then is given to `undo`, whose answer becomes a note."""
    for count in (1, 2, 3):
        log: list[str] = []
        undone: list[str] = []

        def undo(result: str, undone: list[str] = undone) -> str:
            undone.append(result)
            return "it was undone"

        with pytest.raises(KeyboardInterrupt) as caught:
            portal.call(lambda log=log, count=count: slow(log, count), undo=undo)
        assert log == ["cancelled"] * count
        assert undone == ["too late"]
        assert caught.value.__notes__ == ["asyncckpt: it was undone"]


def test_a_call_that_is_cancelled_needs_no_undoing(portal: Portal) -> None:
    """Its coroutine has raised the cancellation."""
    undone: list[object] = []

    async def wait() -> None:
        threading.Thread(target=press_ctrl_c).start()
        await asyncio.sleep(3600)

    with pytest.raises(KeyboardInterrupt) as caught:
        portal.call(wait, undo=undone.append)
    assert undone == []
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_a_timeout_cancels_and_waits(portal: Portal, timeout: float) -> None:
    """Also when the coroutine has not begun; a result that comes nevertheless is returned."""
    with pytest.raises(TimeoutError, match=str(timeout)):
        portal.call(lambda: asyncio.sleep(3600), timeout=timeout)

    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "done"
        return "never"

    for seconds in (0.02, 0.2, 2, 20):
        try:
            assert portal.call(stubborn, timeout=seconds) == "done"
            break
        except TimeoutError:  # it had not begun by then
            continue
    else:
        pytest.fail("it never began")


def test_stopping_waits_for_what_runs(portal: Portal) -> None:
    """Calls that have begun end as they would; later ones say that it is closed."""
    begun, results = threading.Event(), []

    async def work() -> str:
        begun.set()
        await asyncio.sleep(0.01)
        return "done"

    calling = threading.Thread(target=lambda: results.append(portal.call(work)))
    calling.start()
    begun.wait()
    portal.stop()
    calling.join()
    assert results == ["done"]
    assert portal.is_over
    with pytest.raises(ManagerClosedError, match="the test is closed"):
        portal.call(work)
    portal.stop()


def test_a_thread_that_ends_fails_what_waits(portal: Portal) -> None:
    """If something ends the loop, nobody waits for ever."""

    async def wait() -> None:
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()
        await asyncio.sleep(3600)

    with pytest.raises(ManagerClosedError, match="the test is closed"):
        portal.call(wait)


def test_a_call_that_is_cancelled_before_it_begins(portal: Portal) -> None:
    """Its coroutine never runs, and it has ended all the same."""

    async def cancel_at_once() -> tuple[bool, BaseException | None]:
        call = _Call(lambda: asyncio.sleep(3600), copy_context())
        call.start()
        call.cancel()
        while not call.task.done():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return call.is_over, call.error

    is_over, error = portal.call(cancel_at_once)
    assert is_over
    assert isinstance(error, asyncio.CancelledError)
