"""Stores without a file: one over a mapping, and one that keeps nothing."""

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
    """A store over the caller's mapping. Values are copied when they are put and when they are read."""

    def __init__(self, mapping: MutableMapping[str, Any], context: JobContext) -> None:
        self._mapping = mapping
        self._values = dict(mapping)
        self._deleted: dict[str, None] = {}
        self._staged: dict[str, Any] = {}  # put after what was deleted
        self._unknown_types: dict[str, Mapping[str, str]] = {}
        self._entries: dict[str, KeyTree] = {}
        for batch in context.pacer.batches(self._values.items()):
            self._entries.update((key, key_tree_of_value(value)) for key, value in batch)

    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:
        captured = capture_live(self._values[key], key, context)
        try:
            value, unknown_types = build_captured(captured, context.pacer, keeps_kinds=keeps_kinds)
            return Found(value, {**unknown_types, **self._unknown_types.get(key, {})})
        finally:
            captured.release()

    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        found = build_captured(value, context.pacer)
        self._values[key] = self._staged[key] = found.value
        self._unknown_types[key] = found.unknown_types
        self._entries[key] = value.key_tree

    def delete(self, key: str, context: JobContext) -> None:  # noqa: ARG002 - see `Store`
        del self._values[key], self._entries[key]
        self._unknown_types.pop(key, None)
        self._staged.pop(key, None)
        self._deleted[key] = None

    def commit(self, context: JobContext) -> None:  # noqa: ARG002 - see `Store`
        """Put the changes into the mapping."""
        for key in self._deleted:
            self._mapping.pop(key, None)
        self._mapping.update(self._staged)
        self._deleted, self._staged = {}, {}

    def close(self) -> None:
        self._values, self._deleted, self._staged = {}, {}, {}


class NullStore(Store):
    """A store that keeps nothing."""

    keeps = False

    @property
    def entries(self) -> Mapping[str, KeyTree]:
        """Always empty."""
        return {}

    def read(self, key: str, context: JobContext, *, keeps_kinds: bool = True) -> Found:  # noqa: ARG002 - see `Store`
        """Fail: no key is ever there."""
        raise KeyError(key)

    def put(self, key: str, value: CapturedValue, context: JobContext) -> None:
        """Forget the value."""

    def delete(self, key: str, context: JobContext) -> None:
        """Do nothing."""

    def commit(self, context: JobContext) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
