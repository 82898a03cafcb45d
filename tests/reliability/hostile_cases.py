"""The table of hostile files. A family is a function that gives cases; a new one is added to `FAMILIES`.

A case makes a directory of checkpoints whose step 7 is hostile. Its digests match: whoever can write the files can
compute them. Beside the directory lies `CANARY`, which no reader may open.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import h5py
import msgpack
import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STEP: Final = 7
CANARY: Final = "canary"
SECRET: Final = b"what lies outside of the directory"
_BLOCK: Final = 1 << 20
_PAGE: Final = 4096


class Case(NamedTuple):
    """A hostile checkpoint."""

    name: str
    build: Callable[[Path], object]
    """Makes it: `(directory of the checkpoint)`; the canary is `../../canary` from there."""
    is_equal: bool = False
    """Whether it must load, as `GOOD`: the hostility is where a reader has no business."""


# --- writing checkpoints as an attacker does --------------------------------------------------------------------------

GOOD: Final = {"numbers": np.arange(8, dtype="<i8"), "word": "good"}


def ext(code: int, argument: object) -> msgpack.ExtType:
    """Make a node."""
    return msgpack.ExtType(code, argument if isinstance(argument, bytes) else msgpack.packb(argument))


def piece(*nodes: object) -> bytes:
    """Encode nodes."""
    packed: bytes = msgpack.packb(nodes, strict_types=False, unicode_errors="surrogatepass")
    return packed


def seal(path: Path, files: dict[str, bytes], index: object, change: Any = None) -> None:
    """Write files and a manifest with matching digests; `change` may change the manifest's contents."""
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    content: Any = {
        "format_version": 1,
        "step": STEP,
        "created": 1.0,
        "block_nbytes": _BLOCK,
        "files": {name: record(data) for name, data in files.items()},
        "index": index,
    }
    if change is not None:
        content = change(content) or content
    write_manifest(path, json.dumps(content).encode()[:-1] if not isinstance(content, bytes) else content)


def write_manifest(path: Path, body: bytes) -> None:
    """Write a manifest whose own digest matches."""
    (path / "manifest.json").write_bytes(body + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(body).encode())


def record(data: bytes) -> dict[str, object]:
    """Say of a file what a manifest says."""
    digests = "".join(xxhash.xxh3_128_hexdigest(data[i : i + _BLOCK]) for i in range(0, len(data), _BLOCK))
    return {"nbytes": len(data), "xxh3_128": digests}


def entries(**changes: Any) -> dict[str, Any]:
    """Return the parts of an index, changed."""
    made = {"asyncckpt": 1, "features": [], "dtypes": [], "tree": [piece(None)], "arrays": [], "segments": []}
    return made | changes


def index_case(name: str, index: bytes, payload: bytes = b"", info: bytes = b"{}") -> Case:
    """Make a case of an index. The payload begins at the next page behind it."""

    def build(path: Path) -> None:
        state = index + bytes(-len(index) % _PAGE) + payload
        place = {"file": "state.msgpack", "offset": 0, "nbytes": len(index)}
        seal(path, {"state.msgpack": state, "training_info.json": info}, place)

    return Case(name, build)


def tree_case(name: str, *nodes: object, **parts: Any) -> Case:
    """Make a case of nodes."""
    return index_case(name, msgpack.packb(entries(tree=[piece(*nodes)], **parts)))


def array_case(  # noqa: PLR0913 - what an array consists of
    name: str,
    nodes: list[object],
    *,
    dtype: object = "|u1",
    shape: tuple[int, ...] = (_PAGE,),
    segments: list[tuple[int, int]] | None = None,
    more: int = 0,
) -> Case:
    """Make a case of an array; the segments are offsets from the payload's begin, and sizes."""
    runs = [(0, _PAGE)] if segments is None else segments

    def pack(base: int) -> bytes:
        table = b"".join(struct.pack("<3Q", 0, (base + at) % (1 << 64), nbytes) for at, nbytes in runs)
        rows = msgpack.packb([[0, *shape]])
        packed: bytes = msgpack.packb(
            entries(dtypes=[dtype], tree=[piece(*nodes)], arrays=[rows], segments=[table] if table else [])
        )
        return packed

    index = pack(0)
    base = -(-len(pack(1 << 20)) // _PAGE) * _PAGE
    index = pack(base)
    payload = bytes(max([_PAGE, *(at + nbytes for at, nbytes in runs if at + nbytes < 1 << 24)]) + more)

    def build(path: Path) -> None:
        state = index + bytes(base - len(index)) + payload
        place = {"file": "state.msgpack", "offset": 0, "nbytes": len(index)}
        seal(path, {"state.msgpack": state, "training_info.json": b"{}"}, place)

    return Case(name, build)


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
    "headers that claim a piece": b"\xdc\xff\xff" * 1000 + b"\xc0" * 1000,
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


def _with(key: str, packed: bytes) -> bytes:
    """Return an index one of whose entries is these bytes."""
    parts = entries()
    parts.pop(key, None)
    head = b"\x82" if key == "asyncckpt" else bytes([0x80 + len(parts) + 1])
    if key == "asyncckpt":
        return head + msgpack.packb(key) + packed + msgpack.packb("features") + b"\x90"
    return head + b"".join(msgpack.packb(k) + msgpack.packb(v) for k, v in parts.items()) + msgpack.packb(key) + packed


def _bin(data: bytes) -> bytes:
    return b"\xc6" + len(data).to_bytes(4, "big") + data


_PLACES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "the index": lambda bomb: bomb,
    "a key of the index": lambda bomb: b"\x82" + msgpack.packb("asyncckpt") + b"\x01" + bomb + b"\x01",
    "the version": lambda bomb: _with("asyncckpt", bomb),
    "the features": lambda bomb: _with("features", bomb),
    "a feature": lambda bomb: _with("features", b"\x91" + bomb),
    "the dtypes": lambda bomb: _with("dtypes", bomb),
    "a dtype": lambda bomb: _with("dtypes", b"\x91" + bomb),
    "the fields of a dtype": lambda bomb: _with(
        "dtypes", b"\x91\x84" + msgpack.packb("itemsize") + b"\x04" + msgpack.packb("fields") + bomb
    ),
    "the tree": lambda bomb: _with("tree", bomb),
    "a piece": lambda bomb: _with("tree", b"\x91" + _bin(bomb)),
    "a node": lambda bomb: _with("tree", b"\x91" + _bin(b"\x91" + bomb)),
    "the arrays": lambda bomb: _with("arrays", b"\x91" + _bin(bomb)),
    "an array": lambda bomb: _with("arrays", b"\x91" + _bin(b"\x91" + bomb)),
    "a shape": lambda bomb: _with("arrays", b"\x91" + _bin(b"\x91\x92\x00" + bomb)),
    "the segments": lambda bomb: _with("segments", b"\x91" + bomb),
    "a table of segments": lambda bomb: _with("segments", b"\x91" + _bin(bomb)),
    "what nobody knows": lambda bomb: _with("unknown", bomb),
    **{
        f"the argument of {name}": lambda bomb, code=code: _with(  # type: ignore[misc] # each its own code
            "tree", b"\x91" + _bin(b"\x91\xc9" + len(bomb).to_bytes(4, "big") + bytes([code]) + bomb)
        )
        for name, code in _CODES.items()
    },
}


def bombs() -> Iterator[Case]:
    """Every bomb in every place of an index."""
    for (place, put), (name, bomb) in itertools.product(_PLACES.items(), BOMBS.items()):
        yield index_case(f"{name} as {place}", put(bomb))


def big_bombs() -> Iterator[Case]:
    """The worst of them, at 5 MB, which stock msgpack makes 267 MiB of."""
    size = 5_000_000
    for place in ("the index", "a dtype", "a piece", "the arrays", "a table of segments", "the argument of SCALAR"):
        for byte in (b"\x80", b"\x90"):
            bomb = b"\xdd" + size.to_bytes(4, "big") + byte * size
            yield index_case(f"5 MB of {byte!r} as {place}", _PLACES[place](bomb))


# --- trees ------------------------------------------------------------------------------------------------------------

_COLLIDING: Final = (1 << 61) - 1  # Python's ints hash by this modulus


def _chained(code: int, depth: int, end: list[object]) -> list[object]:
    return [ext(code, 1)] * depth + end


def _pieces(nodes: list[object]) -> dict[str, Any]:
    return {"tree": [piece(*nodes[i : i + 16384]) for i in range(0, len(nodes), 16384)]}


def _long_tree(name: str, nodes: list[object]) -> Case:
    return index_case(name, msgpack.packb(entries(**_pieces(nodes))))


def trees() -> Iterator[Case]:
    """Trees that are none, and trees that are slow."""
    for code, count in itertools.product((1, 2, 3, 4, 5, 7), (-1, 2, 1 << 62, 1.5, True, "1", None, [1])):
        yield tree_case(f"container {code} of {count!r}", ext(code, count), 1)
    for argument in ((1, -1), (1, 1 << 70 >> 8), (1, "a"), (1,), 1, (2, 1), (0, 1.5)):
        yield tree_case(f"a deque of {argument!r}", ext(6, argument), 1)
    yield tree_case("two roots", 1, 2)
    yield tree_case("no root")
    yield index_case("no pieces", msgpack.packb(entries(tree=[])))
    yield index_case("empty pieces", msgpack.packb(entries(tree=[b""] * 1000)))
    yield index_case("a million empty bins", _with("tree", b"\xdd\x00\x0f\x00\x00" + b"\xc4\x00" * 0xF0000))
    yield tree_case("a key twice", ext(3, 2), "a", 1, "a", 2)
    yield tree_case("equal keys", ext(3, 2), 1, 1, 1.0, 2)
    yield tree_case("a list as key", ext(3, 1), ext(1, 0), 2)
    yield tree_case("an element twice", ext(4, 2), 1, 1)
    yield tree_case("an array as key", ext(3, 1), ext(9, 0), 2)
    yield tree_case("an int of 100 kB as key", ext(3, 2), msgpack.ExtType(11, b"\x7f" * 100_000), 1, ext(1, 0), 1)
    yield tree_case("an int of 1 MB", msgpack.ExtType(11, b"\x7f" * 1_000_000))
    yield tree_case("maps of ten keys as nodes", {str(i): i for i in range(10)})
    yield tree_case("arrays as nodes", [1, 2, 3])
    yield tree_case("two pieces of names", ext(8, "bytearray"), ext(8, "bytearray"), b"ab")
    for depth in (1_000, 60_000):
        yield _long_tree(f"lists {depth} deep", _chained(1, depth, [1]))
        yield _long_tree(f"tuples {depth} deep", _chained(2, depth, [1]))
        yield _long_tree(f"frozensets {depth} deep", _chained(5, depth, [1]))
        yield _long_tree(f"sets in lists, {depth} deep", [ext(5, 1), ext(1, 1)] * (depth // 2) + [1])
        yield _long_tree(f"objects {depth} deep", [ext(8, "nobody.knows")] * depth + [1])
        yield _long_tree(f"paths {depth} deep", [ext(8, "path")] * depth + ["x"])
    for depth in (201, 300_000):
        yield _long_tree(f"tuples {depth} deep as key", [ext(3, 1), *_chained(2, depth, [1]), 1])
        yield _long_tree(f"tuples {depth} deep in a set", [ext(4, 1), *_chained(2, depth, [1])])
    many = 20_000
    yield _long_tree("keys of one hash", [ext(3, many), *(n for i in range(many) for n in (_integer(i), 1))])
    yield _long_tree("elements of one hash", [ext(4, many), *(_integer(i) for i in range(many))])
    tuples = [node for i in range(many) for node in (ext(2, 1), _integer(i))]
    yield _long_tree("tuples of one hash", [ext(5, many), *tuples])
    yield _long_tree("floats as keys", [ext(3, many), *(n for i in range(many) for n in (float(i) * 2**61, 1))])
    deep = 30_000
    names = [ext(8, f"type{i}") for i in range(deep)]
    yield _long_tree(
        "strangers, deep down",
        [*_chained(1, deep, []), ext(1, deep), *(node for name in names for node in (name, 1))],
    )
    yield _long_tree("100,000 empty sets", [ext(1, 100_000), *[ext(4, 0)] * 100_000])
    yield _long_tree("100,000 empty deques", [ext(1, 100_000), *[ext(6, (0, None))] * 100_000])
    yield _long_tree("100,000 empty dicts", [ext(1, 100_000), *[ext(3, 0)] * 100_000])
    yield _long_tree("200,000 nils", [ext(1, 200_000), *[None] * 200_000])


def _integer(multiple: int) -> object:
    value = multiple * _COLLIDING
    return value if value < 1 << 64 else msgpack.ExtType(11, value.to_bytes(16, "little", signed=True))


# --- objects ----------------------------------------------------------------------------------------------------------


def _nodes(value: Any) -> list[object]:
    """Write a value as nodes."""
    if isinstance(value, dict):
        return [ext(3, len(value)), *(n for k, v in value.items() for each in (k, v) for n in _nodes(each))]
    if isinstance(value, list | tuple):
        return [ext(1 if isinstance(value, list) else 2, len(value)), *(n for each in value for n in _nodes(each))]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return [msgpack.ExtType(11, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))]
    return [value]


def _twister(position: object) -> dict[str, object]:
    return {"bit_generator": "MT19937", "state": {"key": list(range(624)), "pos": position}}


def _philox(position: object) -> dict[str, object]:
    return {
        "bit_generator": "Philox", "state": {"counter": [0] * 4, "key": [0] * 2}, "buffer": [0] * 4,
        "buffer_pos": position, "has_uint32": 0, "uinteger": 0,
    }  # fmt: skip


_SEED: Final = {"entropy": 1, "spawn_key": [], "pool_size": 4, "n_children_spawned": 0}
_STATES: Final[dict[str, list[Any]]] = {
    "bytearray": [1 << 40, 1 << 70, -1, "a", [1] * 10, None],
    "path": [1, [1], "\0", "a" * 100_000, None, "../../canary"],
    "pure_posix_path": [1, None],
    "datetime": [1, (), ("2020-01-01", 2, None), ("x" * 10_000, 0, None), ("2020-01-01", 0, "../../canary")],
    "date": [1, "2020-13-01", "9" * 10_000],
    "time": [("00:00", 0, "/etc/passwd"), ("00:00", 0, "UTC\0"), ("00:00", 0, ("x", 1)), ("25:00", 0, None)],
    "timedelta": [(1 << 80, 0, 0), ("a",), (0, 0, 1 << 200), 5],
    "seed_sequence": [
        _SEED | {"pool_size": 1 << 24},
        _SEED | {"pool_size": -1},
        _SEED | {"entropy": 1 << 2_000_000},
        _SEED | {"entropy": [1 << 2_000_000]},
        _SEED | {"spawn_key": [1 << 2_000_000]},
        _SEED | {"entropy": "x"},
        _SEED | {"n_children_spawned": -1},
        _SEED | {"more": 1},
        {},
        None,
    ],
    "bit_generator": [
        {"state": state, "seed_seq": None}
        for state in (
            *map(_twister, (625, 1 << 20, 1 << 40, -1, 1.5, None)),
            *map(_philox, (5, 1 << 20, -50, 1 << 40)),
            {"bit_generator": "PCG64", "state": {"state": -1, "inc": 1 << 200}, "has_uint32": 0, "uinteger": 0},
            {"bit_generator": "os.system"},
            {},
            None,
        )
    ],
    "generator": [
        {"state": _twister(1 << 20), "seed_seq": None},
        {"state": _twister(0), "seed_seq": 1 << 2_000_000},
        {"state": _twister(0), "seed_seq": [1, 2]},
        None,
    ],
    "random_state": [
        _twister(1 << 20) | {"has_gauss": 0, "gauss": 0.0},
        _twister(-7) | {"has_gauss": 1, "gauss": 0.0},
        _twister(0) | {"has_gauss": 1 << 40, "gauss": "x"},
        {},
    ],
    "python_random": [(3, tuple(range(625)), None), (3, (*range(624), -1), None), (3, (), None), (9, 9, 9), None],
    "string_array": [((1 << 62,), ["a"]), ((2, 2), ["a"]), ((-1,), ["a"] * 10), ((), 5), ("x", "y"), None],
    "nobody.knows": [[1], {"a": 1}],
    "os.system": ["touch ../../canary"],
    "\ud800": [1],
}


def objects() -> Iterator[Case]:
    """States that the makers of objects do not expect."""
    for name, states in _STATES.items():
        for number, state in enumerate(states):
            packed = msgpack.packb(name, unicode_errors="surrogatepass")
            yield tree_case(f"{name!a}, state {number}", msgpack.ExtType(8, packed), *_nodes(state))
    yield tree_case("a thousand large seeds", ext(1, 1000), *[n for _ in range(1000) for n in _seed_nodes(8192)])
    yield tree_case("a thousand large pools", ext(1, 1000), *[n for _ in range(1000) for n in _seed_nodes(8, 64)])


def _seed_nodes(bits: int, pool_size: int = 4) -> list[object]:
    return [ext(8, "seed_sequence"), *_nodes(_SEED | {"entropy": (1 << bits) - 1, "pool_size": pool_size})]


# --- arrays -----------------------------------------------------------------------------------------------------------

_DTYPES: Final[tuple[object, ...]] = (
    "|O", "O", "|O8", "object", "|V0", "<U0", "|S0", "|S99999999999999999999", "<U9999999999", "|V2147483648", "f4",
    "<f3",
    "<M8[0D]", "<M8[99999999999D]", "<M8[xx]", "<M8[generic]", "float8_no", "bfloat16", "bfloat1600", "os.system",
    "<f4,<O",
    "(2,)<f4", "<f4" * 1000, "", None, 5, [], {}, ["<f4"], {"base": "<f4"}, {"base": "|O", "shape": [1]},
    {"base": "<f4", "shape": [1 << 40]}, {"base": "<f4", "shape": [-1]}, {"base": "<f4", "shape": "ab"},
    {"base": "<f4", "shape": [1] * 70}, {"base": "|u1", "shape": [_PAGE]},
    {"fields": [], "itemsize": 1 << 40, "aligned": False, "record": False},
    {"fields": [["a", "|O", 0, None]], "itemsize": 8, "aligned": False, "record": False},
    {"fields": [["a", "|u1", 1 << 40, None]], "itemsize": 8, "aligned": False, "record": False},
    {"fields": [["a", "|u1", -5, None]], "itemsize": 8, "aligned": False, "record": False},
    {"fields": [["a", "<f8", 4, None]], "itemsize": 8, "aligned": False, "record": False},
    {"fields": [["a", "|u1", 0, None], ["a", "|u1", 1, None]], "itemsize": 8, "aligned": False, "record": False},
    {"fields": [["a", "|u1", 0, "a"]], "itemsize": 1, "aligned": True, "record": True},
    {"fields": [["a", "|u1", 0, [1]]], "itemsize": 1, "aligned": "x", "record": "y"},
    {"fields": "abc", "itemsize": 1, "aligned": False, "record": False},
    {"fields": [[str(i), "|u1", 0, None] for i in range(9000)], "itemsize": 1, "aligned": False, "record": False},
    {"fields": [[str(i), "|u1", 0, None] for i in range(90000)], "itemsize": 1, "aligned": False, "record": False},
)  # fmt: skip


def _nested(levels: int) -> object:
    dtype: object = "|u1"
    for _ in range(levels):
        dtype = {"base": dtype, "shape": [1]}
    return dtype


_NODE: Final = [ext(9, 0)]


def dtypes() -> Iterator[Case]:
    """Dtypes that cannot be, or should not."""
    for number, dtype in enumerate(_DTYPES):
        for shape in ((_PAGE,), (0,)):
            runs = None if shape[0] else []
            yield array_case(f"dtype {number} of shape {shape}", _NODE, dtype=dtype, shape=shape, segments=runs)
    for levels in (10, 30, 400):
        yield array_case(f"a dtype {levels} deep", _NODE, dtype=_nested(levels))


def arrays() -> Iterator[Case]:
    """Shapes that cannot be, and places where no array can lie."""
    for shape in (
        (1 << 63,), (1 << 62, 0), (0, 1 << 63), (0, 1 << 62, 1 << 62), (1 << 40, 1 << 40), (-1,), (_PAGE, -1, -1),
        (1,) * 65,
        (0,) * 64, (_PAGE + 1,), (_PAGE - 1,), (), (1.5,), ("a",), (True,), (_PAGE, None), (1 << 64 - 1,),
    ):  # fmt: skip
        yield array_case(f"shape {str(shape)[:60]}", _NODE, shape=shape)  # type: ignore[arg-type]
        yield array_case(f"shape {str(shape)[:60]} and no bytes", _NODE, shape=shape, segments=[])  # type: ignore[arg-type]
    for runs in (
        [(0, 2048), (2048, 2048)], [(0, 2048), (1024, 2048)], [(0, 2048), (3000, 2048)], [(0, _PAGE),
        (0, _PAGE)], [(0, 0)],
        [(1 << 40, _PAGE)], [(1 << 63, 1 << 63)], [((1 << 64) - 5000, _PAGE)], [(2048, 2048),
        (0, 2048)], [(0, _PAGE - 1)],
        [(100, _PAGE)], [(i, 1) for i in range(_PAGE)], [(-_PAGE, _PAGE)],
    ):  # fmt: skip
        if all(at >= 0 for at, _ in runs):
            yield array_case(f"segments {str(runs)[:60]}", _NODE, segments=runs, more=_PAGE)
    pages = 3000
    yield array_case(
        "3,000 segments", _NODE, shape=(pages * _PAGE,), segments=[(i * 2 * _PAGE, _PAGE) for i in range(pages)]
    )


def leaves() -> Iterator[Case]:
    """Leaves that refer to what is not there, or too often, or say what they cannot be."""
    for number in (-1, 1, 1 << 63, 1.0, "0", None, [0], True, {}):
        for code in (9, 13, 14):
            yield array_case(f"node {code} of array {number!r}", [ext(code, number)])
        yield array_case(f"numbers of array {number!r}", [ext(16, (1, number))], dtype="<i8", shape=(_PAGE // 8,))
    mebibyte = 1 << 20
    for code, argument in ((13, 0), (14, 0), (9, 0)):
        copies = [ext(1, 5000), *[ext(code, argument)] * 5000]
        yield array_case(f"5,000 times node {code} of 1 MiB", copies, shape=(mebibyte,), segments=[(0, mebibyte)])
    runs_of = [ext(1, 5000), *[ext(16, (1, 0))] * 5000]
    yield array_case("5,000 times one list", runs_of, dtype="<i8", shape=(mebibyte // 8,), segments=[(0, mebibyte)])
    yield array_case("numbers of two dimensions", [ext(16, (1, 0))], dtype="<i8", shape=(8, 64))
    yield array_case("numbers of floats of 4 bytes", [ext(16, (1, 0))], dtype="<f4", shape=(_PAGE // 4,))
    yield array_case("bytes of numbers", [ext(13, 0)], dtype="<i8", shape=(_PAGE // 8,))
    for argument in (
        (1, "<i8", b"abc"), (1, "|O", b"abcdefgh"), (9, "<i8", b""), (1, "<i8", "abcdefgh"), (1, "<i8", 1 << 40),
        (1, 2), None,
    ):  # fmt: skip
        yield tree_case(f"numbers {argument!r}", ext(15, argument))
    for argument in (
        ("bytes_", 1 << 40), ("bytes_", [1]), ("str_", 5), ("<f4", b"abc"), ("<f4", 4), ("|O", b"\0" * 8), ("|V0", b""),
        ("<U1", b"\xff\xff\xff\x7f"), ({"base": "<f4", "shape": [2]}, b"\0" * 8),
        ({"base": "|u1", "shape": [1] * 9}, b"a"),
        (["<f4"], b"abcd"), ("<f4",), ("<f4", b"abcd", 1), None, {}, ("<M8[0D]", b"\0" * 8), ("float8_no", b"a"),
    ):  # fmt: skip
        yield tree_case(f"a scalar {str(argument)[:60]}", ext(10, argument))
    for argument in ((1, "a"), "1+2j", ("x" * 1000,), (1,), (1, 2, 3), {}, None):
        yield tree_case(f"complex {str(argument)[:60]}", ext(12, argument))
    yield array_case("a text that is not UTF-8", [ext(14, 0)])
    rows = msgpack.packb([[0, 0]] * 60_000)
    empty = entries(dtypes=["|u1"], arrays=[rows] * 5, tree=[piece(None)])
    yield index_case("300,000 arrays of nothing", msgpack.packb(empty))


# --- manifests --------------------------------------------------------------------------------------------------------

_VALUES: Final[tuple[object, ...]] = (
    None, True, -1, 1.5, 1 << 70, 10**400, "7", "\ud800", [], {}, [[]], "../../canary", float("nan"), float("inf"),
)  # fmt: skip
_NAMES: Final = (
    "../../canary", "/etc/passwd", "a/../../../canary", "..", ".", "", "/", "a//b", "a/", "manifest.json", "./x",
    "a\0b",
    "\ud800", "x" * 300, "x/" * 3000 + "y", "state.msgpack/x", "link/canary", "link", "%2e%2e/canary", "~/x",
    "a\\..\\b",
    ".lock", "pipe", "/dev/zero", "/proc/self/mem", "CON", "\u202e", "training_info.json/..",
)  # fmt: skip


def _good_files() -> tuple[dict[str, bytes], dict[str, object]]:
    """Return the files of a good checkpoint, and where its index lies."""
    nodes = [ext(3, 2), "numbers", ext(9, 0), "word", "good"]
    table = np.array([0, _PAGE, 64], "<u8").tobytes()
    index = msgpack.packb(
        entries(dtypes=["<i8"], tree=[piece(*nodes)], arrays=[msgpack.packb([[0, 8]])], segments=[table])
    )
    state = index + bytes(_PAGE - len(index)) + GOOD["numbers"].tobytes() + bytes(_PAGE - 64)
    files = {"state.msgpack": state, "training_info.json": b"{}"}
    return files, {"file": "state.msgpack", "offset": 0, "nbytes": len(index)}


def _changed(name: str, change: Callable[[Any], object], *, is_equal: bool = False) -> Case:
    def build(path: Path) -> None:
        files, place = _good_files()
        seal(path, files, place, change)

    return Case(name, build, is_equal)


def _setter(*keys: str, value: object) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def manifests() -> Iterator[Case]:
    """Manifests whose own digest matches."""
    yield _changed("a good one", lambda _: None, is_equal=True)
    fields = [
        ("format_version",), ("step",), ("created",), ("block_nbytes",), ("files",), ("index",), ("index", "file"),
        ("index", "offset"), ("index", "nbytes"), ("files", "state.msgpack"), ("files", "state.msgpack", "nbytes"),
        ("files", "state.msgpack", "xxh3_128"),
    ]  # fmt: skip
    for keys, value in itertools.product(fields, _VALUES):
        yield _changed(f"{'/'.join(keys)} is {str(value)[:20]!a}", _setter(*keys, value=value))
    for name in _NAMES:

        def listed(content: Any, name: str = name) -> None:
            content["files"][name] = record(SECRET)

        def as_state(content: Any, name: str = name) -> None:
            content["files"] = {name: record(SECRET)}
            content["index"] = {"file": name, "offset": 0, "nbytes": len(SECRET)}

        yield _with_links(f"a file called {name[:40]!a}", listed)
        yield _with_links(f"the state in a file called {name[:40]!a}", as_state)
    for nbytes in (10 << 30, 1 << 40):
        digests = "00" * 16 * min(-(-nbytes // _BLOCK), 1 << 16)

        def claims(content: Any, nbytes: int = nbytes, digests: str = digests) -> None:
            content["files"]["state.msgpack"] = {"nbytes": nbytes, "xxh3_128": digests}
            content["index"] = {"file": "state.msgpack", "offset": 0, "nbytes": nbytes}

        def claims_info(content: Any, nbytes: int = nbytes, digests: str = digests) -> None:
            content["files"]["training_info.json"] = {"nbytes": nbytes, "xxh3_128": digests}

        yield _changed(f"an index of {nbytes >> 30} GiB", claims)
        yield _changed(f"a training_info of {nbytes >> 30} GiB", claims_info)
    for body in (
        b"[" * 1_000_000, b'{"a":' * 200_000, b'{"files":[' + b"{}," * 1_000_000 + b"{}]", b"1", b"", b"null", b"{",
        b'{"format_version":1,"format_version":1', b'{"step":' + b"9" * 1_000_000, b'{"step":1e999999', b"\xff\xfe{",
        b'{"a":"' + b"\\ud800" * 100_000 + b'"', b'{"files":{' + b'"a":{},' * 200_000 + b'"b":{}}',
    ):  # fmt: skip
        yield Case(f"a manifest of {body[:12]!r}, {len(body)} bytes", _body_writer(body))
    yield Case("an empty manifest", lambda path: (path.mkdir(), (path / "manifest.json").touch()))
    yield _changed("a hundred thousand files", _many_files)
    yield _changed("more keys", _setter("more", value={"a": [1, 2]}), is_equal=True)


def _many_files(content: Any) -> None:
    content["files"].update({f"file{i}": record(b"") for i in range(100_000)})


def _body_writer(body: bytes) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        write_manifest(path, body)

    return build


def _with_links(name: str, change: Callable[[Any], object]) -> Case:
    def build(path: Path) -> None:
        files, place = _good_files()
        seal(path, files, place, change)
        (path / "link").symlink_to("../..")
        os.mkfifo(path / "pipe")

    return Case(name, build)


# --- documents --------------------------------------------------------------------------------------------------------

_DOCUMENTS: Final = (
    b"[" * 200_000, b'{"a":' * 100_000, b"[]", b"1", b"null", b"", b"\xff\xfe", b'{"loss":' + b"9" * 100_000 + b"}",
    b'{"loss":1e400}', b'{"loss":NaN}', b'{"loss":{}}', b'{"loss":[1]}', b'{"loss":"a"}', b'{"loss":true}',
    b'{"a":1,"a":2}',
    b'{"a":[' + b"{}," * 500_000 + b"{}]}", b'{"a":[' + b"[]," * 500_000 + b"[]]}", b'{"__proto__":1,"__class__":2}',
    b'{"loss":' + b"1" * 400 + b"}", b'{"loss":-' + b"9" * 309 + b"}", b'{"\\ud800":1}', b"{" + b" " * 1_000_000 + b"}",
    b'{"a":"' + b"x" * 1_000_000 + b'"}',
)  # fmt: skip


def documents() -> Iterator[Case]:
    """training_infos: they are read in a listing, too."""
    for data in _DOCUMENTS:
        yield index_case(f"training_info {data[:20]!r}, {len(data)} bytes", msgpack.packb(entries()), info=data)


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


_HDF5: Final = {
    "an external link": _external_link, "external storage": _external_storage, "a virtual dataset": _virtual,
    "a cycle of hard links": _cycle, "a cycle of soft links": _soft_cycle, "a filter bomb": _filter_bomb,
    "a claimed size": _claimed, "references and texts": _objects, "two thousand links": _many_links, "an array": _plain,
}  # fmt: skip


def hdf5() -> Iterator[Case]:
    """HDF5 files: what is loaded stands in the index, and libhdf5 never sees them."""
    for name, fill in _HDF5.items():
        yield Case(f"{name}, beside a good index", _hdf5_builder(fill, "good"), is_equal=True)
        yield Case(f"{name}, and no index", _hdf5_builder(fill, "none"))
        yield Case(f"{name}, its metadata as index", _hdf5_builder(fill, "metadata"))
        yield Case(f"{name}, where the array is said to be", _hdf5_builder(fill, "array"))


def _hdf5_builder(fill: Callable[[h5py.File], None], where: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        with h5py.File(path / "state.h5", "w") as file:
            fill(file)
        data = (path / "state.h5").read_bytes()
        data += bytes(-len(data) % _PAGE)
        files, place = _good_files()
        state = files.pop("state.msgpack")
        nbytes = int(str(place["nbytes"]))
        index = state[:nbytes]
        old, offset = np.array([0, _PAGE, 64], "<u8").tobytes(), len(data) + _PAGE
        if where == "array":
            offset = 512
        index = index.replace(old, np.array([0, offset, 64], "<u8").tobytes())
        files["state.h5"] = data + index + state[nbytes:]
        begin, size = (0, 4096) if where == "metadata" else (len(data), nbytes)
        seal(path, files, None if where == "none" else {"file": "state.h5", "offset": begin, "nbytes": size})

    return build


FAMILIES: Final[dict[str, Callable[[], Iterator[Case]]]] = {
    "manifests": manifests,
    "trees": trees,
    "objects": objects,
    "dtypes": dtypes,
    "arrays": arrays,
    "leaves": leaves,
    "documents": documents,
    "hdf5": hdf5,
    "big-bombs": big_bombs,
    "bombs": bombs,
}
"""Cases by family; the names of cases are distinct within one."""
