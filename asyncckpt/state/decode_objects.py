"""Decode objects: find the reduction, check that the saved state fits it, and make or update the object."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.arrays.adapters import UnfitTargetError, find_adapter
from asyncckpt.errors import CheckpointError, StateMismatchError, UnsupportedLeafError, brief
from asyncckpt.state.containers import MAPPING_TYPES, SEQUENCES
from asyncckpt.state.decode_walk import ABSENT, Frame, Walk, damaged, type_name
from asyncckpt.state.families import ORDERED_DICT, ORDERED_ITEMS
from asyncckpt.state.reduction import (
    NAMEDTUPLE,
    Attribute,
    Fields,
    Form,
    MisfitError,
    Reduction,
    read_form,
    type_name_of,
)
from asyncckpt.state.types import ALIASED_SCALARS, STRING_ARRAY, find_reduction, named_reduction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncckpt.arrays.adapters import ArrayAdapter

_MAX_UNKNOWN_TYPES: Final = 64
"""The number of types that a warning names."""


class ObjectDecoder(Walk):
    """Makes the object that a walk has come to, or updates that of the template."""

    def _wanted(self, template: Any, name: str, saved: Reduction | None) -> tuple[Reduction | None, Any]:
        """Return the reduction for an object like the template, saved as `name`, and the template of its state."""
        if saved is ORDERED_DICT and type(template) in MAPPING_TYPES:
            made = saved if type(template) is OrderedDict else ORDERED_ITEMS
            return made, made.to_state(template)
        if saved is not None and saved.type_ in ALIASED_SCALARS and isinstance(template, np.generic):
            return saved, template
        wanted = find_reduction(template)
        if wanted is None and type(template) is np.ndarray and template.dtype.kind == "T":
            wanted = STRING_ARRAY
        if wanted is None and type(template) in (*SEQUENCES, *MAPPING_TYPES):
            return None, template  # saved as a dataclass or namedtuple, wanted as plain data
        if wanted is None or not _is_same_type(wanted, name):
            self._mistyped(template, name)
        if self._in_place and wanted is STRING_ARRAY and self._arrays is None:
            # Strings have no number of an array; one array may occur twice.
            self._target(~id(template), template, self._path(), find_adapter(np.ndarray), template.dtype)
        if self._in_place and wanted.update is None and not wanted.is_value:
            reason = (
                f"{type_name(template)} would be replaced, and whatever else holds it would keep the old one: give"
                " asyncckpt.register_type an update=, or the class a method update_state(self, state), or use"
                " load(..., like=...)"
            )
            raise StateMismatchError(self._path(), "update", type_name(template), name, reason=reason)
        return wanted, self._plain_state(wanted, template) if wanted.is_transparent else ABSENT

    def _open_form(self, frame: Frame, text: str, kind: str, names: tuple[str, ...]) -> None:
        """Set the form of an object's state, and put the template of a namedtuple into the saved order."""
        if frame.form is not None:
            damaged(f"the state of an object has two forms, {brief(frame.form)} and {brief(text)}")
        frame.form = text
        fields = None if frame.reduction is None else frame.reduction.fields
        if kind == NAMEDTUPLE and fields is not None and isinstance(frame.target, tuple):
            with self._fitting():
                fields.check(names)
            own = dict(zip(fields.names, frame.template, strict=True))
            frame.template = tuple(own.get(name, ABSENT) for name in names)

    def _note_unknown(self, name: str) -> None:
        if name not in self.unknown_types and len(self.unknown_types) < _MAX_UNKNOWN_TYPES:
            self.unknown_types[name] = self._path()

    def _check_fields(self, fields: Fields, frame: Frame) -> None:
        form = read_form(frame.owner.form) if frame.owner is not None and frame.owner.form is not None else None
        names = [key for key in frame.keys if type(key) is not Attribute]
        attributes = [key.name for key in frame.keys if type(key) is Attribute]
        names += [name for name in attributes if name in fields.names]  # attributes that are fields now
        with self._fitting():
            fields.check(
                names, () if form is None else form[1], [name for name in attributes if name not in fields.names]
            )

    def _plain_state(self, reduction: Reduction, template: Any) -> Any:
        """Return the plain state of an object of the template."""
        try:
            state = reduction.to_state(template)
        except UnsupportedLeafError as error:
            reason = f"the template's object cannot be used: {str(error).removeprefix('the root: ')}"
            raise StateMismatchError(
                self._path(), "type", type_name(template), reduction.name, reason=reason
            ) from error
        return state.state if type(state) is Form else state

    def _fitted(self, reduction: Reduction | None, items: Any, count: int) -> Any:
        """Return as many items of a template's namedtuple as were saved, if they are matched by position."""
        if reduction is None or reduction.fields is None or type(items) is not tuple or len(items) == count:
            return items
        with self._fitting():
            reduction.fields.check_count(count)
        return items[:count]

    def _object(self, reduction: Reduction, state: Any, target: Any = ABSENT) -> Any:
        """Make an object from its plain state, like the target if there is one, or update the target with it."""
        if type(state) is Form and not reduction.takes_forms:
            state = state.state
        try:
            with self._fitting():
                if target is not ABSENT and self._in_place and reduction.update is not None:
                    reduction.update(target, state)
                    return target
                if target is not ABSENT and reduction.like is not None:
                    return reduction.like(target, state)
                return reduction.from_state(state)
        except (MemoryError, StateMismatchError):
            raise
        except Exception as error:
            message = f"{self._path() or 'the root'}: {reduction.name} could not be made from its state: {brief(error)}"
            raise CheckpointError(message) from error

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """Add the path to the error of a state that does not fit its class."""
        try:
            yield
        except MisfitError as error:
            reason = brief(error)
            raise StateMismatchError(self._path(), "class", error.expected, error.found, reason=reason) from error

    def _target(
        self, number: int, template: Any, path: str, adapter: ArrayAdapter | None, dtype: np.dtype[Any]
    ) -> None:
        """Record that an array of the template will be filled with array `number`, if it is not immutable."""
        if adapter is None:
            self._mistyped(template, "an array, which can only be filled into a numpy array")
        try:
            target = adapter.target(template, dtype)
        except UnfitTargetError as error:
            self._mismatch(*error.args)
        if target is None:
            return
        filled, _, other = self._filled.setdefault(id(template), (number, target, path))
        if filled != number:
            self._mismatch("sharing", f"the same array here and at {other}", "different arrays")
        if number >= 0:
            self._plan.destinations.setdefault(number, []).append(target)


def fields_of(frame: Frame) -> Fields | None:
    """Return the fields of the dataclass or namedtuple whose plain state a container is."""
    owner = frame.owner
    return None if owner is None or owner.reduction is None else owner.reduction.fields


def _is_same_type(wanted: Reduction, name: str) -> bool:
    """Whether the type of a template is the saved one. Its module may have another name now, such as ``__main__``."""
    if wanted.name == name:
        return True
    saved, cls = named_reduction(name), wanted.type_
    if cls is None or (saved is not None and saved.type_ is not cls):
        return False
    own = cls.__qualname__ if wanted.name == type_name_of(cls) else wanted.name.rpartition(".")[2]
    return name == own or name.endswith(f".{own}")
