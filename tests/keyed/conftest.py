"""What the tests of `Checkpointer` share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from helpers.kinds import FILES, KINDS, Place

if TYPE_CHECKING:
    from collections.abc import Iterator

_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - directories of the tests' own are made in it


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, for tests that model what a disk loses, and so need none that keeps anything."""
    if not os.access(_IN_MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="asyncckpt-test-", dir=_IN_MEMORY) as directory:
        yield Path(directory)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where `place` and `file` are: on a disk, where a module does not say otherwise."""
    return tmp_path


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, directory: Path) -> Place:
    """An empty place of each kind."""
    return Place(request.param, directory)


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, directory: Path) -> Place:
    """An empty place of each kind that has a file."""
    return Place(request.param, directory)
