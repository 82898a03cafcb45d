"""The state of vectorized environments: that of each wrapper, environment and random generator in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_normalize

from asyncckpt.errors import StateMismatchError
from asyncckpt.integrations.attributes import Attributes, NoStateError, has_state_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTRIBUTES: Final = Attributes(
    packages=("gymnasium", "stable_baselines3", "sb3_contrib"),
    constants=(gym.Space, gym.envs.registration.EnvSpec),
    left_out=(
        *("env", "venv", "envs", "class_attributes"),  # other objects, and the class
        *("spec", "metadata", "_metadata", "_cached_spec", "_saved_kwargs", "P"),  # constants
        *("screen", "clock", "window", "window_surface", "surf"),  # of rendering
        *("_previous_data", "results_writer", "t_start"),  # of checks and logs
    ),
)
"""How the state of objects of Gymnasium and Stable-Baselines3 is found."""

_HISTORY: Final = ("episode_returns", "episode_lengths", "episode_times")
"""What a `Monitor` keeps of all episodes of its process."""
_STATISTICS: Final = frozenset(("obs_rms", "ret_rms"))
"""What of `VecNormalize` is saved whether or not the state of the environments is."""
_WRAPPER: Final = frozenset(vars(gym.Wrapper(gym.Env())))
"""The attributes that every wrapper has."""


class StatefulEnv(gym.Wrapper):
    """An environment whose state, and that of all wrappers in it, can be saved from another process.

    `SubprocVecEnv` runs environments in processes of their own, where their attributes cannot be seen. Put each into
    this wrapper, outside of all others: ``make_vec_env(..., vec_env_cls=SubprocVecEnv, wrapper_class=StatefulEnv)``.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the environment.

        Raises:
            TypeError: A class in it has no `state_dict`.
        """
        try:
            return {"layers": get_layers(self.env)}
        except NoStateError as error:
            message = f"the state of {error} is not known: give its class `state_dict` and `load_state_dict`"
            raise TypeError(message) from None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the environment a state that `state_dict` returned."""
        set_layers(self.env, state["layers"])


def get_statistics(venv: VecEnv) -> dict[str, Any] | None:
    """Return the means and variances of `VecNormalize`; None without it."""
    if (normalize := unwrap_vec_normalize(venv)) is None:
        return None
    return ATTRIBUTES.get_state(normalize, left_out=frozenset(vars(normalize)) - _STATISTICS)


def set_statistics(venv: VecEnv, state: dict[str, Any]) -> None:
    """Give `VecNormalize` its means and variances."""
    ATTRIBUTES.set_state(unwrap_vec_normalize(venv), state)


def get_environments(venv: VecEnv) -> dict[str, Any]:
    """Return the state of all environments and their wrappers, without what `get_statistics` returns.

    Raises:
        NoStateError: It is not known; the message says of what.
    """
    wrappers = []
    while isinstance(venv, VecEnvWrapper):
        wrappers.append(_layer(venv))
        venv = venv.venv
    if isinstance(venv, DummyVecEnv):
        return {"wrappers": wrappers, "envs": [get_layers(env) for env in venv.envs]}
    if all(venv.env_is_wrapped(StatefulEnv)):
        return {"wrappers": wrappers, "envs": venv.env_method("state_dict")}
    if not has_state_dict(venv):
        message = f"{type(venv).__qualname__} (put each of its environments into StatefulEnv)"
        raise NoStateError(message)
    return {"wrappers": wrappers, "envs": venv.state_dict()}


def set_environments(venv: VecEnv, state: dict[str, Any]) -> None:
    """Give the environments a state that `get_environments` returned.

    Raises:
        StateMismatchError: They are others, or in other wrappers. Some may have been changed.
    """
    wrappers = []
    while isinstance(venv, VecEnvWrapper):
        wrappers.append(venv)
        venv = venv.venv
    _fill(wrappers, state["wrappers"])
    if isinstance(venv, DummyVecEnv):
        for env, layers in zip(venv.envs, state["envs"], strict=True):
            set_layers(env, layers)
    elif has_state_dict(venv):
        venv.load_state_dict(state["envs"])
    else:
        for index, each in enumerate(state["envs"]):
            venv.env_method("load_state_dict", each, indices=index)


def get_layers(env: gym.Env) -> list[dict[str, Any]]:
    """Return the states of an environment's wrappers, from the outermost to the environment itself."""
    return [_layer(each) for each in _chain(env)]


def set_layers(env: gym.Env, layers: list[dict[str, Any]]) -> None:
    """Give an environment and its wrappers their states.

    Raises:
        StateMismatchError: It is another environment, or in other wrappers.
    """
    _fill(list(_chain(env)), layers)


def _chain(env: gym.Env) -> Iterator[gym.Env]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _layer(layer: Any) -> dict[str, Any]:
    state: dict[str, Any] = {"class": type(layer).__qualname__, "state": {}}
    is_bare = isinstance(layer, gym.Wrapper) and vars(layer).keys() <= _WRAPPER
    if has_state_dict(layer) or not is_bare:
        left_out = _HISTORY if isinstance(layer, Monitor) else _STATISTICS
        state["state"] = ATTRIBUTES.get_state(layer, left_out=left_out)
    if has_state_dict(layer) and isinstance(layer, gym.Env) and not isinstance(layer, gym.Wrapper):
        state["np_random"] = layer._np_random  # noqa: SLF001 - the property would make one
    return state


def _fill(layers: list[Any], states: list[dict[str, Any]]) -> None:
    expected, found = [type(each).__qualname__ for each in layers], [each["class"] for each in states]
    if expected != found:
        raise StateMismatchError("environments", "class", expected, found)
    for layer, state in zip(layers, states, strict=True):
        if state["state"]:
            ATTRIBUTES.set_state(layer, state["state"])
        if state.get("np_random") is not None:
            layer._np_random = state["np_random"]  # noqa: SLF001 - the property would forget the seed
