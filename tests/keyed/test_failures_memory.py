"""The failures of a `Checkpointer` keep nothing alive: neither what the caller had in its hands, nor what was read."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from helpers.leftovers import Traced, are_gone, failure_of, no_collections

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from helpers.kinds import Place

MANY = dict.fromkeys(map(str, range(300)), 1)
"""More names than the index holds of one value: what is there is only known once the value was read."""


async def test_a_miss_below_a_key_keeps_nothing_of_its_value(place: Place) -> None:
    """The value is read to look into it, and is gone when the default is returned."""
    async with place.open() as chk:
        await chk.save_parameter("run", {"leaf": Traced()})
        await chk.flush()
        Traced.read.clear()
        with no_collections():
            assert await chk.get(("run", "absent"), 7) == 7
            assert await are_gone(Traced.read)


CALLS: dict[str, tuple[Callable[[Any], Awaitable[object]], type[BaseException]]] = {
    "load": (lambda chk: chk.load_parameter("absent"), asyncckpt.CheckpointKeyError),
    "load-below": (lambda chk: chk.load_parameter(("run", "absent")), asyncckpt.CheckpointKeyError),
    "pop-below": (lambda chk: chk.pop(("run", "absent")), asyncckpt.CheckpointKeyError),
    "delete-below": (lambda chk: chk.delete_parameter(("run", "absent")), asyncckpt.CheckpointKeyError),
    "save": (lambda chk: chk.save_parameter("new", [*range(1000), object()]), asyncckpt.UnsupportedLeafError),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_failure_keeps_nothing_of_its_caller(place: Place, name: str) -> None:
    """When the error is gone, so is what the frames that it came through had in their hands."""
    call, kind = CALLS[name]
    async with place.open() as chk:
        await chk.save_parameter("run", MANY)
        assert await failure_of(lambda: call(chk)) == (kind, True)


async def test_nor_does_a_flush_that_the_disk_refuses(file: Place) -> None:
    """The write stays, and its error goes."""
    disk = FaultyDisk()
    async with file.open(disk=disk) as chk:
        await chk.save_parameter("a", 1)
        disk.fail(None, errno.EIO, lasting=True)
        assert await failure_of(chk.flush) == (OSError, True)
        disk.heal()


async def test_nor_does_the_news_of_another_writer(file: Place) -> None:
    """Whether it comes at once, or is told later of a change in the background."""
    async with file.open() as first:
        await first.save_parameter("a", 1)
        async with file.open() as second:
            assert await failure_of(lambda: second.save_parameter("b", 2)) == (asyncckpt.FileLockedError, True)
            second["b"] = 2
            assert await failure_of(second.flush) == (asyncckpt.FileLockedError, True)


async def test_a_refused_change_keeps_nothing_until_it_is_told(place: Place) -> None:
    """The value that it led into was read to be changed; the error that waits to be told does not hold it."""
    async with place.open() as chk:
        await chk.save_parameter("run", {"leaf": Traced(), **MANY})
        await chk.flush()
        Traced.read.clear()
        with no_collections():
            chk["run", "7", "x"] = 2
            assert await chk.get("other") is None  # behind it
            assert await are_gone(Traced.read)
            assert await failure_of(chk.flush) == (asyncckpt.CheckpointKeyError, True)
