"""A file of ours after another program changed it, which is only read.

1. The catalog still says which keys there were, under which links. A link that is gone was deleted; a key that never
   had one, because other programs are not shown every leaf, is still there.
2. A value whose bytes still have the digest that the catalog gives it is what we wrote, and is read as such. Others
   are read as what their links lead to now.
3. The catalog is believed if its own digest is right. If not, the links are all there is, and that is told.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_128_digest

from asyncckpt.errors import CheckpointWarning, CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES, Linked, Place, decode_catalog, find_slots, link_name, naming
from asyncckpt.keyed.hdf5.data_file import DataFile
from asyncckpt.keyed.hdf5.foreign_file import HDF5_ERRORS, ForeignFile
from asyncckpt.keyed.hdf5.object_reader import PARTIAL, Reading, entry_names, key_of, link_of
from asyncckpt.keyed.hdf5.root_group import CATALOG_NAME, DIGEST_NAME
from asyncckpt.keyed.values import Found, build_value
from asyncckpt.libhdf5 import h5py

if TYPE_CHECKING:
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

_CATALOG: Final = CATALOG_NAME.decode()
_DIGEST: Final = DIGEST_NAME.decode()
_INDEX_NOTE: Final = "__asyncckpt_format__"  # what the dataset of that name has in a `state.h5`
_ANYWHERE: Final = (1 << 63) - 1


class ChangedFile(ForeignFile):
    """A file of ours, or the `state.h5` of a checkpoint, opened by libhdf5 for reading."""

    def __init__(self, location: FileLocation, fd: int, work: JobContext) -> None:
        """Open it.

        Raises:
            CorruptCheckpointError: libhdf5 cannot.
            UnsupportedFormatError: A later release wrote it, or not all of its keys can be told.
        """
        self._pacer = work.pacer
        self._data = DataFile(location.name, os.dup(fd))
        self.keys: list[str] = []
        self._linked: set[str] = set()
        self.is_state = False
        """Whether it is the state of a checkpoint."""
        try:
            super().__init__(location, fd)
        except BaseException:
            self._data.close()
            raise

    def close(self) -> None:
        """Close it."""
        super().close()
        self._data.close()

    @staticmethod
    def is_one(file: ForeignFile, fd: int) -> bool:
        """Tell whether a file is one of ours, by its slots, or by what it names."""
        with contextlib.suppress(UnsupportedFormatError):
            return bool(find_slots(os.pread(fd, HEAD_NBYTES, 0))) or _CATALOG in file.names
        return True

    def _find_names(self) -> dict[str, str]:
        root = self._file
        if PARTIAL in root.attrs:
            message = (
                f"{self._name} is the state of a checkpoint with keys that only asyncckpt's index has: load it with a"
                " CheckpointManager, and save what it holds to a keyed file"
            )
            raise UnsupportedFormatError(message)
        with naming(self._name):
            find_slots(os.pread(self._data.fd, HEAD_NBYTES, 0))  # a later release's are told
        places = self._read_catalog(self._pacer)
        keys = {link_name(key).decode(): key for key in places}
        names: dict[str, str] = {}
        for name, _ in entry_names(root):
            self._pacer.pause()
            key = keys[name] if name in keys else key_of(root, name)
            if key in names:
                message = f"{self._name}: the names {names[key]!r} and {name!r} stand for one key: rename one"
                raise UnsupportedFormatError(message)
            names[key] = name
        nbytes = os.fstat(self._data.fd).st_size
        for key, place in places.items():
            self._pacer.pause()
            link = names.get(key)
            if link is None and place.address is not None:
                continue  # it was deleted
            self.keys.append(key)
            if isinstance(place, Linked):
                self._linked.add(key)
            elif place.region.end <= nbytes and (link is None or place.address == self._address(link)):
                self._data.places[key] = place
        self.keys += [key for key in names if key not in places]
        return names

    def _read_catalog(self, pacer: Pacer) -> dict[str, Place | Linked]:
        """Return where the values lay, according to the catalog. A `state.h5` has none.

        Raises:
            UnsupportedFormatError: A later release wrote it.
        """
        with contextlib.suppress(*HDF5_ERRORS, AttributeError, CorruptCheckpointError):
            notes = self._file[_CATALOG].attrs if self._is_hard(_CATALOG) else {}
            if _INDEX_NOTE in notes:
                self.is_state = True
                return {}
            digest = bytes(notes[_DIGEST])
            data = Reading(self._location, pacer, is_ours=False).entry(self._file, _CATALOG, "").tobytes()
            if xxh3_128_digest(data) == digest:
                with naming(self._name):
                    return decode_catalog(data, _ANYWHERE, pacer)
        message = (
            f"{self._name}: another program removed or changed its catalog, {_CATALOG!r}: keys that no link leads to"
            " are lost, as may be how long ones are spelled"
        )
        warnings.warn(message, CheckpointWarning, stacklevel=2)
        return {}

    def _is_hard(self, name: str) -> bool:
        return isinstance(link_of(self._file, name), h5py.HardLink)

    def _address(self, name: str) -> int:
        """Return where the object that a link leads to has its header, or what is no address."""
        if not self._is_hard(name):
            return -1
        return int(self._file.id.links.get_info(name.encode("utf-8", "surrogateescape")).u)

    def read(self, key: str, work: JobContext) -> Found:
        """Read a value; see `ForeignFile.read`.

        Raises:
            CorruptCheckpointError: Also if it is not where only the catalog leads to.
        """
        cause = None
        place = self._data.places.get(key)
        if isinstance(place, Place):
            try:
                found = self._data.read(key, place, work)
            except CorruptCheckpointError as error:
                cause = error
            else:
                with naming(self._name, key):
                    return build_value(*found, work.pacer)
        if key in self._linked:
            return super().read(key, work)
        if key in self.names:
            return self._read_objects(key, work.pacer)
        message = (
            f"{self._name}: the value of {key!r} is not there any more: other programs see no link to it, and the one"
            " that changed or copied the file did not keep it"
        )
        raise CorruptCheckpointError(message, file=self._name) from cause

    def _read_objects(self, key: str, pacer: Pacer) -> Found:
        reading = Reading(self._location, pacer, is_ours=True)
        name = self.names[key]
        try:
            is_link = link_of(self._file, name) is not None
            value = reading.entry(self._file, name, "") if is_link else reading.attribute(self._file, name, "")
        except HDF5_ERRORS as error:
            raise self._unreadable(repr(key), error) from error
        return Found(value, reading.unknown_types)
