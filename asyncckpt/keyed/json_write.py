"""Captured values as JSON text, in pieces."""

from __future__ import annotations

import binascii
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from asyncckpt.keyed import json_tags as tags
from asyncckpt.keyed.values import runs_of
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_to_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asyncckpt.keyed.values import Captured
    from asyncckpt.runtime.pacing import Pacer

_DATA_NBYTES: Final = 196_608  # bytes in one base64 string: a multiple of 3
_PIECE_NBYTES: Final = 1 << 18  # of text, at least, in all but the last piece
_MAX_DIGITS: Final = 4000  # Python reads and writes decimals of up to 4300
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def encode_value(captured: Captured, pacer: Pacer) -> list[bytes]:
    """Return the JSON of a captured value, in pieces."""
    try:
        return list(_joined(_Encoder(captured, pacer).value()))
    except _TooDeepError:
        return list(_joined(_tree(captured, pacer)))


def encode_key(key: str) -> bytes:
    """Return the JSON of a key."""
    return (json.dumps(key) if _is_plain_key(key) else json.dumps(tags.KEY_TAG + _str(key))).encode()


def _joined(pieces: Iterable[str | bytes]) -> Iterator[bytes]:
    """Join what is short."""
    held: list[bytes] = []
    nbytes = 0
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        held.append(data)
        nbytes += len(data)
        if nbytes >= _PIECE_NBYTES:
            yield b"".join(held)
            held, nbytes = [], 0
    if held:
        yield b"".join(held)


class _TooDeepError(Exception):
    pass


@dataclass(slots=True)
class _Frame:
    left: int
    close: str
    is_mapping: bool
    is_first: bool = True


class _Encoder:
    def __init__(self, captured: Captured, pacer: Pacer) -> None:
        self._captured = captured
        self._pacer = pacer
        self._nodes = ix.read_nodes(captured.index.pieces, pacer)
        self._written: set[int] = set()

    def value(self) -> Iterator[str | bytes]:
        """Yield the text of the next value."""
        frames: list[_Frame] = []
        while True:
            node = next(self._nodes)
            if type(node) is msgpack.ExtType and (frame := self._frame(node)) is not None:
                yield self._opening(node)
                frames.append(frame)
                if len(frames) > tags.MAX_DEPTH:
                    raise _TooDeepError
            else:
                yield from self._leaf(node)
            while frames and frames[-1].left == 0:
                yield frames.pop().close
            if not frames:
                return
            frame = frames[-1]
            frame.left -= 1
            if not frame.is_first:
                yield ","
            frame.is_first = False
            if frame.is_mapping:
                yield self._key()

    @staticmethod
    def _frame(node: msgpack.ExtType) -> _Frame | None:
        if node.code == ix.OBJECT:
            return _Frame(1, "}", is_mapping=False)
        if node.code not in ix.CONTAINERS:
            return None
        argument = ix.argument_of(node)
        is_mapping = node.code in ix.MAPPINGS
        close = "}" if is_mapping else "]"
        count = argument[0] if node.code == ix.DEQUE else argument
        return _Frame(count, close if node.code in (ix.LIST, ix.DICT) else close + "}", is_mapping)

    def _opening(self, node: msgpack.ExtType) -> str:
        argument = ix.argument_of(node)
        if node.code == ix.OBJECT:
            return f'{{"{tags.TAG}":"object","type":{_str(argument)},"state":'
        if node.code == ix.DEQUE:
            return f'{{"{tags.TAG}":"deque","maxlen":{json.dumps(argument[1])},"items":['
        bracket = "{" if node.code in ix.MAPPINGS else "["
        return (
            bracket
            if node.code in (ix.LIST, ix.DICT)
            else f'{{"{tags.TAG}":"{tags.KINDS[node.code]}","items":{bracket}'
        )

    def _key(self) -> str:
        text = b"".join(_joined(self.value())).decode()
        key = json.loads(text) if text[0] == '"' else None
        if isinstance(key, str) and _is_plain_key(key):
            return text + ":"
        return json.dumps(tags.KEY_TAG + text) + ":"

    def _leaf(self, node: ix.Node) -> Iterator[str | bytes]:
        if type(node) is not msgpack.ExtType:
            yield _plain(node)
            return
        argument: Any = None if node.code == ix.INTEGER else ix.argument_of(node)
        if node.code == ix.INTEGER:
            number = int.from_bytes(node.data, "little", signed=True)
            is_long = number.bit_length() > 3 * _MAX_DIGITS
            yield f'{{"{tags.TAG}":"int","hex":"{number:x}"}}' if is_long else str(number)
        elif node.code == ix.COMPLEX:
            yield f'{{"{tags.TAG}":"complex","parts":[{_float(argument[0])},{_float(argument[1])}]}}'
        elif node.code == ix.SCALAR:
            dtype, data = argument
            value = _plain(data) if dtype in ("str_", "bytes_") else f'"{_base64(data)}"'
            yield f'{{"{tags.TAG}":"scalar","dtype":{json.dumps(dtype)},"value":{value}}}'
        elif node.code == ix.ARRAY:
            yield from self._array(argument)
        elif node.code == ix.BYTES:
            yield f'{{"{tags.TAG}":"bytes","data":['
            yield from self._data(argument)
            yield "]}"
        elif node.code == ix.STRING:
            yield f'{{"{tags.TAG}":"str","data":['
            yield from self._data(argument)
            yield "]}"
        elif node.code == ix.NUMBERS:
            kind, dtype, data = argument
            yield from self._numbers(kind, [np.frombuffer(data, dtype)])
        elif node.code == ix.NUMBERS_ARRAY:
            kind, number = argument
            dtype = self._captured.index.arrays[number].dtype
            yield from self._numbers(kind, (run.view(dtype) for run in runs_of(self._captured, number, 1 << 15)))

    def _numbers(self, kind: int, parts: Any) -> Iterator[str]:
        yield "[" if kind == ix.LIST else f'{{"{tags.TAG}":"tuple","items":['
        separator = ""
        for part in parts:
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                text = ",".join(map(_float, part.tolist()))
            else:
                text = json.dumps(part.tolist(), separators=(",", ":"))[1:-1]
            yield separator + text
            separator = ","
            self._pacer.pause()
        yield "]" if kind == ix.LIST else "]}"

    def _array(self, number: int) -> Iterator[str | bytes]:
        if number in self._written:
            yield f'{{"{tags.TAG}":"array","number":{number}}}'
            return
        self._written.add(number)
        meta = self._captured.index.arrays[number]
        dtype, shape = json.dumps(dtype_to_plain(meta.dtype)), json.dumps(meta.shape)
        yield f'{{"{tags.TAG}":"array","number":{number},"dtype":{dtype},"shape":{shape},"data":['
        yield from self._data(number)
        yield "]}"

    def _data(self, number: int) -> Iterator[bytes]:
        separator = b""
        held = b""
        for run in runs_of(self._captured, number, _DATA_NBYTES):
            data = held + run.tobytes()
            whole = len(data) - len(data) % 3
            held = data[whole:]
            if whole:
                yield b'%s"%s"' % (separator, binascii.b2a_base64(data[:whole], newline=False))
                separator = b","
            self._pacer.pause()
        if held:
            yield b'%s"%s"' % (separator, binascii.b2a_base64(held, newline=False))


def _tree(captured: Captured, pacer: Pacer) -> Iterator[str | bytes]:
    """Yield the text of a value that is nested too deeply for JSON's readers."""
    encoder = _Encoder(captured, pacer)
    yield f'{{"{tags.TAG}":"tree","pieces":['
    yield ",".join(f'"{_base64(piece)}"' for piece in captured.index.pieces)
    yield '],"arrays":['
    for number in range(len(captured.index.arrays)):
        yield "," if number else ""
        yield from encoder._array(number)  # noqa: SLF001 - of this module
    yield "]}"


def _plain(value: Any) -> str:
    if type(value) is float:
        return _float(value)
    if type(value) is str:
        return _str(value)
    if type(value) is bytes:
        return f'{{"{tags.TAG}":"bytes","data":["{_base64(value)}"]}}'
    return json.dumps(value)


def _float(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    bits = np.float64(value).view(np.uint64)
    return f'{{"{tags.TAG}":"float","bits":"{bits:016x}"}}'


def _str(value: str) -> str:
    if _SURROGATE.search(value):  # two of them side by side would be read as one character
        return f'{{"{tags.TAG}":"str","data":["{_base64(value.encode("utf-8", "surrogatepass"))}"]}}'
    return json.dumps(value, ensure_ascii=False)


def _is_plain_key(key: str) -> bool:
    return not key.startswith(tags.PREFIX) and not _SURROGATE.search(key)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
