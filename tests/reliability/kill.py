"""Rig: SIGKILL at every change of the disk."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from typing import TYPE_CHECKING

from .checks import check_now, prepare
from .disks import Change, ShimDisk
from .history import Event
from .processes import die, run_forked
from .rig import Result, Rig
from .workloads import make_workload, workload_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .workload import Known, Workload

_RANDOM_A_SEED = 20
_POINTS_MAX = 400
_TEARS = (1, 512, 4096, -1)  # a write is cut here; -1: before its last byte


class Kill(Rig):
    """Kills in the process, before a change is made, and in the middle of writes."""

    name = "kill"
    tries = (
        "The process is killed (SIGKILL) before every change of the disk in a workload, after the last one, and in"
        " the middle of writes; every third time, the recovering process is killed, too. Then another one recovers,"
        " lists, loads and saves."
    )
    cases = "kill points"
    quick = 200
    goal = 10_000

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each workload."""
        return workload_names(seed, randoms=_RANDOM_A_SEED)

    def run(self, unit: str, scratch: Path) -> Result:
        """Kill at one point after the other."""
        workload = make_workload(unit)
        chance = random.Random(unit)  # noqa: S311 - seeded on purpose
        source, record = prepare(workload, scratch)
        known: Known = {}
        result = Result()
        for number in range(_POINTS_MAX):
            if result.has_enough:
                break
            if not self._kill_at(workload, scratch, source, result, number, None, chance, known):
                break
            if number < len(record) and record[number].name == "write":
                for tear in _TEARS:
                    self._kill_at(workload, scratch, source, result, number, tear, chance, known)
        return result

    def _kill_at(  # noqa: PLR0913, PLR0917
        self,
        workload: Workload,
        scratch: Path,
        source: Path,
        result: Result,
        number: int,
        tear: int | None,
        chance: random.Random,
        known: Known,
    ) -> bool:
        """Try one point; return whether the workload came so far."""
        root, log = scratch / "root", scratch / "log"
        shutil.copytree(source, root)
        try:
            ended = run_forked(lambda: play_to_log(workload, root, log, killer(number, tear)))
            if tear is not None and not ended.is_killed:
                return False  # no write, or none that long
            where = f"kill before change {number}" if tear is None else f"kill in write {number}, at byte {tear}"
            history = workload.history(read_log(log))
            if not ended.is_killed and ended.status != 0:
                result.losses.append(f"{where}: the workload failed: {ended.error}")
                return False
            result.tried += ended.is_killed  # else it came to its end, and what it leaves is looked at as well
            result.count("in mid-write" if tear is not None else "before a change", ended.is_killed)
            if result.tried % 3 == 0:
                second = chance.randrange(12)
                where += f", and before change {second} of the next start"
                log.unlink(missing_ok=True)
                died = run_forked(lambda: play_to_log(workload.next_start(), root, log, killer(second, None)))
                for event in read_log(log):
                    history.take(event)
                if not died.is_killed and died.status != 0:
                    result.losses.append(f"{where}: the next start failed: {died.error}")
                result.tried += died.is_killed
                result.count("again in recovery", died.is_killed)
            loss = check_now(workload, root, history, known)
            if loss:
                result.losses.append(f"{loss}; {where}")
            return ended.is_killed
        finally:
            shutil.rmtree(root, ignore_errors=True)
            log.unlink(missing_ok=True)


def killer(number: int, tear: int | None) -> Callable[[Change], int | None]:
    """Return what kills at a change: before it, or in the middle of a write."""

    def kill(change: Change) -> int | None:
        if change.number == number:
            if tear is None:
                die()
            if change.name == "write" and tear < len(change.data) > 1:
                return tear if tear > 0 else len(change.data) - 1
            os._exit(0)
        if tear is not None and change.number > number:
            die()
        return None

    return kill


def play_to_log(workload: Workload, root: Path, log: Path, hook: Callable[[Change], int | None] | None) -> int:
    """Play a workload; its events go to a file as they happen, one write each. Return the number of changes."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    disk = ShimDisk(hook, keeps_data=True, **workload.disk_options())
    asyncio.run(workload.play(root, disk, lambda event: os.write(fd, f"{' '.join(map(str, event))}\n".encode())))
    return len(disk.record)


def read_log(log: Path) -> list[Event]:
    """Read what happened."""
    if not log.exists():
        return []
    words = [line.split() for line in log.read_text().splitlines()]
    return [Event(kind, int(step), int(version)) for kind, step, version in words]
