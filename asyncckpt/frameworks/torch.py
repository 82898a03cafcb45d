"""PyTorch: tensors, parameters and buffers as leaves; sizes, dtypes, devices and generators as objects.

1. A tensor on the CPU is read and filled through a numpy view of its memory, which is made of the storage's address.
   `tensor.numpy()` would make the storage impossible to resize, for ever.
2. The view keeps the storage alive, and not the tensor, which may get another storage (`tensor.data = ...`). A storage
   that is resized frees its memory even so: each read checks its address and size first. What a restore fills is
   checked when it begins, because no task may use the state until it has ended.
3. The version of a tensor that was filled is counted up, so that a backward pass that needs its former contents fails.
"""

from __future__ import annotations

import contextlib
import ctypes
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from torch.autograd.graph import increment_version

from asyncckpt.arrays.adapters import ArrayKind, ArrayLeaf, ArrayType, PendingError, UnfitTargetError, register_adapter
from asyncckpt.arrays.device import Moment
from asyncckpt.arrays.overlap import overlaps_itself
from asyncckpt.arrays.source import copy_bytes
from asyncckpt.arrays.strided import flat_bytes, scatter
from asyncckpt.errors import CorruptCheckpointError, UnsupportedLeafError, brief
from asyncckpt.frameworks.cuda import CudaSource, cuda_device, devices
from asyncckpt.frameworks.tensor_parts import PartSource, freed
from asyncckpt.state.reduction import Reduction
from asyncckpt.state.types import register_reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.arrays.source import Buffer, ForeignSource
    from asyncckpt.arrays.target import ArrayTarget

    Bytes = NDArray[np.uint8]

__all__ = ["advice", "check", "devices", "restored"]  # see `Framework`
_TENSOR: Final = ArrayKind("torch")
_PAIRS: Final = ArrayKind("torch", "complex32")
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
_NO_MEMORY: Final = "a tensor without memory of its own ({}): save it outside of the transformation"
_CPU: Final = torch.device("cpu")
_VIEWS: Final = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}
"""By the size of an element, a dtype of numpy in which memory is moved unchanged."""


_Place: TypeAlias = "tuple[int, torch.dtype, torch.Size] | tuple[int, torch.dtype, torch.Size, tuple[int, ...]]"
"""Where the elements of a tensor lie: address, dtype, shape, and strides in elements if it is not contiguous."""


def _place_of(tensor: torch.Tensor) -> _Place:
    place = (tensor.data_ptr(), tensor.dtype, tensor.shape)
    return place if tensor.is_contiguous() else (*place, tensor.stride())


class _Memory:
    """Memory of a storage, as numpy's array interface describes it. Arrays that show it keep the storage alive."""

    __slots__ = ("__array_interface__", "_storage")

    def __init__(self, storage: torch.UntypedStorage, place: _Place) -> None:
        address, dtype, shape, *strided = place
        itemsize = dtype.itemsize
        # The stride of a dimension of at most one element is not used, and may be any number.
        strides = [
            stride * itemsize if size > 1 else itemsize
            for strides in strided
            for stride, size in zip(strides, shape, strict=True)
        ]
        self._storage = storage
        self.__array_interface__ = {
            "version": 3,
            "typestr": _VIEWS[itemsize],
            "shape": tuple(shape),
            "strides": tuple(strides) if strided else None,
            "data": (address, False),
        }


class _TensorSource(NamedTuple):
    """The memory of a tensor on the CPU.

    One is made for each tensor of each save, so it is a tuple, and as little as possible is done before it is read.
    """

    nbytes: int
    storage: torch.UntypedStorage
    base: int
    """The address of the storage."""
    place: _Place

    def _array(self) -> NDArray[Any]:
        self._check(self.nbytes if len(self.place) == _CONTIGUOUS else _reach(*self.place))
        return np.asarray(_Memory(self.storage, self.place))

    def _check(self, reach: int) -> None:
        """Check that the storage still has the memory, in which the elements reach so many bytes far."""
        nbytes, storage, base, place = self
        if storage.data_ptr() != base or (nbytes and storage.nbytes() < place[0] - base + reach):
            raise freed(self, place[2])

    def view(self, start: int, nbytes: int) -> Bytes | None:
        data = flat_bytes(self._array())
        return None if data is None else data[start : start + nbytes]

    def copy_to(self, target: Bytes, start: int) -> None:
        copy_bytes(self._array(), start, target)

    def buffer(self) -> Buffer:
        nbytes, storage, base, place = self
        if len(place) != _CONTIGUOUS or not nbytes:
            return self._array().tobytes()
        # As `view` does, and many times faster than to make an array.
        if storage.data_ptr() != base or storage.nbytes() < place[0] - base + nbytes:
            self._check(nbytes)
        memory: Buffer = _type_of_memory(nbytes).from_address(place[0])
        return memory


_CONTIGUOUS: Final = 3  # the length of a place without strides
_type_of_memory: Final[Callable[[int], Any]] = lru_cache(maxsize=256)(ctypes.c_char.__mul__)
"""Returns the ctypes type of so many bytes of memory."""


def _reach(address: int, dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...] = ()) -> int:
    """Return how far the elements of a tensor that is not contiguous reach in memory, in bytes."""
    del address
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    reach: int = (last + 1) * dtype.itemsize
    return reach


class _FilledTarget:
    """A tensor on the CPU that is filled in place."""

    def __init__(self, tensor: torch.Tensor, array: NDArray[Any], *, is_swapped: bool) -> None:
        self._tensor = tensor
        self._filled = array
        self._is_swapped = is_swapped

    @property
    def array(self) -> NDArray[Any] | None:
        return self._filled

    def memory(self) -> Bytes | None:
        return flat_bytes(self._filled)

    def store(self, start: int, data: Bytes) -> None:
        scatter(self._filled, start, data)

    def finish(self) -> torch.Tensor:
        if self._is_swapped:
            self._filled.byteswap(inplace=True)
        increment_version(self._tensor)
        return self._tensor


class _CopiedTarget:
    """A tensor that numpy cannot show, whose new contents are collected on the CPU first."""

    def __init__(self, tensor: torch.Tensor, array: NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._tensor = tensor
        self._filled = array
        self._data = np.empty(shape, dtype)

    @property
    def array(self) -> NDArray[Any] | None:
        """Its elements' places, not to be read: on the CPU or a device, addresses tell what shares memory."""
        return self._filled

    def memory(self) -> Bytes | None:
        return flat_bytes(self._data)

    def store(self, start: int, data: Bytes) -> None:
        scatter(self._data, start, data)

    def finish(self) -> torch.Tensor:
        with torch.no_grad():
            self._tensor.copy_(_made(self._data, self._tensor.dtype))
        return self._tensor


class _TensorAdapter:
    """Tensors of one type; `wrap` makes such a tensor of a plain one."""

    def __init__(self, wrap: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> None:
        self._wrap = wrap

    def leaf(self, array: torch.Tensor) -> ArrayLeaf:
        torch_dtype = array.dtype
        dtype, kind = _DTYPES.get(torch_dtype) or _described(array)
        try:
            if not array.is_cpu or array.is_neg() or (dtype.kind == "c" and array.is_conj()) or kind is _PAIRS:
                return self._unusual_leaf(array, dtype, kind)
            storage = array.untyped_storage()
            base, nbytes = storage.data_ptr(), array.nbytes
            address, shape = array.data_ptr(), array.shape
            place: _Place = (address, torch_dtype, shape)
            if not array.is_contiguous():
                place = (address, torch_dtype, shape, array.stride())
        except RuntimeError as error:
            is_strided = array.layout is torch.strided and not array.is_nested
            why = _NO_MEMORY.format(brief(error)) if is_strided else _why_refused(array)
            raise UnsupportedLeafError(why, path="") from error
        if nbytes and not base:  # a smaller storage is found when it is read
            raise UnsupportedLeafError(f"a tensor of shape {tuple(shape)} whose storage was freed", path="")
        # Named tuples are made much faster in this way. Tensors without elements have no address.
        source = tuple.__new__(_TensorSource, (nbytes, storage, base, place))
        return tuple.__new__(ArrayLeaf, (place if address else id(array), dtype, shape, source, False, kind))

    def _unusual_leaf(self, array: torch.Tensor, dtype: np.dtype[Any], kind: ArrayKind) -> ArrayLeaf:
        """Describe a tensor whose bytes are not those of its memory, or not on the CPU.

        Raises:
            PendingError: It is on a device.
        """
        if array.layout is not torch.strided or array.device.type == "meta":
            raise UnsupportedLeafError(_why_refused(array), path="")
        identity: Hashable = id(array)
        if array.numel():
            storage, place = array.untyped_storage(), (array.storage_offset(), array.shape, array.stride())
            identity = (storage.data_ptr(), place, array.dtype, array.is_conj(), array.is_neg(), array.device)
        shape = (*array.shape, 2) if kind is _PAIRS else array.shape

        def made(source: ForeignSource) -> ArrayLeaf:
            return ArrayLeaf(identity, dtype, shape, source, kind=kind)

        if array.device.type == "cuda":
            device = cuda_device(array.device.index)
            raise PendingError(f"on {array.device}", lambda ready: made(CudaSource(array, device, ready(device))))
        if not array.is_cpu:
            raise PendingError(f"on {array.device}", lambda _: made(PartSource(array)))
        return made(PartSource(array))

    def wanted(self, array: torch.Tensor) -> ArrayType:
        if array.is_meta and array.layout is torch.strided:  # it describes one
            dtype, kind = _described(array)
            shape = (*array.shape, 2) if kind is _PAIRS else tuple(array.shape)
            return ArrayType(dtype, shape, kind, self._place(array))
        try:
            leaf = self.leaf(array)
        except PendingError as error:  # it is on a device
            leaf = error.leaf(Moment().ready)
        return ArrayType(leaf.dtype, leaf.shape, leaf.kind, self._place(array))

    def _place(self, array: torch.Tensor) -> Hashable:
        return array.device, array.requires_grad, isinstance(array, torch.nn.Buffer)

    def target(self, array: torch.Tensor, dtype: np.dtype[Any]) -> ArrayTarget:
        if array.is_meta:
            found = "a tensor on the meta device, which has no memory: module.to_empty() makes some"
            raise UnfitTargetError("writability", found, "contents to be filled in")
        if array.is_inference():
            raise UnfitTargetError("writability", "an inference tensor", "contents to be filled in")
        own, kind = _described(array)
        view = np.asarray(_Memory(array.untyped_storage(), _place_of(array)))
        if overlaps_itself(view):
            raise UnfitTargetError("sharing", "a tensor with elements that share memory", "elements of their own")
        if array.is_conj() or array.is_neg() or array.device.type != "cpu":
            return _CopiedTarget(array, view, dtype, (*array.shape, 2) if kind is _PAIRS else tuple(array.shape))
        return _FilledTarget(array, view, is_swapped=dtype.byteorder not in ("=", "|") and dtype != own)

    def like(self, array: torch.Tensor, data: NDArray[Any], kind: ArrayKind | None) -> torch.Tensor:
        del kind
        made = _made(data, array.dtype).to(_CPU if array.is_meta else array.device)
        return made if self._wrap is None else self._wrap(array, made)


def check(kind: ArrayKind, dtype: np.dtype[Any]) -> None:
    """Check that there are tensors of a kind and dtype; see `Framework`."""
    if _dtype_of(kind, dtype) is None:
        raise CorruptCheckpointError(f"the index is damaged: no tensor is {brief(str(kind))} of {dtype}")


def restored(kind: ArrayKind, data: NDArray[Any]) -> torch.Tensor:
    """Make a tensor as it was saved; see `Framework`."""
    return _made(data, _dtype_of(kind, data.dtype))


def _dtype_of(kind: ArrayKind, dtype: np.dtype[Any]) -> Any:
    return _BY_BYTES.get((dtype if dtype.isnative else dtype.newbyteorder("="), kind))


has_numbers: Final = False


def reduction(cls: type, family: Reduction | None) -> None:
    """Return None: no classes are registered with PyTorch; see `Framework`."""


def advice(value: object) -> str | None:
    """Say what to save instead of an object of PyTorch; see `Framework`."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.Tensor):
        return _why_refused(value)
    if hasattr(value, "state_dict"):
        return f"{name} cannot be saved: save its state_dict(), and give that to load_state_dict() after a load"
    return None


def _why_refused(tensor: torch.Tensor) -> str:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return _why_refused_type(type(tensor))
    if tensor.device.type == "meta":
        return "a tensor on the meta device has no contents: give it some first, as module.to_empty() and a load do"
    if tensor.is_nested:
        return f"a nested tensor cannot be saved: {_SUBCLASSES['NestedTensor']}"
    if tensor.is_quantized:
        return "a quantized tensor cannot be saved: save its int_repr(), q_scale() and q_zero_point()"
    if tensor.layout is not torch.strided:
        return f"a tensor of the layout {tensor.layout} cannot be saved: save its to_dense(), or its indices and values"
    return f"a tensor of {tensor.dtype} cannot be saved: view it as another dtype of the same size"


def _why_refused_type(type_: type) -> str:
    for known, way in _SUBCLASSES.items():
        if known in (base.__name__ for base in type_.__mro__):
            return f"a tensor of the type {type_.__qualname__} cannot be saved: {way}"
    return (
        f"{type_.__qualname__}, a subclass of torch.Tensor, would come back as a plain tensor: convert it with"
        " as_subclass(torch.Tensor), or register it with asyncckpt.register_type"
    )


_SUBCLASSES: Final = {
    "DTensor": "save its full_tensor(), or the to_local() of each process",
    "FakeTensor": "it has no contents: save the real tensor",
    "FunctionalTensor": "it exists only while a program is traced: save the real tensor",
    "NestedTensor": "save its values() and offsets(), or to_padded_tensor()",
    "MaskedTensor": "save its get_data() and get_mask()",
    "UninitializedTensorMixin": "it has no shape yet: call the lazy module once, or materialize() it",
}
"""What to save instead of tensors of these classes, or of classes derived from them."""


def _described(tensor: torch.Tensor) -> tuple[np.dtype[Any], ArrayKind]:
    """Return the dtype of the bytes of a tensor, and its kind.

    Raises:
        UnsupportedLeafError: It cannot be saved.
    """
    if tensor.dtype in _DTYPES:
        return _DTYPES[tensor.dtype]
    name = str(tensor.dtype).removeprefix("torch.")
    if name in _ML_NAMES:
        raise UnsupportedLeafError(f"a tensor of {tensor.dtype} needs the package ml_dtypes: install it", path="")
    raise UnsupportedLeafError(_why_refused(tensor), path="")


def _dtypes() -> Iterator[tuple[torch.dtype, tuple[np.dtype[Any], ArrayKind]]]:
    """Yield each dtype that can be saved, the dtype of its bytes, and the kind of its tensors."""
    for name in _NUMPY_NAMES:
        yield getattr(torch, name), (np.dtype(name), _TENSOR)
    yield torch.complex32, (np.dtype(np.float16), _PAIRS)
    for dtype, kind in _OPAQUE.items():
        yield dtype, (np.dtype(np.uint8), kind)
    with contextlib.suppress(ImportError):
        import ml_dtypes

        for name in _ML_NAMES:
            if hasattr(torch, name):
                yield getattr(torch, name), (np.dtype(getattr(ml_dtypes, name)), _TENSOR)


def _made(data: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
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


def _plain(template: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    if isinstance(template, torch.nn.Buffer):  # a plain tensor with attributes
        made = torch.nn.Buffer(made, persistent=template.persistent)
    return made.requires_grad_(template.requires_grad and template.is_leaf)


def _parameter(template: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(made, requires_grad=template.requires_grad)


_RAW: Final = {1: np.uint8, 2: np.int16}
_DTYPES: Final[dict[torch.dtype, tuple[np.dtype[Any], ArrayKind]]] = dict(_dtypes())
_BY_BYTES: Final = {found: dtype for dtype, found in _DTYPES.items()}
_NUMPY_DTYPES: Final = frozenset(getattr(torch, name) for name in _NUMPY_NAMES)


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
