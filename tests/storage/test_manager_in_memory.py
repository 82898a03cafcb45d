"""A manager needs nothing but a store: what it does on a disk it does in memory, too, as far as there are no paths."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.memory_store import MemoryStore, Shared
from helpers.support import FORMATS, assert_same

from asyncckpt import (
    CheckpointError,
    CheckpointManager,
    CheckpointNotFoundError,
    CheckpointWarning,
    CorruptCheckpointError,
    DirectoryLockedError,
    FileSource,
    ManagerUsageError,
    SaveFailedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def state(number: int) -> dict[str, Any]:
    """Make a state of a few MiB."""
    rng = np.random.default_rng(number)
    return {"w": rng.random(3 * MIB // 8), "small": [rng.random(3) for _ in range(40)], "number": number, "t": (1, "a")}


@pytest.fixture
def shared() -> Shared:
    """Make an empty location."""
    return Shared()


@pytest.fixture
def manage(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckpointManager]:
    """Return what makes a manager of the location; nothing is on the disk."""
    monkeypatch.setattr("asyncckpt.manager.LocalStore", lambda *_, **__: MemoryStore(shared))
    return lambda **options: CheckpointManager("/nowhere", **options)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("way", ["staged", "frozen", "streamed"])
async def test_states_come_back(manage: Callable[..., CheckpointManager], form: str, way: str) -> None:
    """However they are captured, in both formats: loaded, restored, selected, verified, and listed by the next one."""
    options = {"max_staged_nbytes": MIB} if way == "streamed" else {}
    async with manage(format=form, **options) as manager:
        for step in (1, 2):
            handle = await manager.save(step, state(step), training_info={"loss": step}, frozen=way == "frozen")
            record = await handle
            assert record is not None
            assert (record.step, record.training_info) == (step, {"loss": step})
            assert handle.progress().written_nbytes == handle.progress().total_nbytes > 3 * MIB
        with pytest.raises(ManagerUsageError, match="step 2 has no directory"):
            _ = record.path
    async with manage() as manager:
        assert manager.steps() == [1, 2]
        loaded = await manager.load("latest")
        assert loaded is not None
        assert (loaded.step, loaded.training_info) == (2, {"loss": 2})
        assert_same(loaded.state, state(2))
        into = state(3)
        array = into["w"]
        assert (await manager.restore(1, into=into)).state is into
        assert into["w"] is array
        assert_same(into, state(1))
        selected = await manager.load(1, select="number")
        assert selected is not None
        assert selected.state == {"number": 1}
        await manager.verify(1)
    assert not Path("/nowhere").exists()


async def test_retention_deletes(manage: Callable[..., CheckpointManager], shared: Shared) -> None:
    """What is pruned, deleted or overwritten is gone from the store; the best is known by its document."""
    async with manage(metric_name="loss", higher_is_better=False, keep_latest_k=2, keep_top_k=1) as manager:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0]):
            await (await manager.save(step, state(step), training_info={"loss": loss}))
        assert manager.steps() == [1, 3, 4]
        await (await manager.save(4, state(5), training_info={"loss": 0.5}, overwrite=True))
        assert manager.best_step() == 4
        await manager.delete(3)
    assert list(shared.checkpoints) == [4]
    assert shared.trash == {}
    assert shared.writer is None
    async with manage() as manager:
        assert manager.best_step() == 4
        best = await manager.load("best")
        assert best is not None
        assert_same(best.state, state(5))


async def test_a_damaged_checkpoint_is_found(manage: Callable[..., CheckpointManager], shared: Shared) -> None:
    """By verification, and by a load, which falls back."""
    async with manage() as manager:
        for step in (1, 2):
            await (await manager.save(step, state(step)))
        shared.checkpoints[2].files["state.msgpack"][2 * MIB] ^= 1
        with pytest.warns(CheckpointWarning, match="falling back from step 2 to step 1"):
            loaded = await manager.load("latest")
        assert loaded is not None
        assert_same(loaded.state, state(1))
        with pytest.raises(CorruptCheckpointError):
            await manager.verify(2)


async def test_a_second_writer_is_refused(manage: Callable[..., CheckpointManager], shared: Shared) -> None:
    """And one that was replaced writes nothing any more."""
    async with manage() as manager, manage() as other:
        await (await manager.save(1, state(1)))
        with pytest.raises(DirectoryLockedError):
            await other.save(2, state(2))
        await other.refresh()
        assert other.steps() == [1]
        shared.writer = object()
        with pytest.raises(SaveFailedError, match="another writer has taken it"):
            await (await manager.save(2, state(2)))
    assert list(shared.checkpoints) == [1]


async def test_a_lack_of_room_deletes_old_ones(manage: Callable[..., CheckpointManager], shared: Shared) -> None:
    """What a save will displace goes before it is written, if that makes enough room."""
    shared.capacity = 10 * MIB
    async with manage(keep_latest_k=2) as manager:
        for step in range(5):
            await (await manager.save(step, state(step)))
        assert manager.steps() == [3, 4]
        with pytest.raises(SaveFailedError, match="no room in memory"):
            await (await manager.save(5, {"w": np.zeros(2 * MIB)}))
        assert 4 in manager.steps()


async def test_files_are_copied_into_any_store(manage: Callable[..., CheckpointManager], tmp_path: Path) -> None:
    """A file or a directory is; what needs a local directory is refused by `save`, and nothing changes."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "x").write_bytes(bytes(MIB + 1))
    async with manage() as manager:
        record = await (await manager.save(1, {}, files={"tree": tmp_path / "tree"}))
        assert record is not None
        assert [(file.name, file.size) for file in record.files] == [("tree/sub/x", MIB + 1)]
        await manager.verify(1)
        loaded = await manager.load(1)
        assert loaded is not None
        assert loaded.files == record.files
        with pytest.raises(CheckpointError, match="cannot be moved into memory"):
            await manager.save(2, {}, files={"tree": FileSource(tmp_path / "tree", move=True)})
        with pytest.raises(CheckpointError, match="no local directories"):
            await manager.save(2, {}, files={"made": lambda path: asyncio.sleep(0, path)})
        assert (tmp_path / "tree" / "sub" / "x").exists()
        await (await manager.save(2, {}))


async def test_what_needs_paths_is_refused(manage: Callable[..., CheckpointManager]) -> None:
    """Directories that the caller fills, checkpoints by their path, and files that are mapped."""
    async with manage() as manager:
        await (await manager.save(1, state(1)))
        for refused in (
            manager.init_tmp_checkpoint(2),
            manager.finalize_checkpoint("tmp_step_2"),
            manager.load(Path("x")),
        ):
            with pytest.raises(ManagerUsageError, match="no local directories"):
                await refused
        with pytest.raises(CheckpointError, match="lazy=True"):
            await manager.load(1, lazy=True)
        with pytest.raises(CheckpointNotFoundError):
            await manager.load(2)
