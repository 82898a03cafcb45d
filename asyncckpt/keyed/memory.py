"""The stores that have no file: one in a mapping, one that keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncckpt.keyed.base import Store
from asyncckpt.keyed.key_tree import key_tree_of_value
from asyncckpt.keyed.values import Found, build_captured, capture_live

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from asyncckpt.keyed.key_tree import KeyTree
    from asyncckpt.keyed.values import CapturedValue
    from asyncckpt.runtime.context import JobContext


class MemoryStore(Store):
    """Values in a mapping of the caller's. What is put in and what is read are copies."""

    def __init__(self, mapping: MutableMapping[str, Any], work: JobContext) -> None:
        self._mapping = mapping
        self._values = dict(mapping)
        self._deleted: dict[str, None] = {}
        self._staged: dict[str, Any] = {}  # put after what was deleted
        self._unknown_types: dict[str, Mapping[str, str]] = {}
        self._entries: dict[str, KeyTree] = {}
        for batch in work.pacer.batches(self._values.items()):
            self._entries.update((key, key_tree_of_value(value)) for key, value in batch)

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        """See `Store`."""
        return self._entries

    def read(self, key: str, work: JobContext) -> Found:
        """See `Store`."""
        captured = capture_live(self._values[key], key, work)
        try:
            value, unknown_types = build_captured(captured, work.pacer)
            return Found(value, {**unknown_types, **self._unknown_types.get(key, {})})
        finally:
            captured.release()

    def put(self, key: str, value: CapturedValue, work: JobContext) -> None:
        """See `Store`."""
        found = build_captured(value, work.pacer)
        self._values[key] = self._staged[key] = found.value
        self._unknown_types[key] = found.unknown_types
        self._entries[key] = value.key_tree

    def delete(self, key: str, work: JobContext) -> None:  # noqa: ARG002 - see `Store`
        """See `Store`."""
        del self._values[key], self._entries[key]
        self._unknown_types.pop(key, None)
        self._staged.pop(key, None)
        self._deleted[key] = None

    def commit(self, work: JobContext) -> None:  # noqa: ARG002 - see `Store`
        """Put the changes into the mapping."""
        for key in self._deleted:
            self._mapping.pop(key, None)
        self._mapping.update(self._staged)
        self._deleted, self._staged = {}, {}

    def close(self) -> None:
        """See `Store`."""
        self._values, self._deleted, self._staged = {}, {}, {}


class NullStore(Store):
    """Takes everything and keeps nothing."""

    keeps = False

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        """Always empty."""
        return {}

    def read(self, key: str, work: JobContext) -> Found:  # noqa: ARG002 - see `Store`
        """Fail: no key is ever there."""
        raise KeyError(key)

    def put(self, key: str, value: CapturedValue, work: JobContext) -> None:
        """Forget the value."""

    def delete(self, key: str, work: JobContext) -> None:
        """Do nothing."""

    def commit(self, work: JobContext) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
