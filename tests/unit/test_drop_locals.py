"""What an error that is kept leaves behind."""

from __future__ import annotations

import traceback
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from helpers.leftovers import no_collections

from asyncckpt.runtime.tracebacks import drop_locals

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

references: list[weakref.ref[Any]] = []


def fail(kind: type[Exception], cause: Exception | None = None) -> None:
    """Fail with an array in a local variable."""
    memory = np.zeros(10)
    references.append(weakref.ref(memory))
    raise kind(kind.__name__) from cause


def failed(kind: type[Exception], cause: Exception | None = None) -> Exception:
    """Return an error that was caught, its caller's array with it."""
    memory = np.zeros(10)
    references.append(weakref.ref(memory))
    try:
        fail(kind, cause)
    except Exception as error:  # noqa: BLE001 - of any kind
        return error
    raise AssertionError


def test_the_whole_chain_lets_go() -> None:
    """Causes, what was being handled, and the members of a group; of their callers, too. All are named still."""
    references.clear()
    with no_collections():
        grouped = ExceptionGroup("some", [failed(KeyError), failed(TypeError)])
        error = failed(ValueError, cause=grouped)
        grouped.__context__ = failed(OSError)
        assert len(references) == 8
        assert all(reference() is not None for reference in references)
        drop_locals(error)
        assert all(reference() is None for reference in references)
    told = "".join(traceback.format_exception(error))
    for name in ("ValueError", "KeyError", "TypeError", "OSError"):
        assert f"{name}: " in told
    assert told.count("in fail\n") == 4


def test_what_is_running_or_waits_goes_on() -> None:
    """An error may have been raised before, by somebody who caught it and has not ended yet."""
    error = ValueError("again and again")
    done = list[str]()

    def generator() -> Iterator[int]:
        try:
            raise error
        except ValueError:
            yield 1
            yield 2

    class Waiting:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def coroutine() -> None:
        try:
            raise error
        except ValueError:
            await Waiting()
            done.append("coroutine")

    waiting, going = generator(), coroutine()
    assert next(waiting) == 1
    going.send(None)
    here = "unchanged"
    try:
        raise error
    except ValueError:
        drop_locals(error)
    assert here == "unchanged"
    assert next(waiting) == 2
    try:
        going.send(None)
    except StopIteration:
        done.append("ended")
    assert done == ["coroutine", "ended"]
