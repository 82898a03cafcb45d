"""The publish protocol, operation by operation, with the exchange of two names and without."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asyncckpt.disk import publish, removal
from asyncckpt.disk.manifest import DIGEST_BLOCK_NBYTES, Manifest, decode_manifest, digest_bytes
from asyncckpt.disk.names import locate, scan
from asyncckpt.disk.write_blocks import write_bytes
from asyncckpt.errors import CheckpointError
from asyncckpt.runtime.pacing import StopFlag, Stopped
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable


class NoExchange(FaultyDisk):
    """A disk that cannot exchange two names."""

    def exchange(self, first: Path, second: Path) -> bool:  # noqa: ARG002 - it does nothing
        """Say no."""
        return False


@pytest.fixture(params=[FaultyDisk, NoExchange])
def disk(request: pytest.FixtureRequest) -> FaultyDisk:
    """Give a disk of each kind."""
    made: FaultyDisk = request.param()
    return made


def prepare(disk: FaultyDisk, root: Path, step: int, content: str) -> Path:
    """Make a sealed pending directory."""
    pending = publish.stage(disk, root, step).path
    files = {"file": write_bytes(disk, pending / "file", content.encode())}
    publish.seal(disk, pending, Manifest(step=step, created=0.0, files=files))
    return pending


def commit(disk: FaultyDisk, pending: Path, step: int) -> publish.Published:
    """Commit a sealed pending directory."""
    return publish.make_durable(disk, publish.move(disk, pending, step))


def save(disk: FaultyDisk, root: Path, step: int, content: str) -> Path | None:
    """Commit a checkpoint of one file, and give the trash."""
    return commit(disk, prepare(disk, root, step, content), step).trash


def committed(root: Path) -> dict[int, str]:
    """Read what readers see: for each step its file, which must be what the manifest says."""
    found = {}
    for step, name in scan(root).committed.items():
        path = root / name
        manifest = decode_manifest((path / "manifest.json").read_bytes(), step)
        data = (path / "file").read_bytes()
        assert manifest.files == {"file": digest_bytes(data)}
        assert locate(root, step) == path
        found[step] = data.decode()
    return found


def log(disk: FaultyDisk, root: Path) -> list[str]:
    """Write the recorded operations in words, with names relative to the root, and forget them."""
    lines = []
    for operation in disk.operations:
        words = [operation.name, str(Path(os.path.relpath(operation.path, root)))]
        if operation.target is not None:
            words.append(operation.target.name)
        lines.append(" ".join(words))
    disk.operations.clear()
    return lines


def test_a_new_step(tmp_path: Path) -> None:
    """Bytes, then the manifest, then the directory, then the name, then the parent: each durable before the next."""
    disk = FaultyDisk()
    assert save(disk, tmp_path, 3, "a") is None
    assert log(disk, tmp_path) == [
        "mkdir tmp_step_3",
        "create tmp_step_3/file",
        "write tmp_step_3/file",
        "sync tmp_step_3/file",
        "create tmp_step_3/manifest.json",
        "write tmp_step_3/manifest.json",
        "sync tmp_step_3/manifest.json",
        "sync_directory tmp_step_3",
        "rename tmp_step_3 step_3",
        "sync_directory .",
    ]
    assert committed(tmp_path) == {3: "a"}


def test_an_overwrite_exchanges(tmp_path: Path) -> None:
    """The two names change places in one step; the old directory goes when that is durable."""
    disk = FaultyDisk()
    save(disk, tmp_path, 3, "a")
    log(disk, tmp_path)
    trash = save(disk, tmp_path, 3, "b")
    assert trash == tmp_path / "trash_step_3"
    assert log(disk, tmp_path)[8:] == [
        "exchange tmp_step_3 step_3",
        "sync_directory .",
        "rename tmp_step_3 trash_step_3",
    ]
    assert committed(tmp_path) == {3: "b"}
    assert (trash / "file").read_text() == "a"


def test_an_overwrite_without_exchange(tmp_path: Path) -> None:
    """The old directory keeps a name that recovery understands until the new one's name is durable."""
    disk = NoExchange()
    save(disk, tmp_path, 3, "a")
    log(disk, tmp_path)
    save(disk, tmp_path, 3, "b")
    assert log(disk, tmp_path)[8:] == [
        "rename step_3 old_step_3",
        "rename tmp_step_3 step_3",
        "sync_directory .",
        "rename old_step_3 trash_step_3",
    ]
    assert committed(tmp_path) == {3: "b"}


@pytest.mark.parametrize("is_new", [True, False])
def test_a_failure_moves_the_names_back(disk: FaultyDisk, tmp_path: Path, *, is_new: bool) -> None:
    """Whichever operation of a publish fails, readers see what they saw before, whole, and nothing is unlinked."""
    before = {3: "a"} if not is_new else {}
    for position in range(4):
        root = tmp_path / str(position)
        root.mkdir()
        if not is_new:
            save(disk, root, 3, "a")
        prepare(disk, root, 3, "b")
        disk.operations.clear()
        disk.fail(None, errno.EIO, after=position)
        try:
            commit(disk, root / "tmp_step_3", 3)
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017 - the last operations of some publishes may fail
            assert committed(root) == before
        else:
            assert committed(root) == {3: "b"}
        disk.heal()
        assert "unlink" not in disk.names()
        save(disk, root, 3, "c")
        assert committed(root) == {3: "c"}
        removal.recover(disk, root)
        assert committed(root) == {3: "c"}
        assert [each.name for each in root.iterdir()] == ["step_3"]


def test_a_failure_that_cannot_be_undone(disk: FaultyDisk, tmp_path: Path) -> None:
    """When moving the names back fails too, the old checkpoint or the new one stands there whole, and is cleared up."""
    for position in range(4):
        root = tmp_path / str(position)
        root.mkdir()
        save(disk, root, 3, "a")
        prepare(disk, root, 3, "b")
        disk.fail(None, errno.EIO, after=position, lasting=True)
        with contextlib.suppress(OSError):
            commit(disk, root / "tmp_step_3", 3)
        disk.heal()
        assert committed(root) in ({3: "a"}, {3: "b"})
        save(disk, root, 3, "c")
        assert committed(root) == {3: "c"}
        save(disk, root, 3, "d")
        assert committed(root) == {3: "d"}
        assert removal.retire(disk, root, [3]).trash
        assert committed(root) == {}
        removal.recover(disk, root)
        assert list(root.iterdir()) == []


def test_a_stale_pending_is_cleared_after_a_sync(tmp_path: Path) -> None:
    """It may hold what an exchange has just put there: that must be durable before the first file goes."""
    disk = FaultyDisk()
    prepare(disk, tmp_path, 3, "a")
    (tmp_path / "tmp_step_3" / "sub").mkdir()
    log(disk, tmp_path)
    publish.stage(disk, tmp_path, 3)
    lines = log(disk, tmp_path)
    assert lines[:2] == ["mkdir tmp_step_3", "sync_directory ."]  # the first of them fails
    assert set(lines[2:5]) == {
        "unlink tmp_step_3/file",
        "unlink tmp_step_3/manifest.json",
        "rmdir tmp_step_3/sub",
    }
    assert lines[5:] == ["rmdir tmp_step_3", "mkdir tmp_step_3"]


def test_retire_and_sweep(tmp_path: Path) -> None:
    """Victims lose their names, all of them durably, before the first file of any is unlinked."""
    disk = FaultyDisk()
    for step in (1, 2, 10):
        save(disk, tmp_path, step, "x")
    (tmp_path / "step_5").touch()  # a file is no checkpoint
    log(disk, tmp_path)
    trash, refused, _ = removal.retire(disk, tmp_path, [1, 10, 5, 77])
    assert trash == (tmp_path / "trash_step_1", tmp_path / "trash_step_10")
    assert refused.keys() == {5}
    assert log(disk, tmp_path) == [
        "rename step_1 trash_step_1",
        "rename step_10 trash_step_10",
        "sync_directory .",
    ]
    assert removal.sweep(disk, tmp_path, trash) == (2, [])
    lines = log(disk, tmp_path)
    assert lines[0] == "sync_directory ."
    assert {line.split()[0] for line in lines[1:]} == {"unlink", "rmdir"}
    assert committed(tmp_path) == {2: "x"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step_2", "step_5"]


def test_retiring_nothing(tmp_path: Path) -> None:
    """Without victims, that there are none is made durable, and nothing else is done."""
    disk = FaultyDisk()
    assert removal.retire(disk, tmp_path, [4]) == ((), {}, ())
    assert disk.names() == ["sync_directory"]
    removal.sweep(disk, tmp_path, [])
    assert disk.names() == ["sync_directory"]


def test_a_failed_retire_gives_the_names_back(tmp_path: Path) -> None:
    """If the sync fails, the steps are there as before."""
    disk = FaultyDisk()
    for step in (1, 2):
        save(disk, tmp_path, step, "x")
    disk.fail("sync_directory", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        removal.retire(disk, tmp_path, [1, 2])
    assert committed(tmp_path) == {1: "x", 2: "x"}


def test_a_prune_leaves_the_sync_to_the_sweep(tmp_path: Path) -> None:
    """A pruned step may come back in a power cut, to be pruned again; but not without its files."""
    disk = FaultyDisk()
    save(disk, tmp_path, 1, "x")
    log(disk, tmp_path)
    trash = removal.retire(disk, tmp_path, [1], durably=False).trash
    assert log(disk, tmp_path) == ["rename step_1 trash_step_1"]
    removal.sweep(disk, tmp_path, trash)
    assert log(disk, tmp_path)[0] == "sync_directory ."


def test_a_step_is_retired_with_what_an_overwrite_left(tmp_path: Path) -> None:
    """An `old_` directory that a failure left beside its step does not come back as that step."""
    disk = FaultyDisk()
    save(disk, tmp_path, 3, "a")
    disk.rename(tmp_path / "step_3", tmp_path / "old_step_3")
    assert committed(tmp_path) == {3: "a"}
    save(disk, tmp_path, 4, "x")
    disk.rename(tmp_path / "step_4", tmp_path / "step_3")
    removal.retire(disk, tmp_path, [3])
    assert scan(tmp_path).committed == {}
    assert locate(tmp_path, 3) is None


def test_trash_of_the_same_step_twice(tmp_path: Path) -> None:
    """A step deleted again before its first trash is gone gets another name."""
    disk = FaultyDisk()
    names = []
    for _ in range(3):
        save(disk, tmp_path, 3, "a")
        names += [path.name for path in removal.retire(disk, tmp_path, [3]).trash]
    assert names == ["trash_step_3", "trash_step_3.1", "trash_step_3.2"]
    removal.recover(disk, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sweeping_stops_when_asked(tmp_path: Path) -> None:
    """A manager that has run out of time does not wait for a large deletion."""
    disk = FaultyDisk()
    save(disk, tmp_path, 3, "a")
    trash = removal.retire(disk, tmp_path, [3]).trash
    stop = StopFlag()
    disk.fail("unlink", stop.set)
    assert removal.sweep(disk, tmp_path, trash, stop) == (0, [])
    assert disk.names().count("unlink") == 1
    removal.recover(disk, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_links_are_unlinked_not_followed(tmp_path: Path) -> None:
    """Deleting a directory deletes a symbolic link in it, never what it points to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    root = tmp_path / "root"
    (root / "tmp_step_1").mkdir(parents=True)
    (root / "tmp_step_1" / "link").symlink_to(tmp_path / "mine", target_is_directory=True)
    removal.recover(FaultyDisk(), root)
    assert list(root.iterdir()) == []
    assert (tmp_path / "mine" / "file").exists()


# --- the directory itself ---------------------------------------------------------------------------------------------


def test_new_ancestors_are_synced_one_by_one(tmp_path: Path) -> None:
    """Each new directory is durable in its parent before the next is made in it."""
    disk = FaultyDisk()
    publish.ensure_directory(disk, tmp_path / "a" / "b" / "c")
    assert log(disk, tmp_path) == [
        "sync_directory ..",
        "mkdir a",
        "sync_directory .",
        "mkdir a/b",
        "sync_directory a",
        "mkdir a/b/c",
        "sync_directory a/b",
    ]


@pytest.mark.parametrize("position", range(7))
def test_a_half_made_directory_is_made_durable_the_next_time(tmp_path: Path, position: int) -> None:
    """A directory whose parent could not be synced, or whose maker was killed just then, is synced by the next."""
    disk = FaultyDisk()
    root = tmp_path / "a" / "b" / "c"
    disk.fail(None, errno.EIO, after=position)
    with pytest.raises(OSError, match="Input/output"):
        publish.ensure_directory(disk, root)
    done = disk.operations[:-1]
    disk.operations.clear()
    publish.ensure_directory(disk, root)
    done += disk.operations
    for path in (root, root.parent, root.parent.parent):
        made = next(at for at, operation in enumerate(done) if operation[:2] == ("mkdir", path))
        assert any(operation[:2] == ("sync_directory", path.parent) for operation in done[made:])


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EINVAL, errno.EROFS])
def test_an_ancestor_that_is_not_ours(tmp_path: Path, code: int) -> None:
    """An existing directory above ours that cannot be opened or synced is no obstacle."""
    disk = FaultyDisk()
    disk.fail("sync_directory", code)
    publish.ensure_directory(disk, tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_somebody_else_makes_it_too(tmp_path: Path) -> None:
    """A directory that another process makes at the same moment is taken, and synced all the same."""
    disk = FaultyDisk()
    disk.fail("mkdir", (tmp_path / "a").mkdir)
    publish.ensure_directory(disk, tmp_path / "a")
    assert disk.names() == ["sync_directory", "mkdir", "sync_directory"]


@pytest.mark.parametrize("name", ["file", "file/below/it"])
def test_a_file_in_the_way(tmp_path: Path, name: str) -> None:
    """A file where a directory should be is named, and nothing is made."""
    (tmp_path / "file").touch()
    disk = FaultyDisk()
    with pytest.raises(NotADirectoryError, match=r"file is not a directory"):
        publish.ensure_directory(disk, tmp_path / name)
    assert disk.operations == []


# --- files that users wrote -------------------------------------------------------------------------------------------


def test_every_file_is_digested_and_synced(tmp_path: Path) -> None:
    """Files in nested directories are listed with their blocks' digests; they and their directories are synced."""
    disk = FaultyDisk()
    pending = publish.stage(disk, tmp_path, 1).path
    contents = {
        "a": b"",
        "b.bin": bytes(DIGEST_BLOCK_NBYTES) + b"1",
        "sub/manifest.json": b"{}",
        "sub/deep/c": b"c" * DIGEST_BLOCK_NBYTES,
    }
    (pending / "sub" / "deep").mkdir(parents=True)
    (pending / "empty").mkdir()
    for name, data in contents.items():
        (pending / name).write_bytes(data)
    (pending / "manifest.json").write_bytes(b"of a finalize that failed")
    log(disk, tmp_path)
    assert publish.digest_tree(disk, pending) == {name: digest_bytes(data) for name, data in contents.items()}
    assert sorted(log(disk, tmp_path)) == [
        "sync tmp_step_1/a",
        "sync tmp_step_1/b.bin",
        "sync tmp_step_1/sub/deep/c",
        "sync tmp_step_1/sub/manifest.json",
        "sync_directory tmp_step_1/empty",
        "sync_directory tmp_step_1/sub",
        "sync_directory tmp_step_1/sub/deep",
        "unlink tmp_step_1/manifest.json",
    ]


def make_link(path: Path) -> None:
    """Make a symbolic link to a regular file."""
    path.symlink_to(__file__)


def make_directory_link(path: Path) -> None:
    """Make a symbolic link to a directory."""
    path.symlink_to(Path(__file__).parent, target_is_directory=True)


def make_broken_link(path: Path) -> None:
    """Make a symbolic link to nowhere."""
    path.symlink_to("nowhere")


def make_socket(path: Path) -> None:
    """Make a socket."""
    at = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(at)


@pytest.mark.parametrize("make", [make_link, make_directory_link, make_broken_link, os.mkfifo, make_socket])
@pytest.mark.parametrize("folder", ["", "sub"])
def test_special_files_are_refused(tmp_path: Path, make: Callable[[Path], None], folder: str) -> None:
    """A link, a pipe, a socket, anywhere: refused by name, at once, without opening it."""
    pending = publish.stage(FaultyDisk(), tmp_path, 1).path
    (pending / "sub").mkdir()
    make(pending / folder / "odd")
    with pytest.raises(CheckpointError, match="odd is a symbolic link or a special file"):
        publish.digest_tree(FaultyDisk(), pending)


def test_digesting_stops_when_asked(tmp_path: Path) -> None:
    """It looks before each block."""
    pending = publish.stage(FaultyDisk(), tmp_path, 1).path
    (pending / "a").write_bytes(b"x")
    stop = StopFlag()
    stop.set()
    with pytest.raises(Stopped):
        publish.digest_tree(FaultyDisk(), pending, stop)


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EPERM, errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE])
def test_a_step_that_cannot_be_renamed_does_not_keep_the_others(tmp_path: Path, code: int) -> None:
    """It stays committed, and its reason is given."""
    disk = FaultyDisk()
    for step in (1, 2):
        save(disk, tmp_path, step, "x")
    disk.fail("rename", code)
    trash, refused, _ = removal.retire(disk, tmp_path, [1, 2])
    assert trash == (tmp_path / "trash_step_2",)
    assert refused.keys() == {1}
    assert refused[1].errno == code
    assert os.strerror(code) in refused[1].strerror
    assert committed(tmp_path) == {1: "x"}
