"""The stores that have no file: one in a mapping, one that keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asyncckpt.keyed.base import Found, Store
from asyncckpt.keyed.values import build_captured, plain_names, refer

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from asyncckpt.keyed.base import Work
    from asyncckpt.keyed.values import Captured, Names

_DELETED: Final = object()


class MemoryStore(Store):
    """Values in a mapping of the caller's. What is put in and what is read are copies."""

    def __init__(self, mapping: MutableMapping[str, Any], work: Work) -> None:
        self._mapping = mapping
        self._changes: list[tuple[str, Any]] = []
        self._values = dict(mapping)
        self._entries: dict[str, Names] = {}
        for batch in work.pacer().batches(self._values.items()):
            self._entries.update((key, plain_names(value)) for key, value in batch)

    @property
    def entries(self) -> Mapping[str, Names]:
        """See `Store`."""
        return self._entries

    def read(self, key: str, work: Work) -> Found:
        """See `Store`."""
        captured = refer(self._values[key], key, work)
        try:
            return build_captured(captured, work.pacer())
        finally:
            captured.release()

    def put(self, key: str, value: Captured, work: Work) -> None:
        """See `Store`."""
        found = build_captured(value, work.pacer()).value
        self._values[key] = found
        self._entries[key] = value.names
        self._changes.append((key, found))

    def delete(self, key: str, work: Work) -> None:  # noqa: ARG002 - see `Store`
        """See `Store`."""
        del self._values[key], self._entries[key]
        self._changes.append((key, _DELETED))

    def commit(self, work: Work) -> None:  # noqa: ARG002 - see `Store`
        """Put the changes into the mapping."""
        changes, self._changes = self._changes, []
        for key, value in changes:
            if value is _DELETED:
                self._mapping.pop(key, None)
            else:
                self._mapping[key] = value

    def close(self) -> None:
        """See `Store`."""
        self._values = {}
        self._changes = []


class NullStore(Store):
    """Takes everything and keeps nothing."""

    keeps = False

    @property
    def entries(self) -> Mapping[str, Names]:
        """Always empty."""
        return {}

    def read(self, key: str, work: Work) -> Found:  # noqa: ARG002 - see `Store`
        """Fail: no key is ever there."""
        raise KeyError(key)

    def put(self, key: str, value: Captured, work: Work) -> None:
        """Forget the value."""

    def delete(self, key: str, work: Work) -> None:
        """Do nothing."""

    def commit(self, work: Work) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
