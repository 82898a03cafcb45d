"""Checkpoints of PyTorch Lightning are written by a plugin or through a manager, and trainings resume exactly."""

from __future__ import annotations

import argparse
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from helpers.kills import assert_exact, run_program

from asyncckpt import CheckpointNotFoundError, ConfigError, CorruptCheckpointError, UnsupportedLeafError
from asyncckpt.blocking import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def _library(imported: Callable[..., None]) -> None:
    imported("lightning", "asyncckpt.integrations.lightning")


@pytest.fixture
def plugin() -> Any:
    """Return a plugin, and end its threads."""
    from asyncckpt.integrations.lightning import DurableCheckpointIO

    made = DurableCheckpointIO()
    yield made
    made.teardown()


def dump(number: int) -> dict[str, Any]:
    """Return what Lightning gives a plugin, in small."""
    import torch

    return {"epoch": 1, "global_step": number, "state_dict": {"weight": torch.full((4,), float(number))}}


def saved_number(plugin: Any, path: Path) -> int:
    """Return the number of the dump at a path."""
    found = plugin.load_checkpoint(path)
    assert found["state_dict"]["weight"].tolist() == [found["global_step"]] * 4
    return int(found["global_step"])


def test_killed_trainings_end_with_the_bits_of_whole_ones(tmp_path: Path) -> None:
    """By the plugin and `ModelCheckpoint`, and through a manager; without the random generators, with others."""
    found = run_program("lightning_program.py", tmp_path)
    for runs in found.values():
        assert_exact(runs)
    assert [bits for path, bits in found["manager"]["whole"].items() if path.startswith("/names") and "step" in bits]


def test_a_path_is_one_checkpoint_directory(tmp_path: Path, plugin: Any) -> None:
    """Any manager loads it, and verifies it; nothing else is left beside it."""
    path = tmp_path / "made" / "epoch=1-step=20.ckpt"
    plugin.save_checkpoint(dump(20), path)
    plugin.teardown()
    assert [each.name for each in path.parent.iterdir() if not each.name.startswith(".")] == [path.name]
    assert {"manifest.json", "state.msgpack"} <= {each.name for each in path.iterdir()}
    with CheckpointManager(tmp_path / "made", read_only=True) as manager:
        loaded = manager.load(path)
    assert (loaded.state["global_step"], loaded.training_info) == (20, {"epoch": 1, "global_step": 20})


def test_a_path_that_is_saved_again_has_the_last_one(tmp_path: Path, plugin: Any) -> None:
    """As `ModelCheckpoint` does with last.ckpt; the copy of one directory is whole."""
    path = tmp_path / "last.ckpt"
    for number in range(1, 5):
        plugin.save_checkpoint(dump(number), path)
    assert saved_number(plugin, path) == 4
    assert [each.name for each in tmp_path.iterdir() if not each.name.startswith(".")] == ["last.ckpt"]


def test_removals_follow_the_saves_before_them(tmp_path: Path, plugin: Any) -> None:
    """What is removed at once after a save is gone, and what was saved in between is there."""
    first, second = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    plugin.save_checkpoint(dump(1), first)
    plugin.save_checkpoint(dump(2), second)
    plugin.remove_checkpoint(first)
    plugin.remove_checkpoint(tmp_path / "never.ckpt")
    assert saved_number(plugin, second) == 2
    assert not first.exists()


def test_links_are_followed_and_replaced(tmp_path: Path, plugin: Any) -> None:
    """`ModelCheckpoint(save_last="link")` makes a link to a checkpoint; a save to it replaces the link only."""
    target, link = tmp_path / "a.ckpt", tmp_path / "last.ckpt"
    plugin.save_checkpoint(dump(1), target)
    link.symlink_to("a.ckpt")
    assert saved_number(plugin, link) == 1
    plugin.save_checkpoint(dump(2), link)
    assert (saved_number(plugin, target), saved_number(plugin, link)) == (1, 2)


def test_a_failure_to_write_is_raised_by_the_next_call(
    tmp_path: Path, plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once; the checkpoint that the path had is still there, and later ones are written."""
    path = tmp_path / "last.ckpt"
    plugin.save_checkpoint(dump(1), path)
    plugin.wait()
    with monkeypatch.context() as patch:
        patch.setattr("asyncckpt.disk.ops.DiskOps.exchange", lambda *_: os_error())
        plugin.save_checkpoint(dump(2), path)
        plugin.wait()
    with pytest.raises(OSError, match="No space left"):
        plugin.save_checkpoint(dump(3), path)
    assert saved_number(plugin, path) == 1
    plugin.save_checkpoint(dump(4), path)
    assert saved_number(plugin, path) == 4


def os_error() -> bool:
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_systems_that_cannot_exchange_names(tmp_path: Path, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint is set aside first, and removed afterwards."""
    monkeypatch.setattr("asyncckpt.disk.ops.DiskOps.exchange", lambda *_: False)
    for number in (1, 2):
        plugin.save_checkpoint(dump(number), tmp_path / "last.ckpt")
    assert saved_number(plugin, tmp_path / "last.ckpt") == 2
    assert [each.name for each in tmp_path.iterdir() if not each.name.startswith(".")] == ["last.ckpt"]


def test_what_a_killed_process_had_not_named_is_removed(tmp_path: Path, plugin: Any) -> None:
    """The next process begins with an empty directory for what it writes."""
    with CheckpointManager(tmp_path / ".asyncckpt") as manager:
        manager.save(7, dump(7))
    plugin.save_checkpoint(dump(8), tmp_path / "a.ckpt")
    assert saved_number(plugin, tmp_path / "a.ckpt") == 8
    assert not list((tmp_path / ".asyncckpt").glob("*step*"))


def test_hyperparameters(tmp_path: Path, plugin: Any) -> None:
    """Subclasses of dict and namespaces come back as dicts; for others, the error says how to leave them out."""
    from lightning.fabric.utilities.data import AttributeDict

    options = AttributeDict(width=8, inner=AttributeDict(depth=2), args=argparse.Namespace(rate=0.5))
    plugin.save_checkpoint(dump(1) | {"hyper_parameters": options}, tmp_path / "a.ckpt")
    loaded = plugin.load_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"]
    assert loaded == {"width": 8, "inner": {"depth": 2}, "args": {"rate": 0.5}}
    with pytest.raises(UnsupportedLeafError, match="hyper_parameters/loss") as caught:
        plugin.save_checkpoint(dump(1) | {"hyper_parameters": {"loss": print}}, tmp_path / "b.ckpt")
    assert "save_hyperparameters(ignore=" in caught.value.__notes__[0]


def test_what_cannot_be_loaded(tmp_path: Path, plugin: Any) -> None:
    """Absent, damaged and foreign ones, with what to do; so are arguments that a plugin of this kind does not have."""
    with pytest.raises(CheckpointNotFoundError, match=r"none\.ckpt"):
        plugin.load_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "file.ckpt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="written without DurableCheckpointIO"):
        plugin.load_checkpoint(tmp_path / "file.ckpt")
    with pytest.raises(ConfigError, match="is a URL"):
        plugin.save_checkpoint(dump(1), "s3://bucket/a.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint(dump(1), tmp_path / "a.ckpt", storage_options={})
    with pytest.raises(TypeError, match="map_location"):
        plugin.load_checkpoint(tmp_path / "a.ckpt", map_location=print)
    plugin.save_checkpoint(dump(1), tmp_path / "a.ckpt")
    plugin.wait()
    with (tmp_path / "a.ckpt" / "state.msgpack").open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(CorruptCheckpointError):
        plugin.load_checkpoint(tmp_path / "a.ckpt")


def test_distances_of_saves_are_checked() -> None:
    """A distance below 1 is refused at once."""
    from asyncckpt.integrations.lightning import CheckpointCallback

    for name in ("every_n_epochs", "every_n_train_steps"):
        with pytest.raises(ValueError, match="distance of saves is 0"):
            CheckpointCallback(None, **{name: 0})
