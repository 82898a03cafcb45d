"""What a small save asks of the system, call by call."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers.support import FORMATS, save_to

from asyncckpt.testing import FaultyDisk

STATE = {"weights": [0.5] * 1000, "step": 3}


@pytest.mark.parametrize("form", FORMATS)
def test_each_change_of_the_disk_is_needed(tmp_path: Path, form: str) -> None:
    """One write and one sync a file, one sync for the directory and one for the parent; all written before any sync."""
    disk = FaultyDisk()
    save_to(tmp_path, 1, STATE, form=form, ops=disk)
    file = "state.h5" if form == "hdf5" else "state.msgpack"
    names = ("training_info.json", file, "manifest.json")
    assert [(each.name, each.path.name) for each in disk.operations] == [
        ("mkdir", "tmp_step_1"),
        *((operation, name) for name in names for operation in ("create", "write")),
        *(("sync", name) for name in names),
        ("sync_directory", "tmp_step_1"),
        ("rename", "tmp_step_1"),
        ("sync_directory", tmp_path.name),
    ]


_CALLS = {
    "statfs": 1,  # is there room?
    "mkdir": 1,
    "openat": 3 + 2,  # three files, the directory and its parent
    "pwritev2": 3,
    "fadvise64": 3,
    "fsync": 3 + 2,
    "close": 3 + 2,
    "rename": 1,
    "stat": 1 + 4 + 1,  # what has the step's name, then all names that it may have, and the directory that has it now
}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("form", FORMATS)
def test_each_system_call_is_needed(tmp_path: Path, form: str) -> None:
    """Whatever names a file or uses a descriptor is counted, calls that read and mappings of memory included."""
    log = tmp_path / "log"
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from helpers.support import save_to
root = Path({str(tmp_path)!r})
for step in range(3):
    if step == 2: os.path.exists("/begin")
    save_to(root, step, {STATE!r}, form={form!r})
    if step == 2: os.path.exists("/end")
"""
    command = ["strace", "-f", "-o", str(log), "-e", "trace=%file,%desc", sys.executable, "-c", code]
    if subprocess.run(command, check=False).returncode:  # noqa: S603 - ours
        pytest.skip("strace may not trace here")
    traced = log.read_text().partition('"/begin"')[2].partition('"/end"')[0].splitlines()[1:-1]
    calls = Counter(re.findall(r"^\d+ +(\w+)\(", "\n".join(traced), re.MULTILINE))
    calls["stat"] = sum(calls.pop(name, 0) for name in ("stat", "lstat", "newfstatat", "statx"))
    assert dict(calls) == _CALLS
