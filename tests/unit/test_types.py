"""Types that are saved as simpler ones: builtin ones, registered ones, and those that nobody registered."""

from __future__ import annotations

import array
import dataclasses
import datetime as dt
import enum
import functools
import gc
import pathlib
import random
import subprocess
import sys
import threading
import weakref
import zoneinfo
from collections import OrderedDict, deque, namedtuple
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import pytest
from support import (
    FORMATS,
    Color,
    Fixed,
    Level,
    Params,
    Point,
    assert_same,
    canonical,
    load_from,
    load_fully,
    round_trip,
    save_to,
)

from asyncckpt import (
    Checkpointer,
    CheckpointError,
    CheckpointManager,
    CheckpointWarning,
    StateMismatchError,
    UnsupportedLeafError,
    register_type,
)
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.build import Builder
from asyncckpt.state.dtypes import is_kept
from asyncckpt.state.index import Index
from asyncckpt.state.tree import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

both_formats = pytest.mark.parametrize("form", FORMATS)
BIT_GENERATORS = [np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64]


# --- random numbers ---------------------------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_generators_go_on_as_if_never_stopped(tmp_path: Path, form: str, kind: Any) -> None:
    """A Generator of every algorithm, half-used and having spawned, goes on drawing and spawning the same."""
    rng = np.random.Generator(kind(12345))
    rng.spawn(2)
    rng.standard_normal(3)
    rng.integers(10, dtype=np.uint8)
    found = round_trip(tmp_path, {"rng": rng, "bits": kind(7)}, form)
    assert type(found["rng"]) is np.random.Generator
    assert type(found["bits"]) is kind
    expected = [rng.integers(2**60), rng.integers(9, dtype=np.uint8), rng.normal(), rng.spawn(1)[0].random()]
    actual = found["rng"]
    assert [
        actual.integers(2**60),
        actual.integers(9, dtype=np.uint8),
        actual.normal(),
        actual.spawn(1)[0].random(),
    ] == (expected)
    assert found["bits"].random_raw() == kind(7).random_raw()


@pytest.mark.parametrize("kind", BIT_GENERATORS)
def test_generators_are_updated_in_place_spawning_included(tmp_path: Path, kind: Any) -> None:
    """A restored Generator is the same object, and draws and spawns what the saved one would, whatever its own seed."""
    saved, own = np.random.Generator(kind(1)), np.random.Generator(kind(2))
    saved.spawn(3)
    saved.random(5)
    own.spawn(5)
    found = round_trip(tmp_path, {"rng": saved}, template={"rng": own}, in_place=True)
    assert found["rng"] is own
    assert_same(own, saved)
    assert own.spawn(1)[0].random() == saved.spawn(1)[0].random()


def test_other_random_numbers(tmp_path: Path) -> None:
    """RandomState, SeedSequence, random.Random and random.getstate() go on the same."""
    legacy = np.random.RandomState(3)
    legacy.normal()  # half of a pair
    seeds = np.random.SeedSequence([1, 2**80], spawn_key=(4, 5))
    seeds.spawn(2)
    python = random.Random(5)  # noqa: S311 - a simulation's
    python.gauss(0, 1)
    state = {"legacy": legacy, "seeds": seeds, "python": python, "getstate": python.getstate()}
    found = round_trip(tmp_path, state)
    assert_same(found, state)
    assert found["legacy"].normal() == legacy.normal()
    assert found["seeds"].spawn(1)[0].generate_state(4).tolist() == seeds.spawn(1)[0].generate_state(4).tolist()
    assert found["python"].gauss(0, 1) == python.gauss(0, 1)
    assert type(found["getstate"]) is tuple
    assert type(found["getstate"][1]) is tuple
    random.Random().setstate(found["getstate"])  # noqa: S311 - as above


class OwnBits(np.random.PCG64):
    """A bit generator that would come back as another."""


def test_foreign_bit_generators_are_refused() -> None:
    """A Generator over a bit generator that is not numpy's own is refused, not changed into one."""
    for value in (OwnBits(1), np.random.Generator(OwnBits(1))):
        with pytest.raises(UnsupportedLeafError) as caught:
            flatten({"a": value}, pacer=Pacer())
        assert caught.value.path == "a"


# --- times, paths and other builtins ----------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize(
    "value",
    [
        dt.datetime(2025, 10, 26, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        dt.datetime(2025, 10, 26, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"), fold=1),
        dt.datetime(1, 1, 1),  # noqa: DTZ001 - naive ones can be saved, too
        dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC),
        dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=30, seconds=7, microseconds=1))),
        dt.datetime(2020, 1, 1, fold=1, tzinfo=dt.timezone(dt.timedelta(0), "mine")),
        dt.date(2020, 2, 29),
        dt.time(23, 59, 59, 1, fold=1),
        dt.time(1, tzinfo=dt.UTC),
        dt.timedelta(days=-999999999, microseconds=1),
        pathlib.Path("a/../b"),
        pathlib.PurePosixPath("/x/\udcff"),
        pathlib.PureWindowsPath("c:\\x\\y"),
        bytearray(b"\0ab"),
        bytearray(10_000),
    ],
    ids=repr,
)
def test_builtin_types(tmp_path: Path, form: str, value: Any) -> None:
    """Times with their folds and zones, paths and bytearrays come back as they were."""
    assert_same(round_trip(tmp_path, [value], form), [value])


class OwnZone(dt.tzinfo):
    """A time zone without a key."""

    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        """Return an offset."""
        return dt.timedelta(hours=1)


class OwnPath(type(pathlib.Path())):  # type: ignore[misc]
    """A path of a kind of its own."""


class OwnDate(dt.date):
    """A date of a kind of its own."""


@pytest.mark.parametrize(
    "value",
    [dt.datetime(2020, 1, 1, tzinfo=OwnZone()), OwnPath("x"), OwnDate(2020, 1, 1), random.SystemRandom()],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_of_builtin_types_are_refused(value: Any) -> None:
    """What would come back as something else is refused with its path."""
    with pytest.raises(UnsupportedLeafError) as caught:
        flatten({"a": [value]}, pacer=Pacer())
    assert caught.value.path == "a/0"


# --- Enums, namedtuples, dataclasses ----------------------------------------------------------------------------------


class Plain(enum.Enum):
    """An Enum that nobody registered."""

    A = "a"


class PlainPair(NamedTuple):
    """A namedtuple that nobody registered."""

    left: Any
    right: Any


@dataclasses.dataclass
class PlainData:
    """A dataclass that nobody registered."""

    weights: Any
    steps: int = 0


PlainOld = namedtuple("PlainOld", "a b")  # noqa: PYI024 - these exist, too


@both_formats
def test_registered_families_come_back_as_themselves(tmp_path: Path, form: str) -> None:
    """Registered Enums, namedtuples and dataclasses come back as themselves, nested in each other, as keys, too."""
    state = {
        Color.RED: [Color.PAIR, Level.HIGH, Color.TWO],
        "point": Point(Point(1, np.arange(3)), [Fixed("a", Params(np.zeros(2), 3))]),
        Fixed("key", (1, 2)): {Point(0, 0)},
        Level.LOW: deque([Color.RED], 3),
    }
    assert_same(round_trip(tmp_path, state, form), state)


@both_formats
def test_unregistered_families_come_back_as_plain_data(tmp_path: Path, form: str) -> None:
    """Without registration they are saved all the same; value, tuple and dict come back, and each type is reported."""
    state = {"e": Plain.A, "n": PlainPair(1, [Plain.A]), "d": PlainData(np.arange(2)), "o": PlainOld(1, 2)}
    save_to(tmp_path, 1, state, form=form)
    loaded = load_fully(tmp_path, 1)
    expected = {"e": "a", "n": (1, ["a"]), "d": {"weights": np.arange(2), "steps": 0}, "o": (1, 2)}
    assert_same(loaded.checkpoint.state, expected)
    names = {name.rpartition(".")[2]: path for name, path in loaded.unknown_types.items()}
    assert names == {"Plain": "e", "PlainPair": "n", "PlainData": "d", "PlainOld": "o"}


async def test_the_warning_names_the_type(tmp_path: Path) -> None:
    """The manager warns once of each type that came back as plain data, with its name, its place and what to do."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": [Plain.A, Plain.A], "n": PlainPair(1, 2)}))
        with pytest.warns(CheckpointWarning) as caught:
            loaded = await manager.load(1)
        assert loaded is not None
        assert loaded.state == {"a": ["a", "a"], "n": (1, 2)}
        texts = [str(each.message) for each in caught]
        assert len(texts) == 2
        assert "Plain" in texts[0] and "a/0" in texts[0] and "register_type" in texts[0]  # noqa: PT018
        assert "PlainPair" in texts[1]


@both_formats
def test_a_template_brings_unregistered_types_back(tmp_path: Path, form: str) -> None:
    """What stands in the template needs no registration."""
    state = {"e": Plain.A, "n": PlainPair(1, [Plain.A]), "d": PlainData(np.arange(2)), "o": PlainOld(1, 2)}
    template = {"e": Plain.A, "n": PlainPair(0, [Plain.A]), "d": PlainData(np.zeros(2, int)), "o": PlainOld(0, 0)}
    save_to(tmp_path, 1, state, form=form)
    loaded = load_fully(tmp_path, 1, template=template)
    assert loaded.unknown_types == {}
    found = loaded.checkpoint.state
    assert [type(each) for each in found.values()] == [Plain, PlainPair, PlainData, PlainOld]
    assert found["n"] == state["n"]
    assert_same(found["d"].weights, np.arange(2))
    assert template["d"].weights.tolist() == [0, 0], "the template itself is left alone"


def test_plain_data_that_cannot_be_a_key_says_what_to_do(tmp_path: Path) -> None:
    """Types whose plain forms collide, or cannot be keys, ask to be registered; nothing calls the file corrupt."""

    class Number(enum.Enum):
        ONE = 1

    @dataclasses.dataclass(frozen=True)
    class Key:
        name: str

    for step, state in enumerate(({Number.ONE: "a", 1: "b"}, {Number.ONE, 1}, {Key("x"): 1}, {Key("x")})):
        save_to(tmp_path, step, state)
        with pytest.raises(CheckpointError, match="register") as caught:
            load_fully(tmp_path, step)
        assert type(caught.value) is CheckpointError


def test_dataclasses_keep_their_fields(tmp_path: Path) -> None:
    """Fields come back without __init__ and __post_init__; unset ones stay unset, new ones get their defaults."""

    @register_type(name="tests.Rich")
    @dataclasses.dataclass
    class Rich:
        a: int
        hidden: list[int] = dataclasses.field(default_factory=list, init=False, repr=False)
        late: int = dataclasses.field(init=False)
        kind: dataclasses.InitVar[str] = "x"

        def __post_init__(self, kind: str) -> None:
            self.a += 100

    value = Rich(1)
    value.hidden.append(5)
    found = round_trip(tmp_path, value)
    assert (found.a, found.hidden) == (101, [5])
    assert not hasattr(found, "late")

    save_to(tmp_path, 1, value)
    del Rich

    @register_type(name="tests.Rich")
    @dataclasses.dataclass
    class Rich:  # type: ignore[no-redef]
        a: int
        hidden: list[int]
        more: list[int] = dataclasses.field(default_factory=lambda: [7])

    found = load_fully(tmp_path, 1).checkpoint.state
    assert type(found) is Rich
    assert (found.a, found.hidden, found.more) == (101, [5], [7])


# --- register_type ----------------------------------------------------------------------------------------------------


class Buffer:
    """A type of the user's own."""

    def __init__(self, data: Any) -> None:
        self.data = data


class Methodical(Buffer):
    """One with methods."""

    def to_state(self) -> Any:
        """Return the state."""
        return {"data": self.data}

    @classmethod
    def from_state(cls, state: Any) -> Methodical:
        """Make one."""
        return cls(state["data"])


@both_formats
def test_register_type_in_all_its_forms(tmp_path: Path, form: str) -> None:
    """Functions or methods; called, as a decorator, with and without arguments: all give the class back and work."""

    class One(Buffer):
        pass

    assert register_type(One, to_state=lambda v: v.data, from_state=One) is One

    @register_type
    class Two(Methodical):
        pass

    @register_type(name="tests.Three")
    class Three(Methodical):
        pass

    @register_type(to_state=lambda v: [v.data], from_state=lambda state: Four(*state))
    class Four(Buffer):
        pass

    class Five(Buffer):
        pass

    register_type(Five, name="tests.Five", to_state=lambda v: v.data, from_state=Five)

    @register_type()
    class Six(enum.Flag):
        A = enum.auto()
        B = enum.auto()

    arrays = [kind(np.arange(3)) for kind in (One, Two, Three, Four, Five)]
    found = round_trip(tmp_path, {"all": arrays, "nested": One(Two([Three(1)])), "flag": Six.A | Six.B}, form)
    assert [type(each) for each in found["all"]] == [One, Two, Three, Four, Five]
    for each in found["all"]:
        assert_same(each.data, np.arange(3))
    assert found["nested"].data.data[0].data == 1
    assert found["flag"] is Six.A | Six.B


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: register_type(Buffer), TypeError, "Buffer"),
        (lambda: register_type(Buffer, to_state=vars), TypeError, "both"),
        (lambda: register_type(Buffer, from_state=Buffer), TypeError, "both"),
        (lambda: register_type(Buffer(1)), TypeError, "class"),  # type: ignore[arg-type]
        (lambda: register_type(name="x")(len), TypeError, "class"),  # type: ignore[arg-type]
        (lambda: register_type(Methodical, name="path"), ValueError, "path"),
        (lambda: register_type(Methodical, name="tests.Color"), ValueError, "tests.Color"),
        (lambda: register_type(dict, to_state=list, from_state=dict), (TypeError, ValueError), "dict"),
        (lambda: register_type(np.ndarray, to_state=list, from_state=np.array), (TypeError, ValueError), "ndarray"),
    ],
)
def test_register_type_refuses_what_cannot_work(call: Any, error: Any, text: str) -> None:
    """A registration that would never be used, or would take another type's name, is an error that names it."""
    with pytest.raises(error, match=text):
        call()


def test_registering_again_replaces(tmp_path: Path) -> None:
    """The last registration of a class holds."""

    class Again(Buffer):
        pass

    register_type(Again, name="tests.Again", to_state=lambda v: v.data, from_state=lambda state: Again(("old", state)))
    register_type(Again, name="tests.Again", to_state=lambda v: v.data, from_state=lambda state: Again(("new", state)))
    assert round_trip(tmp_path, Again(1)).data == ("new", 1)


def test_an_error_of_from_state_names_the_place(tmp_path: Path) -> None:
    """What from_state raises is wrapped with the path and the type; the checkpoint is not called corrupt."""

    class Broken(Buffer):
        pass

    register_type(Broken, to_state=lambda v: v.data, from_state=lambda _: 1 // 0)
    with pytest.raises(CheckpointError, match=r"a/0.*Broken.*zero") as caught:
        round_trip(tmp_path, {"a": [Broken(1)]})
    assert type(caught.value) is CheckpointError
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_nothing_is_imported_by_name(tmp_path: Path) -> None:
    """A process that does not know a type gets plain data, even where it could import the type by its name."""
    (tmp_path / "elsewhere.py").write_text("import enum\nraise SystemExit('imported')\n", encoding="utf-8")

    class Mode(enum.Enum):
        FAST = 1

    Mode.__module__, Mode.__qualname__ = "elsewhere", "Mode"
    save_to(tmp_path, 1, {"mode": Mode.FAST})
    script = (
        "import sys, pathlib; from asyncckpt.saving.loading import LoadRequest, load_checkpoint\n"
        "from asyncckpt.runtime.context import Crew\n"
        "from asyncckpt.runtime.pacing import StopFlag\n"
        "found = load_checkpoint(pathlib.Path(sys.argv[1]), 1, LoadRequest(), Crew(), StopFlag())\n"
        "assert 'elsewhere' not in sys.modules; print(found.checkpoint.state, found.unknown_types)"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{pathlib.Path(__file__).parents[2]}"}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # noqa: S603 - our own
    assert done.stdout.strip() == "{'mode': 1} {'elsewhere.Mode': 'mode'}"


def test_classes_that_were_made_in_a_function_go() -> None:
    """What the library has met is not kept for ever, nor what the methods of a class refer to."""
    made = []

    def meet() -> None:
        @dataclasses.dataclass
        class Row:
            x: int

        flatten(Row(1), pacer=Pacer())
        made.append(weakref.ref(Row))

    for _ in range(400):
        meet()
    gc.collect()
    assert sum(each() is not None for each in made) < 300


# --- nothing of an object is lost -------------------------------------------------------------------------------------


KINDS = ("hdf5", "msgpack", "npz", "json")


def everywhere(tmp_path: Path, value: Any) -> list[Any]:
    """Return what comes back of a value from both formats, with a template and without, and from every keyed kind."""
    found = [round_trip(tmp_path, [value], form)[0] for form in FORMATS]
    found += [round_trip(tmp_path, [value], form, template=[value])[0] for form in FORMATS]
    for kind in KINDS:
        file = tmp_path / f"keyed_{len(list(tmp_path.iterdir()))}.{kind}"
        with Checkpointer.from_file(file) as store:
            store["k"] = value
        with Checkpointer.from_file(file) as store:
            found.append(store["k"])
    return found


class WithSlot:
    """A base with slots that are no fields, one of them private."""

    __slots__ = ("__secret", "cache")

    def set_secret(self, value: int) -> None:
        """Set the private one."""
        self.__secret = value

    def secret(self) -> int:
        """Return it."""
        return self.__secret


@register_type(name="tests.Holder")
@dataclasses.dataclass
class Holder(WithSlot):
    """A dataclass with attributes of all kinds."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        """Set what is no field."""
        self.half = self.rate / 2

    @functools.cached_property
    def double(self) -> float:
        """Twice the rate."""
        return self.rate * 2


def test_attributes_of_dataclasses_are_kept(tmp_path: Path) -> None:
    """What is no field comes back, too: from __post_init__, a base's slots, a cached property."""
    value = Holder(1.0)
    value.half, value.cache = 7.0, np.arange(3)
    value.set_secret(5)
    assert value.double == 2.0
    for found in everywhere(tmp_path, value):
        assert (found.rate, found.half, found.secret(), found.__dict__["double"]) == (1.0, 7.0, 5, 2.0)
        assert_same(found.cache, np.arange(3))


def test_attributes_have_paths_and_plain_forms(tmp_path: Path) -> None:
    """An attribute that cannot be saved is refused with its path; part of an object has it by its name."""
    value = Holder(1.0)
    value.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedLeafError) as caught:
        flatten({"h": value}, pacer=Pacer())
    assert caught.value.path == "h/lock"
    save_to(tmp_path, 1, {"h": Holder(1.0)})
    assert load_from(tmp_path, 1, select="h/half") == {"h": {"half": 0.5}}


def test_a_restored_dataclass_computes_again(tmp_path: Path) -> None:
    """A cached property that was not saved does not keep what it was computed from."""
    save_to(tmp_path, 1, [Holder(1.0)])
    target = [Holder(3.0)]
    own = target[0]
    assert own.double == 6.0
    load_from(tmp_path, 1, template=target, in_place=True)
    assert target[0] is own
    assert (own.rate, own.half, own.double) == (1.0, 0.5, 2.0)


def test_attributes_of_ordered_dicts_are_kept(tmp_path: Path) -> None:
    """As torch's state_dict has them; an item of the same name is another thing, and items keep their paths."""
    value: Any = OrderedDict(weight=np.arange(3), _metadata="an item")
    value._metadata = OrderedDict(version=1)
    for found in everywhere(tmp_path, value):
        assert_same(found, value)
        assert found._metadata == OrderedDict(version=1)
    save_to(tmp_path, 90, {"m": value})
    assert list(load_from(tmp_path, 90, select="m/weight")["m"]) == ["weight"]
    assert_same(load_from(tmp_path, 90, template={"m": dict(value)}), {"m": dict(value)})
    target: Any = {"m": OrderedDict(weight=np.zeros(3, int), _metadata="")}
    own = target["m"]
    load_from(tmp_path, 90, template=target, in_place=True)
    assert target["m"] is own
    assert_same(own, value)
    assert own._metadata == OrderedDict(version=1)


class PairWithAttributes(PlainPair):
    """A namedtuple whose objects have a dict."""


def also(base: type, *args: Any) -> Any:
    """Make an object of a dataclass that is also something else."""
    made = dataclasses.make_dataclass("Also", [("tag", str, "t")], bases=(base,), eq=False)
    value = made.__new__(made, *args)
    value.tag = "t"
    return value


def attributed(value: Any) -> Any:
    """Give a value an attribute."""
    value.note = 1
    return value


@pytest.mark.parametrize(
    "make",
    [
        *(functools.partial(also, base) for base in (list, dict, OrderedDict, set, deque, tuple, str, int, bytes)),
        *(functools.partial(also, base) for base in (bytearray, frozenset, float, ValueError)),
        functools.partial(also, array.array, "i"),
        functools.partial(also, np.ndarray, (3,)),
        lambda: attributed(PairWithAttributes(1, 2)),
        lambda: attributed(random.Random(1)),  # noqa: S311 - a simulation's
        lambda: np.zeros(3, np.dtype((np.int32, {"lo": (np.int16, 0), "hi": (np.int16, 2)}))),
        lambda: np.zeros(3, np.dtype(("S8", [("a", "f4"), ("b", "f4")]))),
        lambda: np.zeros(3, np.dtype([("u", np.dtype((np.int32, [("r", "u2"), ("g", "u2")])))])),
        lambda: np.zeros(3, np.dtype((np.record, [("x", "i4")]))).view(np.recarray),
    ],
)
def test_what_would_be_lost_is_refused(make: Any) -> None:
    """Items of a dataclass that is a list, attributes of a namedtuple, fields of a number: refused with the path."""
    with pytest.raises(UnsupportedLeafError) as caught:
        flatten({"a": [make()]}, pacer=Pacer())
    assert caught.value.path == "a/0"


BoxT = TypeVar("BoxT")


@register_type(name="tests.Box")
@dataclasses.dataclass
class Box(Generic[BoxT]):
    """A generic dataclass."""

    item: Any


def test_what_typing_notes_is_no_attribute(tmp_path: Path) -> None:
    """An object remembers the alias it was called by, which no checkpoint can hold."""
    assert round_trip(tmp_path, Box[int](1)) == Box(1)


STRANGE_DTYPES = [
    np.dtype({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 0], "itemsize": 12}),
    np.dtype([(("title", "a"), "<i2"), ("b", "<f4", (2,))]),
    np.dtype([("a", "i1"), ("b", "<f8")], align=True),
    np.dtype((np.record, [("x", "<i4"), ("y", np.dtype((np.record, [("z", "u1")])))])),
    np.dtype([("q", np.longlong), ("l", np.int64)]),
    np.dtype(np.longlong),
    np.dtype(np.ulonglong).newbyteorder(),
]


@pytest.mark.parametrize("dtype", STRANGE_DTYPES, ids=str)
def test_dtypes_come_back_as_they_were(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    """Layout, titles, alignment, records, and which of numpy's two types of one size it was."""
    for found in everywhere(tmp_path, np.zeros(3, dtype)):
        assert is_kept(found.dtype)
        facts = [(d, d.char, d.type, d.fields, d.isalignedstruct, d.itemsize) for d in (found.dtype, dtype)]
        assert facts[0] == facts[1]


@pytest.mark.parametrize("value", [np.longlong(-3), np.ulonglong(2**64 - 1)])
def test_scalars_of_two_names_come_back_as_they_were(tmp_path: Path, value: Any) -> None:
    """np.longlong does not become np.int64; a template of the other type fits, as in files of earlier releases."""
    for found in everywhere(tmp_path, value):
        assert type(found) is type(value)
        assert found == value
    other = np.dtype(value.dtype.str).type(0)
    assert round_trip(tmp_path, [value], template=[other]) == [value]
    assert round_trip(tmp_path, [other], template=[value]) == [other]


# --- classes change between releases ----------------------------------------------------------------------------------


def release(fields: str, kind: str, **defaults: Any) -> Any:
    """Make, and register, one release of a class: a namedtuple or a dataclass."""
    names = fields.split()
    if kind == "namedtuple":
        order = [name for name in names if name in defaults]
        made: Any = namedtuple("Release", names, defaults=[defaults[name] for name in order])  # noqa: PYI024
    else:
        listed = [
            (name, Any, dataclasses.field(default=defaults[name])) if name in defaults else (name, Any)
            for name in names
        ]
        made = dataclasses.make_dataclass("Release", listed)
    made.__module__ = "tests"
    return register_type(made, name="tests.Release")


def in_every_way(root: Path, template: Any) -> Iterator[Any]:
    """Yield functions that load `tests.Release` from step 1: plainly, with a template, in place."""
    yield lambda: load_from(root, 1)["c"]
    yield lambda: load_from(root, 1, template={"c": template})["c"]
    yield lambda: load_from(root, 1, template={"c": template}, in_place=True)["c"]


both_kinds = pytest.mark.parametrize("kind", ["namedtuple", "dataclass"])


@both_formats
@both_kinds
def test_fields_are_matched_by_name(tmp_path: Path, form: str, kind: str) -> None:
    """Fields that changed places keep their values, and one that is new gets its default."""
    save_to(tmp_path, 1, {"c": release("mu nu", kind)(1, [2])}, form=form)
    changed = release("nu mu more", kind, more=9)
    for load in in_every_way(tmp_path, changed([0], 0, 5)):
        assert load() == changed([2], 1, 9)


@both_formats
@both_kinds
@pytest.mark.parametrize(
    ("fields", "names"), [("mu", "'nu'"), ("mu nu more", "'more'"), ("mu beta", "'nu'"), ("mu beta", "'beta'")]
)
def test_fields_that_came_or_went_are_an_error(tmp_path: Path, form: str, kind: str, fields: str, names: str) -> None:
    """The error names the path, the field and the ways out; nothing is half-made, nor changed."""
    save_to(tmp_path, 1, {"c": release("mu nu", kind)(1, np.ones(2))}, form=form)
    changed = release(fields, kind)
    template = changed(0, *[np.zeros(2)] * (len(fields.split()) - 1))
    before = canonical(tuple(vars(template).values()) if kind == "dataclass" else tuple(template))
    for load in in_every_way(tmp_path, template):
        with pytest.raises(StateMismatchError, match=r"c: Release.*register_type.*select=") as caught:
            load()
        assert names in str(caught.value)
        assert (caught.value.path, caught.value.field, caught.value.step) == ("c", "class", 1)
    assert canonical(tuple(vars(template).values()) if kind == "dataclass" else tuple(template)) == before
    assert "c" in load_from(tmp_path, 1, select="c/*")


async def test_a_class_that_changed_is_no_damage(tmp_path: Path) -> None:
    """Loading "latest" does not fall back to a checkpoint that fits, and what does not fit is still the latest."""
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"c": release("mu", "dataclass")(1)}))
        await (await manager.save(2, {"c": release("mu nu", "dataclass")(1, 2)}))
        release("mu", "dataclass")
        with pytest.raises(StateMismatchError):
            await manager.load("latest")
        await manager.verify(2)
        release("mu nu", "dataclass")
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.step == 2


def test_a_function_converts_old_states(tmp_path: Path) -> None:
    """A class that lost a field is registered with functions, which get the plain state."""
    save_to(tmp_path, 1, {"c": release("mu nu", "namedtuple")(1, 2)})
    changed = release("total", "namedtuple")
    register_type(changed, name="tests.Release", to_state=tuple, from_state=lambda state: changed(sum(state)))
    assert load_from(tmp_path, 1)["c"] == changed(3)


def nodes_of_an_old_namedtuple(*items: Any) -> list[Any]:
    """Return what the first release wrote: no names."""
    return [ix.ext(ix.OBJECT, "tests.Release"), ix.ext(ix.TUPLE, len(items)), *items]


def build_old(nodes: list[Any], **wanted: Any) -> Any:
    """Build a state of the first release."""
    builder = Builder(Index(pieces=[ix.pack_piece(nodes)], arrays=()), Pacer(), **wanted)
    builder.survey()
    return builder.build({})


def test_old_namedtuples_are_matched_by_position() -> None:
    """Files of the first release have no names: positions count, and defaults at the end."""
    nodes = nodes_of_an_old_namedtuple(1, 2)
    for fields in ("x y", "x y z"):
        kind = release(fields, "namedtuple", z=9)
        assert build_old(nodes) == kind(1, 2) == build_old(nodes, template=kind(*range(len(kind._fields))))
    for fields in ("x", "x y z"):
        kind = release(fields, "namedtuple")
        for wanted in ({}, {"template": kind(*range(len(kind._fields)))}):
            with pytest.raises(StateMismatchError, match="2 items, whose names were not saved"):
                build_old(nodes, **wanted)


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an Enum's value may be."""

    size: int


@register_type(name="tests.Odd")
class Odd(enum.Enum):
    """An Enum with values that are not found again, and some that are."""

    SPEC = Spec(1)
    NAN = float("nan")
    LIST = [1, 2]  # noqa: RUF012 - a value that could change
    NESTED = (1, float("nan"))
    CODE = len
    TEXT = "text"
    WHEN = dt.date(2020, 1, 1)


@register_type(name="tests.Arrays")
class Arrays(enum.Enum):
    """An Enum whose value is an array."""

    ONE = np.arange(3)


@register_type(name="tests.Bits")
class Bits(enum.Flag):
    """An Enum with members that have no name."""

    A = enum.auto()
    B = enum.auto()


@pytest.mark.parametrize("member", [*Odd, *Arrays, Bits.A | Bits.B, Bits(0), Level.HIGH], ids=repr)
def test_enums_come_back_whatever_their_values(tmp_path: Path, member: enum.Enum) -> None:
    """By value where that is found again, else by name."""
    assert all(found is member for found in everywhere(tmp_path, member))


def test_members_that_are_gone_are_named(tmp_path: Path) -> None:
    """By value or by name: the error says which member is missing, and what to do; an alias serves."""

    def make(**members: Any) -> Any:
        made = enum.Enum("Mode", members, module="tests")  # type: ignore[misc]
        return register_type(made, name="tests.Mode")

    mode = make(A=1, B=Spec(1))
    save_to(tmp_path, 1, [mode.A])
    save_to(tmp_path, 2, [mode.B])
    mode = make(C=2)
    for step, what in ((1, "of the value 1"), (2, "named B")):
        with pytest.raises(StateMismatchError, match=f"no member {what}.*register_type") as caught:
            load_from(tmp_path, step)
        assert caught.value.path == "0"
    mode = make(C=Spec(2), B=Spec(2))
    assert load_from(tmp_path, 2) == [mode.C]


def test_names_of_forms_are_taken() -> None:
    """A type cannot be called what files call the form of a state."""
    with pytest.raises(ValueError, match="another name"):
        register_type(Methodical, name="namedtuple(a, b)")
