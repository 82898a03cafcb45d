"""Prepare and describe the machine: page cache, memory, syncs, versions."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import platform
import re
import shutil
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_READ_NBYTES: Final = 8 << 20
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_MADV_POPULATE_WRITE: Final = 23
_DISK_IS_QUIET: Final = 0.1
_DISK_IS_AWAITED: Final = 10.0
_STAT_IN_FLIGHT: Final = 8


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from sorted(each for each in path.rglob("*") if each.is_file())


def sync_tree(path: Path, *, root: Path) -> None:
    """Sync every file and directory of a checkpoint and the directory `root` that holds it."""
    for each in (*path.rglob("*"), path, root):
        _sync(each)


def evict(path: Path) -> None:
    """Drop a checkpoint's files from the page cache."""
    for each in _files(path):
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def warm(path: Path) -> None:
    """Read a checkpoint's files into the page cache."""
    buffer = bytearray(_READ_NBYTES)
    for each in _files(path):
        with each.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop_directory_caches() -> bool:
    """Drop the kernel's caches of directories and inodes; return whether that was allowed."""
    try:
        _DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a checkpoint, a directory or one file, and wait until the disk has done so."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def return_memory() -> None:
    """Give freed memory back to the system, so that the next allocation is fresh."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def claim_memory(nbytes: int, *, hold: float) -> None:
    """Touch so much free memory, hold it for some seconds and free it again, so that the guest's kernel owns the pages.

    A virtual machine returns memory that has been free for a while to its host, and gets it back page by page, at
    several times the cost of clearing it. The next measurement would depend on how long the machine was idle before.
    Memory that was freed just before is returned two seconds later (Linux, mm/page_reporting.c). That would happen
    during the measurement and double the cost of clearing a page, so it is waited for.
    """
    nbytes = min(nbytes, _meminfo("MemFree") * 3 // 4) // mmap.PAGESIZE * mmap.PAGESIZE  # the page cache stays
    if not nbytes:
        return
    with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        try:
            memory.madvise(_MADV_POPULATE_WRITE)
        except OSError:  # before Linux 5.14
            for start in range(0, nbytes, mmap.PAGESIZE):
                memory[start] = 1
        time.sleep(hold)


def settle_disk(root: Path) -> None:
    """Sync, and wait until the disk is idle: blocks of deleted files are returned to it in the background."""
    os.sync()
    device = root.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    with suppress(FileNotFoundError):  # not a block device
        start = since = time.perf_counter()
        before = counters.read_text()
        while time.perf_counter() < min(since + _DISK_IS_QUIET, start + _DISK_IS_AWAITED):
            time.sleep(_DISK_IS_QUIET / 10)
            now = counters.read_text()
            if now != before or now.split()[_STAT_IN_FLIGHT] != "0":
                before, since = now, time.perf_counter()


def reset_peak_memory() -> int:
    """Reset the process's peak of resident memory; return the current resident memory, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """Return the peak of resident memory since `reset_peak_memory`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    return _kilobytes(Path("/proc/self/status"), field)


def _meminfo(field: str) -> int:
    return _kilobytes(Path("/proc/meminfo"), field)


def _kilobytes(path: Path, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if found is None:
        message = f"{path} has no {field}"
        raise OSError(message)
    return int(found[1]) << 10


def load_average() -> str:
    """Return the load average over 1, 5 and 15 minutes, as text."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def describe(root: Path, packages: Iterable[str]) -> dict[str, str]:
    """Describe the machine and the packages, for the report's head."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        facts = {
            "CPU": f"{cpu[1] if cpu else platform.processor()}, {len(os.sched_getaffinity(0))} cores",
            "memory": f"{memory / 2**30:.0f} GiB",
        }
    facts |= {
        "kernel": platform.release(),
        "filesystem": _filesystem(root),
        "Python": platform.python_version(),
    }
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    facts["asyncckpt"] = f"{facts.get('asyncckpt', '')} {_revision()}".strip()
    return facts


def _revision() -> str:
    """Name the last commit that changed the library, and whether the files differ from it; empty outside a clone."""
    package = str(Path(__file__).parents[1] / "asyncckpt")

    def git(*arguments: str) -> str:
        command = ["git", "-C", package, *arguments, "--", package]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603

    try:
        return f"at {git('log', '-1', '--format=%h')}" + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _filesystem(path: Path) -> str:
    """Name the type of the filesystem that holds `path`: that of the longest mount point above it."""
    mounts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if path.resolve().is_relative_to(point):
                mounts[point] = kind
    return mounts[max(mounts, key=len)] if mounts else "unknown"
