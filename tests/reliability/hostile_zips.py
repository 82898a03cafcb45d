"""Hostile zip files of arrays."""

from __future__ import annotations

import itertools
import struct
import zipfile
from typing import TYPE_CHECKING, Any, Final

import msgpack

from .forged_files import FileCase, npy, npy_text, zip_of
from .hostile_parts import BOMBS, PLACES, VALUES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def npz_case(name: str, data: bytes) -> FileCase:
    """Make a case of a zip file's bytes."""
    return FileCase(name, ".npz", lambda path: path.write_bytes(data))


_NPYS: Final = {
    "objects": npy("|O", (1,), b"cos\nsystem\n(S'id'\ntR."), "a claim": npy("|u1", (1 << 50,)),
    "a claim in products": npy("<f8", (1 << 40, 1 << 40)), "an empty claim": npy("<f8", (0, 1 << 62)),
    "less than nothing": npy("<f8", (-1,)), "a shape of text": npy("<f8", "ab"), "no shape": npy("<f8", None),
    "a dtype of 1 TiB": npy(f"|V{1 << 40}", (1,)), "a dtype that is none": npy("nobody", (1,)),
    "nested objects": npy([("a", "|O")], (1,), bytes(8)), "65 dimensions": npy("|u1", (1,) * 65, b"a"),
    "1,000 fields": npy([(f"f{n}", "|u1") for n in range(1000)], (1,), bytes(1000)),
    "brackets": npy_text(b"(" * 60_000), "a sum": npy_text(b"1+" * 20_000 + b"1"),
    "minus": npy_text(b"-" * 60_000 + b"1"),
    "a call": npy_text(b"__import__('os').system('id')"), "no header": b"\x93NUMPY\x01\x00", "nothing": b"",
    "another magic": b"\x94NUMPY\x01\x00" + bytes(100), "version 9": npy("|u1", (1,), b"a", version=b"\x09\x00"),
    "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 1000,
    "not all of it": npy("<f8", (1000,), bytes(100)),
    "more than it says": npy("|u1", (1,), bytes(1_000_000)), "keys of a header": npy_text(b"{'descr':'|u1'}"),
    "a header of 9 kB": npy_text(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,), }" + b" " * 9_000, b"a"),
}  # fmt: skip


def npz_members() -> Iterator[FileCase]:
    """Members that are no arrays, or arrays that hurt."""
    for name, data in _NPYS.items():
        yield npz_case(f"a member of {name}", zip_of({"k.npy": data}))
        yield npz_case(f"a deflated member of {name}", zip_of({"k.npy": data}, method=zipfile.ZIP_DEFLATED))
        yield npz_case(f"a directory of {name}", zip_of({"__asyncckpt__.npy": data}))
    yield FileCase("a bomb of 200 MiB", ".npz", _zip_bomb)
    yield FileCase("a bomb in 50 members of one value", ".npz", _split_bomb)
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
        yield npz_case(f"a member called {name[:20]!a}", zip_of({name: npy("|u1", (1,), b"a")}))
    yield npz_case("65,000 members", zip_of({f"{n}.npy": b"" for n in range(65_000)}))


def _zip_bomb(path: Path) -> None:
    zeros = npy("|u1", (200 << 20,)) + bytes(200 << 20)
    path.write_bytes(zip_of({"k.npy": zeros}, method=zipfile.ZIP_DEFLATED, level=1))


def _split_bomb(path: Path) -> None:
    zeros = npy("|u1", (60 << 20,)) + bytes(60 << 20)
    head = {"asyncckpt": "keyed", "version": 1, "features": []}
    packed = msgpack.packb(head | {"keys": [["k", None, b"no tree", [f"{n}.npy" for n in range(50)]]]})
    members = {f"{n}.npy": zeros for n in range(50)} | {"__asyncckpt__.npy": npy("|u1", (len(packed),), packed)}
    path.write_bytes(zip_of(members, method=zipfile.ZIP_DEFLATED, level=1))


def npz_directories() -> Iterator[FileCase]:
    """Bombs as the directory, and as a tree in it; rows that are not so."""
    array = npy("|u1", (8,), bytes(8))

    def directory(packed: bytes) -> bytes:
        return zip_of({"a.npy": array, "__asyncckpt__.npy": npy("|u1", (len(packed),), packed)})

    def rows(*listed: Any, **changes: Any) -> bytes:
        head = {"asyncckpt": "keyed", "version": 1, "features": [], "keys": list(listed)} | changes
        return directory(msgpack.packb(head, unicode_errors="surrogatepass"))

    for name, bomb in BOMBS.items():
        yield npz_case(f"{name} as the directory", directory(bomb))
        yield npz_case(f"{name} as a tree", rows(["k", None, bomb, ["a.npy"]]))
        yield npz_case(f"{name} as a tree's arrays", rows(["k", None, PLACES["the arrays"](bomb), ["a.npy"]]))
        keys = msgpack.packb({"asyncckpt": "keyed", "version": 1, "features": []})
        yield npz_case(f"{name} as the rows", directory(b"\x84" + keys[1:] + msgpack.packb("keys") + bomb))
    size = 5_000_000
    yield npz_case("5 MB of empty maps", directory(b"\xdd" + size.to_bytes(4, "big") + b"\x80" * size))
    for value in VALUES:
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
    good = bytearray(zip_of({"k.npy": npy("|u1", (1000,), bytes(1000)), "l.npy": npy("|u1", (8,), bytes(8))}))
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
