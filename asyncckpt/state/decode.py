"""Decode a state from nodes and arrays: as new objects, as objects like a template, or into a template.

1. The nodes are walked over twice by the same code. `plan` makes nothing, checks the template, and returns the arrays
   that are needed; `decode` has their contents.
2. With a template, containers have the template's types, and each leaf must have its type, dtype and shape. The
   template is changed only by `decode`, after `plan` has found no mismatch.
3. Nodes are not trusted. A wrong count, a duplicate key or an unknown code raises a `CorruptCheckpointError`. So do
   keys that would be slow to hash: those nested too deep for the stack, and those that all have one hash.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from asyncckpt.arrays.overlap import find_overlap
from asyncckpt.errors import CheckpointError, StateMismatchError, brief, nearest
from asyncckpt.state import index as ix
from asyncckpt.state.containers import MAPPING_TYPES, SEQUENCES, SETS, TYPES
from asyncckpt.state.decode_leaves import LeafDecoder
from asyncckpt.state.decode_objects import fields_of
from asyncckpt.state.decode_walk import (
    ABSENT,
    END,
    FULL,
    Frame,
    LoadPlan,
    NodeContext,
    damaged,
    text_of,
)
from asyncckpt.state.families import ORDERED_DICT, ORDERED_ITEMS
from asyncckpt.state.reduction import Attribute, Form, read_form
from asyncckpt.state.selection import Selection
from asyncckpt.state.types import find_reduction, named_reduction

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from asyncckpt.runtime.pacing import Pacer

_FAMILY: Final[dict[int, tuple[type, ...]]] = {
    ix.LIST: SEQUENCES,
    ix.TUPLE: SEQUENCES,
    ix.DEQUE: SEQUENCES,
    ix.SET: SETS,
    ix.FROZENSET: SETS,
    ix.DICT: MAPPING_TYPES,
    ix.ORDERED_DICT: MAPPING_TYPES,
}


class Decoder(LeafDecoder):
    """Decodes one state."""

    def __init__(  # noqa: PLR0913 - what is wanted of a state
        self,
        index: ix.Index,
        pacer: Pacer,
        *,
        template: object = ABSENT,
        in_place: bool = False,
        selection: Selection | None = None,
        keeps_kinds: bool = True,
    ) -> None:
        """Prepare to decode.

        Args:
            index: The nodes and the arrays' metadata.
            pacer: Paused between chunks.
            template: A state of the same structure.
            in_place: Whether to fill the template itself.
            selection: The leaves that are needed; all by default.
            keeps_kinds: Whether arrays come back as those of the frameworks that they belonged to, else as numpy's.
        """
        super().__init__(index, pacer, selection, in_place=in_place, keeps_kinds=keeps_kinds)
        self._template = template
        self._is_plain = template is ABSENT and selection is None

    @property
    def needs_plan(self) -> bool:
        """Whether `plan` must be called, because not all arrays may be needed, or not all may be usable."""
        return not self._is_plain or (self._keeps_kinds and bool(self._index.frameworks))

    def plan(self) -> LoadPlan:
        """Check the nodes against the template and the selection, and find the arrays they need.

        Raises:
            CorruptCheckpointError: The nodes are not a tree.
            StateMismatchError: The template does not fit.
            CheckpointKeyError: Nothing is selected.
        """
        self._arrays = None
        self._plan = LoadPlan()
        self._filled = {}
        self._walk()
        if not self._found_any:
            self._refuse_selection()
        overlap = find_overlap(self._filled.values(), self._pacer)
        if overlap is not None:
            other, path = overlap
            raise StateMismatchError(path, "sharing", f"memory that {other} has, too", "an array of its own")
        return self._plan

    def decode(self, arrays: Mapping[int, NDArray[Any]]) -> Any:
        """Make the state, or fill the template, from the arrays that `plan` has returned."""
        self._arrays = arrays
        self._made_arrays = {}
        self._given = set()
        self.unknown_types = {}
        return self._walk()

    # --- the walk -----------------------------------------------------------------------------------------------------

    def _walk(self) -> Any:
        self._frames = []
        self._taken = set()
        self._found_any = self._selection is None
        result = ABSENT
        is_done = False
        nodes = ix.read_nodes(self._index.chunks, self._pacer)
        try:
            for node in nodes:
                if is_done:
                    damaged("trailing nodes after the tree")
                value = self._read(node, nodes)
                # The last value of a container completes it, and that may complete its own container.
                while value is not _OPEN:
                    if not self._frames:
                        result, is_done = value, True
                        break
                    value = self._put(value)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, UnicodeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            if self.unknown_types:
                self._refuse_plain_keys(brief(error), error)
            damaged(f"at {self._path() or 'the root'}: {brief(repr(error))}", error)
        if not is_done:
            damaged("the tree is truncated")
        return result

    def _read(self, node: ix.Node, nodes: Iterator[ix.Node]) -> Any:
        """Read a node and the leaves after it. Return a complete value, or `_OPEN` if there is none yet."""
        if self._frames and self._arrays is not None and self._is_plain:
            node = self._add_leaves(self._frames[-1], node, nodes, self._arrays)
            if node is FULL:
                return self._close()
            if node is END:
                return _OPEN
        return self._enter(node)

    def _context(self) -> NodeContext:
        """Return what is known of the next node."""
        if not self._frames:
            return NodeContext(self._template, self._selection, self._arrays is not None)
        frame = self._frames[-1]
        if frame.awaits_key:
            return NodeContext(ABSENT, None, is_made=True)
        if frame.code == ix.OBJECT:
            return NodeContext(frame.template, frame.selection, frame.is_made)
        selection = frame.selection
        if selection is not None:
            # The elements of a set have no paths.
            is_set = frame.code in ix.SETS and not selection.is_whole
            selection = Selection.parse(()) if is_set else selection.below(frame.key)
        return NodeContext(_child_of(frame.template, frame.key), selection, frame.is_made)

    def _enter(self, node: ix.Node) -> Any:
        """Read a node. Return its value, or `_OPEN` if its children follow."""
        context = self._context()
        if context.selection is not None and context.selection.is_whole:
            self._found_any = True  # even if the container is empty
        if type(node) is not msgpack.ExtType:
            return self._leaf(node, context.template, context.selection)
        code = node.code
        if code == ix.OBJECT:
            return self._open_object(text_of(ix.argument_of(node)), context)
        if code in ix.CONTAINERS:
            argument = ix.argument_of(node)
            count, maxlen = argument if code == ix.DEQUE else (argument, None)
            if type(count) is not int or count < 0:
                damaged(f"a container with {brief(repr(count))} children")
            return self._open_container(code, count, maxlen, context)
        return self._leaf_ext(node, context.template, context.selection)

    def _put(self, value: Any) -> Any:
        """Put a value into its container. Return the container if it is complete, else `_OPEN`."""
        frame = self._frames[-1]
        if frame.awaits_key:
            if type(value) is Attribute and not _knows_attributes(frame):
                value = value.name
            frame.key = value
            frame.awaits_key = False
            if frame.template is not ABSENT or (self._selection is not None and len(self._frames) == 1):
                frame.keys.append(value)
                self._top_keys = frame.keys
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

    def _open_container(self, code: int, count: int, maxlen: int | None, context: NodeContext) -> Any:
        template, selection, is_made = context
        if template is not ABSENT:
            reduction = find_reduction(template)
            if reduction is not None and reduction.is_transparent:
                # Saved as plain data, wanted as a dataclass or namedtuple.
                frame = Frame(ix.OBJECT, 1, [], ABSENT, selection, is_made, reduction=reduction, target=template)
                self._push(frame)
                template = self._plain_state(reduction, template)
        owner = self._frames[-1] if self._frames and self._frames[-1].code == ix.OBJECT else None
        if template is not ABSENT:
            if owner is not None:
                template = self._fitted(owner.reduction, template, count)
            if type(template) not in _FAMILY[code]:
                self._mistyped(template, TYPES[code].__name__)
            self._check_length(template, count)
        frame = Frame(code, count, [], template, selection, is_made, maxlen=maxlen, owner=owner)
        if code in ix.MAPPINGS:
            frame.awaits_key = True
        else:
            frame.key = 0
        self._push(frame)
        return self._close() if count == 0 else _OPEN

    def _open_object(self, name: str, context: NodeContext) -> Any:
        template, selection, is_made = context
        if self._frames and self._frames[-1].code == ix.OBJECT and (form := read_form(name)) is not None:
            self._open_form(self._frames[-1], name, *form)
            return _OPEN
        reduction = named_reduction(name)
        child: Any = ABSENT
        if template is not ABSENT:
            reduction, child = self._wanted(template, name, reduction)
        elif reduction is None and is_made:
            self._note_unknown(name)
        # If the plain state tells whether the template fits, it is made even while planning.
        is_asked = self._arrays is None and template is not ABSENT and reduction is not None and reduction.differs
        frame = Frame(
            ix.OBJECT, 1, [], child, selection, is_made or bool(is_asked), reduction=reduction, target=template
        )
        frame.missing = len(self._plan.contents)
        self._push(frame)
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
            items = _selected(frame)
            if not items:
                return ABSENT
        is_fields = frame.code in ix.MAPPINGS and fields_of(frame) is not None  # fields may differ from the saved ones
        if frame.template is not ABSENT and not is_fields:
            return self._like(frame.template, items)
        return self._made(frame, items)

    def _made(self, frame: Frame, items: list[Any]) -> Any:
        count = len(items)
        if frame.code in ix.MAPPINGS:
            self._check_hashes(count, (key for key, _ in items))
        elif frame.code in ix.SETS:
            self._check_hashes(count, items)
        made = self._maker.make(TYPES[frame.code], items, frame.maxlen)
        if (frame.code in ix.MAPPINGS or frame.code in ix.SETS) and len(made) != count:
            if self.unknown_types:
                self._refuse_plain_keys(f"equal keys or elements at {self._path() or 'the root'}")
            damaged(f"equal keys or elements at {self._path() or 'the root'}")
        return made

    def _close_object(self, frame: Frame) -> Any:
        state, reduction = frame.items[0], frame.reduction
        if state is ABSENT or reduction is None:
            return state
        if frame.selection is not None and not frame.selection.is_whole and reduction not in _ORDERED:
            return state  # part of an object is plain data
        if frame.form is not None and reduction.takes_forms:
            state = Form(frame.form, state)
        if self._arrays is None and frame.target is not ABSENT:
            is_known = frame.missing == len(self._plan.contents)
            with self._fitting():
                difference = reduction.differs(frame.target, state) if reduction.differs and is_known else None
            if difference is not None:
                self._mismatch(*difference)
            return None
        return self._object(reduction, state, frame.target)

    def _refuse_plain_keys(self, reason: str, cause: Exception | None = None) -> NoReturn:
        """Refuse plain data that cannot be keys or elements, as objects of their unregistered types could."""
        message = f"{reason}: register {', '.join(self.unknown_types)} with asyncckpt.register_type"
        raise CheckpointError(message) from cause

    def _check_keys(self, frame: Frame) -> None:
        if frame.template is ABSENT or frame.selection is not None:
            return
        self._check_hashes(len(frame.keys), frame.keys)
        fields = fields_of(frame)
        if fields is not None:
            self._check_fields(fields, frame)
            return
        keys = {key for key in frame.keys if type(key) is not Attribute}
        missing = [key for key in frame.template if key not in keys and type(key) is not Attribute]
        extra = [key for key in frame.keys if key in keys and key not in frame.template]
        if missing or extra:
            parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"also has {_some(extra)}"] * bool(extra)
            expected, found = f"the keys {_some(frame.template)}", " and ".join(parts)
            if self._in_place:
                way_out = "give the state the keys of the checkpoint, or load() it and copy what is needed"
            else:
                way_out = (
                    "give the template the keys of the checkpoint, load with select= what both have, or without like="
                )
            reason = f"keys differ: the template has {expected}, and the checkpoint {found}{_nearest(missing, extra)}"
            reason += f"; {way_out}"
            raise StateMismatchError(self._path(), "keys", expected, found, reason=reason)

    def _check_hashes(self, count: int, keys: Iterable[object]) -> None:
        """Refuse keys that were chosen to have the same hash: filling a dict or set would take quadratic time."""
        if count <= _MAX_SAME_HASH:
            return
        hashes = np.empty(count, np.int64)
        at = 0
        for batch in self._pacer.batches(keys):
            hashes[at : at + len(batch)] = list(map(hash, batch))
            at += len(batch)
        hashes.sort()
        ends = np.flatnonzero(hashes[1:] != hashes[:-1])
        most = int(np.diff(ends, prepend=-1, append=count - 1).max())
        if most > _MAX_SAME_HASH:
            damaged(f"{most} keys or elements at {self._path() or 'the root'} have the same hash")


_OPEN: Final = object()
_SHOWN_KEYS: Final = 8
_COMPARED_KEYS: Final = 1000
_ORDERED: Final = (ORDERED_DICT, ORDERED_ITEMS)
_MAX_SAME_HASH: Final = 256
"""The number of keys in a container that may have the same hash. Keys that are ints or tuples can be chosen so."""


def _knows_attributes(frame: Frame) -> bool:
    """Whether a mapping is the state of an object that distinguishes attributes from other keys."""
    owner = frame.owner
    if owner is None or owner.reduction is None:
        return False
    is_whole = frame.selection is None or frame.selection.is_whole
    return owner.reduction in _ORDERED or (is_whole and owner.reduction.fields is not None)


def _selected(frame: Frame) -> list[Any]:
    """Return the selected items of a container; an empty list if there are none."""
    if frame.code in ix.MAPPINGS:
        return [pair for pair in frame.items if pair[1] is not ABSENT]
    if frame.code in (ix.SET, ix.FROZENSET) or all(item is ABSENT for item in frame.items):
        return []
    return [None if item is ABSENT else item for item in frame.items]


def _child_of(template: Any, key: Any) -> Any:
    if template is ABSENT or type(template) in _WITHOUT_KEYS:
        return ABSENT
    try:
        return template[key]
    except (KeyError, IndexError):
        return ABSENT


_WITHOUT_KEYS: Final = frozenset({deque, *SETS})


def _nearest(missing: Sequence[object], extra: Sequence[object]) -> str:
    """Suggest keys of the checkpoint that are spelled like missing ones."""
    pairs = [
        f"{brief(repr(close))} for {brief(repr(key))}"
        for key in missing[:_SHOWN_KEYS]
        if isinstance(key, str)
        for close in nearest(key, extra[:_COMPARED_KEYS])
    ]
    return f" (did you mean {', '.join(pairs)}?)" if pairs else ""


def _some(keys: Sequence[object]) -> str:
    names = [brief(repr(key)) for key in list(keys)[:_SHOWN_KEYS]]
    return ", ".join(names) + (", ..." if len(keys) > len(names) else "")
