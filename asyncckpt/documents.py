"""The two small documents of a checkpoint as bytes: ``training_info.json`` and ``config.yaml``.

1. Pure: values in, bytes out, or the reverse; nothing here touches the disk.
2. What is written reads back equal, with `json` and with PyYAML's ``safe_load`` (YAML 1.1) respectively, after the
   conversions to plain values that the functions name. What cannot is refused with its path, never changed silently.
3. Values are converted before they are written: the writers below see only None, bool, int, float, str, list and dict,
   of exactly these types, without cycles and at most `MAX_DEPTH` deep.
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

MAX_DEPTH: Final = 100
"""Containers within containers that a document may have; PyYAML gives up at a few hundred."""

TRAINING_INFO: Final = "training_info"
"""The first part of a path in an error about a training_info."""

RUN_CONFIG: Final = "run_config"
"""The first part of a path in an error about a run_config."""


def normalize_training_info(info: Mapping[str, object]) -> dict[str, Any]:
    """Copy a training_info deeply into plain values, so that later changes of the caller's are not seen.

    Args:
        info: A mapping with str keys, of None, bool, int, float (NaN and infinities too), str, numbers with a shape
            of () (numpy scalars, 0-d arrays of numpy, torch and JAX), and mappings, lists and tuples of these.

    Returns:
        The copy that `parse_training_info` gives back equal: numbers of other libraries as int, float or bool, mappings
        as dict, tuples as list.

    Raises:
        UnsupportedLeafError: Something else is in it, such as an array with dimensions or a key that is no str, or it
            contains itself or is nested more than 100 deep. The error names the path, like ``training_info/eval/loss``.
    """
    return _TRAINING_INFO_RULES.copy(info, TRAINING_INFO)


def training_info_bytes(info: Mapping[str, object]) -> bytes:
    """Write a training_info as UTF-8 JSON that ends with a newline.

    NaN and infinities are written as Python's `json` does (``NaN``, ``Infinity``), which strict JSON lacks.

    Args:
        info: What `normalize_training_info` accepts.

    Raises:
        UnsupportedLeafError: As `normalize_training_info`.
    """
    return encode_training_info(normalize_training_info(info))


def encode_training_info(plain: Mapping[str, Any]) -> bytes:
    """Write what `normalize_training_info` returned, as `training_info_bytes` does."""
    text = json.dumps(plain, ensure_ascii=False, indent=2) + "\n"
    # A lone surrogate has no UTF-8 form; backslashreplace writes it as \udXXX, which is JSON's own escape for it.
    return text.encode("utf-8", "backslashreplace")


def parse_training_info(data: bytes) -> dict[str, Any]:
    """Read what `training_info_bytes` wrote.

    Raises:
        ValueError: The bytes are not UTF-8 JSON, or hold something other than an object.
    """
    try:
        info = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON document in UTF-8: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"expected a JSON object, found {type(info).__name__}")  # noqa: TRY004 - bytes are a value
    return info


def run_config_bytes(config: object) -> bytes:
    """Write a run's configuration as flow-style YAML 1.1 in UTF-8, with strings always in double quotes.

    Args:
        config: A mapping, a dataclass instance, or an object with ``model_dump()``; nested ones too. Inside may be
            None, bool, int, float, str, numbers with a shape of () (they become plain numbers), Enums (their values),
            paths (str), and lists and tuples of these (lists). Keys may be any of these but containers.

    Raises:
        UnsupportedLeafError: Something else is in it, two keys become equal (an Enum and its value), or it contains
            itself or is nested more than 100 deep. The error names the path, as in ``run_config/optimizer/lr``.
    """
    plain = _RUN_CONFIG_RULES.copy(config, RUN_CONFIG)
    return (_yaml(plain, "") + "\n").encode()


_Items: TypeAlias = list[tuple[object, object]]


class _Rules(NamedTuple):
    """The walk that copies a value into plain ones, and what one kind of document accepts on the way."""

    unwrap: Callable[[object], object]
    """Gives what stands for a value, such as an Enum's value; most values stand for themselves."""
    items_of: Callable[[object], _Items | None]
    """Gives the items of what becomes a dict, None for all else."""
    key_types: tuple[type, ...]
    key_advice: str

    def copy(self, value: object, name: str) -> dict[str, Any]:
        """Give the plain copy of a whole document."""
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
        stand_in = self.unwrap(key)
        if not isinstance(stand_in, self.key_types):
            raise _refused(path, f"cannot have the key {_described(key)}; {self.key_advice}")
        return _leaf(stand_in, path)

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
    """Give the Python value of a number with a shape of (), whatever library it is of; others as they are."""
    if getattr(value, "shape", None) != () or (isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "mM"):
        return value  # a datetime64 would become an int and lose its meaning
    item = getattr(value, "item", None)
    number = item() if callable(item) else value
    if isinstance(number, np.floating):  # longdouble's item() is a longdouble
        return float(number)
    return number if isinstance(number, int | float | str) else value  # a struct's item() is a tuple


def _unwrap_config(value: object) -> object:
    while isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _unwrap_number(value)


_SURROGATE_PAIR: Final = "[\ud800-\udbff][\udc00-\udfff]"


def _leaf(value: object, path: tuple[str, ...]) -> bool | float | str | None:
    """Give a leaf as exactly a None, bool, int, float or str, also where it is of a subclass."""
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
        except ValueError as error:  # Python reads and writes decimal numbers of a limited length only
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
"""Characters of a key that YAML reads without being told that a key comes; its limit is 1024."""

# Beside the quote, the backslash and the control characters: what YAML takes for a line break (NEL, LS, PS), for a byte
# order mark, or for no character at all.
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
    return mantissa + ("" if "." in mantissa else ".0") + exponent + power  # YAML 1.1 takes 1e-05 for a string


_YAML_SPECIAL_FLOATS: Final = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}
_YAML_LEAVES: Final[Mapping[type, Callable[[Any], str]]] = {
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: str,
    float: _yaml_float,
    str: _yaml_str,
}
