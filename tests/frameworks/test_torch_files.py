"""Files that PyTorch's own tools write, in one commit with a state."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from helpers.tensors import IGNORED, torch

import asyncckpt
from asyncckpt import CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = IGNORED

dcp = pytest.importorskip("torch.distributed.checkpoint")


def make_weights() -> dict[str, Any]:
    """Make a state dict."""
    generator = torch.Generator().manual_seed(3)
    return {"model": {"w": torch.randn(300, 70, generator=generator), "b": torch.arange(7.0)}, "epoch": 3}


def write_dcp(path: Path, weights: dict[str, Any]) -> None:
    """Write weights as torch's distributed checkpoint does."""
    dcp.save(weights, checkpoint_id=path, no_dist=True)


def read_dcp(path: Path) -> dict[str, Any]:
    """Read them again."""
    into = {"model": {"w": torch.zeros(300, 70), "b": torch.zeros(7)}, "epoch": 0}
    dcp.load(into, checkpoint_id=path, no_dist=True)
    return into


def assert_same(found: dict[str, Any], weights: dict[str, Any]) -> None:
    """Check that weights came back."""
    assert found["epoch"] == weights["epoch"]
    for name, tensor in weights["model"].items():
        assert torch.equal(found["model"][name], tensor)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
async def test_a_directory_of_distributed_checkpoint(tmp_path: Path) -> None:
    """It is written by a function, copied or moved; `dcp.load` reads it in the checkpoint; a torn one is found."""
    weights = make_weights()
    for name in ("copied", "moved"):
        await asyncio.to_thread(write_dcp, tmp_path / name, weights)
    files = {
        "made": lambda path: asyncio.to_thread(write_dcp, path, weights),
        "copied": tmp_path / "copied",
        "moved": asyncckpt.FileSource(tmp_path / "moved", move=True),
    }
    async with CheckpointManager(tmp_path / "runs") as manager:
        record = await (await manager.save(1, {"cursor": 17}, files=files))
        assert record is not None
        await manager.verify(1)
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == {"cursor": 17}
        names = {file.name for file in loaded.files}
        for top in files:
            assert {f"{top}/.metadata", f"{top}/__0_0.distcp"} <= names
            assert_same(await asyncio.to_thread(read_dcp, loaded.path / top), weights)
        (loaded.path / "made" / ".metadata").unlink()
        with pytest.raises(asyncckpt.CorruptCheckpointError, match=r"made/\.metadata"):
            await manager.verify(1)
        assert manager.latest_step() is None


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
async def test_a_directory_torn_by_an_error_is_not_committed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The function fails halfway: neither the state nor half of the directory is seen; the older step stays."""
    weights = make_weights()

    async def torn(path: Path) -> None:
        await asyncio.to_thread(write_dcp, path, weights)
        await asyncio.to_thread((path / ".metadata").unlink)
        message = "a rank has died"
        raise RuntimeError(message)

    async with CheckpointManager(tmp_path) as manager:
        await manager.save(1, {"cursor": 17}, files={"weights": lambda p: asyncio.to_thread(write_dcp, p, weights)})
        handle = await manager.save(2, {"cursor": 18}, files={"weights": torn})
        with pytest.raises(asyncckpt.SaveFailedError, match=r"step 2 .*files\['weights'\]: a rank has died"):
            await handle
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_1"]
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.state == {"cursor": 17}
        assert_same(await asyncio.to_thread(read_dcp, loaded.path / "weights"), weights)
        copied = await asyncio.to_thread(shutil.copytree, loaded.path, tmp_path_factory.mktemp("copies") / "copy")
        assert_same(await asyncio.to_thread(read_dcp, copied / "weights"), weights)


async def test_a_file_of_safetensors(tmp_path: Path) -> None:
    """It is written by a function into its directory, or copied as a file."""
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = make_weights()["model"]
    await asyncio.to_thread(safetensors.save_file, tensors, tmp_path / "mine.safetensors")
    files = {
        "weights": lambda path: asyncio.to_thread(safetensors.save_file, tensors, path / "model.safetensors"),
        "copy.safetensors": tmp_path / "mine.safetensors",
    }
    async with CheckpointManager(tmp_path / "runs") as manager:
        record = await (await manager.save(1, {"cursor": 17}, files=files))
        assert record is not None
        await manager.verify(1)
        assert [file.name for file in record.files] == ["copy.safetensors", "weights/model.safetensors"]
        for file in record.files:
            found = await asyncio.to_thread(safetensors.load_file, file.path)
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
