"""What the tests of frameworks share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tmp_path(quick_path: Path) -> Path:
    """In memory: these tests are about arrays, and not about what keeps them."""
    return quick_path
