"""Tensors of PyTorch as values of keyed files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from helpers.tensors import IGNORED, assert_equal, torch

import asyncckpt

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = IGNORED


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


@pytest.mark.parametrize("extension", ["json", "npz", "msgpack", "h5"])
def test_state_dicts_come_back_as_they_came(tmp_path: Path, extension: str) -> None:
    """Those of a module, an optimizer and a scheduler, a generator, and small objects."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2, 2])
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    values = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "generator": torch.Generator().manual_seed(3),
        "small": [torch.Size([2]), torch.float16, torch.device("cpu"), torch.tensor(3)],
    }
    with asyncckpt.Checkpointer.from_file(tmp_path / f"x.{extension}") as chk:
        chk.update(values)
    with asyncckpt.Checkpointer.from_file(tmp_path / f"x.{extension}") as chk:
        for key, value in values.items():
            assert_equal(chk[key], value)


@pytest.mark.parametrize("extension", ["json", "npz", "msgpack", "h5"])
def test_what_cannot_be_saved_is_refused_with_the_way_out(tmp_path: Path, extension: str) -> None:
    """The error names the key and the path, and the file stays as it is."""
    with asyncckpt.Checkpointer.from_file(tmp_path / f"x.{extension}") as chk:
        chk["a"] = torch.ones(3)
        for value, message in (
            (torch.nn.Linear(2, 2), r"save its state_dict\(\)"),
            (torch.empty(2, device="meta"), "meta device has no contents"),
            (torch.eye(3).to_sparse(), r"to_dense\(\)"),
            (lambda step: step, "save what it is made from"),
        ):
            with pytest.raises(asyncckpt.UnsupportedLeafError, match=f"^b/x: .*{message}"):
                chk["b"] = {"x": value}
    with asyncckpt.Checkpointer.from_file(tmp_path / f"x.{extension}") as chk:
        assert list(chk) == ["a"]
        assert chk["a"].tolist() == [1, 1, 1]
