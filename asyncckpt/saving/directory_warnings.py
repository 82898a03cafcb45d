"""Warnings about a checkpoint directory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asyncckpt.errors import CheckpointWarning, warn

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class DirectoryWarnings:
    """Issues each remark about a directory once. Used on the loop's thread only."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._issued: set[str] = set()

    def issue(self, remarks: Iterable[str]) -> None:
        """Warn of the remarks that are new, in the task of the caller."""
        for message in self._new(remarks):
            warn(message)

    def issue_in_background(self, remarks: Iterable[str]) -> None:
        """Warn of the remarks that are new, in a task that must not fail."""
        for message in self._new(remarks):
            warn_in_background(message)

    def _new(self, remarks: Iterable[str]) -> list[str]:
        new = [remark for remark in dict.fromkeys(remarks) if remark not in self._issued]
        self._issued.update(new)
        return [f"{self._root}: {remark}" for remark in new]


def warn_in_background(message: str) -> None:
    """Warn in a task that must not fail: where warnings are errors, the loop's exception handler is called instead."""
    try:
        warn(message)
    except CheckpointWarning as error:
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
