"""A file written from front to back, in large calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.disk.write_blocks import Part, write_all

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncckpt.disk.ops import DiskOps

BATCH_NBYTES: Final = 4 << 20
_MAX_PARTS: Final = 512  # of one call; IOV_MAX is 1024


class Appender:
    """Collects bytes and writes them one behind the other. The caller must not change them until `flush`."""

    def __init__(self, ops: DiskOps, fd: int, offset: int) -> None:
        self._ops = ops
        self._fd = fd
        self._parts: list[Part] = []
        self._pending = 0
        self.offset = offset
        """The position of the next byte."""

    def write(self, data: bytes | memoryview | NDArray[Any]) -> None:
        """Add bytes."""
        part = Part(self.offset, np.frombuffer(data, np.uint8))
        if not len(part.data):
            return
        self._parts.append(part)
        self.offset += len(part.data)
        self._pending += len(part.data)
        if self._pending >= BATCH_NBYTES or len(self._parts) >= _MAX_PARTS:
            self.flush()

    def tell(self) -> int:
        """Return the offset, as a file does."""
        return self.offset

    def flush(self) -> None:
        """Write the collected bytes."""
        parts, self._parts, self._pending = self._parts, [], 0
        write_all(self._ops, self._fd, parts)
