"""The file that names the metric: whole or absent, never in a save's way, and nobody else's work undone."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest
from helpers.support import no_free_descriptors
from hypothesis import given
from hypothesis import strategies as st

from asyncckpt.disk.ops import DiskOps
from asyncckpt.saving.metric import MetricFile, StoredMetric, read_stored_metric, write_stored_metric
from asyncckpt.storage.local.documents import clear_half_written, has_half_written
from asyncckpt.storage.local.store import LocalStore
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from pathlib import Path

NAME = ".asyncckpt.json"
HALF_MADE = ".asyncckpt.json.tmp"
LOSS = StoredMetric("loss", higher_is_better=False)
RETURN = StoredMetric("return", higher_is_better=True)


def read_metric_file(root: Path) -> MetricFile:
    """Read the document of a checkpoint directory."""
    return read_stored_metric(LocalStore(root, DiskOps()))


def write_metric_file(ops: DiskOps, root: Path, stored: StoredMetric) -> None:
    """Write it, through some disk."""
    write_stored_metric(LocalStore(root, ops), stored)


class Killed(BaseException):
    """The process ends here."""


def kill() -> None:
    """End the process, as far as the code under test can tell."""
    raise Killed


@given(st.text(), st.booleans())
def test_any_name_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str, higher: bool) -> None:
    """Whatever a str may hold, lone surrogates included; and the file is plain ASCII JSON."""
    root = tmp_path_factory.mktemp("any")
    write_metric_file(DiskOps(), root, StoredMetric(name, higher))
    assert read_metric_file(root) == MetricFile(StoredMetric(name, higher))
    assert json.loads((root / NAME).read_bytes().decode("ascii")) == {
        "format_version": 1,
        "metric_name": name,
        "higher_is_better": higher,
    }
    assert [path.name for path in root.iterdir()] == [NAME]


def test_the_file_is_synced_before_it_has_its_name(tmp_path: Path) -> None:
    """It is never seen half: another file is made, and takes the place of the old one at once."""
    disk = FaultyDisk()
    write_metric_file(disk, tmp_path, LOSS)
    assert [(each.name, each.path.name) for each in disk.operations] == [
        ("create", HALF_MADE),
        ("write", HALF_MADE),
        ("sync", HALF_MADE),
        ("rename", HALF_MADE),
    ]
    assert disk.operations[-1].target == tmp_path / NAME


@pytest.mark.parametrize("old", [None, LOSS])
def test_killed_at_any_operation_the_old_or_the_new_one_is_there(tmp_path: Path, old: StoredMetric | None) -> None:
    """And the next writer clears the rest."""
    for after in range(4):
        root = tmp_path / str(after)
        root.mkdir()
        if old is not None:
            write_metric_file(DiskOps(), root, old)
        disk = FaultyDisk()
        disk.fail(None, kill, after=after, lasting=True)
        with pytest.raises(Killed):
            write_metric_file(disk, root, RETURN)
        assert read_metric_file(root) == MetricFile(old)
        assert has_half_written(root) == (after > 0)
        clear_half_written(DiskOps(), root)
        assert [path.name for path in root.iterdir()] == ([] if old is None else [NAME])
        write_metric_file(DiskOps(), root, RETURN)
        assert read_metric_file(root) == MetricFile(RETURN)


@pytest.mark.parametrize("operation", ["create", "write", "sync", "rename"])
def test_a_disk_that_fails_leaves_the_old_one(tmp_path: Path, operation: str) -> None:
    """The error comes out, and nothing is left behind."""
    write_metric_file(DiskOps(), tmp_path, LOSS)
    disk = FaultyDisk()
    disk.fail(operation, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        write_metric_file(disk, tmp_path, RETURN)
    assert read_metric_file(tmp_path) == MetricFile(LOSS)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_name_that_is_too_long_is_not_written(tmp_path: Path) -> None:
    """What is written can be read again."""
    with pytest.raises(OSError, match="more than 1048576 bytes"):
        write_metric_file(DiskOps(), tmp_path, StoredMetric("x" * (1 << 20), higher_is_better=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"\xff",
        b"{",
        b"null",
        b"[]",
        b"7",
        b'"loss"',
        b"{}",
        b'{"lr": 0.1}',
        b'{"format_version": 1, "metric_name": "loss"}',
        b'{"format_version": 1, "metric_name": 3, "higher_is_better": true}',
        b'{"format_version": 1, "metric_name": "loss", "higher_is_better": 1}',
        b'{"format_version": "1", "metric_name": "loss", "higher_is_better": true}',
        b'{"format_version": 0, "metric_name": "loss", "higher_is_better": true}',
        b"[" * 100_000,
        b" " * (1 << 20) + b'{"format_version": 1, "metric_name": "loss", "higher_is_better": true}',
        '{"format_version": 1, "metric_name": "löss", "higher_is_better": true}'.encode(),
    ],
)
def test_a_damaged_one_is_said_and_replaced(tmp_path: Path, content: bytes) -> None:
    """It names no metric, and a writer may put another one in its place."""
    (tmp_path / NAME).write_bytes(content)
    found = read_metric_file(tmp_path)
    assert found.stored is None
    assert found.problem is not None
    assert found.problem.startswith("is damaged (")
    assert len(found.problem) < 300
    assert found.may_be_written
    write_metric_file(DiskOps(), tmp_path, LOSS)
    assert read_metric_file(tmp_path) == MetricFile(LOSS)


def test_one_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    """What it says may mean something else by then."""
    text = '{"format_version": 2, "metric_name": "loss", "higher_is_better": true}'
    (tmp_path / NAME).write_text(text)
    found = read_metric_file(tmp_path)
    assert found.stored is None
    assert not found.may_be_written
    assert "format version 2" in (found.problem or "")


def test_more_entries_do_no_harm(tmp_path: Path) -> None:
    """A later release may say more in this version."""
    (tmp_path / NAME).write_text(json.dumps({"format_version": 1, **LOSS._asdict(), "unit": "nats"}))
    assert read_metric_file(tmp_path) == MetricFile(LOSS)


@pytest.mark.parametrize("kind", ["directory", "fifo", "symlink", "dangling"])
def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    """Nobody waits at a FIFO, follows a link, or replaces either."""
    place = tmp_path / NAME
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        target = tmp_path / "elsewhere"
        if kind == "symlink":
            target.write_text(json.dumps({"format_version": 1, **LOSS._asdict()}))
        place.symlink_to(target)
    found = read_metric_file(tmp_path)
    assert found.stored is None
    assert found.problem is not None
    assert found.problem.startswith("cannot be read (")
    assert not found.may_be_written


def test_no_directory_is_no_file(tmp_path: Path) -> None:
    """A reader may come before the writer."""
    assert read_metric_file(tmp_path / "nowhere") == MetricFile(None)


def test_a_shortage_is_no_answer(tmp_path: Path) -> None:
    """Without descriptors nobody knows which metric ranks, and retention must not go on without."""
    write_metric_file(DiskOps(), tmp_path, LOSS)
    with no_free_descriptors(), pytest.raises(OSError, match="Too many open files"):
        read_metric_file(tmp_path)
    assert read_metric_file(tmp_path) == MetricFile(LOSS)
