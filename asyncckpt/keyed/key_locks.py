"""Whose turn it is to compute a key's value, and who waits for whom.

A turn belongs to one key of one open file. Whoever computes takes it, and may need other turns meanwhile: to compute
further keys itself, or to wait for those that others compute. A circle of such needs would never end, so what would
close one is refused. Tasks that a generator starts count as parts of it; threads that it starts by hand do not.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from asyncckpt.errors import CheckpointerUsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncckpt.keyed.engine import Path

_mine: ContextVar[KeyLock | None] = ContextVar("asyncckpt_turn", default=None)
_graph: Final = threading.Lock()  # of all needs: generators may use several files


class KeyLock:
    """The turn of one key."""

    def __init__(self, path: Path) -> None:
        self.name = path[0] if len(path) == 1 else path
        self.lock = threading.Lock()
        """Held by the thread that computes, where threads do."""
        self.needs: list[KeyLock] = []

    @contextmanager
    def needed(self) -> Iterator[None]:
        """While this turn is waited for, or taken, by what runs here.

        Raises:
            CheckpointerUsageError: It waits for what runs here, directly or through others.
        """
        mine = _mine.get()
        if mine is None:
            yield
            return
        with _graph:
            way = self._way_to(mine)
            if way is not None:
                message = (
                    "cached_eval would wait for itself for ever: to compute"
                    f" {' takes '.join(repr(turn.name) for turn in (mine, *way))}"
                )
                raise CheckpointerUsageError(message)
            mine.needs.append(self)
        try:
            yield
        finally:
            with _graph:
                mine.needs.remove(self)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While the value is computed here."""
        token = _mine.set(self)
        try:
            yield
        finally:
            _mine.reset(token)

    def _way_to(self, other: KeyLock) -> list[KeyLock] | None:
        """Return the turns from this one to another, each of which needs the next, or None if there is no such way."""
        ways = [[self]]
        seen = {self}
        while ways:
            way = ways.pop()
            if way[-1] is other:
                return way
            for turn in way[-1].needs:
                if turn not in seen:
                    seen.add(turn)
                    ways.append([*way, turn])
        return None
