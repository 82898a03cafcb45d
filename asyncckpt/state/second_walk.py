"""Walks over a state once more, and compares it with what was captured, node by node.

1. The nodes are compared chunk by chunk as they are made, and so are the arrays that the encoder makes. No second copy
   of them is in memory.
2. Sets that are equal are encoded in the same order, whatever order they have now.
3. The first difference is an error with the path of the leaf. An element of a list of numbers, which is encoded as one
   node, is a leaf of its own.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import numpy as np

from asyncckpt.errors import StateChangedError, UnsupportedLeafError, brief
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS
from asyncckpt.state import index as ix
from asyncckpt.state.array_paths import Place, path_of, place_of_array, place_of_node
from asyncckpt.state.containers import TYPES
from asyncckpt.state.dtypes import dtype_to_plain
from asyncckpt.state.encode import REMEDY, Encoder
from asyncckpt.state.encode_leaves import TooLargeError
from asyncckpt.state.inline import INLINE_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.capture import Snapshot
    from asyncckpt.state.flat import FlatState

CONTENTS: Final = "its contents are others now"
_PART_NBYTES: Final = 1 << 20
_INLINE_LIMITS: Final = (1 << 15, 2 * INLINE_NBYTES)
"""How many nodes and bytes are looked at on the loop. A list of numbers is one node, and many if it has something else
in it now; but then the walk ends with the chunk."""


class SecondWalk(Encoder):
    """Encodes a state once more, compares it with what was captured, and keeps nothing but the arrays."""

    def __init__(self, captured: FlatState, snapshot: Snapshot, pacer: Pacer, *, is_inline: bool) -> None:
        super().__init__(captured.root, pacer, None, *(_INLINE_LIMITS if is_inline else (None, None)))
        self._captured = captured
        self._snapshot = snapshot
        self._sets = iter(captured.sets or ())
        self._chunks = 0  # how many were equal
        self.made: set[int] = set()
        """The numbers of the arrays that the encoder has made, which have been compared."""

    def compare(self, state: object) -> FlatState:
        """Walk over the state; return its arrays, whose bytes have not been compared.

        Raises:
            StateChangedError: Anything else differs from what was captured.
        """
        try:
            again = self.run(state)
        except (TooLargeError, UnsupportedLeafError) as error:
            self._compare_nodes(is_next_different=True)
            self._compare_metas(self._flat.arrays)  # the last one may have been too large
            what = "it cannot be saved now" if isinstance(error, UnsupportedLeafError) else CONTENTS
            raise self._difference(len(self._nodes), what) from error
        self._compare_metas(again.arrays)
        again.chunks = self._captured.chunks  # they are equal
        return again

    def _compare_metas(self, metas: Sequence[ArrayMeta]) -> None:
        """Compare the dtypes and shapes of the arrays that were found."""
        number = 0
        for batch in self._pacer.batches(zip(self._captured.arrays, metas, strict=False)):
            for was, now in batch:
                if was is not now and not _are_alike(was, now):
                    what = f"it was {_described(was)} and is {_described(now)} now"
                    raise changed_array(self._captured, number, while_captured(what))
                number += 1

    def _keep(self, chunk: bytes) -> None:
        chunks = self._captured.chunks
        if self._chunks < len(chunks) and chunk == chunks[self._chunks]:
            self._chunks += 1
        else:
            self._compare_nodes()
            raise self._difference(len(self._nodes), CONTENTS)

    def _ordered(self, value: Collection[object]) -> Collection[object]:
        """Return the elements of a set in the order in which they were captured, if they are equal."""
        captured = next(self._sets, ())
        elements = list(value)
        by_value: dict[object, object] = {}
        for batch in self._pacer.batches(elements):
            by_value.update(zip(batch, batch, strict=True))
        if len(captured) != len(by_value):
            return elements
        ordered: list[object] = []
        for batch in self._pacer.batches(captured):
            found = [by_value[each] for each in batch if each in by_value]
            if len(found) != len(batch):
                return elements
            ordered += found
        return ordered

    def _made_array(self, data: NDArray[Any]) -> int:
        number = self._arrays.add_made(data)
        self.made.add(number)
        self._flat.sources[number] = _NO_BYTES
        if not self._is_captured(number, data):
            self._compare_nodes(is_next_different=True)
            raise self._differing_leaf(len(self._nodes), _numbers(None, data, self._pacer), CONTENTS)
        self._check_nbytes()
        return number

    def _is_captured(self, number: int, data: NDArray[Any]) -> bool:
        """Whether an array that was made is equal to the one that was made for the capture."""
        if number not in self._captured.stable or not _are_alike(
            self._captured.arrays[number], self._flat.arrays[number]
        ):
            return False
        own = data.view(np.uint8)
        for start in range(0, len(own), _PART_NBYTES):
            part = own[start : start + _PART_NBYTES]
            views = self._snapshot.view(number, start, len(part))
            if views is None or not np.array_equal(views[0], part):
                return False
            self._pacer.pause()
        return True

    # --- what differs -------------------------------------------------------------------------------------------------

    def _captured_nodes(self, skip: int = 0) -> Iterator[ix.Node]:
        """Return the nodes that were captured, from those of the current chunk on."""
        return islice(ix.read_nodes(self._captured.chunks[self._chunks :], self._pacer), skip, None)

    def _compare_nodes(self, *, is_next_different: bool = False) -> None:
        """Compare the nodes of the current chunk one by one, and raise the error of the first that differs.

        If they are equal except that a list is not encoded as one node any more, the value that is walked over now may
        be known to differ.
        """
        nodes = self._captured_nodes()
        for number, own in enumerate(self._nodes):
            was = next(nodes, _NONE)
            if _differ(was, own):
                run = _run(own, iter(self._nodes[number + 1 :]), self._captured_array, self._pacer)
                raise self._differing_leaf(number, run, _change(was, own), is_next_different=is_next_different)

    def _differing_leaf(
        self, number: int, run: _Run | None, what: str, *, is_next_different: bool = False
    ) -> StateChangedError:
        """Return the error of a node of the current chunk, or of an element of a list that is encoded as one node."""
        nodes = self._captured_nodes(number)
        was = _run(next(nodes, _NONE), nodes, self._captured_array, self._pacer)
        if run is not None and was is not None and run.length == was.length and run.code in (was.code, None):
            position = -1
            for position, (before, now) in enumerate(zip(was.elements, run.elements, strict=False)):
                if _differ(before, now):
                    return self._difference(number, _change(before, now), position)
            if is_next_different:
                return self._difference(number, what, position + 1)
        return self._difference(number, what)

    def _difference(self, number: int, what: str, *more: int) -> StateChangedError:
        """Return the error of a node of the current chunk, or of an element below it."""
        place = place_of_node(self._captured.index(), self._nodes_cut + number)
        place = place._replace(keys=[*place.keys, *more])
        return _changed(self._captured, place, while_captured(what))

    def _captured_array(self, number: int) -> NDArray[Any] | None:
        """Return an array that was made for the capture."""
        if number not in self._captured.stable:
            return None
        meta = self._captured.arrays[number]
        views = self._snapshot.view(number, 0, meta.nbytes)
        return None if views is None else views[0].view(meta.dtype)


def while_captured(what: str) -> str:
    """Say when something changed, what, and what to do."""
    return f"while it was captured ({what}): {REMEDY}"


def changed_array(flat: FlatState, number: int, message: str) -> StateChangedError:
    """Return the error of an array; the message says when it changed, and what to do."""
    return _changed(flat, place_of_array(flat.index(), number), message)


def _changed(flat: FlatState, place: Place, message: str) -> StateChangedError:
    """Return the error of what is at a place."""
    what = "the keys changed" if place.is_key else "changed"
    hint = "; if none did, to_state() of its type returns another state at each call" if place.is_in_object else ""
    return StateChangedError(f"{what} {message}{hint}", path=path_of(place.keys, flat.root))


# --- nodes ------------------------------------------------------------------------------------------------------------

_RUNS: Final = frozenset({ix.LIST, ix.TUPLE, ix.NUMBERS, ix.NUMBERS_ARRAY})
_DESCRIBED: Final = ix.CONTAINERS | {ix.NUMBERS, ix.OBJECT}
_NONE: Final = object()
_NO_BYTES: Final = np.empty(0, np.uint8)


class _Run(NamedTuple):
    """The elements of a list or tuple, whether it was encoded as one node or as several."""

    code: int | None
    """LIST or TUPLE, if it is known."""
    length: int
    elements: Iterator[ix.Node]


def _run(
    node: ix.Node, rest: Iterator[ix.Node], array_of: Callable[[int], NDArray[Any] | None], pacer: Pacer
) -> _Run | None:
    """Return the elements of a node; None if it is no list or tuple, or if they are not there any more."""
    if type(node) is not msgpack.ExtType:
        return None
    if node.code not in _RUNS:
        return None
    argument = ix.argument_of(node)
    if node.code in (ix.LIST, ix.TUPLE):
        return _Run(node.code, argument, rest)
    if node.code == ix.NUMBERS:
        code, dtype, data = argument
        return _numbers(code, np.frombuffer(data, dtype), pacer)
    data = array_of(argument[1])
    return None if data is None else _numbers(argument[0], data, pacer)


def _numbers(code: int | None, data: NDArray[Any], pacer: Pacer) -> _Run | None:
    """Return numbers as elements; None for the bytes of a str or bytes."""
    if data.dtype.itemsize == 1:
        return None
    starts = range(0, len(data), CHUNK_ELEMENTS)
    chunks = (data[start : start + CHUNK_ELEMENTS].tolist() for start in starts)
    return _Run(code, len(data), (each for chunk in chunks for batch in pacer.batches(chunk) for each in batch))


def _differ(node: ix.Node, other: ix.Node) -> bool:
    """Whether two nodes are encoded differently."""
    return node is _NONE or ix.pack_chunk([node]) != ix.pack_chunk([other])


def _change(before: ix.Node, now: ix.Node) -> str:
    """Say how a node has changed."""
    was, is_ = _text(before), _text(now)
    return CONTENTS if was == is_ else f"it was {was} and is {is_} now"


def _text(node: ix.Node) -> str:
    """Describe a node."""
    if node is _NONE:
        return "not there"
    if type(node) is not msgpack.ExtType:
        return brief(repr(node))
    text = "another value"
    argument: Any = ix.argument_of(node) if node.code in _DESCRIBED else None
    match node.code:
        case ix.DEQUE:
            text = f"a deque of {argument[0]}"
        case code if code in ix.CONTAINERS:
            text = f"a {TYPES[code].__name__} of {argument}"
        case ix.NUMBERS:
            text = f"a {TYPES[argument[0]].__name__} of {len(argument[2]) // np.dtype(argument[1]).itemsize}"
        case ix.OBJECT:
            text = f"a {argument}"
        case ix.ARRAY | ix.FRAMEWORK_ARRAY:
            text = "an array"
    return text


def _are_alike(meta: ArrayMeta, other: ArrayMeta) -> bool:
    """Whether two arrays are saved with the same dtype and shape."""
    is_equal = meta.dtype is other.dtype or dtype_to_plain(meta.dtype) == dtype_to_plain(other.dtype)
    return is_equal and meta.shape == other.shape


def _described(meta: ArrayMeta) -> str:
    return f"an array of {meta.dtype} {meta.shape}"
