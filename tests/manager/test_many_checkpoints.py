"""What a directory of many checkpoints does not cost."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

import asyncckpt
from asyncckpt.disk.ops import DiskOps
from asyncckpt.saving import catalog, retention
from asyncckpt.storage.local import records as listing
from asyncckpt.storage.local.store import LocalStore

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

MAKERS = {"__new__", "__truediv__", "joinpath"}
"""What of `pathlib` makes a Path."""


def list_all(directory: Path) -> dict[int, asyncckpt.CheckpointRecord]:
    """List a directory for the first time."""
    return LocalStore(directory, DiskOps()).list_checkpoints({}).records


@pytest.mark.parametrize("root", ["run", "a directory/of runs"])
def test_records_are_read_without_a_path_for_each(tmp_path: Path, root: str) -> None:
    """As many Paths are made for forty checkpoints as for two, and each record has its own when asked."""
    directory = tmp_path / root
    made = []
    for count in (2, 40):
        for step in range(count):
            (directory / f"step_{step}").mkdir(parents=True, exist_ok=True)
            (directory / f"step_{step}" / "manifest.json").touch()
        paths = 0

        def count_paths(frame: FrameType, event: str, _: Any) -> None:
            nonlocal paths
            is_made = frame.f_code.co_name in MAKERS and "pathlib" in frame.f_code.co_filename
            paths += event == "call" and is_made

        sys.setprofile(count_paths)
        try:
            records = list_all(directory)
        finally:
            sys.setprofile(None)
        made.append(paths)
        assert [record.path for record in records.values()] == [directory / f"step_{step}" for step in range(count)]
    assert made[0] == made[1]


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    """A listing reads what is new, what was put in another's place, and what could not be read before."""
    for step in range(5):
        _make(tmp_path, step, loss=step)
    (tmp_path / "step_3" / "training_info.json").write_bytes(b"{")
    known = list_all(tmp_path)
    assert known[3].training_info == {}

    (tmp_path / "step_1").rename(tmp_path / "elsewhere")
    _make(tmp_path, 1, loss=10)
    (tmp_path / "step_3" / "training_info.json").write_text(json.dumps({"loss": 30}))
    (tmp_path / "step_4").rename(tmp_path / "step_6")
    _make(tmp_path, 5, loss=50)
    (tmp_path / "step_0").rename(tmp_path / "old_step_0")  # as an overwrite leaves it, when it is killed
    records = LocalStore(tmp_path, DiskOps()).list_checkpoints(known).records
    assert records == list_all(tmp_path)
    assert [step for step, record in records.items() if record is known.get(step)] == [2]
    assert [record.training_info["loss"] for record in records.values()] == [0, 10, 2, 30, 50, 4]


def _make(root: Path, step: int, *, loss: float) -> None:
    """Make a directory that a listing takes for a checkpoint."""
    directory = root / f"step_{step}"
    directory.mkdir(parents=True)
    (directory / "training_info.json").write_text(json.dumps({"loss": loss}))
    (directory / "manifest.json").touch()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_first_save_reads_no_checkpoint_again(tmp_path: Path) -> None:
    """To take the directory, and to refresh, opens none of the files that opening the manager has read."""
    for step in range(5):
        _make(tmp_path, step, loss=step)
    async with asyncckpt.CheckpointManager(tmp_path, metric_name="loss") as manager:
        read = []
        parse = listing.parse_training_info

        def parse_and_note(data: bytes) -> dict[str, Any]:
            read.append(data)
            return parse(data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(listing, "parse_training_info", parse_and_note)
            await (await manager.save(9, {}, training_info={"loss": 9}))
            await manager.refresh()
        assert read == []
        assert manager.best_step() == 9


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_commit_walks_over_no_others(tmp_path: Path) -> None:
    """To list a new checkpoint, prune and choose the best takes the loop few more calls beside 300 than beside 8."""
    rooms = {catalog.__file__, retention.__file__}
    counts = []
    for count in (8, 300):
        root = tmp_path / str(count)
        for step in range(count):
            _make(root, step, loss=step % 7)
        calls = 0

        def count_calls(frame: FrameType, event: str, _: Any) -> None:
            nonlocal calls
            calls += event == "call" and frame.f_code.co_filename in rooms

        options: dict[str, Any] = {"metric_name": "loss", "keep_top_k": 2, "keep_latest_k": 2, "keep_every": 1}
        with pytest.warns(asyncckpt.CheckpointWarning, match="keep_every=1"):  # every step stays: that is the point
            made = asyncckpt.CheckpointManager(root, **options)
        async with made as manager:
            await (await manager.save(1000, {}, training_info={"loss": 6}))  # takes the directory
            sys.setprofile(count_calls)  # of this thread, the loop's
            try:
                await (await manager.save(1001, {}, training_info={"loss": 7}))
                assert manager.best_step() == 1001
            finally:
                sys.setprofile(None)
            assert len(manager.steps()) == count + 2
        counts.append(calls)
    assert 5 < counts[0] <= counts[1] < counts[0] + 20  # a binary search or two
