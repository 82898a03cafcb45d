"""Directories that are not what was meant, checkpoints of another name or step, and loading by path."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.support import FORMATS

from asyncckpt import (
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    ConfigError,
    CorruptCheckpointError,
)

READ_ONLY = pytest.mark.parametrize("read_only", [False, True])


async def fill(root: Path, *steps: int, **options: Any) -> Path:
    """Save a small state at each step, which says the step."""
    async with CheckpointManager(root, **options) as manager:
        for step in steps:
            await (await manager.save(step, {"step": step, "w": np.full(9, step)}, training_info={"loss": step}))
    return root


def literally(*texts: object) -> str:
    """Return a pattern for texts that follow each other."""
    return ".*".join(re.escape(str(text)) for text in texts)


# --- a directory that is a checkpoint ---------------------------------------------------------------------------------


@READ_ONLY
async def test_a_checkpoint_is_no_directory_of_checkpoints(tmp_path: Path, read_only: bool) -> None:
    """It is refused when it is entered, before anything is written, with what to use instead."""
    root = await fill(tmp_path / "a", 7, 50)
    before = sorted(root.rglob("*"))
    with pytest.raises(ConfigError, match=literally(root / "step_50", "is the checkpoint", root, "load(50)")):
        async with CheckpointManager(root / "step_50", read_only=read_only):
            pass
    await asyncio.to_thread((root / "step_50").rename, tmp_path / "pretty")
    with pytest.raises(
        ConfigError, match=literally("pretty is the checkpoint of step 50", f"load(Path('{tmp_path}/pretty'))")
    ):
        async with CheckpointManager(tmp_path / "pretty", read_only=read_only):
            pass
    await asyncio.to_thread((tmp_path / "pretty").rename, root / "step_50")
    assert sorted(root.rglob("*")) == before


@READ_ONLY
async def test_a_file_of_a_checkpoint(tmp_path: Path, read_only: bool) -> None:
    """A file is refused as before, and one of a checkpoint's says how to load that."""
    root = await fill(tmp_path, 50)
    with pytest.raises(NotADirectoryError, match=literally("state.msgpack is a file", root, "load(50)")):
        async with CheckpointManager(root / "step_50" / "state.msgpack", read_only=read_only):
            pass


@READ_ONLY
async def test_a_checkpoint_that_holds_checkpoints(tmp_path: Path, read_only: bool) -> None:
    """What an earlier release has saved in one can be read, and saved on, with a warning."""
    root = await fill(tmp_path / "a", 50)
    await fill(tmp_path / "b", 3)
    shutil.copytree(tmp_path / "b" / "step_3", root / "step_50" / "step_3")
    with pytest.warns(CheckpointWarning, match=literally("is the checkpoint of", "load(50)", "deleted with it")):
        manager = await CheckpointManager(root / "step_50", read_only=read_only).__aenter__()
    assert manager.steps() == [3]
    await manager.aclose()


@pytest.mark.parametrize("content", ['{"name": "app", "step": 5}', "[]", "3", '"format_version"', "not JSON"])
async def test_another_manifest_is_none_of_ours(tmp_path: Path, content: str) -> None:
    """A file of another program's that has the name of ours is not in the way."""
    (tmp_path / "manifest.json").write_text(content)
    await fill(tmp_path, 1)
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(CheckpointNotFoundError, match=r"committed is 1$"):
            await manager.load(5)


# --- a directory that does not exist ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/walc", "did you mean {}/runs/walk?"),
        ("runs/WALK", "did you mean {}/runs/walk?"),
        ("rums/walk", "did you mean {}/runs?"),
        ("rums/deep/walk", "did you mean {}/runs?"),
        ("runs/xyz", "the nearest directory that does is {}/runs"),
    ],
)
async def test_a_reader_of_a_directory_that_does_not_exist(tmp_path: Path, name: str, said: str) -> None:
    """Entering it warns, with the nearest names; loading repeats that; it sees what is created there later."""
    await fill(tmp_path / "runs" / "walk", 1)
    expected = literally(tmp_path / name, "does not exist", said.format(tmp_path))
    with pytest.warns(CheckpointWarning, match=expected):
        reader = await CheckpointManager(tmp_path / name, read_only=True).__aenter__()
    for which in ("latest", "best", 1):
        with pytest.raises(CheckpointNotFoundError, match=expected):
            await reader.load(which)  # type: ignore[arg-type]
    assert await reader.load("latest", missing_ok=True) is None
    await fill(tmp_path / name, 5)
    loaded = await reader.load("latest")
    assert loaded is not None
    assert loaded.step == 5
    await reader.aclose()


async def test_a_writer_makes_its_directory(tmp_path: Path) -> None:
    """One that may make it is not complained of when it is entered."""
    await fill(tmp_path / "run1", 1)
    async with CheckpointManager(tmp_path / "run2") as manager:
        with pytest.raises(CheckpointNotFoundError, match=literally("does not exist", tmp_path / "run1")):
            await manager.load("latest")
    async with CheckpointManager(tmp_path / "run2", enabled=False):
        pass


@READ_ONLY
async def test_the_directory_above(tmp_path: Path, read_only: bool) -> None:
    """Where there are no checkpoints, those a level below are named."""
    await fill(tmp_path / "a", 1)
    async with CheckpointManager(tmp_path, read_only=read_only) as manager:
        with pytest.raises(CheckpointNotFoundError, match=literally("no checkpoint", tmp_path, f"in {tmp_path / 'a'}")):
            await manager.load("latest")


async def test_a_directory_that_goes(tmp_path: Path) -> None:
    """A reader is warned once when the directory has gone, with the steps that went; it comes back with it."""
    root = await fill(tmp_path / "a", 3, 8)
    async with CheckpointManager(root, read_only=True) as reader:
        await asyncio.to_thread(root.rename, tmp_path / "elsewhere")
        with pytest.warns(CheckpointWarning, match=literally(root, "is gone", "steps from 3 to 8")):
            await reader.refresh()
        assert reader.steps() == []
        await reader.refresh()  # it was said
        with pytest.raises(CheckpointNotFoundError, match="does not exist"):
            await reader.load(3)
        await asyncio.to_thread((tmp_path / "elsewhere").rename, root)
        await reader.refresh()
        assert reader.steps() == [3, 8]


async def test_a_directory_that_goes_before_the_first_save(tmp_path: Path) -> None:
    """A writer that has not saved yet creates it again, and warns of what is missing."""
    root = await fill(tmp_path / "a", 3)
    async with CheckpointManager(root) as manager:
        await asyncio.to_thread(shutil.rmtree, root)
        with pytest.warns(CheckpointWarning, match=literally(root, "is gone", "steps from 3 to 3")):
            await (await manager.save(4, {}))
        assert manager.steps() == [4]


# --- a step that is not there -----------------------------------------------------------------------------------------


async def test_a_step_that_is_not_there(tmp_path: Path) -> None:
    """The steps that are there are named, the last ten of many."""
    async with CheckpointManager(await fill(tmp_path, *range(12))) as manager:
        for use in (manager.load(50), manager.verify(50), manager.restore(50, into={})):
            with pytest.raises(CheckpointNotFoundError, match=r"committed are \.\.\. 2, 3, 4, 5, 6, 7, 8, 9, 10, 11$"):
                await use


@pytest.mark.parametrize("which", [50, "latest"])
async def test_a_checkpoint_of_another_name(tmp_path: Path, which: Any) -> None:
    """It is named, with both ways to bring it in, and both work."""
    await fill(tmp_path, 50)
    renamed = tmp_path / "step_050"
    (tmp_path / "step_50").rename(renamed)
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(
            CheckpointNotFoundError, match=literally("step_050", "rename it to step_50", f"load(Path('{renamed}'))")
        ):
            await manager.load(which)
        loaded = await manager.load(renamed)
        assert loaded is not None
        assert (loaded.step, loaded.state["step"], loaded.path) == (50, 50, renamed)
        renamed.rename(tmp_path / "step_50")
        await manager.load(50)


@pytest.mark.filterwarnings("ignore:.*step_50 is not a checkpoint")
async def test_a_link_to_a_checkpoint(tmp_path: Path) -> None:
    """A symbolic link is not followed by its name, which is said, and is by its path."""
    await fill(tmp_path / "a", 50)
    root = await fill(tmp_path / "b", 1)
    (root / "step_50").symlink_to(tmp_path / "a" / "step_50")
    async with CheckpointManager(root) as manager:
        with pytest.raises(
            CheckpointNotFoundError, match=literally("step_50 is a symbolic link", f"load(Path('{root}/step_50'))")
        ):
            await manager.load(50)
        loaded = await manager.load(root / "step_50")
        assert loaded is not None
        assert loaded.state["step"] == 50


# --- a step that was renumbered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
async def test_a_renumbered_checkpoint_is_brought_in(tmp_path: Path, form: Any) -> None:
    """A copy under another number says what it is and how to bring it in; both work."""
    await fill(tmp_path / "a", 100, format=form)
    shutil.copytree(tmp_path / "a" / "step_100", tmp_path / "b" / "step_0")
    async with CheckpointManager(tmp_path / "b", format=form) as manager:
        said = literally(
            "step 0", "manifest of step 100", "renamed or copied", "step_100", "load(Path(", "overwrite=True"
        )
        with pytest.raises(CorruptCheckpointError, match=said):
            await manager.load(0)
        with pytest.raises(CorruptCheckpointError, match=r"steps: 0\. `verify` raises"):
            await manager.load("latest")
        source = await manager.load(tmp_path / "b" / "step_0")
        assert source is not None
        assert source.step == 100
        await (await manager.save(0, source.state, training_info=source.training_info, overwrite=True))
        loaded = await manager.load("latest")
        assert loaded is not None
        assert (loaded.step, loaded.state["step"], loaded.training_info) == (0, 100, {"loss": 100})
        await manager.verify(0)
    async with CheckpointManager(tmp_path / "b", read_only=True) as reader:
        loaded = await reader.load(0)
        assert loaded is not None
        np.testing.assert_array_equal(loaded.state["w"], np.full(9, 100))


# --- loading by path --------------------------------------------------------------------------------------------------


@READ_ONLY
@pytest.mark.parametrize("form", FORMATS)
async def test_loading_by_path(tmp_path: Path, form: Any, read_only: bool) -> None:
    """A path names the checkpoint of any run, for `load` with all its options and for `restore`; nothing is listed."""
    other = await fill(tmp_path / "other", 100, format=form) / "step_100"
    root = await fill(tmp_path / "mine", 1)
    async with CheckpointManager(root, read_only=read_only) as manager:
        for options in ({}, {"lazy": True}, {"select": ["step", "w"]}, {"like": {"step": 0, "w": np.zeros(9, int)}}):
            loaded = await manager.load(other, **options)  # type: ignore[arg-type]
            assert loaded is not None
            assert (loaded.step, loaded.path, loaded.training_info) == (100, other, {"loss": 100})
            np.testing.assert_array_equal(loaded.state["w"], np.full(9, 100))
        state = {"step": 0, "w": np.zeros(9, int)}
        restored = await manager.restore(other, into=state)
        assert restored.state is state
        np.testing.assert_array_equal(state["w"], np.full(9, 100))
        assert manager.steps() == [1]


async def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one from the working directory."""
    await fill(tmp_path / "runs", 5)
    monkeypatch.chdir(tmp_path)
    async with CheckpointManager("elsewhere") as manager:
        loaded = await manager.load(Path("runs/step_5"))
        assert loaded is not None
        assert loaded.step == 5


async def test_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    """It says what is there instead; `missing_ok` gives None."""
    root = await fill(tmp_path / "runs", 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    async with CheckpointManager(root) as manager:
        for path, said in (
            (root / "step_6", literally("does not exist", root / "step_5")),
            (root, literally("no manifest.json in it", "committed is 5")),
            (tmp_path / "empty", "no manifest.json in it$"),
            (tmp_path / "file", "is a file"),
            (root / "step_5" / "state.msgpack", literally(root / "step_5", "is the checkpoint of step 5", "load(5)")),
        ):
            with pytest.raises(CheckpointNotFoundError, match=said):
                await manager.load(path)
            assert await manager.load(path, missing_ok=True) is None


async def test_a_damaged_checkpoint_by_path(tmp_path: Path) -> None:
    """It is corrupt, and the manager's own step of that number counts as before."""
    other = await fill(tmp_path / "other", 1) / "step_1"
    root = await fill(tmp_path / "mine", 1)
    (other / "state.msgpack").write_bytes(b"")
    async with CheckpointManager(root) as manager:
        with pytest.raises(CorruptCheckpointError, match=r"step 1: state\.msgpack has 0 bytes"):
            await manager.load(other)
        (other / "manifest.json").write_bytes(b"{")
        with pytest.raises(CorruptCheckpointError, match=r"step 1: manifest\.json is damaged"):
            await manager.load(other)
        assert manager.latest_step() == 1


async def test_a_path_as_a_text(tmp_path: Path) -> None:
    """A str is a word, and one with a path in it says what to pass."""
    root = await fill(tmp_path / "runs", 5)
    async with CheckpointManager(root) as manager:
        with pytest.raises(TypeError, match=literally("pass the int 5, or pass Path(", "step_5")):
            await manager.load(f"{root}/step_5")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=literally(f"Path('{root}/best')")):
            await manager.load(f"{root}/best")  # type: ignore[arg-type]
