"""What a directory of many checkpoints does not cost."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

import asyncckpt
from asyncckpt.saving import catalog, commit, retention

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

MAKERS = {"__new__", "__truediv__", "joinpath"}
"""What of `pathlib` makes a Path."""


@pytest.mark.parametrize("root", ["run", "a directory/of runs"])
def test_records_are_read_without_a_path_for_each(tmp_path: Path, root: str) -> None:
    """As many Paths are made for forty checkpoints as for two, and each record has its own when asked."""
    directory = tmp_path / root
    made = []
    for count in (2, 40):
        for step in range(count):
            (directory / f"step_{step}").mkdir(parents=True, exist_ok=True)
        paths = 0

        def count_paths(frame: FrameType, event: str, _: Any) -> None:
            nonlocal paths
            is_made = frame.f_code.co_name in MAKERS and "pathlib" in frame.f_code.co_filename
            paths += event == "call" and is_made

        sys.setprofile(count_paths)
        try:
            records = commit.read_records(directory)
        finally:
            sys.setprofile(None)
        made.append(paths)
        assert [record.path for record in records] == [directory / f"step_{step}" for step in range(count)]
    assert made[0] == made[1]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_commit_walks_over_no_others(tmp_path: Path) -> None:
    """To list a new checkpoint, to prune and to choose the best takes the loop as many calls beside 8 as beside 300."""
    rooms = {catalog.__file__, retention.__file__}
    counts = []
    for count in (8, 300):
        root = tmp_path / str(count)
        for step in range(count):
            (root / f"step_{step}").mkdir(parents=True)
            (root / f"step_{step}" / "training_info.json").write_text(json.dumps({"loss": step % 7}))
        calls = 0

        def count_calls(frame: FrameType, event: str, _: Any) -> None:
            nonlocal calls
            calls += event == "call" and frame.f_code.co_filename in rooms

        options: dict[str, Any] = {"metric_name": "loss", "keep_top_k": 2, "keep_latest_k": 2, "keep_every": 1}
        async with asyncckpt.CheckpointManager(root, **options) as manager:
            await (await manager.save(1000, {}, training_info={"loss": 6}))  # takes the directory
            sys.setprofile(count_calls)  # of this thread, the loop's
            try:
                await (await manager.save(1001, {}, training_info={"loss": 7}))
                assert manager.best_step() == 1001
            finally:
                sys.setprofile(None)
            assert len(manager.steps()) == count + 2
        counts.append(calls)
    assert counts[0] == counts[1]
    assert counts[0] > 5
