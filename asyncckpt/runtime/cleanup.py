"""Undo what was done, if what follows fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def on_failure(*actions: Callable[[], object]) -> Iterator[None]:
    """Call the actions, in their order, if the block raises anything."""
    try:
        yield
    except BaseException:
        for action in actions:
            action()
        raise
