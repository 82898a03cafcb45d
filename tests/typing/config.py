"""What type checkers must accept and refuse of a configuration; an unused ignore is an error, too."""

from __future__ import annotations

from pathlib import Path

from asyncckpt.config import CheckpointingConfig, CheckpointingOptions, resolve_settings

smallest: CheckpointingConfig = {
    "enabled": True,
    "checkpoint_dir": Path("runs"),
    "metric_name": None,
    "higher_is_better": True,
    "save_period": None,
    "keep_top_k": 3,
}
options: CheckpointingOptions = {"format": "hdf5", "overflow": "skip", "grace": 5}
measuring: CheckpointingConfig = {**smallest, "metric_required": True, "keep_periodic": False}
resolve_settings(smallest, {})
resolve_settings(measuring, {})
resolve_settings("runs", options)

incomplete: CheckpointingConfig = {"checkpoint_dir": "runs"}  # type: ignore[typeddict-item]
misspelt: CheckpointingOptions = {"keep_topk": 3}  # type: ignore[typeddict-unknown-key]
ill_typed: CheckpointingOptions = {"format": "pickle"}  # type: ignore[typeddict-item]
