"""Fuzzing keyed files: how a file is made of an input, so that its digests match, and good inputs.

An input is what digests cover, in parts with `CUT` between: heads and bodies of a log's records; names and contents of
an npz file's members; the values' region and the catalog of an HDF5 file. A zip file as it is, headers included, and a
JSON file, which has no digests, are inputs as they are.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from .forged_files import ID, digest_of, log_of, npy, sealed, zip_of
from .hostile import touch

if TYPE_CHECKING:
    from collections.abc import Callable

CUT: Final = b"\xde\xad\xbe\xef--"
_ERRORS: Final = "surrogatepass"
_BLOCK_NBYTES: Final = 1 << 20
_PAGE_NBYTES: Final = 4096
_TAIL_NBYTES: Final = 24  # of a record without blocks, and
_DIGEST_NBYTES: Final = 16  # more for each
_DIRECTORY: Final = "__asyncckpt__.npy"
VALUES: Final[dict[str, Any]] = {
    "grid": np.arange(6, dtype="<f4").reshape(2, 3),
    "b/c": {"words": ["x", b"y", None, 2.5, -1], "pair": (1, {2}), "rows": np.array([(1, 2.0)], "<i2,<f8")},
    "é": 1 << 70,
}


def read_file(path: Path) -> None:
    """Open a file and use all its values."""
    from asyncckpt import Checkpointer
    from asyncckpt.errors import CheckpointError

    try:
        with Checkpointer.from_file(path) as chk:
            for key in chk:
                try:
                    touch(chk[key])
                except CheckpointError:
                    continue
    except CheckpointError:
        return


def write_good(path: Path) -> bytes:
    """Write a file of the extension's kind; return its bytes."""
    from asyncckpt import Checkpointer

    with Checkpointer.from_file(path) as chk:
        chk.update(VALUES)
    return path.read_bytes()


def good_inputs(target: str) -> list[bytes]:
    """Return good inputs to begin with."""
    with tempfile.TemporaryDirectory() as folder:
        extension, _, split = FILE_TARGETS[target]
        return [split(write_good(Path(folder) / f"good{extension}"))]


def read_input(target: str, data: bytes, folder: Path) -> None:
    """Make a file of an input, and read it."""
    extension, join, _ = FILE_TARGETS[target]
    path = folder / f"woof{extension}"
    path.write_bytes(join(data))
    read_file(path)


# --- logs -------------------------------------------------------------------------------------------------------------


def join_log(data: bytes) -> bytes:
    """Seal each head with its body; a commit follows."""
    parts = data.split(CUT)
    return log_of(*itertools.starmap(sealed, itertools.zip_longest(parts[::2], parts[1::2], fillvalue=b"")))


def split_log(data: bytes) -> bytes:
    """Take the records of a log of small values apart."""
    parts, at = list[bytes](), 0
    while at < len(data):
        unpacker = msgpack.Unpacker(unicode_errors=_ERRORS)
        unpacker.feed(data[at:])
        head = unpacker.unpack()
        body = at + unpacker.tell()
        end = body + head.get("nbytes", 0)
        if "id" in head and "at" not in head:  # the first: its id is random
            parts += [msgpack.packb(head | {"id": ID}), b""]
        elif "id" not in head:
            parts += [data[at:body], data[body:end]]
        at = end + _TAIL_NBYTES + _DIGEST_NBYTES * -(-(end - body) // _BLOCK_NBYTES)
    return CUT.join(parts)


# --- zip files --------------------------------------------------------------------------------------------------------


def join_npz(data: bytes) -> bytes:
    """Make a zip file of members, with their CRC-32; the directory's header says how long it is."""
    parts = data.split(CUT)
    members = {
        name.decode("utf-8", "replace"): content
        for name, content in itertools.zip_longest(parts[::2], parts[1::2], fillvalue=b"")
    }
    if _DIRECTORY in members:
        members[_DIRECTORY] = npy("|u1", (len(members[_DIRECTORY]),), members[_DIRECTORY])
    return zip_of(members)


def split_npz(data: bytes) -> bytes:
    """Take the members of a zip file apart."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members[_DIRECTORY] = np.load(io.BytesIO(members[_DIRECTORY])).tobytes()
    return CUT.join(itertools.chain.from_iterable((name.encode(), content) for name, content in members.items()))


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def join_hdf5(data: bytes) -> bytes:
    """Make a file of one commit, whose catalog has the digests of the regions that it names."""
    from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES, Slot

    values, _, catalog = data.partition(CUT)
    begin = bytes(HEAD_NBYTES) + values + bytes(-len(values) % _PAGE_NBYTES)
    catalog = _with_digests(catalog, begin)
    region = catalog + bytes(-len(catalog) % _PAGE_NBYTES)
    end = len(begin) + len(region)
    slot = Slot(1, end, len(begin), len(region), len(catalog), len(begin), digest_of(region))
    head = slot.superblock().ljust(slot.position, b"\0") + slot.encode()
    return head.ljust(HEAD_NBYTES, b"\0") + begin[HEAD_NBYTES:] + region


def _with_digests(catalog: bytes, data: bytes) -> bytes:
    """Put the digests of what it names into a catalog, if it names something."""
    try:
        content = msgpack.unpackb(catalog, unicode_errors=_ERRORS, strict_map_key=False)
        for row in content["regions"]:
            named = data[row[0] : row[0] + row[1]]
            row[2] = b"".join(digest_of(named[at : at + _BLOCK_NBYTES]) for at in range(0, len(named), _BLOCK_NBYTES))
        return bytes(msgpack.packb(content, unicode_errors=_ERRORS))
    except Exception:  # noqa: BLE001 - then it is hostile as it is
        return catalog


def split_hdf5(data: bytes) -> bytes:
    """Take a file of one commit apart."""
    from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES, find_slots

    slot = find_slots(data[:HEAD_NBYTES])[0]
    catalog = data[slot.offset : slot.offset + slot.catalog_nbytes]
    return data[HEAD_NBYTES : slot.offset].rstrip(b"\0") + CUT + catalog


def _as_it_is(data: bytes) -> bytes:
    return data


FILE_TARGETS: Final[dict[str, tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]]] = {
    "log": (".msgpack", join_log, split_log),
    "keyed-hdf5": (".h5", join_hdf5, split_hdf5),
    "npz": (".npz", join_npz, split_npz),
    "zip": (".npz", _as_it_is, _as_it_is),
    "json": (".json", _as_it_is, _as_it_is),
}
"""The extension of a file; what makes a file of an input; and what makes an input of a file."""
