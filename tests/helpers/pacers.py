"""Pacers and stop flags that count: how often work pauses, and a stop at any one of its pauses."""

from __future__ import annotations

from asyncckpt.runtime.pacing import Pacer, StopFlag, Stopped


class CountingPacer(Pacer):
    """Counts how often it is paused."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__(yields=False)
        self.count = 0

    def pause(self) -> None:
        """Count."""
        self.count += 1


class StopLater(StopFlag):
    """Stops a job when it has been checked a given number of times."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def check(self) -> None:
        """Raise once the checks are used up."""
        self.left -= 1
        if self.left < 0:
            raise Stopped
