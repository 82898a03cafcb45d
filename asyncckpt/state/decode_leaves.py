"""Decode leaves: the arguments of a node become a value, which is checked against the template.

1. Nodes are not trusted: an impossible one raises a `CorruptCheckpointError`.
2. While planning, arrays are recorded as needed. They have no contents yet, so leaves that consist of them are empty.
"""

from __future__ import annotations

import reprlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from asyncckpt.arrays.adapters import ArrayKind, find_adapter, find_framework, framework_of
from asyncckpt.errors import (
    CheckpointKeyError,
    StateMismatchError,
    UnsupportedFormatError,
    UnsupportedLeafError,
    brief,
)
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS
from asyncckpt.state import index as ix
from asyncckpt.state.containers import SEQUENCES
from asyncckpt.state.decode_objects import ObjectDecoder
from asyncckpt.state.decode_walk import ABSENT, END, FULL, Frame, damaged, text_of, type_name
from asyncckpt.state.dtypes import dtype_from_plain
from asyncckpt.state.selection import join_path
from asyncckpt.state.types import find_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping

    from numpy.typing import NDArray

    from asyncckpt.arrays.adapters import ArrayAdapter, ArrayType, Framework
    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.state.selection import Selection


class LeafDecoder(ObjectDecoder):
    """Decodes leaves."""

    def _add_leaves(
        self, frame: Frame, node: ix.Node, nodes: Iterator[ix.Node], arrays: Mapping[int, NDArray[Any]]
    ) -> ix.Node:
        """Add consecutive leaves to their container, if only their values matter. This is the fast path of most nodes.

        Returns:
            The first node that is not such a leaf, `FULL` if the container is complete, or `END`.
        """
        is_mapping = frame.code in ix.MAPPINGS
        while frame.code != ix.OBJECT:
            value = node
            if type(node) is msgpack.ExtType:
                if node.code == ix.FRAMEWORK_ARRAY and not frame.awaits_key:
                    value = self._framework_array(ix.argument_of(node), ABSENT)
                else:
                    number = ix.argument_of(node) if node.code == ix.ARRAY else None
                    if type(number) is not int or number not in arrays:
                        return node
                    value = arrays[number]
            elif type(node) not in _PLAIN:
                return node
            if frame.awaits_key:
                frame.key, frame.awaits_key = value, False
            else:
                frame.items.append((frame.key, value) if is_mapping else value)
                frame.left -= 1
                if not frame.left:
                    return FULL
                if is_mapping:
                    frame.awaits_key = True
                else:
                    frame.key += 1
            node = next(nodes, END)
            if node is END:
                break
        return node

    def _leaf(self, value: Any, template: Any, selection: Selection | None) -> Any:
        if selection is not None and not self._is_selected(selection):
            return ABSENT
        if type(value) not in _PLAIN:
            damaged(f"unexpected node of type {type(value).__name__}")
        if template is not ABSENT and type(template) is not type(value) and not self._is_scalar(template, type(value)):
            self._mistyped(template, type(value).__name__)
        return value

    def _is_selected(self, selection: Selection) -> bool:
        if selection.is_whole:
            self._found_any = True
            return True
        return False

    def _leaf_ext(self, node: msgpack.ExtType, template: Any, selection: Selection | None) -> Any:
        if selection is not None and not self._is_selected(selection):
            return self._some_numbers(node, selection) if node.code in _NUMBER_RUNS else ABSENT
        if node.code == ix.INTEGER:
            return self._leaf(int.from_bytes(node.data, "little", signed=True), template, None)
        read = _LEAF_READERS.get(node.code)
        if read is None:
            damaged(f"unknown node code {node.code}")
        return getattr(self, read)(ix.argument_of(node), template)

    def _complex(self, argument: Any, template: Any) -> Any:
        return self._leaf(complex(*argument), template, None)

    def _bytes(self, number: Any, template: Any) -> Any:
        return self._leaf(self._contents(number).tobytes(), template, None)

    def _string(self, number: Any, template: Any) -> Any:
        return self._leaf(self._contents(number).tobytes().decode("utf-8", "surrogatepass"), template, None)

    def _inline_numbers(self, argument: Any, template: Any) -> Any:
        kind, dtype, data = argument
        return self._numbers(kind, np.frombuffer(data, _number_dtype(dtype)), template)

    def _array_numbers(self, argument: Any, template: Any) -> Any:
        kind, number = argument
        meta = self._require_once(number)
        _number_dtype(meta.dtype.str)
        if self._arrays is None:
            self._plan.contents.add(number)
            return self._numbers(kind, np.empty(meta.shape, meta.dtype), template)
        return self._numbers(kind, self._arrays[number], template)

    def _meta(self, number: Any) -> ArrayMeta:
        if type(number) is not int or not 0 <= number < len(self._index.arrays):
            damaged(f"a node refers to array {reprlib.repr(number)}, and there are {len(self._index.arrays)} arrays")
        if number in self._index.boxes:
            damaged(f"a node refers to array {number}, which is a part of another array")
        return self._index.arrays[number]

    def _require(self, number: Any) -> ArrayMeta:
        meta = self._meta(number)
        if self._arrays is None:
            self._plan.arrays.add(number)
        return meta

    def _require_once(self, number: Any) -> ArrayMeta:
        """Require an array that is the contents of a leaf. No two leaves may have the same contents."""
        meta = self._require(number)
        if number in self._taken:
            damaged(f"array {number} is the contents of two leaves")
        self._taken.add(number)
        return meta

    def _contents(self, number: Any) -> NDArray[Any]:
        """Return the bytes of a long leaf; none of them while planning."""
        meta = self._require_once(number)
        if meta.dtype != np.uint8:
            damaged(f"array {number} of {meta.dtype} should hold bytes")
        if self._arrays is None:
            self._plan.contents.add(number)
            return np.empty(0, np.uint8)
        return self._arrays[number]

    def _array(self, number: Any, template: Any, kind: ArrayKind | None = None) -> Any:
        meta = self._require(number)
        if self._arrays is not None:
            return self._made_array(number, template, kind)
        if template is ABSENT:
            if kind is not None:
                self._framework(kind, meta.dtype)
            return None
        path = self._path()
        self._plan.paths.setdefault(number, path)
        if self._is_number(meta, template, kind):
            return None
        adapter = find_adapter(type(template))
        self._check_array(meta, template, kind, adapter)
        if self._in_place:
            self._target(number, template, path, adapter, meta.dtype)
        return None

    def _check_array(
        self, meta: ArrayMeta, template: Any, kind: ArrayKind | None, adapter: ArrayAdapter | None
    ) -> None:
        """Compare an array with that of the template, whose framework need not be the one that it was saved from."""
        found: Any = template
        wanted: ArrayKind | None = None
        is_array = adapter is not None
        if adapter is not None and not isinstance(template, np.ndarray):
            found = self._wanted_array(template, adapter)
            wanted = found.kind
        elif not isinstance(template, (np.ndarray, np.generic)):  # what says its dtype and shape can be compared with
            if self._advice(template) is not None:
                self._mistyped(template, f"an array of {meta.dtype} {meta.shape}")
            is_array = hasattr(found, "dtype") and hasattr(found, "shape")
            if kind is not None:
                self._framework(kind, meta.dtype)
        if not is_array:
            self._mistyped(template, f"an array of {meta.dtype} {meta.shape}")
        saved = "" if kind is None else kind.dtype
        if wanted is not None and wanted.dtype != saved:  # the bytes have the same dtype, and another meaning
            self._mismatch("dtype", wanted.dtype or found.dtype, saved or meta.dtype)
        if found.dtype != (meta.dtype if wanted is None else meta.dtype.newbyteorder("=")):
            self._mismatch("dtype", found.dtype, meta.dtype)
        if tuple(found.shape) != meta.shape:
            self._mismatch("shape", tuple(found.shape), meta.shape)

    def _is_number(self, meta: ArrayMeta, template: Any, kind: ArrayKind | None) -> bool:
        """Whether an array is what a number of the template may become in a computation."""
        if kind is None or type(template) not in _NUMBERS:
            return False
        framework = self._framework(kind, meta.dtype)
        fits = meta.shape == () and meta.dtype.kind in _NUMBERS[type(template)]
        return framework is not None and framework.has_numbers and fits

    def _is_scalar(self, template: Any, kind: type) -> bool:
        """Whether an array of the template is what a number of this type may become in a computation."""
        framework = framework_of(type(template)) if kind in _NUMBERS else None
        adapter = find_adapter(type(template))
        if framework is None or adapter is None or not framework.has_numbers:
            return False
        wanted = self._wanted_array(template, adapter)
        return wanted.shape == () and wanted.dtype.kind in _NUMBERS[kind]

    def _framework_array(self, argument: Any, template: Any) -> Any:
        number, *found = argument
        kind = self._kinds.get(tuple(found))
        if kind is None:
            if tuple(map(type, found)) != (str, str, int):
                damaged(f"the kind of array {reprlib.repr(number)} is {reprlib.repr(argument)}")
            kind = self._kinds[tuple(found)] = ArrayKind(*found)
        return self._array(number, template, kind)

    def _framework(self, kind: ArrayKind, dtype: np.dtype[Any]) -> Framework | None:
        """Return the framework of an array, which has such arrays; None if they are wanted as numpy's.

        Raises:
            UnsupportedFormatError: The program has not imported the framework, or cannot have such arrays.
            CorruptCheckpointError: The framework has no such arrays.
        """
        if not self._keeps_kinds:
            return None
        found = self._frameworks.get((kind, dtype))
        if found is not None:
            return found
        path = self._path() or "the root"
        found = find_framework(kind.framework)
        if found is None:
            message = (
                f"{path} is an array of {brief(kind.framework)}, which this program has not imported: import it before"
                ' the load, or load with arrays="numpy"'
            )
            raise UnsupportedFormatError(message)
        try:
            found.check(kind, dtype)
        except UnsupportedFormatError as error:
            raise UnsupportedFormatError(f"{path}: {error}") from error
        self._frameworks[kind, dtype] = found
        return found

    def _made_array(self, number: int, template: Any, kind: ArrayKind | None) -> Any:
        """Return an array with the contents that were read: one object in all places that want it in the same way."""
        assert self._arrays is not None  # noqa: S101 - they have been read
        data = self._arrays[number]
        adapter = None if template is ABSENT else find_adapter(type(template))
        if self._in_place and adapter is not None and id(template) in self._filled:
            return template
        key: Hashable = (number, None)
        make: Callable[[NDArray[Any]], Any] | None = None
        if adapter is not None and not isinstance(template, np.ndarray):
            key = (number, type(template), adapter.wanted(template).place)
            make = partial(adapter.like, template, kind=kind)
        elif adapter is None and kind is not None and (framework := self._framework(kind, data.dtype)) is not None:
            key = (number, kind)
            make = partial(framework.restored, kind)
        made = self._made_arrays.get(key)
        if made is None:
            if number in self._given:
                data = data.copy()  # arrays of several kinds must not share memory
            self._given.add(number)
            made = self._made_arrays[key] = data if make is None else make(data)
        return made

    def _wanted_array(self, template: Any, adapter: ArrayAdapter) -> ArrayType:
        """Return what an array of the template asks for."""
        try:
            return adapter.wanted(template)
        except UnsupportedLeafError as error:
            reason = f"the template's array cannot be used: {str(error).removeprefix('the root: ')}"
            raise StateMismatchError(self._path(), "type", type_name(template), "an array", reason=reason) from error

    def _scalar(self, argument: Any, template: Any) -> Any:
        name, data = argument
        if name == "str_":
            value: Any = np.str_(text_of(data))
        elif name == "bytes_":
            if type(data) is not bytes:  # np.bytes_(5) is five zeros
                damaged(f"the value of a bytes_ is a {type(data).__name__}")
            value = np.bytes_(data)
        else:
            dtype = dtype_from_plain(name)
            is_foreign = dtype.subdtype is not None or dtype.kind in "US"  # which are written as str_ and bytes_
            if is_foreign or type(data) is not bytes or dtype.itemsize != len(data):
                damaged(f"a scalar of {dtype} in {reprlib.repr(data)}")
            value = np.frombuffer(bytearray(data), dtype)[0] if data else np.zeros((), dtype)[()]
        if template is not ABSENT:
            if not isinstance(template, np.generic):
                self._mistyped(template, f"numpy.{type(value).__name__}")
            if name in ("str_", "bytes_"):  # their dtypes differ with their lengths
                if type(template) is not type(value):
                    self._mistyped(template, f"numpy.{type(value).__name__}")
            elif template.dtype != value.dtype:
                self._mismatch("dtype", template.dtype, value.dtype)
        return value

    def _numbers(self, kind: int, data: NDArray[Any], template: Any) -> Any:
        """Return a list or tuple of ints or floats."""
        if kind not in (ix.LIST, ix.TUPLE) or data.ndim != 1:
            damaged("a run of numbers that is not a list or tuple of one dimension")
        reduction = None
        if template is not ABSENT:
            reduction = find_reduction(template)
            if reduction is None:
                owner = self._frames[-1] if self._frames and self._frames[-1].code == ix.OBJECT else None
                template = self._fitted(None if owner is None else owner.reduction, template, len(data))
            elif reduction.fields is not None:  # saved as plain data, wanted as a namedtuple
                template = self._fitted(reduction, self._plain_state(reduction, template), len(data))
            self._check_numbers(data, template)
        if self._arrays is None and not (self._frames and (self._frames[-1].awaits_key or self._frames[-1].is_made)):
            return None
        values: list[Any] = []
        self._maker.expect(len(data))
        for start in range(0, len(data), CHUNK_ELEMENTS):
            values.extend(data[start : start + CHUNK_ELEMENTS].tolist())
            self._pacer.pause()
        if template is ABSENT:
            return self._maker.make(tuple if kind == ix.TUPLE else list, values)
        return self._like(template, values) if reduction is None else self._object(reduction, values)

    def _some_numbers(self, node: msgpack.ExtType, selection: Selection) -> Any:
        """Return a run of numbers of which only some are selected, with None for the others."""
        argument = ix.argument_of(node)
        if node.code == ix.NUMBERS:
            kind, dtype, content = argument
            data = np.frombuffer(content, _number_dtype(dtype))
            positions = selection.positions(len(data))
        else:
            kind, number = argument
            meta = self._meta(number)
            if len(meta.shape) != 1:
                damaged("a run of numbers with several dimensions")
            positions = selection.positions(meta.shape[0])
            if positions:
                self._require_once(number)
                self._plan.contents.add(number)
            data = self._arrays[number] if positions and self._arrays is not None else np.zeros(meta.shape, meta.dtype)
        if not positions:
            return ABSENT
        self._found_any = True
        values = [None] * len(data)
        for position in positions:
            values[position] = data[position].item()
        return tuple(values) if kind == ix.TUPLE else values

    def _check_length(self, template: Any, count: int) -> None:
        if type(template) in (list, tuple) and len(template) != count:
            self._mismatch("length", f"{len(template)} items", f"{count}")
        if type(template) is deque and template.maxlen is not None and count > template.maxlen:
            self._mismatch("length", f"room for {template.maxlen} items", f"{count}")

    def _check_numbers(self, data: NDArray[Any], template: Any) -> None:
        kind = int if data.dtype.kind == "i" else float
        items = template
        if type(items) not in SEQUENCES:
            self._mistyped(template, f"a list of {kind.__name__}s")
        self._check_length(items, len(data))
        if type(items) is deque:
            return
        for position, item in enumerate(items):
            if type(item) is not kind and not self._is_scalar(item, kind):
                path = join_path([*self._keys(), position])
                raise StateMismatchError(path, "type", type_name(item), kind.__name__)

    def _like(self, template: Any, items: list[Any]) -> Any:
        """Make a container of the type of the template, or put the items into the template."""
        if self._in_place:
            return self._maker.put_into(template, items)
        return self._maker.make(type(template), items, getattr(template, "maxlen", None))

    # --- errors -------------------------------------------------------------------------------------------------------

    def _refuse_selection(self) -> NoReturn:
        patterns = self._selection.patterns if self._selection is not None else ()
        known = [join_path([key]) for key in self._top_keys[:20]]
        message = (
            f"nothing in the state matches {', '.join(map(repr, patterns))}; its top-level keys are {', '.join(known)}"
        )
        raise CheckpointKeyError(message, key=patterns[0] if len(patterns) == 1 else patterns, known=known)


_PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_NUMBERS: Final[dict[type, str]] = {bool: "b", int: "iu", float: "f", complex: "c"}
"""The kinds of dtypes that numbers have as arrays."""
_NUMBER_RUNS: Final = frozenset({ix.NUMBERS, ix.NUMBERS_ARRAY})
_LEAF_READERS: Final[Mapping[int, str]] = {
    ix.ARRAY: "_array",
    ix.FRAMEWORK_ARRAY: "_framework_array",
    ix.SCALAR: "_scalar",
    ix.COMPLEX: "_complex",
    ix.BYTES: "_bytes",
    ix.STRING: "_string",
    ix.NUMBERS: "_inline_numbers",
    ix.NUMBERS_ARRAY: "_array_numbers",
}
"""For each code of a leaf, the method that takes its arguments and the template."""


def _number_dtype(name: str) -> np.dtype[Any]:
    if name not in ("<i8", "<f8"):
        damaged(f"a run of numbers of dtype {name!r}")
    return np.dtype(name)
