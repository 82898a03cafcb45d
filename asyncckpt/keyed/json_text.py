"""The text of JSON, held in pieces, so that neither making it nor dropping it is one long call."""

from __future__ import annotations

import codecs
import json
import os
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncckpt.workers import Pacer

PIECE_NBYTES: Final = 1 << 20


class Text:
    """UTF-8, in pieces of any length."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self, pieces: Iterable[bytes]) -> None:
        """Hold these pieces, one behind the other."""
        self._pieces = [piece for piece in pieces if piece]
        self._starts = list(accumulate(map(len, self._pieces), initial=0))

    def __len__(self) -> int:
        """Return how many bytes it has."""
        return self._starts[-1]

    def slice(self, low: int, high: int) -> bytes:
        """Return the bytes from `low` up to `high`, which must lie in the text."""
        number = bisect_right(self._starts, low) - 1
        if number >= len(self._pieces):
            return b""
        start = self._starts[number]
        if high <= self._starts[number + 1]:
            return self._pieces[number][low - start : high - start]
        return b"".join(self.pieces(low, high))

    def pieces(self, low: int, high: int) -> Iterator[memoryview]:
        """Yield what lies there without copying it."""
        number = bisect_right(self._starts, low) - 1
        while low < high:
            start, end = self._starts[number], min(self._starts[number + 1], high)
            yield memoryview(self._pieces[number])[low - start : end - start]
            low = end
            number += 1

    def drop(self, pacer: Pacer) -> None:
        """Give the memory back, with pauses: the kernel takes 0.1 s for a GiB."""
        self._starts = [0]
        while self._pieces:
            self._pieces.pop()
            pacer.pause()


def read_text(fd: int, pacer: Pacer) -> Text:
    """Read a file in any of JSON's encodings.

    Raises:
        ValueError: It is not of its encoding, or ended while it was read.
        OSError: It cannot be read.
    """
    pieces = _read(fd, pacer)
    encoding = json.detect_encoding(pieces[0][:4]) if pieces else "utf-8"
    if encoding == "utf-8":
        return Text(pieces)
    return Text(piece.encode() for piece in codecs.iterdecode(pieces, encoding))


def _read(fd: int, pacer: Pacer) -> list[bytes]:
    pieces: list[bytes] = []
    at, nbytes = 0, os.fstat(fd).st_size
    while at < nbytes:
        piece = os.pread(fd, min(PIECE_NBYTES, nbytes - at), at)
        if not piece:
            message = "it ended while it was read"
            raise ValueError(message)
        pieces.append(piece)
        at += len(piece)
        pacer.pause()
    return pieces
