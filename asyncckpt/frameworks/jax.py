"""JAX: arrays and typed random keys as leaves.

1. An array on the CPU is read through numpy's view of its memory. While there is such a view, a donation of the array
   copies it, so the contents cannot change.
2. An array may still be being computed. It is not waited for on the loop: the walk goes on in a thread.
3. Of an array in several shards, each shard is read by itself: numpy's view of the whole would be a copy that the array
   keeps.
"""

from __future__ import annotations

import importlib
import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import jax
import numpy as np
from jax._src.array import ArrayImpl  # the exact types have no public names

from asyncckpt.arrays.adapters import ArrayKind, ArrayLeaf, ArrayType, PendingError, register_adapter
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.arrays.source import copied
from asyncckpt.arrays.strided import boxes
from asyncckpt.errors import CorruptCheckpointError, UnsupportedFormatError, UnsupportedLeafError, brief
from asyncckpt.frameworks.pytrees import node_reduction

try:
    _prng = importlib.import_module("jax._src.random.prng")
except ImportError:  # before 0.10
    _prng = importlib.import_module("jax._src.prng")

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

_FUNCTIONS: Final = (jax.custom_jvp, jax.custom_vjp, jax.numpy.ufunc, type(jax.jit(abs)))
_ARRAY: Final = ArrayKind("jax")
_WEAK: Final = 1
"""The flag of an array of weak type."""
_WEAK_ARRAY: Final = ArrayKind("jax", flags=_WEAK)
_WIDE: Final = ("int64", "uint64", "float64", "complex128")
"""The dtypes that JAX has only with `jax_enable_x64`."""
_NARROWED: Final = (
    "an array of {} would come back as one of half as many bits: set jax_enable_x64, as the program that saved it has,"
    ' or load with arrays="numpy"'
)


class _ShardedSource:
    """The memory of an array that consists of several shards."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], shards: list[Any]) -> None:
        self.nbytes = math.prod(shape) * dtype.itemsize
        self._shape = shape
        self._dtype = dtype
        self._shards = [
            ([part.indices(size)[:2] for part, size in zip(shard.index, shape, strict=True)], np.asarray(shard.data))
            for shard in shards
            if shard.replica_id == 0
        ]

    def view(self, start: int, nbytes: int) -> Bytes | None:  # noqa: ARG002 - none of its bytes are seen in one piece
        return None

    def copy_to(self, target: Bytes, start: int) -> None:
        size = self._dtype.itemsize
        first, last = start // size, -(-(start + len(target)) // size)
        found = np.empty(last - first, self._dtype)
        at = 0
        for box in boxes(self._shape, first, last):
            lengths = [end - begin for begin, end in box]
            count = math.prod(lengths)
            self._fill(found[at : at + count].reshape(lengths), box)
            at += count
        np.copyto(target, found.view(np.uint8)[start - first * size :][: len(target)])

    def buffer(self) -> Bytes:
        return copied(self)

    def _fill(self, target: NDArray[Any], box: list[tuple[int, int]]) -> None:
        """Fill an array with the elements in a box, from all shards that have some of them."""
        for extent, data in self._shards:
            common = [(max(low, begin), min(high, end)) for (low, high), (begin, end) in zip(box, extent, strict=True)]
            if all(low < high for low, high in common):
                place = tuple(slice(low - at, high - at) for (low, high), (at, _) in zip(common, box, strict=True))
                own = tuple(slice(low - at, high - at) for (low, high), (at, _) in zip(common, extent, strict=True))
                target[place] = data[own]


class _ArrayAdapter:
    def leaf(self, array: Any) -> ArrayLeaf:
        if array.is_deleted():
            message = "an array that was deleted or donated to a computation: save what the computation has returned"
            raise UnsupportedLeafError(message, path="")
        if not array.is_fully_addressable:
            message = (
                "an array with shards in other processes: gather it, or save the addressable_shards of each process"
            )
            raise UnsupportedLeafError(message, path="")
        if not array.is_ready():
            raise PendingError("that is still being computed", partial(self._computed, array))
        try:
            shards = array.addressable_shards
            if len(shards) == 1 or array.is_fully_replicated:
                source: Any = np.asarray(shards[0].data)
                is_copy = source.flags.owndata
            else:
                source, is_copy = _ShardedSource(array.shape, array.dtype, shards), False
        except RuntimeError as error:
            raise UnsupportedLeafError(f"an array without contents: {brief(error)}", path="") from error
        kind = _WEAK_ARRAY if array.weak_type else _ARRAY
        return ArrayLeaf(id(array), ArrayMeta(array.dtype, array.shape), source, is_stable=is_copy, kind=kind)

    def _computed(self, array: Any, ready: object) -> ArrayLeaf:
        """Describe an array when it has been computed."""
        del ready
        try:
            array.block_until_ready()
        except RuntimeError as error:
            raise UnsupportedLeafError(f"an array that could not be computed: {brief(error)}", path="") from error
        return self.leaf(array)

    def wanted(self, array: Any) -> ArrayType:
        if array.dtype.name in _WIDE and not jax.config.values["jax_enable_x64"]:
            raise UnsupportedLeafError(_NARROWED.format(array.dtype), path="")
        kind = _WEAK_ARRAY if array.weak_type else _ARRAY
        return ArrayType(array.dtype, array.shape, kind, (_sharding(array), kind))

    def target(self, array: Any, dtype: np.dtype[Any]) -> None:
        """Return None: no array can be filled."""

    def like(self, array: Any, data: NDArray[Any], kind: ArrayKind | None) -> Any:
        is_weak = array.weak_type if kind is None or kind.framework != "jax" else kind.flags == _WEAK
        return _weakened(jax.device_put(_native(data), _sharding(array)), is_weak=is_weak)


class _KeyAdapter(_ArrayAdapter):
    def leaf(self, array: Any) -> ArrayLeaf:
        data: Any = jax.random.key_data(array)
        if not data.is_ready():
            raise PendingError("that is still being computed", partial(self._computed, array))
        kind = ArrayKind("jax", f"key<{jax.random.key_impl(array)}>")
        return super().leaf(data)._replace(identity=id(array), kind=kind)

    def wanted(self, array: Any) -> ArrayType:
        names: list[object] = []

        def data_of(keys: Any) -> Any:
            names.append(jax.random.key_impl(keys))
            return jax.random.key_data(keys)

        data = jax.eval_shape(data_of, array)  # needs no contents
        kind = ArrayKind("jax", f"key<{names[0]}>")
        return ArrayType(data.dtype, data.shape, kind, (_sharding(array), kind))

    def like(self, array: Any, data: NDArray[Any], kind: ArrayKind | None) -> Any:  # noqa: ARG002 - it is equal
        own = self.wanted(array).kind
        assert own is not None  # noqa: S101 - for mypy
        return jax.device_put(restored(own, data), _sharding(array))


class _StructAdapter(_ArrayAdapter):
    """What `jax.eval_shape` returns instead of arrays: a template of them."""

    def leaf(self, array: Any) -> ArrayLeaf:
        del array
        raise UnsupportedLeafError("a ShapeDtypeStruct has no contents: save the array that it describes", path="")

    def wanted(self, array: Any) -> ArrayType:
        return _adapter_of(array).wanted(array)

    def like(self, array: Any, data: NDArray[Any], kind: ArrayKind | None) -> Any:
        return _adapter_of(array).like(array, data, kind)


def _adapter_of(array: Any) -> _ArrayAdapter:
    return _KEYS if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key) else _ARRAYS


def _sharding(array: Any) -> Any:
    """Return where an array was put; None if it was left to JAX."""
    return array.sharding if getattr(array, "committed", True) else None


def check(kind: ArrayKind, dtype: np.dtype[Any]) -> None:
    """Check that JAX has an array of this kind and dtype; see `Framework`."""
    if kind.dtype.startswith("key<") and not kind.flags and dtype == np.uint32:
        try:
            jax.random.key_impl(jax.random.key(0, impl=kind.dtype[4:-1]))
        except (ValueError, TypeError) as error:
            message = f'JAX has no random keys of {kind.dtype!r} here: load them with arrays="numpy"'
            raise UnsupportedFormatError(message) from error
    elif kind not in (_ARRAY, _WEAK_ARRAY):
        raise CorruptCheckpointError(f"the index is damaged: no array of JAX is {brief(str(kind))} of {dtype}")
    elif dtype.name in _WIDE and not jax.config.values["jax_enable_x64"]:
        raise UnsupportedFormatError(_NARROWED.format(dtype))


def restored(kind: ArrayKind, data: NDArray[Any]) -> Any:
    """Make an array as it was saved; see `Framework`."""
    if kind.dtype:
        return jax.random.wrap_key_data(jax.device_put(_native(data)), impl=kind.dtype[4:-1])
    return _weakened(jax.device_put(_native(data)), is_weak=kind.flags == _WEAK)


def devices() -> tuple[()]:
    """Return nothing: arrays are waited for one by one; see `Framework`."""
    return ()


has_numbers: Final = True
reduction: Final = node_reduction


def advice(value: object) -> str | None:
    """Say what to do about a value that cannot be saved; see `Framework`."""
    if isinstance(value, _FUNCTIONS):
        return (
            f"a {type(value).__name__} cannot be saved, since a file holds no code: leave it out, as"
            " equinox.filter(model, equinox.is_array) does, or make it a static field"
        )
    if isinstance(value, jax.core.Tracer):
        return "an array that is being traced has no contents: save outside of jit, grad, vmap and the like"
    if isinstance(value, np.ndarray) and value.dtype == jax.dtypes.float0:
        return "an array of float0, the gradient of integers, has no contents: leave it out"
    if callable(value) and "equinox" in sys.modules:
        return "equinox.filter(model, equinox.is_array) leaves it out of a model"
    return None


def _native(data: NDArray[Any]) -> NDArray[Any]:
    return data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("="))


def _weakened(array: Any, *, is_weak: bool) -> Any:
    if not is_weak:
        return array
    return jax.lax.convert_element_type_p.bind(array, new_dtype=array.dtype, weak_type=True, sharding=None)


_ARRAYS: Final = _ArrayAdapter()
_KEYS: Final = _KeyAdapter()
register_adapter(ArrayImpl, _ARRAYS)
register_adapter(_prng.PRNGKeyArray, _KEYS)
register_adapter(jax.ShapeDtypeStruct, _StructAdapter())
