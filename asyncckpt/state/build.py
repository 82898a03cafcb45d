"""From nodes and arrays to a state: new objects, objects shaped by a template, or a template filled in place.

1. One walk over the nodes serves all three, and the check before them: `survey` walks without making anything and returns
   the arrays that are needed; `build` walks again with their contents.
2. With a template, containers come back as the template's, and every leaf must have its type, dtype and shape. A template
   is only changed by `build`, after `survey` has found nothing wrong.
3. Nothing in the nodes is believed: a wrong count, a duplicate key, an unknown code is a `CorruptCheckpointError`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from asyncckpt.errors import CheckpointError, CheckpointKeyError, CorruptCheckpointError, StateMismatchError
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain
from asyncckpt.state.tree import join_path
from asyncckpt.state.types import Reduction, find_reduction, named_reduction
from asyncckpt.workers import PIECE_ELEMENTS, Pacer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.state.selection import Selection

ABSENT: Final = object()  # no template here; or a value that was not selected
_SEQUENCES: Final = (list, tuple, deque)
_MAPPINGS: Final = (dict, OrderedDict)
_SETS: Final = (set, frozenset)
_MAKERS: Final[dict[int, Any]] = {
    ix.LIST: list,
    ix.TUPLE: tuple,
    ix.SET: set,
    ix.FROZENSET: frozenset,
    ix.DICT: dict,
    ix.ORDERED_DICT: OrderedDict,
}
_FAMILY: Final[dict[int, tuple[type, ...]]] = {
    ix.LIST: _SEQUENCES,
    ix.TUPLE: _SEQUENCES,
    ix.DEQUE: _SEQUENCES,
    ix.SET: _SETS,
    ix.FROZENSET: _SETS,
    ix.DICT: _MAPPINGS,
    ix.ORDERED_DICT: _MAPPINGS,
}


@dataclass(slots=True)
class Survey:
    """What a walk found that will be needed."""

    arrays: set[int] = field(default_factory=set)
    """Numbers of the arrays that are needed."""
    contents: set[int] = field(default_factory=set)
    """Those of them that leaves are made from: long bytes, strings and runs of numbers."""
    destinations: dict[int, list[NDArray[Any]]] = field(default_factory=dict)
    """Where a template's own arrays are to be filled: by number, each place."""
    paths: dict[int, str] = field(default_factory=dict)
    """Where each of those arrays stands first."""


@dataclass(slots=True)
class _Frame:
    """A container whose children are being read."""

    code: int
    left: int
    items: list[Any]
    template: Any
    selection: Selection | None
    is_made: bool  # whether its children are wanted as objects
    key: Any = None
    awaits_key: bool = False
    maxlen: int | None = None
    keys: list[Any] = field(default_factory=list)  # those read so far, where a template says which there should be
    reduction: Reduction | None = None
    target: Any = ABSENT  # the template of an object, which `items` holds the plain state of


class Builder:
    """Reads the nodes of one state."""

    def __init__(  # noqa: PLR0913 - each is one independent wish of the caller
        self,
        index: ix.Index,
        pacer: Pacer,
        *,
        template: object = ABSENT,
        in_place: bool = False,
        selection: Selection | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            index: The nodes and the arrays' metadata.
            pacer: Paused between pieces.
            template: What the state must look like.
            in_place: Whether the template itself is to be filled.
            selection: The leaves wanted; all by default.
        """
        self._index = index
        self._pacer = pacer
        self._template = template
        self._in_place = in_place
        self._selection = selection
        self._arrays: Mapping[int, NDArray[Any]] | None = None
        self._survey = Survey()
        self._filled: dict[int, tuple[int, object]] = {}
        self._frames: list[_Frame] = []
        self._found_any = False
        self.unknown_types: dict[str, str] = {}
        """Names of types that came back as plain data, each with the path of its first object."""

    @property
    def is_plain(self) -> bool:
        """Whether the state is wanted whole and without a template, so that all arrays are needed."""
        return self._template is ABSENT and self._selection is None

    def survey(self) -> Survey:
        """Check the nodes against the template and the selection, and find the arrays they need.

        Raises:
            CorruptCheckpointError: The nodes are not a tree.
            StateMismatchError: The template does not fit.
            CheckpointKeyError: Nothing is selected.
        """
        self._arrays = None
        self._survey = Survey()
        self._filled = {}
        self._walk()
        if not self._found_any:
            self._refuse_selection()
        return self._survey

    def build(self, arrays: Mapping[int, NDArray[Any]]) -> Any:
        """Make the state, or fill the template, from the contents of the arrays that `survey` named."""
        self._arrays = arrays
        self.unknown_types = {}
        return self._walk()

    # --- the walk -----------------------------------------------------------------------------------------------------

    def _walk(self) -> Any:
        self._frames = []
        self._found_any = self._selection is None
        result = ABSENT
        is_done = False
        try:
            for node in ix.read_nodes(self._index.pieces, self._pacer):
                if is_done:
                    _damaged("nodes follow the end of the tree")
                value = self._enter(node)
                # A value that completes its container completes, in turn, what that stands in.
                while value is not _OPEN:
                    if not self._frames:
                        result, is_done = value, True
                        break
                    value = self._put(value)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, UnicodeError) as error:
            if isinstance(error, CheckpointError):
                raise
            if self.unknown_types:  # plain data may be unhashable where the type was a key
                message = f"{error}: register {', '.join(self.unknown_types)} with asyncckpt.register_type"
                raise CheckpointError(message) from error
            _damaged(f"at {self._path() or 'the root'}: {error!r}", error)
        if not is_done:
            _damaged("the tree ends early")
        return result

    def _place(self) -> tuple[Any, Selection | None, bool]:
        """Return the template, the selection and whether an object is wanted, for the next node."""
        if not self._frames:
            return self._template, self._selection, self._arrays is not None
        frame = self._frames[-1]
        if frame.awaits_key:
            return ABSENT, None, True
        if frame.code == ix.OBJECT:
            return frame.template, frame.selection, frame.is_made
        selection = frame.selection.below(frame.key) if frame.selection is not None else None
        return _child_of(frame.template, frame.key), selection, frame.is_made

    def _enter(self, node: ix.Node) -> Any:
        """Read a node: return its value, or `_OPEN` when its children are to come."""
        template, selection, is_made = self._place()
        if type(node) is not msgpack.ExtType:
            return self._leaf(node, template, selection)
        code = node.code
        if code == ix.OBJECT:
            return self._open_object(_str(ix.argument_of(node)), template, selection, is_made)
        if code in ix.CONTAINERS:
            argument = ix.argument_of(node)
            count, maxlen = argument if code == ix.DEQUE else (argument, None)
            if type(count) is not int or count < 0:
                _damaged(f"a container of {count!r} children")
            return self._open_container(code, count, maxlen, template, selection, is_made)
        return self._leaf_ext(node, template, selection)

    def _put(self, value: Any) -> Any:
        """Hand a value to its container: return the container if that was the last one, else `_OPEN`."""
        frame = self._frames[-1]
        if frame.awaits_key:
            frame.key = value
            frame.awaits_key = False
            if frame.template is not ABSENT:
                frame.keys.append(value)
            return _OPEN
        frame.left -= 1
        if frame.is_made:
            frame.items.append((frame.key, value) if frame.code in ix.MAPPINGS else value)
        if frame.left:
            if frame.code in ix.MAPPINGS:
                frame.awaits_key = True
            elif frame.code != ix.OBJECT:
                frame.key += 1
            return _OPEN
        return self._close()

    # --- containers ---------------------------------------------------------------------------------------------------

    def _open_container(  # noqa: PLR0913
        self, code: int, count: int, maxlen: int | None, template: Any, selection: Selection | None, is_made: bool
    ) -> Any:
        if template is not ABSENT:
            reduction = find_reduction(template)
            if reduction is not None and reduction.is_transparent:
                # Saved as plain data, wanted as a dataclass or namedtuple.
                frame = _Frame(ix.OBJECT, 1, [], ABSENT, selection, is_made, reduction=reduction, target=template)
                self._frames.append(frame)
                template = reduction.to_state(template)
            if type(template) not in _FAMILY[code]:
                self._mismatch("type", _name(template), _MAKERS.get(code, deque).__name__)
            if type(template) in (list, tuple) and len(template) != count:
                self._mismatch("length", f"{len(template)} items", f"{count}")
        frame = _Frame(code, count, [], template, selection, is_made, maxlen=maxlen)
        if code in ix.MAPPINGS:
            frame.awaits_key = True
        else:
            frame.key = 0
        self._frames.append(frame)
        return self._close() if count == 0 else _OPEN

    def _open_object(self, name: str, template: Any, selection: Selection | None, is_made: bool) -> Any:
        reduction = named_reduction(name)
        child: Any = ABSENT
        if template is not ABSENT:
            wanted = find_reduction(template)
            if wanted is None and isinstance(template, np.ndarray) and template.dtype.kind == "T":
                wanted = named_reduction("string_array")
            if wanted is None and type(template) in (*_SEQUENCES, *_MAPPINGS):
                reduction, child = None, template  # saved as a dataclass or namedtuple, wanted as plain data
            elif wanted is None or not _is_same_type(wanted, name):
                self._mismatch("type", _name(template), name)
            else:
                reduction = wanted
                child = wanted.to_state(template) if wanted.is_transparent else ABSENT
        elif reduction is None and is_made:
            self.unknown_types.setdefault(name, self._path())
        frame = _Frame(ix.OBJECT, 1, [], child, selection, is_made, reduction=reduction, target=template)
        self._frames.append(frame)
        return _OPEN

    def _close(self) -> Any:
        frame = self._frames.pop()
        if frame.code in ix.MAPPINGS:
            self._check_keys(frame)
        if not frame.is_made:
            return None
        if frame.code == ix.OBJECT:
            return self._close_object(frame)
        items = frame.items
        if frame.selection is not None and not frame.selection.is_whole:
            if frame.code in ix.MAPPINGS:
                items = [pair for pair in items if pair[1] is not ABSENT]
            if frame.code in (ix.SET, ix.FROZENSET) or all(item is ABSENT for item in items):
                return ABSENT
            if frame.code not in ix.MAPPINGS:
                items = [None if item is ABSENT else item for item in items]
        if frame.template is not ABSENT:
            return self._close_like(frame.template, items)
        if frame.code == ix.DEQUE:
            return deque(items, frame.maxlen)
        made = _MAKERS[frame.code](items)
        if frame.code not in (ix.LIST, ix.TUPLE) and len(made) != len(items):
            _damaged(f"equal keys or elements at {self._path() or 'the root'}")
        return made

    def _close_like(self, template: Any, items: list[Any]) -> Any:
        if not self._in_place:
            return deque(items, template.maxlen) if type(template) is deque else type(template)(items)
        if type(template) is list:
            template[:] = items
        elif type(template) in _MAPPINGS:
            template.update(items)
        elif type(template) is deque:
            template.clear()
            template.extend(items)
        elif type(template) is set:
            template.clear()
            template.update(items)
        else:
            return type(template)(items)
        return template

    def _close_object(self, frame: _Frame) -> Any:
        state, reduction = frame.items[0], frame.reduction
        if state is ABSENT or reduction is None:
            return state
        if frame.selection is not None and not frame.selection.is_whole:
            return state  # part of an object is plain data
        try:
            if self._in_place and reduction.update is not None and frame.target is not ABSENT:
                reduction.update(frame.target, state)
                return frame.target
            return reduction.from_state(state)
        except Exception as error:
            if isinstance(error, MemoryError):
                raise
            message = f"{self._path() or 'the root'}: {reduction.name} could not be made from its state: {error}"
            raise CheckpointError(message) from error

    def _check_keys(self, frame: _Frame) -> None:
        if frame.template is ABSENT or frame.selection is not None:
            return
        missing = [key for key in frame.template if key not in set(frame.keys)]
        unknown = [key for key in frame.keys if key not in frame.template]
        if missing or unknown:
            found = [f"no {_some(missing)}"] * bool(missing) + [f"also {_some(unknown)}"] * bool(unknown)
            self._mismatch("keys", f"the keys {_some(frame.template)}", " and ".join(found))

    # --- leaves -------------------------------------------------------------------------------------------------------

    def _leaf(self, value: Any, template: Any, selection: Selection | None) -> Any:
        if selection is not None and not self._is_selected(selection):
            return ABSENT
        if type(value) in (list, dict):
            _damaged("a nested msgpack object")
        if template is not ABSENT and type(template) is not type(value):
            self._mismatch("type", _name(template), type(value).__name__)
        return value

    def _is_selected(self, selection: Selection) -> bool:
        if selection.is_whole:
            self._found_any = True
            return True
        return False

    def _leaf_ext(self, node: msgpack.ExtType, template: Any, selection: Selection | None) -> Any:
        if selection is not None and not self._is_selected(selection):
            return ABSENT
        code = node.code
        if code == ix.INTEGER:
            return self._leaf(int.from_bytes(node.data, "little", signed=True), template, None)
        argument = ix.argument_of(node)
        if code == ix.ARRAY:
            return self._array(argument, template)
        if code == ix.SCALAR:
            return self._scalar(argument, template)
        if code == ix.COMPLEX:
            return self._leaf(complex(*argument), template, None)
        if code == ix.BYTES:
            return self._leaf(self._raw(argument).tobytes(), template, None)
        if code == ix.STRING:
            text = self._raw(argument).tobytes().decode("utf-8", "surrogatepass")
            return self._leaf(text, template, None)
        if code == ix.NUMBERS:
            kind, dtype, data = argument
            return self._numbers(kind, np.frombuffer(data, _number_dtype(dtype)), template)
        if code == ix.NUMBERS_ARRAY:
            kind, number = argument
            meta = self._need(number)
            _number_dtype(meta.dtype.str)
            if self._arrays is None:
                self._survey.contents.add(number)
            data = self._arrays[number] if self._arrays is not None else np.empty(meta.shape, meta.dtype)
            return self._numbers(kind, data, template)
        _damaged(f"an unknown node, code {code}")
        return None

    def _need(self, number: Any) -> ix.ArrayMeta:
        if type(number) is not int or not 0 <= number < len(self._index.arrays):
            _damaged(f"array {number!r} of {len(self._index.arrays)}")
        if self._arrays is None:
            self._survey.arrays.add(number)
        return self._index.arrays[number]

    def _raw(self, number: Any) -> NDArray[Any]:
        meta = self._need(number)
        if self._arrays is None:
            self._survey.contents.add(number)
            return np.empty(0, np.uint8)
        if meta.dtype != np.uint8:
            _damaged(f"array {number} should hold bytes")
        return self._arrays[number]

    def _array(self, number: Any, template: Any) -> Any:
        meta = self._need(number)
        if self._arrays is not None:
            return template if self._in_place and template is not ABSENT else self._arrays[number]
        path = self._path()
        self._survey.paths.setdefault(number, path)
        if template is ABSENT:
            return None
        if isinstance(template, np.generic) or not (hasattr(template, "dtype") and hasattr(template, "shape")):
            self._mismatch("type", _name(template), f"an array of {meta.dtype} {meta.shape}")
        if template.dtype != meta.dtype:
            self._mismatch("dtype", template.dtype, meta.dtype)
        if tuple(template.shape) != meta.shape:
            self._mismatch("shape", tuple(template.shape), meta.shape)
        if self._in_place:
            self._claim(number, template, path)
        return None

    def _claim(self, number: int, template: Any, path: str) -> None:
        """Note that a template's array is to be filled with array `number`."""
        if not isinstance(template, np.ndarray):
            self._mismatch("type", _name(template), "an array, which can only be filled into a numpy array")
        if not template.flags.writeable:
            self._mismatch("writability", "a read-only array", "contents to be filled in")
        filled, _ = self._filled.setdefault(id(template), (number, template))
        if filled != number:
            other = self._survey.paths.get(filled, "?")
            self._mismatch("sharing", f"the same array here and at {other}", "different arrays")
        self._survey.destinations.setdefault(number, []).append(template)
        self._survey.paths.setdefault(number, path)

    def _scalar(self, argument: Any, template: Any) -> Any:
        name, data = argument
        if name == "str_":
            value: Any = np.str_(_str(data))
        elif name == "bytes_":
            value = np.bytes_(data)
        else:
            dtype = dtype_from_plain(name)
            if dtype.itemsize != len(data):
                _damaged(f"a scalar of {dtype} in {len(data)} bytes")
            value = np.frombuffer(data, dtype).copy()[0] if data else np.zeros((), dtype)[()]
        if template is not ABSENT:
            if not isinstance(template, np.generic):
                self._mismatch("type", _name(template), f"numpy.{type(value).__name__}")
            if name not in ("str_", "bytes_") and template.dtype != value.dtype:
                self._mismatch("dtype", template.dtype, value.dtype)
            if type(template) is not type(value):
                self._mismatch("type", _name(template), f"numpy.{type(value).__name__}")
        return value

    def _numbers(self, kind: int, data: NDArray[Any], template: Any) -> Any:
        """Return a list or tuple of ints or floats."""
        if kind not in (ix.LIST, ix.TUPLE) or data.ndim != 1:
            _damaged("a run of numbers of an unknown kind")
        if template is not ABSENT:
            self._check_numbers(data, template)
        if self._arrays is None and not (self._frames and self._frames[-1].awaits_key):
            return None
        if kind == ix.TUPLE and len(data) <= PIECE_ELEMENTS and template is ABSENT:
            return tuple(data.tolist())
        values: list[Any] = []
        for start in range(0, len(data), PIECE_ELEMENTS):
            values.extend(data[start : start + PIECE_ELEMENTS].tolist())
            self._pacer.pause()
        if template is ABSENT:
            return tuple(values) if kind == ix.TUPLE else values
        reduction = find_reduction(template)
        return reduction.from_state(values) if reduction is not None else self._close_like(template, values)

    def _check_numbers(self, data: NDArray[Any], template: Any) -> None:
        kind = int if data.dtype.kind == "i" else float
        reduction = find_reduction(template)
        items = reduction.to_state(template) if reduction is not None and reduction.is_transparent else template
        if type(items) not in _SEQUENCES:
            self._mismatch("type", _name(template), f"a list of {kind.__name__}s")
        if type(items) is deque:
            return
        if len(items) != len(data):
            self._mismatch("length", f"{len(items)} items", f"{len(data)}")  # type: ignore[arg-type]
        for position, item in enumerate(items):  # type: ignore[arg-type]
            if type(item) is not kind:
                path = join_path([*self._keys(), position])
                raise StateMismatchError(path, "type", _name(item), kind.__name__)

    # --- errors -------------------------------------------------------------------------------------------------------

    def _keys(self) -> list[Any]:
        return [frame.key for frame in self._frames if frame.code != ix.OBJECT and not frame.awaits_key]

    def _path(self) -> str:
        return join_path(self._keys())

    def _mismatch(self, field_: str, expected: object, found: object) -> NoReturn:
        raise StateMismatchError(self._path(), field_, expected, found)

    def _refuse_selection(self) -> NoReturn:
        message = "nothing in the state matches the selection"
        raise CheckpointKeyError(message, key=self._selection)


_OPEN: Final = object()


def _child_of(template: Any, key: Any) -> Any:
    if template is ABSENT or type(template) in (deque, *_SETS):
        return ABSENT
    with contextlib.suppress(KeyError, IndexError):
        return template[key]
    return ABSENT


def _is_same_type(wanted: Reduction, name: str) -> bool:
    """Whether a template's type is the saved one, though its module may have another name by now (``__main__``, say)."""
    return wanted.name == name or wanted.name.rpartition(".")[2] == name.rpartition(".")[2]


def _number_dtype(name: str) -> np.dtype[Any]:
    if name not in ("<i8", "<f8"):
        _damaged(f"a run of numbers of {name!r}")
    return np.dtype(name)


def _str(value: Any) -> str:
    if type(value) is not str:
        _damaged(f"a name of type {type(value).__name__}")
    return value  # type: ignore[no-any-return]


def _name(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    return type(value).__qualname__


def _some(keys: Sequence[object]) -> str:
    names = [repr(key) for key in list(keys)[:8]]
    return ", ".join(names) + (", ..." if len(keys) > len(names) else "")


def _damaged(reason: str, cause: Exception | None = None) -> NoReturn:
    message = f"the index is damaged: {reason}"
    raise CorruptCheckpointError(message) from cause
