"""What a directory of many checkpoints does not cost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from asyncckpt.saving import commit

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
