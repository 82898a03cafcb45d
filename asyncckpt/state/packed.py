"""msgpack that nobody vouches for, decoded so that nothing is made because it is claimed.

1. A stock decoder makes room for as many elements as a header says, and for a header in that, and so on: kilobytes of
   headers become gigabytes. Here, what is decoded in one call holds no containers, or only short ones.
2. What may nest is walked first, without making anything: then all that it claims is there.
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
"""Elements that are decoded at once."""
_CHUNK_NBYTES: Final = 1 << 20


class MsgpackStream:
    """A run of msgpack objects, read one after the other."""

    def __init__(self, data: memoryview, pacer: Pacer | None = None) -> None:
        self._data = data
        self._pacer = pacer
        self._unpacker = _unpacker(len(data))
        self._fed = 0

    def read(self, what: Literal["unpack", "skip", "read_array_header", "read_map_header"]) -> Any:
        """Read one object, which may be an empty container, or the header of one.

        Raises:
            ValueError: It is something else, or holds anything.
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
        """Read one object that may hold others, of at most so many bytes.

        Raises:
            ValueError: It is longer.
            msgpack.UnpackException: The data end early.
        """
        begin = self._unpacker.tell()
        self.read("skip")
        nbytes = self._unpacker.tell() - begin
        if nbytes > max_nbytes:
            message = f"{nbytes} bytes of nested objects, of at most {max_nbytes}"
            raise ValueError(message)
        return msgpack.unpackb(self._data[begin : begin + nbytes], unicode_errors=TEXT_ERRORS)


def make_ext(code: int, data: bytes) -> msgpack.ExtType:
    """Make an ext object without its class's checks of what the decoder has just decoded: they take most of a read."""
    return tuple.__new__(msgpack.ExtType, (code, data))


def read_row(
    data: bytes, pacer: Pacer, *, max_array_len: int = 0, make_ext: Callable[[int, bytes], Any] = make_ext
) -> list[Any]:
    """Decode an array of scalars, or of arrays of at most so many; ext objects become what `make_ext` returns.

    Raises:
        ValueError: It is something else, or too long to be decoded at once.
        msgpack.UnpackException: The data end early.
    """
    unpacker = _unpacker(len(data), max_array_len, make_ext)
    unpacker.feed(data)
    count = unpacker.read_array_header()
    if count > MAX_ROW:
        message = f"{count} elements to be decoded at once, of at most {MAX_ROW}"
        raise ValueError(message)
    found = list(chain.from_iterable(pacer.batches(islice(unpacker, count))))
    if len(found) != count or unpacker.tell() != len(data):
        message = f"an array says that it has {count} elements, and has others"
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
