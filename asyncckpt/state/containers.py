"""Make containers from lists of items, in chunks, because one call for very many items would hold the GIL too long.

Tuples and frozensets cannot be filled in chunks. They are made by one call.
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
"""The type of each code."""


class Maker:
    """Makes the containers of one state."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._young = YoungReferences()

    def expect(self, count: int) -> None:
        """Announce a new, empty container that will get `count` items."""
        self._young.add(count)

    def make(self, type_: Any, items: list[Any], maxlen: int | None = None) -> Any:
        """Make a container from its items, or from the pairs of a mapping. It takes over the list."""
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
        """Replace the items of a container, or update a mapping with pairs, taking over their order and the list.

        Returns:
            The container, or a new one if its type is immutable.
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
        """Empty a list that nothing else refers to."""
        while len(items) > CHUNK_ELEMENTS:
            del items[-CHUNK_ELEMENTS:]
            self._pacer.pause()
