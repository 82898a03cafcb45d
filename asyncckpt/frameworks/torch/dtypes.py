"""The dtypes of tensors: the dtypes of numpy and ml_dtypes that their bytes have, and tensors made of such bytes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from asyncckpt.arrays.adapters import ArrayKind
from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.frameworks.torch.refusals import why_refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TENSOR: Final = ArrayKind("torch")
PAIRS: Final = ArrayKind("torch", "complex32")
_NUMPY_NAMES: Final = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
_ML_NAMES: Final = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
"""The dtypes that ml_dtypes has, under the same names."""
_OPAQUE: Final = {
    getattr(torch, name): ArrayKind("torch", name)
    for name in ("float4_e2m1fn_x2", *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)))
    if hasattr(torch, name)
}
"""Dtypes of one byte that numpy does not have, saved as bytes."""


def dtype_of(kind: ArrayKind, dtype: np.dtype[Any]) -> Any:
    """Return the dtype of tensors of a kind whose bytes have this dtype; None if there are none."""
    return _BY_BYTES.get((dtype if dtype.isnative else dtype.newbyteorder("="), kind))


def described(tensor: torch.Tensor) -> tuple[np.dtype[Any], ArrayKind]:
    """Return the dtype of the bytes of a tensor, and its kind.

    Raises:
        UnsupportedLeafError: It cannot be saved.
    """
    if tensor.dtype in DTYPES:
        return DTYPES[tensor.dtype]
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _ML_NAMES:
        raise UnsupportedLeafError(f"a tensor of {tensor.dtype} needs the package ml_dtypes: install it", path="")
    raise UnsupportedLeafError(why_refused(tensor), path="")


def _dtypes() -> Iterator[tuple[torch.dtype, tuple[np.dtype[Any], ArrayKind]]]:
    """Yield each dtype that can be saved, the dtype of its bytes, and the kind of its tensors."""
    for name in _NUMPY_NAMES:
        yield getattr(torch, name), (np.dtype(name), TENSOR)
    yield torch.complex32, (np.dtype(np.float16), PAIRS)
    for dtype, kind in _OPAQUE.items():
        yield dtype, (np.dtype(np.uint8), kind)
    with contextlib.suppress(ImportError):
        import ml_dtypes

        for name in _ML_NAMES:
            if hasattr(torch, name):
                yield getattr(torch, name), (np.dtype(getattr(ml_dtypes, name)), TENSOR)


def tensor_of(data: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor of the bytes of an array, in its memory if that may be written to."""
    if not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    if not data.flags.writeable:
        data = data.view()
        try:
            data.flags.writeable = True  # if it is private memory
        except ValueError:
            data = data.copy()
    if dtype is torch.complex32:
        return torch.from_numpy(data.view(np.int32)[..., 0]).view(dtype)
    if dtype in _NUMPY_DTYPES:
        return torch.from_numpy(data)
    return torch.from_numpy(data.view(_RAW[data.dtype.itemsize])).view(dtype)


_RAW: Final = {1: np.uint8, 2: np.int16}
DTYPES: Final[dict[torch.dtype, tuple[np.dtype[Any], ArrayKind]]] = dict(_dtypes())
_BY_BYTES: Final = {found: dtype for dtype, found in DTYPES.items()}
_NUMPY_DTYPES: Final = frozenset(getattr(torch, name) for name in _NUMPY_NAMES)
