"""Where the parts of JSON text from anybody lie.

1. The text is looked at once, window by window, with vector operations: which bytes are brackets and commas outside of
   strings, and how deep each lies. What is between them is for the parser, which refuses what is no JSON.
2. A window never ends within a string; one that is longer than a window is only searched for its end. Behind such a
   one the windows begin small: there may be another.
3. Which kind a bracket has does not count here: the parser sees it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from asyncckpt.keyed.json_text import Text
    from asyncckpt.runtime.pacing import Pacer

WINDOW_NBYTES: Final = 1 << 15
_SMALL_WINDOW_NBYTES: Final = 1 << 9
_NEAR_NBYTES: Final = 256
_BLANK: Final = b" \t\r\n"
_NOT_BLANK: Final = re.compile(rb"[^ \t\r\n]")
_STRING_PART: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_QUOTE, _BACKSLASH, COMMA, OPEN, CLOSE = range(1, 6)
_KINDS: Final = np.zeros(256, np.uint8)
_KINDS[list(b'"\\,[{]}')] = (_QUOTE, _BACKSLASH, COMMA, OPEN, OPEN, CLOSE, CLOSE)
_CHANGES: Final = np.array([0, 0, 0, 0, 1, -1])


class Window(NamedTuple):
    """A part of the text."""

    low: int
    high: int
    data: bytes
    """What lies there, but for a string that reaches far beyond its end."""
    at: NDArray[np.int64]
    """Where its brackets and commas lie in the text, without those in strings."""
    kinds: NDArray[np.uint8]
    """COMMA, OPEN or CLOSE, of each."""
    depths: NDArray[np.int64]
    """In how many brackets the text lies after each."""


def windows(text: Text, low: int, high: int, depth: int, pacer: Pacer) -> Iterator[Window]:
    """Yield the windows of a text which begins in so many brackets, and not in a string.

    Raises:
        ValueError: It ends within a string.
    """
    nbytes = WINDOW_NBYTES
    while low < high:
        window = _window(text, low, min(low + nbytes, high), high, depth, pacer)
        if len(window.depths):
            depth = int(window.depths[-1])
        yield window
        is_long = window.high - low >= nbytes + WINDOW_NBYTES
        nbytes = _SMALL_WINDOW_NBYTES if is_long else min(4 * nbytes, WINDOW_NBYTES)
        low = window.high
        pacer.pause()


def _window(text: Text, low: int, until: int, high: int, depth: int, pacer: Pacer) -> Window:  # noqa: PLR0913, PLR0917
    """Look at the text up to `until`, or to the end of the string that lies there."""
    data = text.slice(low, until)
    end = low + len(data)
    every = _KINDS[np.frombuffer(data, np.uint8)]
    at = np.flatnonzero(every)
    kinds = every[at]
    if (kinds == _BACKSLASH).any():
        at, kinds = _without_escapes(at, kinds)
    quotes = kinds == _QUOTE
    is_within = (np.cumsum(quotes) & 1).astype(np.bool_)
    if len(at) and is_within[-1]:
        end = end_of_string(text, low + int(at[np.flatnonzero(quotes)[-1]]), high, pacer)
    is_found = ~(is_within | quotes)
    at, kinds = at[is_found] + low, kinds[is_found]
    if (kinds == _BACKSLASH).any():
        message = f"there is a backslash outside of a string at byte {at[kinds == _BACKSLASH][0]}"
        raise ValueError(message)
    return Window(low, end, data, at, kinds, depth + np.cumsum(_CHANGES[kinds]))


def _without_escapes(at: NDArray[Any], kinds: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Leave out what a backslash within a string takes its meaning from; backslashes outside stay."""
    numbers = np.arange(len(at))
    is_backslash = kinds == _BACKSLASH
    follows = np.zeros(len(at), np.bool_)
    follows[1:] = (at[1:] == at[:-1] + 1) & is_backslash[:-1]
    begins = np.maximum.accumulate(np.where(is_backslash & ~follows, numbers, 0))
    escapes = is_backslash & ((numbers - begins) % 2 == 0)
    is_escaped = np.zeros(len(at), np.bool_)
    is_escaped[1:] = follows[1:] & escapes[:-1]
    is_plain_quote = (kinds == _QUOTE) & ~is_escaped
    is_within = (np.cumsum(is_plain_quote) & 1).astype(np.bool_)
    keep = is_plain_quote | ~is_within
    return at[keep], kinds[keep]


def end_of_string(text: Text, start: int, high: int, pacer: Pacer) -> int:
    """Return where the string that begins at `start` has ended.

    Raises:
        ValueError: It does not end.
    """
    at = start + 1
    while at < high:
        data, begin, end = text.near(at, high)
        quote = data.find(b'"', begin, end)
        if data.find(b"\\", begin, quote if quote >= 0 else end) < 0:
            if quote >= 0:
                return at + quote - begin + 1
            at += end - begin
        else:
            data = text.slice(at, min(at + WINDOW_NBYTES, high))
            found = _STRING_PART.match(data)
            quote = found.end() if found is not None else 0
            if data[quote : quote + 1] == b'"':
                return at + quote + 1
            if quote == 0:
                break
            at += quote  # it ends here, perhaps in the middle of an escape
        pacer.pause()
    message = "it ends in the middle of a string"
    raise ValueError(message)


def has_escape(text: Text, low: int, high: int) -> bool:
    """Tell whether there is a backslash."""
    while low < high:
        data, begin, end = text.near(low, high)
        if data.find(b"\\", begin, end) >= 0:
            return True
        low += end - begin
    return False


def skip_blanks(text: Text, low: int, high: int) -> int:
    """Return where the next thing that is no blank lies, or `high`."""
    while low < high:
        data = text.slice(low, min(low + _NEAR_NBYTES, high))
        if data[0] not in _BLANK:
            return low
        found = _NOT_BLANK.search(data)
        if found is not None:
            return low + found.start()
        low += len(data)
    return high


def skip_blanks_before(text: Text, low: int, high: int) -> int:
    """Return where the last thing before `high` that is no blank ends, or `low`."""
    nbytes = 1  # mostly there are none
    while low < high:
        data = text.slice(max(low, high - nbytes), high)
        left = len(data.rstrip(_BLANK))
        high -= len(data) - left
        if left:
            break
        nbytes = _NEAR_NBYTES
    return high
