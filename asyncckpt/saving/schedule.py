"""When a step is to be saved, and why: rules over one clock, without a manager, a loop or a disk.

1. A step is due if any rule says so. Without a rule every step is.
2. Asking changes no answer: only saves do.
3. A save counts from the moment at which `save` was called, while it is being captured and written, too, so that
   several tasks that ask do not all save. If it is skipped, dropped or fails, it is as if it had not been made.
4. What saves cost is the time during which at least one call of `save` held its caller; it counts whatever became of
   the save.
5. Durations are differences of one clock, which never jumps: the system's is read once, and carried on by the clock
   that counts the seconds since the machine was started.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from datetime import datetime, timedelta
from enum import Flag, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from asyncckpt.config import Settings

_ROOM_SHARE: Final = 0.1  # of the time until the deadline, while it is unknown how long a save takes
_MAX_ROOM_SECONDS: Final = 300.0
_LONG_AGO: Final = 1e9  # in seconds since the epoch: 2001
_REMEMBERED_COSTS: Final = 8


class SaveReason(Flag):
    """Why a step is to be saved. Several reasons may hold at once; without one, the value is false.

    ``SaveReason.DEADLINE in manager.save_reason(step)`` asks for one of them.
    """

    PERIOD = auto()
    """The step is a multiple of ``save_period``, or no rule was given."""
    INTERVAL = auto()
    """The last save was called ``save_interval`` seconds ago or earlier."""
    OVERHEAD = auto()
    """The saves so far, and one more, cost no more than ``max_overhead``."""
    DEADLINE = auto()
    """A later step may leave too little time for a last save before ``save_by``."""
    PREEMPTED = auto()
    """`CheckpointManager.preempted` is set, and nothing has been saved since."""


class Moment(NamedTuple):
    """A time, and the place of what happened then among what happened at the same time."""

    time: float
    number: int


class SaveSchedule:
    """The rules of one manager, and what they have to know about its saves. Used on the loop's thread only.

    Args:
        settings: The manager's options.
        clock: Returns a time in seconds, which never decreases. If None, the seconds since the epoch.

    Raises:
        ConfigError: ``save_by`` is a number that means a time long ago, or the clock cannot be called.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] | None = None) -> None:
        if clock is not None and not callable(clock):
            message = f"clock: expected a function that returns seconds, found {clock!r} ({type(clock).__qualname__})"
            raise ConfigError(message)
        save_by = settings.save_by
        if clock is None and isinstance(save_by, float) and save_by < _LONG_AGO:
            message = (
                f"save_by: {save_by} is a time in seconds since the epoch, long ago: for so many seconds from now pass"
                f" datetime.timedelta(seconds={save_by})"
            )
            raise ConfigError(message)
        self.now: Final = steady_clock() if clock is None else clock
        self._settings: Final = settings
        self._has_period: Final = settings.save_period is not None or not settings.has_rules_of_time
        self._opened_at: float | None = None
        self._save_by = math.inf
        self.is_preempted: Callable[[], bool] = lambda: False
        """Whether the program must leave soon."""
        self._preempted_at: Moment | None = None
        # Asking:
        self._asked_at: float | None = None
        self._longest_gap = 0.0
        # Saves, and when they were called:
        self._moments = 0
        self._calls: dict[Hashable, Moment] = {}
        self._accepted: dict[Hashable, Moment] = {}
        self._saved_at = Moment(-math.inf, 0)
        # Their cost and their duration:
        self._blocked_since = 0.0
        self._blocked = 0.0
        self._usual_cost: float | None = None
        self._costs = 0
        self._slowest: float | None = None

    # --- what happens -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Note that the manager was opened: the rules count from here."""
        now = self._opened_at = self.now()
        save_by = self._settings.save_by
        if isinstance(save_by, timedelta):
            self._save_by = now + save_by.total_seconds()
        elif save_by is not None:
            self._save_by = save_by.timestamp() if isinstance(save_by, datetime) else save_by

    def moment(self) -> Moment:
        """Return the present moment."""
        self._moments += 1
        return Moment(self.now(), self._moments)

    @contextmanager
    def calling(self, save: Hashable) -> Iterator[None]:
        """Note that a call of `save` holds its caller within the block."""
        self._look_for_preemption()
        called_at = self.moment()
        if not self._calls:
            self._blocked_since = called_at.time
        self._calls[save] = called_at
        try:
            yield
        finally:
            del self._calls[save]
            now = self.now()
            if not self._calls:
                self._blocked += now - self._blocked_since
            if save in self._accepted or self._saved_at >= called_at:
                self._note_cost(now - called_at.time)

    def accept(self, save: Hashable, began: Moment | None = None) -> None:
        """Note that a save, which is being called, was queued; it may have begun earlier than with this call."""
        self._accepted[save] = self._calls[save] if began is None else began

    def count(self, save: Hashable) -> None:
        """Note a save that a disabled manager leaves out, so that it is due when a save would be."""
        with self.calling(save):
            self.accept(save)
        self.end(save, is_saved=True)

    def end(self, save: Hashable, *, is_saved: bool, is_timed: bool = True) -> None:
        """Note that a save has ended, if it was accepted.

        Args:
            save: The save.
            is_saved: Whether it is durable.
            is_timed: Whether its duration tells how long a save takes.
        """
        called_at = self._accepted.pop(save, None)
        if called_at is None:
            return
        if is_saved:
            self._saved_at = max(self._saved_at, called_at)
        if is_timed:
            self._slowest = max(self._slowest or 0.0, self.now() - called_at.time)

    def _look_for_preemption(self) -> None:
        """Note when the program was first seen to be preempted."""
        if not self.is_preempted():
            self._preempted_at = None
        elif self._preempted_at is None:
            self._preempted_at = self.moment()

    def _note_cost(self, cost: float) -> None:
        """Update the usual cost of a save: the mean of some recent ones."""
        self._costs = min(self._costs + 1, _REMEMBERED_COSTS)
        usual = cost if self._usual_cost is None else self._usual_cost
        self._usual_cost = usual + (cost - usual) / self._costs

    # --- what is asked ------------------------------------------------------------------------------------------------

    def reason(self, step: int) -> SaveReason:
        """Return why a step is to be saved: the union of all rules that say so."""
        reason = SaveReason(0)
        if self._has_period and step % (self._settings.save_period or 1) == 0:
            reason |= SaveReason.PERIOD
        if self._opened_at is None:
            return reason
        now = self.now()
        last = max([self._saved_at, *self._accepted.values(), *self._calls.values()])
        self._look_for_preemption()
        if self._is_interval_over(now, last.time):
            reason |= SaveReason.INTERVAL
        if self._is_affordable(now, last.time):
            reason |= SaveReason.OVERHEAD
        if self._is_last_chance(now, last.time):
            reason |= SaveReason.DEADLINE
        if self._preempted_at is not None and last < self._preempted_at:
            reason |= SaveReason.PREEMPTED
        return reason

    def _is_interval_over(self, now: float, last: float) -> bool:
        interval = self._settings.save_interval
        assert self._opened_at is not None  # noqa: S101 - as asked before
        return interval is not None and now - max(last, self._opened_at) >= interval

    def _is_affordable(self, now: float, last: float) -> bool:
        """Whether one more save leaves the overhead within its bound.

        The first save is due at once, because only a save tells what saves cost. What was not spent, while nobody
        asked, is spent later, but by saves that are at least half as far apart as usual, and not by one at every step.
        """
        share = self._settings.max_overhead
        if share is None or self._calls:
            return False
        cost = self._usual_cost
        if cost is None:
            return True
        assert self._opened_at is not None  # noqa: S101 - as asked before
        is_spaced = now - last >= cost / share / 2
        return is_spaced and self._blocked + cost <= share * (now - self._opened_at + cost)

    def _is_last_chance(self, now: float, last: float) -> bool:
        """Whether the next call may come too late for a last save, and none has been made since that was first so."""
        gap = 0.0 if self._asked_at is None else now - self._asked_at
        self._longest_gap = max(self._longest_gap, gap)
        self._asked_at = now
        start_by = self._save_by - self._room(now) - self._longest_gap
        return now >= start_by > last

    def _room(self, now: float) -> float:
        """Return how much time a last save is given."""
        slowest = max([self._slowest or 0.0, *(now - called_at.time for called_at in self._accepted.values())])
        if self._slowest is None:
            assert self._opened_at is not None  # noqa: S101 - as asked before
            unknown = min(_ROOM_SHARE * max(self._save_by - self._opened_at, 0.0), _MAX_ROOM_SECONDS)
            return max(2 * slowest, unknown)
        return 2 * slowest


def steady_clock() -> Callable[[], float]:
    """Return a clock of seconds since the epoch that goes on evenly when the system's is set."""
    start = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: start + time.clock_gettime(time.CLOCK_BOOTTIME)
