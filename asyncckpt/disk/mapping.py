"""Map files into memory: for lazy loads, and to find out whether a file is in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Final

import numpy as np

from asyncckpt.runtime.memory import Mapping, libc, map_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_SAMPLES: Final = 64


class MappedFile:
    """A mapped file, which is never changed. Arrays in its memory keep the mapping alive, even if it is deleted."""

    def __init__(self, fd: int, *, is_private: bool = False) -> None:
        """Map a file. The descriptor may be closed afterwards.

        Args:
            fd: The file, open for reading.
            is_private: Whether the memory may be written to, which copies the pages that are. Arrays are read-only even
                so, until they are told otherwise.
        """
        self._fd = fd
        self._is_private = is_private
        nbytes = os.fstat(fd).st_size
        flags, protection = map_options(is_private=is_private)
        self.memory: Bytes = np.frombuffer(mmap.mmap(fd, 0, flags, protection) if nbytes else b"", np.uint8)
        """The whole file."""
        self.memory.flags.writeable = False

    def join(self, segments: Sequence[tuple[int, int]]) -> Bytes:
        """Map runs of the file, given as (offset, nbytes), as one contiguous array of bytes.

        Each must begin on a page boundary, and all but the last must fill whole pages.

        Raises:
            OSError: The system refuses the mapping.
        """
        # Reserve the whole range first, so that no run is mapped over other memory.
        joined = Mapping(sum(nbytes for _, nbytes in segments), is_reserved=True)
        start = 0
        for offset, nbytes in segments:
            joined.overlay(start, nbytes, self._fd, offset, is_private=self._is_private)
            start += nbytes
        array = joined.array()
        array.flags.writeable = False
        return array

    def is_cached(self) -> bool:
        """Return whether most pages of a sample are in the page cache; True if the system does not tell."""
        pages = range(0, len(self.memory), mmap.PAGESIZE)
        sample = pages[:: -(-len(pages) // _SAMPLES) or 1]
        found = ctypes.c_ubyte()
        cached = 0
        for offset in sample:
            if libc().mincore(self.memory.ctypes.data + offset, 1, ctypes.byref(found)) != 0:
                return True
            cached += found.value & 1
        return 2 * cached >= len(sample)
