"""Hostile keyed files: what a checkpoint has in `hostile_cases.py`, for what a `Checkpointer` opens.

A case makes one file, whose digests match, too; beside its directory lies the canary. Some are made by the library's
own writer, with one part of what it writes replaced: an attacker has its source.
"""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import h5py
import msgpack
import numpy as np

import asyncckpt
from asyncckpt.keyed.hdf5.catalog import encode_catalog

from .forged_checkpoints import GOOD, chunk, entries
from .forged_files import ID, FileCase, file_record, log_of, sealed, set_head
from .hostile_parts import BOMBS, DOCUMENTS, HDF5_FILLERS, PLACES, VALUES
from .hostile_zips import npz_directories, npz_members, npz_zips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
_DIGEST: Final = 16


def log_case(name: str, data: bytes) -> FileCase:
    """Make a case of a log's bytes."""
    return FileCase(name, ".msgpack", lambda path: path.write_bytes(data))


_INDEX: Final = msgpack.packb(entries(tree=[chunk(1)]))


def log_heads() -> Iterator[FileCase]:
    """Records whose heads say what is not so."""
    first = file_record()
    for field, value in itertools.product(("asyncckpt", "version", "features", "id", "more"), VALUES):
        yield log_case(f"the file's {field} is {str(value)[:20]!a}", log_of(_sealed_or_none(file_record, field, value)))
    for field, value in itertools.product(("key", "names", "index", "nbytes", "aligned", "more"), VALUES):
        made = _sealed_or_none(lambda **each: sealed(set_head(_INDEX, **each), _INDEX), field, value)
        yield log_case(f"a value's {field} is {str(value)[:20]!a}", log_of(first, made))
    for field in ("index", "nbytes"):
        for number in (0, 1, len(_INDEX) - 1, len(_INDEX) + 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            yield log_case(
                f"a value's {field} is {number}", log_of(first, sealed(set_head(_INDEX, **{field: number}), _INDEX))
            )
    for field, value in itertools.product(("id", "at"), VALUES):
        made = _sealed_or_none(lambda **each: sealed({"asyncckpt": "commit", "id": ID, "at": 77} | each), field, value)
        yield log_case(f"a commit's {field} is {str(value)[:20]!a}", first + made)
    for digests in (b"", b"a", bytes(15), bytes(17), bytes(1600), bytes(1 << 20)):
        yield log_case(f"{len(digests)} bytes of digests", log_of(first, sealed(set_head(_INDEX), _INDEX, digests)))
    value = sealed(set_head(_INDEX), _INDEX)
    gone = sealed({"asyncckpt": "delete", "key": "k"})
    yield log_case("a deletion of nothing", log_of(first, gone))
    yield log_case("a file twice", log_of(first, first, value))
    yield log_case("ten thousand deletions", log_of(first, *[value, gone] * 5_000))
    yield log_case("ten thousand values of one key", log_of(first, *[value] * 10_000))
    yield log_case(
        "ten thousand keys", log_of(first, *(sealed(set_head(_INDEX, key=f"{n}"), _INDEX) for n in range(10_000)))
    )
    yield log_case("no commit", first + value)
    yield log_case("a long key", log_of(first, sealed(set_head(_INDEX, key="k" * 250_000), _INDEX)))


def _sealed_or_none(make: Callable[..., bytes], field: str, value: object) -> bytes:
    try:
        return make(**{field: value})
    except (OverflowError, ValueError, TypeError):  # msgpack has no such number
        return make(**{field: str(value)})


def log_bombs() -> Iterator[FileCase]:
    """Every bomb where a log has msgpack: heads, names, indexes."""
    first = file_record()
    for name, bomb in BOMBS.items():
        yield log_case(f"{name} as the file", sealed(bomb))
        yield log_case(f"{name} as a record", log_of(first, sealed(bomb)))
        key = b"\x82" + msgpack.packb("asyncckpt") + msgpack.packb("set") + msgpack.packb("names") + bomb
        yield log_case(f"{name} as names", log_of(first, sealed(key)))
        for place in ("the index", "the tree", "a chunk", "a dtype", "the arrays", "a table of segments"):
            index = PLACES[place](bomb)
            yield log_case(f"{name} as {place}", log_of(first, sealed(set_head(index), index)))
    for depth in (100, 10_000, 60_000):
        names: Any = b"\x92\xa1a" * depth + b"\xc0"
        head = msgpack.packb(set_head(_INDEX)).replace(msgpack.packb("names") + b"\xc0", msgpack.packb("names") + names)
        yield log_case(f"names {depth} deep", log_of(first, sealed(head, _INDEX)))


# --- JSON -------------------------------------------------------------------------------------------------------------


def json_case(name: str, data: bytes) -> FileCase:
    """Make a case of a text."""
    return FileCase(name, ".json", lambda path: path.write_bytes(data))


def _special(**parts: Any) -> bytes:
    kind = parts.pop("kind")
    return json.dumps({"k": {"__asyncckpt__": kind} | parts}).encode()


_TEXTS: Final = {
    "lists 200,000 deep": b'{"k":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "lists that never end": b'{"k":' + b"[" * 200_000,
    "dicts 100,000 deep": b'{"k":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "5 MB of empty dicts": b'{"k":[' + b"{}," * 1_600_000 + b"{}]}",
    "5 MB of empty lists": b'{"k":[' + b"[]," * 1_600_000 + b"[]]}",
    **{
        f"5 MB of {text} in a tuple": b'{"k":{"__asyncckpt__":"tuple","items":['
        + b",".join([text.encode()] * (5_000_000 // (len(text) + 1)))
        + b"]}}"
        for text in ("[]", "[[]]", '{"__asyncckpt__":"set","items":[]}')
    },
    "300,000 keys": b"{" + b",".join(b'"%d":0' % n for n in range(300_000)) + b"}",
    "a key twice": b'{"a":1,"a":2}',
    "a key twice, below": b'{"k":{"a":1,"a":2}}',
    "a number of 1 MB": b'{"k":' + b"9" * 1_000_000 + b"}",
    "a number of 4,001 digits": b'{"k":' + b"9" * 4001 + b"}",
    "an exponent": b'{"k":1e999999999}',
    "not a number": b'{"k":NaN,"l":-Infinity}',
    "half a surrogate": b'{"k":"\\ud800","\\udfff":1}',
    "no UTF-8": b'{"k":"\xff\xfe"}',
    "UTF-16": '{"k":1}'.encode("utf-16"),
    "UTF-32": '{"k":1}'.encode("utf-32"),
    "a mark": b'\xef\xbb\xbf{"k":1}',
    "a NUL": b'{"k":1}\0',
    "what follows": b'{"k":1}{"k":2}',
    "1 MB of blanks": b"{" + b" " * 1_000_000 + b"}",
    "an escape that ends": b'{"k":"\\u12',
    "a text of 1 MB that never ends": b'{"k":"' + b"a" * 1_000_000,
    "backslashes": b'{"k":"' + b"\\" * 1_000_001 + b'"}',
    "a key of 1 MB": b'{"' + b"a" * 1_000_000 + b'":1}',
}  # fmt: skip

_B64: Final = [base64.b64encode(bytes(64)).decode()]
_SPECIALS: Final[tuple[dict[str, Any], ...]] = (
    *({"kind": kind, "items": items} for kind in ("tuple", "set", "frozenset", "OrderedDict", "deque")
      for items in (None, 1, "ab", [[1], [1]], {"a": 1}, [{}] * 3)),
    *({"kind": "array", "number": 0, "dtype": dtype, "shape": shape, "data": data}
      for dtype in ("|u1", "|O", "<f8", {"base": "|u1", "shape": [1 << 40]}, None, "<U999999999")
      for shape in ([64], [1 << 62], [-1], [1 << 40, 0], [0, 1 << 62], "64", [64.0])
      for data in (_B64, ["A" * 1_000_000], ["!!!"], [], None)),
    {"kind": "array", "number": 5}, {"kind": "array", "number": -1}, {"kind": "array"},
    *({"kind": "scalar", "dtype": dtype, "value": value} for dtype in ("<f8", "|O", "bytes_", "str_", "|V9999999999")
      for value in ("AAAA", 1, None, "A" * 400_000)),
    *({"kind": "int", "hex": text} for text in ("z", "-", "f" * 1_000_000, 1, "0x1", "")),
    *({"kind": "float", "bits": text} for text in ("z", "0", "f" * 100, 1, None)),
    *({"kind": "complex", "parts": parts} for parts in ([1], [1, "a"], None, [1] * 100_000)),
    *({"kind": kind, "data": data} for kind in ("bytes", "str") for data in (["/w=="], ["!"], 1, [1], ["A" * 1001])),
    *({"kind": "object", "type": name, "state": state}
      for name, state in (("path", 1), ("bytearray", 1 << 40), ("os.system", "id"), ("seed_sequence", {}), ([], 1))),
    *({"kind": "tree", "pieces": [base64.b64encode(bomb).decode()], "arrays": []} for bomb in BOMBS.values()),
    {"kind": "tree", "pieces": 1, "arrays": 1}, {"kind": "nobody"}, {"kind": None}, {"kind": ["tuple"]},
)  # fmt: skip


def json_files() -> Iterator[FileCase]:
    """Texts that are no object, or are one that hurts."""
    for name, data in _TEXTS.items():
        yield json_case(name, data)
    for data in DOCUMENTS:
        yield json_case(f"{data[:20]!r}, {len(data)} bytes", data)
    for number, parts in enumerate(_SPECIALS):
        yield json_case(f"special {number}: {str(parts)[:60]}", _special(**parts))
    copies = ",".join(['{"__asyncckpt__":"array","number":0}'] * 5_000)
    large = json.dumps(
        {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [147_456], "data": ["A" * 196_608]}
    )
    yield json_case("5,000 times one array", f'{{"k":[{large},{copies}]}}'.encode())


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _hdf5_with(changed: Callable[[bytes], bytes], name: str) -> FileCase:
    """Make a case that the library's own writer wrote, with its catalog changed."""

    def build(path: Path) -> None:
        patch = mock.patch(
            "asyncckpt.keyed.hdf5.native_file.encode_catalog",
            lambda *args: [changed(b"".join(encode_catalog(*args)))],
        )
        with patch, asyncckpt.Checkpointer.from_file(path) as chk:
            chk["numbers"], chk["word"] = GOOD["numbers"], {"word": ["good"], "array": np.arange(20_000)}

    return FileCase(name, ".h5", build)


def hdf5_files() -> Iterator[FileCase]:
    """Catalogs that hurt, behind digests that match; and files of somebody else's, which nobody may open for us."""
    for name, bomb in BOMBS.items():
        yield _hdf5_with(lambda _, bomb=bomb: bomb, f"{name} as the catalog")
        for part in ("regions", "keys", "features", "asyncckpt_keyed"):

            def changed(data: bytes, part: str = part, bomb: bytes = bomb) -> bytes:
                catalog = msgpack.unpackb(data, unicode_errors="surrogatepass")
                packed = [
                    msgpack.packb(key) + (bomb if key == part else msgpack.packb(catalog[key])) for key in catalog
                ]
                return bytes([0x80 + len(packed)]) + b"".join(packed)

            yield _hdf5_with(changed, f"{name} as {part}")
    for field, value in itertools.product(range(11), (*VALUES[:4], 1, 1 << 40, (1 << 64) - 1, "x", [], b"a")):

        def row_changed(data: bytes, field: int = field, value: Any = value) -> bytes:
            catalog = msgpack.unpackb(data, unicode_errors="surrogatepass")
            rows = msgpack.unpackb(catalog["keys"][0])
            rows[1][field] = value if not isinstance(value, int) or abs(value) < 1 << 64 else str(value)
            return bytes(msgpack.packb(catalog | {"keys": [msgpack.packb(rows)]}))

        yield _hdf5_with(row_changed, f"entry {field} of a row is {str(value)[:20]!a}")
    for field, value in itertools.product(range(3), (0, 1, -1, 1 << 40, (1 << 64) - 1, None, b"a", "x")):

        def region_changed(data: bytes, field: int = field, value: Any = value) -> bytes:
            catalog = msgpack.unpackb(data, unicode_errors="surrogatepass")
            catalog["regions"][0][field] = value
            return bytes(msgpack.packb(catalog))

        yield _hdf5_with(region_changed, f"entry {field} of a region is {str(value)[:20]!a}")
    for name, fill in HDF5_FILLERS.items():
        yield FileCase(f"{name}, of somebody else's", ".h5", lambda path, fill=fill: _foreign(path, fill))
    yield FileCase("a good one", ".h5", _good, is_equal=True)


def _foreign(path: Path, fill: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "w") as file:
        fill(file)


def _good(path: Path) -> None:
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk.update(GOOD)


def good_files() -> Iterator[FileCase]:
    """Good ones of the other kinds, and what is no file."""
    for extension in (".msgpack", ".json", ".npz"):
        yield FileCase(f"a good {extension}", extension, _good, is_equal=True)
    for extension in (".msgpack", ".json", ".npz", ".h5"):
        yield FileCase(f"an empty {extension}", extension, Path.touch)
        yield FileCase(f"a good one cut, {extension}", extension, _cut)


def _cut(path: Path) -> None:
    _good(path)
    path.write_bytes(path.read_bytes()[:-300])


FILE_FAMILIES: Final[dict[str, Callable[[], Iterator[FileCase]]]] = {
    "log-heads": log_heads,
    "log-bombs": log_bombs,
    "json": json_files,
    "npz-members": npz_members,
    "npz-directories": npz_directories,
    "npz-zips": npz_zips,
    "keyed-hdf5": hdf5_files,
    "good-files": good_files,
}
"""Cases by family; the names of cases are distinct within one."""
