"""state.h5 is an ordinary HDF5 file that holds every leaf and every key: read here with plain h5py."""

from __future__ import annotations

import ast
import concurrent.futures
import enum
import io
import json
import math
import os
import re
import shutil
import subprocess
from collections import OrderedDict, deque, namedtuple
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import h5py
import ml_dtypes
import numpy as np
import pytest
from helpers.pacers import CountingPacer, StopLater
from helpers.support import span_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.disk.plan import Span
from asyncckpt.formats import key_names as names
from asyncckpt.formats.hdf5 import layout
from asyncckpt.formats.hdf5 import structures as hb
from asyncckpt.runtime.pacing import Pacer, Stopped
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain
from asyncckpt.state.encode import flatten

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt.disk.plan import FilePlan

PAGE = 4096


# --- helpers ----------------------------------------------------------------------------------------------------------


def check_layout(plan: FilePlan) -> None:
    """Assert what the block engine relies on."""
    end = 0
    for chunk in plan.entries:
        assert chunk.offset >= end
        assert chunk.nbytes > 0
        assert isinstance(chunk.source, Span) or len(chunk.source) == chunk.nbytes
        end = chunk.offset + chunk.nbytes
    assert end <= plan.nbytes
    assert plan.nbytes % PAGE == 0


def file_of(state: object) -> bytes:
    """Return the bytes of the file that a state becomes."""
    flat = flatten(state, pacer=Pacer())
    plan = layout.plan(flat.index(), Pacer())
    return filled(plan, [np.ascontiguousarray(source).tobytes() for source in flat.sources])


def filled(plan: FilePlan, arrays: list[bytes]) -> bytes:
    """Return the bytes that a plan lays out."""
    check_layout(plan)
    made = bytearray(plan.nbytes)
    for offset, nbytes, source in plan.entries:
        data = span_bytes(arrays, source, nbytes) if isinstance(source, Span) else source
        made[offset : offset + nbytes] = data[:nbytes]
    return bytes(made)


def opened_nodes(nodes: list[Any], arrays: list[ArrayMeta]) -> h5py.File:
    """Return the file that a tree becomes, its arrays filled with zeros."""
    plan = layout.plan(ix.Index(chunks=[ix.pack_chunk(nodes)], arrays=arrays), Pacer())
    return h5py.File(io.BytesIO(filled(plan, [bytes(meta.nbytes) for meta in arrays])))


def opened(state: object) -> h5py.File:
    """Return the file that a state becomes, opened by plain h5py."""
    return h5py.File(io.BytesIO(file_of(state)))


def wide_index(count: int, shape: tuple[int, ...]) -> ix.Index:
    """Return the index of a dict of float32 arrays."""
    nodes: list[Any] = [ix.ext(ix.DICT, count)]
    for number in range(count):
        nodes += [f"w{number}", ix.ext(ix.ARRAY, number)]
    chunks = [ix.pack_chunk(nodes[i : i + 10_000]) for i in range(0, len(nodes), 10_000)]
    return ix.Index(chunks=chunks, arrays=[ArrayMeta(np.dtype("<f4"), shape)] * count)


def address_of(item: h5py.HLObject) -> int:
    """Return where an object's header lies."""
    found: int = h5py.h5o.get_info(item.id).addr
    return found


# A reader of docs/format.md's mapping that looks at nothing of asyncckpt, the index included.

KIND, TYPE, DTYPE = "__asyncckpt_kind__", "__asyncckpt_type__", "__asyncckpt_dtype__"
CONTAINERS = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "OrderedDict": OrderedDict,
}


def read_key(name: str, *, among_ints: bool) -> object:
    """Return the key that a name spells."""
    if name == "%":
        return ""
    text = unquote_to_bytes(name.encode()).decode("utf-8", "surrogatepass")
    if name.startswith("%="):
        return float(text[2:]) if text.endswith("inf") else ast.literal_eval(text[2:])
    return int(name) if among_ints and re.fullmatch("-?[0-9]+", name) else text


def read_attribute(attribute: h5py.h5a.AttrID, value: Any) -> object:
    """Return the Python leaf that an attribute holds."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray):
        assert attribute.dtype == np.uint8
        return value.tobytes()
    return value.item() if isinstance(value, np.generic) else value


def read_dataset(dataset: h5py.Dataset) -> object:  # noqa: PLR0911 - one for each kind
    """Return the leaf that a dataset holds."""
    kind = dataset.attrs.get(KIND)
    is_text = h5py.check_string_dtype(dataset.dtype) is not None and dataset.dtype.kind == "O"
    if dataset.shape is None:
        return None
    value = dataset.asstr()[()] if is_text else dataset[()]
    if kind in ("list", "tuple"):
        return CONTAINERS[kind](value.tolist())
    if kind in ("bytes", "bytes_"):
        return value.tobytes()
    if kind in ("str", "str_"):
        return value if is_text else value.tobytes().decode("utf-8", "surrogatepass")
    if kind == "int":
        return int(value, 0)
    if is_text:
        return value
    if DTYPE in dataset.attrs:
        dtype = dtype_from_plain(json.loads(dataset.attrs[DTYPE]))
        assert dataset.id.get_type().get_size() == dtype.itemsize
        return np.frombuffer(raw_bytes(dataset), dtype).reshape(dataset.shape)
    return np.asarray(value, dataset.dtype)


def raw_bytes(dataset: h5py.Dataset) -> bytes:
    """Return the bytes of a dataset's elements, as they are in the file."""
    type_id = dataset.id.get_type()
    made = np.zeros(math.prod(dataset.shape) * type_id.get_size(), np.uint8)
    dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, made, type_id)
    return made.tobytes()


def read_tree(group: h5py.Group) -> object:
    """Return the state that a group stands for; objects as their plain state."""
    kind = group.attrs.get(KIND)
    among_ints = "__asyncckpt_keys__" in group.attrs
    assert "__asyncckpt_partial__" not in group.attrs
    found: dict[object, object] = {}
    for name in group:
        if not name.startswith("__asyncckpt"):
            item = group[name]
            value = read_tree(item) if isinstance(item, h5py.Group) else read_dataset(item)
            found[read_key(name, among_ints=among_ints)] = value
    for name in group.attrs:
        if not name.startswith("__asyncckpt"):
            value = read_attribute(group.attrs.get_id(name), group.attrs[name])
            found[read_key(name, among_ints=among_ints)] = value
    if kind in ("leaf", "reference"):
        return found["value"]
    if kind in (None, "OrderedDict"):
        return found
    items = [found[str(position)] for position in range(len(found))]
    if kind == "deque" and "__asyncckpt_maxlen__" in group.attrs:
        return deque(items, int(group.attrs["__asyncckpt_maxlen__"]))
    return CONTAINERS[kind](items)


def same(a: Any, b: Any) -> bool:
    """Whether two trees are equal in types and values; an OrderedDict in any order."""
    if isinstance(a, np.ndarray | np.generic):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == np.asarray(b).tobytes())
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, deque) and getattr(b, "maxlen", -1) != a.maxlen:
        return False
    if isinstance(a, list | tuple | deque):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or repr(a) == repr(b))


# --- keys -------------------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(exclude_categories=()), max_size=8)
odd_text = st.sampled_from(
    ["", ".", "..", "...", "/", "a/b", "%", "%2F", "a\0b", "\0", "\ud800", "é", "__asyncckpt__", "__asyncckpt_x", "3"]
)
plain_keys = any_text | odd_text | st.integers(-3, 3) | st.integers(-(1 << 90), 1 << 90)
keys = plain_keys | st.floats(allow_nan=False) | st.booleans() | st.none() | st.binary(max_size=3)


@settings(deadline=None)
@given(st.dictionaries(keys, st.integers(0, 9), max_size=12))
def test_every_key_is_a_name_of_its_own(state: dict[object, int]) -> None:
    """Keys of all kinds, in any mixture and order, are spelled so that no two meet and each can be read back."""
    with opened(state) as file:
        assert read_tree(file) == state
        assert all(type(key) in map(type, state) for key in read_tree(file))  # type: ignore[attr-defined]


@settings(deadline=None)
@given(any_text | odd_text)
def test_str_keys_are_percent_escaped(key: str) -> None:
    """A str key comes back by unquoting its name, and its name is one that HDF5 can hold."""
    name = names.spell(key, among_ints=False)
    assert name.encode().find(b"\0") == -1
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert not name.startswith("__asyncckpt")
    assert read_key(name, among_ints=False) == key


@pytest.mark.parametrize("state", [{3: 1, "3": 2}, {"3": 1, 3: 2}, {0: 1, "-0": 2, "00": 3}])
def test_int_and_str_keys_do_not_meet(state: dict[object, int]) -> None:
    """Whichever comes first, the keys 3 and "3" have different names."""
    with opened(state) as file:
        assert read_tree(file) == state


def test_int_keys_are_decimals() -> None:
    """A dict of ints is read as users expect, and says what its names are."""
    with opened({"layers": {0: np.ones(2), 10: np.zeros(3)}}) as file:
        assert list(file["layers"]) == ["0", "10"]
        assert file["layers"].attrs["__asyncckpt_keys__"] == "int"


def test_digits_are_plain_names_among_strings() -> None:
    """A dict of strs that happen to be digits needs no escapes."""
    with opened({"0": 1, "1": 2}) as file:
        assert list(file.attrs) == ["0", "1"]


def test_keys_that_read_the_same_stay_apart() -> None:
    """Two NaNs are two keys of a dict."""
    with opened({float("nan"): 1, float("nan"): 2, -1.5: 3}) as file:
        assert list(file.attrs) == ["%=nan", "%=nan%~1", "%=-1.5"]
        assert list(file.attrs.values()) == [1, 2, 3]


class Color(enum.Enum):
    """Something to be a key."""

    RED = "r/d"


def test_containers_and_objects_as_keys() -> None:
    """A tuple, an Enum, a path or a frozenset is spelled out in the name."""
    state = {
        (1, "a", (None, 2.5)): 1,
        Color.RED: 2,
        PurePosixPath("a/b"): 3,
        frozenset({7}): 4,
        (): 5,
        tuple(range(20)): 6,
        np.float32(1.5): 7,
        1j: 8,
        np.str_("s"): 9,
    }
    with opened(state) as file:
        assert list(file.attrs) == [
            '%=tuple(1, "a", tuple(None, 2.5))',
            f'%={Color.__module__}.Color("r%2Fd")',
            '%=pure_posix_path("a%2Fb")',
            "%=frozenset(7)",
            "%=tuple()",
            f"%=tuple({', '.join(map(str, range(20)))})",
            "%=float32(1.5)",
            "%=1j",
            '%=str_("s")',
        ]


def test_a_deep_key_needs_no_recursion() -> None:
    """A tuple in a tuple, many thousand times, can be a key."""
    nodes = [ix.ext(ix.DICT, 1), *[ix.ext(ix.TUPLE, 1)] * 5000, 1, "value"]
    with opened_nodes(nodes, []) as file:
        assert list(file.attrs.values())[1] == "value"


@pytest.mark.parametrize("key", ["k" * 100_000, "é/" * 600, 1 << 20_000], ids=["ascii", "escaped", "int"])
def test_a_long_key_is_cut_and_told(key: object) -> None:
    """A name that is too long is cut, with a digest, and stands in full in an attribute of the group."""
    with opened({"a": {key: np.arange(3.0), "z": 1}}) as file:
        group = file["a"]
        (short,) = group
        assert len(short.encode()) <= 1024
        digest = short.rpartition("%~")[2]
        full = group.attrs[f"__asyncckpt_name_{digest}__"]
        assert full == names.spell(key if type(key) is str else names.Literal(hex(key)), among_ints=False)  # type: ignore[call-overload]
        assert group[short][2] == 2.0


def test_the_index_name_is_free_for_users() -> None:
    """A user's key may be the name of asyncckpt's own dataset."""
    with opened({"__asyncckpt__": np.arange(3), "a": {"__asyncckpt_kind__": 5}}) as file:
        assert file["%5F_asyncckpt__"][2] == 2
        assert file["a"].attrs["%5F_asyncckpt_kind__"] == 5


def test_names_are_utf8() -> None:
    """A name that is not ASCII says its character set."""
    with opened({"é": np.ones(1)}) as file:
        assert file.id.links.get_info("é".encode()).cset == h5py.h5t.CSET_UTF8


# --- leaves and containers --------------------------------------------------------------------------------------------

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 2000), 1 << 2000)
    | st.floats()
    | st.complex_numbers()
    | any_text
    | st.binary(max_size=20)
    | hnp.arrays(
        st.sampled_from(["<f8", ">i2", "?", "S3", "U2", "<M8[ns]", "c8"]), hnp.array_shapes(min_dims=0, min_side=0)
    )
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=16, max_size=18)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, 5))
        | st.dictionaries(plain_keys, inner, max_size=5)
        | st.frozensets(st.integers(), max_size=3)
        | st.sets(any_text, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(trees)
def test_the_mapping_is_total(state: object) -> None:
    """Any tree is told by its file's groups, datasets and attributes alone: nothing is left out or changed."""
    with opened(state) as file:
        assert same(read_tree(file), state)


def test_small_leaves_are_attributes() -> None:
    """Plain h5py reads a state's scalars as attributes of the group that holds them."""
    state = {"step": 7, "lr": 1e-3, "on": True, "none": None, "z": 1 + 2j, "name": "hé", "top": (1 << 64) - 1}
    with opened({"run": state}) as file:
        found = dict(file["run"].attrs)
    assert isinstance(found.pop("none"), h5py.Empty)
    assert found == {key: value for key, value in state.items() if value is not None}
    assert isinstance(found["on"], np.bool_)
    assert found["top"].dtype == np.uint64


@pytest.mark.parametrize("value", [np.float32(2.5), np.uint8(3), np.bool_(True), np.complex64(1j), np.float16(0.5)])  # noqa: FBT003
def test_numpy_numbers_are_attributes(value: np.generic) -> None:
    """A numpy scalar that HDF5 knows keeps its type."""
    with opened({"x": value}) as file:
        assert file.attrs["x"] == value
        assert file.attrs["x"].dtype == value.dtype


@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("2020-02-29", "ns"),
        np.timedelta64(5, "D"),
        ml_dtypes.float8_e4m3fn(0.5),
        np.zeros((), [("a", "<i4"), ("b", "U2")])[()],
        np.void(b"abc"),
    ],
    ids=lambda value: value.dtype.name,
)
def test_other_numpy_scalars_are_datasets(value: np.generic) -> None:
    """A numpy scalar that HDF5 does not know is a dataset that tells its dtype."""
    with opened({"x": value}) as file:
        assert file["x"].attrs[KIND] == "scalar"
        assert same(np.asarray(read_dataset(file["x"])), np.asarray(value))


@pytest.mark.parametrize(
    ("value", "kind"), [(np.str_("a\0"), "str_"), (np.str_("a"), "str_"), (np.bytes_(b"a\0"), "bytes_")]
)
def test_numpy_strings_keep_their_nuls(value: Any, kind: str) -> None:
    """Strings of numpy say that they are numpy's, and lose nothing."""
    with opened({"x": value}) as file:
        assert file["x"].attrs[KIND] == kind
        assert read_dataset(file["x"]) == value


def test_text_with_nuls_or_surrogates_is_bytes() -> None:
    """What HDF5's strings would cut is stored as bytes of UTF-8, and says so."""
    with opened({"nul": "a\0b", "lone": "\udc80", "long": "x" * 5000}) as file:
        assert [file[name].attrs[KIND] for name in file if name != "__asyncckpt__"] == ["str", "str", "str"]
        assert read_tree(file) == {"nul": "a\0b", "lone": "\udc80", "long": "x" * 5000}


def test_large_leaves_are_datasets() -> None:
    """What is too large for an object header is stored beside it, and the arrays around it are whole."""
    state = {
        "before": np.ones(3),
        "bytes": np.bytes_(b"ab" * 35_000 + b"\0"),
        "text": np.str_("xyz" * 50_000),
        "int": -(1 << 600_000),
        "after": np.ones(3),
        "void": np.void(b"v" * 100_001),
    }
    with opened(state) as file:
        assert {name: read_dataset(file[name]) for name in ("bytes", "text", "int")} == {
            name: state[name] for name in ("bytes", "text", "int")
        }
        assert raw_bytes(file["void"]) == b"v" * 100_001
        assert file["before"][()].tolist() == file["after"][()].tolist() == [1, 1, 1]


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the kind without annotations


def test_objects_say_their_type() -> None:
    """An object is its plain state with the name of its type beside it, on a group or a dataset."""
    with opened({"p": Point(1, 2.0), "e": Color.RED, "g": np.random.default_rng(0), "b": bytearray(b"ab")}) as file:
        name, form = file["p"].attrs[TYPE].tolist()
        assert name.endswith("Point")
        assert form == "namedtuple(x, y)"
        assert file["p"].attrs[KIND] == "tuple"
        assert file["e"].attrs[TYPE].endswith("Color")
        assert file["e"].asstr()[()] == "r/d"
        assert file["g"].attrs[TYPE] == "generator"
        assert file["g/seed_seq"].attrs[TYPE] == "seed_sequence"
        assert file["b"].attrs[TYPE] == "bytearray"
        assert read_dataset(file["b"]) == b"ab"


def test_objects_in_objects_say_all_their_types() -> None:
    """Where an object's state is an object itself, the types stand from the outermost in."""
    nodes = [ix.ext(ix.OBJECT, "outer"), ix.ext(ix.OBJECT, "in\0ner"), ix.ext(ix.DICT, 0)]
    with opened_nodes(nodes, []) as file:
        assert file.attrs[TYPE].tolist() == ["outer", "in%00ner"]


@pytest.mark.parametrize(
    "state", [5, None, "a\0", b"x", [1, "a"], (), {}, np.arange(3), np.float64(2), list(range(50))]
)
def test_any_value_can_be_the_whole_state(state: object) -> None:
    """The root is a group, so a leaf that is the whole state is called "value" there."""
    with opened(state) as file:
        found = read_tree(file)
        assert same(found, state) or found == state


def test_order_is_kept() -> None:
    """Plain h5py lists the entries of a group in the order of the dict."""
    order = ["z", "a", "m", *[f"k{9 - number}" for number in range(10)]]
    with opened({"arrays": {key: np.ones(1) for key in order}, "leaves": dict.fromkeys(order, 1)}) as file:
        assert list(file["arrays"]) == order
        assert list(file["leaves"].attrs) == order


# --- arrays -----------------------------------------------------------------------------------------------------------

PLAIN_DTYPES = ["?", "<i1", ">u2", "<i8", "<f2", ">f4", "<f8", "<c8", ">c16", "S5", "V7", "<f2"]
PADDED = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<f8"], "offsets": [8, 16], "itemsize": 40})
NESTED = np.dtype([("x", "?"), ("y", ">c16"), ("z", "S5"), ("w", "<f4", (2, 3)), ("in", PADDED)])
if np.dtype(np.longdouble).itemsize == 16:
    PLAIN_DTYPES += ["<f16", "<c32"]


def random_array(dtype: Any, shape: tuple[int, ...] = (3, 2)) -> np.ndarray[Any, Any]:
    """Return an array of random bytes; bools and wide floats of valid ones."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(5)
    if dtype.kind == "b" or (dtype.itemsize >= 16 and dtype.kind in "fc"):
        return rng.integers(0, 2, shape).astype(dtype)
    return np.frombuffer(rng.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


@pytest.mark.parametrize("dtype", [*PLAIN_DTYPES, PADDED, NESTED], ids=lambda dtype: np.dtype(dtype).str)
def test_plain_dtypes_are_read_as_they_are(dtype: Any) -> None:
    """h5py reads the dtype, byte order and offsets of the array, and no attribute is needed."""
    array = random_array(dtype) if dtype is not NESTED else np.ones(2, NESTED)
    with opened({"x": array}) as file:
        assert file["x"].dtype == array.dtype
        assert dict(file["x"].attrs) == {}
        assert raw_bytes(file["x"]) == array.tobytes()
        found = file["x"][()]
        assert found.tobytes() == array.tobytes() or dtype in (PADDED, NESTED)
        if dtype is PADDED:
            assert (found["b"] == array["b"]).all() or np.isnan(array["b"]).any()


@pytest.mark.parametrize(
    ("dtype", "read_as"),
    [
        ("<M8[ns]", "<i8"),
        (">m8[D]", ">i8"),
        ("<U3", ("<u4", (3,))),
        (">U2", (">u4", (2,))),
        (ml_dtypes.float8_e4m3fn, "u1"),
        (ml_dtypes.int4, "u1"),
        ([("t", "<M8[s]"), ("u", "<U2")], [("t", "<i8"), ("u", "<u4", (2,))]),
        ({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2]}, "V4"),
        ([("a\0b", "<i4")], "V4"),
        ([(f"f{n}" * 50, "<i4") for n in range(400)], "V1600"),
        ([(("title", "a"), "<i4")], [("a", "<i4")]),
        (np.dtype([("a", "<i4"), ("b", "<f8")], align=True), None),
    ],
    ids=str,
)
def test_other_dtypes_are_told(dtype: Any, read_as: Any) -> None:
    """What HDF5 lacks is integers or opaque bytes with the numpy dtype beside it; the bytes are the array's own."""
    array = np.frombuffer(np.random.default_rng(5).bytes(6 * np.dtype(dtype).itemsize), dtype).reshape(2, 3)
    with opened({"x": array}) as file:
        assert dtype_from_plain(json.loads(file["x"].attrs[DTYPE])) == array.dtype
        assert file["x"].shape == array.shape
        assert read_as is None or file["x"].dtype == np.dtype(read_as)
        assert raw_bytes(file["x"]) == array.tobytes()


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "float8_e4m3", "float8_e3m4"])
def test_small_floats_are_floats(name: str) -> None:
    """bfloat16 and the IEEE-like float8 are true HDF5 floats: h5py reads every one of their values."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    array = np.arange(1 << (8 * dtype.itemsize)).astype(f"<u{dtype.itemsize}").view(dtype)
    with opened({"x": array}) as file:
        assert file["x"].dtype == (np.float32 if name == "bfloat16" else np.float16)
        np.testing.assert_array_equal(file["x"][()], array.astype(file["x"].dtype))
        assert raw_bytes(file["x"]) == array.tobytes()


def test_swapped_bfloat16_is_read_right() -> None:
    """A big-endian bfloat16 array is a big-endian float in the file."""
    array = np.array([1.5, -2.0, 3e30], ml_dtypes.bfloat16)
    swapped = array.byteswap().view(array.dtype.newbyteorder(">"))
    with opened_nodes([ix.ext(ix.DICT, 1), "x", ix.ext(ix.ARRAY, 0)], [ArrayMeta(swapped.dtype, (3,))]) as file:
        type_id = file["x"].id.get_type()
        assert type_id.get_order() == h5py.h5t.ORDER_BE
        assert type_id.get_fields() == (15, 7, 8, 0, 7)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,) * 32])
def test_shapes(shape: tuple[int, ...]) -> None:
    """Scalars, empty arrays and HDF5's highest rank are datasets of that shape."""
    with opened({"x": np.ones(shape, "<f4")}) as file:
        assert file["x"].shape == shape
        assert file["x"].dtype == "<f4"
        assert (file["x"][()] == 1).all()
        assert (file["x"].id.get_offset() is None) == (0 in shape)


def test_ranks_that_hdf5_lacks_are_told() -> None:
    """An array of more than 32 dimensions is flat, with its shape beside it."""
    shape = (2, 3, *(1,) * 40)
    with opened({"x": np.arange(6.0).reshape(shape)}) as file:
        assert file["x"][()].tolist() == list(range(6))
        assert tuple(file["x"].attrs["__asyncckpt_shape__"]) == shape


@pytest.mark.parametrize("shape", [(), (3, 2), (1,) * 33])
def test_elements_without_bytes_are_empty_rows(shape: tuple[int, ...]) -> None:
    """HDF5 has no elements of no size, so these arrays are empty; shape and dtype are told."""
    with opened({"x": np.empty(shape, "V0")}) as file:
        assert file["x"].size == 0
        told = file["x"].attrs.get("__asyncckpt_shape__", file["x"].shape[:-1])
        assert tuple(told) == shape
        assert json.loads(file["x"].attrs[DTYPE]) == "|V0"


def test_large_arrays_begin_on_pages() -> None:
    """From 4 KiB on an array can be mapped and written directly."""
    state = {str(n): np.zeros(size, np.uint8) for n, size in enumerate([1, 4096, 5, 9000, 4095, 100_000])}
    with opened(state) as file:
        offsets = [file[key].id.get_offset() for key in state if state[key].nbytes >= PAGE]
    assert [offset % PAGE for offset in offsets] == [0, 0, 0]


def test_tied_arrays_are_one_dataset() -> None:
    """The same array in two places is one dataset with two hard links."""
    tied = np.arange(5.0)
    with opened({"a": {"w": tied}, "b": [1, tied], "c": tied.copy()}) as file:
        assert address_of(file["a/w"]) == address_of(file["b/1"])
        assert address_of(file["a/w"]) != address_of(file["c"])
        assert file["b/1"][4] == 4.0


def test_tied_arrays_of_different_types_keep_their_own() -> None:
    """What is said of a dataset holds at all its places, so a place of which something else is said is a group."""
    nodes = [
        *(ix.ext(ix.DICT, 4), "plain", ix.ext(ix.ARRAY, 0), "also", ix.ext(ix.ARRAY, 0)),
        *("typed", ix.ext(ix.OBJECT, "my.Type"), ix.ext(ix.ARRAY, 0), "bytes", ix.ext(ix.BYTES, 0)),
    ]
    with opened_nodes(nodes, [ArrayMeta(np.dtype("u1"), (5,))]) as file:
        assert dict(file["typed"].attrs) == {KIND: "reference", TYPE: "my.Type"}
        assert dict(file["bytes"].attrs) == {KIND: "reference bytes"}
        assert address_of(file["typed/value"]) == address_of(file["plain"]) == address_of(file["also"])
        assert dict(file["plain"].attrs) == {}


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_a_deep_tree_is_mirrored_to_a_bound() -> None:
    """Ten thousand lists in each other: groups end at the documented depth, and arrays below it have numbers."""
    array = np.arange(3.0)
    state: Any = [array, 1]
    for _ in range(10_000):
        state = [state, "x"]
    with opened([np.ones(2), state]) as file:
        assert file["__asyncckpt_arrays__"]["1"][2] == 2.0
        assert file["0"][1] == 1.0
        depth, group = 0, file["1"]
        while "0" in group:
            depth, group = depth + 1, group["0"]
        assert depth == layout.MAX_DEPTH - 1
        assert group.attrs["__asyncckpt_partial__"]


def test_arrays_are_found_at_their_paths() -> None:
    """However deep within the bound, an array lies where the tree has it."""
    state: Any = {"w": np.arange(3.0)}
    for key in "abcdefghij":
        state = {key: [state]}
    with opened(state) as file:
        assert file["j/0/i/0/h/0/g/0/f/0/e/0/d/0/c/0/b/0/a/0/w"][2] == 2.0
        assert "__asyncckpt_arrays__" not in file


def test_a_wide_tree_is_mirrored_to_a_bound() -> None:
    """Of a container with very many entries only the arrays are mirrored, at their own paths, and its group says so."""
    state = {"many": [{"obs": np.full(2, n), "reward": float(n)} for n in range(layout.MAX_ENTRIES + 1)], "step": 3}
    with opened(state) as file:
        many = file["many"]
        assert many.attrs["__asyncckpt_partial__"]
        assert many["17/obs"][1] == 17
        assert dict(many["17"].attrs) == {}
        assert "__asyncckpt_partial__" not in file.attrs
        assert file.attrs["step"] == 3


def test_no_more_leaves_than_the_bound() -> None:
    """However many small containers there are, the leaves mirrored are bounded; what is left out is told."""
    state = [{str(n): n for n in range(100)} for _ in range(60)]
    with opened({"a": state, "w": np.arange(3)}) as file:
        mirrored = sum(1 for name in file["a"] for key in file["a"][name].attrs if key[0] != "_")
        assert layout.MAX_LEAVES - 100 <= mirrored <= layout.MAX_LEAVES
        assert file["a"].attrs["__asyncckpt_partial__"]
        assert file["w"][2] == 2
        assert len(file_of({"a": state})) < 60 * layout.MAX_LEAVES + 2 * 60 * 1000


def test_huge_arrays_cost_nothing_to_plan(tmp_path: Path) -> None:
    """Terabytes are planned in kilobytes, and libhdf5 finds the last byte of them."""
    count, shape = 4, (1 << 10, 1 << 28)
    plan = layout.plan(wide_index(count, shape), Pacer())
    check_layout(plan)
    assert plan.nbytes > count << 40
    assert sum(chunk.nbytes for chunk in plan.entries if not isinstance(chunk.source, Span)) < 1 << 16
    descriptor = os.open(tmp_path / "state.h5", os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(descriptor, plan.nbytes)
        for offset, nbytes, source in plan.entries:
            if isinstance(source, Span):
                os.pwrite(descriptor, np.float32(source.array + 1).tobytes(), offset + nbytes - 4)
            else:
                os.pwrite(descriptor, source, offset)
    finally:
        os.close(descriptor)
    with h5py.File(tmp_path / "state.h5") as file:
        assert [file[f"w{number}"][-1, -1] for number in range(count)] == [1, 2, 3, 4]


@pytest.mark.parametrize("count", [0, 1, 8, 9, 370, 371, 372, 743, 744, 745, 5000])
def test_every_link_of_a_group_is_found(count: int) -> None:
    """However many there are, and so however they are stored: by name, in their order, and none that is not there."""
    state = {f"é{number}" if number % 3 else f"{number}" * 60: np.full(2, number) for number in range(count)}
    with opened({"group": state}) as file:
        group = file["group"]
        assert list(group) == list(state)
        assert all(group[key][1] == value[1] for key, value in state.items())
        assert "absent" not in group


def test_checksums_are_lookup3() -> None:
    """The value that Bob Jenkins gives for his example, of each row and of names among others."""
    text = b"Four score and seven years ago"
    rows = np.frombuffer(text * 2, np.uint8).reshape(2, -1)
    assert hb.checksums(rows, Pacer()).tolist() == [0x17770551] * 2
    assert hb.hashes([text, b"x", text], Pacer())[::2] == [0x17770551] * 2


@pytest.mark.parametrize("nbytes", [*range(1, 26), 100])
def test_checksums_of_few_and_of_many_agree(nbytes: int) -> None:
    """How many rows there are decides how they are computed, and nothing else."""
    rows = np.random.default_rng(nbytes).integers(0, 256, (100, nbytes), np.uint8)
    assert hb.checksums(rows, Pacer()).tolist() == [hb.checksums(row[np.newaxis], Pacer()).item() for row in rows]


def test_the_next_save_of_a_small_state_computes_no_checksum_anew() -> None:
    """All its structures are as they were. Those of another layout are not, and long runs of bytes are not kept."""

    def computed_by(length: int) -> int:
        before = hb._known_checksum.cache_info().misses
        layout.plan(wide_index(10, (length,)), Pacer())
        return hb._known_checksum.cache_info().misses - before

    hb._known_checksum.cache_clear()
    assert computed_by(7) >= 10
    assert computed_by(7) == 0
    assert computed_by(8) > 0
    kept = hb._known_checksum.cache_info()
    hb.checksums(np.zeros((1, 1025), np.uint8), Pacer())
    assert hb._known_checksum.cache_info() == kept


def test_many_arrays_take_little_metadata() -> None:
    """Ten thousand arrays are as many datasets, with a few hundred bytes of metadata each."""
    plan = layout.plan(wide_index(10_000, (1024,)), Pacer())
    check_layout(plan)
    spans = [chunk for chunk in plan.entries if isinstance(chunk.source, Span)]
    assert sum(chunk.nbytes for chunk in spans) == 10_000 * 4096
    assert sum(chunk.nbytes for chunk in plan.entries if not isinstance(chunk.source, Span)) < 500 * 10_000


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_index_is_a_dataset() -> None:
    """The index lies where the plan says, as the dataset /__asyncckpt__, and its segments are the datasets' own."""
    state = {"a": np.arange(1000.0), "b": [np.ones(3), 5], "empty": np.ones(0)}
    flat = flatten(state, pacer=Pacer())
    plan = layout.plan(flat.index(), Pacer())
    data = file_of(state)
    assert len(data) == plan.nbytes
    with h5py.File(io.BytesIO(data)) as file:
        stored = file["__asyncckpt__"]
        assert stored.id.get_offset() == plan.index_offset
        assert stored.attrs["__asyncckpt_format__"] == ix.FORMAT_VERSION
        content = stored[()].tobytes()
        places = {file["a"].id.get_offset(): 8000, file["b/0"].id.get_offset(): 24}
    assert content == data[plan.index_offset : plan.index_offset + plan.index_nbytes]
    index, segments = ix.decode_index(memoryview(content), file_nbytes=len(data), pacer=Pacer())
    assert list(ix.read_nodes(index.chunks, Pacer())) == list(ix.read_nodes(flat.chunks, Pacer()))
    assert {segment.offset: segment.nbytes for segment in segments} == places


def test_bytes_behind_the_end_are_accepted() -> None:
    """libhdf5 opens the file as it is, and with a page more behind it."""
    with h5py.File(io.BytesIO(file_of({"x": 1}) + bytes(PAGE))) as file:
        assert file.attrs["x"] == 1


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump_reads_it(tmp_path: Path) -> None:
    """The command-line tool of HDF5, of whatever release, prints names and values."""
    state = {"w": np.arange(3.0), "half": np.ones(2, ml_dtypes.bfloat16), "deep": {"name": "hello", "none": None}}
    (tmp_path / "state.h5").write_bytes(file_of({**state, "many": {str(n): np.full(1, n) for n in range(50)}}))
    command = ["h5dump", tmp_path / "state.h5"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603 - a fixed command
    assert not done.stderr
    assert re.search(r'DATASET "w".*?\(0\): 0, 1, 2', done.stdout, re.DOTALL)
    assert re.search(r'GROUP "deep".*?"hello"', done.stdout, re.DOTALL)


def test_plans_can_be_made_in_several_threads() -> None:
    """Plans that are made at the same time do not disturb each other."""
    indexes = [wide_index(200 + number, (number + 1,)) for number in range(6)]
    alone = [layout.plan(index, Pacer()) for index in indexes]
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        together = list(executor.map(lambda index: layout.plan(index, Pacer()), indexes))
    for one, other in zip(together, alone, strict=True):
        check_layout(one)
        assert [chunk for chunk in one.entries if isinstance(chunk.source, Span)] == [
            chunk for chunk in other.entries if isinstance(chunk.source, Span)
        ]


@pytest.mark.parametrize("count", [100, 2 * layout.MAX_ENTRIES])
def test_every_array_is_a_pause(count: int) -> None:
    """The GIL can be given away at every array and at every write of HDF5's, in containers of any size."""
    pacer = CountingPacer()
    layout.plan(wide_index(count, (8,)), pacer)
    assert pacer.count >= 2 * count


def test_a_plan_can_be_stopped_anywhere() -> None:
    """Asked to stop, a plan ends soon, wherever it is, HDF5's own writing included; the next one is whole."""
    index = wide_index(40, (8,))
    needed = StopLater(1 << 30)
    layout.plan(index, Pacer(needed))
    looks = (1 << 30) - needed.left
    assert looks > 80  # at every array, and at every write of HDF5's
    for left in range(looks):
        with pytest.raises(Stopped):
            layout.plan(index, Pacer(StopLater(left)))
    check_layout(layout.plan(index, Pacer(StopLater(looks))))


def test_names_of_one_hash_stand_in_their_order() -> None:
    """However many: of a hundred thousand names two or so have the same."""
    names = [b"b", b"d", b"c", b"a"]
    links = [hb.link(name, 0, 0) for name in names]
    assert hb.by_hash([7, 7, 3, 7], links) == [2, 3, 0, 1]
    assert hb.by_hash([], []) == []
