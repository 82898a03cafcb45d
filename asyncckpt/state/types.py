"""The registry of types, and the reductions of builtin types.

1. A *reduction* (`reduction.py`) turns an object into plain state (`to_state`) and back (`from_state`). Builtin types,
   registered types, and Enums, namedtuples and dataclasses (`families.py`) are all saved by reductions. The index has
   the name of the reduction, and the plain state.
2. A name in a file is data. It is looked up among the reductions of this process, and never imported.
3. Enums, namedtuples and dataclasses can be saved without registration, because their plain state (value, tuple, dict)
   is useful by itself. They are loaded as objects if they are registered, or in a template.
"""

from __future__ import annotations

import datetime as dt
import importlib
import pathlib
import random
from collections import Counter, OrderedDict, deque
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import numpy as np

from asyncckpt.arrays.adapters import FRAMEWORKS, find_adapter, find_framework, framework_of, imported_frameworks
from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.state import randomness as rnd
from asyncckpt.state.dtypes import ALIASES
from asyncckpt.state.families import ORDERED_DICT, family_reduction, is_value, refuse_attributes
from asyncckpt.state.reduction import Attribute, Reduction, plain_of, read_form, type_name_of

if TYPE_CHECKING:
    from collections.abc import Callable

_NATIVE: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, set, frozenset, deque}
)

_NUMPY: Final = ("numpy", "ml_dtypes")
"""The modules of scalars that need no reduction; their subclasses do."""

_PROVIDERS: Final = {
    "asyncckpt.CutQueue": "asyncckpt.cut.queue",
    "asyncckpt.CutWorkQueue": "asyncckpt.cut.work_queue",
}
"""The modules of the library that register types when they are imported, which most programs do not do."""

TypeT = TypeVar("TypeT", bound=type)


def find_reduction(value: object) -> Reduction | None:
    """Return the reduction of the type of `value`, or None if it has none."""
    kind = type(value)
    return _by_type.get(kind) or _unregistered(kind)  # type: ignore[arg-type] # a class has a hash


@lru_cache(maxsize=256)  # bounded, so that classes that were made in a function can be freed
def _unregistered(kind: type) -> Reduction | None:
    if framework_of(kind) is not None and kind in _by_type:
        return _by_type[kind]  # registered just now
    random_kind = rnd.kind_of(kind)
    if random_kind is not None:
        return _by_name[random_kind]
    family = family_reduction(kind)
    made = (framework.reduction(kind, family) for framework in imported_frameworks())
    return next((each for each in made if each is not None), family)


def named_reduction(name: str) -> Reduction | None:
    """Return the builtin or registered reduction of that name, or None."""
    found = _by_name.get(name)
    if found is None and name in _PROVIDERS:
        importlib.import_module(_PROVIDERS[name])
        found = _by_name.get(name)
    if found is None and find_framework(name.partition(".")[0]) is not None:
        found = _by_name.get(name)
    return found


def advice_on_unknown(name: str) -> str:
    """Say what to do about objects that came back as plain data, because no reduction has their name."""
    package = name.partition(".")[0]
    if package in FRAMEWORKS and find_framework(package) is None:
        return f"import {package} before the load"
    return "use asyncckpt.register_type"


def register_reduction(reduction: Reduction) -> None:
    """Add a reduction of a framework's type."""
    _by_name[reduction.name] = reduction
    _by_type[reduction.type_] = reduction  # type: ignore[index] # it has a type


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
    update: Callable[[Any, Any], object] | None = None,
) -> TypeT: ...
@overload
def register_type(
    *,
    name: str | None = None,
    to_state: Callable[[Any], object] | None = None,
    from_state: Callable[[Any], object] | None = None,
    update: Callable[[Any, Any], object] | None = None,
) -> Callable[[TypeT], TypeT]: ...
def register_type(
    cls: type | None = None,
    /,
    *,
    name: str | None = None,
    to_state: Callable[[Any], object] | None = None,
    from_state: Callable[[Any], object] | None = None,
    update: Callable[[Any, Any], object] | None = None,
) -> Any:
    """Register a class, so that its objects can be saved and loaded.

    Use it as a function or as a decorator, with or without arguments. Without functions, `cls` must be an Enum, a
    namedtuple, a dataclass, or have a method ``to_state(self)`` and a classmethod ``from_state(cls, state)``; a method
    ``update_state(self, state)`` is used as `update`. The state may be anything that can be saved, including objects of
    other registered types. The functions may be called in a worker thread. Registering a class again replaces them.

    Args:
        cls: The class itself; its subclasses need a registration of their own.
        name: Its name in files; ``module.qualname`` by default. With a name, the class can be moved or renamed later.
        to_state: Called with the object; returns its state.
        from_state: Called with the state; returns the object.
        update: Called with an object and a state; sets the state of the object. Without it, `restore` refuses objects
            of the class, because it would have to replace them, unless they are immutable (Enums, namedtuples, frozen
            dataclasses, subclasses of numbers, texts and tuples).

    Returns:
        `cls`, or a decorator.

    Raises:
        TypeError: `cls` is not a class, it cannot be saved, or only one of the two functions was given.
        ValueError: The name belongs to another class or a builtin type, or `cls` is a type that needs no registration,
            such as dict or an array.
    """
    if cls is None:
        return lambda made: register_type(made, name=name, to_state=to_state, from_state=from_state, update=update)
    if not isinstance(cls, type):
        message = f"register_type takes a class, not {cls!r}"
        raise TypeError(message)
    if cls in _NATIVE or find_adapter(cls) is not None or (issubclass(cls, np.generic) and cls.__module__ in _NUMPY):
        message = f"{cls.__qualname__} needs no registration, which would never be used"
        raise ValueError(message)
    if (to_state is None) != (from_state is None):
        message = f"give both to_state and from_state for {cls.__qualname__}, or neither"
        raise TypeError(message)
    if to_state is not None and from_state is not None:
        made = Reduction(type_name_of(cls), cls, to_state, from_state, is_value=is_value(cls))
    else:
        found = family_reduction(cls)
        if found is None:
            message = (
                f"{cls.__qualname__} is neither an Enum, a namedtuple nor a dataclass and lacks to_state() and"
                " from_state(): give register_type the two functions"
            )
            raise TypeError(message)
        made = found
        if update is not None and made.takes_forms:
            update = _given_plain_states(update)
    made = made._replace(name=name or made.name, update=update or made.update)
    if read_form(made.name) is not None:
        message = f"the name {made.name!r} is reserved in files: give another name"
        raise ValueError(message)
    holder = _by_name.get(made.name)
    if holder is not None and (holder.type_ is None or type_name_of(holder.type_) != type_name_of(cls)):
        owner = "a builtin type" if holder.type_ is None else type_name_of(holder.type_)
        message = f"the name {made.name!r} already belongs to {owner}: give another name"
        raise ValueError(message)
    _by_type[cls] = _by_name[made.name] = made
    return cls


def _given_plain_states(update: Callable[[Any, Any], object]) -> Callable[[Any, Any], object]:
    return lambda value, state: update(value, plain_of(state))


# --- builtin types ----------------------------------------------------------------------------------------------------


def _timezone_state(zone: dt.tzinfo | None) -> object:
    if zone is None:
        return None
    if type(zone) is dt.timezone:
        return (zone.utcoffset(None), zone.tzname(None))
    if type_name_of(type(zone)) == "zoneinfo.ZoneInfo" and (key := getattr(zone, "key", None)) is not None:
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


def _time_state(value: dt.datetime | dt.time) -> object:
    return (value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _timezone_state(value.tzinfo))


def _time(cls: type[dt.datetime | dt.time], state: Any) -> dt.datetime | dt.time:
    text, fold, zone = state
    return cls.fromisoformat(text).replace(fold=fold, tzinfo=_timezone(zone))


def _timedelta_state(value: dt.timedelta) -> object:
    return (value.days, value.seconds, value.microseconds)


def _counter_state(value: Counter[object]) -> object:
    refuse_attributes(value, vars(value), "Counter")
    return dict(value)


def _update_counter(value: Counter[object], state: Any) -> None:
    value.clear()
    value.update(state)


def _bytearray(state: Any) -> bytearray:
    if type(state) is not bytes:  # bytearray(5) is five zeros
        raise TypeError(f"a bytearray of {type(state).__name__}")
    return bytearray(state)


def _update_bytearray(value: bytearray, state: Any) -> None:
    value[:] = _bytearray(state)


def _python_random_state(value: random.Random) -> object:
    refuse_attributes(value, (name for name in vars(value) if name != "gauss_next"), "random generator")
    return value.getstate()


def _string_array_state(value: np.ndarray) -> object:
    return (value.shape, value.ravel().tolist())


def _string_array(state: Any) -> np.ndarray:
    shape, items = state
    return np.array(items, dtype=np.dtypes.StringDType()).reshape(shape)


def _update_string_array(value: np.ndarray, state: Any) -> None:
    np.copyto(value, _string_array(state))


def _string_array_differs(value: np.ndarray, state: Any) -> tuple[str, object, object] | None:
    if value.dtype != np.dtypes.StringDType():
        return "dtype", value.dtype, np.dtypes.StringDType()
    return None if value.shape == tuple(state[0]) else ("shape", value.shape, tuple(state[0]))


STRING_ARRAY: Final = Reduction(
    name="string_array",
    type_=np.ndarray,
    to_state=_string_array_state,
    from_state=_string_array,
    update=_update_string_array,
    differs=_string_array_differs,
)
"""For arrays of StringDType only, whose elements are pointers."""

ALIASED_SCALARS: Final = frozenset(scalar for scalar, _ in ALIASES.values())
"""Types of numpy's scalars that are saved as another scalar: `np.longlong` where that equals `np.int64`."""
_PATH: Final = Reduction("path", pathlib.Path, str, pathlib.Path, is_value=True)
_BUILTINS: Final = (
    _PATH,
    STRING_ARRAY,
    ORDERED_DICT,
    Reduction("attribute", Attribute, lambda key: key.name, Attribute, is_value=True),
    *(
        Reduction(name, scalar, np.dtype(plain).type, scalar, is_value=True)
        for name, (scalar, plain) in ALIASES.items()
    ),
    Reduction("pure_posix_path", pathlib.PurePosixPath, str, pathlib.PurePosixPath, is_value=True),
    Reduction("pure_windows_path", pathlib.PureWindowsPath, str, pathlib.PureWindowsPath, is_value=True),
    Reduction("counter", Counter, _counter_state, Counter, _update_counter),
    Reduction("bytearray", bytearray, bytes, _bytearray, _update_bytearray),
    Reduction("datetime", dt.datetime, _time_state, partial(_time, dt.datetime), is_value=True),
    Reduction("date", dt.date, dt.date.isoformat, dt.date.fromisoformat, is_value=True),
    Reduction("time", dt.time, _time_state, partial(_time, dt.time), is_value=True),
    Reduction("timedelta", dt.timedelta, _timedelta_state, lambda state: dt.timedelta(*state), is_value=True),
    Reduction(
        "seed_sequence",
        None,
        rnd.seed_sequence_state,
        rnd.seed_sequence,
        rnd.update_seed_sequence,
        rnd.seed_sequence_differs,
    ),
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
    Reduction("python_random", random.Random, _python_random_state, rnd.python_random, random.Random.setstate),
)
_by_name: dict[str, Reduction] = {reduction.name: reduction for reduction in _BUILTINS}
_by_type: dict[type, Reduction] = {r.type_: r for r in _BUILTINS if r.type_ not in (None, np.ndarray, OrderedDict)}
_by_type[type(pathlib.Path())] = _PATH  # a Path is an instance of a subclass
