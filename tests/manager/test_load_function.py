"""`asyncckpt.load`: a directory of checkpoints, or one checkpoint by itself, in one line."""

from __future__ import annotations

import shutil
from dataclasses import make_dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.support import descriptors_below, own_threads, save_to

import asyncckpt
from asyncckpt import (
    CheckpointKeyError,
    CheckpointNotFoundError,
    CheckpointWarning,
    ConfigError,
    CorruptCheckpointError,
    StateMismatchError,
)
from asyncckpt.blocking import CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a directory with three checkpoints, of which the second is the best."""
    path = tmp_path / "runs"
    with CheckpointManager(path, metric_name="score") as manager:
        for step, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
            state = {"w": np.full(1000, step), "more": {"n": step}}
            manager.save(step, state, training_info={"score": score})
    return path


def test_a_directory_of_checkpoints(saved: Path) -> None:
    """The latest, the best, or a step, with the options of `CheckpointManager.load`; nothing is left behind."""
    loaded = asyncckpt.load(saved)
    assert (loaded.step, loaded.path, loaded.training_info) == (3, saved / "step_3", {"score": 0.7})
    assert loaded.state["w"].tolist() == [3] * 1000
    assert asyncckpt.load(str(saved), "best").step == 2
    assert asyncckpt.load(saved, 1).state["more"] == {"n": 1}
    assert asyncckpt.load(saved, np.int64(1)).step == 1
    assert asyncckpt.load(saved, step=2, select="more").state == {"more": {"n": 2}}
    assert own_threads() == []
    assert descriptors_below(saved) == []
    lazy = asyncckpt.load(saved, lazy=True)
    assert lazy.state["w"].sum() == 3000, "mapped, although nothing is open any more"
    with pytest.raises(StateMismatchError, match="w"):
        asyncckpt.load(saved, like={"w": np.zeros(5), "more": {"n": 0}})


@pytest.mark.parametrize("name", ["step_3", "renamed", "step_77"])
def test_one_checkpoint_by_itself(saved: Path, tmp_path: Path, name: str) -> None:
    """Wherever it is and whatever its name: it knows its step."""
    alone = tmp_path / "elsewhere" / name
    shutil.copytree(saved / "step_3", alone)
    for step in ("latest", "best", 3):
        loaded = asyncckpt.load(alone, step)
        assert (loaded.step, loaded.state["more"]) == (3, {"n": 3})
    assert asyncckpt.load(alone, select="more", lazy=True).state == {"more": {"n": 3}}
    with pytest.raises(CheckpointNotFoundError, match="is the checkpoint of step 3, not of step 1"):
        asyncckpt.load(alone, 1)
    with pytest.raises(CheckpointKeyError):
        asyncckpt.load(alone, select="nothing")
    assert own_threads() == []


def test_a_damaged_checkpoint(saved: Path) -> None:
    """The latest falls back with a warning that points here; one that was named is an error."""
    file = saved / "step_3" / "state.msgpack"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.warns(CheckpointWarning, match="falling back from step 3 to step 1|from step 3 to step 2") as caught:
        assert asyncckpt.load(saved).step == 2
    assert caught[0].filename == __file__
    for path, step in ((saved, 3), (saved / "step_3", "latest")):
        with pytest.raises(CorruptCheckpointError):
            asyncckpt.load(path, step)


def test_what_is_not_there(saved: Path, tmp_path: Path) -> None:
    """Each error says what there is instead; `missing_ok` returns None."""
    with pytest.raises(CheckpointNotFoundError, match="step 9"):
        asyncckpt.load(saved, 9)
    with pytest.raises(FileNotFoundError, match=r"does not exist \(did you mean .*runs"):
        asyncckpt.load(tmp_path / "rums")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint"):
        asyncckpt.load(tmp_path / "empty")
    for path, step in ((saved, 9), (tmp_path / "rums", "latest"), (tmp_path / "empty", "best")):
        assert asyncckpt.load(path, step, missing_ok=True) is None
    assert own_threads() == []


def test_what_cannot_be_loaded(saved: Path, tmp_path: Path) -> None:
    """A keyed file is named as one; arguments of the wrong kind are refused before anything is read."""
    with asyncckpt.Checkpointer.from_file(tmp_path / "results.msgpack") as chk:
        chk["a"] = 1
    for path in (tmp_path / "results.msgpack", saved / "step_1" / "state.msgpack"):
        with pytest.raises(ConfigError, match=r"is a file.*Checkpointer\.from_file.*pass its directory"):
            asyncckpt.load(path)
    with pytest.raises(TypeError, match="first argument"):
        asyncckpt.load(saved, saved / "step_1")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="latest"):
        asyncckpt.load(saved, "newest")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="arrays"):
        asyncckpt.load(saved, arrays="torch")  # type: ignore[call-overload]


async def test_beside_a_loop_and_a_writer(tmp_path: Path) -> None:
    """It takes no lock, and works where a loop runs."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": 1}))
        assert asyncckpt.load(tmp_path).state == asyncckpt.load(tmp_path / "step_1").state == {"a": 1}
        await (await manager.save(2, {"a": 2}))
    assert asyncckpt.load(tmp_path).state == {"a": 2}


def test_plain_data_warns(tmp_path: Path) -> None:
    """As a manager does, of an object whose type is not registered."""
    save_to(tmp_path, 1, {"p": make_dataclass("Pair", ["a", "b"])(1, 2)})
    for path in (tmp_path, tmp_path / "step_1"):
        with pytest.warns(CheckpointWarning, match="p was saved as") as caught:
            assert asyncckpt.load(path).state == {"p": {"a": 1, "b": 2}}
        assert caught[0].filename == __file__
