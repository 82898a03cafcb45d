"""The primitives beneath: checkpoints whose files the caller writes."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from helpers.gates import hold

import asyncckpt
import asyncckpt.manager
from asyncckpt.disk.manifest import decode_manifest, digest_bytes
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[asyncckpt.CheckpointManager]:
    """Give a manager in a directory that does not exist yet."""
    async with asyncckpt.CheckpointManager(tmp_path / "runs") as made:
        yield made


@pytest.fixture
async def ranking(tmp_path: Path) -> AsyncIterator[asyncckpt.CheckpointManager]:
    """Give a manager that ranks checkpoints by their loss, in a directory that does not exist yet."""
    async with asyncckpt.CheckpointManager(tmp_path / "runs", metric_name="loss", higher_is_better=False) as made:
        yield made


async def commit(manager: asyncckpt.CheckpointManager, step: int, text: str = "x", **info: Any) -> Path:
    """Commit a checkpoint of one file, and give the path it was written at."""
    path = await manager.init_tmp_checkpoint(step, info)
    await asyncio.to_thread((path / "mine.txt").write_text, text)
    await manager.finalize_checkpoint(path)
    return path


def tree(root: Path) -> list[str]:
    """List what is below a directory."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# --- init_tmp_checkpoint ----------------------------------------------------------------------------------------------


async def test_init_makes_the_pending_directory(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """It is `tmp_step_N` with `training_info.json`, and `config.yaml` if a config is given; readers see nothing."""
    path = await manager.init_tmp_checkpoint(7, {"loss": 0.5})
    assert path == tmp_path / "runs" / "tmp_step_7"
    assert tree(path) == ["training_info.json"]
    other = await manager.init_tmp_checkpoint(8, {"loss": 0.5}, {"lr": 1e-5})
    assert tree(other) == ["config.yaml", "training_info.json"]
    await manager.refresh()
    assert manager.steps() == []
    assert await manager.get_latest_checkpoint_path() is None
    assert not (tmp_path / "runs" / "step_7").exists()


async def test_init_clears_a_stale_one(manager: asyncckpt.CheckpointManager) -> None:
    """What was left in the step's pending directory, subdirectories included, is gone."""
    path = await manager.init_tmp_checkpoint(7, {"old": 1}, {"lr": 1})
    (path / "sub" / "deep").mkdir(parents=True)
    (path / "sub" / "deep" / "file").touch()
    (path / "link").symlink_to(path / "sub")
    assert await manager.init_tmp_checkpoint(7, {"new": 2}) == path
    assert tree(path) == ["training_info.json"]
    assert json.loads((path / "training_info.json").read_text()) == {"new": 2}


class Scalar:
    """What a 0-d tensor of torch looks like."""

    shape = ()

    def __init__(self, value: float) -> None:
        self.value = value

    def item(self) -> float:
        """Give the number."""
        return self.value


async def test_training_info_becomes_plain_json(manager: asyncckpt.CheckpointManager) -> None:
    """Scalars and 0-d arrays of numpy, and what looks like torch's, become numbers; NaN and infinities are kept."""
    info = {
        "f32": np.float32(0.5),
        "i64": np.int64(-3),
        "bool": np.bool_(True),  # noqa: FBT003 - a value
        "array": np.array(2.5),
        "tensor": Scalar(1.5),
        "nested": {"list": [np.float64(1), (1, "ä")], "none": None},
        "nan": math.nan,
        "inf": -math.inf,
        "huge": 2**100,
    }
    path = await manager.init_tmp_checkpoint(1, info)
    read = json.loads((path / "training_info.json").read_text(encoding="utf-8"))
    assert math.isnan(read.pop("nan"))
    assert read == {
        "f32": 0.5,
        "i64": -3,
        "bool": True,
        "array": 2.5,
        "tensor": 1.5,
        "nested": {"list": [1.0, [1, "ä"]], "none": None},
        "inf": -math.inf,
        "huge": 2**100,
    }
    assert type(read["i64"]) is int
    assert type(read["bool"]) is bool


@dataclass
class Inner:
    """A nested configuration."""

    betas: tuple[float, float] = (0.9, 1e-3)


@dataclass
class Config:
    """A configuration as a dataclass."""

    lr: float = 1e-5
    name: str = "käse: on"
    inner: Inner = field(default_factory=Inner)


class Model:
    """A configuration with `model_dump`, as pydantic's have."""

    def model_dump(self) -> dict[str, Any]:
        """Give the mapping."""
        return {"lr": 1e-05, "inner": {"n": 3}}


CONFIGS = [
    ({}, {}),
    ({"lr": 1e-05, "big": 1e300, "nan": [math.inf, -math.inf], "yes": "no", "n": None}, None),
    ({"text": "a: b # c\n\t'\"\\ \u2028 \U0001f600", "date": "2020-01-01", "octal": "0o7", "number": "1e5"}, None),
    ({3: "int", 2.5: "float", True: "bool", None: "none", "nested": [{"a": []}, {}]}, None),
    (Config(), {"lr": 1e-5, "name": "käse: on", "inner": {"betas": [0.9, 1e-3]}}),
    (Model(), {"lr": 1e-05, "inner": {"n": 3}}),
    (
        {"seed": np.int64(3), "rate": np.float32(0.5), "inner": Inner()},
        {"seed": 3, "rate": 0.5, "inner": {"betas": [0.9, 1e-3]}},
    ),
]


@pytest.mark.parametrize(("given", "expected"), CONFIGS)
async def test_the_config_reads_back_equal(
    manager: asyncckpt.CheckpointManager, given: Any, expected: dict[Any, Any] | None
) -> None:
    """A mapping, a dataclass or a `model_dump()` is read back equal by PyYAML."""
    path = await manager.init_tmp_checkpoint(1, {}, given)
    read = yaml.safe_load((path / "config.yaml").read_bytes())
    wanted = given if expected is None else expected
    assert read == wanted
    assert {key: type(value) for key, value in read.items()} == {key: type(value) for key, value in wanted.items()}


@pytest.mark.parametrize(
    ("info", "config", "path"),
    [
        ({"a": {"b": np.zeros(2)}}, None, "training_info/a/b"),
        ({"a": object()}, None, "training_info/a"),
        ({1: 2}, None, "training_info"),
        ({}, {"x": [object()]}, "run_config/x/0"),
        ({}, 5, "run_config"),
    ],
)
async def test_what_cannot_be_written_is_refused_first(
    manager: asyncckpt.CheckpointManager, tmp_path: Path, info: Any, config: Any, path: str
) -> None:
    """The error names the path within the document, and nothing was made; the step is free."""
    with pytest.raises(asyncckpt.UnsupportedLeafError, match=path) as caught:
        await manager.init_tmp_checkpoint(1, info, config)
    assert caught.value.path == path
    assert not (tmp_path / "runs").exists()
    await manager.init_tmp_checkpoint(1, {})


@pytest.mark.parametrize("step", [-1, True, 1.0, "1", None])
async def test_init_refuses_what_is_no_step(manager: asyncckpt.CheckpointManager, step: Any) -> None:
    """A step is an int >= 0, or something that is one, like numpy's integers."""
    with pytest.raises((ValueError, TypeError), match="a step is an int"):
        await manager.init_tmp_checkpoint(step, {})
    assert (await manager.init_tmp_checkpoint(np.int64(3), {})).name == "tmp_step_3"  # type: ignore[arg-type]


async def test_init_refuses_a_step_in_flight(tmp_path: Path) -> None:
    """While a save or a finalize of the step is in progress, its pending directory is in use."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {"a": 1})
            await gate.reached()
            queued = await manager.save(2, {"a": 1})
            for step in (1, 2):
                with pytest.raises(asyncckpt.StepExistsError, match="await its handle") as caught:
                    await manager.init_tmp_checkpoint(step, {})
                assert caught.value.step == step
        await handle
        await queued
        path = await manager.init_tmp_checkpoint(3, {})
        with hold(disk, "sync", "") as gate:
            task = asyncio.create_task(manager.finalize_checkpoint(path))
            await gate.reached()
            with pytest.raises(asyncckpt.StepExistsError):
                await manager.init_tmp_checkpoint(3, {})
            with pytest.raises(asyncckpt.StepExistsError):
                await manager.save(3, {"a": 1})
        await task
        assert manager.steps() == [1, 2, 3]
        assert (await manager.init_tmp_checkpoint(3, {})).name == "tmp_step_3"


async def test_a_save_leaves_a_pending_directory_alone(manager: asyncckpt.CheckpointManager) -> None:
    """While a caller fills a step's pending directory, no save may clear it; afterwards the step is free again."""
    path = await manager.init_tmp_checkpoint(4, {})
    await asyncio.to_thread((path / "mine.txt").write_text, "x")
    for overwrite in (False, True):
        with pytest.raises(asyncckpt.StepExistsError, match="finalize_checkpoint"):
            await manager.save(4, {}, overwrite=overwrite)
        with pytest.raises(asyncckpt.StepExistsError, match="finalize_checkpoint"):
            manager.save_nowait(4, {}, overwrite=overwrite)
    await manager.finalize_checkpoint(path)
    assert manager.steps() == [4]
    await (await manager.save(4, {"a": 1}, overwrite=True))
    with pytest.raises(ZeroDivisionError):
        async with manager.checkpoint(5, {}):
            _ = 1 / 0
    await (await manager.save(5, {}))


@pytest.mark.parametrize("operation", ["mkdir", "create", "write", "sync"])
async def test_a_failed_init_leaves_nothing(tmp_path: Path, operation: str) -> None:
    """If the disk fails, the error comes out and the half-made directory goes; the next one works."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        await manager.init_tmp_checkpoint(1, {})
        disk.fail(operation, errno.ENOSPC, path_part="tmp_step_2")
        with pytest.raises(OSError, match="No space left"):
            await manager.init_tmp_checkpoint(2, {})
        assert not (tmp_path / "tmp_step_2").exists()
        await manager.finalize_checkpoint(await manager.init_tmp_checkpoint(2, {}))
        assert manager.steps() == [2]


# --- finalize_checkpoint ----------------------------------------------------------------------------------------------


async def test_finalize_commits(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """The directory gets its name and a manifest that covers every file, nested ones too; it is listed and verifies."""
    path = await manager.init_tmp_checkpoint(7, {"loss": 0.5}, {"lr": 1})
    contents = {"mine": b"x", "sub/deep/file": bytes(3 << 20), "sub/empty": b""}
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "nothing").mkdir()
    assert await manager.finalize_checkpoint(path) is None  # type: ignore[func-returns-value]
    final = tmp_path / "runs" / "step_7"
    assert not path.exists()
    assert manager.steps() == [7]
    assert manager.latest_step() == manager.best_step() == 7
    manifest = decode_manifest((final / "manifest.json").read_bytes(), 7)
    assert manifest.files.keys() == {*contents, "training_info.json", "config.yaml"}
    assert manifest.index is None
    for name, data in contents.items():
        assert manifest.files[name] == digest_bytes(data)
        assert (final / name).read_bytes() == data
    assert (final / "nothing").is_dir()
    await manager.verify(7)
    (final / "sub" / "deep" / "file").write_bytes(bytes((3 << 20) - 1) + b"\1")
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="sub/deep/file"):
        await manager.verify(7)
    assert manager.latest_step() is None


async def test_loading_a_users_checkpoint_says_what_it_is(manager: asyncckpt.CheckpointManager) -> None:
    """There is no state of ours in it: the error names the files and where they are."""
    await commit(manager, 1)
    with pytest.raises(asyncckpt.CheckpointError, match=r"mine\.txt.*step_1"):
        await manager.load(1)


async def test_finalize_swaps_an_existing_step(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """The new directory takes the old one's place; what was there is deleted."""
    await commit(manager, 1, "old", loss=1.0)
    await commit(manager, 1, "new", loss=0.5)
    assert (tmp_path / "runs" / "step_1" / "mine.txt").read_text() == "new"
    assert await manager.load_training_info() == {"loss": 0.5}
    await manager.aclose()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".lock", "step_1"]


async def test_finalize_swaps_a_saved_step(manager: asyncckpt.CheckpointManager) -> None:
    """Files of the user's may replace a state of ours, and the other way round."""
    await (await manager.save(1, {"a": 1}))
    await commit(manager, 1)
    await manager.verify(1)
    await (await manager.save(1, {"a": 2}, overwrite=True))
    loaded = await manager.load(1)
    assert loaded is not None
    assert loaded.state == {"a": 2}


@pytest.mark.parametrize("kind", ["link", "fifo"])
@pytest.mark.parametrize("where", ["odd", "sub/odd"])
async def test_finalize_refuses_special_files(manager: asyncckpt.CheckpointManager, kind: str, where: str) -> None:
    """A symbolic link or a FIFO is refused by name; when it is gone, the directory may be finalized after all."""
    path = await manager.init_tmp_checkpoint(1, {})
    (path / "sub").mkdir()
    if kind == "link":
        (path / where).symlink_to("training_info.json")
    else:
        os.mkfifo(path / where)
    with pytest.raises(asyncckpt.CheckpointError, match=f"{where} is a symbolic link or a special file"):
        await manager.finalize_checkpoint(path)
    assert manager.steps() == []
    assert path.is_dir()
    (path / where).unlink()
    await manager.finalize_checkpoint(path)
    assert manager.steps() == [1]


async def test_finalize_of_something_else(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """Only a pending directory of this manager's can be finalized; the error says what is wrong with the path."""
    path = await manager.init_tmp_checkpoint(1, {})
    (tmp_path / "tmp_step_1").mkdir()
    for wrong in (tmp_path / "tmp_step_1", path.parent / "step_1", path / "sub", path.parent, tmp_path / "tmp_step_01"):
        with pytest.raises(ValueError, match="init_tmp_checkpoint"):
            await manager.finalize_checkpoint(wrong)
    with pytest.raises(FileNotFoundError, match="init_tmp_checkpoint"):
        await manager.finalize_checkpoint(path.parent / "tmp_step_2")
    await manager.finalize_checkpoint(str(path))
    with pytest.raises(FileNotFoundError):
        await manager.finalize_checkpoint(path)
    assert manager.steps() == [1]


async def test_finalize_keeps_the_writers_order(tmp_path: Path) -> None:
    """It commits after the saves that were queued before it, and before those queued behind it."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        path = await manager.init_tmp_checkpoint(2, {})
        with hold(disk) as gate:
            first = await manager.save(1, {"a": 1})
            await gate.reached()
            task = asyncio.create_task(manager.finalize_checkpoint(path))
            await asyncio.sleep(0)
            last = await manager.save(3, {"a": 1})
        await asyncio.gather(first, task, last)
    committed = [each.target.name for each in disk.operations if each.name == "rename" and each.target]
    assert committed == ["step_1", "step_2", "step_3"]


async def test_finalize_prunes(tmp_path: Path) -> None:
    """`remove_old_checkpoints` follows the commit."""
    async with asyncckpt.CheckpointManager(tmp_path, keep_latest_k=2) as manager:
        for step in (1, 2, 3):
            await commit(manager, step)
        assert manager.steps() == [2, 3]


async def test_a_cancelled_finalize_goes_on(tmp_path: Path) -> None:
    """A publish is never split: the caller is cancelled at once, and the commit is completed."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        path = await manager.init_tmp_checkpoint(1, {})
        with hold(disk, "sync", "") as gate:
            task = asyncio.create_task(manager.finalize_checkpoint(path))
            await gate.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await manager.flush()
        assert manager.steps() == [1]
        await manager.verify(1)


# --- checkpoint() -----------------------------------------------------------------------------------------------------


async def test_the_context_manager_commits(manager: asyncckpt.CheckpointManager) -> None:
    """Leaving the block commits what it wrote."""
    async with manager.checkpoint(1, {"loss": 1}, {"lr": 1}) as path:
        assert path.name == "tmp_step_1"
        await asyncio.to_thread((path / "mine").write_text, "x")
        assert manager.steps() == []
    assert manager.steps() == [1]
    await manager.verify(1)


@pytest.mark.parametrize("error", [KeyError("mine"), asyncio.CancelledError()])
async def test_an_exception_inside_discards(tmp_path: Path, error: BaseException) -> None:
    """The exception comes out as it is, and the pending directory is gone; the step's older commit stays."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await commit(manager, 1, "old")
        with pytest.raises(type(error)) as caught:
            async with manager.checkpoint(1, {}) as path:
                await asyncio.to_thread((path / "sub").mkdir)
                raise error
        assert caught.value is error
        assert not path.exists()
        assert (tmp_path / "step_1" / "mine.txt").read_text() == "old"
        await commit(manager, 1, "new")


async def test_a_discard_that_fails_does_not_hide_the_exception(tmp_path: Path) -> None:
    """The body's exception comes out, with a note; the leftover is cleared by the next init."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        with pytest.raises(KeyError) as caught:
            async with manager.checkpoint(1, {}):
                disk.fail("unlink", errno.EIO)
                raise KeyError
        assert any("tmp_step_1 could not be removed" in note for note in caught.value.__notes__)
        await commit(manager, 1)


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_paths_of_best_and_latest(ranking: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """They are str, or None without checkpoints."""
    manager = ranking
    assert await manager.get_best_checkpoint_path() is None
    assert await manager.get_latest_checkpoint_path() is None
    assert await manager.load_training_info() is None
    for step, loss in ((2, 0.1), (10, 0.5), (9, 0.3)):
        await commit(manager, step, loss=loss)
    assert await manager.get_best_checkpoint_path() == str(tmp_path / "runs" / "step_2")
    assert await manager.get_latest_checkpoint_path() == str(tmp_path / "runs" / "step_10")
    assert await manager.load_training_info() == {"loss": 0.5}
    best = await manager.get_best_checkpoint_path()
    assert await manager.load_training_info(best) == {"loss": 0.1}


async def test_best_without_metrics(ranking: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """Checkpoints without the metric are left out with a warning that counts and lists them; if all are, the latest."""
    manager = ranking
    with pytest.warns(asyncckpt.CheckpointWarning, match="step 1: there is no metric 'loss'"):
        await commit(manager, 1)
    await commit(manager, 3)
    with pytest.warns(asyncckpt.CheckpointWarning) as warned:
        assert await manager.get_best_checkpoint_path() == str(tmp_path / "runs" / "step_3")
    assert [str(each.message) for each in warned] == [
        "2 of 2 checkpoints lack the metric 'loss' and are left out of the choice of the best; their steps: 1, 3",
        "no checkpoint has the metric 'loss': the latest, step 3, is taken as the best",
    ]
    await commit(manager, 2, loss=9.0)
    with pytest.warns(asyncckpt.CheckpointWarning, match="2 of 3 .* steps: 1, 3"):
        assert await manager.get_best_checkpoint_path() == str(tmp_path / "runs" / "step_2")


async def test_warnings_about_the_best_name_the_callers_line(ranking: asyncckpt.CheckpointManager) -> None:
    """However many functions of ours lie between."""
    manager = ranking
    with pytest.warns(asyncckpt.CheckpointWarning, match="no metric 'loss'"):
        await manager.save(1, "state")
    await manager.flush()
    for ask in (manager.get_best_checkpoint_path, lambda: manager.load("best")):
        with pytest.warns(asyncckpt.CheckpointWarning) as warned:
            await ask()
        assert {each.filename for each in warned} == {__file__}
    with pytest.warns(asyncckpt.CheckpointWarning) as warned:
        manager.best_step()
    assert {each.filename for each in warned} == {__file__}


async def test_training_info_that_is_missing_or_damaged(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """Each has its own clear error."""
    await commit(manager, 1)
    final = tmp_path / "runs" / "step_1"
    with pytest.raises(asyncckpt.CheckpointNotFoundError, match="training_info"):
        await manager.load_training_info(tmp_path / "nowhere")
    (final / "training_info.json").write_text("[1]")
    with pytest.raises(asyncckpt.CorruptCheckpointError, match="training_info"):
        await manager.load_training_info(final)


def test_history(tmp_path: Path) -> None:
    """`_load_checkpoint_history` lists step, path and info by ascending step, and nothing that is not committed."""
    assert asyncckpt.manager._load_checkpoint_history is asyncckpt._load_checkpoint_history
    assert asyncckpt._load_checkpoint_history(tmp_path / "none") == []
    for name in ("step_10", "step_9", "step_1-hf", "step_01", "tmp_step_3", "trash_step_4", "old_step_5", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training_info.json").write_text('{"x": 1}')
    (tmp_path / "step_11").mkdir()
    (tmp_path / "step_12").touch()
    assert asyncckpt._load_checkpoint_history(str(tmp_path)) == [
        (5, tmp_path / "old_step_5", {"x": 1}),
        (9, tmp_path / "step_9", {"x": 1}),
        (10, tmp_path / "step_10", {"x": 1}),
        (11, tmp_path / "step_11", {}),
    ]


async def test_they_work_in_a_directory_given_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative directory means what it meant when the manager was opened, wherever the process goes then."""
    monkeypatch.chdir(tmp_path)
    async with asyncckpt.CheckpointManager("runs") as manager:
        path = await manager.init_tmp_checkpoint(1, {})
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        await manager.finalize_checkpoint(path)
        await (await manager.save(2, {"a": 1}))
    assert sorted(each.name for each in (tmp_path / "runs").iterdir()) == [".lock", "step_1", "step_2"]
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_relative_directory_is_of_the_directory_it_was_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, read_only: bool
) -> None:
    """Wherever the process goes between the making of the manager and `async with`."""
    async with asyncckpt.CheckpointManager(tmp_path / "runs") as manager:
        await manager.save(1, {"a": 1})
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = asyncckpt.CheckpointManager("runs", read_only=read_only)
    monkeypatch.chdir(tmp_path / "other")
    async with manager:
        assert manager.steps() == [1]
        if not read_only:
            assert (await (await manager.save(2, {}))).path == tmp_path / "runs" / "step_2"
    assert list((tmp_path / "other").iterdir()) == []
