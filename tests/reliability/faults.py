"""Rig: a change of the disk fails, once or from then on."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import traceback
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncckpt

from .changes import is_made_good, of_change
from .checks import check_now, prepare
from .crash_model import CrashModel
from .disks import Change, ShimDisk
from .rig import Result, Rig
from .workload import Healing
from .workloads import make_workload, split_unit, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .history import Event
    from .workload import Known, Workload

_RANDOM_A_SEED = 20
_POINTS_MAX = 300
CODES = ("EIO", "ENOSPC", "EDQUOT", "EFBIG")
OTHERS = "others"
_SAMPLE = "sample"
_SYNCS = "syncs"
_SAMPLED = 7  # no multiple of the number of errnos, so that all come up
_RETRIED = ("create", "open_lock", "write", "truncate", "set_mode", "sync", "sync_directory")
"""Where CPython itself goes on after EINTR: it never comes up here."""
_NEVER_HARMLESS = (
    *("create", "write", "sync", "sync_directory"),
    *("openat", "pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync"),
)
"""What no program can do without, by the names of `DiskOps` and of system calls."""


_ACKNOWLEDGING = ("ack", "deleted")


class Fault(NamedTuple):
    """What fails."""

    number: int
    """Which change of the workload."""
    kind: str
    """An errno's name, or `short`: a write that takes some of the bytes and says so."""
    is_lasting: bool

    def __str__(self) -> str:
        """Name it."""
        return f"{self.kind} at change {self.number}{' and from then on' if self.is_lasting else ''}"


class Faults(Rig):
    """Errors from under the library, at its own disk operations."""

    name = "fault"
    tries = (
        "Each change of the disk in a workload fails in turn with EIO, ENOSPC, EDQUOT or EFBIG, or EINTR, or is a"
        " short write, once and from then on. The failure must reach an awaiter, warn, or be harmless; what was"
        " acknowledged must load even if neither a failed sync nor any later one on the same file made anything"
        " durable; the next save on the healed disk must work, in the same process and in the next. Only an"
        " abandoned operation that nothing depends on, and a write that was repeated, may fail silently."
    )
    cases = "faults"
    quick = 1000
    goal = 5000

    def units(self, seed: int) -> Iterator[str]:
        """Give two units for each workload: at each change one errno, and there all the others."""
        for name in workload_names(seed, randoms=_RANDOM_A_SEED):
            yield from (name, f"{name}/{OTHERS}")

    def quick_units(self, seed: int) -> Iterator[str]:
        """Give a sample of the changes of each workload."""
        return (f"{name}/{_SAMPLE}" for name in workload_names(seed, randoms=_RANDOM_A_SEED))

    def run(self, unit: str, scratch: Path) -> Result:
        """Fail one change after the other."""
        name, share = split_unit(unit)
        workload = make_workload(name)
        source, record = prepare(workload, scratch)
        trial = _Trial(workload, scratch, source)
        first, step = (zlib.crc32(unit.encode()) % _SAMPLED, _SAMPLED) if share == _SAMPLE else (0, 1)
        for number in range(first, _POINTS_MAX, step):
            if trial.result.has_enough:
                break
            changed = record[number].name if number < len(record) else ""
            if share == _SYNCS and changed not in ("sync", "sync_directory", ""):  # "" is behind the last
                continue
            codes = codes_at(number + workload.seed, share)
            came = [trial.run(fault) for fault in _faults(number, changed, codes, is_rest=share == OTHERS)]
            if not any(came):
                break
        return trial.result


def codes_at(number: int, share: str) -> tuple[str, ...]:
    """Return which errnos a share tries at a change: one of them in turn, or the others."""
    turn = number % len(CODES)
    return (*CODES[turn + 1 :], *CODES[:turn]) if share == OTHERS else (CODES[turn],)


def _faults(number: int, changed: str, codes: tuple[str, ...], *, is_rest: bool) -> Iterator[Fault]:
    for code in codes:
        yield Fault(number, code, is_lasting=False)
        yield Fault(number, code, is_lasting=True)
    if not is_rest:
        if changed not in _RETRIED:
            yield Fault(number, "EINTR", is_lasting=False)
        if changed == "write":
            yield Fault(number, "short", is_lasting=False)
            yield Fault(number, "short", is_lasting=True)


class _Trial:
    """The faults of one workload."""

    def __init__(self, workload: Workload, scratch: Path, source: Path) -> None:
        self.workload = workload
        self.result = Result()
        self._scratch = scratch
        self._source = source
        self._known: Known = {}

    def run(self, fault: Fault) -> bool:
        """Try a fault; return whether the workload came so far."""
        workload, result, root = self.workload, self.result, self._scratch / "root"
        shutil.copytree(self._source, root)
        try:
            try:
                failed, played, record = play_with_fault(workload, root, fault)
            except Exception:  # noqa: BLE001 - it is the loss
                result.tried += 1
                result.losses.append(f"{fault}: {traceback.format_exc()}")
                return True
            if failed is None:
                return (
                    len(record) > fault.number
                )  # or threads took turns in another way: no short write of what is no write
            result.tried += 1
            result.count(played.outcome)
            problem = (
                played.problem
                or self._after_power_cut(root, record, played, failed.number)
                or check_now(workload, root, workload.history(played.events), self._known)
            )
            if problem:
                result.losses.append(f"{problem}; {fault}: {failed}")
            return True
        finally:
            shutil.rmtree(root, ignore_errors=True)

    def _after_power_cut(self, root: Path, record: list[Change], played: Played, failed: int) -> str | None:
        """Cut the power, on a disk that keeps nothing but what was synced, and say what is lost.

        It is cut when something is acknowledged for the first time after the fault, and in the end: a later save may
        make good what was no more than claimed.
        """
        model = CrashModel(self._source, root)
        cut = self._scratch / "cut"
        acknowledged = (
            at + 1
            for at, (event, moment) in enumerate(zip(played.events, played.moments, strict=True))
            if event.kind in _ACKNOWLEDGING and moment > failed
        )
        applied = 0
        for count in dict.fromkeys([*itertools.islice(acknowledged, 1), len(played.events)]):
            until = len(record) if count == len(played.events) else played.moments[count - 1]
            for change in record[applied:until]:
                model.apply(change)
            applied = until
            model.make(model.certain(), cut)
            history = self.workload.history(played.events[:count])
            loss = check_now(self.workload, cut, history, self._known, saves=False)
            shutil.rmtree(cut)
            if loss is not None:
                return f"false acknowledgment: {loss}, if the power is cut then"
        return None


def play_with_fault(workload: Workload, root: Path, fault: Fault) -> tuple[Change | None, Played, list[Change]]:
    """Play a workload on a disk with a fault, heal it, and save again.

    Returns:
        The change that failed, or the first one, if there were so many; what came of it; and all changes.
    """
    failed: list[Change] = []
    is_healed = False

    def before(change: Change) -> int | None:
        if is_healed or change.number < fault.number or (failed and not fault.is_lasting):
            return None
        if fault.kind == "short":
            if change.name != "write" or len(change.data) < 2:
                return None
            failed.append(change)
            return max(1, len(change.data) * 2 // 3)
        if fault.kind == "EINTR" and change.name in _RETRIED:
            return None
        failed.append(change)
        code = getattr(errno, fault.kind)
        raise OSError(code, os.strerror(code), str(change.path))

    disk = ShimDisk(before, keeps_data=True, **workload.disk_options())

    def heal() -> None:
        nonlocal is_healed
        is_healed = True

    played = play_patiently(workload, root, disk, lambda _: bool(failed) and not is_healed, heal)
    changes = [of_change(each) for each in disk.record]
    for each in failed:
        if not workload.is_tidying(changes, each.number) and not is_made_good(changes, each.number):
            played.problem = played.problem or _why_silent(fault, each, played.errors, played.outcome)
    return failed[0] if failed else None, played, disk.record


@dataclass(slots=True)
class Played:
    """What came of a workload on a disk that fails."""

    errors: list[Exception]
    outcome: str
    """`told` to an awaiter, `warned`, or `harmless`."""
    problem: str | None
    """What is wrong with what was found there and then, or with the next save."""
    events: list[Event]
    moments: list[int]
    """How many changes had been asked for when each event happened."""


def play_patiently(
    workload: Workload,
    root: Path,
    disk: ShimDisk,
    is_due: Callable[[list[Exception]], bool],
    heal: Callable[[], object],
) -> Played:
    """Play a workload on a disk that fails; heal the disk at the end of a session, look at all there is, and save.

    Args:
        workload: What.
        root: Where.
        disk: The disk.
        is_due: Whether the disk has failed, and is to be healed, given the errors so far.
        heal: Heals it.
    """
    events: list[Event] = []
    moments: list[int] = []

    def log(event: Event) -> None:
        events.append(event)
        moments.append(len(disk.record))

    healing = Healing(is_due, heal, lambda found: workload.history(events).judge(found))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", asyncckpt.CheckpointWarning)
        errors = asyncio.run(workload.play(root, disk, log, is_patient=True, healing=healing))
    warned = [each for each in caught if "below the latest" not in str(each.message)]
    outcome = "told" if errors else "warned" if warned else "harmless"
    return Played(errors, outcome, healing.problem, events, moments)


def why_silent(failed: str, errors: list[Exception], outcome: str) -> str | None:
    """Say what is wrong with how a failure was told: of which change, with which errors, and what came of it."""
    for error in errors:
        cause: Any = error
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        while cause.__cause__ is not None and not isinstance(cause, OSError):
            cause = cause.__cause__
        if not isinstance(cause, OSError):
            return f"what was told is no OSError, nor comes from one: {error!r}"
    if outcome == "harmless" and failed in _NEVER_HARMLESS:
        return f"a failed {failed} of a file went by in silence"
    return None


def _why_silent(fault: Fault, failed: Change, errors: list[Exception], outcome: str) -> str | None:
    if fault.kind != "short":
        return why_silent(failed.name, errors, outcome)
    if not fault.is_lasting:
        return None if outcome == "harmless" else f"a short write is no failure, but was {outcome}: {errors}"
    return why_silent("short", errors, outcome)
