"""The pool of page-aligned buffers that snapshots are copied into.

1. Fresh pages cost three to four times what warm ones do, so buffers are kept and used again.
2. A buffer belongs to one snapshot at a time, from `take` until that snapshot gives it back.
3. The pool may be used from any thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from asyncckpt.memory import aligned_buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

LARGE_NBYTES: Final = 16 << 20
SMALL_NBYTES: Final = 1 << 20


class BufferPool:
    """Buffers of two sizes: large ones, and small ones for what is left over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._free: dict[int, list[Bytes]] = {LARGE_NBYTES: [], SMALL_NBYTES: []}

    def take(self, nbytes: int) -> list[Bytes]:
        """Return buffers that hold `nbytes` together: large ones first, then small ones."""
        large, rest = divmod(nbytes, LARGE_NBYTES)
        small = -(-rest // SMALL_NBYTES)
        return [self._one(LARGE_NBYTES) for _ in range(large)] + [self._one(SMALL_NBYTES) for _ in range(small)]

    def give(self, buffers: list[Bytes]) -> None:
        """Take buffers back."""
        with self._lock:
            for buffer in buffers if not self._is_closed else ():
                self._free[len(buffer)].append(buffer)

    def close(self) -> None:
        """Return the memory of all free buffers to the system, and from now on of those that are given back."""
        with self._lock:
            self._is_closed = True
            for free in self._free.values():
                free.clear()

    @property
    def free_nbytes(self) -> int:
        """Memory of the buffers that no snapshot holds, in bytes."""
        with self._lock:
            return sum(size * len(free) for size, free in self._free.items())

    def _one(self, size: int) -> Bytes:
        with self._lock:
            if self._free[size]:
                return self._free[size].pop()
        return aligned_buffer(size)
