"""A file in memory that holds only what was written: its claimed size costs nothing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from asyncckpt.memory import PAGE_NBYTES
from asyncckpt.workers import Pacer, Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN_NBYTES = 1 << 18


class SparseFile:
    """As much of a binary file as h5py's file-object driver asks for."""

    def __init__(self, pacer: Pacer) -> None:
        """The pacer is paused in each write: HDF5 writes much in one call when it closes a file."""
        self._pacer = pacer
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.nbytes = 0
        self._is_stopped = False  # nobody will look at what is written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset from the beginning, from here or from the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.nbytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the current offset."""
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from here on, with zeros where nothing was written; return the bytes that the file has."""
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self.nbytes - self._position))
        done = 0
        while done < count:
            number, start = divmod(self._position + done, PAGE_NBYTES)
            nbytes = min(PAGE_NBYTES - start, count - done)
            page = self._pages.get(number)
            target[done : done + nbytes] = bytes(nbytes) if page is None else page[start : start + nbytes]
            done += nbytes
        self._position += count
        return count

    def write(self, data: memoryview) -> int:
        """Write at the current offset."""
        if not self._is_stopped:
            self._store(memoryview(data).cast("B"))
            try:
                self._pacer.pause()
            except Stopped:  # HDF5 could not carry it through its C code; the next pause outside raises it again
                self._is_stopped = True
        self._position += len(data)
        self.nbytes = max(self.nbytes, self._position)
        return len(data)

    def _store(self, data: memoryview) -> None:
        done = 0
        while done < len(data):
            number, start = divmod(self._position + done, PAGE_NBYTES)
            nbytes = min(PAGE_NBYTES - start, len(data) - done)
            page = self._pages.get(number)
            if page is None:
                page = self._pages[number] = bytearray(PAGE_NBYTES)
            page[start : start + nbytes] = data[done : done + nbytes]
            done += nbytes

    def truncate(self, nbytes: int | None = None) -> int:
        """Set the file's size; HDF5 only ever makes it larger."""
        self.nbytes = self._position if nbytes is None else nbytes
        return self.nbytes

    def flush(self) -> None:
        """Do nothing."""

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Yield what was written as (offset, bytes), sorted, in whole pages and in pieces of a bounded size."""
        begin = 0
        pages: list[bytearray] = []
        for number in sorted(self._pages):
            if pages and (
                number * PAGE_NBYTES != begin + len(pages) * PAGE_NBYTES or len(pages) * PAGE_NBYTES >= _RUN_NBYTES
            ):
                yield begin, b"".join(pages)
                pages = []
            if not pages:
                begin = number * PAGE_NBYTES
            pages.append(self._pages[number])
        if pages:
            yield begin, b"".join(pages)
