"""Encode leaves as nodes, and list arrays.

1. Types are matched exactly. An unknown subclass is refused, because it would come back as its base.
2. Long bytes, strings and runs of numbers become arrays too, so that all large data is captured and written in the same
   way.
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
from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.runtime.pacing import BATCH_OBJECTS, CHUNK_ELEMENTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.containers import TYPES
from asyncckpt.state.dtypes import check_dtype, dtype_to_plain, has_alias
from asyncckpt.state.encode_arrays import ArrayLister
from asyncckpt.state.flat import FlatState
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.adapters import ArrayAdapter

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
        self._arrays = ArrayLister(self._flat)
        self._packed_numbers = 0
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
        chunk = ix.pack_chunk(self._nodes)
        self._keep(chunk)
        self._nodes_cut += len(self._nodes)
        self._flat.encoded_nbytes += len(chunk)
        self._nodes.clear()
        self._nbytes = 0
        self._due = self._next_due()
        self._check_nodes()
        self._check_nbytes()
        self._pacer.pause()

    def _keep(self, chunk: bytes) -> None:
        """Keep the encoded nodes."""
        self._flat.chunks.append(chunk)

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

    def _add_array(self, value: NDArray[Any]) -> bool:
        try:
            node = self._arrays.node(value)
        except UnsupportedLeafError as error:
            self._raise_here(error)
        if node is None:
            return False
        self._nodes.append(node)
        if self._max_nbytes is not None:
            self._check_nbytes()
        return True

    def _add_adapted(self, value: object, adapter: ArrayAdapter) -> None:
        """Add an array of a type that has an adapter."""
        if self._stack and (self._stack[-1].at_key or self._stack[-1].is_hashed):
            what = f"an array of type {type(value).__module__}.{type(value).__qualname__}"
            raise self._refuse(f"{what} cannot be a key or an element of a set, which are found by their contents")
        try:
            self._nodes.append(self._arrays.adapted_node(value, adapter.leaf(value)))
        except PendingError as error:
            self._add_awaited(value, error)
        except UnsupportedLeafError as error:
            self._raise_here(error)
        if self._max_nbytes is not None:
            self._check_nbytes()

    def _add_awaited(self, value: object, pending: PendingError) -> None:
        """Add an array that takes time to be described; on the loop, give up."""
        if self._max_nodes is not None:
            raise TooLargeError(f"an array {pending}, at {self._path() or 'the root'}") from None
        is_new = not all(frame.has_keys for frame in self._stack)  # an object may have made it just now
        try:
            leaf = pending.leaf(partial(self._moment.ready, is_new=is_new))
            self._nodes.append(self._arrays.adapted_node(value, leaf))
        except UnsupportedLeafError as error:
            self._raise_here(error)
        self._flat.is_on_device |= isinstance(leaf[2], DeviceSource)

    def _made_array(self, data: NDArray[Any]) -> int:
        """List an array that was made here; return its number."""
        number = self._arrays.add_made(data)
        self._check_nbytes()
        return number

    def _scalar(self, value: np.generic) -> ix.Node:
        if type(value) is np.str_:
            return ix.ext(ix.SCALAR, ("str_", str.__str__(value)))
        if type(value) is np.bytes_:
            return ix.ext(ix.SCALAR, ("bytes_", bytes(value)))
        if value.dtype.hasobject:
            message = "a numpy scalar with Python objects in it cannot be saved"
            raise self._refuse(message)
        try:
            check_dtype(value.dtype)
        except UnsupportedLeafError as error:
            self._raise_here(error)
        if has_alias(dtype_to_plain(value.dtype)):
            raise self._refuse(f"a scalar of {value.dtype!r}, with an alias among its fields: put it into an array")
        data = np.zeros((), value.dtype)  # padding is not copied, and must not leak memory
        data[()] = value
        if value.dtype.char in "gG" and np.finfo(np.longdouble).nmant == _EXTENDED_BITS:
            data.reshape(-1).view(np.uint8).reshape(-1, np.dtype("g").itemsize)[:, _EXTENDED_NBYTES:] = 0
        return ix.ext(ix.SCALAR, (dtype_to_plain(value.dtype), data.tobytes()))

    _ADDERS: ClassVar[dict[type, Callable[[Any, Any], bool]]] = {
        int: _add_int,
        str: _add_string,
        bytes: _add_bytes,
        complex: _add_complex,
    }
    """The methods that add leaves, by type."""


_EXTENDED_BITS: Final = 63
_EXTENDED_NBYTES: Final = 10
"""The long double of x86 has 10 bytes and a padding, which numpy fills with what was in memory."""
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
