"""Hypothesis strategies for whole states."""

from __future__ import annotations

import datetime as dt
import pathlib
import random
import struct
import zoneinfo
from collections import OrderedDict, deque
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from helpers.support import Color, Fixed, Level, Mark, Noted, Params, Point

ML_DTYPES = [
    np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "int4", "uint4", "int2")
    if hasattr(ml_dtypes, name)
]
STRUCTURES = [
    np.dtype([("a", "<i4"), ("b", ">f8")]),
    np.dtype({"names": ["a", "b"], "formats": ["u1", "<f4"], "offsets": [2, 8], "itemsize": 24}),
    np.dtype([("a", "i1"), ("b", "<f8")], align=True),
    np.dtype([(("a title", "a"), "<i2"), ("b", "S3")]),
    np.dtype([("a", "<f4", (2, 3)), ("b", [("c", "<M8[us]"), ("d", "?")])]),
    np.dtype((np.record, [("x", "<i4"), ("y", "U2")])),
    np.dtype([("a/b", "<i4"), ("\u00e9", "<f2"), ("", "i1")]),
]
NUMBERS = "? i1 u1 <i2 >i2 <u4 >u4 <i8 >i8 <u8 <f2 >f2 <f4 >f4 <f8 >f8 <c8 >c8 <c16 >c16"
OTHERS = "<M8[ns] >M8[s] <M8[25D] <m8[us] >m8[h] <m8 <U3 >U2 S5 S1 V7"
DTYPES = [
    *map(np.dtype, [*NUMBERS.split(), *OTHERS.split()]),
    np.dtype(np.longdouble),
    np.dtype(np.clongdouble),
    *ML_DTYPES,
    ML_DTYPES[0].newbyteorder(">"),
    *STRUCTURES,
]
LAYOUTS = ("C", "F", "strided", "reversed", "broadcast", "unaligned", "read-only")


def bits_to_float(bits: int) -> float:
    """Return the float64 of these bits: NaNs of every payload, too."""
    return float(struct.unpack("<d", bits.to_bytes(8, "little"))[0])


def make_array(dtype: np.dtype[Any], shape: tuple[int, ...], layout: str, seed: int) -> np.ndarray:
    """Make an array of random bytes (random letters where text is asked for) in a given layout."""
    rng = np.random.default_rng(seed)

    def fresh(of: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(of, dtype=int))
        if dtype.kind == "U":
            made: np.ndarray = np.array(
                ["".join(rng.choice(list("ab\u00e9\U0001f600"), 3)) for _ in range(count)], dtype
            )
            return made.reshape(of)
        return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype, count).copy().reshape(of)

    if layout == "F":
        return np.asfortranarray(fresh(shape)) if dtype.names is None else fresh(shape[::-1]).T
    if layout == "strided":
        return fresh(tuple(2 * n for n in shape))[(*(slice(None, None, 2) for _ in shape), ...)]
    if layout == "reversed":
        return fresh(shape)[(*(slice(None, None, -1) for _ in shape), ...)]
    if layout == "broadcast":
        return np.broadcast_to(fresh(()), shape)
    if layout == "unaligned" and dtype.itemsize:
        memory = bytearray(1) + fresh(shape).tobytes()
        return (
            np.frombuffer(memory, dtype, int(np.prod(shape, dtype=int)), offset=1).reshape(shape)
            if shape
            else fresh(())
        )
    made = fresh(shape)
    made.flags.writeable = layout != "read-only"
    return made


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
# By name: hypothesis would show the long values themselves, and slowly.
_LONG: dict[str, object] = {
    "bytes": b"\0" * 5000,
    "surrogates": "\ud800" * 5000,
    "text": "a\0" * 3000,
    "ints": list(range(2000)),
    "floats": tuple(map(float, range(2000))),
}

arrays = st.builds(make_array, st.sampled_from(DTYPES), shapes, st.sampled_from(LAYOUTS), st.integers(0, 1000))
floats = st.integers(0, 2**64 - 1).map(bits_to_float) | st.floats()
texts = st.text(st.characters(exclude_categories=()), max_size=12) | st.sampled_from(
    ["", ".", "..", "/", "a/b", "a\0b", "%", "%41", "__asyncckpt__", "__asyncckpt_kind__", "\ud800", "0", "x" * 2000]
)
integers = (
    st.integers() | st.integers(-(2**200), 2**200) | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63)])
)
plain_scalars = (
    st.none() | st.booleans() | integers | floats | st.builds(complex, floats, floats) | texts | st.binary(max_size=12)
)
number_scalars = st.builds(
    lambda dtype, seed: make_array(dtype, (), "C", seed)[()],
    st.sampled_from([each for each in DTYPES if each.kind not in "US"]),
    st.integers(0, 1000),
)
text_scalars = texts.map(np.str_) | st.binary(max_size=8).map(np.bytes_)
zones = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-3), "x"), zoneinfo.ZoneInfo("Europe/Berlin")])
times = (
    st.builds(lambda value, fold: value.replace(fold=fold), st.datetimes(timezones=zones), st.sampled_from([0, 1]))
    | st.dates()
    | st.times()
    | st.timedeltas()
)
members = st.sampled_from([*Color, *Level, *Mark])
paths = st.sampled_from([pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:\\x")])


def _generator(kind: Any, seed: int, spawned: int) -> np.random.Generator:
    made = np.random.Generator(kind(seed))
    made.bit_generator.seed_seq.spawn(spawned)
    made.integers(10, dtype=np.uint8)  # leaves half-used state behind
    return made


generators = st.builds(
    _generator,
    st.sampled_from([np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64]),
    st.integers(0, 2**128),
    st.integers(0, 3),
)
randoms = st.builds(np.random.RandomState, st.integers(0, 2**32 - 1)) | st.integers().map(random.Random)


hashables = plain_scalars | text_scalars | times | members | paths | st.builds(Fixed, texts, integers)
keys = st.recursive(
    hashables | number_scalars.filter(lambda each: each.dtype.kind not in "mV"),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3) | st.builds(Point, inner, inner)
    ),
    max_leaves=4,
)
numbers = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=16, max_size=20) | st.lists(
    floats, min_size=16, max_size=20
)
leaves = (
    plain_scalars
    | arrays
    | number_scalars
    | text_scalars
    | times
    | members
    | paths
    | generators
    | randoms
    | st.binary(max_size=9).map(bytearray)
    | numbers
    | numbers.map(tuple)
    | st.sampled_from(sorted(_LONG)).map(_LONG.__getitem__)
)


def _noted(items: list[Any], attributes: dict[str, Any]) -> OrderedDict[Any, Any]:
    made = OrderedDict(items)
    vars(made).update(attributes)
    return made


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return strategies of containers of `inner`."""
    items = st.lists(inner, max_size=4)
    entries = st.lists(st.tuples(keys, inner), max_size=4)
    attributes = st.dictionaries(texts, inner, max_size=3)
    return (
        items
        | items.map(tuple)
        | st.builds(deque, items, st.sampled_from([None, 4, 9]))
        | entries.map(dict)
        | entries.map(OrderedDict)
        | st.dictionaries(texts, inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
        | st.builds(Point, inner, inner)
        | st.builds(Params, inner, inner)
        | st.builds(Fixed, inner, inner)
        | st.builds(_noted, entries, attributes)
        | st.builds(Noted, inner, attributes)
    )


states = st.recursive(leaves, containers, max_leaves=12)
"""Whole states of everything that can be saved."""
