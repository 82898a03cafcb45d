"""Parses JSON text from anybody in pieces, so that no call takes long.

1. One pass over the windows of the text (`json_scan`). Containers that begin in one window and end in another are built
   here; what lies between their brackets goes to `json`, as many elements at once as a window has.
2. What `json` is given is put between brackets of its own, and balanced: so it is JSON exactly if the text is.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.keyed import json_tags as tags
from asyncckpt.keyed.json_scan import (
    CLOSE,
    COMMA,
    OPEN,
    WINDOW_NBYTES,
    end_of_string,
    has_escape,
    skip_blanks,
    windows,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncckpt.keyed.json_scan import Window
    from asyncckpt.keyed.json_text import Text
    from asyncckpt.runtime.pacing import Pacer

_MAX_BRACKETS: Final = 3 * tags.MAX_DEPTH  # a container of ours takes two, and a leaf in it up to three more
_NEAR_NBYTES: Final = 256  # where a key and its colon are mostly found
_PLAIN_KEY: Final = re.compile(rb'[ \t\r\n]*+"([^"\\\x00-\x1f]*+)"[ \t\r\n]*+:[ \t\r\n]*+')
_PART_NBYTES: Final = 1 << 18  # a multiple of 4: base64 is decoded in parts


class Pairs(list[Any]):
    """The entries of a JSON object that may hold something of ours."""


class Span:
    """A long string in a list, not yet made: where the text between its quotes lies. It has no escapes."""

    __slots__ = ("_high", "_low", "_text", "end")

    def __init__(self, text: Text, low: int, high: int) -> None:
        self._text = text
        self._low = low
        self._high = high
        self.end = text.slice(high - 2, high)
        """Its last two bytes, looked at while they are at hand."""

    def __str__(self) -> str:
        """Make it."""
        made: str = decode(b'"' + self._text.slice(self._low, self._high) + b'"', None)
        return made

    def __len__(self) -> int:
        """Return how many bytes it has."""
        return self._high - self._low

    def parts(self) -> Iterator[bytes]:
        """Yield its bytes."""
        for low in range(self._low, self._high, _PART_NBYTES):
            yield self._text.slice(low, min(low + _PART_NBYTES, self._high))


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a dict.

    Raises:
        ValueError: A key stands twice.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        message = f"a key stands twice in an object of the keys {', '.join(map(repr, list(found)[:8]))}"
        raise ValueError(message)
    return found


_DECODERS: Final = {
    None: json.JSONDecoder(object_pairs_hook=unique),
    Pairs: json.JSONDecoder(object_pairs_hook=Pairs),
}


def decode(data: bytes, pairs: type[Pairs] | None) -> Any:
    """Parse JSON; objects become Pairs, if that is given, or else dicts."""
    return _DECODERS[pairs].decode(data.decode("utf-8", "surrogatepass"))


def split_near(data: bytes, low: int, high: int) -> tuple[str, int] | None:
    """Return the key of an entry of an object, and where its value begins, if that is soon told."""
    found = _PLAIN_KEY.match(data, low, high)
    return None if found is None else (found[1].decode("utf-8", "surrogatepass"), found.end())


def split_entry(text: Text, low: int, high: int, pacer: Pacer) -> tuple[str, int]:
    """Return the key of an entry of an object, and where the text of its value begins, or blanks before it.

    Raises:
        ValueError: There is no key, or no colon behind it.
    """
    found = split_near(text.slice(low, min(low + _NEAR_NBYTES, high)), 0, _NEAR_NBYTES)
    if found is not None:
        return found[0], low + found[1]
    low = skip_blanks(text, low, high)
    if low < high and text.slice(low, low + 1) == b'"':
        end = end_of_string(text, low, high, pacer)
        colon = skip_blanks(text, end, high)
        if colon < high and text.slice(colon, colon + 1) == b":":
            return decode(text.slice(low, end), None), colon + 1
    message = f"there is no key at byte {low}"
    raise ValueError(message)


def parse(text: Text, low: int, high: int, pairs: type[Pairs] | None, pacer: Pacer) -> Any:
    """Parse the value that lies there.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    pacer.pause()
    low = skip_blanks(text, low, high)
    first = text.slice(low, min(low + 1, high))
    if high - low <= WINDOW_NBYTES or first not in (b"[", b"{"):
        return decode(text.slice(low, high), pairs)
    return _Parser(text, pairs, pacer).parse(low, high)


class _Frame:
    """A container that is being built."""

    __slots__ = ("has_comma", "is_list", "items", "key", "stands_behind")

    def __init__(self, key: str | None, *, is_list: bool) -> None:
        self.key = key  # in the object that it lies in
        self.is_list = is_list
        self.items: list[Any] = []
        self.has_comma = False  # the last thing in it is a comma
        self.stands_behind = False  # the last thing in it is an element that was built here


class _Parser:
    """Parses one container."""

    def __init__(self, text: Text, pairs: type[Pairs] | None, pacer: Pacer) -> None:
        self._text = text
        self._pairs = pairs
        self._pacer = pacer
        self._frames: list[_Frame] = []
        self._first = 0  # what lies before is parsed
        self._made: Any = None

    def parse(self, low: int, high: int) -> Any:
        self._frames.append(_Frame(None, is_list=self._text.slice(low, low + 1) == b"["))
        self._first = low + 1
        for window in windows(self._text, low + 1, high, 1, self._pacer):
            if len(window.depths):
                self._window(window)
        if self._frames:
            message = "it ends early"
            raise ValueError(message)
        if skip_blanks(self._text, self._first, high) < high:
            message = f"something follows its end at byte {self._first}"
            raise ValueError(message)
        return self._made

    def _window(self, window: Window) -> None:
        """Go through the brackets of containers that are open where it begins or ends; the rest lies between them."""
        depths, kinds = window.depths, window.kinds
        if depths.max() > _MAX_BRACKETS:
            raise RecursionError
        least = np.minimum.accumulate(depths)
        before = np.minimum(np.concatenate((depths[:1], least[:-1])), len(self._frames))
        before[0] = len(self._frames)
        least_behind = np.minimum.accumulate(depths[::-1])[::-1]
        is_event = (kinds == CLOSE) & (depths < before)
        is_event |= (kinds == OPEN) & (depths <= least_behind)
        start = 0
        for event in [*np.flatnonzero(is_event).tolist(), len(depths)]:
            depth = len(self._frames)
            if depth == 0:
                break  # whatever follows its end is refused
            part = slice(start, event)
            commas = window.at[part][(kinds[part] == COMMA) & (depths[part] == depth)]
            if len(commas):
                if start == 0 and window.low - self._first >= WINDOW_NBYTES:  # something long: an element by itself
                    self._take(int(commas[0]))
                    self._pass_comma(int(commas[0]))
                if self._first <= commas[-1]:
                    self._take(int(commas[-1]))
                    self._pass_comma(int(commas[-1]))
            if event < len(depths):
                at = int(window.at[event])
                if kinds[event] == OPEN:
                    self._open(at)
                else:
                    self._close(at)
            start = event + 1

    def _open(self, at: int) -> None:
        frame = self._frames[-1]
        key = None
        start = self._first
        if frame.stands_behind:
            message = f"there is no comma before byte {at}"
            raise ValueError(message)
        if not frame.is_list:
            key, start = split_entry(self._text, start, at, self._pacer)
        if skip_blanks(self._text, start, at) < at:
            message = f"something stands before the bracket at byte {at}"
            raise ValueError(message)
        self._frames.append(_Frame(key, is_list=self._text.slice(at, at + 1) == b"["))
        self._first = at + 1

    def _close(self, at: int) -> None:
        self._take(at, is_end=True)
        frame = self._frames.pop()
        if (self._text.slice(at, at + 1) == b"]") != frame.is_list:
            message = f"the bracket at byte {at} does not match"
            raise ValueError(message)
        made: Any = frame.items
        if not frame.is_list:
            made = self._pairs(made) if self._pairs is not None else unique(made)
        self._first = at + 1
        if not self._frames:
            self._made = made
            return
        above = self._frames[-1]
        above.items.append(made if above.is_list else (frame.key, made))
        above.stands_behind, above.has_comma = True, False

    def _pass_comma(self, at: int) -> None:
        self._first = at + 1
        frame = self._frames[-1]
        frame.has_comma, frame.stands_behind = True, False

    def _take(self, high: int, *, is_end: bool = False) -> None:
        """Parse the elements from where parsing stopped up to a comma, or up to the end of the container."""
        frame = self._frames[-1]
        low = skip_blanks(self._text, self._first, high)
        if frame.stands_behind:
            if low == high:
                return
            if self._text.slice(low, low + 1) != b",":
                message = f"there is no comma at byte {low}"
                raise ValueError(message)
            low = skip_blanks(self._text, low + 1, high)
            frame.has_comma = True
        if low == high:
            if is_end and not frame.has_comma:
                return
            message = f"the comma before byte {high} has nothing behind it, or nothing before it"
            raise ValueError(message)
        self._pacer.pause()
        if frame.is_list:
            span = self._span(low, high) if self._pairs is not None and high - low >= WINDOW_NBYTES else None
            frame.items += decode(b"[" + self._text.slice(low, high) + b"]", self._pairs) if span is None else [span]
        else:
            found = decode(b"{" + self._text.slice(low, high) + b"}", self._pairs)
            frame.items += found.items() if type(found) is dict else found

    def _span(self, low: int, high: int) -> Span | None:
        """Return the string that lies there, if there is nothing else, and no escape in it."""
        text = self._text
        if text.slice(low, low + 1) != b'"':
            return None
        end = end_of_string(text, low, high, self._pacer)
        if skip_blanks(text, end, high) < high:
            return None
        span = Span(text, low + 1, end - 1)
        return None if has_escape(text, low, end) else span
