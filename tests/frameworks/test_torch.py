"""Tensors in a state: what comes back, in every way to load."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.tensors import DTYPES, IGNORED, assert_equal, bits, torch

from asyncckpt import CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = IGNORED


def make_state() -> dict[str, Any]:
    """Make a state with tensors of every kind."""
    generator = torch.Generator().manual_seed(7)
    raw = torch.randint(0, 256, (24, 16), dtype=torch.uint8, generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(5, 3, generator=generator)).sum().backward()
    optimizer.step()
    weight = torch.arange(12.0).reshape(3, 4)
    complex_ = torch.randn(3, dtype=torch.complex64, generator=generator)
    return {
        "dtypes": {name: (raw % 2 if name == "bool" else raw.clone()).view(getattr(torch, name)) for name in DTYPES},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        "tied": [weight, weight.view(3, 4)],
        "views": [weight.t(), weight[1:, ::2], weight[:1].expand(5, 4)],
        "bits": [complex_, complex_.conj(), complex_.conj().imag],
        "large": torch.randn(300, 257, generator=generator).t(),
        "rng": torch.get_rng_state(),
        "generator": generator,
        "others": [weight.shape, torch.bfloat16, torch.device("cpu"), OrderedDict(a=1)],
    }


@pytest.mark.parametrize("format_", ["msgpack", "hdf5"])
async def test_it_comes_back_equal_in_every_way(tmp_path: Path, format_: str) -> None:
    """Plain, lazily, like a template, and into a state."""
    state = make_state()
    async with CheckpointManager(tmp_path, format=format_) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1)).state
        assert_equal(found, state)
        assert found["tied"][0] is found["tied"][1]
        assert type(found["parameter"]) is torch.Tensor
        like = (await manager.load(1, like=state)).state
        assert_equal(like, state)
        assert type(like["parameter"]) is torch.nn.Parameter
        lazy = (await manager.load(1, lazy=True)).state
        assert_equal(lazy, state)
        lazy["large"].add_(1)  # a private copy of what is written to
        assert_equal((await manager.load(1, select="large")).state["large"], state["large"])
        other = make_state()
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        other |= {"model": model.state_dict(), "views": [torch.zeros(4, 3), torch.zeros(2, 2), torch.zeros(5, 4)]}
        other["bits"] = [torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64).conj()]
        other["bits"].append(torch.zeros(3, dtype=torch.complex64).conj().imag)
        version = model[0].weight._version
        await manager.restore(1, into=other)
        assert_equal(other, state)
        assert torch.equal(model[0].weight, state["model"]["0.weight"])
        assert model[0].weight._version > version


@pytest.mark.parametrize("format_", ["msgpack", "hdf5"])
async def test_numpy_arrays_can_be_asked_for(tmp_path: Path, format_: str) -> None:
    """With `arrays="numpy"`, for programs that do not need the framework."""
    state = make_state()
    async with CheckpointManager(tmp_path, format=format_) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1, arrays="numpy")).state
    assert {type(each) for each in found["dtypes"].values()} == {np.ndarray}
    assert found["dtypes"]["bfloat16"].dtype.name == "bfloat16"
    assert found["dtypes"]["complex32"].shape == (24, 4, 2)
    assert found["large"].tobytes() == bits(state["large"])
