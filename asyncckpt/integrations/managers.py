"""The managers that the integrations take: those of programs without an event loop."""

from __future__ import annotations

from asyncckpt.manager import CheckpointManager


def check_is_blocking(manager: object) -> None:
    """Refuse a manager whose calls have to be awaited.

    Raises:
        TypeError: It is one.
    """
    if isinstance(manager, CheckpointManager):
        message = f"{manager!r} is for programs with an event loop: give an asyncckpt.blocking.CheckpointManager"
        raise TypeError(message)
