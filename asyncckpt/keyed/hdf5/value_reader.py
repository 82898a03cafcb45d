"""Read a value through libhdf5, from a file of another program or from a file of ours that one has changed.

1. Groups become dicts, datasets arrays, scalar datasets scalars and text str. Soft links are followed.
2. External links, external storage, virtual datasets and filter plugins, which refer to other files or need other code,
   are refused before anything of them is read. So are elements that are not plain data, such as references.
3. A value that is small in the file and huge in memory is refused, and so is one that contains itself.
4. Attributes are not part of a value, except in a file of ours, which keeps small leaves in them, and the types of its
   groups and datasets (docs/format.md).
"""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import numpy as np

from asyncckpt.errors import UnsupportedFormatError
from asyncckpt.formats.key_names import PREFIX
from asyncckpt.libhdf5 import h5d, h5l, h5o, h5py, h5t
from asyncckpt.state.dtypes import dtype_from_plain, without_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from asyncckpt.keyed.location import FileLocation
    from asyncckpt.runtime.pacing import Pacer

PARTIAL: Final = f"{PREFIX}_partial__"
"""The attribute of a group of which some leaves have no HDF5 object."""
_MAX_DEPTH: Final = 100
_MAX_OBJECTS: Final = 1_000_000
_MAX_RATIO: Final = 1100
"""The highest compression ratio of deflate, the best of the usual filters."""
_UNSUSPICIOUS_NBYTES: Final = 64 << 20
_SLAB_NBYTES: Final = 4 << 20
_USUAL_FILTERS: Final = frozenset({1, 2, 3, 4, 5, 6, 32000})  # part of HDF5 itself, and h5py's lzf
_CONTAINERS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}


class ValueReader:
    """Reads one value."""

    def __init__(self, location: FileLocation, pacer: Pacer, *, is_ours: bool) -> None:
        self._location = location
        self._pacer = pacer
        self._is_ours = is_ours
        self._left = _MAX_OBJECTS
        self._claimed = self._stored = 0
        self._datasets: dict[int, Any] = {}
        self._above: list[h5py.HLObject] = []
        self.unknown_types: dict[str, str] = {}

    def entry(self, group: h5py.Group, name: str, parent: str) -> Any:
        """Read the value that a link refers to."""
        self._pacer.pause()
        path = f"{parent}/{name}"
        self._left -= 1
        if self._left < 0:
            raise self._refuse(path, f"has more than {_MAX_OBJECTS} objects below it")
        self.check_link(group, name, path)
        item = group[raw_name(name)]
        if isinstance(item, h5py.Group):
            value = self._group(item, path)
        elif isinstance(item, h5py.Dataset):
            value = self._dataset(item, path)
        else:
            raise self._refuse(path, "is neither a group nor a dataset")
        if self._is_ours and f"{PREFIX}_type__" in item.attrs:
            for each in np.atleast_1d(item.attrs[f"{PREFIX}_type__"]):
                self.unknown_types.setdefault(str(each), path.lstrip("/"))
        return value

    def check_link(self, group: h5py.Group, name: str, path: str) -> None:
        """Refuse a link that leads out of the file, or nowhere."""
        link = link_of(group, name)
        if isinstance(link, h5py.ExternalLink):
            raise self._refuse(path, f"is a link into another file ({link.filename!r})")
        if isinstance(link, h5py.SoftLink):
            self._check_soft(group, link, path)
        elif not isinstance(link, h5py.HardLink):
            raise self._refuse(path, "is a user-defined link")

    def _check_soft(self, group: h5py.Group, link: h5py.SoftLink, path: str) -> None:
        """Refuse a soft link whose path contains an external link, which libhdf5 would follow."""
        at: Any = group.file if link.path.startswith("/") else group
        for _ in range(_MAX_DEPTH):
            parts = [part for part in link.path.split("/") if part not in ("", ".")]
            for number, part in enumerate(parts):
                step = link_of(at, part) if isinstance(at, h5py.Group) else None
                if isinstance(step, h5py.SoftLink):
                    rest = "/".join([step.path, *parts[number + 1 :]])
                    at = at.file if step.path.startswith("/") else at
                    link = h5py.SoftLink(rest)
                    break
                if not isinstance(step, h5py.HardLink):
                    reason = "leads nowhere" if step is None else "leads out of the file"
                    raise self._refuse(path, f"is a link that {reason} ({link.path!r})")
                at = at[raw_name(part)]
            else:
                return
        raise self._refuse(path, "is a link that leads to itself")

    # --- groups -------------------------------------------------------------------------------------------------------

    def _group(self, group: h5py.Group, path: str) -> Any:
        if len(self._above) >= _MAX_DEPTH:
            raise self._refuse(path, f"is nested more than {_MAX_DEPTH} groups deep")
        if group in self._above:
            raise self._refuse(path, "contains itself")
        self._above.append(group)
        try:
            if self._is_ours:
                return self._marked_group(group, path)
            return {name: self.entry(group, name, path) for name in names_in(group)}
        finally:
            self._above.pop()

    def _marked_group(self, group: h5py.Group, path: str) -> Any:
        """Read a group of the layout that asyncckpt writes."""
        if PARTIAL in group.attrs:
            raise self._refuse(path, "has leaves without HDF5 objects, and another program changed the file")
        kind = _text(group.attrs.get(f"{PREFIX}_kind__", "dict"))
        if kind.startswith("reference"):
            return self._as(kind.partition(" ")[2], self.entry(group, "value", path))
        found = {}
        for name, is_leaf in entry_names(group):
            found[name] = self.attribute(group, name, path) if is_leaf else self.entry(group, name, path)
        if kind in ("dict", "OrderedDict"):
            is_among_ints = f"{PREFIX}_keys__" in group.attrs
            made = {
                int(name) if is_among_ints and name[0] != "%" else key_of(group, name): found[name] for name in found
            }
            if len(made) < len(found):
                raise self._refuse(path, "has several names that mean the same key")
            return made if kind == "dict" else OrderedDict(made)
        values = [found[name] for name in sorted(found, key=int)]
        if kind == "deque":
            maxlen = group.attrs.get(f"{PREFIX}_maxlen__")
            return deque(values, None if maxlen is None else int(maxlen))
        if kind not in _CONTAINERS:
            raise self._refuse(path, f"is a {kind}, which this release does not know")
        return _CONTAINERS[kind](values)

    def attribute(self, group: h5py.Group, name: str, path: str) -> Any:
        """Read a small leaf from an attribute."""
        attribute = group.attrs.get_id(name)
        space = attribute.get_space()
        if space.get_simple_extent_type() == h5py.h5s.NULL:
            return None
        self._check_type(attribute.get_type(), f"{path}/{name}")
        value = group.attrs[name]
        return value.tobytes() if isinstance(value, np.ndarray) else _plain(value)

    # --- datasets -----------------------------------------------------------------------------------------------------

    def _dataset(self, dataset: h5py.Dataset, path: str) -> Any:
        address = h5o.get_info(dataset.id).addr
        if address not in self._datasets:  # it may have several names
            self._datasets[address] = self._read_dataset(dataset, path)
        return self._datasets[address]

    def _read_dataset(self, dataset: h5py.Dataset, path: str) -> Any:
        self._check_layout(dataset, path)
        if dataset.shape is None:
            return None
        kind = _text(dataset.attrs.get(f"{PREFIX}_kind__", "")) if self._is_ours else ""
        text = h5py.check_string_dtype(dataset.dtype)
        if text is not None and text.length is None:
            return self._as(kind, self._texts(dataset, path))
        if dataset.shape == () and text is not None and text.encoding == "utf-8":
            return self._as(kind, dataset.asstr()[()])
        array = self._array(dataset)
        if self._is_ours:
            array = _with_attributes(array, dataset)
            if kind:
                return self._as(kind, array)
            return _plain(array[()]) if dataset.id.get_create_plist().get_layout() == h5d.COMPACT else array
        return array if dataset.shape else array[()]

    def _check_layout(self, dataset: h5py.Dataset, path: str) -> None:
        """Refuse a dataset that is stored elsewhere, needs a plugin, or is a decompression bomb, before it is read."""
        creation = dataset.id.get_create_plist()
        if creation.get_layout() == h5d.VIRTUAL:
            raise self._refuse(path, "is a virtual dataset, whose values are in other files")
        if creation.get_layout() != h5d.COMPACT and creation.get_external_count():
            raise self._refuse(path, "has its values in another file (external storage)")
        for number in range(creation.get_nfilters()):
            code = creation.get_filter(number)[0]
            if code not in _USUAL_FILTERS:
                raise self._refuse(path, f"is compressed with filter {code}, which needs a plugin")
        self._check_type(dataset.id.get_type(), path)
        if dataset.shape is None:
            return
        nbytes = math.prod(dataset.shape) * dataset.id.get_type().get_size()
        stored = min(dataset.id.get_storage_size(), self._location.path.stat().st_size)
        self._claimed += nbytes
        self._stored += stored
        if self._claimed > max(_UNSUSPICIOUS_NBYTES, _MAX_RATIO * self._stored):
            raise self._refuse(path, f"takes {nbytes} bytes of memory, but only {stored} in the file")

    def _check_type(self, type_id: Any, path: str) -> None:
        """Refuse elements that are not plain data."""
        todo = [type_id]
        while todo:
            found = todo.pop()
            kind = found.get_class()
            if kind == h5t.REFERENCE:
                raise self._refuse(path, "contains object references, which are meaningless outside of its file")
            if kind == h5t.VLEN:
                raise self._refuse(path, "contains rows of different lengths")
            if kind == h5t.COMPOUND:
                members = [found.get_member_type(number) for number in range(found.get_nmembers())]
                if any(each.get_class() == h5t.STRING and each.is_variable_str() for each in members):
                    raise self._refuse(path, "contains records with text of variable length")
                todo += members
            elif kind == h5t.ARRAY:
                todo.append(found.get_super())

    def _texts(self, dataset: h5py.Dataset, path: str) -> Any:
        """Read text of variable length: a scalar as str, others as an array of StringDType."""
        strings = dataset.asstr(errors="surrogateescape")
        if dataset.shape == ():
            return str(strings[()])
        array = np.empty(dataset.shape, np.dtypes.StringDType())
        held = 0
        for slab in _slabs(dataset.shape, 16):
            part = strings[slab]
            held += sum(map(len, part.flat))
            if held > max(_UNSUSPICIOUS_NBYTES, _MAX_RATIO * self._location.path.stat().st_size):
                raise self._refuse(path, "has text that takes far more memory than the file has bytes")
            array[slab] = part
            self._pacer.pause()
        return array

    def _array(self, dataset: h5py.Dataset) -> NDArray[Any]:
        """Read an array in chunks, because a call into libhdf5 holds the GIL for as long as it takes."""
        array: NDArray[Any] = np.empty(dataset.shape, dataset.dtype)
        plain = without_metadata(array.dtype)  # without h5py's metadata, which states cannot hold
        if dataset.shape == ():
            dataset.read_direct(array)
            return array.view(plain)
        for slab in _slabs(dataset.shape, dataset.dtype.itemsize, (dataset.chunks or (1,))[0]):
            array[slab] = dataset[slab]
            self._pacer.pause()
        return array.view(plain)

    def _as(self, kind: str, value: Any) -> Any:
        """Convert a value to the kind of leaf that its dataset names."""
        if kind in ("list", "tuple"):
            return _CONTAINERS[kind](value.tolist())
        if kind == "int":
            return int(value, 0)
        if kind in ("str", "str_") and isinstance(value, np.ndarray):
            value = value.tobytes().decode("utf-8", "surrogatepass")
        if kind == "str_":
            return np.str_(value)
        if kind == "bytes":
            return value.tobytes() if isinstance(value, np.ndarray) else value
        if kind == "bytes_":
            return np.bytes_(value.tobytes())
        return value[()] if kind == "scalar" else value

    def _refuse(self, path: str, reason: str) -> UnsupportedFormatError:
        message = f"{self._location.name}: {path} {reason}: asyncckpt cannot read it; h5py may, if you trust the file"
        return UnsupportedFormatError(message)


def _slabs(shape: tuple[int, ...], itemsize: int, step: int = 1) -> Iterator[tuple[slice, ...]]:
    """Yield runs of rows of a bounded size, in multiples of `step` rows."""
    row = math.prod(shape[1:]) * itemsize
    rows = max(_SLAB_NBYTES // max(row, 1) // step * step, step)
    for start in range(0, shape[0], rows):
        yield (slice(start, min(start + rows, shape[0])),)


def _with_attributes(array: NDArray[Any], dataset: h5py.Dataset) -> NDArray[Any]:
    """Return an array with the dtype and the shape that are attributes of its dataset."""
    note = dataset.attrs.get(f"{PREFIX}_dtype__")
    shape = dataset.attrs.get(f"{PREFIX}_shape__")
    if note is not None:
        dtype = dtype_from_plain(json.loads(_text(note)))
        lengths = array.shape[: dataset.ndim]
        if dtype.itemsize == 0:
            array = np.ndarray(lengths[:-1], dtype)
        else:
            array = np.frombuffer(bytearray(array.tobytes()), dtype).reshape(lengths)
    return array if shape is None else array.reshape(tuple(shape))


def _plain(value: Any) -> Any:
    """Return a Python scalar for a value of a type that Python scalars are stored as."""
    if isinstance(value, np.bool_ | np.int64 | np.uint64 | np.float64 | np.complex128):
        return value.item()
    return value


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def names_in(group: h5py.Group) -> list[str]:
    """Return the names of a group's links. Bytes that are not UTF-8 become surrogates, as in the names of files."""
    return [name if isinstance(name, str) else name.decode("utf-8", "surrogateescape") for name in group]


def raw_name(name: str) -> str | bytes:
    """Return a name as h5py takes it."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape")


def link_of(group: h5py.Group, name: str) -> Any:
    """Return h5py's object for a link; None if there is no such link, or it is a user-defined one."""
    raw = name.encode("utf-8", "surrogateescape")
    if not group.id.links.exists(raw):
        return None
    kind = group.id.links.get_info(raw).type
    if kind == h5l.TYPE_HARD:
        return h5py.HardLink()
    if kind == h5l.TYPE_SOFT:
        return h5py.SoftLink(group.id.links.get_val(raw).decode("utf-8", "surrogateescape"))
    return h5py.ExternalLink(*map(os.fsdecode, group.id.links.get_val(raw))) if kind == h5l.TYPE_EXTERNAL else None


def entry_names(group: h5py.Group) -> Iterator[tuple[str, bool]]:
    """Yield the names of the entries of a group in our layout, and whether each is an attribute."""
    links = dict.fromkeys(names_in(group))
    yield from ((name, True) for name in group.attrs if not name.startswith(PREFIX) and name not in links)
    yield from ((name, False) for name in links if not name.startswith(PREFIX))


def key_of(group: h5py.Group, name: str) -> str:
    """Return the key that a name means, in a group in our layout."""
    if "%~" in name:  # a shortened name
        name = _text(group.attrs.get(f"{PREFIX}_name_{name[-32:]}__", name))
    return "" if name == "%" else unquote_to_bytes(name).decode("utf-8", "surrogatepass")
