"""The block engine: files from plans and back, by direct and buffered I/O, whatever the disk does to its writes."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xxhash
from helpers.support import FORMATS, assert_same, load_from, save_to, verify
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt import CorruptCheckpointError
from asyncckpt.disk import read_blocks, write_blocks
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord, Manifest, decode_manifest
from asyncckpt.disk.ops import O_DIRECT, DiskOps
from asyncckpt.disk.plan import FilePlan, PlanEntry, Span
from asyncckpt.disk.read_blocks import Target
from asyncckpt.disk.write_blocks import Content, Part, Progress, digest_parts, write_all, write_bytes, write_content
from asyncckpt.runtime.context import JobContext
from asyncckpt.runtime.memory import PAGE_NBYTES, aligned_buffer
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.storage.local.reader import LocalFile, open_path
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

MIB = 1 << 20


class Recording(DiskOps):
    """The real disk, noting how files are opened and written."""

    def __init__(self) -> None:
        self.direct: list[bool] = []
        self.writes: list[tuple[int, int, int]] = []

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create a file."""
        self.direct.append(direct)
        return super().create(path, direct=direct)

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write."""
        self.writes.append((offset, sum(map(len, buffers)), len(buffers)))
        return super().write(fd, buffers, offset)


class NoDirectOpen(Recording):
    """A file system that refuses O_DIRECT, after it has created the file."""

    def create(self, path: Path, *, direct: bool = False) -> int:
        """Create a file."""
        if direct:
            os.close(super().create(path))
            raise OSError(errno.EINVAL, "no direct I/O here")
        return super().create(path)


class NoDirectWrite(Recording):
    """A file system that takes the flag and refuses the write."""

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write, if the flag is gone."""
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O after all")
        return super().write(fd, buffers, offset)


class ShortWrites(Recording):
    """A disk that takes a part of each write only."""

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write about a third."""
        nbytes = sum(map(len, buffers))
        wanted = max(nbytes // 3 // PAGE_NBYTES * PAGE_NBYTES, min(PAGE_NBYTES, nbytes))
        some: list[Any] = []
        for buffer in buffers:
            some.append(buffer[:wanted])
            wanted -= len(some[-1])
            if wanted == 0:
                break
        return super().write(fd, some, offset)


class OddWrites(NoDirectOpen):
    """One that takes no whole pages either."""

    def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
        """Write an odd number of bytes."""
        first = buffers[0][:70_001]
        return super().write(fd, [first], offset)


DISKS = [Recording, NoDirectOpen, NoDirectWrite, ShortWrites, OddWrites]


class Memory:
    """Arrays as a snapshot has them: in one run, in several, or to be copied out."""

    def __init__(self, arrays: Sequence[NDArray[np.uint8]], how: Sequence[str]) -> None:
        self.arrays = arrays
        self.how = how

    def view(self, array: int, start: int, nbytes: int) -> list[NDArray[np.uint8]] | None:
        """Return the memory."""
        run = self.arrays[array][start : start + nbytes]
        if self.how[array] == "parts":
            return [run[: nbytes // 3], run[nbytes // 3 :]] if nbytes >= 3 else [run]
        return [run] if self.how[array] == "whole" else None

    def copy_to(self, target: NDArray[np.uint8], array: int, start: int) -> None:
        """Copy out."""
        target[:] = self.arrays[array][start : start + len(target)]


def aligned(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy to aligned memory."""
    made = aligned_buffer(len(data))
    made[:] = data
    return made


def check_file(path: Path, record: FileRecord, expected: bytes) -> None:
    """Assert a file's contents and that its digests are those of its blocks."""
    data = path.read_bytes()
    assert data == expected
    assert record.nbytes == len(expected)
    found = [data[i : i + DIGEST_BLOCK_NBYTES] for i in range(0, len(data), DIGEST_BLOCK_NBYTES)]
    assert record.digests == b"".join(map(xxhash.xxh3_128_digest, found))


def plan_of(
    sizes: Sequence[int], rng: np.random.Generator, *, on_pages: bool
) -> tuple[FilePlan, list[NDArray[np.uint8]], bytes]:
    """Lay arrays out with gaps, and own bytes between them."""
    arrays, chunks, at = [], [PlanEntry(0, 11, b"hello world")], 11
    expected = bytearray(b"hello world")
    for number, size in enumerate(sizes):
        offset = -(-at // PAGE_NBYTES) * PAGE_NBYTES if on_pages else at + int(rng.integers(0, 70))
        data = np.frombuffer(rng.bytes(size), np.uint8)
        arrays.append(data)
        expected += bytes(offset - len(expected)) + data.tobytes()
        if size > 5 and number % 3 == 1:
            chunks += [PlanEntry(offset, 5, Span(number, 0)), PlanEntry(offset + 5, size - 5, Span(number, 5))]
        elif size:
            chunks.append(PlanEntry(offset, size, Span(number, 0)))
        at = offset + size
    end = -(-at // PAGE_NBYTES) * PAGE_NBYTES
    return FilePlan(end, chunks, 0, 11), arrays, bytes(expected) + bytes(end - len(expected))


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("block_mib", [1, 2, 16])
@pytest.mark.parametrize("on_pages", [True, False])
def test_files_are_what_their_plans_say(tmp_path: Path, disk: type[Recording], block_mib: int, on_pages: bool) -> None:
    """Every plan becomes its file, digests included: direct or not, short writes or not, aligned memory or not."""
    rng = np.random.default_rng(block_mib)
    sizes = [0, 1, 100, 4096, 70_000, 2 * MIB + 5, 65_536, 3 * MIB, 17, 1_234_567]
    plan, arrays, expected = plan_of(sizes, rng, on_pages=on_pages)
    for how in ("whole", "parts", "copied"):
        memory = Memory([aligned(each) if i % 2 else each for i, each in enumerate(arrays)], [how] * len(arrays))
        ops = disk()
        copied: list[int] = []
        written: list[int] = []
        progress = Progress()
        progress.copied = lambda done=copied: done.append(1)  # type: ignore[method-assign, misc]
        progress.written = written.append  # type: ignore[method-assign]
        content = Content(plan, memory, block_mib * MIB, progress)
        record = write_content(ops, tmp_path / how, content, JobContext())
        check_file(tmp_path / how, record, expected)
        assert copied == [1]
        assert sum(written) == plan.nbytes
        assert max(count for _, _, count in ops.writes) <= 1024
        if disk is Recording:
            assert ops.direct[0] == bool(O_DIRECT)
            assert len(ops.writes) == -(-plan.nbytes // (block_mib * MIB)), "one write for a block"


@given(
    sizes=st.lists(st.integers(0, 9000) | st.integers(60_000, 300_000), max_size=10),
    seed=st.integers(0, 99),
    on_pages=st.booleans(),
    is_direct=st.booleans(),
)
def test_any_plan(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, on_pages: bool, is_direct: bool
) -> None:
    """Chunks of any sizes at any offsets come out right."""
    rng = np.random.default_rng(seed)
    plan, arrays, expected = plan_of(sizes, rng, on_pages=on_pages)
    how = [str(rng.choice(["whole", "parts", "copied"])) for _ in sizes]
    memory = Memory([aligned(each) if rng.integers(2) and len(each) else each for each in arrays], how)
    path = tmp_path_factory.mktemp("any") / "file"
    minimum = write_blocks.DIRECT_MIN_NBYTES
    write_blocks.DIRECT_MIN_NBYTES = 0 if is_direct else 1 << 60  # type: ignore[misc]
    try:
        record = write_content(DiskOps(), path, Content(plan, memory, MIB), JobContext())
    finally:
        write_blocks.DIRECT_MIN_NBYTES = minimum  # type: ignore[misc]
    check_file(path, record, expected)
    path.unlink()


def test_small_files_go_through_the_page_cache(tmp_path: Path) -> None:
    """Below the threshold direct I/O is not even asked for."""
    ops = Recording()
    plan = FilePlan(PAGE_NBYTES, [PlanEntry(0, 3, b"abc")], 0, 3)
    record = write_content(ops, tmp_path / "f", Content(plan, Memory([], [])), JobContext())
    check_file(tmp_path / "f", record, b"abc" + bytes(PAGE_NBYTES - 3))
    assert ops.direct == [False]


def test_a_refused_direct_file_is_removed_through_the_disk(tmp_path: Path) -> None:
    """What a file system created before it refused direct I/O is removed by an operation that tests can see."""

    class Both(NoDirectOpen, FaultyDisk):
        def __init__(self) -> None:
            FaultyDisk.__init__(self)
            Recording.__init__(self)

    ops = Both()
    plan = FilePlan(2 * MIB, [], 0, 0)
    write_content(ops, tmp_path / "f", Content(plan, Memory([], [])), JobContext())
    assert "unlink" in ops.names()


@pytest.mark.parametrize("form", FORMATS)
def test_thousands_of_small_arrays(tmp_path: Path, form: str) -> None:
    """No write or read hands the system more chunks than it takes, however small the arrays."""
    state = [np.full(i % 300, i, "u2") for i in range(5000)] + [np.full(70_000, i, "u1") for i in range(40)]
    save_to(tmp_path, 1, state, form=form)
    verify(tmp_path, 1)
    assert_same(load_from(tmp_path, 1), state)
    save_to(tmp_path, 2, state, form=form, frozen=True)
    assert_same(load_from(tmp_path, 2), state)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("block_nbytes", [MIB, 2 * MIB, 16 * MIB])
def test_frozen_arrays_of_any_alignment(tmp_path: Path, form: str, block_nbytes: int) -> None:
    """Arrays that are written from where they lie may lie anywhere, and in any layout."""
    memory = np.frombuffer(np.random.default_rng(1).bytes(6 * MIB), np.uint8)
    page = aligned(memory)
    state = {
        "odd": memory[1 : 2 * MIB],
        "page": page[: 2 * MIB],
        "off by 64": page[64 : 2 * MIB + 64],
        "strided": memory[::3],
        "transposed": page.view("<f8")[: 2**18].reshape(512, 512).T,
        "read-only": np.broadcast_to(np.float32(2), (1000, 300)),
    }
    expected = {key: value.copy() for key, value in state.items()}
    save_to(tmp_path, 1, state, form=form, frozen=True, block_nbytes=block_nbytes)
    verify(tmp_path, 1)
    assert_same(load_from(tmp_path, 1), expected)


def test_stopping_ends_within_a_block(tmp_path: Path) -> None:
    """A set flag is seen before the next block; the file is closed."""
    stop = StopFlag()
    written: list[int] = []

    def on_written(nbytes: int) -> None:
        written.append(nbytes)
        stop.set()

    with pytest.raises(Stopped):
        progress = Progress()
        progress.written = on_written  # type: ignore[method-assign]
        content = Content(FilePlan(5 * MIB, [], 0, 0), Memory([], []), MIB, progress)
        write_content(DiskOps(), tmp_path / "f", content, JobContext(stop=stop))
    assert written == [MIB]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_errors_of_the_disk_come_out(tmp_path: Path, code: int) -> None:
    """An error of a write or a sync is raised as it is, and nothing is tried again."""
    for operation in ("create", "write", "sync"):
        disk = FaultyDisk()
        disk.fail(operation, code)
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            write_content(
                disk, tmp_path / operation, Content(FilePlan(2 * MIB, [], 0, 0), Memory([], [])), JobContext()
            )
        assert caught.value.errno == code
        assert disk.names().count(operation) == 1


def test_a_full_disk_is_told_after_a_short_write(tmp_path: Path) -> None:
    """A buffered write that took a few bytes goes on, and meets the error that says why."""

    class Full(DiskOps):
        taken = 0

        def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:
            self.taken += 1
            if self.taken == 1:
                return super().write(fd, [buffers[0][:100]], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plan = FilePlan(PAGE_NBYTES, [PlanEntry(0, 4000, b"x" * 4000)], 0, 0)
    with pytest.raises(OSError, match="No space") as caught:
        write_content(Full(), tmp_path / "f", Content(plan, Memory([], [])), JobContext())
    assert caught.value.errno == errno.ENOSPC


def test_a_disk_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    """A write of no bytes without an error does not go on for ever."""

    class Deaf(DiskOps):
        def write(self, fd: int, buffers: Sequence[bytes | NDArray[Any]], offset: int) -> int:  # noqa: ARG002
            return 0

    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    with pytest.raises(OSError, match="0 bytes"):
        write_all(Deaf(), fd, [Part(0, np.zeros(10, np.uint8))])
    os.close(fd)


@pytest.mark.parametrize("data", [b"", b"x", b"abc" * 1_000_000])
def test_small_documents(tmp_path: Path, data: bytes) -> None:
    """Whole files of bytes are written and recorded, empty ones too."""
    check_file(tmp_path / "f", write_bytes(DiskOps(), tmp_path / "f", data), data)
    with pytest.raises(FileExistsError):
        write_bytes(DiskOps(), tmp_path / "f", data)


@given(cuts=st.lists(st.integers(0, 3 * MIB + 77), max_size=8))
def test_digests_do_not_depend_on_the_parts(cuts: list[int]) -> None:
    """However the bytes are cut into parts, the digests are those of the blocks."""
    data = np.frombuffer(np.random.default_rng(0).bytes(3 * MIB + 77), np.uint8)
    edges = sorted({0, len(data), *cuts})
    parts = [Part(low, data[low:high]) for low, high in itertools.pairwise(edges)]
    raw = data.tobytes()
    expected = [xxhash.xxh3_128_digest(raw[i : i + MIB]) for i in range(0, len(raw), MIB)]
    assert digest_parts(parts) == b"".join(expected)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Iterator[tuple[LocalFile, bytes]]:
    """Write a file of 20 MiB and a bit, with a manifest, and open it."""
    data = np.random.default_rng(5).bytes(20 * MIB + 1234)
    record = write_bytes(DiskOps(), tmp_path / "data", data)
    (tmp_path / "manifest.json").write_bytes(Manifest(step=3, created=0.0, files={"data": record}).encode())
    with open_path(tmp_path) as reader, reader.open("data") as file:
        yield file, data


def record_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note which ranges are read with preadv, as (begin, end)."""
    ranges: list[tuple[int, int]] = []

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        count = _PREADV(fd, buffers, offset)
        ranges.append((offset, offset + count))
        return count

    monkeypatch.setattr(read_blocks.os, "preadv", preadv)
    return ranges


_PREADV = os.preadv


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("helpers", [0, 3])
def test_reads_what_is_wanted(checkpoint: Any, is_whole: bool, helpers: int) -> None:
    """Targets of every size, neighbours and lone ones, across blocks and chunks, get their bytes."""
    file, data = checkpoint
    rng = np.random.default_rng(helpers)
    edges = sorted({0, len(data), *rng.integers(0, len(data), 60).tolist(), *range(8 * MIB - 50, 8 * MIB + 50, 10)})
    found = {}
    targets = []
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        if number % 5 == 4:
            continue
        found[low, high] = np.zeros(high - low, np.uint8)
        if number % 2:
            targets.append(Target(low, high - low, found[low, high]))
            continue

        def store(position: int, part: NDArray[np.uint8], place: NDArray[np.uint8] = found[low, high]) -> None:
            place[position : position + len(part)] = part

        targets.append(Target(low, high - low, None, store))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as executor:
        context = JobContext(executor if helpers else None, helpers=helpers)
        file.read(targets, context, is_whole=is_whole)
    for (low, high), array in found.items():
        assert array.tobytes() == data[low:high]


def test_reads_only_the_blocks_that_are_needed(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest block is read if and only if it holds a wanted byte; neighbours are read together."""
    file, _ = checkpoint
    ranges = record_reads(monkeypatch)
    wanted = [(MIB + 5, 10), (4 * MIB - 1, 2), (5 * MIB, MIB), (20 * MIB, 1000)]
    file.read([Target(low, n, np.zeros(n, np.uint8)) for low, n in wanted])
    joined = [(3 * MIB, 5 * MIB), (5 * MIB, 6 * MIB)]  # up to a chunk
    assert sorted(ranges) == [(MIB, 2 * MIB), *joined, (20 * MIB, 20 * MIB + 1234)]


def test_short_reads_go_on(checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that gives less than asked for goes on where it stopped."""
    file, data = checkpoint
    monkeypatch.setattr(
        read_blocks.os, "preadv", lambda fd, buffers, offset: _PREADV(fd, [buffers[0][:99_999]], offset)
    )
    found = np.zeros(3 * MIB, np.uint8)
    file.read([Target(77, len(found), found)])
    assert found.tobytes() == data[77 : 77 + len(found)]


@pytest.fixture
def cold_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Open a checkpoint with one file of whole pages, which the page cache is said not to hold."""
    data = np.random.default_rng(2).bytes(20 * MIB + PAGE_NBYTES)
    record = write_bytes(DiskOps(), tmp_path / "data", data)
    (tmp_path / "manifest.json").write_bytes(Manifest(step=3, created=0.0, files={"data": record}).encode())
    monkeypatch.setattr(read_blocks.MappedFile, "is_cached", lambda _: False)
    with open_path(tmp_path) as reader, reader.open("data") as file:
        yield file, data


@pytest.mark.parametrize("is_refused", [False, True])
def test_what_is_not_cached_is_read_directly(
    cold_checkpoint: Any, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """A cold file is read past the page cache, in whole pages into page-aligned memory; refused, it is read through."""
    file, data = cold_checkpoint
    refused = []

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            if is_refused:
                refused.append(offset)
                raise OSError(errno.EINVAL, "no direct I/O after all")
            places = [(buffer.ctypes.data, len(buffer)) for buffer in buffers]
            assert all(number % PAGE_NBYTES == 0 for place in (*places, (offset,)) for number in place)
        else:
            assert refused
        return _PREADV(fd, buffers, offset)

    monkeypatch.setattr(read_blocks.os, "preadv", preadv)
    odd = aligned_buffer(5 * MIB)[7:]
    wanted = [
        (100, aligned_buffer(MIB)),  # its memory is aligned, its place in the file is not
        (2 * MIB, aligned_buffer(6 * MIB + 17)),  # goes into place but for its end
        (9 * MIB, odd),  # the other way round
        (15 * MIB + 1, np.zeros(1000, np.uint8)),
        (16 * MIB, aligned_buffer(4 * MIB + PAGE_NBYTES)),
    ]
    file.read([Target(low, len(found), found) for low, found in wanted])
    for low, found in wanted:
        assert found.tobytes() == data[low : low + len(found)]


def test_short_direct_reads_go_on_from_a_page(cold_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct read that stopped inside a page goes on from where that began."""
    file, data = cold_checkpoint
    monkeypatch.setattr(read_blocks.os, "preadv", lambda fd, buffers, at: min(_PREADV(fd, buffers, at), MIB + 99))
    ranges = []
    file.read(
        [Target(0, len(data), found := aligned_buffer(len(data)))],
        on_begin=lambda *r: ranges.append(r),
    )
    assert len(ranges) == 11
    assert found.tobytes() == data


def test_memory_is_populated_some_way_ahead_of_direct_reads(
    cold_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading past the page cache, a crew makes memory ready before it is read into, and not all of it at once."""
    file, data = cold_checkpoint
    monkeypatch.setattr(read_blocks, "_CHUNKS_AHEAD", 3)
    places = {0: aligned_buffer(11 * MIB + 3), 12 * MIB: np.empty(1000, np.uint8), 13 * MIB: aligned_buffer(7 * MIB)}
    made: list[tuple[int, int]] = []
    ahead = list[int]()

    def populate(memory: NDArray[np.uint8]) -> None:
        made.append((memory.ctypes.data, memory.nbytes))

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        known = [(found.ctypes.data, found.nbytes) for found in places.values()]
        for buffer in buffers:
            address = buffer.ctypes.data
            if any(low <= address < low + nbytes for low, nbytes in known):
                assert (address, buffer.nbytes) in made
        ahead.append(sum(nbytes for _, nbytes in made) - offset)
        return _PREADV(fd, buffers, offset)

    monkeypatch.setattr(read_blocks, "populate", populate)
    monkeypatch.setattr(read_blocks.os, "preadv", preadv)
    file.read([Target(low, len(found), found) for low, found in places.items()], JobContext())
    assert len(set(made)) == len(made) > 8
    assert max(ahead) <= 3 * read_blocks.CHUNK_NBYTES
    assert all(found.tobytes() == data[low : low + len(found)] for low, found in places.items())


def test_a_damaged_block_ends_the_populating(
    cold_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is not made ready for what will not be read any more."""
    file, data = cold_checkpoint
    made: list[int] = []
    monkeypatch.setattr(read_blocks, "_CHUNKS_AHEAD", 2)
    monkeypatch.setattr(read_blocks, "populate", lambda memory: made.append(memory.nbytes))
    with (tmp_path / "data").open("r+b") as raw:
        raw.write(bytes([data[0] ^ 1]))
    found = aligned_buffer(len(data))
    with pytest.raises(CorruptCheckpointError):
        file.read([Target(0, len(found), found)], JobContext())
    assert sum(made) <= 2 * read_blocks.CHUNK_NBYTES


@pytest.mark.parametrize(("written", "is_cached"), [(0, False), (4, False), (12, True), (16, True)])
def test_a_file_is_cached_if_most_of_it_is(tmp_path: Path, written: int, is_cached: bool) -> None:
    """The page cache is asked about a sample of the file's pages; one never read or written lies nowhere."""
    with (tmp_path / "data").open("wb") as file:
        file.write(bytes(written * MIB))
        file.truncate(16 * MIB)
    fd = os.open(tmp_path / "data", os.O_RDONLY)
    assert read_blocks.MappedFile(fd).is_cached() == is_cached
    os.close(fd)


@pytest.mark.parametrize("at", [0, MIB - 1, MIB, 8 * MIB, 20 * MIB + 1233])
def test_a_flipped_bit_is_found_where_it_is_needed(tmp_path: Path, at: int) -> None:
    """A changed byte fails the reads that touch its block, naming the block, and no others."""
    data = bytearray(np.random.default_rng(5).bytes(20 * MIB + 1234))
    record = write_bytes(DiskOps(), tmp_path / "data", bytes(data))
    data[at] ^= 1
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(Manifest(step=3, created=0.0, files={"data": record}).encode())
    block = at // MIB
    with open_path(tmp_path) as reader:
        with pytest.raises(CorruptCheckpointError, match=f"block at byte {block * MIB} ") as caught:
            reader.verify("data", JobContext())
        assert (caught.value.step, caught.value.file) == (3, "data")
        for other in (2, 5, 19):
            if other != block:
                assert reader.read_range("data", other * MIB, 100) == bytes(data[other * MIB : other * MIB + 100])
        with pytest.raises(CorruptCheckpointError):
            reader.read_range("data", at, 1)


@pytest.mark.parametrize("kind", ["short", "long", "gone", "link", "folder", "pipe"])
def test_files_that_are_not_what_was_written(tmp_path: Path, kind: str) -> None:
    """Another size, a missing file and what is no regular file is corruption, and never followed or waited for."""
    record = write_bytes(DiskOps(), tmp_path / "data", b"x" * 5000)
    (tmp_path / "manifest.json").write_bytes(Manifest(step=3, created=0.0, files={"data": record}).encode())
    path = tmp_path / "data"
    path.rename(tmp_path / "aside")
    if kind in ("short", "long"):
        path.write_bytes(b"x" * (4999 if kind == "short" else 5001))
    elif kind == "link":
        path.symlink_to(tmp_path / "aside")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with open_path(tmp_path) as reader, pytest.raises(CorruptCheckpointError) as caught:
        reader.read_small("data")
    assert caught.value.file == "data"
    assert "step 3" in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read(checkpoint: Any, tmp_path: Path) -> None:
    """A file cut short after it was opened is corruption, too."""
    file, _ = checkpoint
    os.truncate(tmp_path / "data", 5 * MIB)
    with pytest.raises(CorruptCheckpointError, match="ends at byte"):
        file.read([], is_whole=True)


def test_a_reader_stays_with_the_directory_it_opened(tmp_path: Path) -> None:
    """All files come from the directory that was opened, whatever takes its name meanwhile."""
    for name, text in (("a", b"old"), ("b", b"new")):
        (tmp_path / name).mkdir()
        record = write_bytes(DiskOps(), tmp_path / name / "data", text)
        (tmp_path / name / "manifest.json").write_bytes(Manifest(step=3, created=0.0, files={"data": record}).encode())
    with open_path(tmp_path / "a") as reader:
        (tmp_path / "a").rename(tmp_path / "c")
        (tmp_path / "b").rename(tmp_path / "a")
        assert reader.read_small("data") == b"old"


def test_every_changed_byte_of_a_manifest_is_found() -> None:
    """A manifest with any bit changed, or cut anywhere, is refused."""
    data = Manifest(step=3, created=0.5, files={"data": FileRecord(5, b"x" * 16)}).encode()
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(CorruptCheckpointError):
                decode_manifest(bytes(changed), 3)
        with pytest.raises(CorruptCheckpointError):
            decode_manifest(data[:position], 3)
    with pytest.raises(CorruptCheckpointError, match="step 3"):
        decode_manifest(data, 4)
