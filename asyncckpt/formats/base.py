"""The protocol of formats, and their names."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from asyncckpt.disk.plan import FilePlan
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.index import Index


class Format(Protocol):
    """A module that lays out state files, without I/O: it plans where the index, arrays and its own structures are.

    Reading needs no format: the manifest has the location of the index, and the index has those of the arrays.
    """

    @property
    def file_name(self) -> str:
        """The name of the state file."""

    def plan(self, index: Index, pacer: Pacer) -> FilePlan:
        """Lay out a state file.

        Args:
            index: The tree and the arrays of the state. The format chooses the segments of the arrays, and encodes and
                places the index.
            pacer: Paused between chunks of Python work.

        Raises:
            UnsupportedLeafError: The format cannot hold the state.
        """


_MODULES: Final = {"msgpack": "asyncckpt.formats.msgpack", "hdf5": "asyncckpt.formats.hdf5.layout"}


def find_format(name: str) -> Format:
    """Return a format by its name. Its module, and h5py, are imported on first use."""
    return cast("Format", importlib.import_module(_MODULES[name]))
