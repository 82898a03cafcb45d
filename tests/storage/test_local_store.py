"""A checkpoint directory as a store: what the contract of stores leaves to each of them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from helpers.support import no_free_descriptors, save_to

from asyncckpt.documents import TRAINING_INFO_NAME
from asyncckpt.runtime.pacing import StopFlag
from asyncckpt.saving.commit import read_pending_info
from asyncckpt.saving.pending_directories import local_directories
from asyncckpt.storage.local.store import LocalStore
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["step_1", "new_step_1", "old_step_1"])
def test_the_size_of_a_step_is_that_of_its_directory(tmp_path: Path, name: str) -> None:
    """Whatever its directory is called: an overwrite may have left it under another name."""
    save_to(tmp_path, 1, {"a": bytes(100_000)})
    store = LocalStore(tmp_path, FaultyDisk())
    nbytes = store.nbytes_of([1])
    assert nbytes > 100_000
    (tmp_path / "step_1").rename(tmp_path / name)
    assert store.nbytes_of([1]) == nbytes
    assert store.nbytes_of([1, 2]) == nbytes


def test_a_link_is_a_second_name_of_the_file(tmp_path: Path) -> None:
    """It takes no room, and goes with the attempt that is discarded; the base keeps its file."""
    save_to(tmp_path, 1, {"a": bytes(100_000)})
    disk = FaultyDisk()
    store = LocalStore(tmp_path, disk)
    file = tmp_path / "step_1" / "state.msgpack"
    with store.begin(2, 0) as attempt:
        record = attempt.link("state.msgpack", 1)
        assert (file.stat().st_nlink, record.nbytes) == (2, file.stat().st_size)
    assert file.stat().st_nlink == 1
    disk.fail("link", errno.EXDEV)
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)), store.begin(2, 0) as attempt:
        attempt.link("state.msgpack", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1"]


def test_a_shortage_of_descriptors_is_not_damage(tmp_path: Path) -> None:
    """It is an error of its own, so that no checkpoint counts as corrupt, and no metric as missing, because of it."""
    store = LocalStore(tmp_path, FaultyDisk())
    directories = local_directories(store)
    pending = directories.begin(2, {TRAINING_INFO_NAME: b'{"loss": 1}'}).path
    save_to(tmp_path, 1, {"a": 1})
    with store.open(1) as reader:
        with no_free_descriptors():
            with pytest.raises(OSError, match="Too many open files"):
                reader.open("state.msgpack")
            with pytest.raises(OSError, match="Too many open files"):
                read_pending_info(directories, pending)
        reader.open("state.msgpack").close()
    assert read_pending_info(directories, pending) == {"loss": 1}
    assert read_pending_info(directories, tmp_path / "tmp_step_3") is None


def test_an_attempt_whose_names_may_be_durable_is_not_discarded(tmp_path: Path) -> None:
    """If the parent cannot be synced, the names are moved back, and nothing is deleted."""
    save_to(tmp_path, 1, {"a": 1})
    disk = FaultyDisk()
    disk.fail("sync_directory", errno.EIO, after=1)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        save_to(tmp_path, 1, {"a": 2}, ops=disk)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "tmp_step_1"]
    assert "unlink" not in disk.names()
    store = LocalStore(tmp_path, FaultyDisk())
    store.take({})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "step_1"]
    assert store.sweep(None, StopFlag()).done == 0
    store.release()
