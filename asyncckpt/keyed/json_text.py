"""Values as JSON text, and back.

1. None, bool, int, finite float, str, list and dict with str keys are JSON's own. Everything else is an object with the
   key `__asyncckpt__`, which says what it is (docs/format.md has the table); a key of a dict that is no str, or begins
   like ours, is `__asyncckpt_key__` and the JSON of the key.
2. Text without `__asyncckpt` in it, from anybody, is what `json` makes of it.
3. Long text is written, and parsed, in pieces; what is nested deeper than `MAX_DEPTH` is refused when it is parsed, and
   written as a tree in binary pieces.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import msgpack
import numpy as np

from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.keyed.base import Found
from asyncckpt.keyed.values import build_value, runs_of
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain, dtype_to_plain
from asyncckpt.workers import PIECE_ELEMENTS, Pacer, paused_gc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.keyed.values import Captured

TAG: Final = "__asyncckpt__"
KEY_TAG: Final = "__asyncckpt_key__"
MAX_DEPTH: Final = 200
Text: TypeAlias = "bytes | bytearray"
_OURS: Final = b"__asyncckpt"
_DATA_NBYTES: Final = 196_608  # bytes in one base64 string: a multiple of 3
_BATCH_NBYTES: Final = 1 << 16  # of JSON, parsed by one call
_MAX_DIGITS: Final = 4000  # Python reads and writes decimals of up to 4300
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_STRUCTURE: Final = re.compile(rb'["\[\]{}]')
_AT_TOP: Final = re.compile(rb'["\[\]{},]')
_COLON: Final = re.compile(rb"[ \t\r\n]*:")
_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_SEARCH_NBYTES: Final = 1 << 20
_MARKS_PER_PAUSE: Final = 256
_KINDS: Final = {
    ix.TUPLE: "tuple",
    ix.SET: "set",
    ix.FROZENSET: "frozenset",
    ix.DEQUE: "deque",
    ix.ORDERED_DICT: "OrderedDict",
}
_CODES: Final = {name: code for code, name in _KINDS.items()}


# --- writing ----------------------------------------------------------------------------------------------------------


def encode_value(captured: Captured, pacer: Pacer) -> list[bytes]:
    """Return the JSON of a captured value, in pieces."""
    try:
        return [piece.encode() for piece in _Encoder(captured, pacer).value()]
    except _TooDeepError:
        return [piece.encode() for piece in _tree(captured, pacer)]


def encode_key(key: str) -> bytes:
    """Return the JSON of a key."""
    return (json.dumps(key) if _is_plain_key(key) else json.dumps(KEY_TAG + _str(key))).encode()


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

    def value(self) -> Iterator[str]:
        """Yield the text of the next value."""
        frames: list[_Frame] = []
        while True:
            node = next(self._nodes)
            if type(node) is msgpack.ExtType and (frame := self._frame(node)) is not None:
                yield self._opening(node)
                frames.append(frame)
                if len(frames) > MAX_DEPTH:
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
            return f'{{"{TAG}":"object","type":{_str(argument)},"state":'
        if node.code == ix.DEQUE:
            return f'{{"{TAG}":"deque","maxlen":{json.dumps(argument[1])},"items":['
        bracket = "{" if node.code in ix.MAPPINGS else "["
        return bracket if node.code in (ix.LIST, ix.DICT) else f'{{"{TAG}":"{_KINDS[node.code]}","items":{bracket}'

    def _key(self) -> str:
        text = "".join(self.value())
        key = json.loads(text) if text[0] == '"' else None
        if isinstance(key, str) and _is_plain_key(key):
            return text + ":"
        return json.dumps(KEY_TAG + text) + ":"

    def _leaf(self, node: ix.Node) -> Iterator[str]:
        if type(node) is not msgpack.ExtType:
            yield _plain(node)
            return
        argument: Any = None if node.code == ix.INTEGER else ix.argument_of(node)
        if node.code == ix.INTEGER:
            number = int.from_bytes(node.data, "little", signed=True)
            is_long = number.bit_length() > 3 * _MAX_DIGITS
            yield f'{{"{TAG}":"int","hex":"{number:x}"}}' if is_long else str(number)
        elif node.code == ix.COMPLEX:
            yield f'{{"{TAG}":"complex","parts":[{_float(argument[0])},{_float(argument[1])}]}}'
        elif node.code == ix.SCALAR:
            dtype, data = argument
            value = _plain(data) if dtype in ("str_", "bytes_") else f'"{_base64(data)}"'
            yield f'{{"{TAG}":"scalar","dtype":{json.dumps(dtype)},"value":{value}}}'
        elif node.code == ix.ARRAY:
            yield from self._array(argument)
        elif node.code == ix.BYTES:
            yield f'{{"{TAG}":"bytes","data":['
            yield from self._data(argument)
            yield "]}"
        elif node.code == ix.STRING:
            yield f'{{"{TAG}":"str","data":['
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
        yield "[" if kind == ix.LIST else f'{{"{TAG}":"tuple","items":['
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

    def _array(self, number: int) -> Iterator[str]:
        if number in self._written:
            yield f'{{"{TAG}":"array","number":{number}}}'
            return
        self._written.add(number)
        meta = self._captured.index.arrays[number]
        dtype, shape = json.dumps(dtype_to_plain(meta.dtype)), json.dumps(meta.shape)
        yield f'{{"{TAG}":"array","number":{number},"dtype":{dtype},"shape":{shape},"data":['
        yield from self._data(number)
        yield "]}"

    def _data(self, number: int) -> Iterator[str]:
        separator = ""
        held = b""
        for run in runs_of(self._captured, number, _DATA_NBYTES):
            data = held + run.tobytes()
            whole = len(data) - len(data) % 3
            held = data[whole:]
            if whole:
                yield f'{separator}"{_base64(data[:whole])}"'
                separator = ","
            self._pacer.pause()
        if held:
            yield f'{separator}"{_base64(held)}"'


def _tree(captured: Captured, pacer: Pacer) -> Iterator[str]:
    """Yield the text of a value that is nested too deeply for JSON's readers."""
    encoder = _Encoder(captured, pacer)
    yield f'{{"{TAG}":"tree","pieces":['
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
        return f'{{"{TAG}":"bytes","data":["{_base64(value)}"]}}'
    return json.dumps(value)


def _float(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    bits = np.float64(value).view(np.uint64)
    return f'{{"{TAG}":"float","bits":"{bits:016x}"}}'


def _str(value: str) -> str:
    if _SURROGATE.search(value):  # two of them side by side would be read as one character
        return f'{{"{TAG}":"str","data":["{_base64(value.encode("utf-8", "surrogatepass"))}"]}}'
    return json.dumps(value, ensure_ascii=False)


def _is_plain_key(key: str) -> bool:
    return not key.startswith("__asyncckpt") and not _SURROGATE.search(key)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


# --- reading ----------------------------------------------------------------------------------------------------------


def split_object(text: Text, pacer: Pacer) -> Iterator[tuple[str, int, int]]:
    """Yield the entries of a JSON object: the key, and where the text of the value lies, which may be no JSON.

    Raises:
        ValueError: It is none.
    """
    begin = _skip_blanks(text, 0, len(text))
    if text[begin : begin + 1] != b"{":
        message = "it is no JSON object"
        raise ValueError(message)
    for low, high in _elements(text, begin, len(text), pacer):
        key, at = _split_entry(text, low, high)
        yield _decode_key(key), _skip_blanks(text, at, high), high


def decode_value(text: Text, low: int, high: int, pacer: Pacer) -> Found:
    """Make the value of its JSON, which lies at these bytes of a text.

    Raises:
        ValueError: The text is no JSON.
        CorruptCheckpointError: An object of ours in it is not as it should be.
    """
    with paused_gc():
        try:
            if not _holds_ours(text, low, high, pacer):
                return Found(_Parser(None, pacer).parse(text, low, high), {})
            return _Decoder(pacer).run(_Parser(_Pairs, pacer).parse(text, low, high))
        except RecursionError as error:
            message = f"containers are nested more than {MAX_DEPTH} deep"
            raise ValueError(message) from error


def _holds_ours(text: Text, low: int, high: int, pacer: Pacer) -> bool:
    for start in range(low, high, _SEARCH_NBYTES):
        if text.find(_OURS, start, min(start + _SEARCH_NBYTES + len(_OURS), high)) >= 0:
            return True
        pacer.pause()
    return False


def _skip_blanks(text: Text, low: int, high: int) -> int:
    found = _BLANKS.match(text, low, high)
    return found.end() if found is not None else low


class _Pairs(list[Any]):
    """The entries of a JSON object that may hold something of ours."""


def _loads(text: bytes, pairs: type[_Pairs] | None) -> Any:
    return json.loads(text, object_pairs_hook=pairs or _unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = f"a key stands twice in an object of the keys {', '.join(map(repr, list(found)[:8]))}"
        raise ValueError(message)
    return found


class _Parser:
    """Parses JSON, in pieces where it is long."""

    def __init__(self, pairs: type[_Pairs] | None, pacer: Pacer) -> None:
        self._pairs = pairs
        self._pacer = pacer

    def parse(self, text: Text, low: int, high: int, depth: int = 0) -> Any:
        """Parse a value."""
        self._pacer.pause()
        begin = _skip_blanks(text, low, high)
        if high - begin <= _BATCH_NBYTES or text[begin : begin + 1] not in (b"[", b"{"):
            return _loads(bytes(text[begin:high]), self._pairs)
        if depth > MAX_DEPTH:
            raise RecursionError
        is_list = text[begin : begin + 1] == b"["
        items: list[Any] = []
        first = last = 0  # of the elements that are parsed by one call
        for start, end in _elements(text, begin, high, self._pacer):
            if first < last and end - first > _BATCH_NBYTES:
                items += self._batch(bytes(text[first:last]), is_list=is_list)
                first = last
            if end - start > _BATCH_NBYTES:
                items.append(self._long(text, start, end, depth, is_list=is_list))
                first = last = end
            else:
                first, last = start if first == last else first, end
        if first < last:
            items += self._batch(bytes(text[first:last]), is_list=is_list)
        if is_list:
            return items
        return self._pairs(items) if self._pairs is not None else _unique(items)

    def _batch(self, text: bytes, *, is_list: bool) -> Iterable[Any]:
        self._pacer.pause()
        found = _loads(b"[" + text + b"]" if is_list else b"{" + text + b"}", self._pairs)
        return found.items() if type(found) is dict else found

    def _long(self, text: Text, start: int, end: int, depth: int, *, is_list: bool) -> Any:
        if is_list:
            return self.parse(text, start, end, depth + 1)
        key, at = _split_entry(text, start, end)
        return json.loads(key), self.parse(text, at, end, depth + 1)


def _elements(text: Text, begin: int, high: int, pacer: Pacer) -> Iterator[tuple[int, int]]:
    """Yield where the elements of the container that begins here lie; nothing may follow it up to `high`."""
    start = begin + 1
    for mark, at in _marks(text, begin, high, pacer):
        if mark == b",":
            yield start, at
            start = at + 1
            continue
        if _skip_blanks(text, start, at) < at:
            yield start, at
        elif start != begin + 1:
            message = f"the comma at byte {start - 1} has nothing behind it"
            raise ValueError(message)
        if _skip_blanks(text, at + 1, high) < high:
            message = f"something follows its end at byte {at + 1}"
            raise ValueError(message)


def _marks(text: Text, begin: int, high: int, pacer: Pacer) -> Iterator[tuple[bytes, int]]:
    """Yield the commas between the elements of the container that begins here, and the bracket that ends it."""
    closers = [b"]" if text[begin : begin + 1] == b"[" else b"}"]
    mark, at = b"", begin + 1
    count = 0
    while closers:
        found = (_AT_TOP if len(closers) == 1 else _STRUCTURE).search(text, at, high)
        if found is None:
            message = "it ends early"
            raise ValueError(message)
        mark, at = bytes(found.group()), found.end()
        count += 1
        if not count % _MARKS_PER_PAUSE:
            pacer.pause()
        if mark == b'"':
            at = _end_of_string(text, found.start(), high)
        elif mark in (b"[", b"{"):
            closers.append(b"]" if mark == b"[" else b"}")
            if len(closers) > MAX_DEPTH * 8:  # a bomb; what is merely too deep is told when it is parsed
                raise RecursionError
        elif mark == b",":
            yield mark, found.start()
        elif mark != closers.pop():
            message = f"the bracket at byte {found.start()} does not match"
            raise ValueError(message)
    yield mark, at - 1


def _end_of_string(text: Text, start: int, high: int) -> int:
    quote = text.find(b'"', start + 1, high)
    if quote >= 0 and text.find(b"\\", start + 1, quote) < 0:
        return quote + 1
    string = _STRING.match(text, start, high)
    if string is None:
        message = "it ends in the middle of a string"
        raise ValueError(message)
    return string.end()


def _split_entry(text: Text, low: int, high: int) -> tuple[bytes, int]:
    """Return the key of an entry of an object, as JSON, and where its value begins."""
    low = _skip_blanks(text, low, high)
    key = _STRING.match(text, low, high)
    colon = _COLON.match(text, key.end(), high) if key is not None else None
    if key is None or colon is None:
        message = f"there is no key at byte {low}"
        raise ValueError(message)
    return bytes(key.group()), colon.end()


def _decode_key(text: bytes) -> str:
    key = json.loads(text)
    if key.startswith(KEY_TAG):
        encoded = key.removeprefix(KEY_TAG).encode()
        key = decode_value(encoded, 0, len(encoded), Pacer(yields=False)).value
    if not isinstance(key, str):
        message = f"{key!r} is no key of a file"
        raise ValueError(message)  # noqa: TRY004 - of the text
    return key


class _Decoder:
    """Turns parsed JSON into the nodes and arrays that it was made from."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._pieces: list[bytes] = []
        self._nodes: list[ix.Node] = []
        self._metas: list[ix.ArrayMeta] = []
        self._arrays: dict[int, NDArray[Any]] = {}
        self._numbers: dict[int, int] = {}

    def run(self, plain: Any) -> Found:
        try:
            if type(plain) is _Pairs and dict(plain).get(TAG) == "tree":
                self._tree(dict(plain))
            else:
                self._value(plain, 0)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, CorruptCheckpointError):
                raise
            _damaged(f"{error!r}", error)
        if self._nodes:
            self._cut()
        index = ix.Index(pieces=self._pieces, arrays=self._metas)
        return build_value(index, self._arrays, self._pacer)

    def _cut(self) -> None:
        self._pieces.append(ix.pack_piece(self._nodes))
        self._nodes = []
        self._pacer.pause()

    def _add(self, node: ix.Node) -> None:
        self._nodes.append(node)
        if len(self._nodes) >= PIECE_ELEMENTS:
            self._cut()

    def _value(self, value: Any, depth: int) -> None:
        if depth > 2 * MAX_DEPTH:
            raise RecursionError
        if type(value) is list:
            self._add(ix.ext(ix.LIST, len(value)))
            for item in value:
                self._value(item, depth + 1)
        elif type(value) is not _Pairs:
            self._plain(value)
        elif value and value[0][0] == TAG:
            self._tagged(_unique(value), depth)
        else:
            self._add(ix.ext(ix.DICT, len(value)))
            self._entries(value, depth)

    def _plain(self, value: Any) -> None:
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._add(msgpack.ExtType(ix.INTEGER, data))
        else:
            self._add(value)

    def _entries(self, pairs: Any, depth: int) -> None:
        _expect(_Pairs, pairs)
        seen = set()
        for key, value in pairs:
            if key.startswith(KEY_TAG):
                text = key.removeprefix(KEY_TAG).encode("utf-8", "surrogatepass")
                self._value(_loads(text, _Pairs), depth + 1)
            else:
                if key in seen:
                    _damaged(f"the key {key!r} stands twice")
                seen.add(key)
                self._add(key)
            self._value(value, depth + 1)

    def _tagged(self, found: dict[str, Any], depth: int) -> None:
        kind = found[TAG]
        if kind == "object":
            self._add(ix.ext(ix.OBJECT, _expect(str, found["type"])))
            self._value(found["state"], depth + 1)
        elif kind == "OrderedDict":
            self._add(ix.ext(ix.ORDERED_DICT, len(found["items"])))
            self._entries(found["items"], depth)
        elif kind in _CODES:
            items = _expect(list, found["items"])
            code = _CODES[kind]
            self._add(ix.ext(code, (len(items), found["maxlen"]) if code == ix.DEQUE else len(items)))
            for item in items:
                self._value(item, depth + 1)
        elif kind in _LEAVES:
            _LEAVES[kind](self, found)
        else:
            _damaged(f"{kind!r} is nothing that this asyncckpt knows")

    def _int(self, found: dict[str, Any]) -> None:
        self._plain(int(found["hex"], 16))

    def _float(self, found: dict[str, Any]) -> None:
        self._add(_float_of(found))

    def _complex(self, found: dict[str, Any]) -> None:
        parts = [float(part) if type(part) in (int, float) else _float_of(dict(part)) for part in found["parts"]]
        if len(parts) != 2:  # noqa: PLR2004 - real and imaginary
            _damaged(f"a complex number of {len(parts)} parts")
        self._add(ix.ext(ix.COMPLEX, parts))

    def _scalar(self, found: dict[str, Any]) -> None:
        dtype, value = _to_dicts(found["dtype"]), found["value"]
        if dtype == "bytes_" or (dtype == "str_" and type(value) is not str):
            data: Any = _joined(dict(value)["data"])
            data = data if dtype == "bytes_" else data.decode("utf-8", "surrogatepass")
        else:
            data = value if dtype == "str_" else binascii.a2b_base64(value, strict_mode=True)
        self._add(ix.ext(ix.SCALAR, (dtype, data)))

    def _array(self, found: dict[str, Any]) -> None:
        number = _expect(int, found["number"])
        if "data" in found:
            if number in self._numbers:
                _damaged(f"array {number} stands twice")
            meta = ix.ArrayMeta(dtype_from_plain(_to_dicts(found["dtype"])), _shape(found["shape"]))
            self._numbers[number] = self._made(meta, found["data"])
        self._add(ix.ext(ix.ARRAY, self._numbers[number]))

    def _bytes(self, found: dict[str, Any]) -> None:
        self._add(_joined(found["data"]))

    def _str(self, found: dict[str, Any]) -> None:
        self._add(_joined(found["data"]).decode("utf-8", "surrogatepass"))

    def _tree(self, found: dict[str, Any]) -> None:
        self._pieces = [binascii.a2b_base64(piece, strict_mode=True) for piece in found["pieces"]]
        for each in found["arrays"]:
            entry = dict(each)
            meta = ix.ArrayMeta(dtype_from_plain(_to_dicts(entry["dtype"])), _shape(entry["shape"]))
            self._made(meta, entry["data"])

    def _made(self, meta: ix.ArrayMeta, data: list[str]) -> int:
        """Make an array of its bytes, which must be as many as it has."""
        nbytes = sum(len(each) // 4 * 3 - each[-2:].count("=") for each in _expect(list, data))
        if nbytes != meta.nbytes:
            _damaged(f"an array of {meta.nbytes} bytes has {nbytes}")
        array: NDArray[Any] = np.ndarray(meta.shape, meta.dtype)
        memory = _bytes_of(array)
        at = 0
        for each in data:
            part = binascii.a2b_base64(each, strict_mode=True)
            memory[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
            self._pacer.pause()
        self._metas.append(meta)
        self._arrays[len(self._metas) - 1] = array
        return len(self._metas) - 1


_LEAVES: Final[dict[str, Callable[[_Decoder, dict[str, Any]], None]]] = {
    "int": _Decoder._int,  # noqa: SLF001 - the class's own table
    "float": _Decoder._float,  # noqa: SLF001
    "complex": _Decoder._complex,  # noqa: SLF001
    "scalar": _Decoder._scalar,  # noqa: SLF001
    "array": _Decoder._array,  # noqa: SLF001
    "bytes": _Decoder._bytes,  # noqa: SLF001
    "str": _Decoder._str,  # noqa: SLF001
}


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8) if array.nbytes else np.empty(0, np.uint8)


def _float_of(found: dict[str, Any]) -> float:
    return float(np.uint64(int(found["bits"], 16)).view(np.float64))


def _joined(data: list[str]) -> bytes:
    return b"".join(binascii.a2b_base64(each, strict_mode=True) for each in _expect(list, data))


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 64:  # noqa: PLR2004
        _damaged(f"an array of the shape {shape!r}")
    return tuple(shape)


def _to_dicts(value: Any) -> Any:
    if type(value) is _Pairs:
        return {key: _to_dicts(item) for key, item in value}
    return [_to_dicts(item) for item in value] if type(value) is list else value


def _expect(type_: type, value: Any) -> Any:
    if type(value) is not type_:
        _damaged(f"{value!r:.40} is no {type_.__name__}")
    return value


def _damaged(reason: str, cause: Exception | None = None) -> NoReturn:
    message = f"an object of asyncckpt's is damaged: {reason}"
    raise CorruptCheckpointError(message) from cause
