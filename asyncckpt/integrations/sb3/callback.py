"""`CheckpointCallback`: saves a training of Stable-Baselines3, and resumes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from asyncckpt.integrations.managers import check_is_blocking
from asyncckpt.integrations.sb3.model import get_model, set_model, set_random

if TYPE_CHECKING:
    from collections.abc import Collection

    from stable_baselines3.common.base_class import BaseAlgorithm

    from asyncckpt.blocking import CheckpointManager


class CheckpointCallback(BaseCallback):
    """Saves a model between rollouts, and lets `learn` continue from the latest checkpoint.

    A program that is run again after it was killed ends with the same bits as one that was never interrupted::

        with asyncckpt.blocking.CheckpointManager("runs/ppo", keep_latest_k=3) as manager:
            model = PPO("MlpPolicy", "CartPole-v1", seed=0)
            model.learn(100_000, callback=CheckpointCallback(manager, save_period=10_000))

    The step of a checkpoint is the model's ``num_timesteps``. It is saved before the first rollout that begins after a
    multiple of `save_period`, and when `learn` ends. A `learn` that begins at timestep 0 continues from the latest
    checkpoint if there is one, and ends at the same total; one with ``reset_num_timesteps=False``, on a model that was
    trained before, does not look for a checkpoint.

    ``training_info`` has SB3's "ep_rew_mean" and "ep_len_mean", and "success_rate" where environments report it, once
    an episode has ended. So the manager can keep the best, by ``metric_name="ep_rew_mean"``.

    Args:
        manager: An open manager. Its ``save_period`` is not used.
        save_period: The distance of saves, in timesteps (calls of an environment's `step`, of all environments).
        resume: Whether a `learn` that begins at timestep 0 continues from the latest checkpoint.
        environments: Whether the state of the environments is saved, so that a training resumes in the middle of their
            episodes. docs/guide/sb3.md says which environments have one; for others, a warning says so.
        include: Names of attributes of the model that are saved in addition.
        exclude: Names of attributes of the model that are not saved.
        verbose: 1 prints when a training resumes and what is saved.

    Raises:
        ValueError: `save_period` is less than 1.
        TypeError: The manager is one that has to be awaited.
    """

    def __init__(  # noqa: PLR0913 - each is independent of the others
        self,
        manager: CheckpointManager,
        save_period: int,
        *,
        resume: bool = True,
        environments: bool = True,
        include: Collection[str] = (),
        exclude: Collection[str] = (),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_is_blocking(manager)
        if save_period < 1:
            message = f"save_period is {save_period}: give the number of timesteps between two saves"
            raise ValueError(message)
        self._manager, self._save_period = manager, save_period
        self._is_to_resume, self._environments = resume, environments
        self._include, self._exclude = include, exclude
        self._last_step = 0
        self._random: dict[str, Any] | None = None

    def _on_training_start(self) -> None:
        self._last_step = self.model.num_timesteps
        self._random = None
        if not self._is_to_resume or self._last_step > 0:
            return
        self._manager.flush()  # an earlier call of `learn` may have saved
        if (checkpoint := self._manager.load("latest", missing_ok=True)) is None:
            return
        set_model(self.model, checkpoint.state)
        self._last_step = self.num_timesteps = self.model.num_timesteps
        if not checkpoint.state["has_ended"]:
            self._random = checkpoint.state["random"]
        if self.verbose:
            print(f"Resuming at timestep {self._last_step} from {checkpoint.path}")  # noqa: T201

    def _on_rollout_start(self) -> None:
        if self._random is not None:
            # Since the training began, other callbacks may have drawn numbers, and SB3 has drawn the rollout's noise.
            set_random(self.model, self._random)
            self._random = None
        elif self.model.num_timesteps // self._save_period > self._last_step // self._save_period:
            self._save(has_ended=False)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._last_step:
            self._save(has_ended=True)

    def _save(self, *, has_ended: bool) -> None:
        model = self.model
        state = get_model(model, environments=self._environments, include=self._include, exclude=self._exclude)
        state["has_ended"] = has_ended
        self._environments = state["environments"] is not None  # or a warning has said that they have none
        self._last_step = model.num_timesteps
        self._manager.save(self._last_step, state, training_info=_metrics(model))
        if self.verbose:
            print(f"Saving a checkpoint at timestep {self._last_step}")  # noqa: T201


def restore(
    model: BaseAlgorithm, manager: CheckpointManager, step: Any = "latest", *, missing_ok: bool = False
) -> int | None:
    """Give a model the state of a checkpoint, for instance to evaluate it. To resume a training needs no call of this.

    Args:
        model: A model that was made as the one that was saved.
        manager: An open manager, which may be read-only.
        step: A step, "latest", "best", or the path of a checkpoint.
        missing_ok: Whether to return None if there is no such checkpoint.

    Returns:
        The checkpoint's step, which is the model's ``num_timesteps``, or None with `missing_ok`.

    Raises:
        CheckpointNotFoundError: There is no such checkpoint.
        StateMismatchError: The model was made in another way: with another algorithm, policy, or replay buffer, or for
            other environments. It may have been changed.
    """
    if (checkpoint := manager.load(step, missing_ok=missing_ok)) is None:
        return None
    set_model(model, checkpoint.state)
    return int(checkpoint.step)


def _metrics(model: BaseAlgorithm) -> dict[str, float]:
    metrics = {}
    if episodes := model.ep_info_buffer:
        metrics["ep_rew_mean"] = float(safe_mean([each["r"] for each in episodes]))
        metrics["ep_len_mean"] = float(safe_mean([each["l"] for each in episodes]))
    if successes := model.ep_success_buffer:
        metrics["success_rate"] = float(safe_mean(successes))
    return metrics
