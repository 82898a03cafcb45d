"""Encode states that are small enough for the event loop's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.runtime.pacing import Pacer
from asyncckpt.state.encode import flatten
from asyncckpt.state.encode_leaves import TooLargeError

if TYPE_CHECKING:
    from asyncckpt.state.flat import FlatState

INLINE_NBYTES: Final = 1 << 20
"""The size up to which a state is captured on the loop, in bytes."""
INLINE_NODES: Final = 512
"""The number of nodes up to which a state is captured on the loop."""


def flatten_inline(state: object, root: str = "", *, keeps_sets: bool = False) -> FlatState:
    """Encode a state on the loop.

    Args:
        state: The state.
        root: The path of the state in error messages, if it is part of something larger.
        keeps_sets: Whether to keep the order of sets; see `flatten`.

    Raises:
        TooLargeError: That would take too long; the message says what the state has.
        UnsupportedLeafError: It holds a value that cannot be saved.
        StateChangedError: A container changed during the walk.
    """
    pacer = Pacer(yields=False)
    try:
        return flatten(
            state, root=root, pacer=pacer, max_nodes=INLINE_NODES, max_nbytes=INLINE_NBYTES, keeps_sets=keeps_sets
        )
    except TooLargeError as error:
        what = str(error) or f"more than {INLINE_NBYTES} bytes or {INLINE_NODES} nodes"
        raise TooLargeError(what) from None
