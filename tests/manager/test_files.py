"""Files of the program's own in the commit of a state: `save(..., files=...)`."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import json
import os
import resource
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import hold

import asyncckpt
from asyncckpt import FileSource
from asyncckpt.disk.manifest import decode_manifest, digest_bytes
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

STATE = {"a": np.arange(10), "step": 7}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give the path of a checkpoint directory that does not exist yet."""
    return tmp_path / "runs"


@pytest.fixture
async def manager(root: Path) -> AsyncIterator[asyncckpt.CheckpointManager]:
    """Give a manager of it."""
    async with asyncckpt.CheckpointManager(root) as made:
        yield made


CONTENTS = {"x": b"x", "sub/big": bytes(range(256)) * (5 << 12), "sub/deep/odd": bytes((1 << 20) + 1), "sub/none": b""}


def make_tree(path: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    """Make a directory with files, large and small, and an empty folder."""
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    (path / "empty").mkdir()
    return path


def read_tree(path: Path) -> dict[str, bytes]:
    """Return what the files in a directory hold."""
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def names_in(root: Path) -> list[str]:
    """List a checkpoint directory, without its lock."""
    return sorted(path.name for path in root.iterdir() if path.name != ".lock")


async def saved(
    manager: asyncckpt.CheckpointManager, step: int, files: Any, **options: Any
) -> asyncckpt.CheckpointRecord:
    """Save a step with files and wait until it is committed."""
    record = await (await manager.save(step, STATE, files=files, **options))
    assert record is not None
    return record


async def failure_of(manager: asyncckpt.CheckpointManager, step: int, files: Any) -> asyncckpt.SaveFailedError:
    """Save a step, which fails, and return the error."""
    handle = await manager.save(step, STATE, files=files)
    with pytest.raises(asyncckpt.SaveFailedError) as caught:
        await handle
    return caught.value


def writes(contents: dict[str, bytes]) -> Callable[[Path], Any]:
    """Return a source that writes files."""

    async def write(path: Path) -> None:
        def work() -> None:
            for name, data in contents.items():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)

        await asyncio.to_thread(work)

    return write


# --- what comes of it -------------------------------------------------------------------------------------------------


async def test_sources_of_all_kinds_are_in_the_commit(
    manager: asyncckpt.CheckpointManager, root: Path, tmp_path: Path
) -> None:
    """A file, a directory, a moved one and a function: their files are there, listed, digested and verified."""
    tree, moved = make_tree(tmp_path / "tree"), make_tree(tmp_path / "moved")
    file = tmp_path / "log.txt"
    file.write_bytes(b"log")
    inode = (moved / "sub" / "big").stat().st_ino
    files = {
        "tree": tree,
        "logs/train.txt": str(file),
        "moved": FileSource(moved, move=True),
        "made": writes({"a": b"1", "b/c": b"2"}),
    }
    record = await saved(manager, 7, files)
    assert record.path == root / "step_7"
    assert read_tree(record.path / "tree") == read_tree(record.path / "moved") == CONTENTS
    assert (record.path / "tree" / "empty").is_dir()
    assert read_tree(record.path / "made") == {"a": b"1", "b/c": b"2"}
    assert (record.path / "logs" / "train.txt").read_bytes() == b"log"
    assert read_tree(tree) == CONTENTS
    assert file.exists()
    assert not moved.exists()
    assert (record.path / "moved" / "sub" / "big").stat().st_ino == inode
    expected = {f"{top}/{name}": data for top in ("tree", "moved") for name, data in CONTENTS.items()}
    expected |= {"made/a": b"1", "made/b/c": b"2", "logs/train.txt": b"log"}
    manifest = decode_manifest((record.path / "manifest.json").read_bytes(), 7)
    assert {name: manifest.files[name] for name in expected} == {n: digest_bytes(data) for n, data in expected.items()}
    assert manifest.files.keys() - expected.keys() == {"state.msgpack", "training_info.json"}
    await manager.verify(7)
    loaded = await manager.load(7)
    assert loaded is not None
    assert loaded.state["step"] == 7
    wanted = [(name, len(data), record.path / name) for name, data in sorted(expected.items())]
    assert list(loaded.files) == list(record.files) == wanted
    assert loaded.files[0].name == "logs/train.txt"
    assert loaded.files[0].size == 3
    assert loaded.files[0].path.read_bytes() == b"log"


async def test_a_damaged_file_is_found(manager: asyncckpt.CheckpointManager) -> None:
    """`verify` covers the files: one bit, one byte less, or one that is gone."""
    for step in (1, 2, 3):
        await saved(manager, step, {"w": writes({"x": b"12345678"})})
    loaded = await manager.load(1)
    assert loaded is not None
    (file,) = loaded.files
    file.path.write_bytes(b"12345679")
    (file.path.parents[2] / "step_2" / "w" / "x").write_bytes(b"1234567")
    (file.path.parents[2] / "step_3" / "w" / "x").unlink()
    for step in (1, 2, 3):
        with pytest.raises(asyncckpt.CorruptCheckpointError, match="w/x"):
            await manager.verify(step)


@pytest.mark.parametrize("form", ["msgpack", "hdf5"])
async def test_without_files_there_are_none(root: Path, form: Any) -> None:
    """A checkpoint's own files are not among `record.files`, in either format, and neither is a config."""
    async with asyncckpt.CheckpointManager(root, format=form) as manager:
        assert (await saved(manager, 1, None)).files == ()
        assert (await saved(manager, 2, {}, run_config={"lr": 1})).files == ()
        for step in (1, 2):
            loaded = await manager.load(step)
            assert loaded is not None
            assert loaded.files == ()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """Give a directory in memory if there is one: a thousand syncs cost nothing there."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path  # noqa: S108 - what is made there is private
    with tempfile.TemporaryDirectory(dir=place) as made:
        yield Path(made)


async def test_a_thousand_files(memory: Path) -> None:
    """Copied, moved, or made: many files need few descriptors, and all are there."""
    async with asyncckpt.CheckpointManager(memory / "runs") as manager:
        await check_a_thousand_files(manager, memory)


async def check_a_thousand_files(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """Save them, and look."""
    contents = {f"{number % 10}/{number}": str(number).encode() for number in range(1000)}
    make_tree(tmp_path / "many", contents)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 150, hard))
    try:
        record = await saved(manager, 1, {"many": tmp_path / "many", "made": writes(contents)})
        again = await saved(manager, 2, {"many": FileSource(tmp_path / "many", move=True)})
        await manager.verify(1)
        await manager.verify(2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_tree(record.path / "many") == read_tree(record.path / "made") == contents
    assert read_tree(again.path / "many") == contents
    assert len(record.files) == 2000
    assert not (tmp_path / "many").exists()


async def test_overwrite_and_retention_take_files_along(root: Path) -> None:
    """An overwritten or pruned checkpoint goes with its files; those of the new version are there."""
    async with asyncckpt.CheckpointManager(root, keep_latest_k=2) as manager:
        await saved(manager, 1, {"w": writes({"x": b"old", "gone": b""})})
        record = await saved(manager, 1, {"w": writes({"x": b"new"})}, overwrite=True)
        assert read_tree(record.path / "w") == {"x": b"new"}
        record = await saved(manager, 1, None, overwrite=True)
        assert not (record.path / "w").exists()
        for step in (2, 3, 4):
            await saved(manager, step, {"w": writes({"x": b"x"})})
        assert manager.steps() == [3, 4]
    assert names_in(root) == ["step_3", "step_4"]


async def test_save_nowait_takes_files(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """Names are checked at once; paths are looked at when it is written, and the handle says what is wrong."""
    record = await manager.save_nowait(1, {}, files={"w": writes({"x": b"1"})})
    assert record is not None
    assert read_tree(record.path / "w") == {"x": b"1"}
    with pytest.raises(ValueError, match="state"):
        manager.save_nowait(2, {}, files={"state.msgpack": tmp_path})
    with pytest.raises(asyncckpt.SaveFailedError, match="No such file"):
        await manager.save_nowait(2, {}, files={"w": tmp_path / "none"})


async def test_saves_that_are_not_written_touch_no_source(root: Path, tmp_path: Path) -> None:
    """Skipped, replaced, cancelled, disabled: no function is called, and nothing moves."""
    called = []

    async def source(path: Path) -> None:
        called.append(path)

    moved = make_tree(tmp_path / "moved")
    files = {"made": source, "moved": FileSource(moved, move=True)}
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(root, disk=disk, max_staged_nbytes=2000, overflow="replace") as manager:
        big = {"a": np.zeros(1200, np.uint8)}
        with hold(disk) as gate:
            first = await manager.save(1, {"a": 1})
            await gate.reached()
            replaced = await manager.save(2, big, files=files)
            last = await manager.save(3, big, files=files)
            assert last.cancel()
        await first
        assert [replaced.state, last.state] == ["replaced", "cancelled"]
    async with asyncckpt.CheckpointManager(root, enabled=False) as manager:
        assert (await manager.save(4, {}, files=files)).state == "skipped"
    assert called == []
    assert read_tree(moved) == CONTENTS


async def test_the_room_that_copies_take_counts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save whose files do not fit is refused before anything is written; moving them takes no room."""
    tree = make_tree(tmp_path / "tree")
    monkeypatch.setattr("asyncckpt.disk.room.free_nbytes", lambda _: 1 << 20)
    async with asyncckpt.CheckpointManager(root) as manager:
        error = await failure_of(manager, 1, {"tree": tree})
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == errno.ENOSPC
        assert names_in(root) == []
        await saved(manager, 2, {"tree": FileSource(tree, move=True)})


async def test_a_state_beyond_the_budget_takes_files(root: Path) -> None:
    """`save` returns when the state has been copied, and does not wait for a function."""
    go = asyncio.Event()

    async def source(path: Path) -> None:
        await go.wait()
        await writes({"x": b"1"})(path)

    async with asyncckpt.CheckpointManager(root, max_staged_nbytes=1 << 20) as manager:
        handle = await manager.save(1, {"a": np.zeros(3 << 20, np.uint8)}, files={"w": source})
        assert not handle.is_done
        go.set()
        assert await handle is not None


async def test_a_relative_path_is_of_the_directory_it_was_given_in(
    manager: asyncckpt.CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the process goes before the save is written."""
    make_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    handle = manager.save_nowait(1, {}, files={"w": "tree"})
    monkeypatch.chdir("/")
    record = await handle
    assert record is not None
    assert read_tree(record.path / "w") == CONTENTS


# --- functions --------------------------------------------------------------------------------------------------------


async def test_a_function_runs_in_order_and_in_its_callers_context(
    manager: asyncckpt.CheckpointManager, root: Path
) -> None:
    """It is called on the loop, after the saves before it, with an empty directory of a step that no reader sees."""
    word = contextvars.ContextVar("word", default="")
    seen: list[Any] = []

    def source(name: str) -> Callable[[Path], Any]:
        async def fill(path: Path) -> None:
            assert asyncio.get_running_loop() is loop
            found = await asyncio.to_thread(os.listdir, path)
            seen.append((name, word.get(), path.relative_to(root), found, manager.steps()))

        return fill

    loop = asyncio.get_running_loop()
    word.set("one")
    first = await manager.save(1, STATE, files={"b": source("1b"), "a/x": source("1a")})
    word.set("two")
    second = await manager.save(2, STATE, files={"c": source("2c")})
    word.set("three")
    await asyncio.gather(first, second)
    assert seen == [
        ("1b", "one", Path("tmp_step_1/b"), [], []),
        ("1a", "one", Path("tmp_step_1/a/x"), [], []),
        ("2c", "two", Path("tmp_step_2/c"), [], [1]),
    ]
    assert (root / "step_1" / "a" / "x").is_dir()


async def test_a_save_under_a_cut_takes_files(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """Paths are refused before the cut is held; a function runs after it, while the participants go on."""
    cut = asyncckpt.Cut()
    count = 0
    is_called, has_moved, is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def participant() -> None:
        nonlocal count
        async with cut.participant("actor") as me:
            while not is_over.is_set():
                await me.safe_point()
                count += 1
                if is_called.is_set():
                    has_moved.set()
                await asyncio.sleep(0)

    def make_state() -> dict[str, int]:
        made.append(count)
        return {"count": count}

    async def source(path: Path) -> None:
        is_called.set()
        await has_moved.wait()
        await writes({"x": b"1"})(path)

    made: list[int] = []
    task = asyncio.create_task(participant())
    try:
        with pytest.raises(FileNotFoundError):
            await manager.save(1, make_state, cut=cut, files={"w": tmp_path / "none"})
        assert made == []
        handle = await manager.save(1, make_state, cut=cut, files={"w": source, "tree": make_tree(tmp_path / "tree")})
        record = await handle
    finally:
        is_over.set()
        await task
    assert record is not None
    loaded = await manager.load(1)
    assert loaded is not None
    assert loaded.state == {"count": made[-1]}
    assert read_tree(record.path / "w") == {"x": b"1"}
    assert read_tree(record.path / "tree") == CONTENTS


class BoomError(Exception):
    """What a source raises."""


async def test_a_source_that_raises_fails_the_save(
    manager: asyncckpt.CheckpointManager, root: Path, tmp_path: Path
) -> None:
    """The error names the step and the file and has the original as its cause; nothing is left, nothing has moved."""
    boom = BoomError("boom")
    moved = make_tree(tmp_path / "moved")

    async def source(path: Path) -> None:
        await writes(CONTENTS)(path)
        raise boom

    await saved(manager, 1, None)
    error = await failure_of(manager, 2, {"moved": FileSource(moved, move=True), "weights": source})
    assert str(error) == "step 2 was not saved: files['weights']: boom"
    assert error.__cause__ is boom
    assert error.step == 2
    assert names_in(root) == ["step_1"]
    assert read_tree(moved) == CONTENTS
    assert manager.steps() == [1]
    await saved(manager, 2, {"moved": FileSource(moved, move=True)})


@pytest.mark.parametrize("made", [None, 3])
async def test_a_function_must_return_an_awaitable(manager: asyncckpt.CheckpointManager, made: Any) -> None:
    """A blocking function would stop the loop: the error says how to pass it."""
    error = await failure_of(manager, 1, {"weights": lambda _: made})
    assert isinstance(error.__cause__, TypeError)
    assert "asyncio.to_thread" in str(error)


@pytest.mark.parametrize("kind", ["link", "fifo", "socket"])
async def test_what_a_function_may_not_leave(manager: asyncckpt.CheckpointManager, root: Path, kind: str) -> None:
    """Symbolic links and special files are refused, by name."""

    async def source(path: Path) -> None:
        await asyncio.to_thread(make_odd, path / "odd", kind)

    error = await failure_of(manager, 1, {"weights": source})
    assert isinstance(error.__cause__, asyncckpt.CheckpointError)
    assert "weights/odd is a symbolic link or a special file" in str(error)
    assert names_in(root) == []


def make_odd(path: Path, kind: str) -> None:
    """Make what a checkpoint cannot hold."""
    if kind == "link":
        path.symlink_to(__file__)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        at = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(at)


async def test_a_function_may_not_wait_for_its_own_manager(
    manager: asyncckpt.CheckpointManager, tmp_path: Path
) -> None:
    """It would wait for ever: each call that would is an error at once, also in a task of its own. Others work."""
    await saved(manager, 1, None)
    calls = [
        lambda: manager.save(9, {}),
        manager.flush,
        lambda: manager.delete(1),
        manager.remove_old_checkpoints,
        manager.aclose,
        lambda: manager.init_tmp_checkpoint(9),
    ]
    refused = []
    later: list[asyncio.Task[Any]] = []
    over = asyncio.Event()

    async def save_later() -> Any:
        await over.wait()
        return await (await manager.save(3, {}))

    async def source(path: Path) -> None:
        for call in calls:
            with pytest.raises(asyncckpt.ManagerUsageError, match=r"files\['w'\]"):
                await asyncio.create_task(call())
            refused.append(call)
        with pytest.raises(asyncckpt.ManagerUsageError, match="step 2"):
            manager.save_nowait(9, {})
        loaded = await manager.load(1)
        assert loaded is not None
        async with asyncckpt.CheckpointManager(tmp_path / "other") as other:
            await (await other.save(1, {}))
        later.append(asyncio.create_task(save_later()))
        await writes({"x": b""})(path)

    await saved(manager, 2, {"w": source})
    assert refused == calls
    over.set()
    assert (await later[0]).step == 3


async def test_a_function_that_is_cancelled_fails_its_save_alone(manager: asyncckpt.CheckpointManager) -> None:
    """Something cancels its task: the save fails, and the manager goes on."""

    async def source(path: Path) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        await writes({"x": b""})(path)

    error = await failure_of(manager, 1, {"w": source})
    assert "files['w']: cancelled" in str(error)
    await saved(manager, 2, {"w": writes({"x": b""})})


@pytest.mark.parametrize("is_stubborn", [False, True])
async def test_a_function_that_hangs_does_not_keep_the_manager(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, is_stubborn: bool
) -> None:
    """When the time of a closing manager runs out, it is cancelled, and if it goes on, it is left alone."""
    monkeypatch.setattr("asyncckpt.runtime.deadline._PATIENCE_SECONDS", 0.0)
    begun, end = asyncio.Event(), asyncio.Event()
    ended = []

    async def source(_: Path) -> None:
        begun.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                if not is_stubborn:
                    raise

    handle: Any = None

    async def program() -> None:
        nonlocal handle
        async with asyncckpt.CheckpointManager(root, grace=0.0) as manager:
            handle = await manager.save(1, STATE, files={"w": source})
            await asyncio.Event().wait()

    try:
        task = asyncio.create_task(program())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(asyncckpt.SaveFailedError, match=r"files\['w'\]: (time ran out|its function did not end)"):
            await handle
        assert ended == ["cancelled"]
        assert names_in(root) == []
    finally:
        end.set()
        await asyncio.sleep(0)


async def test_closing_waits_for_a_function(root: Path) -> None:
    """Leaving the block writes what was captured, however long a function takes."""
    go = asyncio.Event()

    async def source(path: Path) -> None:
        await go.wait()
        await writes({"x": b"1"})(path)

    async with asyncckpt.CheckpointManager(root) as manager:
        handle = await manager.save(1, STATE, files={"w": source})
        asyncio.get_running_loop().call_later(0.01, go.set)
    record = await handle
    assert record is not None
    assert read_tree(record.path / "w") == {"x": b"1"}


# --- what is refused --------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    "/",
    "/etc/x",
    "a//b",
    "a/",
    ".",
    "..",
    "../x",
    "a/../b",
    "a/./b",
    "a\0b",
    "a\nb",
    "a\\b",
    "\ud800",
    "x" * 256,
    "manifest.json",
    "Manifest.JSON",
    "state.msgpack",
    "state.h5",
    "STATE.H5",
    "training_info.json",
    "config.yaml",
    "config.yaml/x",
]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_bad_names_are_refused_first(manager: asyncckpt.CheckpointManager, root: Path, name: str) -> None:
    """With the reason, before anything is captured or written; the step stays free."""
    with pytest.raises(ValueError, match="cannot be the name of a file in a checkpoint"):
        await manager.save(1, object(), files={"good": root, name: root})
    assert not root.exists()
    await saved(manager, 1, None)


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a", "A"), ("a/B", "a/b"), ("A", "a/b/c")])
async def test_names_that_clash_are_refused(
    manager: asyncckpt.CheckpointManager, root: Path, names: tuple[str, str]
) -> None:
    """One inside the other, or such as some file systems take for the same."""
    with pytest.raises(ValueError, match="clashes"):
        await manager.save(1, {}, files=dict.fromkeys(names, root))
    assert not root.exists()


async def _coroutine() -> None:
    """Do nothing."""


BAD_FILES: list[Any] = [
    {"w": None},
    {"w": 3},
    {"w": b"bytes"},
    {"w": ""},
    {"w": "a\0b"},
    {"w": Path},
    {"w": FileSource(3)},  # type: ignore[arg-type]
    {3: "path"},
    ["path"],
]


@pytest.mark.parametrize("files", BAD_FILES)
async def test_what_is_no_source_is_refused(manager: asyncckpt.CheckpointManager, root: Path, files: Any) -> None:
    """By its type, before anything is captured."""
    with pytest.raises(TypeError, match="file"):
        await manager.save(1, object(), files=files)
    with pytest.raises(TypeError, match="pass the async function itself"):
        await manager.save(1, object(), files={"w": _coroutine()})  # type: ignore[dict-item]
    assert not root.exists()


@pytest.mark.parametrize("move", [False, True])
async def test_a_path_that_cannot_be_taken_is_refused_by_save(
    manager: asyncckpt.CheckpointManager, root: Path, tmp_path: Path, *, move: bool
) -> None:
    """Missing, a link, with a link or a FIFO in it, around the checkpoints: the call raises, and nothing changes."""
    tree = make_tree(tmp_path / "tree")
    (tmp_path / "link").symlink_to(tree)
    make_odd(make_tree(tmp_path / "odd") / "sub" / "fifo", "fifo")
    make_odd(make_tree(tmp_path / "odder") / "sub" / "link", "link")
    await saved(manager, 1, None)

    async def refused(path: Path, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            await manager.save(2, STATE, files={"w": FileSource(path, move=move)})

    await refused(tmp_path / "none", FileNotFoundError, "none")
    await refused(tmp_path / "link", asyncckpt.CheckpointError, "link is a symbolic link")
    await refused(tmp_path / "odd", asyncckpt.CheckpointError, "sub/fifo is a symbolic link or a special file")
    await refused(tmp_path / "odder", asyncckpt.CheckpointError, "sub/link is a symbolic link")
    await refused(tmp_path, asyncckpt.CheckpointError, "holds the checkpoint directory")
    await refused(root, asyncckpt.CheckpointError, "holds the checkpoint directory")
    assert names_in(root) == ["step_1"]
    await saved(manager, 2, {"w": FileSource(tree, move=move)})


async def test_what_cannot_move_is_refused(manager: asyncckpt.CheckpointManager, root: Path, tmp_path: Path) -> None:
    """A file with another name, and one of a checkpoint: it can be copied."""
    tree = make_tree(tmp_path / "tree")
    os.link(tree / "x", tmp_path / "other")
    record = await saved(manager, 1, {"w": tree})
    with pytest.raises(asyncckpt.CheckpointError, match=r"x cannot be moved: it has 2 names.*copied"):
        await manager.save(2, STATE, files={"w": FileSource(tree, move=True)})
    with pytest.raises(asyncckpt.CheckpointError, match="lies in the checkpoint directory"):
        await manager.save(2, STATE, files={"w": FileSource(record.path / "w", move=True)})
    record = await saved(manager, 2, {"w": record.path / "w", "other": tmp_path / "other"})
    assert read_tree(record.path / "w") == CONTENTS
    assert names_in(root) == ["step_1", "step_2"]


async def test_one_source_does_not_move_twice(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """The second finds a file with two names: the save fails, and the file stays where it is."""
    tree = make_tree(tmp_path / "tree")
    error = await failure_of(manager, 1, {"a": FileSource(tree, move=True), "b": FileSource(tree, move=True)})
    assert "cannot be moved" in str(error)
    assert read_tree(tree) == CONTENTS
    assert (tree / "x").stat().st_nlink == 1


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system")  # noqa: S108
async def test_another_file_system(manager: asyncckpt.CheckpointManager, tmp_path: Path) -> None:
    """What lies there is copied; it cannot move, and the error says so, and that it could be copied."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        if Path(made).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("it is the same file system")
        tree = make_tree(Path(made, "tree"))
        error = await failure_of(manager, 1, {"w": FileSource(tree, move=True)})
        assert "cannot be moved: it lies on another file system" in str(error)
        assert read_tree(tree) == CONTENTS
        record = await saved(manager, 1, {"w": tree})
        assert read_tree(record.path / "w") == CONTENTS


async def test_a_source_that_changes_is_noticed(root: Path, tmp_path: Path) -> None:
    """One that grows or shrinks while it is copied fails the save."""
    disk = FaultyDisk()
    async with asyncckpt.CheckpointManager(root, disk=disk) as manager:
        for size in (1 << 20, 3 << 20):
            file = tmp_path / "file"
            file.write_bytes(bytes(2 << 20))
            with hold(disk, "create", "tmp_step_1/w") as gate:
                handle = await manager.save(1, STATE, files={"w": file})
                await gate.reached()
                await asyncio.to_thread(os.truncate, file, size)
            with pytest.raises(asyncckpt.SaveFailedError, match="file was changed while it was copied"):
                await handle
        assert names_in(root) == []


@pytest.mark.parametrize("note", ["", "{", "[]", '{"step": 1}', '{"step": [], "moved": {}}', '{"step": 1, "moved": 5}'])
async def test_a_damaged_note_of_moves_removes_nothing(root: Path, tmp_path: Path, note: str) -> None:
    """A killed writer may leave it half written: it goes, and nothing else does."""
    tree = make_tree(tmp_path / "tree")
    async with asyncckpt.CheckpointManager(root) as manager:
        await saved(manager, 1, {"w": tree})
    (root / ".asyncckpt.moving").write_text(note)
    async with asyncckpt.CheckpointManager(root) as manager:
        await saved(manager, 2, None)
    assert names_in(root) == ["step_1", "step_2"]
    assert read_tree(tree) == CONTENTS


async def test_an_unfinished_move_is_finished_for_its_very_files(root: Path, tmp_path: Path) -> None:
    """After a kill, only names of the files in the checkpoint go: not a new file, one of another version, or a link."""
    tree = make_tree(tmp_path / "tree")
    async with asyncckpt.CheckpointManager(root) as manager:
        record = await saved(manager, 1, {"w": FileSource(tree, move=True), "other": writes({"x": b"x"})})
    (tree / "sub").mkdir(parents=True)
    os.link(record.path / "w" / "sub" / "big", tree / "sub" / "big")
    os.link(record.path / "other" / "x", tree / "kept")
    (tree / "x").write_bytes(b"new")
    note = {"format_version": 1, "step": 1, "moved": {"w": str(tree), "none": str(tree)}}
    (root / ".asyncckpt.moving").write_text(json.dumps(note))
    async with asyncckpt.CheckpointManager(root, read_only=True):
        assert (tree / "sub" / "big").exists()
    with pytest.warns(asyncckpt.CheckpointWarning, match=r"tree/x was moved into a checkpoint.*replaced meanwhile"):
        async with asyncckpt.CheckpointManager(root) as manager:
            await manager.verify(1)
    assert read_tree(tree) == {"kept": b"x", "x": b"new"}
    assert not (root / ".asyncckpt.moving").exists()


async def test_what_appears_in_a_moved_directory_stays(root: Path, tmp_path: Path) -> None:
    """A file that the program adds meanwhile is not in the checkpoint, and is not lost: a warning names it."""
    disk = FaultyDisk()
    tree = make_tree(tmp_path / "tree")
    async with asyncckpt.CheckpointManager(root, disk=disk) as manager:
        with hold(disk, "create", "manifest.json") as gate:
            handle = await manager.save(1, STATE, files={"w": FileSource(tree, move=True)})
            await gate.reached()
            (tree / "sub" / "late").write_bytes(b"late")
            (tree / "x").unlink()
            (tree / "x").write_bytes(b"other")
        with pytest.warns(asyncckpt.CheckpointWarning, match="moved into a checkpoint, and its old name cannot be"):
            record = await handle
    assert record is not None
    assert read_tree(record.path / "w") == CONTENTS
    assert {"sub/late": b"late", "x": b"other"}.items() <= read_tree(tree).items()
