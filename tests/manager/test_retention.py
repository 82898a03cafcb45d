"""Who stays and who goes, through the manager."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import shutil
import warnings
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

pytestmark = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it decides nothing here

LOSSES = {1: 0.5, 2: 0.3, 3: 0.7, 4: 0.2, 5: 0.4, 6: 0.8}


async def listed(root: Path) -> list[int]:
    """Give the steps on the disk."""
    return [step for step, _, _ in await asyncio.to_thread(asyncckpt._load_checkpoint_history, root)]


def names_in(root: Path) -> list[str]:
    """List a directory."""
    return sorted(path.name for path in root.iterdir())


async def play(
    root: Path, losses: Mapping[int, float | None], *, says: Sequence[str] = (), **options: Any
) -> list[int]:
    """Save steps with their losses, one after the other, and give those that are left; `says` is what is warned of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        left = await _play(root, losses, **options)
    assert [each.category for each in warned] == [asyncckpt.CheckpointWarning] * len(says)
    assert all(word in str(each.message) for word, each in zip(says, warned, strict=True))
    return left


async def _play(root: Path, losses: Mapping[int, float | None], **options: Any) -> list[int]:
    async with asyncckpt.CheckpointManager(
        root, **{"metric_name": "loss", "higher_is_better": False} | options
    ) as manager:
        for step, loss in losses.items():
            await (await manager.save(step, {"a": step}, training_info={} if loss is None else {"loss": loss}))
        await manager.flush()
        left = manager.steps()
        for step in left:
            loaded = await manager.load(step)
            assert loaded is not None
            assert loaded.state == {"a": step}
    assert await listed(root) == left
    assert not [name for name in names_in(root) if name.startswith(("trash", "old"))]
    return left


async def test_the_worked_example(tmp_path: Path) -> None:
    """Losses .5 .3 .7 .2 .4 .8 with `keep_top_k=3`, lower better, leave four: 2, 4, 5 and the newest, 6."""
    assert await play(tmp_path, LOSSES, keep_top_k=3) == [2, 4, 5, 6]


UP_TO_7 = dict.fromkeys(range(1, 8))
LACK = "step 1: there is no metric 'loss'"
NO_NAME: dict[str, Any] = {"metric_name": None}
CASES: list[tuple[dict[str, Any], dict[int, float | None], list[int], list[str]]] = [
    # Neither keep_top_k nor keep_latest_k: nothing is pruned, which is said where something was asked for.
    ({}, UP_TO_7, list(range(1, 8)), [LACK]),
    (NO_NAME | {"save_period": 3}, UP_TO_7, list(range(1, 8)), []),
    (NO_NAME | {"keep_every": 3}, UP_TO_7, list(range(1, 8)), ["keep_every=3 keeps every step"]),
    (NO_NAME | {"keep_periodic": False}, UP_TO_7, list(range(1, 8)), ["keep_periodic=False keeps every step"]),
    # keep_latest_k alone keeps just those.
    (NO_NAME | {"keep_latest_k": 2}, UP_TO_7, [6, 7], []),
    (NO_NAME | {"keep_latest_k": 0}, UP_TO_7, [7], []),
    # All periodic steps when keep_top_k is None, unless keep_periodic is False.
    (NO_NAME | {"keep_latest_k": 1, "save_period": 3}, UP_TO_7, [3, 6, 7], ["keep_periodic=False"]),
    (NO_NAME | {"keep_latest_k": 1, "save_period": 3, "keep_periodic": False}, UP_TO_7, [7], []),
    (NO_NAME | {"keep_latest_k": 1, "save_period": 1, "keep_periodic": False, "keep_every": 4}, UP_TO_7, [4, 7], []),
    # A union with the multiples of keep_every.
    (NO_NAME | {"keep_latest_k": 2, "keep_every": 2}, UP_TO_7, [2, 4, 6, 7], []),
    # keep_top_k among the periodic steps only, and the newest on top.
    ({"keep_top_k": 2, "save_period": 2}, LOSSES | {7: 0.0, 9: 0.0}, [2, 4, 9], []),
    ({"keep_top_k": 2, "save_period": 2, "keep_periodic": False}, LOSSES | {7: 0.0, 9: 0.0}, [2, 4, 9], []),
    ({"keep_top_k": 1, "keep_latest_k": 2, "keep_every": 3}, LOSSES, [3, 4, 5, 6], []),
    ({"keep_top_k": 0}, LOSSES, [6], []),
    # No metric's name: the most recent.
    (NO_NAME | {"keep_top_k": 2}, LOSSES, [5, 6], []),
    (NO_NAME | {"keep_top_k": 2, "save_period": 2}, LOSSES | {7: 0.0}, [4, 6, 7], []),
    # Higher is better.
    ({"keep_top_k": 2, "higher_is_better": True}, LOSSES | {7: 0.0}, [3, 6, 7], []),
    # No metric, or NaN, ranks worst; ties go to the higher step; infinities are numbers.
    ({"keep_top_k": 2}, {1: None, 2: 5.0, 3: math.nan, 4: math.inf, 5: None}, [2, 4, 5], [LACK]),
    ({"keep_top_k": 2}, {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0}, [2, 3, 4], []),
    ({"keep_top_k": 1}, {1: math.nan, 2: None, 3: math.nan}, [3], ["step 2: there is no metric 'loss'"]),
    # While none has the metric, keep_top_k prunes nothing of what it ranks; the first that has it ends that.
    ({"keep_top_k": 1}, UP_TO_7, list(range(1, 8)), [LACK]),
    ({"keep_top_k": 0}, UP_TO_7, list(range(1, 8)), [LACK]),
    ({"keep_top_k": 1, "keep_latest_k": 1}, UP_TO_7, list(range(1, 8)), [LACK]),
    ({"keep_top_k": 1, "keep_latest_k": 2, "save_period": 3}, UP_TO_7, [3, 6, 7], [LACK]),
    ({"keep_top_k": 2, "save_period": 2}, UP_TO_7 | {3: 0.5, 7: 0.5}, [2, 4, 6, 7], [LACK]),
    ({"keep_top_k": 2}, UP_TO_7 | {8: 0.5}, [7, 8], [LACK]),
    # A commit never prunes itself, though it ranks last; it goes with the next.
    ({"keep_top_k": 1}, {1: 0.0, 2: 9.0}, [1, 2], []),
    ({"keep_top_k": 1}, {1: 0.0, 2: 9.0, 3: 9.0}, [1, 3], []),
    # Numbers, not names, are compared.
    (NO_NAME | {"keep_latest_k": 2}, {8: None, 9: None, 10: None, 100: None}, [10, 100], []),
]


@pytest.mark.parametrize(("options", "losses", "left", "says"), CASES)
async def test_rules(
    tmp_path: Path, options: dict[str, Any], losses: dict[int, float | None], left: list[int], says: list[str]
) -> None:
    """Each rule, alone and in union with others; and what is said of options that prune nothing, or of no metric."""
    assert await play(tmp_path, losses, says=says, **options) == left


async def test_a_commit_below_the_latest_is_not_pruned_by_itself(tmp_path: Path) -> None:
    """A step saved below the others survives its own commit, and goes with the next."""
    async with asyncckpt.CheckpointManager(tmp_path, keep_latest_k=2) as manager:
        for step in (10, 11):
            await (await manager.save(step, {"a": 1}))
        with pytest.warns(asyncckpt.CheckpointWarning, match="below the latest"):
            handle = await manager.save(1, {"a": 1})
        await handle
        await manager.flush()
        assert manager.steps() == [1, 10, 11]
        await (await manager.save(12, {"a": 1}))
        await manager.flush()
        assert manager.steps() == [11, 12]


async def test_remove_old_checkpoints(tmp_path: Path) -> None:
    """It applies the rules to what is there; with `exclude_latest=False` the newest has no privilege."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        for step, loss in LOSSES.items():
            await (await manager.save(step, {"a": 1}, training_info={"loss": loss}))
    options: dict[str, Any] = {"metric_name": "loss", "higher_is_better": False, "keep_top_k": 2}
    async with asyncckpt.CheckpointManager(tmp_path, **options) as manager:
        assert manager.steps() == [1, 2, 3, 4, 5, 6]
        await manager.remove_old_checkpoints()
        assert manager.steps() == [2, 4, 6]
        await manager.remove_old_checkpoints(exclude_latest=False)
        assert manager.steps() == [2, 4]
        await manager.remove_old_checkpoints(False)  # noqa: FBT003 - both ways of the given name
    assert await listed(tmp_path) == [2, 4]


async def test_overwriting_changes_the_metric(tmp_path: Path) -> None:
    """What counts is the metric of the version that is committed now."""
    async with asyncckpt.CheckpointManager(tmp_path, metric_name="r", keep_top_k=1) as manager:
        await (await manager.save(1, {"a": 1}, training_info={"r": 5}))
        await (await manager.save(2, {"a": 1}, training_info={"r": 3}))
        assert manager.best_step() == 1
        await (await manager.save(2, {"a": 1}, training_info={"r": np.float32(9)}, overwrite=True))
        await manager.flush()
        assert manager.best_step() == 2
        assert manager.steps() == [2]


async def test_a_step_being_loaded_is_not_pruned(tmp_path: Path) -> None:
    """A checkpoint that is being read stays until the next prune."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, {"a": 1}))
        with manager._session.use().steps.reading(1):
            await (await manager.save(2, {"a": 1}))
            await manager.flush()
            assert manager.steps() == [1, 2]
        await manager.load(1)
        await (await manager.save(3, {"a": 1}))
        await manager.flush()
        assert manager.steps() == [3]


async def test_corrupt_ones_do_not_count(tmp_path: Path) -> None:
    """A checkpoint found corrupt takes no place among the best or the latest, and is not pruned either."""
    async with asyncckpt.CheckpointManager(tmp_path, metric_name="r", keep_latest_k=2) as manager:
        for step in (1, 2):
            await (await manager.save(step, {"a": step}, training_info={"r": step}))
        (tmp_path / "step_2" / "manifest.json").unlink()
        with pytest.warns(asyncckpt.CheckpointWarning, match="falling back from step 2 to step 1"):
            loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.step == 1
        assert manager.latest_step() == manager.best_step() == 1
        await (await manager.save(3, {"a": 3}, training_info={"r": 0}))
        await manager.flush()
        assert manager.steps() == [1, 2, 3]
        assert manager.best_step() == 1
        await (await manager.save(4, {"a": 4}, training_info={"r": 0}))
        await manager.flush()
        assert manager.steps() == [2, 3, 4]


@pytest.mark.parametrize("rule", [{"keep_latest_k": 2}, {"metric_name": "r", "keep_top_k": 2}])
async def test_a_step_without_a_manifest_does_not_count(tmp_path: Path, rule: dict[str, Any]) -> None:
    """It may be somebody else's: it is named once, stays listed, and is neither latest nor best, nor pruned."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        for step in (1, 2, 3):
            await (await manager.save(step, {"a": step}, training_info={"r": step}))
    theirs = tmp_path / "step_9" / "theirs"
    theirs.parent.mkdir()
    theirs.touch()
    async with AsyncExitStack() as exits:
        with pytest.warns(asyncckpt.CheckpointWarning, match="step_9 has no manifest.json.*does not count") as said:
            manager = await exits.enter_async_context(asyncckpt.CheckpointManager(tmp_path, **rule))
        assert len(said) == 1
        assert manager.latest_step() == manager.best_step() == 3
        loaded = await manager.load("latest")
        assert loaded is not None
        assert loaded.step == 3
        await (await manager.save(4, {"a": 4}, training_info={"r": 4}))
        await manager.flush()
        await manager.refresh()
        assert manager.steps() == [3, 4, 9]
        with pytest.raises(asyncckpt.CorruptCheckpointError):
            await manager.load(9)
        with pytest.raises(asyncckpt.StepExistsError):
            await manager.save(9, {"a": 9}, training_info={"r": 9})
        assert theirs.exists()
        await (await manager.save(9, {"a": 9}, training_info={"r": 9}, overwrite=True))
        await manager.flush()
        assert manager.latest_step() == 9
        assert manager.steps() == [4, 9]


async def test_a_checkpoint_that_is_replaced_while_it_is_listed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old directory, from which the manifest has gone, is not taken for it."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            await (await manager.save(step, {"a": step}))
    access = os.access

    def replace_first(what: Any, *mode: int, **options: Any) -> bool:
        if what == "manifest.json" and not (tmp_path / "trash_step_2").exists():
            shutil.copytree(tmp_path / "step_2", tmp_path / "new")
            (tmp_path / "step_2").rename(tmp_path / "trash_step_2")
            (tmp_path / "new").rename(tmp_path / "step_2")
            (tmp_path / "trash_step_2" / "manifest.json").unlink()
        return access(what, *mode, **options)

    (tmp_path / "step_1").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(os, "access", replace_first)
    async with asyncckpt.CheckpointManager(tmp_path, read_only=True) as manager:
        assert (tmp_path / "trash_step_2").exists()
        assert manager.latest_step() == 2


async def test_other_names_are_left_alone(tmp_path: Path) -> None:
    """`step_1-hf`, `step_01` and their like are neither listed nor pruned, whatever retention says."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": 1}))
    others = ["step_1-hf", "step_01", "step_x", "my_step_2", "step_3.bak", "tmp_step_1x"]
    for name in others:
        shutil.copytree(tmp_path / "step_1", tmp_path / name)
    assert await play(tmp_path, {2: 0.1, 3: 0.2}, keep_latest_k=1) == [3]
    assert names_in(tmp_path) == sorted([".asyncckpt.json", ".lock", "step_3", *others])


async def test_pruning_waits_for_the_commit(tmp_path: Path) -> None:
    """Nothing is pruned for a save that fails."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk, keep_latest_k=1) as manager:
        await (await manager.save(1, {"a": 1}))
        for operation in ("mkdir", "write", "sync", "sync_directory", "rename"):
            disk.fail(operation, 28)
            handle = await manager.save(2, {"a": 2})
            with pytest.raises(asyncckpt.SaveFailedError):
                await handle
            assert manager.steps() == await listed(tmp_path) == [1]


async def test_delete_keeps_the_writers_order(tmp_path: Path) -> None:
    """A delete comes after what was queued before it: it finds the step that is still being saved."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(tmp_path, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {"a": 1})
            await gate.reached()
            gate.open()
            await manager.delete(1)
        assert await handle is not None
        assert manager.steps() == await listed(tmp_path) == []
        with pytest.raises(asyncckpt.CheckpointNotFoundError) as caught:
            await manager.delete(1)
        assert caught.value.step == 1
        await (await manager.save(1, {"a": 2}))
        assert manager.steps() == [1]


async def test_deleting_a_corrupt_one(tmp_path: Path) -> None:
    """A checkpoint found corrupt can be deleted."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": 1}))
        (tmp_path / "step_1" / "manifest.json").write_bytes(b"{}")
        with pytest.raises(asyncckpt.CorruptCheckpointError):
            await manager.verify(1)
        assert manager.steps() == [1]
        await manager.delete(1)
        assert manager.steps() == await listed(tmp_path) == []


async def test_a_lazy_load_survives_pruning(tmp_path: Path) -> None:
    """Files are unlinked, never truncated: mapped arrays are whole after their checkpoint is gone."""
    async with asyncckpt.CheckpointManager(tmp_path, keep_latest_k=1) as manager:
        await (await manager.save(1, {"a": np.arange(300_000)}))
        loaded = await manager.load(1, lazy=True)
        assert loaded is not None
        await (await manager.save(2, {"a": 1}))
    assert await listed(tmp_path) == [2]
    np.testing.assert_array_equal(loaded.state["a"], np.arange(300_000))


async def test_the_best_follows_every_change(tmp_path: Path) -> None:
    """A commit, a deletion, a corrupt one and one overwritten are seen at once."""
    async with asyncckpt.CheckpointManager(tmp_path, metric_name="loss", higher_is_better=False) as manager:
        for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4)):
            await (await manager.save(step, {"w": np.arange(3)}, training_info={"loss": loss}))
        assert manager.best_step() == 2
        await manager.delete(2)
        assert manager.best_step() == 3
        manifest = tmp_path / "step_3" / "manifest.json"
        await asyncio.to_thread(manifest.write_bytes, b"{}")
        with pytest.raises(asyncckpt.CorruptCheckpointError):
            await manager.verify(3)
        assert manager.best_step() == 1
        await (await manager.save(4, {}, training_info={"loss": 0.1}))
        assert manager.best_step() == 4
        await (await manager.save(4, {}, training_info={"loss": 0.9}, overwrite=True))
        assert manager.best_step() == 1
        with pytest.warns(asyncckpt.CheckpointWarning, match="below the latest"):
            await (await manager.save(3, {}, training_info={"loss": 0.2}, overwrite=True))
        assert manager.best_step() == 3
        await manager.refresh()
        assert manager.best_step() == 3


async def test_what_a_save_returned_may_be_changed(tmp_path: Path) -> None:
    """A record is its owner's: the catalog, now or after another listing, knows nothing of what becomes of it."""
    async with asyncckpt.CheckpointManager(tmp_path, metric_name="loss") as manager:
        await (await manager.save(1, {}, training_info={"loss": 0.5}))
        record = await (await manager.save(2, {}, training_info={"loss": 0.7}))
        assert record.training_info == {"loss": 0.7}
        record.training_info["loss"] = 0.1
        assert manager.best_step() == 2
        await manager.refresh()
        assert manager.best_step() == 2


async def test_steps_that_cannot_be_renamed_are_named_once_and_keep_no_other(tmp_path: Path) -> None:
    """The others are pruned; the stuck ones are tried again, one with each prune, in turn, and all when asked to."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            await (await manager.save(step, {"a": step}))
    disk = FaultyDisk()
    for step in (1, 2):
        disk.fail("rename", errno.EBUSY, path_part=f"/step_{step}", lasting=True)

    def tried() -> list[str]:
        names = [each.path.name for each in disk.operations if each.name == "rename"]
        disk.operations.clear()
        return [name for name in names if name in ("step_1", "step_2")]

    with pytest.warns(asyncckpt.CheckpointWarning, match=r"step [12] cannot be pruned: .* busy") as caught:
        async with asyncckpt.CheckpointManager(tmp_path, keep_latest_k=1, disk=disk) as manager:
            found = []
            for step in (30, 40, 50, 60):
                await (await manager.save(step, {"a": step}))
                found.append(tried())
            assert found == [["step_1", "step_2"], ["step_1"], ["step_2"], ["step_1"]]
            assert manager.steps() == [1, 2, 60]
            await manager.remove_old_checkpoints()
            assert tried() == ["step_2", "step_1"]
            disk.heal()
            await manager.remove_old_checkpoints()
            assert manager.steps() == [60]
    assert len(caught) == 2


async def test_what_retention_keeps_shows_when_the_handle_resolves(tmp_path: Path) -> None:
    """In `steps`, and on the disk: what is pruned has lost its name by then."""
    async with asyncckpt.CheckpointManager(tmp_path, keep_latest_k=2) as manager:
        for step in range(5):
            await (await manager.save(step, {"a": step}))
            kept = list(range(max(step - 1, 0), step + 1))
            assert manager.steps() == kept
            names = [path.name for path in await asyncio.to_thread(lambda: list(tmp_path.glob("step_*")))]
            assert sorted(names) == [f"step_{each}" for each in kept]
