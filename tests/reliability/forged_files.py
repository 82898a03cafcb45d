"""Writes keyed files as an attacker does: records of a log, npy and zip files, with digests that match.

A case makes one file; beside its directory lies the canary.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ID: Final = b"0123456789abcdef"


class FileCase(NamedTuple):
    """A hostile file."""

    name: str
    extension: str
    build: Callable[[Path], object]
    """Makes it: `(path)`; the canary is `../canary` from its directory."""
    is_equal: bool = False
    """Whether it must load, as `GOOD`."""


# --- the log ----------------------------------------------------------------------------------------------------------


def digest_of(data: bytes) -> bytes:
    """Return the digest of some bytes."""
    return xxhash.xxh3_128_digest(data)


def sealed(head: object, body: bytes = b"", digests: bytes | None = None) -> bytes:
    """Make a record, of a head that is packed here unless it is bytes, and a body."""
    packed = head if isinstance(head, bytes) else msgpack.packb(head, unicode_errors="surrogatepass")
    if digests is None:
        digests = b"".join(digest_of(body[i : i + (1 << 20)]) for i in range(0, len(body), 1 << 20))
    tail = b"\x92\xc6" + len(digests).to_bytes(4, "big") + digests + b"\xc4\x10" + digest_of(packed + digests)
    return packed + body + tail


def file_record(**changes: Any) -> bytes:
    """Make a file's first record."""
    return sealed({"asyncckpt": "keyed", "version": 1, "features": [], "id": ID} | changes)


def set_head(index: bytes, /, **changes: Any) -> dict[str, Any]:
    """Make the head of a value whose body is an index alone."""
    head = {"asyncckpt": "set", "key": "k", "names": None, "index": len(index), "nbytes": len(index), "aligned": False}
    return head | changes


def log_of(*records: bytes, commit: Any = None) -> bytes:
    """Make a log that ends with a commit."""
    data = b"".join(records)
    head = {"asyncckpt": "commit", "id": ID, "at": len(data)} if commit is None else commit
    return data + sealed(head)


# --- zip files --------------------------------------------------------------------------------------------------------


def npy(dtype: object, shape: object, data: bytes = b"", *, version: bytes = b"\x01\x00") -> bytes:
    """Make an npy file."""
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return npy_text(text.encode(), data, version)


def npy_text(text: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """Make an npy file with any text as its header."""
    wide = "<H" if version == b"\x01\x00" else "<I"
    return (
        b"\x93NUMPY" + version + struct.pack(wide, len(text) & (0xFFFF if wide == "<H" else 0xFFFFFFFF)) + text + data
    )


def zip_of(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED, level: int = 9) -> bytes:
    """Make a zip file."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method, compresslevel=level) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, method, level)
    return made.getvalue()
