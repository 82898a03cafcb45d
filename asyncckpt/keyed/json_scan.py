"""JSON text from anybody: where its parts lie, and parsed in pieces, so that no call takes long."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from asyncckpt.keyed import json_tags as tags

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncckpt.workers import Pacer

Text: TypeAlias = "bytes | bytearray"
_BATCH_NBYTES: Final = 1 << 16  # of JSON, parsed by one call
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STRUCTURE: Final = re.compile(rb'["\[\]{}]')
_AT_TOP: Final = re.compile(rb'["\[\]{},]')
_COLON: Final = re.compile(rb"[ \t\r\n]*:")
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_MARKS_PER_PAUSE: Final = 256


def skip_blanks(text: Text, low: int, high: int) -> int:
    """Return where the next thing that is no blank lies, or `high`."""
    found = _BLANKS.match(text, low, high)
    return found.end() if found is not None else low


class Pairs(list[Any]):
    """The entries of a JSON object that may hold something of ours."""


def loads(text: bytes, pairs: type[Pairs] | None) -> Any:
    """Parse JSON; objects become Pairs, if that is given, or else dicts."""
    return json.loads(text, object_pairs_hook=pairs or unique)


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


class Parser:
    """Parses JSON, in pieces where it is long."""

    def __init__(self, pairs: type[Pairs] | None, pacer: Pacer) -> None:
        self._pairs = pairs
        self._pacer = pacer

    def parse(self, text: Text, low: int, high: int, depth: int = 0) -> Any:
        """Parse a value."""
        self._pacer.pause()
        begin = skip_blanks(text, low, high)
        if high - begin <= _BATCH_NBYTES or text[begin : begin + 1] not in (b"[", b"{"):
            return loads(bytes(text[begin:high]), self._pairs)
        if depth > tags.MAX_DEPTH:
            raise RecursionError
        is_list = text[begin : begin + 1] == b"["
        items: list[Any] = []
        first = last = 0  # of the elements that are parsed by one call
        for start, end in elements(text, begin, high, self._pacer):
            if first < last and end - first > _BATCH_NBYTES:
                items += self._batch(bytes(text[first:last]), is_list=is_list)
                first = last
            if end - start > _BATCH_NBYTES:
                items.append(self._long(text, start, end, depth, is_list=is_list))
                first = last = end
            else:
                first, last = start if first == last else first, end
        if first < last:
            items += self._batch(bytes(text[first:last]), is_list=is_list)
        if is_list:
            return items
        return self._pairs(items) if self._pairs is not None else unique(items)

    def _batch(self, text: bytes, *, is_list: bool) -> Iterable[Any]:
        self._pacer.pause()
        found = loads(b"[" + text + b"]" if is_list else b"{" + text + b"}", self._pairs)
        return found.items() if type(found) is dict else found

    def _long(self, text: Text, start: int, end: int, depth: int, *, is_list: bool) -> Any:
        if is_list:
            return self.parse(text, start, end, depth + 1)
        key, at = split_entry(text, start, end)
        return json.loads(key), self.parse(text, at, end, depth + 1)


def elements(text: Text, begin: int, high: int, pacer: Pacer) -> Iterator[tuple[int, int]]:
    """Yield where the elements of the container that begins here lie; nothing may follow it up to `high`."""
    start = begin + 1
    for mark, at in _marks(text, begin, high, pacer):
        if mark == b",":
            yield start, at
            start = at + 1
            continue
        if skip_blanks(text, start, at) < at:
            yield start, at
        elif start != begin + 1:
            message = f"the comma at byte {start - 1} has nothing behind it"
            raise ValueError(message)
        if skip_blanks(text, at + 1, high) < high:
            message = f"something follows its end at byte {at + 1}"
            raise ValueError(message)


def _marks(text: Text, begin: int, high: int, pacer: Pacer) -> Iterator[tuple[bytes, int]]:
    """Yield the commas between the elements of the container that begins here, and the bracket that ends it."""
    closers = [b"]" if text[begin : begin + 1] == b"[" else b"}"]
    mark, at = b"", begin + 1
    count = 0
    while closers:
        found = (_AT_TOP if len(closers) == 1 else _STRUCTURE).search(text, at, high)
        if found is None:
            message = "it ends early"
            raise ValueError(message)
        mark, at = bytes(found.group()), found.end()
        count += 1
        if not count % _MARKS_PER_PAUSE:
            pacer.pause()
        if mark == b'"':
            at = _end_of_string(text, found.start(), high)
        elif mark in (b"[", b"{"):
            closers.append(b"]" if mark == b"[" else b"}")
            if len(closers) > tags.MAX_DEPTH * 8:  # a bomb; what is merely too deep is told when it is parsed
                raise RecursionError
        elif mark == b",":
            yield mark, found.start()
        elif mark != closers.pop():
            message = f"the bracket at byte {found.start()} does not match"
            raise ValueError(message)
    yield mark, at - 1


def _end_of_string(text: Text, start: int, high: int) -> int:
    quote = text.find(b'"', start + 1, high)
    if quote >= 0 and text.find(b"\\", start + 1, quote) < 0:
        return quote + 1
    string = _STRING.match(text, start, high)
    if string is None:
        message = "it ends in the middle of a string"
        raise ValueError(message)
    return string.end()


def split_entry(text: Text, low: int, high: int) -> tuple[bytes, int]:
    """Return the key of an entry of an object, as JSON, and where its value begins."""
    low = skip_blanks(text, low, high)
    key = _STRING.match(text, low, high)
    colon = _COLON.match(text, key.end(), high) if key is not None else None
    if key is None or colon is None:
        message = f"there is no key at byte {low}"
        raise ValueError(message)
    return bytes(key.group()), colon.end()
