"""Trains PPO and SAC by Stable-Baselines3, for test_sb3.py."""

from __future__ import annotations

import importlib
import os
import signal
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from helpers.kills import report
from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from asyncckpt.blocking import CheckpointManager
from asyncckpt.integrations.sb3 import CheckpointCallback, StatefulEnv, callback
from asyncckpt.integrations.sb3.model import get_model

if TYPE_CHECKING:
    from pathlib import Path

_POLICY = {"net_arch": [8]}


class Reach(gym.Env):
    """A point that is to reach a goal on a line; its own generator draws it. It says what its state is."""

    action_space = gym.spaces.Box(-1, 1, (1,))
    observation_space = gym.spaces.Dict(
        {name: gym.spaces.Box(-9, 9, (1,)) for name in ("observation", "achieved_goal", "desired_goal")}
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Draw a goal."""
        super().reset(seed=seed)
        self._at, self._goal, self._count = 0.0, self.np_random.uniform(-2, 2), 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        """Move the point."""
        self._at = float(np.clip(self._at + action[0], -9, 9))
        self._count += 1
        observation = self._observation()
        reward = self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {})
        return observation, float(reward), bool(reward == 0), self._count == 7, {}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        """Return the reward of each transition."""
        return -(np.abs(achieved - desired)[..., 0] > 0.3).astype(np.float32)

    def _observation(self) -> dict[str, Any]:
        at, goal = np.array([self._at], np.float32), np.array([self._goal], np.float32)
        return {"observation": at, "achieved_goal": at, "desired_goal": goal}

    def state_dict(self) -> dict[str, Any]:
        """Return all but the generator."""
        return {"at": self._at, "goal": self._goal, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue."""
        self._at, self._goal, self._count = state["at"], state["goal"], state["count"]


def _make(case: str) -> tuple[Any, int, int]:
    """Return the model, the timesteps of its training, and the timestep at which it is killed."""
    if case == "ppo":  # the noise is drawn before each rollout
        env = VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2), 2))
        options = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "use_sde": True, "seed": 3}
        return PPO("MlpPolicy", env, **options, policy_kwargs=_POLICY), 160, 110
    if case == "processes":
        made = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}, "wrapper_class": StatefulEnv}
        options = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 3, "policy_kwargs": _POLICY}
        return PPO("MlpPolicy", make_vec_env("CartPole-v1", 2, **made), **options), 160, 110
    options = {"batch_size": 8, "learning_starts": 40, "seed": 4}
    if case == "sac":  # more transitions than the buffer holds, and an entropy coefficient that is learned
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))
        options |= {"buffer_size": 70, "train_freq": 3, "action_noise": noise, "use_sde": True}
        return SAC("MlpPolicy", "Pendulum-v1", **options, policy_kwargs=dict(_POLICY)), 130, 105
    if case == "dqn":  # draws from the action space
        options |= {"buffer_size": 70, "target_update_interval": 35, "optimize_memory_usage": True}
        options["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
        return DQN("MlpPolicy", "CartPole-v1", **options, policy_kwargs=_POLICY), 130, 105
    options |= {"buffer_size": 200, "replay_buffer_class": HerReplayBuffer}
    return SAC("MultiInputPolicy", Reach(), **options, policy_kwargs=_POLICY), 130, 105


class _Kill(BaseCallback):
    def __init__(self, manager: CheckpointManager, at: int) -> None:
        super().__init__()
        self._manager, self._at = manager, at

    def _on_step(self) -> bool:
        if self.model.num_timesteps >= self._at:
            self._manager.flush()
            self.training_env.close()  # or its processes, which have the ends of each other's pipes, would never end
            os.kill(os.getpid(), signal.SIGKILL)
        return True


def _train(case: str, directory: Path, *, killed: bool, without: str | None) -> dict[str, Any]:
    model, total, kill_at = _make(case)
    if without is not None:
        whole = callback.set_model

        def set_most(model: Any, state: dict[str, Any]) -> None:
            mine = get_model(model, environments=True, include=(), exclude=())
            part, _, inner = without.partition("/")
            if inner:
                state[part][inner] = mine[part][inner]
            else:
                state[part] = mine[part]
            whole(model, state)

        callback.set_model = set_most
    with CheckpointManager(directory) as manager:
        callbacks: list[BaseCallback] = [CheckpointCallback(manager, save_period=48)]
        if killed:
            callbacks.append(_Kill(manager, kill_at))
        model.learn(total, callback=callbacks)
        manager.flush()
        steps = manager.steps()
    state = get_model(model, environments=True, include=(), exclude=())
    model.env.close()
    for episode in state["attributes"]["ep_info_buffer"]:
        del episode["t"]  # the time of day
    return {"state": state, "steps": steps}


if __name__ == "__main__":
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # as the first optimizer does
    report(
        _train,
        {
            "ppo": (
                "parameters",
                "attributes/_last_obs",
                "environments",
                "statistics",
                "random/global",
                "random/noise",
            ),
            "sac": ("parameters", "variables", "attributes/action_noise", "environments", "replay_buffer"),
            "dqn": ("random/action_space",),
            "her": (),
            "processes": (),
        },
    )
