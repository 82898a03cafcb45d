"""`debug=True`: a save whose state changes while it is captured raises, with the path, and nothing of it is queued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

from asyncckpt import CheckpointManager, Cut, SaveFailedError, StateChangedError, register_type
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


@register_type(name="tests.debug.Second")
class Second:
    """A value that does something when it is asked for its state for the second time."""

    def __init__(self, action: Callable[[], object] = lambda: None) -> None:
        self.calls = 0
        self._action = action

    def to_state(self) -> None:
        """Do it from the second time on."""
        self.calls += 1
        if self.calls > 1:
            self._action()

    @classmethod
    def from_state(cls, _: None) -> Second:
        """Make another."""
        return cls()


@pytest.mark.parametrize("with_cut", [False, True])
@pytest.mark.parametrize(
    ("nbytes", "frozen", "options"),
    [
        pytest.param(8, False, {}, id="inline"),
        pytest.param(4 * MIB, False, {}, id="staged"),
        pytest.param(4 * MIB, False, {"max_staged_nbytes": MIB}, id="streamed"),
        pytest.param(8, True, {}, id="small and frozen"),
        pytest.param(4 * MIB, True, {}, id="frozen"),
    ],
)
async def test_a_change_during_the_capture_raises(
    tmp_path: Path, nbytes: int, frozen: bool, options: dict[str, Any], with_cut: bool
) -> None:
    """The step is free again, nothing is queued, and a state that does not change is saved."""
    if with_cut and options:
        pytest.skip("a cut is held only for states within the budget")
    cut = Cut() if with_cut else None
    held: list[bool] = []
    data = np.zeros(nbytes, np.uint8)

    def change() -> None:
        held.append(cut is None or cut.is_held)
        data[-1] += 1

    async with CheckpointManager(tmp_path, debug=True, **options) as manager:
        state: Any = {"data": data, "second": Second(change)}
        with pytest.raises(StateChangedError, match=r"asyncckpt\.Cut") as caught:
            await manager.save(1, (lambda: state) if with_cut else state, frozen=frozen, cut=cut)
        assert caught.value.path == "data"
        assert held
        assert all(held)
        assert manager.steps() == []
        await manager.flush()
        state = {"data": data, "second": Second(), "set": {1, "x"}}
        await (await manager.save(1, (lambda: state) if with_cut else state, frozen=frozen, cut=cut))
        assert np.array_equal((await manager.load(1)).state["data"], data)


async def test_save_nowait_looks_again(tmp_path: Path) -> None:
    """It raises at once, and the step is free again."""
    data = np.zeros(8)
    async with CheckpointManager(tmp_path, debug=True) as manager:
        with pytest.raises(StateChangedError) as caught:
            manager.save_nowait(1, {"data": data, "second": Second(lambda: data.fill(1))})
        assert caught.value.path == "data"
        await manager.save_nowait(1, {"data": data})
        assert manager.steps() == [1]


async def test_a_tree_that_changes_is_found(tmp_path: Path) -> None:
    """A number of the tree is looked at, too."""
    inner = {"a": 1}
    async with CheckpointManager(tmp_path, debug=True) as manager:
        with pytest.raises(StateChangedError) as caught:
            await manager.save(1, {"second": Second(lambda: inner.update(a=2)), "inner": inner})
    assert caught.value.path == "inner/a"


async def test_without_debug_the_state_is_read_once(tmp_path: Path) -> None:
    """The second look costs nothing where it is not wanted."""
    second = Second()
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"second": second}))
    assert second.calls == 1


async def test_a_frozen_state_that_changes_before_the_commit(tmp_path: Path) -> None:
    """The save fails, and says that the promise of frozen=True was broken."""
    data = np.zeros(4 * MIB, np.uint8)
    disk = FaultyDisk()
    async with CheckpointManager(tmp_path, debug=True, disk=disk) as manager:
        with hold(disk) as gate:
            handle = await manager.save(1, {"data": data}, frozen=True)
            await gate.reached()
            data[-1] = 1
        with pytest.raises(SaveFailedError, match="frozen=True") as caught:
            await handle
        assert isinstance(caught.value.__cause__, StateChangedError)
        assert manager.steps() == []
