"""Where a keyed file lives: its name, its lock, and the temporary file that it is rewritten to.

1. The lock is taken before the first change and held until `release`.
2. A rewritten file is a temporary file until it is complete and synced; then it takes the file's name. What a
   killed writer left of it is removed by the next holder of the lock.
3. A writer that goes on with a file it has found does not know whether the one before it lived to see everything
   synced, or was told that it was not. So the directory is synced before anything that the file holds is acknowledged.
   What cannot be removed, be it a directory, busy or another user's, is told of once, and the temporary
   file has another name.
4. A store that has opened a file of another program's says so with `mark_foreign`, or `mark_read_only`. Such a file is
   written anew only if the caller has asked for it, and keeps a second name then.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from asyncckpt.disk.lock import FileLock, acquire_file_lock
from asyncckpt.disk.publish import ensure_directory
from asyncckpt.errors import CheckpointWarning, ReadOnlyFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from asyncckpt.disk.ops import DiskOps

Rewrite: TypeAlias = Literal[False, True, "without_backup"]
"""Whether another program's file may be written anew: no; yes, and the old one is kept; yes, and it is not."""
_UNREAD: Final = (-1,)  # like no file
_MAX_TEMPORARY_FILES: Final = 100
_SLACK_NBYTES: Final = 4 << 20


_IN_THE_WAY: Final = frozenset({errno.EBUSY, errno.EPERM, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EXDEV})
"""What renaming answers where the name is taken by what cannot be replaced."""


class FileLocation:
    """The place of one file."""

    def __init__(
        self,
        path: Path,
        ops: DiskOps,
        name: str | None = None,
        *,
        rewrite: Rewrite = False,
        can_keep: bool = True,
    ) -> None:
        """Find the place.

        Args:
            path: The file's name.
            ops: What changes the disk.
            name: What errors call the file, if not that.
            rewrite: Whether another program's file may be written anew.
            can_keep: Whether such a file can be kept beside the new one.
        """
        # What a symbolic link leads to is what is rewritten, and the working directory may change.
        try:
            self.path = path.resolve()
        except RuntimeError:  # what pathlib makes of a loop of links
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
        self.name = str(self.path) if name is None else name
        """What errors call the file."""
        self.ops = ops
        self._temporary = self._temporary_name(0)
        self._told: set[str] = set()
        self._lock: FileLock | None = None
        self._seen: tuple[int, ...] | None = None
        self._is_name_durable = False
        self._rewrite, self._can_keep = rewrite, can_keep
        self._refusal: ReadOnlyFileError | None = None
        self.is_foreign = False
        """Whether another program made the file: then it may only be written anew, to the temporary file."""

    @property
    def is_locked(self) -> bool:
        """Whether this process may change the file."""
        return self._lock is not None

    def _identity(self) -> tuple[int, ...] | None:
        """Return what tells whether the file is still the same, or None if there is none."""
        try:
            return _identity_of(self.path.stat())
        except FileNotFoundError:
            return None

    def leads_to(self, fd: int) -> bool:
        """Whether the file's name still leads to this file, which nobody has removed or replaced."""
        found = self._identity()
        return found is not None and found[:2] == _identity_of(os.fstat(fd))[:2]

    def open(self) -> int | None:
        """Open the file for reading, or return None if there is none. It is taken for one of ours until marked.

        Raises:
            OSError: It cannot be read, or is not a regular file.
        """
        self.is_foreign, self._refusal = False, None
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            self._seen = None
            return None
        try:
            found = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self._seen = _identity_of(found)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            message = f"{self.path} is not a regular file"
            raise IsADirectoryError(message) if self.path.is_dir() else OSError(message)
        return fd

    def mark_foreign(self, losses: str) -> None:
        """Note that another program made the file, which is then written anew only if the caller has asked for that.

        Args:
            losses: What a file that is written anew lacks, to stand behind "without".
        """
        self.is_foreign = True
        if self._rewrite == "without_backup" or (self._rewrite and self._can_keep):
            return
        ask = "rewrite='without_backup'"
        if self._can_keep:
            ask = f"rewrite=True (which keeps the old file as {_backup_name(self.path, 0)!r}) or {ask}"
        message = (
            f"{self.name}: another program made this file, and to change it means to write all of it anew, without"
            f" {losses}. Nothing was changed. Copy its keys to a new file, or open this one with {ask}"
        )
        self._refusal = ReadOnlyFileError(message, file=self.name, losses=losses)

    def mark_read_only(self, reason: str) -> None:
        """Note that the file can only be read, whatever the caller asks for.

        Args:
            reason: Why, to stand behind "it".
        """
        message = f"{self.name}: it {reason}, so it is only read. Nothing was changed. Copy its keys to a new file"
        self._refusal = ReadOnlyFileError(message, file=self.name)

    def _check_changeable(self) -> None:
        if self._refusal is not None:
            raise ReadOnlyFileError(str(self._refusal), file=self._refusal.file, losses=self._refusal.losses)

    def become_writer(self, read_again: Callable[[], None]) -> None:
        """Take the lock, unless it is taken, with the directory made if it is missing.

        Args:
            read_again: Called if the file is not what `open` found: another writer was quicker. If it fails, the lock
                is given back, and the next try reads the file again: who does not know what is in it must not write.

        Raises:
            FileLockedError: There is another writer.
            ReadOnlyFileError: The file is another program's.
            OSError: The directory cannot be made or written.
        """
        if self._lock is not None:
            return
        if self._identity() == self._seen:
            self._check_changeable()
        ensure_directory(self.ops, self.path.parent)
        self._lock = acquire_file_lock(self.ops, self.path)
        try:
            if not self._lock.is_supported:
                message = f"{self.path}: the file system has no locks, so nothing keeps a second writer away"
                warnings.warn(message, CheckpointWarning, stacklevel=2)
            self._remove_leftovers()
            if self._identity() != self._seen:
                read_again()
        except BaseException:
            self._seen = _UNREAD
            self.release()
            raise
        with self.released_on_failure():
            self._check_changeable()  # what was read again

    @contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """While the file is opened to be written to: if that fails, the next try looks again whether it is the same."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def create_temporary(self) -> int:
        """Create the temporary file, with the file's permissions, and return a descriptor to read and write it."""
        fd = self._create_temporary()
        try:
            with suppress(FileNotFoundError):
                mode = stat.S_IMODE(self.path.stat().st_mode)
                if mode != stat.S_IMODE(os.fstat(fd).st_mode):
                    self.ops.set_mode(fd, mode)
        except BaseException:
            os.close(fd)
            self.discard_temporary()
            raise
        return fd

    def _temporary_name(self, number: int) -> Path:
        return self.path.with_name(f".{self.path.name}.tmp" + (f".{number}" if number else ""))

    def _create_temporary(self) -> int:
        for number in range(_MAX_TEMPORARY_FILES):
            self._temporary = self._temporary_name(number)
            try:
                return self.ops.create(self._temporary)
            except FileExistsError:  # one that could not be removed before
                if number == _MAX_TEMPORARY_FILES - 1:
                    raise
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
        raise AssertionError  # the last turn of the loop returns or raises

    def _remove_leftovers(self) -> None:
        """Remove what killed writers were writing, if the disk lets us."""
        for number in range(_MAX_TEMPORARY_FILES):
            path = self._temporary_name(number)
            if number and not os.path.lexists(path):
                return
            with suppress(OSError):
                self.ops.unlink(path)

    def warn_of_growth(self, nbytes: int, live_nbytes: int, obstacle: Exception) -> None:
        """Warn, once, of a file that is larger than is promised, because it could not be written anew."""
        if nbytes > 3 * live_nbytes + _SLACK_NBYTES:
            self._warn_once(
                "growth",
                f"it has grown to {nbytes} bytes, of which {live_nbytes} are needed, for it could not be written anew:"
                f" {obstacle}. What is saved is safe; the file grows until that is mended",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            warnings.warn(f"{self.name}: {message}", CheckpointWarning, stacklevel=2)

    def publish_temporary(self) -> None:
        """Give the complete and synced temporary file the file's name, durably; if that fails, it is removed."""
        self.rename_temporary()
        self.settle_name()

    def rename_temporary(self) -> None:
        """Give the temporary file the file's name, which `settle_name` makes durable; if that fails, it is removed.

        Raises:
            OSError: The file keeps its name, and is what it was.
        """
        try:
            if self.is_foreign and self._rewrite != "without_backup":
                self._keep()
            self._rename()
        except BaseException:
            self.discard_temporary()
            raise
        self.is_foreign = False
        self._is_name_durable = False

    def _rename(self) -> None:
        try:
            self.ops.rename(self._temporary, self.path)
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            reason = (
                f"{error.strerror}; the new file, which was written beside it, cannot take its name. A mount point"
                " cannot be replaced, nor can what another user owns in a sticky directory: use another path"
            )
            raise OSError(error.errno, reason, str(self.path)) from error

    def _keep(self) -> None:
        """Give the file, whose name another will take, a second name that nothing has."""
        number = 0
        while True:
            kept = self.path.with_name(_backup_name(self.path, number))
            try:
                self.ops.link(self.path, kept)
            except FileNotFoundError:
                return  # somebody has removed it: there is nothing to keep
            except FileExistsError:
                if os.path.samestat(kept.lstat(), self.path.lstat()):
                    return  # a try that failed came so far
                number += 1
            except OSError as error:
                reason = (
                    f"{error.strerror}; the old file cannot be kept as {kept.name!r} (by a hard link, which some file"
                    " systems lack): copy it yourself, and open it with rewrite='without_backup'"
                )
                raise OSError(error.errno, reason, str(self.path)) from error
            else:
                return

    def settle_name(self) -> None:
        """Make sure that the file keeps its name whatever happens, if that is not known."""
        if not self._is_name_durable:
            self.ops.sync_directory(self.path.parent)
            self._is_name_durable = True

    def discard_temporary(self) -> None:
        """Remove the temporary file, if the disk lets us: the next writer will otherwise."""
        with suppress(OSError):
            self.ops.unlink(self._temporary)

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self._is_name_durable = False


def _backup_name(path: Path, number: int) -> str:
    return f"{path.name}.orig" + (f".{number}" if number else "")


def _identity_of(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
