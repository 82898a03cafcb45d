"""Random schedules of a program whose tasks take part in a cut; `make rigs` plays many more."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reliability.cut_schedules import play


@pytest.mark.parametrize("first", range(0, 500, 100))
def test_every_cut_is_consistent(first: int) -> None:
    """In each schedule: see `reliability/cut_schedules.py` for what must hold. All kinds of events happen."""
    problems, counts = [], Counter[str]()
    for seed in range(first, first + 100):
        found, happened = play(seed)
        problems += found
        counts += happened
    assert not problems, "\n".join(problems[:10])
    assert counts.keys() == {
        *("cuts", "cuts at once", "busy", "timed out", "torn"),
        *("died", "cancelled", "get timed out", "put timed out", "leases completed", "given up"),
    }


@given(seed=st.integers(1_000_000, 1 << 64))
def test_every_cut_is_consistent_in_any_schedule(seed: int) -> None:
    """Also in those that no number here has chosen."""
    assert not play(seed)[0]
