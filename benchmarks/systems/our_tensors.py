"""asyncckpt, with states of PyTorch's tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from benchmarks.systems.ours import Asyncckpt, AsyncckptHdf5, AsyncckptMsgpack

if TYPE_CHECKING:
    from benchmarks.states import State


class _Tensors(Asyncckpt):
    def adopt(self, state: State) -> Any:
        """Wrap the arrays as tensors."""
        return {name: torch.from_numpy(array) for name, array in state.items()}


class MsgpackTensors(_Tensors, AsyncckptMsgpack):
    """`format="msgpack"`, the default."""


class Hdf5Tensors(_Tensors, AsyncckptHdf5):
    """`format="hdf5"`."""
