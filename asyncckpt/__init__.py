"""Checkpoints that never stop an asyncio loop.

See `CheckpointManager`, the door that everyone uses, and `Checkpointer`, one file of many keys.
"""

from asyncckpt.checkpointer import (
    Checkpointer,
    DictCheckpointer,
    HDF5Checkpointer,
    JSONCheckpointer,
    MsgpackCheckpointer,
    NullCheckpointer,
    NumPyCheckpointer,
)
from asyncckpt.config import CheckpointingConfig, CheckpointingOptions
from asyncckpt.errors import (
    CheckpointError,
    CheckpointerUsageError,
    CheckpointKeyError,
    CheckpointNotFoundError,
    CheckpointWarning,
    ConfigError,
    CorruptCheckpointError,
    DirectoryLockedError,
    FileLockedError,
    LeafError,
    ManagerClosedError,
    ManagerUsageError,
    QueueFullError,
    ReadOnlyError,
    SaveFailedError,
    StateChangedError,
    StateMismatchError,
    StepExistsError,
    UnsupportedFormatError,
    UnsupportedLeafError,
    UntrustedFileError,
)
from asyncckpt.keyed.view import AsyncCheckpointer
from asyncckpt.manager import CheckpointManager, ManagerStatistics
from asyncckpt.saving.catalog import CheckpointRecord, LoadedCheckpoint
from asyncckpt.saving.handle import SaveHandle, SaveProgress, SaveState, SaveTimings
from asyncckpt.saving.leaving import leave_on_sigterm
from asyncckpt.saving.primitives import _load_checkpoint_history  # noqa: F401
from asyncckpt.saving.retention import Candidate, RetentionPolicy, Verdict, plan_prune
from asyncckpt.state.types import register_type

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
    "DictCheckpointer",
    "DirectoryLockedError",
    "FileLockedError",
    "HDF5Checkpointer",
    "JSONCheckpointer",
    "LeafError",
    "LoadedCheckpoint",
    "ManagerClosedError",
    "ManagerStatistics",
    "ManagerUsageError",
    "MsgpackCheckpointer",
    "NullCheckpointer",
    "NumPyCheckpointer",
    "QueueFullError",
    "ReadOnlyError",
    "RetentionPolicy",
    "SaveFailedError",
    "SaveHandle",
    "SaveProgress",
    "SaveState",
    "SaveTimings",
    "StateChangedError",
    "StateMismatchError",
    "StepExistsError",
    "UnsupportedFormatError",
    "UnsupportedLeafError",
    "UntrustedFileError",
    "Verdict",
    "leave_on_sigterm",
    "plan_prune",
    "register_type",
]
