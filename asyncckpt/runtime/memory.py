"""Memory that direct I/O can take, and what the system knows about memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_NBYTES: Final = 4096
"""Direct I/O moves whole pages of this size, from and to multiples of it."""
SMALL_BOUNDARY: Final = 64
"""Arrays smaller than a page lie on multiples of this, so that those in a row can be moved together."""

_PROT_NONE: Final = 0
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_MAP_FIXED: Final = 0x10  # Linux and macOS alike; `mmap` does not name it

# `mmap` names but the first of them, of Linux 2.6.38, 4.14 and 5.14.
_MADV_HUGEPAGE: Final = 14
_MADV_WIPEONFORK: Final = 18
_MADV_POPULATE_WRITE: Final = 23


def aligned_buffer(nbytes: int) -> NDArray[np.uint8]:
    """Return fresh page-aligned memory, in huge pages where there are any, of which forked children get empty pages.

    With MADV_DONTFORK they would get nothing, in whose place the system may put something else; and that is gone when
    the child drops the buffer.
    """
    return _fresh(nbytes, _MADV_HUGEPAGE, _MADV_WIPEONFORK)


def aligned_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a fresh array in page-aligned memory, in huge pages where there are any."""
    return _fresh(math.prod(shape) * dtype.itemsize, _MADV_HUGEPAGE).view(dtype).reshape(shape)


def _fresh(nbytes: int, *advices: int) -> NDArray[np.uint8]:
    mapping = Mapping(nbytes)
    for advice in advices:
        libc().madvise(mapping.address, nbytes, advice)  # a hint, not a need
    return mapping.array()


class Mapping:
    """A range of addresses, until the last array that shows it is gone.

    `mmap.mmap` would hold the GIL while the system looks for addresses, and while it takes the memory back.
    """

    def __init__(self, nbytes: int, *, is_reserved: bool = False) -> None:
        """Map fresh memory of zeros; or, reserved, addresses that nobody may use until `overlay` puts files there.

        Raises:
            OSError: The system refuses.
            OverflowError: No system has so many addresses.
        """
        if nbytes > sys.maxsize:  # or ctypes would cut it off
            message = f"{nbytes} bytes are more than there are addresses"
            raise OverflowError(message)
        protection = _PROT_NONE if is_reserved else mmap.PROT_READ | mmap.PROT_WRITE
        # Private: shared memory comes from the page cache, one small page at a time.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._unmap = libc().munmap  # at the interpreter's end the module may be gone before the last array
        self._nbytes = nbytes
        self._is_reserved = is_reserved
        self.address = _map(None, max(nbytes, 1), protection, flags, -1, 0)

    def overlay(self, start: int, nbytes: int, fd: int, offset: int) -> None:
        """Put a run of a file, read-only, in the place of `nbytes` bytes from `start` on; whole pages.

        Raises:
            OSError: The system refuses.
        """
        _map(self.address + start, nbytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd, offset)

    def array(self) -> NDArray[np.uint8]:
        """Return the bytes, which keep the mapping alive."""
        return np.asarray(self)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """What numpy makes an array of."""
        return {"version": 3, "typestr": "|u1", "shape": (self._nbytes,), "data": (self.address, self._is_reserved)}

    def __del__(self) -> None:
        """Unmap: no array refers to the memory any more."""
        if hasattr(self, "address"):
            self._unmap(self.address, max(self._nbytes, 1))


def _map(  # noqa: PLR0913, PLR0917 - the system call's own arguments
    address: int | None, nbytes: int, protection: int, flags: int, fd: int, offset: int
) -> int:
    found: int | None = libc().mmap(address, nbytes, protection, flags, fd, offset)
    if found is None or found == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return found


def populate(memory: NDArray[np.uint8]) -> None:
    """Have the system find all pages of memory, as if it were written to, without changing what it holds.

    Other threads may read and write it meanwhile. Where the system cannot, nothing happens: it is a hint.
    """
    address = memory.ctypes.data
    before = address % PAGE_NBYTES
    libc().madvise(address - before, before + memory.nbytes, _MADV_POPULATE_WRITE)


@cache
def libc() -> Any:
    """Return the C library, for calls that Python does not offer, or not without holding the GIL."""
    library = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = address
    library.mmap.argtypes = (address, size, number, number, number, ctypes.c_longlong)
    library.munmap.argtypes = (address, size)
    library.mincore.argtypes = (address, size, address)
    library.madvise.argtypes = (address, size, number)
    return library
