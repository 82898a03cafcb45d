"""Zip files of arrays: the structures of zip and npy, written and read without trusting what they claim.

1. What is written is stored, not compressed; sizes of 4 GiB and more get zip64's fields.
2. A member's size, as the directory of the file claims it, is checked against the file and against the array's header
   before memory is taken for it; its CRC-32 is checked before it is used.

Sources: PKWARE's APPNOTE 6.3.10 for zip, `numpy.lib.format` for npy.
"""

from __future__ import annotations

import ast
import io
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError, UntrustedFileError
from asyncckpt.keyed.writing import Appender
from asyncckpt.state.dtypes import dtype_to_plain, is_extension

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.pacing import Pacer

MAX_EXPANSION: Final = 100
"""How many times larger than in the file the compressed members of a value may be, beyond"""
FREE_EXPANSION_NBYTES: Final = 64 << 20
"""this size, if the file is not trusted."""

_STORED: Final = 0
_DEFLATED: Final = 8
_UTF8: Final = 0x800
_ENCRYPTED: Final = 0x1
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_CENTRAL: Final = struct.Struct("<4s4B4HL2L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_MAX32: Final = 0xFFFF_FFFF
_MAX16: Final = 0xFFFF
_DATE: Final = 0x21  # 1980-01-01: a file of the same values has the same bytes
_COPY_NBYTES: Final = 1 << 20
_MAX_HEADER_NBYTES: Final = 10_000  # what numpy reads without being told to trust the file
_CRC_AT: Final = 14


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a zip file."""

    name: str
    fd: int
    header_offset: int
    stored_nbytes: int
    nbytes: int
    crc: int
    method: int = _STORED


# --- npy --------------------------------------------------------------------------------------------------------------


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes | None:
    """Return the header of an array in C order, or None where numpy would not read the same dtype back."""
    if is_extension(dtype) or dtype.itemsize == 0 or dtype.metadata or (dtype.names is None and dtype.kind == "O"):
        return None
    try:
        descr = np.lib.format.dtype_to_descr(dtype)
        if dtype_to_plain(np.lib.format.descr_to_dtype(descr)) != dtype_to_plain(dtype):
            return None
        out = io.BytesIO()
        # numpy's own stub asks for a dict of str
        header: Any = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
    except (ValueError, TypeError, KeyError):
        return None
    return out.getvalue() if len(out.getvalue()) <= _MAX_HEADER_NBYTES else None


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What an npy file says of its array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    nbytes: int
    """Size of the header itself."""


def read_npy_header(read: Any) -> NpyHeader:
    """Read the header of an npy file, from a function that returns the next bytes.

    Raises:
        ValueError: It is none.
        UnsupportedFormatError: The array holds Python objects.
    """
    magic = read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        message = "it does not begin as an npy file does"
        raise ValueError(message)
    size = 2 if magic[6] == 1 else 4
    length = int.from_bytes(read(size), "little")
    if length > _MAX_HEADER_NBYTES:
        message = f"a header of {length} bytes"
        raise ValueError(message)
    text = read(length).decode("utf-8" if magic[6] == 3 else "latin-1")  # noqa: PLR2004 - the version
    try:
        found = ast.literal_eval(text)
        dtype = np.lib.format.descr_to_dtype(found["descr"])
        shape, is_fortran = found["shape"], found["fortran_order"]
    except (ValueError, SyntaxError, TypeError, KeyError, IndexError, MemoryError, RecursionError) as error:
        message = f"its header cannot be read: {error!r:.200}"
        raise ValueError(message) from error
    if dtype.hasobject:
        message = "it holds Python objects, which only code from the file could make: save it without them"
        raise UnsupportedFormatError(message)
    if type(shape) is not tuple or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):  # noqa: PLR2004
        message = f"it claims the shape {shape!r:.80}"
        raise ValueError(message)
    return NpyHeader(dtype, shape, bool(is_fortran), 8 + size + length)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_member(  # noqa: PLR0913, PLR0917 - what a member is
    ops: DiskOps, fd: int, offset: int, name: str, pieces: Iterable[bytes | NDArray[np.uint8]], nbytes: int
) -> tuple[Member, int]:
    """Write a member of known size; return it, and where it ends."""
    member = Member(name, fd, offset, nbytes, nbytes, 0)
    out = Appender(ops, fd, offset)
    out.write(_local_header(member))
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(memoryview(piece), crc)  # type: ignore[arg-type] # arrays are buffers
        out.write(piece)
        out.flush()
    patch = Appender(ops, fd, offset + _CRC_AT)
    patch.write(crc.to_bytes(4, "little"))
    patch.flush()
    return replace(member, crc=crc), out.offset


def copy_member(ops: DiskOps, member: Member, fd: int, offset: int, pacer: Pacer) -> tuple[Member, int]:
    """Copy a member as it is into another file; return the copy, and where it ends."""
    moved = replace(member, fd=fd, header_offset=offset)
    out = Appender(ops, fd, offset)
    out.write(_local_header(moved))
    at, left = data_offset(member), member.stored_nbytes
    while left:
        piece = os.pread(member.fd, min(_COPY_NBYTES, left), at)
        if not piece:
            raise damaged(member, "the file ends in it")
        out.write(piece)
        at += len(piece)
        left -= len(piece)
        pacer.pause()
    out.flush()
    return moved, out.offset


def write_directory(ops: DiskOps, fd: int, offset: int, members: Sequence[Member], pacer: Pacer) -> int:
    """Write the directory that ends a zip file; return its end."""
    out = Appender(ops, fd, offset)
    for member in members:
        out.write(_central_header(member))
        pacer.pause()
    nbytes, count = out.offset - offset, len(members)
    if count > _MAX16 - 1 or offset > _MAX32 - 1 or nbytes > _MAX32 - 1:
        end = out.offset
        out.write(_END64.pack(b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, nbytes, offset))
        out.write(_LOCATOR64.pack(b"PK\x06\x07", 0, end, 1))
    low = min(count, _MAX16)
    out.write(_END.pack(b"PK\x05\x06", 0, 0, low, low, min(nbytes, _MAX32), min(offset, _MAX32), 0))
    out.flush()
    return out.offset


def _local_header(member: Member) -> bytes:
    name = member.name.encode()
    is_large = max(member.nbytes, member.stored_nbytes) >= _MAX32
    extra = struct.pack("<2H2Q", 1, 16, member.nbytes, member.stored_nbytes) if is_large else b""
    sizes = (_MAX32, _MAX32) if is_large else (member.stored_nbytes, member.nbytes)
    version = 45 if is_large else 20
    fields = (version, _UTF8, member.method, 0, _DATE, member.crc, *sizes, len(name), len(extra))
    return _LOCAL.pack(b"PK\x03\x04", *fields) + name + extra


def _central_header(member: Member) -> bytes:
    name = member.name.encode()
    wide = [each for each in (member.nbytes, member.stored_nbytes, member.header_offset) if each >= _MAX32]
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version = 45 if wide else 20
    stored, nbytes, offset = (min(n, _MAX32) for n in (member.stored_nbytes, member.nbytes, member.header_offset))
    fields = (version, 3, version, 0, _UTF8, member.method, 0, _DATE, member.crc, stored, nbytes, len(name))
    return _CENTRAL.pack(b"PK\x01\x02", *fields, len(extra), 0, 0, 0, 0o600 << 16, offset) + name + extra


# --- reading ----------------------------------------------------------------------------------------------------------


def read_members(fd: int, pacer: Pacer) -> list[Member]:
    """Read the directory of a zip file.

    Raises:
        ValueError: It is none, a name stands twice, or members overlap or leave the file.
    """
    file_nbytes = os.fstat(fd).st_size
    with os.fdopen(fd, "rb", closefd=False) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError, IndexError, struct.error) as error:
            message = f"it is not a zip file: {error}"
            raise ValueError(message) from error
    names: set[str] = set()
    for info in infos:
        pacer.pause()
        if info.filename in names:
            message = f"the member {info.filename!r} stands twice"
            raise ValueError(message)
        names.add(info.filename)
    end = 0
    for info in sorted(infos, key=lambda each: each.header_offset):
        if info.header_offset < end:
            message = f"the member {info.filename!r} overlaps another"
            raise ValueError(message)
        end = info.header_offset + _LOCAL.size + info.compress_size
        if end > file_nbytes:
            message = f"the member {info.filename!r} leaves the file"
            raise ValueError(message)
    return [
        Member(
            info.filename,
            fd,
            info.header_offset,
            info.compress_size,
            info.file_size,
            info.CRC,
            -1 if info.flag_bits & _ENCRYPTED else info.compress_type,
        )
        for info in infos
    ]


def data_offset(member: Member) -> int:
    """Return where a member's bytes begin."""
    header = os.pread(member.fd, _LOCAL.size, member.header_offset)
    if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
        raise damaged(member, "it has no header")
    name_nbytes, extra_nbytes = struct.unpack("<2H", header[-4:])
    flags = int.from_bytes(header[6:8], "little")
    name = os.pread(member.fd, name_nbytes, member.header_offset + _LOCAL.size)
    # The CRC-32 is of the bytes alone: a name that was damaged would be another key.
    if name.decode("utf-8" if flags & _UTF8 else "cp437", "replace").partition("\0")[0] != member.name:
        raise damaged(member, f"its own header calls it {name[:200]!r}")
    return int(member.header_offset + _LOCAL.size + name_nbytes + extra_nbytes)


def check_expansion(members: Iterable[Member]) -> None:
    """Check what the members of a value claim, together.

    Raises:
        UntrustedFileError: They are very much larger than in the file.
    """
    names, stored, nbytes = [], 0, 0
    for member in members:
        names.append(member.name)
        stored += member.stored_nbytes
        nbytes += member.nbytes
    if nbytes > max(FREE_EXPANSION_NBYTES, MAX_EXPANSION * stored):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        message = (
            f"{names[0]!r}{more} of {stored} bytes claim to hold {nbytes}: if you know where the file comes from, open"
            " it with trusted=True"
        )
        raise UntrustedFileError(message)


class MemberReader:
    """Reads a member from front to back."""

    def __init__(self, member: Member, pacer: Pacer) -> None:
        """Check what it claims.

        Raises:
            CorruptCheckpointError: It cannot have the size that it claims.
            UnsupportedFormatError: It is encrypted, or compressed as numpy never does it.
        """
        if member.method not in (_STORED, _DEFLATED):
            message = f"{member.name!r} is encrypted, or compressed with a method other than deflate"
            raise UnsupportedFormatError(message)
        if member.method == _STORED and member.nbytes != member.stored_nbytes:
            raise damaged(member, f"it claims {member.nbytes} bytes and has {member.stored_nbytes}")
        self._member = member
        self._pacer = pacer
        self._at = data_offset(member)
        self._left = member.stored_nbytes
        self._inflate = zlib.decompressobj(-15) if member.method == _DEFLATED else None
        self._crc = 0
        self._count = 0

    def read(self, nbytes: int) -> bytes:
        """Return exactly so many bytes."""
        target = np.empty(nbytes, np.uint8)
        self.fill(target)
        return target.tobytes()

    def fill(self, target: NDArray[np.uint8]) -> None:
        """Read as many bytes as fit.

        Raises:
            CorruptCheckpointError: There are not so many.
        """
        if self._count + len(target) > self._member.nbytes:
            raise damaged(self._member, "it ends early")
        for start in range(0, len(target), _COPY_NBYTES):
            part = target[start : start + _COPY_NBYTES]
            if self._inflate is None:
                self._fill_stored(part)
            else:
                self._fill_inflated(part)
            self._crc = zlib.crc32(memoryview(part), self._crc)  # type: ignore[arg-type] # arrays are buffers
            self._count += len(part)
            self._pacer.pause()

    def finish(self) -> None:
        """Check that all was read, and is what was written.

        Raises:
            CorruptCheckpointError: It is not.
        """
        if self._count != self._member.nbytes or self._crc != self._member.crc:
            raise damaged(self._member, "its checksum does not match")

    def _fill_stored(self, part: NDArray[np.uint8]) -> None:
        done = 0
        while done < len(part):
            count = os.preadv(self._member.fd, [part[done:]], self._at)  # type: ignore[list-item] # arrays are buffers
            if count == 0:
                raise damaged(self._member, "the file ends in it")
            done += count
            self._at += count

    def _fill_inflated(self, part: NDArray[np.uint8]) -> None:
        assert self._inflate is not None  # noqa: S101 - the caller has looked
        done = 0
        while done < len(part):
            held = self._inflate.unconsumed_tail
            if not held:
                held = os.pread(self._member.fd, min(self._left, 1 << 16), self._at)
                self._at += len(held)
                self._left -= len(held)
            try:
                data = self._inflate.decompress(held, len(part) - done)
            except zlib.error as error:
                raise damaged(self._member, str(error)) from error
            if not data and not held:
                raise damaged(self._member, "it ends early")
            part[done : done + len(data)] = np.frombuffer(data, np.uint8)
            done += len(data)


def read_array(member: Member, pacer: Pacer) -> NDArray[Any]:
    """Read the array of a member.

    Raises:
        CorruptCheckpointError: It is damaged.
        UnsupportedFormatError: It holds Python objects.
    """
    reader = MemberReader(member, pacer)
    try:
        header = read_npy_header(reader.read)
    except UnsupportedFormatError as error:
        message = f"{member.name!r}: {error}"
        raise UnsupportedFormatError(message) from error
    except ValueError as error:
        raise damaged(member, str(error)) from error
    if math.prod(header.shape) * header.dtype.itemsize != member.nbytes - header.nbytes:
        claimed = f"{header.shape} of {header.dtype}"
        raise damaged(member, f"it claims {claimed} and has {member.nbytes - header.nbytes} bytes")
    try:
        # Unlike np.empty, np.ndarray leaves a dtype of no bytes ("<U0") as it is.
        array: NDArray[Any] = np.ndarray(header.shape[::-1] if header.is_fortran else header.shape, header.dtype)
    except ValueError as error:  # of no bytes, and larger than memory may be
        raise damaged(member, f"it claims {header.shape} of {header.dtype}: {error}") from error
    if array.nbytes:
        reader.fill(array.reshape(-1).view(np.uint8))
    reader.finish()
    return array.T if header.is_fortran else array


def damaged(member: Member, reason: str) -> CorruptCheckpointError:
    """Make the error of a damaged member."""
    return CorruptCheckpointError(f"the member {member.name!r} at byte {member.header_offset} is damaged: {reason}")
