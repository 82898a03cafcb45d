"""What is known of an array without its bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np


class ArrayMeta:
    """The dtype and shape of arrays: one object describes all arrays that have both in common."""

    __slots__ = ("dtype", "nbytes", "shape")

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Describe an array; `nbytes` is its size in C order."""
        self.dtype: Final = dtype
        self.shape: Final = shape
        self.nbytes: Final = math.prod(shape) * dtype.itemsize
