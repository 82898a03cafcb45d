"""What the measurements need of the machine: page cache, memory, syncs, and what to call it."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import shutil
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_READ_NBYTES: Final = 8 << 20
_DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")


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
    """Bring a checkpoint's files into the page cache."""
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
    """Remove a checkpoint, a directory or one file, and have the disk know before the next measurement."""
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


def reset_peak_memory() -> int:
    """Start counting the process's peak of resident memory anew; return what it is now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> int:
    """Return the peak of resident memory since `reset_peak_memory`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        message = f"/proc/self/status has no {field}"
        raise OSError(message)
    return int(found[1]) << 10


def describe(root: Path, packages: Iterable[str]) -> dict[str, str]:
    """Describe the machine and the packages, for the report's head."""
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
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    return facts


def _filesystem(path: Path) -> str:
    """Name the type of the filesystem that holds `path`: that of the longest mount point above it."""
    mounts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if path.resolve().is_relative_to(point):
                mounts[point] = kind
    return mounts[max(mounts, key=len)] if mounts else "unknown"
