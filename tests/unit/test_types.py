"""Types that are saved as simpler ones: builtin ones, registered ones, and those that nobody registered."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import gc
import pathlib
import random
import subprocess
import sys
import weakref
import zoneinfo
from collections import deque, namedtuple
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from helpers.support import (
    FORMATS,
    Color,
    Fixed,
    Level,
    Params,
    Point,
    assert_same,
    load_fully,
    round_trip,
    save_to,
)

from asyncckpt import (
    CheckpointError,
    CheckpointManager,
    CheckpointWarning,
    UnsupportedLeafError,
    register_type,
)
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.encode import flatten

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """In memory: these tests are about states, not about what keeps them."""
    return quick_path


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
        "import sys, pathlib; from asyncckpt.saving.load_job import LoadRequest, load_checkpoint\n"
        "from asyncckpt.runtime.context import JobContext; from asyncckpt.disk.ops import DiskOps\n"
        "from asyncckpt.storage.local.store import LocalStore\n"
        "found = load_checkpoint(LocalStore(pathlib.Path(sys.argv[1]), DiskOps()), 1, LoadRequest(), JobContext())\n"
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


def test_names_of_forms_are_taken() -> None:
    """A type cannot be called what files call the form of a state."""
    with pytest.raises(ValueError, match="another name"):
        register_type(Methodical, name="namedtuple(a, b)")
