"""Values of their JSON text (docs/format.md has the table).

1. What JSON has is made by `json`. Arrays, tuples and most leaves are made of its objects, the inner ones first, and
   cost little more than `json` takes for the text.
2. Objects, scalars, sets, other containers and dicts whose keys are not all str become nodes of an index, whose decoder
   checks them.
3. A text of more than `LONG` characters is scanned in many short calls. One call for all of it would hold the GIL.
"""

from __future__ import annotations

import binascii
import json
from functools import partial
from itertools import chain
from json.decoder import JSONArray  # type: ignore[attr-defined] # undocumented, as the next, and in every release
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import numpy as np

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.keyed.json.encode import KEY_TAG, KINDS, PREFIX, TAG
from asyncckpt.keyed.values import Found, build_value
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

LONG: Final = 1 << 20
"""Characters of text that one call into C may scan."""
_PART: Final = 1 << 14  # of a long text: as much as C scans in about a millisecond, whatever it is
_ENDS: Final = {"[": "],", "{": "},", '"': '",'}  # of elements that begin so, and the comma behind them
_CODES: Final = {name: code for code, name in KINDS.items()}


def decode_value(text: str, pacer: Pacer) -> Found:
    """Make the value of its JSON.

    Raises:
        ValueError: The text is not JSON, or nested too deeply.
        CorruptCheckpointError: An object of ours in it is not as it should be.
    """
    with young_collections_only():
        for length in (len(text), 0):  # the slow scanner, which nests less deeply; the quick one
            try:
                if PREFIX in text:
                    return _Decoder(pacer).run(text, length)
                return Found(json_decoder(unique, length).decode(text), {})
            except RecursionError:
                continue
        message = "containers are nested too deeply"
        raise ValueError(message)


def decode_key(name: str) -> str:
    """Return the key of a file by the name that it has in JSON; raise what `decode_value` does if it is not one."""
    if not name.startswith(KEY_TAG):
        return name
    key = decode_value(name.removeprefix(KEY_TAG), Pacer(yields=False)).value
    if not isinstance(key, str):
        message = f"a key of a file is a str, not a {type(key).__name__}"
        raise ValueError(message)  # noqa: TRY004 - of the text
    return key


def json_decoder(hook: Callable[[list[tuple[str, Any]]], Any], length: int, **others: Any) -> json.JSONDecoder:
    """Return a decoder for a text of this length: a long one is scanned by Python code, which releases the GIL."""
    decoder = json.JSONDecoder(object_pairs_hook=hook, **others)
    if length > LONG:
        decoder.parse_array = partial(_parse_array, decoder.scan_once)  # type: ignore[attr-defined]
        decoder.scan_once = py_make_scanner(decoder)  # type: ignore[attr-defined]
    return decoder


def _parse_array(quick: Any, text_and_start: tuple[str, int], scan_once: Any) -> tuple[list[Any], int]:
    """Parse what follows the bracket of an array, many elements by one call, as long as these do not nest."""
    text, at = text_and_start
    items: list[Any] = []
    end = _ENDS.get(text[at : at + 1], ",")
    while (cut := text.rfind(end, at, at + _PART)) >= 0:
        part = f"[{text[at : cut + len(end) - 1]}]"  # no JSON if it ends within a string or container
        try:
            values, part_end = quick(part, 0)
        except (ValueError, StopIteration):
            break
        if not values:
            break
        items += values
        at += part_end - 1
        if part_end < len(part):  # the array ends before
            return items, at
    rest, at = JSONArray((text, at), scan_once)
    if items and not rest:
        raise json.JSONDecodeError("Expecting value", text, at)
    return items + rest, at


def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return the dict of the entries of an object."""
    found = dict(pairs)
    if len(found) != len(pairs):
        message = f"duplicate key in an object with the keys {', '.join(map(repr, list(found)[:8]))}"
        raise ValueError(message)
    return found


class _Pending(NamedTuple):
    """A container, or a scalar, that is left to the decoder of the index."""

    code: int
    argument: Any
    children: list[Any]


_NESTED: Final = frozenset({list, dict, _Pending})
_NODES: Final = frozenset({type(None), bool, float, str, bytes})
_NO_META: Final = ArrayMeta(np.dtype(bool), ())


class _Decoder:
    """Makes the value of a text that has something of ours in it."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._arrays: dict[int, NDArray[Any]] = {}
        self._made: dict[int, Any] = {}  # parts of the value, which its nodes refer to as if they were arrays
        self._has_pending = False
        self._unknown_types: dict[str, str] = {}

    def run(self, text: str, length: int) -> Found:
        try:
            found = json_decoder(self._object, length).decode(text)
            if not self._has_pending:
                return Found(found, self._unknown_types)
            chunks = [ix.pack_chunk(batch) for batch in self._pacer.batches(self._nodes(found), CHUNK_ELEMENTS)]
            arrays = self._made
        except (TypeError, KeyError, IndexError, ValueError, AttributeError, OverflowError) as error:
            _damaged(f"{error!r:.500}", error)
        finally:
            self._arrays, self._made = {}, {}  # the Python scanner of `json` is a cycle, and keeps this object
        built = build_value(ix.Index(chunks, [_NO_META] * len(arrays)), arrays, self._pacer)
        return Found(built.value, {**self._unknown_types, **built.unknown_types})

    def _object(self, pairs: list[tuple[str, Any]]) -> Any:
        """Return the value that a JSON object represents; called for inner objects first."""
        if not any(key.startswith(PREFIX) for key, _ in pairs):
            return unique(pairs)
        if pairs[0][0] != TAG:
            decode = json_decoder(self._object, 0).decode
            keys = [decode(key.removeprefix(KEY_TAG)) if key.startswith(KEY_TAG) else key for key, _ in pairs]
            pairs = [(key, value) for key, (_, value) in zip(keys, pairs, strict=True)]
            is_plain = all(type(key) is str for key in keys)
            return unique(pairs) if is_plain else self._pending(ix.DICT, len(pairs), [*chain(*pairs)])
        found = unique(pairs)
        kind = found[TAG]
        if kind in LEAVES:
            return LEAVES[kind](self, found)
        if kind not in _CODES:
            _damaged(f"{kind!r:.40} is nothing that this asyncckpt knows")
        return self._container(kind, found)

    def _container(self, kind: str, found: dict[str, Any]) -> Any:
        argument: Any
        if kind == "object":
            argument, children = _expect(str, found["type"]), [found["state"]]
        elif kind != "OrderedDict":
            children = _expect(list, found["items"])
            argument = (len(children), found["maxlen"]) if kind == "deque" else len(children)
        elif type(items := found["items"]) is _Pending and items.code == ix.DICT:
            _, argument, children = items
        else:
            argument, children = len(_expect(dict, items)), [*chain(*items.items())]
        is_made = kind == "tuple" and not self._has_pending
        return tuple(children) if is_made else self._pending(_CODES[kind], argument, children)

    def _pending(self, code: int, argument: Any, children: list[Any]) -> _Pending:
        self._has_pending = True
        return _Pending(code, argument, children)

    def scalar(self, found: dict[str, Any]) -> Any:
        dtype, value = found["dtype"], found["value"]
        is_data = type(value) is str and dtype != "str_"
        return self._pending(ix.SCALAR, (dtype, _bytes([value]) if is_data else value), [])

    def tree(self, found: dict[str, Any]) -> Any:
        arrays: dict[int, Any] = dict(enumerate(found["arrays"]))
        metas = [ArrayMeta(array.dtype, array.shape) for array in arrays.values()]
        made = build_value(ix.Index([_bytes([chunk]) for chunk in found["pieces"]], metas), arrays, self._pacer)
        self._unknown_types.update(made.unknown_types)
        return made.value

    def array(self, found: dict[str, Any]) -> Any:
        number = _expect(int, found["number"])
        if "data" not in found:  # it may stand in a key, which is decoded after the value
            return self._arrays[number] if number in self._arrays else self._pending(ix.ARRAY, number, [])
        if number in self._arrays:
            _damaged(f"duplicate array {number}")
        shape, data = _expect(list, found["shape"]), _expect(list, found["data"])
        if any(type(n) is not int or n < 0 for n in shape) or len(shape) > 64:  # noqa: PLR2004
            _damaged("the shape of an array is not a list of sizes")
        meta = ArrayMeta(dtype_from_plain(found["dtype"]), tuple(shape))
        if meta.nbytes > sum(map(len, data)):  # before memory is taken for what is only claimed
            _damaged(f"an array of {meta.nbytes} bytes has less")
        array = self._arrays[number] = np.ndarray(meta.shape, meta.dtype)
        memory = array.reshape(-1).view(np.uint8) if meta.nbytes else np.empty(0, np.uint8)
        at = 0
        for text in data:
            part = np.frombuffer(_bytes([text]), np.uint8)
            memory[at : at + len(part)] = part[: max(meta.nbytes - at, 0)]
            at += len(part)
            self._pacer.pause()
        if at != meta.nbytes:
            _damaged(f"an array of {meta.nbytes} bytes has {at}")
        return array

    def _nodes(self, value: Any) -> Iterator[ix.Node]:
        """Yield the nodes of a value in which something is pending; what is flat is one node."""
        children: Any = value
        if type(value) is list:
            code, argument = ix.LIST, len(value)
        elif type(value) is dict:
            code, argument, children = ix.DICT, len(value), [*chain(*value.items())]
        elif type(value) is _Pending:
            code, argument, children = value
        else:
            yield self._node(value)
            return
        is_flat = _NESTED.isdisjoint(map(type, children))
        if code == ix.ARRAY:
            yield self._node(self._arrays[argument])
        elif is_flat and type(value) is not _Pending:
            yield self._node(value)
        elif is_flat and code == ix.TUPLE:
            yield self._node(tuple(children))
        else:
            yield ix.ext(code, argument)
            for child in children:
                yield from self._nodes(child) if type(child) in _NESTED else (self._node(child),)

    def _node(self, value: Any) -> ix.Node:
        """Return the node of a value in which nothing is pending."""
        if type(value) in _NODES or (type(value) is int and -(1 << 63) <= value < 1 << 64):
            return value
        self._made[len(self._made)] = value
        return ix.ext(ix.ARRAY, len(self._made) - 1)


def _bytes(data: list[str]) -> bytes:
    return b"".join(binascii.a2b_base64(text, strict_mode=True) for text in _expect(list, data))


def _expect(type_: type, value: Any) -> Any:
    if type(value) is not type_:
        _damaged(f"a {type(value).__name__} where a {type_.__name__} belongs")
    return value


def _damaged(reason: str, cause: Exception | None = None) -> NoReturn:
    message = f"an object of asyncckpt's is damaged: {reason}"
    raise CorruptCheckpointError(message) from cause


LEAVES: Final[dict[str, Callable[[_Decoder, dict[str, Any]], Any]]] = {
    "array": _Decoder.array,
    "bytes": lambda _, found: _bytes(found["data"]),
    "complex": lambda _, found: complex(found["parts"][0], found["parts"][1]),
    "float": lambda _, found: float(np.uint64(int(found["bits"], 16)).view(np.float64)),
    "int": lambda _, found: int(found["hex"], 16),
    "scalar": _Decoder.scalar,
    "str": lambda _, found: _bytes(found["data"]).decode("utf-8", "surrogatepass"),
    "tree": _Decoder.tree,
}
"""The functions that make a leaf of the object that represents it, by its tag."""
