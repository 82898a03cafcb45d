"""A keyed file on a full disk: the error says where, what is needed and what is free; older data is intact."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.kinds import Place

MIB = 1 << 20
CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OLD = np.arange(MIB, dtype=np.uint8)
LARGE = np.ones(12 * MIB, np.uint8)


@pytest.fixture
def directory(make_disk: Callable[..., Path]) -> Path:
    """A disk that holds the small values, and not the large one."""
    return make_disk("size=8m")


def check_told(error: OSError, path: Path, code: int, least: int) -> None:
    """Check that an error says what is the matter."""
    text = str(error)
    assert error.errno == code
    assert error.filename == str(path)
    assert os.strerror(code) in text
    needed, free = map(int, re.findall(r"(\d+) bytes\b", text))
    assert needed >= least
    assert 0 <= free <= 8 * MIB
    assert "what was saved before is intact" in text
    words = {errno.ENOSPC: "make room on that disk", errno.EDQUOT: "quota", errno.EFBIG: "ulimit -f"}
    assert words[code] in text


def check_intact(file: Place) -> None:
    """Check that the file holds what was flushed, and takes more."""
    assert list(file.contents()) == ["old"]
    np.testing.assert_array_equal(file.contents()["old"], OLD)
    with file.open() as chk:
        chk["more"] = OLD[:1000]
    np.testing.assert_array_equal(file.contents()["more"], OLD[:1000])


@pytest.mark.parametrize("is_new", [False, True])
def test_a_script_on_a_full_disk(file: Place, *, is_new: bool) -> None:
    """Of a file that is there, and of one that is not yet."""
    if not is_new:
        with file.open() as chk:
            chk["old"] = OLD
    with pytest.raises(OSError, match="No space left") as caught, file.open() as chk:
        chk["large"] = LARGE
    check_told(caught.value, file.path, errno.ENOSPC, LARGE.nbytes)
    if is_new:
        assert file.contents() == {}
    else:
        check_intact(file)


async def test_a_loop_on_a_full_disk(file: Place) -> None:
    """The flush that the value belongs to says it; the value waits, and is written when there is room."""
    async with file.open() as chk:
        await chk.save_parameter("old", OLD)
        await chk.flush()
        await chk.save_parameter("large", LARGE)
        with pytest.raises(OSError, match="No space left") as caught:
            await chk.flush()
        check_told(caught.value, file.path, errno.ENOSPC, LARGE.nbytes)
        await chk.delete_parameter("large")
    async with file.open() as chk:
        np.testing.assert_array_equal(await chk.load_parameter("old"), OLD)
        assert list(chk) == ["old"]


@pytest.mark.parametrize("operation", ["open_lock", "create", "write", "sync", "rename"])
@pytest.mark.parametrize("code", CODES)
def test_wherever_it_happens(file: Place, operation: str, code: int) -> None:
    """Each operation that a new file takes tells of a lack of room, of a quota and of a limit alike."""
    disk = FaultyDisk()
    disk.fail(operation, code, lasting=True)
    with pytest.raises(OSError, match=os.strerror(code)) as caught, file.open(disk=disk) as chk:
        chk["a"] = OLD
    check_told(caught.value, file.path, code, 0)
    assert file.contents() == {}


def test_other_errors_stay_as_they_are(file: Place) -> None:
    """A disk that is broken is not full."""
    disk = FaultyDisk()
    disk.fail("write", errno.EIO, lasting=True)
    with pytest.raises(OSError, match="Input/output error") as caught, file.open(disk=disk) as chk:
        chk["a"] = OLD
    assert "bytes" not in str(caught.value)


def test_a_file_of_the_callers_on_a_full_disk(file: Place) -> None:
    """What cannot be copied back to an open file is told of by that file's name."""
    kind = asyncckpt.Checkpointer.extension_map()[file.path.suffix]
    with (
        file.path.open("w+b", buffering=0) as stream,
        pytest.raises(OSError, match="No space left") as caught,
        kind(stream) as chk,
    ):
        chk["large"] = LARGE
    check_told(caught.value, file.path, errno.ENOSPC, LARGE.nbytes)
