"""Reductions of Enums, namedtuples, dataclasses, and OrderedDicts with attributes.

1. No part of an object is silently dropped. Attributes are saved with its plain state, or the object is refused.
2. A state is matched by names, and by position only if its names are not known. So fields may be reordered, and may be
   added with a default. An object is made whole or not at all.
3. As with copy and pickle, neither __init__ nor __post_init__ is called: fields and attributes get the saved values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import inspect
import pathlib
import types
from collections import OrderedDict
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.state.reduction import (
    MEMBER,
    NAMEDTUPLE,
    UNSET,
    Attribute,
    Fields,
    Form,
    Reduction,
    misfit,
    read_form,
    spell_form,
    type_name_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable

_MISSING: Final = object()
_NO_STATE: Final = frozenset({"__orig_class__"})
"""Attributes that the typing module adds: `Box[int](1)` remembers its alias."""
_NUMBERS_AND_TEXTS: Final = (tuple, str, bytes, int, float, complex, frozenset, np.generic)
_VALUES: Final = (*_NUMBERS_AND_TEXTS, enum.Enum, pathlib.PurePath, dt.date, dt.time, dt.timedelta)
_FOUND_AGAIN: Final = frozenset(
    {type(None), bool, int, str, bytes, dt.date, dt.timedelta}
    | {type(pathlib.Path()), pathlib.PurePosixPath, pathlib.PureWindowsPath}
)
"""Immutable types whose values are equal to what is loaded; `_is_found_again` knows a few more."""


def family_reduction(cls: type) -> Reduction | None:
    """Return the reduction of a type that needs no registration, or None."""
    if callable(getattr(cls, "to_state", None)) and callable(getattr(cls, "from_state", None)):
        return _methodical(cls)
    if issubclass(cls, enum.Enum):
        return _enum(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        return _namedtuple(cls)
    if dataclasses.is_dataclass(cls):
        return dataclass_reduction(cls)
    return None


def dataclass_reduction(cls: type, static: frozenset[str] = frozenset()) -> Reduction:
    """Return the reduction of a dataclass.

    Args:
        cls: The class.
        static: The names of fields that are not saved: an object like a template gets the template's.
    """
    return _Dataclass(cls, static).reduction()


def is_value(cls: type) -> bool:
    """Whether the objects of a class are immutable values."""
    return issubclass(cls, _VALUES) or _is_frozen(cls)


def _is_frozen(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) and bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _methodical(cls: Any) -> Reduction:
    update = _ask_to_update if callable(getattr(cls, "update_state", None)) else None
    return Reduction(type_name_of(cls), cls, _ask_for_state, cls.from_state, update, is_value=is_value(cls))


def _ask_for_state(value: Any) -> object:
    return value.to_state()


def _ask_to_update(value: Any, state: object) -> None:
    value.update_state(state)


# --- Enums ------------------------------------------------------------------------------------------------------------


def _enum(cls: type[enum.Enum]) -> Reduction:
    def to_state(member: enum.Enum) -> object:
        value, name = member._value_, member._name_
        if _is_found_again(value) and _member(cls, value) is member:
            return value
        if type(name) is str and cls.__members__.get(name) is member:
            return Form(spell_form(MEMBER), name)
        message = f"{cls.__qualname__} has no member that is found by the value or by the name of {name}"
        raise UnsupportedLeafError(message, path="")

    def from_state(state: Any) -> enum.Enum:
        is_name = type(state) is Form and state.text == spell_form(MEMBER)
        plain = state.state if type(state) is Form else state
        found = cls.__members__.get(plain) if is_name else _member(cls, plain)
        # A Flag may drop unknown bits, or become an int.
        if found is None or (issubclass(cls, enum.Flag) and not is_name and found._value_ != plain):
            what = f"named {plain}" if is_name else f"of the value {plain!r:.80}"
            reason = f"{cls.__qualname__} has no member {what}, which the checkpoint has"
            way = "give the Enum that member again (an alias will do)"
            misfit(cls, reason, way, expected=list(cls.__members__), found=plain)
        return found

    def differs(_: enum.Enum, state: Any) -> None:
        from_state(state)  # raises the error

    name = type_name_of(cls)
    return Reduction(name, cls, to_state, from_state, differs=differs, is_value=True, takes_forms=True)


def _member(cls: type[enum.Enum], value: object) -> enum.Enum | None:
    try:
        found = cls(value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if isinstance(found, cls) else None


def _is_found_again(value: Any) -> bool:
    """Whether a member is found by its loaded value, which is another object, and is readable as plain data."""
    kind = type(value)
    if kind in _FOUND_AGAIN:
        return True
    if kind is tuple or kind is frozenset:
        return all(map(_is_found_again, value))
    if kind is dt.datetime or kind is dt.time:
        return type(value.tzinfo) in (type(None), dt.timezone)
    return kind in (float, complex) and value == value  # noqa: PLR0124 - NaN does not


# --- namedtuples ------------------------------------------------------------------------------------------------------


def _namedtuple(cls: Any) -> Reduction:
    names = tuple(cls._fields)
    given = getattr(cls, "_field_defaults", {})
    fields = Fields(cls, {name: partial(given.__getitem__, name) if name in given else None for name in names})
    text = spell_form(NAMEDTUPLE, names)
    has_dict = bool(cls.__dictoffset__)  # a tuple has no slots

    def to_state(value: Any) -> object:
        if has_dict and value.__dict__:
            refuse_attributes(value, (name for name in value.__dict__ if name not in _NO_STATE), "namedtuple")
        items = tuple.__getitem__(value, slice(None))  # even if the class overrides __iter__
        if len(items) != len(names):
            message = (
                f"{type_name_of(cls)} has {len(names)} fields, and here {len(items)} items: make it with all of them"
            )
            raise UnsupportedLeafError(message, path="")
        return Form(text, items)

    def from_state(state: Any) -> object:
        form = read_form(state.text) if type(state) is Form else None
        items = state.state if type(state) is Form else state
        if type(items) not in (tuple, list):
            reason = f"the state of a {cls.__qualname__} is a {type(items).__name__}, not a tuple"
            misfit(cls, reason, expected=names, found=items)
        if form is None or form[0] != NAMEDTUPLE:
            fields.check_count(len(items))
            found = dict(zip(names, items, strict=False))
        else:
            found = dict(zip(form[1], items, strict=True))
        return cls._make(fields.completed(found).values())

    return Reduction(type_name_of(cls), cls, to_state, from_state, is_value=True, takes_forms=True, fields=fields)


# --- dataclasses ------------------------------------------------------------------------------------------------------


class _Dataclass:
    """Saves and makes objects of a dataclass.

    A field is read from the instance's dict, or else through its slot or descriptor; never by `__getattr__`.
    """

    def __init__(self, cls: Any, static: frozenset[str]) -> None:
        self._cls = cls
        self._static = static
        self._has_dict = bool(cls.__dictoffset__)
        names = {field.name: _default_of(field) for field in dataclasses.fields(cls)}
        names |= dict.fromkeys(static, lambda: None)  # a state may lack them
        self._slots = _slots(cls, names)
        self._fields = Fields(cls, names, room=None if self._has_dict else self._slots)
        self._native = _native_base(cls)
        descriptors = {name: inspect.getattr_static(cls, name, None) for name in names}
        # Fields with a descriptor; a property without a setter computes its field from others.
        self._computed = [name for name, found in descriptors.items() if isinstance(found, property) and not found.fset]
        self._described = [
            name
            for name, found in descriptors.items()
            if hasattr(found, "__set__") and not inspect.ismemberdescriptor(found) and name not in self._computed
        ]

    def reduction(self) -> Reduction:
        cls = self._cls
        update = None if _is_frozen(cls) else self._update
        return Reduction(
            type_name_of(cls),
            cls,
            self._to_state,
            self._from_state,
            update,
            is_value=update is None,
            takes_forms=True,
            fields=self._fields,
            like=self._like if self._static else None,
        )

    def _to_state(self, value: Any) -> object:
        if self._native is not None:
            raise UnsupportedLeafError(self._refusal(), path="")
        names = self._fields.names
        own = self._own(value)
        if self._computed:
            refuse_attributes(
                value, (name for name in self._computed if name in own), "dataclass with a property of that name"
            )
        state: dict[Any, object] = {name: own[name] if name in own else _held(value, name) for name in names}
        for name in self._static:
            del state[name]
        # A field may have no value, and has none after loading then.
        unset = [name for name, entry in state.items() if entry is _MISSING]
        for name in unset:
            del state[name]
        if own.keys() != names:
            for name, entry in own.items():
                if name not in names and name not in _NO_STATE:
                    state[Attribute(name)] = entry
        for name in self._slots:
            if (entry := _held(value, name)) is not _MISSING:
                state[Attribute(name)] = entry
        return Form(spell_form(UNSET, unset), state) if unset else state

    def _from_state(self, state: Any) -> object:
        if self._native is not None:
            misfit(self._cls, self._refusal(), expected=list(self._fields.names), found=self._native)
        value: object = object.__new__(self._cls)
        self._fill(value, state)
        return value

    def _like(self, template: Any, state: Any) -> object:
        return self._from_state(self._completed(template, state))

    def _update(self, value: Any, state: Any) -> None:
        self._fill(value, self._completed(value, state))

    def _completed(self, template: Any, state: Any) -> Any:
        """Add the static fields of a template to a state that lacks them."""
        plain = state.state if type(state) is Form else state
        if not self._static or not isinstance(plain, dict):
            return state
        own = self._own(template)
        static = {name: own[name] if name in own else _held(template, name) for name in self._static - plain.keys()}
        plain = plain | {name: entry for name, entry in static.items() if entry is not _MISSING}
        return Form(state.text, plain) if type(state) is Form else plain

    def _refusal(self) -> str:
        return (
            f"{type_name_of(self._cls)} is a dataclass and also a {self._native.__name__}, whose contents are no"  # type: ignore[union-attr]
            " fields: register it with asyncckpt.register_type, with to_state= and from_state="
        )

    def _own(self, value: object) -> dict[str, object]:
        return object.__getattribute__(value, "__dict__") if self._has_dict else {}

    def _fill(self, value: Any, state: Any) -> None:
        """Fill an object with a state. Nothing is changed if the state does not fit."""
        found, attributes, unset = self._parted(state)
        complete = self._fields.completed(found, unset, attributes)
        for name, entry in complete.items():
            if name not in self._computed:
                object.__setattr__(value, name, entry)
        own = self._own(value)
        for name in self._described:
            if name in own and name in complete:  # its setter may have stored another value
                own[name] = complete[name]
        for name in unset:
            if name in self._fields.names:
                with contextlib.suppress(AttributeError):  # it has no value
                    object.__delattr__(value, name)
        for name, entry in attributes.items():
            if name in self._slots:
                object.__setattr__(value, name, entry)
            else:
                own[name] = entry
        self._forget_computed(own, attributes)

    def _parted(self, state: Any) -> tuple[dict[str, object], dict[str, object], tuple[str, ...]]:
        """Split a state into fields, attributes, and the names of fields without a value."""
        form = read_form(state.text) if type(state) is Form else None
        plain = state.state if type(state) is Form else state
        if not isinstance(plain, dict):
            reason = f"the state of a {self._cls.__qualname__} is a {type(plain).__name__}, not a dict of its fields"
            misfit(self._cls, reason, expected=list(self._fields.names), found=plain)
        found, attributes = _split(plain)
        for name in self._fields.names & attributes.keys():  # attributes that are fields now
            found[name] = attributes.pop(name)
        return found, attributes, () if form is None else form[1]

    def _forget_computed(self, own: dict[str, object], attributes: Container[str]) -> None:
        """Delete cached properties that were not saved, so that they are computed again."""
        for name in [name for name in own if name not in self._fields.names and name not in attributes]:
            if isinstance(inspect.getattr_static(self._cls, name, None), cached_property):
                del own[name]


def _default_of(field: dataclasses.Field[Any]) -> Callable[[], object] | None:
    if field.default is not dataclasses.MISSING:
        return lambda: field.default
    return None if field.default_factory is dataclasses.MISSING else field.default_factory


def _native_base(cls: type) -> type | None:
    """Return the base class that is written in C, whose contents are unknown; None if it is `object`."""
    for base in cls.__mro__:
        if type(vars(base).get("__new__")) is types.BuiltinFunctionType:
            return None if base is object else base
    return None


# --- attributes -------------------------------------------------------------------------------------------------------


def _ordered_dict_state(value: OrderedDict[Any, object]) -> object:
    state = OrderedDict(value)
    for name, entry in vars(value).items():
        state[Attribute(name)] = entry
    return state


def _ordered_dict(state: Any) -> OrderedDict[Any, object]:
    items, attributes = _split(state)
    made = OrderedDict(items)
    vars(made).update(attributes)
    return made


def _update_ordered_dict(value: dict[Any, object], state: Any) -> None:
    items, attributes = _split(state)
    for key, entry in items.items():
        value.pop(key, None)  # to take over the saved order
        value[key] = entry
    if type(value) is OrderedDict:
        vars(value).update(attributes)


ORDERED_DICT: Final = Reduction("ordered_dict", OrderedDict, _ordered_dict_state, _ordered_dict, _update_ordered_dict)
"""For OrderedDicts that have attributes only; others are containers."""
ORDERED_ITEMS: Final = ORDERED_DICT._replace(to_state=dict, from_state=lambda state: _split(state)[0])
"""For those whose template is a dict, which has no attributes."""


def _split(state: dict[Any, object]) -> tuple[dict[Any, object], dict[str, object]]:
    """Split a state into fields or items, and attributes."""
    attributes = {key.name: entry for key, entry in state.items() if type(key) is Attribute}
    return {key: entry for key, entry in state.items() if type(key) is not Attribute}, attributes


def refuse_attributes(value: object, names: Iterable[str], what: str) -> None:
    """Refuse an object whose attributes would be lost.

    Raises:
        UnsupportedLeafError: It has such an attribute.
    """
    for name in names:
        message = (
            f"the attribute {name!r} of {type_name_of(type(value))}, a {what}, would be lost: delete it, make it a"
            " field, or register the type with asyncckpt.register_type, with to_state= and from_state="
        )
        raise UnsupportedLeafError(message, path="")


def _held(value: object, name: str) -> object:
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return _MISSING


def _slots(cls: type, names: Container[str]) -> tuple[str, ...]:
    """Return the slots of a class and its bases that are not fields; private ones by their mangled names."""
    members = (name for base in cls.__mro__ for name, found in vars(base).items() if inspect.ismemberdescriptor(found))
    return tuple(name for name in dict.fromkeys(members) if name not in names)
