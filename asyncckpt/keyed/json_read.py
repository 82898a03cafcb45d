"""Values from JSON text.

1. Text without `__asyncckpt` in it, from anybody, is what `json` makes of it.
2. What is nested deeper than `json_tags.MAX_DEPTH` is refused.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.keyed import json_tags as tags
from asyncckpt.keyed.base import Found
from asyncckpt.keyed.json_base64 import decode_into
from asyncckpt.keyed.json_parse import Pairs, Span, decode, parse, split_entry, split_near, unique
from asyncckpt.keyed.json_scan import CLOSE, COMMA, skip_blanks, skip_blanks_before, windows
from asyncckpt.keyed.json_text import MemoryText, Text
from asyncckpt.keyed.values import build_value
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import BATCH_OBJECTS, PIECE_ELEMENTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.keyed.json_scan import Window

_OURS: Final = tags.PREFIX.encode()
_SEARCH_NBYTES: Final = 1 << 20


def split_object(text: Text, pacer: Pacer) -> Iterator[tuple[str, int, int]]:
    """Yield the entries of a JSON object: the key, and where the text of the value lies, which may be no JSON.

    Raises:
        ValueError: It is none.
    """
    begin = skip_blanks(text, 0, len(text))
    if begin == len(text) or text.slice(begin, begin + 1) != b"{":
        message = "it is no JSON object"
        raise ValueError(message)
    low, end, count = begin + 1, None, 0
    for window in windows(text, low, len(text), 1, pacer):
        is_mark = ((window.kinds == COMMA) & (window.depths == 1)) | ((window.kinds == CLOSE) & (window.depths == 0))
        for high, depth in zip(window.at[is_mark].tolist(), window.depths[is_mark].tolist(), strict=True):
            end = high if depth == 0 else None
            if end is None or count or skip_blanks(text, low, high) < high:
                until = skip_blanks_before(text, low, high)  # first, for what lies there is at hand
                key, at = _split_in(window, low, high) or split_entry(text, low, high, pacer)
                yield _decode_key(key), min(skip_blanks(text, at, high), until), until
                count += 1
                if not count % BATCH_OBJECTS:
                    pacer.pause()
            low = high + 1
            if end is not None:
                break
        if end is not None:
            break  # whatever follows is refused
    if end is None or text.slice(end, end + 1) != b"}":
        message = "it does not end with a bracket like its first"
        raise ValueError(message)
    if skip_blanks(text, end + 1, len(text)) < len(text):
        message = f"something follows its end at byte {end + 1}"
        raise ValueError(message)


def _split_in(window: Window, low: int, high: int) -> tuple[str, int] | None:
    """Split an entry as `split_entry` does, but without copies, if it lies in the window and is a plain one."""
    start = window.low
    near = split_near(window.data, low - start, high - start) if low >= start else None
    return None if near is None else (near[0], start + near[1])


def decode_value(text: Text, low: int, high: int, pacer: Pacer) -> Found:
    """Make the value of its JSON, which lies at these bytes of a text.

    Raises:
        ValueError: The text is no JSON.
        CorruptCheckpointError: An object of ours in it is not as it should be.
    """
    with young_collections_only():
        try:
            if not _holds_ours(text, low, high, pacer):
                return Found(parse(text, low, high, None, pacer), {})
            return _Decoder(pacer).run(parse(text, low, high, Pairs, pacer))
        except RecursionError as error:
            message = f"containers are nested more than {tags.MAX_DEPTH} deep"
            raise ValueError(message) from error


def _holds_ours(text: Text, low: int, high: int, pacer: Pacer) -> bool:
    for start in range(low, high, _SEARCH_NBYTES):
        if _OURS in text.slice(start, min(start + _SEARCH_NBYTES + len(_OURS), high)):
            return True
        pacer.pause()
    return False


def _decode_key(key: str) -> str:
    if key.startswith(tags.KEY_TAG):
        encoded = key.removeprefix(tags.KEY_TAG).encode()
        key = decode_value(MemoryText([encoded]), 0, len(encoded), Pacer(yields=False)).value
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
            if type(plain) is Pairs and dict(plain).get(tags.TAG) == "tree":
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
        if depth > 2 * tags.MAX_DEPTH:
            raise RecursionError
        if type(value) is list:
            self._add(ix.ext(ix.LIST, len(value)))
            for item in value:
                self._value(item, depth + 1)
        elif type(value) is not Pairs:
            self._plain(value)
        elif value and value[0][0] == tags.TAG:
            self._tagged(unique(value), depth)
        else:
            self._add(ix.ext(ix.DICT, len(value)))
            self._entries(value, depth)

    def _plain(self, value: Any) -> None:
        if type(value) is int and not -(1 << 63) <= value < 1 << 64:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self._add(msgpack.ExtType(ix.INTEGER, data))
        else:
            self._add(str(value) if type(value) is Span else value)

    def _entries(self, pairs: Any, depth: int) -> None:
        _expect(Pairs, pairs)
        seen = set()
        for key, value in pairs:
            if key.startswith(tags.KEY_TAG):
                text = key.removeprefix(tags.KEY_TAG).encode("utf-8", "surrogatepass")
                self._value(decode(text, Pairs), depth + 1)
            else:
                if key in seen:
                    _damaged(f"the key {key!r} stands twice")
                seen.add(key)
                self._add(key)
            self._value(value, depth + 1)

    def _tagged(self, found: dict[str, Any], depth: int) -> None:
        kind = found[tags.TAG]
        if kind == "object":
            self._add(ix.ext(ix.OBJECT, _expect(str, found["type"])))
            self._value(found["state"], depth + 1)
        elif kind == "OrderedDict":
            self._add(ix.ext(ix.ORDERED_DICT, len(found["items"])))
            self._entries(found["items"], depth)
        elif kind in tags.CODES:
            items = _expect(list, found["items"])
            code = tags.CODES[kind]
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
        self._pieces = [_joined([piece]) for piece in found["pieces"]]
        for each in found["arrays"]:
            entry = dict(each)
            meta = ix.ArrayMeta(dtype_from_plain(_to_dicts(entry["dtype"])), _shape(entry["shape"]))
            self._made(meta, entry["data"])

    def _made(self, meta: ix.ArrayMeta, data: list[str]) -> int:
        """Make an array of its bytes, which must be as many as it has."""
        nbytes = sum(map(_decoded_nbytes, _expect(list, data)))
        if nbytes != meta.nbytes:
            _damaged(f"an array of {meta.nbytes} bytes has {nbytes}")
        array: NDArray[Any] = np.ndarray(meta.shape, meta.dtype)
        memory = _bytes_of(array)
        at = 0
        for each in data:
            for part in each.parts() if isinstance(each, Span) else (each.encode(),):
                end = at + _decoded_nbytes(part)
                decode_into(part, memory[at:end])
                at = end
                self._pacer.pause()
        if at != nbytes:  # there was padding between the parts of a string
            _damaged(f"an array of {nbytes} bytes has {at}")
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


def _decoded_nbytes(text: str | bytes | Span) -> int:
    if isinstance(text, str):
        padding = text[-2:].count("=")
    else:
        padding = (text.end if isinstance(text, Span) else text[-2:]).count(b"=")
    return len(text) // 4 * 3 - padding


def _decoded(text: str | Span) -> Iterator[bytes]:
    for part in text.parts() if isinstance(text, Span) else (text,):
        yield binascii.a2b_base64(part, strict_mode=True)


def _joined(data: list[str | Span]) -> bytes:
    return b"".join(part for each in _expect(list, data) for part in _decoded(each))


def _shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 64:  # noqa: PLR2004
        _damaged(f"an array of the shape {shape!r:.80}")
    return tuple(shape)


def _to_dicts(value: Any) -> Any:
    if type(value) is Pairs:
        return {key: _to_dicts(item) for key, item in value}
    return [_to_dicts(item) for item in value] if type(value) is list else value


def _expect(type_: type, value: Any) -> Any:
    if type(value) is not type_:
        _damaged(f"{value!r:.40} is no {type_.__name__}")
    return value


def _damaged(reason: str, cause: Exception | None = None) -> NoReturn:
    message = f"an object of asyncckpt's is damaged: {reason}"
    raise CorruptCheckpointError(message) from cause
