"""Explain why the system does not let a path be renamed or deleted: its owner, or the file system, and what to do.

It is called after the system has refused something. What cannot be found out is left out.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import stat
import struct
from pathlib import Path
from typing import Final

_GET_FLAGS: Final = 0x80086601  # FS_IOC_GETFLAGS
_PROTECTED: Final = 0x10 | 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
_ESCAPES: Final = {ord(each): f"\\{ord(each):03o}" for each in " \t\n\\"}
"""How the kernel's table of mounts spells some characters."""


_REASONS: Final = {
    errno.EXDEV: "does not rename this directory, which lies in a lower layer or another volume of it",
    errno.EROFS: "is read-only: mount it for writing",
    errno.ESTALE: "has lost sight of it: mount it again",
    errno.EIO: "cannot read or write there: look at the system's log",
    errno.EBUSY: "keeps it while a program uses it: it goes when that program ends",
    errno.ENOTEMPTY: "keeps what a program has open in it (NFS, as .nfs...): it goes when that program ends",
}
"""What a file system means by an errno."""


def explain(error: OSError, path: Path) -> str:
    """Say why a path could not be renamed or deleted: the system's error, the file, and the obstacle."""
    culprit = Path(os.fsdecode(error.filename)) if error.filename else path
    whose = f" ({culprit.relative_to(path)})" if culprit != path and culprit.is_relative_to(path) else ""
    obstacle = _obstacle(error.errno, path, culprit)
    return f"{error.strerror}{whose}" + (f": {obstacle}" if obstacle else "")


def mounted_below(path: Path) -> set[Path]:
    """Return the mount points at or below a path, bind mounts included."""
    table = _mount_table()
    if path.name.translate(_ESCAPES) not in table:  # usual, and many times faster than to parse the table
        return set()
    real = _real(path)
    return {path / Path(at).relative_to(real) for at in _mounts(table) if at == str(real) or at.startswith(f"{real}/")}


def _obstacle(code: int | None, path: Path, culprit: Path) -> str | None:
    if code in (errno.EBUSY, errno.ENOTEMPTY) and (mounted := mounted_below(path)):
        return f"a file system is mounted at {min(mounted)}: unmount it"
    if code in (errno.EPERM, errno.EACCES):
        return _protection(culprit)
    what = _REASONS.get(code or 0)
    return what and f"the file system{_file_system_of(path)} {what}"


def _protection(path: Path) -> str | None:
    """Say who may rename or delete a path, if this process may not."""
    parent = path.parent
    for each in (path, parent):
        if _is_protected(each):
            return f"{each} is immutable or append-only: chattr -ia {each}"
    try:
        mine, above = path.lstat(), parent.stat()
    except OSError:
        return None
    us = os.geteuid()
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        mode = stat.S_IMODE(above.st_mode)
        return f"{parent} belongs to {_user(above.st_uid)}, mode {mode:o}, and this process runs as {_user(us)}"
    if above.st_mode & stat.S_ISVTX and us not in (mine.st_uid, above.st_uid):
        return (
            f"it belongs to {_user(mine.st_uid)}, this process runs as {_user(us)}, and {parent} is sticky: only that"
            f" user, {_user(above.st_uid)} and root may rename or delete it"
        )
    return f"it belongs to {_user(mine.st_uid)}, and this process runs as {_user(us)}"


def _is_protected(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        (flags,) = struct.unpack_from("i", fcntl.ioctl(fd, _GET_FLAGS, bytes(8)))
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(flags & _PROTECTED)


def _user(number: int) -> str:
    try:
        return f"{pwd.getpwuid(number).pw_name} (uid {number})"
    except KeyError:
        return f"uid {number}"


def _file_system_of(path: Path) -> str:
    """Return the type of a path's file system and its mount point, in parentheses; nothing if that is not known."""
    real = f"{_real(path)}/"
    mounts = _mounts(_mount_table())
    at = max((each for each in mounts if real.startswith(os.path.join(each, ""))), key=len, default=None)  # noqa: PTH118
    return "" if at is None else f" ({mounts[at]}, mounted at {at})"


def _real(path: Path) -> Path:
    """Resolve the symbolic links in a path, but not its last part."""
    return Path(os.path.realpath(path.parent)) / path.name


def _mount_table() -> str:
    """Return the kernel's table of the mounts that this process sees; nothing if there is none."""
    try:
        return os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    except OSError:
        return ""


def _mounts(table: str) -> dict[str, str]:
    """Return the mount points in a table, and the type of each one's file system."""
    found = {}
    for line in table.splitlines():
        place, _, source = line.partition(" - ")
        at = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), place.split(" ")[4])
        found[at] = source.split(" ")[0]
    return found
