"""The paths of a state's arrays and nodes, for messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.decode import Decoder
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from asyncckpt.arrays.adapters import ArrayKind


class Place(NamedTuple):
    """Where something is in a state."""

    keys: list[Any]
    is_key: bool = False
    """Whether it is a key, or part of one: then `keys` are those of the dict."""
    is_in_object: bool = False
    """Whether it is in the plain state of an object."""


def path_of_array(index: ix.Index, number: int, root: str = "") -> str:
    """Return the path at which an array occurs first, below a root; the root if none is found."""
    return path_of(place_of_array(index, number).keys, root)


def place_of_array(index: ix.Index, number: int) -> Place:
    """Return where an array occurs first; the root if none is found."""
    return _Finder(index, array=number).find()


def place_of_node(index: ix.Index, number: int) -> Place:
    """Return where a node is, by its place in preorder; the root if there are not so many."""
    return _Finder(index, node=number).find()


def path_of(keys: list[Any], root: str = "") -> str:
    """Return the path of keys below a root."""
    return join_path([root, *keys] if root else keys)


class _Finder(Decoder):
    """Looks for an array or a node during a walk over all nodes."""

    def __init__(self, index: ix.Index, *, array: int | None = None, node: int | None = None) -> None:
        super().__init__(index, Pacer(), keeps_kinds=False)
        self._number_of_array = array
        self._number_of_node = node
        self._nodes = 0
        self._found: Place | None = None

    def find(self) -> Place:
        """Return the place."""
        self.plan()
        return self._found or Place([])

    def _enter(self, node: ix.Node) -> Any:
        if self._nodes == self._number_of_node:
            self._found = self._place()
        self._nodes += 1
        return super()._enter(node)

    def _array(self, number: Any, template: Any, kind: ArrayKind | None = None) -> Any:
        if number == self._number_of_array and self._found is None:
            self._found = self._place()
        return super()._array(number, template, kind)

    def _place(self) -> Place:
        """Return the current place. The elements of sets, and the parts of keys, have no paths."""
        keys: list[Any] = []
        is_in_object = False
        for frame in self._frames:
            if frame.code == ix.OBJECT:
                is_in_object = True
            elif frame.awaits_key:
                return Place(keys, is_key=True, is_in_object=is_in_object)
            elif frame.code in ix.SETS:
                break
            else:
                keys.append(frame.key)
        return Place(keys, is_in_object=is_in_object)
