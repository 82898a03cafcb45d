"""The state of objects whose classes have no way to save it: what their attributes hold, as values that can be saved.

This is done for classes of known packages, whose attributes are known to be all of their state. Other classes say
themselves what their state is, by ``state_dict()`` and ``load_state_dict(state)``.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection

_PLAIN: Final = (bool, int, float, complex, str, bytes, types.NoneType, np.generic)
_GENERATORS: Final = (np.random.Generator, np.random.RandomState)
_OBJECT: Final = "attributes of"
"""The key of a saved object's class."""


class NoStateError(Exception):
    """The state of an object is not known. The message names its class, or one of its attributes."""


def has_state_dict(value: object) -> bool:
    """Return whether the object's class says itself what its state is."""
    return hasattr(type(value), "state_dict") and hasattr(type(value), "load_state_dict")


class Attributes:
    """Takes the state of objects out of their attributes, and puts it back.

    Args:
        packages: The names of the known packages.
        constants: Types of values that are no state. Functions, classes and modules are none, either.
        left_out: Names of attributes that are no state.
    """

    def __init__(self, *, packages: Collection[str], constants: tuple[type, ...], left_out: Collection[str]) -> None:
        self._packages, self._left_out = frozenset(packages), frozenset(left_out)
        self._constants = (*constants, types.ModuleType)

    def get_state(self, value: object, *, left_out: Collection[str] = (), is_known: bool = False) -> dict[str, Any]:
        """Return the state of an object, uncopied.

        Args:
            value: The object.
            left_out: Names of attributes that are left out in addition.
            is_known: Whether its attributes are its state, wherever its class is from.

        Raises:
            NoStateError: The class is neither known nor has a ``state_dict``, or an attribute cannot be saved.
        """
        if has_state_dict(value):
            return {"state_dict": value.state_dict()}  # type: ignore[attr-defined]
        if not is_known and not self._is_known(type(value)):
            raise NoStateError(type(value).__qualname__)
        saved = {}
        for name, item in vars(value).items():
            if name in self._left_out or name in left_out or isinstance(item, self._constants) or callable(item):
                continue
            try:
                saved[name] = self.plain(item)
            except NoStateError as error:
                message = f"{type(value).__qualname__}.{name} ({error})"
                raise NoStateError(message) from None
        return saved

    def set_state(self, value: Any, state: dict[str, Any]) -> None:
        """Give an object the state that `get_state` returned. Generators and objects in it stay the same objects."""
        if has_state_dict(value):
            value.load_state_dict(state["state_dict"])
            return
        attributes = vars(value)
        for name, item in state.items():
            attributes[name] = self.filled(attributes.get(name), item)

    def plain(self, value: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
        """Return an attribute's value as it is saved.

        Raises:
            NoStateError: It cannot be saved; the message names its type.
        """
        if isinstance(value, (*_PLAIN, *_GENERATORS)) or (isinstance(value, np.ndarray) and not value.dtype.hasobject):
            return value
        if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
            return value
        if type(value) in {dict, OrderedDict}:
            return type(value)((key, self.plain(item)) for key, item in value.items())
        if isinstance(value, deque):
            return deque(map(self.plain, value), maxlen=value.maxlen)
        if type(value) is list:
            return list(map(self.plain, value))
        if isinstance(value, tuple):  # a namedtuple, too, which comes back as its class only if that was registered
            return tuple(map(self.plain, value))
        if has_state_dict(value) or self._is_known(type(value)):
            return {_OBJECT: type(value).__qualname__, "state": self.get_state(value)}
        raise NoStateError(type(value).__qualname__)

    def filled(self, current: Any, saved: Any) -> Any:
        """Return an attribute's value, made of the saved one; objects in it are those of the current one, filled."""
        if isinstance(saved, dict):
            if _OBJECT in saved:
                self.set_state(current, saved["state"])
                return current
            items = current if isinstance(current, dict) else {}
            return type(saved)((key, self.filled(items.get(key), item)) for key, item in saved.items())
        if type(saved) in {list, tuple} and isinstance(current, type(saved)) and len(current) == len(saved):
            filled = [self.filled(*pair) for pair in zip(current, saved, strict=True)]
            return type(current)(*filled) if hasattr(current, "_fields") else type(current)(filled)
        if isinstance(saved, np.random.Generator) and isinstance(current, np.random.Generator):
            if type(saved.bit_generator) is type(current.bit_generator):
                current.bit_generator.state = saved.bit_generator.state
                return current
        elif isinstance(saved, np.random.RandomState) and isinstance(current, np.random.RandomState):
            current.set_state(saved.get_state(legacy=False))
            return current
        return saved

    def _is_known(self, cls: type) -> bool:
        return cls.__module__.partition(".")[0] in self._packages
