"""Which steps a manager is working on."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class StepLedger:
    """The steps that are being saved, filled or loaded. Used on the loop's thread only.

    Attributes:
        in_flight: Steps that are reserved, from the call of `save` until the save has ended.
        filling: Steps whose pending directory a caller is filling; no save may clear it.
        loading: Steps that are being read; they are not pruned.
        on_busy: Called when a first step is reserved.
        on_idle: Called when no step is reserved any more.
    """

    def __init__(self) -> None:
        self.in_flight: Counter[int] = Counter()
        self.filling: set[int] = set()
        self.loading: Counter[int] = Counter()
        self.on_busy: Callable[[], None] = lambda: None
        self.on_idle: Callable[[], None] = lambda: None

    def reserve(self, step: int) -> None:
        """Reserve a step for a save."""
        was_idle = not self.in_flight
        self.in_flight[step] += 1
        if was_idle:
            self.on_busy()

    def free(self, step: int) -> None:
        """Free a step that was reserved."""
        _decrement(self.in_flight, step)
        if not self.in_flight:
            self.on_idle()

    @contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Keep a step from being pruned within the block."""
        self.loading[step] += 1
        try:
            yield
        finally:
            _decrement(self.loading, step)


def _decrement(counter: Counter[int], step: int) -> None:
    counter[step] -= 1
    if not counter[step]:
        del counter[step]
