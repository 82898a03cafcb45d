"""HDF5 that others made, and ours after another program changed it: its keys, and where their values are read.

1. The keys of others' files are the links of the root group, and everything is read through libhdf5 (`_hdf5_reading`).
2. In a file of ours the catalog still says which keys there were, under which links. A link that is gone was deleted; a
   key that never had one, because other programs are not shown every leaf, is still there.
3. A value whose bytes still have the digest that the catalog gives it is what we wrote, and is read as such. Others
   are read as what their links lead to now. Where there is no link, either, the value is refused, and so is a rewriting
   that would lose it.
4. The catalog is believed if its own digest is right. If not, the links are all there is, and that is told.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from typing import TYPE_CHECKING, Final, TypeVar

from xxhash import xxh3_128_digest

from asyncckpt.errors import CheckpointWarning, CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.keyed._hdf5_catalog import HEAD_NBYTES, decode_catalog, find_slots, link_name, naming
from asyncckpt.keyed._hdf5_data import DataFile
from asyncckpt.keyed._hdf5_reading import PARTIAL, Reading, entry_names, key_of
from asyncckpt.keyed._hdf5_region import Value
from asyncckpt.keyed._hdf5_root import CATALOG_NAME, DIGEST_NAME, SIGNATURE
from asyncckpt.keyed.base import Found
from asyncckpt.keyed.values import build_value, refer
from asyncckpt.libhdf5 import h5py

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.keyed._hdf5_catalog import Place
    from asyncckpt.keyed.base import Work
    from asyncckpt.keyed.home import Home
    from asyncckpt.runtime.pacing import Pacer

_Read = TypeVar("_Read")

_CATALOG: Final = CATALOG_NAME.decode()
_DIGEST: Final = DIGEST_NAME.decode()
_INDEX_NOTE: Final = "__asyncckpt_format__"  # what the dataset of that name has in a `state.h5`
_ANYWHERE: Final = (1 << 63) - 1
_HDF5_ERRORS: Final = (OSError, KeyError, RuntimeError, ValueError, TypeError)
"""What h5py raises where libhdf5 fails."""


def check_signature(home: Home) -> None:
    """Refuse a file that is no HDF5 at all.

    Raises:
        CorruptCheckpointError: It has no superblock where HDF5 looks for one.
    """
    with home.path.open("rb") as file:
        end = file.seek(0, 2)
        offset = 0
        while offset < end:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return
            offset = max(512, 2 * offset)
    message = f"{home.name} is not an HDF5 file, or its beginning is damaged"
    raise CorruptCheckpointError(message, file=home.name)


class ForeignFile:
    """An HDF5 file, opened by libhdf5 for reading."""

    def __init__(self, home: Home, work: Work) -> None:
        """Open it.

        Raises:
            CorruptCheckpointError: libhdf5 cannot.
            UnsupportedFormatError: A later release wrote it, or not all of its keys can be told.
        """
        self._home = home
        self._name = home.name
        try:
            self._file = h5py.File(home.path, "r", locking=False)
        except OSError as error:
            message = f"{home.name} cannot be read as HDF5: {error}"
            raise CorruptCheckpointError(message, file=home.name) from error
        try:
            self._data = DataFile(home.name, os.dup(self._file.id.get_vfd_handle()))
        except BaseException:
            self._file.close()
            raise
        self._names: dict[str, str] = {}  # of the links, or of the root group's attributes, by their keys
        try:
            with naming(home.name):
                slots = find_slots(os.pread(self._data.fd, HEAD_NBYTES, 0))
            self._is_ours = bool(slots) or self._is_hard(_CATALOG)
            self._keys = self._find_keys(work.pacer())
        except BaseException as error:
            self.close()
            if isinstance(error, _HDF5_ERRORS):
                raise self._unreadable("its root group", error) from error
            raise

    def close(self) -> None:
        """Close it."""
        self._file.close()
        self._data.close()

    # --- keys ---------------------------------------------------------------------------------------------------------

    def _find_keys(self, pacer: Pacer) -> list[str]:
        root = self._file
        if not self._is_ours:
            self._names = {name: name for name in root}
            return list(self._names)
        if PARTIAL in root.attrs:
            message = (
                f"{self._name} is the state of a checkpoint with keys that only asyncckpt's index has: load it with a"
                " CheckpointManager, and save what it holds to a file of many keys"
            )
            raise UnsupportedFormatError(message)
        places = self._read_catalog(pacer)
        keys = {link_name(key).decode(): key for key in places}
        for name, _ in entry_names(root):
            pacer.pause()
            key = keys[name] if name in keys else key_of(root, name)
            if key in self._names:
                message = f"{self._name}: the names {self._names[key]!r} and {name!r} stand for one key: rename one"
                raise UnsupportedFormatError(message)
            self._names[key] = name
        nbytes = os.fstat(self._data.fd).st_size
        found = []
        for key, place in places.items():
            pacer.pause()
            link = self._names.get(key)
            if link is None and place.address is not None:
                continue  # it was deleted
            found.append(key)
            if place.region.end <= nbytes and (link is None or place.address == self._address(link)):
                self._data.places[key] = place
        return found + [key for key in self._names if key not in places]

    def _read_catalog(self, pacer: Pacer) -> dict[str, Place]:
        """Return where the values lay, according to the catalog. A `state.h5` has none.

        Raises:
            UnsupportedFormatError: A later release wrote it.
        """
        with contextlib.suppress(*_HDF5_ERRORS, AttributeError, CorruptCheckpointError):
            notes = self._file[_CATALOG].attrs if self._is_hard(_CATALOG) else {}
            if _INDEX_NOTE in notes:
                return {}
            digest = bytes(notes[_DIGEST])
            data = Reading(self._home, pacer, is_ours=False).entry(self._file, _CATALOG, "").tobytes()
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
        return isinstance(self._file.get(name, getlink=True), h5py.HardLink)

    def _address(self, name: str) -> int:
        """Return where the object that a link leads to has its header, or what is no address."""
        if not self._is_hard(name):
            return -1
        return int(self._file.id.links.get_info(name.encode("utf-8", "surrogateescape")).u)

    def sizes(self, pacer: Pacer) -> dict[str, int]:
        """Return the keys, each with the size that its value takes in the file, as far as that is known."""
        found = {}
        for key in self._keys:
            pacer.pause()
            place = self._data.places.get(key)
            found[key] = self._nbytes(self._names.get(key)) if place is None else place.nbytes
        return found

    def _nbytes(self, name: str | None) -> int:
        try:
            item = self._file[name] if name is not None and self._is_hard(name) else None
            return item.id.get_storage_size() if isinstance(item, h5py.Dataset) else 0
        except _HDF5_ERRORS:
            return 0  # reading it says what is wrong

    # --- values -------------------------------------------------------------------------------------------------------

    def read(self, key: str, work: Work) -> Found:
        """Read a value.

        Raises:
            UnsupportedFormatError: It is of a kind that is not read; says which.
            CorruptCheckpointError: libhdf5 cannot read it, or it is not where only the catalog leads to.
            Stopped: `work.stop` was set.
        """
        found = self._as_written(key, self._data.read, work)
        if found is None:
            return self._read_objects(key, work.pacer())
        with naming(self._name, key):
            return build_value(*found, work.pacer())

    def value(self, key: str, work: Work) -> Value:
        """Return a value that is to be copied; see `read`."""
        found = self._as_written(key, self._data.intact, work)
        if found is None:
            captured = refer(self._read_objects(key, work.pacer()).value, key, work)
            found = Value(key, captured.index, captured.snapshot, captured.names)
        return found

    def _as_written(self, key: str, read: Callable[[str, Place, Work], _Read], work: Work) -> _Read | None:
        """Return what is read of a value that is still what we wrote, or None if its link says what it is.

        Raises:
            CorruptCheckpointError: It is not, and has no link.
        """
        cause = None
        place = self._data.places.get(key)
        if place is not None:
            try:
                return read(key, place, work)
            except CorruptCheckpointError as error:
                cause = error
        if key in self._names:
            return None
        message = (
            f"{self._name}: the value of {key!r} is not there any more: other programs see no link to it, and the one"
            " that changed or copied the file did not keep it. Replace or delete the key"
        )
        raise CorruptCheckpointError(message, file=self._name) from cause

    def _read_objects(self, key: str, pacer: Pacer) -> Found:
        reading = Reading(self._home, pacer, is_ours=self._is_ours)
        name = self._names[key]
        try:
            is_link = not self._is_ours or self._file.get(name, getlink=True) is not None
            value = reading.entry(self._file, name, "") if is_link else reading.attribute(self._file, name, "")
        except _HDF5_ERRORS as error:
            raise self._unreadable(repr(key), error) from error
        return Found(value, reading.unknown_types)

    def _unreadable(self, what: str, error: Exception) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._name}: {what} cannot be read as HDF5: {error}", file=self._name)
