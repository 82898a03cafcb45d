"""Values as JSON text, and back (docs/format.md has the table).

1. None, bool, int, finite float, str, list and dict with str keys are JSON's own. Everything else is an object whose
   first key is `TAG`, which says what it is. A key of a dict that is not a str, or begins like ours, is `KEY_TAG` and
   the JSON of the key.
2. The text of a value has no line breaks.
3. A value nested deeper than `MAX_DEPTH`, which readers of JSON would refuse, is written as a tree in binary chunks.
4. What JSON has is made by `json`, and so are arrays, tuples and most leaves, the inner ones first. Objects, scalars,
   sets, other containers and dicts whose keys are not all str become nodes of an index, whose decoder checks them.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import numpy as np

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.keyed.damage import damage_of, damaged
from asyncckpt.keyed.values import Found, build_value, runs_of
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import CHUNK_ELEMENTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.dtypes import dtype_from_plain, dtype_to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
_CODES: Final = {name: code for code, name in KINDS.items()}
_DATA_NBYTES: Final = 196_608  # bytes in one base64 string: a multiple of 3
_NUMBERS_NBYTES: Final = 1 << 15  # of a list of numbers, written by one call
_MAX_BITS: Final = 12_000  # Python reads and writes decimals of up to 4300 digits
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DENSE: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode_key(key: str) -> bytes:
    """Return the JSON of a key of a file."""
    return json.dumps(key if _is_plain_key(key) else KEY_TAG + _plain(key)).encode()


def decode_key(name: str) -> str:
    """Return the key of a file by the name that it has in JSON; raise what `decode_value` does if it is not one."""
    if not name.startswith(KEY_TAG):
        return name
    key = decode_value(name.removeprefix(KEY_TAG).encode("utf-8", "surrogatepass"), Pacer(yields=False)).value
    return _expect(str, key)  # type: ignore[no-any-return] # it is one


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_value(captured: CapturedValue, pacer: Pacer) -> bytes:
    """Return the JSON of a captured value."""
    with young_collections_only():
        try:
            return _joined(_Encoder(captured, pacer).value(), pacer)
        except RecursionError:
            return _joined(_Encoder(captured, pacer).tree(), pacer)


def _joined(texts: Iterable[str], pacer: Pacer) -> bytes:
    return b"".join(["".join(batch).encode() for batch in pacer.batches(texts)])


class _Encoder:
    """Yields the text of a value in parts."""

    def __init__(self, captured: CapturedValue, pacer: Pacer) -> None:
        self._captured = captured
        self._pacer = pacer
        self._nodes = ix.read_nodes(captured.index.chunks, pacer)
        self._written: set[int] = set()  # arrays

    def tree(self) -> Iterator[str]:
        """Yield a value that may be nested however deeply."""
        yield f'{{"{TAG}":"tree","pieces":[{",".join(map(_base64, self._captured.index.chunks))}],"arrays":['
        for number in range(len(self._captured.index.arrays)):
            yield "," if number else ""
            yield from self._array(number)
        yield "]}"

    def value(self, depth: int = 0) -> Iterable[str]:
        """Return the next value; raise a RecursionError if it is nested too deeply for JSON's readers."""
        node = next(self._nodes)
        if type(node) is not msgpack.ExtType:
            return (_plain(node),)
        if node.code != ix.OBJECT and node.code not in ix.CONTAINERS:
            return self._leaf(node)
        if depth == MAX_DEPTH:
            raise RecursionError
        return self._container(node.code, ix.argument_of(node), depth + 1)

    def _container(self, code: int, argument: Any, depth: int) -> Iterator[str]:
        count, more = argument, ""
        opening, closing = "{}" if code in ix.MAPPINGS else "[]"
        if code == ix.OBJECT:
            count, opening, closing = 1, f'{{"{TAG}":"object","type":{_plain(argument)},"state":', "}"
        elif code in KINDS:
            if code == ix.DEQUE:
                count, maxlen = argument
                more = f'"maxlen":{json.dumps(maxlen)},'
            opening, closing = f'{{"{TAG}":"{KINDS[code]}",{more}"items":{opening}', closing + "}"
        yield opening
        for number in range(count):
            if number:
                yield ","
            if code in ix.MAPPINGS:
                key = "".join(self.value(depth))
                yield key if key[0] == '"' and _is_plain_key(json.loads(key)) else json.dumps(KEY_TAG + key)
                yield ":"
            yield from self.value(depth)
        yield closing

    def _leaf(self, node: msgpack.ExtType) -> Iterator[str]:
        code = node.code
        if code == ix.INTEGER:
            yield _plain(int.from_bytes(node.data, "little", signed=True))
            return
        argument = ix.argument_of(node)
        if code == ix.ARRAY:
            yield from self._array(argument)
        elif code == ix.FRAMEWORK_ARRAY:
            number, *kind = argument
            yield f'{{"{TAG}":"framework_array","kind":{json.dumps(kind)},"array":'
            yield from self._array(number)
            yield "}"
        elif code in (ix.BYTES, ix.STRING):
            yield f'{{"{TAG}":"{"bytes" if code == ix.BYTES else "str"}",'
            yield from self._data(argument)
        elif code == ix.COMPLEX:
            yield f'{{"{TAG}":"complex","parts":[{",".join(map(_plain, argument))}]}}'
        elif code == ix.SCALAR:
            dtype, data = argument
            value = _plain(data) if dtype in ("str_", "bytes_") else _base64(data)
            yield f'{{"{TAG}":"scalar","dtype":{json.dumps(dtype)},"value":{value}}}'
        else:
            yield from self._numbers(code, argument)

    def _numbers(self, code: int, argument: Any) -> Iterator[str]:
        is_list = argument[0] == ix.LIST
        yield "[" if is_list else f'{{"{TAG}":"tuple","items":['
        if code == ix.NUMBERS:
            runs = iter([np.frombuffer(argument[2], argument[1])])
        else:
            dtype = self._captured.index.arrays[argument[1]].dtype
            runs = (run.view(dtype) for run in runs_of(self._captured, argument[1], _NUMBERS_NBYTES))
        for number, run in enumerate(runs):
            values = run.tolist()
            yield "," if number else ""
            yield _DENSE.encode(values)[1:-1] if np.isfinite(run).all() else ",".join(map(_plain, values))
            self._pacer.pause()
        yield "]" if is_list else "]}"

    def _array(self, number: int) -> Iterator[str]:
        yield f'{{"{TAG}":"array","number":{number}'
        if number in self._written:
            yield "}"
            return
        self._written.add(number)
        meta = self._captured.index.arrays[number]
        yield f',"dtype":{json.dumps(dtype_to_plain(meta.dtype))},"shape":{json.dumps(meta.shape)},'
        yield from self._data(number)

    def _data(self, number: int) -> Iterator[str]:
        yield '"data":['
        held = b""
        for run in runs_of(self._captured, number, _DATA_NBYTES):
            data = held + run.tobytes()
            held = data[len(data) - len(data) % 3 :]
            yield _base64(data[: len(data) - len(held)]) + ","
            self._pacer.pause()
        yield _base64(held) + "]}"


def _plain(value: Any) -> str:
    """Return the JSON of None, a bool, int, float, str or bytes."""
    kind = type(value)
    if kind is str and not _SURROGATE.search(value):
        return _DENSE.encode(value)
    if kind is str:  # two surrogates side by side would be read as one character
        return f'{{"{TAG}":"str","data":[{_base64(value.encode("utf-8", "surrogatepass"))}]}}'
    if kind is bytes:
        return f'{{"{TAG}":"bytes","data":[{_base64(value)}]}}'
    if kind is int and value.bit_length() > _MAX_BITS:
        return f'{{"{TAG}":"int","hex":"{value:x}"}}'
    if kind is float and not math.isfinite(value):
        return f'{{"{TAG}":"float","bits":"{np.float64(value).view(np.uint64):016x}"}}'
    return repr(value) if kind is int or kind is float else json.dumps(value)


def _is_plain_key(key: str) -> bool:
    return not key.startswith(PREFIX) and not _SURROGATE.search(key)


def _base64(data: bytes) -> str:
    """Return the JSON of bytes."""
    return f'"{binascii.b2a_base64(data, newline=False).decode()}"'


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_value(text: bytes, pacer: Pacer, *, keeps_kinds: bool = True) -> Found:
    """Make the value of its JSON, in UTF-8.

    Raises:
        CorruptCheckpointError: It is not JSON, is nested too deeply, or has a damaged object of ours in it.
    """
    with young_collections_only(), damage_of("it is not JSON, or an object of asyncckpt's in it is damaged"):
        decoded = text.decode("utf-8", "surrogatepass")
        if PREFIX in decoded:
            return _Decoder(pacer, keeps_kinds=keeps_kinds).decode(decoded)
        return Found(json.loads(decoded, object_pairs_hook=unique), {})


def unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return the dict of the entries of an object."""
    found = dict(pairs)
    if len(found) != len(pairs):
        damaged(f"duplicate key in an object with the keys {', '.join(map(repr, list(found)[:8]))}")
    return found


class _Pending(NamedTuple):
    """A container, scalar or array that is left to the decoder of the index."""

    code: int
    argument: Any
    children: list[Any]


_NESTED: Final = frozenset({list, dict, _Pending})
_NODES: Final = frozenset({type(None), bool, float, str, bytes})
_NO_META: Final = ArrayMeta(np.dtype(bool), ())


class _Decoder:
    """Makes the value of a text that has something of ours in it."""

    def __init__(self, pacer: Pacer, *, keeps_kinds: bool) -> None:
        self._pacer = pacer
        self._keeps_kinds = keeps_kinds
        self._arrays: dict[int, NDArray[Any]] = {}
        self._made: dict[int, Any] = {}  # parts of the value, which its nodes refer to as if they were arrays
        self._numbers: dict[int, int] = {}  # of the arrays among them that belong to frameworks, by their ids
        self._has_pending = False
        self._unknown_types: dict[str, str] = {}

    def decode(self, text: str) -> Found:
        found = json.loads(text, object_pairs_hook=self._object)
        if not self._has_pending:
            return Found(found, self._unknown_types)
        chunks = [ix.pack_chunk(batch) for batch in self._pacer.batches(self._nodes(found), CHUNK_ELEMENTS)]
        index = ix.Index(chunks, [_NO_META] * len(self._made))
        built = build_value(index, self._made, self._pacer, keeps_kinds=self._keeps_kinds)
        return Found(built.value, {**self._unknown_types, **built.unknown_types})

    def _object(self, pairs: list[tuple[str, Any]]) -> Any:
        """Return the value that a JSON object represents; called for inner objects first."""
        if not any(key.startswith(PREFIX) for key, _ in pairs):
            return unique(pairs)
        if pairs[0][0] == TAG:
            return self._tagged(unique(pairs))
        keys = [
            json.loads(key.removeprefix(KEY_TAG), object_pairs_hook=self._object) if key.startswith(KEY_TAG) else key
            for key, _ in pairs
        ]
        pairs = [(key, value) for key, (_, value) in zip(keys, pairs, strict=True)]
        is_plain = all(type(key) is str for key in keys)
        return unique(pairs) if is_plain else self._pending(ix.DICT, len(pairs), [*chain(*pairs)])

    def _tagged(self, found: dict[str, Any]) -> Any:
        kind = found[TAG]
        if kind in LEAVES:
            return LEAVES[kind](self, found)
        if kind not in _CODES:
            damaged(f"{kind!r:.40} is nothing that this release knows: a later one may have written it")
        if kind == "object":
            return self._pending(ix.OBJECT, _expect(str, found["type"]), [found["state"]])
        items = found["items"]
        if kind == "OrderedDict":
            is_pending = type(items) is _Pending and items.code == ix.DICT
            children = items.children if is_pending else [*chain(*_expect(dict, items).items())]
            return self._pending(ix.ORDERED_DICT, len(children) // 2, children)
        count = len(_expect(list, items))
        if kind == "tuple" and not self._has_pending:
            return tuple(items)
        return self._pending(_CODES[kind], (count, found["maxlen"]) if kind == "deque" else count, items)

    def _pending(self, code: int, argument: Any, children: list[Any]) -> _Pending:
        self._has_pending = True
        return _Pending(code, argument, children)

    def scalar(self, found: dict[str, Any]) -> Any:
        dtype, value = found["dtype"], found["value"]
        is_data = type(value) is str and dtype != "str_"
        return self._pending(ix.SCALAR, (dtype, _from_base64(value) if is_data else value), [])

    def framework_array(self, found: dict[str, Any]) -> Any:
        return self._pending(ix.FRAMEWORK_ARRAY, tuple(_expect(list, found["kind"])), [found["array"]])

    def tree(self, found: dict[str, Any]) -> Any:
        arrays: dict[int, Any] = dict(enumerate(found["arrays"]))
        metas = [ArrayMeta(array.dtype, array.shape) for array in arrays.values()]
        chunks = [*map(_from_base64, _expect(list, found["pieces"]))]
        made = build_value(ix.Index(chunks, metas), arrays, self._pacer, keeps_kinds=self._keeps_kinds)
        self._unknown_types.update(made.unknown_types)
        return made.value

    def array(self, found: dict[str, Any]) -> Any:
        number = _expect(int, found["number"])
        if "data" not in found:  # it may stand in a key, which is decoded after the value
            return self._arrays[number] if number in self._arrays else self._pending(ix.ARRAY, number, [])
        if number in self._arrays:
            damaged(f"duplicate array {number}")
        meta = ArrayMeta(dtype_from_plain(found["dtype"]), tuple(_expect(list, found["shape"])))
        data = self._bytes(found["data"])
        if len(data) != meta.nbytes:
            damaged(f"an array of {meta.nbytes} bytes has {len(data)}")
        array = self._arrays[number] = np.ndarray(meta.shape, meta.dtype, data)
        return array

    def data(self, texts: Any) -> bytes:
        return bytes(self._bytes(texts))

    def _bytes(self, texts: Any) -> bytearray:
        found = bytearray()
        for text in _expect(list, texts):
            found += _from_base64(text)
            self._pacer.pause()
        return found

    def _nodes(self, value: Any) -> Iterator[ix.Node]:
        """Yield the nodes of a value in which something is pending; what is flat is one node."""
        children: Any = value
        argument: Any
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
        elif code == ix.FRAMEWORK_ARRAY:
            (array,) = children
            array = self._arrays[array.argument] if type(array) is _Pending else array
            number = self._numbers.setdefault(id(array), len(self._made))  # one array wherever it occurs
            self._made[number] = array
            yield ix.ext(code, (number, *argument))
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


def _from_base64(text: Any) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


def _expect(type_: type, value: Any) -> Any:
    if type(value) is not type_:
        damaged(f"a {type(value).__name__} where a {type_.__name__} belongs")
    return value


LEAVES: Final[dict[str, Callable[[_Decoder, dict[str, Any]], Any]]] = {
    "array": _Decoder.array,
    "bytes": lambda decoder, found: decoder.data(found["data"]),
    "complex": lambda _, found: complex(found["parts"][0], found["parts"][1]),
    "framework_array": _Decoder.framework_array,
    "float": lambda _, found: float(np.uint64(int(found["bits"], 16)).view(np.float64)),
    "int": lambda _, found: int(found["hex"], 16),
    "scalar": _Decoder.scalar,
    "str": lambda decoder, found: decoder.data(found["data"]).decode("utf-8", "surrogatepass"),
    "tree": _Decoder.tree,
}
"""The functions that make a leaf of the object that represents it, by its tag."""
