"""PyTorch: tensors, parameters and buffers as leaves; sizes, dtypes, devices and generators as objects."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from asyncckpt.arrays.adapters import ArrayKind, ArrayLeaf, ArrayType, PendingError, UnfitTargetError, register_adapter
from asyncckpt.arrays.device import Moment
from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.arrays.overlap import overlaps_itself
from asyncckpt.errors import CorruptCheckpointError, UnsupportedLeafError, brief
from asyncckpt.frameworks.torch.cuda import CudaSource, cuda_device, devices
from asyncckpt.frameworks.torch.dtypes import DTYPES, PAIRS, described, dtype_of, tensor_of
from asyncckpt.frameworks.torch.memory import CopiedTarget, FilledTarget, TensorSource, memory_of
from asyncckpt.frameworks.torch.parts import PartSource
from asyncckpt.frameworks.torch.refusals import advice, why_refused
from asyncckpt.state.reduction import Reduction
from asyncckpt.state.types import register_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from numpy.typing import NDArray

    from asyncckpt.arrays.adapters import AnyLeaf
    from asyncckpt.arrays.source import ForeignSource
    from asyncckpt.arrays.target import ArrayTarget

__all__ = ["advice", "check", "devices", "restored"]  # see `Framework`
_NO_MEMORY: Final = "a tensor without memory of its own ({}): save it outside of the transformation"
_CPU: Final = torch.device("cpu")


class _TensorType(NamedTuple):
    """What tensors of one dtype and shape have in common."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    meta: ArrayMeta
    kind: ArrayKind
    nbytes: int
    itemsize: int
    is_complex: bool


@lru_cache(maxsize=1024)
def _type_of(dtype: torch.dtype, shape: torch.Size) -> _TensorType:
    """Describe the tensors of a dtype that can be saved, and of a shape."""
    plain, kind = DTYPES[dtype]
    meta = ArrayMeta(plain, (*shape, 2) if kind is PAIRS else tuple(shape))
    return _TensorType(dtype, tuple(shape), meta, kind, meta.nbytes, dtype.itemsize, dtype.is_complex)


class _TensorAdapter:
    """Tensors of one type; `wrap` makes such a tensor of a plain one."""

    def __init__(self, wrap: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> None:
        self._wrap = wrap
        self._type = _type_of(torch.float32, torch.Size())

    def leaf(self, array: torch.Tensor) -> AnyLeaf:
        try:
            kept = self._type  # that of the previous tensor, which is often equal
            if array.dtype is not kept.dtype or array.shape != kept.shape:
                described(array)  # or refuse it
                kept = self._type = _type_of(array.dtype, array.shape)
            _, shape, meta, kind, nbytes, itemsize, is_complex = kept
            if not array.is_cpu or array.is_neg() or (is_complex and (array.is_conj() or kind is PAIRS)):
                return self._unusual_leaf(array, meta, kind)
            storage = array.untyped_storage()
            base, address = storage.data_ptr(), array.data_ptr()
            strides = None if array.is_contiguous() else array.stride()
        except RuntimeError as error:
            is_strided = array.layout is torch.strided and not array.is_nested
            why = _NO_MEMORY.format(brief(error)) if is_strided else why_refused(array)
            raise UnsupportedLeafError(why, path="") from error
        if nbytes and not base:  # a smaller storage is found when it is read
            raise UnsupportedLeafError(f"a tensor of shape {shape} whose storage was freed", path="")
        # A named tuple is made fastest in this way. Tensors without elements have no address.
        source = tuple.__new__(TensorSource, (nbytes, storage, base, address, itemsize, shape, strides))
        identity = (id(array),) if not address else address if strides is None else (address, strides)
        return identity, meta, source, False, kind

    def _unusual_leaf(self, array: torch.Tensor, meta: ArrayMeta, kind: ArrayKind) -> ArrayLeaf:
        """Describe a tensor whose bytes are not those of its memory, or not on the CPU.

        Raises:
            PendingError: It is on a device.
        """
        if array.layout is not torch.strided or array.device.type == "meta":
            raise UnsupportedLeafError(why_refused(array), path="")
        identity: Hashable = id(array)
        if array.numel():
            storage, place = array.untyped_storage(), (array.storage_offset(), array.shape, array.stride())
            identity = (storage.data_ptr(), place, array.is_conj(), array.is_neg(), array.device)

        def made(source: ForeignSource) -> ArrayLeaf:
            return ArrayLeaf(identity, meta, source, kind=kind)

        if array.device.type == "cuda":
            device = cuda_device(array.device.index)
            raise PendingError(f"on {array.device}", lambda ready: made(CudaSource(array, device, ready(device))))
        if not array.is_cpu:
            raise PendingError(f"on {array.device}", lambda _: made(PartSource(array)))
        return made(PartSource(array))

    def wanted(self, array: torch.Tensor) -> ArrayType:
        if array.is_meta and array.layout is torch.strided:  # it describes one
            described(array)  # or refuse it
            kept = _type_of(array.dtype, array.shape)
            return ArrayType(kept.meta.dtype, kept.meta.shape, kept.kind, self._place(array))
        try:
            _, meta, _, _, kind = self.leaf(array)
        except PendingError as error:  # it is on a device
            _, meta, _, _, kind = error.leaf(Moment().ready)
        return ArrayType(meta.dtype, meta.shape, kind, self._place(array))

    def _place(self, array: torch.Tensor) -> Hashable:
        return array.device, array.requires_grad, isinstance(array, torch.nn.Buffer)

    def target(self, array: torch.Tensor, dtype: np.dtype[Any]) -> ArrayTarget:
        if array.is_meta:
            found = "a tensor on the meta device, which has no memory: module.to_empty() makes some"
            raise UnfitTargetError("writability", found, "contents to be filled in")
        if array.is_inference():
            raise UnfitTargetError("writability", "an inference tensor", "contents to be filled in")
        own, _ = described(array)
        strides = None if array.is_contiguous() else array.stride()
        view = memory_of(array.untyped_storage(), array.data_ptr(), array.itemsize, array.shape, strides)
        if overlaps_itself(view):
            raise UnfitTargetError("sharing", "a tensor with elements that share memory", "elements of their own")
        if array.is_conj() or array.is_neg() or array.device.type != "cpu":
            return CopiedTarget(array, view, dtype, _type_of(array.dtype, array.shape).meta.shape)
        return FilledTarget(array, view, is_swapped=dtype.byteorder not in ("=", "|") and dtype != own)

    def like(self, array: torch.Tensor, data: NDArray[Any], kind: ArrayKind | None) -> torch.Tensor:
        del kind
        made = tensor_of(data, array.dtype).to(_CPU if array.is_meta else array.device)
        return made if self._wrap is None else self._wrap(array, made)


def check(kind: ArrayKind, dtype: np.dtype[Any]) -> None:
    """Check that there are tensors of a kind and dtype; see `Framework`."""
    if dtype_of(kind, dtype) is None:
        raise CorruptCheckpointError(f"the index is damaged: no tensor is {brief(str(kind))} of {dtype}")


def restored(kind: ArrayKind, data: NDArray[Any]) -> torch.Tensor:
    """Make a tensor as it was saved; see `Framework`."""
    return tensor_of(data, dtype_of(kind, data.dtype))


has_numbers: Final = False


def reduction(cls: type, family: Reduction | None) -> None:
    """Return None: no classes are registered with PyTorch; see `Framework`."""


def _plain(template: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    if isinstance(template, torch.nn.Buffer):  # a plain tensor with attributes
        made = torch.nn.Buffer(made, persistent=template.persistent)
    return made.requires_grad_(template.requires_grad and template.is_leaf)


def _parameter(template: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(made, requires_grad=template.requires_grad)


def _dtype(state: Any) -> torch.dtype:
    dtype = getattr(torch, state, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"PyTorch has no dtype {state!r}")  # noqa: TRY004 - the value is wrong
    return dtype


def _generator_state(generator: torch.Generator) -> object:
    return {"device": str(generator.device), "state": generator.get_state().numpy()}


def _generator(state: Any) -> torch.Generator:
    return _update_generator(torch.Generator(state["device"]), state)


def _update_generator(generator: torch.Generator, state: Any) -> torch.Generator:
    generator.set_state(torch.from_numpy(np.array(state["state"], np.uint8)))
    return generator


def _generator_differs(generator: torch.Generator, state: Any) -> tuple[str, object, object] | None:
    own = str(generator.device)
    return None if state["device"] == own else ("device", own, state["device"])


for _type, _adapter in ((torch.Tensor, _TensorAdapter(_plain)), (torch.nn.Parameter, _TensorAdapter(_parameter))):
    register_adapter(_type, _adapter)
for _reduction in (
    Reduction("torch.Size", torch.Size, tuple, torch.Size, is_value=True),
    Reduction("torch.dtype", torch.dtype, lambda dtype: str(dtype).removeprefix("torch."), _dtype, is_value=True),
    Reduction("torch.device", torch.device, str, torch.device, is_value=True),
    Reduction("torch.Generator", torch.Generator, _generator_state, _generator, _update_generator, _generator_differs),
):
    register_reduction(_reduction)
