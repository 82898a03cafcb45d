"""PyTorch Lightning: a plugin that writes its checkpoints, and a callback that saves through a manager.

This works with both packages, ``lightning`` and ``pytorch_lightning``: with the latter if only that was imported.
"""

from asyncckpt.integrations.lightning.callback import CheckpointCallback
from asyncckpt.integrations.lightning.checkpoint_io import DurableCheckpointIO

__all__ = ["CheckpointCallback", "DurableCheckpointIO"]
