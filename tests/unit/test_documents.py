"""training_info.json and config.yaml: what is written reads back equal, and what cannot is refused by its path."""

from __future__ import annotations

import copy
import dataclasses
import enum
import json
import math
import sys
from collections import OrderedDict, deque, namedtuple
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from asyncckpt.documents import (
    MAX_DEPTH,
    encode_training_info,
    normalize_training_info,
    parse_training_info,
    run_config_bytes,
)
from asyncckpt.errors import UnsupportedLeafError

if TYPE_CHECKING:
    from collections.abc import Mapping

ODD_CHARACTERS = (
    "\0\t\n\r\x1b\x7f\x80\x85\x9f\xa0\u2028\u2029\ud800\udfff\ufeff\ufffd\ufffe\uffff\U0001f600\"'\\:#,[]{}?&*!|>%@` é"
)
TEXT = st.text(st.sampled_from(ODD_CHARACTERS) | st.characters(codec="utf-8")).filter(
    lambda text: "\ud800\udfff" not in text
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON_VALUES = st.recursive(
    LEAVES, lambda values: st.lists(values, max_size=4) | st.dictionaries(TEXT, values, max_size=4), max_leaves=8
)
YAML_KEYS = TEXT | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
YAML_VALUES = st.recursive(
    LEAVES, lambda values: st.lists(values, max_size=4) | st.dictionaries(YAML_KEYS, values, max_size=4), max_leaves=8
)


def training_info_bytes(info: Mapping[str, object]) -> bytes:
    """Encode a training_info as a save does."""
    return encode_training_info(normalize_training_info(info))


def same(left: object, right: object) -> bool:
    """Say whether two plain values are equal, of the same types, with NaN equal to itself and -0.0 unlike 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return len(left) == len(right) and all(
            same(key, other) and same(left[key], right[other]) for key, other in zip(left, right, strict=True)
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right)


class Color(enum.Enum):
    """An Enum whose values are plain and not so plain."""

    RED = "red"
    PAIR = (1, 2.5)
    BAD = object()


class Level(enum.IntEnum):
    """An Enum that is a number, too."""

    LOW = 1


class Name(str):
    """A str of a type of its own."""

    __slots__ = ()


class Rate(float):
    """A float of a type of its own."""


@dataclasses.dataclass
class Inner:
    """A configuration in a configuration."""

    rate: float = 1e-5
    path: Path = Path("runs/a")


@dataclasses.dataclass
class Outer:
    """A configuration as people write it."""

    inner: Inner = dataclasses.field(default_factory=Inner)
    color: Color = Color.RED
    sizes: tuple[int, ...] = (64, 64)


class Model:
    """Something with model_dump(), as pydantic's models have it."""

    def __init__(self, dumped: Any) -> None:
        """Keep what to dump."""
        self.dumped = dumped

    def model_dump(self) -> Any:
        """Give it."""
        return self.dumped


class FakeTensor:
    """A 0-d (or other) tensor of a library that is not numpy."""

    def __init__(self, value: object, shape: tuple[int, ...] = ()) -> None:
        """Keep the value and the shape."""
        self.value = value
        self.shape = shape

    def item(self) -> object:
        """Give the value."""
        return self.value


NUMBERS: list[tuple[object, object]] = [
    (np.float64(0.1), 0.1),
    (np.float32(0.5), 0.5),
    (np.float16(0.5), 0.5),
    (np.longdouble(0.5), 0.5),
    (np.int8(-3), -3),
    (np.uint64(2**64 - 1), 2**64 - 1),
    (np.True_, True),
    (np.str_("text"), "text"),
    (np.array(7), 7),
    (np.array(0.25, dtype=">f4"), 0.25),
    (np.array(True), True),  # noqa: FBT003
    (ml_dtypes.bfloat16(0.5), 0.5),
    (np.array(0.5, dtype=ml_dtypes.bfloat16), 0.5),
    (np.array(1, dtype=ml_dtypes.int4), 1),
    (FakeTensor(2.5), 2.5),
    (FakeTensor(3), 3),
    (Level.LOW, 1),
    (Name("text"), "text"),
    (Rate(0.5), 0.5),
]

REFUSED: list[object] = [
    np.arange(3),
    np.zeros((1, 1)),
    np.array([5]),
    np.datetime64("2024-01-01T00:00:00", "ns"),
    np.timedelta64(5, "s"),
    np.array("2024-01-01", dtype="M8[ns]"),
    np.complex128(1j),
    np.bytes_(b"x"),
    np.void(b"x"),
    np.array((1, 2.0), dtype=[("a", int), ("b", float)]),
    FakeTensor([1.0], (1,)),
    FakeTensor(1j),
    1j,
    b"bytes",
    {1, 2},
    deque([1]),
    range(3),
    object(),
    int,
    print,
    Outer,
    Model,
    10 ** (sys.get_int_max_str_digits() + 1),
    "\ud83d\ude00",
]


def nested(depth: int, *, as_list: bool = False) -> dict[str, Any]:
    """Make a mapping in which `depth` containers lie in each other."""
    value: Any = 1
    for _ in range(depth - 1):
        value = [value] if as_list else {"a": value}
    return {"a": value}


@given(st.dictionaries(TEXT, JSON_VALUES, max_size=4))
@example({"a": -0.0, "b": math.nan, "c": -math.inf, "\udc80": "\udc80\\ud800"})
def test_training_info_round_trip(info: dict[str, Any]) -> None:
    """What is written as training_info is UTF-8 JSON that reads back equal."""
    data = training_info_bytes(info)
    assert data.endswith(b"}\n") or data == b"{}\n"
    assert same(parse_training_info(data), info)
    assert same(json.loads(data.decode("utf-8")), info)
    assert same(normalize_training_info(info), info)


@pytest.mark.parametrize(("value", "expected"), NUMBERS)
def test_numbers_become_plain(value: object, expected: object) -> None:
    """Numbers with a shape of () from any library become plain Python ones, in both documents."""
    for plain in (
        normalize_training_info({"a": [value]})["a"][0],
        parse_training_info(training_info_bytes({"a": [value]}))["a"][0],
        yaml.safe_load(run_config_bytes({"a": [value]}))["a"][0],
    ):
        assert plain == expected
        assert type(plain) is type(expected)


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("write", [training_info_bytes, run_config_bytes, normalize_training_info])
def test_other_leaves_are_refused(value: object, write: Any) -> None:
    """What has no plain form is refused with its path, never changed silently."""
    root = "run_config" if write is run_config_bytes else "training_info"
    with pytest.raises(UnsupportedLeafError) as caught:
        write({"x": {"y": [0, value]}})
    assert caught.value.path == f"{root}/x/y/1"
    assert str(caught.value).startswith(f"{root}/x/y/1: ")


def test_refusal_says_what_was_found() -> None:
    """The error names the type and shape of what it found."""
    with pytest.raises(UnsupportedLeafError, match=r"numpy\.ndarray and shape \(3, 2\)"):
        training_info_bytes({"grads": np.zeros((3, 2))})


@pytest.mark.parametrize("key", [1, None, True, 1.5, (1, 2)])
def test_training_info_keys_are_str(key: object) -> None:
    """JSON would turn other keys into str, so they are refused with the advice to use a str."""
    with pytest.raises(UnsupportedLeafError, match=r"^training_info/x: .*use a str") as caught:
        training_info_bytes({"x": {key: 1}})
    assert caught.value.path == "training_info/x"


def test_normalized_copy_is_independent() -> None:
    """Later changes of what was passed are not seen, and what was passed is not changed."""
    info = {"a": [1, {"b": 2}], "c": MappingProxyType({"d": (3, 4)}), "e": OrderedDict(f=1)}
    plain = normalize_training_info(info)
    expected = {"a": [1, {"b": 2}], "c": {"d": [3, 4]}, "e": {"f": 1}}
    assert same(plain, expected)
    info["a"][1]["b"] = 99  # type: ignore[index]
    assert same(plain, expected)
    assert info["c"]["d"] == (3, 4)  # type: ignore[call-overload, index]


def test_namedtuple_becomes_list() -> None:
    """A namedtuple is a tuple, and a tuple reads back as a list."""
    point = namedtuple("point", "x y")(1, 2)  # noqa: PYI024 - the plain kind is what is tested
    assert normalize_training_info({"p": point}) == {"p": [1, 2]}


@pytest.mark.parametrize("value", [None, 3, [1], "text", np.float32(1)])
@pytest.mark.parametrize(("write", "root"), [(training_info_bytes, "training_info"), (run_config_bytes, "run_config")])
def test_a_document_is_a_mapping(value: object, write: Any, root: str) -> None:
    """Anything but a mapping at the top is refused."""
    with pytest.raises(UnsupportedLeafError, match=f"^{root}: expected a mapping, found"):
        write(value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b"3", b"null", b'{"a": "\xff"}', '{"a": 1}'.encode("utf-16"), b'{"a": 1} x', b"[" * 10**5],
    ids=repr,
)
def test_damaged_training_info(data: bytes) -> None:
    """Bytes that hold no JSON object in UTF-8 give a ValueError, whatever they are."""
    with pytest.raises(ValueError, match=r"JSON"):
        parse_training_info(data)


@given(st.dictionaries(YAML_KEYS, YAML_VALUES, max_size=4))
@example({"<<": {"a": 1}, "=": "=", "yes": "no", "~": "", "1": "1e-05", "2024-01-01": "0x10", "1:30": "1_000"})
@example({1: "int", "1": "str", 1.5: "float", None: "null", True and "true": "str", False: "bool", -0.0 - 1: [[], {}]})
@example({"k" * 5000: 1, "k" * 1030: 2, "é" * 1020: {"k" * 999: [1]}, 10**1500: 2})
@example({"a": [1e-05, 1e16, 1e22, 1.5e-7, 5e-324, -0.0, math.inf, -math.inf, math.nan, 1e300, 123456789.0]})
def test_run_config_round_trip(config: dict[Any, Any]) -> None:
    """What is written as run_config reads back equal, and of the same types, with PyYAML."""
    assert same(yaml.safe_load(run_config_bytes(config)), config)


@pytest.mark.parametrize(
    "character", [*ODD_CHARACTERS, *map(chr, range(0x20)), *map(chr, range(0x7F, 0xA2))], ids=ascii
)
def test_every_odd_character(character: str) -> None:
    """Characters that YAML treats in its own way come back in values and keys, alone and within text."""
    config = {character: character, f"a{character}b": f" {character} \n{character}", "list": [f"{character}:"]}
    assert same(yaml.safe_load(run_config_bytes(config)), config)
    assert same(parse_training_info(training_info_bytes(config)), config)


def test_byte_order_mark_is_escaped() -> None:
    """No reader can take a character of the text for a byte order mark."""
    assert b'"\\ufeff"' in run_config_bytes({"a": "\ufeff"})


def test_run_config_is_readable() -> None:
    """The text is flow-style YAML, an entry a line, with floats that YAML 1.1 reads as floats and unescaped UTF-8."""
    config = {"lr": 1e-05, "bound": math.inf, "net": {"sizes": [64, 64], "name": "größe"}, "seed": None, "x": {}}
    assert run_config_bytes(config).decode() == (
        "{\n"
        '  "lr": 1.0e-05,\n'
        '  "bound": .inf,\n'
        '  "net": {\n'
        '    "sizes": [64, 64],\n'
        '    "name": "größe"\n'
        "  },\n"
        '  "seed": null,\n'
        '  "x": {}\n'
        "}\n"
    )


def test_run_config_dataclasses_and_models() -> None:
    """Dataclasses, objects with model_dump(), Enums and paths are written as plain values, wherever they stand."""
    plain = {"inner": {"rate": 1e-05, "path": "runs/a"}, "color": "red", "sizes": [64, 64]}
    assert yaml.safe_load(run_config_bytes(Outer())) == plain
    assert yaml.safe_load(run_config_bytes(Model({"outer": Outer()}))) == {"outer": plain}
    config = {
        "models": [Model({"a": Color.PAIR})],
        Color.RED: Level.LOW,
        PurePosixPath("p"): PurePosixPath("q/r"),
        np.int64(3): np.float32(0.5),
    }
    assert same(yaml.safe_load(run_config_bytes(config)), {"models": [{"a": [1, 2.5]}], "red": 1, "p": "q/r", 3: 0.5})


def test_run_config_refusals() -> None:
    """Keys that would merge, keys that are containers, odd Enums and odd models are refused by path."""
    with pytest.raises(UnsupportedLeafError, match=r"^run_config/a: two keys would both be written as 'red'"):
        run_config_bytes({"a": {"red": 1, Color.RED: 2}})
    with pytest.raises(UnsupportedLeafError, match=r"^run_config: cannot have the key .*tuple"):
        run_config_bytes({(1, 2): 3})
    with pytest.raises(UnsupportedLeafError, match=r"^run_config: cannot have the key .*bytes"):
        run_config_bytes({b"a": 3})
    with pytest.raises(UnsupportedLeafError, match=r"^run_config/a: cannot write .*object"):
        run_config_bytes({"a": Color.BAD})
    with pytest.raises(UnsupportedLeafError, match=r"^run_config/inner/rate: "):
        run_config_bytes(Outer(inner=Inner(rate=1j)))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedLeafError, match=r"^run_config: expected a mapping"):
        run_config_bytes(Model([1, 2]))


def test_training_info_takes_no_configuration_objects() -> None:
    """Dataclasses, models, paths and plain Enums are for run_config; a training_info refuses them."""
    for value in (Outer(), Model({}), Path("a"), Color.RED):
        with pytest.raises(UnsupportedLeafError, match=r"^training_info/a: cannot write"):
            training_info_bytes({"a": value})


@pytest.mark.parametrize("as_list", [False, True])
def test_depth(as_list: bool) -> None:
    """The deepest document that is accepted reads back; one deeper is refused, far deeper too."""
    deepest = nested(MAX_DEPTH, as_list=as_list)
    assert same(yaml.safe_load(run_config_bytes(deepest)), deepest)
    assert same(parse_training_info(training_info_bytes(deepest)), deepest)
    for depth in (MAX_DEPTH + 1, 50 * MAX_DEPTH):
        for write in (training_info_bytes, run_config_bytes):
            with pytest.raises(UnsupportedLeafError, match="nested more than 100 deep"):
                write(nested(depth, as_list=as_list))


def test_cycles() -> None:
    """A container within itself is refused at the place where it comes up again; the same one twice is no cycle."""
    cycle: dict[str, Any] = {"a": {"b": []}}
    cycle["a"]["b"] += [cycle, cycle]
    for write, root in ((training_info_bytes, "training_info"), (run_config_bytes, "run_config")):
        with pytest.raises(UnsupportedLeafError, match=f"^{root}/a/b/0: contains itself"):
            write(cycle)
    shared = [1]
    twice = {"a": shared, "b": [shared, shared]}
    assert yaml.safe_load(run_config_bytes(twice)) == parse_training_info(training_info_bytes(twice)) == twice


def test_writing_does_not_change_the_input() -> None:
    """What the caller passed stays as it was."""
    config = {"a": [1, {"b": (2, 3)}], "c": np.float32(1)}
    before = copy.deepcopy(config)
    run_config_bytes(config)
    training_info_bytes(config)
    assert config == before
