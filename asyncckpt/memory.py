"""Memory that direct I/O can take, and what the system knows about memory."""

from __future__ import annotations

import ctypes
import math
import mmap
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_NBYTES: Final = 4096
"""Direct I/O moves whole pages of this size, from and to multiples of it."""
SMALL_BOUNDARY: Final = 64
"""Arrays smaller than a page lie on multiples of this, so that those in a row can be moved together."""

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
    # Private: shared memory, Python's default, comes from the page cache, one small page at a time.
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in advices:
        with suppress(OSError):  # a hint, not a need
            memory.madvise(advice)
    return np.frombuffer(memory, np.uint8)[:nbytes]


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
