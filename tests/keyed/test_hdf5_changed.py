"""Files of ours that another program changed: nothing that it left alone is lost, and nothing that it did is undone."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.hdf5_stores import WORK, opened, put, read
from helpers.support import assert_same, descriptors_below, save_to

import asyncckpt
from asyncckpt.errors import (
    CheckpointWarning,
    CorruptCheckpointError,
    ReadOnlyFileError,
    UnsupportedFormatError,
    UntrustedFileError,
)
from asyncckpt.keyed.hdf5 import native_file
from asyncckpt.keyed.hdf5.store import HDF5Store

LONG = "\u00e9/" * 400
SHOWN: dict[str, Any] = {
    "a": np.arange(10.0),
    "b/c": {"x": np.arange(3), 1.5: Path("a/b"), "n": None},
    "large": {"k": 1, "v": np.arange(400_000)},
    LONG: np.arange(4),
    "n": 5,
}
"""What other programs see, if eight leaves are shown."""
READ_ONLY = r"a\.h5: it was changed by another program, .* so it is only read\. .*Copy its keys to a new file"
HIDDEN: dict[str, Any] = {
    "one": 1,
    "text": "text",
    "none": None,
    "": (1, [None, 2.5], {3: Path("c")}),
    LONG + "!": b"bytes",
    "many": [f"text {n}" for n in range(40_000)],
}
"""What they do not see."""
PARTLY: dict[str, Any] = {"partly": {"v": np.arange(5), "n": 7}}
VALUES = SHOWN | HIDDEN | PARTLY


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of ours with more leaves than are shown."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        for key, value in SHOWN.items():
            put(store, key, value)
        store.commit(WORK)
    monkeypatch.setattr(native_file, "MAX_LEAVES", 0)
    with opened(path) as store:
        for key, value in (HIDDEN | PARTLY).items():
            put(store, key, value)
        store.commit(WORK)
    return path


def check(path: Path, expected: dict[str, Any]) -> None:
    """The file holds this, in this order, and is only read, whatever the caller allows."""
    before = path.read_bytes()
    with opened(path, trusted=True, rewrite="without_backup") as store:
        assert list(store.entries) == list(expected)
        for key, value in expected.items():
            assert_same(read(store, key), value)
        for change in (lambda: put(store, "n", 1), lambda: store.delete(next(iter(expected)), WORK)):
            with pytest.raises(ReadOnlyFileError, match=READ_ONLY) as caught:
                change()
            assert (caught.value.file, caught.value.losses) == (str(path), None)
        store.commit(WORK)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_fixture_is_what_it_says(path: Path) -> None:
    """Other programs see some of the keys only."""
    with h5py.File(path) as file:
        assert len(file) == len(SHOWN) + len(PARTLY) + 1
        assert "__asyncckpt_partial__" in file["partly"].attrs


def test_what_was_not_changed_is_what_it_was(path: Path) -> None:
    """Keys without links, long names, keys and objects that HDF5 has no place for: all of it comes back, and stays."""
    with h5py.File(path, "r+") as file:
        file["new"] = [1]
    with pytest.raises(UntrustedFileError), opened(path):
        pass
    check(path, VALUES | {"new": np.array([1])})


def test_beyond_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of so many small values that the bound as it is leaves some without links."""
    path = tmp_path / "a.h5"
    monkeypatch.setattr(native_file, "MAX_LEAVES", 500)
    count = 600
    with asyncckpt.HDF5Checkpointer(path) as chk:
        for number in range(count):
            chk[f"k{number}"] = number
    with h5py.File(path, "r+") as file:
        assert len(file) < count
        file["new"] = 1
    copy = path.with_name("copy.h5")
    with asyncckpt.HDF5Checkpointer(path, trusted=True) as chk, asyncckpt.HDF5Checkpointer(copy) as new:
        new.update(chk)  # as the error advises
    with asyncckpt.HDF5Checkpointer(copy) as chk:
        assert dict(chk) == {f"k{number}": number for number in range(count)} | {"new": 1}


def test_what_was_deleted_stays_deleted(path: Path) -> None:
    """A key whose link is gone, unlike one that never had a link."""
    with h5py.File(path, "r+") as file:
        del file["a"]
        del file["large"]
    check(path, {key: value for key, value in VALUES.items() if key not in ("a", "large")})


def test_what_was_made_anew_is_what_it_is_now(path: Path) -> None:
    """Also where the key had no link, and where another key's object got the name."""
    with h5py.File(path, "r+") as file:
        del file["n"]
        file["n"] = "theirs"
        file["one"] = [1, 2]
        file.attrs["text"] = 2.5
        del file["a"]
        file.move("b%2Fc", "a")
        file["large/k"] = [3]
        del file["large"].attrs["k"]
    expected = VALUES | {"n": "theirs", "one": np.array([1, 2]), "text": 2.5}
    expected |= {"a": {"x": np.arange(3), "%=1.5": "a/b", "n": None}}
    expected |= {"large": {"v": SHOWN["large"]["v"], "k": np.array([3])}}
    del expected["b/c"]
    with opened(path, trusted=True) as store:
        assert list(store.entries) == list(expected)
        for key, value in expected.items():
            found = read(store, key)
            assert_same({name: found[name] for name in value} if isinstance(value, dict) else found, value)


def test_a_large_array_that_was_changed(path: Path) -> None:
    """It is read as it is now, also where neither its objects nor its index have changed."""
    with h5py.File(path, "r+") as file:
        file["large/v"][200_000] = -1  # in a block that holds neither its objects nor its index
        file["new"] = [1]
    changed = SHOWN["large"]["v"].copy()
    changed[200_000] = -1
    check(path, VALUES | {"large": {"k": 1, "v": changed}, "new": np.array([1])})


def test_a_long_name_in_a_changed_value(tmp_path: Path) -> None:
    """The group notes it."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "a", {LONG: 1, "b": {LONG: np.arange(3)}})
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        file["a/new"] = 2
    with opened(path, trusted=True) as store:
        assert_same(read(store, "a"), {LONG: 1, "b": {LONG: np.arange(3)}, "new": np.array(2)})


def test_a_changed_value_of_which_not_everything_is_shown(path: Path) -> None:
    """What it is now cannot be told: it is refused when it is read."""
    with h5py.File(path, "r+") as file:
        file["partly"].attrs["new"] = 1
    expected = r"a\.h5: /partly has leaves without HDF5 objects"
    with opened(path, trusted=True) as store, pytest.raises(UnsupportedFormatError, match=expected):
        read(store, "partly")


def test_a_value_without_a_link_that_is_damaged(path: Path) -> None:
    """It is an error that names the key."""
    with opened(path) as store:
        extent = store._current.extents["text"]  # type: ignore[union-attr] # it is open
    with h5py.File(path, "r+") as file:
        file["new"] = 1
    raw = bytearray(path.read_bytes())
    raw[extent.index_offset + extent.index_nbytes // 2] ^= 1
    path.write_bytes(raw)
    with opened(path, trusted=True) as store:
        with pytest.raises(CorruptCheckpointError, match=r"a\.h5: the value of 'text' is gone") as caught:
            read(store, "text")
        assert caught.value.file == str(path)
        assert read(store, "one") == 1


def test_a_copy_by_another_program(path: Path) -> None:
    """It has what that program could see; that something is missing is told by key."""
    copy = path.with_name("copy.h5")
    with h5py.File(path) as file, h5py.File(copy, "w", track_order=True) as new:
        for name in file:
            file.copy(name, new)
    with opened(copy, trusted=True) as store:
        assert list(store.entries) == list(VALUES)
        assert_same(read(store, LONG), SHOWN[LONG])
        assert_same(read(store, "a"), SHOWN["a"])
        for key in HIDDEN:
            with pytest.raises(CorruptCheckpointError, match=r"copy\.h5: the value of .* is gone"):
                read(store, key)
        with pytest.raises(ReadOnlyFileError, match="so it is only read"):
            put(store, "n", 6)


def test_without_the_catalog(path: Path) -> None:
    """If another program took it away, what only it had is lost: that is told, and the links are read as ours."""
    with h5py.File(path, "r+") as file:
        del file["__asyncckpt__"]
    with (
        pytest.warns(CheckpointWarning, match=r"a\.h5: another program removed or changed its catalog"),
        opened(path, trusted=True) as store,
    ):
        assert len(store.entries) == len(SHOWN) + len(PARTLY)
        assert read(store, "b/c")["n"] is None
        assert read(store, "n") == 5


def test_a_changed_catalog_is_not_believed(path: Path) -> None:
    """Not even where it still can be read: the key would have another name."""
    with h5py.File(path, "r+") as file:
        data = file["__asyncckpt__"][()].tobytes()
        file["__asyncckpt__"][data.index(b"text")] = ord("T")
        file["new"] = 1
    with (
        pytest.warns(CheckpointWarning, match=r"a\.h5: another program removed or changed its catalog"),
        opened(path, trusted=True) as store,
    ):
        assert not {"text", "Text"} & set(store.entries)


def test_names_that_stand_for_one_key(tmp_path: Path) -> None:
    """Another program may spell a key in a second way: neither is passed over."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "ab", 1)
        put(store, "group", {"ab": np.arange(3)})
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        file["group/%61b"] = 2
    with (
        opened(path, trusted=True) as store,
        pytest.raises(UnsupportedFormatError, match="/group has several names that mean the same key"),
    ):
        read(store, "group")
    with h5py.File(path, "r+") as file:
        file["%61b"] = 2
    both = "the names 'ab' and '%61b' both mean the key 'ab'"
    with pytest.raises(UnsupportedFormatError, match=both) as caught, opened(path, trusted=True):
        pass
    assert descriptors_below(tmp_path) == [], caught  # whose frames are alive


def test_the_state_of_a_checkpoint_of_which_not_everything_is_shown(tmp_path: Path) -> None:
    """Its keys cannot be told, so it is refused."""
    state = {f"k{n}": n for n in range(2000)} | {"v": np.arange(3)}
    path = save_to(tmp_path, 1, state, form="hdf5") / "state.h5"
    with pytest.raises(UnsupportedFormatError, match=r"state\.h5 .*load it with a CheckpointManager"):  # noqa: SIM117
        with opened(path, trusted=True):
            pass


# --- changes in place, which leave the file ours ----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*as it is now:asyncckpt.CheckpointWarning")
def test_a_change_to_an_object_is_not_undone_by_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value whose arrays are as they were, and whose leaf is not, is no value of ours to be written anew."""
    path = tmp_path / "a.h5"
    monkeypatch.setattr(HDF5Store, "_needs_compaction", lambda *_: True)
    with opened(path) as store:
        for number in range(4):
            put(store, f"k{number}", {"k": 1, "v": np.arange(200_000)})
        store.commit(WORK)
    with opened(path) as store:
        put(store, "n", 5)
        store.commit(WORK)  # now the large ones are one region, whose first block has the objects of all
    with h5py.File(path, "r+") as file:
        file["k3"].attrs.modify("k", 7)
    with opened(path, trusted=True) as store:
        put(store, "n", 6)
        store.delete("k0", WORK)  # whose array that block has, too
        store.commit(WORK)
    with opened(path, trusted=True) as store:
        assert read(store, "n") == 6
        assert read(store, "k3")["k"] == 7


def test_a_text_is_changed_for_one_as_long(tmp_path: Path) -> None:
    """It is told, although the object has the same size and HDF5 might have given it the same place."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "a", "text")
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        file["a"][()] = "abcd"
    try:
        with opened(path) as store, pytest.raises(CorruptCheckpointError, match="'a' does not match its digest"):
            read(store, "a")
    except UntrustedFileError:
        pass  # told already
    with opened(path, trusted=True) as store, pytest.warns(CheckpointWarning, match="as it is now"):
        assert read(store, "a") == "abcd"


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [("text", "kind", "list"), ("text", "kind", "bytes_"), ("queue", "maxlen", np.uint64((1 << 64) - 1))],
)
def test_an_impossible_attribute_is_damage(tmp_path: Path, name: str, attribute: str, value: object) -> None:
    """Another program may write anything into the attributes that say what a leaf or container was."""
    path = tmp_path / "a.h5"
    with opened(path) as store:
        put(store, "text", np.array([1.0]))
        put(store, "queue", deque([np.arange(2)], 5))
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        if name == "text":
            del file["text"]
            file["text"] = "of variable length"
        file[name].attrs[f"__asyncckpt_{attribute}__"] = value
        del file["__asyncckpt__"]
    with (
        pytest.warns(CheckpointWarning, match="catalog"),
        opened(path, trusted=True) as store,
        pytest.raises(CorruptCheckpointError, match=f"a\\.h5: '{name}' cannot be read"),
    ):
        read(store, name)
