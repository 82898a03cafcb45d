"""What the parts of an open manager have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from asyncckpt.config import Settings
    from asyncckpt.runtime.buffers import BufferPool
    from asyncckpt.runtime.deadline import ShutdownDeadline
    from asyncckpt.runtime.jobs import Jobs
    from asyncckpt.saving.catalog import Catalog
    from asyncckpt.saving.directory_warnings import DirectoryWarnings
    from asyncckpt.saving.ledger import StepLedger
    from asyncckpt.saving.metric import PolicyRequest
    from asyncckpt.storage.base import CheckpointStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The options, the store, the threads, the memory and the state that all parts of one open manager share."""

    settings: Settings
    policy_request: PolicyRequest
    store: CheckpointStore
    jobs: Jobs
    deadline: ShutdownDeadline
    pool: BufferPool
    catalog: Catalog
    steps: StepLedger
    warnings: DirectoryWarnings

    @property
    def root(self) -> Path:
        """The checkpoint directory."""
        return self.settings.checkpoint_dir
