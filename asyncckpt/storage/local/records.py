"""List the committed checkpoints of a directory with their records, without verifying or changing anything."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final

from asyncckpt.disk.checkpoint import open_directory, read_unverified
from asyncckpt.disk.diagnosis import describe_checkpoint
from asyncckpt.disk.listing import Listing, scan, what_stands_at
from asyncckpt.disk.names import TRAINING_INFO_NAME
from asyncckpt.documents import parse_training_info
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.storage.base import NO_IDENTITY, CheckpointRecord, Identity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def describe_strangers(root: Path, listing: Listing) -> list[str]:
    """Say what has the name of a checkpoint in a directory and is none."""
    return [f"{name} is no checkpoint: {what_stands_at(root / name)}" for name in listing.strangers]


def say_if_gone(root: Path, known: Mapping[int, CheckpointRecord]) -> list[str]:
    """Return a warning if there were checkpoints in a directory, and it is not there any more."""
    if not known or root.exists():
        return []
    message = (
        "the directory is gone: it was removed or renamed, or its disk is not mounted any more, and the steps from"
        f" {min(known)} to {max(known)} with it. When it is back, `refresh` lists them again"
    )
    return [message]


def read_records(root: Path, known: Mapping[int, CheckpointRecord] | None = None) -> list[CheckpointRecord]:
    """List the committed checkpoints with their training_info, by ascending step, without verifying them.

    Args:
        root: The directory.
        known: Records of this directory from an earlier listing. Those whose directory is still the same one are not
            read again, which takes a tenth of the time.

    Raises:
        NotADirectoryError: There is a file in the directory's place.
        OSError: The directory cannot be read.
    """
    return read_listed(root, scan_root(root), known or {})


def scan_root(root: Path) -> Listing:
    """List the names in a directory.

    Raises:
        NotADirectoryError: There is a file in the directory's place.
        OSError: The directory cannot be read.
    """
    try:
        return scan(root)
    except NotADirectoryError:
        if not root.exists():  # it is an ancestor
            raise
        message = f"{root} is a file: {describe_checkpoint(root.parent) or 'a checkpoint directory is needed'}"
        raise NotADirectoryError(message) from None


def read_listed(root: Path, listing: Listing, known: Mapping[int, CheckpointRecord]) -> list[CheckpointRecord]:
    """Read the records of what was listed; `known` is that of `read_records`."""
    if not listing.committed:
        return []
    records = []
    pacer = Pacer()
    below = _below(root)
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # names are looked up from the directory: with thousands of checkpoints whole paths take a while
        with young_collections_only():
            for step, name in listing.committed.items():
                pacer.pause()
                record = known.get(step)
                if record is None or not _stands_for(record, below, name, at):
                    record = _record(step, below, name, at)
                records.append(record)
    finally:
        os.close(at)
    return records


def read_record(path: Path, step: int) -> CheckpointRecord:
    """Read the record of the checkpoint that a directory holds."""
    at = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _record(step, _below(path.parent), path.name, at)
    finally:
        os.close(at)


def _below(root: Path) -> str:
    """Return what a path below a directory begins with: with thousands of checkpoints, to join them takes a while."""
    return os.path.join(root, "")  # noqa: PTH118 - a Path would drop the separator


def _record(step: int, below: str, name: str, at: int) -> CheckpointRecord:
    """Read a record; `at` is a descriptor of the directory that holds the checkpoint."""
    info: dict[str, Any] = {}
    identity = NO_IDENTITY  # of what could not be read: the next listing tries again
    try:
        directory = open_directory(name, at)
        try:
            found = identity_of(directory)
            info = parse_training_info(read_unverified(directory, TRAINING_INFO_NAME))
            identity = found
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in _SHORTAGES:  # which say nothing of the checkpoint: without its metric it might be pruned
            raise
    except (ValueError, RecursionError):  # damaged, and left out like what is missing: `load` will say what is wrong
        pass
    return CheckpointRecord(step=step, directory=below + name, training_info=info, identity=identity)


def _stands_for(record: CheckpointRecord, below: str, name: str, at: int) -> bool:
    """Whether an earlier record is of the directory that has this name now, and had it then."""
    return record.identity == identity_of(name, at) != NO_IDENTITY and record.directory == below + name


def identity_of(directory: os.PathLike[str] | str | int, at: int | None = None) -> Identity:
    """Tell a directory from an earlier or later one of its name; NO_IDENTITY if it is gone."""
    try:
        found = os.stat(directory, dir_fd=at)
    except OSError:  # gone meanwhile
        return NO_IDENTITY
    return found.st_ino, found.st_mtime_ns
