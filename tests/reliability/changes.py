"""One change of the disk in the same words, whether the library asked for it or strace saw it made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .disks import Change
    from .strace import Call

_NAMES = {
    "create": "open",
    "open_lock": "open",
    "openat": "open",
    "openat2": "open",
    "creat": "open",
    "pwrite64": "write",
    "pwritev": "write",
    "pwritev2": "write",
    "writev": "write",
    "ftruncate": "truncate",
    "set_mode": "chmod",
    "fchmod": "chmod",
    "sync": "fsync",
    "sync_directory": "fsync",
    "renameat": "rename",
    "renameat2": "rename",
    "mkdirat": "mkdir",
    "unlinkat": "unlink",
}
"""What `DiskOps` and system calls call the same; a call that nobody may make keeps its name, which nothing equals."""
_PLACED = ("pwrite64", "pwritev")
_DELETED = re.compile(r" \(deleted\)$")
_END = re.compile(r"\)\s+= ")
_RESULT = re.compile(r"\) += (\d+)")
_ARGUMENT = r", (-?\d+)"


class Made(NamedTuple):
    """A change of the disk."""

    name: str
    path: Path
    target: Path | None = None
    """Of a rename or an exchange, the other name."""
    offset: int | None = None
    """Of a write, where, and of a truncation, the new size, where it is known."""
    nbytes: int | None = None
    """How many bytes a write has written, or was to write if it failed, where it is known."""
    has_failed: bool = False

    def equals(self, other: Made) -> bool:
        """Whether two are the same, as far as both sides know."""
        return self[:3] == other[:3] and all(
            None in pair or pair[0] == pair[1] for pair in zip(self[3:5], other[3:5], strict=True)
        )


def is_made_good(changes: Sequence[Made], at: int) -> bool:
    """Whether a change that failed was made again, or given up, so that nothing rests on what it left.

    A write is made again, all of it, or cut off, before anything else is done with its file; a directory is synced
    again; a file whose sync failed is not, but another takes its name. Whether what was to be durable is, when it is
    acknowledged, is for the caller to see.
    """
    failed = changes[at]
    if failed.name == "fsync":
        is_directory = any(failed.path in each.path.parents for each in changes)
        right, name = ("fsync", "path") if is_directory else ("rename", "target")
        return any(
            each.name == right and getattr(each, name) == failed.path and not each.has_failed
            for each in changes[at + 1 :]
        )
    if failed.name != "write" or failed.offset is None:
        return False
    missing = [(failed.offset, failed.offset + (failed.nbytes or 1))]
    for each in changes[at + 1 :]:
        if each.path != failed.path or each.has_failed:
            continue
        if each.name == "truncate" and each.offset is not None and each.offset <= failed.offset:
            return True
        if each.name != "write" or each.offset is None or each.nbytes is None:
            return False
        begin, end = each.offset, each.offset + each.nbytes
        missing = [
            (first, last)
            for one, other in missing
            for first, last in ((one, min(other, begin)), (max(one, end), other))
            if first < last
        ]
        if not missing:
            return True
    return False


def of_change(change: Change) -> Made:
    """Tell what the library asked for."""
    name = _NAMES.get(change.name, change.name)
    is_write = name == "write"
    return Made(
        name,
        _without_mark(change.path),
        change.target,
        change.offset if is_write or name == "truncate" else None,
        len(change.data) if is_write and change.data else None,
        change.has_failed,
    )


def of_call(call: Call) -> Made:
    """Tell what strace saw."""
    name = "exchange" if "RENAME_EXCHANGE" in call.text else _NAMES.get(call.name, call.name)
    if "AT_REMOVEDIR" in call.text:
        name = "rmdir"
    named = re.findall(r'"((?:[^"\\]|\\.)+)"', call.text.split(" = ")[0])
    paths = [Path(each) for each in named] if name in _BY_NAME else list(call.paths)
    path, target = (*paths, None, None)[:2]
    is_write = name == "write"
    result = _RESULT.search(call.text)
    return Made(
        name,
        _without_mark(path or Path()),
        target if name in ("rename", "exchange") else None,
        _offset(call) if is_write or name == "truncate" else None,
        int(result[1]) if is_write and result is not None else None,
        " = -1 E" in call.text,
    )


_BY_NAME = ("open", "rename", "exchange", "mkdir", "unlink", "rmdir")
"""Calls whose paths stand as arguments, beside the descriptor of the directory that they would be relative to."""


def _offset(call: Call) -> int | None:
    """Return the last argument of a call that says where it writes, or how long the file becomes."""
    arguments = _END.split(call.text)[0]
    if call.name == "pwritev2":
        arguments = arguments.rpartition(",")[0]  # its flags
    elif call.name not in (*_PLACED, "truncate", "ftruncate"):
        return None
    found = re.search(_ARGUMENT + "$", arguments)
    return None if found is None else int(found[1])


def _without_mark(path: Path) -> Path:
    """Return the path of a file whose name has been removed as it was."""
    return path.with_name(_DELETED.sub("", path.name)) if path.name else path
