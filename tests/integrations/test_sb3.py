"""Trainings of Stable-Baselines3 are saved by a callback, and resumed exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.kills import assert_exact, run_program

import asyncckpt
from asyncckpt import CheckpointWarning, StateMismatchError, UnsupportedLeafError
from asyncckpt.blocking import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLICY = {"net_arch": [4]}


@pytest.fixture(autouse=True)
def _library(imported: Callable[..., None]) -> None:
    imported("stable_baselines3", "asyncckpt.integrations.sb3")


def new_model(env: Any = "CartPole-v1", **options: Any) -> Any:
    """Return a small PPO."""
    from stable_baselines3 import PPO

    options = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "policy_kwargs": POLICY} | options
    return PPO("MlpPolicy", env, **options)


def new_callback(manager: CheckpointManager, **options: Any) -> Any:
    """Return a callback that saves every 16 timesteps."""
    from asyncckpt.integrations.sb3 import CheckpointCallback

    return CheckpointCallback(manager, **{"save_period": 16} | options)


def new_env(**attributes: Any) -> Any:
    """Return an environment of this program's own, whose state nobody knows."""
    import gymnasium

    class Count(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 99, (1,))
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.count = 0.0
            return np.array([0.0], np.float32), {}

        def step(self, action: Any) -> Any:
            self.count += 1
            return np.array([self.count], np.float32), 1.0, self.count == 20, False, {}

    env = Count()
    vars(env).update(attributes)
    return env


def test_killed_trainings_end_with_the_bits_of_whole_ones(tmp_path: Path) -> None:
    """PPO, SAC, DQN and HER, with all that decides how they go on; without a part of it, they end with others."""
    for runs in run_program("sb3_program.py", tmp_path).values():
        assert_exact(runs)


def test_saves_are_periodic_and_the_last_one_is_at_the_end(tmp_path: Path) -> None:
    """A step is the number of timesteps, at a rollout's start; what SB3 logs of episodes can rank the checkpoints."""
    with CheckpointManager(tmp_path, metric_name="ep_rew_mean", keep_top_k=9) as manager:
        new_model().learn(48, callback=new_callback(manager, save_period=20))
        manager.flush()
        assert manager.steps() == [24, 40, 48]
        info = manager.load(48).training_info
        assert info["ep_rew_mean"] == info["ep_len_mean"] > 0


def test_a_training_that_has_ended_is_not_repeated(tmp_path: Path) -> None:
    """The same program run again trains no more, and a longer one goes on to its own total."""
    with CheckpointManager(tmp_path) as manager:
        new_model().learn(32, callback=new_callback(manager))
        again, longer = new_model(), new_model()
        again.learn(32, callback=new_callback(manager))
        assert (again.num_timesteps, again._n_updates) == (32, 4)
        assert manager.steps() == [16, 32]
        longer.learn(48, callback=new_callback(manager))
        assert (longer.num_timesteps, longer._n_updates) == (48, 6)
        manager.flush()
        assert manager.steps() == [16, 32, 48]


def test_a_model_that_was_trained_before_is_not_replaced(tmp_path: Path) -> None:
    """A second `learn` without a reset goes on with the model; so does any with ``resume=False``."""
    with CheckpointManager(tmp_path) as manager:
        model = new_model()
        model.learn(32, callback=(callback := new_callback(manager)))
        model.learn(16, callback=callback, reset_num_timesteps=False)
        assert model.num_timesteps == 48
        manager.flush()
        assert manager.steps() == [16, 32, 48]
        fresh = new_model()
        with pytest.warns(CheckpointWarning, match="step 8 is saved below the latest"):
            fresh.learn(8, callback=new_callback(manager, resume=False))
        assert fresh.num_timesteps == 8


def test_restore_fills_a_model(tmp_path: Path) -> None:
    """`restore` is for evaluation: the model acts as the one that was saved."""
    from asyncckpt.integrations.sb3 import restore

    with CheckpointManager(tmp_path) as manager:
        fresh = new_model(seed=9)
        assert restore(fresh, manager, missing_ok=True) is None
        model = new_model()
        model.learn(32, callback=new_callback(manager))
        manager.flush()
        assert restore(fresh, manager) == 32
        observation = np.ones(4, np.float32)
        assert fresh.policy.predict_values(fresh.policy.obs_to_tensor(observation)[0]) == model.policy.predict_values(
            model.policy.obs_to_tensor(observation)[0]
        )
        assert restore(fresh, manager, 16) == fresh.num_timesteps == 16


def test_environments_without_a_state_begin_new_episodes(tmp_path: Path) -> None:
    """A warning says which class it is; the training resumes all the same. ``environments=False`` asks for this."""
    with CheckpointManager(tmp_path) as manager:
        with pytest.warns(CheckpointWarning, match=r"the state of .*Count is not known.*state_dict"):
            new_model(new_env()).learn(32, callback=new_callback(manager))
        manager.flush()
        model = new_model(new_env())
        model.learn(40, callback=new_callback(manager, environments=False))
        assert model.num_timesteps == 40
        assert model.env.get_attr("count") == [8.0]


def test_gymnasium_environments_in_unknown_wrappers(tmp_path: Path) -> None:
    """A wrapper that adds no attributes has no state; one that adds some has to say what its state is."""
    import gymnasium

    class Stateless(gymnasium.Wrapper):
        pass

    class Stateful(gymnasium.Wrapper):
        def __init__(self, env: Any) -> None:
            super().__init__(env)
            self.number = 0

    with CheckpointManager(tmp_path) as manager:
        new_model(Stateless(gymnasium.make("CartPole-v1"))).learn(16, callback=new_callback(manager))
        manager.flush()
        assert manager.load("latest").state["environments"] is not None
        with pytest.warns(CheckpointWarning, match="Stateful"):
            new_model(Stateful(gymnasium.make("CartPole-v1"))).learn(
                24, callback=new_callback(manager, resume=False, save_period=24)
            )
        manager.flush()
        assert manager.load("latest").state["environments"] is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"env": "Acrobot-v1"}, "setup/"),
        ({"policy_kwargs": {"net_arch": [5]}}, "parameters.*make it as it was made"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    """The error says what differs, before anything is trained."""
    with CheckpointManager(tmp_path) as manager:
        new_model().learn(16, callback=new_callback(manager))
        with pytest.raises(StateMismatchError, match=named):
            new_model(**change).learn(16, callback=new_callback(manager))


def test_another_state_is_refused(tmp_path: Path) -> None:
    """A directory of another program's checkpoints is no place for a training."""
    with CheckpointManager(tmp_path) as manager:
        manager.save(1, {"weights": np.zeros(3)}).wait()
        with pytest.raises(StateMismatchError, match="Stable-Baselines3"):
            new_model().learn(16, callback=new_callback(manager))


def test_attributes_of_a_subclass(tmp_path: Path) -> None:
    """Private ones are saved, others on request; what cannot be saved is named with the way out."""
    from stable_baselines3 import PPO

    class Counted(PPO):
        def train(self) -> None:
            super().train()
            self._trained = getattr(self, "_trained", 0) + 1
            self.public = self._trained * 10

    def new() -> Any:
        return Counted("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, policy_kwargs=POLICY)

    with CheckpointManager(tmp_path) as manager:
        new().learn(16, callback=new_callback(manager, include=["public"]))
        model = new()
        model.learn(16, callback=new_callback(manager))
        assert (model._trained, model.public) == (2, 20)
        model._strange = object()
        with pytest.raises(UnsupportedLeafError, match=r"_strange.*exclude=\['_strange'\]"):
            model.learn(16, callback=new_callback(manager), reset_num_timesteps=False)
        model.learn(16, callback=new_callback(manager, exclude=["_strange"]), reset_num_timesteps=False)


def test_a_replay_buffer_is_saved_as_arrays_as_far_as_it_is_filled(tmp_path: Path) -> None:
    """Half a buffer takes half the room. A buffer of another size, and one of Python objects, are refused."""
    from stable_baselines3 import DQN

    def new(**options: Any) -> Any:
        options = {"buffer_size": 1000, "learning_starts": 99} | options
        return DQN("MlpPolicy", "CartPole-v1", policy_kwargs=POLICY, **options)

    with CheckpointManager(tmp_path) as manager:
        model = new()
        model.learn(16, callback=new_callback(manager))
        manager.flush()
        saved = manager.load("latest").state["replay_buffer"]
        assert (saved["pos"], saved["full"]) == (16, False)
        assert {name: len(array) for name, array in saved["arrays"].items()} == dict.fromkeys(saved["arrays"], 17)
        assert np.array_equal(saved["arrays"]["observations"][:16], model.replay_buffer.observations[:16])
        with pytest.raises(StateMismatchError, match="buffer_size"):
            new(buffer_size=999).learn(16, callback=new_callback(manager))
        model.replay_buffer.infos = np.array([{"a": 1}])
        with pytest.raises(UnsupportedLeafError, match="copy_info_dict"):
            model.learn(16, callback=new_callback(manager), reset_num_timesteps=False)


def test_the_arguments_are_checked(tmp_path: Path) -> None:
    """A period below 1 is refused at once."""
    with CheckpointManager(tmp_path) as manager, pytest.raises(ValueError, match="save_period is 0"):
        new_callback(manager, save_period=0)


async def test_a_manager_that_has_to_be_awaited_is_refused(tmp_path: Path) -> None:
    """The error names the one to give."""
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        with pytest.raises(TypeError, match=r"asyncckpt\.blocking\.CheckpointManager"):
            new_callback(manager)
