"""Access to a store by keys and paths, for both modes of a `Checkpointer`; in a thread that may wait for the disk.

1. A store has top-level keys only. A tuple is a path into the dicts of the value of its first part: to read it is to
   read that value, and to change it is to rewrite that value.
2. The caller's serializer converts each value before it is written and after it was read.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from asyncckpt.disk.room import explain, spell
from asyncckpt.errors import CheckpointError, CheckpointKeyError
from asyncckpt.keyed.values import Found, build_captured, capture_live
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from asyncckpt.config import Arrays
    from asyncckpt.keyed.base import Store
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.context import JobContext

Key: TypeAlias = "str | tuple[Any, ...]"
Path: TypeAlias = "tuple[Any, ...]"

_SHOWN: Final = 20


class Serializer(Protocol):
    """Converts the values of a program to values that can be saved, and back."""

    def to_state(self, value: Any, /) -> object:
        """Return what is saved for a value; may run in a worker thread."""

    def from_state(self, state: Any, /) -> object:
        """Return the value again; may run in a worker thread."""


def parse_key(key: object) -> Path:
    """Return a key as a path.

    Raises:
        TypeError: It is neither a str nor a tuple that begins with one.
    """
    if isinstance(key, str):
        return (str.__str__(key),)  # of an Enum, too, whose own __str__ gives its name
    if isinstance(key, tuple) and key and isinstance(key[0], str):
        return (str.__str__(key[0]), *key[1:])
    message = f"a key must be a str, or a tuple that begins with one (a path into nested dicts), not {key!r}"
    raise TypeError(message)


def missing(path: Path, file_name: str, known: Sequence[object]) -> CheckpointKeyError:
    """Return the error for a key that does not exist."""
    key = path[0] if len(path) == 1 else path
    message = f"no key {key!r} in {file_name}; the keys there are: {format_keys(known)}"
    return CheckpointKeyError(message, key=key, known=known)


def format_keys(keys: Sequence[object]) -> str:
    """Return a list of keys for an error message, at most the first few."""
    names = [repr(key) for key in keys[:_SHOWN]]
    return ", ".join([*names, f"... ({len(keys)} in all)"] if len(keys) > len(names) else names) or "none"


@dataclass(frozen=True, slots=True)
class KeyRules:
    """Which keys may be used."""

    file_name: str
    """The name of the file in error messages."""
    allowed: Mapping[str, None] | None
    """The allowed keys, in the order in which they were given; None for all."""
    omitted: Mapping[str, None] | None

    def allows(self, key: str) -> bool:
        """Tell whether a key may be used."""
        return (self.allowed is None or key in self.allowed) and (self.omitted is None or key not in self.omitted)

    @property
    def allow_all(self) -> bool:
        """Whether any key may be used."""
        return self.allowed is None and self.omitted is None

    def visible(self, keys: Collection[str]) -> Collection[str]:
        """Return the keys that may be used."""
        if self.allow_all:
            return keys
        return [key for key in keys if self.allows(key)]

    def path(self, key: Key, known: Callable[[], Collection[str] | None]) -> Path:
        """Return a key as a path.

        Args:
            key: The key.
            known: Returns the keys of the file for an error message, or None if they cannot be read.

        Raises:
            CheckpointKeyError: It may not be used.
            TypeError: It is not a key.
        """
        path = parse_key(key)
        if self.allows(path[0]):
            return path
        if self.allowed is not None and path[0] not in self.allowed:
            reason = f"is not allowed in {self.file_name}; allowed are {format_keys(list(self.allowed))}"
        else:
            reason = f"is omitted from {self.file_name}"
        found = known()
        keys = [] if found is None else list(self.visible(found))
        there_are = "" if found is None else f"; the keys there are: {format_keys(keys)}"
        raise CheckpointKeyError(f"the key {path[0]!r} {reason}{there_are}", key=path[0], known=keys)


def _whole(nbytes: int) -> str:
    return f"the whole file takes {spell(nbytes)}"


class Engine:
    """A store accessed by paths. Used by one thread at a time."""

    def __init__(self, store: Store, file_name: str, serializer: Serializer | None) -> None:
        self.store = store
        self._file_name = file_name
        self._serializer = serializer

    @property
    def has_serializer(self) -> bool:
        """Whether `to_state` calls code of the caller."""
        return self._serializer is not None

    def keys(self) -> list[str]:
        """Return the top-level keys in their order."""
        return list(self.store.entries)

    def contains(self, path: Path, context: JobContext) -> bool:
        """Tell whether there is a value at a path."""
        if path[0] not in self.store.entries:
            return False
        if len(path) == 1:
            return True
        try:
            self._descend(self.store.read(path[0], context).value, path)
        except CheckpointKeyError:
            return False
        return True

    def read(self, path: Path, context: JobContext, arrays: Arrays = "saved") -> Found:
        """Read the value at a path, with arrays as those of the frameworks that they belonged to, or as numpy's.

        Raises:
            CheckpointKeyError: There is none.
        """
        self._require(path)
        found = self.store.read(path[0], context, keeps_kinds=arrays == "saved")
        value = self._descend(found.value, path)
        return Found(value if self._serializer is None else self._serializer.from_state(value), found.unknown_types)

    def to_state(self, value: object) -> object:
        """Return what is saved for a value."""
        return value if self._serializer is None else self._serializer.to_state(value)

    def write(self, path: Path, value: object, context: JobContext) -> None:
        """Stage a value, which must not change until this returns."""
        self._put(path, self.to_state(value), context)

    def put(self, path: Path, captured: CapturedValue, context: JobContext) -> None:
        """Stage a captured value."""
        if len(path) == 1:
            self._stage(path[0], captured, context)
        else:
            found = build_captured(captured, context.pacer)
            self._refuse_unknown(found, f"the value for {path!r} contains")
            self._put(path, found.value, context)

    def begin(self, context: JobContext) -> None:
        """Become the file's writer; see `Store.begin`."""
        with self._explaining():
            self.store.begin(context)

    def commit(self, context: JobContext) -> None:
        """Make what is staged durable; see `Store.commit`."""
        with self._explaining():
            self.store.commit(context)

    @contextmanager
    def _explaining(self, needed: Callable[[int], str] = _whole) -> Iterator[None]:
        """Add to an error about a lack of room what is needed; `needed` returns that, given the size of the file."""
        try:
            yield
        except OSError as error:
            if (use := self.store.disk_use()) is not None:
                explain(error, use[0], needed(use[1]))
            raise

    def delete(self, path: Path, context: JobContext) -> None:
        """Stage a deletion.

        Raises:
            CheckpointKeyError: There is no value.
        """
        self._require(path)
        self.begin(context)
        self._require(path)  # another writer may have been quicker
        if len(path) == 1:
            with self._explaining():
                self.store.delete(path[0], context)
            return
        whole = self._read_to_change(path, context)
        self._descend(whole, path)  # there must be a value
        del self._descend(whole, path[:-1])[path[-1]]
        self._put(path[:1], whole, context)

    def _require(self, path: Path) -> None:
        if path[0] not in self.store.entries:
            raise missing(path, self._file_name, self.keys())

    def _put(self, path: Path, value: object, context: JobContext) -> None:
        if len(path) > 1:
            self.begin(context)  # the change must keep what another writer has put there
            whole = self._read_to_change(path, context) if path[0] in self.store.entries else {}
            at = whole
            for number, part in enumerate(path[1:-1], 1):
                at = self._dict(at, path, number).setdefault(part, {})
            self._dict(at, path, len(path) - 1)[path[-1]] = value
            value = whole
        captured = capture_live(value, path[0], context)
        try:
            self._stage(path[0], captured, context)
        finally:
            captured.release()

    def _stage(self, key: str, captured: CapturedValue, context: JobContext) -> None:
        with self._explaining(lambda _: f"the value of {key!r} takes {spell(captured.stored_nbytes)}"):
            self.store.put(key, captured, context)

    def _read_to_change(self, path: Path, context: JobContext) -> Any:
        """Read the value that contains a path, in order to rewrite it."""
        found = self.store.read(path[0], context)
        self._refuse_unknown(found, f"the value of {path[0]!r} contains")
        self._dict(found.value, path, 1)
        return found.value

    @staticmethod
    def _refuse_unknown(found: Found, what: str) -> None:
        """Refuse to rewrite a value that would lose the types with which it was saved."""
        if found.unknown_types:
            types = ", ".join(found.unknown_types)
            message = f"{what} {types}, which would become plain data: register the type with asyncckpt.register_type"
            raise CheckpointError(message)

    def _descend(self, value: Any, path: Path) -> Any:
        """Return the value at a path, given that of its first part.

        Raises:
            CheckpointKeyError: There is none.
        """
        for number, part in enumerate(path[1:], 1):
            holder = self._dict(value, path, number)
            try:
                value = holder[part]
            except (KeyError, TypeError):  # it is not there, or cannot be hashed
                file_name = f"{self._file_name} at {join_path(path[:number])!r}"
                raise missing(path, file_name, list(holder)) from None
        return value

    def _dict(self, value: Any, path: Path, number: int) -> dict[Any, Any]:
        """Return the value at the first parts of a path, which must be a dict."""
        if not isinstance(value, dict):
            kind = type(value).__qualname__
            where = join_path(path[:number])
            message = f"no key {path!r} in {self._file_name}: {where!r} is of type {kind}, not a dict"
            raise CheckpointKeyError(message, key=path, known=self.keys())
        return value
