"""Types that are saved as simpler ones, and how they come back.

1. A *reduction* turns an object into plainer state (`to_state`) and back (`from_state`). Builtin types, a user's own
   types, Enums, namedtuples and dataclasses all go through this one mechanism; the index stores the reduction's name
   beside the plain state.
2. A name in a file is data. It is looked up among the reductions known to this process; nothing is ever imported by it.
3. Enums, namedtuples and dataclasses can be saved without registration, because their plain form (value, tuple, dict)
   is useful by itself; they come back as themselves if registered or given in a template.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import pathlib
import random
from collections import OrderedDict, deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload

import numpy as np

from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.state import randomness as rnd

if TYPE_CHECKING:
    from collections.abc import Callable

_NATIVE: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, set, frozenset, deque}
    | {np.ndarray, np.memmap}
)

TypeT = TypeVar("TypeT", bound=type)


class Reduction(NamedTuple):
    """How objects of one type are saved and come back."""

    name: str
    """What the index calls the type."""
    type_: type | None
    """None for numpy's random generators, which are told by `randomness.kind_of`."""
    to_state: Callable[[Any], object]
    from_state: Callable[[Any], object]
    update: Callable[[Any, Any], None] | None = None
    """Puts a state into an existing object; without it, the object is replaced."""
    differs: Callable[[Any, Any], tuple[str, object, object] | None] | None = None
    """Tells from a template and a state, whose arrays may be missing, what keeps the state from fitting: the field that
    differs, what the template has, and what the state has."""
    is_transparent: bool = False
    """Whether a template's own state says what the saved state must look like (dataclasses, namedtuples)."""


def find_reduction(value: object) -> Reduction | None:
    """Return the reduction that saves `value`, or None where its type has none."""
    kind = type(value)
    return _by_type.get(kind) or _unregistered(kind)  # type: ignore[arg-type] # a class has a hash


@lru_cache(maxsize=256)  # and no more: classes that were made in a function, and what their methods refer to, must go
def _unregistered(kind: type) -> Reduction | None:
    random_kind = rnd.kind_of(kind)
    return _family_reduction(kind) if random_kind is None else _by_name[random_kind]


def named_reduction(name: str) -> Reduction | None:
    """Return the builtin or registered reduction of that name, or None."""
    return _by_name.get(name)


@overload
def register_type(cls: TypeT, /) -> TypeT: ...
@overload
def register_type(
    cls: TypeT,
    /,
    *,
    name: str | None = None,
    to_state: Callable[[Any], object] | None = None,
    from_state: Callable[[Any], object] | None = None,
) -> TypeT: ...
@overload
def register_type(
    *,
    name: str | None = None,
    to_state: Callable[[Any], object] | None = None,
    from_state: Callable[[Any], object] | None = None,
) -> Callable[[TypeT], TypeT]: ...
def register_type(
    cls: type | None = None,
    /,
    *,
    name: str | None = None,
    to_state: Callable[[Any], object] | None = None,
    from_state: Callable[[Any], object] | None = None,
) -> Any:
    """Let objects of `cls` be saved, and come back as themselves.

    Use it as a function or as a decorator, with or without arguments. Without functions, `cls` must be an Enum, a
    namedtuple, a dataclass, or have a method ``to_state(self)`` and a classmethod ``from_state(cls, state)``. The state
    may be anything that can be saved, further registered types included; `to_state` may run in a worker thread.
    Registering a class again replaces its functions.

    Args:
        cls: The class itself; its subclasses need a registration of their own.
        name: What files call it; ``module.qualname`` by default. Give one to be free to move or rename the class.
        to_state: Called with the object; returns its state.
        from_state: Called with the state; returns the object.

    Returns:
        `cls`, or a decorator.

    Raises:
        TypeError: `cls` is not a class, has no way to be saved, or only one of the two functions was given.
        ValueError: The name belongs to another class, or to a builtin type; or `cls` is a type that is saved without a
            registration, such as dict or an array.
    """
    if cls is None:
        return lambda decorated: register_type(decorated, name=name, to_state=to_state, from_state=from_state)
    if not isinstance(cls, type):
        message = f"register_type takes a class, not {cls!r}"
        raise TypeError(message)
    if cls in _NATIVE or issubclass(cls, np.generic):
        message = f"{cls.__qualname__} is saved by itself, and a registration of it would never be used"
        raise ValueError(message)
    if (to_state is None) != (from_state is None):
        message = f"give both to_state and from_state for {cls.__qualname__}, or neither"
        raise TypeError(message)
    if to_state is not None and from_state is not None:
        made = Reduction(name=_type_name(cls), type_=cls, to_state=to_state, from_state=from_state)
    else:
        found = _family_reduction(cls)
        if found is None:
            message = (
                f"{cls.__qualname__} is neither an Enum, a namedtuple nor a dataclass and lacks to_state() and"
                " from_state(): give register_type the two functions"
            )
            raise TypeError(message)
        made = found
    made = made._replace(name=name or made.name)
    holder = _by_name.get(made.name)
    if holder is not None and (holder.type_ is None or _type_name(holder.type_) != _type_name(cls)):
        owner = "a builtin type" if holder.type_ is None else _type_name(holder.type_)
        message = f"the name {made.name!r} belongs to {owner} already: give another name"
        raise ValueError(message)
    _by_type[cls] = _by_name[made.name] = made
    return cls


def _type_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _family_reduction(cls: type) -> Reduction | None:
    """Return the reduction of a type that is recognized by what it is, not by registration."""
    if callable(getattr(cls, "to_state", None)) and callable(getattr(cls, "from_state", None)):
        from_state: Callable[[Any], object] = cls.from_state  # type: ignore[attr-defined]
        return Reduction(name=_type_name(cls), type_=cls, to_state=_ask_for_state, from_state=from_state)
    if issubclass(cls, enum.Enum):
        return Reduction(name=_type_name(cls), type_=cls, to_state=lambda value: value.value, from_state=cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        make = cls._make
        return Reduction(name=_type_name(cls), type_=cls, to_state=tuple, from_state=make, is_transparent=True)
    if dataclasses.is_dataclass(cls):
        return _dataclass_reduction(cls)
    return None


def _ask_for_state(value: Any) -> object:
    return value.to_state()


def _dataclass_reduction(cls: type) -> Reduction:
    fields = dataclasses.fields(cls)

    def to_state(value: object) -> dict[str, object]:
        # A field may be unset on an instance with slots; what is absent now is absent after loading.
        return {field.name: getattr(value, field.name) for field in fields if hasattr(value, field.name)}

    def update(value: object, state: dict[str, object]) -> None:
        for name, entry in state.items():
            object.__setattr__(value, name, entry)

    def from_state(state: dict[str, object]) -> object:
        # As with copy and pickle, neither __init__ nor __post_init__ runs: the fields hold what they held.
        unknown = state.keys() - {field.name for field in fields}
        if unknown:
            message = f"{cls.__qualname__} has no field {', '.join(sorted(map(repr, unknown)))}"
            raise ValueError(message)
        value: object = object.__new__(cls)
        for field in fields:
            if field.name in state:
                object.__setattr__(value, field.name, state[field.name])
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(value, field.name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(value, field.name, field.default_factory())
        return value

    is_frozen = cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return Reduction(
        name=_type_name(cls),
        type_=cls,
        to_state=to_state,
        from_state=from_state,
        update=None if is_frozen else update,
        is_transparent=True,
    )


# --- builtin types ----------------------------------------------------------------------------------------------------


def _timezone_state(zone: dt.tzinfo | None) -> object:
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        return (zone.utcoffset(None), zone.tzname(None))
    if _type_name(type(zone)) == "zoneinfo.ZoneInfo" and (key := getattr(zone, "key", None)) is not None:
        return str(key)
    message = f"the time zone {zone!r} has no key to be saved by: use datetime.timezone or zoneinfo.ZoneInfo(key)"
    raise UnsupportedLeafError(message, path="")


def _timezone(state: Any) -> dt.tzinfo | None:
    if state is None:
        return None
    if isinstance(state, str):
        import zoneinfo

        return zoneinfo.ZoneInfo(state)
    offset, name = state
    zone = dt.timezone(offset)
    return zone if zone.tzname(None) == name else dt.timezone(offset, name)


def _datetime_state(value: dt.datetime) -> object:
    return (value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _timezone_state(value.tzinfo))


def _datetime(state: Any) -> dt.datetime:
    text, fold, zone = state
    return dt.datetime.fromisoformat(text).replace(fold=fold, tzinfo=_timezone(zone))


def _time_state(value: dt.time) -> object:
    return (value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _timezone_state(value.tzinfo))


def _time(state: Any) -> dt.time:
    text, fold, zone = state
    return dt.time.fromisoformat(text).replace(fold=fold, tzinfo=_timezone(zone))


def _bytearray(state: Any) -> bytearray:
    if type(state) is not bytes:  # of an int, it would be so many zeros
        raise TypeError(f"a bytearray of {type(state).__name__}")
    return bytearray(state)


def _string_array_state(value: np.ndarray) -> object:
    return (value.shape, value.ravel().tolist())


def _string_array(state: Any) -> np.ndarray:
    shape, items = state
    return np.array(items, dtype=np.dtypes.StringDType()).reshape(shape)


def _update_string_array(value: np.ndarray, state: Any) -> None:
    np.copyto(value, _string_array(state))


def _string_shape_differs(value: np.ndarray, state: Any) -> tuple[str, object, object] | None:
    return None if value.shape == tuple(state[0]) else ("shape", value.shape, tuple(state[0]))


STRING_ARRAY: Final = Reduction(
    name="string_array",
    type_=np.ndarray,
    to_state=_string_array_state,
    from_state=_string_array,
    update=_update_string_array,
    differs=_string_shape_differs,
)
"""Arrays of numpy's variable-width strings, which hold pointers; chosen by dtype, not by type."""


_PATH: Final = Reduction("path", pathlib.Path, str, pathlib.Path)
_BUILTINS: Final = (
    _PATH,
    STRING_ARRAY,
    Reduction("pure_posix_path", pathlib.PurePosixPath, str, pathlib.PurePosixPath),
    Reduction("pure_windows_path", pathlib.PureWindowsPath, str, pathlib.PureWindowsPath),
    Reduction("bytearray", bytearray, bytes, _bytearray),
    Reduction("datetime", dt.datetime, _datetime_state, _datetime),
    Reduction("date", dt.date, dt.date.isoformat, dt.date.fromisoformat),
    Reduction("time", dt.time, _time_state, _time),
    Reduction("timedelta", dt.timedelta, lambda x: (x.days, x.seconds, x.microseconds), lambda s: dt.timedelta(*s)),
    Reduction("seed_sequence", None, rnd.seed_sequence_state, rnd.seed_sequence),
    Reduction(
        "bit_generator",
        None,
        rnd.bit_generator_state,
        rnd.bit_generator,
        rnd.update_bit_generator,
        rnd.algorithm_differs,
    ),
    Reduction("generator", None, rnd.generator_state, rnd.generator, rnd.update_generator, rnd.algorithm_differs),
    Reduction(
        "random_state",
        None,
        rnd.random_state_state,
        rnd.random_state,
        rnd.update_random_state,
        rnd.algorithm_differs,
    ),
    Reduction("python_random", random.Random, random.Random.getstate, rnd.python_random, random.Random.setstate),
)
_by_name: dict[str, Reduction] = {reduction.name: reduction for reduction in _BUILTINS}
_by_type: dict[type, Reduction] = {r.type_: r for r in _BUILTINS if r.type_ not in (None, np.ndarray)}
_by_type[type(pathlib.Path())] = _PATH  # a Path is an instance of a subclass
