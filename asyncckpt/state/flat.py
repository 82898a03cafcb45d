"""A state taken apart: its tree as encoded nodes, and the arrays to be captured."""

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
    """A state as the nodes of its tree, encoded, and the arrays to be captured."""

    chunks: list[bytes] = field(default_factory=list)
    arrays: list[ArrayMeta] = field(default_factory=list)
    """What the index says of each array; arrays of one dtype and shape share theirs."""
    sources: list[ArraySource] = field(default_factory=list)
    """The arrays to be captured, until they have been."""
    stable: set[int] = field(default_factory=set)
    """Numbers of the arrays that nobody else can change, so that they need no copy: made from immutable leaves.
    They are all longer than `INLINE_LEAF_NBYTES`."""
    encoded_nbytes: int = 0
    """Memory that the walk itself has taken: encoded nodes, and numbers and strings made into arrays."""
    array_nbytes: int = 0
    """Bytes of the arrays that are the caller's and still to be copied."""

    def detach(self) -> None:
        """Let go of the arrays, which have been copied: the caller's memory is the caller's again."""
        self.sources = []

    def release(self) -> None:
        """Let go of the arrays: freeing large ones takes its time, which the thread that calls this pays."""
        pacer = Pacer()
        while self.chunks:
            self.chunks.pop()
            pacer.pause()
        self.arrays = []
        self.sources = []

    def index(self) -> ix.Index:
        """Return the index of the state."""
        return ix.Index(chunks=self.chunks, arrays=self.arrays)
