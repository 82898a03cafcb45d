"""A JSON file of keys: one object, held in memory as text, rewritten as a whole.

1. The text of a value that did not change is written back as it was, whoever wrote it.
2. Values are parsed when they are read; opening only finds where each begins and ends.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from asyncckpt.errors import CheckpointError, CorruptCheckpointError
from asyncckpt.keyed.base import Entry, Found, Store
from asyncckpt.keyed.json_read import decode_value, split_object
from asyncckpt.keyed.json_text import Text, read_text
from asyncckpt.keyed.json_write import encode_key, encode_value
from asyncckpt.keyed.values import plain_names
from asyncckpt.keyed.writing import Appender
from asyncckpt.workers import Pacer, paused_gc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.keyed.base import Work
    from asyncckpt.keyed.home import Home
    from asyncckpt.keyed.values import Captured, Names

_NAMED_NBYTES: Final = 1 << 20  # of files whose values are looked into for their keys, as soon as they are opened


class JSONStore(Store):
    """An open JSON file."""

    def __init__(self, home: Home, work: Work) -> None:
        """Open it.

        Raises:
            CorruptCheckpointError: It is no JSON object.
            OSError: It cannot be read.
        """
        self._home = home
        self._text = Text(())
        self._places: dict[str, _Place] = {}
        self._entries: dict[str, Entry] = {}
        self._is_changed = False
        self._load(work)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """See `Store`."""
        return self._entries

    def read(self, key: str, work: Work) -> Found:
        """See `Store`."""
        try:
            return decode_value(*self._places[key], work.pacer())
        except CorruptCheckpointError as error:
            raise self._corrupt(f"the value of {key!r}: {error}", error) from error
        except ValueError as error:
            raise self._corrupt(f"the value of {key!r} cannot be read: {error}", error) from error

    def put(self, key: str, value: Captured, work: Work) -> None:
        """See `Store`."""
        self.begin(work)
        text = Text(encode_value(value, work.pacer()))
        self._drop(key, Pacer(yields=work.yields))
        self._places[key] = _Place(text, 0, len(text))
        self._entries[key] = Entry(len(text), value.names)
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
        pacer = work.pacer()
        fd = self._home.create_sibling()
        try:
            out = Appender(self._home.ops, fd, 0)
            out.write(b"{")
            separator = b"\n"
            for key, place in self._places.items():
                out.write(separator + encode_key(key) + b": ")
                for piece in place.text.pieces(place.low, place.high):
                    out.write(piece)
                    pacer.pause()
                separator = b",\n"
            out.write(b"\n}\n")
            out.flush()
            self._home.ops.sync(fd)
        except BaseException:
            self._home.discard_sibling()
            raise
        finally:
            os.close(fd)
        self._home.publish_sibling()
        self._is_changed = False

    def close(self) -> None:
        """See `Store`."""
        self._drop_all(Pacer())
        self._home.release()

    def begin(self, work: Work) -> None:
        """Become the writer; what another has written since the file was opened is read first. See `Store.begin`."""

        def read_again() -> None:
            with self._as_before_on_failure():
                self._load(work)

        self._home.become_writer(read_again)

    def _load(self, work: Work) -> None:
        self._text, self._places, self._entries = Text(()), {}, {}
        fd = self._home.open()
        if fd is None:
            return
        try:
            with paused_gc():
                self._fill(fd, work)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"it is not a JSON object in UTF-8: {error!r}") from error
        except CorruptCheckpointError as error:
            if error.file is None:
                raise self._corrupt(str(error)) from error
            raise
        finally:
            os.close(fd)

    def _fill(self, fd: int, work: Work) -> None:
        text = self._text = read_text(fd, work.pacer())
        is_small = len(text) <= _NAMED_NBYTES
        for key, low, high in split_object(text, work.pacer()) if text else ():
            if key in self._places:
                raise self._corrupt(f"the key {key!r} stands twice")
            self._places[key] = _Place(text, low, high)
            self._entries[key] = Entry(high - low, _names(text, low, high, work) if is_small else False)

    def _drop(self, key: str, pacer: Pacer) -> None:
        """Give back the memory of a text that goes. This must not be stopped half-way: the pacer has no flag."""
        place = self._places.get(key)
        if place is not None and place.text is not self._text:
            place.text.drop(pacer)

    def _drop_all(self, pacer: Pacer) -> None:
        for key in self._places:
            self._drop(key, pacer)
        self._text.drop(pacer)
        self._places, self._entries = {}, {}

    def _corrupt(self, reason: str, error: Exception | None = None) -> CorruptCheckpointError:
        if isinstance(error, CorruptCheckpointError):
            reason = str(error)
        return CorruptCheckpointError(f"{self._home.path}: {reason}", file=str(self._home.path))


class _Place(NamedTuple):
    """Where the text of a value lies."""

    text: Text
    low: int
    high: int


def _names(text: Text, low: int, high: int, work: Work) -> Names:
    try:
        return plain_names(decode_value(text, low, high, work.pacer()).value)
    except (ValueError, CheckpointError):  # of a value that cannot be made: reading it will say why
        return False
