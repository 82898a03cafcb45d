"""A JSON file of keys: one object, rewritten as a whole by each commit.

1. The text of a value that did not change is written back as it was, whoever wrote it.
2. Values are parsed when they are read; opening only finds where each begins and ends.
3. What is in the file stays there; the text of what is put waits in memory for the commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.errors import CheckpointError, CorruptCheckpointError
from asyncckpt.keyed import json_layout as layout
from asyncckpt.keyed.base import Found, Store
from asyncckpt.keyed.json_read import decode_value, split_object
from asyncckpt.keyed.json_text import FileText, MemoryText, Text, read_text
from asyncckpt.keyed.json_write import encode_value
from asyncckpt.keyed.values import plain_names
from asyncckpt.keyed.writing import Appender
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from asyncckpt.keyed.base import Work
    from asyncckpt.keyed.home import Home
    from asyncckpt.keyed.values import Captured, Names

_NAMED_NBYTES: Final = 1 << 20  # of values that are looked into for their keys as soon as the file is opened


class JSONStore(Store):
    """An open JSON file."""

    def __init__(self, home: Home, work: Work) -> None:
        """Open it.

        Raises:
            CorruptCheckpointError: It is no JSON object.
            OSError: It cannot be read.
        """
        self._home = home
        self._text: Text = MemoryText(())
        self._places: dict[str, tuple[int, int]] = {}  # from where to where the text of a value lies
        self._staged: dict[str, bytes | Text] = {}  # texts that are not in the file
        self._entries: dict[str, Names] = {}
        self._is_changed = False
        self._load(work)

    @property
    def entries(self) -> Mapping[str, Names]:
        """See `Store`."""
        return self._entries

    def disk_use(self) -> tuple[Path, int]:
        """See `Store`."""
        return self._home.path, sum(high - low for low, high in self._places.values())

    def read(self, key: str, work: Work) -> Found:
        """See `Store`."""
        text = self._text_of(key)
        try:
            return decode_value(text, *self._places[key], work.pacer())
        except CorruptCheckpointError as error:
            raise self._corrupt(f"the value of {key!r}: {error}", error) from error
        except ValueError as error:
            raise self._corrupt(f"the value of {key!r} cannot be read: {error}", error) from error

    def put(self, key: str, value: Captured, work: Work) -> None:
        """See `Store`."""
        self.begin(work)
        pieces = encode_value(value, work.pacer())
        self._drop(key, Pacer(yields=work.yields))
        # Most are of one piece, and there may be very many: bytes are nothing that a garbage collection walks over.
        staged = self._staged[key] = pieces[0] if len(pieces) == 1 else MemoryText(pieces)
        self._places[key] = 0, len(staged)
        self._entries[key] = value.names
        self._is_changed = True

    def delete(self, key: str, work: Work) -> None:
        """See `Store`."""
        self.begin(work)
        self._drop(key, Pacer(yields=work.yields))
        del self._places[key], self._entries[key]
        self._is_changed = True

    def commit(self, work: Work) -> None:
        """See `Store`."""
        if not self._is_changed:
            return
        text = FileText(self._home.create_sibling())
        try:
            places = self._write(text, work.pacer())
            self._home.publish_sibling()
        except BaseException as error:
            text.drop(Pacer())
            self._home.discard_sibling()
            if isinstance(error, ValueError):
                raise self._corrupt(str(error)) from error
            raise
        self._drop_texts(Pacer(yields=work.yields))
        self._text, self._places = text, places
        self._is_changed = False

    def _write(self, text: FileText, pacer: Pacer) -> dict[str, tuple[int, int]]:
        """Write everything to a new file, and return where the values are in it."""
        places: dict[str, tuple[int, int]] = {}
        out = Appender(self._home.ops, text.fd, 0)
        out.write(layout.BEGIN)
        for key, (low, high) in self._places.items():
            out.write(layout.before(key, is_first=not places))
            begin = out.offset
            for piece in self._text_of(key).pieces(low, high):
                out.write(piece)
                pacer.pause()
            places[key] = begin, out.offset
        out.write(layout.END)
        out.flush()
        text.note()
        self._home.ops.sync(text.fd)
        return places

    def close(self) -> None:
        """See `Store`."""
        self._drop_texts(Pacer())
        self._places, self._entries = {}, {}
        self._home.release()

    def begin(self, work: Work) -> None:
        """Become the writer; what another has written since the file was opened is read first. See `Store.begin`."""

        def read_again() -> None:
            before = self._text
            with self._as_before_on_failure():
                self._load(work)
            before.drop(Pacer(yields=work.yields))

        self._home.become_writer(read_again)

    def _load(self, work: Work) -> None:
        self._text, self._places, self._staged, self._entries = MemoryText(()), {}, {}, {}
        fd = self._home.open()
        if fd is None:
            return
        try:
            with young_collections_only():
                self._fill(fd, work)
        except BaseException as error:
            self._text.drop(Pacer())
            if isinstance(error, (ValueError, RecursionError)):
                raise self._corrupt(f"it is not a JSON object in UTF-8: {error!r}") from error
            if isinstance(error, CorruptCheckpointError) and error.file is None:
                raise self._corrupt(str(error)) from error
            raise

    def _fill(self, fd: int, work: Work) -> None:
        text = self._text = read_text(fd, work.pacer())
        left = _NAMED_NBYTES
        for key, low, high in split_object(text, work.pacer()) if text else ():
            if key in self._places:
                raise self._corrupt(f"the key {key!r} stands twice")
            self._places[key] = low, high
            is_looked_into = high - low <= left
            self._entries[key] = _names(text, low, high, work) if is_looked_into else False
            left -= high - low if is_looked_into else 0
        if text and not layout.is_own(text, self._places):
            self._home.mark_foreign("its layout: the blanks and line breaks between its entries, and its encoding")

    def _text_of(self, key: str) -> Text:
        staged = self._staged.get(key, self._text)
        return MemoryText([staged]) if isinstance(staged, bytes) else staged

    def _drop(self, key: str, pacer: Pacer) -> None:
        """Give back the memory of a text that goes. This must not be stopped half-way: the pacer has no flag."""
        staged = self._staged.pop(key, None)
        if isinstance(staged, Text):
            staged.drop(pacer)
        pacer.pause()

    def _drop_texts(self, pacer: Pacer) -> None:
        for key in list(self._staged):
            self._drop(key, pacer)
        self._text.drop(pacer)

    def _corrupt(self, reason: str, error: Exception | None = None) -> CorruptCheckpointError:
        if isinstance(error, CorruptCheckpointError):
            reason = str(error)
        return CorruptCheckpointError(f"{self._home.name}: {reason}", file=self._home.name)


def _names(text: Text, low: int, high: int, work: Work) -> Names:
    try:
        return plain_names(decode_value(text, low, high, work.pacer()).value)
    except (ValueError, CheckpointError):  # of a value that cannot be made: reading it will say why
        return False
