"""Values as JSON text, and back (docs/format.md has the table).

1. None, bool, int, finite float, str, list and dict with str keys are JSON's own. Everything else is an object whose
   first key is `TAG`, which says what it is; a key of a dict that is no str, or begins like ours, is `KEY_TAG` and the
   JSON of the key.
2. What is written has no line breaks.
3. What is read is made at once where that can be, and costs little more than `json` takes for the text. Objects,
   scalars, sets and keys that are no str are left to `Decoder`, which believes nothing.
4. What is nested deeper than `MAX_DEPTH` is written as a tree in binary chunks, and refused when it is read.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from asyncckpt.arrays.meta import ArrayMeta
from asyncckpt.errors import CorruptCheckpointError
from asyncckpt.keyed.values import Found, build_value, runs_of
from asyncckpt.runtime.collector import young_collections_only
from asyncckpt.runtime.pacing import BATCH_OBJECTS, CHUNK_ELEMENTS, Pacer
from asyncckpt.state import index as ix
from asyncckpt.state.containers import TYPES
from asyncckpt.state.dtypes import dtype_from_plain, dtype_to_plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from asyncckpt.keyed.values import CapturedValue

TAG: Final = "__asyncckpt__"
KEY_TAG: Final = "__asyncckpt_key__"
PREFIX: Final = "__asyncckpt"
"""What begins both."""
MAX_DEPTH: Final = 200
"""Containers in each other, of which each takes at most two brackets."""
KINDS: Final = {
    ix.TUPLE: "tuple",
    ix.SET: "set",
    ix.FROZENSET: "frozenset",
    ix.DEQUE: "deque",
    ix.ORDERED_DICT: "OrderedDict",
    ix.OBJECT: "object",
}
"""What JSON lacks and has values in it."""
_CODES: Final = {name: code for code, name in KINDS.items()}
LONG: Final = 1 << 20
"""Characters of text that `json` takes longer for than a loop should wait."""
_SHORT: Final = 1 << 10
_OUTER: Final = 16  # long containers in each other
_DATA_NBYTES: Final = 196_608  # bytes in one base64 string: a multiple of 3
_MAX_BITS: Final = 12_000  # Python reads and writes decimals of up to 4300 digits
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


# --- writing ----------------------------------------------------------------------------------------------------------

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


# --- reading ----------------------------------------------------------------------------------------------------------


def decode_value(text: str, pacer: Pacer) -> Found:
    """Make the value of its JSON.

    Raises:
        ValueError: The text is no JSON.
        CorruptCheckpointError: An object of ours in it is not as it should be.
    """
    with young_collections_only():
        try:
            if PREFIX in text:
                return _Decoder(pacer).run(text)
            return Found(_THEIRS(len(text)).decode(text), {})
        except RecursionError as error:
            message = f"containers are nested more than {MAX_DEPTH} deep"
            raise ValueError(message) from error


def decode_key(text: str) -> str:
    """Return the key of a file that a string of JSON stands for; raise what `decode_value` does if there is none."""
    key = _THEIRS(len(text)).decode(text)
    if isinstance(key, str) and key.startswith(KEY_TAG):
        key = decode_value(key.removeprefix(KEY_TAG), Pacer(yields=False)).value
    if not isinstance(key, str):
        message = f"{key!r:.80} is no key of a file"
        raise ValueError(message)  # noqa: TRY004 - of the text
    return key


class _Tagged(list[tuple[str, Any]]):
    """The entries of a JSON object that has a key of ours."""


class _Nodes(list[ix.Node]):
    """The nodes of a value that is not made yet."""


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = f"a key stands twice in an object of the keys {', '.join(map(repr, list(found)[:8]))}"
        raise ValueError(message)
    return found


def _tagged(pairs: list[tuple[str, Any]]) -> Any:
    return _Tagged(pairs) if any(key.startswith(PREFIX) for key, _ in pairs) else _unique(pairs)


def decoders(hook: Callable[[list[tuple[str, Any]]], Any], **others: Any) -> Callable[[int], json.JSONDecoder]:
    """Make decoders of `json`, and return what chooses one by the length of a text.

    In long text, what is short is left to `json`'s scanner, and what holds that is gone through in Python: so no call
    is long.
    """
    quick, patient = (json.JSONDecoder(object_pairs_hook=hook, **others) for _ in range(2))
    scan: Any = quick.scan_once  # type: ignore[attr-defined]

    def around(inner: Any) -> Any:
        def scan_outer(text: str, at: int) -> Any:
            part = text[at : at + _SHORT]
            try:
                made, end = scan(part, 0)
                if end < len(part):  # else it is cut off, or may be
                    return made, at + end
            except (ValueError, StopIteration):
                pass
            if part[:1] == "[":
                return json.decoder.JSONArray((text, at + 1), inner)  # type: ignore[attr-defined]
            if part[:1] == "{":
                return json.decoder.JSONObject((text, at + 1), True, inner, None, hook)  # type: ignore[attr-defined]  # noqa: FBT003
            return scan(text, at)

        return scan_outer

    for _ in range(_OUTER):
        patient.scan_once = around(patient.scan_once)  # type: ignore[attr-defined]
    return lambda length: patient if length > LONG else quick


_THEIRS: Final = decoders(_unique)
_OURS: Final = decoders(_tagged)
_MAX_BRACKETS: Final = 2 * MAX_DEPTH + 8  # in each other: a leaf in the innermost container has some, too
_NESTED: Final = frozenset({list, dict, _Tagged})
_NODES: Final = frozenset({type(None), bool, float, str, bytes})
_MADE_HERE: Final = frozenset({ix.LIST, ix.TUPLE, ix.DEQUE, ix.DICT, ix.ORDERED_DICT})
_ANY: Final = ArrayMeta(np.dtype(bool), ())


class _Decoder:
    """Makes the value of a text that has something of ours in it."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._arrays: dict[Any, NDArray[Any]] = {}
        self._made: dict[int, Any] = {}  # what the decoder puts into its place as it does with arrays, by number

    def run(self, text: str) -> Found:
        try:
            found = self._value(_OURS(len(text)).decode(text), 0)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError, OverflowError) as error:
            _damaged(f"{error!r:.500}", error)
        if type(found) is not _Nodes:
            return found if type(found) is Found else Found(found, {})
        starts = range(0, len(found), CHUNK_ELEMENTS)
        chunks = [ix.pack_chunk(found[start : start + CHUNK_ELEMENTS]) for start in starts]
        return build_value(ix.Index(chunks, [_ANY] * len(self._made)), self._made, self._pacer)

    def _value(self, plain: Any, depth: int) -> Any:
        """Return the value of what `json` has made, or its nodes."""
        if type(plain) not in _NESTED or _is_flat(plain):
            return plain
        if _is_leaf(plain):
            return self._leaf(_unique(plain), depth)
        code, argument, keys, items = _opened(plain, depth)
        is_made = code in _MADE_HERE
        for at, item in enumerate(items):
            if keys:
                keys[at] = self._key(keys[at], depth)
            if type(item) in _NESTED:
                items[at] = self._value(item, depth + 1)
            is_made = is_made and type(items[at]) is not _Nodes and (not keys or type(keys[at]) is str)
            if not at % BATCH_OBJECTS:
                self._pacer.pause()
        if is_made:
            content = _unique([*zip(keys, items, strict=True)]) if keys else items
            return TYPES[code](content, *argument[1:] if code == ix.DEQUE else ())
        nodes = _Nodes([ix.ext(code, argument)])
        for each in chain.from_iterable(zip(keys, items, strict=True)) if keys else items:
            nodes += self._nodes(each)
        return nodes

    def _key(self, key: str, depth: int) -> Any:
        text = key.removeprefix(KEY_TAG)
        return key if text == key else self._value(_OURS(0).decode(text), depth + 1)

    def _nodes(self, value: Any) -> list[ix.Node]:
        if type(value) is _Nodes:
            return value
        if type(value) in _NODES or (type(value) is int and -(1 << 63) <= value < 1 << 64):
            return [value]
        self._made[len(self._made)] = value
        return [ix.ext(ix.ARRAY, len(self._made) - 1)]

    def _leaf(self, found: dict[str, Any], depth: int) -> Any:
        if found[TAG] == "array":
            number = _expect(int, found["number"])
            if "data" in found:
                if number in self._arrays:
                    _damaged(f"array {number} stands twice")
                self._arrays[number] = self._array(found)
            return self._arrays[number]
        if found[TAG] == "tree" and not depth:
            arrays = {number: self._array(_unique(each)) for number, each in enumerate(found["arrays"])}
            metas = [ArrayMeta(array.dtype, array.shape) for array in arrays.values()]
            return build_value(ix.Index([_bytes([chunk]) for chunk in found["pieces"]], metas), arrays, self._pacer)
        if found[TAG] not in LEAVES:
            _damaged(f"{found[TAG]!r:.40} is nothing that this asyncckpt knows")
        return LEAVES[found[TAG]](found)

    def _array(self, found: dict[str, Any]) -> NDArray[Any]:
        shape, data = found["shape"], _expect(list, found["data"])
        if type(shape) is not list or any(type(n) is not int or n < 0 for n in shape) or len(shape) > 64:  # noqa: PLR2004
            _damaged(f"an array of the shape {shape!r:.80}")
        meta = ArrayMeta(dtype_from_plain(found["dtype"]), tuple(shape))
        if meta.nbytes > sum(map(len, data)):  # before memory is taken for what is only claimed
            _damaged(f"an array of {meta.nbytes} bytes has less")
        array: NDArray[Any] = np.ndarray(meta.shape, meta.dtype)
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


def _is_flat(plain: Any) -> bool:
    """Whether nothing in a list or object has to be made."""
    return type(plain) is not _Tagged and _NESTED.isdisjoint(
        map(type, plain if type(plain) is list else plain.values())
    )


def _is_leaf(plain: Any) -> bool:
    return type(plain) is _Tagged and plain[0][0] == TAG and plain[0][1] not in _CODES


def _opened(plain: Any, depth: int) -> tuple[int, Any, list[Any], list[Any]]:
    """Return which container a list or object stands for, what its node says, and the keys and items in it."""
    if depth > _MAX_BRACKETS:
        raise RecursionError
    code, items = (ix.LIST if type(plain) is list else ix.DICT), plain
    argument: Any = len(plain)
    if type(plain) is _Tagged and plain[0][0] == TAG:
        found = _unique(plain)
        code = _CODES[found[TAG]]
        items = [found["state"]] if code == ix.OBJECT else found["items"]
        argument = len(items)
        if code == ix.OBJECT:
            argument = _expect(str, found["type"])
        elif code == ix.DEQUE:
            argument = len(items), found["maxlen"]
    if code not in ix.MAPPINGS:
        return code, argument, [], _expect(list, items)
    pairs = items if type(items) is _Tagged else _expect(dict, items).items()
    return code, argument, [key for key, _ in pairs], [item for _, item in pairs]


def _small(plain: Any) -> Any:
    return LEAVES[plain[0][1]](dict(plain)) if type(plain) is _Tagged else plain


def _complex(found: dict[str, Any]) -> complex:
    real, imaginary = map(_small, found["parts"])
    return complex(real, imaginary)


def _scalar(found: dict[str, Any]) -> _Nodes:
    dtype, value = found["dtype"], found["value"]
    is_data = type(value) is str and dtype != "str_"
    return _Nodes([ix.ext(ix.SCALAR, (dtype, _bytes([value]) if is_data else _small(value)))])


LEAVES: Final[dict[Any, Callable[[dict[str, Any]], Any]]] = {
    "int": lambda found: int(found["hex"], 16),
    "float": lambda found: float(np.uint64(int(found["bits"], 16)).view(np.float64)),
    "complex": _complex,
    "scalar": _scalar,
    "bytes": lambda found: _bytes(found["data"]),
    "str": lambda found: _bytes(found["data"]).decode("utf-8", "surrogatepass"),
}
"""What makes the other leaves of JSON objects."""


def _bytes(data: list[str]) -> bytes:
    return b"".join(binascii.a2b_base64(text, strict_mode=True) for text in _expect(list, data))


def _expect(type_: type, value: Any) -> Any:
    if type(value) is not type_:
        _damaged(f"{value!r:.40} is no {type_.__name__}")
    return value


def _damaged(reason: str, cause: Exception | None = None) -> NoReturn:
    message = f"an object of asyncckpt's is damaged: {reason}"
    raise CorruptCheckpointError(message) from cause
