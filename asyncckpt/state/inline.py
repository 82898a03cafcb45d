"""Which states are small enough to be captured on the loop's own thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.encode import flatten
from asyncckpt.state.encode_leaves import TooLargeError

if TYPE_CHECKING:
    from asyncckpt.state.flat import FlatState

INLINE_NBYTES: Final = 1 << 20
"""States up to this size, and"""
INLINE_NODES: Final = 512
"""with no more nodes than this in their tree, are captured on the loop."""


def flatten_inline(state: object, root: str = "") -> FlatState | None:
    """Encode a state on the loop, or return None if it is too large for that.

    Args:
        state: The state.
        root: The path that errors name it by, if it is a part of something larger.

    Raises:
        UnsupportedLeafError: It holds what cannot be saved.
        StateChangedError: It was changed meanwhile.
    """
    pacer = Pacer(yields=False)
    try:
        return flatten(state, root=root, pacer=pacer, max_nodes=INLINE_NODES, max_nbytes=INLINE_NBYTES)
    except TooLargeError:
        return None
