"""List the arrays of a state while it is encoded, and make their nodes.

1. Each array is listed once, however often it occurs.
2. Errors have no path, because the encoder knows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import check_dtype

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from asyncckpt.arrays.adapters import AnyLeaf, ArrayKind
    from asyncckpt.state.flat import FlatState


@dataclass(slots=True, eq=False)
class _Alike:
    """What arrays have in common that have one dtype, shape and kind, and an adapter."""

    given: ArrayMeta  # as the adapter described the last one
    meta: ArrayMeta
    kind: ArrayKind | None
    numbers: dict[Hashable, int]  # by the arrays' identities
    nodes: dict[int, ix.Node]


class ArrayLister:
    """Lists arrays in a `FlatState`. It is called for each array of each save, so it looks up little twice."""

    def __init__(self, flat: FlatState) -> None:
        self._flat = flat
        self._numbers: dict[int, int] = {}  # of numpy's arrays, by their ids
        self._metas: dict[tuple[int, tuple[int, ...]], ArrayMeta] = {}  # by the id of the dtype, which they hold
        self._meta: ArrayMeta | None = None  # of the previous one of numpy's arrays, which is often equal
        self._all_alike: dict[tuple[int, ArrayKind | None], _Alike] = {}  # by the id of the meta, which they hold
        self._alike = _NONE_ALIKE  # those of the previous array of a type that has an adapter
        self._kept: list[object] = []  # arrays whose identities may be their ids

    def node(self, array: NDArray[Any]) -> ix.Node | None:
        """List one of numpy's arrays, and return its node, or None if it is of StringDType.

        Raises:
            UnsupportedLeafError: It cannot be saved.
        """
        flat = self._flat
        count = len(flat.sources)
        number = self._numbers.setdefault(id(array), count)
        if number == count:
            dtype, shape, meta = array.dtype, array.shape, self._meta
            if meta is None or dtype is not meta.dtype or shape != meta.shape:
                meta = self._metas.get((id(dtype), shape))
                if meta is None:
                    if dtype.kind == "T":
                        del self._numbers[id(array)]
                        return None
                    meta = self._new_meta(dtype, shape)
                self._meta = meta
            flat.arrays.append(meta)
            flat.sources.append(array)
            flat.array_nbytes += meta.nbytes
        return _ARRAY_NODES.get(number) or _array_node(number)

    def adapted_node(self, array: object, leaf: AnyLeaf) -> ix.Node:
        """List an array that an adapter has described, and return its node.

        Raises:
            UnsupportedLeafError: It cannot be saved.
        """
        identity, meta, source, is_stable, kind = leaf
        alike = self._alike
        if meta is not alike.given or kind is not alike.kind:
            alike = self._alike = self._alike_of(meta, kind)
        flat = self._flat
        count = len(flat.sources)
        number = alike.numbers.setdefault(identity, count)
        if number == count:
            self._kept.append(array)
            meta = alike.meta
            flat.arrays.append(meta)
            flat.sources.append(source)
            if is_stable and meta.nbytes >= PAGE_NBYTES:  # small ones are copied together
                flat.stable.add(number)
            else:
                flat.array_nbytes += meta.nbytes
        return alike.nodes.get(number) or _array_node(number, kind)

    def add_made(self, data: NDArray[Any]) -> int:
        """List an array that the encoder has made, so that no program can change it; return its number."""
        flat = self._flat
        number = len(flat.arrays)
        flat.arrays.append(ArrayMeta(data.dtype, data.shape))
        flat.sources.append(data)
        flat.stable.add(number)
        flat.encoded_nbytes += data.nbytes
        return number

    def _alike_of(self, given: ArrayMeta, kind: ArrayKind | None) -> _Alike:
        """Look up what arrays of a dtype, shape and kind have in common."""
        meta = self._metas.get((id(given.dtype), given.shape)) or self._new_meta(given.dtype, given.shape)
        alike = self._all_alike.get((id(meta), kind))
        if alike is None:
            alike = self._all_alike[id(meta), kind] = _Alike(given, meta, kind, {}, _nodes_of(kind))
            if kind is not None:
                self._flat.frameworks.add(kind.framework)
        alike.given = given
        return alike

    def _new_meta(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> ArrayMeta:
        """Describe the arrays of a dtype and shape, or refuse them."""
        if dtype.hasobject:
            message = (
                "an array of Python objects cannot be saved without running code on load: use a list, or a dtype of"
                " numbers, strings or records"
            )
            raise UnsupportedLeafError(message, path="")
        # Refuse a dtype that cannot be described before anything is written.
        check_dtype(dtype)
        meta = self._metas[id(dtype), shape] = ArrayMeta(dtype, tuple(shape))
        return meta


_NO_META: Final = ArrayMeta(np.dtype(bool), ())
_NONE_ALIKE: Final = _Alike(_NO_META, _NO_META, None, {}, {})
_ARRAY_NODES: Final[dict[int, ix.Node]] = {}
_KEPT_NODES: Final = 1 << 15


@lru_cache(maxsize=64)
def _nodes_of(kind: ArrayKind | None) -> dict[int, ix.Node]:
    """Return the nodes of arrays of a kind, by number. They are kept, because every save of a state needs the same."""
    return _ARRAY_NODES if kind is None else {}


def _array_node(number: int, kind: ArrayKind | None = None) -> ix.Node:
    """Make the node of an array."""
    node = ix.ext(ix.ARRAY, number) if kind is None else ix.ext(ix.FRAMEWORK_ARRAY, (number, *kind))
    if number < _KEPT_NODES:
        _nodes_of(kind)[number] = node
    return node
