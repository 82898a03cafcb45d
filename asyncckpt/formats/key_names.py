"""Convert keys to names in HDF5 files and members of npz files.

1. A str key is its own name. Characters that HDF5 or its tools cannot hold are percent-escaped as in URLs, for each
   byte of their UTF-8: "/", "%", NUL, lone surrogates, and the first character of ".", ".." and names that begin with
   "__asyncckpt". The empty key is "%".
2. Another key is "%=" and an escaped literal: "%=1.5", "%=None", '%=tuple(1, "a")'. If two such keys have the same
   literal, the later one has the suffix "%~" and a number.
3. In a dict whose first key is an int, ints are plain decimals, and a str key that looks like one has its first
   character escaped.
4. A name of more than 1024 bytes is its first 200 characters, "%~" and the XXH3-128 of the whole name in hex.

"%" before "=", "~" or the end is not an escape, so different rules never make the same name.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import xxhash
from msgpack import ExtType

from asyncckpt.state import index as ix
from asyncckpt.state.containers import TYPES
from asyncckpt.state.dtypes import dtype_from_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "__asyncckpt"
NAME_MAX_NBYTES: Final = 1024
_CUT_LENGTH: Final = 200
_DECIMAL_MAX_NBYTES: Final = 128  # longer ints are written in hex, which takes linear time
_SPECIAL: Final = re.compile("[/%\0\ud800-\udfff]")
_DECIMAL: Final = re.compile("-?[0-9]+")


class Literal(NamedTuple):
    """A key that is neither a str nor an int, as a text."""

    text: str


Key = str | int | Literal


def read_key(nodes: Iterator[ix.Node]) -> Key:
    """Read all nodes of one key."""
    node = next(nodes)
    if type(node) is str or type(node) is int:
        return node
    if type(node) is ExtType and node.code == ix.INTEGER and len(node.data) <= _DECIMAL_MAX_NBYTES:
        return int.from_bytes(node.data, "little", signed=True)
    return Literal(_literal(node, nodes))


def spell(key: Key, *, among_ints: bool) -> str:
    """Return the name of a key, which may be too long."""
    if type(key) is str:
        escaped = escape(key)
        if among_ints and _DECIMAL.fullmatch(escaped):
            return _percent(escaped[0]) + escaped[1:]
        return escaped
    if type(key) is int:
        return str(key) if among_ints else f"%={key}"
    return "%=" + _SPECIAL.sub(lambda found: _percent(found[0]), key.text)  # type: ignore[union-attr]


def shorten(name: str) -> str:
    """Return a name; its short form if it is too long."""
    if 4 * len(name) <= NAME_MAX_NBYTES or len(name.encode()) <= NAME_MAX_NBYTES:
        return name
    digest = xxhash.xxh3_128_hexdigest(name.encode())
    return f"{name[:_CUT_LENGTH]}%~{digest}"


def escape(text: str) -> str:
    """Escape a text so that it is a name in HDF5; `urllib.parse.unquote` with "surrogatepass" reverses it."""
    if _SPECIAL.search(text):
        text = _SPECIAL.sub(lambda found: _percent(found[0]), text)
    if text.startswith(PREFIX) or text in (".", ".."):
        return _percent(text[0]) + text[1:]
    return text or "%"


def integer_text(data: bytes) -> str:
    """Write an int, given as two's complement, so that `int(text, 0)` reads it."""
    value = int.from_bytes(data, "little", signed=True)
    return str(value) if len(data) <= _DECIMAL_MAX_NBYTES else hex(value)


def container_name(code: int) -> str:
    """Return Python's name of a container."""
    return str(TYPES[code].__name__)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _literal(node: ix.Node, nodes: Iterator[ix.Node]) -> str:
    """Write a node and its children as a literal; without recursion, because a key may be a deep tuple."""
    words: list[str] = []
    left = [1]  # the number of nodes to come, for each open parenthesis
    needs_comma = False
    while True:
        left[-1] -= 1
        if needs_comma:
            words.append(", ")
        needs_comma = True
        if type(node) is ExtType and (node.code in ix.CONTAINERS or node.code == ix.OBJECT):
            name, count = _opening(node)
            words.append(f"{name}(")
            left.append(count)
            needs_comma = False
        else:
            words.append(_leaf_literal(node))
        while left[-1] == 0:
            left.pop()
            if not left:
                return "".join(words)
            words.append(")")
            needs_comma = True
        node = next(nodes)


def _opening(node: Any) -> tuple[str, int]:
    argument = ix.argument_of(node)
    if node.code == ix.OBJECT:
        return argument, 1
    count = argument[0] if node.code == ix.DEQUE else argument
    return container_name(node.code), 2 * count if node.code in ix.MAPPINGS else count


def _leaf_literal(node: ix.Node) -> str:  # noqa: PLR0911 - one for each kind of node
    if type(node) is str:
        return json.dumps(node, ensure_ascii=False)
    if type(node) is not ExtType:
        return repr(node)
    if node.code == ix.INTEGER:
        return integer_text(node.data)
    argument = ix.argument_of(node)
    if node.code == ix.COMPLEX:
        return repr(complex(*argument))
    if node.code == ix.SCALAR:
        plain, data = argument
        if plain in ("str_", "bytes_"):
            return f"{plain}({_leaf_literal(data)})"
        dtype = dtype_from_plain(plain)
        return f"{dtype.name}({np.ndarray((), dtype, data)[()]!s})"
    if node.code == ix.NUMBERS:
        code, dtype, data = argument
        return f"{container_name(code)}({', '.join(map(repr, np.frombuffer(data, dtype).tolist()))})"
    if node.code == ix.NUMBERS_ARRAY:
        return f"{container_name(argument[0])}(array {argument[1]})"
    return f"array {argument}"
