"""Encode a state: walk over its tree, and return encoded nodes and a list of arrays.

1. The walk is iterative, so deep states need no recursion. Paths are only joined for error messages.
2. A container that changes during the walk raises an error, so a snapshot is never torn.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.arrays.adapters import find_adapter
from asyncckpt.errors import StateChangedError, UnsupportedLeafError
from asyncckpt.state import index as ix
from asyncckpt.state.containers import SETS
from asyncckpt.state.encode_leaves import CONTAINER_CODES, SHORT_TEXT, Frame, LeafEncoder, TooLargeError, advice
from asyncckpt.state.families import ORDERED_DICT
from asyncckpt.state.reduction import Form, Reduction
from asyncckpt.state.types import ALIASED_SCALARS, STRING_ARRAY, find_reduction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sized

    from numpy.typing import NDArray

    from asyncckpt.arrays.device import Moment
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.flat import FlatState

MAX_KEY_DEPTH: Final = 200
"""How deep containers may be nested in a key or an element of a set: hashing them recurses as deep."""
REMEDY: Final = (
    "no task or thread may change the state until save() returns; use asyncckpt.Cut to let all tasks that take part"
    " rest while it is captured"
)
_NUMBERS_MIN: Final = 16  # shorter lists are not worth a second look


def flatten(  # noqa: PLR0913 - each is an independent wish
    state: object,
    *,
    root: str = "",
    pacer: Pacer,
    moment: Moment | None = None,
    max_nodes: int | None = None,
    max_nbytes: int | None = None,
    keeps_sets: bool = False,
) -> FlatState:
    """Encode the tree of `state` and list its arrays.

    Args:
        state: Nested containers of leaves.
        root: The path of the state in error messages.
        pacer: Paused between chunks.
        moment: When the program called, if that was in another thread.
        max_nodes: Give up beyond this many nodes.
        max_nbytes: Give up beyond this many bytes of nodes and arrays.
        keeps_sets: Whether to keep the order of sets, with which another walk can be compared.

    Raises:
        UnsupportedLeafError: A value cannot be saved, or the state contains itself; names the path.
        StateChangedError: A container changed during the walk.
        TooLargeError: A limit was passed.
    """
    encoder = Encoder(root, pacer, moment, max_nodes, max_nbytes)
    return encoder.run(state, sets=[] if keeps_sets else None)


class Encoder(LeafEncoder):
    """Encodes one state."""

    def run(self, state: object, sets: list[list[object]] | None = None) -> FlatState:
        """Walk over a state; `sets` gets the elements of each set, in order, if it is given."""
        self._flat.sets = sets
        self._enter(state)
        while self._stack:
            frame = self._stack[-1]
            try:
                child = next(frame.children, _END)
            except StateChangedError:
                raise
            except RuntimeError as error:  # "dictionary changed size during iteration", and the like
                message = f"changed while it was captured ({error}): {REMEDY}"
                raise StateChangedError(message, path=self._path(1)) from error
            if child is _END:
                self._stack.pop()
                self._open.discard(id(frame.container))
            else:
                self._enter(child)
        self._cut()
        return self._flat

    def _enter(self, value: object) -> None:
        """Add the node of `value`. If it has children, they are walked next."""
        if self._add_leaf(value):
            return
        kind = type(value)
        if kind is OrderedDict and vars(value):
            self._add_reduced(value, ORDERED_DICT)
        elif kind in CONTAINER_CODES:
            self._add_container(value)
        elif kind is np.ndarray:
            self._add_string_array(value)  # type: ignore[arg-type]
        elif isinstance(value, np.generic) and kind is value.dtype.type and kind not in ALIASED_SCALARS:
            self._nodes.append(self._scalar(value))
        elif (adapter := find_adapter(kind)) is not None:
            self._add_adapted(value, adapter)
        else:
            self._add_object(value)
        if len(self._nodes) >= self._due:
            self._check_progress()

    # --- containers ---------------------------------------------------------------------------------------------------

    def _add_container(self, value: Any) -> None:
        code = CONTAINER_CODES[type(value)]
        count = len(value)
        if code in (ix.LIST, ix.TUPLE) and count >= _NUMBERS_MIN and self._add_numbers(code, value):
            return
        if self._max_nodes is not None and count > self._max_nodes:
            raise TooLargeError  # without walking it first
        self._nodes.append(ix.ext(code, (count, value.maxlen) if code == ix.DEQUE else count))
        self._push(value, keyed=True)
        frame = self._stack[-1]
        if code in ix.MAPPINGS:
            frame.children = self._pairs(frame, value, count)
        else:
            frame.children = self._items(frame, self._ordered(value) if code in ix.SETS else value, count)

    def _ordered(self, value: Collection[object]) -> Collection[object]:
        """Return the elements of a set in the order in which they are to be encoded."""
        if self._flat.sets is None:
            return value
        elements = list(value)
        self._flat.sets.append(elements)
        return elements

    def _push(self, container: object, *, keyed: bool) -> None:
        if id(container) in self._open:
            message = "the state contains itself: a cycle cannot be saved"
            raise self._refuse(message)
        self._open.add(id(container))
        in_key, depth = self._is_in_key(), self._key_depth()
        is_hashed = in_key or depth > 0 or type(container) in SETS
        frame = Frame(iter(()), container, in_key=in_key, key_depth=depth, is_hashed=is_hashed, has_keys=keyed)
        self._stack.append(frame)

    def _key_depth(self) -> int:
        """Return how deep the current container is nested in a key or in an element of a set."""
        if not self._stack:
            return 0
        parent = self._stack[-1]
        if not (parent.key_depth or self._is_in_key() or type(parent.container) in SETS):
            return 0
        if parent.key_depth == MAX_KEY_DEPTH:
            raise self._refuse(f"a key or an element of a set is nested more than {MAX_KEY_DEPTH} deep")
        return parent.key_depth + 1

    def _pairs(self, frame: Frame, value: dict[object, object], count: int) -> Iterator[object]:
        found = 0
        for key, child in value.items():
            found += 1
            if found > count:
                break
            frame.key = key
            if type(key) is str and len(key) <= SHORT_TEXT:  # a fast path for most keys
                self._nodes.append(key)
                if len(self._nodes) >= self._due:
                    self._check_progress()
            else:
                frame.at_key = True
                if not self._add_leaf(key):
                    yield key
                frame.at_key = False
            if not self._add_leaf(child):
                yield child
        _check_length(found, count, value)

    def _items(self, frame: Frame, value: Collection[object], count: int) -> Iterator[object]:
        position = 0
        for child in value:
            frame.key = position
            position += 1
            if position > count:
                break
            if not self._add_leaf(child):
                yield child
        _check_length(position, count, value)

    def _add_string_array(self, value: NDArray[Any]) -> None:
        if value.dtype != np.dtypes.StringDType():
            message = f"an array of {value.dtype!r} cannot be saved: only StringDType() without options can"
            raise self._refuse(message)
        self._add_reduced(value, STRING_ARRAY)

    # --- objects ------------------------------------------------------------------------------------------------------

    def _add_object(self, value: object) -> None:
        reduction = find_reduction(value)
        if reduction is None:
            raise self._refuse(advice(value))
        self._add_reduced(value, reduction)

    def _add_reduced(self, value: object, reduction: Reduction) -> None:
        try:
            state = reduction.to_state(value)
        except UnsupportedLeafError as error:
            self._raise_here(error)
        except Exception as error:
            error.add_note(f"while asyncckpt asked {reduction.name} for its state, at {self._path() or 'the root'}")
            raise
        self._nodes.append(_object_node(reduction.name))
        if type(state) is Form:
            self._nodes.append(_object_node(state.text))
            state = state.state
        self._push(value, keyed=False)
        self._stack[-1].children = iter((state,))
        self._kept.append(state)  # the ids of arrays in it must not be reused during the walk


_END: Final = object()


@lru_cache(maxsize=256)  # few types may have many objects
def _object_node(name: str) -> ix.Node:
    return ix.ext(ix.OBJECT, name)


def _check_length(found: int, count: int, container: Sized) -> None:
    if found != count:
        message = f"its length was {count} and is {len(container)} now"
        raise RuntimeError(message)
