"""A kill or a fault at any moment: the file holds the last completed flush or a later one, all keys together."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import random
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
from helpers.kinds import Place
from helpers.support import assert_same, canonical, descriptors_below

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Killed(BaseException):
    """The process is dead: nothing that follows reaches the disk."""


def kill() -> None:
    """End the process, as far as its disk can tell."""
    raise Killed


def rounds(number: int) -> Iterator[tuple[Callable[[asyncckpt.Checkpointer], None], dict[str, Any]]]:
    """Yield what is done before each flush, and what there is after it."""
    expected: dict[str, Any] = {}

    def step(change: Callable[[Any], None]) -> tuple[Callable[[Any], None], dict[str, Any]]:
        change(expected)
        return change, dict(expected)

    def first(chk: Any) -> None:
        chk["a"] = number
        chk["large"] = np.full(30_000, number)
        chk["b"] = {"x": [number, "text"]}

    def replaced(chk: Any) -> None:
        chk["large"] = np.full(40_000, number + 1)
        chk["a"] = number + 1
        chk["c"] = "new"

    def deleted(chk: Any) -> None:
        del chk["a"]
        chk["b"] = {"x": [number + 2, "text"]}
        chk["a"] = number + 2

    def huge(chk: Any) -> None:
        chk["huge"] = np.full(150_000, number)
        chk["large"] = np.full(20_000, number + 3)

    def gone(chk: Any) -> None:
        del chk["huge"]
        chk["b"] = number + 4

    for change in (first, replaced, deleted, huge, gone):
        yield step(change)


def run(file: Place, disk: FaultyDisk, number: int, flushed: list[dict[str, Any]]) -> None:
    """Make all changes, in two sessions, noting each flush that was completed."""
    steps = list(rounds(number))
    for session in (steps[:2], steps[2:]):
        with file.open(disk=disk) as chk:
            for change, expected in session:
                change(chk)
                chk.flush()
                flushed.append(expected)


def test_killed_before_any_operation(file: Place) -> None:
    """At each change of the disk in turn: what is found is one flush, the last completed one or the one under way."""
    for count in itertools.count():
        file.name = f"killed{count}"
        disk = FaultyDisk()
        disk.fail(None, kill, after=count, lasting=True)
        flushed: list[dict[str, Any]] = [{}]
        try:
            run(file, disk, 0, flushed)
        except Killed:
            pass
        else:
            break
        gc.collect()  # a dead process holds no lock
        found = file.contents()
        later = [expected for _, expected in rounds(0)][len(flushed) - 1 : len(flushed)]
        assert any(canonical(found) == canonical(each) for each in [flushed[-1], *later]), (count, list(found))
        with file.open() as chk:  # and the next writer goes on
            chk["after"] = count
        assert_same(file.contents(), found | {"after": count})
        left = {each.name for each in file.directory.glob(f"*killed{count}*")}
        assert left == {file.path.name}
    assert count > 20


@pytest.mark.parametrize(("code", "lasting"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_a_fault_at_any_operation(file: Place, code: int, lasting: bool) -> None:
    """Each reaches the caller, or is harmless; nothing that was flushed is lost; a healthy disk is written to again."""
    for count in itertools.count():
        file.name = f"fault{count}"
        disk = FaultyDisk()
        disk.fail(None, code, after=count, lasting=lasting)
        flushed: list[dict[str, Any]] = [{}]
        try:
            run(file, disk, 0, flushed)
        except OSError as error:
            assert error.errno == code  # noqa: PT017 - it need not be raised
        gc.collect()
        found = file.contents()
        # A change that failed left its block, which flushed those before it: each value is the old one or the next.
        later = [expected for _, expected in rounds(0)][len(flushed) - 1 : len(flushed)]
        possible = [canonical(each.get(key)) for key in found for each in (flushed[-1], *later)]
        assert all(canonical(value) in possible for value in found.values())
        assert {*flushed[-1]} & {*(later or [{}])[0]} <= {*found} | {"a"}
        with file.open() as chk:
            chk["after"] = count
        assert_same(file.contents(), found | {"after": count})
        if len(disk.operations) <= count:
            break


def test_after_a_rename_whose_sync_failed_the_renamed_file_is_written(file: Place) -> None:
    """The new file has the name, although the flush failed: what is flushed next must not go to the old one."""
    disk = FaultyDisk()
    with file.open(disk=disk) as chk:
        chk["a"] = np.zeros(30_000)
        chk.flush()
        disk.fail("sync_directory", errno.EIO)
        number = 0
        with pytest.raises(OSError, match="Input/output error"):
            while number < 100:  # until the file is written to a new one
                number += 1
                chk["a"] = np.full(30_000, number)
                chk.flush()
        last, failed = [name for name in disk.names() if name != "unlink"][-2:]
        assert (last, failed) == ("rename", "sync_directory")
        chk["b"] = number
        chk.flush()
        assert_same(file.contents(), {"a": np.full(30_000, number), "b": number})


def test_a_flush_that_failed_can_be_tried_again(file: Place) -> None:
    """Once, at each operation: the same object goes on, what was set is kept, and no failed sync is repeated."""
    for count in itertools.count():
        file.name = f"again{count}"
        disk = FaultyDisk()
        with file.open(disk=disk) as chk:
            for change, expected in rounds(0):
                change(chk)
                disk.fail(None, errno.EIO, after=count)
                before = len(disk.operations)
                try:
                    chk.flush()
                except OSError:
                    chk.flush()
                is_over = len(disk.operations) - before <= count
                disk.heal()
                assert_same(file.contents(), expected)
                assert_same(dict(chk), expected)
        if is_over:
            break


@pytest.mark.parametrize("kind", ["msgpack"])
def test_what_is_lost_by_a_failed_sync_is_found_out(kind: str, quick_path: Path) -> None:
    """The kernel may forget pages that it failed to write: nothing is acknowledged that was not verified."""
    file = Place(kind, quick_path)
    disk = FaultyDisk()
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="'b'"), file.open(disk=disk) as chk:
        chk["a"] = 1
        chk.flush()
        chk["b"] = np.ones(100_000)
        disk.fail("sync", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            chk.flush()
        with file.path.open("r+b") as raw:
            raw.seek(400_000)
            raw.write(bytes(4096))
        chk.flush()
    assert file.contents() == {"a": 1}


# --- sizes ------------------------------------------------------------------------------------------------------------


def live_nbytes(contents: dict[str, Any]) -> int:
    """The bytes of the arrays, which is all there is in these tests."""
    return sum(value.nbytes for value in contents.values())


@pytest.mark.parametrize("seed", range(3))
def test_a_file_stays_within_three_times_what_lives(file: Place, seed: int) -> None:
    """After each flush, whatever the mix of sizes, sessions, replacements and deletions."""
    rng = random.Random(seed)  # noqa: S311 - a test's choices
    contents: dict[str, Any] = {}
    for _ in range(12):
        with file.open() as chk:
            for _ in range(rng.randint(1, 5)):
                for _ in range(rng.randint(1, 6)):
                    key = f"k{rng.randint(0, 9)}"
                    if key in contents and rng.random() < 0.3:
                        del chk[key], contents[key]
                    else:
                        contents[key] = np.full(int(10 ** rng.uniform(0, 5.4)), rng.random())
                        chk[key] = contents[key]
                chk.flush()
                assert file.path.stat().st_size <= 3 * live_nbytes(contents) + (4 << 20)
        assert_same(file.contents(), contents)


def test_small_updates_of_a_large_file_write_little(quick_path: Path) -> None:
    """Replacing 1 MiB in 64 MiB writes a few MiB each time, amortized; a new key is written once."""
    for kind in ("msgpack", "hdf5"):
        file = Place(kind, quick_path)
        disk = FaultyDisk()
        with file.open(disk=disk) as chk:
            for n in range(64):
                chk[f"k{n}"] = np.full(1 << 17, n)
            chk.flush()
            first = written(disk)
            assert first < 1.1 * (64 << 20)
            for n in range(100):
                chk[f"k{n % 64}"] = np.full(1 << 17, -n)
                chk.flush()
        assert written(disk) - first < 6 * (100 << 20)
        assert file.path.stat().st_size <= 3 * (64 << 20) + (4 << 20)


def written(disk: FaultyDisk) -> int:
    """The bytes of all writes so far."""
    return sum(operation.nbytes or 0 for operation in disk.operations if operation.name == "write")


# --- the msgpack log --------------------------------------------------------------------------------------------------


def log(quick_path: Path) -> Place:
    """A log of a few records and commits."""
    file = Place("msgpack", quick_path)
    with file.open() as chk:
        chk["a"] = 1
        chk.flush()
        chk["b"] = np.arange(20_000)
        chk["c"] = "text"
        chk.flush()
        chk["a"] = 2
        del chk["c"]
    return file


def test_any_msgpack_reader_takes_a_log_to_its_end(quick_path: Path) -> None:
    """Without options, beyond the size of its buffer."""
    with log(quick_path).path.open("rb") as raw:
        objects = list(msgpack.Unpacker(raw, max_buffer_size=1 << 30))
    heads = [each["asyncckpt"] for each in objects if isinstance(each, dict) and type(each["asyncckpt"]) is str]
    assert heads == ["keyed", "set", "commit", "set", "set", "commit", "set", "delete", "commit"]


def test_a_log_cut_off_anywhere_is_an_earlier_commit(quick_path: Path) -> None:
    """A torn tail counts for nothing, and is cut off, durably, by the next writer."""
    file = log(quick_path)
    data = file.path.read_bytes()
    states = [{"a": 1}, {"a": 1, "b": None, "c": "text"}, {"a": 2, "b": None}]
    seen = set()
    for nbytes in [*range(1, 700), *range(700, len(data), 997), *range(len(data) - 400, len(data))]:
        file.path.write_bytes(data[:nbytes])
        try:
            with file.open() as chk:
                keys = list(chk)
        except asyncckpt.CorruptCheckpointError:
            assert nbytes < data.index(b"commit") + 100  # not even one whole commit
            continue
        seen.add(tuple(keys))
        assert keys in [list(state) for state in states]
    assert len(seen) == 2
    file.path.write_bytes(data[:-10])
    disk = FaultyDisk()
    with file.open(disk=disk) as chk:
        assert chk["a"] == 1
        chk["d"] = 4
        names = disk.names()
        at = names.index("truncate")
        assert names[at : at + 3] == ["truncate", "sync", "write"]
    assert list(file.contents()) == ["a", "b", "c", "d"]
    assert_same(file.contents()["b"], np.arange(20_000))


def test_damage_before_the_last_commit_is_an_error(quick_path: Path) -> None:
    """Any byte of the records' heads, tails and commits that is changed: opening, or reading, names file and offset."""
    file = log(quick_path)
    expected = file.contents()
    data = bytearray(file.path.read_bytes())
    nothing = 0
    for position in [*range(0, 1200, 3), *range(1200, len(data), 1201), *range(len(data) - 200, len(data))]:
        data[position] ^= 0x55
        file.path.write_bytes(data)
        try:
            found = file.contents()
        except asyncckpt.CorruptCheckpointError as error:
            assert "byte" in str(error)  # noqa: PT017 - it need not be raised
            assert error.file == str(file.path)  # noqa: PT017
        except asyncckpt.UnsupportedFormatError:
            assert position < 100
        else:  # padding, which means nothing
            assert_same(found, expected)
            nothing += 1
        data[position] ^= 0x55
    assert nothing < 500


@pytest.mark.parametrize("is_front", [False, True])
@pytest.mark.parametrize("begin", [0, 20, 48, 60])
def test_a_commit_that_did_not_come_is_none(begin: int, is_front: bool, quick_path: Path) -> None:
    """What a power cut leaves of a commit's sector is zeros, and some were zeros before: the last commit counts."""
    file = Place("msgpack", quick_path)
    for padding in range(600):  # until the last commit lies across a sector's boundary, or within one
        file.path.unlink(missing_ok=True)
        with file.open() as chk:
            chk["a"] = 1
            chk.flush()
            chk["b"] = "x" * padding
        data = bytearray(file.path.read_bytes())
        at = data.rindex(b"commit") - 12  # of the record's beginning
        if (at + begin) % 512 == 0:
            break
    lost = slice(at, at + begin) if is_front and begin else slice(at + begin, len(data))
    data[lost] = bytes(lost.stop - lost.start)
    file.path.write_bytes(data)
    assert file.contents() == {"a": 1}
    with file.open() as chk:
        chk["c"] = 3
    assert file.contents() == {"a": 1, "c": 3}


def test_a_log_is_gone_on_with_as_it_was_read(quick_path: Path) -> None:
    """After a failed sync, the kernel may show a commit, and forget it when it needs the memory."""
    file = log(quick_path)
    with file.open() as chk:
        assert chk["a"] == 2
        found = file.path.stat()
        data = file.path.read_bytes()
        at = data.rindex(b"commit")
        with file.path.open("r+b") as raw:
            raw.seek(at)
            raw.write(bytes(len(data) - at))
        os.utime(file.path, ns=(found.st_atime_ns, found.st_mtime_ns))
        chk["d"] = 4
    assert list(file.contents()) == ["a", "b", "d"]


@pytest.mark.parametrize("kind", ["msgpack", "hdf5"])
def test_a_file_that_is_replaced_after_a_failed_start_is_read_again(kind: str, quick_path: Path) -> None:
    """Who could not become the writer does not know, at the next try, what is in the file: it must not be cut off."""
    file, other = Place(kind, quick_path), Place(kind, quick_path)
    other.name = "other"
    disk = FaultyDisk()
    with file.open() as chk:
        chk["a"] = 1
    with other.open() as chk:
        chk["b"] = np.arange(100_000)
    with file.open(disk=disk) as chk:
        assert chk["a"] == 1
        disk.fail("write", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            chk["c"] = 3
        other.path.rename(file.path)
        chk["c"] = 4
    assert_same(file.contents(), {"b": np.arange(100_000), "c": 4})


def test_a_log_of_another_version_is_not_called_damaged(quick_path: Path) -> None:
    """It takes a later release, and the error says so."""
    from asyncckpt.keyed.log import records

    head = records._pack({"asyncckpt": "keyed", "version": 2, "features": [], "id": bytes(16)})
    path = quick_path / "x.msgpack"
    path.write_bytes(head + records.tail(head, b""))
    with pytest.raises(asyncckpt.UnsupportedFormatError, match="later release"):
        dict(asyncckpt.Checkpointer.from_file(path))


@pytest.mark.parametrize("data", [b"\x00", b"garbage" * 100, msgpack.packb({"a": 1}), b"\xdf\xff\xff\xff\xff" * 10])
def test_what_is_no_log_is_refused(quick_path: Path, data: bytes) -> None:
    """A msgpack file of somebody else's is none of ours."""
    path = quick_path / "x.msgpack"
    path.write_bytes(data)
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="byte 0"):
        dict(asyncckpt.Checkpointer.from_file(path))


def test_a_log_that_another_program_cuts_short_is_damaged(quick_path: Path) -> None:
    """Rewriting a log whose records are gone is an error that names the key, and comes to an end."""
    with asyncckpt.Checkpointer.from_file(quick_path / "a.msgpack") as chk:
        chk["a"] = np.zeros(3 << 20, np.uint8)
        chk.flush()
        chk["b"] = np.zeros(4 << 20, np.uint8)
        del chk["b"]
        os.truncate(quick_path / "a.msgpack", 1000)
        with pytest.raises(asyncckpt.CorruptCheckpointError, match="'a' is cut off"):
            chk.flush()
        del chk["a"]
        chk["c"] = 1
    with asyncckpt.Checkpointer.from_file(quick_path / "a.msgpack") as chk:
        assert dict(chk) == {"c": 1}


def test_a_file_that_cannot_be_looked_at_leaves_nothing_open(file: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `fstat` fails, as it may on a network, no descriptor is lost, and no lock stays that nobody has."""
    with file.open() as chk:
        chk["a"] = 1
    fstat = os.fstat
    for number in itertools.count():
        calls = itertools.count()

        def failing(fd: int, number: int = number, calls: Iterator[int] = calls) -> os.stat_result:
            if next(calls) == number:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return fstat(fd)

        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", failing)
            try:
                with file.open() as chk:
                    chk["b"] = number
            except OSError as error:
                assert error.errno == errno.ESTALE  # noqa: PT017 - it need not be raised
        gc.collect()
        assert descriptors_below(file.directory) == []
        if next(calls) <= number:
            break
        with file.open() as chk:
            assert chk["a"] == 1
            chk["b"] = -1
    assert file.contents() == {"a": 1, "b": number}


def test_a_disk_that_stays_broken_takes_no_more_descriptors(file: Place) -> None:
    """However often a flush is tried: files that nothing needs are closed, and the disk has their room again."""
    disk = FaultyDisk()
    with file.open(disk=disk) as chk:
        chk["a"] = np.zeros(100_000)
        chk.flush()
        disk.fail("sync", errno.EIO, lasting=True)
        counts = []
        for number in range(8):
            chk["b"] = np.full(100_000, number)
            with pytest.raises(OSError, match="Input/output"):
                chk.flush()
            counts.append(len(descriptors_below(file.directory)))
        assert len(set(counts[2:])) == 1
        disk.heal()
        chk.flush()
        assert len(descriptors_below(file.directory)) <= counts[0]
    assert descriptors_below(file.directory) == []
    assert_same(file.contents(), {"a": np.zeros(100_000), "b": np.full(100_000, 7)})


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("operation", ["unlink", "sync"])
def test_a_file_that_is_closed_in_an_interrupt_is_not_left_locked(file: Place, operation: str) -> None:
    """Also if the interrupt comes while the file is closed: then the next writer need not be another process."""
    disk = FaultyDisk()
    kept = []
    try:
        with file.open(disk=disk) as chk:
            chk["a"] = 1
            chk.flush()
            disk.fail(operation, _interrupt)
    except KeyboardInterrupt as error:
        kept.append(error)  # with its frames
    assert descriptors_below(file.directory) == []
    with file.open() as chk:
        chk["b"] = 2
    assert file.contents() == {"a": 1, "b": 2}


def test_a_new_log_whose_compaction_is_interrupted_is_written_by_the_next_flush(quick_path: Path) -> None:
    """Its temporary file has been removed by then, so what was in it goes to another one."""
    disk = FaultyDisk()
    with asyncckpt.Checkpointer.from_file(quick_path / "a.msgpack", disk=disk) as chk:
        for number in range(4):
            chk["a"] = np.full(1 << 17, float(number))
        disk.fail("create", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            chk.flush()
        chk["b"] = np.zeros(1 << 20)
        chk.flush()
    with asyncckpt.Checkpointer.from_file(quick_path / "a.msgpack") as chk:
        assert chk["a"][0] == 3
        assert chk["b"].shape == (1 << 20,)
