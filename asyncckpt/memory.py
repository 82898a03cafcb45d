"""Memory that direct I/O can take, and what the system knows about memory."""

from __future__ import annotations

import ctypes
import math
import mmap
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_NBYTES: Final = 4096
"""Direct I/O moves whole pages of this size, from and to multiples of it."""
SMALL_BOUNDARY: Final = 64
"""Arrays smaller than a page lie on multiples of this, so that those in a row can be moved together."""

_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; `mmap` does not name it


def aligned_buffer(nbytes: int) -> NDArray[np.uint8]:
    """Return fresh page-aligned memory, in huge pages where there are any, which forked children do not get."""
    return _fresh(nbytes, "MADV_HUGEPAGE", "MADV_DONTFORK")


def aligned_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a fresh array in page-aligned memory, in huge pages where there are any."""
    return _fresh(math.prod(shape) * dtype.itemsize, "MADV_HUGEPAGE").view(dtype).reshape(shape)


def _fresh(nbytes: int, *advices: str) -> NDArray[np.uint8]:
    # Private: shared memory, Python's default, comes from the page cache, one small page at a time.
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in advices:
        if hasattr(mmap, advice):
            try:
                memory.madvise(getattr(mmap, advice))
            except OSError:  # a hint, not a need
                continue
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
