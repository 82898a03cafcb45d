"""What a store of checkpoints is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

Identity: TypeAlias = "tuple[int, int]"
"""The inode of a directory, and when an entry of it last changed, in nanoseconds."""
NO_IDENTITY: Final[Identity] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A committed checkpoint."""

    step: int
    directory: str
    """The path of its directory; as a str, because to make thousands of Paths takes a fifth of opening a manager."""
    training_info: dict[str, Any] = field(default_factory=dict)
    """What was passed with it; numpy scalars have become numbers."""
    identity: Identity = field(default=NO_IDENTITY, repr=False, compare=False)
    """Tells its directory from an earlier or later one of the same name; NO_IDENTITY where that cannot be told."""

    @property
    def path(self) -> Path:
        """Its directory."""
        return Path(self.directory)
