"""Values as JSON text (docs/format.md has the table).

1. None, bool, int, finite float, str, list and dict with str keys are JSON's own. Everything else is an object whose
   first key is `TAG`, which says what it is. A key of a dict that is not a str, or begins like ours, is `KEY_TAG` and
   the JSON of the key.
2. The text of a value has no line breaks.
3. A value nested deeper than `MAX_DEPTH`, which readers of JSON would refuse, is written as a tree in binary chunks.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from asyncckpt.keyed.values import runs_of
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import BATCH_OBJECTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from asyncckpt.keyed.values import CapturedValue

TAG: Final = "__asyncckpt__"
KEY_TAG: Final = "__asyncckpt_key__"
PREFIX: Final = "__asyncckpt"
"""What both begin with."""
KINDS: Final = {
    ix.TUPLE: "tuple",
    ix.SET: "set",
    ix.FROZENSET: "frozenset",
    ix.DEQUE: "deque",
    ix.ORDERED_DICT: "OrderedDict",
    ix.OBJECT: "object",
}
"""The tags of what contains other values."""
MAX_DEPTH: Final = 200
"""How many containers may be nested; each takes at most two brackets."""
_DATA_NBYTES: Final = 196_608  # bytes in one base64 string: a multiple of 3
_MAX_BITS: Final = 12_000  # Python reads and writes decimals of up to 4300 digits
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DENSE: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode_value(captured: CapturedValue, pacer: Pacer) -> bytes:
    """Return the JSON of a captured value."""
    with young_collections_only():
        try:
            return _Encoder(captured, pacer).text()
        except RecursionError:
            return _Encoder(captured, pacer).text_of_tree()


def encode_key(key: str) -> bytes:
    """Return the JSON of a key of a file."""
    return json.dumps(key if _is_plain_key(key) else KEY_TAG + _plain(key)).encode()


class _Encoder:
    """Writes the nodes and arrays of a value."""

    def __init__(self, captured: CapturedValue, pacer: Pacer) -> None:
        self._captured = captured
        self._pacer = pacer
        self._nodes = ix.read_nodes(captured.index.chunks, pacer)
        self._written: set[int] = set()  # arrays
        self._chunks: list[bytes] = []
        self._held: list[str] = []

    def text(self) -> bytes:
        """Return the text; raise a RecursionError if the value is nested too deeply for JSON's readers."""
        self._value(self._add, 0)
        return self._joined()

    def text_of_tree(self) -> bytes:
        """Return the text of a value that may be nested however deeply."""
        index = self._captured.index
        self._add(f'{{"{TAG}":"tree","pieces":[{",".join(map(_base64, index.chunks))}],"arrays":[')
        for number in range(len(index.arrays)):
            self._add("," if number else "")
            self._array(self._add, number)
        self._add("]}")
        return self._joined()

    def _joined(self) -> bytes:
        return b"".join([*self._chunks, "".join(self._held).encode()])

    def _add(self, text: str) -> None:
        self._held.append(text)
        if len(self._held) >= BATCH_OBJECTS:
            self._chunks.append("".join(self._held).encode())
            self._held.clear()
            self._pacer.pause()

    def _value(self, add: Callable[[str], None], depth: int) -> None:
        """Write the next value."""
        node = next(self._nodes)
        code = node.code if type(node) is msgpack.ExtType else None
        if code != ix.OBJECT and code not in ix.CONTAINERS:
            self._leaf(add, node)
            return
        if depth == MAX_DEPTH:
            raise RecursionError
        argument = ix.argument_of(node)
        if code == ix.OBJECT:
            add(f'{{"{TAG}":"object","type":{_plain(argument)},"state":')
            self._value(add, depth + 1)
            add("}")
            return
        count, maxlen = argument if code == ix.DEQUE else (argument, None)
        opening, closing = "{}" if code in ix.MAPPINGS else "[]"
        if code in KINDS:
            more = f'"maxlen":{json.dumps(maxlen)},' if code == ix.DEQUE else ""
            opening, closing = f'{{"{TAG}":"{KINDS[code]}",{more}"items":{opening}', closing + "}"
        add(opening)
        for number in range(count):
            if number:
                add(",")
            if code in ix.MAPPINGS:
                key: list[str] = []
                self._value(key.append, depth + 1)
                text = "".join(key)
                add(text if text[0] == '"' and _is_plain_key(json.loads(text)) else json.dumps(KEY_TAG + text))
                add(":")
            self._value(add, depth + 1)
        add(closing)

    def _leaf(self, add: Callable[[str], None], node: ix.Node) -> None:
        if type(node) is not msgpack.ExtType:
            add(_plain(node))
            return
        if node.code == ix.INTEGER:
            number = int.from_bytes(node.data, "little", signed=True)
            add(str(number) if number.bit_length() <= _MAX_BITS else f'{{"{TAG}":"int","hex":"{number:x}"}}')
            return
        argument = ix.argument_of(node)
        if node.code == ix.COMPLEX:
            add(f'{{"{TAG}":"complex","parts":[{",".join(map(_plain, argument))}]}}')
        elif node.code == ix.SCALAR:
            dtype, data = argument
            value = _plain(data) if dtype in ("str_", "bytes_") else _base64(data)
            add(f'{{"{TAG}":"scalar","dtype":{json.dumps(dtype)},"value":{value}}}')
        elif node.code == ix.ARRAY:
            self._array(add, argument)
        elif node.code in (ix.BYTES, ix.STRING):
            self._data(add, f'{{"{TAG}":"{"bytes" if node.code == ix.BYTES else "str"}",', argument)
        elif node.code == ix.NUMBERS:
            self._numbers(add, argument[0], [np.frombuffer(argument[2], argument[1])])
        else:
            meta = self._captured.index.arrays[argument[1]]
            runs = runs_of(self._captured, argument[1], 1 << 15)
            self._numbers(add, argument[0], (run.view(meta.dtype) for run in runs))

    def _numbers(self, add: Callable[[str], None], kind: int, runs: Iterable[NDArray[Any]]) -> None:
        add("[" if kind == ix.LIST else f'{{"{TAG}":"tuple","items":[')
        for number, run in enumerate(runs):
            is_finite = run.dtype.kind == "i" or np.isfinite(run).all()
            text = _DENSE.encode(run.tolist())[1:-1] if is_finite else ",".join(map(_plain, run.tolist()))
            add("," + text if number else text)
            self._pacer.pause()
        add("]" if kind == ix.LIST else "]}")

    def _array(self, add: Callable[[str], None], number: int) -> None:
        opening = f'{{"{TAG}":"array","number":{number}'
        if number in self._written:
            add(opening + "}")
            return
        self._written.add(number)
        meta = self._captured.index.arrays[number]
        dtype, shape = json.dumps(dtype_to_plain(meta.dtype)), json.dumps(meta.shape)
        self._data(add, f'{opening},"dtype":{dtype},"shape":{shape},', number)

    def _data(self, add: Callable[[str], None], opening: str, number: int) -> None:
        add(opening + '"data":[')
        held = b""
        for run in runs_of(self._captured, number, _DATA_NBYTES):
            data = held + run.tobytes()
            held = data[len(data) - len(data) % 3 :]
            add(_base64(data[: len(data) - len(held)]) + ",")
            self._pacer.pause()
        add(_base64(held) + "]}")


def _plain(value: Any) -> str:
    kind = type(value)
    if kind is str:
        if _SURROGATE.search(value):  # two of them side by side would be read as one character
            return f'{{"{TAG}":"str","data":[{_base64(value.encode("utf-8", "surrogatepass"))}]}}'
        return _DENSE.encode(value)
    if kind is int or (kind is float and math.isfinite(value)):
        return repr(value)
    if kind is float:
        return f'{{"{TAG}":"float","bits":"{np.float64(value).view(np.uint64):016x}"}}'
    return f'{{"{TAG}":"bytes","data":[{_base64(value)}]}}' if kind is bytes else json.dumps(value)


def _is_plain_key(key: str) -> bool:
    return not key.startswith(PREFIX) and not _SURROGATE.search(key)


def _base64(data: bytes) -> str:
    """Return the JSON of bytes."""
    return f'"{binascii.b2a_base64(data, newline=False).decode()}"'
