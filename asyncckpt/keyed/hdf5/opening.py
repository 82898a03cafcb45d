"""Open an HDF5 keyed file: directly if asyncckpt wrote it last, else through libhdf5 if the caller trusts it.

1. A file of ours may hold objects of other programs, copied from the file that it replaced. Those are read through
   libhdf5, too.
2. A file of another program may be rewritten, if the caller asked for it. A file of ours that another program has
   changed, and the state of a checkpoint, are only read.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from asyncckpt.errors import UntrustedFileError
from asyncckpt.keyed.hdf5.catalog import ForeignObject
from asyncckpt.keyed.hdf5.native_file import ForeignFileError, NativeFile
from asyncckpt.keyed.hdf5.value_table import InFile, InObjects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.keyed.hdf5.foreign_file import ForeignFile
    from asyncckpt.keyed.hdf5.value_table import Source
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.context import JobContext


class Content(NamedTuple):
    """An opened file."""

    native: NativeFile | None
    """The file, if asyncckpt wrote it last."""
    foreign: ForeignFile | None
    """What reads the objects of other programs, if there are any."""
    sources: Mapping[str, Source]
    """Where the values are."""


def open_content(location: FileLocation, context: JobContext, *, trusted: bool) -> Content:
    """Open the file; without one, there are no keys.

    Raises:
        UntrustedFileError: asyncckpt did not write it, or not last, and `trusted` is False.
        CorruptCheckpointError: It is not HDF5, or damaged.
        UnsupportedFormatError: A later release wrote it.
        OSError: It cannot be read.
    """
    fd = location.open()
    if fd is None:
        return Content(None, None, {})
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        try:
            native = NativeFile.open(location.name, fd, context.pacer)
        except ForeignFileError as error:
            return _open_foreign(location, fd, str(error), context, trusted=trusted)
        foreign = open_foreign_objects(location, native, trusted=trusted)
        stack.pop_all()  # the descriptor belongs to `native`
    sources: dict[str, Source] = {
        key: InObjects(extent.nbytes) if isinstance(extent, ForeignObject) else InFile(native, extent)
        for key, extent in native.extents.items()
    }
    return Content(native, foreign, sources)


def open_foreign_objects(location: FileLocation, file: NativeFile, *, trusted: bool) -> ForeignFile | None:
    """Open what reads the objects of other programs in a file of ours, if there are any.

    Raises:
        UntrustedFileError: There are, and `trusted` is False.
    """
    if not file.foreign_objects:
        return None
    from asyncckpt.keyed.hdf5.foreign_file import ForeignFile

    _check_trust(location, "holds objects that another program made", trusted=trusted)
    return ForeignFile(location, file.fd, file.foreign_objects)


def _open_foreign(location: FileLocation, fd: int, reason: str, context: JobContext, *, trusted: bool) -> Content:
    from asyncckpt.keyed.hdf5.foreign_file import ForeignFile, check_signature
    from asyncckpt.keyed.hdf5.modified_file import ModifiedFile

    check_signature(location)
    _check_trust(location, reason, trusted=trusted)
    file = ForeignFile(location, fd)
    keys = list(file.names)
    if ModifiedFile.is_one(file, fd):
        file.close()
        file = modified = ModifiedFile(location, fd, context)
        keys = modified.keys
        location.mark_read_only("is the state of a checkpoint" if modified.is_state else reason)
    else:
        location.mark_foreign(
            "the attributes of its root group, references between its objects, and, of what libhdf5 cannot copy as it"
            " is, the attributes and the compression"
        )
    return Content(None, file, {key: InObjects(0) for key in keys})


def _check_trust(location: FileLocation, reason: str, *, trusted: bool) -> None:
    if not trusted:
        message = (
            f"{location.name} {reason}. Only libhdf5 can read it, which a hostile file can crash or keep busy forever:"
            " open it with trusted=True if you know where it comes from"
        )
        raise UntrustedFileError(message)
