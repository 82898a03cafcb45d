"""Save random generators as plain state, and make them from untrusted state.

1. The state is all that a generator needs to continue with the same numbers, and to spawn the same children.
2. numpy does not check a state, and would read beyond its buffers. Positions are checked here.
3. Seeds that would take quadratic time to hash are refused, both on saving and on loading.
4. numpy.random is not imported here, unless a program uses it.
"""

from __future__ import annotations

import random
import reprlib
import sys
from functools import cache
from typing import Any, Final

import numpy as np

from asyncckpt.errors import UnsupportedLeafError

_MAX_POOL_SIZE: Final = 64
_MAX_SEED_BITS: Final = 8192
_MAX_SPAWNED: Final = 100_000  # children that `restore` spawns from a SeedSequence to reach the saved count


def kind_of(cls: type) -> str | None:
    """Return the name of the reduction of a type of numpy's random generators; None for other types."""
    return _kinds().get(cls) if "numpy.random" in sys.modules else None


@cache
def _kinds() -> dict[type, str]:
    kinds: dict[type, str] = dict.fromkeys(_bit_generators().values(), "bit_generator")
    kinds[np.random.SeedSequence] = "seed_sequence"
    kinds[np.random.Generator] = "generator"
    kinds[np.random.RandomState] = "random_state"
    return kinds


@cache
def _bit_generators() -> dict[str, type[np.random.BitGenerator]]:
    """Return the algorithms by their names in a state."""
    known = (np.random.MT19937, np.random.PCG64, np.random.PCG64DXSM, np.random.Philox, np.random.SFC64)
    return {cls.__name__: cls for cls in known}


def seed_sequence_state(value: np.random.SeedSequence) -> object:
    """Return the plain state of a SeedSequence."""
    try:
        _check_seed(value.state)
    except ValueError as error:
        raise UnsupportedLeafError(str(error), path="") from error
    return dict(value.state)


def seed_sequence(state: Any) -> np.random.SeedSequence:
    """Make a SeedSequence."""
    _check_seed(state)
    return np.random.SeedSequence(**{**state, "spawn_key": tuple(state["spawn_key"])})


def seed_sequence_differs(value: np.random.SeedSequence, state: Any) -> tuple[str, object, object] | None:
    """Compare seeds. A SeedSequence cannot change, except that it can spawn more children."""
    own = value.state
    more = state["n_children_spawned"] - own["n_children_spawned"]
    if _seed_facts(own) == _seed_facts(state) and 0 <= more <= _MAX_SPAWNED:
        return None
    return "seed", f"the SeedSequence {own}, which can only spawn more children", state


def update_seed_sequence(value: np.random.SeedSequence, state: Any) -> None:
    """Spawn children from a SeedSequence until it has as many as a state."""
    if seed_sequence_differs(value, state) is not None:
        raise ValueError("the state is that of another SeedSequence")
    value.spawn(state["n_children_spawned"] - value.n_children_spawned)


def _seed_facts(state: Any) -> tuple[object, ...]:
    return state["entropy"], tuple(state["spawn_key"]), state["pool_size"]


def _check_seed(state: Any) -> None:
    """Refuse seeds that take quadratic time to hash, because a file may hold thousands of them."""
    if state["pool_size"] > _MAX_POOL_SIZE:
        raise ValueError(f"a SeedSequence with a pool_size of {state['pool_size']}, more than {_MAX_POOL_SIZE}")
    for part in (state["entropy"], state["spawn_key"]):
        words = part if isinstance(part, list | tuple) else [part]
        if any(isinstance(word, int) and word.bit_length() > _MAX_SEED_BITS for word in words):
            raise ValueError(f"a SeedSequence with a number of over {_MAX_SEED_BITS} bits: use a list of smaller ones")


def bit_generator_state(value: np.random.BitGenerator) -> object:
    """Return the plain state of a BitGenerator."""
    if type(value) is not _bit_generators().get(type(value).__name__):
        message = f"the bit generator {type(value).__qualname__} is not one of {', '.join(_bit_generators())}"
        raise UnsupportedLeafError(message, path="")
    seed = getattr(value, "seed_seq", None)  # spawn() depends on it
    if seed is not None and type(seed) is not np.random.SeedSequence:
        message = f"its seed is a {type(seed).__qualname__}, which cannot be saved: use a SeedSequence"
        raise UnsupportedLeafError(message, path="")
    return {"state": value.state, "seed_seq": seed}


def bit_generator(state: Any) -> np.random.BitGenerator:
    """Make a BitGenerator."""
    algorithm = _checked_algorithm(state["state"])
    made = _bit_generators()[algorithm["bit_generator"]](_seed_of(state))
    made.state = algorithm
    return made


def update_bit_generator(value: np.random.BitGenerator, state: Any) -> None:
    """Set the state of a BitGenerator."""
    algorithm, seed = _checked_algorithm(state["state"]), _seed_of(state)
    if seed is None:
        value.state = algorithm
    else:
        value.__setstate__((algorithm, seed))  # type: ignore[attr-defined]


def _seed_of(state: Any) -> np.random.SeedSequence | None:
    seed = state["seed_seq"]
    if seed is not None and type(seed) is not np.random.SeedSequence:
        raise ValueError(f"seed_seq is a {type(seed).__name__}, not a SeedSequence")
    return seed


def _checked_algorithm(state: Any) -> Any:
    """Return the state of an algorithm, after checking its position, which numpy does not do."""
    name = state["bit_generator"]
    if name == "MT19937":
        position, end = state["state"]["pos"], 624
    elif name == "Philox":
        position, end = state["buffer_pos"], 4
    else:
        return state
    if type(position) is not int or not 0 <= position <= end:
        raise ValueError(f"the position {reprlib.repr(position)} is outside a buffer of {end}")
    return state


def algorithm_differs(value: Any, state: Any) -> tuple[str, object, object] | None:
    """Compare algorithms, which a generator cannot change."""
    own = _algorithm(value)
    found = state["bit_generator"] if "bit_generator" in state else state["state"]["bit_generator"]
    return None if own == found else ("type", f"{type(value).__qualname__} of {own}", found)


def _algorithm(value: Any) -> object:
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)["bit_generator"]
    return type(value.bit_generator if isinstance(value, np.random.Generator) else value).__name__


def generator_state(value: np.random.Generator) -> object:
    """Return the plain state of a Generator."""
    return bit_generator_state(value.bit_generator)


def generator(state: Any) -> np.random.Generator:
    """Make a Generator."""
    return np.random.Generator(bit_generator(state))


def update_generator(value: np.random.Generator, state: Any) -> None:
    """Set the state of a Generator."""
    update_bit_generator(value.bit_generator, state)


def random_state_state(value: np.random.RandomState) -> object:
    """Return the plain state of a RandomState."""
    state = value.get_state(legacy=False)
    if state["bit_generator"] not in _bit_generators():
        message = f"the bit generator {state['bit_generator']} is not one of {', '.join(_bit_generators())}"
        raise UnsupportedLeafError(message, path="")
    return state


def random_state(state: Any) -> np.random.RandomState:
    """Make a RandomState."""
    made = np.random.RandomState(_bit_generators()[state["bit_generator"]](0))
    update_random_state(made, state)
    return made


def update_random_state(value: np.random.RandomState, state: Any) -> None:
    """Set the state of a RandomState."""
    value.set_state(_checked_algorithm(state))


def python_random(state: Any) -> random.Random:
    """Make a `random.Random`."""
    made = random.Random()  # noqa: S311 - a simulation's generator, not a secret
    made.setstate(state)
    return made
