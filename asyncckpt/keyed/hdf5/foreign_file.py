"""HDF5 objects of other programs, read through libhdf5, and copied by it.

1. The keys of a file of another program are the links of its root group. In a file of ours that another program has
   changed, the values of some keys are still in the layout that asyncckpt writes.
2. A file that replaces it begins with copies of its objects, made by libhdf5, with their attributes and compression.
   The superblock, the slots and the root group of ours are then written over the beginning and behind the end of that.
   So libhdf5 must put nothing where the head will be: a dataset that nothing refers to afterwards keeps that room.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.disk.write_blocks import Part, write_all
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.formats.hdf5.structures import SIGNATURE
from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES, ForeignObject
from asyncckpt.keyed.hdf5.value_reader import ValueReader, link_of
from asyncckpt.keyed.values import Found
from asyncckpt.libhdf5 import h5o, h5py

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

HDF5_ERRORS: Final = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError)
"""What h5py raises where libhdf5 fails, and Python where attributes that another program changed are impossible."""


def check_signature(location: FileLocation) -> None:
    """Check that a file is HDF5 at all.

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


@contextmanager
def unreadable(location: FileLocation, what: str) -> Iterator[None]:
    """Name what is read in errors of libhdf5.

    Raises:
        CorruptCheckpointError: In place of them.
    """
    try:
        yield
    except HDF5_ERRORS as error:
        message = f"{location.name}: {what} cannot be read as HDF5: {error}"
        raise CorruptCheckpointError(message, file=location.name) from error


def open_hdf5(location: FileLocation, fd: int) -> h5py.File:
    """Let libhdf5 open a file, for reading, by a descriptor that stays open.

    Raises:
        CorruptCheckpointError: It cannot.
    """
    try:
        return h5py.File(f"/proc/self/fd/{fd}", "r", locking=False)
    except OSError as error:
        message = f"{location.name} cannot be read as HDF5: {error}"
        raise CorruptCheckpointError(message, file=location.name) from error


class ForeignFile:
    """The values of a file that libhdf5 reads, by their keys."""

    def __init__(
        self, location: FileLocation, file: h5py.File, names: Mapping[str, str], ours: Collection[str] = ()
    ) -> None:
        """Take an open file.

        Args:
            location: Its location.
            file: The file, which `close` closes.
            names: The names of the links in its root group, by their keys.
            ours: Keys whose values are in the layout that asyncckpt writes. They may lack a link.
        """
        self._location = location
        self._name = location.name
        self._file = file
        self._names = names
        self.ours = ours

    def close(self) -> None:
        """Close it."""
        self._file.close()

    def read(self, key: str, context: JobContext) -> Found:
        """Read a value.

        Raises:
            UnsupportedFormatError: It is of a kind that is not supported; the message says which.
            CorruptCheckpointError: libhdf5 cannot read it, or it is gone.
            Stopped: `context.stop` was set.
        """
        name = self._names.get(key)
        reader = ValueReader(self._location, context.pacer, is_ours=key in self.ours)
        if name is not None:
            with unreadable(self._location, repr(key)):
                if key not in self.ours or link_of(self._file, name) is not None:
                    return Found(reader.entry(self._file, name, ""), reader.unknown_types)
                if name in self._file.attrs:
                    return Found(reader.attribute(self._file, name, ""), reader.unknown_types)
        message = (
            f"{self._name}: the value of {key!r} is gone: it had no link in the file, and the program that changed or"
            " copied the file did not keep it"
        )
        raise CorruptCheckpointError(message, file=self._name)

    def copy(self, keys: Iterable[str], fd: int, pacer: Pacer) -> tuple[dict[str, ForeignObject], int]:
        """Copy the objects of some keys to a new file, which is empty.

        Returns:
            The copies, without those of objects that libhdf5 cannot copy as they are; and the end of the file.

        Raises:
            OSError: The disk failed.
        """
        disk = _Disk(self._location.ops, fd)
        found, head = dict[str, ForeignObject](), None
        try:
            with h5py.File(disk, "w", libver=("v110", "v110"), fs_strategy="none") as new:
                reserved = new.create_dataset("head", (HEAD_NBYTES,), "u1")
                reserved[:] = 0
                found = dict(self._copies(keys, new, disk, pacer))
                head = reserved.id.get_offset()
        except HDF5_ERRORS:
            if disk.error is None:
                raise
        if disk.error is not None:
            raise disk.error
        if head is None or head > HEAD_NBYTES // 3 or any(each.address < HEAD_NBYTES for each in found.values()):
            message = f"{self._name}: this release of libhdf5 has a layout that asyncckpt does not know"
            raise UnsupportedFormatError(message)
        return found, os.fstat(fd).st_size

    def _copies(
        self, keys: Iterable[str], new: h5py.File, disk: _Disk, pacer: Pacer
    ) -> Iterator[tuple[str, ForeignObject]]:
        end = new.id.get_filesize()
        for number, key in enumerate(keys):
            pacer.pause()
            name = self._names[key]
            copy = None
            try:
                ValueReader(self._location, pacer, is_ours=False).check_link(self._file, name, f"/{name}")
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
            yield key, ForeignObject(h5o.get_info(copy.id).addr, end - begin)


def _check_sound(copy: Any, pacer: Pacer) -> None:
    """Check all that was copied, because libhdf5 copies some fill values so that they refer to nothing."""

    def look(_: str, item: Any) -> None:
        pacer.pause()
        if isinstance(item, h5py.Dataset):
            item.id.get_create_plist()

    look("", copy)
    if isinstance(copy, h5py.Group):
        copy.visititems(look)


class _Disk:
    """A Python file object for h5py that writes through a `DiskOps`.

    Its methods raise nothing, because libhdf5 goes on to call them after an exception, and no Python code may run with
    an exception set. The first error is kept for the caller to raise, and nothing is written after it.
    """

    def __init__(self, ops: DiskOps, fd: int) -> None:
        self._ops = ops
        self._fd = fd
        self._at = 0
        self.error: OSError | None = None
        """The first error."""

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
