"""Checkpoints that never stop an asyncio loop.

See `CheckpointManager`, the door that everyone uses.
"""

from asyncckpt.config import CheckpointingConfig, CheckpointingOptions
from asyncckpt.errors import (
    CheckpointError,
    CheckpointKeyError,
    CheckpointNotFoundError,
    CheckpointWarning,
    ConfigError,
    CorruptCheckpointError,
    DirectoryLockedError,
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
)
from asyncckpt.manager import CheckpointManager, ManagerStatistics
from asyncckpt.saving.catalog import CheckpointRecord, LoadedCheckpoint
from asyncckpt.saving.handle import SaveHandle, SaveProgress, SaveState, SaveTimings
from asyncckpt.saving.leaving import leave_on_sigterm
from asyncckpt.saving.primitives import _load_checkpoint_history  # noqa: F401
from asyncckpt.saving.retention import Candidate, RetentionPolicy, Verdict, plan_prune
from asyncckpt.state.types import register_type

__all__ = [
    "Candidate",
    "CheckpointError",
    "CheckpointKeyError",
    "CheckpointManager",
    "CheckpointNotFoundError",
    "CheckpointRecord",
    "CheckpointWarning",
    "CheckpointingConfig",
    "CheckpointingOptions",
    "ConfigError",
    "CorruptCheckpointError",
    "DirectoryLockedError",
    "LeafError",
    "LoadedCheckpoint",
    "ManagerClosedError",
    "ManagerStatistics",
    "ManagerUsageError",
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
    "Verdict",
    "leave_on_sigterm",
    "plan_prune",
    "register_type",
]
