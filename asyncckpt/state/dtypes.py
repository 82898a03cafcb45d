"""Describe dtypes as plain data, and make dtypes from untrusted descriptions."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import numpy as np

from asyncckpt.errors import UnsupportedFormatError, UnsupportedLeafError

# Compiled by `re` on first use, not on import.
_SIMPLE: Final = r"[<>|][biufcmMSUV?]\d*(\[\d*[A-Za-zμ]{1,8}\])?"
_EXTENSION: Final = r"bfloat16|float\d+_\w+|u?int[1-7]"
_IS_LITTLE: Final = sys.byteorder == "little"


def _aliases() -> dict[str, tuple[type[np.generic], str]]:
    found = {}
    for name in _ALIAS_NAMES:
        dtype: np.dtype[Any] = np.dtype(getattr(np, name))
        if np.dtype(dtype.str).char != dtype.char:
            found[name] = dtype.type, dtype.str
    return found


_ALIAS_NAMES: Final = ("short", "intc", "long", "longlong", "ushort", "uintc", "ulong", "ulonglong", "longdouble")
ALIASES: Final = _aliases()
"""numpy's second types for C's numbers of the same size and sign, such as `np.longlong`, by name: each type, and its
`dtype.str`, which is that of the first type."""
_ALIASED: Final = {np.dtype(scalar).char: name for name, (scalar, _) in ALIASES.items()}


def dtype_to_plain(dtype: np.dtype[Any]) -> object:
    """Describe a dtype without objects, including byte order, field offsets, titles and alignment.

    A simple dtype is described by its `dtype.str` ("<f4", ">i8", "<M8[ns]"), with the name of an alias if it is one; a
    dtype of the package ml_dtypes by its name ("bfloat16", or ">bfloat16" if it is big-endian); a structured one by a
    map of its fields; and a sub-array, which occurs only in structures, by its base and shape.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"base": dtype_to_plain(base), "shape": list(shape)}
    if dtype.names is not None:
        fields = []
        for name in dtype.names:
            field, offset, *title = dtype.fields[name]  # type: ignore[index]
            fields.append([name, dtype_to_plain(field), offset, title[0] if title else None])
        return {
            "fields": fields,
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
            "record": dtype.type is np.record,
        }
    if is_extension(dtype):
        return dtype.name if dtype.isnative == _IS_LITTLE else f">{dtype.name}"
    if dtype.char in _ALIASED:
        return {"alias": _ALIASED[dtype.char], "of": dtype.str}
    return dtype.str


def dtype_from_plain(plain: Any) -> np.dtype[Any]:
    """Make a dtype from its description.

    Raises:
        ValueError: The description is not one that `dtype_to_plain` makes, or holds Python objects.
        UnsupportedFormatError: The dtype belongs to ml_dtypes, which is not installed or too old.
    """
    if isinstance(plain, str):
        if re.fullmatch(_EXTENSION, plain.removeprefix(">")):
            return _extension(plain.removeprefix(">")).newbyteorder(">" if plain[0] == ">" else "<")
        if not re.fullmatch(_SIMPLE, plain):
            message = f"not a dtype: {plain[:40]!r}"
            raise ValueError(message)
        return _checked(lambda: np.dtype(plain))
    if isinstance(plain, dict) and plain.keys() == {"base", "shape"}:
        return _checked(lambda: np.dtype((dtype_from_plain(plain["base"]), tuple(plain["shape"]))))
    if isinstance(plain, dict) and plain.keys() == {"fields", "itemsize", "aligned", "record"}:
        return _checked(lambda: _structure(plain))
    if isinstance(plain, dict) and plain.keys() == {"alias", "of"}:
        return _alias(plain["alias"], dtype_from_plain(plain["of"]))
    message = f"not a dtype: {type(plain).__name__}"
    raise ValueError(message)


def has_alias(plain: Any) -> bool:
    """Whether the description of a dtype names an alias, which readers of the first release do not know."""
    if type(plain) is not dict:
        return False
    return "alias" in plain or any(
        map(has_alias, [plain.get("base"), *(field[1] for field in plain.get("fields", ()))])
    )


def is_kept(dtype: np.dtype[Any]) -> bool:
    """Whether the description of a dtype is complete.

    It does not include metadata, the fields of a number or text (a "union"), a scalar type that is a class of the user,
    or a title that is not a str.
    """
    try:
        return not metadata_of(dtype) and _is_same(dtype, without_metadata(dtype))
    except (ValueError, TypeError):
        return False


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Check that arrays of a dtype without objects come back with it.

    Raises:
        UnsupportedLeafError: They would not; the path is empty.
    """
    if dtype.isbuiltin == 2 and dtype.type.__module__.partition(".")[0] != "ml_dtypes":  # noqa: PLR2004 - a user's
        message = f"arrays of the dtype {dtype!r} cannot be saved: it is neither numpy's nor ml_dtypes'"
        raise UnsupportedLeafError(message, path="")
    is_simple = dtype.names is None and dtype.metadata is None and dtype.kind != "V"
    if not is_simple and not is_kept(dtype):
        metadata = ", ".join(metadata_of(dtype))
        what = f"without its metadata {metadata}" if metadata else "as another"
        message = f"the dtype {dtype!r} would come back {what}: view the data as plain numbers or a plain structure"
        raise UnsupportedLeafError(message, path="")


def metadata_of(dtype: np.dtype[Any]) -> list[str]:
    """Return the names of a dtype's metadata, including that of fields and sub-arrays."""
    # All bytes that h5py has read have "h5py_encoding".
    names = [str(name) for name in dtype.metadata or () if name != "h5py_encoding"]
    parts = [field[0] for field in (dtype.fields or {}).values()] + ([dtype.subdtype[0]] if dtype.subdtype else [])
    return sorted({*names, *(name for part in parts for name in metadata_of(part))})


def without_metadata(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the same dtype without its metadata, and that of its fields."""
    return dtype_from_plain(dtype_to_plain(dtype))


def _is_same(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    own, others = (
        (d.type, d.str, d.itemsize, d.alignment, d.isalignedstruct, d.names, d.subdtype is None) for d in (one, other)
    )
    if own != others:
        return False
    if one.subdtype is not None:
        return one.shape == other.shape and _is_same(one.base, other.base)
    if one.names is None:
        return one == other
    return all(
        found[1:] == made[1:] and all(type(title) is str for title in found[2:]) and _is_same(found[0], made[0])
        for found, made in ((one.fields[name], other.fields[name]) for name in one.names)  # type: ignore[index]
    )


def is_extension(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype is one of ml_dtypes' (bfloat16, float8_e4m3fn, int4...)."""
    return dtype.type.__module__.partition(".")[0] == "ml_dtypes"


def _structure(plain: dict[str, Any]) -> np.dtype[Any]:
    names, formats, offsets, titles = zip(*plain["fields"], strict=True) if plain["fields"] else ((), (), (), ())
    layout: dict[str, Any] = {
        "names": list(names),
        "formats": [dtype_from_plain(each) for each in formats],
        "offsets": list(offsets),
        "itemsize": plain["itemsize"],
    }
    if any(title is not None for title in titles):
        layout["titles"] = list(titles)
    made: np.dtype[Any] = np.dtype(layout, align=bool(plain["aligned"]))  # type: ignore[call-overload]
    if made.names is None:  # a structure without fields
        made = np.dtype([])
    return np.dtype((np.record, made)) if plain["record"] else made


def _alias(name: Any, plain: np.dtype[Any]) -> np.dtype[Any]:
    """Return the alias of a dtype, or the dtype itself on a machine where the alias differs."""
    if name not in _ALIAS_NAMES:
        message = f"not a dtype: the alias {name!r:.40}"
        raise ValueError(message)
    made: np.dtype[Any] = np.dtype(getattr(np, name)).newbyteorder(plain.byteorder)
    return made if made == plain else plain


def _checked(make: Any) -> np.dtype[Any]:
    try:
        made: np.dtype[Any] = make()
    except (TypeError, ValueError, OverflowError, SyntaxError, AttributeError) as error:
        message = f"not a dtype: {error}"
        raise ValueError(message) from error
    if made.hasobject:
        message = "a dtype with Python objects cannot come from a file"
        raise ValueError(message)
    return made


def _extension(name: str) -> np.dtype[Any]:
    try:
        import ml_dtypes  # optional; only needed if its dtypes were saved
    except ModuleNotFoundError as error:
        message = f"an array has the dtype {name}: install the package ml_dtypes to load it"
        raise UnsupportedFormatError(message) from error
    found = getattr(ml_dtypes, name, None)
    if found is None:
        message = f"the installed ml_dtypes has no dtype {name!r}: install a later one"
        raise UnsupportedFormatError(message)
    made: np.dtype[Any] = np.dtype(found)
    return made
