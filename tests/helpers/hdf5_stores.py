"""Stores of HDF5 files, opened without a `Checkpointer`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from asyncckpt.disk.ops import DiskOps
from asyncckpt.keyed.hdf5.store import HDF5Store
from asyncckpt.keyed.location import FileLocation
from asyncckpt.keyed.values import capture_live
from asyncckpt.runtime.context import JobContext

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asyncckpt.keyed.location import Rewrite

WORK = JobContext()


@contextmanager
def opened(
    path: Path, disk: DiskOps | None = None, *, trusted: bool = False, rewrite: Rewrite = True
) -> Iterator[HDF5Store]:
    """Open a store, and close it."""
    store = HDF5Store(FileLocation(path, disk or DiskOps(), rewrite=rewrite), WORK, trusted=trusted)
    try:
        yield store
    finally:
        store.close()


def put(store: HDF5Store, key: str, value: object) -> None:
    """Stage a value."""
    store.put(key, capture_live(value, key, WORK), WORK)


def read(store: HDF5Store, key: str) -> Any:
    """Read a value."""
    return store.read(key, WORK).value
