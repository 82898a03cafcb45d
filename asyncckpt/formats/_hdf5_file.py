"""The metadata of one HDF5 file, written by h5py's low-level interface, which costs a third of the high-level one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5g, h5o, h5p, h5s, h5t

from asyncckpt.memory import PAGE_NBYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from asyncckpt.formats._hdf5_leaves import Leaf
    from asyncckpt.formats._sparse import SparseFile

VALUE_MAX_NBYTES: Final = 1 << 15
"""Larger values are contiguous datasets: what lies in an object header ends at 64 KiB."""
_CACHE_NBYTES: Final = 1 << 18  # HDF5 writes out what is beyond it on the way, not all at once at the end

_ALIGNED_MIN_NBYTES: Final = 1 << 16  # what the block engine writes from where it lies

TEXT: Final = h5t.py_create(h5py.string_dtype(), logical=True)
"""Strings of any length, in UTF-8; as h5py writes a str."""
_TEXT_IN_MEMORY: Final = h5t.py_create(h5py.string_dtype())
SCALAR: Final = h5s.create(h5s.SCALAR)


class MetadataFile:
    """An HDF5 file being made. Links and attributes keep the order in which they were made."""

    def __init__(self, file: SparseFile, *, begin: int | None = None) -> None:
        """Make the file.

        Args:
            file: What HDF5 writes to.
            begin: Where, at the earliest, everything but the root group's own header lies, a multiple of
                `asyncckpt.memory.PAGE_NBYTES` and at least two of them; then each object is placed behind the one that
                was made before, and arrays of 64 KiB or more on pages. None leaves the placing to HDF5.
        """
        self._spaces: dict[tuple[int, ...], Any] = {(): SCALAR}
        self._utf8_link = h5p.create(h5p.LINK_CREATE)
        self._utf8_link.set_char_encoding(h5t.CSET_UTF8)
        self._group_creation = h5p.create(h5p.GROUP_CREATE)
        _keep_order(self._group_creation)
        self._early = h5p.create(h5p.DATASET_CREATE)
        self._early.set_layout(h5d.CONTIGUOUS)
        self._early.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        self._early.set_fill_time(h5d.FILL_TIME_NEVER)
        self._early.set_obj_track_times(False)
        self._inline = h5p.create(h5p.DATASET_CREATE)
        self._inline.set_layout(h5d.COMPACT)
        self._inline.set_obj_track_times(False)
        self._file = _create(file, is_sequential=begin is not None)
        self.root = h5g.open(self._file, b"/")
        if begin is not None:
            self._reserve(begin)

    @property
    def end(self) -> int:
        """Where the space that HDF5 has given away ends."""
        found: int = self._file.get_filesize()
        return found

    def address_of(self, path: bytes) -> int | None:
        """Return where the object that a path leads to lies, or None if there is none."""
        if not self.root.links.exists(path):
            return None
        found: int = h5o.get_info(self.root, path).addr
        return found

    def close(self) -> None:
        """Write out what HDF5 still holds."""
        self._file.close()

    def group(self, holder: Any, name: bytes) -> Any:
        """Make a group."""
        return h5g.create(holder, name, lcpl=self._link(name), gcpl=self._group_creation)

    def early_dataset(self, holder: Any, name: bytes, type_id: Any, shape: tuple[int, ...]) -> Any:
        """Make a dataset whose place in the file is chosen now and whose bytes are left alone."""
        return h5d.create(holder, name, type_id, self.space(shape), dcpl=self._early, lcpl=self._link(name))

    def leaf_dataset(self, holder: Any, name: bytes, leaf: Leaf) -> Any:
        """Make a dataset of a small value."""
        layout = self._inline if leaf.nbytes <= VALUE_MAX_NBYTES else self._early
        dataset = h5d.create(holder, name, leaf.type_id, self._leaf_space(leaf), dcpl=layout, lcpl=self._link(name))
        if leaf.data is not None and leaf.data.size:
            dataset.write(h5s.ALL, h5s.ALL, leaf.data, _in_memory(leaf.type_id))
        return dataset

    def hard_link(self, holder: Any, name: bytes, path: bytes) -> None:
        """Give what lies at a path, from the root, one more name."""
        holder.links.create_hard(name, self.root, path, lcpl=self._link(name))

    def attach_leaf(self, target: Any, name: bytes, leaf: Leaf) -> None:
        """Make an attribute of a small value."""
        _attach(target, name, leaf.data, leaf.type_id, self._leaf_space(leaf))

    def attach_text(self, target: Any, name: bytes, text: str) -> None:
        """Make an attribute of a text."""
        _attach(target, name, np.array(text, object), TEXT, SCALAR)

    def attach_texts(self, target: Any, name: bytes, texts: tuple[str, ...]) -> None:
        """Make an attribute of a row of texts."""
        _attach(target, name, np.array(texts, object), TEXT, self.space((len(texts),)))

    def attach_int(self, target: Any, name: bytes, value: int) -> None:
        """Make an attribute of an int."""
        _attach(target, name, np.array(value, np.int64), h5t.NATIVE_INT64, SCALAR)

    def attach_ints(self, target: Any, name: bytes, values: tuple[int, ...]) -> None:
        """Make an attribute of a row of ints."""
        _attach(target, name, np.array(values, np.int64), h5t.NATIVE_INT64, self.space((len(values),)))

    def space(self, shape: tuple[int, ...]) -> Any:
        """Return the dataspace of a shape."""
        space = self._spaces.get(shape)
        if space is None:
            space = self._spaces[shape] = h5s.create_simple(shape)
        return space

    def _reserve(self, begin: int) -> None:
        """Take the space before `begin`, which is somebody else's."""
        is_aligned = begin - PAGE_NBYTES >= _ALIGNED_MIN_NBYTES
        self.early_dataset(self.root, b"reserve", h5t.STD_U8LE, (begin - (PAGE_NBYTES if is_aligned else 512),))
        if self.end < begin:
            message = f"HDF5 placed {begin} reserved bytes before {self.end}"
            raise AssertionError(message)

    def _leaf_space(self, leaf: Leaf) -> Any:
        return h5s.create(h5s.NULL) if leaf.data is None else self.space(leaf.data.shape)

    def _link(self, name: bytes) -> Any:
        return None if name.isascii() else self._utf8_link  # a list of properties costs a tenth of a dataset


def _attach(target: Any, name: bytes, data: NDArray[Any] | None, type_id: Any, space: Any) -> None:
    attribute = h5a.create(target, name, type_id, space)
    if data is not None and data.size:
        attribute.write(data, _in_memory(type_id))


def _in_memory(type_id: Any) -> Any:
    """Return the type of data here for a type in the file: the same, but that texts are objects."""
    return _TEXT_IN_MEMORY if type_id is TEXT else type_id


def _create(file: SparseFile, *, is_sequential: bool) -> Any:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5fd.fileobj_driver, file)
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    cache = access.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = _CACHE_NBYTES
    cache.incr_mode = cache.flash_incr_mode = cache.decr_mode = 0
    access.set_mdc_config(cache)
    creation = h5p.create(h5p.FILE_CREATE)
    if is_sequential:
        access.set_alignment(_ALIGNED_MIN_NBYTES, PAGE_NBYTES)
        creation.set_file_space_strategy(h5f.FSPACE_STRATEGY_NONE, False, 1)  # noqa: FBT003 - h5py takes it by position
    else:
        creation.set_file_space_strategy(h5f.FSPACE_STRATEGY_PAGE, False, 1)  # noqa: FBT003 - as above
        creation.set_file_space_page_size(PAGE_NBYTES)
    _keep_order(creation)
    return h5f.create(b"state.h5", h5f.ACC_TRUNC, fcpl=creation, fapl=access)


def _keep_order(creation: Any) -> None:
    """Let readers see entries in the order in which they were made; save the room that times would take."""
    creation.set_link_creation_order(h5p.CRT_ORDER_TRACKED)
    creation.set_attr_creation_order(h5p.CRT_ORDER_TRACKED)
    creation.set_obj_track_times(False)
