"""Python's garbage collector beside a job that makes or walks many objects.

1. A collection of the oldest generation walks the whole heap, holding the GIL. What a job makes must not bring one
   about: neither while it runs, nor afterwards.
2. The young generations are collected as ever, in fractions of a millisecond: the program's garbage must go meanwhile.
3. What lasts becomes old before a walk over it takes long (`YoungReferences`).
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_YOUNG: Final = 0
_MIDDLE: Final = 1
_OLDEST: Final = 2
_MAX_POSTPONED: Final = 1000
"""Collections of the middle generation, of 7,000 new objects each, after which the oldest is collected all the same:
jobs may follow each other without a gap, and the program's garbage must not grow without end."""
_MAX_COUNT: Final = 64
"""Beyond so many, what jobs have added to a count is a small part of it, and is left there."""
_MANY_REFERENCES: Final = 1 << 16  # walked in less than a millisecond

_lock = threading.RLock()  # a collection may call anything
_jobs: dict[int, int] = {}  # how many each thread is within
_before = (0, 0, 0)  # the thresholds before the first of them
_meanwhile = (0, 0, 0)
_progress = 0  # how many objects the program has made since the last collection of the oldest generation
_rest = 0  # those of them that the collector's counts are too coarse for


@contextmanager
def young_collections_only() -> Iterator[None]:
    """Put off collections of the oldest generation.

    Re-entrant, from any threads. When the last one leaves, what was set before holds again, and the program is as near
    to its next collection of the oldest generation as its own objects have brought it.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


class YoungReferences:
    """Counts what a job puts into containers that last, and has them become old before a walk over them takes long."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def add(self, count: int) -> None:
        """Tell of a container that was made, and of how many references it has or will have."""
        self._count += count
        if self._count >= _MANY_REFERENCES:
            self._count = 0
            if gc.isenabled():
                gc.collect(_MIDDLE)


def _enter() -> None:
    global _before, _meanwhile, _progress  # noqa: PLW0603 - the collector is the process's
    with _lock:
        if not _jobs:
            _before = gc.get_threshold()
            young, middle, old = gc.get_count()
            per_young, per_middle = _per_collection()
            _progress = young + middle * per_young + old * per_middle + _rest
            is_due = old > _before[_OLDEST]  # the program has brought it about, and may never come to it between jobs
            _meanwhile = _before if is_due else (*_before[:_OLDEST], old + _MAX_POSTPONED)
            gc.set_threshold(*_meanwhile)
            gc.callbacks.append(_note)
        thread = threading.get_ident()
        _jobs[thread] = _jobs.get(thread, 0) + 1


def _leave() -> None:
    global _rest
    with _lock:
        thread = threading.get_ident()
        _jobs[thread] -= 1
        if not _jobs[thread]:
            del _jobs[thread]
        if _jobs:
            return
        _restore()
        per_young, per_middle = _per_collection()
        old, rest = divmod(_progress, per_middle)
        if not old < gc.get_count()[_OLDEST] <= _MAX_COUNT:
            return
        middle, _rest = divmod(rest, per_young)
    _set_counts(middle, old)  # without the lock: a collection may call anything, also what waits for who wants it


def _restore() -> None:
    gc.callbacks.remove(_note)
    if gc.get_threshold() == _meanwhile:  # else the program has set others, which hold
        gc.set_threshold(*_before)


def _after_fork() -> None:
    """In a child there are no jobs of other threads, nor anybody to give their lock back."""
    global _lock  # noqa: PLW0603 - as above
    _lock = threading.RLock()
    thread = threading.get_ident()
    own = _jobs.get(thread)
    if _jobs and own is None:
        _restore()
    _jobs.clear()
    if own is not None:
        _jobs[thread] = own


os.register_at_fork(after_in_child=_after_fork)


def _per_collection() -> tuple[int, int]:
    """Return after how many objects the youngest generation is collected, and the middle one."""
    young, middle, _ = _before
    return young + 1, (young + 1) * (middle + 2)


def _note(phase: str, info: dict[str, int]) -> None:
    """Count a collection that is not a job's: it runs in the thread whose object was one too many."""
    global _progress  # noqa: PLW0603 - as above
    if phase == "start" and info["generation"] == _OLDEST:
        _progress = 0
    elif phase == "start" and threading.get_ident() not in _jobs:
        _progress += _per_collection()[0]


def _set_counts(middle: int, old: int) -> None:
    """Set how near the middle and the oldest generation are to their next collection: so many of those below them.

    Where the program itself has frozen objects (`gc.freeze`), nothing is done: they would be thawed.
    """
    if gc.get_freeze_count() == 0:
        gc.collect(_MIDDLE)  # so that the program's young garbage does not become old
        gc.freeze()  # this alone sets the counts to 0, and
        gc.unfreeze()
        for _ in range(old):  # each collection adds to the next generation's
            gc.collect(_MIDDLE)
        for _ in range(middle):
            gc.collect(_YOUNG)
