"""One HDF5 file of ours: its commits and its values, read from the slots on, never through libhdf5.

1. Space that a commit refers to is never written again: what is new is appended, and a commit is one slot, written when
   everything it leads to is synced. So whoever is killed leaves the last commit, and whoever reads is never disturbed.
2. The superblock, which other tools begin with, follows the slot, when that is synced. If a kill comes between, they
   see the commit before, whole; the next writer puts it right. It cannot know whether the one before it was told that
   a sync had failed: so it writes again what may not have reached the disk.
3. A file whose superblock is not one that a commit of ours left, or whose catalog is not what the slot says, was
   changed by somebody else, and is not ours any more.
4. What is read of a value is verified before use, and so are its HDF5 objects, though they are not needed: so a change
   that another program made to them is told, and never undone by copying the value.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from xxhash import xxh3_128, xxh3_128_digest

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord
from asyncckpt.disk.plan import align
from asyncckpt.disk.read_blocks import Run, Target, read_run
from asyncckpt.disk.write_blocks import Content, Part, write_all, write_content_at
from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.formats.array_targets import fresh_array, targets_of
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.hdf5 import root_group as root
from asyncckpt.keyed.hdf5.catalog import (
    HEAD_NBYTES,
    Linked,
    Place,
    Region,
    Slot,
    decode_catalog,
    encode_catalog,
    find_slots,
    link_name,
    naming,
)
from asyncckpt.keyed.hdf5.region import RegionPlan, Value, array_of, digest_runs
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import Pacer, discard
from asyncckpt.state.index import Index, decode_index

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.disk.ops import DiskOps
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.segments import Segment

    Bytes = NDArray[np.uint8]

MAX_LEAVES: Final = 8192
"""Python leaves, and containers for their own sake, that HDF5 shows in one file; about 300 bytes each."""
_SMALL_NBYTES: Final = 1 << 16
_CACHED_BLOCKS: Final = 8


class ForeignFileError(Exception):
    """The file is not one of ours, or not any more; the message says why, as the end of a sentence."""


class DataFile:
    """An open file, at one commit, with room behind it for what is staged.

    Attributes:
        name: What error messages call it.
        places: Where the committed values lie, in the order of the keys.
        linked: Where the objects lie that other programs made, committed or not.
        end: Where the commit ends, and
        tail: where what is staged ends.
        is_suspect: Whether the disk failed where it must not: nobody knows what it holds, and no sync would tell.
    """

    def __init__(self, name: str, fd: int, linked: Mapping[str, Linked] | None = None, end: int = HEAD_NBYTES) -> None:
        self.name = name
        self.fd = fd
        self.places: dict[str, Place | Linked] = {}
        self.linked = dict(linked or {})
        self.is_suspect = False
        self.end = self.tail = align(end, PAGE_NBYTES)
        self._slot: Slot | None = None
        self._leaves_left = MAX_LEAVES
        self._blocks: dict[tuple[int, int], Bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, name: str, fd: int, pacer: Pacer) -> DataFile:
        """Read the last commit. The descriptor stays the caller's if this fails.

        Raises:
            ForeignFileError: The file is not ours, or not any more.
            CorruptCheckpointError: The catalog claims what cannot be.
            UnsupportedFormatError: A later release wrote it.
        """
        head = os.pread(fd, HEAD_NBYTES, 0)
        while True:
            try:
                with naming(name):
                    return cls._open_at(head, name, fd, pacer)
            except ForeignFileError:
                before, head = head, os.pread(fd, HEAD_NBYTES, 0)
                if head == before:
                    raise
                # A writer was at it: what was read was part of one commit and part of another.

    @classmethod
    def _open_at(cls, head: bytes, name: str, fd: int, pacer: Pacer) -> DataFile:
        file = cls(name, fd)
        slots = find_slots(head)
        if not slots:
            raise ForeignFileError("was not written by asyncckpt as a keyed file")
        found = head[: root.SUPERBLOCK_NBYTES]
        written = [root.superblock(slot.end, slot.root) for slot in slots]
        # Every byte is of one commit or of the other: also where a power failure cut the writing of it short.
        is_ours = all(byte in {each[at] for each in written} for at, byte in enumerate(found))
        nbytes = os.fstat(fd).st_size
        for slot, superblock in zip(slots, written, strict=True):
            is_there = is_ours and slot.offset + slot.nbytes == slot.end <= nbytes
            try:
                region = os.pread(fd, slot.nbytes, slot.offset) if is_there else b""
            except MemoryError as error:  # a sparse file may claim anything
                raise ForeignFileError(f"claims a catalog of {slot.nbytes} bytes") from error
            pacer.pause()
            if is_there and xxh3_128_digest(region) == slot.digest and slot.catalog_nbytes <= len(region):
                file.places = decode_catalog(region[: slot.catalog_nbytes], slot.end, pacer)
                file.end = file.tail = slot.end
                file._know_places()
                file._slot = slot
                return file
            if found == superblock:
                break  # everybody has seen this commit: the one before it is no substitute
        raise ForeignFileError("was changed by another program, or damaged, after asyncckpt wrote it")

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        discard(self.places, Pacer())

    # --- writing ------------------------------------------------------------------------------------------------------

    def recover(self, ops: DiskOps) -> None:
        """Become fit for writing: cut off what a killed writer left, and let other tools see the last commit."""
        if os.fstat(self.fd).st_size > self.tail:
            ops.truncate(self.fd, self.tail)
        slot = self._slot
        assert slot is not None  # noqa: S101 - it was opened
        superblock = root.superblock(slot.end, slot.root)
        if os.pread(self.fd, len(superblock), 0) != superblock:
            self._write(ops, slot.place, slot.encode())
            ops.sync(self.fd)  # no superblock without its slot: the file would not be ours any more
        self._write(ops, 0, superblock)

    def reopen(self, fd: int) -> None:
        """Go on with another descriptor of the same file."""
        os.close(self.fd)
        self.fd = fd

    def append(self, ops: DiskOps, values: Sequence[Value], work: JobContext) -> dict[str, Place]:
        """Write values behind everything there is, and return their places. Nothing is synced yet.

        Raises:
            OSError: The disk failed; what was written is written over by the next.
            UnsupportedLeafError: HDF5 cannot hold a value.
            Stopped: `work.stop` was set.
        """
        pacer = work.pacer
        region = RegionPlan(values, self.tail, pacer, max_leaves=self._leaves_left)
        image = None
        if all(value.is_small for value in values):
            image = region.image(pacer)
            record = FileRecord(len(image), b"")
            write_all(ops, self.fd, [Part(self.tail, image)])
        else:
            record = write_content_at(ops, self.fd, self.tail, Content(region.plan, region.arrays), work)
        self.tail += record.nbytes
        self._leaves_left = region.leaves_left
        return dict(region.places(record, image, pacer))

    def commit(self, ops: DiskOps, places: Mapping[str, Place | Linked], pacer: Pacer) -> None:
        """Make these the values of the file, durably.

        Raises:
            OSError: The disk failed. If the file `is_suspect` now, nothing may be written to it any more.
            Stopped: The pacer was stopped; nothing was written.
        """
        offset = self.tail
        chunks = encode_catalog(places, pacer)
        catalog_nbytes = sum(map(len, chunks))
        digest = xxh3_128()
        for chunk in chunks:
            digest.update(chunk)
            pacer.pause()
        links = [(link_name(key), place.address) for key, place in places.items() if place.address is not None]
        begin = align(offset + catalog_nbytes, 8)
        root_at, group = root.root_group(begin, links, (offset, catalog_nbytes, digest.digest()), pacer)
        end = align(begin + sum(map(len, group)), PAGE_NBYTES)
        behind = [bytes(begin - offset - catalog_nbytes), *group, bytes(end - begin - sum(map(len, group)))]
        for chunk in behind:
            digest.update(chunk)
            pacer.pause()
        out = Appender(ops, self.fd, offset)
        for chunk in (*chunks, *behind):
            out.write(chunk)
            pacer.pause()
        out.flush()
        number = 1 if self._slot is None else self._slot.number + 1
        slot = Slot(number, end, offset, end - offset, catalog_nbytes, root_at, digest.digest())
        superblock = root.superblock(end, root_at)
        self.is_suspect = True
        if self._slot is not None:
            ops.sync(self.fd)
            self._write(ops, slot.place, slot.encode())
            ops.sync(self.fd)
            self._write(ops, 0, superblock)
        else:  # nobody has seen the file yet
            head = superblock.ljust(slot.place, b"\0") + slot.encode()
            self._write(ops, 0, head.ljust(HEAD_NBYTES, b"\0"))
            ops.sync(self.fd)
        self.is_suspect = False
        self._slot = slot
        self.end = self.tail = end
        self.places = dict(places)
        self._know_places()

    def _know_places(self) -> None:
        """Count the leaves that live: what was replaced makes room for others."""
        self.linked = {key: place for key, place in self.places.items() if isinstance(place, Linked)}
        values = [place for place in self.places.values() if isinstance(place, Place)]
        shown = sum(not place.array_nbytes and place.address is not None for place in values)
        self._leaves_left = max(0, MAX_LEAVES - shown)

    def settle(self, ops: DiskOps) -> None:
        """Drop what is staged, and make durable what other tools see of the last commit."""
        if self.tail > self.end:
            ops.truncate(self.fd, self.end)
            self.tail = self.end
        ops.sync(self.fd)

    def _write(self, ops: DiskOps, offset: int, data: bytes) -> None:
        write_all(ops, self.fd, [Part(offset, np.frombuffer(data, np.uint8))])

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, key: str, place: Place, work: JobContext) -> tuple[Index, dict[int, NDArray[Any]]]:
        """Read a value: its nodes, and its arrays.

        Raises:
            CorruptCheckpointError: It is damaged, or was changed by another program.
            Stopped: `work.stop` was set.
        """
        if place.digest is not None:
            index, small = self._read_small(key, place, work.pacer)
            return index, small.arrays(index)
        index, segments = self.read_index(key, place, work.pacer)
        arrays = {number: fresh_array(meta) for number, meta in enumerate(index.arrays)}
        base = place.region.offset
        targets = [self._objects_of(place)]
        targets += [each._replace(offset=each.offset - base) for each in targets_of(segments, arrays)]
        self._read(key, place.region, targets, work)
        return index, arrays

    def read_index(self, key: str, place: Place, pacer: Pacer) -> tuple[Index, list[Segment]]:
        """Read the nodes of a value, and where its arrays lie."""
        data: Bytes = np.empty(place.index_nbytes, np.uint8)
        self._read(key, place.region, [Target(place.index_offset - place.region.offset, len(data), data)], None)
        with naming(self.name, key):
            index, segments = decode_index(data.data, file_nbytes=place.region.end, pacer=pacer)
        if segments and segments[0].offset < place.end:
            raise self._corrupt(key)("has an index that leads elsewhere")
        return index, segments

    def _read_small(self, key: str, place: Place, pacer: Pacer) -> tuple[Index, MemoryArrays]:
        """Read a small value as a whole."""
        begin, stop = place.data_offset, place.index_offset + place.index_nbytes
        assert begin is not None  # noqa: S101 - it stands with the digest
        objects = os.pread(self.fd, place.end - place.begin, place.begin)
        data = os.pread(self.fd, stop - begin, begin)
        if digest_runs(objects, data) != place.digest:
            raise self._corrupt(key)("does not match its digest")
        encoded = memoryview(data)[place.index_offset - begin :]
        with naming(self.name, key):
            index, segments = decode_index(encoded, file_nbytes=place.region.end, pacer=pacer)
        if any(not begin <= each.offset <= each.offset + each.nbytes <= place.index_offset for each in segments):
            raise self._corrupt(key)("has an index that leads elsewhere")
        offsets = {each.array: each.offset - begin for each in segments}
        return index, MemoryArrays(np.frombuffer(data, np.uint8), offsets)

    def stored(self, key: str, place: Place, pacer: Pacer) -> Value:
        """Return a value that is to be copied, without reading its arrays where they are large."""
        if place.digest is not None:
            return Value(key, *self._read_small(key, place, pacer), place.names)
        index, segments = self.read_index(key, place, pacer)
        self._read(key, place.region, [self._objects_of(place)], None)  # they are not copied, but made anew
        return Value(key, index, _StoredArrays(self, key, place.region, segments), place.names)

    def copy(self, key: str, region: Region, offset: int, target: Bytes) -> None:
        """Read a verified run of a region; from any thread."""
        if len(target) >= _SMALL_NBYTES:
            self._read(key, region, [Target(offset, len(target), target)], None)
            return
        done = 0
        while done < len(target):
            block, start = divmod(offset + done, DIGEST_BLOCK_NBYTES)
            data = self._block(key, region, block)[start : start + len(target) - done]
            target[done : done + len(data)] = data
            done += len(data)

    def _block(self, key: str, region: Region, block: int) -> Bytes:
        """Return a digest block: small arrays lie many to a block."""
        with self._lock:
            found = self._blocks.get((region.offset, block))
        if found is None:
            begin = block * DIGEST_BLOCK_NBYTES
            found = np.empty(min(DIGEST_BLOCK_NBYTES, region.record.nbytes - begin), np.uint8)
            self._read(key, region, [Target(begin, len(found), found)], None)
            with self._lock:
                while len(self._blocks) >= _CACHED_BLOCKS:
                    del self._blocks[next(iter(self._blocks))]
                self._blocks[region.offset, block] = found
        return found

    @staticmethod
    def _objects_of(place: Place) -> Target:
        """Return what HDF5 has of a value: it is only verified."""
        return Target(place.begin - place.region.offset, place.end - place.begin, None)

    def _read(self, key: str, region: Region, targets: Sequence[Target], work: JobContext | None) -> None:
        targets = [target for target in targets if target.nbytes]
        run = Run(self.fd, region.record, self._corrupt(key), region.offset)
        read_run(run, targets, work)

    def _corrupt(self, key: str) -> Callable[[str], CorruptCheckpointError]:
        def corrupt(reason: str) -> CorruptCheckpointError:
            message = (
                f"{self.name}: the value of {key!r} {reason}: something damaged or another program changed it after"
                " asyncckpt wrote it. Replace or delete the key"
            )
            return CorruptCheckpointError(message, file=self.name)

        return corrupt


class MemoryArrays:
    """The arrays of a small value, in one run of memory."""

    def __init__(self, data: Bytes, offsets: Mapping[int, int]) -> None:
        self._data = data
        self._offsets = offsets

    def view(self, array: int, start: int, nbytes: int) -> Sequence[Bytes]:
        """See `ArrayBytes`."""
        begin = self._offsets.get(array, 0) + start  # one without bytes lies nowhere
        return [self._data[begin : begin + nbytes]]

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        """See `ArrayBytes`."""
        target[:] = self.view(array, start, len(target))[0]

    def arrays(self, index: Index) -> dict[int, NDArray[Any]]:
        """Return them, as copies."""
        return {number: array_of(meta, self, number) for number, meta in enumerate(index.arrays)}


class _StoredArrays:
    """The arrays of a value in a file."""

    def __init__(self, file: DataFile, key: str, region: Region, segments: Sequence[Segment]) -> None:
        self._file = file
        self._key = key
        self._region = region
        self._offsets = {segment.array: segment.offset - region.offset for segment in segments}

    def view(self, array: int, start: int, nbytes: int) -> None:  # noqa: ARG002 - there is no memory to show
        return None

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        self._file.copy(self._key, self._region, self._offsets[array] + start, target)
