"""List the committed checkpoints of a directory with their records, without verifying or changing anything."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from asyncckpt.disk.diagnosis import describe_checkpoint
from asyncckpt.disk.names import MANIFEST_NAME, Scan, describe_misnamed, locate, scan
from asyncckpt.disk.open_below import open_directory, read_unverified
from asyncckpt.documents import TRAINING_INFO_NAME, parse_training_info
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.storage.results import SHORTAGES, CheckpointRecord, Listing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


def say_if_gone(root: Path, known: Mapping[int, CheckpointRecord]) -> list[str]:
    """Return a warning if a directory that had checkpoints does not exist any more."""
    if not known or root.exists():
        return []
    message = (
        "the directory is gone: it was removed or renamed, or its disk is not mounted any more, and the steps from"
        f" {min(known)} to {max(known)} with it. When it is back, `refresh` lists them again"
    )
    return [message]


def scan_root(root: Path) -> Scan:
    """List the names in a directory.

    Raises:
        NotADirectoryError: The path is a file.
        OSError: The directory cannot be read.
    """
    try:
        return scan(root)
    except NotADirectoryError:
        if not root.exists():  # an ancestor is a file
            raise
        message = f"{root} is a file: {describe_checkpoint(root.parent) or 'a checkpoint directory is needed'}"
        raise NotADirectoryError(message) from None


def read_listed(root: Path, listing: Scan, known: Mapping[int, CheckpointRecord], remarks: Iterable[str]) -> Listing:
    """Read the records of what was listed; those in `known` are not read again, unless they have changed."""
    remarks = [
        *remarks,
        *(f"{name} is not a checkpoint: {describe_misnamed(root / name)}" for name in listing.misnamed),
    ]
    if not listing.committed:
        return Listing({}, tuple(remarks))
    records: dict[int, CheckpointRecord] = {}
    incomplete: list[int] = []
    pacer = Pacer()
    below = os.path.join(root, "")  # noqa: PTH118 - a Path would drop the separator, and is slow to join
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # names are looked up from the directory: with thousands of checkpoints whole paths take a while
        with young_collections_only():
            for step, name in listing.committed.items():
                pacer.pause()
                record = known.get(step)
                if record is None or not _is_same(record, below, name, at):
                    record, has_manifest = _record(step, below, name, at)
                    if not has_manifest:
                        incomplete.append(step)
                records[step] = record
    finally:
        os.close(at)
    incomplete = [step for step in incomplete if _is_incomplete(root, step, records[step].path)]
    remarks += (
        f"{listing.committed[step]} has no {MANIFEST_NAME}: it is damaged, or not asyncckpt's. It is listed,"
        " does not count as a checkpoint, and stays until it is deleted or overwritten"
        for step in incomplete
    )
    return Listing(records, tuple(remarks), frozenset(incomplete))


def _is_incomplete(root: Path, step: int, path: Path) -> bool:
    """Look again: when the manifest was not found, the checkpoint may have been replaced, or its deletion begun."""
    return locate(root, step) == path and not os.path.lexists(path / MANIFEST_NAME)


def _record(step: int, below: str, name: str, at: int) -> tuple[CheckpointRecord, bool]:
    """Read a record, and whether the checkpoint has a manifest; `at` is a descriptor of the directory that holds it."""
    info: dict[str, Any] = {}
    identity = None  # what could not be read is read again by the next listing
    has_manifest = True
    try:
        directory = open_directory(name, at)
        try:
            found = identity_of(directory)
            has_manifest = os.access(MANIFEST_NAME, os.F_OK, dir_fd=directory)
            info = parse_training_info(read_unverified(directory, TRAINING_INFO_NAME))
            identity = found if has_manifest else None
        finally:
            os.close(directory)
    except OSError as error:
        if error.errno in SHORTAGES:  # without its metric the checkpoint might be pruned
            raise
    except (ValueError, RecursionError):  # damaged: `load` will say what is wrong
        pass
    return CheckpointRecord(step=step, directory=below + name, training_info=info, identity=identity), has_manifest


def _is_same(record: CheckpointRecord, below: str, name: str, at: int) -> bool:
    """Whether an earlier record is of the directory that has this name now, and had the same name then."""
    found = identity_of(name, at)
    return found is not None and record.identity == found and record.directory == below + name


def identity_of(directory: os.PathLike[str] | str | int, at: int | None = None) -> tuple[int, int] | None:
    """Return what identifies a directory among those that have had its name; None if it does not exist.

    The inode of one that was deleted may be used again, so the time counts.
    """
    try:
        found = os.stat(directory, dir_fd=at)
    except OSError:  # deleted meanwhile
        return None
    return found.st_ino, found.st_mtime_ns
