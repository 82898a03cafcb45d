"""Why values of PyTorch cannot be saved, and what to save instead."""

from __future__ import annotations

from typing import Final

import torch


def advice(value: object) -> str | None:
    """Say what to save instead of an object of PyTorch; see `Framework`."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, torch.Tensor):
        return why_refused(value)
    if hasattr(type(value), "state_dict"):
        return f"{name} cannot be saved: save its state_dict(), and give that to load_state_dict() after a load"
    return None


def why_refused(tensor: torch.Tensor) -> str:
    """Say why a tensor cannot be saved, and what to do."""
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
