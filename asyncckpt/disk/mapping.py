"""Files mapped into memory: for arrays that are read when they are touched, and to ask what the page cache holds."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Final

import numpy as np

from asyncckpt.memory import PAGE_NBYTES, libc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_PROT_NONE: Final = 0
_SAMPLES: Final = 64
_MAP_FIXED: Final = 0x10  # Linux and macOS alike; `mmap` does not name them


class MappedFile:
    """A file, mapped read-only. Arrays made from it keep the mapping alive, even when the file's name is gone."""

    def __init__(self, fd: int) -> None:
        """Map a file; the descriptor may be closed afterwards."""
        self._fd = fd
        nbytes = os.fstat(fd).st_size
        self._whole = np.frombuffer(mmap.mmap(fd, 0, prot=mmap.PROT_READ), np.uint8) if nbytes else _NONE

    def array(self, segments: Sequence[tuple[int, int]]) -> Bytes:
        """Return runs of the file, given as (offset, nbytes), as one run of memory.

        Several runs are mapped behind each other, which takes page boundaries: each must begin on one, and all but the
        last fill whole pages.

        Raises:
            ValueError: They do not lie so.
            OSError: The system refuses the mapping.
        """
        if len(segments) == 1:
            offset, nbytes = segments[0]
            return self._whole[offset : offset + nbytes]
        if any(offset % PAGE_NBYTES for offset, _ in segments) or any(n % PAGE_NBYTES for _, n in segments[:-1]):
            message = "segments of one array lie on no page boundaries"
            raise ValueError(message)
        return np.asarray(_JoinedMapping(self._fd, segments)) if segments else _NONE

    def is_cached(self) -> bool:
        """Return whether most of the file lies in the page cache, by a sample; True where the system does not say."""
        pages = range(0, len(self._whole), mmap.PAGESIZE)
        sample = pages[:: -(-len(pages) // _SAMPLES) or 1]
        found = ctypes.c_ubyte()
        cached = 0
        for offset in sample:
            if libc().mincore(self._whole.ctypes.data + offset, 1, ctypes.byref(found)) != 0:
                return True
            cached += found.value & 1
        return 2 * cached >= len(sample)


_NONE: Final = np.empty(0, np.uint8)


class _JoinedMapping:
    """Segments of a file in one range of addresses, until the last array that shows it is gone."""

    def __init__(self, fd: int, segments: Sequence[tuple[int, int]]) -> None:
        nbytes = sum(length for _, length in segments)
        # The range is reserved first, so that the fixed mappings cannot fall on anybody else's memory.
        self._address = _map(None, nbytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        self._nbytes = nbytes
        at = self._address
        for offset, length in segments:
            _map(at, length, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)
            at += length
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (nbytes,),
            "data": (self._address, True),
        }

    def __del__(self) -> None:
        """Unmap: no array refers to the memory any more."""
        if hasattr(self, "_nbytes"):
            libc().munmap(self._address, self._nbytes)


def _map(  # noqa: PLR0913, PLR0917 - the system call's own arguments
    address: int | None, nbytes: int, protection: int, flags: int, fd: int, offset: int
) -> int:
    found: int | None = libc().mmap(address, nbytes, protection, flags, fd, offset)
    if found is None or found == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found
