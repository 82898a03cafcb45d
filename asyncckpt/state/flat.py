"""The result of encoding a state: its tree as encoded nodes, and its arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state import index as ix

if TYPE_CHECKING:
    from asyncckpt.arrays.meta import ArrayMeta
    from asyncckpt.arrays.source import ArraySource


@dataclass(slots=True, kw_only=True, eq=False)
class FlatState:
    """A state as encoded nodes, and the arrays that are to be captured."""

    root: str = ""
    """The path of the state in error messages."""
    chunks: list[bytes] = field(default_factory=list)
    arrays: list[ArrayMeta] = field(default_factory=list)
    """The dtype and shape of each array."""
    sources: list[ArraySource] = field(default_factory=list)
    """The arrays to be captured, until they have been."""
    stable: set[int] = field(default_factory=set)
    """The numbers of the arrays that no program can change, and that need no copy. Each has at least a page."""
    is_on_device: bool = False
    """Whether there are arrays in the memory of a device."""
    sets: list[list[object]] | None = None
    """The elements of each set, in the order of the nodes; None if they were not kept."""
    frameworks: set[str] = field(default_factory=set)
    """The frameworks that arrays belong to."""
    encoded_nbytes: int = 0
    """Memory that encoding has allocated, in bytes: nodes, and strings and numbers that were made into arrays."""
    array_nbytes: int = 0
    """The size of the caller's arrays, which are still to be copied, in bytes."""

    def detach(self) -> None:
        """Drop the references to the arrays once they have been copied."""
        self.sources = []

    def release(self) -> None:
        """Free the nodes and arrays. For large ones this takes time, which the calling thread spends."""
        pacer = Pacer()
        while self.chunks:
            self.chunks.pop()
            pacer.pause()
        self.arrays = []
        self.sources = []
        self.sets = None

    def index(self) -> ix.Index:
        """Return the index of the state."""
        return ix.Index(chunks=self.chunks, arrays=self.arrays, frameworks=self.frameworks)
