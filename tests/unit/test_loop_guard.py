"""Every test runs under guards that see what the library does on a loop's thread: they see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError

import asyncckpt

CALLS = {
    "os.open": "os.open('/', os.O_RDONLY)",
    "os.stat": "os.stat('/')",
    "os.lstat": "os.lstat('/')",
    "os.fstat": "os.fstat(0)",
    "os.unlink": "os.unlink('/nothing')",
    "os.fsync": "os.fsync(0)",
    "os.pread": "os.pread(0, 1, 0)",
    "os.preadv": "os.preadv(0, [], 0)",
    "os.pwritev": "os.pwritev(0, [], 0)",
    "os.ftruncate": "os.ftruncate(0, 0)",
    "fcntl.flock": "fcntl.flock(0, fcntl.LOCK_SH)",
    "mmap.mmap": "mmap.mmap(-1, 1)",
    "time.sleep": "time.sleep(0)",
}
FUNCTIONS = {
    "disk/": "asyncckpt.disk.room.spell(1)",
    "formats/": "asyncckpt.formats.key_names.escape('a')",
    "storage/": "asyncckpt.storage.local.outcomes.remarks_of(())",
    "saving/": "asyncckpt.saving.load_job.verify_checkpoint(None, 0, None)",
    "keyed/": "asyncckpt.keyed.json.codec.encode_key('a')",
    "keyed/hdf5/": "asyncckpt.keyed.hdf5.store.HDF5Store.read(None, None, None)",
}
"""One that threads use, of each package that has some."""


def of_the_library(code: str) -> Any:
    """Return a function that evaluates code as a module of the library would."""
    names: dict[str, Any] = {"__name__": "asyncckpt.made_up"}
    source = f"import asyncckpt, fcntl, mmap, os, time\n\ndef run():\n    return {code}\n"
    exec(compile(source, f"{Path(asyncckpt.__file__).parent}/made_up.py", "exec"), names)  # noqa: S102
    return names["run"]


@pytest.mark.parametrize("name", CALLS)
async def test_a_blocking_call_is_seen(name: str) -> None:
    """It is an error on a loop's thread, whichever module of the library makes it."""
    with pytest.raises(BlockingError, match=name):
        of_the_library(CALLS[name])()


@pytest.mark.parametrize("name", FUNCTIONS)
async def test_a_function_of_threads_is_seen(name: str) -> None:
    """The library may not call it on a loop's thread; a test may."""
    with pytest.raises(AssertionError, match=r"asyncckpt.made_up calls .* on a loop's thread"):
        of_the_library(FUNCTIONS[name])()
    assert asyncckpt.disk.room.spell(1)
