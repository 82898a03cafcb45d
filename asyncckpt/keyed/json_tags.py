"""What marks asyncckpt's own in a JSON file (docs/format.md has the table).

None, bool, int, finite float, str, list and dict with str keys are JSON's own. Everything else is an object with the
key `__asyncckpt__`, which says what it is; a key of a dict that is no str, or begins like ours, is `__asyncckpt_key__`
and the JSON of the key.
"""

from __future__ import annotations

from typing import Final

from asyncckpt.state import index as ix

TAG: Final = "__asyncckpt__"
KEY_TAG: Final = "__asyncckpt_key__"
PREFIX: Final = "__asyncckpt"
"""What begins both."""
MAX_DEPTH: Final = 200
"""Containers in each other that are JSON's own: what is deeper is written as a tree in binary pieces, and refused."""
KINDS: Final = {
    ix.TUPLE: "tuple",
    ix.SET: "set",
    ix.FROZENSET: "frozenset",
    ix.DEQUE: "deque",
    ix.ORDERED_DICT: "OrderedDict",
}
"""The containers that JSON lacks."""
CODES: Final = {name: code for code, name in KINDS.items()}
