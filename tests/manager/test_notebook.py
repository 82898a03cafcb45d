"""The cells of a notebook, run by IPython as ipykernel runs them: in a loop that runs all the time."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from asyncckpt import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path
    from typing import Any


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Coroutine[Any, Any, Any]]]:
    """Return a coroutine function that runs a cell, and returns the value of its last expression."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell", reason="needs IPython")
    shell = interactiveshell.InteractiveShell()
    shell.history_manager.enabled = False

    async def run_cell(cell: str) -> Any:
        result = await shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell))
        result.raise_error()
        return result.result

    yield run_cell
    shell.reset(new_session=False)
    shell.atexit_operations()
    gc.collect()


async def test_async_with_at_top_level(run: Callable[[str], Coroutine[Any, Any, Any]]) -> None:
    """A cell may have a whole block."""
    cell = """
import asyncckpt, numpy as np
async with asyncckpt.CheckpointManager("runs") as manager:
    record = await (await manager.save(1, {"a": np.ones(300_000)}))
record.step
"""
    assert await run(cell) == 1
    assert await run("asyncckpt.load('runs').state['a'].sum()") == 300_000


async def test_open_and_aclose_in_cells_of_their_own(run: Callable[[str], Coroutine[Any, Any, Any]]) -> None:
    """The manager stays open from one cell to the next, and writes meanwhile."""
    await run("import asyncckpt")
    opened = await run("manager = await asyncckpt.CheckpointManager('runs').open(); manager")
    assert isinstance(opened, CheckpointManager)
    await run("handle = await manager.save(1, {'a': 1})")
    while not await run("handle.is_done"):
        await asyncio.sleep(0)
    assert await run("manager.steps()") == [1]
    await run("await manager.save(2, {'a': 2})")
    await run("await manager.aclose()")
    assert (await run("asyncckpt.load('runs')")).step == 2


async def test_the_blocking_manager_in_cells(run: Callable[[str], Coroutine[Any, Any, Any]]) -> None:
    """In a block, and in cells of their own."""
    cell = """
from asyncckpt.blocking import CheckpointManager
with CheckpointManager("runs") as manager:
    manager.save(1, {"a": 1}).wait()
manager = CheckpointManager("runs").open()
"""
    await run(cell)
    assert (await run("manager.save(2, {'a': 2}).wait()")).step == 2
    assert await run("manager.load('latest').state") == {"a": 2}
    await run("manager.close()")


async def test_a_checkpointer_in_cells(run: Callable[[str], Coroutine[Any, Any, Any]]) -> None:
    """In both of its modes, and without a block."""
    cell = """
from asyncckpt import Checkpointer
with Checkpointer.from_file("results.h5") as chk:
    chk["grid"] = [1.5, 2.5]
chk["more"] = 1
list(chk)
"""
    assert await run(cell) == ["grid", "more"]
    assert await run("chk['grid']") == [1.5, 2.5]
    assert await run("async with chk as view: found = await view['more']\nfound") == 1
