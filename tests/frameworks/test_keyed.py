"""Tensors of PyTorch as values of keyed files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import asyncckpt

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")


def nested(value: Any, depth: int) -> Any:
    """Put a value into so many lists."""
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("extension", ["json", "npz", "msgpack", "h5"])
def test_they_come_back_as_tensors(tmp_path: Path, extension: str) -> None:
    """Equal bits, and a tensor that occurs twice is one, in whichever kind of file."""
    weight = torch.arange(1000).bfloat16()
    value = {"a": weight, "b": [weight, torch.ones(2, 3)], "set": {1}, "parameter": torch.nn.Parameter(torch.ones(()))}
    with asyncckpt.Checkpointer.from_file(tmp_path / f"x.{extension}") as chk:
        chk["value"], chk["alone"], chk["deep"] = value, weight, nested(weight, 230)
    with asyncckpt.Checkpointer.from_file(tmp_path / f"x.{extension}") as chk:
        found, alone, deep = chk["value"], chk["alone"], chk["deep"]
    assert found["a"] is found["b"][0]
    assert found["set"] == {1}
    assert torch.equal(found["b"][1], torch.ones(2, 3))
    assert torch.equal(found["parameter"], torch.ones(()))
    for _ in range(230):
        (deep,) = deep
    for each in (found["a"], alone, deep):
        assert each.dtype == torch.bfloat16
        assert torch.equal(each, weight)
