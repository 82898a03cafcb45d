"""What is in the way of the file that is written beside another: its name is taken, or it cannot take the other's."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.kinds import FILES, Place

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

APPENDED = ("hdf5", "msgpack")
"""The kinds that go on with the file that is there."""


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A file with a key."""
    file = Place(request.param, tmp_path)
    with file.open() as chk:
        chk["a"] = 1
    return file


def temporary(file: Place, number: int = 0) -> Path:
    """Return where the file is written anew."""
    return file.path.with_name(f".{file.path.name}.tmp" + (f".{number}" if number else ""))


def write_anew(file: Place, disk: FaultyDisk | None = None) -> None:
    """Let the file be written anew, three times."""
    with file.open(disk=disk) as chk:
        for number in range(3):
            chk["b"] = number
            file.path.unlink()
            chk.flush()


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    """Lay a file over another, as containers do."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("there is no mount")
    if subprocess.run([mount, "--bind", source, target], check=False, capture_output=True).returncode:  # noqa: S603
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run([umount, target], check=True)  # noqa: S603


def check_another_name(file: Place, disk: FaultyDisk | None = None) -> None:
    """The file is written anew under another name, which one warning tells; and nothing is left of that."""
    with pytest.warns(asyncckpt.CheckpointWarning) as caught:
        write_anew(file, disk)
    (message,) = (str(each.message) for each in caught)
    assert message.startswith(f"{file.path}: {temporary(file)} cannot be removed (")
    assert repr(temporary(file, 1).name) in message
    assert not temporary(file, 1).exists()
    assert file.contents() == {"a": 1, "b": 2}


# --- its name is taken ------------------------------------------------------------------------------------------------


def test_a_directory(file: Place) -> None:
    """It stays, with what is in it."""
    temporary(file).mkdir()
    (temporary(file) / "precious").touch()
    check_another_name(file)
    assert [each.name for each in temporary(file).iterdir()] == ["precious"]


def test_a_mount(file: Place, tmp_path: Path) -> None:
    """A busy name."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    temporary(file).touch()
    with mounted(precious, temporary(file)):
        check_another_name(file)
        assert temporary(file).read_text() == "precious"


def test_a_file_that_cannot_be_removed(file: Place) -> None:
    """Whatever the reason."""
    temporary(file).write_bytes(b"half")
    disk = FaultyDisk()
    disk.fail("unlink", errno.EBUSY, lasting=True, path_part=f"{temporary(file)}")
    disk.fail("unlink", lambda: None, lasting=True)
    with pytest.warns(asyncckpt.CheckpointWarning, match="Device or resource busy"):
        write_anew(file, disk)
    assert file.contents() == {"a": 1, "b": 2}


@pytest.mark.skipif(os.geteuid() != 0, reason="to be another user takes root")
@pytest.mark.parametrize("kind", FILES)
def test_another_users_file_in_a_sticky_directory(kind: str) -> None:
    """As in /tmp: the directory may be written, and that file may not be removed."""
    directory = Path(tempfile.mkdtemp())
    file = Place(kind, directory)
    with file.open() as chk:  # as root, so that all is imported that takes part
        chk["warm"] = [1.5, np.zeros(3)]
    file.path.unlink()
    try:
        directory.chmod(0o1777)
        temporary(file).write_bytes(b"theirs")
        os.seteuid(65534)
        try:
            with pytest.warns(asyncckpt.CheckpointWarning, match="cannot be removed"), file.open() as chk:
                chk["a"] = 1
        finally:
            os.seteuid(0)
        assert temporary(file).read_bytes() == b"theirs"
        assert file.contents() == {"a": 1}
    finally:
        shutil.rmtree(directory)


def test_a_symbolic_link(file: Place, tmp_path: Path) -> None:
    """It goes, and what it leads to stays."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    temporary(file).symlink_to(precious)
    write_anew(file)
    assert precious.read_text() == "precious"
    assert not temporary(file).is_symlink()
    assert file.contents() == {"a": 1, "b": 2}


def test_what_killed_writers_left_goes(file: Place) -> None:
    """By whatever name it went."""
    for number in range(3):
        temporary(file, number).write_bytes(b"half")
    with file.open() as chk:
        chk["b"] = 1
    assert [each.name for each in file.directory.iterdir()] == [file.path.name]


# --- it cannot take the other's name ----------------------------------------------------------------------------------


def test_a_file_that_is_a_mount_point(file: Place, tmp_path: Path) -> None:
    """It is appended to, or the error says what is the matter; and what was saved before stays."""
    inner = tmp_path / "inner"
    shutil.copy(file.path, inner)
    with mounted(inner, file.path):
        if file.kind in APPENDED:
            with file.open() as chk:
                chk["b"] = 2
            assert file.contents() == {"a": 1, "b": 2}
        else:
            with pytest.raises(OSError, match="cannot take its name") as caught, file.open() as chk:
                chk["b"] = 2
            assert caught.value.errno == errno.EBUSY
            assert caught.value.filename == str(file.path)
            assert file.contents() == {"a": 1}
    assert not temporary(file).exists()


@pytest.mark.parametrize("operation", ["create", "rename"])
@pytest.mark.parametrize("kind", APPENDED)
def test_growth_is_told_once(kind: str, operation: str, tmp_path: Path) -> None:
    """A file that can be appended to and not be replaced keeps what is saved, and says so when it is too large."""
    disk = FaultyDisk()
    file = Place(kind, tmp_path)
    value = np.zeros(1 << 18)
    with file.open(disk=disk) as chk, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chk["a"] = value
        chk.flush()
        disk.fail(operation, errno.EBUSY, lasting=True, path_part=temporary(file).name)
        sizes = []
        for number in range(24):
            value[0] = number
            chk["a"] = value
            chk.flush()
            sizes.append((file.path.stat().st_size, len(caught)))
            assert file.contents()["a"][0] == number
        (message,) = (str(each.message) for each in caught)
        assert "has grown to" in message
        assert "Device or resource busy" in message
        assert str(file.path) in message
        promised = 3 * value.nbytes + (4 << 20)
        assert not any(told for size, told in sizes if size <= promised)
        assert all(told for size, told in sizes if size > 1.5 * promised)
        disk.heal()
        for number in range(24, 40):
            value[0] = number
            chk["a"] = value
            chk.flush()
        assert len(caught) == 1
    assert file.path.stat().st_size <= promised
    assert file.contents()["a"][0] == 39


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_a_rename_that_fails_is_tried_again(kind: str, tmp_path: Path) -> None:
    """What was set is kept for the next flush."""
    disk = FaultyDisk()
    file = Place(kind, tmp_path)
    with file.open(disk=disk) as chk:
        chk["a"] = 1
        disk.fail("rename", errno.EBUSY)
        with pytest.raises(OSError, match="cannot take its name"):
            chk.flush()
        chk["b"] = 2
    assert file.contents() == {"a": 1, "b": 2}
