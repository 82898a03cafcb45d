"""The name of a keyed file, its lock, and the temporary file that it is rewritten to.

1. The lock is taken before the first change and held until `release`.
2. A file is rewritten to a temporary file, which takes the file's name when it is complete and synced. The next holder
   of the lock removes what a killed writer left of one. What cannot be removed, because it is a directory, busy or
   another user's, gets one warning, and the temporary file has another name.
3. A writer cannot know whether the previous one synced the directory after its last rename. So `sync_entry` syncs it
   once before anything that is written to a file found there is acknowledged.
4. A store that finds a file of another program calls `mark_foreign` or `mark_read_only`. A foreign file is rewritten
   only if the caller asked for it, and keeps a second name unless the caller asked for none.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from asyncckpt.disk import obstacles
from asyncckpt.disk.lock import Lock, acquire_file_lock
from asyncckpt.disk.publish import ensure_directory
from asyncckpt.errors import ReadOnlyFileError, warn
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

Rewrite: TypeAlias = Literal[False, True, "without_backup"]
"""Whether another program's file may be rewritten: no; yes, with a backup; yes, without one."""
_UNREAD: Final = (-1,)  # equals the identity of no file
_MAX_TEMPORARY_FILES: Final = 100
_SLACK_NBYTES: Final = 4 << 20
_IN_THE_WAY: Final = frozenset({errno.EBUSY, errno.EPERM, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EXDEV})
"""Errors of a rename whose target cannot be replaced."""


class FileLocation:
    """The location of one keyed file."""

    def __init__(
        self, path: Path, ops: DiskOps, name: str | None = None, *, rewrite: Rewrite = False, can_back_up: bool = True
    ) -> None:
        """Resolve the path: the target of a symbolic link is what is rewritten, and the working directory may change.

        Args:
            path: The file's path.
            ops: What changes the disk.
            name: What errors call the file; by default the path.
            rewrite: Whether another program's file may be rewritten.
            can_back_up: Whether such a file can be kept beside the new one.

        Raises:
            OSError: The path is a loop of symbolic links.
        """
        try:
            self.path = path.resolve()
        except RuntimeError:  # what pathlib makes of a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
        self.name = str(self.path) if name is None else name
        """What errors call the file."""
        self.ops = ops
        self._temporary = self._temporary_name(0)
        self._warned: set[str] = set()
        self._lock: Lock | None = None
        self._opened: tuple[int, ...] | None = None  # the identity of the file that `open` found
        self._is_entry_synced = False
        self._rewrite, self._can_back_up = rewrite, can_back_up
        self._refusal: Callable[[], ReadOnlyFileError] | None = None
        self.is_foreign = False
        """Whether another program made the file: then it may only be rewritten, to the temporary file."""

    # --- reading ------------------------------------------------------------------------------------------------------

    def _identity(self) -> tuple[int, ...] | None:
        """Return what changes when the file is changed or replaced, or None if there is no file."""
        try:
            return _identity_of(self.path.stat())
        except FileNotFoundError:
            return None

    def is_same_file(self, fd: int) -> bool:
        """Whether the path still leads to this open file, and not to another or none."""
        found = self._identity()
        return found is not None and found[:2] == _identity_of(os.fstat(fd))[:2]

    def open(self) -> int | None:
        """Open the file for reading, or return None if there is none, or an empty one that was made in advance.

        It counts as ours until it is marked.

        Raises:
            OSError: It cannot be read, or is not a regular file.
        """
        self.is_foreign, self._refusal = False, None
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self._opened = None
            return None
        with on_failure(partial(os.close, fd)):
            found = os.fstat(fd)
            self._opened = _identity_of(found)
            if not stat.S_ISREG(found.st_mode):
                message = f"{self.path} is not a regular file"
                raise IsADirectoryError(message) if self.path.is_dir() else OSError(message)
        if not found.st_size:
            os.close(fd)
            return None
        return fd

    def mark_foreign(self, losses: str) -> None:
        """Note that another program made the file, so that it is rewritten only if the caller asked for that.

        Args:
            losses: What the rewritten file lacks; completes "without ...".
        """
        self.is_foreign = True
        if self._rewrite == "without_backup" or (self._rewrite and self._can_back_up):
            return
        ask = "rewrite='without_backup'"
        if self._can_back_up:
            ask = f"rewrite=True (which keeps the old file as {_backup_name(self.path, 0)!r}) or {ask}"
        message = (
            f"{self.name}: another program made this file, and changing it means rewriting all of it, without"
            f" {losses}. Nothing was changed. Copy its keys to a new file, or open this one with {ask}"
        )
        self._refusal = partial(ReadOnlyFileError, message, file=self.name, losses=losses)

    def mark_read_only(self, reason: str) -> None:
        """Note that the file can only be read, whatever the caller asked for.

        Args:
            reason: Why; completes "it ...".
        """
        message = f"{self.name}: it {reason}, so it is only read. Nothing was changed. Copy its keys to a new file"
        self._refusal = partial(ReadOnlyFileError, message, file=self.name)

    # --- the lock -----------------------------------------------------------------------------------------------------

    @property
    def is_locked(self) -> bool:
        """Whether this process holds the lock, and so may change the file."""
        return self._lock is not None

    def acquire(self, read_again: Callable[[], None]) -> None:
        """Take the lock, which must not be held. A missing directory is made.

        Args:
            read_again: Called if another writer has changed the file since `open`. If it fails, the lock is released,
                and the next call reads the file again: a writer must know what the file holds.

        Raises:
            FileLockedError: There is another writer.
            ReadOnlyFileError: The file may not be changed.
            OSError: The directory cannot be made or written.
        """
        if self._identity() == self._opened:
            self._check_changeable()
        ensure_directory(self.ops, self.path.parent)
        self._lock = acquire_file_lock(self.ops, self.path)
        try:
            if not self._lock.is_supported:
                message = f"{self.path}: the file system has no locks, so nothing keeps a second writer away"
                warn(message)
            self._remove_leftovers()
            if self._identity() != self._opened:
                read_again()
        except BaseException:
            self._opened = _UNREAD
            self.release()
            raise
        with on_failure(self.release):
            self._check_changeable()  # what was read again

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self._is_entry_synced = False

    def close(self) -> None:
        """Let go of the file, which is not used any more."""
        self.release()

    def _check_changeable(self) -> None:
        if self._refusal is not None:
            raise self._refusal()

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of killed writers, as far as the disk allows."""
        for number in range(_MAX_TEMPORARY_FILES):
            path = self._temporary_name(number)
            if number and not os.path.lexists(path):
                return
            with suppress(OSError):
                self.ops.unlink(path)

    # --- the temporary file -------------------------------------------------------------------------------------------

    def create_temporary(self) -> int:
        """Create the temporary file with the file's permissions, and return a descriptor to read and write it."""
        fd = self._create_temporary()
        with on_failure(partial(os.close, fd), self.discard_temporary), suppress(FileNotFoundError):
            mode = stat.S_IMODE(self.path.stat().st_mode)
            if mode != stat.S_IMODE(os.fstat(fd).st_mode):
                self.ops.set_mode(fd, mode)
        return fd

    def _temporary_name(self, number: int) -> Path:
        return self.path.with_name(f".{self.path.name}.tmp" + (f".{number}" if number else ""))

    def _create_temporary(self) -> int:
        for number in range(_MAX_TEMPORARY_FILES):
            self._temporary = self._temporary_name(number)
            with suppress(FileExistsError):
                return self.ops.create(self._temporary)
            try:
                self.ops.unlink(self._temporary)
            except OSError as error:
                self._warn_once(
                    "leftover",
                    f"{self._temporary} cannot be removed ({error.strerror}), so the new file is written as"
                    f" {self._temporary_name(number + 1).name!r} until it is complete. Remove it",
                )
            else:
                return self.ops.create(self._temporary)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._temporary))

    def discard_temporary(self) -> None:
        """Remove the temporary file if the disk allows; otherwise the next writer does."""
        with suppress(OSError):
            self.ops.unlink(self._temporary)

    def publish_temporary(self) -> None:
        """Give the complete and synced temporary file the file's name, durably; if that fails, it is removed."""
        self.rename_temporary()
        self.sync_entry()

    def after_commit(self) -> None:
        """Do what is left to do after a commit; for other kinds of locations."""

    def rename_temporary(self) -> None:
        """Give the temporary file the file's name, which `sync_entry` makes durable; if that fails, it is removed.

        Raises:
            OSError: The file keeps its name and content.
        """
        with on_failure(self.discard_temporary):
            if self.is_foreign and self._rewrite != "without_backup":
                self._back_up()
            self._rename()
        self.is_foreign = False
        self._is_entry_synced = False

    def _rename(self) -> None:
        try:
            self.ops.rename(self._temporary, self.path)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            reason = obstacles.explain(OSError(error.errno, error.strerror), self.path)
            reason += "; the new file, which is complete, cannot take its name: use another path"
            raise OSError(error.errno, reason, str(self.path)) from error

    def _back_up(self) -> None:
        """Give the file, which is about to be replaced, a second name that is free."""
        for number in count():
            backup = self.path.with_name(_backup_name(self.path, number))
            try:
                self.ops.link(self.path, backup)
            except FileNotFoundError:
                return  # the file was removed: there is nothing to keep
            except FileExistsError:
                if os.path.samestat(backup.lstat(), self.path.lstat()):
                    return  # an attempt that failed later made it
            except OSError as error:
                reason = (
                    f"{error.strerror}; the old file cannot be kept as {backup.name!r} (by a hard link, which some file"
                    " systems lack): copy it yourself, and open it with rewrite='without_backup'"
                )
                raise OSError(error.errno, reason, str(self.path)) from error
            else:
                return

    def sync_entry(self) -> None:
        """Make the file's directory entry durable, unless it is known to be."""
        if not self._is_entry_synced:
            self.ops.sync_directory(self.path.parent)
            self._is_entry_synced = True

    # --- warnings -----------------------------------------------------------------------------------------------------

    def warn_of_growth(self, nbytes: int, live_nbytes: int, obstacle: Exception) -> None:
        """Warn, once, that the file exceeds the promised size, because it could not be rewritten."""
        if nbytes > 3 * live_nbytes + _SLACK_NBYTES:
            self._warn_once(
                "growth",
                f"it has grown to {nbytes} bytes, of which {live_nbytes} are needed, because it could not be rewritten:"
                f" {obstacle}. What is saved is safe; the file grows until that is resolved",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warn(f"{self.name}: {message}")


def _backup_name(path: Path, number: int) -> str:
    return f"{path.name}.orig" + (f".{number}" if number else "")


def _identity_of(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
