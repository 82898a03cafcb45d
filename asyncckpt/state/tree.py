"""From a state to its nodes and arrays.

1. The walk is iterative: depth costs no recursion. A path is put together only when an error needs it.
2. Types are matched exactly. A subclass that is not known by itself would come back as its base, so it is refused.
3. Every array is listed once, however often it occurs. Long bytes, strings and runs of numbers become arrays too, so
   that their bytes take the way of all large data.
4. Containers are watched while they are walked: one that changes is an error, not a torn snapshot.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from asyncckpt.errors import StateChangedError, UnsupportedLeafError
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_to_plain
from asyncckpt.state.types import STRING_ARRAY, Reduction, find_reduction
from asyncckpt.workers import PIECE_ELEMENTS, Pacer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Sized

    from numpy.typing import NDArray

INLINE_LEAF_NBYTES: Final = 4096
"""Longer bytes, strings and runs of numbers are stored as arrays."""
_NUMBERS_MIN: Final = 16  # shorter lists are not worth looking at twice
_INLINE_NUMBERS: Final = 16_384  # in such lists; packing them takes a few milliseconds
_PIECE_NBYTES: Final = 1 << 18
_NODE_NBYTES: Final = 9  # a guess, for cutting pieces by size
_CONTAINER_CODES: Final[dict[type, int]] = {
    list: ix.LIST,
    tuple: ix.TUPLE,
    dict: ix.DICT,
    set: ix.SET,
    frozenset: ix.FROZENSET,
    deque: ix.DEQUE,
    OrderedDict: ix.ORDERED_DICT,
}


class TooLargeError(Exception):
    """The state is beyond the given limits; the caller takes another way."""


@dataclass(slots=True, kw_only=True, eq=False)
class FlatState:
    """A state as the nodes of its tree, encoded, and the arrays to be captured."""

    pieces: list[bytes] = field(default_factory=list)
    arrays: list[ix.ArrayMeta] = field(default_factory=list)
    """What the index says of each array; arrays of one dtype and shape share theirs."""
    sources: list[NDArray[Any]] = field(default_factory=list)
    """The arrays to be captured, until they have been."""
    stable: set[int] = field(default_factory=set)
    """Numbers of the arrays that nobody else can change, so that they need no copy: made from immutable leaves.
    They are all longer than `INLINE_LEAF_NBYTES`."""
    encoded_nbytes: int = 0
    """Memory that the walk itself has taken: encoded nodes, and numbers and strings made into arrays."""
    array_nbytes: int = 0
    """Bytes of the arrays that are the caller's and still to be copied."""

    def detach(self) -> None:
        """Let go of the arrays, which have been copied: the caller's memory is the caller's again."""
        self.sources = []

    def release(self) -> None:
        """Let go of the arrays: freeing large ones takes its time, which the thread that calls this pays."""
        pacer = Pacer()
        while self.pieces:
            self.pieces.pop()
            pacer.pause()
        self.arrays = []
        self.sources = []

    def index(self) -> ix.Index:
        """Return the index of the state."""
        return ix.Index(pieces=self.pieces, arrays=self.arrays)


@dataclass(slots=True, eq=False)
class _Frame:
    """A container whose children are being walked."""

    children: Iterator[object]
    container: object
    key: object = None
    at_key: bool = False  # whether the child at hand is a key
    in_key: bool = False  # whether all of this is part of a key
    key_depth: int = 0  # how deep in a key, or in an element of a set
    has_keys: bool = True  # an object's plain state stands at the object's own path


MAX_KEY_DEPTH: Final = 200
"""Containers within containers that a key or an element of a set may be: to hash them takes a stack as deep."""


def join_path(keys: Sequence[object]) -> str:
    """Spell a path: keys and positions joined by slashes."""
    return "/".join(key if type(key) is str else _spell(key) for key in keys)


def _spell(key: object) -> str:
    try:
        text = repr(key) if not isinstance(key, str) else str(key)
    except (ValueError, RecursionError):  # an int of more digits than Python spells in decimal
        text = hex(key) if isinstance(key, int) else f"<{type(key).__qualname__}>"
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - long enough to recognize a key


def flatten(
    state: object, *, root: str = "", pacer: Pacer, max_nodes: int | None = None, max_nbytes: int | None = None
) -> FlatState:
    """Encode the tree of `state` and list its arrays.

    Args:
        state: Nested containers of leaves.
        root: What error messages call the root.
        pacer: Paused between pieces.
        max_nodes: The number of nodes, and
        max_nbytes: the number of bytes beyond which to give up.

    Raises:
        UnsupportedLeafError: A value cannot be saved, or the state contains itself; names the path.
        StateChangedError: A container changed during the walk.
        TooLargeError: A limit was passed.
    """
    return _Flattener(root, pacer, max_nodes, max_nbytes).run(state)


class _Flattener:
    def __init__(self, root: str, pacer: Pacer, max_nodes: int | None, max_nbytes: int | None) -> None:
        self._root = root
        self._pacer = pacer
        self._max_nodes = max_nodes
        self._max_nbytes = max_nbytes
        self._flat = FlatState()
        self._nodes: list[ix.Node] = []
        self._nodes_cut = 0
        self._nbytes = 0
        self._stack: list[_Frame] = []
        self._open: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._metas: dict[tuple[int, tuple[int, ...]], ix.ArrayMeta] = {}  # by the dtype's id, which they keep alive
        self._packed_numbers = 0
        self._kept: list[object] = []  # an id is only an identity while its object lives

    def run(self, state: object) -> FlatState:
        self._enter(state)
        while self._stack:
            frame = self._stack[-1]
            try:
                child = next(frame.children, _END)
            except RuntimeError as error:  # "dictionary changed size during iteration", and the like
                message = f"changed while it was captured ({error}): no task may change the state until save() returns"
                raise StateChangedError(message, path=self._path(1)) from error
            if child is _END:
                self._stack.pop()
                self._open.discard(id(frame.container))
            else:
                self._enter(child)
        self._cut()
        return self._flat

    def _enter(self, value: object) -> None:
        """Add the node of `value`; if it has children, they are walked next."""
        if self._add_leaf(value):
            return
        kind = type(value)
        if kind in _CONTAINER_CODES:
            self._add_container(value)
        elif kind is np.ndarray or kind is np.memmap:
            self._add_string_array(value)  # type: ignore[arg-type]
        elif isinstance(value, np.generic):
            self._nodes.append(self._scalar(value))
        else:
            self._add_object(value)
        self._cut_if_due()

    def _add_leaf(self, value: Any) -> bool:
        """Add the node of a value of a common type that has no children; return False for any other.

        Nothing in here raises a RuntimeError, so that containers may call it while they are being iterated over.
        """
        kind = type(value)
        if value is None or kind is bool or kind is float:
            self._nodes.append(value)
        elif (add := _LEAF_ADDERS.get(kind)) is None or not add(self, value):
            return False
        if len(self._nodes) >= PIECE_ELEMENTS or self._nbytes >= _PIECE_NBYTES or self._max_nodes is not None:
            self._cut_if_due()
        return True

    def _cut_if_due(self) -> None:
        if len(self._nodes) >= PIECE_ELEMENTS or self._nbytes >= _PIECE_NBYTES:
            self._cut()
        elif self._max_nodes is not None and len(self._nodes) + self._nodes_cut > self._max_nodes:
            raise TooLargeError

    def _cut(self) -> None:
        """Encode the nodes so far as a piece."""
        self._nodes_cut += len(self._nodes)
        piece = ix.pack_piece(self._nodes)
        self._flat.pieces.append(piece)
        self._flat.encoded_nbytes += len(piece)
        self._nodes = []
        self._nbytes = 0
        if self._max_nodes is not None and self._nodes_cut > self._max_nodes:
            raise TooLargeError
        self._check_nbytes()
        self._pacer.pause()

    def _check_nbytes(self, more: int = 0) -> None:
        """Give up if the limit is passed, or would be with so many bytes more."""
        nbytes = self._flat.encoded_nbytes + self._flat.array_nbytes + more
        if self._max_nbytes is not None and nbytes > self._max_nbytes:
            raise TooLargeError

    def _path(self, without: int = 0) -> str:
        """Spell the path of the value at hand, or of its container with `without=1`."""
        frames = self._stack[: len(self._stack) - without]
        keys = [frame.key for frame in frames if frame.has_keys]
        return join_path([self._root, *keys] if self._root else keys)

    def _refuse(self, message: str) -> UnsupportedLeafError:
        return UnsupportedLeafError(message, path=self._path())

    # --- containers ---------------------------------------------------------------------------------------------------

    def _add_container(self, value: Any) -> None:
        code = _CONTAINER_CODES[type(value)]
        count = len(value)
        if code in (ix.LIST, ix.TUPLE) and count >= _NUMBERS_MIN and self._add_numbers(code, value):
            return
        self._nodes.append(ix.ext(code, (count, value.maxlen) if code == ix.DEQUE else count))
        self._push(value, keyed=True)
        frame = self._stack[-1]
        frame.children = self._pairs(frame, value, count) if code in ix.MAPPINGS else self._items(frame, value, count)

    def _push(self, container: object, *, keyed: bool) -> None:
        if id(container) in self._open:
            message = "the state contains itself: a cycle cannot be saved"
            raise self._refuse(message)
        self._open.add(id(container))
        in_key = self._is_in_key()
        self._stack.append(_Frame(iter(()), container, in_key=in_key, key_depth=self._key_depth(), has_keys=keyed))

    def _key_depth(self) -> int:
        """Return how deep in a key, or in an element of a set, the container at hand is."""
        if not self._stack:
            return 0
        parent = self._stack[-1]
        if not (parent.key_depth or self._is_in_key() or type(parent.container) in (set, frozenset)):
            return 0
        if parent.key_depth == MAX_KEY_DEPTH:
            raise self._refuse(f"a key or an element of a set is nested more than {MAX_KEY_DEPTH} deep")
        return parent.key_depth + 1

    def _pairs(self, frame: _Frame, value: dict[object, object], count: int) -> Iterator[object]:
        found = 0
        for key, child in value.items():
            found += 1
            if found > count:
                break
            frame.key, frame.at_key = key, True
            if not self._add_leaf(key):
                yield key
            frame.at_key = False
            if not self._add_leaf(child):
                yield child
        _check_length(found, count, value)

    def _items(self, frame: _Frame, value: Sequence[object], count: int) -> Iterator[object]:
        position = 0
        for child in value:
            frame.key = position
            position += 1
            if position > count:
                break
            if not self._add_leaf(child):
                yield child
        _check_length(position, count, value)

    def _add_numbers(self, code: int, value: Sequence[Any]) -> bool:
        """Add a list or tuple of nothing but ints, or floats, as one node; return False where it is something else."""
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
            for start in range(0, count, PIECE_ELEMENTS):
                part = value[start : start + PIECE_ELEMENTS] if count > PIECE_ELEMENTS else value
                if set(map(type, part)) != {kind}:
                    return False
                packed[start : start + len(part)] = part
                self._pacer.pause()
        except (
            OverflowError,
            ValueError,
        ):  # an int beyond 64 bits; a list that changed meanwhile, which _items reports
            return False
        if len(value) != count:
            return False  # as above
        if packed.nbytes <= INLINE_LEAF_NBYTES or self._is_in_key():
            self._nodes.append(ix.ext(ix.NUMBERS, (code, dtype.str, packed.tobytes())))
            self._nbytes += packed.nbytes
        else:
            self._nodes.append(ix.ext(ix.NUMBERS_ARRAY, (code, self._made_array(packed))))
        return True

    # --- leaves -------------------------------------------------------------------------------------------------------

    def _add_int(self, value: int) -> bool:
        is_small = -(1 << 63) <= value < (1 << 64)
        self._nodes.append(value if is_small else _big_integer(value))
        return True

    def _add_complex(self, value: complex) -> bool:
        self._nodes.append(ix.ext(ix.COMPLEX, (value.real, value.imag)))
        return True

    def _add_string(self, value: str) -> bool:
        if self._is_inline(value):
            self._nodes.append(value)
            self._nbytes += len(value)
        else:
            self._check_nbytes(len(value))
            encoded = value.encode("utf-8", "surrogatepass")
            self._nodes.append(ix.ext(ix.STRING, self._made_array(np.frombuffer(encoded, np.uint8))))
        return True

    def _add_bytes(self, value: bytes) -> bool:
        if self._is_inline(value):
            self._nodes.append(value)
            self._nbytes += len(value)
        else:
            self._nodes.append(ix.ext(ix.BYTES, self._made_array(np.frombuffer(value, np.uint8))))
        return True

    def _is_inline(self, value: str | bytes) -> bool:
        return len(value) <= INLINE_LEAF_NBYTES or self._is_in_key()

    def _is_in_key(self) -> bool:
        """Whether the value at hand is a key or part of one: keys must be readable without the payload."""
        return bool(self._stack) and (self._stack[-1].at_key or self._stack[-1].in_key)

    def _made_array(self, data: NDArray[Any]) -> int:
        """List an array of our own making, which nobody can change."""
        number = self._list_array(data, ix.ArrayMeta(data.dtype, data.shape))
        self._flat.stable.add(number)
        self._flat.encoded_nbytes += data.nbytes
        self._check_nbytes()
        return number

    def _add_array(self, value: NDArray[Any]) -> bool:
        number = self._numbers.get(id(value))
        if number is None:
            dtype, shape = value.dtype, value.shape
            meta = self._metas.get((id(dtype), shape))
            if meta is None:
                if dtype.kind == "T":
                    return False
                meta = self._new_meta(dtype, shape)
            if type(value) is np.ndarray:
                number = self._list_array(value, meta)
            else:
                self._kept.append(value)
                number = self._list_array(value.view(np.ndarray), meta)
            self._numbers[id(value)] = number
            self._flat.array_nbytes += meta.nbytes
            if self._max_nbytes is not None:
                self._check_nbytes()
        self._nodes.append(_array_node(number))
        return True

    def _list_array(self, data: NDArray[Any], meta: ix.ArrayMeta) -> int:
        """List an array to be captured; return its number."""
        number = len(self._flat.arrays)
        self._flat.arrays.append(meta)
        self._flat.sources.append(data)
        return number

    def _new_meta(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> ix.ArrayMeta:
        """Describe the arrays of a dtype and shape, once for all of them, or refuse them."""
        if dtype.hasobject:
            message = (
                "an array of Python objects cannot be saved without running code on load: use a list, or a dtype of"
                " numbers, strings or records"
            )
            raise self._refuse(message)
        # Named here, so that a dtype which cannot be described is refused before anything is written.
        self._describable(dtype)
        meta = self._metas[id(dtype), shape] = ix.ArrayMeta(dtype, shape)
        return meta

    def _add_string_array(self, value: NDArray[Any]) -> None:
        if value.dtype != np.dtypes.StringDType():
            message = f"an array of {value.dtype!r} cannot be saved: only StringDType() without options can"
            raise self._refuse(message)
        self._add_reduced(value, STRING_ARRAY)

    def _describable(self, dtype: np.dtype[Any]) -> object:
        if dtype.isbuiltin == 2 and dtype.type.__module__.partition(".")[0] != "ml_dtypes":  # noqa: PLR2004 - a user's
            message = f"arrays of the dtype {dtype!r} cannot be saved: it is neither numpy's nor ml_dtypes'"
            raise self._refuse(message)
        return dtype_to_plain(dtype) if dtype.names is not None else None

    def _scalar(self, value: np.generic) -> ix.Node:
        if type(value) is np.str_:
            return ix.ext(ix.SCALAR, ("str_", str.__str__(value)))
        if type(value) is np.bytes_:
            return ix.ext(ix.SCALAR, ("bytes_", bytes(value)))
        if type(value) is not value.dtype.type:
            raise self._refuse(_advice(value))
        if value.dtype.hasobject:
            message = "a numpy scalar with Python objects in it cannot be saved"
            raise self._refuse(message)
        self._describable(value.dtype)
        data = np.zeros((), value.dtype)  # the padding of a structure is not copied, and shall not be somebody's memory
        data[()] = value
        return ix.ext(ix.SCALAR, (dtype_to_plain(value.dtype), data.tobytes()))

    # --- objects ------------------------------------------------------------------------------------------------------

    def _add_object(self, value: object) -> None:
        reduction = find_reduction(value)
        if reduction is None:
            raise self._refuse(_advice(value))
        self._add_reduced(value, reduction)

    def _add_reduced(self, value: object, reduction: Reduction) -> None:
        try:
            state = reduction.to_state(value)
        except UnsupportedLeafError as error:
            if error.path:
                raise
            raise self._refuse(str(error).removeprefix("the root: ")) from error
        except Exception as error:
            error.add_note(f"while asyncckpt asked {reduction.name} for its state, at {self._path() or 'the root'}")
            raise
        self._nodes.append(ix.ext(ix.OBJECT, reduction.name))
        self._push(value, keyed=False)
        self._stack[-1].children = iter((state,))
        self._kept.append(state)  # arrays made just now must not share an id with later ones


_END: Final = object()
_LEAF_ADDERS: Final[dict[type, Callable[[_Flattener, Any], bool]]] = {
    int: _Flattener._add_int,  # noqa: SLF001 - the class's own table
    str: _Flattener._add_string,  # noqa: SLF001
    bytes: _Flattener._add_bytes,  # noqa: SLF001
    np.ndarray: _Flattener._add_array,  # noqa: SLF001
    np.memmap: _Flattener._add_array,  # noqa: SLF001
    complex: _Flattener._add_complex,  # noqa: SLF001
}


def _check_length(found: int, count: int, container: Sized) -> None:
    if found != count:
        message = f"its length was {count} and is {len(container)} now"
        raise RuntimeError(message)


@lru_cache(maxsize=1 << 15)
def _array_node(number: int) -> ix.Node:
    """Make the node of an array; kept, because a state may have many and each save lists them all."""
    return ix.ext(ix.ARRAY, number)


def _big_integer(value: int) -> ix.Node:
    return msgpack.ExtType(ix.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _advice(value: object) -> str:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    for base in kind.__mro__[1:]:
        if base in _CONTAINER_CODES or base in (int, float, str, bytes, complex, np.ndarray):
            return (
                f"{name} would come back as a plain {base.__name__}: convert it, or register it with"
                " asyncckpt.register_type"
            )
    if callable(value):
        return f"{name} is code, which is never saved: save what it was made from"
    return f"values of type {name} cannot be saved: register the type with asyncckpt.register_type"
