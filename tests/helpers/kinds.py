"""The one table that the tests of `Checkpointer` run over: every kind, and how a file of it is made and opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncckpt

if TYPE_CHECKING:
    from pathlib import Path

EXTENSIONS = {"hdf5": ".hdf5", "msgpack": ".msgpack", "json": ".json", "npz": ".npz"}
FILES = tuple(EXTENSIONS)
"""The kinds that have a file."""
KINDS = (*FILES, "dict")
"""Those that keep something."""


@dataclass
class Place:
    """Where the keys of one test are: in a file, or in a dict."""

    kind: str
    directory: Path
    name: str = "woof"
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file."""
        return self.directory / (self.name + EXTENSIONS[self.kind])

    def open(self, **options: Any) -> asyncckpt.Checkpointer:
        """Return a Checkpointer of what is there."""
        if self.kind == "dict":
            return asyncckpt.DictCheckpointer(self.memory, **options)
        return asyncckpt.Checkpointer.from_file(self.path, **options)

    def contents(self) -> dict[str, Any]:
        """Read everything, as a new process would."""
        with self.open() as chk:
            return dict(chk)
