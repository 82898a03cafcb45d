"""Containers, made of their items and filled in chunks: a call over very many items would hold the GIL for its length.

A tuple or a frozenset cannot be made in chunks; what they are made of is copied by one call.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final

from asyncckpt.runtime.collector import YoungReferences
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.runtime.pacing import Pacer

SEQUENCES: Final = (list, tuple, deque)
MAPPING_TYPES: Final = (dict, OrderedDict)
SETS: Final = (set, frozenset)
TYPES: Final[dict[int, Any]] = {
    ix.LIST: list,
    ix.TUPLE: tuple,
    ix.DEQUE: deque,
    ix.SET: set,
    ix.FROZENSET: frozenset,
    ix.DICT: dict,
    ix.ORDERED_DICT: OrderedDict,
}
"""What each kind of container is made as."""


class Maker:
    """Makes the containers of one state."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._young = YoungReferences()

    def expect(self, count: int) -> None:
        """Prepare for a container that has just been made, empty, and will have so many items."""
        self._young.add(count)

    def make(self, type_: Any, items: list[Any], maxlen: int | None = None) -> Any:
        """Make a container of its items, or of the pairs of a mapping; the list of them is given up."""
        if len(items) > CHUNK_ELEMENTS and type_ not in (list, tuple, frozenset):
            made = deque(maxlen=maxlen) if type_ is deque else type_()
            self.expect(len(items))
            self._fill(made, items)
            return made
        if type_ is list:
            return items
        made = deque(items, maxlen) if type_ is deque else type_(items)
        self._young.add(len(items))
        self._drop(items)
        return made

    def put_into(self, target: Any, items: list[Any]) -> Any:
        """Put items into a container in place of its own, or pairs into a mapping, which takes their order over.

        Returns:
            The container, or a new one if it is of those that cannot change. The list of items is given up.
        """
        if type(target) in (tuple, frozenset):
            return self.make(type(target), items)
        if type(target) is list:
            target[:] = items
        elif type(target) in MAPPING_TYPES:
            keys = [key for key, _ in items]
            self._fill(target, items)
            if len(keys) == len(target) and keys != list(target):
                for batch in self._pacer.batches(keys):
                    for key in batch:
                        target[key] = target.pop(key)
        else:
            target.clear()
            self._fill(target, items)
        return target

    def _fill(self, target: Any, items: list[Any]) -> None:
        put: Callable[[list[Any]], None] = target.extend if type(target) is deque else target.update
        for start in range(0, len(items), CHUNK_ELEMENTS):
            put(items[start : start + CHUNK_ELEMENTS])
            self._pacer.pause()
        self._drop(items)

    def _drop(self, items: list[Any]) -> None:
        """Empty a list of pairs, say, that nobody else has."""
        while len(items) > CHUNK_ELEMENTS:
            del items[-CHUNK_ELEMENTS:]
            self._pacer.pause()
