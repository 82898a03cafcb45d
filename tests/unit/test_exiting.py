"""The end of the interpreter: what an exit handler saves is saved, and what it loads is right."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from helpers.kinds import FILES, Place

import asyncckpt

if TYPE_CHECKING:
    from pathlib import Path

SAVE = """
import atexit, asyncio, sys
import numpy as np
import asyncckpt

async def save():
    async with asyncckpt.CheckpointManager(sys.argv[1], format=sys.argv[2], keep_latest_k=2) as manager:
        for step in (1, 2, 3):
            handle = await manager.save(step, {"a": np.full(400_000, step), "b": [np.ones(10)] * 600})
        await handle
        assert (await manager.load(3)).state["a"][0] == 3
        await manager.verify(3)
        print(manager.steps(), await manager.load_training_info())

atexit.register(asyncio.run, save())
"""

KEYED = """
import atexit, asyncio, sys
import numpy as np
import asyncckpt

def blocking():
    with asyncckpt.Checkpointer.from_file(sys.argv[1]) as chk:
        chk["a"] = np.ones(10)

async def asynchronous():
    async with asyncckpt.Checkpointer.from_file(sys.argv[1]) as chk:
        chk["b"] = [1, "two"]
        await chk.save_parameter("c", np.ones(400_000))
        print((await chk["a"]).sum())

atexit.register(lambda: asyncio.run(asynchronous()))
atexit.register(blocking)
"""

BEFORE_US = """
import atexit, sys

@atexit.register
def save():
    with asyncckpt.Checkpointer.from_file(sys.argv[1]) as chk:
        chk["a"] = [1.5]

import asyncckpt
"""

FOREIGN = """
import atexit, sys
import asyncckpt

@atexit.register
def look():
    with asyncckpt.Checkpointer.from_file(sys.argv[1], trusted=True) as chk:
        print(chk["texts"].tolist())
"""


def run(script: str, *args: object) -> str:
    """Run a script in a new interpreter to its very end, and return what it printed."""
    command = [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.parametrize("form", ["msgpack", "hdf5"])
def test_a_manager_saves_and_loads_in_an_exit_handler(tmp_path: Path, form: str) -> None:
    """Threads are not to be had there: the work is done without them."""
    assert run(SAVE, tmp_path / "run", form) == "[2, 3] {}\n"


@pytest.mark.parametrize("kind", FILES)
def test_a_checkpointer_saves_in_an_exit_handler(tmp_path: Path, kind: str) -> None:
    """In both modes, with every kind of file; h5py is imported there for the first time."""
    place = Place(kind, tmp_path)
    assert run(KEYED, place.path) == "10.0\n"
    found = place.contents()
    assert list(found) == ["a", "b", "c"]
    assert found["b"] == [1, "two"]


def test_an_exit_handler_that_comes_after_ours_may_be_the_first_to_use_hdf5(tmp_path: Path) -> None:
    """It was registered before asyncckpt was imported, and so is called when our own handler has been."""
    place = Place("hdf5", tmp_path)
    run(BEFORE_US, place.path)
    assert place.contents() == {"a": [1.5]}


def test_texts_of_another_program_are_read_in_an_exit_handler(tmp_path: Path) -> None:
    """They need h5py's conversions, which therefore last until the program's handlers have run."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["texts"] = np.array(["one", "two"], h5py.string_dtype())
    assert run(FOREIGN, tmp_path / "other.h5") == "['one', 'two']\n"


def test_a_checkpointer_left_open_does_not_disturb_the_end(tmp_path: Path) -> None:
    """What was not flushed is lost, as its documentation says, and nothing crashes."""
    script = """
    import sys, warnings, asyncckpt
    warnings.simplefilter("ignore")
    chk = asyncckpt.Checkpointer.from_file(sys.argv[1])
    chk.__enter__()
    chk["a"] = 1
    """
    run(script, tmp_path / "left.h5")
    with asyncckpt.Checkpointer.from_file(tmp_path / "left.h5") as chk:
        assert "a" not in chk
