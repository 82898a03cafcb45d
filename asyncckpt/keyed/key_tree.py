"""The keys of the dicts in a value, as a tree, for an index that answers questions about paths without reading values.

A tree has at most 256 keys, and is at most 32 dicts deep.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgpack

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.types import named_reduction

if TYPE_CHECKING:
    from collections.abc import Iterator

KeyTree: TypeAlias = "dict[Any, Any] | bool | None"
"""The keys of a dict, each with the key tree of its value; None for a value that is not a dict; False if not known."""

_MAX_KEYS: Final = 256
_MAX_DEPTH: Final = 32


def key_tree_of(chunks: list[bytes]) -> KeyTree:
    """Return the key tree of an encoded value; False if it is too large.

    It is decoded, instead of being made from the value, so that it matches what is stored even if another thread
    changes the value meanwhile.
    """
    if not chunks or len(chunks[0]) > 1 << 16:
        return False
    nodes = iter(ix.read_nodes(chunks[:1], Pacer(yields=False)))
    try:
        return _Reader(nodes).read(0)
    except (StopIteration, _UnknownError):
        return False


def key_tree_of_value(value: object) -> KeyTree:
    """Return the key tree of a value; False if it is too large."""
    left = _MAX_KEYS

    def read(value: object, depth: int) -> KeyTree:
        nonlocal left
        if type(value) not in (dict, OrderedDict):
            return False if isinstance(value, dict) else None
        left -= len(value)  # type: ignore[arg-type]
        if left < 0 or depth > _MAX_DEPTH:
            raise _UnknownError
        return {key: read(child, depth + 1) for key, child in value.items()}  # type: ignore[attr-defined]

    try:
        return read(value, 0)
    except _UnknownError:
        return False


def flatten_key_tree(tree: KeyTree) -> object:
    """Return a key tree as lists of keys and their key trees, as msgpack readers may refuse keys that are not str."""
    if not isinstance(tree, dict):
        return tree
    return [each for key, below in tree.items() for each in (key, flatten_key_tree(below))]


def unflatten_key_tree(flat: Any) -> KeyTree:
    """Return the key tree that was flattened; False if it is damaged."""
    if flat is None or type(flat) is not list:
        return None if flat is None else False
    try:
        return {key: unflatten_key_tree(below) for key, below in zip(flat[::2], flat[1::2], strict=True)}
    except (TypeError, ValueError, RecursionError):
        return False


class _UnknownError(Exception):
    pass


class _Reader:
    def __init__(self, nodes: Iterator[ix.Node]) -> None:
        self._nodes = nodes
        self._left = _MAX_KEYS

    def read(self, depth: int) -> KeyTree:
        node = next(self._nodes)
        if type(node) is not msgpack.ExtType or node.code not in ix.MAPPINGS:
            if depth:
                self._skip(node)
            return False if _is_object_of_dict(node) else None
        if depth > _MAX_DEPTH:
            raise _UnknownError
        found: dict[Any, Any] = {}
        for _ in range(ix.argument_of(node)):
            key = next(self._nodes)
            self._left -= 1
            if type(key) is msgpack.ExtType or self._left < 0:
                raise _UnknownError
            found[key] = self.read(depth + 1)
        return found

    def _skip(self, node: ix.Node) -> None:
        left = _children(node)
        while left:
            left += _children(next(self._nodes)) - 1


def _is_object_of_dict(node: ix.Node) -> bool:
    """Tell whether a node is an object of a subclass of dict, whose keys only the object has."""
    if type(node) is not msgpack.ExtType or node.code != ix.OBJECT:
        return False
    reduction = named_reduction(ix.argument_of(node))
    return reduction is not None and reduction.type_ is not None and issubclass(reduction.type_, dict)


def _children(node: ix.Node) -> int:
    if type(node) is not msgpack.ExtType:
        return 0
    if node.code == ix.OBJECT:
        return 1
    if node.code not in ix.CONTAINERS:
        return 0
    argument = ix.argument_of(node)
    count: int = argument[0] if node.code == ix.DEQUE else argument
    return 2 * count if node.code in ix.MAPPINGS else count
