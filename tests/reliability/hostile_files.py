"""Hostile files of many keys: `hostile_cases.py` goes on here, for what a `Checkpointer` opens.

A case makes one file, whose digests match, too; beside its directory lies the canary. Some are made by the library's
own writer, with one part of what it writes replaced: an attacker has its source.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from unittest import mock

import h5py
import msgpack
import numpy as np
import xxhash

import asyncckpt
from asyncckpt.keyed._hdf5_catalog import encode_catalog

from .hostile_cases import _DOCUMENTS, _HDF5, _PLACES, _VALUES, BOMBS, GOOD, entries, piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ID: Final = b"0123456789abcdef"
_DIGEST: Final = 16


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
    return sealed({"asyncckpt": "keyed", "version": 1, "features": [], "id": _ID} | changes)


def set_head(index: bytes, /, **changes: Any) -> dict[str, Any]:
    """Make the head of a value whose body is an index alone."""
    head = {"asyncckpt": "set", "key": "k", "names": None, "index": len(index), "nbytes": len(index), "aligned": False}
    return head | changes


def log_of(*records: bytes, commit: Any = None) -> bytes:
    """Make a log that ends with a commit."""
    data = b"".join(records)
    head = {"asyncckpt": "commit", "id": _ID, "at": len(data)} if commit is None else commit
    return data + sealed(head)


def log_case(name: str, data: bytes) -> FileCase:
    """Make a case of a log's bytes."""
    return FileCase(name, ".msgpack", lambda path: path.write_bytes(data))


_INDEX: Final = msgpack.packb(entries(tree=[piece(1)]))


def log_heads() -> Iterator[FileCase]:
    """Records whose heads say what is not so."""
    first = file_record()
    for field, value in itertools.product(("asyncckpt", "version", "features", "id", "more"), _VALUES):
        yield log_case(f"the file's {field} is {str(value)[:20]!a}", log_of(_sealed_or_none(file_record, field, value)))
    for field, value in itertools.product(("key", "names", "index", "nbytes", "aligned", "more"), _VALUES):
        made = _sealed_or_none(lambda **each: sealed(set_head(_INDEX, **each), _INDEX), field, value)
        yield log_case(f"a value's {field} is {str(value)[:20]!a}", log_of(first, made))
    for field in ("index", "nbytes"):
        for number in (0, 1, len(_INDEX) - 1, len(_INDEX) + 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            yield log_case(
                f"a value's {field} is {number}", log_of(first, sealed(set_head(_INDEX, **{field: number}), _INDEX))
            )
    for field, value in itertools.product(("id", "at"), _VALUES):
        made = _sealed_or_none(lambda **each: sealed({"asyncckpt": "commit", "id": _ID, "at": 77} | each), field, value)
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
        for place in ("the index", "the tree", "a piece", "a dtype", "the arrays", "a table of segments"):
            index = _PLACES[place](bomb)
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
    for data in _DOCUMENTS:
        yield json_case(f"{data[:20]!r}, {len(data)} bytes", data)
    for number, parts in enumerate(_SPECIALS):
        yield json_case(f"special {number}: {str(parts)[:60]}", _special(**parts))
    copies = ",".join(['{"__asyncckpt__":"array","number":0}'] * 5_000)
    large = json.dumps(
        {"__asyncckpt__": "array", "number": 0, "dtype": "|u1", "shape": [147_456], "data": ["A" * 196_608]}
    )
    yield json_case("5,000 times one array", f'{{"k":[{large},{copies}]}}'.encode())


# --- zip files --------------------------------------------------------------------------------------------------------


def _npy(dtype: object, shape: object, data: bytes = b"", *, version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return _npy_text(text.encode(), data, version)


def _npy_text(text: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    wide = "<H" if version == b"\x01\x00" else "<I"
    return (
        b"\x93NUMPY" + version + struct.pack(wide, len(text) & (0xFFFF if wide == "<H" else 0xFFFFFFFF)) + text + data
    )


def _zip(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED, level: int = 9) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method, compresslevel=level) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, method, level)
    return made.getvalue()


def npz_case(name: str, data: bytes) -> FileCase:
    """Make a case of a zip file's bytes."""
    return FileCase(name, ".npz", lambda path: path.write_bytes(data))


_NPYS: Final = {
    "objects": _npy("|O", (1,), b"cos\nsystem\n(S'id'\ntR."), "a claim": _npy("|u1", (1 << 50,)),
    "a claim in products": _npy("<f8", (1 << 40, 1 << 40)), "an empty claim": _npy("<f8", (0, 1 << 62)),
    "less than nothing": _npy("<f8", (-1,)), "a shape of text": _npy("<f8", "ab"), "no shape": _npy("<f8", None),
    "a dtype of 1 TiB": _npy(f"|V{1 << 40}", (1,)), "a dtype that is none": _npy("nobody", (1,)),
    "nested objects": _npy([("a", "|O")], (1,), bytes(8)), "65 dimensions": _npy("|u1", (1,) * 65, b"a"),
    "1,000 fields": _npy([(f"f{n}", "|u1") for n in range(1000)], (1,), bytes(1000)),
    "brackets": _npy_text(b"(" * 60_000), "a sum": _npy_text(b"1+" * 20_000 + b"1"),
    "minus": _npy_text(b"-" * 60_000 + b"1"),
    "a call": _npy_text(b"__import__('os').system('id')"), "no header": b"\x93NUMPY\x01\x00", "nothing": b"",
    "another magic": b"\x94NUMPY\x01\x00" + bytes(100), "version 9": _npy("|u1", (1,), b"a", version=b"\x09\x00"),
    "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 1000,
    "not all of it": _npy("<f8", (1000,), bytes(100)),
    "more than it says": _npy("|u1", (1,), bytes(1_000_000)), "keys of a header": _npy_text(b"{'descr':'|u1'}"),
    "a header of 9 kB": _npy_text(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }" + b" " * 9_000, b"a"),
}  # fmt: skip


def npz_members() -> Iterator[FileCase]:
    """Members that are no arrays, or arrays that hurt."""
    for name, data in _NPYS.items():
        yield npz_case(f"a member of {name}", _zip({"k.npy": data}))
        yield npz_case(f"a deflated member of {name}", _zip({"k.npy": data}, method=zipfile.ZIP_DEFLATED))
        yield npz_case(f"a directory of {name}", _zip({"__asyncckpt__.npy": data}))
    yield FileCase("a bomb of 200 MiB", ".npz", _zip_bomb)
    names = (
        "../../canary",
        "/etc/passwd.npy",
        "../canary.npy",
        "a\0b.npy",
        "",
        ".npy",
        "k",
        "é" * 30_000,
        "\\..\\c.npy",
    )
    for name in names:
        yield npz_case(f"a member called {name[:20]!a}", _zip({name: _npy("|u1", (1,), b"a")}))
    yield npz_case("65,000 members", _zip({f"{n}.npy": b"" for n in range(65_000)}))


def _zip_bomb(path: Path) -> None:
    zeros = _npy("|u1", (200 << 20,)) + bytes(200 << 20)
    path.write_bytes(_zip({"k.npy": zeros}, method=zipfile.ZIP_DEFLATED, level=1))


def npz_directories() -> Iterator[FileCase]:
    """Bombs as the directory, and as a tree in it; rows that are not so."""
    array = _npy("|u1", (8,), bytes(8))

    def directory(packed: bytes) -> bytes:
        return _zip({"a.npy": array, "__asyncckpt__.npy": _npy("|u1", (len(packed),), packed)})

    def rows(*listed: Any, **changes: Any) -> bytes:
        head = {"asyncckpt": "keyed", "version": 1, "features": [], "keys": list(listed)} | changes
        return directory(msgpack.packb(head, unicode_errors="surrogatepass"))

    for name, bomb in BOMBS.items():
        yield npz_case(f"{name} as the directory", directory(bomb))
        yield npz_case(f"{name} as a tree", rows(["k", None, bomb, ["a.npy"]]))
        yield npz_case(f"{name} as a tree's arrays", rows(["k", None, _PLACES["the arrays"](bomb), ["a.npy"]]))
        keys = msgpack.packb({"asyncckpt": "keyed", "version": 1, "features": []})
        yield npz_case(f"{name} as the rows", directory(b"\x84" + keys[1:] + msgpack.packb("keys") + bomb))
    size = 5_000_000
    yield npz_case("5 MB of empty maps", directory(b"\xdd" + size.to_bytes(4, "big") + b"\x80" * size))
    for value in _VALUES:
        for place in range(4):
            row: list[Any] = ["k", None, None, ["a.npy"]]
            row[place] = value if not isinstance(value, int) or abs(value) < 1 << 64 else str(value)
            yield npz_case(f"entry {place} of a row is {str(value)[:20]!a}", rows(row))
    good = ["k", None, None, ["a.npy"]]
    for name, listed in {
        "a key twice": [good, good], "a member twice": [good, ["l", None, None, ["a.npy"]]],
        "a member that lacks": [["k", None, None, ["b.npy"]]],
        "the directory itself": [["k", None, None, ["__asyncckpt__.npy"]]],
        "200,000 rows": [[f"{n}", None, None, []] for n in range(200_000)],
    }.items():  # fmt: skip
        yield npz_case(f"rows with {name}", rows(*listed))


def npz_zips() -> Iterator[FileCase]:
    """Zip files whose headers say what is not so."""
    good = bytearray(_zip({"k.npy": _npy("|u1", (1000,), bytes(1000)), "l.npy": _npy("|u1", (8,), bytes(8))}))
    central = good.index(b"PK\x01\x02")
    end = good.index(b"PK\x05\x06")
    fields = {
        "flags": (central + 8, "<H"), "method": (central + 10, "<H"), "crc": (central + 16, "<I"),
        "compressed size": (central + 20, "<I"), "size": (central + 24, "<I"), "name's length": (central + 28, "<H"),
        "extra's length": (central + 30, "<H"),
        "comment's length": (central + 32, "<H"), "offset": (central + 42, "<I"),
        "local method": (8, "<H"), "local size": (22, "<I"), "local name's length": (26, "<H"),
        "local extra's length": (28, "<H"),
        "entries": (end + 10, "<H"), "directory's size": (end + 12, "<I"), "directory's offset": (end + 16, "<I"),
        "end comment's length": (end + 20, "<H"),
    }  # fmt: skip
    for (name, (at, kind)), value in itertools.product(fields.items(), (0, 1, 8, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)):
        if value < 1 << 8 * struct.calcsize(kind):
            data = bytearray(good)
            struct.pack_into(kind, data, at, value)
            yield npz_case(f"{name} {value:#x}", bytes(data))
    yield npz_case("members that overlap", bytes(_overlapping(good, central)))


def _overlapping(good: bytearray, central: int) -> bytearray:
    data = bytearray(good)
    second = data.index(b"PK\x01\x02", central + 1)
    struct.pack_into("<I", data, second + 42, 0)
    return data


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def _hdf5_with(changed: Callable[[bytes], bytes], name: str) -> FileCase:
    """Make a case that the library's own writer wrote, with its catalog changed."""

    def build(path: Path) -> None:
        patch = mock.patch(
            "asyncckpt.keyed._hdf5_data.encode_catalog",
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
    for field, value in itertools.product(range(11), (*_VALUES[:4], 1, 1 << 40, (1 << 64) - 1, "x", [], b"a")):

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
    for name, fill in _HDF5.items():
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
