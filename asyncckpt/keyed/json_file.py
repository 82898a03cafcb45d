"""A JSON file of keys: one object, an entry on each line, rewritten as a whole by each commit.

1. The text of a value that did not change is written back as it was, whoever wrote it; line breaks in it become blanks.
2. Values are made when they are read. What is in the file stays there, and by its digest is told from what another
   program has put in its place; the text of what is put waits in memory for the commit.
3. What is laid out as we do it is read line by line, so that a damaged value hides no other. Text in any other layout
   is another program's: it is read as a whole, and of limited size.
"""

from __future__ import annotations

import json
import os
import re
from typing import IO, TYPE_CHECKING, Final, NamedTuple, TypeAlias

from xxhash import xxh3_64_intdigest

from asyncckpt.errors import CheckpointError, CorruptCheckpointError, UnsupportedFormatError
from asyncckpt.keyed.appender import Appender
from asyncckpt.keyed.base import FileStore
from asyncckpt.keyed.json_values import LONG, decode_key, decode_value, decoders, encode_key, encode_value
from asyncckpt.keyed.values import plain_names
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import Pacer, discard

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.keyed.values import CapturedValue, Found, Names
    from asyncckpt.runtime.context import JobContext

Entry: TypeAlias = tuple[str, int | None, bytes]
"""A key, where the text of its value begins (None: the file has another encoding), and that text in UTF-8."""

MAX_FOREIGN_NBYTES: Final = 256 << 20
"""Text in another layout than ours, of which several copies are in memory while the file is opened."""
_NAMED_NBYTES: Final = 1 << 20  # of values that are looked into for their keys as soon as the file is opened
_LOSSES: Final = "its layout: the blanks and line breaks between its entries, line breaks in them, and its encoding"
_BUFFER_NBYTES: Final = 1 << 16
_LINE: Final = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+"): ')
_BLANKS: Final = re.compile(r"[ \t\r\n]*+")
_SKIM: Final = decoders(len, parse_int=len, parse_float=len)  # to find where values end; makes little


class _Content(NamedTuple):
    """What a file holds."""

    file: IO[bytes] | None
    entries: dict[str, Names]
    places: dict[str, tuple[int, int, int]]
    """Where the text of a value lies, and its digest."""
    staged: dict[str, bytes]
    """Texts that are not in the file."""


class JSONStore(FileStore[_Content]):
    """An open JSON file."""

    _file: IO[bytes] | None = None
    _is_changed = False

    def _use(self, content: _Content) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._entries, self._places, self._staged = content

    @property
    def entries(self) -> Mapping[str, Names]:
        """See `Store`."""
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        """See `Store`."""
        texts = sum(nbytes for _, nbytes, _ in self._places.values()) + sum(map(len, self._staged.values()))
        return self._location.path, texts

    def read(self, key: str, work: JobContext) -> Found:
        """See `Store`."""
        text = self._text(key)
        try:
            return decode_value(text.decode("utf-8", "surrogatepass"), work.pacer)
        except (ValueError, CorruptCheckpointError) as error:
            raise self._corrupt(f"the value of {key!r}: {error}") from error

    def put(self, key: str, value: CapturedValue, work: JobContext) -> None:
        """See `Store`."""
        self.begin(work)
        self._staged[key] = encode_value(value, work.pacer)
        self._entries[key] = value.names
        self._is_changed = True

    def delete(self, key: str, work: JobContext) -> None:
        """See `Store`."""
        self.begin(work)
        self._staged.pop(key, None)
        del self._entries[key]
        self._is_changed = True

    def commit(self, work: JobContext) -> None:
        """See `Store`."""
        if not self._is_changed:
            return
        file = _file_of(self._location.create_temporary())
        try:
            places = self._write(file.fileno(), work.pacer)
            self._location.publish_temporary()
        except BaseException:
            file.close()
            self._location.discard_temporary()
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._places, self._is_changed = file, places, False
        discard(self._staged, Pacer(yields=work.pacer.yields))

    def _write(self, fd: int, pacer: Pacer) -> dict[str, tuple[int, int, int]]:
        """Write everything to a new file, and return where the values are in it."""
        places: dict[str, tuple[int, int, int]] = {}
        out = Appender(self._location.ops, fd, 0)
        out.write(b"{")
        for key in self._entries:
            text = self._text(key).replace(b"\n", b" ")
            out.write((b",\n" if places else b"\n") + _before(key))
            places[key] = out.offset, len(text), xxh3_64_intdigest(text)
            out.write(text)
            pacer.pause()
        out.write(b"\n}\n")
        out.flush()
        self._location.ops.sync(fd)
        return places

    def close(self) -> None:
        """See `Store`."""
        discard(self._staged, Pacer())
        self._use(_Content(None, {}, {}, {}))
        self._location.release()

    def _text(self, key: str) -> bytes:
        """Return the text of a value.

        Raises:
            CorruptCheckpointError: Another program has changed it.
        """
        if key in self._staged:
            return self._staged[key]
        assert self._file is not None  # noqa: S101 - what else would the key be from
        low, nbytes, digest = self._places[key]
        self._file.seek(low)
        text = self._file.read(nbytes)
        if xxh3_64_intdigest(text) != digest:
            raise self._corrupt(f"the value of {key!r}: another program has changed it since it was opened")
        return text

    # --- opening ------------------------------------------------------------------------------------------------------

    def _load(self, work: JobContext) -> _Content:
        fd = self._location.open()
        if fd is None:
            return _Content(None, {}, {}, {})
        file = _file_of(fd)
        try:
            with young_collections_only():
                if file.seek(0, os.SEEK_END):
                    return self._read(file, work)
                return _Content(file, {}, {}, {})  # somebody has made it in advance
        except BaseException as error:
            file.close()
            if isinstance(error, (ValueError, RecursionError)):
                raise self._corrupt(f"it is not a JSON object in UTF-8: {error!r:.500}") from error
            if isinstance(error, CorruptCheckpointError):
                raise self._corrupt(str(error)) from error
            raise

    def _read(self, file: IO[bytes], work: JobContext) -> _Content:
        reasons = []
        for entries in (_of_lines(file), _of_text(file, self._location), _of_lines(file, is_damaged=True)):
            try:
                return _content(file, entries, work)
            except (ValueError, RecursionError, CheckpointError) as error:
                reasons.append(error)
        raise reasons[1]

    def _corrupt(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._location.name}: {reason}", file=self._location.name)


def _content(file: IO[bytes], found: Iterator[Entry], work: JobContext) -> _Content:
    entries: dict[str, Names] = {}
    places: dict[str, tuple[int, int, int]] = {}
    staged: dict[str, bytes] = {}
    left = _NAMED_NBYTES
    for key, low, text in found:
        if key in entries:
            message = f"the key {key!r} stands twice"
            raise ValueError(message)
        if low is None:
            staged[key] = text
        else:
            places[key] = low, len(text), xxh3_64_intdigest(text)
        is_looked_into = len(text) <= left
        entries[key] = _names(text, work) if is_looked_into else False
        left -= len(text) if is_looked_into else 0
        work.pacer.pause()
    return _Content(file, entries, places, staged)


def _file_of(fd: int) -> IO[bytes]:
    try:
        return os.fdopen(fd, "rb", _BUFFER_NBYTES)
    except BaseException:
        os.close(fd)
        raise


def _before(key: str) -> bytes:
    """Return what a line of ours begins with."""
    return encode_key(key) + b": "


def _of_lines(file: IO[bytes], *, is_damaged: bool = False) -> Iterator[Entry]:
    """Yield the entries of a file in our layout, a line each; of a damaged one the text may be no value.

    Raises:
        ValueError: It has another layout.
    """
    file.seek(0)
    at, end = len(first := file.readline(3)), b",\n"
    for line in file if first == b"{\n" else ():
        if line == b"}\n" and (end == b"\n" or at == len(first)) and not file.read(1):
            return
        found = _LINE.match(line)
        if found is None or end == b"\n" or line[: found.end()] != _before(key := decode_key(found[1].decode())):
            break
        end = b",\n" if line.endswith(b",\n") else b"\n"
        text = line[found.end() : -len(end)]
        # What is long is believed to be a value: reading it will show.
        if not is_damaged and len(text) <= LONG and _SKIM(0).raw_decode(text.decode("latin-1"))[1] != len(text):
            break
        yield key, at + found.end(), text
        at += len(line)
    message = "it has not an entry on each line"
    raise ValueError(message)


def _of_text(file: IO[bytes], location: FileLocation) -> Iterator[Entry]:
    """Yield the entries of a JSON object in any layout and encoding.

    Raises:
        ValueError: It is none.
        RecursionError: It is nested too deeply.
        UnsupportedFormatError: It is too large.
    """
    nbytes = file.seek(0, os.SEEK_END)
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
    text = (data if is_utf8 else data.decode(encoding).encode()).decode("latin-1")  # positions are those of bytes
    del data
    skim = _SKIM(len(text)).raw_decode
    at, before, is_ours = _after(text, 0, "{"), 0, is_utf8
    while before or not text.startswith("}", at):
        key_end = skim(text, at)[1]
        low = _after(text, key_end, ":")
        high = skim(text, low)[1]
        key = decode_key(text[at:key_end].encode("latin-1").decode())
        yield key, low if is_utf8 else None, text[low:high].encode("latin-1")
        is_ours = is_ours and text[before:low] == ((",\n" if before else "{\n") + _before(key).decode())
        before, at = high, _after(text, high, "")
        if text.startswith("}", at):
            break
        at = _after(text, at, ",")
    if _after(text, at, "}") != len(text):
        message = f"something follows its end at byte {at + 1}"
        raise ValueError(message)
    if not is_ours or text[before:] != "\n}\n":
        location.mark_foreign(_LOSSES)


def _after(text: str, at: int, mark: str) -> int:
    """Return where what follows a mark, and blanks around it, begins."""
    at = _BLANKS.match(text, at).end()  # type: ignore[union-attr] # it matches anywhere
    if not text.startswith(mark, at):
        message = f"there is no {mark!r} at byte {at}"
        raise ValueError(message)
    return _BLANKS.match(text, at + len(mark)).end()  # type: ignore[union-attr]


def _names(text: bytes, work: JobContext) -> Names:
    try:
        return plain_names(decode_value(text.decode("utf-8", "surrogatepass"), work.pacer).value)
    except (ValueError, CheckpointError):  # of a value that cannot be made: reading it will say why
        return False
