"""The blocking mode: a mapping in a file, the same for every kind."""

from __future__ import annotations

import copy
import enum
import functools
import gc
import io
import os
import pickle
import tempfile
import threading
import tracemalloc
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.kinds import EXTENSIONS, KINDS, Place
from helpers.strategies import states, texts
from helpers.support import Color, Fixed, Params, Point, assert_same
from hypothesis import given, settings

import asyncckpt
from asyncckpt.keyed import lifecycle

if TYPE_CHECKING:
    from collections.abc import Iterator


class Walker:
    """An object that knows how it is saved, and is registered."""

    def __init__(self, position: np.ndarray) -> None:
        self.position = position

    def to_state(self) -> dict[str, Any]:
        """Return the state."""
        return {"position": self.position}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Walker:
        """Return the object."""
        return cls(state["position"])


asyncckpt.register_type(Walker, name="tests.Walker")

MIXED = {
    "array": np.arange(12.0).reshape(3, 4),
    "zero": np.array(0),
    "text": "woof",
    "list": ["a", 1, 2.5, None, True, [np.ones(3), ("x", 1)]],
    "scalar": np.float32(1.5),
    "nested": {"a": {"b": {"c": b"bytes"}}},
    3: "an int key",
    ("t", 1): "a tuple key",
    "types": [Color.RED, Point(1, np.zeros(2)), Params(np.ones(2)), Fixed("x")],
    "big": 2**100,
    "nan": [float("nan"), float("-inf"), -0.0],
    "long": list(range(3000)),
    "text of a MiB": "\u00e9" * (1 << 19),
    "empty": [{}, [], (), np.zeros((0, 3)), ""],
}


def test_the_example_of_the_issue(place: Place) -> None:
    """A value of another shape replaces the old one, and the keys keep their order."""
    with place.open() as chk:
        chk["why"] = [np.ones((10, 5, 5)), np.array(0), np.array(0)]
        chk["grid"] = np.arange(6.0)
    with place.open() as chk:
        value = [np.ones((11, 5, 5)), np.array(0), np.array(0)]
        chk["why"] = value
        assert_same(chk["why"], value)
        assert list(chk.keys()) == ["why", "grid"]
    assert list(place.contents()) == ["why", "grid"]


def test_values_come_back_as_they_were(place: Place) -> None:
    """Arrays, strings, numbers, containers and registered types: equal to the bit, types included."""
    with place.open() as chk:
        chk["mixed"] = MIXED
        assert_same(chk["mixed"], MIXED)
    assert_same(place.contents()["mixed"], MIXED)


@given(state=states, key=texts)
@settings(max_examples=15)
@pytest.mark.parametrize("kind", KINDS)
def test_any_value_comes_back(kind: str, tmp_path_factory: pytest.TempPathFactory, state: Any, key: str) -> None:
    """Whatever can be saved comes back the same, under any key."""
    place = Place(kind, tmp_path_factory.mktemp("any"))
    with place.open() as chk:
        chk[key] = state
    with place.open() as chk:
        assert list(chk) == [key]
        assert_same(chk[key], state)


def test_objects_with_a_state_of_their_own_come_back(place: Place) -> None:
    """Objects with to_state and from_state, registered, come back as themselves."""
    with place.open() as chk:
        chk["walker"] = [Walker(np.arange(3.0))]
    found = place.contents()["walker"][0]
    assert type(found) is Walker
    assert_same(found.position, np.arange(3.0))


def test_what_is_not_registered_comes_back_as_plain_data_with_a_warning(place: Place) -> None:
    """An unregistered namedtuple is a tuple, and the warning names it."""
    from collections import namedtuple

    pair = namedtuple("pair", "x y")  # noqa: PYI024 - unregistered, as a user's may be
    with place.open() as chk:
        chk["pair"] = [pair(1, 2)]
        with pytest.warns(asyncckpt.CheckpointWarning, match="pair"):
            assert chk["pair"] == [(1, 2)]
        chk["pair"] = "another"
        assert chk["pair"] == "another"
        chk["pair"] = [pair(1, 2)]
    if place.kind == "dict":
        place.memory["pair"] = [pair(1, 2)]
    with place.open() as chk, pytest.warns(asyncckpt.CheckpointWarning, match="pair"):
        assert chk["pair"] == [(1, 2)]


def test_what_is_loaded_is_fresh_and_writable(place: Place) -> None:
    """Neither what was put in nor what was loaded before is shared with what is loaded."""
    array = np.zeros(1000)
    with place.open() as chk:
        chk["a"] = {"x": array, "l": [1]}
        array += 1
        first = chk["a"]
        first["x"] += 5
        first["l"].append(2)
        assert_same(chk["a"], {"x": np.zeros(1000), "l": [1]})
    found = place.contents()["a"]
    assert found["x"].flags.writeable
    assert_same(found["x"], np.zeros(1000))


def test_mapping_methods(place: Place) -> None:
    """`in`, len, del, get, pop, update, get_keys, setdefault, items and clear do what they do for a dict."""
    with place.open() as chk:
        chk.update({"a": 1, "b": 2}, c=3)
        chk.update([("d", 4)])
        assert len(chk) == 4
        assert "a" in chk
        assert "z" not in chk
        assert 5 not in chk
        assert chk.get("a") == 1
        assert chk.get("z") is None
        assert chk.get("z", 7) == 7
        assert chk.pop("a") == 1
        assert chk.pop("a", 8) == 8
        with pytest.raises(asyncckpt.CheckpointKeyError):
            chk.pop("a")
        assert chk.get_keys(["d", "b"]) == [4, 2]
        assert chk.setdefault("e", 5) == 5
        del chk["b"]
        assert list(chk.items()) == [("c", 3), ("d", 4), ("e", 5)]
        chk.delete_parameter("c")
        chk["b"] = 9
        assert list(chk) == ["d", "e", "b"]
    assert place.contents() == {"d": 4, "e": 5, "b": 9}
    chk = place.open(omitted_keys=["d"])
    assert chk.popitem() == ("e", 5)
    assert chk.setdefault("f", 6) == 6
    chk.clear()
    with pytest.raises(asyncckpt.CheckpointKeyError, match="empty"):
        chk.popitem()
    assert place.contents() == {"d": 4}


def test_a_missing_key_names_the_key_the_file_and_the_keys(place: Place) -> None:
    """The error is a KeyError that says what there is."""
    with place.open() as chk:
        chk["grid"] = 1
        for access in (chk.load_parameter, chk.delete_parameter, chk.__getitem__, chk.__delitem__):
            with pytest.raises(asyncckpt.CheckpointKeyError) as caught:
                access("gird")
            assert isinstance(caught.value, KeyError)
            assert "'gird'" in str(caught.value)
            assert "'grid'" in str(caught.value)
            assert "memory" in str(caught.value) or str(place.path) in str(caught.value)
            assert caught.value.key == "gird"
            assert caught.value.known == ("grid",)


def test_paths(place: Place) -> None:
    """A tuple leads into nested dicts, which are made where they are missing."""
    with place.open() as chk:
        chk["a", "b", 3] = np.ones(3)
        assert_same(chk["a"], {"b": {3: np.ones(3)}})
        chk["a", "c"] = "text"
        assert ("a", "b", 3) in chk
        assert ("a", "b", 4) not in chk
        assert ("a", "c", "d") not in chk
        assert chk["a", "c"] == "text"
        with pytest.raises(asyncckpt.CheckpointKeyError, match="is of type str, not a dict"):
            chk["a", "c", "d"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="is of type str, not a dict"):
            chk["a", "c", "d"] = 1
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'x'"):
            chk["a", "x"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'x'"):
            del chk["a", "x"]
        del chk["a", "b", 3]
        assert chk.pop(("a", "c")) == "text"
        assert len(chk) == 1
    assert place.contents() == {"a": {"b": {}}}


def test_a_path_does_not_turn_unregistered_types_into_plain_data(place: Place) -> None:
    """Changing a part of a value that could not be written again as it was is refused."""
    from collections import namedtuple

    pair = namedtuple("pair", "x y")  # noqa: PYI024 - unregistered
    with place.open() as chk:
        chk["a"] = {"pair": pair(1, 2), "n": 1}
        with pytest.raises(asyncckpt.CheckpointError, match="pair"):
            chk["a", "n"] = 2


@pytest.mark.parametrize("key", [5, (), (5, "a"), None, b"a"])
def test_what_is_no_key(place: Place, key: Any) -> None:
    """A key is a str, or a tuple that begins with one."""
    with place.open() as chk:
        with pytest.raises(TypeError, match="a key must be a str"):
            chk[key] = 1
        assert key not in chk


def test_allowed_and_omitted_keys(place: Place) -> None:
    """The first part of a key is checked; what may not be used is not shown."""
    with place.open() as chk:
        chk.update(a=1, b=2, c=3)
    for options in ({"allowed_keys": ["a", "d"]}, {"omitted_keys": {"b", "c"}}):
        with place.open(**options) as chk:
            assert list(chk) == ["a"]
            assert len(chk) == 1
            assert "b" not in chk
            chk.check_allowed_key(("a", "x"))
            for key in ("b", ("b", "x")):
                with pytest.raises(asyncckpt.CheckpointKeyError, match=r"'b'.*'a'"):
                    chk.check_allowed_key(key)
                with pytest.raises(asyncckpt.CheckpointKeyError):
                    chk[key] = 1
                with pytest.raises(asyncckpt.CheckpointKeyError):
                    chk.load_parameter(key)
                with pytest.raises(asyncckpt.CheckpointKeyError):
                    del chk[key]
    closed = place.open(allowed_keys=["a"])
    with pytest.raises(asyncckpt.CheckpointKeyError, match="keys there are: 'a'"):
        closed.check_allowed_key("b")


def test_blocks_may_be_nested_and_accesses_stand_alone(place: Place) -> None:
    """The outermost block closes; outside any, each access opens and closes by itself."""
    chk = place.open()
    assert not chk.is_open
    assert chk.stream is None
    with chk as first:
        assert first is chk
        with chk as second:
            assert second is chk
            chk["a"] = 1
        assert chk.is_open
        assert chk.stream is not None
        chk["b"] = 2
    assert not chk.is_open
    assert "closed" in repr(chk)
    chk["c"] = 3
    assert chk["c"] == 3
    assert list(chk) == ["a", "b", "c"]
    del chk["a"]
    assert place.contents() == {"b": 2, "c": 3}


def test_opening_by_hand(file: Place) -> None:
    """What open_checkpoint_file gives, close_checkpoint_file takes."""
    chk = file.open()
    chk["a"] = 1
    stream = chk.open_checkpoint_file(file.path)
    assert list(stream.entries) == ["a"]
    chk.close_checkpoint_file(stream)
    assert chk["a"] == 1


def test_a_block_that_raises_keeps_what_was_saved(place: Place) -> None:
    """Leaving a block flushes, however it is left; its exception comes out as it is."""
    with pytest.raises(ZeroDivisionError), place.open() as chk:
        chk["a"] = 1
        raise ZeroDivisionError
    assert place.contents() == {"a": 1}


def test_reading_makes_no_file(file: Place) -> None:
    """A file that is only read is not made, and nothing is left beside it."""
    with file.open() as chk:
        assert list(chk) == []
        assert chk.get("a") is None
    assert list(file.directory.iterdir()) == []


def test_nothing_is_left_beside_the_file(file: Place) -> None:
    """Lock and temporary file are gone when the file is closed; missing directories are made."""
    path = file.directory / "new" / "directory" / f"woof{EXTENSIONS[file.kind]}"
    chk = asyncckpt.Checkpointer.from_file(path)
    with chk:
        chk["a"] = np.ones(100_000)
        chk["b"] = 1
        chk.flush()
        chk["a"] = 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_an_empty_file_is_a_new_one(file: Place) -> None:
    """What mkstemp leaves is a file without keys."""
    file.path.touch()
    with file.open() as chk:
        assert list(chk) == []
        chk["a"] = 1
    assert file.contents() == {"a": 1}


def test_permissions_and_links_stay(file: Place) -> None:
    """A rewritten file keeps its mode, and a symbolic link goes on leading to it."""
    real = file.directory / f"real{EXTENSIONS[file.kind]}"
    asyncckpt.Checkpointer.from_file(real)["a"] = 1
    real.chmod(0o640)
    file.path.symlink_to(real.name)
    chk = file.open()
    for n in range(3):
        chk["a"] = np.full(1 << 18, n)
        chk["a"] = n
    assert file.path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert asyncckpt.Checkpointer.from_file(real)["a"] == 2


def test_two_writers(file: Place) -> None:
    """The second writer is refused until the first is closed; readers are not."""
    with file.open() as first:
        first["a"] = 1
        first.flush()
        with file.open() as second:
            assert second["a"] == 1
            with pytest.raises(asyncckpt.FileLockedError, match="another Checkpointer of this process") as caught:
                second["b"] = 2
            assert caught.value.file == str(file.path)
            with pytest.raises(asyncckpt.FileLockedError):
                del second["a"]
        first["c"] = 3
    with file.open() as second:
        second["b"] = 2
    assert file.contents() == {"a": 1, "c": 3, "b": 2}


def test_what_another_writer_has_just_done_is_gone_on_with(file: Place) -> None:
    """Whoever opened the file before finds it with the first change: what is gone is gone, what is new stays."""
    with file.open() as first:
        first["a"], first["b"], first["c"] = 1, {"x": 1}, 3
    with file.open() as second:
        assert second["a"] == 1
        with file.open() as first:
            del first["a"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'b'"):
            del second["a"]
        second["d"] = 4
    with file.open() as second:
        assert second["b", "x"] == 1
        with file.open() as first:
            first["b", "y"] = 2
        second["b", "z"] = 3
    assert file.contents() == {"b": {"x": 1, "y": 2, "z": 3}, "c": 3, "d": 4}


def test_the_lock_outlives_the_renaming_of_the_file(file: Place) -> None:
    """A file that has been rewritten under its name is locked as before."""
    with file.open() as first:
        for n in range(4):
            first["a"] = np.full(1 << 19, n)
            first.flush()
            with file.open() as second, pytest.raises(asyncckpt.FileLockedError):
                second["b"] = 2


def test_a_writer_sees_what_another_wrote_before_it(file: Place) -> None:
    """A file opened for reading, and changed by another before its own first change, loses nothing."""
    with file.open() as first:
        first["a"] = 1
    with file.open() as late:
        assert list(late) == ["a"]
        with file.open() as other:
            other["b"] = 2
            other["a"] = 10
        late["c"] = 3
        assert late["a"] == 10
    assert file.contents() == {"a": 10, "b": 2, "c": 3}


@pytest.mark.parametrize("method", ["pop", "popitem", "setdefault", "clear"])
def test_what_takes_sees_what_another_wrote_before_it(file: Place, method: str) -> None:
    """What is returned is what is deleted, and what is there stays: also where the index is older than the file."""
    with file.open() as first:
        first.update(value=0, gone=0)
    with file.open() as late:
        assert list(late) == ["value", "gone"]
        with file.open() as other:
            other.update(value=1, new=5)
            del other["gone"]
        if method == "pop":
            assert late.pop("gone", 7) == 7
            assert late.pop("value") == 1
        elif method == "popitem":
            assert late.popitem() == ("value", 1)
        elif method == "setdefault":
            assert late.setdefault("new", 9) == 5
        else:
            late.clear()
    left = {"value": 1, "new": 5} if method == "setdefault" else {} if method == "clear" else {"new": 5}
    assert file.contents() == left


def test_to_pop_a_forbidden_key_takes_no_lock(file: Place) -> None:
    """The error is that of the key, also beside a writer."""
    with file.open() as writer:
        writer["a"] = 1
        writer.flush()
        with file.open(omitted_keys=["a"]) as chk, pytest.raises(asyncckpt.CheckpointKeyError, match="omitted"):
            chk.pop("a")


def test_who_cannot_read_the_file_again_does_not_write_it(file: Place) -> None:
    """A store that is out of date, and cannot be brought up to date, is no writer: nothing of another's is lost."""
    with file.open() as chk:
        chk["old"] = 1
    with file.open() as late:
        with file.open() as quick:
            quick["other"] = 2
        good = file.path.read_bytes()
        file.path.write_bytes(b"\0 nothing of the kind")
        for _ in range(2):
            with pytest.raises(asyncckpt.CheckpointError):
                late["new"] = 3
        assert list(late) == ["old"]
        file.path.write_bytes(good)
        late["new"] = 3
    assert file.contents() == {"old": 1, "other": 2, "new": 3}


def test_a_reader_keeps_its_file_while_another_rewrites_it(file: Place) -> None:
    """What was opened is read to the end, whatever becomes of the name."""
    with file.open() as first:
        first["a"] = np.arange(100_000.0)
    with file.open() as reader, file.open() as writer:
        for n in range(4):
            writer["a"] = np.full(100_000, n)
            writer.flush()
        assert_same(reader["a"], np.arange(100_000.0))


@pytest.mark.parametrize("by", ["removed", "replaced"])
def test_a_file_that_loses_its_name_is_written_again(file: Place, by: str) -> None:
    """What a flush makes durable is under the name, whatever other programs did to it."""
    large = np.arange(1 << 16)
    with file.open() as chk:
        chk["a"], chk["large"] = 1, large
        chk.flush()
        chk["b"] = large
        if by == "removed":
            file.path.unlink()
        else:
            file.path.with_name("other").write_bytes(b"")
            file.path.with_name("other").replace(file.path)
        chk["c"] = 3
        chk.flush()
        found = file.contents()
        chk["d"] = 4
    assert list(found) == ["a", "large", "b", "c"]
    assert_same(found["large"], large)
    assert list(file.contents()) == ["a", "large", "b", "c", "d"]


def test_flush_makes_durable(file: Place) -> None:
    """After a flush another process finds it all, while the file is still open; before, nothing of it."""
    with file.open() as chk:
        chk["a"] = 1
        chk["b"] = np.ones(1 << 18)
        assert file.contents() == {}
        chk.flush()
        assert list(file.contents()) == ["a", "b"]
        chk["a"] = 2
        del chk["b"]
        chk["c"] = 3
        assert file.contents()["a"] == 1
        chk.flush()
        assert file.contents() == {"a": 2, "c": 3}
        before = file.path.stat()
        chk.flush()
        assert file.path.stat() == before  # nothing has changed


def test_cached_eval(place: Place) -> None:
    """Loads, or computes and stores; a condition that does not hold computes anew."""
    calls = []

    def generator(x: int, *, y: int = 0) -> dict[str, int]:
        calls.append((x, y))
        return {"sum": x + y}

    with place.open() as chk:
        for _ in range(2):
            assert chk.cached_eval("s", generator, args=(1,), kwargs={"y": 2}) == {"sum": 3}
        assert calls == [(1, 2)]
        assert chk.cached_eval("s", generator, condition=lambda v: v["sum"] > 3, args=(4,)) == {"sum": 4}
        assert chk.cached_eval("s", generator, condition=lambda v: v["sum"] > 3, args=(9,)) == {"sum": 4}
        assert chk.cached_eval(("p", "q"), generator, args=(5,)) == {"sum": 5}
        assert chk.cached_eval("none", lambda: None) is None
        assert chk.cached_eval("none", generator, args=(1,)) is None
    chk = place.open()
    assert chk.cached_eval("s", generator, args=(7,)) == {"sum": 4}
    assert len(calls) == 3

    async def coroutine() -> int:
        return 1

    with pytest.raises(asyncckpt.CheckpointerUsageError, match="async with"):
        chk.cached_eval("c", coroutine)
    with pytest.raises(asyncckpt.CheckpointKeyError):
        place.open(omitted_keys=["s"]).cached_eval("s", generator)
    assert len(calls) == 3


def test_cached_evals_that_wait_for_each_other(place: Place) -> None:
    """One for itself, or threads for each other."""
    with place.open() as chk:
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="'k' waits for 'k'"):
            chk.cached_eval("k", lambda: chk.cached_eval("k", int))
        together = threading.Barrier(2)
        first = {"a", "b"}

        def generator(other: str) -> Any:
            if other in first:
                first.discard(other)
                together.wait(20)
            return chk.cached_eval(other, generator, args=("ab".replace(other, ""),))

        with ThreadPoolExecutor(2) as threads:
            jobs = [
                threads.submit(chk.cached_eval, *pair)
                for pair in (("a", lambda: generator("b")), ("b", lambda: generator("a")))
            ]
            assert {type(job.exception(20)) for job in jobs} == {asyncckpt.CheckpointerUsageError}
        assert list(chk) == []


def test_cached_eval_refuses_what_must_be_awaited(place: Place) -> None:
    """Also where only the result tells; nothing is left unawaited, which would be a warning, and so an error."""

    async def generator() -> int:
        return 5

    chk = place.open()
    for asynchronous in (generator, functools.partial(lambda made: made(), generator), functools.partial(generator)):
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="async with"):
            chk.cached_eval("a", asynchronous)
    gc.collect()
    assert "a" not in chk


def test_cached_eval_from_several_threads_computes_once(place: Place) -> None:
    """Threads that ask for one key wait for the first of them."""
    calls = []
    chk = place.open()

    def ask() -> None:
        chk.cached_eval("a", lambda: calls.append(1) or 5)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert chk["a"] == 5


def test_threads_share_what_one_of_them_computes_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NullCheckpointer cannot load what was computed, so a thread that waits gets the object itself."""
    is_waiting = threading.Event()

    class Watched(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            is_waiting.set()
            return super().result(timeout)

    monkeypatch.setattr(lifecycle, "Future", Watched)
    chk = asyncckpt.NullCheckpointer()
    with ThreadPoolExecutor(1) as pool:
        others = []

        def compute() -> list[int]:
            others.append(pool.submit(chk.cached_eval, "a", list))
            assert is_waiting.wait(60)
            return [5]

        made = chk.cached_eval("a", compute)
        assert made == [5]
        assert others[0].result() is made


def test_a_serializer_stands_between(place: Place) -> None:
    """What is saved is what its to_state returns, and what is loaded what its from_state makes of that."""

    class Complexes:
        def to_state(self, value: complex) -> list[float]:
            return [value.real, value.imag]

        def from_state(self, state: list[float]) -> complex:
            return complex(*state)

    with place.open(serializer=Complexes()) as chk:
        chk["z"] = 1 + 2j
        assert chk["z"] == 1 + 2j
    assert place.contents()["z"] == [1.0, 2.0]


class Failing:
    """A serializer that cannot make its values again."""

    def to_state(self, value: object) -> object:
        """Save it as it is."""
        return value

    def from_state(self, state: object) -> object:
        """Fail as code that looks something up may fail."""
        raise KeyError(state)


def test_a_key_error_of_the_callers_is_not_a_missing_key(place: Place) -> None:
    """No default stands in for a value that is there and cannot be made; least of all is it written over."""
    with place.open() as chk:
        chk["a"] = 1
    with place.open(serializer=Failing()) as chk:
        for access in (chk.get, chk.setdefault, lambda key, default: chk.cached_eval(key, lambda: default)):
            with pytest.raises(KeyError) as caught:
                access("a", 2)
            assert not isinstance(caught.value, asyncckpt.CheckpointKeyError)
    assert place.contents() == {"a": 1}


class Named(str, enum.Enum):  # noqa: UP042 - a StrEnum shows its value as a str anyway
    """Keys that are str."""

    A = "a"


def test_a_str_of_a_subclass_is_the_key_that_it_equals(place: Place) -> None:
    """An Enum of str is its value."""
    with place.open(allowed_keys=["a"]) as chk:
        chk[Named.A] = {Named.A.value: 1}
        assert chk["a"] == chk[Named.A]
        assert chk[Named.A, "a"] == 1
        assert "a" in chk
        assert Named.A in chk
    assert list(place.contents()) == ["a"]


def test_what_cannot_be_saved_is_refused_and_changes_nothing(place: Place) -> None:
    """The error names the path of the leaf; the old value stays."""
    with place.open() as chk:
        chk["a"] = 1
        for value in ({"f": print}, [object()], np.array([None])):
            with pytest.raises(asyncckpt.UnsupportedLeafError, match="a"):
                chk["a"] = value
        assert chk["a"] == 1
    assert place.contents() == {"a": 1}


def test_a_dict_keeps_one_version_of_a_value_that_waits() -> None:
    """What was replaced or deleted before the flush is gone at once."""
    by_us = tracemalloc.Filter(inclusive=True, filename_pattern=f"{Path(asyncckpt.__file__).parent}/*", all_frames=True)
    with asyncckpt.DictCheckpointer() as chk:
        tracemalloc.start(50)
        try:
            for number in range(20):
                chk["replaced"] = np.full(1 << 20, number, np.uint8)
                chk["deleted"] = np.full(1 << 20, number, np.uint8)
                del chk["deleted"]
            taken = tracemalloc.take_snapshot().filter_traces([by_us])
            assert 1 << 20 <= sum(each.size for each in taken.traces) < 2 << 20
        finally:
            tracemalloc.stop()


def test_a_dict_keeps_the_order_of_its_keys() -> None:
    """A replaced key keeps its place, and one that was deleted and set again comes last."""
    memory = {"a": 1, "b": 2, "c": 3}
    with asyncckpt.DictCheckpointer(memory) as chk:
        chk["new"] = 1
        chk["b"] = 4
        del chk["a"]
        chk["a"] = 5
        del chk["new"]
        assert list(chk) == ["b", "c", "a"]
    assert list(memory.items()) == [("b", 4), ("c", 3), ("a", 5)]


def test_null_keeps_nothing() -> None:
    """A program that can do without checkpoints runs unchanged."""
    calls = []
    with asyncckpt.NullCheckpointer() as chk:
        chk["a"] = np.ones(10)
        chk["a", "b"] = 1
        chk.update(b=2)
        chk.flush()
        assert "a" not in chk
        assert list(chk) == []
        assert len(chk) == 0
        assert chk.get("a", 7) == 7
        assert chk.pop("a", 7) == 7
        with pytest.raises(asyncckpt.CheckpointKeyError):
            chk["a"]
        for _ in range(2):
            assert chk.cached_eval("a", lambda: calls.append(1) or 5) == 5
    assert len(calls) == 2
    with pytest.raises(asyncckpt.CheckpointKeyError):
        asyncckpt.NullCheckpointer(omitted_keys=["a"])["a"] = 1


# --- making one -------------------------------------------------------------------------------------------------------


def test_copies_are_closed_and_of_the_same_file(file: Place) -> None:
    """A Checkpointer can be sent to another process; one that is open says why it cannot."""
    chk = file.open(omitted_keys=["b"])
    chk["a"] = 1
    for made in (pickle.loads(pickle.dumps(chk)), copy.copy(chk), copy.deepcopy(chk)):  # noqa: S301 - our own bytes
        assert type(made) is type(chk)
        assert dict(made) == {"a": 1}
        assert made.omitted_keys == ("b",)
        with made:
            assert not chk.is_open
    with chk, pytest.raises(asyncckpt.CheckpointerUsageError, match="close it first"):
        pickle.dumps(chk)


def test_unknown_options_are_refused(file: Place) -> None:
    """By name."""
    with pytest.raises(asyncckpt.ConfigError, match="no option 'bogus'"):
        file.open(bogus=1)


def test_extensions() -> None:
    """Each extension has its class, and each class its own."""
    kinds = asyncckpt.Checkpointer.extension_map()
    assert kinds.keys() == {".hdf5", ".h5", ".msgpack", ".json", ".npz"}
    for extension, kind in kinds.items():
        made = asyncckpt.Checkpointer.from_file(f"x{extension}")
        assert type(made) is kind
        assert type(asyncckpt.Checkpointer.from_file(f"X{extension.upper()}")) is kind
        assert kinds[kind.default_extension] is kind
    with pytest.raises(asyncckpt.ConfigError) as caught:
        asyncckpt.Checkpointer.from_file("woof.txt")
    assert all(extension in str(caught.value) for extension in (".txt", *kinds))


def test_an_extension_can_be_registered() -> None:
    """What is added to the map is what from_file makes."""

    class Mine(asyncckpt.JSONCheckpointer):
        pass

    kinds = asyncckpt.Checkpointer.extension_map()
    for extension in (".mine", ".Mine", ".mine.h5"):
        kinds[extension] = Mine
        try:
            assert type(asyncckpt.Checkpointer.from_file(f"x.y{extension}")) is Mine
        finally:
            del kinds[extension]
    assert type(asyncckpt.Checkpointer.from_file("x.mine.h5")) is asyncckpt.HDF5Checkpointer


def test_checkpointer_itself_is_abstract() -> None:
    """Only its kinds can be made."""
    with pytest.raises(TypeError, match="abstract"):
        asyncckpt.Checkpointer("x.json")  # type: ignore[abstract]


def test_build_canonical(tmp_path: Path) -> None:
    """Each way to say it leads to its kind."""
    build = asyncckpt.Checkpointer.build_canonical
    path = tmp_path / "x.json"
    assert type(build(None)) is asyncckpt.NullCheckpointer
    for spec in (path, str(path), {"file": path}):
        assert type(build(spec)) is asyncckpt.JSONCheckpointer
        assert build(spec).checkpoint_file == path
    chk = build(path)
    assert build(chk) is chk
    memory = {"a": np.ones(2)}
    made = build(memory)
    assert type(made) is asyncckpt.DictCheckpointer
    made["b"] = 2
    assert memory["b"] == 2
    assert made["a"] is not memory["a"]
    assert build({"file": path, "keys": ["a"], "opts": {"omitted_keys": ["b"]}}).allowed_keys == ("a",)
    assert build({"file": path, "keys": {"omitted_keys": ["b"]}}).omitted_keys == ("b",)
    assert build({"file": path, "keys": {"allowed_keys": ["b"]}}).allowed_keys == ("b",)
    assert build({"file": path, "omitted_keys": ["c"]}).omitted_keys == ("c",)
    assert build({"file": path, "allowed_keys": ["c"]}).allowed_keys == ("c",)
    with pytest.raises(asyncckpt.ConfigError, match="'kyes'"):
        build({"file": path, "kyes": ["a"]})
    with pytest.raises(asyncckpt.ConfigError, match="5"):
        build(5)
    with pytest.raises(asyncckpt.ConfigError, match="str"):
        build({1: 2})
    with pytest.raises(asyncckpt.ConfigError, match="'abc'"):
        build({"file": path, "keys": "abc"})


# --- the caller's own files -------------------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "memory"])
def stream(request: pytest.FixtureRequest, file: Place) -> Iterator[Any]:
    """An open binary file, and one in memory."""
    if request.param == "memory":
        yield io.BytesIO()
    else:
        with file.path.open("w+b") as opened:
            yield opened


def test_files_that_came_open_are_left_open(file: Place, stream: Any) -> None:
    """They are read and written, and neither closed nor replaced."""
    kind = type(file.open())
    chk = kind(stream)
    with chk:
        chk["a"] = np.ones(1000)
        chk["b"] = 1
    chk["b"] = "other"
    assert not stream.closed
    stream.seek(0)
    file.name = "copy"
    file.path.write_bytes(stream.read())
    assert_same(file.contents(), {"a": np.ones(1000), "b": "other"})
    with kind(stream) as again:
        del again["a"]
    assert_same(dict(kind(stream)), {"b": "other"})


def test_files_that_cannot_be_used_are_refused(file: Place) -> None:
    """The error says which mode it takes."""
    chk = file.open()
    chk["a"] = 1
    kind = type(chk)
    for mode in ("r", "r+", "wb", "ab", "a+b"):
        target = file.path if mode.startswith("r") else file.directory / "other"
        with target.open(mode) as opened, pytest.raises(asyncckpt.ConfigError, match="r\\+b"):
            kind(opened)
    with pytest.raises(asyncckpt.ConfigError, match="r\\+b"):
        kind(io.StringIO())
    with (
        tempfile.NamedTemporaryFile("w+", suffix=file.path.suffix) as text,
        pytest.raises(asyncckpt.ConfigError, match="as text"),
    ):
        kind(text)
    with pytest.raises(asyncckpt.ConfigError, match="closed"):
        kind(opened)
    with file.path.open("rb") as opened:
        assert asyncckpt.Checkpointer.from_file(opened)["a"] == 1
        with pytest.raises(asyncckpt.ConfigError, match="r\\+b"):
            kind(opened)["a"] = 2
    with pytest.raises(asyncckpt.ConfigError, match="no name"):
        asyncckpt.Checkpointer.from_file(io.BytesIO())


def test_a_change_that_is_refused_leaves_a_stream_alone(file: Place) -> None:
    """Nothing is written to it, be it empty or not."""

    class Fixed(io.BytesIO):
        def write(self, _: Any) -> int:
            raise AssertionError

    kind = type(file.open())
    with file.open() as chk:
        chk["a"] = 1
    for before in (b"", file.path.read_bytes()):
        stream = Fixed(before)
        with kind(stream) as chk, pytest.raises(asyncckpt.UnsupportedLeafError):
            chk["b"] = print
        assert stream.getvalue() == before


def test_the_error_of_a_damaged_stream_names_the_stream(file: Place) -> None:
    """Not the temporary file that it was copied to."""
    file.path.write_bytes(b"{neither of them" * 100)
    with file.path.open("r+b") as stream, pytest.raises(asyncckpt.CheckpointError) as caught:
        dict(type(file.open())(stream))
    assert str(file.path) in str(caught.value)
    assert "/stream" not in str(caught.value)


def test_a_stream_that_takes_nothing_is_an_error(file: Place) -> None:
    """A write that says it wrote nothing is a failed flush, not one that goes on for ever."""

    class Stuck(io.BytesIO):
        def write(self, _: Any) -> int:
            return 0

    chk = type(file.open())(Stuck())
    chk.__enter__()
    chk["a"] = 1
    with pytest.raises(OSError, match="took none of"):
        chk.flush()
    with pytest.raises(OSError, match="took none of"):
        chk.__exit__(None, None, None)


def test_a_forked_child_is_refused(file: Place) -> None:
    """An open file is its process's own."""
    with file.open() as chk:
        chk["a"] = 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            try:
                chk["b"] = 2
            except asyncckpt.CheckpointerUsageError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with file.open() as second, pytest.raises(asyncckpt.FileLockedError):
            second["b"] = 1
