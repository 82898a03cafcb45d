"""Page-aligned memory for direct I/O, mapped files, and hints to the kernel about memory."""

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
    from collections.abc import Callable

    from numpy.typing import NDArray

PAGE_NBYTES: Final = 4096
"""Direct I/O moves whole pages of this size, between addresses and offsets that are multiples of it."""
SMALL_BOUNDARY: Final = 64
"""Arrays smaller than a page begin at multiples of this, so that consecutive ones can be copied together."""

_PROT_NONE: Final = 0
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_MAP_NORESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_MAP_FIXED: Final = 0x10  # the same on Linux and macOS; the module `mmap` lacks it

# From Linux 2.6.38, 4.14 and 5.14; the module `mmap` has only the first. See madvise(2).
_MADV_HUGEPAGE: Final = 14
_MADV_WIPEONFORK: Final = 18
_MADV_POPULATE_WRITE: Final = 23


def aligned_buffer(nbytes: int) -> NDArray[np.uint8]:
    """Return fresh page-aligned memory, in huge pages if possible, that forked children see as zeros.

    MADV_DONTFORK would leave a hole in the child's address space. The child might map something else there, and would
    unmap that when it frees the buffer.
    """
    return _fresh(nbytes, _MADV_HUGEPAGE, _MADV_WIPEONFORK)


def aligned_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a fresh array in page-aligned memory, in huge pages if possible."""
    return _fresh(math.prod(shape) * dtype.itemsize, _MADV_HUGEPAGE).view(dtype).reshape(shape)


def _fresh(nbytes: int, *advices: int) -> NDArray[np.uint8]:
    mapping = Mapping(nbytes)
    for advice in advices:
        libc().madvise(mapping.address, nbytes, advice)  # a hint that may fail
    return mapping.array()


class Mapping:
    """A range of mapped memory that lives as long as the arrays that show it.

    `mmap.mmap` is not used because it holds the GIL while the kernel maps and unmaps the memory.
    """

    def __init__(self, nbytes: int, *, is_reserved: bool = False) -> None:
        """Map fresh memory of zeros, or only reserve addresses for `overlay` to map files to.

        Raises:
            OSError: The system refuses.
            OverflowError: `nbytes` exceeds the address space.
        """
        if nbytes > sys.maxsize:  # ctypes would truncate it
            message = f"cannot map {nbytes} bytes: that exceeds the address space"
            raise OverflowError(message)
        protection = _PROT_NONE if is_reserved else mmap.PROT_READ | mmap.PROT_WRITE
        # Private, because shared memory comes from the page cache, in small pages.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._unmap = libc().munmap  # at interpreter exit, the module may be gone before the last array
        self.nbytes = nbytes
        self.before_unmap: Callable[[int], object] | None = None
        """Called with the address before the memory is unmapped."""
        self._is_read_only = is_reserved
        self.address = _checked(libc().mmap(None, max(nbytes, 1), protection, flags, -1, 0))

    def overlay(self, start: int, nbytes: int, fd: int, offset: int, *, is_private: bool) -> None:
        """Map `nbytes` of a file from `offset` on over the bytes from `start` on; both in whole pages.

        The memory is read-only, or a private copy of the pages that are written to.

        Raises:
            OSError: The system refuses.
        """
        flags, protection = map_options(is_private=is_private)
        _checked(libc().mmap(self.address + start, nbytes, protection, flags | _MAP_FIXED, fd, offset))
        self._is_read_only = not is_private

    def array(self) -> NDArray[np.uint8]:
        """Return the memory as an array of bytes, which keeps the mapping alive."""
        return np.asarray(self)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The memory, as numpy's array interface describes it."""
        return {"version": 3, "typestr": "|u1", "shape": (self.nbytes,), "data": (self.address, self._is_read_only)}

    def __del__(self) -> None:
        """Unmap the memory, which no array refers to any more."""
        if hasattr(self, "address"):
            if self.before_unmap is not None:
                self.before_unmap(self.address)
            self._unmap(self.address, max(self.nbytes, 1))


def mapping_of(memory: NDArray[Any]) -> Mapping | None:
    """Return the mapping that an array shows a part of, if it is one of this module's."""
    base: object = memory
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, Mapping) else None


def map_options(*, is_private: bool) -> tuple[int, int]:
    """Return the flags and the protection of a mapped file: read-only, or with private copies of what is written to."""
    if is_private:
        # What may be written to need not fit into memory, since little of it will be.
        return mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.MAP_SHARED, mmap.PROT_READ


def _checked(address: int | None) -> int:
    """Return the result of mmap(2), or raise the OSError that it reported."""
    if address is None or address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return address


def populate(memory: NDArray[np.uint8]) -> None:
    """Ask the kernel to provide all pages of `memory`, as if it were written to, without changing its contents.

    Other threads may read and write the memory meanwhile. If the kernel cannot do this, nothing happens.
    """
    address = memory.ctypes.data
    before = address % PAGE_NBYTES
    libc().madvise(address - before, before + memory.nbytes, _MADV_POPULATE_WRITE)


@cache
def libc() -> Any:
    """Return the C library, for calls that Python lacks or makes while holding the GIL."""
    library = ctypes.CDLL(None, use_errno=True)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = address
    library.mmap.argtypes = (address, size, number, number, number, ctypes.c_longlong)
    library.munmap.argtypes = (address, size)
    library.mincore.argtypes = (address, size, address)
    library.madvise.argtypes = (address, size, number)
    return library
