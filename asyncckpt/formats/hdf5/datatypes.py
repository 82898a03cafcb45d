"""Convert numpy dtypes to HDF5 datatypes.

1. Bytes are never converted: an element in the file is the element in memory, including byte order and padding.
2. If h5py would not read the same dtype, a *note* has it (`dtype_to_plain` as JSON).
3. A dtype that HDF5 cannot describe is opaque, of the element's size, with a note.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from asyncckpt.libhdf5 import h5t
from asyncckpt.state.dtypes import dtype_to_plain, is_extension

_TYPE_MAX_NBYTES: Final = 1 << 15  # encoded; a message of an object header ends at 64 KiB
_FLOATS: Final = {  # (position and size of the exponent, size of the mantissa, bias); with IEEE's inf and NaN
    "bfloat16": (7, 8, 7, 127),
    "float8_e5m2": (2, 5, 2, 15),
    "float8_e4m3": (3, 4, 3, 7),
    "float8_e3m4": (4, 3, 4, 3),
}


@dataclass(frozen=True, slots=True)
class ElementType:
    """The HDF5 datatype of an array's elements."""

    type_id: Any
    """The HDF5 datatype."""
    note: str | None
    """The numpy dtype as JSON, if the datatype does not determine it."""
    has_size: bool = True
    """False for elements of no bytes, which HDF5 does not have. They are stored as empty rows of uint8."""


class ElementTypes:
    """The datatypes of one file. Each is made once."""

    def __init__(self) -> None:
        self._types: dict[object, ElementType] = {}

    def of(self, dtype: np.dtype[Any]) -> ElementType:
        """Return the type for arrays of this dtype."""
        # Equal dtypes may differ: np.longlong from np.int64, and structures in their titles or alignment.
        key = (dtype, dtype.char) if dtype.names is None else json.dumps(dtype_to_plain(dtype))
        found = self._types.get(key)
        if found is None:
            found = self._types[key] = _element_type(dtype)
        return found


def _element_type(dtype: np.dtype[Any]) -> ElementType:
    plain = dtype_to_plain(dtype)
    note = json.dumps(plain)
    if dtype.itemsize == 0:
        return ElementType(h5t.STD_U8LE, note, has_size=False)
    try:
        type_id = _build(dtype)
    except (ValueError, TypeError, RuntimeError, KeyError, OverflowError, NotImplementedError):
        return ElementType(_opaque(dtype.itemsize), note)
    if len(type_id.encode()) > _TYPE_MAX_NBYTES:
        return ElementType(_opaque(dtype.itemsize), note)
    if isinstance(plain, str) and plain in _FLOATS:  # the datatype is exact, though h5py reads a wider float
        return ElementType(type_id, None)
    return ElementType(type_id, None if _is_read_back(type_id, plain) else note)


def _is_read_back(type_id: Any, plain: object) -> bool:
    try:
        return dtype_to_plain(type_id.dtype) == plain
    except (ValueError, TypeError, NotImplementedError):
        return False


def _build(dtype: np.dtype[Any]) -> Any:
    """Make an HDF5 datatype, or raise one of h5py's errors if there is none."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return h5t.array_create(_build(base), shape)
    if dtype.names is not None:
        made = h5t.create(h5t.COMPOUND, dtype.itemsize)
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]  # type: ignore[index]
            encoded = name.encode()
            if b"\0" in encoded:
                raise ValueError(name)
            made.insert(encoded, offset, _build(field))
        return made
    if is_extension(dtype):
        return _float(dtype, *_FLOATS[dtype.name]) if dtype.name in _FLOATS else _bits(dtype)
    if dtype.kind in "mM":
        return h5t.py_create(np.dtype(np.int64).newbyteorder(dtype.byteorder))
    if dtype.kind == "U":
        return h5t.array_create(
            h5t.py_create(np.dtype(np.uint32).newbyteorder(dtype.byteorder)), (dtype.itemsize // 4,)
        )
    return h5t.py_create(np.dtype(dtype.str), logical=True)  # by its name, because a dtype may have metadata of h5py


def _float(dtype: np.dtype[Any], exponent_at: int, exponent: int, mantissa: int, bias: int) -> Any:
    made = (h5t.IEEE_F32BE if dtype.byteorder == ">" else h5t.IEEE_F32LE).copy()
    nbits = 1 + exponent + mantissa
    made.set_fields(nbits - 1, exponent_at, exponent, 0, mantissa)
    made.set_size(nbits // 8)
    made.set_ebias(bias)
    return made


def _bits(dtype: np.dtype[Any]) -> Any:
    return h5t.STD_U8LE if dtype.itemsize == 1 else _opaque(dtype.itemsize)


def _opaque(nbytes: int) -> Any:
    return h5t.py_create(np.dtype((np.void, nbytes)))
