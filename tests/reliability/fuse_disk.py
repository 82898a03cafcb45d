"""A disk whose every write and flush is known: a file in a FUSE file system, for a loop device to lie on.

1. The file's contents and the log of what was done to it are files in the caller's directory. The log holds writes,
   flushes and marks in the order in which the file system served them, one after the other.
2. A flush is what the kernel sends when a file system on the loop device asks its disk to empty its cache (a barrier,
   an fsync). It can be made to fail, as a dying disk does.
3. Nothing survives whoever uses it, killed or not: mounts live in a mount namespace of the process's own, loop devices
   detach when nothing is mounted from them, and the server dies with its parent.

Needs root, /dev/fuse, loop devices, libfuse 3 and the package mfusepy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import importlib
import os
import shutil
import signal
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE: Final = "image"
CONTROL: Final = "control"

HEADER: Final = struct.Struct("<cQQ")  # kind, offset, nbytes of what follows
WRITE, FLUSH, MARK = b"w", b"f", b"m"
FAILED: Final = "a flush failed"

_CLONE_NEWNS: Final = 0x20000
_MS_PRIVATE_ALL: Final = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
_MNT_DETACH: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CONFIG: Final = struct.Struct("<II5Q4I64s64s32s2Q8Q")
_LOOP_MAJOR: Final = 7
_AUTOCLEAR: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)


def why_unavailable(*tools: str) -> str | None:
    """Return what this machine lacks for disks of this kind and for the tools named, or None."""
    if os.geteuid() != 0:
        return "needs root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"needs {device}"
    try:
        importlib.import_module("mfusepy")
    except (ImportError, OSError) as error:  # it looks for libfuse at once
        return f"needs the package mfusepy, and libfuse 3: {error}"
    for tool in tools:
        if shutil.which(tool) is None:
            return f"needs {tool}"
    return _why_not_mountable()


def _why_not_mountable() -> str | None:
    """Try, in a process of its own, whether mounts may be made here."""
    child = os.fork()
    if child == 0:
        try:
            enter_private_mounts()
            mount("none", Path("/mnt"), "tmpfs")
        except OSError:
            os._exit(1)
        os._exit(0)
    return "may not mount" if os.waitpid(child, 0)[1] else None


# --- the log ----------------------------------------------------------------------------------------------------------


class Write(NamedTuple):
    """Bytes that were written, not durable before the next flush."""

    offset: int
    data: bytes


class Flush(NamedTuple):
    """All that was written before is durable."""


class Mark(NamedTuple):
    """What the user of the disk noted."""

    text: str


Record = Write | Flush | Mark


def read_log(path: Path) -> Iterator[Record]:
    """Read the log of a disk."""
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            kind, offset, nbytes = HEADER.unpack(header)
            data = file.read(nbytes)
            if kind == WRITE:
                yield Write(offset, data)
            elif kind == FLUSH:
                yield Flush()
            else:
                yield Mark(data.decode())


# --- the disk ---------------------------------------------------------------------------------------------------------


class FuseDisk:
    """A file that can be attached to a loop device, served while the `with` block lasts.

    Attributes:
        image: The file in the FUSE file system.
        backing: Its contents, an ordinary file, which must exist.
    """

    def __init__(self, folder: Path, backing: Path) -> None:
        """Serve `backing`; `folder` is an existing directory for the log and the mount."""
        self.backing = backing
        self._log = folder / "log"
        self._mount = folder / "fuse"
        self.image = self._mount / IMAGE
        self._server = 0

    def __enter__(self) -> Self:
        """Start the server and wait until it serves."""
        self._mount.mkdir()
        self._log.touch()
        self._server = os.fork()
        if self._server == 0:
            _serve(self._mount, self.backing, self._log)
        deadline = time.monotonic() + 20
        while not self.image.exists():
            gone, _ = os.waitpid(self._server, os.WNOHANG)
            if gone or time.monotonic() > deadline:
                message = "the FUSE server did not start"
                raise OSError(errno.EIO, message)
            time.sleep(0.002)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        with contextlib.suppress(OSError):
            unmount(self._mount)
        deadline = time.monotonic() + 5
        while os.waitpid(self._server, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(self._server, signal.SIGKILL)
                os.waitpid(self._server, 0)
                return
            time.sleep(0.002)

    def log(self) -> list[Record]:
        """Return what was done so far."""
        return list(read_log(self._log))

    def failed_flushes(self) -> int:
        """Return how many flushes have failed."""
        return sum(each == Mark(FAILED) for each in self.log())

    def mark(self, text: str) -> None:
        """Note something in the log: it stands behind all that was served before."""
        self._tell(f"mark {text}")

    def fail_fsync(self, *, after: int = 0, code: int = errno.EIO, lasting: bool = True) -> None:
        """Let the flush after the next `after` ones fail; and, if `lasting`, all that follow."""
        self._tell(f"fail {after} {code} {int(lasting)}")

    def heal(self) -> None:
        """Let flushes succeed again."""
        self._tell("heal")

    def _tell(self, command: str) -> None:
        fd = os.open(self._mount / CONTROL, os.O_WRONLY)
        try:
            os.write(fd, command.encode())
        finally:
            os.close(fd)


def _serve(mount_point: Path, backing: Path, log: Path) -> None:
    """Be the server, until it is unmounted or the parent dies."""
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.closerange(3, 4096)
        from .fuse_server import serve

        serve(mount_point, backing, log)
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run here
        os._exit(1)
    os._exit(0)


# --- mounts and loop devices ------------------------------------------------------------------------------------------


def enter_private_mounts() -> None:
    """Give this process mounts of its own, which end with it and with its children."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_ALL), None), "mount")


def mount(device: str, where: Path, fstype: str, options: str = "") -> None:
    """Mount a device."""
    result = _libc.mount(device.encode(), os.fsencode(where), fstype.encode(), ctypes.c_ulong(0), options.encode())
    _check(result, f"mount of {fstype} ({options})")


def unmount(where: Path) -> None:
    """Unmount; what is busy is detached."""
    if _libc.umount2(os.fsencode(where), 0) != 0:
        _check(_libc.umount2(os.fsencode(where), _MNT_DETACH), "umount")


@contextlib.contextmanager
def loop_mounted(file: Path, where: Path, fstype: str, options: str = "") -> Iterator[Path]:
    """Mount the file system in a file while the block lasts."""
    with _attached(file) as device:
        mount(device, where, fstype, options)
    try:
        yield where
    finally:
        unmount(where)


@contextlib.contextmanager
def _attached(file: Path) -> Iterator[str]:
    """Attach a file to a loop device, which detaches when the block has ended and nothing is mounted from it."""
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = f"/dev/loop{number}"
            if not Path(device).exists():
                with contextlib.suppress(FileExistsError):
                    os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, _loop_config(backing))
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # else somebody else was quicker
                    raise
                continue
            break
    finally:
        os.close(control)
        os.close(backing)
    try:
        yield device
    finally:
        os.close(fd)


def _loop_config(backing: int) -> bytes:
    return _LOOP_CONFIG.pack(backing, 0, *[0] * 5, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0, *[0] * 8)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
