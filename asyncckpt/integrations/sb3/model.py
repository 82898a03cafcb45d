"""The state of a model of Stable-Baselines3: all that decides how its training goes on."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from stable_baselines3.common.save_util import recursive_getattr

from asyncckpt.errors import StateMismatchError, UnsupportedLeafError, warn
from asyncckpt.integrations.attributes import NoStateError, has_state_dict
from asyncckpt.integrations.random_states import get_random_states, set_random_states
from asyncckpt.integrations.sb3.environments import (
    ATTRIBUTES,
    get_environments,
    get_statistics,
    set_environments,
    set_statistics,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import gymnasium as gym
    from stable_baselines3.common.base_class import BaseAlgorithm

_PUBLIC: Final = ("num_timesteps", "ep_info_buffer", "ep_success_buffer", "exploration_rate", "action_noise")
"""Attributes without an underscore that training changes."""
_OF_THIS_CALL: Final = ("_total_timesteps", "_num_timesteps_at_start", "_stats_window_size")
"""Attributes with an underscore that a call of `learn`, or the program, decides anew."""
_NOISE: Final = ("exploration_mat", "exploration_matrices")
"""What generalized state-dependent exploration has drawn for the rollout."""


def get_model(
    model: BaseAlgorithm, *, environments: bool, include: Collection[str], exclude: Collection[str]
) -> dict[str, Any]:
    """Return the state of a model that is between two rollouts, uncopied.

    Args:
        model: The model.
        environments: Whether the state of the environments is looked for. A warning says if it is not known.
        include: Names of attributes of the model that are saved in addition.
        exclude: Names of attributes that are not saved.

    Raises:
        UnsupportedLeafError: An attribute cannot be saved.
    """
    state: dict[str, Any] = {
        "setup": _setup(model),
        "parameters": model.get_parameters(),
        "variables": {name: recursive_getattr(model, name) for name in _variables(model)},
        "attributes": _attributes(model, include, exclude),
        "replay_buffer": _replay_buffer(model),
        "statistics": None,
        "environments": None,
        "random": get_random(model),
    }
    if model.env is not None:
        state["statistics"] = get_statistics(model.env)
        if environments:
            try:
                state["environments"] = get_environments(model.env)
            except NoStateError as error:
                warn(
                    f"the state of {error} is not known, so a training that resumes begins with new episodes: give the"
                    " class `state_dict` and `load_state_dict`, or make the callback with environments=False"
                )
    return state


def set_model(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Give a model the state that `get_model` returned. Arrays of the replay buffer leave `state` meanwhile.

    Without a state of the environments, they are reset.

    Raises:
        StateMismatchError: The model has another algorithm, policy, buffer, or other environments.
    """
    if not isinstance(state, dict) or "setup" not in state:
        raise StateMismatchError("setup", "keys", "that of a model of Stable-Baselines3", "another state")
    expected, found = _setup(model), state["setup"]
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise StateMismatchError(f"setup/{name}", "type", expected.get(name), found.get(name))
    try:
        model.set_parameters(state["parameters"])
    except (ValueError, RuntimeError, KeyError) as error:
        reason = f"the parameters of the checkpoint do not fit the model; make it as it was made then: {error}"
        raise StateMismatchError("parameters", "keys", "the model's", "others", reason=reason) from error
    for name, value in state["variables"].items():
        recursive_getattr(model, name).data.copy_(value)
    _set_attributes(model, state["attributes"])
    if state["replay_buffer"] is not None:
        _set_replay_buffer(model.replay_buffer, state["replay_buffer"])
    if model.env is not None:
        if state["statistics"] is not None:
            set_statistics(model.env, state["statistics"])
        if state["environments"] is not None:
            set_environments(model.env, state["environments"])
        else:
            _begin_episodes(model)
    set_random(model, state["random"])


def get_random(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the states of all random generators outside the environments, and the noise drawn for this rollout."""
    noise = _noise_distribution(model)
    return {
        "global": get_random_states(),
        "action_space": [space.np_random for space in _spaces(model.action_space)],
        "noise": {name: getattr(noise, name).detach() for name in _NOISE} if hasattr(noise, _NOISE[0]) else None,
    }


def set_random(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Give the random generators and the noise the state that `get_random` returned."""
    set_random_states(state["global"])
    for space, saved in zip(_spaces(model.action_space), state["action_space"], strict=True):
        space.np_random.bit_generator.state = saved.bit_generator.state
    if state["noise"] is not None:
        for name, value in state["noise"].items():
            setattr(_noise_distribution(model), name, value.to(model.device))


def _setup(model: BaseAlgorithm) -> dict[str, Any]:
    """Return what must be equal in the model that saves and the one that resumes."""
    setup = {
        "algorithm": type(model).__qualname__,
        "n_envs": model.n_envs,
        "observation_space": _described(model.observation_space),
        "action_space": _described(model.action_space),
    }
    if (buffer := getattr(model, "replay_buffer", None)) is not None:
        setup |= {"replay_buffer": type(buffer).__qualname__, "buffer_size": buffer.buffer_size}
    return setup


def _described(space: gym.Space) -> object:
    """Return the kind and the size of a space; its bounds may change."""
    inner = getattr(space, "spaces", None)
    if isinstance(inner, dict):
        return {name: _described(each) for name, each in inner.items()}
    if inner is not None:
        return [_described(each) for each in inner]
    count = getattr(space, "nvec", getattr(space, "n", ""))
    return f"{type(space).__name__} {space.shape} {space.dtype} {count}".strip()


def _variables(model: BaseAlgorithm) -> list[str]:
    """Return the names of the tensors that `get_parameters` leaves out, such as SAC's ``log_ent_coef``."""
    return model._get_torch_save_params()[1]  # type: ignore[no-any-return]  # noqa: SLF001 - what `save` uses


def _attributes(model: BaseAlgorithm, include: Collection[str], exclude: Collection[str]) -> dict[str, Any]:
    parameters, variables = model._get_torch_save_params()  # noqa: SLF001 - as above
    others = {name.partition(".")[0] for name in (*parameters, *variables)}
    others.update(model._excluded_save_params(), _OF_THIS_CALL, exclude)  # noqa: SLF001 - as above
    saved = {}
    for name, value in vars(model).items():
        if name in include or ((name.startswith("_") or name in _PUBLIC) and name not in others):
            try:
                saved[name] = ATTRIBUTES.plain(value)
            except NoStateError as error:
                message = (
                    f"the model's attribute {name} cannot be saved ({error}): leave it out by exclude=[{name!r}], and"
                    " set it again before training resumes"
                )
                raise UnsupportedLeafError(message, path=f"attributes/{name}") from None
    return saved


def _set_attributes(model: BaseAlgorithm, saved: dict[str, Any]) -> None:
    attributes = vars(model)
    for name, value in saved.items():
        attributes[name] = ATTRIBUTES.filled(attributes.get(name), value)
    for name in ("ep_info_buffer", "ep_success_buffer"):
        attributes[name] = deque(attributes[name] or (), maxlen=model._stats_window_size)  # noqa: SLF001
    model._num_timesteps_at_start = model.num_timesteps  # noqa: SLF001 - the speed is that of this process


def _replay_buffer(model: BaseAlgorithm) -> dict[str, Any] | None:
    """Return the arrays of the replay buffer, as far as they are filled."""
    if (buffer := getattr(model, "replay_buffer", None)) is None:
        return None
    if has_state_dict(buffer):
        return {"state_dict": buffer.state_dict()}
    # The one after the last transition may hold its next observation.
    filled_up_to = buffer.buffer_size if buffer.full else min(buffer.pos + 1, buffer.buffer_size)
    arrays: dict[str, Any] = {}
    for name, array in _buffer_arrays(buffer):
        arrays[name] = array[:filled_up_to] if len(array) == buffer.buffer_size else array
    return {"pos": buffer.pos, "full": buffer.full, "arrays": arrays}


def _buffer_arrays(buffer: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield each array of a buffer with its path."""
    for name, value in vars(buffer).items():
        for key, array in value.items() if isinstance(value, dict) else ((None, value),):
            if isinstance(array, np.ndarray):
                path = name if key is None else f"{name}/{key}"
                if not array.dtype.hasobject:
                    yield path, array
                elif any(map(bool, array.flat)):
                    message = (
                        f"the replay buffer's {path} holds Python objects, which cannot be saved: make a"
                        " HerReplayBuffer with copy_info_dict=False, or give the buffer's class `state_dict` and"
                        " `load_state_dict`"
                    )
                    raise UnsupportedLeafError(message, path=f"replay_buffer/{path}")


def _set_replay_buffer(buffer: Any, state: dict[str, Any]) -> None:
    if has_state_dict(buffer):
        buffer.load_state_dict(state["state_dict"])
        return
    arrays = state["arrays"]
    for path, target in list(_buffer_arrays(buffer)):
        found = arrays.pop(path)  # frees each array as soon as it is copied: a buffer may take most of the memory
        if found.dtype != target.dtype or found.shape[1:] != target.shape[1:]:
            expected = f"{target.dtype}{target.shape[1:]}"
            raise StateMismatchError(f"replay_buffer/{path}", "shape", expected, f"{found.dtype}{found.shape[1:]}")
        target[: len(found)] = found
    buffer.pos, buffer.full = state["pos"], state["full"]


def _begin_episodes(model: Any) -> None:
    """Begin a new episode in each environment, and say so to the replay buffer."""
    model._last_obs = model.env.reset()  # noqa: SLF001 - as `learn` does it
    model._last_episode_starts = np.ones((model.n_envs,), dtype=bool)  # noqa: SLF001
    if model._vec_normalize_env is not None:  # noqa: SLF001
        model._last_original_obs = model._vec_normalize_env.get_original_obs()  # noqa: SLF001
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or not (buffer.full or buffer.pos):
        return
    if hasattr(buffer, "truncate_last_trajectory"):
        buffer.truncate_last_trajectory()
    elif getattr(buffer, "optimize_memory_usage", False):
        buffer.dones[buffer.pos - 1] = True
    elif hasattr(buffer, "timeouts"):
        buffer.timeouts[buffer.pos - 1] = True


def _noise_distribution(model: Any) -> Any:
    return getattr(getattr(model, "actor", None) or model.policy, "action_dist", None) if model.use_sde else None


def _spaces(space: gym.Space) -> Iterator[gym.Space]:
    """Yield a space and those in it: each has a random generator."""
    yield space
    inner = getattr(space, "spaces", ())
    for each in inner.values() if isinstance(inner, dict) else inner:
        yield from _spaces(each)
