"""A zip file of arrays: read by zipfile and numpy with its claims checked, written through a `DiskOps`.

1. Members that are added are not compressed. Those of another file are copied as they are.
2. What a member claims is checked before memory is taken for it, against the file and against the header of its array.
   Its CRC-32 is checked before its content is used.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib import format as npy

from asyncckpt.errors import UnsupportedFormatError, UntrustedFileError
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.damage import damage_of, damaged
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.state.dtypes import dtype_to_plain, is_extension

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from zipfile import ZipInfo

    from numpy.typing import NDArray

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import Pacer

SUFFIX: Final = ".npy"
_FREE_EXPANSION_NBYTES: Final = 64 << 20
"""What the compressed members of a value may expand to, if the file is not trusted; or, if that is more,"""
_MAX_EXPANSION: Final = 100
"""so many times what they take in the file."""
_CHUNK_NBYTES: Final = 1 << 20
_MAX_NPY_HEADER_NBYTES: Final = 10_000  # the most that numpy parses in an untrusted file
_MEMBER_HEADER_NBYTES: Final = 30  # before its name
_ENCRYPTED, _SIZED_BEHIND, _UTF8 = 0x41, 0x8, 0x800  # flags of a member
_EMPTY_ZIP: Final = b"PK\5\6" + bytes(18)


class Archive(zipfile.ZipFile):
    """A zip file whose members zipfile reads; it also makes the headers and the directory that are written."""

    def __init__(self, fd: int, ops: DiskOps) -> None:
        """Open a file, or begin a new one if it is empty; the descriptor is closed if that fails."""
        self._ops = ops
        self.fd = fd
        self.end = 0  # of what has been written
        self.is_sure = True  # whether what has been written is known to be there
        with on_failure(partial(os.close, fd)):
            file = os.fdopen(fd, "rb", buffering=0, closefd=False)
            super().__init__(file if os.fstat(fd).st_size else io.BytesIO(_EMPTY_ZIP))
        self.fp = file

    def close_file(self) -> None:
        """Close the file, once."""
        self.close()  # which zipfile also calls by itself, in whatever thread one that failed is dropped
        os.close(self.fd)

    # --- reading ------------------------------------------------------------------------------------------------------

    def members(self) -> dict[str, ZipInfo]:
        """Return the members by their names, without folders.

        Raises:
            CorruptCheckpointError: Members overlap, leave the file or have the same name.
        """
        extents = sorted(
            (info.header_offset, info.header_offset + _MEMBER_HEADER_NBYTES + info.compress_size, info.filename)
            for info in self.filelist
        )
        for (_, end, name), (begin, _, behind) in pairwise([(0, 0, ""), *extents, (os.fstat(self.fd).st_size, 0, "")]):
            if end > begin:
                damaged(f"the member {name or behind!r} overlaps another, or leaves the file")
        for info in self.filelist:
            if self.NameToInfo[info.filename] is not info:
                damaged(f"duplicate member {info.filename!r}")
        return {name: info for name, info in self.NameToInfo.items() if not name.endswith("/")}

    def value(self, info: ZipInfo, pacer: Pacer) -> Any:
        """Read the array of a member, or the bytes of one that is not an npy file, as `numpy.load` does.

        Raises:
            CorruptCheckpointError: It is damaged, or cannot have the size that it claims.
            UnsupportedFormatError: It is encrypted, compressed as numpy never does it, or holds Python objects.
        """
        if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            message = f"{info.filename!r} is encrypted, or compressed with a method other than deflate"
            raise UnsupportedFormatError(message)
        with self.stream(info) as stream:
            if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                damaged(f"{info.filename!r} claims {info.file_size} bytes and has {info.compress_size}")
            is_array = info.filename.endswith(SUFFIX)
            return _read_array(stream, info, pacer) if is_array else b"".join(_chunks(stream, pacer))

    @contextmanager
    def stream(self, info: ZipInfo) -> Iterator[IO[bytes]]:
        """Open a member; errors in it name it."""
        with (
            damage_of(f"the member {info.filename!r} at byte {info.header_offset} has a damaged header or content"),
            self.open(info) as stream,
        ):
            yield stream
            stream.read(1)  # at its end the checksum is compared

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, name: str, header: bytes | None, nbytes: int, data: Iterable[bytes | NDArray[np.uint8]]) -> ZipInfo:
        """Add an npy file with this header; with None, with that of an array of bytes."""
        header = header or npy_header(np.dtype(np.uint8), (nbytes,)) or b""
        info = _member(name, len(header) + nbytes)
        out = self._begin(info)
        for chunk in chain([header], data):
            info.CRC = zlib.crc32(chunk, info.CRC)  # type: ignore[arg-type] # arrays are buffers
            out.write(chunk)
            out.flush()
        self._begin(info).flush()  # once more, with the checksum
        self.end = out.offset
        return info

    def copy(self, source: Archive, info: ZipInfo, pacer: Pacer) -> ZipInfo:
        """Add a member of another file as it is."""
        if info.flag_bits & _ENCRYPTED:
            message = f"{info.filename!r} is encrypted, and cannot be copied: write to another file"
            raise UnsupportedFormatError(message)
        raw = zipfile.ZipInfo(info.orig_filename)  # the same, as if it were stored and had no checksum
        raw.header_offset, raw.flag_bits = info.header_offset, info.flag_bits & _UTF8
        raw.compress_size = raw.file_size = info.compress_size
        moved = _member(info.filename, info.file_size)
        moved.compress_type, moved.compress_size, moved.CRC = info.compress_type, info.compress_size, info.CRC
        moved.flag_bits = info.flag_bits & ~_SIZED_BEHIND | _UTF8
        out = self._begin(moved)
        with source.stream(raw if source.is_sure else info) as stream:
            for chunk in _chunks(stream, pacer):
                out.write(chunk)
        out.flush()
        self.end = out.offset
        return moved

    def _begin(self, info: ZipInfo) -> Appender:
        info.header_offset = self.end
        out = Appender(self._ops, self.fd, self.end)
        out.write(info.FileHeader())
        return out

    def finish(self, members: list[ZipInfo]) -> None:
        """Write the directory, which ends the file."""
        out = Appender(self._ops, self.fd, self.end)
        with zipfile.ZipFile(out, "w") as archive:  # type: ignore[call-overload] # all that it needs of a file
            archive.filelist += members
        out.flush()
        if os.fstat(self.fd).st_size > out.offset:
            self._ops.truncate(self.fd, out.offset)  # a member that failed went further


def _member(name: str, nbytes: int) -> ZipInfo:
    """Return the entry of a stored member; its date is always the same, so that equal values are equal files."""
    info = zipfile.ZipInfo(name)
    info.flag_bits, info.external_attr = _UTF8, 0o600 << 16
    info.compress_size, info.file_size, info.CRC = nbytes, nbytes, 0
    return info


def _chunks(stream: IO[bytes], pacer: Pacer) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_NBYTES):
        yield chunk
        pacer.pause()


def check_expansion(members: tuple[ZipInfo, ...]) -> None:
    """Refuse a value that claims to be very much larger than its members are in the file."""
    stored, nbytes = sum(info.compress_size for info in members), sum(info.file_size for info in members)
    if nbytes > max(_FREE_EXPANSION_NBYTES, _MAX_EXPANSION * stored):
        what = repr(members[0].filename) + (f" and {len(members) - 1} more" if len(members) > 1 else "")
        advice = "if you know where the file comes from, open it with trusted=True"
        message = f"{what} of {stored} bytes claim to hold {nbytes}: {advice}"
        raise UntrustedFileError(message)


# --- npy files --------------------------------------------------------------------------------------------------------


def _read_array(stream: Any, info: ZipInfo, pacer: Pacer) -> NDArray[Any]:
    shape, is_fortran, dtype = _read_npy_header(stream)
    if dtype.hasobject:
        message = f"{info.filename!r} holds Python objects, which only code from the file could make: save it without"
        raise UnsupportedFormatError(message)
    nbytes = info.file_size - stream.tell()
    if math.prod(shape) * dtype.itemsize != nbytes:
        damaged(f"{info.filename!r} claims {shape!s:.80} of {dtype} and has {nbytes} bytes")
    # Unlike np.empty, np.ndarray leaves a dtype of no bytes ("<U0") as it is.
    array: NDArray[Any] = np.ndarray(shape[::-1] if is_fortran else shape, dtype)
    memory = array.reshape(-1).view(np.uint8) if nbytes else np.empty(0, np.uint8)
    for start in range(0, nbytes, _CHUNK_NBYTES):
        part = memory[start : start + _CHUNK_NBYTES]
        if stream.readinto(part) != len(part):
            damaged(f"{info.filename!r} ends early")
        pacer.pause()
    return array.T if is_fortran else array


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return the shape, whether it is in Fortran's order, and the dtype.

    numpy has no public function for version 3.0, which is 2.0 in UTF-8.
    """
    version = npy.read_magic(stream)
    length = int.from_bytes(stream.read(2 if version == (1, 0) else 4), "little")
    if version not in ((1, 0), (2, 0), (3, 0)) or length > _MAX_NPY_HEADER_NBYTES:
        damaged(f"a header of version {version} and {length} bytes")
    text = stream.read(length).decode("utf-8" if version == (3, 0) else "latin-1")
    escaped = text.encode("ascii", "backslashreplace")
    try:
        return npy.read_array_header_2_0(io.BytesIO(struct.pack("<I", len(escaped)) + escaped), len(escaped))
    except Exception as error:  # whatever a text that is none makes of Python's parser
        message = f"its header cannot be read: {error!r:.200}"
        raise ValueError(message) from error


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes | None:
    """Return the header of an array in C order, or None where numpy would not read the same dtype back."""
    if is_extension(dtype) or dtype.itemsize == 0 or dtype.metadata or (dtype.names is None and dtype.kind == "O"):
        return None
    out = io.BytesIO()
    try:
        header: Any = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        is_same = dtype_to_plain(npy.descr_to_dtype(header["descr"])) == dtype_to_plain(dtype)
        npy.write_array_header_1_0(out, header)
    except (ValueError, TypeError, KeyError):
        return None
    return out.getvalue() if is_same and out.tell() <= _MAX_NPY_HEADER_NBYTES else None
