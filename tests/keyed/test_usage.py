"""What a Checkpointer says to a mistake, and which file a relative path means."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate

import asyncckpt
from asyncckpt import CheckpointerUsageError, FileLockedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.kinds import Place

HOLDER = """
import sys
import asyncckpt

with asyncckpt.Checkpointer.from_file(sys.argv[1]) as chk:
    chk["a"] = 1
    print("held", flush=True)
    sys.stdin.read()
"""


# --- the wrong block --------------------------------------------------------------------------------------------------


async def test_with_on_a_loop(place: Place) -> None:
    """It works, for each use of what was never entered, too, and the work is not done in the loop's thread."""
    threads = set()

    class Noting:
        def to_state(self, value: Any) -> Any:
            threads.add(threading.current_thread())
            return value

        def from_state(self, state: Any) -> Any:
            threads.add(threading.current_thread())
            return state

    with place.open(serializer=Noting()) as chk:
        chk["a"] = {"b": np.arange(3)}
        chk.update(c=1, d=2)
        assert chk.pop("c", None) in (1, None)
        del chk["d"]
        chk.flush()
        kept = "a" in chk
    assert chk.cached_eval("e", lambda: threading.current_thread() is threading.main_thread())
    if kept:  # a NullCheckpointer keeps nothing
        assert list(chk) == ["a", "e"]
        assert chk["a", "b"].tolist() == [0, 1, 2]
        assert chk.get("a")["b"].tolist() == [0, 1, 2]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="no key 'x'"):
            chk["x"]
    assert len(chk) == 2 * kept
    assert threading.current_thread() not in threads
    assert not [each for each in threading.enumerate() if each.name.startswith("asyncckpt")]


async def test_both_modes_at_once(place: Place) -> None:
    """The blocking one is refused while the asynchronous one is open, and names the view."""
    chk = place.open()
    uses: list[Callable[[], Any]] = [
        chk.__enter__,
        lambda: chk["a"],
        lambda: chk.__setitem__("a", 1),
        lambda: chk.__delitem__("a"),
        lambda: chk.get("a"),
        lambda: chk.pop("a"),
        lambda: chk.update(a=1),
        lambda: chk.load_parameter("a"),
        lambda: chk.save_parameter("a", 1),
        lambda: "a" in chk,
        lambda: len(chk),
        lambda: list(chk),
        chk.flush,
        lambda: chk.cached_eval("a", int),
    ]
    async with chk as view:
        for use in uses:
            with pytest.raises(CheckpointerUsageError, match="use the view that `async with` returned"):
                use()
        assert len(view) == 0


def test_async_with_in_a_script(place: Place) -> None:
    """Its coroutines, driven without a loop, say what they need."""
    entering = place.open().__aenter__()
    with pytest.raises(CheckpointerUsageError, match="asyncio"):
        entering.send(None)


async def test_a_view_is_not_entered(place: Place) -> None:
    """Neither by `with` nor by `async with`: it is what the latter gave."""
    async with place.open() as view:
        for enter in (ExitStack().enter_context, lambda view: view.__enter__()):
            with pytest.raises(CheckpointerUsageError, match="was returned by `async with`: use it as it is"):
                enter(view)
        with pytest.raises(CheckpointerUsageError, match="was returned by `async with`: use it as it is"):
            async with view:
                pass
        view["a"] = 1
    async with place.open() as view:
        assert await view["a"] == 1


async def test_leaving_what_was_never_entered(place: Place) -> None:
    """And what has been left: in either mode it says so, and the Checkpointer can be used afterwards."""
    chk = place.open()
    for _ in range(2):
        with pytest.raises(CheckpointerUsageError, match="is not open: its `async with` block was not entered"):
            await chk.__aexit__(None, None, None)
        async with chk:
            pass

    def script() -> None:
        for _ in range(2):
            with pytest.raises(CheckpointerUsageError, match="is not open: its `with` block was not entered"):
                chk.__exit__(None, None, None)
            with chk:
                chk["a"] = 1

    await asyncio.to_thread(script)


# --- too late ---------------------------------------------------------------------------------------------------------


async def test_a_view_that_was_left(place: Place) -> None:
    """Every use of it: the file is closed."""
    async with place.open() as view:
        view["a"] = 1
    uses: list[Callable[[], Any]] = [
        lambda: view.__setitem__("a", 1),
        lambda: view.__delitem__("a"),
        lambda: "a" in view,
        lambda: len(view),
        lambda: list(view),
    ]
    for use in uses:
        with pytest.raises(CheckpointerUsageError, match=r"is closed: use the view inside its `async with`"):
            use()
    awaited: list[Callable[[], Any]] = [
        lambda: view["a"],
        lambda: view.get("a"),
        lambda: view.pop("a"),
        lambda: view.update(a=1),
        lambda: view.save_parameter("a", 1),
        lambda: view.delete_parameter("a"),
        lambda: view.cached_eval("a", int),
        view.flush,
    ]
    for use in awaited:
        with pytest.raises(CheckpointerUsageError, match=r"is closed: use the view inside its `async with`"):
            await use()


async def test_who_waited_while_the_block_was_left(file: Place) -> None:
    """A save that comes to its turn too late says that the file, and not some manager, is closed."""
    gate = Gate()

    class Slow:
        def to_state(self, value: Any) -> Any:
            gate()
            return value

        def from_state(self, state: Any) -> Any:
            return state

    large = np.zeros(300_000)
    async with file.open(serializer=Slow()) as view:
        first = asyncio.ensure_future(view.save_parameter("a", large))
        await gate.reached()
        second = asyncio.ensure_future(view.save_parameter("b", large))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(gate.open)
    await asyncio.wait((first, second))
    for task in (first, second):
        error = task.exception()
        assert error is None or (isinstance(error, CheckpointerUsageError) and "is closed: use the view" in str(error))
    assert second.exception() is not None


# --- the lock ---------------------------------------------------------------------------------------------------------


async def test_a_lock_of_this_very_process(file: Place) -> None:
    """Each mode names it, and what to do."""
    expected = r"another Checkpointer of this process has it open.*Change it with that one, or close it first"
    async with file.open() as first:
        await first.save_parameter("a", 1)
        async with file.open() as second:
            with pytest.raises(FileLockedError, match=expected):
                await second.save_parameter("b", 1)

        def script() -> None:
            with file.open() as third, pytest.raises(FileLockedError, match=expected):
                third["c"] = 1

        await asyncio.to_thread(script)


def test_a_lock_of_another_process(file: Place) -> None:
    """It is another writer, also after this process has had the lock."""
    with file.open() as chk:
        chk["b"] = 1
    with subprocess.Popen(  # noqa: S603 - it is ours
        [sys.executable, "-c", HOLDER, str(file.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with file.open() as chk, pytest.raises(FileLockedError, match=r"another writer has it open.*Wait until"):
            chk["c"] = 1
        holder.communicate()


# --- the working directory --------------------------------------------------------------------------------------------


def test_a_relative_path_is_of_the_directory_it_was_given_in(file: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process goes before the file is opened, or between two blocks."""
    here, there = file.directory / "here", file.directory / "there"
    for each in (here, there):
        each.mkdir()
    monkeypatch.chdir(here)
    chk = asyncckpt.Checkpointer.from_file(file.path.name)
    monkeypatch.chdir(there)
    with chk:
        chk["a"] = 1
    monkeypatch.chdir(here)
    chk["b"] = 2
    assert [each.name for each in here.iterdir()] == [file.path.name]
    assert list(there.iterdir()) == []
    assert chk.checkpoint_file == here / file.path.name


async def test_a_relative_path_on_a_loop(file: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the asynchronous view."""
    there = file.directory / "there"
    there.mkdir()
    monkeypatch.chdir(file.directory)
    chk = asyncckpt.Checkpointer.from_file(file.path.name)
    monkeypatch.chdir(there)
    async with chk as view:
        view["a"] = 1
    assert await asyncio.to_thread(file.contents) == {"a": 1}
    assert list(there.iterdir()) == []
