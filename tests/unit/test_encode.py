"""From a state to nodes and arrays: what is taken, what is refused, and what is said of it."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
from helpers.support import FORMATS, Point, assert_same, load_from, round_trip, save_to

from asyncckpt import CheckpointError, StateChangedError, UnsupportedLeafError, register_type
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS, Pacer
from asyncckpt.state.encode import flatten
from asyncckpt.state.encode_leaves import TooLargeError
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """In memory: these tests are about states, not about what keeps them."""
    return quick_path


both_formats = pytest.mark.parametrize("form", FORMATS)


class SubDict(dict[str, int]):
    """A subclass of a builtin."""


class SubList(list[int]):
    """A subclass of a builtin."""


class SubInt(int):
    """A subclass of a builtin."""


class SubArray(np.ndarray):
    """A subclass of numpy's."""


class Unknown:
    """A class that nobody registered."""


def masked() -> Any:
    """Make a masked array."""
    return np.ma.masked_array([1, 2], [True, False])


def counter_with_attribute() -> Any:
    """Make a Counter that is more than its items."""
    counted = Counter(a=1)
    counted.unit = "ms"  # type: ignore[attr-defined]
    return counted


# numpy warns of making a matrix.
pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
REFUSED: dict[str, Callable[[], Any]] = {
    "function": lambda: REFUSED.items,
    "lambda": lambda: lambda: None,
    "partial": lambda: functools.partial(print),
    "class": lambda: Unknown,
    "builtin class": lambda: int,
    "module": lambda: np,
    "object": Unknown,
    "ellipsis": lambda: ...,
    "generator": lambda: (each for each in ()),
    "dict subclass": lambda: SubDict(a=1),
    "list subclass": lambda: SubList([1]),
    "int subclass": lambda: SubInt(1),
    "defaultdict": lambda: defaultdict(int),
    "Counter with an attribute": counter_with_attribute,
    "object array": lambda: np.array([None, 1], object),
    "0-d object array": lambda: np.array({}, object),
    "objects in a structure": lambda: np.zeros(2, [("a", "i4"), ("b", object)]),
    "scalar with objects": lambda: np.zeros(2, [("a", object)])[0],
    "masked array": masked,
    "matrix": lambda: np.asmatrix([[1]]),
    "recarray": lambda: np.rec.array([(1,)], dtype=[("a", "i4")]),
    "array subclass": lambda: np.zeros(2).view(SubArray),
    "memoryview": lambda: memoryview(b"ab"),
    "dict view": {}.keys,
    "exception": lambda: ValueError("x"),
    "lock": threading.Lock,
}


@pytest.mark.parametrize("place", ["top", "list", "dict", "tuple", "deque", "object"])
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_the_path(name: str, place: str) -> None:
    """What cannot come back as it is is refused wherever it stands, and the error names the place."""
    bad = REFUSED[name]()
    state, path = {
        "top": (bad, ""),
        "list": ({"a": [0, bad]}, "a/1"),
        "dict": ({"a": {"b/c": bad}}, "a/b/c"),
        "tuple": ([(1, 2, (bad,))], "0/2/0"),
        "deque": ({1: deque([bad])}, "1/0"),
        "object": ({"p": Point(1, [bad])}, "p/1/0"),
    }[place]
    with pytest.raises(UnsupportedLeafError) as caught:
        flatten(state, pacer=Pacer())
    assert caught.value.path == path
    assert (path or "the root") in str(caught.value)


@pytest.mark.parametrize("name", [each for each in REFUSED if each not in {"objects in a structure", "dict subclass"}])
def test_refused_values_advise(name: str) -> None:
    """The error says more than the type: what to do, or why."""
    with pytest.raises(UnsupportedLeafError, match=r"register|convert|code|use a list|objects"):
        flatten([REFUSED[name]()], pacer=Pacer())


class _Warmup:
    """A schedule, as programs write them: data that can be called."""

    def __call__(self, step: int) -> float:
        """Return a rate."""
        return float(step)


@pytest.mark.parametrize("value", [_Warmup(), np.polynomial.Polynomial([1, 2]), np.poly1d([1, 2])])
def test_data_that_can_be_called_is_not_taken_for_code(value: object) -> None:
    """What helps is to register its type."""
    with pytest.raises(UnsupportedLeafError, match="register_type") as caught:
        flatten({"v": value}, pacer=Pacer())
    assert "is code" not in str(caught.value)


def _list_cycle() -> Any:
    cycle: list[Any] = [1]
    cycle.append({"x": cycle})
    return {"a": cycle}


def _dict_cycle() -> Any:
    cycle: dict[str, Any] = {}
    cycle["b"] = (cycle,)
    return {"a": cycle}


def _object_cycle() -> Any:
    cycle: list[Any] = []
    cycle.append(Point(cycle, 1))
    return {"a": cycle}


@pytest.mark.parametrize(("make", "path"), [(_list_cycle, "a/1/x"), (_dict_cycle, "a/b/0"), (_object_cycle, "a/0/0")])
def test_refuses_cycles(make: Callable[[], Any], path: str) -> None:
    """A state that contains itself is refused at the place where it does."""
    with pytest.raises(UnsupportedLeafError, match="contains itself") as caught:
        flatten(make(), pacer=Pacer())
    assert caught.value.path == path


def test_a_container_in_two_places_is_no_cycle(tmp_path: Path) -> None:
    """The same list may stand in two places; it comes back equal in both."""
    shared = [1, [2]]
    assert round_trip(tmp_path, [shared, {"a": shared}, (), ((), ())]) == [[1, [2]], {"a": [1, [2]]}, (), ((), ())]


# --- what comes back --------------------------------------------------------------------------------------------------


@both_formats
def test_the_same_array_is_stored_once_and_shared_again(tmp_path: Path, form: str) -> None:
    """Tied weights are one array in the file and one array after loading; equal ones are two."""
    tied = np.arange(100_000.0)
    state = {"a": tied, "b": [tied, {"c": tied}], "p": Point(tied, 1), "other": tied.copy(), "view": tied[:]}
    path = save_to(tmp_path, 1, state, form=form)
    found = load_from(tmp_path, 1)
    assert found["a"] is found["b"][0] is found["b"][1]["c"] is found["p"].x
    assert found["other"] is not found["a"]
    assert found["view"] is not found["a"]
    assert_same(found, state)
    nbytes = sum(each.stat().st_size for each in path.glob("state.*"))
    assert 3 * tied.nbytes <= nbytes < 3.2 * tied.nbytes


def test_memmaps_are_saved_as_arrays(tmp_path: Path) -> None:
    """An array that is mapped from a file comes back as an array in memory."""
    mapped = np.memmap(tmp_path / "data", np.float32, "w+", shape=(100,))
    mapped[:] = np.arange(100)
    found = round_trip(tmp_path, {"m": mapped})["m"]
    assert type(found) is np.ndarray
    assert_same(found, np.arange(100, dtype=np.float32))


@both_formats
@pytest.mark.parametrize(
    "value",
    [
        np.datetime64("NaT", "D"),
        np.datetime64("2020-01-01T01", "h"),
        np.timedelta64(5, "ns"),
        np.timedelta64(-3, "25us"),
        np.str_("a\0"),
        np.str_("\0"),
        np.bytes_(b"a\0\0"),
        np.void(b"\0\1\0"),
        np.longdouble(1) / 3,
        np.float16("nan"),
        np.float32(-0.0),
        np.bool_(True),  # noqa: FBT003 - the value itself
        np.complex64(complex("nan-0j")),
        np.uint64(2**64 - 1),
        ml_dtypes.bfloat16(1.5),
        ml_dtypes.float8_e4m3fn(-0.0),
        ml_dtypes.int4(-8),
        2**63,
        -(2**63) - 1,
        -(10**400),
        1 << 1_000_000,
        "a\0",
        "\udcff\ud800",
        b"\0" * 4097,
        bytearray(b"x\0"),
        -0.0,
        complex(-0.0, float("-inf")),
        np.full(3, "NaT", "<M8"),
        np.ndarray((2,), "<U0"),
        np.ndarray((2,), "S0"),
        np.ndarray((2, 1), "V0"),
        np.zeros(3, np.dtype([])),
        np.zeros((2, 0, 3), ">c16"),
        np.array(["a\0", "", "\u00e9\0\0"]),
        np.array([b"a\0b", b""]),
        np.array(5, ">i2"),
        np.array(["x", "long " * 50, ""], np.dtypes.StringDType()),
        np.zeros((1,) * 40),
    ],
    ids=lambda value: type(value).__name__,
)
def test_single_leaves(tmp_path: Path, form: str, value: Any) -> None:
    """Leaves at the edges of their types come back to the bit."""
    assert_same(
        round_trip(tmp_path, {"leaf": value, "list": [value, value]}, form), {"leaf": value, "list": [value, value]}
    )
    assert_same(round_trip(tmp_path, value, form), value)


@both_formats
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 512, 513, CHUNK_ELEMENTS + 1])
def test_runs_of_numbers_keep_their_types(tmp_path: Path, form: str, count: int) -> None:
    """Lists and tuples of numbers, of every length, come back with the same ints, floats and bools."""
    ints = list(range(-3, count - 3))
    state = {
        "ints": ints,
        "tuple": tuple(ints),
        "floats": [float(each) for each in ints],
        "mixed": [*ints, 1.0],
        "bools": [each > 0 for each in ints],
        "int and bool": [*ints, True],
        "big": [*ints, 2**64],
        "unsigned": [*ints, 2**63],
        "nans": [float("nan")] * count,
    }
    assert_same(round_trip(tmp_path, state, form), state)


def test_long_trees_are_cut_into_pieces(tmp_path: Path) -> None:
    """No chunk of the index holds more nodes than are decoded at once, and the chunks come back whole."""
    state = {"rows": [[str(i), {"i": i}] for i in range(CHUNK_ELEMENTS)], "last": None}
    flat = flatten(state, pacer=Pacer())
    assert len(flat.chunks) >= 4
    assert max(len(msgpack.unpackb(chunk, unicode_errors="surrogatepass")) for chunk in flat.chunks) <= CHUNK_ELEMENTS
    assert round_trip(tmp_path, state) == state


def test_trees_of_fifty_thousand_levels(tmp_path: Path) -> None:
    """Depth costs no recursion: lists, dicts and tuples in each other, with arrays far down."""
    bottom = np.arange(3)
    state: Any = {"end": bottom}
    for level in range(50_000):
        state = [[state], {"k": state}, (state,)][level % 3]
    found = round_trip(tmp_path, state)
    seen = 0
    while type(found) is not dict or "end" not in found:
        assert type(found) is type(state)
        key = "k" if type(found) is dict else 0
        found, state = found[key], state[key]
        seen += 1
    assert seen == 50_000
    assert_same(found["end"], bottom)


@both_formats
def test_wide_trees(tmp_path: Path, form: str) -> None:
    """Containers of many entries come back, in order."""
    state = {
        "dict": {f"k{i}": i for i in range(9_000)},
        "ints": dict.fromkeys(range(9_000), "v"),
        "set": set(range(9_000)),
        "deque": deque(map(str, range(9_000)), 9_000),
        "arrays": [np.full(i % 7, i) for i in range(1_500)],
        "ordered": OrderedDict((i, None) for i in range(5_000, 0, -1)),
    }
    assert_same(round_trip(tmp_path, state, form), state)


KEYS: list[Any] = [
    None, True, False, 2, -1, 2**70, 1.5, float("inf"), -0.5, 1j, "", ".", "..", "/", "a/b", "a\0b", "%", "%2F", "0",
    "1.5", "None", "__asyncckpt__", "\ud800", "\U0001f600",
    "x" * 70_000, b"", b"a\0", b"\xff" * 5000, (), (1, ("a", None)),
    ("x" * 9000, b"y" * 9000), tuple(range(600)), ((1.0,) * 20, "deep"),
    frozenset({1, "a"}), np.float32(7), np.str_("s\0"), np.int8(3),
    np.datetime64(1, "s"),
]  # fmt: skip


@both_formats
def test_keys_of_all_kinds(tmp_path: Path, form: str) -> None:
    """Keys come back with their types and order, beside each other, whatever their text or length; also with `like`."""
    state = {key: index for index, key in enumerate(KEYS)}
    assert len(state) == len(KEYS)
    assert_same(round_trip(tmp_path, state, form), state)
    nested = {key: {key: np.arange(2), "list": [key]} for key in KEYS}
    save_to(tmp_path, 100, nested, form=form)
    assert_same(load_from(tmp_path, 100), nested)
    assert_same(load_from(tmp_path, 100, template=nested), nested)


@both_formats
def test_keys_that_read_alike_stay_apart(tmp_path: Path, form: str) -> None:
    """Keys whose texts are the same are different entries still."""
    state = {1: "a", "1": "b", 1.5: "c", "1.5": "d", b"1": "e", (1,): "f", "(1,)": "g", None: "h", "None": "i"}
    assert_same(round_trip(tmp_path, state, form), state)


# --- containers that change -------------------------------------------------------------------------------------------


class _Meddler:
    """Its state is asked for in the middle of a walk; it then does something to the state around it."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action


register_type(_Meddler, to_state=lambda value: value.action() and None, from_state=lambda _: None)


@pytest.mark.parametrize("kind", ["dict grows", "dict shrinks", "list grows", "list shrinks", "set", "deque"])
def test_a_container_that_changes_is_an_error(kind: str) -> None:
    """A container that another task changes while it is walked is named, and nothing torn is saved."""
    if kind.startswith("dict"):
        inner: Any = {}
        inner |= {"m": _Meddler(lambda: inner.update(z=1) if "grows" in kind else inner.pop("b")), "b": 2, "c": 3}
    elif kind.startswith("list"):
        inner = []
        inner += [_Meddler(lambda: inner.append(1) if "grows" in kind else inner.pop()), "b", "c"]
    elif kind == "set":
        inner = set()
        inner |= {_Meddler(lambda: inner.add(7)), 1, 2}
    else:
        inner = deque()
        inner.extend([_Meddler(lambda: inner.append(7)), 1, 2])
    with pytest.raises(StateChangedError) as caught:
        flatten({"outer": [inner]}, pacer=Pacer())
    assert caught.value.path == "outer/0"
    assert "save() returns" in str(caught.value)


class _Growing(Pacer):
    """A pacer in whose pauses another thread changes things."""

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__(yields=False)
        self.action = action

    def pause(self) -> None:
        """Do what the other thread does."""
        self.action()


@pytest.mark.parametrize("kind", [dict, OrderedDict, list, set, deque])
def test_a_container_that_changes_before_its_first_child_is_an_error(kind: Any) -> None:
    """No container's count is written and then contradicted, even if it changes between the two."""
    inner = kind()

    def grow() -> None:
        inner.update({len(inner): 1}) if kind in (dict, OrderedDict) else inner.update({len(inner)}) if (
            kind is set
        ) else inner.append("x")

    # The last node of a chunk is the container's own: the pause comes before its first child is looked at.
    state = [None] * (CHUNK_ELEMENTS - 2) + [inner]
    with pytest.raises(StateChangedError) as caught:
        flatten(state, pacer=_Growing(grow))
    assert caught.value.path == str(CHUNK_ELEMENTS - 2)


@pytest.mark.parametrize("change", [lambda run: run.append(1), lambda run: run.pop(), lambda run: run.clear()])
def test_a_run_of_numbers_that_changes_is_an_error(change: Callable[[list[int]], object]) -> None:
    """A long list of numbers is watched, too, while it is packed."""
    run = list(range(3 * CHUNK_ELEMENTS))
    left = [1]

    def once() -> None:
        if left.pop() if left else False:
            change(run)

    with pytest.raises(StateChangedError) as caught:
        flatten({"run": run}, pacer=_Growing(once))
    assert caught.value.path == "run"


def test_an_error_of_to_state_comes_out_with_a_note() -> None:
    """What a type's own to_state raises is the caller's to see, with the type and the place added to it."""
    with pytest.raises(ZeroDivisionError) as caught:
        flatten({"a": [_Meddler(lambda: 1 // 0)]}, pacer=Pacer())
    assert any("_Meddler" in note and "a/0" in note for note in caught.value.__notes__)


# --- limits of what is done on the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        list(range(5_000_000)),
        [float(i) for i in range(50_000)],
        [list(range(10_000)) for _ in range(10)],
        "x" * 50_000_000,
        b"x" * 50_000_000,
        {"a": np.zeros(1 << 18)},
        ["x"] * 5_000_000,
        {i: i for i in range(1000)},
    ],
    ids=["ints", "floats", "runs", "text", "bytes", "array", "list", "dict"],
)
def test_gives_up_early_on_a_large_state(state: Any) -> None:
    """Whether a state is small enough for the loop is found out in about a millisecond, however large it is."""
    seconds = []
    for _ in range(5):
        began = time.thread_time()  # whatever other threads and programs do
        with pytest.raises(TooLargeError):
            flatten(state, pacer=Pacer(yields=False), max_nodes=512, max_nbytes=1 << 20)
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 0.05


def test_paths_of_strange_keys() -> None:
    """Paths in errors can be spelled for every key, huge ints included, and stay readable."""
    assert join_path(["a", 1, (1, 2), b"x", "", None]) == "a/1/(1, 2)/b'x'//None"
    assert len(join_path([10**5000])) <= 80
    assert len(join_path([tuple(range(1000))])) <= 80
    with pytest.raises(UnsupportedLeafError):
        flatten({10**5000: print}, pacer=Pacer())


async def test_nothing_is_written_of_a_refused_state(tmp_path: Path) -> None:
    """A refused save leaves no pending directory behind, whatever the state's size, and its step is free again."""
    from asyncckpt import CheckpointManager

    async with CheckpointManager(tmp_path) as manager:
        for extra in (0, 400_000):
            with pytest.raises(UnsupportedLeafError) as caught:
                await manager.save(1, {"w": np.zeros(extra), "net": {"act": [print]}})
            assert caught.value.path == "net/act/0"
            assert isinstance(caught.value, TypeError)
            assert isinstance(caught.value, CheckpointError)
        assert list(tmp_path.glob("*_*")) == []
        await (await manager.save(1, {"w": 1}))
        assert manager.steps() == [1]
