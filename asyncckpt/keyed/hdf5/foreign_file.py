"""HDF5 objects that other programs made: read through libhdf5 (`object_reader`), and copied as they are.

1. The keys of a file that others made are the links of its root group.
2. A file that is written anew begins with copies of such objects, which libhdf5 makes: with their attributes, and with
   what they are compressed by. The head of a file of ours, and what leads to its keys, is written over and behind that.
   So libhdf5 must put nothing where the head will be: a dataset, which nothing leads to afterwards, holds the place.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.disk.write_blocks import Part, write_all
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES, Linked, link_name
from asyncckpt.keyed.hdf5.object_reader import Reading, names_in
from asyncckpt.keyed.hdf5.region import Value
from asyncckpt.keyed.hdf5.root_group import SIGNATURE
from asyncckpt.keyed.values import Found, refer
from asyncckpt.libhdf5 import h5o, h5py

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""What h5py raises where libhdf5 fails."""


def check_signature(location: FileLocation) -> None:
    """Refuse a file that is no HDF5 at all.

    Raises:
        CorruptCheckpointError: It has no superblock where HDF5 looks for one.
    """
    with location.path.open("rb") as file:
        end = file.seek(0, 2)
        offset = 0
        while offset < end:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return
            offset = max(512, 2 * offset)
    message = f"{location.name} is not an HDF5 file, or its beginning is damaged"
    raise CorruptCheckpointError(message, file=location.name)


class ForeignFile:
    """An HDF5 file, opened by libhdf5 for reading."""

    def __init__(self, location: FileLocation, fd: int, linked: Iterable[str] | None = None) -> None:
        """Open it.

        Args:
            location: Where it is.
            fd: A descriptor of it, which it leaves alone.
            linked: The keys in a file of ours that others made; None in a file that is not ours: all.

        Raises:
            CorruptCheckpointError: libhdf5 cannot.
        """
        self._location = location
        self._name = location.name
        try:
            self._file = h5py.File(f"/proc/self/fd/{fd}", "r", locking=False)
        except OSError as error:
            message = f"{location.name} cannot be read as HDF5: {error}"
            raise CorruptCheckpointError(message, file=location.name) from error
        try:
            self.names = self._find_names() if linked is None else {key: link_name(key).decode() for key in linked}
            """The names of the links, by their keys."""
        except HDF5_ERRORS as error:
            self.close()
            raise self._unreadable("its root group", error) from error

    def _find_names(self) -> dict[str, str]:
        return {name: name for name in names_in(self._file)}

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def read(self, key: str, work: JobContext) -> Found:
        """Read a value.

        Raises:
            UnsupportedFormatError: It is of a kind that is not read; says which.
            CorruptCheckpointError: libhdf5 cannot read it.
            Stopped: `work.stop` was set.
        """
        reading = Reading(self._location, work.pacer, is_ours=False)
        try:
            return Found(reading.entry(self._file, self.names[key], ""), {})
        except HDF5_ERRORS as error:
            raise self._unreadable(repr(key), error) from error

    def value(self, key: str, work: JobContext) -> Value:
        """Return a value that is to be written as ours, because its objects cannot be copied; see `read`."""
        captured = refer(self.read(key, work).value, key, work)
        return Value(key, captured.index, captured.snapshot, captured.names)

    def _unreadable(self, what: str, error: Exception) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._name}: {what} cannot be read as HDF5: {error}", file=self._name)

    def copy(self, keys: Iterable[str], ops: DiskOps, fd: int, pacer: Pacer) -> tuple[dict[str, Linked], int]:
        """Begin a new file, which is empty, with copies of the objects that these keys lead to.

        Returns:
            Where they lie, those left out that libhdf5 cannot copy as they are; and where the file ends.

        Raises:
            OSError: The disk failed.
        """
        disk = _Disk(ops, fd)
        found, place = dict[str, Linked](), None
        try:
            with h5py.File(disk, "w", libver=("v110", "v110"), fs_strategy="none") as new:
                held = new.create_dataset("head", (HEAD_NBYTES,), "u1")
                held[:] = 0
                found = dict(self._copies(keys, new, disk, pacer))
                place = held.id.get_offset()
        except HDF5_ERRORS:
            if disk.error is None:
                raise
        if disk.error is not None:
            raise disk.error
        if place is None or place > HEAD_NBYTES // 3 or any(each.address < HEAD_NBYTES for each in found.values()):
            message = f"{self._name}: this release of libhdf5 lays files out in a way that is not known here"
            raise UnsupportedFormatError(message)
        return found, os.fstat(fd).st_size

    def _copies(self, keys: Iterable[str], new: h5py.File, disk: _Disk, pacer: Pacer) -> Iterator[tuple[str, Linked]]:
        end = new.id.get_filesize()
        for number, key in enumerate(keys):
            pacer.pause()
            name = self.names[key]
            copy = None
            try:
                Reading(self._location, pacer, is_ours=False).check_link(self._file, name, f"/{name}")
                h5o.copy(self._file.id, name.encode("utf-8", "surrogateescape"), new.id, b"%d" % number)
                _check_sound(new[str(number)], pacer)
                copy = new[str(number)]
            except (UnsupportedFormatError, *HDF5_ERRORS):
                pass
            if disk.error is not None:
                return
            if copy is None:
                continue
            begin, end = end, new.id.get_filesize()
            yield key, Linked(h5o.get_info(copy.id).addr, end - begin)


def _check_sound(copy: Any, pacer: Pacer) -> None:
    """Look at all that was copied: there are default values that libhdf5 copies so that they lead nowhere."""

    def look(_: str, item: Any) -> None:
        pacer.pause()
        if isinstance(item, h5py.Dataset):
            item.id.get_create_plist()

    look("", copy)
    if isinstance(copy, h5py.Group):
        copy.visititems(look)


class _Disk:
    """A file as h5py takes one of Python's, written through a `DiskOps`.

    It raises nothing: after an exception libhdf5 goes on to call, and no Python code may run with an exception set. The
    first error is kept, nothing is written after it, and whoever has the file asks for it.
    """

    def __init__(self, ops: DiskOps, fd: int) -> None:
        self._ops = ops
        self._fd = fd
        self._at = 0
        self.error: OSError | None = None
        """What went wrong."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset if whence == os.SEEK_SET else os.fstat(self._fd).st_size + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, nbytes: int) -> bytes:
        data = b""
        with self._keeping_errors():
            data = os.pread(self._fd, nbytes, self._at)
        return data.ljust(nbytes, b"\0")

    def write(self, data: Any) -> int:
        with self._keeping_errors():
            if self.error is None:
                write_all(self._ops, self._fd, [Part(self._at, np.frombuffer(bytes(data), np.uint8))])
        return len(data)

    def truncate(self, nbytes: int | None = None) -> int:
        nbytes = self._at if nbytes is None else nbytes
        with self._keeping_errors():
            if self.error is None:
                self._ops.truncate(self._fd, nbytes)
        return nbytes

    def flush(self) -> None:
        """Do nothing: a commit syncs."""

    @contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
