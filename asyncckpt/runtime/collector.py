"""Keep Python's garbage collector from stalling the program while a job makes or walks many objects.

1. A collection of the oldest generation walks the whole heap while it holds the GIL. The objects that a job makes must
   not trigger one, neither during the job nor afterwards.
2. The young generations are collected as usual, in fractions of a millisecond, so that the program's garbage is freed.
3. Objects that last are moved to an older generation before walking them takes long (`YoungReferences`).

How the generations and their thresholds work: https://docs.python.org/3/library/gc.html#gc.set_threshold.
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
"""Collections of the middle generation (7,000 new objects each) after which the oldest one is collected nevertheless,
because jobs may follow each other without a gap, and the program's garbage must not grow without bound."""
_MAX_COUNT: Final = 64
"""The greatest count that is set back when the last job ends; jobs have contributed little to a greater one."""
_MANY_REFERENCES: Final = 1 << 16  # walked in less than a millisecond

_lock = threading.RLock()  # re-entrant, because a collection may run any code
_jobs: dict[int, int] = {}  # by thread, how many `young_collections_only` blocks it is in
_before = (0, 0, 0)  # the thresholds before the first block
_meanwhile = (0, 0, 0)  # the thresholds set while there are any
_progress = 0  # how many objects the program itself has made since the last collection of the oldest generation
_rest = 0  # those of them that the collector's counts are too coarse to express


@contextmanager
def young_collections_only() -> Iterator[None]:
    """Postpone collections of the oldest generation.

    Blocks may be nested, in any threads. When the last one ends, the thresholds from before are restored, and the
    collector's counts are set as if only the program's own objects had been made.
    """
    _enter()
    try:
        yield
    finally:
        _leave()


class YoungReferences:
    """Counts the references that a job puts into lasting containers, and collects them before that takes long."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        self._count = 0

    def add(self, count: int) -> None:
        """Report a new container that has, or will have, `count` references."""
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
            # If the program's own objects have made a collection due, let it happen: there may be no gap between jobs.
            is_due = old > _before[_OLDEST]
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
    _set_counts(middle, old)  # without the lock: a collection may run any code, which may wait for another thread


def _restore() -> None:
    gc.callbacks.remove(_note)
    if gc.get_threshold() == _meanwhile:  # else the program has set its own meanwhile
        gc.set_threshold(*_before)


def _after_fork() -> None:
    """Reset the state in a forked child, which has only one thread; another thread may have held the lock."""
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
    """Return after how many new objects the youngest generation is collected, and after how many the middle one."""
    young, middle, _ = _before
    return young + 1, (young + 1) * (middle + 2)


def _note(phase: str, info: dict[str, int]) -> None:
    """Count the program's collections; a collection runs in the thread whose new object triggered it."""
    global _progress  # noqa: PLW0603 - as above
    if phase == "start" and info["generation"] == _OLDEST:
        _progress = 0
    elif phase == "start" and threading.get_ident() not in _jobs:
        _progress += _per_collection()[0]


def _set_counts(middle: int, old: int) -> None:
    """Set the collector's counts of the middle and the oldest generation.

    If the program has frozen objects (`gc.freeze`), nothing is done, because this would unfreeze them.
    """
    if gc.get_freeze_count() == 0:
        gc.collect(_MIDDLE)  # so that the program's young garbage does not become old
        gc.freeze()  # only this sets the counts to 0
        gc.unfreeze()
        for _ in range(old):  # each collection increments the count of the next generation
            gc.collect(_MIDDLE)
        for _ in range(middle):
            gc.collect(_YOUNG)
