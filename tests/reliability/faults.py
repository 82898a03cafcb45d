"""Rig: a change of the disk fails, once or from then on."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncckpt

from .checks import check_now, version_of
from .crash_model import CrashModel, Shelf
from .disks import Change, ShimDisk
from .history import Event, History
from .processes import run_forked
from .rig import Result, Rig
from .workloads import Workload, fill, make_workload, play, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .workloads import Player

_RANDOM_A_SEED = 20
_POINTS_MAX = 300
_CODES = ("EIO", "ENOSPC", "EDQUOT", "EFBIG")
_NEVER_HARMLESS = ("create", "write", "sync", "pwrite64", "pwritev", "pwritev2")


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
        "Each change of the disk in a workload fails in turn with EIO, ENOSPC, EDQUOT or EFBIG, or EINTR, or is a short"
        " write, once and from then on. The failure must reach an awaiter, warn, or be harmless; what was acknowledged"
        " must load even if no sync that failed, and none after it on the same file, made anything durable; the next"
        " save on the healed disk must work, in the same process and in the next."
    )
    cases = "faults"
    quick = 800  # with those of the two rigs below, over 1,000
    goal = 5000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each workload."""
        return workload_names(seed, randoms=_RANDOM_A_SEED)

    def run(self, unit: str, scratch: Path) -> Result:
        """Fail one change after the other."""
        workload = make_workload(unit)
        source = scratch / "source"
        asyncio.run(fill(workload, source))
        result = Result()
        for number in range(_POINTS_MAX):
            if result.has_enough:
                break
            code = _CODES[(number + workload.seed) % len(_CODES)]
            kinds = [Fault(number, code, False), Fault(number, code, True), Fault(number, "EINTR", False)]  # noqa: FBT003
            kinds += [Fault(number, "short", False), Fault(number, "short", True)]  # noqa: FBT003
            came = [self._try(workload, scratch, source, fault, result) for fault in kinds]
            if not any(came):
                break
        return result

    def _try(self, workload: Workload, scratch: Path, source: Path, fault: Fault, result: Result) -> bool:
        root = scratch / "root"
        shutil.copytree(source, root)
        try:
            ended = run_forked(lambda: play_with_fault(workload, root, fault, scratch))
            if ended.error:
                result.tried += 1
                result.losses.append(f"{fault}: {ended.error}")
                return True
            name, outcome, problem, events = ended.value
            if name is None:
                return False
            if outcome == "nothing":
                return True  # no short write of what is no write
            result.tried += 1
            result.count(outcome)
            if problem is None:
                history = History.of(events)
                looked = run_forked(lambda: check_now(root / workload.below, history, workload.seed, workload.form))
                problem = looked.error or looked.value
            if problem:
                result.losses.append(f"{problem}; {fault}: {name}")
            return True
        finally:
            shutil.rmtree(root, ignore_errors=True)


def play_with_fault(
    workload: Workload, root: Path, fault: Fault, scratch: Path
) -> tuple[str | None, str, str | None, list[Event]]:
    """Play a workload on a disk with a fault, heal it, and save again.

    Returns:
        The change that failed, if there were so many; what came of it; what is wrong, if something is; what happened.
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
        if fault.kind == "EINTR" and change.name in ("create", "open_lock", "write", "sync", "sync_directory"):
            return None  # CPython itself goes on after EINTR: it never comes up here
        failed.append(change)
        code = getattr(errno, fault.kind)
        raise OSError(code, os.strerror(code), str(change.path))

    model = CrashModel(root)
    disk = ShimDisk(before, exchanges=workload.exchanges, keeps_data=True)

    def heal() -> None:
        nonlocal is_healed
        is_healed = True

    played = play_patiently(workload, root, disk, lambda _: bool(failed) and not is_healed, heal)
    if not failed:
        return (None if len(disk.record) <= fault.number else "later"), "nothing", None, played.events
    problem = (
        played.problem
        or _why_silent(fault, failed[0], played.errors, played.outcome)
        or _after_power_cut(model, disk.record, played.events, workload, scratch)
    )
    return str(failed[0]), played.outcome, problem, played.events


@dataclass(slots=True)
class Played:
    """What came of a workload on a disk that fails."""

    errors: list[Exception]
    outcome: str
    """`told` to an awaiter, `warned`, or `harmless`."""
    problem: str | None
    """What is wrong with what was found there and then, or with the next save."""
    events: list[Event]


def play_patiently(
    workload: Workload,
    root: Path,
    disk: ShimDisk,
    is_due: Callable[[Player], bool],
    heal: Callable[[], object],
) -> Played:
    """Play a workload on a disk that fails; heal the disk at the end of a session, look at all there is, and save.

    Args:
        workload: What.
        root: Where.
        disk: The disk.
        is_due: Whether the disk has failed, and is to be healed.
        heal: Heals it.
    """
    problem = None
    events = list(workload.before())

    async def look_and_save(player: Player, manager: asyncckpt.CheckpointManager) -> None:
        nonlocal problem
        if not is_due(player):
            return
        heal()
        await manager.refresh()
        found = {step: await version_of(manager, step, workload.seed) for step in manager.steps()}
        problem = History.of(events).judge(found)
        step = max(player.versions, default=1)
        try:
            await player.burst(manager, step, step + 1)
        except Exception as error:  # noqa: BLE001 - it is the loss
            problem = problem or f"the next save of the same manager on the healed disk failed: {error!r}"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", asyncckpt.CheckpointWarning)
        errors = asyncio.run(play(workload, root, disk, events.append, is_patient=True, before_closing=look_and_save))
    warned = [each for each in caught if "below the latest" not in str(each.message)]
    outcome = "told" if errors else "warned" if warned else "harmless"
    return Played(errors, outcome, problem, events)


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


def _after_power_cut(
    model: CrashModel, record: list[Change], events: list[Event], workload: Workload, scratch: Path
) -> str | None:
    """Cut the power, on a disk that keeps nothing but what was synced, and say what is lost."""
    for change in record:
        model.apply(change)
    state = model.certain()
    shelf = Shelf(scratch / f"shelf-{os.getpid()}", model.store)
    root = scratch / f"cut-{os.getpid()}"
    shelf.make(state, root)
    loss = check_now(root / workload.below, History.of(events), workload.seed, workload.form)
    shutil.rmtree(root)
    return None if loss is None else f"false acknowledgment: {loss}, if the power is cut then"


def _why_silent(fault: Fault, failed: Change, errors: list[Exception], outcome: str) -> str | None:
    if fault.kind != "short":
        return why_silent(failed.name, errors, outcome)
    if not fault.is_lasting:
        return None if outcome == "harmless" else f"a short write is no failure, but was {outcome}: {errors}"
    return why_silent("short", errors, outcome)
