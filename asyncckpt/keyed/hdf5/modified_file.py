"""An HDF5 file of ours that another program has changed, for reading only.

1. The catalog still lists the keys that there were and their links. A key whose link is gone has been deleted. A key
   that never had a link, because not every leaf has an HDF5 object, is still there.
2. A value whose bytes still match their digest in the catalog is read as asyncckpt wrote it. Of any other value, what
   its link leads to now is read.
3. The catalog is used if its own digest matches. If not, only the links are left, and a warning says so.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_128_digest

from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError, warn
from asyncckpt.keyed.hdf5.catalog import (
    HEAD_NBYTES,
    Extent,
    ForeignObject,
    annotate_errors,
    decode_catalog,
    find_slots,
    link_name,
)
from asyncckpt.keyed.hdf5.foreign_file import HDF5_ERRORS, ForeignFile
from asyncckpt.keyed.hdf5.native_file import NativeFile
from asyncckpt.keyed.hdf5.superblock import CATALOG_NAME, DIGEST_NAME
from asyncckpt.keyed.hdf5.value_reader import PARTIAL, ValueReader, entry_names, key_of, link_of
from asyncckpt.keyed.values import Found
from asyncckpt.libhdf5 import h5py

if TYPE_CHECKING:
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

_CATALOG: Final = CATALOG_NAME.decode()
_DIGEST: Final = DIGEST_NAME.decode()
_STATE_ATTRIBUTE: Final = "__asyncckpt_format__"  # of the dataset with the catalog's name in a `state.h5`
_ANY_END: Final = (1 << 63) - 1


class ModifiedFile(ForeignFile):
    """A file of ours, or the `state.h5` of a checkpoint, opened by libhdf5 for reading."""

    def __init__(self, location: FileLocation, fd: int, context: JobContext) -> None:
        """Open it.

        Raises:
            CorruptCheckpointError: libhdf5 cannot.
            UnsupportedFormatError: A later release wrote it, or some of its keys are not known.
        """
        self._pacer = context.pacer
        self._native = NativeFile(location.name, os.dup(fd))
        self.keys: list[str] = []
        self._foreign_keys: set[str] = set()
        self.is_state = False
        """Whether it is the state of a checkpoint."""
        try:
            super().__init__(location, fd)
        except BaseException:
            self._native.close()
            raise

    def close(self) -> None:
        """Close it."""
        super().close()
        self._native.close()

    @staticmethod
    def is_one(file: ForeignFile, fd: int) -> bool:
        """Tell whether a file is one of ours, by its slots or by the name of its catalog."""
        with contextlib.suppress(UnsupportedFormatError):
            return bool(find_slots(os.pread(fd, HEAD_NBYTES, 0))) or _CATALOG in file.names
        return True

    def _find_names(self) -> dict[str, str]:
        root = self._file
        if PARTIAL in root.attrs:
            message = (
                f"{self._name} is the state of a checkpoint with keys that only asyncckpt's index has: load it with a"
                " CheckpointManager, and save its values to a keyed file"
            )
            raise UnsupportedFormatError(message)
        with annotate_errors(self._name):
            find_slots(os.pread(self._native.fd, HEAD_NBYTES, 0))  # raises for those of a later release
        extents = self._read_catalog(self._pacer)
        keys = {link_name(key).decode(): key for key in extents}
        names: dict[str, str] = {}
        for name, _ in entry_names(root):
            self._pacer.pause()
            key = keys[name] if name in keys else key_of(root, name)
            if key in names:
                message = f"{self._name}: the names {names[key]!r} and {name!r} both mean the key {key!r}: rename one"
                raise UnsupportedFormatError(message)
            names[key] = name
        nbytes = os.fstat(self._native.fd).st_size
        for key, extent in extents.items():
            self._pacer.pause()
            link = names.get(key)
            if link is None and extent.address is not None:
                continue  # deleted
            self.keys.append(key)
            if isinstance(extent, ForeignObject):
                self._foreign_keys.add(key)
            elif extent.region.end <= nbytes and (link is None or extent.address == self._address(link)):
                self._native.extents[key] = extent
        self.keys += [key for key in names if key not in extents]
        return names

    def _read_catalog(self, pacer: Pacer) -> dict[str, Extent | ForeignObject]:
        """Return the extents of the values according to the catalog, which a `state.h5` does not have.

        Raises:
            UnsupportedFormatError: A later release wrote it.
        """
        with contextlib.suppress(*HDF5_ERRORS, CorruptCheckpointError):
            attributes = self._file[_CATALOG].attrs if self._is_hard(_CATALOG) else {}
            if _STATE_ATTRIBUTE in attributes:
                self.is_state = True
                return {}
            digest = bytes(attributes[_DIGEST])
            data = ValueReader(self._location, pacer, is_ours=False).entry(self._file, _CATALOG, "").tobytes()
            if xxh3_128_digest(data) == digest:
                with annotate_errors(self._name):
                    return decode_catalog(data, _ANY_END, pacer)
        message = (
            f"{self._name}: another program removed or changed its catalog, {_CATALOG!r}: keys without a link are"
            " lost, and long keys may have shortened names"
        )
        warn(message)
        return {}

    def _is_hard(self, name: str) -> bool:
        return isinstance(link_of(self._file, name), h5py.HardLink)

    def _address(self, name: str) -> int:
        """Return the address of the header of the object that a hard link leads to; -1 for another kind of link."""
        if not self._is_hard(name):
            return -1
        return int(self._file.id.links.get_info(name.encode("utf-8", "surrogateescape")).u)

    def read(self, key: str, context: JobContext) -> Found:
        """Read a value; see `ForeignFile.read`.

        Raises:
            CorruptCheckpointError: Also if it had no link, and its bytes are not what they were.
        """
        cause = None
        extent = self._native.extents.get(key)
        if isinstance(extent, Extent):
            try:
                return self._native.read(key, extent, context)
            except CorruptCheckpointError as error:
                cause = error
        if key in self._foreign_keys:
            return super().read(key, context)
        if key in self.names:
            return self._read_objects(key, context.pacer)
        message = (
            f"{self._name}: the value of {key!r} is gone: it had no link in the file, and the program that changed or"
            " copied the file did not keep it"
        )
        raise CorruptCheckpointError(message, file=self._name) from cause

    def _read_objects(self, key: str, pacer: Pacer) -> Found:
        reader = ValueReader(self._location, pacer, is_ours=True)
        name = self.names[key]
        try:
            is_link = link_of(self._file, name) is not None
            value = reader.entry(self._file, name, "") if is_link else reader.attribute(self._file, name, "")
        except HDF5_ERRORS as error:
            raise self._unreadable(repr(key), error) from error
        return Found(value, reader.unknown_types)
