"""Enums, namedtuples and dataclasses: nothing of them is lost, and their classes may change between releases."""

from __future__ import annotations

import array
import dataclasses
import datetime as dt
import enum
import functools
import random
import threading
from collections import OrderedDict, UserDict, deque, namedtuple
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import pytest
from helpers.support import FORMATS, Level, assert_same, canonical, load_from, round_trip, save_to
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt import (
    Checkpointer,
    CheckpointManager,
    StateMismatchError,
    UnsupportedLeafError,
    register_type,
)
from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.decode import Decoder
from asyncckpt.state.dtypes import is_kept
from asyncckpt.state.encode import flatten
from asyncckpt.state.index import Index

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """In memory: these tests are about states, not about what keeps them."""
    return quick_path


both_formats = pytest.mark.parametrize("form", FORMATS)


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


class Pair(NamedTuple):
    """An unregistered namedtuple."""

    first: Any
    second: Any


class PairWithAttributes(Pair):
    """A namedtuple whose objects have a dict."""


@register_type
class Iterated(Pair):
    """A namedtuple that iterates over something else, and computes what its first field shows."""

    __slots__ = ()
    first = property(lambda _: "computed")  # type: ignore[assignment]

    def __iter__(self) -> Any:
        """Yield one item."""
        return iter((self[1],))


@register_type
@dataclasses.dataclass(slots=True)
class Wrapper:
    """A dataclass that hands on what it lacks, and has no dict."""

    inner: Any
    later: Any = dataclasses.field(init=False)

    def __getattr__(self, name: str) -> Any:
        """Look into what is wrapped."""
        return getattr(self.inner, name)


@register_type
@dataclasses.dataclass
class Simple:
    """A dataclass that others are made from."""

    rate: Any

    def __getattr__(self, name: str) -> Any:
        """Claim to have everything."""
        if name.startswith("__"):
            raise AttributeError(name)
        return "made up"


class Scaled(Simple):
    """A subclass whose setter does not store what it is given."""

    @property
    def rate(self) -> Any:
        """The stored rate."""
        return self.__dict__["rate"]

    @rate.setter
    def rate(self, value: Any) -> None:
        self.__dict__["rate"] = value * 10


class Hidden(Simple):
    """A subclass with a property that hides a field."""

    @property
    def rate(self) -> Any:
        """A number that is not stored."""
        return 7

    def __init__(self, **stored: Any) -> None:
        vars(self).update(stored)


@register_type
@dataclasses.dataclass
class Mapped(UserDict):  # type: ignore[type-arg]
    """A dataclass whose base keeps its items in an attribute."""

    tag: str = "t"

    def __post_init__(self) -> None:
        """Let the base have its items."""
        super().__init__({1: 2})


register_type(Scaled)
register_type(Hidden)


def unset() -> Simple:
    """Make an object without its field."""
    made = Simple.__new__(Simple)
    vars(made)["other"] = 3
    return made


STRANGE_OBJECTS = {
    "iterates otherwise": (lambda: Iterated(1, [2]), lambda value: tuple.__getitem__(value, slice(None))),
    "wraps": (lambda: Wrapper(Holder(1.0)), lambda value: (value.inner.rate, hasattr(value, "later"))),
    "wraps nothing": (lambda: Wrapper.__new__(Wrapper), lambda value: [Wrapper.inner.__get__(value, None)]),
    "scales": (lambda: Scaled(1), vars),
    "computes": (Hidden, vars),
    "is a mapping": (Mapped, vars),
    "claims a field": (lambda: [unset()], lambda value: vars(value[0])),
}


@pytest.mark.parametrize("name", STRANGE_OBJECTS)
def test_objects_hold_what_they_held(tmp_path: Path, name: str) -> None:
    """What counts is what is stored: no __iter__, __getattr__ or setter of the class has a say in it."""
    make, look = STRANGE_OBJECTS[name]

    def facts(value: Any) -> object:
        try:
            return look(value)
        except (AttributeError, RecursionError) as error:
            return type(error)

    assert [facts(found) for found in everywhere(tmp_path, make())] == [facts(make())] * 8


def also(base: type, *args: Any) -> Any:
    """Make an object of a dataclass that is also something else."""
    made = dataclasses.make_dataclass("Also", [("tag", str, "t")], bases=(base,), eq=False)
    value = made.__new__(made, *args)
    value.tag = "t"
    return value


class OwnSeed(np.random.SeedSequence):
    """A seed of which only its class knows what it is."""


class OwnVoid(np.void):
    """A type of somebody's own."""


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
        lambda: tuple.__new__(Pair, (1, 2, 3)),
        lambda: tuple.__new__(Pair, (1,)),
        lambda: Hidden(rate=3),
        lambda: np.random.Generator(np.random.PCG64(OwnSeed(1))),
        lambda: np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
        lambda: np.zeros(3, [("a", np.dtype("f8", metadata={"unit": "m"}), (2,))]),
        lambda: np.zeros((), [("a", np.dtype("f8", metadata={"unit": "m"}))])[()],
        lambda: np.zeros(3, np.dtype((OwnVoid, 8))),
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


def test_what_is_lost_is_named() -> None:
    """The error says which attribute, which metadata, which items."""
    for make, text in (
        (lambda: attributed(PairWithAttributes(1, 2)), "attribute 'note'.*namedtuple.*register_type"),
        (lambda: Hidden(rate=3), "attribute 'rate'.*property"),
        (lambda: tuple.__new__(Pair, (1, 2, 3)), "2 fields.*3 items"),
        (lambda: np.zeros(3, [("a", np.dtype("f8", metadata={"unit": "m"}))]), "metadata unit"),
    ):
        with pytest.raises(UnsupportedLeafError, match=text):
            flatten([make()], pacer=Pacer())


def test_what_h5py_notes_of_bytes_is_no_metadata(tmp_path: Path) -> None:
    """Bytes that h5py has read may be saved."""
    noted = np.array([b"ab"], np.dtype("S2", metadata={"h5py_encoding": "ascii"}))
    assert_same(round_trip(tmp_path, noted), noted)


class OwnNumber(np.float64):
    """A subclass of a number of numpy's."""


register_type(OwnNumber, to_state=float, from_state=OwnNumber)


def test_subclasses_of_numpy_scalars_can_be_registered(tmp_path: Path) -> None:
    """As the error of one that is not says."""
    for found in everywhere(tmp_path, OwnNumber(2)):
        assert type(found) is OwnNumber
        assert found == 2
    with pytest.raises(UnsupportedLeafError, match=r"plain float64.*register_type"):
        flatten(type("Other", (np.float64,), {})(2), pacer=Pacer())
    with pytest.raises(ValueError, match="needs no registration"):
        register_type(np.float64, to_state=float, from_state=np.float64)


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


FIELDS = ("a", "b", "c", "d")
releases = st.permutations(FIELDS).flatmap(lambda names: st.integers(0, len(names)).map(lambda count: names[:count]))


@given(
    kinds=st.sampled_from(["namedtuple", "dataclass"]),
    before=releases,
    after=releases,
    defaults=st.integers(0, len(FIELDS)),
    way=st.sampled_from(["load", "like", "restore"]),
    values=st.permutations([1, 2.5, "text", None]) | st.lists(st.integers(), min_size=4, max_size=4),
    notes=st.sets(st.sampled_from([*FIELDS, "note"]), max_size=3),
)
def test_any_change_of_fields(  # noqa: PLR0913, PLR0917 - hypothesis passes them by name
    kinds: str, before: Any, after: Any, defaults: int, way: str, values: Any, notes: set[str]
) -> None:
    """An object becomes one of any later release by names and defaults, or the error names each field in the way."""
    saved = release(" ".join(before), kinds)(*values[: len(before)])
    held = dict(zip(before, values, strict=False))
    if kinds == "dataclass":
        for name in notes - {*before}:  # attributes, of which some become fields
            setattr(saved, name, held.setdefault(name, f"of {name}"))
    flat = flatten(saved, pacer=Pacer())
    given_defaults = dict.fromkeys(after[len(after) - defaults :] if defaults else (), "default")
    changed = release(" ".join(after), kinds, **given_defaults)
    template = {} if way == "load" else {"template": changed(*[held.get(name, 0) for name in after])}
    decoder = Decoder(flat.index(), Pacer(), in_place=way == "restore", **template)
    lost = [name for name in before if name not in after]
    gained = [name for name in after if name not in held and name not in given_defaults]
    if lost or gained:
        with pytest.raises(StateMismatchError) as caught:
            decoder.plan()
            decoder.decode({})
        assert all(repr(name) in str(caught.value) for name in lost + gained)
        return
    decoder.plan()
    found = decoder.decode({})
    expected = {name: held.get(name, "default") for name in after} | (held if kinds == "dataclass" else {})
    assert type(found) is changed
    assert (found._asdict() if kinds == "namedtuple" else vars(found)) == expected


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
    decoder = Decoder(Index(chunks=[ix.pack_chunk(nodes)], arrays=()), Pacer(), **wanted)
    decoder.plan()
    return decoder.decode({})


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


def test_members_with_other_bits_are_named(tmp_path: Path) -> None:
    """A Flag drops no bits, and does not become an int, whatever it is told to do with bits that it does not know."""
    made = register_type(enum.Flag("Bit", ["A", "B"], module="tests"), name="tests.Bit")  # type: ignore[misc]
    save_to(tmp_path, 1, [made(3)])
    for boundary in (enum.STRICT, enum.CONFORM, enum.EJECT):
        register_type(enum.Flag("Bit", ["A"], module="tests", boundary=boundary), name="tests.Bit")  # type: ignore[misc]
        with pytest.raises(StateMismatchError, match="no member of the value 3"):
            load_from(tmp_path, 1)
    kept = register_type(enum.Flag("Bit", ["A"], module="tests", boundary=enum.KEEP), name="tests.Bit")  # type: ignore[misc]
    assert load_from(tmp_path, 1) == [kept(3)]


def with_slots(*slots: str, kind: str = "Slotted") -> Any:
    """Make, and register, a dataclass with a base of these slots."""
    base = type("Base", (), {"__slots__": slots})
    made = dataclasses.make_dataclass(kind, [("size", int, 1)], bases=(base,), slots=True)
    made.__module__ = "tests"
    return register_type(made, name="tests.Slotted")


def test_nothing_is_filled_where_a_class_does_not_fit(tmp_path: Path) -> None:
    """A member that is gone, or a slot, is found before the first byte of an array is read into place."""
    mode = register_type(enum.Enum("Gone", {"A": 1, "B": "x" * 5000}, module="tests"), name="tests.Gone")  # type: ignore[misc]
    value = with_slots("note")()
    value.note = 3
    save_to(tmp_path, 1, [np.ones(2), mode.A])
    save_to(tmp_path, 2, [np.ones(2), value])
    save_to(tmp_path, 3, [np.ones(2), mode.B])
    kept = register_type(enum.Enum("Gone", {"C": 2, "B": "x" * 5000}, module="tests"), name="tests.Gone")  # type: ignore[misc]
    for step, own, text in ((1, kept.C, "of the value 1"), (2, with_slots()(), "no room for the attribute 'note'")):
        target = [np.zeros(2), own]
        for request in ({}, {"template": target}, {"template": target, "in_place": True}):
            with pytest.raises(StateMismatchError, match=text) as caught:
                load_from(tmp_path, step, **request)
            assert caught.value.path == "1"
        assert not target[0].any()
    target = [np.zeros(2), kept.C]  # a value that is only known when it has been read
    load_from(tmp_path, 3, template=target, in_place=True)
    assert target[1] is kept.B


def test_a_field_without_a_value_may_get_a_default(tmp_path: Path) -> None:
    """What was unset is unset, so that the class's own default shows."""
    save_to(tmp_path, 1, {"c": release("mu", "dataclass").__new__(release("mu", "dataclass"))})
    changed = release("mu", "dataclass", mu=5)
    for load in in_every_way(tmp_path, changed(3)):
        found = load()
        assert (vars(found), found.mu) == ({}, 5)


def test_a_dataclass_that_became_a_list_is_an_error(tmp_path: Path) -> None:
    """The error says why it cannot be made."""
    save_to(tmp_path, 1, {"c": release("mu", "dataclass")(1)})
    made = dataclasses.make_dataclass("Release", ["mu"], bases=(list,))
    made.__module__ = "tests"
    register_type(made, name="tests.Release")
    with pytest.raises(StateMismatchError, match=r"also a list.*register_type"):
        load_from(tmp_path, 1)


def test_a_template_of_another_class_does_not_fit(tmp_path: Path) -> None:
    """Classes of one name in different classes, or known by different names, are not the same; a module may change."""

    class One:
        @dataclasses.dataclass
        class Inner:
            size: int = 1

    class Two:
        @dataclasses.dataclass
        class Inner:
            size: int = 2

    first = register_type(dataclasses.make_dataclass("First", [("size", int, 1)]), name="tests.one.State")
    second = register_type(dataclasses.make_dataclass("Second", [("size", int, 2)]), name="tests.two.State")
    save_to(tmp_path, 1, [One.Inner(), first()])
    for template in ([Two.Inner(), first()], [One.Inner(), second()]):
        with pytest.raises(StateMismatchError, match="type differs"):
            load_from(tmp_path, 1, template=template)
    One.Inner.__module__ = "elsewhere"
    assert load_from(tmp_path, 1, template=[One.Inner(5), first(5)]) == [One.Inner(1), first(1)]


def test_an_update_of_a_dataclass_gets_plain_names(tmp_path: Path) -> None:
    """Fields and attributes by their names, unset ones left out."""
    seen: list[Any] = []
    made = dataclasses.make_dataclass("Updated", ["size", ("later", int, dataclasses.field(init=False))])
    register_type(made, name="tests.Updated", update=lambda _, state: seen.append(state))
    value = attributed(made(1))
    save_to(tmp_path, 1, [value])
    load_from(tmp_path, 1, template=[made(2)], in_place=True)
    assert seen == [{"size": 1, "note": 1}]
    assert {type(name) for name in seen[0]} == {str}
