"""Rigs at the system call, through strace: kills, errors, and whether the disks of the other rigs see every change."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import warnings
from typing import TYPE_CHECKING, NamedTuple

import asyncckpt

from .checks import check_now
from .disks import Change, ShimDisk
from .faults import why_silent
from .history import History
from .kill import play_to_log, read_log
from .processes import run_forked
from .rig import Result, Rig
from .strace import Call, changes_below, missing_strace, traced
from .workloads import Workload, fill, make_workload, play, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

_RANDOM_A_SEED = 10


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
        workload = make_workload(unit)
        source, root = scratch / "source", scratch / "root"
        asyncio.run(fill(workload, source))
        result = Result()

        def again(function: Callable[[], object], *inject: str) -> tuple[int, list[Call]]:
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(source, root)
            (scratch / "log").unlink(missing_ok=True)
            return traced(function, scratch, inject=inject)

        shutil.copytree(source, root)
        asyncio.run(
            play(workload, root, ShimDisk(exchanges=workload.exchanges), lambda _: None)
        )  # imports what it needs
        self.sweep(workload, root, scratch, again, result)
        return result

    def sweep(
        self,
        workload: Workload,
        root: Path,
        scratch: Path,
        again: Callable[..., tuple[int, list[Call]]],
        result: Result,
    ) -> None:
        """Try every call."""
        raise NotImplementedError


def points(again: Callable[..., tuple[int, list[Call]]], workload: Workload, root: Path, log: Path) -> list[Point]:
    """Record a workload, and give its changing calls, each name and number once."""
    _, calls = again(lambda: play_to_log(workload, root, log, None))
    found = {(call.name, call.number): call.text for call in changes_below(calls, root)}
    return [Point(name, number, text) for (name, number), text in found.items()]


class SyscallKill(_Traced):
    """Kills from outside."""

    name = "kill-syscall"
    tries = (
        "The process is killed by strace on entering every system call of a workload that changes the disk; a fresh one"
        " recovers, lists, loads and saves."
    )
    cases = "kill points"
    quick = 100
    goal = 2000

    def sweep(
        self,
        workload: Workload,
        root: Path,
        scratch: Path,
        again: Callable[..., tuple[int, list[Call]]],
        result: Result,
    ) -> None:
        """Kill at every call."""
        log = scratch / "log"
        died_at: set[str] = set()
        for point in points(again, workload, root, log):
            inject = f"{point.call}:signal=KILL:when={point.number}"
            status, calls = again(lambda: play_to_log(workload, root, log, None), inject)
            done = changes_below(calls, root)
            if status != -9 or not done or str(done[-1].text) in died_at:
                continue  # threads took turns in another way than in the recording
            died_at.add(str(done[-1].text))
            result.tried += 1
            result.count(done[-1].name)
            history = History.of([*workload.before(), *read_log(log)])
            looked = run_forked(lambda h=history: check_now(root / workload.below, h, workload.seed, workload.form))  # type: ignore[misc]
            loss = looked.error or looked.value
            if loss:
                result.losses.append(f"{loss}; kill by strace at {done[-1].text}")


class SyscallFault(_Traced):
    """Errors from outside."""

    name = "fault-syscall"
    tries = (
        "Every system call of a workload that changes the disk is made to fail by strace with EIO, ENOSPC, EDQUOT or"
        " EFBIG, once and from then on, and with EINTR once. The failure must reach an awaiter, warn, or be harmless;"
        " what was acknowledged must load, and a fresh process must recover and save."
    )
    cases = "faults"
    quick = 150
    goal = 2000
    seconds = 300.0

    def sweep(
        self,
        workload: Workload,
        root: Path,
        scratch: Path,
        again: Callable[..., tuple[int, list[Call]]],
        result: Result,
    ) -> None:
        """Fail every call."""
        log = scratch / "log"
        for at, point in enumerate(points(again, workload, root, log)):
            code = ("EIO", "ENOSPC", "EDQUOT", "EFBIG")[at % 4]
            for how in (
                f"error={code}:when={point.number}",
                f"error={code}:when={point.number}+",
                f"error=EINTR:when={point.number}",
            ):
                told = scratch / "told"
                with told.open("wb", buffering=0) as file:
                    status, calls = again(lambda t=file: play_and_tell(workload, root, t), f"{point.call}:{how}")
                injected = [call for call in changes_below(calls, root) if "(INJECTED)" in call.text]
                if not injected:
                    continue  # it met another thread, in a call that changes nothing
                result.tried += 1
                if status != 0:
                    result.losses.append(f"the process ended with {status}; {point.call}:{how}: {point.text}")
                    continue
                errors, outcome, events = pickle.loads(told.read_bytes())  # noqa: S301 - our own child's
                result.count(outcome)
                is_retried = "EINTR" in how and not injected[0].name.startswith(("rename", "unlink", "rmdir", "mkdir"))
                problem = (
                    (None if outcome == "harmless" else f"EINTR is to be tried again, but was {outcome}: {errors}")
                    if is_retried
                    else why_silent(injected[0].name, errors, outcome)
                )
                history = History.of(events)
                looked = run_forked(lambda h=history: check_now(root / workload.below, h, workload.seed, workload.form))  # type: ignore[misc]
                loss = problem or looked.error or looked.value
                if loss:
                    result.losses.append(f"{loss}; strace {how} at {injected[0].text}")


def play_and_tell(workload: Workload, root: Path, told: FileIO) -> None:
    """Play a workload patiently; leave errors, outcome and events in a file, which is open already."""
    events = workload.before()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", asyncckpt.CheckpointWarning)
        disk = ShimDisk(exchanges=workload.exchanges)
        errors = asyncio.run(play(workload, root, disk, events.append, is_patient=True))
    warned = [each for each in caught if "below the latest" not in str(each.message)]
    outcome = "told" if errors else "warned" if warned else "harmless"
    told.write(pickle.dumps(([portable(error) for error in errors], outcome, events)))


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
        "The changes that the other rigs see through the library's own disk operations are compared, one by one and in"
        " order, with the system calls that strace sees."
    )
    cases = "system calls"
    quick = 300
    goal = 5000

    def sweep(
        self,
        workload: Workload,
        root: Path,
        scratch: Path,
        again: Callable[..., tuple[int, list[Call]]],
        result: Result,
    ) -> None:
        """Compare."""
        told = scratch / "told"

        def record() -> None:
            disk = ShimDisk(exchanges=workload.exchanges)
            asyncio.run(play(workload, root, disk, lambda _: None))
            told.write_bytes(pickle.dumps(disk.record))

        _, calls = again(record)
        asked = [_of_change(change) for change in pickle.loads(told.read_bytes())]  # noqa: S301 - our own child's
        asked = [each for each in asked if root in (each[1], *each[1].parents)]
        done = [_of_call(call) for call in changes_below(calls, root)]
        result.tried += len(done)
        if asked != done:
            at = next((at for at, pair in enumerate(zip(asked, done, strict=False)) if pair[0] != pair[1]), "the end")
            result.losses.append(f"{len(asked)} changes recorded, {len(done)} made; the first difference at {at}")


_CALLED = {
    "create": "open",
    "open_lock": "open",
    "openat": "open",
    "pwritev2": "write",
    "pwritev": "write",
    "sync": "fsync",
    "sync_directory": "fsync",
    "exchange": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "mkdirat": "mkdir",
    "unlinkat": "unlink",
}


def _of_change(change: Change) -> tuple[str, Path]:
    return _CALLED.get(change.name, change.name), change.path


def _of_call(call: Call) -> tuple[str, Path]:
    paths = [path for path in call.paths if path.is_absolute()]
    if call.name in ("openat", "mkdirat", "unlinkat", "renameat", "renameat2"):
        paths = paths[1:]  # behind the descriptor of the working directory
    return _CALLED.get(call.name, call.name), paths[0]
