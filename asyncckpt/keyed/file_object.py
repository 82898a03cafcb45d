"""A store in a file that the caller has opened.

The file is copied to a temporary file when the store is opened, and back as a whole at each commit. So every kind of
store works on it and none needs to know of it. There is no lock, and a kill in the middle of a copy may tear the file.
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
from asyncckpt.keyed.base import Store
from asyncckpt.keyed.location import FileLocation
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import Rewrite
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext

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


class FileObjectStore(Store):
    """A store in a temporary file, which is copied from the caller's file and back."""

    def __init__(self, stream: IO[bytes], make: Callable[[FileLocation], Store], rewrite: Rewrite) -> None:
        self._stream = stream
        self._directory = Path(tempfile.mkdtemp(prefix="asyncckpt-"))
        self._path = self._directory / "stream"
        with on_failure(self._remove_copy):
            stream.seek(0)
            with self._path.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK_NBYTES)
            name = str(getattr(stream, "name", stream))
            self._location = FileLocation(self._path, _Unsynced(), name, rewrite=rewrite, can_back_up=False)
            self._inner = make(self._location)
        self._is_changed = False

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        return self._inner.entries

    def disk_use(self) -> tuple[Path, int] | None:
        return self._inner.disk_use()

    def begin(self, context: JobContext) -> None:
        if not _can(self._stream, "writable"):
            name = getattr(self._stream, "name", self._stream)
            message = f"{name!r} is open for reading only: open it with 'r+b' to change it"
            raise ConfigError(message)
        self._inner.begin(context)

    def read(self, key: str, context: JobContext) -> Found:
        return self._inner.read(key, context)

    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        self.begin(context)
        self._inner.put(key, value, context)
        self._is_changed = True

    def delete(self, key: str, context: JobContext) -> None:
        self.begin(context)
        self._inner.delete(key, context)
        self._is_changed = True

    def commit(self, context: JobContext) -> None:
        if not self._is_changed:
            return
        self._inner.commit(context)
        nbytes = self._path.stat().st_size
        with explaining(Path(self._location.name), lambda: f"the whole file takes {spell(nbytes)}"):
            self._copy_back()
        self._is_changed = False

    def _copy_back(self) -> None:
        self._stream.seek(0)
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_NBYTES):
                left = memoryview(chunk)
                while left:
                    count = self._stream.write(left)
                    if not count:
                        raise OSError(errno.EIO, f"{self._stream!r} took none of {len(left)} bytes")
                    left = left[count:]
        self._stream.truncate()
        self._stream.flush()

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            self._remove_copy()

    def _remove_copy(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
