"""Encode and decode the two small documents of a checkpoint: ``training_info.json`` and ``config.yaml``.

1. Pure functions: values in, bytes out, or the reverse. Nothing here touches the disk.
2. A document reads back equal, with `json` and with PyYAML's ``safe_load`` (YAML 1.1) respectively, after the
   conversions to plain values that the functions describe. What would not is refused with its path, never changed
   silently.
3. Values are first converted to plain ones: the writers below see only None, bool, int, float, str, list and dict, of
   exactly these types, without cycles and at most `MAX_DEPTH` deep.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from asyncckpt.errors import UnsupportedLeafError

TRAINING_INFO_NAME: Final = "training_info.json"
CONFIG_NAME: Final = "config.yaml"

MAX_DEPTH: Final = 100
"""The greatest depth of nested containers in a document; PyYAML fails at a few hundred."""


def normalize_training_info(info: Mapping[str, object]) -> dict[str, Any]:
    """Return a deep copy of a training_info in plain values, which later changes by the caller do not affect.

    Args:
        info: A mapping with str keys, of None, bool, int, float (including NaN and infinities), str, numbers with the
            shape () (numpy scalars; 0-d arrays of numpy, torch and JAX), and mappings, lists and tuples of these.

    Returns:
        A copy equal to what `parse_training_info` will return: numbers of other libraries are int, float or bool,
        mappings are dicts, tuples are lists.

    Raises:
        UnsupportedLeafError: `info` contains anything else, such as an array with dimensions or a key that is not a
            str, contains itself, or is nested more than 100 deep. The error names the path, such as
            "training_info/eval/loss".
    """
    return _TRAINING_INFO_RULES.copy(info, "training_info")


def encode_training_info(plain: Mapping[str, Any]) -> bytes:
    """Encode the result of `normalize_training_info` as UTF-8 JSON that ends with a newline.

    NaN and infinities are written as Python's `json` does (``NaN``, ``Infinity``), which is not strict JSON.
    """
    text = json.dumps(plain, ensure_ascii=False, indent=2) + "\n"
    # A lone surrogate has no UTF-8 form; backslashreplace writes it as \udXXX, which is also JSON's escape for it.
    return text.encode("utf-8", "backslashreplace")


def parse_training_info(data: bytes) -> dict[str, Any]:
    """Decode what `encode_training_info` encoded.

    Raises:
        ValueError: The bytes are not UTF-8 JSON, or not an object.
    """
    try:
        info = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON document in UTF-8: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"expected a JSON object, found {type(info).__name__}")  # noqa: TRY004 - bytes are a value
    return info


def run_config_bytes(config: object) -> bytes:
    """Encode a run's configuration as flow-style YAML 1.1 in UTF-8, with strings always in double quotes.

    Args:
        config: A mapping, a dataclass instance, or an object with ``model_dump()``. It may contain more of these, None,
            bool, int, float, str, numbers with the shape () (written as plain numbers), Enums (as their values), paths
            (as str), and lists and tuples (as lists). Keys may be any of these except containers.

    Raises:
        UnsupportedLeafError: `config` contains anything else, two keys become equal (an Enum and its value), or it
            contains itself or is nested more than 100 deep. The error names the path, such as
            "run_config/optimizer/lr".
    """
    plain = _RUN_CONFIG_RULES.copy(config, "run_config")
    return (_yaml(plain, "") + "\n").encode()


_Items: TypeAlias = list[tuple[object, object]]


class _Rules(NamedTuple):
    """What one kind of document accepts, and the copying of a value into plain values by these rules."""

    unwrap: Callable[[object], object]
    """Returns the value to write instead, such as an Enum's value; for most values, the value itself."""
    items_of: Callable[[object], _Items | None]
    """Returns the items of a value that becomes a dict, and None for any other value."""
    key_types: tuple[type, ...]
    key_advice: str

    def copy(self, value: object, name: str) -> dict[str, Any]:
        """Return a plain copy of a whole document, whose name is the first part of the paths in errors."""
        items = self.items_of(value)
        if items is None:
            raise UnsupportedLeafError(f"expected a mapping, found {_described(value)}", path=name)
        return self._dict(items, (name,), (id(value),))

    def _copy(self, value: object, path: tuple[str, ...], above: tuple[int, ...]) -> object:
        value = self.unwrap(value)
        items = self.items_of(value)
        if items is None and isinstance(value, list | tuple):
            below = self._deeper(value, path, above)
            return [self._copy(item, (*path, str(index)), below) for index, item in enumerate(value)]
        if items is None:
            return _leaf(value, path)
        return self._dict(items, path, self._deeper(value, path, above))

    def _dict(self, items: _Items, path: tuple[str, ...], above: tuple[int, ...]) -> dict[Any, Any]:
        plain: dict[Any, Any] = {}
        for key, item in items:
            plain_key = self._key(key, path)
            if plain_key in plain:
                raise _refused(path, f"two keys would both be written as {plain_key!r}")
            plain[plain_key] = self._copy(item, (*path, str(plain_key)), above)
        return plain

    def _key(self, key: object, path: tuple[str, ...]) -> object:
        plain = self.unwrap(key)
        if not isinstance(plain, self.key_types):
            raise _refused(path, f"cannot have the key {_described(key)}; {self.key_advice}")
        return _leaf(plain, path)

    @staticmethod
    def _deeper(container: object, path: tuple[str, ...], above: tuple[int, ...]) -> tuple[int, ...]:
        if id(container) in above:
            raise _refused(path, "contains itself")
        if len(above) >= MAX_DEPTH:
            raise _refused(path, f"containers are nested more than {MAX_DEPTH} deep")
        return (*above, id(container))


def _mapping_items(value: object) -> _Items | None:
    return list(value.items()) if isinstance(value, Mapping) else None


def _config_items(value: object) -> _Items | None:
    if isinstance(value, type):
        return None
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, Mapping):
        return _mapping_items(dump())
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return _mapping_items(value)


def _unwrap_number(value: object) -> object:
    """Return a number with the shape (), of any library, as a Python number; return other values as they are."""
    if getattr(value, "shape", None) != () or (isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "mM"):
        return value  # item() would turn a datetime64 into an int
    item = getattr(value, "item", None)
    number = item() if callable(item) else value
    if isinstance(number, np.floating):  # a longdouble's item() is a longdouble
        return float(number)
    return number if isinstance(number, int | float | str) else value  # a structured scalar's item() is a tuple


def _unwrap_config(value: object) -> object:
    while isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _unwrap_number(value)


_SURROGATE_PAIR: Final = "[\ud800-\udbff][\udc00-\udfff]"


def _leaf(value: object, path: tuple[str, ...]) -> bool | float | str | None:
    """Return a leaf as a plain None, bool, int, float or str, even if it is of a subclass."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if re.search(_SURROGATE_PAIR, value):
            raise _refused(path, "cannot write a str with a surrogate pair: it would be read back as one character")
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        try:
            str(number)
        except ValueError as error:  # Python limits the length of decimal numbers
            raise _refused(path, str(error)) from None
        return number
    raise _refused(path, f"cannot write {_described(value)}; allowed are numbers, str, bool, None, mappings and lists")


def _described(value: object) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    shape = getattr(value, "shape", None)
    return f"a value of type {kind}" + (f" and shape {tuple(shape)}" if isinstance(shape, tuple) else "")


def _refused(path: tuple[str, ...], message: str) -> UnsupportedLeafError:
    return UnsupportedLeafError(message, path="/".join(path))


_TRAINING_INFO_RULES: Final = _Rules(
    unwrap=_unwrap_number,
    items_of=_mapping_items,
    key_types=(str,),
    key_advice="use a str: JSON has no other keys",
)
_RUN_CONFIG_RULES: Final = _Rules(
    unwrap=_unwrap_config,
    items_of=_config_items,
    key_types=(str, int, float, type(None)),
    key_advice="use a str, a number, a bool or None",
)


_MAX_SIMPLE_KEY: Final = 1000
"""The greatest length of a YAML key without the indicator "?", in characters; YAML's limit is 1024."""

# Besides the quote, the backslash and the control characters: what YAML treats as a line break (NEL, LS, PS), as a byte
# order mark, or as not a character.
_ESCAPED: Final = '[\x00-\x1f"\\\\\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]'
_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def _yaml(value: object, indent: str) -> str:
    if isinstance(value, dict):
        below = indent + "  "
        entries = [f"{below}{_yaml_key(key)}: {_yaml(item, below)}" for key, item in value.items()]
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}" if entries else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item, indent) for item in value) + "]"
    return _YAML_LEAVES[type(value)](value)


def _yaml_key(key: object) -> str:
    text = _yaml(key, "")
    return text if len(text) <= _MAX_SIMPLE_KEY else f"? {text} "


def _yaml_str(text: str) -> str:
    return '"' + re.sub(_ESCAPED, _yaml_escape, text) + '"'


def _yaml_escape(match: re.Match[str]) -> str:
    character = match.group()
    return _SHORT_ESCAPES.get(character) or f"\\u{ord(character):04x}"


def _yaml_float(number: float) -> str:
    text = repr(number)
    if text in _YAML_SPECIAL_FLOATS:
        return _YAML_SPECIAL_FLOATS[text]
    mantissa, exponent, power = text.partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + exponent + power  # YAML 1.1 reads 1e-05 as a string


_YAML_SPECIAL_FLOATS: Final = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}
_YAML_LEAVES: Final[Mapping[type, Callable[[Any], str]]] = {
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: str,
    float: _yaml_float,
    str: _yaml_str,
}
