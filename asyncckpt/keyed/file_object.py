"""The location of a file that the caller has opened.

The file is copied to a temporary file when the store is opened, and back as a whole at each commit. So every kind of
store works on it and none needs to know of it. The caller's file has no lock, and a kill in the middle of a copy may
tear it.
"""

from __future__ import annotations

import errno
import io
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from asyncckpt.disk.ops import DiskOps
from asyncckpt.disk.room import explaining, spell
from asyncckpt.errors import ConfigError
from asyncckpt.keyed.location import FileLocation
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.keyed.location import Rewrite

_CHUNK_NBYTES: Final = 1 << 20


def check_stream(stream: Any) -> None:
    """Check that a file is open in a mode that a store can use.

    Raises:
        ConfigError: It is closed, or open as text, without seeking, or for appending.
    """
    name = getattr(stream, "name", stream)
    mode = getattr(stream, "mode", None)
    how = f"{name!r} is open in mode {mode!r}" if isinstance(mode, str) else f"{name!r}"
    need = "open it in binary mode, with 'r+b' (with 'w+b' if it is new, or 'rb' only to read)"
    if getattr(stream, "closed", False):
        message = f"{name!r} is closed: {need}"
        raise ConfigError(message)
    if isinstance(stream, io.TextIOBase) or (isinstance(mode, str) and "b" not in mode and hasattr(stream, "encoding")):
        message = f"{how}, as text: {need}"
        raise ConfigError(message)
    if not (_can(stream, "readable") and _can(stream, "seekable")):
        message = f"{how}, and cannot be read at any position: {need}"
        raise ConfigError(message)
    if isinstance(mode, str) and "a" in mode:
        message = f"{how}, and can only be written at its end: {need}"
        raise ConfigError(message)


def _can(stream: Any, what: str) -> bool:
    return bool(getattr(stream, what, lambda: True)())


class _Unsynced(DiskOps):
    """A disk for a temporary file, which need not be durable."""

    def sync(self, fd: int) -> None:
        """Do nothing."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing."""


class FileObjectLocation(FileLocation):
    """A temporary file with a copy of the caller's file, which each commit is copied back to."""

    def __init__(self, stream: IO[bytes], rewrite: Rewrite) -> None:
        """Copy the caller's file.

        Raises:
            ConfigError: It is not open in a mode that can be used.
            OSError: It cannot be read, or there is no room for the copy.
        """
        check_stream(stream)
        self._stream = stream
        self._directory = Path(tempfile.mkdtemp(prefix="asyncckpt-"))
        with on_failure(self._remove_copy):
            path = self._directory / "stream"
            stream.seek(0)
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_NBYTES)
            name = str(getattr(stream, "name", stream))
            super().__init__(path, _Unsynced(), name, rewrite=rewrite, can_back_up=False)

    def acquire(self, read_again: Callable[[], None]) -> None:
        """Check that the caller's file can be written, and lock the copy."""
        if not _can(self._stream, "writable"):
            message = f"{self.name!r} is open for reading only: open it with 'r+b' to change it"
            raise ConfigError(message)
        super().acquire(read_again)

    def after_commit(self) -> None:
        """Copy the file back as a whole."""
        nbytes = self.path.stat().st_size
        with explaining(Path(self.name), f"the whole file takes {spell(nbytes)}"):
            self._stream.seek(0)
            with self.path.open("rb") as file:
                while chunk := file.read(_CHUNK_NBYTES):
                    self._write(chunk)
            self._stream.truncate()
            self._stream.flush()

    def _write(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            count = self._stream.write(left)
            if not count:
                raise OSError(errno.EIO, f"{self._stream!r} took none of {len(left)} bytes")
            left = left[count:]

    def close(self) -> None:
        """Release the lock, and remove the copy. The caller's file stays open."""
        try:
            super().close()
        finally:
            self._remove_copy()

    def _remove_copy(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
