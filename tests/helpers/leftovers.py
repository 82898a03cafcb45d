"""What a failure leaves in memory, looked at without a garbage collection: nothing, once the error is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

import asyncckpt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

_PATIENCE = 60.0  # seconds: a thread's last few lines take no time, but on a busy machine it may wait for them


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Let nothing go but what nobody refers to any more."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def are_gone(references: list[weakref.ref[Any]]) -> bool:
    """Tell whether all these objects go; a thread whose job is over may hold one for a moment still."""
    assert references, "nothing was made that could go"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while any(reference() is not None for reference in references):
                await asyncio.sleep(0.001)
    return all(reference() is None for reference in references)


async def failure_of(call: Callable[[], Awaitable[object]]) -> tuple[type[BaseException] | None, bool]:
    """Make a call that fails, from a function that has an array in its hands.

    Returns:
        The type of the error, which is gone by then, and whether the array is gone, too.
    """
    references: list[weakref.ref[Any]] = []
    with no_collections():
        kind = await _caller(call, references)
        return kind, await are_gone(references)


async def _caller(
    call: Callable[[], Awaitable[object]], references: list[weakref.ref[Any]]
) -> type[BaseException] | None:
    memory = np.zeros(10)
    references.append(weakref.ref(memory))
    try:
        await call()
    except BaseException as error:  # noqa: BLE001 - of any kind
        return type(error)
    return None


@asyncckpt.register_type(name="tests.Traced")
class Traced:
    """A leaf that tells of each object that is made of it when it is read."""

    read: ClassVar[list[weakref.ref[Any]]] = []
    gate: ClassVar[Callable[[], None] | None] = None
    """Holds who reads one."""

    def to_state(self) -> object:
        """Encode."""
        return 1

    @classmethod
    def from_state(cls, _: object) -> Self:
        """Decode."""
        made = cls()
        cls.read.append(weakref.ref(made))
        if cls.gate is not None:
            cls.gate()
        return made
