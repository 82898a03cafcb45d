"""HDF5 keyed files: what comes back, how large they become, what writing costs, and what other programs see."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import msgpack
import numpy as np
import pytest
from helpers import strategies
from helpers.hdf5_stores import WORK, opened, put, read
from helpers.support import Params, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncckpt
from asyncckpt.errors import (
    CheckpointError,
    CorruptCheckpointError,
    FileLockedError,
    ReadOnlyFileError,
    UnsupportedFormatError,
    UntrustedFileError,
)
from asyncckpt.keyed.hdf5 import native_file
from asyncckpt.keyed.hdf5 import store as hdf5_store
from asyncckpt.keyed.hdf5.catalog import HEAD_NBYTES, find_slots
from asyncckpt.keyed.values import capture_live
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.testing import FaultyDisk

MIB = 1 << 20


def written(disk: FaultyDisk) -> int:
    """Return how many bytes were written."""
    return sum(operation.nbytes or 0 for operation in disk.operations if operation.name == "write")


# --- values -----------------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=5), strategies.states, max_size=5), st.data())
@settings(max_examples=25)
def test_everything_comes_back(values: dict[str, Any], data: st.DataObject) -> None:
    """Any value under any key, staged, committed, and after writing the file anew; dicts keep their order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.h5")
        with opened(path) as store:
            for key, value in values.items():
                put(store, key, value)
                assert_same(read(store, key), value)
            store.commit(WORK)
        replaced = data.draw(st.sampled_from([None, *values]))
        for _ in range(2):
            with opened(path) as store:
                assert list(store.entries) == list(values)
                for key, value in values.items():
                    assert_same(read(store, key), value)
                if replaced is not None:
                    values[replaced] = np.zeros(MIB)
                    put(store, replaced, values[replaced])
                    store.commit(WORK)
        if values:
            with h5py.File(path) as file:
                assert len(file) == len(values) + 1


def test_staged_and_dropped(tmp_path: Path) -> None:
    """What is staged is read by the store, by nobody else, and gone when the store is closed without a commit."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "a", 1)
        assert list(store.entries) == ["a"]
        assert not path.exists()
    assert not any(tmp_path.iterdir())
    with opened(path) as store:
        put(store, "a", 1)
        put(store, "b", np.arange(50_000))
        store.commit(WORK)
    size = path.stat().st_size
    with opened(path) as store:
        put(store, "b", np.arange(60_000))
        put(store, "c", 5)
        store.delete("a", WORK)
        assert list(store.entries) == ["b", "c"]
        assert len(read(store, "b")) == 60_000
        with opened(path) as other:
            assert list(other.entries) == ["a", "b"]
    assert path.stat().st_size == size
    with opened(path) as store:
        assert list(store.entries) == ["a", "b"]


def test_the_order_of_the_keys(tmp_path: Path) -> None:
    """A replaced key keeps its place, a deleted one that comes back is the last; HDF5 shows the same order."""
    path = tmp_path / "a.h5"
    for values in ({"z": 1, "m": 2, "a": 3}, {"m": np.zeros(50_000)}, {"z": "new"}):
        with opened(path) as store:
            for key, value in values.items():
                put(store, key, value)
            store.commit(WORK)
    with opened(path) as store:
        assert list(store.entries) == ["z", "m", "a"]
        store.delete("z", WORK)
        put(store, "z", 4)
        store.commit(WORK)
    with opened(path) as store, h5py.File(path) as file:
        assert list(store.entries) == ["m", "a", "z"]
        assert list(file) == ["m", "a", "z", "__asyncckpt__"]


def test_the_caller_may_change_a_value_after_put(tmp_path: Path) -> None:
    """A staged value is a copy, small or large."""
    with opened(tmp_path / "a.h5") as store:
        for count in (10, 100_000):
            array = np.zeros(count)
            put(store, "a", array)
            array[:] = 1
            store.commit(WORK)
            assert not read(store, "a").any()


def test_a_reader_is_not_disturbed(tmp_path: Path) -> None:
    """A store opened before keeps the version it has, while another appends and writes the file anew."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "a", np.zeros(100_000))
        store.commit(WORK)
    with opened(path) as reader, opened(path) as writer:
        for version in range(1, 9):
            put(writer, "a", np.full(100_000, version))
            writer.commit(WORK)
            assert not read(reader, "a").any()


def test_two_writers(tmp_path: Path) -> None:
    """The second is refused; when it may write, it sees what the first one did."""
    path = tmp_path / "a.h5"
    with opened(path) as first:
        put(first, "a", 1)
        first.commit(WORK)
        with opened(path) as second:
            put(first, "b", 2)
            with pytest.raises(FileLockedError, match=r"a\.h5"):
                put(second, "c", 3)
            first.commit(WORK)
            first.close()
            put(second, "c", 3)
            second.commit(WORK)
            assert list(second.entries) == ["a", "b", "c"]


def test_a_stopped_put_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    """So does a stopped commit, which can be called again."""
    stop = StopFlag()
    stop.set()
    stopped = JobContext(stop=stop)
    with opened(tmp_path / "a.h5") as store:
        put(store, "a", 1)
        with pytest.raises(Stopped):
            store.put("a", capture_live(np.zeros(MIB), "a", WORK), stopped)
        assert read(store, "a") == 1
        with pytest.raises(Stopped):
            store.commit(stopped)
        store.commit(WORK)
    with opened(tmp_path / "a.h5") as store:
        assert read(store, "a") == 1


# --- size and cost ----------------------------------------------------------------------------------------------------

KEYS = st.sampled_from("abcd")
SIZES = st.one_of(st.integers(0, 100), st.integers(0, 50_000), st.integers(100_000, 400_000))
CHANGE = st.tuples(st.just("put"), KEYS, SIZES) | st.tuples(st.just("delete"), KEYS, st.just(0))
SESSIONS = st.lists(st.lists(CHANGE, min_size=1, max_size=3), min_size=1, max_size=30)


@given(SESSIONS)
@settings(max_examples=25)
def test_a_file_stays_small(sessions: list[list[tuple[str, str, int]]]) -> None:
    """After each commit, it is at most three times its live bytes, and 4 MiB; and nothing is lost."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.h5")
        expected: dict[str, np.ndarray] = {}
        for session in sessions:
            with opened(path) as store:
                for what, key, size in session:
                    if what == "put":
                        expected[key] = np.full(size, size % 251)
                        put(store, key, expected[key])
                    elif expected.pop(key, None) is not None:
                        store.delete(key, WORK)
                store.commit(WORK)
            live = sum(array.nbytes for array in expected.values())
            assert not path.exists() or path.stat().st_size <= 3 * live + 4 * MIB
        with opened(path) as store:
            assert_same({key: read(store, key) for key in store.entries}, expected)


@pytest.mark.parametrize("count", [1, 30, 2000])
def test_many_keys_stay_small(count: int, quick_path: Path) -> None:
    """The bound holds for small values, too, whether they come together or one by one."""
    path = quick_path / "a.h5"
    with opened(path) as store:
        for key in range(count):
            put(store, f"key {key}", np.arange(2))
        store.commit(WORK)
    assert path.stat().st_size <= 3 * 16 * count + 4 * MIB
    with opened(path) as store:
        for key in range(10):
            put(store, f"key {key % count}", np.arange(2) + key)
            store.commit(WORK)
            assert path.stat().st_size <= 3 * 16 * count + 4 * MIB
        assert len(store.entries) == count


def test_replacing_costs_what_is_replaced(quick_path: Path) -> None:
    """Replacing 1 MiB of 128, again and again, writes 3 MiB each time at most, the writing anew included."""
    path = quick_path / "a.h5"
    disk = FaultyDisk()
    with opened(path, disk) as store:
        for key in range(128):
            put(store, str(key), np.zeros(MIB, np.uint8))
        store.commit(WORK)
        assert written(disk) < 132 * MIB
        for round_ in range(160):
            put(store, str(round_ % 7), np.full(MIB, round_, np.uint8))
            store.commit(WORK)
            if round_ == 0:
                assert written(disk) < 134 * MIB
        assert disk.names().count("rename") == 2  # the first file, and another
        assert written(disk) < (128 + 160 * 3) * MIB


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_large_value_is_written_once(is_replaced: bool, quick_path: Path) -> None:
    """Whatever was in the file, and whether it has to be written anew."""
    path = quick_path / "a.h5"
    with opened(path) as store:
        put(store, "small", 1)
        put(store, "other", np.zeros(100_000))
        if is_replaced:
            put(store, "large", np.zeros(64 * MIB, np.uint8))
        store.commit(WORK)
    disk = FaultyDisk()
    with opened(path, disk) as store:
        for count in range(1, 5):
            put(store, "large", np.full(64 * MIB, count, np.uint8))
            store.commit(WORK)
            assert written(disk) < count * 66 * MIB
            assert path.stat().st_size < 196 * MIB


def test_a_deleted_value_gives_its_room_back(quick_path: Path) -> None:
    """With the next commit; the last key, too."""
    path = quick_path / "a.h5"
    with opened(path) as store:
        put(store, "large", np.zeros(16 * MIB, np.uint8))
        put(store, "small", "text")
        store.commit(WORK)
        store.delete("large", WORK)
        store.commit(WORK)
        assert path.stat().st_size < MIB
        assert read(store, "small") == "text"
        store.delete("small", WORK)
        store.commit(WORK)
    with opened(path) as store:
        assert not store.entries
    with h5py.File(path) as file:
        assert list(file) == ["__asyncckpt__"]


def test_a_commit_of_nothing_does_nothing(tmp_path: Path) -> None:
    """No operation of the disk, and no file."""
    disk = FaultyDisk()
    with opened(tmp_path / "a.h5", disk) as store:
        store.commit(WORK)
    assert not disk.operations


# --- other programs ---------------------------------------------------------------------------------------------------


def test_other_programs_read_it(tmp_path: Path) -> None:
    """Dicts are groups, arrays contiguous datasets, leaves scalar datasets, under the users' keys."""
    path = tmp_path / "a.h5"
    array = np.arange(12.0).reshape(3, 4)
    with opened(path) as store:
        put(store, "array", array)
        put(store, "large", np.arange(100_000))
        store.commit(WORK)
        put(store, "dict", {"x": array, "n": 5, "deep": {"y": array}})
        put(store, "list", [array, 1])
        put(store, "text", "a text")
        put(store, "number", 1.5)
        put(store, "none", None)
        put(store, "params", Params(array))
        put(store, "a/b %", 1)
        put(store, "\u00e9" * 600, 2)
        put(store, "", 3)
        store.commit(WORK)
    with h5py.File(path) as file:
        for name in ("array", "dict/x", "dict/deep/y", "list/0", "params/weights"):
            assert np.array_equal(file[name], array)
            assert file[name].id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        assert np.array_equal(file["large"], np.arange(100_000))
        assert file["large"].id.get_offset() % PAGE_NBYTES == 0
        assert file["dict"].attrs["n"] == 5
        assert file["list"].attrs["__asyncckpt_kind__"] == "list"
        assert file["text"].asstr()[()] == "a text"
        assert file["number"][()] == 1.5
        assert file["none"].shape is None
        assert file["a%2Fb %25"][()] == 1
        assert file["%"][()] == 3
        assert sum(each[()] == 2 for name, each in file.items() if name.startswith("\u00e9" * 200)) == 1
        slot = find_slots(path.read_bytes()[:HEAD_NBYTES])[0]
        catalog = file["__asyncckpt__"]
        assert (catalog.id.get_offset(), catalog.shape) == (slot.offset, (slot.catalog_nbytes,))
    with h5py.File(path, "r+") as file:  # it can be changed, and made longer
        file["new"] = 5
        file["dict"].attrs["another"] = 6
        del file["number"]
        assert file["array"][2, 3] == 11
    with h5py.File(path) as file:
        assert len(file) == 12


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed")
def test_h5dump(tmp_path: Path) -> None:
    """HDF5's own tool reads all of it."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "array", np.arange(3))
        put(store, "dict", {"x": {"y": "text"}})
        store.commit(WORK)
        put(store, "more", np.arange(100_000))
        store.commit(WORK)
    done = subprocess.run(["h5dump", path], capture_output=True, text=True, check=True)  # noqa: S603, S607 - as above
    assert "(0): 0, 1, 2" in done.stdout
    assert not done.stderr


def test_leaves_beyond_the_bound_are_only_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 objects for very many leaves would be larger than what they hold; in the end they all come back."""
    monkeypatch.setattr(native_file, "MAX_LEAVES", 10)
    path = tmp_path / "a.h5"
    for start in (0, 8, 16):
        with opened(path) as store:
            for number in range(start, start + 8):
                put(store, str(number), number)
            store.commit(WORK)
    with opened(path) as store, h5py.File(path) as file:
        assert [read(store, key) for key in store.entries] == list(range(24))
        assert list(file) == [*map(str, range(10)), "__asyncckpt__"]


CHANGES: dict[str, Any] = {
    "a new key": lambda file: file.create_dataset("new", data=[1.0]),
    "a deleted key": lambda file: file.__delitem__("b"),
    "a new attribute": lambda file: file["a"].attrs.__setitem__("new", 7),
    "an attribute of the root": lambda file: file.attrs.__setitem__("new", 7),
    "an attribute": lambda file: file["a"].attrs.__setitem__("k", 7),
    "an array": lambda file: file["a/v"].__setitem__(2, 99),
    "a large array": lambda file: file["large"].__setitem__(-1, 99),
    "a text": lambda file: file["b"].__setitem__((), "other"),
}

IN_PLACE = ("an array", "a large array", "a text")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*as it is now:asyncckpt.CheckpointWarning")
def test_changes_by_another_program(change: str, tmp_path: Path) -> None:
    """Are told, never passed over: read only where the file is trusted, and then as what is there now."""
    path = tmp_path / "a.h5"
    values = {"a": {"v": np.arange(10.0), "k": 1}, "b": "text", "large": np.arange(200_000), "t": (1, [None, 2.5])}
    with opened(path) as store:
        for key, value in values.items():
            put(store, key, value)
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        CHANGES[change](file)
    with pytest.raises(CheckpointError, match=r"trusted=True|another program"), opened(path) as store:
        for key in store.entries:
            read(store, key)
    with opened(path, trusted=True) as store:
        found = {key: read(store, key) for key in store.entries}
        if change in IN_PLACE:
            put(store, "large", 1)
            store.commit(WORK)
        else:
            with pytest.raises(ReadOnlyFileError, match="so it is only read"):
                put(store, "large", 1)
    expected = {
        "a new key": values | {"new": np.array([1.0])},
        "a deleted key": {key: value for key, value in values.items() if key != "b"},
        "a new attribute": values | {"a": {"k": 1, "new": 7, "v": values["a"]["v"]}},
        "an attribute of the root": values | {"new": 7},
        "an attribute": values | {"a": {"k": 7, "v": values["a"]["v"]}},
        "an array": values | {"a": {"k": 1, "v": np.array([0, 1, 99.0, *range(3, 10)])}},
        "a large array": values | {"large": np.array([*range(199_999), 99])},
        "a text": values | {"b": "other"},
    }[change]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if key == "a":
            assert Counter(found["a"].keys()) == Counter(value.keys())
            assert_same({name: found["a"][name] for name in value}, value)
        else:
            assert_same(found[key], value)
    if change in IN_PLACE:
        with opened(path) as store:
            assert read(store, "large") == 1


def test_a_longer_file_is_told_at_once(tmp_path: Path) -> None:
    """Whatever moves the end of the file is seen when it is opened, before a value is read."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "a", {"x": 1})
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        file["a"].attrs["new"] = 1
    with pytest.raises(UntrustedFileError, match="changed by another program"), opened(path):
        pass


def test_opening_without_changes_is_no_change(tmp_path: Path) -> None:
    """Whoever opens the file for writing with h5py and writes nothing leaves it ours."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "a", 1)
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        assert file["a"][()] == 1
    with opened(path) as store:
        assert read(store, "a") == 1


# --- damage -----------------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=150)
def test_damage_is_an_error_or_harmless(data: st.DataObject) -> None:
    """One byte changed anywhere, or the file cut anywhere: what comes back is what was there, or an error of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.h5")
        path.write_bytes(_sample())
        raw = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, HEAD_NBYTES) | st.integers(len(raw) - 4096))
        if data.draw(st.booleans()):
            raw[at % len(raw)] ^= data.draw(st.integers(1, 255))
        else:
            del raw[at:]
        path.write_bytes(raw)
        try:
            with opened(path) as store:
                for key in store.entries:
                    assert_same(read(store, key), SAMPLE[key])
        except CheckpointError as error:
            assert "a.h5" in str(error)  # noqa: PT017 - there may be none


SAMPLE = {"a": np.arange(1000), "b": {"c": "text", "d": [1, 2.5, None]}, "e": np.arange(40_000)}
_samples: list[bytes] = []


def _sample() -> bytes:
    if not _samples:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.h5")
            with opened(path) as store:
                for key, value in SAMPLE.items():
                    put(store, key, value)
                    store.commit(WORK)
            _samples.append(path.read_bytes())
    return _samples[0]


@pytest.mark.parametrize("nbytes", [1, 48, 5000])
def test_no_hdf5_at_all(nbytes: int, tmp_path: Path) -> None:
    """Some other file is refused as what it is, trusted or not, and stays."""
    path = tmp_path / "a.h5"
    path.write_bytes(b"x" * nbytes)
    for trusted in (False, True):
        with pytest.raises(CorruptCheckpointError, match="not an HDF5 file"), opened(path, trusted=trusted):
            pass
    assert path.read_bytes() == b"x" * nbytes


def test_an_empty_file_is_a_new_one(tmp_path: Path) -> None:
    """As `mkstemp` leaves it."""
    path = tmp_path / "a.h5"
    path.touch()
    with opened(path) as store:
        put(store, "a", 1)
        store.commit(WORK)
    with opened(path) as store:
        assert read(store, "a") == 1


def test_a_later_version(tmp_path: Path) -> None:
    """It is refused by name."""
    path = tmp_path / "a.h5"
    raw = bytearray(_sample())
    slot = find_slots(raw[:HEAD_NBYTES])[0]
    body = bytearray(slot.encode()[:-16])
    body[16] = 2
    raw[slot.position : slot.position + len(body) + 16] = body + native_file.xxh3_128_digest(bytes(body))
    path.write_bytes(raw)
    with pytest.raises(UnsupportedFormatError, match=r"a\.h5: the file has format version 2"), opened(path):
        pass


def test_values_of_many_tiny_arrays_do_not_wait_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What their padding takes in memory counts, too."""
    monkeypatch.setattr(hdf5_store, "_MEMORY_NBYTES", 1 << 20)
    value = list(np.zeros((2000, 1), np.int8))
    with opened(tmp_path / "a.h5") as store:
        for number in range(10):
            put(store, str(number), value)
        assert [path.name for path in tmp_path.glob(".*.tmp")] == [".a.h5.tmp"]


CATALOGS: dict[str, tuple[type[CheckpointError], Any]] = {
    "needs compression": (UnsupportedFormatError, {"asyncckpt_keyed": 1, "features": ["compression"]}),
    "has format version 2": (UnsupportedFormatError, {"asyncckpt_keyed": 2, "features": []}),
    "catalog is damaged": (CorruptCheckpointError, {"asyncckpt_keyed": 1, "features": [], "regions": [[0, 1, b""]]}),
    "row of 'a'": (
        CorruptCheckpointError,
        {
            "asyncckpt_keyed": 1,
            "features": [],
            "regions": [[HEAD_NBYTES, 8, bytes(16)]],
            "keys": [msgpack.packb([("a", 0, *[HEAD_NBYTES] * 3, 8, None, 0, None, {}, None)])],
        },
    ),
}


@pytest.mark.parametrize("reason", CATALOGS)
def test_a_catalog_that_cannot_be_read(reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file, and what it needs or what is wrong; digests do not tell, for it was written so."""
    kind, content = CATALOGS[reason]
    path = tmp_path / "a.h5"
    monkeypatch.setattr(native_file, "encode_catalog", lambda *_: [msgpack.packb(content)])
    with opened(path) as store:
        put(store, "a", 1)
        store.commit(WORK)
    with pytest.raises(kind, match=rf"a\.h5: the .*{reason}") as caught, opened(path):
        pass
    assert getattr(caught.value, "file", str(path)) == str(path)


def test_the_file_of_an_error_is_its_whole_path(tmp_path: Path) -> None:
    """As with the other kinds of files."""
    path = tmp_path / "a.h5"
    raw = bytearray(_sample())
    raw[raw.index(np.arange(1000).tobytes())] ^= 1
    path.write_bytes(raw)
    with opened(path) as store, pytest.raises(CorruptCheckpointError, match="'a' does not match") as caught:
        read(store, "a")
    assert caught.value.file == str(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(CorruptCheckpointError) as caught, opened(path):
        pass
    assert caught.value.file == str(path)


def test_damage_to_a_small_value_is_its_own(quick_path: Path) -> None:
    """Whatever of it is damaged, its neighbours are read."""
    path = quick_path / "woof.h5"
    values = {f"k{n}": [np.full(40, n), f"text {n}"] for n in range(20)}
    with asyncckpt.HDF5Checkpointer(path) as chk:
        chk.update(values)
    data = path.read_bytes()
    at = data.index(np.full(40, 7).tobytes())
    path.write_bytes(data[:at] + b"!" + data[at + 1 :])
    with asyncckpt.HDF5Checkpointer(path) as chk:
        with pytest.raises(asyncckpt.CorruptCheckpointError, match="'k7' does not match its digest"):
            chk["k7"]
        for key in set(values) - {"k7"}:
            assert_same(chk[key], values[key])
        chk["k7"] = 1
        assert chk["k7"] == 1


def test_who_reads_while_a_commit_is_made_sees_one(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who has read the slots before it and the superblock after it."""
    path = quick_path / "woof.h5"
    heads = []
    with asyncckpt.HDF5Checkpointer(path) as chk:
        for number in range(4):
            chk["a"] = number
            chk.flush()
            heads.append(path.read_bytes()[:12288])
        torn = heads[3][:4096] + heads[0][4096:]
        pread = os.pread

        def pread_once_torn(fd: int, nbytes: int, offset: int) -> bytes:
            if (nbytes, offset) == (12288, 0):
                monkeypatch.undo()
                return torn
            return pread(fd, nbytes, offset)

        monkeypatch.setattr(os, "pread", pread_once_torn)
        with asyncckpt.HDF5Checkpointer(path) as reader:
            assert reader["a"] == 3
        assert os.pread is pread


def test_a_small_value_that_is_updated_often_stays_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was replaced takes no room among those that other programs see."""
    monkeypatch.setattr(native_file, "MAX_LEAVES", 4)
    with asyncckpt.HDF5Checkpointer(tmp_path / "x.h5") as chk:
        chk["large"] = np.zeros(1 << 20)
        for number in range(20):
            chk["step"] = number
            chk.flush()
        with h5py.File(tmp_path / "x.h5") as file:
            assert "step" in file
