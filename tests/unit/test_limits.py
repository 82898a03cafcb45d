"""What no reader takes, no writer makes: the bounds hold on both sides, and saving says so first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.support import round_trip, save_to

from asyncckpt import UnsupportedLeafError
from asyncckpt.state.encode import MAX_KEY_DEPTH

if TYPE_CHECKING:
    from pathlib import Path


def nested(depth: int) -> Any:
    """Return a tuple with tuples in it."""
    value: Any = ()
    for _ in range(depth - 1):
        value = (value,)
    return value


@pytest.mark.parametrize("wrap", [lambda key: {key: 1}, lambda key: {key}, lambda key: [frozenset({key})]])
def test_keys_and_elements_may_be_nested_so_deep(tmp_path: Path, wrap: Any) -> None:
    """At the bound they come back; beyond it, they are refused before anything is written."""
    state = wrap(nested(MAX_KEY_DEPTH))
    assert round_trip(tmp_path, state) == state
    with pytest.raises(UnsupportedLeafError, match=f"nested more than {MAX_KEY_DEPTH} deep"):
        save_to(tmp_path, 5, wrap(nested(MAX_KEY_DEPTH + 1)))


def test_lists_may_be_nested_deeper(tmp_path: Path) -> None:
    """What is not hashed has no bound."""
    state: Any = []
    for _ in range(5 * MAX_KEY_DEPTH):
        state = [state]
    found = round_trip(tmp_path, state)
    for _ in range(5 * MAX_KEY_DEPTH):
        (found,) = found
    assert found == []


@pytest.mark.parametrize(
    "seed",
    [np.random.SeedSequence(1, pool_size=65), np.random.SeedSequence(1 << 8192), np.random.SeedSequence([1 << 8192])],
)
def test_seeds_that_are_slow_are_refused(tmp_path: Path, seed: np.random.SeedSequence) -> None:
    """A file could hold thousands of them."""
    with pytest.raises(UnsupportedLeafError, match="SeedSequence"):
        save_to(tmp_path, 1, {"seed": seed})


def test_seeds_below_the_bound_come_back(tmp_path: Path) -> None:
    """With the same children."""
    seed = np.random.SeedSequence((1 << 8192) - 1, pool_size=64)
    found = round_trip(tmp_path, seed)
    assert found.spawn(1)[0].generate_state(4).tolist() == seed.spawn(1)[0].generate_state(4).tolist()


def test_a_dtype_of_too_many_fields_is_refused(tmp_path: Path) -> None:
    """Its description must be read at once."""
    array = np.zeros(1, [(f"field{i}", "u1") for i in range(20_000)])
    with pytest.raises(UnsupportedLeafError, match="20000 fields"):
        save_to(tmp_path, 1, {"a": array})
