"""The metric: what is said of a save without it, and what the directory says of it later."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import FORMATS

import asyncckpt
from asyncckpt import CheckpointManager, CheckpointWarning, MetricMissingError
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAME = ".asyncckpt.json"
HALF_MADE = ".asyncckpt.json.tmp"

# Every way to a checkpoint that takes a training_info.


async def by_save(manager: CheckpointManager, step: int, info: Mapping[str, Any] | None) -> None:
    """Save, and wait."""
    await (await manager.save(step, {"a": step}, training_info=info))


async def by_save_nowait(manager: CheckpointManager, step: int, info: Mapping[str, Any] | None) -> None:
    """Save without awaiting, and wait."""
    await manager.save_nowait(step, {"a": step}, training_info=info)


async def by_init(manager: CheckpointManager, step: int, info: Mapping[str, Any] | None) -> None:
    """Make a pending directory, and commit it."""
    await manager.finalize_checkpoint(await manager.init_tmp_checkpoint(step, info))


async def by_checkpoint(manager: CheckpointManager, step: int, info: Mapping[str, Any] | None) -> None:
    """The same in a block."""
    async with manager.checkpoint(step, info):
        pass


WAYS = pytest.mark.parametrize("way", [by_save, by_save_nowait, by_init, by_checkpoint])

LACKING: list[tuple[Mapping[str, Any] | None, list[str]]] = [
    (None, ["no metric 'loss'", "training_info is empty"]),
    ({}, ["no metric 'loss'", "training_info is empty"]),
    ({"los": 0.5, "lr": 0.1}, ["no metric 'loss'", "'los', 'lr'", "did you mean 'los'?"]),
    ({"lr": 0.1, "LOSS": 0.5}, ["no metric 'loss'", "'lr', 'LOSS'", "did you mean 'LOSS'?"]),
    ({"val_loss": 0.1}, ["did you mean 'val_loss'?"]),
    ({"eval": {"loss": 0.1}}, ["no metric 'loss'", "'eval'"]),
    ({"loss": None}, ["the metric 'loss' is None (NoneType)", "not a number", "'loss'"]),
    ({"loss": "0.5", "lr": 1}, ["the metric 'loss' is '0.5' (str)", "not a number", "'loss', 'lr'"]),
    ({"loss": True}, ["the metric 'loss' is True (bool)"]),
    ({"loss": np.False_}, ["the metric 'loss' is False (bool)"]),
    ({"loss": np.array(True)}, ["the metric 'loss' is True (bool)"]),  # noqa: FBT003 - an array of one
    ({"loss": [0.5]}, ["the metric 'loss' is [0.5] (list)"]),
    ({"loss": {"mean": 0.5}}, ["(dict)"]),
    ({f"key{number}": 0 for number in range(3000)}, ["'key0'", "'key19' and 2980 more"]),
]
NUMBERS: list[Any] = [
    0,
    -1.5,
    10**400,
    math.nan,
    -math.inf,
    np.float32(0.5),
    np.int64(3),
    np.uint8(0),
    np.float16("nan"),
    np.longdouble(1),
    np.array(0.5),
    np.array(3),
]


@WAYS
@pytest.mark.parametrize(("info", "words"), LACKING)
async def test_the_first_save_without_the_metric_warns(
    tmp_path: Path, way: Callable[..., Any], info: Mapping[str, Any] | None, words: list[str]
) -> None:
    """It names the step, the metric, the keys that there are and the nearest one; the second such save is silent."""
    async with CheckpointManager(tmp_path, metric_name="loss") as manager:
        await way(manager, 1, {"loss": 0.5})
        with pytest.warns(CheckpointWarning) as warned:
            await way(manager, 2, info)
        message = str(warned.pop().message)
        assert not warned.list
        assert message.startswith("step 2: ")
        assert "metric_required=True" in message
        for word in words:
            assert word in message
        assert len(message) < 3000
        await way(manager, 3, info)
        assert manager.steps() == [1, 2, 3]


@WAYS
@pytest.mark.parametrize("value", NUMBERS, ids=repr)
async def test_a_number_is_a_metric(tmp_path: Path, way: Callable[..., Any], value: Any) -> None:
    """Of Python or numpy, NaN and infinities too: nothing is said, and nothing refused."""
    async with CheckpointManager(tmp_path, metric_name="loss", metric_required=True) as manager:
        await way(manager, 1, {"loss": value})
        assert manager.best_step() == 1


@WAYS
async def test_the_warning_names_the_callers_line(tmp_path: Path, way: Callable[..., Any]) -> None:
    """However many functions of ours lie between."""
    async with CheckpointManager(tmp_path, metric_name="loss") as manager:
        with pytest.warns(CheckpointWarning) as warned:
            await way(manager, 1, {})
        assert [each.filename for each in warned] == [__file__]


async def test_each_way_to_lack_the_metric_is_said_once(tmp_path: Path) -> None:
    """A loop that measures at some steps only is warned once; a typo after that is still seen."""
    infos: list[dict[str, Any]] = [{}, {"los": 1}, {"loss": None}, {"loss": "x"}]
    async with CheckpointManager(tmp_path, metric_name="loss") as manager:
        with pytest.warns(CheckpointWarning) as warned:
            for step in range(3 * len(infos)):
                await by_save(manager, step, infos[step % len(infos)])
        assert [str(each.message).partition(":")[0] for each in warned] == ["step 0", "step 1", "step 2", "step 3"]


async def test_without_a_metrics_name_nothing_is_said(tmp_path: Path) -> None:
    """Nor by a manager that writes nothing."""
    async with CheckpointManager(tmp_path) as manager:
        await by_save(manager, 1, {"los": 1})
    async with CheckpointManager(tmp_path, enabled=False, metric_name="loss", metric_required=True) as manager:
        await manager.save(2, {})
        manager.save_nowait(2, {})


@WAYS
async def test_where_warnings_are_errors_nothing_is_saved(tmp_path: Path, way: Callable[..., Any]) -> None:
    """The warning comes first, and the step stays free."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path / "runs", disk=disk, metric_name="loss") as manager:
        with pytest.raises(CheckpointWarning, match="no metric 'loss'"):
            await way(manager, 1, {"los": 1})
        assert disk.operations == []
        await way(manager, 1, {"loss": 1})
        assert manager.steps() == [1]


# --- metric_required --------------------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("info", "words"), LACKING)
async def test_a_required_metric_is_refused_before_anything_is_done(
    tmp_path: Path, way: Callable[..., Any], form: Any, info: Mapping[str, Any] | None, words: list[str]
) -> None:
    """Each time: nothing is written, not even the directory, and the step is free."""
    disk = FaultyDisk()
    async with CheckpointManager(
        tmp_path / "runs", disk=disk, format=form, metric_name="loss", metric_required=True
    ) as manager:
        for _ in range(2):
            with pytest.raises(MetricMissingError) as caught:
                await way(manager, 7, info)
            for word in ["step 7: ", "metric_required", *words]:
                assert word in str(caught.value)
            assert isinstance(caught.value, ValueError)
            assert (caught.value.step, caught.value.metric_name) == (7, "loss")
            assert caught.value.known == tuple(info or {})[:20]
        assert disk.operations == []
        assert not (tmp_path / "runs").exists()
        await way(manager, 7, {"loss": 0.5})
        assert manager.steps() == [7]


async def test_a_refused_state_is_not_looked_at(tmp_path: Path) -> None:
    """The metric comes before the capture."""
    async with CheckpointManager(tmp_path, metric_name="loss", metric_required=True) as manager:
        for save in (manager.save, manager.save_nowait):
            with pytest.raises(MetricMissingError):
                await save(1, {"not to be saved": object()})  # type: ignore[misc]


async def test_what_lies_in_the_directory_counts_when_it_is_finalized(tmp_path: Path) -> None:
    """A training_info.json that the caller has changed is looked at; what is refused can be mended."""
    async with CheckpointManager(tmp_path, metric_name="loss", metric_required=True) as manager:
        path = await manager.init_tmp_checkpoint(1, {"loss": 1})
        info = path / "training_info.json"
        for text in ("{}", '{"los": 1}', '{"loss": null}', "[1]", "{", ""):
            await asyncio.to_thread(info.write_text, text)
            with pytest.raises(MetricMissingError, match="step 1: "):
                await manager.finalize_checkpoint(path)
            assert manager.steps() == []
        await asyncio.to_thread(info.unlink)
        with pytest.raises(MetricMissingError):
            await manager.finalize_checkpoint(path)
        await asyncio.to_thread(info.write_text, '{"loss": 0.25}')
        await manager.finalize_checkpoint(path)
        assert manager.steps() == [1]
        with pytest.raises(FileNotFoundError):  # and what does not exist is not said to lack the metric
            await manager.finalize_checkpoint(tmp_path / "tmp_step_2")


async def test_finalizing_without_the_metric_warns(tmp_path: Path) -> None:
    """It has come in by another way than `init_tmp_checkpoint`."""
    async with CheckpointManager(tmp_path, metric_name="loss") as manager:
        path = await manager.init_tmp_checkpoint(1, {"loss": 1})
        await asyncio.to_thread((path / "training_info.json").write_text, '{"los": 1}')
        with pytest.warns(CheckpointWarning, match=r"step 1: there is no metric 'loss' .* \(did you mean 'los'"):
            await manager.finalize_checkpoint(path)
        assert manager.steps() == [1]


# --- what the directory says ------------------------------------------------------------------------------------------


def stored(root: Path) -> tuple[str, bool] | None:
    """Give what the file says."""
    path = root / NAME
    content = json.loads(path.read_text()) if path.exists() else None
    return content and (content["metric_name"], content["higher_is_better"])


async def fill(root: Path, losses: Mapping[int, float], name: str = "loss", **options: Any) -> None:
    """Save steps with a metric."""
    async with CheckpointManager(root, **options) as manager:
        for step, loss in losses.items():
            await by_save(manager, step, {name: loss})


LOSSES = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.4}
LOSS: dict[str, Any] = {"metric_name": "loss", "higher_is_better": False}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("higher_is_better", [False, True])
async def test_a_reader_need_not_repeat_the_metric(tmp_path: Path, form: Any, higher_is_better: bool) -> None:
    """Its best is the trainer's, name and direction."""
    await fill(tmp_path, LOSSES, metric_name="loss", higher_is_better=higher_is_better, format=form)
    best = 3 if higher_is_better else 2
    for options in ({}, {"metric_name": "loss"}, {"metric_name": "loss", "higher_is_better": higher_is_better}):
        for is_reader in (False, True):
            async with CheckpointManager(tmp_path, read_only=is_reader, **options) as manager:
                assert manager.best_step() == best
                loaded = await manager.load("best")
                assert loaded is not None
                assert loaded.step == best
                assert await manager.get_best_checkpoint_path() == str(tmp_path / f"step_{best}")
    assert stored(tmp_path) == ("loss", higher_is_better)


async def test_a_reader_that_came_first_learns_the_metric(tmp_path: Path) -> None:
    """With its next look at the directory; and another one, when a trainer comes with that."""
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        assert await reader.get_best_checkpoint_path() is None
        await fill(tmp_path, LOSSES, **LOSS)
        assert await reader.get_best_checkpoint_path() == str(tmp_path / "step_2")
        assert reader.best_step() == 2
        with pytest.warns(CheckpointWarning, match="'loss'"):
            await fill(tmp_path, {5: 0.5}, name="r", metric_name="r")
        await reader.refresh()
        with pytest.warns(CheckpointWarning, match="4 of 5 checkpoints lack the metric 'r'"):
            assert reader.best_step() == 5


async def test_a_run_that_goes_on_without_the_name_keeps_the_metric(tmp_path: Path) -> None:
    """Retention goes by what is stored, a save without the metric warns, and the file stays."""
    await fill(tmp_path, LOSSES, **LOSS)
    async with CheckpointManager(tmp_path, keep_top_k=1) as manager:
        await by_save(manager, 5, {"loss": 0.7})
        await manager.flush()
        assert manager.steps() == [2, 5]
        with pytest.warns(CheckpointWarning, match=rf"no metric 'loss'.*{NAME}"):
            await by_save(manager, 6, {"los": 0.7})
    assert stored(tmp_path) == ("loss", False)


@pytest.mark.parametrize(
    ("options", "step"),
    [
        ({"metric_name": "r"}, 4),
        ({"metric_name": "r", "higher_is_better": False}, 4),
        ({"metric_name": "loss", "higher_is_better": True}, 3),
        ({"higher_is_better": True}, 2),
    ],
)
@pytest.mark.parametrize("is_reader", [False, True])
async def test_what_contradicts_is_warned_of(
    tmp_path: Path, options: dict[str, Any], step: int, is_reader: bool
) -> None:
    """When the manager is entered, once, with both; what was given goes first, but for a direction of no name."""
    await fill(tmp_path, LOSSES, **LOSS)
    manager = CheckpointManager(tmp_path, read_only=is_reader, **options)
    with pytest.warns(CheckpointWarning) as warned:
        await manager.__aenter__()
    try:
        assert [each.filename for each in warned] == [__file__]
        message = str(warned[0].message)
        assert message.startswith(f"{tmp_path}: ")
        assert "saved with metric_name='loss', higher_is_better=False" in message
        given = f"metric_name={options.get('metric_name')!r}, higher_is_better={options.get('higher_is_better', True)}"
        assert f"given {given}" in message
        await manager.refresh()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # none has the metric "r"
            assert manager.best_step() == step
    finally:
        await manager.aclose()
    assert stored(tmp_path) == ("loss", False)


async def test_a_writer_stores_its_own(tmp_path: Path) -> None:
    """With its first change, and so another writer that gives the same finds no contradiction."""
    await fill(tmp_path, {1: 0.5}, **LOSS)
    options: dict[str, Any] = {"metric_name": "return", "higher_is_better": True}
    with pytest.warns(CheckpointWarning) as warned:
        await fill(tmp_path, {2: 3.0, 3: 1.0}, name="return", **options)
    assert len(warned) == 1
    assert stored(tmp_path) == ("return", True)
    async with CheckpointManager(tmp_path, **options) as manager:
        await by_save(manager, 4, {"return": 2.0})
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        with pytest.warns(CheckpointWarning, match="1 of 4"):
            assert reader.best_step() == 2


async def test_a_direction_without_a_name_is_stored_with_neither(tmp_path: Path) -> None:
    """There is nothing to rank by."""
    await fill(tmp_path, LOSSES, higher_is_better=False)
    assert stored(tmp_path) is None


async def test_readers_and_managers_that_are_off_write_nothing(tmp_path: Path) -> None:
    """They only look."""
    await fill(tmp_path, LOSSES)
    for options in ({"read_only": True}, {"enabled": False}):
        disk = FaultyDisk()
        async with CheckpointManager(tmp_path, disk=disk, metric_name="loss", **options) as manager:
            assert manager.best_step() == 3
        assert disk.operations == []
    assert stored(tmp_path) is None


async def test_only_the_first_save_pays(tmp_path: Path) -> None:
    """And where the directory says the same already, none."""
    for first in (1, 11):
        disk = FaultyDisk()
        async with CheckpointManager(tmp_path, disk=disk, **LOSS) as manager:
            for step in range(first, first + 3):
                disk.operations.clear()
                await by_save(manager, step, {"loss": 1})
                assert any(each.path.name == HALF_MADE for each in disk.operations) == (step == 1)


async def test_the_name_is_durable_with_the_first_commit(tmp_path: Path) -> None:
    """It is synced and renamed before the directory is synced for that."""
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, disk=disk, **LOSS) as manager:
        await by_save(manager, 1, {"loss": 1})
        lines = [f"{each.name} {each.path.name}" for each in disk.operations]
    assert lines.index(f"sync {HALF_MADE}") < lines.index(f"rename {HALF_MADE}")
    assert f"sync_directory {tmp_path.name}" in lines[lines.index("rename tmp_step_1") :]
    assert lines.index(f"rename {HALF_MADE}") < lines.index("rename tmp_step_1")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
async def test_a_failure_to_store_it_stops_no_save(tmp_path: Path, form: Any, operation: str) -> None:
    """It warns, the checkpoint is committed, nothing is left behind, and the next manager tries again."""
    disk = FaultyDisk()
    disk.fail(operation, errno.ENOSPC, path_part=HALF_MADE)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with CheckpointManager(tmp_path, disk=disk, format=form, **LOSS) as manager:
            await by_save(manager, 0, {"loss": 1})
            assert manager.steps() == [0]
            assert manager.best_step() == 0
    assert [each.category for each in warned] == [CheckpointWarning]
    assert "could not be stored" in str(warned[0].message)
    await fill(tmp_path, {2: 0.5}, **LOSS)
    assert stored(tmp_path) == ("loss", False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, ".lock", "step_0", "step_2"]


@pytest.mark.parametrize("is_saving", [False, True])
async def test_what_a_killed_writer_left_is_cleared(tmp_path: Path, is_saving: bool) -> None:
    """When a manager is entered, or takes the directory; by a reader, never."""
    await fill(tmp_path, LOSSES, **LOSS)
    left = tmp_path / HALF_MADE
    left.write_bytes(b'{"form')
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        assert reader.best_step() == 2
    assert left.exists()
    async with CheckpointManager(tmp_path, metric_name="loss", higher_is_better=False) as manager:
        assert not left.exists()
        if is_saving:
            left.write_bytes(b"")
            await by_save(manager, 5, {"loss": 1})
    assert not left.exists()
    assert stored(tmp_path) == ("loss", False)


async def test_something_in_the_way_stops_no_save(tmp_path: Path) -> None:
    """What cannot be removed is said by who would write there."""
    (tmp_path / HALF_MADE).mkdir()
    await fill(tmp_path, {1: 0.5})
    with pytest.warns(CheckpointWarning, match="could not be stored"):
        await fill(tmp_path, {2: 0.5}, **LOSS)
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lr": 1}', '{"format_version": 1, "metric_name": "loss"}'])
async def test_a_damaged_file_is_said_and_replaced(tmp_path: Path, content: str) -> None:
    """A reader goes by its own name, or by the step; a writer with a name stores it again."""
    await fill(tmp_path, LOSSES, **LOSS)
    (tmp_path / NAME).write_text(content)
    for options, best in (({}, 4), (LOSS, 2)):
        with pytest.warns(CheckpointWarning, match=rf"{NAME}, which names the metric, is damaged"):
            async with CheckpointManager(tmp_path, read_only=True, **options) as reader:
                assert reader.best_step() == best
    with pytest.warns(CheckpointWarning) as warned:
        await fill(tmp_path, {5: 0.5})
    assert len(warned) == 1
    assert (tmp_path / NAME).read_text() == content
    with pytest.warns(CheckpointWarning) as warned:
        await fill(tmp_path, {6: 0.5}, **LOSS)
    assert len(warned) == 1
    assert stored(tmp_path) == ("loss", False)


@pytest.mark.parametrize("kind", ["later", "directory", "symlink"])
async def test_what_is_not_ours_to_replace_stays(tmp_path: Path, kind: str) -> None:
    """It is said, saves go on, and nothing is written over it."""
    place = tmp_path / "runs" / NAME
    place.parent.mkdir()
    if kind == "later":
        place.write_text('{"format_version": 9}')
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.warns(CheckpointWarning, match=NAME) as warned:
        await fill(tmp_path / "runs", LOSSES, **LOSS)
    assert len(warned) == 1
    assert (kind, place.is_symlink(), place.is_dir()) == (kind, kind == "symlink", kind == "directory")
    assert kind != "later" or place.read_text() == '{"format_version": 9}'
    assert not (tmp_path / "elsewhere").exists()


async def test_where_warnings_are_errors_a_contradiction_refuses_to_open(tmp_path: Path) -> None:
    """And another manager opens."""
    await fill(tmp_path, LOSSES, **LOSS)
    with pytest.raises(CheckpointWarning, match="'loss'"):
        await fill(tmp_path, {5: 1.0}, metric_name="r")
    await fill(tmp_path, {5: 1.0})
    assert stored(tmp_path) == ("loss", False)


async def test_a_step_that_is_copied_elsewhere_is_whole(tmp_path: Path) -> None:
    """It loads without the file, and a directory without the file ranks by the step."""
    await fill(tmp_path / "runs", LOSSES, **LOSS)
    await asyncio.to_thread(shutil.copytree, tmp_path / "runs" / "step_2", tmp_path / "other" / "step_2")
    async with CheckpointManager(tmp_path / "other", read_only=True) as reader:
        loaded = await reader.load("best")
        assert loaded is not None
        assert loaded.state == {"a": 2}
    (tmp_path / "runs" / NAME).unlink()
    async with CheckpointManager(tmp_path / "runs") as manager:
        assert manager.best_step() == 4
        await manager.verify(2)


async def test_a_typo_prunes_nothing_and_is_mended(tmp_path: Path) -> None:
    """The best is still there when the name is put right, and the directory says the right one from then on."""
    with pytest.warns(CheckpointWarning, match="did you mean 'loss'"):
        await fill(tmp_path, LOSSES, metric_name="los", higher_is_better=False, keep_top_k=1)
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1, 2, 3, 4]
    with pytest.warns(CheckpointWarning, match="metric_name='los'"):
        await fill(tmp_path, {5: 0.6}, **LOSS, keep_top_k=1)
    async with CheckpointManager(tmp_path, read_only=True) as reader:
        assert reader.steps() == [2, 5]
        assert reader.best_step() == 2


# --- should_save ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [None, 1, 5])
@pytest.mark.parametrize("kind", [int, np.int8, np.uint8, np.int32, np.int64, np.uint64, np.array])
async def test_should_save_answers_with_a_bool(tmp_path: Path, period: int | None, kind: Any) -> None:
    """For integers of every type, as every other method takes them."""
    async with CheckpointManager(tmp_path, save_period=period) as manager:
        answers = [manager.should_save(kind(step)) for step in (0, 4, 5, 10)]
    assert [type(answer) for answer in answers] == [bool] * 4
    assert answers == [True, period != 5, True, True]


@pytest.mark.parametrize("period", [None, 5])
@pytest.mark.parametrize("step", [5.0, np.float64(5), True, np.True_, "5", None, np.array([5]), 5j])
async def test_should_save_refuses_what_is_no_step(tmp_path: Path, period: int | None, step: Any) -> None:
    """With the message of the other methods."""
    async with CheckpointManager(tmp_path, save_period=period) as manager:
        with pytest.raises(TypeError, match="a step is an int >= 0"):
            manager.should_save(step)
        with pytest.raises(ValueError, match="a step is an int"):
            manager.should_save(-5)


@pytest.mark.parametrize(
    "options",
    [
        {"keep_latest_k": 2, "save_period": 10},
        {"keep_top_k": 2, "save_period": 10, "keep_every": 5},
        {"keep_latest_k": 2, "keep_every": 1},
        {"keep_every": 100},
    ],
)
@pytest.mark.parametrize("is_mapping", [False, True])
async def test_a_policy_that_prunes_nothing_is_warned_of_at_once(
    tmp_path: Path, options: dict[str, Any], is_mapping: bool
) -> None:
    """When the manager is made, at the caller's line; a manager that prunes nothing anyway says nothing."""
    with pytest.warns(CheckpointWarning, match="keeps every step that should_save allows") as warned:
        if is_mapping:
            manager = CheckpointManager({"checkpoint_dir": tmp_path, **options})
        else:
            manager = CheckpointManager(tmp_path, **options)
    assert [each.filename for each in warned] == [__file__]
    assert all(f"{name}=" in str(warned[0].message) for name in options)
    quiet = CheckpointManager(tmp_path, read_only=True, **options)
    CheckpointManager(tmp_path, enabled=False, **options)
    async with manager, quiet:  # one that is never entered is complained of, too
        pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"save_period": 10},
        {"keep_latest_k": 2, "save_period": 10, "keep_periodic": False},
        {"keep_top_k": 2, "save_period": 10},
        {"keep_latest_k": 2, "keep_every": 20, "save_period": 10, "keep_periodic": False},
    ],
)
async def test_a_policy_that_prunes_is_not(tmp_path: Path, options: dict[str, Any]) -> None:
    """Nor one that asks for nothing."""
    async with CheckpointManager(tmp_path, **options):
        pass


async def test_keep_periodic_false_means_the_name(tmp_path: Path) -> None:
    """The two most recent multiples, and no more."""
    async with asyncckpt.CheckpointManager(tmp_path, save_period=10, keep_latest_k=2, keep_periodic=False) as manager:
        for step in range(51):
            if manager.should_save(step):
                await by_save(manager, step, {})
        await manager.flush()
        assert manager.steps() == [40, 50]
