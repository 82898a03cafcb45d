"""What the tests of PyTorch share. A module that imports this is skipped where PyTorch is not installed."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
torch.optim.SGD([torch.zeros(1)])  # the first optimizer imports a compiler, which changes the environment

IGNORED = pytest.mark.filterwarnings(
    "ignore:ComplexHalf support is experimental",
    "ignore:torch.quantize_per_tensor",
    "ignore:Sparse .* tensor support",
    "ignore:`torch.jit.script:DeprecationWarning",
    "ignore:The PyTorch API of nested tensors",
    "ignore:The PyTorch API of MaskedTensors",
)
"""PyTorch warns of what the tests use."""

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32"),
    *("float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", "complex32", "int4", "uint3", "float4_e2m1fn_x2"),
)
"""The names of dtypes of every kind."""


def bits(tensor: Any) -> bytes:
    """Return the bytes of a tensor in C order."""
    plain = tensor.detach()
    if plain.itemsize == 1:
        plain = plain.view(torch.uint8)  # what PyTorch can copy
    plain = plain.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    data: bytes = plain.view(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return data


def random_tensor(dtype: str, *shape: int, seed: int = 0) -> Any:
    """Make a tensor of random bytes."""
    type_ = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    if not shape:
        return random_tensor(dtype, 1, seed=seed).reshape(())
    size = (*shape[:-1], shape[-1] * type_.itemsize)
    raw = torch.randint(0, 2 if dtype == "bool" else 256, size, dtype=torch.uint8, generator=generator)
    return raw.view(type_)


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Compare states bit for bit; a Parameter may come back as a plain tensor."""
    if isinstance(expected, dict):
        assert type(found) is type(expected), path
        assert list(found) == list(expected), path
        assert getattr(found, "_metadata", None) == getattr(expected, "_metadata", None), path
        for key, value in expected.items():
            assert_equal(found[key], value, f"{path}/{key}")
    elif isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor), path
        assert (found.dtype, found.shape, bits(found)) == (expected.dtype, expected.shape, bits(expected)), path
    elif isinstance(expected, torch.Generator):
        assert bits(found.get_state()) == bits(expected.get_state()), path
    elif type(expected) in (list, tuple):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{path}/{number}")
    else:
        assert (type(found), found) == (type(expected), expected), path
