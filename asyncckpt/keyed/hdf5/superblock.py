"""The superblock and the root group of an HDF5 keyed file, through which other programs find the keys.

A commit writes a new root group and changes the superblock. The HDF5 objects below the root group are never changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from asyncckpt.formats.hdf5 import structures as hb
from asyncckpt.formats.hdf5.leaves import Leaf
from asyncckpt.formats.hdf5.metadata import MetadataFile, Node
from asyncckpt.libhdf5 import h5t
from asyncckpt.runtime.pacing import Pacer

if TYPE_CHECKING:
    from collections.abc import Iterable

SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_NBYTES: Final = hb.SUPERBLOCK_NBYTES
CATALOG_NAME: Final = b"__asyncckpt__"
DIGEST_NAME: Final = b"__asyncckpt_digest__"


def superblock(end: int, root: int) -> bytes:
    """Return the superblock of a file that ends at `end` and has the header of its root group at `root`."""
    made = np.frombuffer(bytearray(hb.superblock(end, root)), np.uint8)
    hb.seal(made, [(0, SUPERBLOCK_NBYTES)], Pacer(yields=False))
    return made.tobytes()


def root_group(
    begin: int, links: Iterable[tuple[str, int]], catalog: tuple[int, int, bytes], pacer: Pacer
) -> tuple[int, list[bytes]]:
    """Return a root group.

    Args:
        begin: Its offset.
        links: The names of the keys, each with the address of its object.
        catalog: Offset, size and xxh3-128 of the catalog, which is a dataset with its digest as an attribute.
        pacer: Paused between chunks.

    Returns:
        The address of its header, and its bytes, in chunks.
    """
    file = MetadataFile(pacer)
    for name, address in links:
        file.link(file.root, name.encode(), Node(b"", address=address))
    offset, nbytes, digest = catalog
    dataset = file.dataset(file.root, CATALOG_NAME, h5t.STD_U8LE, (nbytes,), nbytes)
    dataset.data_address = offset
    file.attach(dataset, DIGEST_NAME, Leaf(h5t.STD_U8LE, np.frombuffer(digest, np.uint8)))
    file.arrange(begin)
    return file.root.address, [bytes(chunk.source) for chunk in file.render(None)]
