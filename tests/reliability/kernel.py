"""Rig 4: power cuts of real file systems. The kernel writes to a disk that logs; what the log leaves is mounted again.

1. A workload plays on ext4 or xfs, on a loop device over a `FuseDisk`, whose log then holds every write, every flush,
   and what the program knew between them.
2. A power cut is a place in the log. The disk holds what was written before the last flush; of what was written since,
   page by page, everything (a disk that keeps the order) or any subset (one that does not).
3. Each such disk is mounted, so that the kernel's own journal recovers it, and looked at as a program does that starts
   again. What must be there follows from what was acknowledged before the cut.

With a saver that leaves a sync out, the same rig must find losses: `SkipsFileSync` and `SkipsDirectorySync` show it.
They ask for no write-back, either, as ours does of small files before it syncs them: where ext4 has begun to write a
file, the next commit of its journal, which any sync of a directory makes, takes its data along, synced or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import mmap
import os
import random
import shutil
import subprocess
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest import mock

from . import directories, files
from .checks import check_now
from .disks import ShimDisk
from .fuse_disk import Flush, FuseDisk, Mark, Write, enter_private_mounts, loop_mounted, why_unavailable
from .history import Event
from .rig import OURS, Result, Rig
from .workloads import make_workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .fuse_disk import Record

PAGE: Final = 4096
_ZEROS: Final = bytes(PAGE)
STATES: Final = 60  # of a unit
_SAVES_EVERY: Final = 3  # states that are looked at, to one that is saved into as well


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A kind of file system, and how it is mounted."""

    fstype: str
    nbytes: int
    make: tuple[str, ...]
    options: str


_EXT4: Final = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,nodiscard")
FILE_SYSTEMS: Final = {
    "ext4-ordered": FileSystem("ext4", 24 << 20, _EXT4, "data=ordered"),
    "ext4-writeback": FileSystem("ext4", 24 << 20, _EXT4, "data=writeback"),
    "ext4-journal": FileSystem("ext4", 24 << 20, _EXT4, "data=journal"),
    "xfs": FileSystem("xfs", 320 << 20, ("mkfs.xfs", "-q", "-f", "-K"), "nouuid"),
}


class SkipsFileSync(ShimDisk):
    """A disk that syncs no file: the mistake that most savers make."""

    def sync(self, fd: int) -> None:
        """Do nothing."""


class SkipsDirectorySync(ShimDisk):
    """A disk that syncs no directory: names may be lost after they were acknowledged."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


class KernelRig(Rig):
    """Ours, or ours with a disk that leaves something out."""

    name: ClassVar[str] = "kernel"
    tries: ClassVar[str] = (
        "the power is cut at a place in what ext4 (ordered, writeback, journal) and xfs have sent to their disk; of the"
        " pages since the last flush all or any may be there; the kernel mounts and recovers it, and a program starts"
        " on it, which saves in every third"
    )
    cases: ClassVar[str] = "disks"
    quick: ClassVar[int] = 500
    goal: ClassVar[int] = 20_000
    load: ClassVar[float] = 0.35  # mounts are waited for

    def __init__(self, subject: str = OURS, disk: type[ShimDisk] = ShimDisk) -> None:
        self.subject = subject
        self._disk = disk
        if subject != OURS:
            self.must_lose = True
            self.quick, self.goal = 300, 500  # type: ignore[misc] # enough to see it
            self.promise = "nothing: it shows that the rig sees what is lost"

    def missing(self) -> str | None:
        """Look for root, FUSE, loop devices and the tools."""
        return why_unavailable("mkfs.ext4", "mkfs.xfs")

    def units(self, seed: int) -> Iterator[str]:
        """Give all file systems and kinds of workload first, then random ones."""
        for room in (directories, files):
            places = list(itertools.product(FILE_SYSTEMS, room.FORMS))
            if seed <= len(room.KINDS):
                for number, (system, form) in enumerate(places):
                    yield f"{system}/{form}/{room.KINDS[(seed + number) % len(room.KINDS)]}/{seed}"
            for system, form in places:
                yield f"{system}/{form}/random/{seed}"

    def run(self, unit: str, scratch: Path) -> Result:
        """Record a workload, and cut its power in many places."""
        system_name, _, workload_name = unit.partition("/")
        workload = make_workload(workload_name)
        result, known, number = Result(), dict[bytes, int](), itertools.count()

        async def fill_it(root: Path) -> None:
            await workload.fill(root)

        async def play_it(root: Path, disk: FuseDisk) -> None:
            shim = self._disk(**workload.disk_options())
            hints = mock.patch.object(os, "posix_fadvise") if self.must_lose else nullcontext()
            with hints:
                await workload.play(root, shim, lambda event: disk.mark(_spell(event)))

        def judge(root: Path, marks: Sequence[str]) -> str | None:
            saves = next(number) % _SAVES_EVERY == 0
            return check_now(workload, root, workload.history(map(_read_event, marks)), known, saves=saves)

        cut_everywhere(result, FILE_SYSTEMS[system_name], scratch, unit, fill_it, play_it, judge)
        return result


def _spell(event: Event) -> str:
    return f"{event.kind} {event.step} {event.version}"


def _read_event(text: str) -> Event:
    kind, step, version = text.split()
    return Event(kind, int(step), int(version))


# --- for any saver ----------------------------------------------------------------------------------------------------


def cut_everywhere(  # noqa: PLR0913, PLR0917 - a saver is its three functions
    result: Result, system: FileSystem, scratch: Path, name: str, fill_it: Any, play_it: Any, judge: Any
) -> None:
    """Play a workload on a logging disk, and look at what power cuts leave.

    Args:
        result: What is added to.
        system: The file system.
        scratch: An empty directory in memory.
        name: Decides which cuts are tried.
        fill_it: `async (directory)`: makes what is there before the workload.
        play_it: `async (directory, disk)`: the workload; it notes in the disk's log what it knows.
        judge: `(directory, notes) -> what is wrong, or None`: looks at the directory after a cut, knowing the notes
            before it.
    """
    enter_private_mounts()
    base, log = record(system, scratch, fill_it, play_it)
    image, where = scratch / "image", scratch / "after"
    where.mkdir()
    chance = random.Random(name)  # noqa: S311 - seeded on purpose
    for cut, left in choose_cuts(base, log, chance):
        result.tried += 1
        result.count(f"on {system.fstype}")
        left.write_to(image)
        marks = [each.text for each in log[:cut] if isinstance(each, Mark)]
        with loop_mounted(image, where, system.fstype, system.options):
            wrong = judge(where / "checkpoints", marks)
        if wrong is not None:
            result.losses.append(f"cut at {cut} of {len(log)}, {left.says}: {wrong}")


def record(system: FileSystem, scratch: Path, fill_it: Any, play_it: Any) -> tuple[Disk, list[Record]]:
    """Play a workload; return the disk before it, and what was done to it."""
    backing, where = scratch / "backing", scratch / "before"
    with backing.open("wb") as file:
        file.truncate(system.nbytes)
    subprocess.run(  # noqa: S603 - mkfs
        [*system.make, str(backing)], check=True, capture_output=True
    )
    where.mkdir()
    with loop_mounted(backing, where, system.fstype, system.options):
        asyncio.run(fill_it(where / "checkpoints"))
    base = Disk.read(backing)
    (scratch / "served").mkdir()
    with FuseDisk(scratch / "served", backing) as disk:
        with loop_mounted(disk.image, where, system.fstype, system.options), _neighbour(where / "neighbour"):
            asyncio.run(play_it(where / "checkpoints", disk))
            end = len(disk.log())
        log = disk.log()[:end]  # unmounting flushes everything
    backing.unlink()
    shutil.rmtree(scratch / "served", ignore_errors=True)
    return base, log


@contextmanager
def _neighbour(path: Path) -> Iterator[None]:
    """Have another program sync files of its own meanwhile: the journal commits at any moment, not when ours asks."""
    stop = threading.Event()

    def work() -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        number = 0
        while not stop.is_set():
            number += 1
            os.pwrite(fd, b"%d" % number, number % 64 * PAGE)
            os.fsync(fd)
            stop.wait(0.002)
        os.close(fd)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def choose_cuts(base: Disk, log: list[Record], chance: random.Random) -> Iterator[tuple[int, Disk]]:
    """Choose power cuts: where in the log, and what the disk holds then. None comes twice."""
    durable, pending, at, notes = base, list[Write](), 0, 0
    given: set[tuple[int, int]] = set()
    for cut, kept in _plan_cuts(log, chance):
        for each in log[at:cut]:
            if isinstance(each, Write):
                pending.extend(_pages(each))
            elif isinstance(each, Flush):
                durable.apply(pending)
                pending.clear()
            else:
                notes += 1
        at = cut
        left = durable.with_writes([pending[place] for place in kept])
        left.says = f"{len(kept)} of {len(pending)} pages since the last flush"
        if (notes, left.fingerprint) not in given:
            given.add((notes, left.fingerprint))
            yield cut, left


def _plan_cuts(log: list[Record], chance: random.Random) -> list[tuple[int, tuple[int, ...]]]:
    """Say of each cut which of the pages since the last flush are on the disk: their places among these.

    Two cuts are one case if the disk holds the same and the program knew the same. Most of such pairs keep the same
    pages after the same flush, and are found here; where other pages have the same bytes, the disks show it.
    """
    pending: list[int] = [0]  # pages since the last flush, at each place
    known: list[tuple[int, int]] = [(0, 0)]  # flushes and notes before it
    for each in log:
        flushes, notes = known[-1]
        pending.append(0 if isinstance(each, Flush) else pending[-1])
        pending[-1] += sum(1 for _ in _pages(each)) if isinstance(each, Write) else 0
        known.append((flushes + isinstance(each, Flush), notes + isinstance(each, Mark)))
    places = [number + 1 for number, each in enumerate(log) if isinstance(each, Mark)] + [len(log)]
    places += chance.choices(range(1, len(log) + 1), k=4 * STATES)
    cases: dict[object, tuple[int, tuple[int, ...]]] = {}
    for cut in places:
        share = chance.choice((0.0, 0.05, 0.3, 0.5, 0.7, 0.95, 1.0, 1.0))
        kept = tuple(place for place in range(pending[cut]) if chance.random() < share)
        cases.setdefault((known[cut], kept), (cut, kept))
    return sorted(chance.sample(list(cases.values()), min(STATES, len(cases))))


def _pages(write: Write) -> Iterator[Write]:
    """Cut a write at the boundaries of pages: each may reach the disk without the others."""
    offset, data = write
    while data:
        nbytes = min(len(data), PAGE - offset % PAGE)
        yield Write(offset, data[:nbytes])
        offset, data = offset + nbytes, data[nbytes:]


class Disk:
    """The contents of a disk, in memory; pages of zeros take none."""

    def __init__(self, nbytes: int) -> None:
        self._bytes = mmap.mmap(-1, nbytes)
        self._used: set[int] = set()
        self._over: dict[int, bytearray] = {}
        self.fingerprint = 0
        """The same for disks that hold the same, whatever has written it: a sum over their pages."""
        self.says = ""

    @classmethod
    def read(cls, path: Path) -> Disk:
        """Read a file."""
        disk = cls(path.stat().st_size)
        with path.open("rb") as file:
            at = 0
            while True:
                try:
                    at = os.lseek(file.fileno(), at, os.SEEK_DATA)
                except OSError:  # no more
                    return disk
                page = os.pread(file.fileno(), PAGE, at)
                if page != _ZEROS:
                    disk._put(at, page)
                at += PAGE

    def _page(self, number: int) -> bytes:
        return self._bytes[number * PAGE : (number + 1) * PAGE]

    def _put(self, offset: int, data: bytes) -> None:
        number = offset // PAGE
        self.fingerprint ^= _fingerprint(number, self._page(number))
        self._bytes[offset : offset + len(data)] = data
        self.fingerprint ^= _fingerprint(number, self._page(number))
        self._used.add(number)

    def apply(self, writes: Sequence[Write]) -> None:
        """Write, each within a page."""
        for offset, data in writes:
            self._put(offset, data)

    def with_writes(self, writes: Sequence[Write]) -> Disk:
        """Return this disk with writes applied; it shares the memory, until the next `apply`."""
        left = Disk.__new__(Disk)
        left._bytes, left._used, left._over = self._bytes, self._used, {}
        for offset, data in writes:
            number = offset // PAGE
            page = left._over.get(number)
            if page is None:
                page = left._over[number] = bytearray(self._page(number))
            page[offset % PAGE : offset % PAGE + len(data)] = data
        left.fingerprint = self.fingerprint
        for number, page in left._over.items():
            left.fingerprint ^= _fingerprint(number, self._page(number)) ^ _fingerprint(number, page)
        return left

    def write_to(self, path: Path) -> None:
        """Write a file that holds it, with holes where nothing was ever written."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, len(self._bytes))
            view = memoryview(self._bytes)
            for first, end in _runs(sorted(self._used | self._over.keys())):
                os.pwrite(fd, view[first * PAGE : end * PAGE], first * PAGE)
            for number, page in self._over.items():
                os.pwrite(fd, page, number * PAGE)
            view.release()
        finally:
            os.close(fd)


def _fingerprint(number: int, page: bytes | bytearray) -> int:
    if page == _ZEROS:
        return 0
    return int.from_bytes(hashlib.blake2b(page, digest_size=16, salt=number.to_bytes(16)).digest())


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Give the runs of numbers that follow each other: first, and last + 1."""
    first = end = -1
    for number in numbers:
        if number != end:
            if end > first:
                yield first, end
            first = number
        end = number + 1
    if end > first:
        yield first, end
