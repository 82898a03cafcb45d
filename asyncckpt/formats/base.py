"""What a format is, and which there are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from asyncckpt.disk.plan import FilePlan
    from asyncckpt.runtime.pacing import Pacer
    from asyncckpt.state.index import Index


class Format(Protocol):
    """A layout of state files. It does no I/O: it plans where the index, the arrays and its own structures lie.

    Reading needs no format at all: the manifest says where the index lies, and the index where the arrays lie.
    """

    @property
    def file_name(self) -> str:
        """The state file's name in a checkpoint's directory."""

    def plan(self, index: Index, pacer: Pacer) -> FilePlan:
        """Lay out a state file.

        Args:
            index: The tree and the arrays of the state. The format chooses the arrays' segments, encodes the index with
                them and places it.
            pacer: Paused between chunks of Python work.

        Raises:
            UnsupportedLeafError: The format cannot hold the state.
        """


_MODULES: Final = {"msgpack": "asyncckpt.formats.msgpack", "hdf5": "asyncckpt.formats.hdf5.layout"}


def find_format(name: str) -> Format:
    """Return a format by its name, importing what it needs (h5py, say) on first use."""
    return cast("Format", importlib.import_module(_MODULES[name]).FORMAT)
