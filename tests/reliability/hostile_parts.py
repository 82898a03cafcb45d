"""What hurts wherever it is put, in a checkpoint or in a keyed file: bombs, values, texts, HDF5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h5py
import msgpack
import numpy as np

from .forged_checkpoints import SECRET, with_entry

if TYPE_CHECKING:
    from collections.abc import Callable


# --- bombs: bytes that become much more -------------------------------------------------------------------------------

_SIZE: Final = 300_000
BOMBS: Final[dict[str, bytes]] = {
    "empty maps": b"\x80" * _SIZE,
    "an array of empty maps": b"\xdd" + _SIZE.to_bytes(4, "big") + b"\x80" * _SIZE,
    "an array of empty arrays": b"\xdd" + _SIZE.to_bytes(4, "big") + b"\x90" * _SIZE,
    "arrays in arrays": b"\x91" * _SIZE,
    "maps in maps": b"\x81\xa1a" * (_SIZE // 3),
    "maps as keys": b"\x81" * _SIZE,
    "headers that claim all": b"\xdd\xff\xff\xff\xff" * 2000,
    "headers that claim what is there": (b"\xdd" + (_SIZE // 4).to_bytes(4, "big")) * 500 + b"\xc0" * _SIZE,
    "headers that claim a chunk": b"\xdc\xff\xff" * 1000 + b"\xc0" * 1000,
    "maps that claim all": b"\xdf\xff\xff\xff\xff" * 2000,
    "a text that claims 4 GiB": b"\xdb\xff\xff\xff\xff" + b"a" * 100,
    "bytes that claim 4 GiB": b"\xc6\xff\xff\xff\xff" + b"a" * 100,
    "an ext that claims 4 GiB": b"\xc9\xff\xff\xff\xff\x01" + b"a" * 100,
    "a byte that means nothing": b"\xc1",
    "a timestamp": b"\xd6\xff" + b"\xff" * 4,
    "a long text": b"\xdb" + _SIZE.to_bytes(4, "big") + b"a" * _SIZE,
    "nothing": b"",
    "many numbers": b"\xdd" + _SIZE.to_bytes(4, "big") + b"\x01" * _SIZE,
}

_CODES: Final = {
    "LIST": 1, "DICT": 3, "SET": 4, "DEQUE": 6, "OBJECT": 8, "ARRAY": 9, "SCALAR": 10, "INTEGER": 11, "COMPLEX": 12,
    "BYTES": 13, "STRING": 14, "NUMBERS": 15, "NUMBERS_ARRAY": 16, "an unknown node": 77,
}  # fmt: skip


def _bin(data: bytes) -> bytes:
    return b"\xc6" + len(data).to_bytes(4, "big") + data


PLACES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "the index": lambda bomb: bomb,
    "a key of the index": lambda bomb: b"\x82" + msgpack.packb("asyncckpt") + b"\x01" + bomb + b"\x01",
    "the version": lambda bomb: with_entry("asyncckpt", bomb),
    "the features": lambda bomb: with_entry("features", bomb),
    "a feature": lambda bomb: with_entry("features", b"\x91" + bomb),
    "the dtypes": lambda bomb: with_entry("dtypes", bomb),
    "a dtype": lambda bomb: with_entry("dtypes", b"\x91" + bomb),
    "the fields of a dtype": lambda bomb: with_entry(
        "dtypes", b"\x91\x84" + msgpack.packb("itemsize") + b"\x04" + msgpack.packb("fields") + bomb
    ),
    "the tree": lambda bomb: with_entry("tree", bomb),
    "a chunk": lambda bomb: with_entry("tree", b"\x91" + _bin(bomb)),
    "a node": lambda bomb: with_entry("tree", b"\x91" + _bin(b"\x91" + bomb)),
    "the arrays": lambda bomb: with_entry("arrays", b"\x91" + _bin(bomb)),
    "an array": lambda bomb: with_entry("arrays", b"\x91" + _bin(b"\x91" + bomb)),
    "a shape": lambda bomb: with_entry("arrays", b"\x91" + _bin(b"\x91\x92\x00" + bomb)),
    "the segments": lambda bomb: with_entry("segments", b"\x91" + bomb),
    "a table of segments": lambda bomb: with_entry("segments", b"\x91" + _bin(bomb)),
    "what nobody knows": lambda bomb: with_entry("unknown", bomb),
    **{
        f"the argument of {name}": lambda bomb, code=code: with_entry(  # type: ignore[misc] # each its own code
            "tree", b"\x91" + _bin(b"\x91\xc9" + len(bomb).to_bytes(4, "big") + bytes([code]) + bomb)
        )
        for name, code in _CODES.items()
    },
}


# --- values and texts -------------------------------------------------------------------------------------------------

VALUES: Final[tuple[object, ...]] = (
    None, True, -1, 1.5, 1 << 70, 10**400, "7", "\ud800", [], {}, [[]], "../../canary", float("nan"), float("inf"),
)  # fmt: skip


DOCUMENTS: Final = (
    b"[" * 200_000, b'{"a":' * 100_000, b"[]", b"1", b"null", b"", b"\xff\xfe", b'{"loss":' + b"9" * 100_000 + b"}",
    b'{"loss":1e400}', b'{"loss":NaN}', b'{"loss":{}}', b'{"loss":[1]}', b'{"loss":"a"}', b'{"loss":true}',
    b'{"a":1,"a":2}',
    b'{"a":[' + b"{}," * 500_000 + b"{}]}", b'{"a":[' + b"[]," * 500_000 + b"[]]}", b'{"__proto__":1,"__class__":2}',
    b'{"loss":' + b"1" * 400 + b"}", b'{"loss":-' + b"9" * 309 + b"}", b'{"\\ud800":1}', b"{" + b" " * 1_000_000 + b"}",
    b'{"a":"' + b"x" * 1_000_000 + b'"}',
)  # fmt: skip


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _external_link(file: h5py.File) -> None:
    file["out"] = h5py.ExternalLink("../../canary", "/")


def _external_storage(file: h5py.File) -> None:
    file.create_dataset("out", (len(SECRET),), "u1", external=[("../../canary", 0, len(SECRET))])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((10,), "u1")
    layout[:] = h5py.VirtualSource("../../canary", "x", (10,))
    file.create_virtual_dataset("out", layout)


def _cycle(file: h5py.File) -> None:
    group = file.create_group("a/b/c")
    group["up"] = file["a"]
    group["root"] = file["/"]


def _soft_cycle(file: h5py.File) -> None:
    file["x"], file["y"] = h5py.SoftLink("/y"), h5py.SoftLink("/x")


def _filter_bomb(file: h5py.File) -> None:
    file.create_dataset("bomb", (1 << 24,), "u1", chunks=(1 << 24,), compression="gzip", compression_opts=9)[:] = 0


def _claimed(file: h5py.File) -> None:
    file.create_dataset("large", (1 << 50,), "u1", chunks=(1 << 20,))


def _objects(file: h5py.File) -> None:
    file.create_dataset("refs", data=np.array([file.ref], h5py.ref_dtype))
    file.create_dataset("texts", data=["x" * 100] * 100)


def _many_links(file: h5py.File) -> None:
    group = file.create_group("g")
    for i in range(2000):
        group[f"n{i}"] = file["g"]


def _plain(file: h5py.File) -> None:
    file["a"] = np.arange(1000)


HDF5_FILLERS: Final = {
    "an external link": _external_link, "external storage": _external_storage, "a virtual dataset": _virtual,
    "a cycle of hard links": _cycle, "a cycle of soft links": _soft_cycle, "a filter bomb": _filter_bomb,
    "a claimed size": _claimed, "references and texts": _objects, "two thousand links": _many_links, "an array": _plain,
}  # fmt: skip
