"""Reductions: how objects of one type are turned into plain state, and back.

A plain state may need a description, such as the names of the items of a tuple. Then it is a `Form`. The index stores
the text of a form like the name of a second type, between that of the object and the state, so that a reader that does
not know forms can still read the state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

NAMEDTUPLE: Final = "namedtuple"
"""The kind of a form with the names of the items of a tuple."""
UNSET: Final = "unset"
"""The kind of a form with the names of fields that have no value."""
MEMBER: Final = "member"
"""The kind of a form whose state is the name of a member of an Enum, not its value."""
_FORM: Final = r"(namedtuple|unset|member)\(([^()]*)\)"  # compiled by `re` on first use
_MAX_LISTED: Final = 8  # names in a message


class Form(NamedTuple):
    """A plain state with a description."""

    text: str
    state: Any


@dataclass(frozen=True, slots=True, repr=False)
class Attribute:
    """The key of an attribute in a state. It does not equal the keys of fields and items."""

    name: str

    def __repr__(self) -> str:
        """Return the name, as paths show it."""
        return self.name


class MisfitError(Exception):
    """A state does not fit its class, which has changed since the state was saved.

    Attributes:
        expected: What the class has.
        found: What the state has.
    """

    def __init__(self, message: str, *, expected: object, found: object) -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


def misfit(cls: type, reason: str, *ways: str, expected: object, found: object) -> NoReturn:
    """Raise the error of a state that does not fit a class.

    Raises:
        MisfitError: Always; it says what can be done.
    """
    name = cls.__qualname__
    every = [
        *ways,
        f"convert old states with asyncckpt.register_type({name}, to_state=..., from_state=...)",
        f"or load the plain data, where {name} is not registered or with a select= of what is below it",
    ]
    raise MisfitError(f"{reason}: {', '.join(every)}", expected=expected, found=found)


class Fields:
    """The fields of a class, which a state must match."""

    def __init__(
        self, cls: type, defaults: dict[str, Callable[[], object] | None], *, room: Collection[str] | None = ()
    ) -> None:
        """Describe a class.

        Args:
            cls: The class.
            defaults: For each field, a function that makes its default value, or None if it has no default.
            room: The other attributes that its objects can have; None if they can have any.
        """
        self._cls = cls
        self._defaults = defaults
        self._room = room
        self.names: Final = defaults.keys()
        """The names of the fields."""

    def check(self, names: Collection[str], unset: Collection[str] = (), attributes: Collection[str] = ()) -> None:
        """Check whether an object can be made from a state.

        Args:
            names: The fields that the state has.
            unset: The fields that had no value.
            attributes: The attributes that the state has.

        Raises:
            MisfitError: The class lacks one of them, or has another field without a default.
        """
        defaults, cls = self._defaults, self._cls.__qualname__
        lost = [name for name in names if name not in defaults]
        gained = [name for name in defaults if defaults[name] is None and name not in names and name not in unset]
        roomless = [name for name in attributes if self._room is not None and name not in self._room]
        reasons, ways = [], []
        if lost:
            reasons.append(f"{cls} has no field {_listed(lost)}, which the checkpoint has")
            ways.append("give the class that field again")
        if gained:
            reasons.append(f"{cls} has the field {_listed(gained)} without a default, which the checkpoint lacks")
            ways.append("give it a default")
        if roomless:
            reasons.append(f"{cls} has no room for the attribute {_listed(roomless)}, which the checkpoint has")
            ways.append("give the class that slot")
        if reasons:
            misfit(self._cls, "; ".join(reasons), *ways, expected=list(defaults), found=list(names))

    def check_count(self, count: int) -> None:
        """Check whether an object can be made from `count` items without names.

        Raises:
            MisfitError: There are too many items, or too few for the fields without defaults.
        """
        names = list(self._defaults)
        if count > len(names) or any(self._defaults[name] is None for name in names[count:]):
            reason = (
                f"{self._cls.__qualname__} has the fields {_listed(names)}, and the checkpoint has {count} items, whose"
                " names were not saved"
            )
            way = "give the class as many fields, or defaults to those at its end"
            misfit(self._cls, reason, way, expected=names, found=count)

    def completed(
        self, found: dict[str, object], unset: Collection[str] = (), attributes: Collection[str] = ()
    ) -> dict[str, object]:
        """Return the values of all fields in their order: those found, and defaults for the others.

        Raises:
            MisfitError: See `check`.
        """
        defaults = self._defaults
        if found.keys() == defaults.keys() and not attributes:
            return {name: found[name] for name in defaults}
        self.check(found, unset, attributes)
        return {
            name: found[name] if name in found else make()  # type: ignore[misc] # `check` has looked
            for name, make in defaults.items()
            if name in found or name not in unset
        }


class Reduction(NamedTuple):
    """How objects of one type are saved and come back."""

    name: str
    """What the index calls the type."""
    type_: type | None
    """None for numpy's random generators, which `randomness.kind_of` recognizes."""
    to_state: Callable[[Any], object]
    """May return a `Form`."""
    from_state: Callable[[Any], object]
    update: Callable[[Any, Any], object] | None = None
    """Updates an existing object with a state."""
    differs: Callable[[Any, Any], tuple[str, object, object] | None] | None = None
    """Compares a template with a state, whose arrays may be missing. Returns None if the state fits, or the field that
    differs, and what the template and the state have there."""
    is_value: bool = False
    """Whether the objects are immutable, so that `restore` may replace them."""
    takes_forms: bool = False
    """Whether `from_state` and `update` take a `Form`; others get its state."""
    fields: Fields | None = None
    """The fields of a dataclass or namedtuple, which a saved state must match."""
    like: Callable[[Any, Any], object] | None = None
    """Makes an object of a template and a state, if what a state lacks comes from the template."""
    is_opaque: bool = False
    """Whether the state of a template does not matter: only what `like` takes from it does."""

    @property
    def is_transparent(self) -> bool:
        """Whether a saved state is compared with the plain state of a template."""
        return not self.is_opaque and (self.fields is not None or self.like is not None)


def spell_form(kind: str, names: Collection[str] = ()) -> str:
    """Return the text of a form."""
    return f"{kind}({', '.join(names)})"


def read_form(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the kind and the names of a form, or None if the text is not one of a form."""
    found = re.fullmatch(_FORM, text) if text.endswith(")") else None
    return None if found is None else (found[1], tuple(found[2].split(", ")) if found[2] else ())


def plain_of(state: Any) -> object:
    """Return a state as a user's functions get it: without a form, and with the names of attributes as keys."""
    plain = state.state if type(state) is Form else state
    if type(plain) is not dict:
        return plain
    return {key.name if type(key) is Attribute else key: entry for key, entry in plain.items()}


def type_name_of(cls: type) -> str:
    """Return the name of a class in files, unless it is registered with another name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(repr, names[:_MAX_LISTED])) + (", ..." if len(names) > _MAX_LISTED else "")
