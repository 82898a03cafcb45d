"""The JSON kind: one object with an entry on each line, rewritten as a whole by each commit.

1. The text of a value that did not change is written back as it was; its line breaks become spaces.
2. Values are made when they are read. Their text stays in the file, and has a digest, so that what another program has
   written in its place is noticed. The text of values that were put stays in memory until the commit.
3. A file in our layout is read line by line, so that a damaged value hides no other. Text in any other layout is
   another program's: it is read as a whole, and of limited size.
"""

from __future__ import annotations

import json
import os
import re
from json.decoder import JSONObject  # type: ignore[attr-defined] # undocumented, and in every release
from typing import IO, TYPE_CHECKING, Final, NamedTuple, TypeAlias

from xxhash import xxh3_64_intdigest

from asyncckpt.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.json.decode import decode_key, decode_value, json_decoder
from asyncckpt.keyed.json.encode import encode_key, encode_value
from asyncckpt.keyed.key_tree import key_tree_of_value
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import Pacer, discard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue, Found
    from asyncckpt.runtime.context import JobContext

Entry: TypeAlias = tuple[str, int | None, bytes]
"""A key, the offset of its value's text (None if the file is not UTF-8), and that text in UTF-8."""

MAX_FOREIGN_NBYTES: Final = 256 << 20
"""Text in another layout than ours, of which several copies are in memory while the file is opened."""
_NAMED_NBYTES: Final = 1 << 20  # of values that are searched for the keys of their dicts when the file is opened
_LOSSES: Final = "its layout: the blanks and line breaks between its entries, line breaks in them, and its encoding"
_BUFFER_NBYTES: Final = 1 << 16
_LINE: Final = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"): ')
_BLANKS: Final = re.compile(r"[ \t\r\n]*+")


class _Content(NamedTuple):
    """What a file holds."""

    file: IO[bytes] | None
    entries: dict[str, KeyTree]
    extents: dict[str, tuple[int, int, int]]
    """The offset, size and digest of each value's text in the file."""
    staged: dict[str, bytes]
    """Texts of values that are not in the file."""


class JSONStore(FileStore[_Content]):
    """An open JSON file."""

    _file: IO[bytes] | None = None
    _is_changed = False

    def _use(self, content: _Content) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._entries, self._extents, self._staged = content

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        texts = sum(nbytes for _, nbytes, _ in self._extents.values()) + sum(map(len, self._staged.values()))
        return self._location.path, texts

    def read(self, key: str, context: JobContext) -> Found:
        text = self._text(key)
        try:
            return _decode(text, context)
        except (ValueError, CorruptCheckpointError) as error:
            raise self._corrupt(f"the value of {key!r}: {error}") from error

    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        self.begin(context)
        self._staged[key] = encode_value(value, context.pacer)
        self._entries[key] = value.key_tree
        self._is_changed = True

    def delete(self, key: str, context: JobContext) -> None:
        self.begin(context)
        self._staged.pop(key, None)
        del self._entries[key]
        self._is_changed = True

    def commit(self, context: JobContext) -> None:
        if not self._is_changed:
            return
        file = _file_of(self._location.create_temporary())
        try:
            extents = self._write(file.fileno(), context.pacer)
            self._location.publish_temporary()
        except BaseException:
            file.close()
            self._location.discard_temporary()
            raise
        staged = self._staged
        self._use(_Content(file, self._entries, extents, {}))
        self._is_changed = False
        discard(staged, Pacer(yields=context.pacer.yields))

    def _close(self) -> None:
        discard(self._staged, Pacer())
        self._use(_Content(None, {}, {}, {}))

    def _text(self, key: str) -> bytes:
        """Return the text of a value.

        Raises:
            CorruptCheckpointError: Another program has changed it.
        """
        if self._file is None or key in self._staged:
            return self._staged[key]
        offset, nbytes, digest = self._extents[key]
        self._file.seek(offset)
        text = self._file.read(nbytes)
        if xxh3_64_intdigest(text) != digest:
            raise self._corrupt(f"the value of {key!r}: another program has changed it since it was opened")
        return text

    def _write(self, fd: int, pacer: Pacer) -> dict[str, tuple[int, int, int]]:
        """Write everything to a new file, and return where the values are in it."""
        extents: dict[str, tuple[int, int, int]] = {}
        out = Appender(self._location.ops, fd, 0)
        out.write(b"{")
        for key in self._entries:
            text = self._text(key).replace(b"\n", b" ")
            out.write((b",\n" if extents else b"\n") + _before(key))
            extents[key] = out.offset, len(text), xxh3_64_intdigest(text)
            out.write(text)
            pacer.pause()
        out.write(b"\n}\n")
        out.flush()
        self._location.ops.sync(fd)
        return extents

    def _load(self, context: JobContext) -> _Content:
        fd = self._location.open()
        if fd is None:
            return _Content(None, {}, {}, {})
        file = _file_of(fd)
        try:
            with young_collections_only():
                return _read(file, self._location, context)
        except BaseException as error:
            file.close()
            if isinstance(error, (ValueError, RecursionError)):
                raise self._corrupt(f"it is not a JSON object in UTF-8: {error!r:.500}") from error
            if isinstance(error, CorruptCheckpointError):
                raise self._corrupt(str(error)) from error
            raise

    def _corrupt(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._location.name}: {reason}", file=self._location.name)


def _file_of(fd: int) -> IO[bytes]:
    try:
        return os.fdopen(fd, "rb", _BUFFER_NBYTES)
    except BaseException:
        os.close(fd)
        raise


def _before(key: str) -> bytes:
    """Return the beginning of a line of ours."""
    return encode_key(key) + b": "


# --- opening ----------------------------------------------------------------------------------------------------------


def _read(file: IO[bytes], location: FileLocation, context: JobContext) -> _Content:
    reasons: list[Exception] = []
    for found in (_of_lines(file), _of_text(file, location), _of_lines(file)):
        try:
            return _content(file, found, context, is_strict=not reasons)
        except (ValueError, RecursionError, CheckpointError) as error:
            reasons.append(error)
    raise reasons[1]


def _content(file: IO[bytes], found: Iterator[Entry], context: JobContext, *, is_strict: bool) -> _Content:
    """Collect the entries of a file; if `is_strict`, fail where the text of a small value is none."""
    content = _Content(file, {}, {}, {})
    left = _NAMED_NBYTES
    for key, offset, text in found:
        if key in content.entries:
            message = f"duplicate key {key!r}"
            raise ValueError(message)
        if offset is None:
            content.staged[key] = text
        else:
            content.extents[key] = offset, len(text), xxh3_64_intdigest(text)
        content.entries[key] = False
        if len(text) <= left:
            left -= len(text)
            try:
                content.entries[key] = key_tree_of_value(_decode(text, context).value)
            except (ValueError, CheckpointError):
                if is_strict:
                    raise
        context.pacer.pause()
    return content


def _decode(text: bytes, context: JobContext) -> Found:
    return decode_value(text.decode("utf-8", "surrogatepass"), context.pacer)


def _of_lines(file: IO[bytes]) -> Iterator[Entry]:
    """Yield the entries of a file in our layout, without a look at their values.

    Raises:
        ValueError: It has another layout.
    """
    file.seek(0)
    offset, end = len(first := file.readline(3)), b",\n"
    for line in file if first == b"{\n" else ():
        if line == b"}\n" and (end == b"\n" or offset == len(first)) and not file.read(1):
            return
        found = _LINE.match(line)
        if found is None or end == b"\n" or line[: found.end()] != _before(key := decode_key(json.loads(found[1]))):
            break
        end = b",\n" if line.endswith(b",\n") else b"\n"
        text = line[found.end() : -len(end)]
        if text[:1].isspace() or text[-1:].isspace():
            break
        yield key, offset + found.end(), text
        offset += len(line)
    message = "its entries are not on lines of their own"
    raise ValueError(message)


def _of_text(file: IO[bytes], location: FileLocation) -> Iterator[Entry]:
    """Yield the entries of a JSON object in any layout and encoding.

    Raises:
        ValueError: It is none.
        RecursionError: It is nested too deeply.
        UnsupportedFormatError: It is too large.
    """
    nbytes = os.fstat(file.fileno()).st_size
    if nbytes > MAX_FOREIGN_NBYTES:
        message = (
            f"{location.name}: {nbytes} bytes of JSON, of which at most {MAX_FOREIGN_NBYTES} are read unless each key"
            ' has a line of its own: {, lines of "key": value, and }'
        )
        raise UnsupportedFormatError(message)
    file.seek(0)
    data = file.read()
    encoding = json.detect_encoding(data[:4])
    is_utf8 = encoding == "utf-8"
    errors = "surrogateescape" if is_utf8 else "strict"  # bytes that are no UTF-8 are an error of their value
    text = data.decode(encoding, errors)
    del data
    names, spans, end = _spans(text)
    is_ours = is_utf8 and text[end:] == "\n}\n"
    offset = before = 0
    for name, (begin, end) in zip(names, spans, strict=True):
        key, value = decode_key(name), text[begin:end].encode("utf-8", errors)
        is_ours = is_ours and text[before:begin] == (",\n" if before else "{\n") + _before(key).decode()
        offset += len(text[before:begin].encode("utf-8", errors))
        yield key, offset if is_utf8 else None, value
        offset += len(value)
        before = end
    if not is_ours:
        location.mark_foreign(_LOSSES)


def _spans(text: str) -> tuple[list[str], list[tuple[int, int]], int]:
    """Return the names in a JSON object, where the values lie in its text, and where the last one ends."""
    skim = json_decoder(len, len(text), parse_int=len, parse_float=len)  # makes little
    spans = []

    def scan(text: str, at: int) -> tuple[None, int]:
        end = skim.scan_once(text, at)[1]  # type: ignore[attr-defined]
        spans.append((at, end))
        return None, end

    start = _BLANKS.match(text).end()  # type: ignore[union-attr] # it matches anywhere
    if not text.startswith("{", start):
        message = "it does not begin with a brace"
        raise ValueError(message)
    entries, end = JSONObject((text, start + 1), True, scan, None, list)  # noqa: FBT003
    if not _BLANKS.fullmatch(text, end):
        message = f"something follows its end at character {end}"
        raise ValueError(message)
    return [name for name, _ in entries], spans, spans[-1][1] if spans else start + 1
