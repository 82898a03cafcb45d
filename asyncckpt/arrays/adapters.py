"""The types of arrays that can be saved and filled: one table of adapters, and what each framework adds to it.

1. Types are matched exactly: an array of a subclass may hold more than its base would bring back.
2. A framework is a library with arrays of its own, and is never imported here. Its module in `frameworks/` is, when a
   value of the framework is met, or when a file needs the framework and the program has imported it.
"""

from __future__ import annotations

import importlib
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np

from asyncckpt.arrays.device import Moment
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.arrays.overlap import overlaps_itself
from asyncckpt.errors import UnsupportedLeafError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.arrays.device import Device, Event
    from asyncckpt.arrays.source import ArraySource
    from asyncckpt.arrays.target import ArrayTarget


class ArrayKind(NamedTuple):
    """What a framework's array is besides its bytes, which are those of a numpy array."""

    framework: str
    """The name of the framework's package."""
    dtype: str = ""
    """The framework's name of the dtype, if the one of the bytes does not tell it."""
    flags: int = 0
    """The meaning of each bit is the framework's."""


class ArrayLeaf(NamedTuple):
    """An array that was found in a state."""

    identity: Hashable
    """Equal for arrays of one dtype, shape and kind that are the same memory seen in the same way: they are saved once,
    and come back as one."""
    meta: ArrayMeta
    """The dtype and shape of the bytes. It is fastest to use one object for all arrays that have both in common."""
    source: ArraySource
    is_stable: bool = False
    """Whether no program can change the contents, so that they need no copy."""
    kind: ArrayKind | None = None
    """None for numpy's arrays."""


AnyLeaf: TypeAlias = "tuple[Hashable, ArrayMeta, ArraySource, bool, ArrayKind | None]"
"""An `ArrayLeaf`, or a plain tuple of its fields, which is made in half the time."""


class ArrayType(NamedTuple):
    """What an array of a template asks for."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """The dtype and shape of the bytes, which must be equal."""
    kind: ArrayKind | None = None
    place: Hashable = None
    """Where `like` makes an array, and what else it takes over: those that differ in it cannot be one array."""


class ArrayAdapter(Protocol):
    """What there is to know of arrays of one type."""

    def leaf(self, array: Any) -> AnyLeaf:
        """Describe an array.

        Raises:
            UnsupportedLeafError: It cannot be saved.
            PendingError: It is described in another way, which takes time.
        """

    def wanted(self, array: Any) -> ArrayType:
        """Say what an array of a template asks for. Its contents do not matter.

        Raises:
            UnsupportedLeafError: It cannot be used.
        """

    def target(self, array: Any, dtype: np.dtype[Any]) -> ArrayTarget | None:
        """Return what fills an array in place with bytes of a dtype, which equals its own but for the byte order.

        It is None if the array is immutable: then a new one is made by `like`.

        Raises:
            UnfitTargetError: It cannot be filled.
        """

    def like(self, array: Any, data: NDArray[Any], kind: ArrayKind | None) -> Any:
        """Make an array like this one of the bytes of one of a kind, which may be used without a copy."""


class Framework(Protocol):
    """What the module of a framework in `frameworks/` provides; importing it registers adapters and reductions."""

    def check(self, kind: ArrayKind, dtype: np.dtype[Any]) -> None:
        """Check, before anything is read, whether there are arrays of a kind whose bytes have this dtype.

        Raises:
            CorruptCheckpointError: There are none.
            UnsupportedFormatError: There are, but not in this program.
        """

    def restored(self, kind: ArrayKind, data: NDArray[Any]) -> Any:
        """Make an array as it was saved, from its bytes, which may be used without a copy."""

    def devices(self) -> Iterable[Device]:
        """Return the devices that the program uses; called often, on its thread."""

    has_numbers: bool
    """Whether Python's numbers may become arrays in a computation, so that a number in a template fits a scalar."""

    def reduction(self, cls: type, family: Any) -> Any:
        """Return the `Reduction` of a class that is registered with the framework; None for others.

        Args:
            cls: The class.
            family: The reduction that it has without the framework, or None.
        """

    def advice(self, value: object) -> str | None:
        """Say what to do about a value of the framework, or a function, that cannot be saved; None if nothing."""


class PendingError(Exception):
    """The contents of an array are not in the host's memory, or not there yet.

    Args:
        where: Where they are instead, as a part of a sentence: "on cuda:0".
        leaf: Describes the array, in a thread that may wait. It is called with a function that returns what a copy
            from a device waits for (`Moment.ready`).
    """

    def __init__(self, where: str, leaf: Callable[[Callable[[Device], list[Event]]], AnyLeaf]) -> None:
        super().__init__(where)
        self.leaf = leaf


class UnfitTargetError(Exception):
    """An array cannot be filled; the arguments are what differs, and what was expected and found."""


class _NumpyAdapter:
    def leaf(self, array: Any) -> ArrayLeaf:
        return ArrayLeaf(id(array), ArrayMeta(array.dtype, array.shape), array)

    def wanted(self, array: Any) -> ArrayType:
        return ArrayType(array.dtype, array.shape)

    def target(self, array: Any, dtype: np.dtype[Any]) -> ArrayTarget:
        del dtype
        if not array.flags.writeable:
            raise UnfitTargetError("writability", "a read-only array", "contents to be filled in")
        if overlaps_itself(array):
            raise UnfitTargetError("sharing", "an array with elements that share memory", "elements of their own")
        filled: ArrayTarget = array
        return filled

    def like(self, array: Any, data: NDArray[Any], kind: ArrayKind | None) -> Any:
        del array, kind
        return data


class _MemmapAdapter(_NumpyAdapter):
    def leaf(self, array: Any) -> ArrayLeaf:
        if more := sorted(vars(array).keys() - _MEMMAP_ATTRIBUTES):
            message = f"a memmap with the attribute {more[0]!r}, which would be lost: delete it"
            raise UnsupportedLeafError(message, path="")
        return ArrayLeaf(id(array), ArrayMeta(array.dtype, array.shape), array.view(np.ndarray))


_MEMMAP_ATTRIBUTES: Final = frozenset({"_mmap", "filename", "offset", "mode"})
_ADAPTERS: Final[dict[type, ArrayAdapter]] = {np.ndarray: _NumpyAdapter(), np.memmap: _MemmapAdapter()}
_MODULES: Final[dict[str, str]] = {"torch": "torch", "jax": "jax", "jaxlib": "jax"}
"""By the name of a package that has the types of a framework, the framework's module in `frameworks/`."""
FRAMEWORKS: Final = frozenset(_MODULES.values())
"""The frameworks that this release knows."""


def register_adapter(type_: type, adapter: ArrayAdapter) -> None:
    """Let arrays of a type be saved and filled by an adapter."""
    _ADAPTERS[type_] = adapter


known_adapter: Final = _ADAPTERS.get
"""As `find_adapter`, and faster, but for the first value of a framework."""


def find_adapter(type_: type) -> ArrayAdapter | None:
    """Return the adapter of a type, or None if it is not a type of arrays."""
    adapter = _ADAPTERS.get(type_)
    if adapter is None and type_.__module__.partition(".")[0] in _MODULES:
        framework_of(type_)
        adapter = _ADAPTERS.get(type_)
    return adapter


def framework_of(type_: type) -> Framework | None:
    """Return the framework of a type or of one of its bases, or None."""
    for base in type_.__mro__:
        package = base.__module__.partition(".")[0]
        if package in _MODULES:
            return find_framework(_MODULES[package])
    return None


def imported_frameworks() -> Iterator[Framework]:
    """Yield the frameworks that the program has imported."""
    for name in sorted(FRAMEWORKS):
        framework = find_framework(name)
        if framework is not None:
            yield framework


noted_moment: Final[ContextVar[Moment | None]] = ContextVar("noted_moment", default=None)
"""The moment at which the program called what runs in this context, if that is in another thread than the program."""


def current_moment() -> Moment:
    """Note how far the devices are that the program uses, on its thread."""
    noted = noted_moment.get()
    if noted is not None:
        return noted
    return Moment(device for framework in imported_frameworks() for device in framework.devices())


def find_framework(name: str) -> Framework | None:
    """Return a framework by its name, or None if this release does not know it or the program has not imported it."""
    module = sys.modules.get(name)
    # While another thread imports it, it is there, but not whole.
    if name not in _MODULES.values() or module is None or getattr(module.__spec__, "_initializing", False):
        return None
    return importlib.import_module(f"asyncckpt.frameworks.{name}")
