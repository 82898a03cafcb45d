"""The JSON kind: one object with an entry on each line, rewritten as a whole by each commit.

1. The text of all values is in memory while the file is open. Values are made of it when they are read, and what did
   not change is written back as it was.
2. A file in our layout is read line by line, so that a damaged value hides no other. Text in any other layout is
   another program's: it is read as a whole, and of limited size.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from json.decoder import JSONObject  # type: ignore[attr-defined] # undocumented, and in every release
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import CheckpointError, UnsupportedFormatError
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.damage import damage_of, damaged, errors_of
from asyncckpt.keyed.json.codec import decode_key, decode_value, encode_key, encode_value, unique
from asyncckpt.keyed.key_tree import key_tree_of_value
from asyncckpt.runtime.cleanup import on_failure
from asyncckpt.runtime.collector import young_collections_only

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext
    from asyncckpt.runtime.pacing import Pacer

MAX_FOREIGN_NBYTES: Final = 256 << 20
"""Text in another layout than ours, which takes several times as much memory while the file is opened."""
_NAMED_NBYTES: Final = 1 << 20  # of values that are searched for the keys of their dicts when the file is opened
_LOSSES: Final = "its layout: the blanks and line breaks between its entries, line breaks in them, and its encoding"
_LINE: Final = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"): ')
_SKIM: Final = json.JSONDecoder(object_pairs_hook=len, parse_int=len, parse_float=len)  # makes little


class _Content(NamedTuple):
    """What a file holds."""

    texts: dict[str, bytes]
    """The text of each value, in UTF-8 and without line breaks."""
    entries: dict[str, KeyTree]


class JSONStore(FileStore[_Content]):
    """An open JSON file."""

    def _use(self, content: _Content) -> None:
        self._texts, self._entries = content

    def _close(self) -> None:
        self._use(_Content({}, {}))

    def disk_use(self) -> tuple[Path, int]:
        return self._location.path, sum(map(len, self._texts.values()))

    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        with errors_of(self._location.name, f"the value of {key!r}"):
            return decode_value(self._texts[key], context.pacer, keeps_kinds=keeps_kinds)

    def _put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        self._texts[key] = encode_value(value, context.pacer)
        self._entries[key] = value.key_tree

    def _delete(self, key: str) -> None:
        del self._texts[key], self._entries[key]

    def _commit(self, context: JobContext) -> None:
        fd = self._location.create_temporary()
        with on_failure(self._location.discard_temporary):
            try:
                out = Appender(self._location.ops, fd, 0)
                for part in _layout(self._texts):
                    out.write(part)
                    context.pacer.pause()
                out.flush()
                self._location.ops.sync(fd)
            finally:
                os.close(fd)
            self._location.publish_temporary()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self, context: JobContext) -> _Content:
        fd = self._location.open()
        if fd is None:
            return _Content({}, {})
        try:
            with errors_of(self._location.name), open(fd, "rb", closefd=False) as file, young_collections_only():
                return self._read(file, context.pacer)
        finally:
            os.close(fd)

    def _read(self, file: IO[bytes], pacer: Pacer) -> _Content:
        texts = _texts_on_lines(file, pacer)
        entries, is_sound = _key_trees(texts or {}, pacer)
        if texts is not None and is_sound:
            return _Content(texts, entries)
        try:
            found, is_ours = _texts_of_any(file)
        except CheckpointError:
            if texts is None:
                raise
            return _Content(texts, entries)
        if not is_ours:
            self._location.mark_foreign(_LOSSES)
        return _Content(found, _key_trees(found, pacer)[0])


def _layout(texts: Mapping[str, bytes]) -> Iterator[bytes]:
    """Yield the parts of a file in our layout."""
    yield b"{"
    before = b"\n"
    for key, text in texts.items():
        yield before + encode_key(key) + b": "
        yield text
        before = b",\n"
    yield b"\n}\n"


def _key_trees(texts: Mapping[str, bytes], pacer: Pacer) -> tuple[dict[str, KeyTree], bool]:
    """Return the key trees of the first values, and whether these values are sound."""
    entries: dict[str, KeyTree] = dict.fromkeys(texts, False)
    is_sound, left = True, _NAMED_NBYTES
    for key, text in texts.items():
        if len(text) <= left:
            left -= len(text)
            try:
                entries[key] = key_tree_of_value(decode_value(text, pacer).value)
            except CheckpointError:
                is_sound = False
        pacer.pause()
    return entries, is_sound


def _texts_on_lines(file: IO[bytes], pacer: Pacer) -> dict[str, bytes] | None:
    """Return the texts in a file of our layout, whatever they are; None if it has another layout."""
    texts: dict[str, bytes] = {}
    end = b",\n"
    with suppress(ValueError, CheckpointError):  # of a key
        for line in file if file.readline(3) == b"{\n" else ():
            if line == b"}\n" and (end == b"\n" or not texts):
                return None if file.read(1) else texts
            found = _LINE.match(line)
            if found is None or end == b"\n":
                break
            key = decode_key(json.loads(found[1]))
            end = b",\n" if line.endswith(b",\n") else b"\n"
            text = line[found.end() : -len(end)]
            if found[1] != encode_key(key) or key in texts or text[:1].isspace() or text[-1:].isspace():
                break
            texts[key] = text
            pacer.pause()
    return None


def _texts_of_any(file: IO[bytes]) -> tuple[dict[str, bytes], bool]:
    """Return the texts in a JSON object of any layout and encoding, and whether they are laid out as ours are.

    In the texts, spaces take the place of line breaks.

    Raises:
        CorruptCheckpointError: It is none, or nested too deeply.
        UnsupportedFormatError: It is too large.
    """
    nbytes = file.seek(0, os.SEEK_END)
    if nbytes > MAX_FOREIGN_NBYTES:
        message = (
            f"{nbytes} bytes of JSON, of which at most {MAX_FOREIGN_NBYTES} are read unless each key has a line of its"
            ' own: {, lines of "key": value, and }'
        )
        raise UnsupportedFormatError(message)
    file.seek(0)
    data = file.read()
    encoding = json.detect_encoding(data[:4])
    errors = "surrogateescape" if encoding == "utf-8" else "strict"  # a value that is no UTF-8 hides no other

    def scan(text: str, at: int) -> tuple[bytes, int]:
        end = _SKIM.scan_once(text, at)[1]  # type: ignore[attr-defined]
        return text[at:end].encode("utf-8", errors), end

    with damage_of("it is not a JSON object in UTF-8"):
        text = data.decode(encoding, errors).strip(" \t\r\n")
        if not text.startswith("{"):
            damaged("it is not a JSON object: it does not begin with a brace")
        entries, end = JSONObject((text, 1), True, scan, None, list)  # noqa: FBT003
        if end < len(text):
            damaged(f"it is not a JSON object: something follows its end at character {end}")
        texts = unique([(decode_key(name), value) for name, value in entries])
        return {key: value.replace(b"\n", b" ") for key, value in texts.items()}, b"".join(_layout(texts)) == data
