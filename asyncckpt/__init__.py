"""Checkpointing for asyncio programs that never blocks the event loop.

`CheckpointManager` saves and loads checkpoints in a directory, and `asyncckpt.blocking` has one for programs without an
event loop. `Checkpointer` keeps values under keys in one file. `load` reads a checkpoint.
"""

import importlib
import typing

from asyncckpt.config import CheckpointingConfig, CheckpointingOptions
from asyncckpt.errors import (
    CheckpointError,
    CheckpointerUsageError,
    CheckpointKeyError,
    CheckpointNotFoundError,
    CheckpointWarning,
    ConfigError,
    CorruptCheckpointError,
    CutBusyError,
    CutTimeoutError,
    CutUsageError,
    DirectoryLockedError,
    FileLockedError,
    LeafError,
    ManagerClosedError,
    ManagerUsageError,
    MetricMissingError,
    QueueFullError,
    ReadOnlyError,
    ReadOnlyFileError,
    SaveFailedError,
    StateChangedError,
    StateMismatchError,
    StepExistsError,
    TornStateError,
    UnsupportedFormatError,
    UnsupportedLeafError,
    UntrustedFileError,
)
from asyncckpt.manager import CheckpointManager, ManagerStatistics, _load_checkpoint_history  # noqa: F401
from asyncckpt.saving.catalog import LoadedCheckpoint
from asyncckpt.saving.files import FileSource
from asyncckpt.saving.pending_checkpoint import PendingCheckpoint
from asyncckpt.saving.retention import Candidate, RetentionPolicy, Verdict, plan_prune
from asyncckpt.saving.schedule import SaveReason
from asyncckpt.saving.sigterm import leave_on_sigterm
from asyncckpt.saving.tracking import SaveHandle, SaveProgress, SaveState, SaveTimings
from asyncckpt.state.types import register_type
from asyncckpt.storage.results import CheckpointRecord, SavedFile

if typing.TYPE_CHECKING:
    from asyncckpt import blocking as blocking
    from asyncckpt.checkpointer import (
        Checkpointer,
        DictCheckpointer,
        HDF5Checkpointer,
        JSONCheckpointer,
        MsgpackCheckpointer,
        NullCheckpointer,
        NumPyCheckpointer,
    )
    from asyncckpt.cut.cut import Cut
    from asyncckpt.cut.participant import Participant
    from asyncckpt.cut.queue import CutQueue
    from asyncckpt.cut.work_queue import CutWorkQueue, FailedItem, Lease
    from asyncckpt.keyed.view import AsyncCheckpointer
    from asyncckpt.loading import load

__all__ = [
    "AsyncCheckpointer",
    "Candidate",
    "CheckpointError",
    "CheckpointKeyError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "CheckpointRecord",
    "CheckpointWarning",
    "Checkpointer",
    "CheckpointerUsageError",
    "CheckpointingConfig",
    "CheckpointingOptions",
    "ConfigError",
    "CorruptCheckpointError",
    "Cut",
    "CutBusyError",
    "CutQueue",
    "CutTimeoutError",
    "CutUsageError",
    "CutWorkQueue",
    "DictCheckpointer",
    "DirectoryLockedError",
    "FailedItem",
    "FileLockedError",
    "FileSource",
    "HDF5Checkpointer",
    "JSONCheckpointer",
    "LeafError",
    "Lease",
    "LoadedCheckpoint",
    "ManagerClosedError",
    "ManagerStatistics",
    "ManagerUsageError",
    "MetricMissingError",
    "MsgpackCheckpointer",
    "NullCheckpointer",
    "NumPyCheckpointer",
    "Participant",
    "PendingCheckpoint",
    "QueueFullError",
    "ReadOnlyError",
    "ReadOnlyFileError",
    "RetentionPolicy",
    "SaveFailedError",
    "SaveHandle",
    "SaveProgress",
    "SaveReason",
    "SaveState",
    "SaveTimings",
    "SavedFile",
    "StateChangedError",
    "StateMismatchError",
    "StepExistsError",
    "TornStateError",
    "UnsupportedFormatError",
    "UnsupportedLeafError",
    "UntrustedFileError",
    "Verdict",
    "leave_on_sigterm",
    "load",
    "plan_prune",
    "register_type",
]


_LATE: typing.Final = {
    "AsyncCheckpointer": "asyncckpt.keyed.view",
    "Cut": "asyncckpt.cut.cut",
    "CutQueue": "asyncckpt.cut.queue",
    "CutWorkQueue": "asyncckpt.cut.work_queue",
    "FailedItem": "asyncckpt.cut.work_queue",
    "Lease": "asyncckpt.cut.work_queue",
    "Participant": "asyncckpt.cut.participant",
    "load": "asyncckpt.loading",
}


def __getattr__(name: str) -> object:
    """Import what only some programs use when it is used first, so that the others start faster."""
    if name == "blocking":
        return importlib.import_module("asyncckpt.blocking")
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module = _LATE.get(name, "asyncckpt.checkpointer")
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found


def __dir__() -> list[str]:
    """Return all public names, whether imported yet or not."""
    return sorted({*globals(), *__all__, "blocking"})
