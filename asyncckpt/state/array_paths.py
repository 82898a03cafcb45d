"""The path of an array of a state, for messages about its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.decode import Decoder
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from asyncckpt.arrays.adapters import ArrayKind
    from asyncckpt.state.index import Index


def path_of_array(index: Index, number: int, root: str = "") -> str:
    """Return the path at which an array occurs first, below a root; the root if none is found."""
    finder = _Finder(index, number)
    finder.plan()
    return join_path([root, *finder.keys]) if root else join_path(finder.keys)


class _Finder(Decoder):
    """Looks for an array during a walk over all nodes."""

    def __init__(self, index: Index, number: int) -> None:
        super().__init__(index, Pacer(), keeps_kinds=False)
        self._looked_for = number
        self.keys: list[Any] = []

    def _array(self, number: Any, template: Any, kind: ArrayKind | None = None) -> Any:
        if number == self._looked_for and not self.keys:
            self.keys = self._keys()
        return super()._array(number, template, kind)
