"""The systems that are measured. A system's module is imported only in the process that measures it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from benchmarks.systems.base import System


class Entry(NamedTuple):
    """A system, without importing it."""

    name: str
    target: str
    """Its module and class."""
    package: str
    """The distribution whose version the report names."""
    syncs: str
    """What it syncs itself; the harness adds the rest to its durable time."""
    usage: str


MSGPACK: Final = "asyncckpt msgpack"
HDF5: Final = "asyncckpt hdf5"
OURS: Final = (MSGPACK, HDF5)
MSGPACK_TENSORS: Final = "asyncckpt msgpack, tensors"
HDF5_TENSORS: Final = "asyncckpt hdf5, tensors"
OURS_OF_TENSORS: Final = (MSGPACK_TENSORS, HDF5_TENSORS)
"""The same, with the arrays as tensors of PyTorch."""

_OURS_USAGE: Final = "`await manager.save(step, state)`, then `await handle`; every load verifies digests"
_TENSORS_USAGE: Final = "as before, with the arrays as tensors of PyTorch, and tensors loaded"
_FILE_USAGE: Final = "the state is copied in a thread (blocked until then) and written in a thread: `asyncio.to_thread`"

SYSTEMS: Final = {
    entry.name: entry
    for entry in (
        Entry(MSGPACK, "ours:AsyncckptMsgpack", "asyncckpt", "everything", _OURS_USAGE),
        Entry(HDF5, "ours:AsyncckptHdf5", "asyncckpt", "everything", f'{_OURS_USAGE}; `format="hdf5"`'),
        Entry(MSGPACK_TENSORS, "our_tensors:MsgpackTensors", "asyncckpt", "everything", _TENSORS_USAGE),
        Entry(HDF5_TENSORS, "our_tensors:Hdf5Tensors", "asyncckpt", "everything", f'{_TENSORS_USAGE}; `format="hdf5"`'),
        Entry(
            "Orbax",
            "orbax:Orbax",
            "orbax-checkpoint",
            "array data",
            "`AsyncCheckpointer(StandardCheckpointHandler()).save`, then `wait_until_finished`",
        ),
        Entry(
            "torch DCP",
            "dcp:TorchDcp",
            "torch",
            "files",
            "`dcp.async_save` with one `DefaultStager`, kept for all saves, staging in a thread; blocked until the"
            " staging is complete",
        ),
        Entry(
            "torch_checkpointing",
            "torch_ckpt:TorchCheckpointing",
            "torch_checkpointing",
            "nothing",
            "`CheckpointManager` with async saves, its CPU configuration and `use_direct_io=False` (its direct writes"
            " fail on ext4); blocked until `manager.lock()` is free",
        ),
        Entry(
            "Moonclip",
            "moonclip_:Moonclip",
            "moonclip",
            "files",
            "`CheckpointManager(root).save(step, model=model)`, then `flush`; its defaults (deltas and zstd)",
        ),
        Entry("safetensors", "files:Safetensors", "safetensors", "nothing", _FILE_USAGE),
        Entry("torch.save", "files:TorchSave", "torch", "nothing", _FILE_USAGE),
        Entry("np.savez", "files:NumpySavez", "numpy", "nothing", _FILE_USAGE),
        Entry("pickle 5", "files:Pickle5", "numpy", "nothing", _FILE_USAGE),
        Entry("plain h5py", "files:PlainH5py", "h5py", "nothing", f"{_FILE_USAGE}; one dataset an array"),
    )
}
NAMES: Final = tuple(SYSTEMS)
PEERS: Final = tuple(name for name in NAMES if name not in OURS + OURS_OF_TENSORS)


def system_class(name: str) -> type[System]:
    """Import a system; ImportError if its package is not installed."""
    module, _, attribute = SYSTEMS[name].target.partition(":")
    found: type[System] = getattr(import_module(f"benchmarks.systems.{module}"), attribute)
    return found
