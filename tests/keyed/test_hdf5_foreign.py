"""HDF5 that others made: h5py's and netCDF4's values come back, and what is hostile in them is refused by name."""

from __future__ import annotations

import errno
import shutil
from collections import OrderedDict, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from helpers.hdf5_stores import WORK, opened, put, read
from helpers.support import assert_same, save_to

from asyncckpt.errors import CheckpointError, UntrustedFileError
from asyncckpt.keyed.hdf5 import value_reader
from asyncckpt.keyed.hdf5.store import HDF5Store
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a file."""
    return tmp_path / "a.h5"


def load(path: Path) -> dict[str, Any]:
    """Return all that a trusted file holds."""
    with opened(path, trusted=True) as store:
        return {key: read(store, key) for key in store.entries}


def test_plain_h5py(path: Path) -> None:
    """Groups become dicts, datasets arrays, texts str, whatever layout and filters of HDF5's own they have."""
    values: dict[str, Any] = {
        "numbers": np.arange(12.0).reshape(3, 4),
        "big-endian": np.arange(3, dtype=">i2"),
        "bool": np.array([True, False]),
        "complex": np.array([1j, 2]),
        "bytes": np.array([b"ab", b"c"]),
        "record": np.array([(1, 2.5)], [("a", "<i4"), ("b", "<f8")]),
        "empty": np.zeros((0, 3)),
        "wide": np.arange(3_000_000).reshape(3, -1),
    }
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            file[name] = value
        file["text"] = "a text"
        file["texts"] = ["a", "bc", "\u00e9"]
        file["scalar"] = 2.5
        file["group/deep/x"] = [1, 2]
        file["group/y"] = np.float32(3)
        file.create_group("nothing")
        file.create_dataset("null", dtype="f4")
        file.create_dataset("packed", data=values["wide"], chunks=(2, 1000), compression="gzip", shuffle=True)
        file.create_dataset("lzf", data=np.arange(1000), chunks=True, compression="lzf", fletcher32=True)
        file["soft"] = h5py.SoftLink("/group/y")
        file["hard"] = file["numbers"]
    found = load(path)
    for name, value in values.items():
        assert_same(found.pop(name), value)
    assert found.pop("texts").tolist() == ["a", "bc", "\u00e9"]
    assert_same(found.pop("scalar"), np.float64(2.5))
    assert_same(found.pop("group"), {"deep": {"x": np.array([1, 2])}, "y": np.float32(3)})
    assert_same(found.pop("packed"), values["wide"])
    assert_same(found.pop("lzf"), np.arange(1000))
    assert_same(found.pop("soft"), np.float32(3))
    assert_same(found.pop("hard"), values["numbers"])
    assert found == {"text": "a text", "nothing": {}, "null": None}


def test_netcdf4(path: Path) -> None:
    """A file of the netCDF4 library: its dimensions, variables, groups and texts."""
    shutil.copy(HERE / "netcdf4.nc", path)
    expected = {
        "x": np.array([0, 0.5, 1, 1.5]),
        "time": np.array([1, 2, 3], np.int32),
        "u": np.arange(12, dtype=np.float32).reshape(3, 4),
        "name": np.array(["a", "bc", "", "d\u00e9"], np.dtypes.StringDType()),
        "scalar": np.float64(2.5),
        "sub": {"v": np.array([1, 2, 3, 4], np.int16)},
        "chars": np.array([b"a", b"b", b"c", b"d"]),
    }
    assert_same(load(path), expected)
    with opened(path, trusted=True) as store:
        put(store, "u", 1)
        store.commit(WORK)
    assert_same(load(path), expected | {"u": 1})


def test_it_opens_only_if_trusted(path: Path) -> None:
    """The error says why, and what to do; the file stays as it is."""
    with h5py.File(path, "w") as file:
        file["x"] = 1
    before = path.read_bytes()
    with (
        pytest.raises(UntrustedFileError, match=r"a\.h5 was not written by asyncckpt.*libhdf5.*trusted=True"),
        opened(path),
    ):
        pass
    assert path.read_bytes() == before


def test_a_user_block(path: Path) -> None:
    """HDF5 may begin behind other bytes."""
    with h5py.File(path, "w", userblock_size=1024) as file:
        file["x"] = [1]
    assert_same(load(path), {"x": np.array([1])})


def test_a_first_change_makes_it_ours(path: Path) -> None:
    """The file is written anew, with everything in it; it still takes trust, for the sake of what others made."""
    with h5py.File(path, "w", track_order=True) as file:
        file["z"] = np.arange(100_000)
        file["a"] = 1
        file["z"].attrs["unit"] = "m"
    with opened(path, trusted=True) as store:
        put(store, "new", "text")
        store.delete("a", WORK)
        store.commit(WORK)
        assert_same(read(store, "z"), np.arange(100_000))
    with pytest.raises(UntrustedFileError, match="holds objects that another program made"), opened(path):
        pass
    with opened(path, trusted=True) as store:
        assert list(store.entries) == ["z", "new"]
        assert_same(read(store, "z"), np.arange(100_000))


# --- what is hostile --------------------------------------------------------------------------------------------------


def external_link(file: h5py.File) -> None:
    """Lead into another file."""
    file["bad"] = h5py.ExternalLink("/etc/passwd", "/x")


def soft_to_external(file: h5py.File) -> None:
    """Lead there by way of a link that looks harmless."""
    file["group/out"] = h5py.ExternalLink("other.h5", "/")
    file["middle"] = h5py.SoftLink("/group/out")
    file["bad"] = h5py.SoftLink("middle/x")


def external_storage(file: h5py.File) -> None:
    """Let the values lie in another file."""
    file.create_dataset("bad", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual(file: h5py.File) -> None:
    """Let the values lie in other datasets."""
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
    file.create_virtual_dataset("bad", layout)


def references(file: h5py.File) -> None:
    """Hold references."""
    file.create_dataset("bad", data=np.array([file.ref], h5py.ref_dtype), dtype=h5py.ref_dtype)


def region_references(file: h5py.File) -> None:
    """Hold references to parts of datasets, in a record."""
    file.create_dataset("bad", (2,), [("a", "i4"), ("b", h5py.regionref_dtype)])


def rows(file: h5py.File) -> None:
    """Hold rows of different lengths."""
    file.create_dataset("bad", (2,), h5py.vlen_dtype(np.int32))


def texts_in_records(file: h5py.File) -> None:
    """Hold pointers to texts."""
    file.create_dataset("bad", (2,), [("a", "i4"), ("b", h5py.string_dtype())])


def bomb(file: h5py.File) -> None:
    """Claim a tebibyte of zeros."""
    file.create_dataset("bad", (1 << 40,), "u1", chunks=(1 << 20,))


def many_bombs(file: h5py.File) -> None:
    """Claim it in small parts."""
    for number in range(100):
        file.create_dataset(f"bad/{number}", (1 << 25,), "u1", chunks=(1 << 20,))


def unallocated(file: h5py.File) -> None:
    """Claim it without chunks."""
    file.create_dataset("bad", (1 << 40,), "u1")


def cycle(file: h5py.File) -> None:
    """Be in itself."""
    file["bad/in/me"] = file.create_group("bad")


def soft_cycle(file: h5py.File) -> None:
    """Lead to itself."""
    file["bad"] = h5py.SoftLink("/bad")


def nowhere(file: h5py.File) -> None:
    """Lead nowhere."""
    file["bad"] = h5py.SoftLink("/gone")


def deep(file: h5py.File) -> None:
    """Be deeper than any sensible file."""
    file.create_group("bad/" + "/".join("x" * 200))


def laughs(file: h5py.File) -> None:
    """Have a thousand million ways to one value."""
    group = file.create_group("last")
    for level in range(9):
        above = file.create_group(f"level {level}")
        for number in range(10):
            above[str(number)] = group
        group = above
    file["bad"] = group


def datatype(file: h5py.File) -> None:
    """Be a datatype."""
    file["bad"] = np.dtype("f8")


HOSTILE: dict[Callable[[h5py.File], None], str] = {
    external_link: "link into another file",
    soft_to_external: "leads out of the file",
    external_storage: "external storage",
    virtual: "virtual",
    references: "references",
    region_references: "references",
    rows: "rows of different lengths",
    texts_in_records: "text of variable length",
    bomb: "bytes of memory",
    many_bombs: "bytes of memory",
    unallocated: "bytes of memory",
    cycle: "contains itself",
    soft_cycle: "leads to itself",
    nowhere: "leads nowhere",
    deep: "is nested more than",
    laughs: "objects below it",
    datatype: "neither a group nor a dataset",
}


ELSEWHERE = (external_link, soft_to_external, soft_cycle, nowhere)


@pytest.mark.parametrize("make", HOSTILE)
def test_hostile(make: Callable[[h5py.File], None], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by key and reason, and the rest is there. What leads elsewhere is not copied to a new file."""
    monkeypatch.setattr(value_reader, "_MAX_OBJECTS", 1000)
    with h5py.File(path, "w") as file:
        make(file)
        file["good"] = 1
    before = path.read_bytes()
    with opened(path, trusted=True) as store:
        with pytest.raises(CheckpointError, match=rf"(?s)a\.h5.*bad.*{HOSTILE[make]}"):
            read(store, "bad")
        assert read(store, "good") == 1
        put(store, "more", 1)
        if make in ELSEWHERE:
            with pytest.raises(CheckpointError, match=HOSTILE[make]):
                store.commit(WORK)
            assert path.read_bytes() == before
            for key in set(store.entries) - {"good", "more"}:
                store.delete(key, WORK)
        store.commit(WORK)
    with opened(path, trusted=True) as store:
        assert read(store, "good") == read(store, "more") == 1
        if make not in ELSEWHERE:
            with pytest.raises(CheckpointError, match=rf"(?s)a\.h5.*bad.*{HOSTILE[make]}"):
                read(store, "bad")
        for key in set(store.entries) - {"good"}:
            store.delete(key, WORK)
        store.commit(WORK)
    with opened(path, trusted=True) as store:
        assert list(store.entries) == ["good"]


def test_a_filter_plugin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset whose filter is not part of HDF5 is refused before libhdf5 looks for code."""
    monkeypatch.setattr(value_reader, "_USUAL_FILTERS", frozenset({2}))
    with h5py.File(path, "w") as file:
        file.create_dataset("bad", data=np.zeros(100), compression="gzip")
    with opened(path, trusted=True) as store, pytest.raises(CheckpointError, match="filter 1, which needs a plugin"):
        read(store, "bad")


def test_damaged(path: Path) -> None:
    """What libhdf5 cannot read is an error of ours that names the file."""
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=np.arange(1000), compression="gzip")
        offset = file["x"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset : offset + 10] = b"0123456789"
    path.write_bytes(raw)
    with opened(path, trusted=True) as store, pytest.raises(CheckpointError, match=r"a\.h5: 'x' cannot be read"):
        read(store, "x")
    path.write_bytes(raw[:100])
    with pytest.raises(CheckpointError, match=r"a\.h5"), opened(path, trusted=True):
        pass


# --- files in our own layout ------------------------------------------------------------------------------------------


def test_a_state_of_a_checkpoint(path: Path, tmp_path: Path) -> None:
    """A `state.h5` is read as far as HDF5 shows it: with its leaves, and lists as lists."""
    state = {
        "params": {"step": 5, "lr": 0.1, "flag": True, "none": None, "z": 1j, "w": np.arange(6.0).reshape(2, 3)},
        "list": [1, "two", (3.5, np.zeros(2))],
        "numbers": list(range(20)),
        "floats": tuple(np.arange(600.0).tolist()),
        "long": "x" * 5000,
        "bytes": b"abc" * 2000,
        "short": b"abc",
        "odd": "a\0b",
        "big": 1 << 100,
        "date": np.array(["2020-01-01"], "M8[D]"),
        "scalar": np.float32(2),
        "time": np.datetime64("2020-01-01"),
        "text": np.str_("a"),
        "deque": deque([1, 2], 5),
        "ordered": OrderedDict(a=1),
        "set": {1, 2},
        "ints": {1: "a", 2: "b"},
        "a/b": 1,
        "unicode": np.array(["ab", "c"]),
    }
    shutil.copy(save_to(tmp_path, 1, state, form="hdf5") / "state.h5", path)
    found = load(path)
    assert found.keys() == state.keys()
    for key in found:
        assert_same(found[key], state[key])


def test_objects_come_as_plain_data(path: Path) -> None:
    """In what another program changed; their types are named."""
    with opened(path) as store:
        put(store, "path", {"at": Path("a/b")})
        store.commit(WORK)
    with h5py.File(path, "r+") as file:
        file["path/new"] = 1
    with opened(path, trusted=True) as store:
        found = store.read("path", WORK)
    assert found.value == {"at": "a/b", "new": 1}
    assert list(found.unknown_types.items()) == [("path", "path/at")]


# --- carried over to a file of ours -----------------------------------------------------------------------------------


def legacy(path: Path) -> None:
    """Make what a laboratory has: compressed datasets, units, groups, records and links."""
    with h5py.File(path, "w") as file:
        scan = file.create_dataset("scan", data=np.zeros((1000, 1000)), chunks=(100, 1000), compression="gzip")
        scan.attrs["unit"] = "V"
        scan.attrs["limits"] = [0.5, 2.5]
        run = file.create_group("run")
        run.attrs["operator"] = "somebody"
        run.create_dataset("counts", data=np.arange(10_000), compression="lzf", shuffle=True).attrs["unit"] = "1/s"
        run["same"] = h5py.SoftLink("counts")
        file["texts"] = ["a", "bc", "\u00e9"]
        file["soft"] = h5py.SoftLink("/run/counts")


def check_legacy(path: Path) -> None:
    """Other programs see it as it was."""
    with h5py.File(path) as file:
        assert (file["scan"].compression, file["scan"].chunks) == ("gzip", (100, 1000))
        assert file["scan"].attrs["unit"] == "V"
        assert file["scan"].attrs["limits"].tolist() == [0.5, 2.5]
        assert file["run"].attrs["operator"] == "somebody"
        assert (file["run/counts"].compression, file["run/counts"].shuffle) == ("lzf", True)
        assert file["run/counts"].attrs["unit"] == "1/s"
        assert file["run/same"][:].tolist() == list(range(10_000))
        assert file["texts"].asstr()[:].tolist() == ["a", "bc", "\u00e9"]


def test_objects_of_others_are_copied_as_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With attributes and compression, by every change, and whenever the file is written anew."""
    legacy(path)
    before, nbytes = load(path), path.stat().st_size
    for number in range(6):
        monkeypatch.setattr(HDF5Store, "_needs_compaction", lambda *_, is_anew=number % 2: bool(is_anew))
        with opened(path, trusted=True) as store:
            inode = path.stat().st_ino
            put(store, f"n{number}", np.arange(number))
            store.commit(WORK)
            assert (path.stat().st_ino != inode) == (number in (0, 1, 3, 5))
            assert_same(read(store, "run"), before["run"])
        check_legacy(path)
        assert_same(load(path), before | {f"n{n}": np.arange(n) for n in range(number + 1)})
        assert path.stat().st_size < nbytes + (number + 2) * 60_000
    with opened(path, trusted=True) as store:
        for key in before:
            store.delete(key, WORK)
        store.commit(WORK)
        put(store, "last", 1)
        store.commit(WORK)
    with opened(path) as store:  # none of theirs is left
        assert list(store.entries) == [*(f"n{n}" for n in range(6)), "last"]


def test_a_file_with_objects_of_others_does_not_grow(path: Path) -> None:
    """They count as what lives, so the file is written anew now and then, and not always."""
    legacy(path)
    inodes = set()
    with opened(path, trusted=True) as store:
        for number in range(40):
            put(store, "mine", np.full(50_000, number))
            store.commit(WORK)
            inodes.add(path.stat().st_ino)
            assert path.stat().st_size < 3 * (400_000 + 100_000) + (4 << 20)
    assert 2 <= len(inodes) <= 20
    check_legacy(path)


@pytest.mark.parametrize("operation", ["create", "write", "truncate", "sync", "link", "rename", "sync_directory"])
def test_a_failure_while_they_are_copied(operation: str, path: Path) -> None:
    """The old file stays as it was, and the next flush does it."""
    legacy(path)
    before = path.read_bytes()
    disk = FaultyDisk()
    with opened(path, disk, trusted=True) as store:
        put(store, "mine", 1)
        count = 0
        while True:
            disk.heal()
            disk.fail(operation, errno.EIO, after=count)
            try:
                store.commit(WORK)
            except OSError:
                if operation != "sync_directory":
                    assert path.read_bytes() == before
                count += 7
                continue
            break
    assert count
    check_legacy(path)
    assert load(path)["mine"] == 1


def test_a_full_disk_while_they_are_copied(path: Path) -> None:
    """The error is the disk's, whatever libhdf5 makes of it."""
    legacy(path)
    disk = FaultyDisk()
    with opened(path, disk, trusted=True) as store:
        put(store, "mine", 1)
        disk.fail("write", errno.ENOSPC, lasting=True)
        with pytest.raises(OSError, match="No space left") as caught:
            store.commit(WORK)
        assert caught.value.errno == errno.ENOSPC
        disk.heal()
        store.commit(WORK)
    check_legacy(path)


# --- names that are no UTF-8 ------------------------------------------------------------------------------------------


def test_names_that_are_no_utf8(path: Path) -> None:
    """They are keys, as the names of files are: what is listed can be read, in groups, too, and is carried over."""
    space = h5py.h5s.create_simple((3,))
    with h5py.File(path, "w") as file:
        group = h5py.h5g.create(file.id, b"gr\xfcn")
        for parent, name in ((file.id, b"caf\xe9"), (group, b"x\xff")):
            h5py.h5d.create(parent, name, h5py.h5t.NATIVE_INT64, space).write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3))
        file["soft"] = h5py.SoftLink("plain")
        file["plain"] = [1]
    expected = {
        "caf\udce9": np.arange(3),
        "gr\udcfcn": {"x\udcff": np.arange(3)},
        "plain": np.array([1]),
        "soft": np.array([1]),
    }
    assert_same(load(path), expected)
    with opened(path, trusted=True) as store:
        put(store, "new", 1)
        store.commit(WORK)
    assert_same(load(path), expected | {"new": 1})
