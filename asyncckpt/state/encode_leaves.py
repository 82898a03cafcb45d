"""Encode leaves as nodes, and list arrays.

1. Types are matched exactly. An unknown subclass is refused, because it would come back as its base.
2. Each array is listed once, however often it occurs. Long bytes, strings and runs of numbers become arrays too, so
   that all large data is captured and written in the same way.
3. Nodes are encoded in chunks during the walk. Between chunks, limits are checked and the GIL is released.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import msgpack
import numpy as np

from asyncckpt.arrays.adapters import PendingError, framework_of, imported_frameworks, known_adapter
from asyncckpt.arrays.device import DeviceSource, Moment
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.runtime.memory import PAGE_NBYTES
from asyncckpt.runtime.pacing import BATCH_OBJECTS, CHUNK_ELEMENTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.containers import TYPES
from asyncckpt.state.dtypes import dtype_to_plain, has_alias, is_kept, metadata_of
from asyncckpt.state.flat import FlatState
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.adapters import AnyLeaf, ArrayAdapter, ArrayKind

INLINE_LEAF_NBYTES: Final = 4096
"""Longer bytes, strings and runs of numbers are stored as arrays."""
SHORT_TEXT: Final = 64  # characters; longer strings and bytes are counted by their size, not only as nodes
_INLINE_NUMBERS: Final = 16_384  # numbers in such lists on the loop; packing them takes a few milliseconds
_CHUNK_NBYTES: Final = 1 << 18
CONTAINER_CODES: Final[dict[type, int]] = {type_: code for code, type_ in TYPES.items()}


class TooLargeError(Exception):
    """The state exceeds the given limits, or has an array that takes time; the message, if any, says which."""


@dataclass(slots=True, eq=False)
class Frame:
    """A container whose children are being walked."""

    children: Iterator[object]
    container: object
    key: object = None
    at_key: bool = False  # whether the current child is a key
    in_key: bool = False  # whether all of this is part of a key
    key_depth: int = 0  # how deep in a key, or in an element of a set
    is_hashed: bool = False  # whether the children are parts of a key, or of an element of a set
    has_keys: bool = True  # False for an object: its plain state has the path of the object


@dataclass(slots=True, eq=False)
class _Alike:
    """What arrays have in common that have one dtype, shape and kind, and an adapter."""

    given: ArrayMeta  # as the adapter described the last one
    meta: ArrayMeta
    kind: ArrayKind | None
    numbers: dict[Hashable, int]  # by the arrays' identities
    nodes: dict[int, ix.Node]


_NO_META: Final = ArrayMeta(np.dtype(bool), ())
_NONE_ALIKE: Final = _Alike(_NO_META, _NO_META, None, {}, {})


class LeafEncoder:
    """Adds the nodes of leaves during a walk over a state."""

    def __init__(
        self, root: str, pacer: Pacer, moment: Moment | None, max_nodes: int | None, max_nbytes: int | None
    ) -> None:
        self._pacer = pacer
        self._moment = moment or Moment()
        self._max_nodes = max_nodes
        self._max_nbytes = max_nbytes
        self._flat = FlatState(root=root)
        self._nodes: list[ix.Node] = []
        self._nodes_cut = 0
        self._nbytes = 0  # in strings and numbers of the chunk
        self._due = self._next_due()
        self._stack: list[Frame] = []
        self._open: set[int] = set()
        self._numbers: dict[int, int] = {}  # of numpy's arrays, by their ids
        self._metas: dict[tuple[int, tuple[int, ...]], ArrayMeta] = {}  # by the id of the dtype, which they hold
        self._meta: ArrayMeta | None = None  # of the previous one of numpy's, which is often equal
        self._packed_numbers = 0
        self._all_alike: dict[tuple[int, ArrayKind | None], _Alike] = {}  # by the id of the meta, which they hold
        self._alike = _NONE_ALIKE  # those of the previous array of a type that has an adapter
        self._kept: list[object] = []  # objects whose ids must not be reused during the walk

    def _add_leaf(self, value: Any) -> bool:
        """Add the node of a value of a common type without children; return False for any other value.

        It never raises a RuntimeError, because it is called while containers are iterated over.
        """
        kind = type(value)
        if kind is np.ndarray:  # first, because states of many leaves are states of many arrays
            if not self._add_array(value):
                return False
        elif value is None or kind is bool or kind is float:
            self._nodes.append(value)
        elif (add := self._ADDERS.get(kind)) is not None:
            if not add(self, value):
                return False
        elif (adapter := known_adapter(kind)) is not None:
            self._add_adapted(value, adapter)
        else:
            return False
        if len(self._nodes) >= self._due:
            self._check_progress()
        return True

    def _check_progress(self) -> None:
        """Encode a chunk, pause or give up, whichever is due."""
        if len(self._nodes) >= CHUNK_ELEMENTS or self._nbytes >= _CHUNK_NBYTES:
            self._cut()
        else:
            self._check_nodes()
            self._pacer.pause()
            self._due = self._next_due()

    def _cut(self) -> None:
        """Encode the nodes so far as a chunk."""
        self._nodes_cut += len(self._nodes)
        chunk = ix.pack_chunk(self._nodes)
        self._flat.chunks.append(chunk)
        self._flat.encoded_nbytes += len(chunk)
        self._nodes.clear()
        self._nbytes = 0
        self._due = self._next_due()
        self._check_nodes()
        self._check_nbytes()
        self._pacer.pause()

    def _next_due(self) -> int:
        """Return how many nodes the chunk has when progress must be checked again."""
        count = len(self._nodes)
        due = min(count + BATCH_OBJECTS, CHUNK_ELEMENTS)
        return due if self._max_nodes is None else min(due, self._max_nodes - self._nodes_cut + 1)

    def _check_nodes(self) -> None:
        if self._max_nodes is not None and len(self._nodes) + self._nodes_cut > self._max_nodes:
            raise TooLargeError

    def _add_nbytes(self, nbytes: int) -> None:
        """Count the bytes of a long node."""
        self._nbytes += nbytes
        if self._nbytes >= _CHUNK_NBYTES:
            self._due = 0

    def _check_nbytes(self, more: int = 0) -> None:
        """Give up if the limit is exceeded, or would be with `more` bytes."""
        nbytes = self._flat.encoded_nbytes + self._flat.array_nbytes + more
        if self._max_nbytes is not None and nbytes > self._max_nbytes:
            raise TooLargeError

    def _path(self, without: int = 0) -> str:
        """Return the path of the current value, or of its container with `without=1`."""
        frames = self._stack[: len(self._stack) - without]
        keys = [frame.key for frame in frames if frame.has_keys]
        return join_path([self._flat.root, *keys] if self._flat.root else keys)

    def _refuse(self, message: str) -> UnsupportedLeafError:
        return UnsupportedLeafError(message, path=self._path())

    def _raise_here(self, error: UnsupportedLeafError) -> NoReturn:
        """Raise an error about the current value again, with its path if it has none."""
        if error.path:
            raise error
        raise self._refuse(str(error).removeprefix("the root: ")) from error

    def _add_numbers(self, code: int, value: Sequence[Any]) -> bool:
        """Add a list or tuple of only ints or only floats as one node; return False for any other."""
        kind = type(value[0])
        if kind is not int and kind is not float:
            return False
        dtype = np.dtype("<i8" if kind is int else "<f8")
        count = len(value)
        self._check_nbytes(count * dtype.itemsize)
        if self._max_nodes is not None:  # on the loop
            self._packed_numbers += count
            if self._packed_numbers > _INLINE_NUMBERS:
                raise TooLargeError
        packed = np.empty(count, dtype)
        try:
            for start in range(0, count, CHUNK_ELEMENTS):
                part = value[start : start + CHUNK_ELEMENTS] if count > CHUNK_ELEMENTS else value
                if set(map(type, part)) != {kind}:
                    return False
                packed[start : start + len(part)] = part
                self._pacer.pause()
        except (
            OverflowError,
            ValueError,
        ):  # an int of more than 64 bits; or the list has changed, which _items reports
            return False
        if len(value) != count:
            return False  # it has changed
        if packed.nbytes <= INLINE_LEAF_NBYTES or self._is_in_key():
            self._nodes.append(ix.ext(ix.NUMBERS, (code, dtype.str, packed.tobytes())))
            self._add_nbytes(packed.nbytes)
        else:
            self._nodes.append(ix.ext(ix.NUMBERS_ARRAY, (code, self._made_array(packed))))
        return True

    def _add_int(self, value: int) -> bool:
        is_small = -(1 << 63) <= value < (1 << 64)
        self._nodes.append(value if is_small else _big_integer(value))
        return True

    def _add_complex(self, value: complex) -> bool:
        self._nodes.append(ix.ext(ix.COMPLEX, (value.real, value.imag)))
        return True

    def _add_string(self, value: str) -> bool:
        nbytes = len(value)
        if nbytes <= INLINE_LEAF_NBYTES or self._is_in_key():
            self._nodes.append(value)
            if nbytes > SHORT_TEXT:
                self._add_nbytes(nbytes)
        else:
            self._check_nbytes(len(value))
            encoded = value.encode("utf-8", "surrogatepass")
            self._nodes.append(ix.ext(ix.STRING, self._made_array(np.frombuffer(encoded, np.uint8))))
        return True

    def _add_bytes(self, value: bytes) -> bool:
        nbytes = len(value)
        if nbytes <= INLINE_LEAF_NBYTES or self._is_in_key():
            self._nodes.append(value)
            if nbytes > SHORT_TEXT:
                self._add_nbytes(nbytes)
        else:
            self._nodes.append(ix.ext(ix.BYTES, self._made_array(np.frombuffer(value, np.uint8))))
        return True

    def _is_in_key(self) -> bool:
        """Whether the current value is a key or part of one. Keys must be readable without the payload."""
        return bool(self._stack) and (self._stack[-1].at_key or self._stack[-1].in_key)

    def _made_array(self, data: NDArray[Any]) -> int:
        """List an array that was made here, so that no program can change it."""
        number = len(self._flat.arrays)
        self._flat.arrays.append(ArrayMeta(data.dtype, data.shape))
        self._flat.sources.append(data)
        self._flat.stable.add(number)
        self._flat.encoded_nbytes += data.nbytes
        self._check_nbytes()
        return number

    def _add_array(self, value: NDArray[Any]) -> bool:
        """Add a numpy array, as `_add_adapted` does, without its calls."""
        flat = self._flat
        count = len(flat.sources)
        number = self._numbers.setdefault(id(value), count)
        if number == count:
            dtype, shape, meta = value.dtype, value.shape, self._meta
            if meta is None or dtype is not meta.dtype or shape != meta.shape:
                meta = self._metas.get((id(dtype), shape))
                if meta is None:
                    if dtype.kind == "T":
                        del self._numbers[id(value)]
                        return False
                    meta = self._new_meta(dtype, shape)
                self._meta = meta
            flat.arrays.append(meta)
            flat.sources.append(value)
            flat.array_nbytes += meta.nbytes
            if self._max_nbytes is not None:
                self._check_nbytes()
        self._nodes.append(_ARRAY_NODES.get(number) or _array_node(number))
        return True

    def _add_adapted(self, value: object, adapter: ArrayAdapter) -> None:
        """Add an array of a type that has an adapter."""
        if self._stack and (self._stack[-1].at_key or self._stack[-1].is_hashed):
            what = f"an array of type {type(value).__module__}.{type(value).__qualname__}"
            raise self._refuse(f"{what} cannot be a key or an element of a set, which are found by their contents")
        try:
            identity, meta, source, is_stable, kind = adapter.leaf(value)
        except PendingError as error:
            identity, meta, source, is_stable, kind = self._awaited_leaf(error)
        except UnsupportedLeafError as error:
            self._raise_here(error)
        alike = self._alike
        if meta is not alike.given or kind is not alike.kind:
            alike = self._alike = self._alike_of(meta, kind)
        flat = self._flat
        count = len(flat.sources)
        number = alike.numbers.setdefault(identity, count)
        if number == count:
            self._kept.append(value)  # the identity may be its id
            meta = alike.meta
            flat.arrays.append(meta)
            flat.sources.append(source)
            if is_stable and meta.nbytes >= PAGE_NBYTES:  # small ones are copied together
                flat.stable.add(number)
            else:
                flat.array_nbytes += meta.nbytes
            if self._max_nbytes is not None:
                self._check_nbytes()
        self._nodes.append(alike.nodes.get(number) or _array_node(number, kind))

    def _awaited_leaf(self, pending: PendingError) -> AnyLeaf:
        """Describe an array that takes time to be described; on the loop, give up.

        Raises:
            UnsupportedLeafError: It cannot be saved.
        """
        if self._max_nodes is not None:
            raise TooLargeError(f"an array {pending}, at {self._path() or 'the root'}") from None
        is_new = not all(frame.has_keys for frame in self._stack)  # an object may have made it just now
        try:
            leaf = pending.leaf(partial(self._moment.ready, is_new=is_new))
        except UnsupportedLeafError as error:
            self._raise_here(error)
        self._flat.is_on_device |= isinstance(leaf[2], DeviceSource)
        return leaf

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
            raise self._refuse(message)
        # Refuse a dtype that cannot be described before anything is written.
        self._describable(dtype)
        meta = self._metas[id(dtype), shape] = ArrayMeta(dtype, tuple(shape))
        return meta

    def _describable(self, dtype: np.dtype[Any]) -> object:
        if dtype.isbuiltin == 2 and dtype.type.__module__.partition(".")[0] != "ml_dtypes":  # noqa: PLR2004 - a user's
            message = f"arrays of the dtype {dtype!r} cannot be saved: it is neither numpy's nor ml_dtypes'"
            raise self._refuse(message)
        if dtype.names is None and dtype.metadata is None and dtype.kind != "V":
            return None
        if not is_kept(dtype):
            metadata = ", ".join(metadata_of(dtype))
            what = f"without its metadata {metadata}" if metadata else "as another"
            message = f"the dtype {dtype!r} would come back {what}: view the data as plain numbers or a plain structure"
            raise self._refuse(message)
        return dtype_to_plain(dtype)

    def _scalar(self, value: np.generic) -> ix.Node:
        if type(value) is np.str_:
            return ix.ext(ix.SCALAR, ("str_", str.__str__(value)))
        if type(value) is np.bytes_:
            return ix.ext(ix.SCALAR, ("bytes_", bytes(value)))
        if value.dtype.hasobject:
            message = "a numpy scalar with Python objects in it cannot be saved"
            raise self._refuse(message)
        if has_alias(self._describable(value.dtype)):
            raise self._refuse(f"a scalar of {value.dtype!r}, with an alias among its fields: put it into an array")
        data = np.zeros((), value.dtype)  # the padding of a structure is not copied, and must not leak memory
        data[()] = value
        return ix.ext(ix.SCALAR, (dtype_to_plain(value.dtype), data.tobytes()))

    _ADDERS: ClassVar[dict[type, Callable[[Any, Any], bool]]] = {
        int: _add_int,
        str: _add_string,
        bytes: _add_bytes,
        complex: _add_complex,
    }
    """The methods that add leaves, by type."""


_ARRAY_NODES: Final[dict[int, ix.Node]] = {}
_KEPT_NODES: Final = 1 << 15
_CODE: Final = (
    type,
    functools.partial,
    types.BuiltinFunctionType,
    types.FunctionType,
    types.MethodType,
    types.MethodWrapperType,
    types.ModuleType,
    np.ufunc,
)
"""Types of code. An object of another class that defines `__call__` is data."""


@functools.lru_cache(maxsize=64)
def _nodes_of(kind: ArrayKind | None) -> dict[int, ix.Node]:
    """Return the nodes of arrays of a kind, by number. They are kept, because every save of a state needs the same."""
    return _ARRAY_NODES if kind is None else {}


def _array_node(number: int, kind: ArrayKind | None = None) -> ix.Node:
    """Make the node of an array."""
    node = ix.ext(ix.ARRAY, number) if kind is None else ix.ext(ix.FRAMEWORK_ARRAY, (number, *kind))
    if number < _KEPT_NODES:
        _nodes_of(kind)[number] = node
    return node


def _big_integer(value: int) -> ix.Node:
    return msgpack.ExtType(ix.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


_LEAVES: Final = (int, float, str, bytes, complex, np.ndarray)


def advice(value: object) -> str:
    """Return an error message that says what to do about a value that cannot be saved."""
    kind = type(value)
    framework = framework_of(kind)
    if framework is not None and (found := framework.advice(value)) is not None:
        return found
    name = f"{kind.__module__}.{kind.__qualname__}"
    for base in kind.__mro__[1:]:
        if base in CONTAINER_CODES or base in _LEAVES or issubclass(base, np.generic):
            return (
                f"{name} would come back as a plain {base.__name__}: convert it, or register it with"
                " asyncckpt.register_type"
            )
    if isinstance(value, _CODE):
        what = "class" if isinstance(value, type) else kind.__name__
        own = f"{what} {getattr(value, '__qualname__', getattr(value, '__name__', ''))}".rstrip()
        more = "".join(f"; {found}" for each in imported_frameworks() if (found := each.advice(value)) is not None)
        return f"the {own} cannot be saved, since a file holds no code: save what it is made from{more}"
    if hasattr(kind, "__dlpack__") or hasattr(kind, "__cuda_array_interface__"):
        return f"arrays of type {name} cannot be saved: convert them, with numpy.from_dlpack or their own method"
    return f"values of type {name} cannot be saved: register the type with asyncckpt.register_type"
