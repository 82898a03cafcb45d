"""The layout of a JSON file of ours: a line for each entry. By it a file of another program's is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asyncckpt.keyed.json_text import FileText
from asyncckpt.keyed.json_write import encode_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asyncckpt.keyed.json_text import Text

BEGIN: Final = b"{"
END: Final = b"\n}\n"


def before(key: str, *, is_first: bool) -> bytes:
    """Return what stands before the value of a key."""
    return (b"\n" if is_first else b",\n") + encode_key(key) + b": "


def is_own(text: Text, places: Mapping[str, tuple[int, int]]) -> bool:
    """Tell whether nothing of a text would change, if its values were written again as they are."""
    if not isinstance(text, FileText):
        return False  # it had another encoding
    at = len(BEGIN)
    for key, (low, high) in places.items():
        expected = before(key, is_first=at == len(BEGIN))
        if low - at != len(expected) or text.slice(at, low) != expected:
            return False
        at = high
    return text.slice(0, len(BEGIN)) == BEGIN and text.slice(at, len(text)) == END
