"""An HDF5 file that asyncckpt wrote: its commits and values, read and written without libhdf5.

1. Nothing that a commit refers to is ever overwritten. New data is appended, and the commit itself is one slot, written
   when everything it refers to has been synced. So a kill leaves the last commit, and readers are never disturbed.
2. The superblock, where other tools begin, is written after the slot has been synced. After a kill between the two,
   they see the previous commit as a whole, and the next writer updates the superblock. That writer cannot know whether
   a sync had failed for its predecessor, so it writes again what may not have reached the disk.
3. A file whose superblock no commit of ours can have left, or whose catalog does not match its slot, has been changed
   by another program, and is not ours any more.
4. All that is read of a value is verified before use. So are its HDF5 objects, although they are not needed: a change
   that another program made to them is reported, and not undone when the value is copied.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

import numpy as np
from xxhash import xxh3_128, xxh3_128_digest

from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, FileRecord
from asyncckpt.disk.plan import align
from asyncckpt.disk.read_blocks import Run, Target, read_run
from asyncckpt.disk.write_blocks import Content, Part, write_all, write_content_at
from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.formats.array_reader import fresh_array, targets_of
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.damage import errors_of
from asyncckpt.keyed.hdf5.catalog import (
    HEAD_NBYTES,
    Extent,
    ForeignObject,
    Region,
    Row,
    Slot,
    decode_catalog,
    encode_catalog,
    find_slots,
    link_name,
    root_group,
)
from asyncckpt.keyed.hdf5.region import SMALL_NBYTES, RegionPlan, digest_runs
from asyncckpt.keyed.values import ArraysInMemory, CapturedValue, build_value, copies_of
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import Pacer, discard
from asyncckpt.state.index import Index, decode_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import Found
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.state.segments import Segment

    Bytes = NDArray[np.uint8]

MAX_LEAVES: Final = 8192
"""How many Python leaves, and containers on their own account, get HDF5 objects, of about 300 bytes each."""
_SMALL_NBYTES: Final = 1 << 16
_CACHED_BLOCKS: Final = 8


class ForeignFileError(Exception):
    """asyncckpt did not write the file, or not last. The message is the predicate of a sentence about the file."""


class NativeFile:
    """An open file at one commit, with what is staged appended to it.

    Attributes:
        extents: Where the committed values are, in the order of the keys.
        foreign_objects: The objects of other programs, committed or not.
        end: The end of the commit.
        tail: The end of what is staged.
        is_suspect: Whether nothing may be written to it any more, because a sync failed, after which no other sync
            could tell what reached the disk, or because its name leads to another file.
    """

    def __init__(self, location: FileLocation, fd: int, end: int = HEAD_NBYTES) -> None:
        self._name = location.name
        self._ops = location.ops
        self.fd = fd
        self.extents: dict[str, Row] = {}
        self.foreign_objects: dict[str, ForeignObject] = {}
        self.is_suspect = False
        self.end = self.tail = align(end, PAGE_NBYTES)
        self._slot: Slot | None = None
        self._leaves_left = MAX_LEAVES
        self._blocks: dict[tuple[int, int], Bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, location: FileLocation, fd: int, pacer: Pacer) -> NativeFile:
        """Read the last commit. The descriptor stays the caller's if this fails.

        Raises:
            ForeignFileError: asyncckpt did not write the file, or not last.
            CorruptCheckpointError: The content of the catalog is not possible.
            UnsupportedFormatError: A later release wrote it.
        """
        head = os.pread(fd, HEAD_NBYTES, 0)
        while True:
            try:
                with errors_of(location.name):
                    return cls._open_at(head, location, fd, pacer)
            except ForeignFileError:
                before, head = head, os.pread(fd, HEAD_NBYTES, 0)
                if head == before:
                    raise
                # A writer committed meanwhile: what was read belongs to two commits.

    @classmethod
    def _open_at(cls, head: bytes, location: FileLocation, fd: int, pacer: Pacer) -> NativeFile:
        file = cls(location, fd)
        slots = find_slots(head)
        if not slots:
            raise ForeignFileError("was not written by asyncckpt as a keyed file")
        written = [slot.superblock() for slot in slots]
        found = head[: len(written[0])]
        # Each byte must be of one of the commits, because a power failure may have torn the last write.
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
                file._show(slot, decode_catalog(region[: slot.catalog_nbytes], slot.end, pacer))
                return file
            if found == superblock:
                break  # other programs have seen this commit, so the one before is no substitute
        raise ForeignFileError("was changed by another program, or damaged, after asyncckpt wrote it")

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        discard(self.extents, Pacer())

    # --- writing ------------------------------------------------------------------------------------------------------

    def recover(self, fd: int) -> None:
        """Cut off what a killed writer left, and let the superblock show the last commit.

        Args:
            fd: A descriptor of the same file for writing, which is used from now on.
        """
        os.close(self.fd)
        self.fd = fd
        if os.fstat(self.fd).st_size > self.tail:
            self._ops.truncate(self.fd, self.tail)
        slot = self._slot
        assert slot is not None  # noqa: S101 - an opened file has one
        superblock = slot.superblock()
        if os.pread(self.fd, len(superblock), 0) != superblock:
            self._write(slot.position, slot.encode())
            self._ops.sync(self.fd)  # no superblock without its slot, or the file would not be ours any more
        self._write(0, superblock)

    def append(self, values: Mapping[str, CapturedValue], context: JobContext) -> dict[str, Extent]:
        """Append values, and return their extents. Nothing is synced yet.

        Raises:
            OSError: The disk failed; the next call overwrites what was written.
            UnsupportedLeafError: HDF5 cannot hold a value.
            Stopped: `context.stop` was set.
        """
        pacer = context.pacer
        region = RegionPlan(values, self.tail, pacer, max_leaves=self._leaves_left)
        image = None
        if all(value.stored_nbytes <= SMALL_NBYTES for value in values.values()):
            image = region.image(pacer)
            record = FileRecord(len(image), b"")
            write_all(self._ops, self.fd, [Part(self.tail, image)])
        else:
            record = write_content_at(self._ops, self.fd, self.tail, Content(region.plan, region.arrays), context)
        self.tail += record.nbytes
        self._leaves_left = region.leaves_left
        return dict(region.extents(record, image, pacer))

    def commit(self, extents: dict[str, Row], pacer: Pacer) -> None:
        """Make these the values of the file, durably.

        Raises:
            OSError: The disk failed. If the file `is_suspect` now, nothing may be written to it any more.
            Stopped: The pacer was stopped; nothing was committed.
        """
        offset = self.tail
        out, digest = Appender(self._ops, self.fd, offset), xxh3_128()

        def append(chunks: Iterable[bytes]) -> None:
            for chunk in chunks:
                digest.update(chunk)
                out.write(chunk)
                pacer.pause()

        append(encode_catalog(extents, pacer))
        catalog_nbytes = out.offset - offset
        links = [(link_name(key), extent.address) for key, extent in extents.items() if extent.address is not None]
        begin = align(out.offset, 8)
        root_at, group = root_group(begin, links, (offset, catalog_nbytes, digest.digest()), pacer)
        append([bytes(begin - out.offset), *group])
        end = align(out.offset, PAGE_NBYTES)
        append([bytes(end - out.offset)])
        out.flush()
        number = 1 if self._slot is None else self._slot.number + 1
        slot = Slot(number, end, offset, end - offset, catalog_nbytes, root_at, digest.digest())
        self.is_suspect = True
        if self._slot is not None:
            self._ops.sync(self.fd)
            self._write(slot.position, slot.encode())
            self._ops.sync(self.fd)
            self._write(0, slot.superblock())
        else:  # the file does not have its name yet
            head = slot.superblock().ljust(slot.position, b"\0") + slot.encode()
            self._write(0, head.ljust(HEAD_NBYTES, b"\0"))
            self._ops.sync(self.fd)
        self.is_suspect = False
        self._show(slot, extents)

    def _show(self, slot: Slot, extents: dict[str, Row]) -> None:
        """Show a commit. Its leaves that have HDF5 objects are counted; those of replaced values do not count."""
        self._slot = slot
        self.end = self.tail = slot.end
        self.extents = extents
        self.foreign_objects = {key: extent for key, extent in extents.items() if isinstance(extent, ForeignObject)}
        values = [extent for extent in extents.values() if isinstance(extent, Extent)]
        shown = sum(not extent.array_nbytes and extent.address is not None for extent in values)
        self._leaves_left = max(0, MAX_LEAVES - shown)

    def settle(self) -> None:
        """Drop what is staged, and make the superblock of the last commit durable."""
        if self.tail > self.end:
            self._ops.truncate(self.fd, self.end)
            self.tail = self.end
        self._ops.sync(self.fd)

    def _write(self, offset: int, data: bytes) -> None:
        write_all(self._ops, self.fd, [Part(offset, np.frombuffer(data, np.uint8))])

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, key: str, extent: Extent, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        """Read a value.

        Raises:
            CorruptCheckpointError: It is damaged, or was changed by another program.
            Stopped: `context.stop` was set.
        """
        if extent.digest is not None:
            index, small = self._read_small(key, extent, context.pacer)
            arrays = copies_of(index, small, context.pacer)
        else:
            index, segments = self._read_index(key, extent, context.pacer)
            arrays = {number: fresh_array(meta) for number, meta in enumerate(index.arrays)}
            base = extent.region.offset
            targets = [each._replace(offset=each.offset - base) for each in targets_of(segments, arrays)]
            self._read(key, extent.region, [self._objects_of(extent), *targets], context)
        with errors_of(self._name, f"the value of {key!r}"):
            return build_value(index, arrays, context.pacer, keeps_kinds=keeps_kinds)

    def _read_index(self, key: str, extent: Extent, pacer: Pacer) -> tuple[Index, list[Segment]]:
        """Read the nodes of a large value, and where its arrays are."""
        data: Bytes = np.empty(extent.index_nbytes, np.uint8)
        self._read(key, extent.region, [Target(extent.index_offset - extent.region.offset, len(data), data)], None)
        return self._decode_index(data.data, key, extent, pacer)

    def _read_small(self, key: str, extent: Extent, pacer: Pacer) -> tuple[Index, ArraysInMemory]:
        """Read a small value as a whole."""
        begin, stop = extent.data_offset, extent.index_offset + extent.index_nbytes
        assert begin is not None  # noqa: S101 - small values have one
        objects = os.pread(self.fd, extent.end - extent.begin, extent.begin)
        data = os.pread(self.fd, stop - begin, begin)
        if digest_runs(objects, data) != extent.digest:
            raise self._corrupt(key)("does not match its digest")
        encoded = memoryview(data)[extent.index_offset - begin :]
        index, segments = self._decode_index(encoded, key, extent, pacer)
        return index, ArraysInMemory(data, {each.array: each.offset - begin for each in segments})

    def _decode_index(self, encoded: memoryview, key: str, extent: Extent, pacer: Pacer) -> tuple[Index, list[Segment]]:
        """Decode the index of a value, whose arrays must be where those of the value can be."""
        begin, end = extent.end, extent.region.end
        if extent.data_offset is not None:
            begin, end = extent.data_offset, extent.index_offset
        with errors_of(self._name, f"the value of {key!r}"):
            index, segments = decode_index(encoded, file_nbytes=extent.region.end, pacer=pacer)
        if any(not begin <= each.offset <= each.offset + each.nbytes <= end for each in segments):
            raise self._corrupt(key)("has an index with arrays of another value")
        return index, segments

    def stored(self, key: str, extent: Extent, pacer: Pacer) -> CapturedValue:
        """Return a value that is to be copied to another file. The arrays of a large one are not read yet."""
        if extent.digest is not None:
            return CapturedValue.of_index(*self._read_small(key, extent, pacer), extent.key_tree)
        index, segments = self._read_index(key, extent, pacer)
        # The copy gets HDF5 objects of its own. These are verified, so that a change to them is not lost silently.
        self._read(key, extent.region, [self._objects_of(extent)], None)
        arrays = _StoredArrays(self, key, extent.region, segments)
        return CapturedValue.of_index(index, arrays, extent.key_tree)

    def copy(self, key: str, region: Region, offset: int, target: Bytes) -> None:
        """Read and verify a run of bytes of a region; from any thread."""
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
        """Return a digest block, from a cache, because a block may hold many small arrays."""
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
    def _objects_of(extent: Extent) -> Target:
        """Return the HDF5 objects of a value as a target that is only verified."""
        return Target(extent.begin - extent.region.offset, extent.end - extent.begin, None)

    def _read(self, key: str, region: Region, targets: Sequence[Target], context: JobContext | None) -> None:
        targets = [target for target in targets if target.nbytes]
        run = Run(self.fd, region.record, self._corrupt(key), region.offset)
        read_run(run, targets, context)

    def _corrupt(self, key: str) -> Callable[[str], CorruptCheckpointError]:
        def corrupt(reason: str) -> CorruptCheckpointError:
            message = (
                f"{self._name}: the value of {key!r} {reason}: it was damaged, or changed by another program, after"
                " asyncckpt wrote it. Replace or delete the key"
            )
            return CorruptCheckpointError(message, file=self._name)

        return corrupt


class _StoredArrays:
    """The arrays of a large value in a file; a `Snapshot`."""

    nbytes = 0

    def __init__(self, file: NativeFile, key: str, region: Region, segments: Sequence[Segment]) -> None:
        self._file = file
        self._key = key
        self._region = region
        self._offsets = {segment.array: segment.offset - region.offset for segment in segments}

    def view(self, array: int, start: int, nbytes: int) -> None:  # noqa: ARG002 - it is not in memory
        return None

    def copy_to(self, target: Bytes, array: int, start: int) -> None:
        self._file.copy(self._key, self._region, self._offsets[array] + start, target)

    def release(self) -> None:
        pass
