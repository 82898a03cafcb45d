"""The types of arrays that can be saved and filled: one table of adapters.

1. Types are matched exactly: an array of a subclass may hold more than its base would bring back.
2. No library is imported for its arrays. A library can be given a module here that registers its adapters; it is
   imported when the first value of the library is met, which has imported the library then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from asyncckpt.arrays.overlap import overlaps_itself
from asyncckpt.errors import UnsupportedLeafError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from asyncckpt.arrays.source import ArraySource
    from asyncckpt.arrays.target import ArrayTarget


class ArrayLeaf(NamedTuple):
    """An array that was found in a state."""

    identity: Hashable
    """Equal for arrays that are the same memory seen in the same way: they are saved once, and come back as one. Not an
    int, except for the id of an object."""
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: ArraySource
    is_stable: bool = False
    """Whether no program can change the contents, so that they need no copy."""


class ArrayAdapter(Protocol):
    """What there is to know of arrays of one type."""

    def leaf(self, array: Any) -> ArrayLeaf:
        """Describe an array.

        Raises:
            UnsupportedLeafError: It cannot be saved.
        """

    def target(self, array: Any) -> ArrayTarget:
        """Return what fills an array in place.

        Raises:
            UnfitTargetError: It cannot be filled.
        """


class UnfitTargetError(Exception):
    """An array cannot be filled; the arguments are what differs, and what was expected and found."""


class _NumpyAdapter:
    def leaf(self, array: Any) -> ArrayLeaf:
        return ArrayLeaf(id(array), array.dtype, array.shape, array)

    def target(self, array: Any) -> ArrayTarget:
        if not array.flags.writeable:
            raise UnfitTargetError("writability", "a read-only array", "contents to be filled in")
        if overlaps_itself(array):
            raise UnfitTargetError("sharing", "an array with elements that share memory", "elements of their own")
        filled: ArrayTarget = array
        return filled


class _MemmapAdapter(_NumpyAdapter):
    def leaf(self, array: Any) -> ArrayLeaf:
        if more := sorted(vars(array).keys() - _MEMMAP_ATTRIBUTES):
            message = f"a memmap with the attribute {more[0]!r}, which would be lost: delete it"
            raise UnsupportedLeafError(message, path="")
        return ArrayLeaf(id(array), array.dtype, array.shape, array.view(np.ndarray))


_MEMMAP_ATTRIBUTES: Final = frozenset({"_mmap", "filename", "offset", "mode"})
_ADAPTERS: Final[dict[type, ArrayAdapter]] = {np.ndarray: _NumpyAdapter(), np.memmap: _MemmapAdapter()}
_LIBRARIES: Final[dict[str, str]] = {}
"""By the name of a library's package, the module that registers the adapters of its arrays. There is none yet."""


def register_adapter(type_: type, adapter: ArrayAdapter) -> None:
    """Let arrays of a type be saved and filled by an adapter."""
    _ADAPTERS[type_] = adapter


def find_adapter(type_: type) -> ArrayAdapter | None:
    """Return the adapter of a type, or None if it is not a type of arrays."""
    adapter = _ADAPTERS.get(type_)
    if adapter is None and _LIBRARIES and (module := _LIBRARIES.get(type_.__module__.partition(".")[0])) is not None:
        importlib.import_module(module)
        adapter = _ADAPTERS.get(type_)
    return adapter
