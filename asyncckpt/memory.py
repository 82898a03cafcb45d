"""Memory that direct I/O can take."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE_NBYTES: Final = 4096
"""Direct I/O moves whole pages of this size, from and to multiples of it."""
SMALL_BOUNDARY: Final = 64
"""Arrays smaller than a page lie on multiples of this, so that those in a row can be moved together."""


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
