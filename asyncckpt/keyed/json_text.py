"""The text of JSON: that of a file, read where it is looked at, or that of a value, held in pieces.

1. Text of a file takes two pieces of memory, however long it is: what is looked at mostly lies in one, or where one
   ends. A piece that is read again is what it was, by its digest: others may write to the file.
2. Text in memory is held in pieces, so that neither making it nor dropping it is one long call.
"""

from __future__ import annotations

import codecs
import json
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from xxhash import xxh3_128_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncckpt.runtime.pacing import Pacer

PIECE_NBYTES: Final = 1 << 20


class Text(ABC):
    """UTF-8, of which a piece is at hand at a time. Used by one thread."""

    __slots__ = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return how many bytes it has."""

    @abstractmethod
    def near(self, at: int, high: int) -> tuple[bytes, int, int]:
        """Return a piece that holds byte `at`; and where in it that byte lies, and where the piece or `high` ends.

        Raises:
            ValueError: Another program has changed the file since it was opened, or made it shorter.
        """

    @abstractmethod
    def drop(self, pacer: Pacer) -> None:
        """Give back what it takes; more than once does no harm."""

    def slice(self, low: int, high: int) -> bytes:
        """Return the bytes from `low` up to `high`, which must lie in the text."""
        if low >= high:
            return b""
        data, begin, end = self.near(low, high)
        return data[begin:end] if end - begin == high - low else b"".join(self.pieces(low, high))

    def pieces(self, low: int, high: int) -> Iterator[memoryview]:
        """Yield what lies there."""
        while low < high:
            data, begin, end = self.near(low, high)
            yield memoryview(data)[begin:end]
            low += end - begin


class MemoryText(Text):
    """Text in memory, in pieces of any length."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """Hold these pieces, one behind the other."""
        self._pieces = [piece for piece in pieces if piece]
        self._starts = list(accumulate(map(len, self._pieces), initial=0))

    def __len__(self) -> int:
        """Return how many bytes it has."""
        return self._starts[-1]

    def near(self, at: int, high: int) -> tuple[bytes, int, int]:
        """See `Text`."""
        number = bisect_right(self._starts, at) - 1
        start = self._starts[number]
        return self._pieces[number], at - start, min(self._starts[number + 1], high) - start

    def drop(self, pacer: Pacer) -> None:
        """Give the memory back, with pauses: the kernel takes 0.1 s for a GiB."""
        self._starts = [0]
        while self._pieces:
            self._pieces.pop()
            pacer.pause()


class FileText(Text):
    """Text of a file, with the two pieces that were looked at last."""

    __slots__ = ("_before", "_begin", "_digests", "_nbytes", "_piece", "fd")

    def __init__(self, fd: int) -> None:
        """Take the descriptor of a file as it is now; if that fails, it is closed."""
        self.fd = fd
        try:
            self.note()
        except BaseException:
            os.close(fd)
            raise

    def note(self) -> None:
        """Take the file as it is now."""
        self._nbytes = os.fstat(self.fd).st_size
        self._digests: dict[int, bytes] = {}  # of the pieces that were read
        self._begin, self._piece = 0, b""
        self._before = self._begin, self._piece

    def __len__(self) -> int:
        """Return how many bytes it has."""
        return self._nbytes

    def near(self, at: int, high: int) -> tuple[bytes, int, int]:
        """See `Text`."""
        if not self._begin <= at < self._begin + len(self._piece):
            before, self._before = self._before, (self._begin, self._piece)
            self._begin, self._piece = before
            if not self._begin <= at < self._begin + len(self._piece):
                begin = at - at % PIECE_NBYTES
                piece = self._read(begin)
                self._begin, self._piece = begin, piece  # together: a failed read must leave no piece in a wrong place
        return self._piece, at - self._begin, min(len(self._piece), high - self._begin)

    def _read(self, begin: int) -> bytes:
        nbytes = min(PIECE_NBYTES, self._nbytes - begin)
        piece = os.pread(self.fd, nbytes, begin)
        digest = xxh3_128_digest(piece)
        if len(piece) != nbytes or self._digests.setdefault(begin, digest) != digest:
            message = "another program has changed it since it was opened"
            raise ValueError(message)
        return piece

    def drop(self, pacer: Pacer) -> None:  # noqa: ARG002 - it is soon done
        """Close the file."""
        fd, self.fd = self.fd, -1
        self._piece, self._before = b"", (0, b"")
        if fd >= 0:
            os.close(fd)


def read_text(fd: int, pacer: Pacer) -> Text:
    """Return the text of a file in any of JSON's encodings, whose descriptor is the text's from now on.

    Raises:
        ValueError: It is not of its encoding, or was changed while it was read.
        OSError: It cannot be read.
    """
    text = FileText(fd)
    try:
        encoding = json.detect_encoding(text.slice(0, min(4, len(text))))
        if encoding == "utf-8":
            return text
        made = MemoryText(piece.encode() for piece in codecs.iterdecode(_read(text, pacer), encoding))
    except BaseException:
        text.drop(pacer)
        raise
    text.drop(pacer)
    return made


def _read(text: Text, pacer: Pacer) -> Iterator[bytes]:
    for piece in text.pieces(0, len(text)):
        yield bytes(piece)
        pacer.pause()
