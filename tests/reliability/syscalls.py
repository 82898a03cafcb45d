"""Rigs at the system call, through strace: kills, errors, and whether the disks of the other rigs see every change."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import shutil
import signal
import warnings
from typing import TYPE_CHECKING, NamedTuple

import asyncckpt

from .changes import is_made_good, of_call, of_change
from .checks import check_now, prepare
from .disks import ShimDisk
from .faults import OTHERS, codes_at, why_silent
from .kill import play_to_log, read_log
from .rig import Result, Rig
from .strace import Call, changes_below, missing_strace, traced
from .workloads import make_workload, split_unit, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .history import Event
    from .workload import Known, Workload

_RANDOM_A_SEED = 10
_TURNS = 3  # how often a call is aimed at


class Point(NamedTuple):
    """A system call of a workload."""

    call: str
    number: int
    """Of this name, in its thread."""
    text: str


class _Traced(Rig):
    """What the rigs below have in common."""

    def missing(self) -> str | None:
        """Ask for strace."""
        return missing_strace()

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each workload."""
        return workload_names(seed, randoms=_RANDOM_A_SEED)

    def run(self, unit: str, scratch: Path) -> Result:
        """Play a workload again and again under strace."""
        result = Result()
        name, share = split_unit(unit)
        self.sweep(_Stage(make_workload(name), scratch, share), result)
        return result

    def sweep(self, stage: _Stage, result: Result) -> None:
        """Try every call."""
        raise NotImplementedError


class _Stage:
    """A workload that is played under strace, as often as wanted, each time from the beginning."""

    def __init__(self, workload: Workload, scratch: Path, share: str) -> None:
        self.workload = workload
        self.share = share
        self.root = scratch / "root"
        self.told = scratch / "told"
        self._scratch = scratch
        self._source, _ = prepare(workload, scratch)
        self._known: Known = {}

    def play(self, function: Callable[[], object], *inject: str) -> tuple[int, list[Call]]:
        """Call what plays it; return how the process ended, and its changes of the directory."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._source, self.root)
        self.told.unlink(missing_ok=True)
        status, calls = traced(function, self._scratch, inject=inject)
        return status, changes_below(calls, self.root)

    def play_to_log(self, *inject: str) -> tuple[int, list[Call]]:
        """Play it, its events going to a file."""
        return self.play(lambda: play_to_log(self.workload, self.root, self.told, None), *inject)

    def points(self) -> list[Point]:
        """Record it, and give its changing calls, each name and number once."""
        _, calls = self.play_to_log()
        found = {(call.name, call.number): call.text for call in calls}
        return [Point(name, number, text) for (name, number), text in found.items()]

    def check(self, events: list[Event]) -> str | None:
        """Look at what is left; return what is wrong, if something is."""
        return check_now(self.workload, self.root, self.workload.history(events), self._known)


class SyscallKill(_Traced):
    """Kills from outside."""

    name = "kill-syscall"
    tries = (
        "The process is killed by strace on entering every system call of a workload that changes the disk; another"
        " recovers, lists, loads and saves."
    )
    cases = "kill points"
    quick = 100
    goal = 2000

    def sweep(self, stage: _Stage, result: Result) -> None:
        """Kill at every call."""
        died_at: set[int] = set()
        points = stage.points()
        for point in points:
            for _ in range(_TURNS):
                status, done = stage.play_to_log(f"{point.call}:signal=KILL:when={point.number}")
                if status == -signal.SIGKILL and len(done) not in died_at:
                    break
            else:
                result.count("not hit")  # threads took turns in another way than in the recording
                continue
            died_at.add(len(done))
            result.tried += 1
            result.count(done[-1].name if done else point.call)  # one that came before any other may leave no line
            loss = stage.check(read_log(stage.told))
            if loss:
                result.losses.append(f"{loss}; kill by strace at {done[-1].text if done else point.call}")


class SyscallFault(_Traced):
    """Errors from outside."""

    name = "fault-syscall"
    tries = (
        "Every system call of a workload that changes the disk is made to fail by strace with EIO, ENOSPC, EDQUOT"
        " or EFBIG, once and from then on, and with EINTR once. The failure must reach an awaiter, warn, or be"
        " harmless; what was acknowledged must load, and another process must recover and save."
    )
    cases = "faults"
    quick = 150
    goal = 2000
    seconds = 300.0

    def units(self, seed: int) -> Iterator[str]:
        """Give two units for each workload: at each call one errno, and there all the others."""
        for name in super().units(seed):
            yield from (name, f"{name}/{OTHERS}")

    def sweep(self, stage: _Stage, result: Result) -> None:
        """Fail every call."""
        for at, point in enumerate(stage.points()):
            hows = [
                f"error={code}:when={point.number}{more}" for code in codes_at(at, stage.share) for more in ("", "+")
            ]
            if stage.share != OTHERS:
                hows.append(f"error=EINTR:when={point.number}")
            for how in hows:
                status, calls = stage.play(
                    lambda: play_and_tell(stage.workload, stage.root, stage.told), f"{point.call}:{how}"
                )
                injected = [call for call in calls if "(INJECTED)" in call.text]
                if not injected:
                    continue  # it met another thread, in a call that changes nothing
                result.tried += 1
                if status != 0:
                    result.losses.append(f"the process ended with {status}; {point.call}:{how}: {point.text}")
                    continue
                errors, outcome, events = pickle.loads(stage.told.read_bytes())  # noqa: S301 - our own child's
                result.count(outcome)
                is_retried = "EINTR" in how and not injected[0].name.startswith(("rename", "unlink", "rmdir", "mkdir"))
                problem = (
                    (None if outcome == "harmless" else f"EINTR is to be tried again, but was {outcome}: {errors}")
                    if is_retried
                    else why_silent(injected[0].name, errors, outcome)
                )
                changes, failed_at = [of_call(call) for call in calls], calls.index(injected[0])
                if stage.workload.is_tidying(changes, failed_at) or is_made_good(changes, failed_at):
                    problem = None
                loss = problem or stage.check(events)
                if loss:
                    result.losses.append(f"{loss}; strace {how} at {injected[0].text}")


def play_and_tell(workload: Workload, root: Path, told: Path) -> None:
    """Play a workload patiently; leave errors, outcome and events in a file."""
    file = told.open("wb", buffering=0)  # now, before calls fail
    events: list[Event] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", asyncckpt.CheckpointWarning)
        disk = ShimDisk(**workload.disk_options())
        errors = asyncio.run(workload.play(root, disk, events.append, is_patient=True))
    warned = [each for each in caught if "below the latest" not in str(each.message)]
    outcome = "told" if errors else "warned" if warned else "harmless"
    file.write(pickle.dumps(([portable(error) for error in errors], outcome, events)))


def portable(error: BaseException) -> Exception:
    """Return the system's error that an error comes from, or the error in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    while error.__cause__ is not None and not isinstance(error, OSError):
        error = error.__cause__
    return OSError(error.errno, error.strerror) if isinstance(error, OSError) else RuntimeError(repr(error))


class Record(_Traced):
    """The other rigs see changes as the library asks for them: does it ask for all?"""

    name = "record"
    tries = (
        "The changes that the other rigs see through the library's own disk operations are compared, one by one and"
        " in order, with the system calls that strace sees: names, both paths of a rename, offsets, lengths and"
        " sizes. All calls that can change a file system are compared, wherever they come from."
    )
    cases = "system calls"
    quick = 300
    goal = 5000

    def sweep(self, stage: _Stage, result: Result) -> None:
        """Compare."""

        def record() -> None:
            disk = ShimDisk(keeps_data=True, **stage.workload.disk_options())
            asyncio.run(stage.workload.play(stage.root, disk, lambda _: None))
            stage.told.write_bytes(pickle.dumps(disk.record))

        _, calls = stage.play(record)
        asked = [of_change(change) for change in pickle.loads(stage.told.read_bytes())]  # noqa: S301 - our own child's
        asked = [each for each in asked if stage.root in (each.path, *each.path.parents)]
        done = [of_call(call) for call in calls]
        result.tried += len(done)
        for at, (one, other) in enumerate(itertools.zip_longest(asked, done)):
            if one is None or other is None or not one.equals(other):
                result.losses.append(f"change {at} was recorded as {one}, and made as {other}")
                break
