"""Whole states through both formats, to the bit: hypothesis makes them, the manager or its functions save and load."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.strategies import DTYPES, LAYOUTS, keys, make_array, states
from helpers.support import FORMATS, assert_same, canonical, load_from, round_trip, save_to
from hypothesis import given, settings

import asyncckpt
from asyncckpt import CheckpointManager


@pytest.mark.parametrize("form", FORMATS)
@given(state=states)
@settings(max_examples=60)
def test_any_state_comes_back_to_the_bit(form: str, state: Any) -> None:
    """Whatever can be saved comes back equal to the bit, types, order and dtypes included."""
    before = canonical(state)
    with tempfile.TemporaryDirectory() as folder:
        found = round_trip(Path(folder), state, form)
    assert canonical(found) == before
    assert canonical(state) == before, "saving changes nothing"


@pytest.mark.parametrize("form", FORMATS)
@given(state=states)
@settings(max_examples=40)
def test_a_state_fits_itself(form: str, state: Any) -> None:
    """Every state loads into a template that equals it (NaN keys aside, which equal nothing)."""
    if "nan" in repr(state).lower():
        return
    with tempfile.TemporaryDirectory() as folder:
        found = round_trip(Path(folder), state, form, template=state)
    assert_same(found, state)


@pytest.mark.parametrize("form", FORMATS)
@given(state=states)
@settings(max_examples=40)
def test_a_lazy_load_has_the_same_contents(form: str, state: Any) -> None:
    """A lazy load gives what a full one gives."""
    with tempfile.TemporaryDirectory() as folder:
        found = round_trip(Path(folder), state, form, lazy=True)
        assert_same(found, state)


@pytest.mark.parametrize("form", FORMATS)
@given(key=keys)
@settings(max_examples=60)
def test_any_key_comes_back(form: str, key: Any) -> None:
    """Everything hashable that can be saved can be a key, of a dict and in a set."""
    with tempfile.TemporaryDirectory() as folder:
        assert_same(round_trip(Path(folder), {key: 1, "other": [key]}, form), {key: 1, "other": [key]})


@pytest.mark.parametrize("form", FORMATS)
def test_every_dtype_in_every_layout(tmp_path: Path, form: str) -> None:
    """Each dtype comes back to the bit from each layout, with 0, 1 and more dimensions, empty ones too."""
    state = {
        f"{number} {layout} {shape}": make_array(dtype, shape, layout, number)
        for number, dtype in enumerate(DTYPES)
        for layout in LAYOUTS
        for shape in ((), (3,), (2, 3), (0, 2))
    }
    save_to(tmp_path, 0, state, form=form)
    for found in (load_from(tmp_path, 0), load_from(tmp_path, 0, template=state), load_from(tmp_path, 0, lazy=True)):
        assert found.keys() == state.keys()
        assert [name for name in state if canonical(found[name]) != canonical(state[name])] == []


@pytest.mark.parametrize("form", FORMATS)
@given(state=states)
@settings(max_examples=15)
async def test_any_state_through_the_manager(form: str, state: Any) -> None:
    """The manager saves and loads the same, and verifies it."""
    with tempfile.TemporaryDirectory() as folder:
        async with CheckpointManager(folder, format=form) as manager:
            before = canonical(state)
            handle = await manager.save(0, state)
            record = await handle
            assert record is not None
            await manager.verify(0)
            loaded = await manager.load("latest")
            assert loaded is not None
            assert canonical(loaded.state) == before


async def test_both_formats_may_stand_in_one_directory(tmp_path: Path) -> None:
    """Loading goes by what is there, whatever format the manager writes."""
    for step, form in enumerate((*FORMATS, *FORMATS)):
        async with CheckpointManager(tmp_path, format=form) as manager:  # type: ignore[arg-type]
            await (await manager.save(step, {"step": step}))
    async with asyncckpt.CheckpointManager(tmp_path) as manager:
        for step in manager.steps():
            await manager.verify(step)
            loaded = await manager.load(step)
            assert loaded is not None
            assert loaded.state == {"step": step}
    names = {path.name for path in tmp_path.glob("step_*/state.*")}
    assert names == {"state.msgpack", "state.h5"}
