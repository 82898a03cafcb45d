"""Decode msgpack from untrusted files.

1. msgpack's own decoder allocates as many elements as a header claims, also for headers in headers: kilobytes can
   become gigabytes. So one call decodes only scalars, or short arrays of them.
2. What may be nested is skipped over first, without allocating anything. This proves that all elements exist.
"""

from __future__ import annotations

from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, Literal

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.runtime.pacing import Pacer

TEXT_ERRORS: Final = "surrogatepass"
MAX_ROW: Final = 1 << 16
"""The number of elements that are decoded at once."""
_CHUNK_NBYTES: Final = 1 << 20


class MsgpackStream:
    """A sequence of msgpack objects."""

    def __init__(self, data: memoryview, pacer: Pacer | None = None) -> None:
        self._data = data
        self._pacer = pacer
        self._unpacker = _unpacker(len(data))
        self._fed = 0

    def read(self, what: Literal["unpack", "skip", "read_array_header", "read_map_header"]) -> Any:
        """Read one scalar, empty container or header of a container.

        Raises:
            ValueError: It is something else, or a container that is not empty.
            msgpack.UnpackException: The data end early.
        """
        while True:
            try:
                return getattr(self._unpacker, what)()
            except msgpack.exceptions.OutOfData:
                chunk = self._data[self._fed : self._fed + _CHUNK_NBYTES]
                if not chunk:
                    raise
                self._fed += len(chunk)
                self._unpacker.feed(chunk)
                if self._pacer is not None:
                    self._pacer.pause()

    def read_nested(self, max_nbytes: int) -> Any:
        """Read one object of at most `max_nbytes` bytes, which may be nested.

        Raises:
            ValueError: It is longer.
            msgpack.UnpackException: The data end early.
        """
        begin = self._unpacker.tell()
        self.read("skip")
        nbytes = self._unpacker.tell() - begin
        if nbytes > max_nbytes:
            message = f"{nbytes} bytes of nested objects; at most {max_nbytes} are allowed"
            raise ValueError(message)
        return msgpack.unpackb(self._data[begin : begin + nbytes], unicode_errors=TEXT_ERRORS)


def make_ext(code: int, data: bytes) -> msgpack.ExtType:
    """Make an ext object without the checks of its class, which would take most of the time."""
    return tuple.__new__(msgpack.ExtType, (code, data))


def read_row(
    data: bytes, pacer: Pacer, *, max_array_len: int = 0, make_ext: Callable[[int, bytes], Any] = make_ext
) -> list[Any]:
    """Decode an array of scalars, or of arrays of at most `max_array_len` scalars.

    Args:
        data: The msgpack of the array.
        pacer: Paused between chunks.
        max_array_len: The longest array among its elements.
        make_ext: Makes the elements that are ext objects.

    Raises:
        ValueError: It is something else, or too long.
        msgpack.UnpackException: The data end early.
    """
    unpacker = _unpacker(len(data), max_array_len, make_ext)
    unpacker.feed(data)
    count = unpacker.read_array_header()
    if count > MAX_ROW:
        message = f"an array of {count} elements; at most {MAX_ROW} are allowed"
        raise ValueError(message)
    found = list(chain.from_iterable(pacer.batches(islice(unpacker, count))))
    if len(found) != count or unpacker.tell() != len(data):
        message = f"an array claims {count} elements, and has another number"
        raise ValueError(message)
    return found


def _unpacker(nbytes: int, max_array_len: int = 0, make_ext: Callable[[int, bytes], Any] = make_ext) -> Any:
    return msgpack.Unpacker(
        ext_hook=make_ext,
        unicode_errors=TEXT_ERRORS,
        max_array_len=max_array_len,
        max_map_len=0,
        max_buffer_size=max(nbytes, 1),
    )
