"""What a reduction is: how objects of one type become plainer state, and come back.

A state may need a word about itself: which names the items of a tuple have, say. It is a `Form` then, whose text the
index stores as a second type's name between the object's own and the state: a reader that does not know it reads the
state all the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

NAMEDTUPLE: Final = "namedtuple"
"""The state is a tuple, and these are the names of its items."""
UNSET: Final = "unset"
"""The state is a dict of fields, and these fields have no value."""
MEMBER: Final = "member"
"""The state is the name of an Enum's member, not its value."""
_FORM: Final = r"(namedtuple|unset|member)\(([^()]*)\)"  # compiled by `re` when it is first needed
_MAX_LISTED: Final = 8  # names in a message


class Form(NamedTuple):
    """A plain state, and what must be known to read it."""

    text: str
    state: Any


@dataclass(frozen=True, slots=True, repr=False)
class Attribute:
    """The key of an attribute, in a state whose other keys are an object's fields or items: it equals none of them."""

    name: str

    def __repr__(self) -> str:
        """Return the name, which is what paths show."""
        return self.name


class MisfitError(Exception):
    """A state does not fit the class as it is now: the class has changed since it was saved.

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
        MisfitError: Always; names the ways out.
    """
    name = cls.__qualname__
    every = [
        *ways,
        f"convert old states with asyncckpt.register_type({name}, to_state=..., from_state=...)",
        f"or load the plain data, where {name} is not registered or with a select= of what is below it",
    ]
    raise MisfitError(f"{reason}: {', '.join(every)}", expected=expected, found=found)


class Fields:
    """The fields of a class, by which a state is matched."""

    def __init__(
        self, cls: type, defaults: dict[str, Callable[[], object] | None], *, room: Collection[str] | None = ()
    ) -> None:
        """Describe a class.

        Args:
            cls: The class.
            defaults: For each of its fields what makes its default, or None where it has none.
            room: Attributes that its objects may have besides; None if they may have any.
        """
        self._cls = cls
        self._defaults = defaults
        self._room = room
        self.names: Final = defaults.keys()
        """Their names."""

    def check(self, names: Collection[str], unset: Collection[str] = (), attributes: Collection[str] = ()) -> None:
        """Look whether a state of these fields, of fields without a value, and of attributes can become an object.

        Raises:
            MisfitError: The class lacks one of them, or has a field without a default that is not among them.
        """
        defaults, cls = self._defaults, self._cls.__qualname__
        lost = [name for name in names if name not in defaults]
        gained = [name for name in defaults if defaults[name] is None and name not in names and name not in unset]
        homeless = [name for name in attributes if self._room is not None and name not in self._room]
        reasons, ways = [], []
        if lost:
            reasons.append(f"{cls} has no field {_listed(lost)}, which the checkpoint has")
            ways.append("give the class that field again")
        if gained:
            reasons.append(f"{cls} has the field {_listed(gained)} without a default, which the checkpoint lacks")
            ways.append("give it a default")
        if homeless:
            reasons.append(f"{cls} has no room for the attribute {_listed(homeless)}, which the checkpoint has")
            ways.append("give the class that slot")
        if reasons:
            misfit(self._cls, "; ".join(reasons), *ways, expected=list(defaults), found=list(names))

    def check_count(self, count: int) -> None:
        """Look whether a state of so many items, whose names are not known, can become an object.

        Raises:
            MisfitError: It cannot; items that are missing at the end may have defaults.
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
        """Return the values of all fields that have one, in their order: what was found, or else defaults.

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
    """None for numpy's random generators, which are told by `randomness.kind_of`."""
    to_state: Callable[[Any], object]
    """May return a `Form`."""
    from_state: Callable[[Any], object]
    update: Callable[[Any, Any], object] | None = None
    """Puts a state into an existing object."""
    differs: Callable[[Any, Any], tuple[str, object, object] | None] | None = None
    """Tells from a template and a state, whose arrays may be missing, what keeps the state from fitting: the field that
    differs, what the template has, and what the state has."""
    is_value: bool = False
    """Whether objects never change, so that one that is restored may be replaced: nobody else has to see it change."""
    takes_forms: bool = False
    """Whether `from_state` and `update` take a `Form`; others get its state."""
    fields: Fields | None = None
    """What a saved state is matched by, where a template's own state says what it must look like: in dataclasses and
    namedtuples."""


def spell_form(kind: str, names: Collection[str] = ()) -> str:
    """Return the text of a form."""
    return f"{kind}({', '.join(names)})"


def read_form(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Return a form's kind and names, or None where the text is no form's."""
    found = re.fullmatch(_FORM, text) if text.endswith(")") else None
    return None if found is None else (found[1], tuple(found[2].split(", ")) if found[2] else ())


def plain_of(state: Any) -> object:
    """Return a state without a word about itself, attributes by their names: what a user's functions get."""
    plain = state.state if type(state) is Form else state
    if type(plain) is not dict:
        return plain
    return {key.name if type(key) is Attribute else key: entry for key, entry in plain.items()}


def type_name_of(cls: type) -> str:
    """Return what files call a class, unless its registration says otherwise."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(repr, names[:_MAX_LISTED])) + (", ..." if len(names) > _MAX_LISTED else "")
