"""Convert Python leaves to small HDF5 values.

Some values can be attributes: None (a null dataspace), bool, int, float, complex, str (a string), bytes (a row of
uint8), and numpy's numbers. Any other has a *kind*: it is a dataset with an attribute that names it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asyncckpt.formats import key_names as names
from asyncckpt.libhdf5 import h5py, h5t
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain, is_extension

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncckpt.formats.hdf5.datatypes import ElementTypes

VALUE_MAX_NBYTES: Final = 1 << 15
"""The size up to which a value is stored in an object header, which is limited to 64 KiB, in bytes."""
TEXT: Final = h5t.py_create(h5py.string_dtype(), logical=True)
"""The datatype of strings of any length in UTF-8, as h5py writes a str."""

_PLAIN_TYPES: Final = {kind: h5t.py_create(np.dtype(kind), logical=True) for kind in (bool, float, complex)}
_PLAIN_KINDS: Final = "biufc"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A small value, ready to be written."""

    type_id: Any
    data: NDArray[Any] | None
    """None for a null dataspace."""
    kind: str | None = None
    """The kind that a dataset has as an attribute."""
    needs_dataset: bool = False
    """Whether it must be a dataset with a kind."""
    note: str | None = None
    """The numpy dtype, if the datatype does not determine it."""

    @property
    def nbytes(self) -> int:
        """Its size in an object header, in bytes; texts are stored elsewhere."""
        return 0 if self.data is None else self.data.nbytes

    @property
    def is_attribute(self) -> bool:
        """Whether it can be an attribute."""
        return not self.needs_dataset and self.nbytes <= VALUE_MAX_NBYTES


def text_leaf(text: str | tuple[str, ...]) -> Leaf:
    """Make a string, or a row of strings."""
    return Leaf(TEXT, np.array(text, object))


def int_leaf(value: int | tuple[int, ...]) -> Leaf:
    """Make an int, or a row of ints."""
    return Leaf(h5t.STD_I64LE, np.array(value, "<i8"))


def make_leaf(node: ix.Node, elements: ElementTypes) -> Leaf:  # noqa: PLR0911 - one for each kind of node
    """Make the value of a node that is neither a container nor an array."""
    kind = type(node)
    if node is None:
        return Leaf(h5t.STD_I8LE, None)
    if kind is int:
        is_signed = node < 1 << 63
        data = np.array(node, np.int64 if is_signed else np.uint64)
        return Leaf(h5t.NATIVE_INT64 if is_signed else h5t.NATIVE_UINT64, data)
    if kind is str:
        return _text(node, None)
    if kind is bytes:
        return _bytes(node, "bytes")
    if kind in _PLAIN_TYPES:
        return Leaf(_PLAIN_TYPES[kind], np.array(node))
    if node.code == ix.INTEGER:
        return _text(names.integer_text(node.data), "int")
    argument = ix.argument_of(node)
    if node.code == ix.COMPLEX:
        return Leaf(_PLAIN_TYPES[complex], np.array(complex(*argument)))
    if node.code == ix.NUMBERS:
        code, plain, data = argument
        numbers = np.frombuffer(data, plain)
        type_id = h5t.STD_I64LE if numbers.dtype.kind == "i" else h5t.IEEE_F64LE
        return Leaf(type_id, numbers, names.container_name(code), needs_dataset=True)
    plain, data = argument
    return _scalar(plain, data, elements)


def _scalar(plain: Any, data: Any, elements: ElementTypes) -> Leaf:
    if plain == "str_":
        return _text(data, "str_")
    if plain == "bytes_":
        return _bytes(data, "bytes_", needs_dataset=True)
    dtype = dtype_from_plain(plain)
    element = elements.of(dtype)
    if not element.has_size:
        return Leaf(element.type_id, np.empty(0, np.uint8), "scalar", needs_dataset=True, note=element.note)
    if dtype.kind in _PLAIN_KINDS and element.note is None and not is_extension(dtype):
        return Leaf(element.type_id, np.ndarray((), dtype, data), "scalar")
    raw = np.ndarray((), (np.void, dtype.itemsize), data)
    return Leaf(element.type_id, raw, "scalar", needs_dataset=True, note=element.note)


def _text(text: str, kind: str | None) -> Leaf:
    """Make a string, or bytes if it has a NUL or is not Unicode, which HDF5's strings cannot hold."""
    if "\0" in text or not _is_unicode(text):
        return _bytes(text.encode("utf-8", "surrogatepass"), kind or "str", needs_dataset=True)
    return Leaf(TEXT, np.array(text, object), kind, needs_dataset=kind is not None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return False
    return True


def _bytes(value: bytes, kind: str, *, needs_dataset: bool = False) -> Leaf:
    return Leaf(h5t.STD_U8LE, np.frombuffer(value, np.uint8), kind, needs_dataset)
