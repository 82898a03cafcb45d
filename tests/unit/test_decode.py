"""Templates: what comes back like one, what does not fit, and what is filled in place."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque, namedtuple
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import FORMATS, Color, Fixed, Params, Point, assert_same, load_from, round_trip, save_to

from asyncckpt import CorruptCheckpointError, StateMismatchError
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.decode import Decoder
from asyncckpt.state.index import Index

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """In memory: these tests are about states, not about what keeps them."""
    return quick_path


both_formats = pytest.mark.parametrize("form", FORMATS)
both_ways = pytest.mark.parametrize("in_place", [False, True], ids=["like", "into"])


Sixteen = namedtuple("Sixteen", [f"f{i}" for i in range(16)])  # type: ignore[misc]  # noqa: PYI024 - made by a loop


class OtherColor(enum.Enum):
    """An Enum of another name."""

    RED = "red"


BASE: Any = {
    "w": np.zeros((2, 3)),
    "f32": np.zeros(2, "f4"),
    "lr": 0.1,
    "step": 3,
    "flag": True,
    "name": "x",
    "raw": b"x",
    "none": None,
    "big": 2**100,
    "z": 1j,
    "scalar": np.float32(1),
    "text": np.str_("x"),
    "list": [1, [np.zeros(2)]],
    "run": list(range(30)),
    "long run": [float(i) for i in range(3000)],
    "long text": "x" * 9000,
    "tuple": (1, "a"),
    "deque": deque([1, 2], 5),
    "set": {1},
    "point": Point(1, np.zeros(2)),
    "params": Params(np.zeros(2), 1),
    "fixed": Fixed("a", 1),
    "color": Color.RED,
    "rng": np.random.default_rng(1),
    "words": np.array(["a", "b"], np.dtypes.StringDType()),
}

MISFITS: list[tuple[str, Any, str, str]] = [
    ("w", np.zeros((3, 2)), "w", "shape"),
    ("w", np.zeros((2, 3), "f4"), "w", "dtype"),
    ("w", np.zeros((2, 3), ">f8"), "w", "dtype"),
    ("w", [[0.0] * 3] * 2, "w", "type"),
    ("w", 1.0, "w", "type"),
    ("w", np.float64(1), "w", "type"),
    ("lr", 1, "lr", "type"),
    ("lr", np.float64(1), "lr", "type"),
    ("lr", np.zeros(()), "lr", "type"),
    ("step", True, "step", "type"),
    ("step", 1.0, "step", "type"),
    ("flag", 1, "flag", "type"),
    ("name", b"x", "name", "type"),
    ("name", None, "name", "type"),
    ("raw", "x", "raw", "type"),
    ("raw", bytearray(b"x"), "raw", "type"),
    ("none", 0, "none", "type"),
    ("big", 2.0, "big", "type"),
    ("z", 1.0, "z", "type"),
    ("scalar", np.float64(1), "scalar", "dtype"),
    ("scalar", 1.0, "scalar", "type"),
    ("scalar", np.zeros((), "f4"), "scalar", "type"),
    ("text", "x", "text", "type"),
    ("text", np.bytes_(b"x"), "text", "type"),
    ("list", [1], "list", "length"),
    ("list", [1, [np.zeros(2)], 2], "list", "length"),
    ("list", [1, [np.zeros(3)]], "list/1/0", "shape"),
    ("list", {"0": 1}, "list", "type"),
    ("list", None, "list", "type"),
    ("run", list(range(31)), "run", "length"),
    ("run", [float(i) for i in range(30)], "run/0", "type"),
    ("run", [*range(29), "x"], "run/29", "type"),
    ("run", "x", "run", "type"),
    ("run", np.arange(30), "run", "type"),
    ("long run", [0] * 3000, "long run/0", "type"),
    ("long run", [0.0] * 2999, "long run", "length"),
    ("long text", b"x", "long text", "type"),
    ("tuple", (1,), "tuple", "length"),
    ("tuple", (1, 2), "tuple/1", "type"),
    ("deque", deque([1], 1), "deque", "length"),
    ("deque", {1}, "deque", "type"),
    ("set", [1], "set", "type"),
    ("point", (1,), "point", "length"),
    ("point", Point("x", np.zeros(2)), "point/0", "type"),
    ("point", Params(1), "point", "type"),
    ("params", Params(np.zeros(3), 1), "params/weights", "shape"),
    ("params", Fixed("a"), "params", "type"),
    ("params", {"weights": np.zeros(2)}, "params", "keys"),
    ("params", {"weights": np.zeros(2), "count": "1"}, "params/count", "type"),
    ("fixed", Fixed("a", "b"), "fixed/size", "type"),
    ("color", OtherColor.RED, "color", "type"),
    ("color", "red", "color", "type"),
    ("rng", np.random.Generator(np.random.MT19937(1)), "rng", "type"),
    ("rng", np.random.PCG64(1), "rng", "type"),
    ("rng", np.random.RandomState(1), "rng", "type"),
    ("words", np.array(["a"], np.dtypes.StringDType()), "words", "shape"),
    ("words", np.array(["a", "b"]), "words", "type"),
]


def copied(value: Any) -> Any:  # noqa: PLR0911 - one for each kind
    """Copy a state and its arrays."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    if type(value) is deque:
        return deque(map(copied, value), value.maxlen)
    if type(value) is Point:
        return Point(*map(copied, value))
    if type(value) is Params:
        return Params(copied(value.weights), copied(value.count))
    if type(value) is np.random.Generator:
        return np.random.Generator(type(value.bit_generator)(99))
    return set(value) if type(value) is set else value


@pytest.fixture(scope="module", params=FORMATS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the base state once for each format."""
    path = tmp_path_factory.mktemp("saved")
    save_to(path, 7, BASE, form=request.param)
    return path


@both_ways
def test_the_base_state_fits_itself(saved: Path, in_place: bool) -> None:
    """A template of the same structure gives the saved state."""
    assert_same(load_from(saved, 7, template=copied(BASE), in_place=in_place), BASE)


@both_ways
@pytest.mark.parametrize(
    ("key", "value", "path", "field"), MISFITS, ids=[f"{m[2]}-{m[3]}-{i}" for i, m in enumerate(MISFITS)]
)
def test_each_difference_is_named(  # noqa: PLR0913, PLR0917 - pytest passes them by name
    saved: Path, in_place: bool, key: str, value: Any, path: str, field: str
) -> None:
    """The first difference is an error with the path, what differs, both sides, and the step; nothing was changed."""
    template = {**copied(BASE), key: value}
    arrays = [template["list"][1][0], template["w"], template["f32"]] if key not in ("list", "w") else [template["f32"]]
    for array in arrays:
        array.fill(42)
    with pytest.raises(StateMismatchError) as caught:
        load_from(saved, 7, template=template, in_place=in_place)
    error = caught.value
    assert (error.path, error.field, error.step) == (path, field, 7)
    for fact in (path, field, str(error.expected), str(error.found), "step 7"):
        assert fact in str(error)
    assert all((array == 42).all() for array in arrays)


@both_ways
@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda t: t.pop("lr"), "lr"),
        (lambda t: t.update(new=1), "new"),
        (lambda t: t.update({1: t.pop("step")}), "step"),
    ],
)
def test_keys_must_be_the_same(saved: Path, in_place: bool, change: Any, missing: str) -> None:
    """Missing and additional keys are both named."""
    template = copied(BASE)
    change(template)
    with pytest.raises(StateMismatchError) as caught:
        load_from(saved, 7, template=template, in_place=in_place)
    assert caught.value.field == "keys"
    assert repr(missing) in str(caught.value)


def test_keys_are_compared_in_linear_time(tmp_path: Path) -> None:
    """A template of many keys is no slower than its size."""
    state = {f"k{i}": i for i in range(50_000)}
    assert round_trip(tmp_path, state, template=state) == state


@both_formats
def test_like_restores_the_templates_container_types(tmp_path: Path, form: str) -> None:
    """Sequences, mappings and sets come back as the template's kinds of them, registered types as themselves."""
    run = list(range(20))
    cases: dict[str, tuple[Any, Any, Any]] = {  # saved, template, expected
        "list as tuple": ([1, "x"], (0, ""), (1, "x")),
        "tuple as list": ((1, 2), [0, 0], [1, 2]),
        "deque as list": (deque([1]), [0], [1]),
        "dict as OrderedDict": ({"x": 1}, OrderedDict(x=0), OrderedDict(x=1)),
        "set as frozenset": ({1, 2}, frozenset(), frozenset({1, 2})),
        "numbers as deque": (run, deque(maxlen=50), deque(run, 50)),
        "many numbers as list": (tuple(range(999)), [0] * 999, list(range(999))),
        "tuple as namedtuple": ((1, 2), Point(0, 0), Point(1, 2)),
        "numbers as registered": (tuple(range(16)), Sixteen(*run[:16]), Sixteen(*range(16))),
        "dict as dataclass": ({"weights": 1, "count": 2}, Params(0, 0), Params(1, 2)),
        "namedtuple as list": (Point(3, 4), [0, 0], [3, 4]),
        "dataclass as dict": (Params(5, 6), {"weights": 0, "count": 0}, {"weights": 5, "count": 6}),
    }
    saved, template, expected = ({name: case[i] for name, case in cases.items()} for i in range(3))
    before = repr(template)
    found = round_trip(tmp_path, saved, form, template=template)
    sixteen = found.pop("numbers as registered")
    assert type(sixteen) is Sixteen
    assert sixteen == expected.pop("numbers as registered")
    assert_same(found, expected)
    assert repr(template) == before


def test_like_gives_new_arrays(tmp_path: Path) -> None:
    """A template's arrays are only looked at; shape-like objects will do as well."""

    class Spec:
        dtype = np.dtype("f8")
        shape = (3,)

    template = {"a": np.zeros(3), "b": Spec()}
    found = round_trip(tmp_path, {"a": np.ones(3), "b": np.ones(3)}, template=template)
    assert template["a"].tolist() == [0, 0, 0]
    assert_same(found, {"a": np.ones(3), "b": np.ones(3)})


def test_two_numpy_names_of_one_type_fit(tmp_path: Path) -> None:
    """A scalar whose C type has the same size fits: np.longlong and np.int64 are one dtype."""
    assert round_trip(tmp_path, [np.longlong(3)], template=[np.longlong(0)]) == [3]


# --- damaged nodes ----------------------------------------------------------------------------------------------------


def build(nodes: list[Any], arrays: tuple[ArrayMeta, ...] = (), data: Any = None) -> Any:
    """Build a state from nodes."""
    decoder = Decoder(Index(chunks=[ix.pack_chunk(nodes)], arrays=arrays), Pacer())
    decoder.plan()
    return decoder.decode(data or {})


def object_of(name: str, *nodes: Any) -> list[Any]:
    """Make the nodes of an object."""
    return [ix.ext(ix.OBJECT, name), *nodes]


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [1, 2],
        [ix.ext(ix.LIST, 2), 1],
        [ix.ext(ix.LIST, 1), 1, 2],
        [ix.ext(ix.LIST, -1)],
        [ix.ext(ix.LIST, "2"), 1, 2],
        [ix.ext(ix.LIST, 1.0), 1],
        [ix.ext(ix.DICT, 1), "a"],
        [ix.ext(ix.DICT, 2), "a", 1, "a", 2],
        [ix.ext(ix.DICT, 1), ix.ext(ix.LIST, 0), 1],
        [ix.ext(ix.SET, 2), 1, 1],
        [ix.ext(ix.SET, 1), ix.ext(ix.LIST, 0)],
        [ix.ext(ix.DEQUE, 1), 1],
        [ix.ext(ix.DEQUE, (1, "x")), 1],
        [ix.ext(ix.ARRAY, 0)],
        [ix.ext(ix.ARRAY, -1)],
        [ix.ext(ix.ARRAY, "x")],
        [ix.ext(ix.BYTES, 0)],
        [ix.ext(ix.NUMBERS, (ix.LIST, "<f4", b"1234"))],
        [ix.ext(ix.NUMBERS, (ix.DICT, "<i8", b"12345678"))],
        [ix.ext(ix.NUMBERS, (ix.LIST, "<i8", b"1234567"))],
        [ix.ext(ix.NUMBERS, (ix.LIST, "|O", b"12345678"))],
        [ix.ext(ix.NUMBERS_ARRAY, (ix.LIST, 9))],
        [ix.ext(ix.SCALAR, ("<f8", b"123"))],
        [ix.ext(ix.SCALAR, ("|O", b"12345678"))],
        [ix.ext(ix.SCALAR, ("str_", b"x"))],
        [ix.ext(ix.SCALAR, ("O", b""))],
        [ix.ext(ix.COMPLEX, (1.0, 2.0, 3.0))],
        [ix.ext(ix.COMPLEX, "x")],
        [ix.ext(99, 0)],
        [ix.ext(0, 0)],
        [ix.msgpack.ExtType(ix.LIST, b"")],
        [ix.msgpack.ExtType(ix.LIST, b"\x91" * 10_000)],
        [ix.msgpack.ExtType(ix.ARRAY, b"\x92\x01")],
        [[1]],
        [{}],
        [ix.msgpack.Timestamp(1, 2)],
        object_of("path"),
        [ix.ext(ix.OBJECT, 5), 1],
    ],
    ids=repr,
)  # fmt: skip
def test_impossible_nodes_are_corruption(nodes: list[Any]) -> None:
    """Nothing in the nodes is believed: what cannot have been written is a CorruptCheckpointError."""
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        build(nodes)


def test_impossible_pieces_are_corruption() -> None:
    """So are chunks that are not arrays of nodes."""
    for chunk in (b"", b"\x01", b"\x92\x01", b"\xc1", b"\x81\x01\x02", b"\xdd\xff\xff\xff\xff", b"\x91" * 2000):
        with pytest.raises(CorruptCheckpointError, match="damaged"):
            Decoder(Index(chunks=[chunk], arrays=()), Pacer()).plan()


def test_long_leaves_must_be_made_of_bytes() -> None:
    """A long string or bytes that refers to an array of another type is corruption."""
    arrays = (ArrayMeta(np.dtype("<f8"), (3,)),)
    for code in (ix.BYTES, ix.STRING):
        with pytest.raises(CorruptCheckpointError):
            build([ix.ext(code, 0)], arrays, {0: np.zeros(3)})
    for meta in (ArrayMeta(np.dtype("<i4"), (3,)), ArrayMeta(np.dtype("<i8"), (3, 1)), ArrayMeta(np.dtype("<i8"), ())):
        with pytest.raises(CorruptCheckpointError):
            build([ix.ext(ix.NUMBERS_ARRAY, (ix.LIST, 0))], (meta,), {0: np.zeros(meta.shape, meta.dtype)})
