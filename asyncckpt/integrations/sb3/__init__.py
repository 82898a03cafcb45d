"""Stable-Baselines3: a callback that saves a training and resumes it exactly."""

from asyncckpt.integrations.sb3.callback import CheckpointCallback, restore
from asyncckpt.integrations.sb3.environments import StatefulEnv

__all__ = ["CheckpointCallback", "StatefulEnv", "restore"]
