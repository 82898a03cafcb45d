"""Files that another program made: read as they are, and written anew only if the caller has asked for that."""

from __future__ import annotations

import errno
import io
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from helpers.support import assert_same, descriptors_below

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A, B = np.arange(1000), np.arange(3)


def make_hdf5(path: Path) -> None:
    """Make a file with h5py."""
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=A, compression="gzip").attrs["unit"] = "m"
        file["b"] = B


def make_npz(path: Path) -> None:
    """Make a file with numpy."""
    np.savez_compressed(path, a=A, b=B)


def make_json(path: Path) -> None:
    """Make a file with json."""
    path.write_text(json.dumps({"a": A.tolist(), "b": B.tolist()}, indent=2))


@dataclass(frozen=True)
class Other:
    """A kind of file of another program's."""

    extension: str
    make: Callable[[Path], None]
    losses: str
    options: dict[str, Any]


OTHERS = {
    "hdf5": Other(".h5", make_hdf5, "attributes of its root group", {"trusted": True}),
    "npz": Other(".npz", make_npz, "comments, dates and attributes", {}),
    "json": Other(".json", make_json, "blanks and line breaks", {}),
}


@dataclass
class Made:
    """A file that was made."""

    path: Path
    other: Other
    before: bytes

    def open(self, **options: Any) -> asyncckpt.Checkpointer:
        """Return a Checkpointer of it."""
        return asyncckpt.Checkpointer.from_file(self.path, **self.other.options, **options)

    def names(self) -> list[str]:
        """List the directory."""
        return sorted(os.listdir(self.path.parent))  # noqa: PTH208 - names


@pytest.fixture(params=OTHERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A file of each kind."""
    other = OTHERS[request.param]
    path = tmp_path / f"old{other.extension}"
    other.make(path)
    return Made(path, other, path.read_bytes())


def test_a_change_is_refused_before_anything_is_written(made: Made) -> None:
    """Each change: the error names the file, what would be lost and the ways out. What is there can still be read."""
    disk = FaultyDisk()
    changes: list[Callable[[asyncckpt.Checkpointer], object]] = [
        lambda chk: chk.__setitem__("n", 1),
        lambda chk: chk.__setitem__("a", 1),
        lambda chk: chk.__delitem__("a"),
        lambda chk: chk.pop("a"),
        lambda chk: chk.setdefault("n", 1),
        lambda chk: chk.popitem(),
        lambda chk: chk.clear(),
        lambda chk: chk.update(n=1),
        lambda chk: chk.cached_eval("n", lambda: 1),
    ]
    with made.open(disk=disk) as chk:
        for change in changes:
            with pytest.raises(asyncckpt.ReadOnlyFileError, match=rf"old\{made.other.extension}: ") as caught:
                change(chk)
            for part in (made.other.losses, "rewrite=True", f"'{made.path.name}.orig'", "'without_backup'", "new file"):
                assert part in str(caught.value)
            assert caught.value.file == str(made.path)
            assert made.other.losses in str(caught.value.losses)
        assert_same(np.asarray(chk["a"]), A)
        assert chk.cached_eval("b", print) is not None
        chk.flush()
    assert disk.operations == []
    assert made.path.read_bytes() == made.before
    assert made.names() == [made.path.name]


async def test_a_change_on_a_loop_is_refused(made: Made) -> None:
    """What is awaited raises itself, other changes at the next one, the flush or the end; once for all of them."""
    with pytest.raises(asyncckpt.ReadOnlyFileError):
        async with made.open() as chk:
            with pytest.raises(asyncckpt.ReadOnlyFileError):
                await chk.save_parameter("n", 1)
            with pytest.raises(asyncckpt.ReadOnlyFileError):
                await chk.pop("a")
            for number in range(10):
                chk[f"n{number}"] = number
            with pytest.raises(asyncckpt.ReadOnlyFileError, match="rewrite=True"):
                await chk.flush()
            assert list(chk) == ["a", "b"]
            assert_same(np.asarray(await chk["a"]), A)
            chk["n"] = 1
    assert made.path.read_bytes() == made.before
    assert made.names() == [made.path.name]


def test_rewriting_keeps_the_old_file(made: Made) -> None:
    """Beside the new one, bit for bit, under a name that nothing had; what comes after finds a file of ours."""
    taken = made.path.with_name(f"{made.path.name}.orig")
    taken.write_text("somebody's")
    with made.open(rewrite=True) as chk:
        chk["n"] = 1
    with made.open() as chk:
        chk["n"] = 2
    with made.open(rewrite=True) as chk:
        chk["m"] = 3
        assert_same(np.asarray(chk["a"]), A)
    assert made.names() == [made.path.name, taken.name, f"{taken.name}.1"]
    assert taken.read_text() == "somebody's"
    assert taken.with_name(f"{taken.name}.1").read_bytes() == made.before
    with made.open() as chk:
        assert list(chk) == ["a", "b", "n", "m"]
        assert (chk["n"], chk["m"]) == (2, 3)


def test_rewriting_without_a_backup(made: Made) -> None:
    """Nothing is left beside it."""
    with made.open(rewrite="without_backup") as chk:
        del chk["b"]
    assert made.names() == [made.path.name]
    with made.open() as chk:
        assert list(chk) == ["a"]
        assert_same(np.asarray(chk["a"]), A)


def test_rewriting_that_changes_nothing(made: Made) -> None:
    """A file that is only read stays, whatever was allowed."""
    with made.open(rewrite=True) as chk:
        assert_same(np.asarray(chk["b"]), B)
    assert made.path.read_bytes() == made.before
    assert made.names() == [made.path.name]


@pytest.mark.parametrize("operation", ["link", "rename"])
def test_a_rewriting_that_fails(made: Made, operation: str) -> None:
    """The old file keeps its name, and the next flush tries again; there is one old file in the end."""
    disk = FaultyDisk()
    with made.open(disk=disk, rewrite=True) as chk:
        chk["n"] = 1
        disk.fail(operation, errno.EPERM)
        with pytest.raises(OSError, match=f"{made.path.name}" if operation == "rename" else "rewrite='without_backup'"):
            chk.flush()
        assert made.path.read_bytes() == made.before
    assert made.names() == [made.path.name, f"{made.path.name}.orig"]
    assert made.path.with_name(f"{made.path.name}.orig").read_bytes() == made.before
    with made.open() as chk:
        assert chk["n"] == 1


def test_a_rewriting_that_is_not_synced_leaves_no_file_open(made: Made) -> None:
    """The new file has the name, but nothing of it is used until the next flush."""
    disk = FaultyDisk()
    with made.open(disk=disk, rewrite=True) as chk:
        np.asarray(chk["a"])
        chk["n"] = 1
        disk.fail("sync_directory", errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            chk.flush()
        before = len(descriptors_below(made.path.parent))
        disk.fail("sync_directory", errno.EIO)
        with pytest.raises(OSError, match="Input/output") as caught:  # which keeps its frames
            chk.flush()
        assert len(descriptors_below(made.path.parent)) == before
        assert caught.value.errno == errno.EIO
    with made.open() as chk:
        assert list(chk) == ["a", "b", "n"]


def test_who_was_read_only_changes_what_is_ours_by_now(made: Made) -> None:
    """Whether a file may be changed is decided by what is there when it is."""
    with made.open() as slow:
        assert list(slow) == ["a", "b"]
        with made.open(rewrite=True) as quick:
            quick["n"] = 1
        slow["m"] = 2
    with made.open() as chk:
        assert list(chk) == ["a", "b", "n", "m"]


def test_who_was_first_to_open_is_refused_what_another_program_made_since(made: Made) -> None:
    """Nothing is left locked."""
    made.path.unlink()
    with made.open() as chk:
        assert len(chk) == 0
        made.path.write_bytes(made.before)
        for _ in range(2):
            with pytest.raises(asyncckpt.ReadOnlyFileError):
                chk["n"] = 1
    assert made.names() == [made.path.name]
    assert made.path.read_bytes() == made.before


def test_a_file_that_came_open_has_no_place_beside_it(made: Made) -> None:
    """The old one cannot be kept there, so that has to be allowed."""
    stream = io.BytesIO(made.before)
    kind = type(made.open())
    for rewrite in (False, True):
        with kind(stream, **made.other.options, rewrite=rewrite) as chk:
            with pytest.raises(asyncckpt.ReadOnlyFileError, match="rewrite='without_backup'") as caught:
                chk["n"] = 1
            assert ".orig" not in str(caught.value)
    assert stream.getvalue() == made.before
    with kind(stream, **made.other.options, rewrite="without_backup") as chk:
        chk["n"] = 1
    with kind(stream, **made.other.options) as chk:
        assert chk["n"] == 1
        assert_same(np.asarray(chk["a"]), A)


def test_what_rewrite_may_be() -> None:
    """Anything else is an error that says so."""
    for bad in ("yes", None, 2):
        with pytest.raises(asyncckpt.ConfigError, match="False, True or 'without_backup'"):
            asyncckpt.Checkpointer.from_file("x.json", rewrite=bad)


# --- whose a file is --------------------------------------------------------------------------------------------------


def test_json_in_our_layout_loses_nothing(tmp_path: Path) -> None:
    """Whoever wrote it: a value that another program changed in its place, too."""
    path = tmp_path / "x.json"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["a"], chk["\u00e9"] = {"x": [1, 2]}, "b"
    path.write_text(path.read_text().replace("2", "3  "))
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["n"] = 1
        assert chk["a"] == {"x": [1, 3]}


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"a": 1}',
        '{"a": 1}\n',
        '{\n"a": 1,"b": 2\n}\n',
        '{\n"a": 1\n}',
        '{\n"a" :1\n}\n',
        '\n{\n"a": 1\n}\n',
        '{\n"a": 1,\n"b":  2\n}\n',
        '{\n"a": 1 ,\n"b": 2\n}\n',
        '{\n"\xe9": 1\n}\n',
        '\ufeff{\n"a": 1\n}\n',
        "{\n}\n\n",
    ],
)
def test_json_in_any_other_layout(tmp_path: Path, text: str) -> None:
    """What somebody has laid out stays so."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with asyncckpt.Checkpointer.from_file(path) as chk, pytest.raises(asyncckpt.ReadOnlyFileError):
        chk["n"] = 1
    assert path.read_text() == text


def test_json_without_keys_of_ours(tmp_path: Path) -> None:
    """It is ours, and may be changed."""
    path = tmp_path / "x.json"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["a"] = 1
        del chk["a"]
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["b"] = 2
    assert dict(asyncckpt.Checkpointer.from_file(path)) == {"b": 2}


def test_an_archive_that_another_program_added_to(tmp_path: Path) -> None:
    """It has a member that our directory does not know."""
    import zipfile

    path = tmp_path / "x.npz"
    with asyncckpt.Checkpointer.from_file(path) as chk:
        chk["a"] = B
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("note.txt", "theirs")
    with asyncckpt.Checkpointer.from_file(path) as chk, pytest.raises(asyncckpt.ReadOnlyFileError):
        chk["n"] = 1
