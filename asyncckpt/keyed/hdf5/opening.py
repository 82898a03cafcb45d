"""Open an HDF5 keyed file: directly if asyncckpt wrote it last, else through libhdf5 if the caller trusts it.

1. A file of ours may hold objects of other programs, copied from the file that it replaced. Those are read through
   libhdf5, too.
2. A file of another program may be rewritten, if the caller asked for it. A file of ours that another program has
   changed, and the state of a checkpoint, are only read.
3. The catalog of a changed file still lists the keys that there were and their links. A key whose link is gone has been
   deleted. A key that never had a link, because not every leaf has an HDF5 object, is still there. If the catalog does
   not match its own digest, only the links are left, and a warning says so.
4. A value of a changed file whose bytes still match their digest in the catalog is read as asyncckpt wrote it. Of any
   other value, what its link leads to now is read.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from xxhash import xxh3_128_digest

from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError, UntrustedFileError, warn
from asyncckpt.keyed.damage import errors_of
from asyncckpt.keyed.hdf5.catalog import (
    CATALOG_NAME,
    DIGEST_NAME,
    HEAD_NBYTES,
    ForeignObject,
    decode_catalog,
    find_slots,
    link_name,
)
from asyncckpt.keyed.hdf5.foreign_file import HDF5_ERRORS, ForeignFile, check_signature, open_hdf5, unreadable
from asyncckpt.keyed.hdf5.native_file import ForeignFileError, NativeFile
from asyncckpt.keyed.hdf5.value_reader import PARTIAL, ValueReader, entry_names, key_of, link_of, names_in
from asyncckpt.keyed.hdf5.value_table import InFile
from asyncckpt.libhdf5 import h5py
from asyncckpt.runtime.cleanup import on_failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.keyed.hdf5.catalog import Row
    from asyncckpt.keyed.hdf5.value_table import Source
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

_CATALOG: Final = CATALOG_NAME.decode()
_DIGEST: Final = DIGEST_NAME.decode()
_STATE_ATTRIBUTE: Final = "__asyncckpt_format__"  # of the dataset with the catalog's name in a `state.h5`
_ANY_END: Final = (1 << 63) - 1
_IN_OBJECTS: Final = ForeignObject(0, 0)
"""The source of a value that is found by its link only."""


class Content(NamedTuple):
    """An opened file."""

    native: NativeFile | None
    """The file, if asyncckpt wrote it, even if another program has changed it since."""
    foreign: ForeignFile | None
    """What reads values through libhdf5, if there are any to be read in this way."""
    sources: Mapping[str, Source]
    """Where the values are."""


def open_content(location: FileLocation, context: JobContext, *, trusted: bool) -> Content:
    """Open the file; without one, there are no keys.

    Raises:
        UntrustedFileError: asyncckpt did not write it, or not last, and `trusted` is False.
        CorruptCheckpointError: It is not HDF5, or damaged.
        UnsupportedFormatError: A later release wrote it, or some of its keys are not known.
        OSError: It cannot be read.
    """
    fd = location.open()
    if fd is None:
        return Content(None, None, {})
    with on_failure(partial(os.close, fd)):
        try:
            native = NativeFile.open(location, fd, context.pacer)
        except ForeignFileError as error:
            check_signature(location)
            _check_trust(location, str(error), trusted=trusted)
            content = _open_foreign(location, fd, str(error), context.pacer)
        else:
            sources: dict[str, Source] = {
                key: extent if isinstance(extent, ForeignObject) else InFile(native, extent)
                for key, extent in native.extents.items()
            }
            content = Content(native, open_foreign_objects(location, native, trusted=trusted), sources)
    if content.native is None:  # which the descriptor would belong to
        os.close(fd)
    return content


def open_foreign_objects(location: FileLocation, file: NativeFile, *, trusted: bool) -> ForeignFile | None:
    """Open what reads the objects of other programs in a file of ours, if there are any.

    Raises:
        UntrustedFileError: There are, and `trusted` is False.
    """
    if not file.foreign_objects:
        return None
    _check_trust(location, "holds objects that another program made", trusted=trusted)
    names = {key: link_name(key) for key in file.foreign_objects}
    return ForeignFile(location, open_hdf5(location, file.fd), names)


def _check_trust(location: FileLocation, reason: str, *, trusted: bool) -> None:
    if not trusted:
        message = (
            f"{location.name} {reason}. Only libhdf5 can read it, which a hostile file can crash or keep busy forever:"
            " open it with trusted=True if you know where it comes from"
        )
        raise UntrustedFileError(message)


def _open_foreign(location: FileLocation, fd: int, reason: str, pacer: Pacer) -> Content:
    file = open_hdf5(location, fd)
    with on_failure(file.close), unreadable(location, "its root group"):
        names = names_in(file)
        if _CATALOG in names or find_slots(os.pread(fd, HEAD_NBYTES, 0)):
            return _open_changed(location, fd, file, reason, pacer)
    location.mark_foreign(
        "the attributes of its root group, references between its objects, and, of what libhdf5 cannot copy as it is,"
        " the attributes and the compression"
    )
    return Content(None, ForeignFile(location, file, {name: name for name in names}), dict.fromkeys(names, _IN_OBJECTS))


def _open_changed(location: FileLocation, fd: int, file: h5py.File, reason: str, pacer: Pacer) -> Content:
    """Open a file of ours that another program has changed or copied, or the `state.h5` of a checkpoint."""
    if PARTIAL in file.attrs:
        message = (
            f"{location.name} is the state of a checkpoint with keys that only asyncckpt's index has: load it with a"
            " CheckpointManager, and save its values to a keyed file"
        )
        raise UnsupportedFormatError(message)
    catalog = _read_catalog(location, file, pacer)
    location.mark_read_only("is the state of a checkpoint" if catalog is None else reason)
    extents = catalog or {}
    names = _links_by_key(location, file, extents, pacer)
    native = NativeFile(location, fd)
    nbytes = os.fstat(fd).st_size
    sources: dict[str, Source] = {}
    for key, extent in extents.items():
        pacer.pause()
        link = names.get(key)
        if link is None and extent.address is not None:
            continue  # deleted
        if isinstance(extent, ForeignObject):
            sources[key] = extent
        elif extent.region.end <= nbytes and (link is None or extent.address == _address(file, link)):
            sources[key] = InFile(native, extent)
        else:
            sources[key] = _IN_OBJECTS
    for key in names:
        sources.setdefault(key, _IN_OBJECTS)
    ours = {key for key in sources if not isinstance(extents.get(key), ForeignObject)}
    return Content(native, ForeignFile(location, file, names, ours), sources)


def _links_by_key(location: FileLocation, file: h5py.File, extents: Mapping[str, Row], pacer: Pacer) -> dict[str, str]:
    """Return the name of each key's link. Those that the catalog does not list are spelled as asyncckpt does."""
    keys = {link_name(key): key for key in extents}
    names: dict[str, str] = {}
    for name, _ in entry_names(file):
        pacer.pause()
        key = keys[name] if name in keys else key_of(file, name)
        if key in names:
            message = f"{location.name}: the names {names[key]!r} and {name!r} both mean the key {key!r}: rename one"
            raise UnsupportedFormatError(message)
        names[key] = name
    return names


def _read_catalog(location: FileLocation, file: h5py.File, pacer: Pacer) -> Mapping[str, Row] | None:
    """Return where the values are according to the catalog; None for a `state.h5`, which has none.

    Raises:
        UnsupportedFormatError: A later release wrote it.
    """
    with contextlib.suppress(*HDF5_ERRORS, CorruptCheckpointError):
        attributes = file[_CATALOG].attrs if _is_hard(file, _CATALOG) else {}
        if _STATE_ATTRIBUTE in attributes:
            return None
        digest = bytes(attributes[_DIGEST])
        data = ValueReader(location, pacer, is_ours=False).entry(file, _CATALOG, "").tobytes()
        if xxh3_128_digest(data) == digest:
            with errors_of(location.name):
                return decode_catalog(data, _ANY_END, pacer)
    message = (
        f"{location.name}: another program removed or changed its catalog, {_CATALOG!r}: keys without a link are lost,"
        " and long keys may have shortened names"
    )
    warn(message)
    return {}


def _is_hard(file: h5py.File, name: str) -> bool:
    return isinstance(link_of(file, name), h5py.HardLink)


def _address(file: h5py.File, name: str) -> int:
    """Return the address of the header of the object that a hard link leads to; -1 for another kind of link."""
    if not _is_hard(file, name):
        return -1
    return int(file.id.links.get_info(name.encode("utf-8", "surrogateescape")).u)
