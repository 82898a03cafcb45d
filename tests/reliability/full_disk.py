"""Rig: disks that really are full, limits that really are met, and syncs that really fail."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

from . import directories, files
from .changes import is_made_good, of_change
from .checks import check_now, prepare
from .disks import ShimDisk
from .faults import Played, play_patiently, why_silent
from .fuse_disk import FuseDisk, enter_private_mounts, loop_mounted, why_unavailable
from .processes import run_forked
from .rig import Result, Rig
from .syscalls import portable
from .workloads import make_workload, workload_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .workload import Workload

_PAGE_NBYTES = 4096
_LIMITS = (0, 1, 10, 100, 300, 400, 511, 512, 513, 1000, 2000, 4095, 4096, 5000, 8192, 10_000, 20_000)
_MOST = 64
_WAYS = ("bytes", "inodes", "limit")
_CHECKPOINTS = ("save", "overwrite", "prune", "finalize")
_FILES = ("first", "update", "compact")


class FullDisk(Rig):
    """Real failures of real file systems."""

    name = "full-disk"
    tries = (
        "A workload on a small tmpfs that runs out of bytes, or of inodes, at every size; under every limit on the"
        " size of a file (RLIMIT_FSIZE, which cuts writes short before it fails them); and on ext4 over a FUSE disk"
        " whose flushes fail from the Nth on. Then room is made, or the disk is remounted: what was acknowledged"
        " loads, and the next save works."
    )
    cases = "failures"
    quick = 150
    goal = 1000
    seconds = 300.0

    def missing(self) -> str | None:
        """Ask for root, FUSE and the tools."""
        return why_unavailable("mount", "mkfs.ext4")

    def units(self, seed: int) -> Iterator[str]:
        """Give one unit for each workload and way to fail."""
        flushes = [f"flush:{directories.FORMS[seed % 2]}/{kind}/{seed}" for kind in _CHECKPOINTS]
        flushes += [f"flush:{files.FORMS[seed % 4]}/{kind}/{seed}" for kind in _FILES]
        names = list(workload_names(seed, randoms=4))
        others = [f"{_WAYS[(at + turn) % 3]}:{name}" for turn in range(3) for at, name in enumerate(names)]
        yield from flushes[:2]
        for number, unit in enumerate(others):
            yield unit
            if number % 3 == 0 and number // 3 + 2 < len(flushes):
                yield flushes[number // 3 + 2]

    def run(self, unit: str, scratch: Path) -> Result:
        """Fail a workload in one way, at each size."""
        how, name = unit.split(":")
        workload = make_workload(name)
        source, _ = prepare(workload, scratch)
        enter_private_mounts()
        result = Result()
        if how == "limit":
            for limit in _LIMITS:
                self._try(f"files of {limit} bytes", workload, scratch, source, result, _Limit(limit))
        elif how == "flush":
            for number in range(_MOST):
                if not self._try_flush(number, workload, scratch, source, result):
                    break
        else:
            for more in range(_MOST):
                if not self._try(f"{more} more {how}", workload, scratch, source, result, _Small(how, more)):
                    break
        return result

    def _try(  # noqa: PLR0913, PLR0917
        self, what: str, workload: Workload, scratch: Path, source: Path, result: Result, trouble: _Limit | _Small
    ) -> bool:
        """Try one size; return whether anything failed."""
        root = scratch / "root"
        root.mkdir()
        trouble.prepare(source, root)

        def play() -> Played:
            trouble.begin()
            disk = ShimDisk(**workload.disk_options())
            played = play_patiently(workload, root, disk, bool, trouble.end)
            trouble.end()
            played.errors = [portable(error) for error in played.errors]
            if any(change.has_failed and change.code != errno.ENOENT for change in disk.record):
                played.problem = played.problem or _why_silent(workload, disk, played)
            elif not played.errors:
                played.outcome = "nothing"
            return played

        try:
            ended = run_forked(play)
            if ended.value is not None and ended.value.outcome == "nothing" and not ended.value.problem:
                return False
            result.tried += 1
            self._judge(ended.value, ended.error, what, workload, root, result)
            return True
        finally:
            trouble.clear(root)
            shutil.rmtree(root)

    def _judge(  # noqa: PLR0913, PLR0917
        self, played: Played | None, error: str, what: str, workload: Workload, root: Path, result: Result
    ) -> None:
        if played is None:
            result.losses.append(f"{what}: {error}")
            return
        result.count(played.outcome)
        loss = played.problem or check_now(workload, root, workload.history(played.events))
        if loss:
            result.losses.append(f"{loss}; {what}; {played.errors}")

    def _try_flush(self, number: int, workload: Workload, scratch: Path, source: Path, result: Result) -> bool:
        """Let a disk's flushes fail from one on; return whether there were so many."""
        folder, mounted = scratch / "disk", scratch / "mounted"
        root = mounted / "root"  # ext4 has a lost+found beside it
        folder.mkdir()
        mounted.mkdir()
        backing = scratch / "backing"
        with backing.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(backing)], check=True, capture_output=True)  # noqa: S603, S607
        told = scratch / "played"

        def play(disk: FuseDisk) -> None:
            shim = ShimDisk(**workload.disk_options())
            played = play_patiently(workload, root, shim, lambda _: False, lambda: None)
            played.errors = [portable(error) for error in played.errors]
            if disk.failed_flushes():
                played.problem = played.problem or _why_silent(workload, shim, played)
            else:
                played.outcome = "nothing"
            told.write_bytes(pickle.dumps(played))

        try:
            with FuseDisk(folder, backing) as disk:
                with loop_mounted(disk.image, mounted, "ext4", "errors=remount-ro"):
                    shutil.copytree(source, root)
                    os.sync()
                    disk.fail_fsync(after=number)
                    ended = run_forked(lambda: play(disk))
                    disk.heal()
                played: Played | None = pickle.loads(told.read_bytes()) if told.exists() else None  # noqa: S301
                if played is not None and played.outcome == "nothing" and not played.problem:
                    return False
                result.tried += 1
                result.count("failing flushes")
                with loop_mounted(disk.image, mounted, "ext4", ""):
                    self._judge(played, ended.error, f"flushes fail from {number} on", workload, root, result)
            return True
        finally:
            told.unlink(missing_ok=True)
            shutil.rmtree(folder)
            mounted.rmdir()


def _why_silent(workload: Workload, disk: ShimDisk, played: Played) -> str | None:
    """Say what is wrong with how a failed flush of the disk was told, if something is."""
    failed = next((each for each in disk.record if each.has_failed and each.code != errno.ENOENT), None)
    if failed is None:
        return "a flush of the disk failed, and no change of a file or directory did"
    changes = [of_change(each) for each in disk.record]
    if workload.is_tidying(changes, failed.number) or is_made_good(changes, failed.number):
        return None
    return why_silent(failed.name, played.errors, played.outcome)


class _Limit:
    """No file may be larger."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes

    def prepare(self, source: Path, root: Path) -> None:
        """Make the directory."""
        shutil.copytree(source, root, dirs_exist_ok=True)

    def begin(self) -> None:
        """Set the limit, of this process."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._nbytes, resource.RLIM_INFINITY))

    def end(self) -> None:
        """Lift it."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def clear(self, root: Path) -> None:
        """Nothing is left to do."""


class _Small:
    """A file system with so many bytes or inodes more than it needs before the workload begins."""

    def __init__(self, what: str, more: int) -> None:
        self._what = what
        self._more = more
        self._root: Path

    def prepare(self, source: Path, root: Path) -> None:
        """Mount it, and make the directory in it."""
        self._root = root
        _mount("-t", "tmpfs", "-o", "size=64m,nr_inodes=10000", "tmpfs", str(root))
        shutil.copytree(source, root, dirs_exist_ok=True)

    def begin(self) -> None:
        """Leave only so much room."""
        state = os.statvfs(self._root)
        if self._what == "bytes":
            used = (state.f_blocks - state.f_bfree) * state.f_frsize
            option = f"size={max(used + self._more * _PAGE_NBYTES, _PAGE_NBYTES)}"
        else:
            option = f"nr_inodes={state.f_files - state.f_ffree + self._more}"
        _mount("-o", f"remount,{option}", str(self._root))

    def end(self) -> None:
        """Make room again."""
        _mount("-o", "remount,size=64m,nr_inodes=10000", str(self._root))

    def clear(self, root: Path) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(root)], check=True)  # noqa: S603, S607


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)  # noqa: S603, S607
