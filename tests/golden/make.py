"""Makes the golden files of the format's version 1, and says what they hold.

    python tests/golden/make.py tests/golden/version_1
    python tests/golden/make.py tests/golden/npz_1

Files once made are never made again: they must load for ever. A later version of the format gets a script and a folder
of its own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import enum
import pathlib
import random
import sys
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from asyncckpt import CheckpointManager, NumPyCheckpointer, register_type
from asyncckpt.formats import msgpack
from asyncckpt.saving import commit

TRAINING_INFO = {"return": 187.5, "note": "caf\u00e9", "nothing": None, "parts": [1, {"nan": float("nan")}]}
RUN_CONFIG = {"lr": 1e-5, "name": "golden", "layers": [64, 64], "schedule": None}


@register_type(name="golden.Color")
class Color(enum.Enum):
    """An Enum."""

    RED = "red"


@register_type(name="golden.Point")
class Point(NamedTuple):
    """A namedtuple."""

    x: Any
    y: Any


@register_type(name="golden.Params")
@dataclasses.dataclass
class Params:
    """A dataclass."""

    weights: Any
    count: int


@register_type(name="golden.Key")
@dataclasses.dataclass(frozen=True, eq=False)
class Key:
    """A dataclass whose instances may be keys, whatever they hold."""

    held: Any


@register_type(name="golden.Own")
class Own:
    """A type with methods of its own."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def to_state(self) -> Any:
        """Return the state."""
        return {"data": self.data}

    @classmethod
    def from_state(cls, state: Any) -> Own:
        """Make one from it."""
        return cls(state["data"])

    def update_state(self, state: Any) -> None:
        """Put it in."""
        self.data = state["data"]


def state_of(name: str) -> dict[Any, Any]:
    """Return the state of a golden file; the one of several segments holds only the arrays and what refers to them."""
    return {key: value for key, value in _state().items() if name != "segments" or key in ("arrays", "types")}


def _state() -> dict[Any, Any]:
    rng = np.random.default_rng(7)
    rng.spawn(2)
    rng.integers(9, dtype=np.uint8)
    legacy = np.random.RandomState(7)
    legacy.normal()
    tied = np.arange(12.0).reshape(3, 4)
    padded = np.dtype({"names": ["a", "b"], "formats": ["u1", "<f4"], "offsets": [2, 8], "itemsize": 24})
    titled = np.dtype([(("a title", "a"), "<i2"), ("b", "<f4", (2,)), ("c", [("d", "?"), ("e", "<M8[us]")])])
    return {
        "plain": [None, True, False, 0, -1, 2**63 - 1, 2**64 - 1, -(2**63), 2**127, -(2**200), 1.5, -0.0, float("inf")],
        "nan": float("nan"),
        "complex": complex(1, -0.0),
        "text": ["", "caf\u00e9 \U0001f600", "a\0b", "\ud800", "long " * 820],
        "bytes": [b"", b"a\0", bytes(range(256)) * 17, bytearray(b"x\0")],
        "numbers": [list(range(40)), tuple(float(i) for i in range(40)), tuple(map(float, range(520)))],
        "containers": [(), [], {}, set(), (1, (2, [3])), {1, "a"}, frozenset({2.5}), deque([1, 2], 5), deque()],
        "ordered": OrderedDict(b=1, a=2),
        "keys": {"a/b": 1, "a\0b": 2, "": 3, ".": 4, "..": 5, "%2F": 6, "__asyncckpt__": 7, 8: "8", "8": 8, 1.5: "f",
                 None: "n", b"b": "b", (1, ("x", None)): "t", frozenset({1}): "fs", Color.RED: "e", 2**70: "big",
                 np.float32(2.5): "np", "\ud800": "s", "x" * 1500: "long", True: "bool"},
        "arrays": {
            "tied": [tied, {"again": tied}],
            "page": np.arange(1030, dtype="<i4"),
            "0-d": np.array(7, "<i2"),
            "empty": np.zeros((0, 3), "<f8"),
            "big-endian": np.arange(5, dtype=">f8"),
            "fortran": np.asfortranarray(np.arange(6, dtype="<u2").reshape(2, 3)),
            "strided": np.arange(20, dtype="<i8")[::3],
            "bool": np.array([True, False]),
            "half": np.array([1.5, np.nan], "<f2"),
            "complex": np.array([1 + 2j, -0j], "<c8"),
            "text": np.array(["a", "\u00e9\U0001f600"], "<U3"),
            "text-be": np.array(["ab"], ">U2"),
            "bytes": np.array([b"a\0b", b""], "S4"),
            "void": np.frombuffer(bytearray(b"abcdef"), "V3"),
            "dates": np.array(["2020-01-01", "NaT"], "<M8[D]"),
            "periods": np.array([1, -2], ">m8[25us]"),
            "padded": np.frombuffer(bytearray(range(48)), padded),
            "aligned": np.zeros(2, np.dtype([("a", "i1"), ("b", "<f8")], align=True)),
            "titled": np.zeros(2, titled),
            "record": np.zeros(2, np.dtype((np.record, [("x", "<i4")]))),
            "words": np.array(["x", "y\0", "long " * 9], np.dtypes.StringDType()),
            "bfloat16": np.arange(3).astype(ml_dtypes.bfloat16),
            "float8": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
            "int4": np.arange(-2, 2).astype(ml_dtypes.int4),
        },
        "scalars": [np.float32(1.5), np.int8(-1), np.uint64(2**64 - 1), np.bool_(1), np.complex64(1j), np.str_("s\0"),
                    np.bytes_(b"b\0"), np.datetime64("2020-01-01T00:00", "m"), np.timedelta64(3, "s"), np.void(b"v\0"),
                    ml_dtypes.bfloat16(2.5), np.float16(-0.0)],
        "times": [dt.datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=dt.UTC), dt.date(2020, 2, 29), dt.time(1, 2, 3, 4),
                  dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3), "x")), dt.timedelta(-1, 2, 3)],
        "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:\\x")],
        "random": [rng, np.random.Philox(7), np.random.SeedSequence(7, spawn_key=(1, 2)), legacy, random.Random(7)],  # noqa: S311 - the seed is the point
        "types": [Color.RED, Point(1, tied), Params(np.ones(3), 2), Own([Own(1)])],
    }  # fmt: skip


class SmallExtents:
    """The msgpack format with small extents, so that arrays have several segments as those above 1 GiB do."""

    file_name = "state.msgpack"

    def plan(self, index: Any, pacer: Any) -> Any:
        """Lay out the file."""
        return msgpack.plan(index, pacer, extent_nbytes=4096)


async def make(folder: pathlib.Path) -> None:
    """Write the files."""
    for name in ("msgpack", "hdf5", "segments"):
        if name == "segments":
            commit.find_format = lambda _: SmallExtents()  # type: ignore[assignment]
        async with CheckpointManager(folder / name, format="hdf5" if name == "hdf5" else "msgpack") as manager:
            await (await manager.save(7, state_of(name), training_info=TRAINING_INFO, run_config=RUN_CONFIG))
        (folder / name / ".lock").unlink()


ODD_KEYS = ("", ".", "a/b", "a/b/0", "%2F", "__asyncckpt__", "__asyncckpt__.npy", "x.npy", "caf\u00e9 \U0001f600",
            "a\0b", "\ud800", "long " * 300)  # fmt: skip


def own_npz() -> dict[str, Any]:
    """Return what `own.npz` holds: whatever a checkpoint may, and keys that a zip file cannot spell."""
    values = {key: value for key, value in _state().items() if key != "bytes"}
    values |= {key: np.arange(number) for number, key in enumerate(ODD_KEYS)}
    return values | {"replaced": {"x": [np.ones(3), "text"]}, "a": [np.zeros(2), {"b": np.ones((2, 2))}]}


def foreign_npz() -> dict[str, Any]:
    """Return what numpy's two files hold: arrays as its users have them."""
    return {
        "a": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "zero": np.array(5),
        "text": np.array(["x", "yy"]),
        "records": np.zeros(3, [("x", "<i4"), ("y", "S3")]),
        "fields": np.zeros(2, [("\u0103", "<f8"), ("\u00e9", ">i2", (2,))]),  # a header of version 3
        "folder/name": np.ones(2),
        "\u00e9": np.array([], np.float32),
        "dates": np.array(["2020-01-01", "NaT"], "<M8[D]"),
        "big-endian": np.arange(3000, dtype=">f8"),
    }


def make_npz(folder: pathlib.Path) -> None:
    """Write the npz files, ours in two flushes."""
    folder.mkdir(parents=True, exist_ok=True)
    with NumPyCheckpointer(folder / "own.npz") as chk:
        chk.update({"deleted": np.ones(100), "replaced": np.ones(100), "arrays": 5})
        chk.flush()
        del chk["deleted"], chk["arrays"]
        chk.update(own_npz())
    np.savez(folder / "savez.npz", **foreign_npz())
    np.savez_compressed(folder / "savez_compressed.npz", **foreign_npz())


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    if target.name.startswith("npz"):
        make_npz(target)
    else:
        asyncio.run(make(target))
