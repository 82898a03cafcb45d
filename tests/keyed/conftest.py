"""What the tests of `Checkpointer` share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.kinds import FILES, KINDS, Place

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(quick_path: Path) -> Path:
    """Where `place` and `file` are: in memory, where a module does not say otherwise."""
    return quick_path


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, directory: Path) -> Place:
    """An empty place of each kind."""
    return Place(request.param, directory)


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, directory: Path) -> Place:
    """An empty place of each kind that has a file."""
    return Place(request.param, directory)
