"""Processes that a rig starts for one case: forked, so that nothing has to be imported again."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    """Its exit status; of a signal, the negative number."""
    value: Any
    """What the function returned, if it did."""
    error: str
    """The traceback, if it raised."""

    @property
    def is_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


def run_forked(function: Callable[[], Any]) -> Ended:
    """Run a function in a process of its own. The caller must have no other threads."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_child(function, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    value, error = pickle.loads(data) if data else (None, "")  # noqa: S301 - our own child's
    return Ended(status, value, error)


def _be_child(function: Callable[[], Any], pipe: int) -> NoReturn:
    status = 1
    try:
        try:
            value, error = function(), ""
            status = 0
        except BaseException:  # noqa: BLE001 - it is told
            value, error = None, traceback.format_exc()
        with os.fdopen(pipe, "wb") as file:
            pickle.dump((value, error), file)
    finally:
        os._exit(status)


def die() -> NoReturn:
    """End this process as a kill from outside does: at once, with nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)
