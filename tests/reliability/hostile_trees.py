"""Hostile indexes, by what they are of: trees, objects, dtypes, arrays, leaves. Each family gives cases."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import msgpack

from .forged_checkpoints import PAGE, Case, array_case, chunk, entries, ext, index_case, tree_case, with_entry

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- trees ------------------------------------------------------------------------------------------------------------

_COLLIDING: Final = (1 << 61) - 1  # Python's ints hash by this modulus


def _chained(code: int, depth: int, end: list[object]) -> list[object]:
    return [ext(code, 1)] * depth + end


def _chunks(nodes: list[object]) -> dict[str, Any]:
    return {"tree": [chunk(*nodes[i : i + 16384]) for i in range(0, len(nodes), 16384)]}


def _long_tree(name: str, nodes: list[object]) -> Case:
    return index_case(name, msgpack.packb(entries(**_chunks(nodes))))


def trees() -> Iterator[Case]:
    """Trees that are none, and trees that are slow."""
    for code, count in itertools.product((1, 2, 3, 4, 5, 7), (-1, 2, 1 << 62, 1.5, True, "1", None, [1])):
        yield tree_case(f"container {code} of {count!r}", ext(code, count), 1)
    for argument in ((1, -1), (1, 1 << 70 >> 8), (1, "a"), (1,), 1, (2, 1), (0, 1.5)):
        yield tree_case(f"a deque of {argument!r}", ext(6, argument), 1)
    yield tree_case("two roots", 1, 2)
    yield tree_case("no root")
    yield index_case("no chunks", msgpack.packb(entries(tree=[])))
    yield index_case("empty chunks", msgpack.packb(entries(tree=[b""] * 1000)))
    yield index_case("a million empty bins", with_entry("tree", b"\xdd\x00\x0f\x00\x00" + b"\xc4\x00" * 0xF0000))
    yield tree_case("a key twice", ext(3, 2), "a", 1, "a", 2)
    yield tree_case("equal keys", ext(3, 2), 1, 1, 1.0, 2)
    yield tree_case("a list as key", ext(3, 1), ext(1, 0), 2)
    yield tree_case("an element twice", ext(4, 2), 1, 1)
    yield tree_case("an array as key", ext(3, 1), ext(9, 0), 2)
    yield tree_case("an int of 100 kB as key", ext(3, 2), msgpack.ExtType(11, b"\x7f" * 100_000), 1, ext(1, 0), 1)
    yield tree_case("an int of 1 MB", msgpack.ExtType(11, b"\x7f" * 1_000_000))
    yield tree_case("maps of ten keys as nodes", {str(i): i for i in range(10)})
    yield tree_case("arrays as nodes", [1, 2, 3])
    yield tree_case("two chunks of names", ext(8, "bytearray"), ext(8, "bytearray"), b"ab")
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
    {"base": "<f4", "shape": [1] * 70}, {"base": "|u1", "shape": [PAGE]},
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
        for shape in ((PAGE,), (0,)):
            runs = None if shape[0] else []
            yield array_case(f"dtype {number} of shape {shape}", _NODE, dtype=dtype, shape=shape, segments=runs)
    for levels in (10, 30, 400):
        yield array_case(f"a dtype {levels} deep", _NODE, dtype=_nested(levels))


def arrays() -> Iterator[Case]:
    """Shapes that cannot be, and places where no array can lie."""
    for shape in (
        (1 << 63,), (1 << 62, 0), (0, 1 << 63), (0, 1 << 62, 1 << 62), (1 << 40, 1 << 40), (-1,), (PAGE, -1, -1),
        (1,) * 65,
        (0,) * 64, (PAGE + 1,), (PAGE - 1,), (), (1.5,), ("a",), (True,), (PAGE, None), (1 << 64 - 1,),
    ):  # fmt: skip
        yield array_case(f"shape {str(shape)[:60]}", _NODE, shape=shape)  # type: ignore[arg-type]
        yield array_case(f"shape {str(shape)[:60]} and no bytes", _NODE, shape=shape, segments=[])  # type: ignore[arg-type]
    for runs in (
        [(0, 2048), (2048, 2048)], [(0, 2048), (1024, 2048)], [(0, 2048), (3000, 2048)], [(0, PAGE),
        (0, PAGE)], [(0, 0)],
        [(1 << 40, PAGE)], [(1 << 63, 1 << 63)], [((1 << 64) - 5000, PAGE)], [(2048, 2048),
        (0, 2048)], [(0, PAGE - 1)],
        [(100, PAGE)], [(i, 1) for i in range(PAGE)], [(-PAGE, PAGE)],
    ):  # fmt: skip
        if all(at >= 0 for at, _ in runs):
            yield array_case(f"segments {str(runs)[:60]}", _NODE, segments=runs, more=PAGE)
    pages = 3000
    yield array_case(
        "3,000 segments",
        _NODE,
        shape=(pages * PAGE,),
        segments=[(i * 2 * PAGE, PAGE) for i in range(pages)],
    )


def leaves() -> Iterator[Case]:
    """Leaves that refer to what is not there, or too often, or say what they cannot be."""
    for number in (-1, 1, 1 << 63, 1.0, "0", None, [0], True, {}):
        for code in (9, 13, 14):
            yield array_case(f"node {code} of array {number!r}", [ext(code, number)])
        yield array_case(f"numbers of array {number!r}", [ext(16, (1, number))], dtype="<i8", shape=(PAGE // 8,))
    mebibyte = 1 << 20
    for code, argument in ((13, 0), (14, 0), (9, 0)):
        copies = [ext(1, 5000), *[ext(code, argument)] * 5000]
        yield array_case(f"5,000 times node {code} of 1 MiB", copies, shape=(mebibyte,), segments=[(0, mebibyte)])
    runs_of = [ext(1, 5000), *[ext(16, (1, 0))] * 5000]
    yield array_case("5,000 times one list", runs_of, dtype="<i8", shape=(mebibyte // 8,), segments=[(0, mebibyte)])
    yield array_case("numbers of two dimensions", [ext(16, (1, 0))], dtype="<i8", shape=(8, 64))
    yield array_case("numbers of floats of 4 bytes", [ext(16, (1, 0))], dtype="<f4", shape=(PAGE // 4,))
    yield array_case("bytes of numbers", [ext(13, 0)], dtype="<i8", shape=(PAGE // 8,))
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
    empty = entries(dtypes=["|u1"], arrays=[rows] * 5, tree=[chunk(None)])
    yield index_case("300,000 arrays of nothing", msgpack.packb(empty))
