"""What is used of Lightning, from whichever of its two packages the program uses."""

import sys
from importlib.util import find_spec

if "lightning" in sys.modules or ("pytorch_lightning" not in sys.modules and find_spec("lightning") is not None):
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.plugins import CheckpointIO
else:
    from pytorch_lightning.callbacks import Checkpoint
    from pytorch_lightning.plugins import CheckpointIO

__all__ = ["Checkpoint", "CheckpointIO"]
