"""A walk over the nodes of a state: its position, what it has found so far, and errors that name the path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import numpy as np

from asyncckpt.arrays.adapters import find_adapter, framework_of
from asyncckpt.errors import CorruptCheckpointError, StateMismatchError, brief
from asyncckpt.state import index as ix
from asyncckpt.state.containers import Maker
from asyncckpt.state.encode import MAX_KEY_DEPTH
from asyncckpt.state.selection import join_path

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from numpy.typing import NDArray

    from asyncckpt.arrays.adapters import ArrayKind, Framework
    from asyncckpt.arrays.target import ArrayTarget
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.reduction import Reduction
    from asyncckpt.state.selection import Selection

ABSENT: Final = object()
"""There is no template for a node, or its value is not selected."""
FULL: Final = object()
"""A container has got its last child."""
END: Final = object()
"""There are no more nodes."""


@dataclass(slots=True, eq=False)
class LoadPlan:
    """What a load needs, found by a walk over the nodes."""

    arrays: set[int] = field(default_factory=set)
    """Numbers of the arrays that are needed."""
    contents: set[int] = field(default_factory=set)
    """Those of them that hold the contents of long bytes, strings and runs of numbers."""
    destinations: dict[int, list[ArrayTarget]] = field(default_factory=dict)
    """The arrays of the template that are to be filled, by number: several where the template shares one array."""
    paths: dict[int, str] = field(default_factory=dict)
    """The path at which each array occurs first."""


@dataclass(slots=True, eq=False)
class Frame:
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
    keys: list[Any] = field(default_factory=list)  # those read so far, if a template expects certain ones
    key_depth: int = 0  # how deep in a key, or in an element of a set
    reduction: Reduction | None = None
    target: Any = ABSENT  # the template of an object; `items` holds its plain state
    form: str | None = None  # the form of an object's state (see reduction.py)
    missing: int = 0  # how many contents of leaves were missing before the object, while planning
    owner: Frame | None = None  # the object whose plain state the container is


class NodeContext(NamedTuple):
    """What is known of a node before it is read."""

    template: Any
    selection: Selection | None
    is_made: bool
    """Whether its value is needed, and not only checked."""


class Walk:
    """The state of a walk, which the decoders of leaves, objects and containers share."""

    def __init__(
        self, index: ix.Index, pacer: Pacer, selection: Selection | None, *, in_place: bool, keeps_kinds: bool
    ) -> None:
        self._index = index
        self._pacer = pacer
        self._in_place = in_place
        self._keeps_kinds = keeps_kinds
        self._kinds: dict[tuple[Any, ...], ArrayKind] = {}  # by what the nodes say
        self._frameworks: dict[tuple[ArrayKind, np.dtype[Any]], Framework] = {}  # of arrays that they have
        self._made_arrays: dict[Hashable, Any] = {}  # by what was wanted, what was made of the arrays
        self._given: set[int] = set()  # arrays whose memory has become part of the state
        self._selection = selection
        self._arrays: Mapping[int, NDArray[Any]] | None = None  # None while planning
        self._plan = LoadPlan()
        self._filled: dict[int, tuple[int, ArrayTarget, str]] = {}  # the template's arrays: with what, and their paths
        self._taken: set[int] = set()  # arrays whose contents became leaves in this walk
        self._frames: list[Frame] = []
        self._found_any = False
        self._top_keys: list[Any] = []
        self._maker = Maker(pacer)
        self.unknown_types: dict[str, str] = {}
        """The names of types that were decoded as plain data, each with the path of its first object."""

    def _push(self, frame: Frame) -> None:
        if self._frames:
            parent = self._frames[-1]
            if parent.awaits_key or parent.key_depth or parent.code in ix.SETS:
                frame.key_depth = parent.key_depth + 1
                if frame.key_depth > MAX_KEY_DEPTH:
                    damaged(f"a key or an element of a set is nested more than {MAX_KEY_DEPTH} deep")
        self._frames.append(frame)

    def _keys(self) -> list[Any]:
        return [frame.key for frame in self._frames if frame.code != ix.OBJECT and not frame.awaits_key]

    def _path(self) -> str:
        return join_path(self._keys())

    def _mismatch(self, field_: str, expected: object, found: object) -> NoReturn:
        raise StateMismatchError(self._path(), field_, expected, found)

    def _mistyped(self, template: object, found: str) -> NoReturn:
        """Raise the error of a value of the template that has another type, and say what to do if that is known."""
        own, advice = type_name(template), self._advice(template)
        reason = f"type differs: the template has {own}, the checkpoint has {brief(found)}"
        if advice is not None:
            reason += f"; {advice}"
        raise StateMismatchError(self._path(), "type", own, found, reason=reason)

    def _advice(self, template: object) -> str | None:
        """Say what is wrong with a value of a framework that is no array which can be saved."""
        framework = framework_of(type(template))
        is_array = find_adapter(type(template)) is not None
        return None if framework is None or is_array else framework.advice(template)


def text_of(value: Any) -> str:
    """Check that a value is a string, and return it."""
    if type(value) is not str:
        damaged(f"a name is a {type(value).__name__}, not a string")
    return value


def type_name(value: object) -> str:
    """Describe a value of a template for an error message."""
    if isinstance(value, np.ndarray):
        kind = "an array" if find_adapter(type(value)) is not None else f"a {type(value).__qualname__}"
        return f"{kind} of {value.dtype} {value.shape}"
    return type(value).__qualname__


def damaged(reason: str, cause: Exception | None = None) -> NoReturn:
    """Raise the error of a damaged index."""
    message = f"the index is damaged: {reason}"
    raise CorruptCheckpointError(message) from cause
